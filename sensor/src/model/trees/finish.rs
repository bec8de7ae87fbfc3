//! From the sums of a row to a classifier's label and scores, or a regressor's values.
//!
//! ONNX says little of two classes whose leaves all add to one column, which is how every exporter writes a binary model. Here, as
//! the exporters mean it: the sum `s` is the second label's score. With LOGISTIC the scores are σ(−s), σ(s); without
//! transform they are 1 − s, s if no leaf is negative (probabilities), else −s, s.

use crate::model::ops::post::Transform;

/// How a classifier ends.
#[derive(Clone, Debug)]
pub(in crate::model) struct Classifier {
    pub labels: Vec<i64>,
    /// Added to the sums; empty, one per label, or one for the only column.
    pub base: Vec<f64>,
    pub transform: Transform,
    /// The only column that leaves add to, of two.
    pub column: Option<usize>,
    /// No leaf is negative.
    pub positive: bool,
}

impl Classifier {
    /// Turns sums into scores, and returns the label.
    pub(in crate::model) fn finish(&self, sums: &mut [f64]) -> i64 {
        let Classifier { labels, base, transform, column, positive } = self;
        let label = if let (Some(column), [first, second]) = (*column, &mut *sums) {
            let mut score = if column == 0 { *first } else { *second };
            // With one value per label the second is that of the positive one, to which the leaves belong.
            score += base.last().copied().unwrap_or(0.0);
            let probability = *positive && matches!(transform, Transform::None | Transform::Probit);
            (*first, *second) = (if probability { 1.0 - score } else { -score }, score);
            usize::from(score > if probability { 0.5 } else { 0.0 })
        } else {
            sums.iter_mut().zip(base).for_each(|(sum, base)| *sum += base);
            let mut best = 0;
            for (number, sum) in sums.iter().enumerate() {
                if *sum > sums[best] {
                    best = number;
                }
            }
            best
        };
        transform.apply(sums);
        labels.get(label).copied().unwrap_or(0)
    }
}

/// How a regressor ends.
#[derive(Clone, Debug)]
pub(in crate::model) struct Regressor {
    /// Added to the sums; empty or one per target.
    pub base: Vec<f64>,
    pub transform: Transform,
}

impl Regressor {
    /// Turns sums into values.
    pub(in crate::model) fn finish(&self, sums: &mut [f64]) {
        for (number, sum) in sums.iter_mut().enumerate() {
            let base = self.base.get(number).copied().unwrap_or(0.0);
            // Minimum or maximum of no leaf.
            *sum = if sum.is_nan() { base } else { *sum + base };
        }
        self.transform.apply(sums);
    }
}
