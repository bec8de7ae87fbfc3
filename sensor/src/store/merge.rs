//! Which of the two files holds, and what is made of damage.
//!
//! Each change of mode, never-drop list or breaker has a number, which both files carry; each also says which number it
//! last knew to be in the other. So the later one holds, one that lost what it once had is known for it, and a start
//! after any damage is one in mode observe, with every never-drop entry that can be read.

use std::fs::{self, DirBuilder};
use std::os::unix::fs::DirBuilderExt as _;
use std::path::{Path, PathBuf};

use anyhow::{Context as _, Result};
use redb::Database;

use super::database::{self, Refused, Rows};
use super::settings::{self, Found, Settings};
use super::{Doubt, Saved, State};

/// What a start finds.
pub(super) struct Opened {
    pub(super) saved: Saved,
    pub(super) writer: Beginning,
}

/// What the writer begins with.
pub(super) struct Beginning {
    /// `None`: it is opened later.
    pub(super) database: Option<Database>,
    pub(super) directory: PathBuf,
    pub(super) settings: Settings,
    /// Number of the last change that is in the file, and in the database.
    pub(super) in_file: u64,
    pub(super) in_database: u64,
    /// All is to be written anew.
    pub(super) is_stale: bool,
    /// Why nothing can be kept.
    pub(super) problem: Option<String>,
}

/// Opens both files under `directory`.
pub(super) fn open(directory: &Path) -> Opened {
    let (mut database, mut problem, mut unread) = (None, None, false);
    let rows = match open_database(directory) {
        Ok((opened, rows)) => {
            database = Some(opened);
            rows
        }
        Err(error) => {
            problem = Some(format!("{error:#}"));
            // A disk that is full says nothing of what is in the file; whatever else keeps it shut may hide later
            // changes.
            unread = !is_full(&error);
            Found::Absent
        }
    };
    let file = settings::read(directory);
    if let Found::Damaged(text) = &file {
        aside(&directory.join(settings::FILE), text);
    }
    let in_file = if let Found::Sound(settings) = &file { settings.sequence } else { 0 };
    let in_database = if let Found::Sound(rows) = &rows { rows.head.sequence } else { 0 };
    // A database that cannot be opened now may be sound.
    let had_one = matches!(&file, Found::Sound(settings) if settings.has_database);
    let (file, rows) = match rows {
        Found::Absent if unread && had_one => {
            let text = format!("{} cannot be opened: {}", database::FILE, problem.as_deref().unwrap_or_default());
            (file, Found::Damaged(text))
        }
        rows => (file, rows),
    };
    let (saved, settings, doubts) = merge(file, rows, problem.is_none());
    for doubt in &doubts {
        tracing::error!("what was kept is not whole: {doubt}");
    }
    let is_stale = problem.is_some() || !doubts.is_empty() || in_file != in_database;
    let directory = directory.to_owned();
    Opened { saved, writer: Beginning { database, directory, settings, in_file, in_database, is_stale, problem } }
}

/// What holds of both, the same for the file, and what speaks against trusting it. `opened`: the database could be
/// looked at.
pub(super) fn merge(file: Found<Settings>, rows: Found<Rows>, opened: bool) -> (Saved, Settings, Vec<String>) {
    let mut doubts = Vec::new();
    let mut part = |found: String| doubts.push(found);
    let file = match file {
        Found::Absent => None,
        Found::Sound(settings) => Some(settings),
        Found::Damaged(text) => {
            part(text);
            None
        }
    };
    let (rows, is_there) = match rows {
        Found::Absent => (Rows::default(), false),
        Found::Sound(rows) => (rows, true),
        Found::Damaged(text) => {
            part(text);
            (Rows::default(), false)
        }
    };
    let Rows { head, verdicts, allowed, unread } = rows;
    if unread > 0 {
        part(format!("{unread} rows of {} cannot be read", database::FILE));
    }
    let known = file.as_ref().map_or(0, |file| file.sequence);
    if head.in_file > known && doubts.is_empty() {
        doubts.push(format!("{} is gone, or older than it was", settings::FILE));
    }
    if let Some(file) = &file
        && opened
        && (file.in_database > head.sequence || file.has_database && !is_there)
        && doubts.is_empty()
    {
        doubts.push(format!("{} is gone, or older than it was", database::FILE));
    }
    let mut of_rows = Settings { sequence: head.sequence, allowed, ..Settings::default() };
    of_rows.set_state(head.state);
    if let Some(file) = &file
        && is_there
        && file.sequence == of_rows.sequence
        && of_rows.sequence > 0
        && !file.means(&of_rows)
        && doubts.is_empty()
    {
        doubts.push(format!("{} and {} say different things", settings::FILE, database::FILE));
    }
    let (mut holds, other) = match file {
        Some(file) if file.sequence >= of_rows.sequence => (file, of_rows),
        Some(file) => (of_rows, file),
        None => (of_rows, Settings::default()),
    };
    holds.next_id = holds.next_id.max(other.next_id);
    holds.sequence = holds.sequence.max(other.sequence);
    if !doubts.is_empty() {
        // Whatever one of them protects is protected, and an open breaker stays open.
        let more = other.allowed.into_iter().filter(|entry| holds.allowed.iter().all(|one| one.item != entry.item));
        let more: Vec<_> = more.collect();
        holds.allowed.extend(more);
        holds.trip = holds.trip.or(other.trip);
        (holds.mode, holds.enforced_ms) = (None, None);
        holds.doubt = Some(Doubt { text: doubts.join("; "), configured: None });
    }
    let saved = Saved { state: State { ..holds.state() }, verdicts, allowed: holds.allowed.clone() };
    (saved, holds, doubts)
}

/// # Errors
/// It cannot be opened now, which says nothing about what is in it.
fn open_database(directory: &Path) -> Result<(Database, Found<Rows>)> {
    DirBuilder::new()
        .recursive(true)
        .mode(0o750)
        .create(directory)
        .with_context(|| format!("cannot create {}", directory.display()))?;
    let path = directory.join(database::FILE);
    let is_there = path.metadata().is_ok_and(|about| about.len() > 0);
    let plain = |refused| match refused {
        Refused::Busy(error) | Refused::Damaged(error) => error,
    };
    match database::read_or_make(&path) {
        Ok((database, rows)) if is_there => Ok((database, Found::Sound(rows))),
        Ok((database, _)) => Ok((database, Found::Absent)),
        Err(Refused::Busy(error)) => Err(error),
        Err(Refused::Damaged(error)) => {
            let text = format!("{} cannot be used: {error:#}", database::FILE);
            aside(&path, &text);
            let (database, _) = database::read_or_make(&path).map_err(plain)?;
            Ok((database, Found::Damaged(text)))
        }
    }
}

fn is_full(error: &anyhow::Error) -> bool {
    let full = |error: &std::io::Error| {
        matches!(error.kind(), std::io::ErrorKind::StorageFull | std::io::ErrorKind::QuotaExceeded)
    };
    error.chain().any(|cause| {
        let storage = match cause.downcast_ref::<redb::DatabaseError>() {
            Some(redb::DatabaseError::Storage(error)) => Some(error),
            _ => cause.downcast_ref::<redb::StorageError>(),
        };
        let inner = match storage {
            Some(redb::StorageError::Io(error)) => Some(error),
            _ => cause.downcast_ref(),
        };
        inner.is_some_and(full)
    })
}

/// Renames a file that cannot be used, so that somebody can look at it.
pub(super) fn aside(path: &Path, why: &str) {
    let name = |number: u32| {
        let mut name = path.as_os_str().to_owned();
        name.push(format!(".damaged.{number}"));
        PathBuf::from(name)
    };
    let free = (1..=9).map(name).find(|name| !name.exists()).unwrap_or_else(|| name(9));
    match fs::rename(path, &free) {
        Ok(()) => {
            tracing::error!(
                "the kept state cannot be used: {why}; it is now {}, and the agent starts without it",
                free.display()
            );
        }
        Err(error) => tracing::error!("the kept state cannot be used: {why}; it cannot be renamed: {error}"),
    }
}
