//! `sensor model`: check, explain and load model files.

use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::time::Duration;

use anyhow::{Context, Result};
use clap::{Args, Subcommand};

use sensor_common::features::{CONTRACT_VERSION, Sample};

use super::{Socket, print, say, wait};
use crate::config::{Config, Source, environment};
use crate::control;
use crate::model::explain::{Explanation, explain};
use crate::model::isolate::{self, Limits};
use crate::model::{Model, accept, check, restamp};
use crate::replay::endpoints;
use crate::replay::score::record_of;
use crate::vector;
use crate::view::{FlowView, protocol_name};

/// How long each batch size is timed.
const TIMED: Duration = Duration::from_millis(200);

#[derive(Debug, Subcommand)]
pub(super) enum ModelCommand {
    /// Load a model as the agent would, in a process of its own, and say what it is or all that is wrong with it
    Check {
        /// The ONNX file; its side-car, of the same name with .toml behind it, is read, too
        file: PathBuf,
        #[command(flatten)]
        config: ConfigFile,
        /// One JSON object
        #[arg(long)]
        json: bool,
    },
    /// Say which features made the score of a flow: each is replaced by what most flows have, and scored again
    Explain {
        /// The ONNX file
        file: PathBuf,
        /// A flow of the running agent, by its id in `sensor flows --json`; with --capture its number in `sensor replay`
        #[arg(long, value_name = "ID")]
        flow: String,
        /// Take the flow from this capture
        #[arg(long, value_name = "CAPTURE")]
        capture: Option<PathBuf>,
        /// Features to show, 0 = all
        #[arg(long, value_name = "N", default_value_t = 10)]
        top: usize,
        #[command(flatten)]
        config: ConfigFile,
        #[command(flatten)]
        socket: Socket,
        /// One JSON object
        #[arg(long)]
        json: bool,
    },
    /// Have the running agent load a model file in place of the one in use; a file that fails a check changes nothing
    Load {
        /// The ONNX file
        file: PathBuf,
        /// As the shadow: scored beside the model in use, without effect
        #[arg(long)]
        shadow: bool,
        #[command(flatten)]
        socket: Socket,
    },
    /// Say that a model serves under today's definitions of its features: set their hashes in its contract, if it
    /// passes every check then
    Restamp {
        /// The ONNX file
        file: PathBuf,
        /// Write the model here [default: in place of FILE]
        #[arg(short, long, value_name = "OUT")]
        output: Option<PathBuf>,
        #[command(flatten)]
        config: ConfigFile,
    },
    /// The child's side of an isolated check: reads a model from standard input
    #[command(hide = true)]
    CheckIsolated { memory_bytes: u64, seconds: u64, timed_ms: u64 },
}

/// Whose limits and labels a model must keep to.
#[derive(Debug, Args)]
pub(super) struct ConfigFile {
    /// Configuration file of the agent that the model is for [default: the default configuration]
    #[arg(short, long, value_name = "FILE")]
    config: Option<PathBuf>,
}

impl ConfigFile {
    pub(super) fn read(&self) -> Result<Config> {
        let Some(file) = &self.config else { return Ok(Config::default()) };
        // As the agent with that file reads it.
        let source = Source { file: Some(file.clone()), environment: environment::of_process(), flags: Vec::new() };
        let config = source.resolve()?;
        Ok(config)
    }
}

pub(super) fn run(command: ModelCommand) -> Result<ExitCode> {
    match command {
        ModelCommand::Check { file, config, json } => return check(&file, &config.read()?, json),
        ModelCommand::Explain { file, flow, capture, top, config, socket, json } => {
            let config = config.read()?;
            let text = accept::on_large_stack(|| {
                let mut model = accept::load(&file, &config)?;
                let (title, row) = match capture {
                    Some(capture) => of_capture(&model, &config, &capture, &flow)?,
                    None => of_agent(&model, &socket.socket, &flow)?,
                };
                let explanation = explain(&mut model, &row)?;
                if json { print::json(&explanation) } else { Ok(render(&title, &explanation, top)) }
            })?;
            say(&text)?;
        }
        ModelCommand::Load { file, shadow, socket } => {
            // The agent has another working directory.
            let path = std::fs::canonicalize(&file).with_context(|| format!("find {}", file.display()))?;
            let model = wait(control::load(&socket.socket, path, shadow))?;
            let role = if shadow { "shadow" } else { "active" };
            say(&format!("{role} model is now {} (sha256 {})\n", model.name, model.hash))?;
        }
        ModelCommand::Restamp { file, output, config } => {
            return restamp(&file, output.as_deref().unwrap_or(&file), &config.read()?);
        }
        ModelCommand::CheckIsolated { memory_bytes, seconds, timed_ms } => {
            let limits = Limits { memory_bytes, time: Duration::from_secs(seconds) };
            let timed = Duration::from_millis(timed_ms);
            isolate::serve(limits, timed, std::io::stdin().lock(), std::io::stdout().lock())?;
        }
    }
    Ok(ExitCode::SUCCESS)
}

/// Title and features of a flow of the running agent.
fn of_agent(model: &Model, socket: &Path, id: &str) -> Result<(String, Vec<f32>)> {
    let view = wait(control::get_features(socket, id))?;
    let value = |name: &str| view.features.get(name).copied().flatten().map_or(f32::NAN, |value| value as f32);
    let row = model.features.iter().map(|feature| value(feature.name)).collect();
    let FlowView { src, sport, dst, dport, protocol, .. } = &view.flow;
    Ok((format!("{src} port {sport} to {dst} port {dport}, {protocol}"), row))
}

/// Title and features of a flow of a capture.
fn of_capture(model: &Model, config: &Config, capture: &Path, number: &str) -> Result<(String, Vec<f32>)> {
    let wanted = number.parse().with_context(|| format!("--flow {number}: with --capture it is a number"))?;
    let (record, context) = record_of(capture, config.flows.parser_options(), wanted)?;
    let mut row = vec![f32::NAN; model.features.len()];
    vector::fill(&model.features, &Sample { record: &record, context: &context }, &mut row);
    let (from, to) = endpoints(&record);
    let protocol = protocol_name(record.key.protocol);
    Ok((format!("{} port {} to {} port {}, {protocol}", from.address, from.port, to.address, to.port), row))
}

fn check(path: &Path, config: &Config, json: bool) -> Result<ExitCode> {
    let report = accept::check(&accept::read(path, config)?, config, TIMED)?;
    say(&if json { print::json(&report)? } else { check::render(&path.display().to_string(), &report) })?;
    Ok(if report.ok { ExitCode::SUCCESS } else { ExitCode::FAILURE })
}

fn restamp(path: &Path, output: &Path, config: &Config) -> Result<ExitCode> {
    let file = accept::read(path, config)?;
    let restamped = restamp::restamp(&file).with_context(|| path.display().to_string())?;
    let what = match restamped.changed.as_deref() {
        None => "features: its former contract does not say which ones were defined otherwise".to_owned(),
        Some([]) => "features: all were defined as today".to_owned(),
        Some(names) => format!("features that were defined otherwise: {}", names.join(", ")),
    };
    let report = accept::check(&restamped.file, config, TIMED)?;
    if !report.ok {
        say(&check::render(&path.display().to_string(), &report))?;
        say("nothing was written\n")?;
        return Ok(ExitCode::FAILURE);
    }
    restamp::write(&restamped, output)?;
    say(&format!(
        "{what}\n{} has the hashes of contract {CONTRACT_VERSION}; it passes every check\n",
        output.display()
    ))?;
    Ok(ExitCode::SUCCESS)
}

fn render(title: &str, explanation: &Explanation, top: usize) -> String {
    let Explanation { score, label, compared, typical, same, effects } = explanation;
    let count = if top == 0 { effects.len() } else { top };
    let number =
        |value: Option<f32>| value.map_or_else(|| "none (not finite)".to_owned(), |value| format!("{value:.4}"));
    let label = if label.is_empty() { String::new() } else { format!(", label {label}") };
    let mut text = format!(
        "{title}\nscore {}{label}; with every feature replaced by {}: {}\n",
        number(*score),
        compared.words(),
        number(*typical)
    );
    if *same {
        text += "replacing any one feature alone gives the same score: no single feature is a reason\n";
        return text;
    }
    let cell = |value: Option<f32>| value.map_or_else(|| "missing".to_owned(), |value| format!("{value}"));
    text += "effect = score - score with this feature alone replaced\n\n";
    text += &format!("{:>9}  {:<24} {:>14} {:>14}\n", "effect", "feature", "value", "replaced by");
    for effect in effects.iter().take(count) {
        let (value, median) = (cell(effect.value), cell(effect.median));
        let size = effect.effect.map_or_else(|| "no score".to_owned(), |effect| format!("{effect:>+9.4}"));
        text += &format!("{size:>9}  {:<24} {value:>14} {median:>14}\n", effect.feature);
    }
    text
}
