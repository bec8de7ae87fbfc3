//! Log lines on standard error, as text or JSON, or in the journal with their fields. Called once, by `cli`, before the agent
//! starts.
//!
//! Level: `SENSOR_LOG`, else `RUST_LOG`, else the configuration. Messages of crates that use `log` arrive here too.

mod journal;

use std::io::IsTerminal;

use anyhow::{Context, Result, anyhow, bail};
use tracing::Subscriber;
use tracing_subscriber::filter::LevelFilter;
use tracing_subscriber::layer::SubscriberExt as _;
use tracing_subscriber::registry::LookupSpan;
use tracing_subscriber::util::SubscriberInitExt as _;
use tracing_subscriber::{EnvFilter, Layer, fmt};

use self::journal::Journal;
pub(crate) use self::journal::SOCKET as JOURNAL;

use crate::config::{BpfLog, LogConfig, LogFormat};

/// Where messages of the kernel programs come from, as log directives name it.
const PROGRAMS: &str = "sensor_ebpf";

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
pub fn init(config: &LogConfig, programs: BpfLog) -> Result<()> {
    let mut filter = match ["SENSOR_LOG", "RUST_LOG"].iter().find_map(|name| Some((name, std::env::var(name).ok()?))) {
        Some((name, level)) => filter(&level).with_context(|| format!("environment variable {name}=\"{level}\""))?,
        None => filter(&config.level)?,
    };
    // Who asked the programs for messages wants to read them, whatever the level of the agent's own.
    if programs != BpfLog::Off {
        let directive = format!("{PROGRAMS}={}", programs.name());
        filter = filter.add_directive(directive.parse().with_context(|| format!("log directive {directive}"))?);
    }
    let lines = lines(config.format)?;
    tracing_subscriber::registry()
        .with(filter)
        .with(lines)
        .try_init()
        .map_err(|error| anyhow!("cannot start logging: {error}"))
}

/// What an error of the process begins with on standard error, so that the journal files it as an error, too.
pub fn error_prefix() -> &'static str {
    if journal::is_stderr() { "<3>" } else { "" }
}

type Lines<S> = Box<dyn Layer<S> + Send + Sync>;

/// Where lines go, and how.
fn lines<S: Subscriber + for<'a> LookupSpan<'a>>(format: LogFormat) -> Result<Lines<S>> {
    let text = || -> Lines<S> {
        let ansi = std::io::stderr().is_terminal();
        Box::new(fmt::layer().with_writer(std::io::stderr).with_ansi(ansi).with_target(false))
    };
    Ok(match format {
        LogFormat::Auto if journal::is_stderr() => match Journal::open() {
            Ok(journal) => Box::new(journal),
            Err(_) => text(),
        },
        LogFormat::Auto | LogFormat::Text => text(),
        LogFormat::Json => Box::new(fmt::layer().with_writer(std::io::stderr).json().flatten_event(true)),
        LogFormat::Journald => {
            let cannot = || format!("log.format = \"journald\": nobody listens at {JOURNAL}; use \"auto\"");
            Box::new(Journal::open().with_context(cannot)?)
        }
    })
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
