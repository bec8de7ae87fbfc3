//! Log lines on standard error, as text or JSON, or in the journal with their fields; the last of them are kept for
//! `sensor support`. Set up once, by `cli`, before the agent starts; level and format change when the agent reloads its
//! configuration.
//!
//! Invariant: a log line holds nobody up and fails nothing, whatever becomes of the descriptor ([`lines`]); the same is
//! true of what a panic says.
//!
//! Level: `SENSOR_LOG`, else `RUST_LOG`, else the configuration. Messages of crates that use `log` arrive here too.

mod journal;
pub(crate) mod lines;
mod recent;

use std::io::IsTerminal;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, OnceLock};
use std::time::Duration;

use anyhow::{Context, Result, anyhow, bail};
use tracing_subscriber::filter::LevelFilter;
use tracing_subscriber::layer::SubscriberExt as _;
use tracing_subscriber::util::SubscriberInitExt as _;
use tracing_subscriber::{EnvFilter, Layer, Registry, reload};

use self::journal::Journal;
pub(crate) use self::journal::SOCKET as JOURNAL;
use self::lines::Lines;
use self::recent::{Recent, Through};
use crate::config::{BpfLog, LogConfig, LogFormat};

/// How long what is logged last may take.
pub(crate) const LAST: Duration = Duration::from_secs(1);
/// The same for what a thread says that panicked.
const LAST_WORDS: Duration = Duration::from_millis(200);

/// Where messages of the kernel programs come from, as log directives name it.
const PROGRAMS: &str = "sensor_ebpf";

type Form = Box<dyn Layer<Registry> + Send + Sync>;

/// The process's logger, to be changed while it runs.
#[derive(Clone)]
pub struct Logger {
    programs: BpfLog,
    ways: Arc<Ways>,
    format: reload::Handle<Form, Registry>,
    filter: reload::Handle<EnvFilter, tracing_subscriber::layer::Layered<reload::Layer<Form, Registry>, Registry>>,
}

/// Where lines can go.
struct Ways {
    recent: Recent,
    stderr: Lines,
    /// Once one was wanted.
    journal: OnceLock<Lines>,
    /// Lost lines that were told.
    told: AtomicU64,
}

impl Ways {
    fn all(&self) -> impl Iterator<Item = (&'static str, &Lines)> {
        [("stderr", Some(&self.stderr)), ("journal", self.journal.get())]
            .into_iter()
            .filter_map(|(name, lines)| Some((name, lines?)))
    }

    fn flush(&self, limit: Duration) {
        // Not in time is no reason to wait longer.
        for (_, lines) in self.all() {
            lines.flush(limit);
        }
    }

    fn journal(&self) -> std::io::Result<Journal> {
        let lines = match self.journal.get() {
            Some(lines) => lines.clone(),
            None => {
                let lines = journal::lines()?;
                self.journal.get_or_init(|| lines).clone()
            }
        };
        Ok(Journal { recent: self.recent.clone(), lines })
    }
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
    let stderr = Lines::to("sensor-log", std::io::stderr()).context("standard error")?;
    let ways = Ways { recent: Recent::default(), stderr, journal: OnceLock::new(), told: AtomicU64::new(0) };
    let ways = Arc::new(ways);
    let (lines, format) = reload::Layer::new(form(config.format, &ways)?);
    let (level, filter) = reload::Layer::new(directives(config, programs)?);
    let subscriber = tracing_subscriber::registry().with(lines).with(level);
    subscriber.try_init().map_err(|error| anyhow!("cannot start logging: {error}"))?;
    log_panics(ways.clone());
    Ok(Logger { programs, ways, format, filter })
}

/// A panic becomes a log line: the library's own message waits for a reader of standard error.
fn log_panics(ways: Arc<Ways>) {
    std::panic::set_hook(Box::new(move |panic| {
        let thread = std::thread::current();
        let trace = std::backtrace::Backtrace::capture();
        let trace = match trace.status() {
            std::backtrace::BacktraceStatus::Captured => format!("\n{trace}"),
            _ => String::new(),
        };
        tracing::error!("thread {} {panic}{trace}", thread.name().unwrap_or("without a name"));
        ways.flush(LAST_WORDS);
    }));
}

/// Says on standard error why a command failed, within [`LAST`]: nobody may read there.
pub(crate) fn complain(text: &str) {
    if let Ok(stderr) = Lines::to("sensor-complaint", std::io::stderr()) {
        stderr.write(format!("{}{text}\n", error_prefix()).as_bytes());
        stderr.flush(LAST);
    }
}

impl Logger {
    /// Takes another level and another format.
    ///
    /// # Errors
    /// The directives cannot be parsed; there is no journal.
    pub fn set(&self, config: &LogConfig) -> Result<()> {
        let (filter, lines) = (directives(config, self.programs)?, form(config.format, &self.ways)?);
        self.filter.reload(filter).context("cannot change the log level")?;
        self.format.reload(lines).context("cannot change the log format")
    }

    /// The last lines, some 256 KiB at most.
    pub fn recent(&self) -> String {
        self.ways.recent.text()
    }

    /// Waits until all lines are written, for [`LAST`] at most.
    pub(crate) fn flush(&self) {
        self.ways.flush(LAST);
    }

    /// Lines that did not get where they should, by where that is.
    pub(crate) fn lost(&self) -> impl Iterator<Item = (&'static str, u64)> {
        self.ways.all().map(|(name, lines)| (name, lines.lost()))
    }

    /// Says how many lines were lost, once lines are taken again.
    pub(crate) fn tell_lost(&self) {
        let lost = self.lost().map(|(_, lost)| lost).sum();
        let told = self.ways.told.load(Ordering::Relaxed);
        if lost > told && self.ways.all().all(|(_, lines)| lines.is_well()) {
            self.ways.told.store(lost, Ordering::Relaxed);
            tracing::warn!("{} log lines were lost: what takes them took none", lost - told);
        }
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
fn form(format: LogFormat, ways: &Ways) -> Result<Form> {
    let through = Through { recent: ways.recent.clone(), lines: ways.stderr.clone() };
    // Its own errors it would print itself.
    let layer = tracing_subscriber::fmt::layer().with_writer(through).log_internal_errors(false);
    let text = |layer: tracing_subscriber::fmt::Layer<_, _, _, _>| -> Form {
        layer.with_ansi(std::io::stderr().is_terminal()).with_target(false).boxed()
    };
    Ok(match format {
        LogFormat::Auto if journal::is_stderr() => match ways.journal() {
            Ok(journal) => journal.boxed(),
            Err(_) => text(layer),
        },
        LogFormat::Auto | LogFormat::Text => text(layer),
        LogFormat::Json => layer.json().flatten_event(true).boxed(),
        LogFormat::Journald => {
            let cannot = || format!("log.format = \"journald\": nobody listens at {JOURNAL}; use \"auto\"");
            ways.journal().with_context(cannot)?.boxed()
        }
    })
}

/// What an error of the process begins with on standard error, so that the journal files it as an error, too.
fn error_prefix() -> &'static str {
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
