//! Whether the agent of a configuration takes a model, and loading one for it.
//!
//! Invariant: the agent and the commands ask the same question: a file that `sensor model check --config FILE` finds good
//! is one that the agent with that file loads. Called by the agent's loader and by `cli`.

use std::path::Path;
use std::time::Duration;

use anyhow::{Context, Result, bail};

use super::check::{Facts, Report};
use super::contract::Thresholds;
use super::file::File;
use super::isolate::{self, Limits, STACK};
use super::network::batches;
use super::problem::Problem;
use super::{Model, problem, room};
use crate::config::Config;

/// This program, even if its file has been replaced since.
const PROGRAM: &str = "/proc/self/exe";

/// Reads a model file of at most the configured size.
///
/// # Errors
/// As for [`File::read`].
pub fn read(path: &Path, config: &Config) -> Result<File> {
    // Twice: here, and in the process that checks it.
    if let (Ok(metadata), Some((left, of))) = (path.metadata(), room::left())
        && metadata.len().saturating_mul(2) > left
    {
        bail!(
            "the model {} has {} MiB and is held twice to be checked, but {of} has only {} MiB of memory left: make the model \
             smaller, or give the agent more memory",
            path.display(),
            metadata.len() >> 20,
            left >> 20
        );
    }
    File::read(path, u64::from(config.model.max_file_mib) << 20)
}

/// Checks a file in a process of its own, and then what the configuration wants of it. Each batch size is timed for `timed`.
///
/// # Errors
/// If no process can be made; all else is in the report.
pub fn check(file: &File, config: &Config, timed: Duration) -> Result<Report> {
    let limits = Limits { memory_bytes: load_memory(config), time: config.model.load_timeout };
    let mut report = isolate::check(Path::new(PROGRAM), file, limits, timed)?;
    accept(&mut report, config);
    Ok(report)
}

/// Loads a model for a configuration: checked in a process of its own first, then built here from the same bytes. Needs a
/// stack of twice [`STACK`].
///
/// # Errors
/// Any failure names the file and says what to change.
pub fn load(path: &Path, config: &Config) -> Result<Model> {
    let file = read(path, config)?;
    let what = || format!("load the model {}", path.display());
    let report = check(&file, config, Duration::from_millis(20))?;
    if !report.ok {
        return Err(problem::error(&report.problems)).with_context(what);
    }
    if let (Some(needed), Some((left, of))) = (report.memory_bytes, room::left())
        && needed > left
    {
        return Err(problem::error(&[Problem::new(
            "memory",
            format!("loading it takes {} MiB, but {of} has only {} MiB left", needed >> 20, left >> 20),
            "make the model smaller, or give the agent more memory (two models are held while one replaces the other)",
        )]))
        .with_context(what);
    }
    let mut model = Model::from_file(&file).with_context(what)?;
    model.set_threads(config.model.threads as usize).with_context(what)?;
    if let Some(threshold) = config.policy.threshold {
        // A score's label depends on it, too.
        model.thresholds = Thresholds::all(threshold as f32);
    }
    Ok(model)
}

/// Runs `work` on a thread with the stack that loading and running a model need.
///
/// # Errors
/// Its own; if there is no thread to be had, or it panicked.
pub fn on_large_stack<T: Send>(work: impl FnOnce() -> Result<T> + Send) -> Result<T> {
    std::thread::scope(|scope| {
        let thread = std::thread::Builder::new().stack_size(2 * STACK);
        match thread.spawn_scoped(scope, work).context("cannot start a thread")?.join() {
            Ok(result) => result,
            Err(_) => bail!("the thread of a model panicked; please report this"),
        }
    })
}

fn load_memory(config: &Config) -> u64 {
    u64::from(config.model.load_memory_mib) << 20
}

/// Adds a problem for each thing that the configuration wants of a sound model and that this one has not.
fn accept(report: &mut Report, config: &Config) {
    let Some(model) = report.model.as_ref().filter(|_| report.ok) else { return };
    let found = [speed(model, config), memory(report.memory_bytes, config), labels(model, config)];
    report.problems.extend(found.into_iter().flatten());
    report.ok = report.problems.is_empty();
}

/// A full batch must not let the lease run out.
fn speed(model: &Facts, config: &Config) -> Option<Problem> {
    let time = |batch| model.speed.iter().find(|speed| speed.batch == batch).map_or(f64::INFINITY, |s| s.call_seconds);
    let needed: f64 = batches(config.model.max_batch as usize).map(time).sum();
    let allowed = config.model.max_inference.min(config.agent.lease / 2).as_secs_f64();
    (needed > allowed).then(|| {
        let (batch, needed, allowed) = (config.model.max_batch, needed * 1e3, allowed * 1e3);
        Problem::new(
            "speed",
            format!("scoring {batch} flows takes {needed:.0} ms, more than {allowed:.0} ms"),
            "make the model smaller, or model.max_batch smaller, or raise model.max_inference (at most half of agent.lease \
             counts)",
        )
    })
}

/// The agent builds the model without a limit, while the one that it replaces is still in use: half of what the check may
/// take is for each.
fn memory(resident_bytes: Option<u64>, config: &Config) -> Option<Problem> {
    let most = load_memory(config) / 2;
    resident_bytes.filter(|bytes| *bytes > most).map(|bytes| {
        Problem::new(
            "memory",
            format!(
                "checking it took {} MiB, more than {} MiB (half of model.load_memory_mib)",
                bytes >> 20,
                most >> 20
            ),
            "make the model smaller, or raise model.load_memory_mib if the host has room for two of its size",
        )
    })
}

/// Labels that the configuration names are the model's.
fn labels(model: &Facts, config: &Config) -> Option<Problem> {
    let unknown = config.policy.label_actions.keys().find(|label| !model.labels.contains(label))?;
    Some(Problem::new(
        "labels",
        format!("policy.label_actions names {unknown:?}, which the model does not know"),
        format!("its labels are {}", model.labels.join(", ")),
    ))
}

#[cfg(test)]
mod tests {
    use super::super::check::Speed;
    use super::super::network::BATCHES;
    use super::super::scale::Kind;
    use super::*;
    use crate::config::ActionName;

    /// A sound model whose calls take these times, one per batch size.
    fn report(call_seconds: [f64; 4]) -> Report {
        let speed = BATCHES.iter().zip(call_seconds);
        let model = Facts {
            name: "m".to_owned(),
            sha256: String::new(),
            kind: Kind::Classifier,
            features: Vec::new(),
            labels: vec!["benign".to_owned(), "scan".to_owned()],
            thresholds: Thresholds::all(0.5),
            min_packets: 1,
            input: String::new(),
            output: String::new(),
            golden_rows: 4,
            golden_delta: 0.0,
            drift: (false, false),
            trained_on: String::new(),
            training: serde_json::Value::Null,
            gaps: Default::default(),
            speed: speed
                .map(|(&batch, call_seconds)| Speed {
                    batch,
                    rows_per_second: batch as f64 / call_seconds,
                    call_seconds,
                })
                .collect(),
        };
        Report {
            ok: true,
            problems: Vec::new(),
            model: Some(model),
            bytes: 1,
            side_car: false,
            load_seconds: 0.1,
            memory_bytes: Some(50 << 20),
        }
    }

    fn refused(mut report: Report, config: &Config) -> Option<String> {
        accept(&mut report, config);
        assert_eq!(report.ok, report.problems.is_empty());
        report.problems.first().map(ToString::to_string)
    }

    #[test]
    fn the_speed_that_counts_is_that_of_a_full_batch() {
        let mut config = Config::default();
        assert_eq!(refused(report([1e-4, 1e-3, 1e-2, 0.1]), &config), None);
        // Fast one by one, slow in the batches that the agent makes.
        let text = refused(report([1e-6, 1e-6, 1e-6, 0.6]), &config).expect("too slow");
        assert!(text.contains("scoring 512 flows takes 600 ms, more than 500 ms"), "{text}");
        config.model.max_batch = 32;
        assert_eq!(refused(report([1.0, 0.1, 1.0, 1.0]), &config), None, "four calls of eight rows");
        assert!(refused(report([1e-6, 0.2, 1e-6, 1e-6]), &config).is_some());
        config.agent.lease = Duration::from_millis(600);
        assert!(refused(report([1.0, 0.1, 1.0, 1.0]), &config).is_some(), "the lease would run out");
    }

    #[test]
    fn a_model_must_fit_twice_and_know_the_labels() {
        let mut config = Config::default();
        let fast = || report([1e-6; 4]);
        let text = refused(Report { memory_bytes: Some(1100 << 20), ..fast() }, &config).expect("too large");
        assert!(text.contains("took 1100 MiB, more than 1024 MiB"), "{text}");
        config.policy.label_actions.insert("flood".to_owned(), ActionName::Pass);
        let text = refused(fast(), &config).expect("no such label");
        assert!(text.contains("\"flood\"") && text.ends_with("its labels are benign, scan"), "{text}");
    }
}
