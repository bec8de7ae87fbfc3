//! Log lines to the journal in its own protocol, each field by itself (<https://systemd.io/JOURNAL_NATIVE_PROTOCOL>).
//!
//! `tracing-journald` is not used because its MESSAGE has the text alone: `journalctl -u sensor` would say "verdict"
//! and not on what. Here MESSAGE is the line that the text format prints, and the fields are there besides, for
//! programs.
//!
//! Invariant: a journal that is stuck holds nobody up; lines lost so are counted ([`super::lines`]).

use std::fmt::Debug;
use std::io;
use std::os::unix::net::UnixDatagram;
use std::time::{Duration, SystemTime};

use tracing::field::{Field, Visit};
use tracing::{Event, Level, Subscriber};
use tracing_subscriber::Layer;
use tracing_subscriber::fmt::FormatFields as _;
use tracing_subscriber::fmt::format::{DefaultFields, Writer};
use tracing_subscriber::layer::Context;

use super::lines::Lines;
use super::recent::Recent;

/// Where the journal listens.
pub(crate) const SOCKET: &str = "/run/systemd/journal/socket";
/// How long a line may wait for the journal, which may just be started anew. The thread that writes waits, and nobody
/// else.
const PATIENCE: Duration = Duration::from_secs(1);
/// Longest value, in bytes. A datagram holds several.
const LONGEST: usize = 32 << 10;
/// Longest name of a field that the journal takes, in bytes.
const LONGEST_NAME: usize = 64;
const PREFIX: &str = "SENSOR_";

/// Whether standard error is the journal, as `JOURNAL_STREAM` says (device and inode).
pub(super) fn is_stderr() -> bool {
    let Ok(stream) = std::env::var("JOURNAL_STREAM") else { return false };
    let Ok(status) = rustix::fs::fstat(std::io::stderr()) else { return false };
    stream == format!("{}:{}", status.st_dev, status.st_ino)
}

/// Lines to the journal.
///
/// # Errors
/// Nobody listens there.
pub(super) fn lines() -> io::Result<Lines> {
    let socket = UnixDatagram::unbound()?;
    socket.set_write_timeout(Some(PATIENCE))?;
    // The journal takes an empty datagram for nothing.
    socket.send_to(&[], SOCKET)?;
    Ok(Lines::new("sensor-log", Entries(socket)))
}

/// An entry for each call.
struct Entries(UnixDatagram);

impl io::Write for Entries {
    fn write(&mut self, entry: &[u8]) -> io::Result<usize> {
        // By its path each time: the journal may be restarted.
        self.0.send_to(entry, SOCKET)
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

/// The layer of the subscriber that sends lines.
pub(super) struct Journal {
    pub(super) recent: Recent,
    pub(super) lines: Lines,
}

impl<S: Subscriber> Layer<S> for Journal {
    fn on_event(&self, event: &Event<'_>, _: Context<'_, S>) {
        let mut fields = Fields::default();
        event.record(&mut fields);
        let mut line = String::new();
        if DefaultFields::new().format_fields(Writer::new(&mut line), event).is_err() {
            line.push_str("a log line that cannot be formatted");
        }
        let target = fields.target.as_deref().unwrap_or_else(|| event.metadata().target());
        let (line, level) = (line.trim_end(), *event.metadata().level());
        let now = humantime::format_rfc3339_micros(SystemTime::now());
        self.recent.keep(format!("{now} {level:>5} {line}\n").as_bytes());
        self.lines.write(&entry_of(level, target, line, &fields.named));
    }
}

/// The fields of an event, but for its message.
#[derive(Default)]
struct Fields {
    named: Vec<(String, String)>,
    /// Of lines from crates that use `log`, which have it as a field.
    target: Option<String>,
}

impl Visit for Fields {
    fn record_str(&mut self, field: &Field, value: &str) {
        self.put(field.name(), value.to_owned());
    }

    fn record_debug(&mut self, field: &Field, value: &dyn Debug) {
        self.put(field.name(), format!("{value:?}"));
    }
}

impl Fields {
    fn put(&mut self, name: &str, value: String) {
        match name {
            "message" => {}
            "log.target" => self.target = Some(value),
            _ if name.starts_with("log.") => {}
            _ => self.named.push((field_name(name), value)),
        }
    }
}

/// Upper case, and no characters that the journal refuses.
fn field_name(name: &str) -> String {
    let plain = |c: char| if c.is_ascii_alphanumeric() { c.to_ascii_uppercase() } else { '_' };
    PREFIX.chars().chain(name.chars().map(plain)).take(LONGEST_NAME).collect()
}

fn entry_of(level: Level, target: &str, message: &str, fields: &[(String, String)]) -> Vec<u8> {
    // As in syslog(3).
    let priority = match level {
        Level::ERROR => "3",
        Level::WARN => "4",
        Level::INFO => "6",
        _ => "7",
    };
    let mut entry = Vec::with_capacity(512);
    put(&mut entry, "MESSAGE", message);
    put(&mut entry, "PRIORITY", priority);
    put(&mut entry, "SYSLOG_IDENTIFIER", "sensor");
    put(&mut entry, "SENSOR_VERSION", env!("CARGO_PKG_VERSION"));
    put(&mut entry, "SENSOR_TARGET", target);
    fields.iter().for_each(|(name, value)| put(&mut entry, name, value));
    entry
}

fn put(entry: &mut Vec<u8>, name: &str, value: &str) {
    let value = &value.as_bytes()[..value.floor_char_boundary(LONGEST)];
    entry.extend_from_slice(name.as_bytes());
    if value.contains(&b'\n') {
        entry.push(b'\n');
        entry.extend_from_slice(&(value.len() as u64).to_le_bytes());
    } else {
        entry.push(b'=');
    }
    entry.extend_from_slice(value);
    entry.push(b'\n');
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_entry_is_lines_and_a_value_with_line_breaks_has_its_length() {
        let fields = [(field_name("would"), "drop".to_owned()), (field_name("a.b-c"), "1\n2".to_owned())];
        let entry = entry_of(Level::WARN, "sensor::x", "a verdict", &fields);
        let head = format!(
            "MESSAGE=a verdict\nPRIORITY=4\nSYSLOG_IDENTIFIER=sensor\nSENSOR_VERSION={}\nSENSOR_TARGET=sensor::x\n\
             SENSOR_WOULD=drop\nSENSOR_A_B_C\n",
            env!("CARGO_PKG_VERSION")
        );
        assert_eq!(entry, [head.as_bytes(), &3u64.to_le_bytes(), b"1\n2\n"].concat());
    }

    #[test]
    fn names_and_values_are_cut_to_what_the_journal_takes() {
        assert_eq!(field_name(&"x".repeat(100)).len(), LONGEST_NAME);
        let entry = entry_of(Level::INFO, "t", &"é".repeat(LONGEST), &[]);
        assert!(entry.len() < LONGEST + 200 && String::from_utf8(entry).is_ok());
    }
}
