//! A model made for a test: linear in packets and payload bytes of the initiator, so that a test knows each score.
//!
//! `P(flood) = σ(0.2 · payload bytes − 40 · packets)`: a flow is a flood when its payloads have more than 200 bytes on
//! average. Called by `tests/models.rs`.

use sensor::model::contract::own_hashes;
use sensor_common::features::{CONTRACT_VERSION, by_name};

/// Just enough protobuf for an ONNX file (onnx.proto gives the field numbers).
#[derive(Clone, Debug, Default)]
pub(crate) struct Message(pub(crate) Vec<u8>);

impl Message {
    pub(crate) fn varint(mut self, mut value: u64) -> Self {
        while value >= 0x80 {
            self.0.push(value as u8 | 0x80);
            value >>= 7;
        }
        self.0.push(value as u8);
        self
    }

    pub(crate) fn number(self, field: u64, value: u64) -> Self {
        self.varint(field << 3).varint(value)
    }

    pub(crate) fn bytes(self, field: u64, value: &[u8]) -> Self {
        let mut message = self.varint(field << 3 | 2).varint(value.len() as u64);
        message.0.extend(value);
        message
    }

    pub(crate) fn text(self, field: u64, value: &str) -> Self {
        self.bytes(field, value.as_bytes())
    }

    pub(crate) fn message(self, field: u64, value: &Self) -> Self {
        self.bytes(field, &value.0)
    }
}

fn value_info(name: &str, batch: &str) -> Message {
    let shape =
        Message::default().message(1, &Message::default().text(2, batch)).message(1, &Message::default().number(1, 2));
    let tensor = Message::default().number(1, 1).message(2, &shape);
    Message::default().text(1, name).message(2, &Message::default().message(1, &tensor))
}

pub(crate) fn node(kind: &str, inputs: &[&str], output: &str) -> Message {
    let inputs = inputs.iter().fold(Message::default(), |node, input| node.text(1, input));
    inputs.text(2, output).text(3, output).text(4, kind)
}

/// Features of the model, in order.
const FEATURES: [&str; 2] = ["fwd_packets", "fwd_payload_bytes"];

/// The file. `turn` is the payload per packet, in bytes, from which on a flow is a flood (200 above); `more` are keys
/// of the contract that are added, or replace the ones that are there.
///
/// # Panics
/// If a feature is not in this version's contract.
#[must_use]
pub fn model(name: &str, turn: f32, more: &[(&str, &str)]) -> Vec<u8> {
    let weights = [0.2 * turn, 0.0, -0.2, 0.0];
    let nodes = [node("MatMul", &["x", "w"], "logits"), node("Softmax", &["logits"], "probabilities")];
    file(&nodes, &[floats("w", &[2, 2], &weights)], &contract(name, turn, more), "N")
}

/// The contract of [`model`].
pub(crate) fn contract<'a>(name: &str, turn: f32, more: &[(&'a str, &str)]) -> Vec<(&'a str, String)> {
    let outputs = |[packets, bytes]: [f32; 2]| {
        let benign = 1.0 / (1.0 + (-f64::from(0.2 * (turn * packets - bytes))).exp());
        [benign, 1.0 - benign]
    };
    let inputs = [[4.0f32, 80.0], [1.0, turn], [2.0, 2.0 * turn + 5.0], [3.0, 3.0 * turn - 4.0]];
    let features: Vec<_> = FEATURES.iter().map(|name| by_name(name).expect("a feature")).collect();
    let json = |rows: Vec<String>| format!("[{}]", rows.join(","));
    let mut properties = vec![
        ("kind", "classifier".to_owned()),
        ("name", name.to_owned()),
        ("contract_version", CONTRACT_VERSION.to_string()),
        ("feature_hashes", format!("{:?}", own_hashes(&features))),
        ("features", format!("{FEATURES:?}")),
        ("labels", r#"["benign","flood"]"#.to_owned()),
        ("threshold", "0.9".to_owned()),
        ("golden_inputs", json(inputs.iter().map(|row| format!("{row:?}")).collect())),
        ("golden_outputs", json(inputs.iter().map(|row| format!("{:?}", outputs(*row))).collect())),
    ];
    properties.retain(|(key, _)| more.iter().all(|(other, _)| other != key));
    properties.extend(more.iter().map(|(key, value)| (*key, (*value).to_owned())));
    properties
}

/// A tensor of 32-bit floats.
pub(crate) fn floats(name: &str, dims: &[u64], values: &[f32]) -> Message {
    let raw: Vec<u8> = values.iter().flat_map(|value| value.to_le_bytes()).collect();
    tensor(name, dims, 1, &raw)
}

/// A tensor of 64-bit integers.
pub(crate) fn integers(name: &str, values: &[i64]) -> Message {
    let raw: Vec<u8> = values.iter().flat_map(|value| value.to_le_bytes()).collect();
    tensor(name, &[values.len() as u64], 7, &raw)
}

fn tensor(name: &str, dims: &[u64], element: u64, raw: &[u8]) -> Message {
    let shape = dims.iter().fold(Message::default(), |shape, dim| shape.varint(*dim));
    Message::default().bytes(1, &shape.0).number(2, element).text(8, name).bytes(9, raw)
}

/// A file whose graph goes from `x` to `probabilities`; `batch` is the name of the first axis.
pub(crate) fn file(nodes: &[Message], tensors: &[Message], properties: &[(&str, String)], batch: &str) -> Vec<u8> {
    let mut graph = nodes.iter().fold(Message::default(), |graph, node| graph.message(1, node)).text(2, "graph");
    graph = tensors.iter().fold(graph, |graph, tensor| graph.message(5, tensor));
    graph = graph.message(11, &value_info("x", batch)).message(12, &value_info("probabilities", "N"));
    let opset = Message::default().text(1, "").number(2, 17);
    let mut file = Message::default().number(1, 8).message(7, &graph).message(8, &opset);
    for (key, value) in properties {
        file = file.message(14, &Message::default().text(1, &format!("sensor.{key}")).text(2, value));
    }
    file.0
}
