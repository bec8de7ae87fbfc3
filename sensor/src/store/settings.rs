//! The file for people: mode, never-drop list and breaker, as TOML under a line with their checksum.
//!
//! Invariant: it is replaced whole or not at all (another file, flushed, renamed), and a bit that flipped in it is
//! noticed.

use std::fs::File;
use std::io::{ErrorKind, Write as _};
use std::os::unix::fs::PermissionsExt as _;
use std::path::Path;

use anyhow::{Context as _, Result, ensure};
use serde::{Deserialize, Serialize};
use sha2::{Digest as _, Sha256};

use super::{Doubt, SavedMode, State};
use crate::allow::Entry;
use crate::breaker::Trip;

/// The file under `agent.state_dir`.
pub(super) const FILE: &str = "state.toml";
/// Moves on when the settings change their meaning.
const VERSION: u32 = 1;
/// How the first line begins; the checksum of all that follows it ends it.
const FIRST: &str = "# sensor state, sha256 ";
const ABOUT: &str = "\
# What operators set by command: the mode, the never-drop list, and whether the breaker is open. The agent writes this file;
# verdicts are in state.redb beside it. Whoever changes it by hand changes its checksum, and the agent begins in mode observe.
";

/// What it says.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(default)]
pub(super) struct Settings {
    pub(super) version: u32,
    /// Number of the last change.
    pub(super) sequence: u64,
    /// Of the last one that was known to be in the database.
    pub(super) in_database: u64,
    /// There was a database.
    pub(super) has_database: bool,
    pub(super) next_id: u64,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(super) enforced_ms: Option<u64>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(super) mode: Option<SavedMode>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(super) doubt: Option<Doubt>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(super) trip: Option<Trip>,
    pub(super) quiet_ms: u64,
    pub(super) allowed: Vec<Entry>,
}

impl Settings {
    pub(super) fn state(&self) -> State {
        State {
            mode: self.mode,
            enforced_ms: self.enforced_ms,
            trip: self.trip,
            next_id: self.next_id,
            doubt: self.doubt.clone(),
            quiet_ms: self.quiet_ms,
        }
    }

    pub(super) fn set_state(&mut self, State { mode, enforced_ms, trip, next_id, doubt, quiet_ms }: State) {
        (self.mode, self.enforced_ms, self.trip, self.next_id, self.doubt) = (mode, enforced_ms, trip, next_id, doubt);
        self.quiet_ms = quiet_ms;
    }

    /// Whether both say the same of what this file is for: numbers of verdicts, and how long the
    /// breaker has been quiet, change all the time.
    pub(super) fn means(&self, other: &Settings) -> bool {
        let plain = |settings: &Settings| Settings {
            version: 0,
            sequence: 0,
            in_database: 0,
            has_database: false,
            next_id: 0,
            quiet_ms: 0,
            allowed: {
                let mut entries = settings.allowed.clone();
                entries.sort_by_key(|entry| entry.item.to_string());
                entries.iter_mut().for_each(|entry| entry.until_ns = None);
                entries
            },
            ..settings.clone()
        };
        plain(self) == plain(other)
    }

    /// The whole file.
    pub(super) fn to_text(&self) -> Result<String> {
        let body =
            toml::to_string(&Settings { version: VERSION, ..self.clone() }).context("cannot write it as TOML")?;
        let body = format!("{ABOUT}\n{body}");
        Ok(format!("{FIRST}{}\n{body}", sum(&body)))
    }

    /// What a whole file says.
    ///
    /// # Errors
    /// It is damaged, or of another version. Nothing of it is in the message.
    pub(super) fn of_text(text: &[u8]) -> Result<Settings> {
        let damaged = "its checksum does not fit: it is damaged, or was changed by hand";
        let text = std::str::from_utf8(text).context(damaged)?;
        let (first, body) = text.split_once('\n').context(damaged)?;
        ensure!(first.strip_prefix(FIRST) == Some(sum(body).as_str()), damaged);
        let settings: Settings = toml::from_str(body).context("it is of another version of the agent")?;
        ensure!(settings.version == VERSION, "it is of another version of the agent ({})", settings.version);
        Ok(settings)
    }

    /// Puts it in place of what is there.
    ///
    /// # Errors
    /// The disk does not take it; then what was there stays.
    pub(super) fn write(&self, directory: &Path) -> Result<()> {
        let path = directory.join(FILE);
        let cannot = || format!("cannot write {}", path.display());
        let text = self.to_text().with_context(cannot)?;
        let builder = || {
            let mut file = tempfile::Builder::new().prefix(".state-").suffix(".toml").tempfile_in(directory)?;
            file.as_file().set_permissions(std::fs::Permissions::from_mode(0o640))?;
            file.write_all(text.as_bytes())?;
            file.as_file().sync_all()?;
            file.persist(&path).map_err(|error| error.error)?;
            // The name, too.
            File::open(directory)?.sync_all()
        };
        builder().with_context(cannot)
    }
}

fn sum(body: &str) -> String {
    Sha256::digest(body).iter().map(|byte| format!("{byte:02x}")).collect()
}

/// What a file is.
#[derive(Debug)]
pub(super) enum Found<T> {
    Absent,
    Sound(T),
    /// Why it cannot be used.
    Damaged(String),
}

/// Reads the file of `directory`.
pub(super) fn read(directory: &Path) -> Found<Settings> {
    let path = directory.join(FILE);
    // Whoever puts a pipe there does not stop the start.
    if path.metadata().is_ok_and(|about| !about.is_file()) {
        return Found::Damaged(format!("{} is not a file", path.display()));
    }
    let text = match std::fs::read(&path) {
        Ok(text) => text,
        Err(error) if matches!(error.kind(), ErrorKind::NotFound | ErrorKind::NotADirectory) => return Found::Absent,
        Err(error) => return Found::Damaged(format!("{} cannot be read: {error}", path.display())),
    };
    match Settings::of_text(&text) {
        Ok(settings) => Found::Sound(settings),
        Err(error) => Found::Damaged(format!("{}: {error:#}", path.display())),
    }
}

/// Why an agent with this `agent.state_dir` is, or would be, in mode observe whatever its configuration says, as far as
/// the file for people tells it; `None`: nothing is known against it.
pub(crate) fn doubt_in(directory: &Path) -> Option<String> {
    match read(directory) {
        Found::Absent => None,
        Found::Sound(settings) => settings.doubt.map(|doubt| doubt.text),
        Found::Damaged(text) => Some(text),
    }
}
