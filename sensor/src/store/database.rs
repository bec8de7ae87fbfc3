//! The database: its tables, and rows that carry a checksum of their own. The library's are looked at after a crash
//! only, and a bit that flipped must not make a verdict on somebody else.

use std::fs::OpenOptions;
use std::io::{self, ErrorKind};
use std::os::unix::fs::OpenOptionsExt as _;
use std::path::Path;
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, anyhow, ensure};
use redb::{
    Database, DatabaseError, ReadableDatabase as _, ReadableTable as _, StorageError, TableDefinition, TableError,
    WriteTransaction,
};
use serde::de::DeserializeOwned;
use serde::{Deserialize, Serialize};
use sha2::{Digest as _, Sha256};

use super::{Op, State};
use crate::allow::Entry;
use crate::verdicts::Verdict;

/// The file under `agent.state_dir`.
pub(super) const FILE: &str = "state.redb";
/// Moves on when the tables change their meaning; a store of another version is set aside.
const VERSION: u64 = 1;
const META: TableDefinition<'_, &str, &[u8]> = TableDefinition::new("meta");
const VERDICTS: TableDefinition<'_, u64, &[u8]> = TableDefinition::new("verdicts");
const ALLOWED: TableDefinition<'_, &str, &[u8]> = TableDefinition::new("allowed");
const STATE: &str = "state";
/// Rows that cannot be read and are logged one by one.
const LOGGED: u32 = 5;
/// How long another agent that stops right now may still hold the file.
const HELD: Duration = Duration::from_secs(3);
/// The first byte of a row with a checksum. JSON, which rows without one are, does not begin so.
const SEALED: u8 = 1;
/// Bytes of a row's checksum.
const SUM: usize = 8;

/// What is kept beside verdicts and never-drop entries.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(default)]
pub(super) struct Head {
    #[serde(flatten)]
    pub(super) state: State,
    /// Number of the last change of the settings.
    pub(super) sequence: u64,
    /// Of the last one that was known to be in the file for people.
    pub(super) in_file: u64,
}

/// All that is there.
#[derive(Debug, Default)]
pub(super) struct Rows {
    pub(super) head: Head,
    /// Ended ones among them.
    pub(super) verdicts: Vec<Verdict>,
    pub(super) allowed: Vec<Entry>,
    /// Rows that cannot be read.
    pub(super) unread: u32,
}

impl Rows {
    /// One row that cannot be read costs no other.
    fn skipped(&mut self, row: &str, error: &anyhow::Error) {
        self.unread += 1;
        if self.unread <= LOGGED {
            tracing::error!("{row} in the kept state cannot be read and is left out: {error:#}");
        }
    }
}

pub(super) enum Refused {
    /// It may be sound, but not for us.
    Busy(anyhow::Error),
    Damaged(anyhow::Error),
}

/// Opens the database, and reads it; makes it, if there is none.
pub(super) fn read_or_make(path: &Path) -> Result<(Database, Rows), Refused> {
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

pub(super) fn open(path: &Path) -> Result<(Database, Rows), Refused> {
    let database = match Database::create(path) {
        Ok(database) => database,
        Err(redb::DatabaseError::DatabaseAlreadyOpen) => {
            return Err(Refused::Busy(anyhow!("another agent uses {}", path.display())));
        }
        Err(error) => return Err(refused(anyhow!(error).context(format!("{}", path.display())))),
    };
    match read(&database) {
        Ok(saved) => Ok((database, saved)),
        Err(error) => Err(refused(error.context(format!("{}", path.display())))),
    }
}

/// A disk that is full, or that fails, says nothing about what is in the file.
fn refused(error: anyhow::Error) -> Refused {
    let of_disk = |error: &io::Error| !matches!(error.kind(), ErrorKind::InvalidData | ErrorKind::UnexpectedEof);
    let of_disk = |cause: &(dyn std::error::Error + 'static)| match cause.downcast_ref::<StorageError>() {
        Some(StorageError::Io(error)) => of_disk(error),
        Some(StorageError::PreviousIo) => true,
        _ => cause.downcast_ref().is_some_and(of_disk),
    };
    let storage = |cause: &(dyn std::error::Error + 'static)| match cause.downcast_ref::<DatabaseError>() {
        Some(DatabaseError::Storage(error)) => of_disk(error),
        _ => of_disk(cause),
    };
    if error.chain().any(storage) { Refused::Busy(error) } else { Refused::Damaged(error) }
}

fn read(database: &Database) -> Result<Rows> {
    if !is_marked(database)? {
        mark(database)?;
    }
    let transaction = database.begin_read()?;
    let mut rows = Rows::default();
    if let Some(state) = transaction.open_table(META)?.get(STATE)? {
        // The mode is in it: without it nothing is known.
        rows.head = unseal(state.value()).context("its state")?;
    }
    for row in transaction.open_table(VERDICTS)?.iter()? {
        let (id, value) = row?;
        match unseal(value.value()).and_then(|verdict: Verdict| same(verdict.id == id.value(), verdict)) {
            Ok(verdict) => rows.verdicts.push(verdict),
            Err(error) => rows.skipped(&format!("verdict {}", id.value()), &error),
        }
    }
    for row in transaction.open_table(ALLOWED)?.iter()? {
        let (item, value) = row?;
        match unseal(value.value()).and_then(|entry: Entry| same(entry.item.to_string() == item.value(), entry)) {
            Ok(entry) => rows.allowed.push(entry),
            Err(error) => rows.skipped(&format!("never-drop entry {}", item.value()), &error),
        }
    }
    if rows.unread > LOGGED {
        tracing::error!("{} rows of the kept state cannot be read", rows.unread);
    }
    Ok(rows)
}

/// Whether its tables are there. A full disk can be read, but not written.
///
/// # Errors
/// They are of another version.
fn is_marked(database: &Database) -> Result<bool> {
    let meta = match database.begin_read()?.open_table(META) {
        Ok(meta) => meta,
        Err(TableError::TableDoesNotExist(_)) => return Ok(false),
        Err(error) => return Err(error.into()),
    };
    let Some(found) = meta.get("version")? else { return Ok(false) };
    ensure!(found.value() == VERSION.to_le_bytes(), "it was written by another version of the agent");
    Ok(true)
}

fn mark(database: &Database) -> Result<()> {
    let transaction = database.begin_write()?;
    transaction.open_table(META)?.insert("version", VERSION.to_le_bytes().as_slice())?;
    transaction.open_table(VERDICTS)?;
    transaction.open_table(ALLOWED)?;
    Ok(transaction.commit()?)
}

fn same<T>(same: bool, row: T) -> Result<T> {
    ensure!(same, "it stands in the place of another");
    Ok(row)
}

/// Writes changes into a transaction, and what else is kept as it is after them.
pub(super) fn write(transaction: &WriteTransaction, ops: &[Op], head: &Head) -> Result<()> {
    let mut meta = transaction.open_table(META)?;
    let mut verdicts = transaction.open_table(VERDICTS)?;
    let mut allowed = transaction.open_table(ALLOWED)?;
    for op in ops {
        match op {
            Op::Verdict(verdict) => drop(verdicts.insert(verdict.id, seal(verdict)?.as_slice())?),
            Op::NoVerdict(id) => drop(verdicts.remove(id)?),
            Op::Allow(entry) => drop(allowed.insert(entry.item.to_string().as_str(), seal(entry)?.as_slice())?),
            Op::NoAllow(item) => drop(allowed.remove(item.as_str())?),
            Op::Replace(all, entries) => {
                verdicts.retain(|_, _| false)?;
                allowed.retain(|_, _| false)?;
                for verdict in all {
                    verdicts.insert(verdict.id, seal(verdict)?.as_slice())?;
                }
                for entry in entries {
                    allowed.insert(entry.item.to_string().as_str(), seal(entry)?.as_slice())?;
                }
            }
            Op::State(_) | Op::Flush(_) | Op::Confirm(_) => {}
        }
    }
    meta.insert(STATE, seal(head)?.as_slice())?;
    Ok(())
}

fn sum(json: &[u8]) -> [u8; SUM] {
    let digest = Sha256::digest(json);
    std::array::from_fn(|byte| digest[byte])
}

pub(super) fn seal(row: &impl Serialize) -> Result<Vec<u8>> {
    let json = serde_json::to_vec(row)?;
    Ok([&[SEALED][..], &sum(&json), &json].concat())
}

fn unseal<T: DeserializeOwned>(row: &[u8]) -> Result<T> {
    let json = match row {
        [SEALED, rest @ ..] => {
            let (found, json) = rest.split_at_checked(SUM).context("it is cut off")?;
            ensure!(found == sum(json), "it is damaged");
            json
        }
        // Of an agent before rows had one.
        [b'{' | b'"', ..] => row,
        _ => return Err(anyhow!("it is damaged")),
    };
    Ok(serde_json::from_slice(json)?)
}
