//! The audit: one JSON line for each verdict, expiry, undo, change of mode, of the breaker, of the model, of the never-drop
//! list. To a file that rotates, to standard output, to the journal.
//!
//! Invariant: [`Audit::write`] never waits. A thread writes; if its queue is full, or a sink cannot be written, lines are
//! lost and counted. The lines are described in docs/control.md. Called by the poll thread.

use std::fs::{self, File, OpenOptions};
use std::io::{ErrorKind, Write as _};
use std::net::IpAddr;
use std::os::fd::AsFd as _;
use std::os::unix::fs::OpenOptionsExt;
use std::os::unix::net::UnixDatagram;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::mpsc::{Receiver, SyncSender, sync_channel};
use std::time::{Duration, SystemTime};

use anyhow::{Context as _, Result, ensure};
use rustix::fs::OFlags;
use serde::Serialize;

use crate::allow;
use crate::breaker::Trip;
use crate::config::change::Change;
use crate::config::{ActionName, AuditConfig, Mode};
use crate::logging::JOURNAL;
use crate::verdicts::Verdict;

/// Lines that may wait for the disk.
const QUEUE: usize = 16_384;
/// Lines that may wait for a reader of standard output.
const STDOUT_QUEUE: usize = 1_024;

/// What happened.
#[derive(Clone, Debug, Serialize)]
#[serde(tag = "event", rename_all = "snake_case")]
pub enum Event {
    /// The agent started.
    Start {
        /// Its version.
        version: &'static str,
        /// Its mode.
        mode: Mode,
        /// Verdicts that it goes on with.
        verdicts: usize,
    },
    /// The agent stops.
    Stop,
    /// A verdict, new or with another action than before.
    Verdict {
        /// Which.
        #[serde(flatten)]
        verdict: Box<Verdict>,
        /// What is done, under the mode and the breaker.
        done: ActionName,
        /// When it ends, RFC 3339.
        until: String,
    },
    /// An operator said the same again: another end, another reason.
    Renewed {
        /// Which.
        #[serde(flatten)]
        verdict: Box<Verdict>,
        /// When it ends now, RFC 3339.
        until: String,
    },
    /// A verdict ended by itself.
    Expired {
        /// Which.
        #[serde(flatten)]
        verdict: Box<Verdict>,
        /// Packets that it acted on, or would have, as far as they are known.
        packets: u64,
    },
    /// A verdict was taken back.
    Removed {
        /// Which.
        #[serde(flatten)]
        verdict: Box<Verdict>,
        /// By whom.
        by: String,
        /// Packets that it acted on, or would have, as far as they are known.
        packets: u64,
    },
    /// Another mode.
    Mode {
        /// Before.
        from: Mode,
        /// Now.
        to: Mode,
        /// By whom.
        by: String,
    },
    /// The breaker opened.
    BreakerTripped {
        /// Why.
        #[serde(flatten)]
        trip: Trip,
        /// In words.
        text: String,
    },
    /// The breaker closed.
    BreakerReset {
        /// Why it was open.
        #[serde(flatten)]
        trip: Trip,
        /// By whom, or by what rule.
        by: String,
    },
    /// The breaker of one service's flows without a proven source opened.
    ServiceHeld {
        /// Which.
        service: String,
        /// Why.
        #[serde(flatten)]
        trip: Trip,
        /// In words.
        text: String,
    },
    /// It closed.
    ServiceFreed {
        /// Which.
        service: String,
        /// By whom, or by what rule.
        by: String,
    },
    /// A source that keeps doing the same is not dropped for it; once for each source and service.
    Spared {
        /// Its address, of IPv6 its /64.
        source: IpAddr,
        /// Where.
        service: String,
        /// What the model says.
        label: String,
        /// Its score.
        score: f64,
        /// Connections of this shape before.
        visits: u64,
        /// Since the first one.
        seconds: u64,
    },
    /// Another model is in use, or was refused.
    Model {
        /// "active" or "shadow".
        role: &'static str,
        /// Its name.
        name: String,
        /// Its hash, empty if it was refused.
        model: String,
        /// What asked for it.
        by: String,
        /// Why it was refused.
        #[serde(skip_serializing_if = "Option::is_none")]
        refused: Option<String>,
    },
    /// The configuration was read again.
    Reload {
        /// By whom.
        by: String,
        /// The file, if there is one.
        #[serde(skip_serializing_if = "Option::is_none")]
        file: Option<String>,
        /// Hash of the configuration that is in force now.
        hash: String,
        /// Settings that have changed.
        #[serde(skip_serializing_if = "Vec::is_empty")]
        changed: Vec<Change>,
        /// Settings that wait for a restart.
        #[serde(skip_serializing_if = "Vec::is_empty")]
        restart: Vec<Change>,
        /// Why it was refused; the configuration before it is in force then.
        #[serde(skip_serializing_if = "Option::is_none")]
        refused: Option<String>,
    },
    /// Drops of models are held back because drift is high, or are not any more.
    Drift {
        /// Whether they are.
        held: bool,
    },
    /// The ramp began, or is over.
    Ramp {
        /// Whether it lasts.
        lasts: bool,
        /// The score from which on flows are dropped while it does.
        score: f64,
    },
    /// Something is never dropped from now on.
    Allowed {
        /// What.
        #[serde(flatten)]
        entry: Box<allow::Entry>,
    },
    /// Something is not protected any more for this reason.
    NotAllowed {
        /// What.
        #[serde(flatten)]
        entry: Box<allow::Entry>,
        /// By whom.
        by: String,
    },
}

#[derive(Serialize)]
struct Line<'a> {
    time: String,
    #[serde(flatten)]
    event: &'a Event,
}

enum Message {
    Event(SystemTime, Box<Event>),
    Flush(SyncSender<()>),
}

/// The writing end.
#[derive(Clone, Debug)]
pub struct Audit {
    queue: Option<SyncSender<Message>>,
    /// It should go somewhere, and cannot: every line is lost.
    broken: bool,
    lost: Arc<AtomicU64>,
    written: Arc<AtomicU64>,
}

impl Audit {
    /// An audit that goes nowhere.
    pub fn none() -> Audit {
        Audit { queue: None, broken: false, lost: Arc::default(), written: Arc::default() }
    }

    /// Opens the sinks of a configuration. `directory`: where a relative path starts. A sink that cannot be opened is
    /// done without, with a log line.
    pub fn open(config: &AuditConfig, directory: Option<&Path>) -> Audit {
        let (opened, failures) = Opened::of(config, directory);
        failures.iter().for_each(|failure| tracing::error!("{failure}"));
        Audit::none().with(opened, !failures.is_empty())
    }

    /// Goes on with other sinks; what was handed over before is still written to those before. The counts go on.
    pub fn reopened(&self, opened: Opened) -> Audit {
        self.with(opened, false)
    }

    fn with(&self, Opened { file, journal, stdout }: Opened, broken: bool) -> Audit {
        let (lost, written) = (self.lost.clone(), self.written.clone());
        let nowhere = Audit { queue: None, broken, lost: lost.clone(), written: written.clone() };
        if file.is_none() && journal.is_none() && !stdout {
            return nowhere;
        }
        let stdout = match stdout.then(|| print(lost.clone(), written.clone())).transpose() {
            Ok(stdout) => stdout,
            Err(error) => {
                tracing::error!("no audit goes to standard output (audit.stdout): {error:#}");
                return Audit { broken: true, ..nowhere };
            }
        };
        let (queue, inbox) = sync_channel(QUEUE);
        let sinks = Sinks { file, journal, stdout, lost, written, failing: false };
        match std::thread::Builder::new().name("sensor-audit".to_owned()).spawn(move || sinks.run(&inbox)) {
            Ok(_) => Audit { queue: Some(queue), broken: false, ..nowhere },
            Err(error) => {
                tracing::error!("cannot start the thread that writes the audit: {error}");
                Audit { broken: true, ..nowhere }
            }
        }
    }

    /// Hands an event over.
    pub fn write(&self, event: Event) {
        let lost = match &self.queue {
            Some(queue) => queue.try_send(Message::Event(SystemTime::now(), Box::new(event))).is_err(),
            None => self.broken,
        };
        if lost {
            self.lost.fetch_add(1, Ordering::Relaxed);
        }
    }

    /// Waits until what was handed over is written, or until `limit` is over.
    pub fn flush(&self, limit: Duration) {
        let Some(queue) = &self.queue else { return };
        let (done, answer) = sync_channel(1);
        if queue.try_send(Message::Flush(done)).is_ok() {
            // Not in time is no reason to wait longer.
            let _ = answer.recv_timeout(limit);
        }
    }

    /// Lines that some sink did not get.
    pub fn lost(&self) -> u64 {
        self.lost.load(Ordering::Relaxed)
    }

    /// Lines written.
    pub fn written(&self) -> u64 {
        self.written.load(Ordering::Relaxed)
    }
}

/// A point in time as lines show it.
pub fn rfc3339(unix_ms: u64) -> String {
    let time = SystemTime::UNIX_EPOCH.checked_add(Duration::from_millis(unix_ms));
    // Year 9999 is where the format ends.
    let last = Duration::from_secs(253_402_300_799);
    let time = time.filter(|time| time.duration_since(SystemTime::UNIX_EPOCH).is_ok_and(|age| age < last));
    humantime::format_rfc3339_millis(time.unwrap_or(SystemTime::UNIX_EPOCH + last)).to_string()
}

/// Sinks that nothing has been written to yet.
pub struct Opened {
    file: Option<Rotating>,
    journal: Option<UnixDatagram>,
    stdout: bool,
}

impl std::fmt::Debug for Opened {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Opened").finish_non_exhaustive()
    }
}

impl Opened {
    /// Opens the sinks of a configuration: those that can be, and what is wrong with the others.
    pub fn of(config: &AuditConfig, directory: Option<&Path>) -> (Opened, Vec<String>) {
        let path = config.path.as_ref().and_then(|path| match directory {
            _ if path.is_absolute() => Some(path.clone()),
            directory => Some(directory?.join(path)),
        });
        let bytes = u64::from(config.max_mib) << 20;
        let mut failures = Vec::new();
        let file = path.and_then(|path| {
            let opened = Rotating::open(&path, bytes, config.files);
            opened.map_err(|error| failures.push(format!("no audit is written (audit.path): {error:#}"))).ok()
        });
        let journal = config.journald.then(journal).and_then(|opened| {
            let failed = |error| failures.push(format!("no audit goes to the journal (audit.journald): {error:#}"));
            opened.map_err(failed).ok()
        });
        let stdout = config.stdout;
        (Opened { file, journal, stdout }, failures)
    }
}

struct Sinks {
    file: Option<Rotating>,
    journal: Option<UnixDatagram>,
    stdout: Option<SyncSender<Print>>,
    lost: Arc<AtomicU64>,
    written: Arc<AtomicU64>,
    failing: bool,
}

impl Sinks {
    fn run(mut self, inbox: &Receiver<Message>) {
        while let Ok(message) = inbox.recv() {
            match message {
                Message::Event(time, event) => self.event(time, &event),
                Message::Flush(done) => match &self.stdout {
                    // If its queue is full, nobody is told, and whoever waits does not do so for ever.
                    Some(stdout) => drop(stdout.try_send(Print::Flush(done))),
                    // Nobody may wait any more.
                    None => drop(done.try_send(())),
                },
            }
        }
    }

    fn event(&mut self, time: SystemTime, event: &Event) {
        let line = Line { time: humantime::format_rfc3339_millis(time).to_string(), event };
        let Ok(mut text) = serde_json::to_string(&line) else {
            self.lost.fetch_add(1, Ordering::Relaxed);
            return;
        };
        let mut whole = true;
        if let Some(journal) = &self.journal {
            let entry = format!("SYSLOG_IDENTIFIER=sensor-audit\nPRIORITY=6\nMESSAGE={text}\n");
            whole &= journal.send(entry.as_bytes()).is_ok();
        }
        text.push('\n');
        if let Some(file) = &mut self.file {
            match file.write(text.as_bytes()) {
                Ok(()) => self.failing = false,
                Err(error) => {
                    if !std::mem::replace(&mut self.failing, true) {
                        tracing::error!("the audit cannot be written: {error:#}; lines are lost");
                    }
                    whole = false;
                }
            }
        }
        match &self.stdout {
            Some(stdout) if stdout.try_send(Print::Line(text, whole)).is_ok() => {}
            Some(_) => count(false, &self.written, &self.lost),
            None => count(whole, &self.written, &self.lost),
        }
    }
}

/// A line that every sink got, or that some sink did not.
fn count(whole: bool, written: &AtomicU64, lost: &AtomicU64) {
    let counter = if whole { written } else { lost };
    counter.fetch_add(1, Ordering::Relaxed);
}

/// A file that is renamed to NAME.1 when it is full, NAME.1 to NAME.2, and so on.
struct Rotating {
    path: PathBuf,
    file: File,
    bytes: u64,
    most: u64,
    files: u32,
}

impl Rotating {
    fn open(path: &Path, most: u64, files: u32) -> Result<Rotating> {
        if let Some(directory) = path.parent() {
            fs::create_dir_all(directory).with_context(|| format!("cannot create {}", directory.display()))?;
        }
        let file = append(path)?;
        let bytes = file.metadata().with_context(|| format!("{}", path.display()))?.len();
        Ok(Rotating { path: path.to_owned(), file, bytes, most, files })
    }

    fn write(&mut self, line: &[u8]) -> Result<()> {
        if self.bytes > 0 && self.bytes + line.len() as u64 > self.most {
            self.rotate()?;
        }
        let begun = self.bytes;
        self.bytes += line.len() as u64;
        self.file.write_all(line).inspect_err(|_| {
            // Half a line (a full disk) must not spoil the next one.
            let _ = self.file.set_len(begun);
            self.bytes = begun;
        })?;
        Ok(())
    }

    fn rotate(&mut self) -> Result<()> {
        let name = |number: u32| match number {
            0 => self.path.clone(),
            number => {
                let mut name = self.path.clone().into_os_string();
                name.push(format!(".{number}"));
                PathBuf::from(name)
            }
        };
        for number in (1..self.files.saturating_sub(1)).rev() {
            // An older one need not exist.
            let _ = fs::rename(name(number), name(number + 1));
        }
        if self.files > 1
            && let Err(error) = fs::rename(name(0), name(1))
            && error.kind() != ErrorKind::NotFound
        {
            // It must not grow without bound where its directory cannot be written: lines are lost until it can be.
            return Err(error).with_context(|| format!("cannot rename {}", self.path.display()));
        }
        if self.files == 1 {
            self.file.set_len(0).context("cannot empty the audit")?;
        }
        self.file = append(&self.path)?;
        self.bytes = self.file.metadata().with_context(|| format!("{}", self.path.display()))?.len();
        Ok(())
    }
}

fn append(path: &Path) -> Result<File> {
    // A pipe without a reader would hold up whoever opens it.
    let flags = OFlags::NONBLOCK.bits() as i32;
    let opened = OpenOptions::new().append(true).create(true).mode(0o640).custom_flags(flags).open(path);
    let file = opened.with_context(|| format!("cannot open {}", path.display()))?;
    let kind = file.metadata().with_context(|| format!("{}", path.display()))?.file_type();
    ensure!(kind.is_file(), "{} is no regular file: name another in audit.path", path.display());
    Ok(file)
}

fn journal() -> Result<UnixDatagram> {
    let socket = UnixDatagram::unbound().context("cannot make a socket")?;
    socket.connect(JOURNAL).with_context(|| format!("cannot connect to {JOURNAL}"))?;
    // A journal that does not read must not hold the file up.
    socket.set_nonblocking(true).context("cannot make the socket non-blocking")?;
    Ok(socket)
}

/// What goes to standard output, the last of the sinks.
enum Print {
    /// A line, and whether the sinks before took it.
    Line(String, bool),
    Flush(SyncSender<()>),
}

/// Prints from a thread of its own, which ends with the process: a reader may never read.
fn print(lost: Arc<AtomicU64>, written: Arc<AtomicU64>) -> Result<SyncSender<Print>> {
    // Not the library's stream, whose buffer keeps what a full disk refused.
    let stdout = std::io::stdout().as_fd().try_clone_to_owned().context("cannot open standard output")?;
    let mut stdout = File::from(stdout);
    let (lines, inbox) = sync_channel(STDOUT_QUEUE);
    let print = move || {
        for message in inbox {
            match message {
                // A disk may have room again for the next one.
                Print::Line(line, whole) => {
                    count(stdout.write_all(line.as_bytes()).is_ok() && whole, &written, &lost);
                }
                Print::Flush(done) => drop(done.try_send(())),
            }
        }
    };
    std::thread::Builder::new().name("sensor-audit-out".to_owned()).spawn(print).context("cannot start a thread")?;
    Ok(lines)
}

#[cfg(test)]
mod tests;
