//! Drift: whether the flows that are scored are still like those of the training.
//!
//! Scored rows are counted per bin of the training's distributions, in windows of a fixed number of rows; at the end of
//! a window each feature and the score have a population stability index ([`super::distribution`]). An attack is drift,
//! too: the index says that something is different, not that the model is wrong. Pure. Called by the poll thread.

use super::distribution::Distribution;
use super::{Model, Score};

/// From this index on something has changed.
pub const MODERATE: f64 = 0.1;
/// From this index on much has changed.
pub const HIGH: f64 = 0.25;
/// Share of the features whose index is high that makes the whole high.
pub const HIGH_SHARE: f64 = 0.25;

/// How much has changed.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, serde::Serialize, serde::Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Level {
    /// Nothing that matters.
    Stable,
    /// Something.
    Moderate,
    /// Much: the model was not made for this traffic.
    High,
}

impl Level {
    /// The level of one index.
    pub fn of(psi: f64) -> Level {
        match psi {
            psi if psi >= HIGH => Level::High,
            psi if psi >= MODERATE => Level::Moderate,
            _ => Level::Stable,
        }
    }

    /// The name in logs.
    pub const fn name(self) -> &'static str {
        match self {
            Level::Stable => "stable",
            Level::Moderate => "moderate",
            Level::High => "high",
        }
    }
}

/// The indices of one window.
#[derive(Clone, Debug, PartialEq)]
pub struct Window {
    /// One per feature of the model; empty if its file has no quantiles.
    pub features: Vec<f64>,
    /// That of the score, if its file has quantiles of it.
    pub score: Option<f64>,
}

impl Window {
    /// High if the score's index is, or those of a quarter of the features are; moderate likewise.
    pub fn level(&self) -> Level {
        let share = |level| {
            let reached = self.features.iter().filter(|psi| Level::of(**psi) >= level).count();
            reached > 0 && reached as f64 >= HIGH_SHARE * self.features.len() as f64
        };
        let of_score = self.score.map_or(Level::Stable, Level::of);
        let of_features =
            [Level::High, Level::Moderate].into_iter().find(|level| share(*level)).unwrap_or(Level::Stable);
        of_score.max(of_features)
    }
}

/// Counts of the window that runs.
#[derive(Clone, Debug)]
pub struct Drift {
    features: Vec<(Distribution, Vec<u64>)>,
    score: Option<(Distribution, Vec<u64>)>,
    rows: u64,
    window: u64,
}

impl Drift {
    /// For windows of `window` rows; `None` if the window is 0 or the model's file has no quantiles.
    pub fn new(model: &Model, window: u64) -> Option<Drift> {
        let counted = |distribution: &Distribution| (distribution.clone(), vec![0; distribution.bins()]);
        let features: Vec<_> = model.quantiles.iter().map(counted).collect();
        let score = model.score_quantiles.as_ref().map(counted);
        let something = !features.is_empty() || score.is_some();
        (window > 0 && something).then_some(Drift { features, score, rows: 0, window })
    }

    /// Counts rows (one value per feature, one row after the other) and their scores; none if there is not a score for each
    /// row, and not the rows whose numbers are in `unscored` (ascending). Gives the window that they complete; rows beyond
    /// its end are in it, too.
    pub fn observe(&mut self, rows: &[f32], scores: &[Score], unscored: &[usize]) -> Option<Window> {
        let width = self.features.len();
        if width > 0 && rows.len() != scores.len() * width {
            return None;
        }
        for (number, score) in scores.iter().enumerate() {
            if unscored.binary_search(&number).is_ok() {
                continue;
            }
            for ((distribution, counts), value) in self.features.iter_mut().zip(&rows[number * width..]) {
                counts[distribution.bin(*value)] += 1;
            }
            if let Some((distribution, counts)) = &mut self.score {
                counts[distribution.bin(score.score)] += 1;
            }
            self.rows += 1;
        }
        (self.rows >= self.window).then(|| self.finish())
    }

    fn finish(&mut self) -> Window {
        self.rows = 0;
        let index = |(distribution, counts): &mut (Distribution, Vec<u64>)| {
            let psi = distribution.psi(counts).unwrap_or_default();
            counts.fill(0);
            psi
        };
        Window { features: self.features.iter_mut().map(index).collect(), score: self.score.as_mut().map(index) }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn drift(window: u64) -> Drift {
        let distribution =
            Distribution { edges: vec![1.0, 2.0], shares: vec![0.5, 0.25, 0.25], missing: 0.0, median: Some(1.0) };
        let counted = (distribution, vec![0; 4]);
        Drift { features: vec![counted.clone(); 4], score: Some(counted), rows: 0, window }
    }

    fn score(score: f32) -> Score {
        Score { label: 0, score }
    }

    #[test]
    fn a_window_ends_after_its_rows_and_starts_anew() {
        let mut drift = drift(4);
        assert_eq!(drift.observe(&[0.5; 8], &[score(0.5); 2], &[]), None);
        let rows = [[1.5; 4], [9.0; 4]].concat();
        let window = drift.observe(&rows, &[score(1.5), score(9.0)], &[]).expect("four rows");
        assert_eq!((window.level(), window.features.len()), (Level::Stable, 4));
        assert!(window.features.iter().chain(&window.score).all(|psi| psi.abs() < 1e-9), "{window:?}");
        let window = drift.observe(&[9.0; 16], &[score(0.5); 4], &[]).expect("four rows");
        assert!(window.features.iter().all(|psi| *psi > 1.0), "all in one bin: {window:?}");
        assert_eq!(window.level(), Level::High);
    }

    #[test]
    fn rows_without_a_score_are_not_counted() {
        let mut drift = drift(4);
        assert_eq!(drift.observe(&[9.0; 32], &[], &[]), None, "a call that failed");
        // The answers to the second and fourth row were not finite.
        let rows = [[0.5; 4], [9.0; 4], [0.5; 4], [9.0; 4]].concat();
        assert_eq!(drift.observe(&rows, &[score(0.5); 4], &[1, 3]), None);
        let window = drift.observe(&[[1.5; 4], [9.0; 4]].concat(), &[score(1.5), score(9.0)], &[]).expect("four rows");
        assert!(window.features.iter().chain(&window.score).all(|psi| psi.abs() < 1e-9), "{window:?}");
    }

    #[test]
    fn a_quarter_of_the_features_or_the_score_makes_it_high() {
        let window = |features: &[f64], score| Window { features: features.to_vec(), score };
        assert_eq!(window(&[0.3, 0.0, 0.0, 0.0], None).level(), Level::High);
        assert_eq!(window(&[0.3, 0.0, 0.0, 0.0, 0.0], None).level(), Level::Stable);
        assert_eq!(window(&[0.3, 0.1, 0.0, 0.0, 0.0], Some(0.0)).level(), Level::Moderate);
        assert_eq!(window(&[0.0], Some(0.25)).level(), Level::High);
        assert_eq!(window(&[], Some(0.1)).level(), Level::Moderate);
    }
}
