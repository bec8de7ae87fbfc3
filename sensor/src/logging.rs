//! Log lines on standard error, as text or JSON. Called once, by `cli`, before the agent starts.
//!
//! Level: `SENSOR_LOG`, else `RUST_LOG`, else the configuration. Messages of crates that use `log` arrive here too.

use std::io::IsTerminal;

use anyhow::{Context, Result, anyhow, bail};
use tracing_subscriber::EnvFilter;
use tracing_subscriber::filter::LevelFilter;

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
    let builder = tracing_subscriber::fmt().with_env_filter(filter).with_writer(std::io::stderr);
    match config.format {
        LogFormat::Text => builder.with_ansi(std::io::stderr().is_terminal()).with_target(false).try_init(),
        LogFormat::Json => builder.json().flatten_event(true).try_init(),
    }
    .map_err(|error| anyhow!("cannot start logging: {error}"))
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
