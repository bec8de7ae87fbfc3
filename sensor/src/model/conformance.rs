//! Every export in `models/conformance/data` against what its training library answered; the result is docs/conformance.md.
//!
//! `SENSOR_WRITE_DOCS=1 cargo test -p sensor conformance` writes the page anew.

use std::collections::BTreeMap;
use std::fmt::Write;
use std::path::{Path, PathBuf};

use serde::Deserialize;

use super::network::{self, BATCHES, Network};
use super::operators::{Number, same};

/// Largest difference of a probability, or of a value in units of its own size (above 1).
const TOLERANCE: f64 = 1e-5;

#[derive(Deserialize)]
struct Listed {
    cases: Vec<Case>,
    not_exported: Vec<NotExported>,
}

#[derive(Deserialize)]
struct NotExported {
    name: String,
    library: String,
    error: String,
}

#[derive(Deserialize)]
struct Case {
    name: String,
    library: String,
    inputs: String,
    outputs: BTreeMap<String, String>,
    probabilities: Option<Vec<Vec<f64>>>,
    values: Option<Vec<Vec<f64>>>,
    labels: Option<Vec<Label>>,
    /// What onnxruntime answers, where that is not what the library does: the exporter wrote another function.
    onnxruntime: Option<Vec<Vec<f64>>>,
}

#[derive(Clone, Debug, Deserialize, PartialEq)]
#[serde(untagged)]
enum Label {
    Number(i64),
    Text(String),
}

type Rows = Vec<Vec<Option<f32>>>;

fn root() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).parent().expect("the workspace").to_owned()
}

fn json<T: serde::de::DeserializeOwned>(name: &str) -> T {
    let path = root().join("models/conformance/data").join(name);
    let text = std::fs::read_to_string(&path).unwrap_or_else(|error| panic!("{}: {error}", path.display()));
    serde_json::from_str(&text).unwrap_or_else(|error| panic!("{}: {error}", path.display()))
}

/// Runs all rows in batches of every size, and checks that the sizes agree.
fn run(network: &mut Network, rows: &Rows, width: usize) -> Result<Vec<Vec<f64>>, String> {
    let mut first: Option<Vec<Vec<f64>>> = None;
    for size in BATCHES {
        let mut out = vec![vec![f64::NAN; width]; rows.len()];
        for start in (0..rows.len()).step_by(size) {
            let fill = |row: usize, values: &mut [f32]| {
                for (value, given) in values.iter_mut().zip(&rows[(start + row) % rows.len()]) {
                    *value = given.unwrap_or(f32::NAN);
                }
            };
            let take = |row: usize, values: &[f32]| {
                out[(start + row) % rows.len()] = values.iter().map(|value| f64::from(*value)).collect();
            };
            network.run(size, fill, take).map_err(|error| format!("{error:#}"))?;
        }
        let pairs = first.iter().flatten().flatten().zip(out.iter().flatten());
        if let Some((one, other)) = pairs.into_iter().find(|(one, other)| !same(**other, **one)) {
            return Err(format!("batches of {size} differ: {other}, not {one}"));
        }
        first.get_or_insert(out);
    }
    Ok(first.unwrap_or_default())
}

fn difference(expected: &[Vec<f64>], found: &[Vec<f64>]) -> f64 {
    let pairs = expected.iter().flatten().zip(found.iter().flatten());
    // NaN counts as infinitely far.
    let far = |(a, b): (&f64, &f64)| {
        let delta = (a - b).abs() / a.abs().max(1.0);
        if delta.is_nan() { f64::INFINITY } else { delta }
    };
    pairs.map(far).fold(0.0, f64::max)
}

struct Outcome {
    loads: bool,
    scores: Option<f64>,
    labels: Option<usize>,
    error: String,
}

fn judge(case: &Case, inputs: &BTreeMap<String, Rows>) -> Outcome {
    let rows = &inputs[&case.inputs];
    let features = rows[0].len();
    let mut outcome = Outcome { loads: false, scores: None, labels: None, error: String::new() };
    let path = root().join("models/conformance/data").join(format!("{}.onnx", case.name));
    let proto = network::decode(&std::fs::read(path).expect("export")).expect("decodes");
    let expected = case.probabilities.as_ref().or(case.values.as_ref()).expect("something is expected");
    let output = case.outputs.get("probabilities").or(case.outputs.get("values")).expect("named");
    let width = expected[0].len();
    let mut network = match Network::build_output(&proto, features, output, width) {
        Ok(network) => network,
        Err(error) => {
            outcome.error = format!("{error:#}");
            return outcome;
        }
    };
    outcome.loads = true;
    let found = match run(&mut network, rows, width) {
        Ok(found) => found,
        Err(error) => {
            outcome.error = error;
            outcome.scores = Some(f64::INFINITY);
            return outcome;
        }
    };
    outcome.scores = Some(difference(expected, &found));
    if let Some(other) = &case.onnxruntime {
        let delta = difference(other, &found);
        assert!(delta <= TOLERANCE, "{}: the exporter's function is not computed either ({delta})", case.name);
        outcome.error = "the exporter wrote another function; onnxruntime's answers are the same as here".to_owned();
        return outcome;
    }
    let Some(labels) = &case.labels else { return outcome };
    let found: Vec<Label> = match case.outputs.get("labels") {
        Some(output) => match Network::build_output(&proto, features, output, 1) {
            Ok(mut network) => {
                let text = matches!(labels[0], Label::Text(_));
                let found = match run(&mut network, rows, 1) {
                    Ok(found) => found,
                    Err(error) => {
                        outcome.error = format!("{error:#}");
                        // None of the labels is right.
                        outcome.labels = Some(labels.len());
                        return outcome;
                    }
                };
                let label = |row: &Vec<f64>| match text {
                    true => Label::Text(network.strings.get(row[0] as usize).cloned().unwrap_or_default()),
                    false => Label::Number(row[0] as i64),
                };
                found.iter().map(label).collect()
            }
            Err(error) => {
                outcome.error = format!("{error:#}");
                return outcome;
            }
        },
        None => {
            let best = |row: &Vec<f64>| (0..width).rev().max_by(|a, b| row[*a].total_cmp(&row[*b])).unwrap_or(0) as i64;
            found.iter().map(best).map(Label::Number).collect()
        }
    };
    assert_eq!(labels.len(), found.len(), "{}: a label for each row", case.name);
    outcome.labels = Some(labels.iter().zip(&found).filter(|(a, b)| a != b).count());
    outcome
}

#[test]
fn threads_give_the_same_as_one() {
    let bytes = std::fs::read(root().join("models/conformance/data/xgboost_multi.onnx")).expect("export");
    let mut network = Network::build(&network::decode(&bytes).expect("decodes"), 12, 4).expect("builds");
    let mut run = |threads: usize| {
        network.set_threads(threads).expect("states");
        let mut out = Vec::new();
        let fill = |row: usize, values: &mut [f32]| {
            values
                .iter_mut()
                .enumerate()
                .for_each(|(column, value)| *value = ((row * 7 + column * 3) % 11) as f32 - 4.0);
        };
        // Three full batches, and a rest of each smaller kind.
        network.run(3 * 512 + 64 + 9, fill, |row, values| out.push((row, values.to_vec()))).expect("runs");
        assert!(out.iter().enumerate().all(|(place, (row, _))| place == *row), "rows come in order");
        out
    };
    let alone = run(1);
    assert_eq!(alone.len(), 3 * 512 + 64 + 9);
    for threads in [2, 3, 16] {
        assert!(run(threads) == alone, "{threads} threads differ");
    }
}

#[derive(Deserialize)]
struct Hard {
    rows: Vec<Vec<Number>>,
    answers: BTreeMap<String, Vec<Vec<Number>>>,
}

/// Rows with missing values and outliers, against the answers of onnxruntime (`models/conformance/hard.py`).
#[test]
fn missing_values_and_outliers_are_answered_as_the_file_says() {
    let Hard { rows, answers } = json("hard.json");
    let rows: Vec<Vec<Option<f32>>> =
        rows.iter().map(|row| row.iter().map(|value| Some(value.value() as f32)).collect()).collect();
    let mut wrong = Vec::new();
    for case in ["tables.json", "torch.json"].into_iter().flat_map(|file| json::<Listed>(file).cases) {
        let Some(expected) = answers.get(&case.name) else { continue };
        let path = root().join("models/conformance/data").join(format!("{}.onnx", case.name));
        let proto = network::decode(&std::fs::read(path).expect("export")).expect("decodes");
        let output = case.outputs.get("probabilities").or(case.outputs.get("values")).expect("named");
        let width = expected[0].len();
        let Ok(mut network) = Network::build_output(&proto, rows[0].len(), output, width) else { continue };
        let found = match run(&mut network, &rows, width) {
            Ok(found) => found,
            Err(error) => {
                wrong.push(format!("{}: {error}", case.name));
                continue;
            }
        };
        for (row, (found, expected)) in found.iter().zip(expected).enumerate() {
            let expected: Vec<f64> = expected.iter().map(Number::value).collect();
            if !found.iter().zip(&expected).all(|(found, expected)| same(*found, *expected)) {
                wrong.push(format!("{} row {row}: {found:?}, not {expected:?}", case.name));
            }
        }
    }
    assert!(wrong.is_empty(), "{}:\n{}", wrong.len(), wrong.join("\n"));
}

#[test]
fn conformance() {
    let inputs: BTreeMap<String, Rows> = json("inputs.json");
    let mut page = String::from(
        "# Conformance\n\nWhat `models/conformance/make.py` exports, against the answers of the library that trained it: \
         written by the test `conformance` (`SENSOR_WRITE_DOCS=1 cargo test -p sensor conformance`), which fails if it \
         changes. \"Scores\": probabilities, or values of a regression, within 1e-5 (of their size, above 1). \"Labels\": \
         identical, also those of the graph's output of labels.\n\n\
         | export | library | loads | scores | labels | |\n|---|---|---|---|---|---|\n",
    );
    let (mut wrong, mut counts) = (Vec::new(), [0usize; 5]);
    let mut refused = Vec::new();
    for file in ["tables.json", "torch.json"] {
        let Listed { cases, not_exported } = json(file);
        refused.extend(not_exported);
        for case in &cases {
            let outcome = judge(case, &inputs);
            let scores = outcome.scores.map(|delta| delta <= TOLERANCE);
            let labels = outcome.labels.map(|different| different == 0);
            counts[0] += 1;
            counts[1] += usize::from(outcome.loads);
            counts[2] += usize::from(scores == Some(true));
            counts[3] += usize::from(labels == Some(true));
            counts[4] += usize::from(case.labels.is_some());
            let word = |outcome: Option<bool>| match outcome {
                Some(true) => "yes",
                Some(false) => "no",
                None => "–",
            };
            let loads = if outcome.loads { "yes" } else { "refused" };
            // The innermost reason.
            let error = outcome.error.rsplit(": ").next().unwrap_or_default().replace('|', "/");
            let line = [&case.name, &case.library, loads, word(scores), word(labels), &error].join(" | ");
            writeln!(page, "| {line} |").expect("text");
            if outcome.loads && case.onnxruntime.is_some() {
                // `judge` has looked: the file says what is computed.
            } else if outcome.loads && (scores != Some(true) || labels == Some(false)) {
                let Outcome { scores, labels, error, .. } = &outcome;
                wrong.push(format!("{}: scores {scores:?}, labels {labels:?} {error}", case.name));
            } else if !outcome.error.is_empty() {
                println!("{}: {}", case.name, outcome.error);
            }
        }
    }
    let [all, loaded, scores, labels, labelled] = counts;
    write!(
        page,
        "\n{all} exports: {loaded} load, {scores} with right scores; of {labelled} with labels, {labels} with right labels.\n"
    )
    .expect("text");
    if !refused.is_empty() {
        page += "\nNot exported, because their exporter refuses:\n\n";
    }
    for NotExported { name, library, error } in refused {
        writeln!(page, "* {name} ({library}): {error}").expect("text");
    }
    assert!(wrong.is_empty(), "an export that loads must be right, or be refused:\n{}", wrong.join("\n"));
    let path = root().join("docs/conformance.md");
    if std::env::var_os("SENSOR_WRITE_DOCS").is_some() {
        std::fs::write(&path, &page).expect("write the page");
    }
    let committed = std::fs::read_to_string(&path).unwrap_or_default();
    assert!(
        committed == page,
        "docs/conformance.md is not what this test finds; write it anew with SENSOR_WRITE_DOCS=1"
    );
}
