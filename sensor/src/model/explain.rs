//! Why a flow has its score: which features made it.
//!
//! Method: occlusion. Each feature in turn is replaced by its median in training, all variants are scored in one call,
//! and a feature's effect is `score − score without it`. Effects are of one feature at a time: two that say the same
//! hide each other, and effects do not sum to the score. A file without quantiles says no medians; its golden rows are
//! rows of the training, so the medians of those that the model finds benign stand in. Called by `sensor model
//! explain`.

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
    /// The score with the replacement; `None` = none, as the model's answer is not finite.
    pub without: Option<f32>,
    /// `score − without`: above 0, the value speaks against the flow.
    pub effect: Option<f32>,
}

/// What a flow is compared with.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum Compared {
    /// The medians of the training, which the file gives.
    Training,
    /// The medians of the golden rows whose score is below the threshold: this many.
    GoldenBenign(usize),
    /// The medians of all golden rows, as none of them is below the threshold: this many.
    Golden(usize),
}

impl Compared {
    /// In words: "replaced by …".
    pub fn words(self) -> String {
        match self {
            Compared::Training => "its median in training".to_owned(),
            Compared::GoldenBenign(rows) => {
                format!("its median in the file's {rows} benign golden rows (the file has no sensor.quantiles)")
            }
            Compared::Golden(rows) => format!(
                "its median in the file's {rows} golden rows, none of them benign (the file has no sensor.quantiles)"
            ),
        }
    }
}

/// A score and its reasons.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct Explanation {
    /// The score; `None` = none, as the model's answer is not finite.
    pub score: Option<f32>,
    /// Its label; empty without a score.
    pub label: String,
    /// What the features are compared with.
    pub compared: Compared,
    /// The score with all features replaced: that of a flow like most.
    pub typical: Option<f32>,
    /// Every replacement alone gives the same score, so none is a reason.
    pub same: bool,
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
    let (compared, medians) = typical(model)?;
    let mut scores = Vec::with_capacity(count + 2);
    let variant = |number: usize, values: &mut [f32]| {
        // Row 0 is the flow, 1 ..= count lack one feature each, the last one lacks all.
        values.copy_from_slice(if number == count + 1 { &medians } else { row });
        if (1..=count).contains(&number) {
            values[number - 1] = medians[number - 1];
        }
    };
    model.score_rows(count + 2, variant, &mut scores)?;
    let scored = |row: usize| model.unscored().binary_search(&row).is_err().then(|| scores[row].score);
    let Score { label, .. } = scores[0];
    let score = scored(0);
    let exists = |value: f32| (!value.is_nan()).then_some(value);
    let effect = |number: usize| {
        let without = scored(number + 1);
        Effect {
            feature: model.features[number].name,
            unit: model.features[number].unit,
            value: exists(row[number]),
            median: exists(medians[number]),
            without,
            effect: score.zip(without).map(|(score, without)| score - without),
        }
    };
    let mut effects: Vec<_> = (0..count).map(effect).collect();
    let changed: Vec<&Effect> = effects.iter().filter(|effect| effect.value != effect.median).collect();
    // Whatever is made missing, the answer is one and the same: it speaks of missing values, not of these.
    let missing = changed.len() > 1
        && changed.iter().all(|effect| effect.median.is_none() && effect.without == changed[0].without);
    let same = missing || changed.iter().all(|effect| effect.without == score);
    // Of equal effects those come first whose value is another one than the replacement.
    let size = |effect: &Effect| effect.effect.map_or(f32::INFINITY, f32::abs);
    let other = |effect: &Effect| effect.value != effect.median;
    effects.sort_by(|a, b| size(b).total_cmp(&size(a)).then_with(|| other(b).cmp(&other(a))));
    let label = score.and_then(|_| model.labels.get(usize::from(label)).cloned()).unwrap_or_default();
    Ok(Explanation { score, label, compared, typical: scored(count + 1), same, effects })
}

/// What is compared with, and its value of each feature: NaN where most have none.
fn typical(model: &mut Model) -> Result<(Compared, Vec<f32>)> {
    if let Some(known) = &model.typical {
        return Ok(known.clone());
    }
    let found = find_typical(model)?;
    model.typical = Some(found.clone());
    Ok(found)
}

fn find_typical(model: &mut Model) -> Result<(Compared, Vec<f32>)> {
    if !model.quantiles.is_empty() {
        let median = |quantiles: &super::distribution::Distribution| quantiles.median.unwrap_or(f32::NAN);
        return Ok((Compared::Training, model.quantiles.iter().map(median).collect()));
    }
    let rows: Vec<Vec<f32>> = model.golden.iter().map(|golden| golden.input.clone()).collect();
    let mut scores = Vec::with_capacity(rows.len());
    model.score_rows(rows.len(), |row, values| values.copy_from_slice(&rows[row]), &mut scores)?;
    let benign: Vec<_> = rows.iter().zip(&scores).filter(|(_, score)| score.score < model.thresholds.report).collect();
    let (compared, rows): (_, Vec<&Vec<f32>>) = match benign.is_empty() {
        true => (Compared::Golden(rows.len()), rows.iter().collect()),
        false => (Compared::GoldenBenign(benign.len()), benign.into_iter().map(|(row, _)| row).collect()),
    };
    let median = |column: usize| {
        let mut values: Vec<f32> = rows.iter().map(|row| row[column]).collect();
        // NaN is last: it is the median where most rows have no value.
        values.sort_by(f32::total_cmp);
        values[(values.len() - 1) / 2]
    };
    Ok((compared, (0..model.features.len()).map(median).collect()))
}
