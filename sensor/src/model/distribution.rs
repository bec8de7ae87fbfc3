//! How values were distributed in training, and the population stability index of values seen since.
//!
//! `PSI = Σ (a − e) · ln(a / e)` over the bins, with e = share in training, a = share seen, both at least 0.0001; values
//! that do not exist are a bin of their own. Below 0.1 nothing has changed, from 0.25 on much has (Siddiqi, Credit Risk
//! Scorecards, 2006). Pure. Called by [`super::drift`], and by [`super::explain`] for the medians.

use serde::Deserialize;

/// Edges that one feature may have.
const MAX_EDGES: usize = 32;
/// Least share that enters the logarithm.
const FLOOR: f64 = 1e-4;

/// Values of one feature, or of the score, in training.
#[derive(Clone, Debug, PartialEq, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Distribution {
    /// Upper ends (inclusive) of all bins but the last, strictly ascending: the distinct deciles.
    pub edges: Vec<f32>,
    /// Share of all rows in each bin: one more than edges.
    pub shares: Vec<f32>,
    /// Share of all rows without this value.
    #[serde(default)]
    pub missing: f32,
    /// Median of the values that exist, `None` if there is none.
    #[serde(default)]
    pub median: Option<f32>,
}

impl Distribution {
    /// Checks edges and shares.
    ///
    /// # Errors
    /// What is wrong, as text.
    pub fn check(&self) -> Result<(), String> {
        let Distribution { edges, shares, missing, median } = self;
        if edges.len() > MAX_EDGES || shares.len() != edges.len() + 1 {
            return Err(format!(
                "{} edges and {} shares; there must be at most {MAX_EDGES} edges and one share more than edges",
                edges.len(),
                shares.len()
            ));
        }
        let ascend = edges.windows(2).all(|pair| pair[0] < pair[1]);
        if !ascend || !edges.iter().chain(median).all(|value| value.is_finite()) {
            return Err("edges must be finite and ascend strictly, the median must be finite".to_owned());
        }
        let sum: f32 = shares.iter().sum::<f32>() + missing;
        if !shares.iter().chain([missing]).all(|share| (0.0..=1.0).contains(share)) || (sum - 1.0).abs() > 0.01 {
            return Err(format!("shares and missing must be from 0 to 1 and sum to 1, not {sum}"));
        }
        Ok(())
    }

    /// Number of bins, that of missing values included.
    pub fn bins(&self) -> usize {
        self.shares.len() + 1
    }

    /// The bin of a value; the last one is that of NaN.
    pub fn bin(&self, value: f32) -> usize {
        if value.is_nan() { self.shares.len() } else { self.edges.partition_point(|edge| *edge < value) }
    }

    /// The index of what was counted per bin; `None` without any count.
    pub fn psi(&self, counts: &[u64]) -> Option<f64> {
        let total: u64 = counts.iter().sum();
        if total == 0 {
            return None;
        }
        let expected = self.shares.iter().copied().chain([self.missing]);
        Some(
            expected
                .zip(counts)
                .map(|(expected, count)| {
                    let expected = f64::from(expected).max(FLOOR);
                    let actual = (*count as f64 / total as f64).max(FLOOR);
                    (actual - expected) * (actual / expected).ln()
                })
                .sum(),
        )
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_index_is_zero_for_training_itself_and_grows_with_the_shift() {
        let training =
            Distribution { edges: vec![1.0, 4.0], shares: vec![0.5, 0.25, 0.125], missing: 0.125, median: None };
        assert_eq!(training.check(), Ok(()));
        assert_eq!([0.0, 1.0, 1.5, 4.0, 5.0, f32::INFINITY, f32::NAN].map(|v| training.bin(v)), [0, 0, 1, 1, 2, 2, 3]);
        assert_eq!(training.psi(&[0; 4]), None);
        assert!(training.psi(&[400, 200, 100, 100]).expect("rows").abs() < 1e-12);
        // By hand: (0.25 − 0.5) ln 0.5 + (0.5 − 0.25) ln 2 = 0.3466.
        let shifted = training.psi(&[200, 400, 100, 100]).expect("rows");
        assert!((shifted - 0.5 * std::f64::consts::LN_2).abs() < 1e-6, "{shifted}");
        assert!(training.psi(&[0, 0, 0, 800]).expect("rows") > 2.0);
    }

    #[test]
    fn bad_distributions_are_named() {
        let good = Distribution { edges: vec![1.0], shares: vec![0.5, 0.5], missing: 0.0, median: Some(1.0) };
        assert_eq!(good.check(), Ok(()));
        assert!(Distribution { edges: vec![2.0, 1.0], shares: vec![0.5, 0.5, 0.0], ..good.clone() }.check().is_err());
        assert!(Distribution { shares: vec![0.5], ..good.clone() }.check().is_err());
        assert!(Distribution { shares: vec![0.5, 0.9], ..good.clone() }.check().is_err());
        assert!(Distribution { shares: vec![0.5, f32::NAN], ..good }.check().is_err());
    }
}
