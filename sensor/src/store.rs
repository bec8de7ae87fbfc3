//! What survives a restart: verdicts, the operators' never-drop entries, the mode, the breaker. An embedded database (redb:
//! copy on write, one writer) under `agent.state_dir`, and beside it a file for people that has all but the verdicts.
//!
//! Invariants: whoever calls never waits for the disk (a thread of its own, [`writer`], with a bounded queue; if that
//! is full, the next [`Store::replace`] makes good); what is damaged, gone or of another version is set aside, with a
//! log line, and never keeps the agent from running. After that it begins in mode observe, whatever it was in
//! ([`merge`]). A change that reached neither file is told to whoever asked for it ([`Store::confirm`]). Called by the
//! poll thread.
//!
//! The parts: [`database`] (verdicts and the rest), [`settings`] (the file for people), [`merge`] (which of them
//! holds).

mod database;
mod merge;
mod settings;
mod writer;

use std::path::Path;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::mpsc::{SyncSender, TrySendError, sync_channel};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use serde::{Deserialize, Serialize};
use tokio::sync::oneshot;

use self::merge::Opened;
pub(crate) use self::settings::doubt_in;
use self::writer::Writer;

use crate::allow::item::Item;
use crate::allow::{self, Why};
use crate::breaker::Trip;
use crate::config::Mode;
use crate::verdicts::Verdict;

/// Changes that may wait.
const QUEUE: usize = 32_768;

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
    /// Why the agent stays in mode observe; it ends with the next change of the mode.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub doubt: Option<Doubt>,
}

/// What was kept is damaged, so it is not known what was wanted.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Doubt {
    /// What was found.
    pub text: String,
    /// The mode of the configuration then: if that has changed since, somebody has decided. `None` until the agent has
    /// seen it.
    pub configured: Option<Mode>,
}

/// What did not reach the disk, and why.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Unkept {
    /// Mode, never-drop list, breaker: both files.
    pub settings: Option<String>,
    /// Verdicts.
    pub verdicts: Option<String>,
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
    Confirm(oneshot::Sender<Unkept>),
}

impl Op {
    /// Somebody waits for what is written up to here.
    fn is_awaited(&self) -> bool {
        matches!(self, Op::Flush(_) | Op::Confirm(_))
    }
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
        let Opened { saved, writer } = merge::open(directory);
        let (queue, inbox) = sync_channel(QUEUE);
        let store = Store { queue: Some(queue), ..Store::none() };
        if let Some(problem) = &writer.problem {
            tracing::error!("no state is kept yet (agent.state_dir = {}): {problem}", directory.display());
        }
        *store.problem.lock().unwrap_or_else(PoisonError::into_inner) = writer.problem.clone();
        // What is there does not say all: it is written anew.
        store.failed.store(writer.is_stale, Ordering::Relaxed);
        let writer = Writer::new(writer, &store);
        match std::thread::Builder::new().name("sensor-store".to_owned()).spawn(move || writer.run(&inbox)) {
            Ok(_) => (store, saved),
            Err(error) => {
                tracing::error!("cannot start the thread that keeps the state: {error}; nothing is kept");
                let problem = Arc::new(Mutex::new(Some(format!("no thread: {error}"))));
                (Store { problem, ..Store::none() }, saved)
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

    /// Has it said whether all changes up to now are on the disk; whoever waits does so for a while only.
    pub fn confirm(&mut self, reply: oneshot::Sender<Unkept>) {
        if self.queue.is_some() {
            self.send(Op::Confirm(reply));
        } else {
            let problem = self.problem();
            // Nobody may wait any more.
            let _ = reply.send(Unkept { settings: problem.clone(), verdicts: problem });
        }
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

#[cfg(test)]
mod tests;
