//! Models that are made here, byte by byte: one that is good, and one for each way to be refused.

use sensor_common::features::{CONTRACT_VERSION, by_name, hash_of};
use sensor_common::packet;
use std::time::Duration;

use super::check::{check, render};
use super::*;

/// Just enough protobuf to write an ONNX file (onnx.proto gives the field numbers).
#[derive(Clone, Default)]
struct Message(Vec<u8>);

impl Message {
    fn varint(mut self, mut value: u64) -> Message {
        while value >= 0x80 {
            self.0.push(value as u8 | 0x80);
            value >>= 7;
        }
        self.0.push(value as u8);
        self
    }

    fn number(self, field: u64, value: u64) -> Message {
        self.varint(field << 3).varint(value)
    }

    fn bytes(self, field: u64, value: &[u8]) -> Message {
        let mut message = self.varint(field << 3 | 2).varint(value.len() as u64);
        message.0.extend(value);
        message
    }

    fn text(self, field: u64, value: &str) -> Message {
        self.bytes(field, value.as_bytes())
    }

    fn message(self, field: u64, value: Message) -> Message {
        self.bytes(field, &value.0)
    }
}

fn value_info(name: &str, element: u64, dims: &[Option<u64>]) -> Message {
    let mut shape = Message::default();
    for dim in dims {
        shape = shape.message(
            1,
            match dim {
                Some(size) => Message::default().number(1, *size),
                None => Message::default().text(2, "N"),
            },
        );
    }
    let tensor = Message::default().number(1, element).message(2, shape);
    Message::default().text(1, name).message(2, Message::default().message(1, tensor))
}

fn node(kind: &str, inputs: &[&str], output: &str) -> Message {
    let inputs = inputs.iter().fold(Message::default(), |node, input| node.text(1, input));
    inputs.text(2, output).text(3, output).text(4, kind)
}

/// A linear model of two features and two labels: `P = softmax(x · W)`, everything about it changeable.
#[derive(Clone)]
struct Draft {
    properties: Vec<(String, String)>,
    weights: Vec<f32>,
    weights_shape: Vec<u64>,
    element: u64,
    dims: Vec<Option<u64>>,
    last: &'static str,
}

const WEIGHTS: [f32; 4] = [0.5, -0.5, -1.0, 1.0];

/// The hash of the draft's features.
fn hash() -> String {
    hash_of(&["fwd_packets", "fwd_payload_bytes"].map(|name| by_name(name).expect("a feature")))
}

/// P of both labels for packets and payload bytes.
fn expected(input: [f32; 2]) -> [f32; 2] {
    let [a, b] = [0, 1].map(|label| input[0] * WEIGHTS[label] + input[1] * WEIGHTS[2 + label]);
    let top = a.max(b);
    let [a, b] = [(a - top).exp(), (b - top).exp()];
    [a / (a + b), b / (a + b)]
}

impl Draft {
    fn good() -> Draft {
        let inputs = [[1.0, 0.0], [1.0, 1.0], [2.0, 0.5], [4.0, 2.5]];
        let json = |rows: Vec<[f32; 2]>| serde_json::to_string(&rows).expect("numbers");
        let properties = [
            ("other.key", "ignored".to_owned()),
            ("sensor.kind", "classifier".to_owned()),
            ("sensor.contract_version", CONTRACT_VERSION.to_string()),
            ("sensor.contract_hash", hash()),
            ("sensor.features", r#"["fwd_packets","fwd_payload_bytes"]"#.to_owned()),
            ("sensor.labels", r#"["benign","flood"]"#.to_owned()),
            ("sensor.threshold", "0.75".to_owned()),
            ("sensor.thresholds", r#"{"drop":0.9}"#.to_owned()),
            ("sensor.min_packets", "4".to_owned()),
            ("sensor.name", "linear".to_owned()),
            ("sensor.golden_inputs", json(inputs.to_vec())),
            ("sensor.golden_outputs", json(inputs.map(expected).to_vec())),
        ];
        Draft {
            properties: properties.map(|(key, value)| (key.to_owned(), value)).to_vec(),
            weights: WEIGHTS.to_vec(),
            weights_shape: vec![2, 2],
            element: 1,
            dims: vec![None, Some(2)],
            last: "Softmax",
        }
    }

    fn with(mut self, key: &str, value: &str) -> Draft {
        self.properties.retain(|(name, _)| name != key);
        self.properties.push((key.to_owned(), value.to_owned()));
        self
    }

    fn without(mut self, key: &str) -> Draft {
        self.properties.retain(|(name, _)| name != key);
        self
    }

    fn bytes(&self) -> Vec<u8> {
        let raw: Vec<u8> = self.weights.iter().flat_map(|weight| weight.to_le_bytes()).collect();
        let shape = self.weights_shape.iter().fold(Message::default(), |shape, dim| shape.varint(*dim));
        let weights = Message::default().bytes(1, &shape.0).number(2, 1).text(8, "w").bytes(9, &raw);
        let graph = Message::default()
            .message(1, node("MatMul", &["x", "w"], "logits"))
            .message(1, node(self.last, &["logits"], "probabilities"))
            .text(2, "graph")
            .message(5, weights)
            .message(11, value_info("x", self.element, &self.dims))
            .message(12, value_info("probabilities", 1, &[None, Some(2)]));
        let mut model = Message::default().number(1, 8).message(7, graph);
        model = model.message(8, Message::default().text(1, "").number(2, 17));
        for (key, value) in &self.properties {
            model = model.message(14, Message::default().text(1, key).text(2, value));
        }
        model.0
    }

    fn load(&self) -> Result<Model> {
        Model::from_bytes(&self.bytes(), "file".to_owned())
    }

    #[track_caller]
    fn refused(&self, expected: &[&str]) {
        let text = format!("{:#}", self.load().expect_err("it must be refused"));
        for part in expected {
            assert!(text.contains(part), "{part:?} is not in: {text}");
        }
    }
}

fn datagrams(count: usize, payload: usize) -> FlowRecord {
    let mut frame = vec![0u8; 42 + payload];
    frame[12..16].copy_from_slice(&[0x08, 0x00, 0x45, 0]);
    frame[16..18].copy_from_slice(&(28 + payload as u16).to_be_bytes());
    frame[23] = packet::protocol::UDP;
    frame[38..40].copy_from_slice(&(8 + payload as u16).to_be_bytes());
    let parsed = packet::parse(&frame[..]).expect("well-formed");
    let mut record = FlowRecord::zeroed();
    record.start(&parsed, 1, 0, 1);
    for _ in 0..count {
        record.update(&parsed, 1);
    }
    record
}

#[test]
fn a_good_model_scores_every_row_of_any_count() {
    let mut model = Draft::good().load().expect("good");
    assert_eq!((model.name.as_str(), model.min_packets), ("linear", 4));
    assert_eq!(model.thresholds, Thresholds { report: 0.75, tag: 0.75, drop: 0.9 });
    assert_eq!(model.hash.len(), 64);
    assert_eq!(model.features[1].name, "fwd_payload_bytes");
    let records: Vec<_> = (0..1_300).map(|row| datagrams(1 + row % 7, row % 3)).collect();
    let mut scores = vec![Score { label: 9, score: 9.0 }];
    for count in [0, 1, 3, 4, 5, 63, 64, 65, 384, 385, 512, 700, 1_300] {
        model.score(&records[..count], &[], &mut scores).expect("runs");
        assert_eq!(scores.len(), count);
        for (row, score) in scores.iter().enumerate() {
            let input = [(1 + row % 7) as f32, ((1 + row % 7) * (row % 3)) as f32];
            let wanted = expected(input)[1];
            assert!((score.score - wanted).abs() < 1e-5, "row {row} of {count}: {score:?}, not {wanted}");
            assert_eq!(score.label, (wanted > 0.5) as u8);
        }
    }
    assert_eq!(model.invalid(), 0);
}

#[test]
fn the_label_is_an_attack_from_the_threshold_on() {
    let decide = |outputs: &[f32]| decide(outputs, 0.6).expect("finite");
    assert_eq!(decide(&[0.35, 0.3, 0.35]), Score { label: 2, score: 0.65 });
    assert_eq!(decide(&[0.45, 0.2, 0.35]).label, 0);
    assert_eq!(decide(&[0.41, 0.5, 0.09]).label, 1, "below the threshold the most probable label stands");
    assert_eq!(super::decide(&[f32::NAN, 0.0], 0.5), None);
    assert_eq!(super::decide(&[0.0, f32::INFINITY], 0.5), None);
}

#[test]
fn outputs_that_are_no_numbers_pass_and_are_counted() {
    let mut draft = Draft::good();
    // Finite on the golden rows and on flows of one packet, infinite on very large ones.
    draft.last = "Identity";
    draft.weights = vec![1e-37, 0.0, 3e38, 0.0];
    draft = draft.with("sensor.golden_outputs", "[[0,0],[0,0],[0,0],[0,0]]");
    draft = draft.with("sensor.golden_inputs", "[[0,0],[0,0],[0,0],[0,0]]");
    draft.refused(&["no probabilities", "Softmax"]);
    draft.last = "Softmax";
    draft = draft.with("sensor.golden_outputs", "[[0.5,0.5],[0.5,0.5],[0.5,0.5],[0.5,0.5]]");
    let mut model = draft.load().expect("good");
    let mut scores = Vec::new();
    model.score(&[datagrams(40, 1_000)], &[], &mut scores).expect("runs");
    assert_eq!((scores[0], model.invalid()), (Score { label: 0, score: 0.0 }, 1));
}

#[test]
fn contracts_are_refused_with_what_to_change() {
    let good = Draft::good();
    let bare = Draft { properties: vec![], ..good.clone() };
    bare.refused(&["carries no contract", "metadata_props"]);
    good.clone().without("sensor.labels").refused(&["lacks sensor.labels"]);
    good.clone().with("sensor.kind", "oracle").refused(&["\"oracle\"", "classifier"]);
    good.clone().with("sensor.contract_version", "99").refused(&["contract 99", "train it again"]);
    good.clone().with("sensor.contract_hash", "0123456789abcdef").refused(&["0123456789abcdef", &hash()]);
    good.clone().with("sensor.features", r#"["fwd_packets","fwd_payload_byte"]"#).refused(&[
        "\"fwd_payload_byte\"",
        "did you mean \"fwd_payload_bytes\"",
        "sensor features",
    ]);
    good.clone().with("sensor.features", r#"["fwd_packets","fwd_packets"]"#).refused(&["twice"]);
    good.clone().with("sensor.features", "fwd_packets").refused(&["sensor.features", "JSON array"]);
    good.clone().with("sensor.features", r#"["fwd_packets"]"#).refused(&["golden row 0 has 2 inputs"]);
    good.clone().with("sensor.labels", r#"["benign"]"#).refused(&["1 entries", "benign one first"]);
    good.clone().with("sensor.labels", r#"["benign","a b"]"#).refused(&["\"a b\" is not usable"]);
    good.clone().with("sensor.threshold", "1.5").refused(&["1.5", "at most 1"]);
    good.clone().with("sensor.thresholds", r#"{"tag":0.7}"#).refused(&["do not ascend"]);
    good.clone().with("sensor.thresholds", r#"{"block":0.7}"#).refused(&["unknown field `block`"]);
    good.clone().with("sensor.treshold", "0.5").refused(&["sensor.treshold", "does not know"]);
    good.clone().with("sensor.name", "a b").refused(&["sensor.name", "64 letters"]);
    good.clone().with("sensor.threshold", "NaN").refused(&["sensor.threshold"]);
    good.clone().with("sensor.threshold", "high").refused(&["\"high\", not a number"]);
    good.clone().with("sensor.score", "{}").refused(&["sensor.score", "classifier"]);
    good.clone()
        .with("sensor.quantiles", r#"[{"edges":[1],"shares":[0.5,0.5]}]"#)
        .refused(&["1 entries for 2 features"]);
    good.clone().with("sensor.min_packets", "0").refused(&["smallest flow"]);
    good.clone().with("sensor.golden_inputs", "[[1,0]]").refused(&["at least 4"]);
    good.with("sensor.golden_outputs", "[[1,0],[1,0],[1,0],[1,0]]").refused(&[
        "golden row 0",
        "\"benign\"",
        "promises 1",
    ]);
}

#[test]
fn graphs_are_refused_with_what_to_change() {
    let good = Draft::good();
    Draft { dims: vec![None, Some(3)], ..good.clone() }.refused(&["[?, 3]", "names 2 features"]);
    Draft { dims: vec![Some(1), Some(2)], ..good.clone() }.refused(&["fixed batch size 1", "dynamic first axis"]);
    Draft { dims: vec![Some(2)], ..good.clone() }.refused(&["[batch, 2]"]);
    Draft { element: 11, ..good.clone() }.refused(&["ONNX type 11", "32-bit floats"]);
    Draft { last: "NoSuchOperator", ..good.clone() }.refused(&["cannot be run", "NoSuchOperator"]);
    Draft { weights_shape: vec![3, 2], weights: vec![0.0; 6], ..good.clone() }.refused(&["cannot be run"]);
    Draft { weights: vec![f32::NAN; 4], ..good.clone() }.refused(&["golden row 0", "NaN"]);
    // The file promises more weights than it holds: tract panics or refuses, the agent lives.
    assert!(Draft { weights_shape: vec![200, 2], ..good.clone() }.load().is_err());
    let labels = good
        .with("sensor.labels", r#"["benign","flood","scan"]"#)
        .with("sensor.golden_outputs", "[[1,0,0],[1,0,0],[1,0,0],[1,0,0]]");
    labels.refused(&["[batch, 3]", "one probability per label"]);
}

#[test]
fn missing_values_must_be_imputed() {
    let draft = Draft::good().with("sensor.features", r#"["fwd_packets","bwd_l3_mean"]"#);
    draft.refused(&["one UDP datagram", "must replace them"]);
}

#[test]
fn damaged_files_are_errors() {
    let bytes = Draft::good().bytes();
    for (damaged, expected) in [
        (&b"#!/bin/sh\nexit 0\n"[..], "not an ONNX"),
        (b"", "holds no graph"),
        (&bytes[..bytes.len() / 2], "cut short"),
        (&bytes[..10], "cut short"),
    ] {
        let text = format!("{:#}", Model::from_bytes(damaged, String::new()).expect_err("damaged"));
        assert!(text.contains(expected), "{expected:?} is not in: {text}");
    }
    for end in (0..bytes.len()).step_by(7) {
        assert!(Model::from_bytes(&bytes[..end], String::new()).is_err(), "cut at {end}");
    }
    // One flipped byte anywhere: an error or a model, never a crash.
    for position in (0..bytes.len()).step_by(11) {
        let mut damaged = bytes.clone();
        damaged[position] ^= 0x55;
        let _outcome = Model::from_bytes(&damaged, String::new());
    }
}

#[test]
fn files_are_named_and_bounded() {
    let folder = tempfile::tempdir().expect("temporary folder");
    let path = folder.path().join("m.onnx");
    let text = format!("{:#}", Model::load(&path).expect_err("missing"));
    assert!(text.contains("m.onnx"), "{text}");
    std::fs::File::create(&path).expect("create").set_len(MAX_FILE + 1).expect("sparse");
    let text = format!("{:#}", Model::load(&path).expect_err("too large"));
    assert!(text.contains("at most 67108864"), "{text}");
    std::fs::write(&path, Draft::good().without("sensor.name").bytes()).expect("write");
    assert_eq!(Model::load(&path).expect("good").name, "m");
    let report = check(&File::read(&path, MAX_FILE).expect("read"), Duration::ZERO);
    let sent = serde_json::from_str(&serde_json::to_string(&report).expect("JSON")).expect("the same");
    let text = render("m.onnx", &sent);
    for part in ["golden rows  4 rows", "batch    1", "batch  512", "fwd_payload_bytes", "benign, flood", "\nok\n"] {
        assert!(text.contains(part), "{part:?} is not in:\n{text}");
    }
}

#[test]
fn a_report_names_all_that_is_wrong() {
    let draft = Draft { weights_shape: vec![3, 2], weights: vec![0.0; 6], ..Draft::good() };
    let draft = draft.with("sensor.threshold", "2").with("sensor.min_packets", "0").without("sensor.contract_hash");
    let report = check(&File::from_bytes(draft.bytes(), "m".to_owned()), Duration::ZERO);
    let failed: Vec<_> = report.problems.iter().map(|problem| problem.check.as_str()).collect();
    assert_eq!(failed, ["sensor.contract_hash", "sensor.threshold", "sensor.min_packets", "graph"]);
    let text = render("m.onnx", &report);
    assert!(text.contains("to mend it: the smallest flow has 1 packet") && text.ends_with("4 failed\n"), "{text}");
}

#[test]
fn a_side_car_is_a_contract() {
    let folder = tempfile::tempdir().expect("temporary folder");
    let path = folder.path().join("m.onnx");
    let good = Draft::good();
    std::fs::write(&path, Draft { properties: vec![], ..good.clone() }.bytes()).expect("write");
    assert!(Model::load(&path).is_err(), "no contract at all");
    let lines = good.properties.iter().filter_map(|(key, value)| Some((key.strip_prefix("sensor.")?, value)));
    let text: String = lines
        .map(|(key, value)| match key {
            "thresholds" => "thresholds = { drop = 0.9 }\n".to_owned(),
            "kind" | "name" | "contract_hash" => format!("{key} = \"{value}\"\n"),
            _ => format!("{key} = {value}\n"),
        })
        .collect();
    std::fs::write(folder.path().join("m.onnx.toml"), &text).expect("write");
    let model = Model::load(&path).expect("good");
    assert_eq!(model.name, "linear");
    let before = model.hash;
    std::fs::write(folder.path().join("m.onnx.toml"), text.replace("0.9", "0.95")).expect("write");
    assert_ne!(Model::load(&path).expect("good").hash, before, "the side-car is part of the model");
    std::fs::write(folder.path().join("m.onnx.toml"), "kind = ").expect("write");
    let text = format!("{:#}", Model::load(&path).expect_err("no TOML"));
    assert!(text.contains("side-car") && text.contains("not TOML"), "{text}");
    std::fs::write(&path, good.bytes()).expect("write");
    assert_eq!(Model::load(&path).expect("its own contract wins").thresholds.drop, 0.9);
}

#[test]
fn an_anomaly_model_is_scored_by_its_curve() {
    // The graph gives two columns, so a reconstruction: of (packets, bytes) it makes (packets / 2, bytes).
    let mut draft = Draft { last: "Identity", weights: vec![0.5, 0.0, 0.0, 1.0], ..Draft::good() };
    for key in ["labels", "thresholds"] {
        draft = draft.without(&format!("sensor.{key}"));
    }
    let inputs = "[[0,0],[2,0],[4,8],[8,1]]";
    draft = draft.with("sensor.kind", "anomaly").with("sensor.golden_inputs", inputs);
    draft = draft.with("sensor.golden_outputs", "[[0,0],[1,0],[2,8],[4,1]]");
    draft.refused(&["lacks sensor.score"]);
    draft = draft.with("sensor.score", r#"{"from":"reconstruction","points":[[0,0],[2,0.5],[8,1]],"scale":[1,1]}"#);
    let mut model = draft.load().expect("good");
    assert_eq!((model.kind, model.labels.join("|").as_str()), (Kind::Anomaly, "benign|anomaly"));
    let mut scores = Vec::new();
    model.score(&[2, 4, 40].map(|packets| datagrams(packets, 0)), &[], &mut scores).expect("runs");
    // Errors: (n / 2)² / 2.
    let wanted = [(0, 0.125), (0, 0.5), (1, 1.0)].map(|(label, score)| Score { label, score });
    assert_eq!(scores, wanted);
    draft.clone().with("sensor.score", r#"{"from":"error","points":[[0,0],[1,1]]}"#).refused(&["2 outputs"]);
    draft.with("sensor.score", r#"{"from":"reconstruction","points":[[1,0],[0,1]]}"#).refused(&["ascend"]);
}

#[test]
fn the_output_can_be_named() {
    Draft::good().with("sensor.output", "logits").refused(&["no output \"logits\"", "probabilities"]);
    assert!(Draft::good().with("sensor.output", "probabilities").load().is_ok());
}

#[test]
fn an_explanation_takes_one_feature_at_a_time() {
    let quantiles = r#"[{"edges":[4],"shares":[0.5,0.5],"median":2},{"edges":[0],"shares":[1,0],"median":0}]"#;
    let mut model = Draft::good().with("sensor.quantiles", quantiles).load().expect("good");
    let found = super::explain::explain(&mut model, &[2.0, 5.0]).expect("runs");
    let [with, without] = [[2.0, 5.0], [2.0, 0.0]].map(|row| expected(row)[1]);
    assert!((found.score - with).abs() < 1e-6 && (found.typical - without).abs() < 1e-6, "{found:?}");
    let [first, second] = &found.effects[..] else { panic!("{found:?}") };
    assert_eq!((first.feature, first.value, first.median), ("fwd_payload_bytes", Some(5.0), Some(0.0)));
    assert!((first.effect - (with - without)).abs() < 1e-6 && second.effect.abs() < 1e-6, "{found:?}");
    assert_eq!(found.label, "flood");
}
