//! `sensor support`.

use std::path::PathBuf;
use std::process::ExitCode;
use std::time::SystemTime;

use anyhow::Result;
use clap::Args;

use super::{Socket, say, wait};
use crate::config::environment;
use crate::support::{self, Summary, Wanted};

/// `sensor support`.
#[derive(Debug, Args)]
pub(super) struct Support {
    /// The archive; it must not exist yet [default: sensor-support-TIME.tar.gz]
    #[arg(short, long, value_name = "FILE")]
    output: Option<PathBuf>,
    /// Configuration file [default: that of the running agent, else /etc/sensor/sensor.toml]
    #[arg(short, long, value_name = "FILE")]
    config: Option<PathBuf>,
    /// Keep addresses, and add flows, verdicts and the never-drop list
    #[arg(long)]
    with_addresses: bool,
    /// Unit whose journal is the log
    #[arg(long, value_name = "NAME", default_value = "sensor.service")]
    unit: String,
    #[command(flatten)]
    socket: Socket,
}

pub(super) fn run(arguments: &Support) -> Result<ExitCode> {
    let wanted = Wanted {
        socket: arguments.socket.socket.clone(),
        file: arguments.config.clone(),
        environment: environment::of_process(),
        unit: arguments.unit.clone(),
        addresses: arguments.with_addresses,
    };
    let time = humantime::format_rfc3339_seconds(SystemTime::now()).to_string().replace(['-', ':'], "");
    let path = arguments.output.clone().unwrap_or_else(|| format!("sensor-support-{time}.tar.gz").into());
    let Summary { items, missing } = wait(support::write(&wanted, &path))?;
    let text = format!(
        "{}: {items} items, {missing} could not be had (MANIFEST inside says why); look through it before you send it\n",
        path.display()
    );
    say(&text)?;
    Ok(ExitCode::SUCCESS)
}
