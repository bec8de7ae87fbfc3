//! Single operators on rows with missing, infinite, huge and tiny values, against the reference evaluator of the ONNX project
//! (`models/conformance/operators.py` writes the right answers).

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
enum Number {
    Finite(f64),
    Named(String),
}

impl Number {
    fn value(&self) -> f64 {
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

fn same(found: f64, expected: f64) -> bool {
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
