//! `sensor model check`: everything that loading checks, as a report; and the speed of a model that passed.
//!
//! A [`Report`] is data: the isolated check ([`super::isolate`]) writes it as JSON, and the command shows it. Called by
//! `cli` and by the agent's loader.

use std::fmt::Write;
use std::time::{Duration, Instant};

use serde::{Deserialize, Serialize};

use super::Model;
use super::contract::Thresholds;
use super::file::File;
use super::gaps::{Gaps, gaps, names};
use super::load::{Examined, examine};
use super::network::BATCHES;
use super::problem::{Problem, cut};
use super::scale::Kind;

/// What was found of a file.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct Report {
    /// Whether the agent would take it.
    pub ok: bool,
    /// The failed checks.
    pub problems: Vec<Problem>,
    /// What the model is, if nothing failed.
    pub model: Option<Facts>,
    /// Bytes of the ONNX file.
    pub bytes: u64,
    /// Whether a side-car was found beside it.
    pub side_car: bool,
    /// Time that loading took.
    pub load_seconds: f64,
    /// Largest resident memory of the process that loaded it, in bytes; `None` where it is not known.
    #[serde(default)]
    pub memory_bytes: Option<u64>,
}

/// A model that passed.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct Facts {
    /// Name.
    pub name: String,
    /// SHA-256, hexadecimal.
    pub sha256: String,
    /// Kind.
    pub kind: Kind,
    /// Input columns.
    pub features: Vec<String>,
    /// Labels, the benign one first.
    pub labels: Vec<String>,
    /// Scores from which on something is done.
    pub thresholds: Thresholds,
    /// Flows with fewer packets are not scored.
    pub min_packets: u64,
    /// Name of the input.
    pub input: String,
    /// Name of the output.
    pub output: String,
    /// Golden rows.
    pub golden_rows: usize,
    /// Largest difference of a golden output.
    pub golden_delta: f32,
    /// Whether drift of the features and of the score can be seen.
    pub drift: (bool, bool),
    /// What it was trained on.
    pub trained_on: String,
    /// What else its file says of its training.
    pub training: serde_json::Value,
    /// Columns that make an answer that is not finite.
    #[serde(default)]
    pub gaps: Gaps,
    /// Speed by batch size; empty if it was not measured.
    pub speed: Vec<Speed>,
}

/// Speed at one batch size.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
pub struct Speed {
    /// Rows in one inference call.
    pub batch: usize,
    /// Rows a second, on one thread of this machine.
    pub rows_per_second: f64,
    /// Time of one call, seconds.
    pub call_seconds: f64,
}

/// Loads a model as the agent would and reports. Each batch size is timed for `timed`; zero: one call.
pub fn check(file: &File, timed: Duration) -> Report {
    let begun = Instant::now();
    let Examined { model, mut problems } = examine(file);
    let load_seconds = begun.elapsed().as_secs_f64();
    let mut facts = None;
    if let Some(mut model) = model {
        match gaps(&mut model).and_then(|gaps| Ok((gaps, speeds(&mut model, timed)?))) {
            Ok((gaps, speed)) => facts = Some(describe(&model, gaps, speed)),
            Err(error) => problems.push(Problem::new("speed", format!("{error:#}"), "see the golden rows")),
        }
    }
    Report {
        ok: problems.is_empty(),
        problems,
        model: facts,
        bytes: file.onnx.len() as u64,
        side_car: file.side_car.is_some(),
        load_seconds,
        memory_bytes: None,
    }
}

fn describe(model: &Model, gaps: Gaps, speed: Vec<Speed>) -> Facts {
    Facts {
        name: model.name.clone(),
        sha256: model.hash.clone(),
        kind: model.kind,
        features: model.features.iter().map(|feature| feature.name.to_owned()).collect(),
        labels: model.labels.clone(),
        thresholds: model.thresholds,
        min_packets: model.min_packets,
        input: model.network.input.clone(),
        output: model.network.output.clone(),
        golden_rows: model.golden.len(),
        golden_delta: model.golden_delta,
        drift: (!model.quantiles.is_empty(), model.score_quantiles.is_some()),
        trained_on: model.trained_on.clone(),
        training: model.training.clone(),
        gaps,
        speed,
    }
}

fn speeds(model: &mut Model, timed: Duration) -> anyhow::Result<Vec<Speed>> {
    BATCHES.iter().map(|batch| speed(model, *batch, timed)).collect()
}

fn speed(model: &mut Model, batch: usize, timed: Duration) -> anyhow::Result<Speed> {
    let rows: Vec<Vec<f32>> = model.golden.iter().map(|golden| golden.input.clone()).collect();
    let (mut scores, mut calls) = (Vec::new(), 0u32);
    let start = Instant::now();
    loop {
        model.score_rows(batch, |row, values| values.copy_from_slice(&rows[row % rows.len()]), &mut scores)?;
        calls += 1;
        if start.elapsed() >= timed {
            break;
        }
    }
    let call_seconds = start.elapsed().as_secs_f64() / f64::from(calls);
    Ok(Speed { batch, rows_per_second: batch as f64 / call_seconds, call_seconds })
}

/// The report for people. `name` is the file's.
pub fn render(name: &str, report: &Report) -> String {
    let Report { ok, problems, model, bytes, side_car, load_seconds, memory_bytes } = report;
    let mut text = String::new();
    let mut line = |name: &str, value: String| {
        // Writing to a string cannot fail.
        let _ = writeln!(text, "{name:<13}{value}");
    };
    let beside = if *side_car { ", with a side-car" } else { "" };
    line("file", format!("{name}, {bytes} bytes{beside}"));
    if let Some(model) = model {
        let Thresholds { report, tag, drop } = model.thresholds;
        line("model", format!("{} ({})", model.name, model.kind.name()));
        line("sha256", model.sha256.clone());
        if !model.trained_on.is_empty() {
            line("trained on", cut(model.trained_on.clone()));
        }
        if let Some(training) = model.training.as_object() {
            let shown: Vec<_> = training.iter().map(|(key, value)| format!("{key} {value}")).collect();
            line("training", cut(shown.join(", ")));
        }
        line("input", format!("{:?}: [batch, {}]", model.input, model.features.len()));
        line("output", format!("{:?}", model.output));
        line("labels", model.labels.join(", "));
        line("thresholds", format!("report {report}, tag {tag}, drop {drop}"));
        line("min packets", model.min_packets.to_string());
        line(
            "golden rows",
            format!(
                "{} rows at batch sizes {BATCHES:?}: largest difference {:.1e}",
                model.golden_rows, model.golden_delta
            ),
        );
        line(
            "drift",
            match model.drift {
                (true, true) => "of features and score".to_owned(),
                (true, false) => "of features (the file has no sensor.score_quantiles)".to_owned(),
                (false, true) => "of the score (the file has no sensor.quantiles)".to_owned(),
                (false, false) => "unknown (the file has no sensor.quantiles)".to_owned(),
            },
        );
        let score = |what: &str, list: &[String]| match list.is_empty() {
            true => format!("all have a finite score where a value is {what}"),
            false => format!("WITHOUT A SCORE, and pass, where a value is {what}: {}", names(list)),
        };
        line("flows", score("missing", &model.gaps.missing));
        line("flows", score("huge", &model.gaps.far));
        for Speed { batch, rows_per_second, call_seconds } in &model.speed {
            let micros = call_seconds * 1e6;
            line("speed", format!("batch {batch:>4}: {rows_per_second:>9.0} rows/s, {micros:>8.1} µs a batch"));
        }
        line("features", format!("{}: {}", model.features.len(), model.features.join(" ")));
    }
    let memory =
        memory_bytes.map_or_else(String::new, |bytes| format!(", {:.0} MiB", bytes as f64 / f64::from(1 << 20)));
    line("load", format!("{:.0} ms{memory}", load_seconds * 1e3));
    for Problem { check, problem, fix } in problems {
        let _ = writeln!(text, "FAILED       {check}: {problem}\n  to mend it: {fix}");
    }
    let _ = match ok {
        true => writeln!(text, "ok"),
        false => writeln!(text, "{} failed", problems.len()),
    };
    text
}
