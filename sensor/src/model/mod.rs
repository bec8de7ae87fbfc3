//! Models: an ONNX file with a contract, loaded, proven on its golden rows, and run in batches.
//!
//! Invariant: a [`Model`] that exists gave the outputs that its file promises, on this machine. A file that does not is
//! refused with an error that says what to change. Called by the agent's poll thread, which owns its model alone.

mod check;
pub mod contract;
pub mod network;

#[cfg(test)]
mod tests;

use std::fs::File;
use std::io::Read;
use std::path::Path;

use anyhow::{Context, Result, bail, ensure};
use sensor_common::features::Feature;
use sensor_common::flow::FlowRecord;
use sensor_common::packet;
use sha2::{Digest, Sha256};

use crate::vector;

pub use check::check;

use contract::{Contract, Golden};
use network::Network;

/// Largest model file that is read, in bytes.
pub const MAX_FILE: u64 = 64 << 20;
/// Largest difference between a golden output and the model's.
pub const GOLDEN_TOLERANCE: f32 = 1e-4;

/// What a model says of a flow.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Score {
    /// Number of a label in [`Model::labels`]: of the attack labels (1 …) the most probable one if `score` reaches the
    /// model's threshold, else of all labels the most probable one.
    pub label: u8,
    /// How sure the model is that the flow is not benign: 1 − P(label 0), in 0..=1.
    pub score: f32,
}

/// A model that can score flows.
pub struct Model {
    /// Name from the contract, or the file's.
    pub name: String,
    /// SHA-256 of the file, hexadecimal.
    pub hash: String,
    /// What the model is given, in order.
    pub features: Vec<&'static Feature>,
    /// What it can say; label 0 is benign.
    pub labels: Vec<String>,
    /// From this score on a flow is reported.
    pub threshold: f32,
    /// Flows with fewer packets are not to be scored.
    pub min_packets: u64,
    /// What the file says that it was trained on.
    pub trained_on: String,
    network: Network,
    golden: Vec<Golden>,
    golden_delta: f32,
    invalid: u64,
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
        let bytes = read(path).with_context(|| format!("read the model {}", path.display()))?;
        let stem = path.file_stem().map(|stem| stem.to_string_lossy().into_owned()).unwrap_or_default();
        Model::from_bytes(&bytes, stem).with_context(|| format!("load the model {}", path.display()))
    }

    /// [`Model::load`] from the bytes of a file. `name` is used if the contract gives none.
    ///
    /// # Errors
    /// As for [`Model::load`].
    pub fn from_bytes(bytes: &[u8], name: String) -> Result<Model> {
        let proto = network::decode(bytes)?;
        let properties = proto.metadata_props.iter().map(|entry| (entry.key.as_str(), entry.value.as_str()));
        let Contract { name: given, features, labels, threshold, min_packets, golden, trained_on } =
            Contract::parse(properties)?;
        let network = Network::build(&proto, features.len(), labels.len())?;
        let mut model = Model {
            name: if given.is_empty() { name } else { given },
            hash: Sha256::digest(bytes).iter().map(|byte| format!("{byte:02x}")).collect(),
            features,
            labels,
            threshold,
            min_packets,
            trained_on,
            network,
            golden,
            golden_delta: 0.0,
            invalid: 0,
        };
        model.check_golden()?;
        model.check_plain_flows()?;
        Ok(model)
    }

    /// Scores flows: `out` gets one score for each of `rows`, in order; what it held before is dropped.
    ///
    /// An output that is not a finite number scores 0 as label 0 (traffic passes when the model fails) and is counted
    /// in [`Model::invalid`].
    ///
    /// # Errors
    /// If the graph cannot be run; `out` is empty then.
    pub fn score(&mut self, rows: &[FlowRecord], out: &mut Vec<Score>) -> Result<()> {
        let Model { network, features, threshold, invalid, .. } = self;
        out.clear();
        let result = network.run(
            rows.len(),
            |row, values| vector::fill(features, &rows[row], values),
            |_, outputs| {
                let score = decide(outputs, *threshold);
                *invalid += score.is_none() as u64;
                out.push(score.unwrap_or(Score { label: 0, score: 0.0 }));
            },
        );
        if result.is_err() {
            out.clear();
        }
        result.with_context(|| format!("run the model {}", self.name))
    }

    /// Outputs so far that were not finite.
    pub fn invalid(&self) -> u64 {
        self.invalid
    }

    /// Runs the golden rows at every batch size.
    fn check_golden(&mut self) -> Result<()> {
        let count = self.golden.len();
        for size in network::BATCHES {
            for start in (0..count).step_by(size) {
                // A full batch, over and over the golden rows if need be, so that each size runs its own plan.
                let outputs = self.outputs(size, |golden, row, values| {
                    values.copy_from_slice(&golden[(start + row) % count].input);
                })?;
                for (row, output) in outputs.iter().enumerate() {
                    self.compare((start + row) % count, output, size)?;
                }
            }
        }
        Ok(())
    }

    /// Compares an output with that of golden row `number`.
    fn compare(&mut self, number: usize, output: &[f32], batch: usize) -> Result<()> {
        for ((found, expected), label) in output.iter().zip(&self.golden[number].output).zip(&self.labels) {
            let delta = (found - expected).abs();
            // Written so that NaN on either side fails.
            ensure!(
                delta <= GOLDEN_TOLERANCE,
                "golden row {number}, label {label:?}: the file promises {expected}, the graph gives {found} (batch \
                 {batch}, tolerance {GOLDEN_TOLERANCE}): the graph and sensor.golden_outputs do not belong together, or \
                 an operator differs; export both from the same weights"
            );
            self.golden_delta = self.golden_delta.max(delta);
        }
        Ok(())
    }

    /// Runs the plainest flows there are: one datagram, one SYN. Most features of theirs are missing, and a model that
    /// does not impute answers NaN.
    fn check_plain_flows(&mut self) -> Result<()> {
        let records = [plain_flow(packet::protocol::UDP), plain_flow(packet::protocol::TCP)].concat();
        let features = self.features.clone();
        let outputs = self.outputs(records.len(), |_, row, values| vector::fill(&features, &records[row], values))?;
        for (output, what) in outputs.iter().zip(["one UDP datagram", "one TCP SYN"]) {
            ensure!(
                output.iter().all(|value| value.is_finite()),
                "the model gives {output:?} for a flow of {what}: values that do not exist are NaN in its input, and its \
                 graph must replace them (IsNaN and Where, or an imputer)"
            );
            let sum: f32 = output.iter().sum();
            ensure!(
                output.iter().all(|value| (-1e-3..=1.001).contains(value)) && (sum - 1.0).abs() < 1e-2,
                "the model gives {output:?} for a flow of {what}, which are no probabilities: end the graph with Softmax"
            );
        }
        Ok(())
    }

    fn outputs(&mut self, rows: usize, fill: impl Fn(&[Golden], usize, &mut [f32])) -> Result<Vec<Vec<f32>>> {
        let mut outputs = Vec::with_capacity(rows);
        let golden = &self.golden;
        self.network.run(rows, |row, values| fill(golden, row, values), |_, output| outputs.push(output.to_vec()))?;
        Ok(outputs)
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

/// A flow of one packet without payload.
fn plain_flow(protocol: u8) -> Vec<FlowRecord> {
    let tcp = protocol == packet::protocol::TCP;
    let mut frame = [0u8; 54];
    frame[12] = 0x08;
    frame[14] = 0x45;
    frame[17] = if tcp { 40 } else { 28 };
    frame[22] = 64;
    frame[23] = protocol;
    frame[26..34].copy_from_slice(&[198, 18, 0, 1, 198, 18, 0, 2]);
    // TCP: header of 20 bytes, SYN. UDP ends before these.
    frame[46] = 0x50;
    frame[47] = 0x02;
    let Ok(packet) = packet::parse(&frame[..]) else { return Vec::new() };
    let mut record = FlowRecord::zeroed();
    record.start(&packet, 0, 0, 1);
    record.update(&packet, 0);
    vec![record]
}

fn read(path: &Path) -> Result<Vec<u8>> {
    let file = File::open(path)?;
    let size = file.metadata()?.len();
    ensure!(size <= MAX_FILE, "the file has {size} bytes; at most {MAX_FILE} are read");
    let mut bytes = Vec::with_capacity(size as usize);
    // The limit holds for what has no size too, such as a pipe.
    file.take(MAX_FILE + 1).read_to_end(&mut bytes)?;
    if bytes.len() as u64 > MAX_FILE {
        bail!("the file has more than {MAX_FILE} bytes");
    }
    Ok(bytes)
}
