//! Single operators on rows with missing, infinite, huge and tiny values, against the reference evaluator of the ONNX
//! project (`models/conformance/operators.py` writes the right answers).

use serde::Deserialize;

use super::network::{self, BATCHES, Network};

/// Largest difference of two finite answers, of their size above 1.
const TOLERANCE: f64 = 2e-5;

#[derive(Deserialize)]
struct Listed {
    rows: Vec<Vec<Number>>,
    cases: Vec<Case>,
}

#[derive(Deserialize)]
struct Case {
    name: String,
    width: usize,
    /// The file, in hexadecimal.
    onnx: String,
    answers: Vec<Vec<Number>>,
}

/// A number of JSON, or the name of one that JSON has not.
#[derive(Clone, Deserialize)]
#[serde(untagged)]
pub(super) enum Number {
    Finite(f64),
    Named(String),
}

impl Number {
    pub(super) fn value(&self) -> f64 {
        match self {
            Number::Finite(value) => *value,
            Number::Named(name) => name.parse().expect("nan, inf or -inf"),
        }
    }
}

fn listed() -> Listed {
    let path = std::path::Path::new(env!("CARGO_MANIFEST_DIR")).join("../models/conformance/data/operators.json");
    serde_json::from_str(&std::fs::read_to_string(path).expect("the answers")).expect("as written")
}

fn bytes(hex: &str) -> Vec<u8> {
    let pair = |at: usize| u8::from_str_radix(&hex[at..at + 2], 16).expect("hexadecimal");
    (0..hex.len()).step_by(2).map(pair).collect()
}

/// Whether an answer is right.
pub(super) fn same(found: f64, expected: f64) -> bool {
    found == expected
        || (found.is_nan() && expected.is_nan())
        || (found - expected).abs() <= TOLERANCE * expected.abs().max(1.0)
}

/// What is wrong with a case, `None` if nothing is.
fn judge(case: &Case, rows: &[Vec<f32>]) -> Option<String> {
    let proto = network::decode(&bytes(&case.onnx)).expect("decodes");
    let mut network = match Network::build_output(&proto, rows[0].len(), "y", case.width) {
        Ok(network) => network,
        Err(error) => return Some(format!("refused: {error:#}")),
    };
    for size in BATCHES {
        for start in (0..rows.len()).step_by(size) {
            let mut wrong = None;
            let fill = |row: usize, values: &mut [f32]| values.copy_from_slice(&rows[(start + row) % rows.len()]);
            let take = |row: usize, values: &[f32]| {
                let row = (start + row) % rows.len();
                let expected: Vec<f64> = case.answers[row].iter().map(Number::value).collect();
                if !values.iter().zip(&expected).all(|(found, expected)| same(f64::from(*found), *expected)) {
                    wrong
                        .get_or_insert_with(|| format!("{:?}: {values:?}, not {expected:?} (batch {size})", rows[row]));
                }
            };
            if let Err(error) = network.run(size, fill, take) {
                return Some(format!("{error:#}"));
            }
            if wrong.is_some() {
                return wrong;
            }
        }
    }
    None
}

#[test]
fn operators_answer_as_the_reference_does() {
    let Listed { rows, cases } = listed();
    let rows: Vec<Vec<f32>> = rows.iter().map(|row| row.iter().map(|value| value.value() as f32).collect()).collect();
    let mut wrong = Vec::new();
    for case in &cases {
        if let Some(text) = judge(case, &rows) {
            wrong.push(format!("{}: {text}", case.name));
        }
    }
    assert!(wrong.is_empty(), "{} of {}:\n{}", wrong.len(), cases.len(), wrong.join("\n"));
}

/// Operators without floats, which have no NaN to lose; that only move what they are given; that are left out (ZipMap)
/// or refused because their cost depends on values.
const WITHOUT_NAN: [&str; 20] = [
    "BitShift",
    "BitwiseAnd",
    "BitwiseNot",
    "BitwiseOr",
    "BitwiseXor",
    "Compress",
    "ConvInteger",
    "DepthToSpace",
    "GatherND",
    "If",
    "MatMulInteger",
    "NonZero",
    "QLinearConv",
    "QLinearMatMul",
    "Range",
    "Scan",
    "Size",
    "SpaceToDepth",
    "Trilu",
    "ZipMap",
];

#[test]
fn every_operator_that_loads_was_compared() {
    let mut known: std::collections::BTreeSet<String> = super::engine::framework().op_register.0.into_keys().collect();
    for case in &listed().cases {
        let graph = network::decode(&bytes(&case.onnx)).expect("decodes").graph.expect("a graph");
        graph.node.iter().for_each(|node| _ = known.remove(&node.op_type));
    }
    WITHOUT_NAN.iter().for_each(|name| _ = known.remove(*name));
    assert!(known.is_empty(), "these load, but nobody compared them: {known:?}");
}

/// Files of users that were once run wrongly or refused, with golden rows of the library that trained them. `true`: a
/// row without any value has a finite answer.
const CASES: [(&str, bool); 13] = [
    ("cast64_all_lr", false),
    ("categorical_nb", false),
    ("i_gaussian_nb", true),
    ("i_multinomial_nb_raw", true),
    ("mlp_tanh_multi", false),
    ("nan_Max", true),
    ("nan_Mul0", true),
    ("nan_Relu", true),
    ("nan_Sigmoid", true),
    ("nan_Tanh", true),
    ("opset_22_mlp", false),
    ("outlier_gaussian_nb", true),
    ("outlier_gaussian_nb_multi", true),
];

#[test]
fn models_of_users_answer_as_their_libraries_do() {
    let folder = std::path::Path::new(env!("CARGO_MANIFEST_DIR")).join("../models/conformance/data/cases");
    for (name, finite) in CASES {
        let file = std::fs::read(folder.join(format!("{name}.onnx"))).expect("a model");
        let mut proto = network::decode(&file).expect("decodes");
        let rows = |key: &str| -> Vec<Vec<f64>> {
            let entry = proto.metadata_props.iter().find(|entry| entry.key == key).expect("a contract");
            let rows: Vec<Vec<Option<f64>>> = serde_json::from_str(&entry.value).expect("rows");
            rows.iter().map(|row| row.iter().map(|value| value.unwrap_or(f64::NAN)).collect()).collect()
        };
        let (inputs, outputs) = (rows("sensor.golden_inputs"), rows("sensor.golden_outputs"));
        if let Some(entry) = proto.metadata_props.iter().find(|entry| entry.key == "sensor.output") {
            let chosen = entry.value.clone();
            proto.graph.as_mut().expect("a graph").output.retain(|output| output.name == chosen);
        }
        let (features, width) = (inputs[0].len(), outputs[0].len());
        let mut network = Network::build(&proto, features, width).unwrap_or_else(|error| panic!("{name}: {error:#}"));
        let mut run = |rows: &[Vec<f64>]| {
            let mut out = Vec::new();
            let fill = |row: usize, values: &mut [f32]| {
                values.iter_mut().zip(&rows[row]).for_each(|(value, given)| *value = *given as f32);
            };
            network.run(rows.len(), fill, |_, values| out.push(values.to_vec())).expect("runs");
            out
        };
        for (row, (found, expected)) in run(&inputs).iter().zip(&outputs).enumerate() {
            let near = |(found, expected): (&f32, &f64)| {
                (f64::from(*found) - expected).abs() <= 1e-4 * expected.abs().max(1.0)
            };
            assert!(found.iter().zip(expected).all(near), "{name}, row {row}: {found:?}, not {expected:?}");
        }
        let found = run(&[vec![f64::NAN; features]]).remove(0);
        assert_eq!(found.iter().all(|value| value.is_finite()), finite, "{name}: {found:?} without any value");
    }
}
