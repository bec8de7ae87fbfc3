//! Loading: every check that a model must pass before it scores a flow.
//!
//! Contract, graph, golden rows at every batch size, the plainest flows there are. Checks that do not depend on each
//! other all run. Called by [`super::Model::load`] and by `sensor model check`.

use sensor_common::features::Sample;
use sensor_common::flow::FlowRecord;
use sensor_common::packet;

use super::contract::{self, Contract, Golden, Shape};
use super::document::Document;
use super::file::File;
use super::gaps::names;
use super::network::{self, Network};
use super::problem::{Problem, Problems};
use super::scale::Kind;
use super::{GOLDEN_TOLERANCE, Model, limits};
use crate::vector;

/// What was found of a file.
#[derive(Debug)]
pub struct Examined {
    /// The model, if nothing is wrong with it.
    pub model: Option<Model>,
    /// What is wrong.
    pub problems: Vec<Problem>,
}

/// Runs every check on a file.
pub fn examine(file: &File) -> Examined {
    let mut problems = Problems::default();
    let model = build(file, &mut problems);
    let problems = problems.list();
    Examined { model: model.filter(|_| problems.is_empty()), problems }
}

fn build(file: &File, problems: &mut Problems) -> Option<Model> {
    let proto = network::decode(&file.onnx).map_err(|error| {
        Problem::new("file", format!("{error:#}"), "export it again, and compare its size with the original's")
    });
    let mut proto = problems.take(proto)?;
    limits::check(&proto, problems);
    let allowed = problems.is_empty();
    let (document, from_side_car) = document(file, &proto, problems)?;
    let (shape, contract) = contract::read(&document, problems);
    if !allowed {
        // What breaks a limit is not built, but its contract is worth a look.
        return None;
    }
    let Shape { features, outputs, output } = shape?;
    if let Some(output) = output {
        problems.take(choose(&mut proto, &output))?;
    }
    let network = Network::build(&proto, features, outputs).map_err(|error| {
        Problem::new(
            "graph",
            format!("{error:#}"),
            "see docs/models.md for the inputs, outputs and operators that are supported",
        )
    });
    let network = problems.take(network)?;
    let Contract {
        kind,
        name,
        features,
        labels,
        thresholds,
        min_packets,
        golden,
        quantiles,
        score_quantiles,
        scale,
        trained_on,
        training,
    } = contract?;
    let mut model = Model {
        name: if name.is_empty() { metric_name(&file.stem) } else { name },
        hash: file.hash(from_side_car),
        kind,
        features,
        labels,
        thresholds,
        min_packets,
        trained_on,
        training,
        quantiles,
        score_quantiles,
        scale,
        network,
        golden,
        golden_delta: 0.0,
        typical: None,
        invalid: 0,
        inputs: Vec::new(),
        unscored: Vec::new(),
    };
    problems.take(golden_rows(&mut model));
    problems.take(plain_flows(&mut model));
    Some(model)
}

/// The contract, and whether it is the side-car's. A file's own contract wins.
fn document(file: &File, proto: &tract_onnx::pb::ModelProto, problems: &mut Problems) -> Option<(Document, bool)> {
    let properties = proto.metadata_props.iter().map(|entry| (entry.key.as_str(), entry.value.as_str()));
    let own = problems.take(Document::from_properties(properties))?;
    match &file.side_car {
        Some(text) if own.is_empty() => Some((problems.take(Document::from_toml(text))?, true)),
        _ => Some((own, false)),
    }
}

/// Leaves the graph one output, so that it is the one that is taken.
fn choose(proto: &mut tract_onnx::pb::ModelProto, name: &str) -> Result<(), Problem> {
    let outputs = proto.graph.as_mut().map(|graph| &mut graph.output);
    let names: Vec<_> = outputs.iter().flat_map(|outputs| outputs.iter().map(|output| output.name.clone())).collect();
    match outputs {
        Some(outputs) if names.iter().any(|output| output == name) => {
            outputs.retain(|output| output.name == name);
            Ok(())
        }
        _ => Err(Problem::new(
            "sensor.output",
            format!("the graph has no output {name:?}"),
            format!("its outputs are {names:?}"),
        )),
    }
}

/// A file's name, made fit for the value of a metric's label.
fn metric_name(stem: &str) -> String {
    let plain = |c: char| if c.is_ascii_alphanumeric() || "-_.".contains(c) { c } else { '_' };
    let name: String = stem.chars().map(plain).take(64).collect();
    if name.is_empty() { "model".to_owned() } else { name }
}

/// Runs the golden rows at every batch size.
fn golden_rows(model: &mut Model) -> Result<(), Problem> {
    let count = model.golden.len();
    let (mut wrong, mut first) = (0usize, None);
    for size in network::BATCHES {
        for start in (0..count).step_by(size) {
            // A full batch, over and over the golden rows if need be, so that each size runs its own plan.
            let outputs = outputs(model, size, |golden, row, values| {
                values.copy_from_slice(&golden[(start + row) % count].input);
            })?;
            for (row, output) in outputs.iter().enumerate() {
                if let Err(text) = compare(model, (start + row) % count, output) {
                    wrong += 1;
                    first.get_or_insert_with(|| format!("{text} (batch {size})"));
                }
            }
        }
    }
    let Some(first) = first else { return Ok(()) };
    Err(Problem::new(
        "golden rows",
        format!("{first}; {wrong} rows of all batches differ, tolerance {GOLDEN_TOLERANCE}"),
        "the graph and sensor.golden_outputs do not belong together, or an operator differs: export both from the same weights",
    ))
}

/// Compares an output with that of golden row `number`.
fn compare(model: &mut Model, number: usize, output: &[f32]) -> Result<(), String> {
    for (column, (found, expected)) in output.iter().zip(&model.golden[number].output).enumerate() {
        // Probabilities are at most 1; a raw number of an anomaly model may be large, and is compared by its size.
        let delta = (found - expected).abs() / expected.abs().max(1.0);
        // NaN on either side fails.
        if delta.is_nan() || delta > GOLDEN_TOLERANCE {
            let label = match model.kind {
                Kind::Classifier => format!("label {:?}", model.labels[column]),
                Kind::Anomaly => format!("column {column}"),
            };
            return Err(format!("golden row {number}, {label}: the file promises {expected}, the graph gives {found}"));
        }
        model.golden_delta = model.golden_delta.max(delta);
    }
    Ok(())
}

/// Runs the plainest flows there are: one datagram, one SYN. Most features of theirs are missing, and a model that
/// does not impute answers NaN.
fn plain_flows(model: &mut Model) -> Result<(), Problem> {
    let records = [plain_flow(packet::protocol::UDP), plain_flow(packet::protocol::TCP)].concat();
    let features = model.features.clone();
    let outputs =
        outputs(model, records.len(), |_, row, values| vector::fill(&features, &Sample::of(&records[row]), values))?;
    for (output, what) in outputs.iter().zip(["one UDP datagram", "one TCP SYN"]) {
        if !output.iter().all(|value| value.is_finite()) {
            let missing = super::gaps::gaps(model).map(|gaps| gaps.missing).unwrap_or_default();
            let which = match missing.is_empty() {
                true => String::new(),
                false => format!("; there is no finite answer without {}", names(&missing)),
            };
            return Err(Problem::new(
                "plain flows",
                format!("the model gives {} for a flow of {what}{which}", short(output)),
                "values that do not exist are NaN in its input, and its graph must replace them (IsNaN and Where, or an imputer)",
            ));
        }
        let sum: f32 = output.iter().sum();
        let probabilities = output.iter().all(|value| (-1e-3..=1.001).contains(value)) && (sum - 1.0).abs() < 1e-2;
        if model.kind == Kind::Classifier && !probabilities {
            return Err(Problem::new(
                "plain flows",
                format!("the model gives {} for a flow of {what}, which are no probabilities", short(output)),
                "end the graph with Softmax",
            ));
        }
    }
    Ok(())
}

fn outputs(
    model: &mut Model,
    rows: usize,
    fill: impl Fn(&[Golden], usize, &mut [f32]),
) -> Result<Vec<Vec<f32>>, Problem> {
    let mut outputs = Vec::with_capacity(rows);
    let golden = &model.golden;
    let run =
        model.network.run(rows, |row, values| fill(golden, row, values), |_, output| outputs.push(output.to_vec()));
    match run {
        Ok(()) => Ok(outputs),
        Err(error) => Err(Problem::new("inference", format!("{error:#}"), "run the model in the runtime that made it")),
    }
}

fn short(output: &[f32]) -> String {
    if output.len() <= 16 { format!("{output:?}") } else { format!("{:?} …", &output[..16]) }
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
