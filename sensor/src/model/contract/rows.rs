//! What a contract carries of the training's rows: golden ones, and how features and score were distributed.
//!
//! Called by [`super::read`].

use sensor_common::features::Feature;
use serde::Deserialize;

use super::{Keys, Shape, problem};
use crate::model::distribution::Distribution;
use crate::model::problem::Problem;

/// Golden rows that a model must bring at least.
pub const MIN_GOLDEN: usize = 4;
/// Golden rows that are run at most.
const MAX_GOLDEN: usize = 1024;

/// Inputs and the outputs that training saw for them.
#[derive(Clone, Debug)]
pub struct Golden {
    /// One value per feature, NaN = missing.
    pub input: Vec<f32>,
    /// One number per column of the output.
    pub output: Vec<f32>,
}

/// A number or, for NaN, which JSON does not have, null.
#[derive(Deserialize)]
#[serde(transparent)]
struct Cell(Option<f32>);

impl Keys<'_> {
    pub(super) fn golden(&self, shape: &Shape) -> Result<Vec<Golden>, Problem> {
        let expected = "a JSON array of rows of numbers, null for NaN";
        let inputs: Vec<Vec<Cell>> = self.get("golden_inputs", expected)?;
        let outputs: Vec<Vec<Cell>> = self.get("golden_outputs", expected)?;
        if !(MIN_GOLDEN..=MAX_GOLDEN).contains(&inputs.len()) || inputs.len() != outputs.len() {
            return Err(problem(
                "golden_inputs",
                format!("{} rows of inputs and {} of outputs", inputs.len(), outputs.len()),
                format!("give as many of both, at least {MIN_GOLDEN} and at most {MAX_GOLDEN}"),
            ));
        }
        let plain = |row: Vec<Cell>| row.into_iter().map(|cell| cell.0.unwrap_or(f32::NAN)).collect::<Vec<_>>();
        let rows = inputs.into_iter().zip(outputs).enumerate();
        rows.map(|(number, (input, output))| {
            if (input.len(), output.len()) != (shape.features, shape.outputs) {
                return Err(problem(
                    "golden_inputs",
                    format!("golden row {number} has {} inputs and {} outputs", input.len(), output.len()),
                    format!("there are {} features, and {} columns in the output", shape.features, shape.outputs),
                ));
            }
            Ok(Golden { input: plain(input), output: plain(output) })
        })
        .collect()
    }

    pub(super) fn quantiles(&self, features: &[&Feature]) -> Result<Vec<Distribution>, Problem> {
        let expected = "a JSON array of objects with edges and shares, one per feature";
        let all: Vec<Distribution> = self.optional("quantiles", expected)?.unwrap_or_default();
        if !all.is_empty() && all.len() != features.len() {
            let text = format!("it has {} entries for {} features", all.len(), features.len());
            return Err(problem("quantiles", text, "let models/contract.py make it from the training rows"));
        }
        for (distribution, feature) in all.iter().zip(features) {
            check(distribution, &format!("quantiles of {}", feature.name))?;
        }
        Ok(all)
    }

    pub(super) fn score_quantiles(&self) -> Result<Option<Distribution>, Problem> {
        let expected = "a JSON object with edges and shares";
        let distribution: Option<Distribution> = self.optional("score_quantiles", expected)?;
        if let Some(distribution) = &distribution {
            check(distribution, "score_quantiles")?;
        }
        Ok(distribution)
    }
}

fn check(distribution: &Distribution, key: &str) -> Result<(), Problem> {
    distribution.check().map_err(|text| problem(key, text, "let models/contract.py make it from the training rows"))
}
