//! From a model's output to a score in 0..=1.
//!
//! A classifier's score is 1 − P(first label). An anomaly model gives a raw number per flow, which a piecewise linear
//! curve of its contract turns into a score. Pure. Called by [`super::Model`].

use serde::Deserialize;

/// Points that a curve may have.
const MAX_POINTS: usize = 64;

/// What a model is for.
#[derive(Clone, Copy, Debug, PartialEq, Eq, serde::Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Kind {
    /// Gives one probability per label.
    Classifier,
    /// Says how unusual a flow is.
    Anomaly,
}

impl Kind {
    /// The name in contracts.
    pub const fn name(self) -> &'static str {
        match self {
            Kind::Classifier => "classifier",
            Kind::Anomaly => "anomaly",
        }
    }
}

/// Where the raw number of an anomaly model comes from.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum From {
    /// The output `[batch, 1]`, larger = more unusual (an autoencoder whose graph ends in its error).
    Error,
    /// The output `[batch, 1]`, smaller = more unusual (`score_samples` and `decision_function` of scikit-learn); its
    /// negative is the raw number.
    Normality,
    /// The output `[batch, features]` is a reconstruction of the input; the raw number is the mean over the features that
    /// are present of ((input − output) / scale)².
    Reconstruction,
}

/// The key `sensor.score` of an anomaly model.
#[derive(Clone, Debug, PartialEq, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Scale {
    /// What the output is.
    pub from: From,
    /// (raw number, score): linear between two points, level before the first and behind the last.
    pub points: Vec<(f32, f32)>,
    /// Divisors for `reconstruction`, one per feature; empty = 1 for all.
    #[serde(default)]
    pub scale: Vec<f32>,
}

impl Scale {
    /// Checks the curve and the divisors.
    ///
    /// # Errors
    /// What is wrong, as text.
    pub fn check(&self, features: usize) -> Result<(), String> {
        let points = &self.points;
        if !(2..=MAX_POINTS).contains(&points.len()) {
            return Err(format!("it has {} points; it must have from 2 to {MAX_POINTS}", points.len()));
        }
        if !points.iter().all(|(raw, score)| raw.is_finite() && (0.0..=1.0).contains(score)) {
            return Err("its points must be finite numbers with scores from 0 to 1".to_owned());
        }
        if !points.windows(2).all(|pair| pair[0].0 < pair[1].0 && pair[0].1 <= pair[1].1) {
            return Err("its points must ascend: raw numbers strictly, scores never down".to_owned());
        }
        let scale = &self.scale;
        if !(scale.is_empty() || self.from == From::Reconstruction && scale.len() == features) {
            return Err(format!(
                "scale has {} numbers; it must have one per feature ({features}), or none",
                scale.len()
            ));
        }
        if !scale.iter().all(|value| value.is_finite() && *value > 0.0) {
            return Err("scale must be above 0".to_owned());
        }
        Ok(())
    }

    /// Columns of the output.
    pub fn width(&self, features: usize) -> usize {
        match self.from {
            From::Error | From::Normality => 1,
            From::Reconstruction => features,
        }
    }

    /// The score of one row; not finite if the output is not.
    pub fn score(&self, input: &[f32], output: &[f32]) -> f32 {
        match self.from {
            From::Error => self.of_raw(output[0]),
            From::Normality => self.of_raw(-output[0]),
            From::Reconstruction => self.of_raw(self.error(input, output)),
        }
    }

    /// Mean squared error over what is present, in f64: one large feature must not swallow the others.
    fn error(&self, input: &[f32], output: &[f32]) -> f32 {
        let (mut sum, mut count) = (0.0f64, 0u32);
        for (number, (input, output)) in input.iter().zip(output).enumerate() {
            if !output.is_finite() {
                return f32::NAN;
            }
            if input.is_nan() {
                continue;
            }
            let scale = self.scale.get(number).copied().unwrap_or(1.0);
            sum += ((f64::from(*input) - f64::from(*output)) / f64::from(scale)).powi(2);
            count += 1;
        }
        (sum / f64::from(count.max(1))).min(f64::from(f32::MAX)) as f32
    }

    fn of_raw(&self, raw: f32) -> f32 {
        if !raw.is_finite() {
            return f32::NAN;
        }
        let above = self.points.partition_point(|(at, _)| *at <= raw);
        let Some(&(high, high_score)) = self.points.get(above) else { return self.points[above - 1].1 };
        let Some(&(low, low_score)) = above.checked_sub(1).and_then(|before| self.points.get(before)) else {
            return high_score;
        };
        // In f64: the two raw numbers may be far apart.
        let share = (f64::from(raw) - f64::from(low)) / (f64::from(high) - f64::from(low));
        low_score + (f64::from(high_score - low_score) * share) as f32
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn scale(from: From) -> Scale {
        Scale { from, points: vec![(0.0, 0.0), (1.0, 0.5), (3.0, 1.0)], scale: vec![] }
    }

    #[test]
    fn the_curve_is_linear_between_its_points_and_level_outside() {
        let error = scale(From::Error);
        for (raw, score) in [(-5.0, 0.0), (0.0, 0.0), (0.5, 0.25), (1.0, 0.5), (2.0, 0.75), (3.0, 1.0), (1e30, 1.0)] {
            assert_eq!(error.score(&[], &[raw]), score, "{raw}");
            assert_eq!(scale(From::Normality).score(&[], &[-raw]), score, "{raw}");
        }
        assert!(error.score(&[], &[f32::NAN]).is_nan() && error.score(&[], &[f32::INFINITY]).is_nan());
    }

    #[test]
    fn a_reconstruction_is_judged_on_what_is_present() {
        let mut scale = scale(From::Reconstruction);
        assert_eq!(scale.score(&[1.0, f32::NAN, 5.0], &[1.0, 9.0, 6.0]), 0.25, "error 1/2");
        scale.scale = vec![1.0, 1.0, 0.5];
        assert_eq!(scale.score(&[1.0, f32::NAN, 5.0], &[1.0, 9.0, 6.0]), 0.75, "error 4/2");
        assert!(scale.score(&[f32::NAN, 1.0, 1.0], &[f32::INFINITY, 1.0, 1.0]).is_nan());
        assert_eq!(scale.check(3), Ok(()));
        assert!(scale.check(2).is_err());
        scale.points = vec![(0.0, 0.5), (1.0, 0.4)];
        assert!(scale.check(3).is_err());
    }
}
