//! Models: an ONNX file with a contract, loaded, proven on its golden rows, and run in batches.
//!
//! Invariant: a [`Model`] that exists gave the outputs that its file promises, on this machine. A file that does not is
//! refused with an error that says what to change. Called by the agent's poll thread, which owns its model alone.

pub mod accept;
pub mod check;
pub mod contract;
pub mod distribution;
pub mod document;
pub mod drift;
mod engine;
mod exact;
pub mod explain;
pub mod file;
pub mod gaps;
pub mod isolate;
mod limits;
pub mod load;
mod lower;
pub mod network;
mod ops;
pub mod problem;
pub mod restamp;
mod room;
pub mod scale;
mod trees;

#[cfg(test)]
mod conformance;
#[cfg(test)]
mod operators;
#[cfg(test)]
mod schema;
#[cfg(test)]
mod tests;

use std::path::Path;

use anyhow::{Context, Result};
use sensor_common::context::HostContext;
use sensor_common::features::{Feature, Sample};
use sensor_common::flow::FlowRecord;

use crate::vector;

use contract::{Golden, Thresholds};
use distribution::Distribution;
use file::File;
use load::Examined;
use network::Network;
use scale::{Kind, Scale};

pub use file::MAX_FILE;

/// Largest difference between a golden output and the model's: absolute up to 1, relative above.
pub const GOLDEN_TOLERANCE: f32 = 1e-4;

/// What a model says of a flow.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Score {
    /// Number of a label in [`Model::labels`]: of the attack labels (1 …) the most probable one if `score` reaches the
    /// model's threshold, else of all labels the most probable one.
    pub label: u8,
    /// How sure the model is that the flow is not benign, in 0..=1: 1 − P(label 0), or what the contract's curve makes
    /// of an anomaly model's output.
    pub score: f32,
}

/// A model that can score flows.
pub struct Model {
    /// Name from the contract, or the file's; fit for the value of a metric's label.
    pub name: String,
    /// SHA-256 of the file, hexadecimal.
    pub hash: String,
    /// What it is for.
    pub kind: Kind,
    /// What the model is given, in order.
    pub features: Vec<&'static Feature>,
    /// What it can say; label 0 is benign.
    pub labels: Vec<String>,
    /// Scores from which on something is done.
    pub thresholds: Thresholds,
    /// Flows with fewer packets are not to be scored.
    pub min_packets: u64,
    /// What the file says that it was trained on.
    pub trained_on: String,
    /// What else the file says of its training.
    pub training: serde_json::Value,
    /// How each feature was distributed in training; empty if the file does not say.
    pub quantiles: Vec<Distribution>,
    /// How the score was distributed in training.
    pub score_quantiles: Option<Distribution>,
    scale: Option<Scale>,
    network: Network,
    golden: Vec<Golden>,
    golden_delta: f32,
    /// What explanations compare with, once it was asked for.
    typical: Option<(explain::Compared, Vec<f32>)>,
    invalid: u64,
    /// Reused from call to call.
    inputs: Vec<f32>,
    unscored: Vec<usize>,
}

impl std::fmt::Debug for Model {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "Model({} {})", self.name, self.hash)
    }
}

impl Model {
    /// Loads a model: reads the file, checks its contract, builds its graph for every batch size, and runs its golden
    /// rows through each.
    ///
    /// # Errors
    /// Any failure names the file and says what to change.
    pub fn load(path: &Path) -> Result<Model> {
        let file = File::read(path, MAX_FILE)?;
        Model::from_file(&file).with_context(|| format!("load the model {}", path.display()))
    }

    /// [`Model::load`] from what was read.
    ///
    /// # Errors
    /// As for [`Model::load`].
    pub fn from_file(file: &File) -> Result<Model> {
        let Examined { model, problems } = load::examine(file);
        model.ok_or_else(|| problem::error(&problems))
    }

    /// [`Model::load`] from the bytes of a file. `name` is used if the contract gives none.
    ///
    /// # Errors
    /// As for [`Model::load`].
    pub fn from_bytes(bytes: &[u8], name: String) -> Result<Model> {
        Model::from_file(&File::from_bytes(bytes.to_vec(), name))
    }

    /// Scores flows: `out` gets one score for each of `rows`, in order; what it held before is dropped. `contexts` has
    /// the host context of each, or is empty where none is known.
    ///
    /// An output that is not a finite number scores 0 as label 0 (traffic passes when the model fails) and is counted
    /// in [`Model::invalid`].
    ///
    /// # Errors
    /// If the graph cannot be run; `out` is empty then.
    pub fn score(&mut self, rows: &[FlowRecord], contexts: &[HostContext], out: &mut Vec<Score>) -> Result<()> {
        let Model { inputs, features, .. } = self;
        inputs.resize(rows.len() * features.len(), f32::NAN);
        let contexts = contexts.iter().chain(std::iter::repeat(&HostContext::NONE));
        for ((values, record), context) in inputs.chunks_exact_mut(features.len()).zip(rows).zip(contexts) {
            vector::fill(features, &Sample { record, context }, values);
        }
        self.run(rows.len(), out)
    }

    /// Whether it looks at more than the flow: some of its features are of the host context.
    pub fn wants_context(&self) -> bool {
        self.features.iter().any(|feature| feature.needs_context())
    }

    /// Lets `threads` threads share large calls; see [`Network::set_threads`].
    ///
    /// # Errors
    /// As for [`Network::set_threads`].
    pub fn set_threads(&mut self, threads: usize) -> Result<()> {
        self.network.set_threads(threads)
    }

    /// [`Model::score`] for rows of features that `fill` writes (row number, one value per feature).
    ///
    /// # Errors
    /// As for [`Model::score`].
    pub fn score_rows(
        &mut self,
        rows: usize,
        mut fill: impl FnMut(usize, &mut [f32]),
        out: &mut Vec<Score>,
    ) -> Result<()> {
        let Model { inputs, features, .. } = self;
        inputs.resize(rows * features.len(), f32::NAN);
        for (row, values) in inputs.chunks_exact_mut(features.len()).enumerate() {
            fill(row, values);
        }
        self.run(rows, out)
    }

    /// Scores the rows in `inputs`.
    fn run(&mut self, rows: usize, out: &mut Vec<Score>) -> Result<()> {
        let Model { network, thresholds, scale, invalid, inputs, unscored, features, .. } = self;
        let (width, threshold) = (features.len(), thresholds.report);
        out.clear();
        unscored.clear();
        let result = network.run(
            rows,
            |row, values| values.copy_from_slice(&inputs[row * width..][..width]),
            |row, outputs| {
                let score = match scale {
                    None => decide(outputs, threshold),
                    Some(scale) => anomaly(scale.score(&inputs[row * width..][..width], outputs), threshold),
                };
                if score.is_none() {
                    *invalid += 1;
                    unscored.push(row);
                }
                out.push(score.unwrap_or(Score { label: 0, score: 0.0 }));
            },
        );
        if result.is_err() {
            out.clear();
        }
        result.with_context(|| format!("run the model {}", self.name))
    }

    /// The rows that were scored last, one after the other: one value per feature, NaN = missing.
    pub fn inputs(&self) -> &[f32] {
        &self.inputs
    }

    /// Numbers of the rows of the last call whose outputs were not finite, ascending.
    pub fn unscored(&self) -> &[usize] {
        &self.unscored
    }

    /// Outputs so far that were not finite.
    pub fn invalid(&self) -> u64 {
        self.invalid
    }
}

/// Score and label of one row of probabilities, `None` if one is not finite.
fn decide(outputs: &[f32], threshold: f32) -> Option<Score> {
    if !outputs.iter().all(|value| value.is_finite()) {
        return None;
    }
    let score = (1.0 - outputs[0]).clamp(0.0, 1.0);
    let first = (score >= threshold) as usize;
    let mut label = first;
    for (number, value) in outputs.iter().enumerate().skip(first + 1) {
        if *value > outputs[label] {
            label = number;
        }
    }
    Some(Score { label: label as u8, score })
}

/// Score and label of an anomaly model's row, `None` if the score is not finite.
fn anomaly(score: f32, threshold: f32) -> Option<Score> {
    score.is_finite().then_some(Score { label: (score >= threshold) as u8, score })
}
