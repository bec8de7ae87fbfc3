//! Why a flow has its score: which features made it.
//!
//! Method: occlusion. Each feature in turn is replaced by its median in training (or made missing, if the file has no
//! quantiles), all variants are scored in one call, and a feature's effect is `score − score without it`. Effects are
//! of one feature at a time: two that say the same hide each other, and effects do not sum to the score. Called by
//! `sensor model explain`.

use anyhow::Result;
use serde::Serialize;

use super::{Model, Score};

/// One feature's part.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct Effect {
    /// Feature.
    pub feature: &'static str,
    /// Unit.
    pub unit: &'static str,
    /// Its value; `None` = missing.
    pub value: Option<f32>,
    /// What it was replaced by; `None` = missing.
    pub median: Option<f32>,
    /// The score with the replacement.
    pub without: f32,
    /// `score − without`: above 0, the value speaks against the flow.
    pub effect: f32,
}

/// A score and its reasons.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct Explanation {
    /// The score.
    pub score: f32,
    /// Its label.
    pub label: String,
    /// The score with all features replaced: that of a flow like most.
    pub typical: f32,
    /// Every feature, the largest effect (either way) first.
    pub effects: Vec<Effect>,
}

/// Explains the score of one row (one value per feature, NaN = missing).
///
/// # Errors
/// If the model cannot be run.
///
/// # Panics
/// If the row's length is not the model's number of features.
pub fn explain(model: &mut Model, row: &[f32]) -> Result<Explanation> {
    let count = model.features.len();
    assert_eq!(row.len(), count, "one value per feature");
    let medians: Vec<f32> = (0..count)
        .map(|number| model.quantiles.get(number).and_then(|quantiles| quantiles.median).unwrap_or(f32::NAN))
        .collect();
    let mut scores = Vec::with_capacity(count + 2);
    let variant = |number: usize, values: &mut [f32]| {
        // Row 0 is the flow, 1 ..= count lack one feature each, the last one lacks all.
        values.copy_from_slice(if number == count + 1 { &medians } else { row });
        if (1..=count).contains(&number) {
            values[number - 1] = medians[number - 1];
        }
    };
    model.score_rows(count + 2, variant, &mut scores)?;
    let Score { label, score } = scores[0];
    let exists = |value: f32| (!value.is_nan()).then_some(value);
    let effect = |number: usize| Effect {
        feature: model.features[number].name,
        unit: model.features[number].unit,
        value: exists(row[number]),
        median: exists(medians[number]),
        without: scores[number + 1].score,
        effect: score - scores[number + 1].score,
    };
    let mut effects: Vec<_> = (0..count).map(effect).collect();
    effects.sort_by(|a, b| b.effect.abs().total_cmp(&a.effect.abs()));
    let label = model.labels.get(usize::from(label)).cloned().unwrap_or_default();
    Ok(Explanation { score, label, typical: scores[count + 1].score, effects })
}
