//! The post-transforms of ai.onnx.ml: from a row of sums to a row of scores, in doubles.

use anyhow::{Result, bail};

/// A post-transform.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(in crate::model) enum Transform {
    /// Nothing.
    None,
    /// exp(x) / Σ exp(x).
    Softmax,
    /// 1 / (1 + exp(−x)).
    Logistic,
    /// As softmax, but zeros stay zero.
    SoftmaxZero,
    /// The inverse of the normal distribution's cumulative function.
    Probit,
}

impl Transform {
    /// The name that versions 1 and 3 use; "" is none.
    pub(in crate::model) fn parse(name: &str) -> Result<Transform> {
        Ok(match name {
            "" | "NONE" => Transform::None,
            "SOFTMAX" => Transform::Softmax,
            "LOGISTIC" => Transform::Logistic,
            "SOFTMAX_ZERO" => Transform::SoftmaxZero,
            "PROBIT" => Transform::Probit,
            other => bail!("post_transform is {other:?}; it must be NONE, SOFTMAX, LOGISTIC, SOFTMAX_ZERO or PROBIT"),
        })
    }

    /// The number that TreeEnsemble uses.
    pub(in crate::model) fn numbered(number: i64) -> Result<Transform> {
        Ok(match number {
            0 => Transform::None,
            1 => Transform::Softmax,
            2 => Transform::Logistic,
            3 => Transform::SoftmaxZero,
            4 => Transform::Probit,
            other => bail!("post_transform is {other}; it must be 0 to 4"),
        })
    }

    /// Transforms a row.
    pub(in crate::model) fn apply(self, row: &mut [f64]) {
        match self {
            Transform::None => {}
            Transform::Softmax => softmax(row, |_| true),
            // Values this small count as zeros in the other runtimes too.
            Transform::SoftmaxZero => softmax(row, |value| value.abs() > 1e-7),
            Transform::Logistic => row.iter_mut().for_each(|value| *value = logistic(*value)),
            Transform::Probit => row.iter_mut().for_each(|value| *value = probit(*value)),
        }
    }
}

/// 1 / (1 + exp(−x)).
pub(in crate::model) fn logistic(value: f64) -> f64 {
    1.0 / (1.0 + (-value).exp())
}

fn softmax(row: &mut [f64], counts: impl Fn(f64) -> bool) {
    let top = row.iter().copied().fold(f64::NEG_INFINITY, f64::max);
    let mut sum = 0.0;
    for value in row.iter_mut().filter(|value| counts(**value)) {
        *value = (*value - top).exp();
        sum += *value;
    }
    // All zeros: nothing was counted.
    if sum > 0.0 {
        row.iter_mut().for_each(|value| *value /= sum);
    }
}

/// √2 · erf⁻¹(2x − 1), with Winitzki's approximation of erf⁻¹, which the other runtimes use ("A handy approximation for the
/// error function and its inverse", 2008, a = 0.147).
fn probit(value: f64) -> f64 {
    let x = 2.0 * value - 1.0;
    let log = ((1.0 - x) * (1.0 + x)).ln();
    let half = 2.0 / (std::f64::consts::PI * 0.147) + 0.5 * log;
    let root = ((half * half - log / 0.147).sqrt() - half).max(0.0).sqrt();
    std::f64::consts::SQRT_2 * root.copysign(x)
}
