//! `sensor replay`.

use std::io::{BufWriter, Write};
use std::path::{Path, PathBuf};
use std::process::ExitCode;

use anyhow::{Context, Result};
use clap::Args;

use super::model::ConfigFile;
use super::stdout::Rows;
use crate::model::{Model, accept};
use crate::replay::score::{Form, ReplayOptions, replay};

#[derive(Debug, Args)]
pub(super) struct Replay {
    /// Capture files: pcap or pcapng, plain or compressed with gzip or zstd; - is standard input
    #[arg(required = true, value_name = "CAPTURE")]
    captures: Vec<PathBuf>,
    /// The ONNX model
    #[arg(long, value_name = "FILE")]
    model: PathBuf,
    /// Also score each flow when it reaches these packet counts, as the agent does at powers of two
    #[arg(long, value_delimiter = ',', value_name = "N,N…")]
    snapshots: Vec<u64>,
    /// Form of the rows
    #[arg(long, value_enum, default_value_t)]
    format: Form,
    #[command(flatten)]
    config: ConfigFile,
    /// Where the rows go [default: standard output]
    #[arg(short, long, value_name = "FILE")]
    output: Option<PathBuf>,
}

pub(super) fn run(arguments: Replay) -> Result<ExitCode> {
    let Replay { captures, model, snapshots, format: form, config, output } = arguments;
    let config = config.read()?;
    let parser = config.flows.parser_options();
    let options = ReplayOptions { captures, snapshots, form, parser, policy: config.policy.clone() };
    accept::on_large_stack(|| score(accept::load(&model, &config)?, &options, output.as_deref()))?;
    Ok(ExitCode::SUCCESS)
}

fn score(mut model: Model, options: &ReplayOptions, output: Option<&Path>) -> Result<()> {
    let mut output: Box<dyn Write> = match output {
        Some(path) => {
            let file = std::fs::File::create_new(path).with_context(|| format!("create {}", path.display()))?;
            Box::new(BufWriter::new(file))
        }
        None => Box::new(BufWriter::new(Rows(std::io::stdout().lock()))),
    };
    replay(options, &mut model, &mut output, &mut std::io::stderr().lock())?;
    Ok(output.flush()?)
}
