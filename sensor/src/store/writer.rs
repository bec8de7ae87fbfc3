//! The thread that writes: changes of a while are one transaction, and one replacement of the file for people.

use std::path::PathBuf;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::mpsc::{Receiver, RecvTimeoutError};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use anyhow::Result;
use redb::Database;

use super::database::{self, Head, Refused};
use super::merge::Beginning;
use super::settings::Settings;
use super::{Op, Store, Unkept, merge};

/// Changes in one transaction.
const BATCH: usize = 8_192;
/// Time between two transactions that nobody waits for, so that a flood of verdicts does not become one of disk
/// flushes.
const PAUSE: Duration = Duration::from_millis(200);
/// Time between two messages that the state cannot be written: a full disk may stay full for hours.
const SAID_AGAIN: Duration = Duration::from_secs(300);
/// Time without a failure after which the disk is said to take the state again.
const RECOVERED: Duration = Duration::from_secs(10);

pub(super) struct Writer {
    /// `None`: a transaction failed. The library refuses every further one after an error of the disk, until the file
    /// is opened anew.
    pub(super) database: Option<Database>,
    directory: PathBuf,
    settings: Settings,
    /// What the file for people said when it was written last.
    written: Option<Settings>,
    in_file: u64,
    in_database: u64,
    errors: Arc<AtomicU64>,
    pub(super) failed: Arc<AtomicBool>,
    pub(super) problem: Arc<Mutex<Option<String>>>,
    /// When it was last said that a write failed, and when one did.
    said: Option<Instant>,
    failed_at: Option<Instant>,
}

impl Writer {
    pub(super) fn new(beginning: Beginning, store: &Store) -> Writer {
        let Beginning { database, directory, settings, in_file, in_database, is_stale: _, problem: _ } = beginning;
        Writer {
            database,
            directory,
            settings,
            written: None,
            in_file,
            in_database,
            errors: store.errors.clone(),
            failed: store.failed.clone(),
            problem: store.problem.clone(),
            said: None,
            failed_at: None,
        }
    }

    pub(super) fn run(mut self, inbox: &Receiver<Op>) {
        while let Ok(first) = inbox.recv() {
            let mut ops = vec![first];
            let until = Instant::now() + PAUSE;
            while ops.len() < BATCH && !ops.last().is_some_and(Op::is_awaited) {
                match inbox.recv_timeout(until.saturating_duration_since(Instant::now())) {
                    Ok(op) => ops.push(op),
                    Err(RecvTimeoutError::Timeout | RecvTimeoutError::Disconnected) => break,
                }
            }
            let unkept = self.write(&ops);
            // Nobody may wait any more.
            match ops.pop() {
                Some(Op::Flush(done)) => drop(done.try_send(())),
                Some(Op::Confirm(reply)) => drop(reply.send(unkept)),
                _ => {}
            }
        }
    }

    /// Writes changes, and says what came of it.
    pub(super) fn write(&mut self, ops: &[Op]) -> Unkept {
        for op in ops {
            self.take(op);
        }
        let file = self.write_file();
        let database = self.write_database(ops);
        let text = |result: &Result<()>| result.as_ref().err().map(|error| format!("{error:#}"));
        let (in_file, in_database) = (text(&file), text(&database));
        self.note(file.and(database));
        // One of the two is enough for what both have.
        Unkept { settings: in_file.and(in_database.clone()), verdicts: in_database }
    }

    /// The settings follow.
    fn take(&mut self, op: &Op) {
        let allowed = &mut self.settings.allowed;
        match op {
            Op::Allow(entry) => {
                allowed.retain(|one| one.item != entry.item);
                allowed.push((**entry).clone());
            }
            Op::NoAllow(item) => allowed.retain(|one| one.item.to_string() != *item),
            Op::Replace(_, entries) => allowed.clone_from(entries),
            Op::State(state) => self.settings.set_state((**state).clone()),
            Op::Verdict(_) | Op::NoVerdict(_) | Op::Flush(_) | Op::Confirm(_) => {}
        }
    }

    fn write_file(&mut self) -> Result<()> {
        if self.written.as_ref().is_some_and(|written| written.means(&self.settings)) {
            return Ok(());
        }
        self.settings.sequence += 1;
        self.settings.in_database = self.in_database;
        self.settings.has_database = self.database.is_some();
        self.settings.write(&self.directory)?;
        self.in_file = self.settings.sequence;
        self.written = Some(self.settings.clone());
        Ok(())
    }

    fn write_database(&mut self, ops: &[Op]) -> Result<()> {
        let database = match self.database.take() {
            Some(database) => database,
            None => self.open()?,
        };
        let transaction = database.begin_write()?;
        let head = Head { state: self.settings.state(), sequence: self.settings.sequence, in_file: self.in_file };
        database::write(&transaction, ops, &head)?;
        transaction.commit()?;
        self.in_database = head.sequence;
        self.database = Some(database);
        Ok(())
    }

    /// Opens the database anew. All is written anew after a failure, so what cannot be used is set aside.
    fn open(&self) -> Result<Database> {
        let path = self.directory.join(database::FILE);
        match database::read_or_make(&path) {
            Ok((database, _)) => Ok(database),
            Err(Refused::Busy(error)) => Err(error),
            Err(Refused::Damaged(error)) => {
                merge::aside(&path, &format!("{error:#}"));
                Err(error)
            }
        }
    }

    /// What came of it. After a failure all is written anew ([`Store::replace`]), so nothing is lost once the disk
    /// takes it again.
    fn note(&mut self, result: Result<()>) {
        let mut problem = self.problem.lock().unwrap_or_else(PoisonError::into_inner);
        match result {
            // What went well before all was written anew does not hold what was lost.
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
                self.failed.store(true, Ordering::Relaxed);
                self.errors.fetch_add(1, Ordering::Relaxed);
                let text = format!("{error:#}");
                self.failed_at = Some(Instant::now());
                if self.said.is_none_or(|last| last.elapsed() >= SAID_AGAIN) {
                    tracing::error!(
                        "the state could not be written to {}: {text}. Changes of verdicts, mode and never-drop list may not \
                         survive a restart until it can; that is tried once a second",
                        self.directory.display()
                    );
                    self.said = Some(Instant::now());
                }
                *problem = Some(text);
            }
        }
    }
}
