//! What survives a restart: verdicts, the operators' never-drop entries, the mode, the breaker. An embedded database (redb:
//! copy on write, checksums, one writer) under `agent.state_dir`; each batch of changes is one transaction.
//!
//! Invariants: whoever calls never waits for the disk (a thread of its own, a bounded queue; if that is full, the next
//! [`Store::replace`] makes good); a store that is damaged, of another version or not writable is set aside or done
//! without, with a log line, and never keeps the agent from running. Called by the poll thread.

use std::fs::{self, DirBuilder, OpenOptions};
use std::os::unix::fs::{DirBuilderExt, OpenOptionsExt};
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::mpsc::{Receiver, SyncSender, TrySendError, sync_channel};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, anyhow, ensure};
use redb::{Database, ReadableDatabase as _, ReadableTable as _, TableDefinition};
use serde::{Deserialize, Serialize};

use crate::allow::item::Item;
use crate::allow::{self, Why};
use crate::breaker::Trip;
use crate::config::Mode;
use crate::verdicts::Verdict;

/// The file under `agent.state_dir`.
const FILE: &str = "state.redb";
/// Moves on when the tables change their meaning; a store of another version is set aside.
const VERSION: u64 = 1;
const META: TableDefinition<'_, &str, &[u8]> = TableDefinition::new("meta");
const VERDICTS: TableDefinition<'_, u64, &[u8]> = TableDefinition::new("verdicts");
const ALLOWED: TableDefinition<'_, &str, &[u8]> = TableDefinition::new("allowed");
/// Changes that may wait.
const QUEUE: usize = 32_768;
/// Changes in one transaction.
const BATCH: usize = 8_192;
/// Time between two transactions, so that a flood of verdicts does not become one of disk flushes.
const PAUSE: Duration = Duration::from_millis(200);
/// Rows that cannot be read and are logged one by one.
const LOGGED: u32 = 5;
/// Time between two messages that the state cannot be written: a full disk may stay full for hours.
const SAID_AGAIN: Duration = Duration::from_secs(300);
/// Time without a failure after which the disk is said to take the state again.
const RECOVERED: Duration = Duration::from_secs(10);
/// How long another agent that stops right now may still hold the file.
const HELD: Duration = Duration::from_secs(3);

/// The mode that a command set.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct SavedMode {
    /// That mode.
    pub mode: Mode,
    /// The mode of the configuration then: if that has changed since, it goes first.
    pub configured: Mode,
}

/// What is kept beside verdicts and allow entries.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(default)]
pub struct State {
    /// Set by a command.
    pub mode: Option<SavedMode>,
    /// How long mode enforce has been on while an agent ran, ms; `None`: it is not.
    pub enforced_ms: Option<u64>,
    /// Why the breaker is open.
    pub trip: Option<Trip>,
    /// How long all has been below its caps while it is open and an agent ran, ms.
    pub quiet_ms: u64,
    /// Number of the next verdict.
    pub next_id: u64,
}

/// What an earlier agent left.
#[derive(Debug, Default)]
pub struct Saved {
    /// Mode, breaker, numbers.
    pub state: State,
    /// Verdicts, ended ones among them.
    pub verdicts: Vec<Verdict>,
    /// Never-drop entries of operators.
    pub allowed: Vec<allow::Entry>,
}

enum Op {
    Verdict(Box<Verdict>),
    NoVerdict(u64),
    Allow(Box<allow::Entry>),
    NoAllow(String),
    State(Box<State>),
    Replace(Vec<Verdict>, Vec<allow::Entry>),
    Flush(SyncSender<()>),
}

/// The writing end.
#[derive(Debug)]
pub struct Store {
    queue: Option<SyncSender<Op>>,
    /// A change was lost: what is written is not what holds.
    behind: bool,
    errors: Arc<AtomicU64>,
    failed: Arc<AtomicBool>,
    /// Why the last transaction failed; `None`: it did not.
    problem: Arc<Mutex<Option<String>>>,
}

impl Store {
    /// A store that keeps nothing.
    pub fn none() -> Store {
        Store { queue: None, behind: false, errors: Arc::default(), failed: Arc::default(), problem: Arc::default() }
    }

    /// Opens the store in `directory` (`None`: nothing is kept) and reads what is there.
    pub fn open(directory: Option<&Path>) -> (Store, Saved) {
        let Some(directory) = directory else { return (Store::none(), Saved::default()) };
        match try_open(directory) {
            Ok((database, saved)) => {
                let (queue, inbox) = sync_channel(QUEUE);
                let store = Store { queue: Some(queue), ..Store::none() };
                let writer = Writer {
                    database: Some(database),
                    path: directory.join(FILE),
                    errors: store.errors.clone(),
                    failed: store.failed.clone(),
                    problem: store.problem.clone(),
                    said: None,
                    failed_at: None,
                };
                match std::thread::Builder::new().name("sensor-store".to_owned()).spawn(move || writer.run(&inbox)) {
                    Ok(_) => (store, saved),
                    Err(error) => {
                        tracing::error!("cannot start the thread that keeps the state: {error}; nothing is kept");
                        (Store::none(), saved)
                    }
                }
            }
            Err(error) => {
                tracing::error!(
                    "no state is kept over a restart (agent.state_dir = {}): {error:#}",
                    directory.display()
                );
                (Store::none(), Saved::default())
            }
        }
    }

    /// Keeps a verdict.
    pub fn verdict(&mut self, verdict: &Verdict) {
        if self.queue.is_some() {
            self.send(Op::Verdict(Box::new(verdict.clone())));
        }
    }

    /// Forgets a verdict.
    pub fn no_verdict(&mut self, id: u64) {
        self.send(Op::NoVerdict(id));
    }

    /// Keeps a never-drop entry, if it is an operator's: all others are found anew at each start.
    pub fn allow(&mut self, entry: &allow::Entry) {
        if entry.why == Why::Operator {
            self.send(Op::Allow(Box::new(entry.clone())));
        }
    }

    /// Forgets a never-drop entry of an operator.
    pub fn no_allow(&mut self, item: &Item) {
        self.send(Op::NoAllow(item.to_string()));
    }

    /// Keeps mode, breaker and numbers.
    pub fn state(&mut self, state: State) {
        self.send(Op::State(Box::new(state)));
    }

    /// Whether changes were lost, so that [`Store::replace`] is due.
    pub fn is_behind(&self) -> bool {
        self.queue.is_some() && (self.behind || self.failed.load(Ordering::Relaxed))
    }

    /// Why what changed last is not on the disk and would not survive a restart; `None`: it is, or is about to be.
    pub fn problem(&self) -> Option<String> {
        self.problem.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }

    /// Writes everything anew.
    pub fn replace<'a>(
        &mut self,
        verdicts: impl Iterator<Item = &'a Verdict>,
        allowed: impl Iterator<Item = &'a allow::Entry>,
        state: State,
    ) {
        let allowed = allowed.filter(|entry| entry.why == Why::Operator).cloned().collect();
        self.failed.store(false, Ordering::Relaxed);
        self.behind = false;
        self.send(Op::Replace(verdicts.cloned().collect(), allowed));
        self.send(Op::State(Box::new(state)));
    }

    /// Waits until all is on the disk, or until `limit` is over; whether it is.
    pub fn flush(&mut self, limit: Duration) -> bool {
        let Some(queue) = &self.queue else { return true };
        let (done, answer) = sync_channel(1);
        let deadline = Instant::now() + limit;
        let mut op = Op::Flush(done);
        loop {
            match queue.try_send(op) {
                Ok(()) => break,
                Err(TrySendError::Full(back)) if Instant::now() < deadline => {
                    op = back;
                    std::thread::sleep(Duration::from_millis(5));
                }
                Err(_) => return false,
            }
        }
        answer.recv_timeout(deadline.saturating_duration_since(Instant::now())).is_ok() && !self.is_behind()
    }

    /// Transactions that failed, and changes that found the queue full.
    pub fn errors(&self) -> u64 {
        self.errors.load(Ordering::Relaxed)
    }

    fn send(&mut self, op: Op) {
        if let Some(queue) = &self.queue
            && queue.try_send(op).is_err()
        {
            self.behind = true;
            self.errors.fetch_add(1, Ordering::Relaxed);
        }
    }
}

struct Writer {
    /// `None`: a transaction failed. The library refuses every further one after an error of the disk, until the file is
    /// opened anew.
    database: Option<Database>,
    path: PathBuf,
    errors: Arc<AtomicU64>,
    failed: Arc<AtomicBool>,
    problem: Arc<Mutex<Option<String>>>,
    /// When it was last said that a transaction failed, and when one did.
    said: Option<Instant>,
    failed_at: Option<Instant>,
}

impl Writer {
    fn run(mut self, inbox: &Receiver<Op>) {
        while let Ok(first) = inbox.recv() {
            let mut ops = vec![first];
            while ops.len() < BATCH && !matches!(ops.last(), Some(Op::Flush(_))) {
                let Ok(op) = inbox.try_recv() else { break };
                ops.push(op);
            }
            let done = match ops.last() {
                Some(Op::Flush(done)) => Some(done.clone()),
                _ => None,
            };
            let result = self.write(ops);
            self.note(result);
            match done {
                // Nobody may wait any more.
                Some(done) => drop(done.try_send(())),
                None => std::thread::sleep(PAUSE),
            }
        }
    }

    /// What came of a transaction. After a failure all is written anew ([`Store::replace`]), so nothing is lost once the
    /// disk takes it again.
    fn note(&mut self, result: Result<()>) {
        let mut problem = self.problem.lock().unwrap_or_else(PoisonError::into_inner);
        match result {
            // A transaction that went well before all was written anew does not hold what was lost.
            Ok(()) if self.failed.load(Ordering::Relaxed) => {}
            Ok(()) => {
                *problem = None;
                // On a disk that is nearly full, small transactions go well between others that do not.
                if self.failed_at.is_some_and(|at| at.elapsed() >= RECOVERED) {
                    tracing::info!("the state is written again, whole");
                    (self.said, self.failed_at) = (None, None);
                }
            }
            Err(error) => {
                self.database = None;
                self.failed.store(true, Ordering::Relaxed);
                self.errors.fetch_add(1, Ordering::Relaxed);
                let text = format!("{error:#}");
                self.failed_at = Some(Instant::now());
                if self.said.is_none_or(|last| last.elapsed() >= SAID_AGAIN) {
                    tracing::error!(
                        "the state could not be written to {}: {text}. Changes of verdicts, mode and never-drop list do not \
                         survive a restart until it can; that is tried once a second",
                        self.path.display()
                    );
                    self.said = Some(Instant::now());
                }
                *problem = Some(text);
            }
        }
    }

    fn write(&mut self, ops: Vec<Op>) -> Result<()> {
        let database = match self.database.take() {
            Some(database) => database,
            None => match read_or_make(&self.path) {
                Ok((database, _)) => database,
                Err(Refused::Busy(error) | Refused::Damaged(error)) => return Err(error),
            },
        };
        let transaction = database.begin_write()?;
        {
            let mut meta = transaction.open_table(META)?;
            let mut verdicts = transaction.open_table(VERDICTS)?;
            let mut allowed = transaction.open_table(ALLOWED)?;
            for op in ops {
                match op {
                    Op::Verdict(verdict) => {
                        verdicts.insert(verdict.id, serde_json::to_vec(&verdict)?.as_slice())?;
                    }
                    Op::NoVerdict(id) => drop(verdicts.remove(id)?),
                    Op::Allow(entry) => {
                        allowed.insert(entry.item.to_string().as_str(), serde_json::to_vec(&entry)?.as_slice())?;
                    }
                    Op::NoAllow(item) => drop(allowed.remove(item.as_str())?),
                    Op::State(state) => drop(meta.insert("state", serde_json::to_vec(&state)?.as_slice())?),
                    Op::Replace(all, entries) => {
                        verdicts.retain(|_, _| false)?;
                        allowed.retain(|_, _| false)?;
                        for verdict in all {
                            verdicts.insert(verdict.id, serde_json::to_vec(&verdict)?.as_slice())?;
                        }
                        for entry in entries {
                            allowed.insert(entry.item.to_string().as_str(), serde_json::to_vec(&entry)?.as_slice())?;
                        }
                    }
                    Op::Flush(_) => {}
                }
            }
        }
        transaction.commit()?;
        self.database = Some(database);
        Ok(())
    }
}

fn try_open(directory: &Path) -> Result<(Database, Saved)> {
    DirBuilder::new()
        .recursive(true)
        .mode(0o750)
        .create(directory)
        .with_context(|| format!("cannot create {}", directory.display()))?;
    let path = directory.join(FILE);
    match read_or_make(&path) {
        Ok(opened) => Ok(opened),
        Err(Refused::Busy(error)) => Err(error),
        Err(Refused::Damaged(error)) => {
            let aside = set_aside(&path)?;
            tracing::error!(
                "the kept state cannot be used: {error:#}; it is now {}, and the agent starts without it",
                aside.display()
            );
            read_or_make(&path).map_err(|refused| match refused {
                Refused::Busy(error) | Refused::Damaged(error) => error,
            })
        }
    }
}

enum Refused {
    /// It may be sound, but not for us.
    Busy(anyhow::Error),
    Damaged(anyhow::Error),
}

fn read_or_make(path: &Path) -> Result<(Database, Saved), Refused> {
    let file = OpenOptions::new().read(true).write(true).create(true).truncate(false).mode(0o640).open(path);
    file.with_context(|| format!("cannot open {}", path.display())).map_err(Refused::Busy)?;
    let deadline = Instant::now() + HELD;
    loop {
        // On a thread of its own: what a damaged file makes the library panic about must not take the agent along.
        let opening = {
            let path = path.to_owned();
            std::thread::Builder::new().name("sensor-store".to_owned()).spawn(move || open(&path))
        };
        let opening = opening.context("cannot start a thread").map_err(Refused::Busy)?;
        return match opening.join() {
            Ok(Err(Refused::Busy(_))) if Instant::now() < deadline => {
                std::thread::sleep(Duration::from_millis(50));
                continue;
            }
            Ok(result) => result,
            Err(_) => Err(Refused::Damaged(anyhow!("{} is damaged", path.display()))),
        };
    }
}

fn open(path: &Path) -> Result<(Database, Saved), Refused> {
    let database = match Database::create(path) {
        Ok(database) => database,
        Err(redb::DatabaseError::DatabaseAlreadyOpen) => {
            return Err(Refused::Busy(anyhow!("another agent uses {}", path.display())));
        }
        Err(error) => return Err(Refused::Damaged(anyhow!(error).context(format!("{}", path.display())))),
    };
    match read(&database) {
        Ok(saved) => Ok((database, saved)),
        Err(error) => Err(Refused::Damaged(error.context(format!("{}", path.display())))),
    }
}

fn read(database: &Database) -> Result<Saved> {
    let transaction = database.begin_write()?;
    {
        let mut meta = transaction.open_table(META)?;
        let version = meta.get("version")?.map(|value| value.value().to_vec());
        match version {
            None => drop(meta.insert("version", VERSION.to_le_bytes().as_slice())?),
            Some(found) => ensure!(found == VERSION.to_le_bytes(), "it was written by another version of the agent"),
        }
        transaction.open_table(VERDICTS)?;
        transaction.open_table(ALLOWED)?;
    }
    transaction.commit()?;
    let transaction = database.begin_read()?;
    let mut saved = Saved::default();
    if let Some(state) = transaction.open_table(META)?.get("state")? {
        saved.state = serde_json::from_slice(state.value()).context("its state")?;
    }
    let mut unread = 0;
    for row in transaction.open_table(VERDICTS)?.iter()? {
        let (id, value) = row?;
        match serde_json::from_slice(value.value()) {
            Ok(verdict) => saved.verdicts.push(verdict),
            Err(error) => skipped(&mut unread, &format!("verdict {}", id.value()), &error),
        }
    }
    for row in transaction.open_table(ALLOWED)?.iter()? {
        let (item, value) = row?;
        match serde_json::from_slice(value.value()) {
            Ok(entry) => saved.allowed.push(entry),
            Err(error) => skipped(&mut unread, &format!("never-drop entry {}", item.value()), &error),
        }
    }
    if unread > LOGGED {
        tracing::error!("{unread} rows of the kept state cannot be read");
    }
    Ok(saved)
}

/// One row that cannot be read costs no other.
fn skipped(unread: &mut u32, row: &str, error: &serde_json::Error) {
    *unread += 1;
    if *unread <= LOGGED {
        tracing::error!("{row} in the kept state cannot be read and is left out: {error}");
    }
}

/// Renames a file that cannot be used, so that somebody can look at it.
fn set_aside(path: &Path) -> Result<PathBuf> {
    let free = (1..=9).map(|number| path.with_extension(format!("redb.damaged.{number}")));
    let aside = free.clone().find(|name| !name.exists()).unwrap_or_else(|| path.with_extension("redb.damaged.9"));
    fs::rename(path, &aside).with_context(|| format!("cannot rename {}", path.display()))?;
    Ok(aside)
}

#[cfg(test)]
mod tests;
