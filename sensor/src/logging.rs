//! Log lines on standard error, as text or JSON, or in the journal with their fields; the last of them are kept for
//! `sensor support`. Set up once, by `cli`, before the agent starts; level and format change when the agent reloads its
//! configuration.
//!
//! Level: `SENSOR_LOG`, else `RUST_LOG`, else the configuration. Messages of crates that use `log` arrive here too.

mod journal;
mod recent;

use std::io::IsTerminal;

use anyhow::{Context, Result, anyhow, bail};
use tracing_subscriber::filter::LevelFilter;
use tracing_subscriber::layer::SubscriberExt as _;
use tracing_subscriber::util::SubscriberInitExt as _;
use tracing_subscriber::{EnvFilter, Layer, Registry, reload};

use self::journal::Journal;
pub(crate) use self::journal::SOCKET as JOURNAL;
use self::recent::Recent;
use crate::config::{BpfLog, LogConfig, LogFormat};

/// Where messages of the kernel programs come from, as log directives name it.
const PROGRAMS: &str = "sensor_ebpf";

type Lines = Box<dyn Layer<Registry> + Send + Sync>;

/// The process's logger, to be changed while it runs.
#[derive(Clone)]
pub struct Logger {
    programs: BpfLog,
    recent: Recent,
    format: reload::Handle<Lines, Registry>,
    filter: reload::Handle<EnvFilter, tracing_subscriber::layer::Layered<reload::Layer<Lines, Registry>, Registry>>,
}

impl std::fmt::Debug for Logger {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Logger").finish_non_exhaustive()
    }
}

/// Checks directives such as `info,sensor::policy=debug`.
///
/// # Errors
/// The directives cannot be parsed.
pub fn check(level: &str) -> Result<()> {
    filter(level).map(|_| ()).with_context(|| format!("log.level = \"{level}\""))
}

/// Sets the process's logger up.
///
/// # Errors
/// The directives of the environment or the configuration cannot be parsed, or there is a logger already.
pub fn init(config: &LogConfig, programs: BpfLog) -> Result<Logger> {
    let recent = Recent::default();
    let (lines, format) = reload::Layer::new(lines(config.format, &recent)?);
    let (level, filter) = reload::Layer::new(directives(config, programs)?);
    let subscriber = tracing_subscriber::registry().with(lines).with(level);
    subscriber.try_init().map_err(|error| anyhow!("cannot start logging: {error}"))?;
    Ok(Logger { programs, recent, format, filter })
}

impl Logger {
    /// Takes another level and another format.
    ///
    /// # Errors
    /// The directives cannot be parsed; there is no journal.
    pub fn set(&self, config: &LogConfig) -> Result<()> {
        let (filter, lines) = (directives(config, self.programs)?, lines(config.format, &self.recent)?);
        self.filter.reload(filter).context("cannot change the log level")?;
        self.format.reload(lines).context("cannot change the log format")
    }

    /// The last lines, some 256 KiB at most.
    pub fn recent(&self) -> String {
        self.recent.text()
    }
}

/// What is logged: as the environment says, else as the configuration does.
fn directives(config: &LogConfig, programs: BpfLog) -> Result<EnvFilter> {
    let mut filter = match ["SENSOR_LOG", "RUST_LOG"].iter().find_map(|name| Some((name, std::env::var(name).ok()?))) {
        Some((name, level)) => filter(&level).with_context(|| format!("environment variable {name}=\"{level}\""))?,
        None => filter(&config.level)?,
    };
    // Who asked the programs for messages wants to read them, whatever the level of the agent's own.
    if programs != BpfLog::Off {
        let directive = format!("{PROGRAMS}={}", programs.name());
        filter = filter.add_directive(directive.parse().with_context(|| format!("log directive {directive}"))?);
    }
    Ok(filter)
}

/// Where lines go, and how.
fn lines(format: LogFormat, recent: &Recent) -> Result<Lines> {
    let layer = tracing_subscriber::fmt::layer().with_writer(recent.clone());
    let text = |layer: tracing_subscriber::fmt::Layer<_, _, _, _>| -> Lines {
        layer.with_ansi(std::io::stderr().is_terminal()).with_target(false).boxed()
    };
    Ok(match format {
        LogFormat::Auto if journal::is_stderr() => match Journal::open(recent) {
            Ok(journal) => journal.boxed(),
            Err(_) => text(layer),
        },
        LogFormat::Auto | LogFormat::Text => text(layer),
        LogFormat::Json => layer.json().flatten_event(true).boxed(),
        LogFormat::Journald => {
            let cannot = || format!("log.format = \"journald\": nobody listens at {JOURNAL}; use \"auto\"");
            Journal::open(recent).with_context(cannot)?.boxed()
        }
    })
}

/// What an error of the process begins with on standard error, so that the journal files it as an error, too.
pub fn error_prefix() -> &'static str {
    if journal::is_stderr() { "<3>" } else { "" }
}

fn filter(level: &str) -> Result<EnvFilter> {
    const HINT: &str = "use off, error, warn, info, debug or trace, or directives as in \"info,sensor::policy=debug\"";
    // The filter takes a lone word for the name of a module, so that a misspelt level would silence everything.
    let parts: Vec<_> = level.split(',').map(str::trim).collect();
    let unknown =
        |part: &&&str| part.is_empty() || !part.contains(['=', '[', ':']) && part.parse::<LevelFilter>().is_err();
    if let Some(word) = parts.iter().find(unknown) {
        bail!("\"{word}\" is not a log level; {HINT}");
    }
    EnvFilter::try_new(parts.join(",")).map_err(|error| anyhow!("not log directives ({error}); {HINT}"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn misspelt_levels_are_refused() {
        for level in ["info", "off", "INFO", "warn,sensor::policy=debug", "info, sensor=trace"] {
            check(level).expect(level);
        }
        for level in ["", "verbose", "info,sensor=loud"] {
            let message = format!("{:#}", check(level).expect_err(level));
            assert!(message.contains("log.level") && message.contains("trace"), "{message}");
        }
    }
}
