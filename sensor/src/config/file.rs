//! The configuration file: read with bounds, and where in it a setting stands.

use std::fs::OpenOptions;
use std::io::Read as _;
use std::os::unix::fs::OpenOptionsExt as _;
use std::path::Path;

use anyhow::{Context as _, Result, ensure};
use toml::de::{DeTable, DeValue};

/// No configuration comes near this. Something else was named by mistake.
const MAX_BYTES: u64 = 1 << 20;

/// Reads a file.
///
/// # Errors
/// It cannot be read, is no regular file, is larger than 1 MiB, or is not UTF-8.
pub fn read(path: &Path) -> Result<String> {
    let cannot = || format!("cannot read the configuration file {}", path.display());
    // A pipe without a writer must not hang whoever opens it.
    let file = OpenOptions::new().read(true).custom_flags(libc::O_NONBLOCK).open(path).with_context(cannot)?;
    let metadata = file.metadata().with_context(cannot)?;
    ensure!(metadata.is_file(), "{}: it is not a regular file", cannot());
    let mut bytes = Vec::new();
    file.take(MAX_BYTES + 1).read_to_end(&mut bytes).with_context(cannot)?;
    ensure!(bytes.len() as u64 <= MAX_BYTES, "{}: it is larger than {} KiB", cannot(), MAX_BYTES >> 10);
    String::from_utf8(bytes).map_err(|error| {
        let valid = error.utf8_error().valid_up_to();
        let text = String::from_utf8_lossy(&error.as_bytes()[..valid]).into_owned();
        let (line, column) = place(&text, valid);
        anyhow::anyhow!("{}:{line}:{column}: this is not UTF-8 text", path.display())
    })
}

/// Line and column of a byte, counted from 1.
pub(super) fn place(text: &str, byte: usize) -> (usize, usize) {
    let before = text.get(..byte).unwrap_or_default();
    let column = before.chars().rev().take_while(|&c| c != '\n').count() + 1;
    (before.matches('\n').count() + 1, column)
}

/// Line and column of a setting's value, if the text has it.
pub(super) fn place_of(text: &str, setting: &str) -> Option<(usize, usize)> {
    let root = DeTable::parse(text).ok()?.into_inner();
    let mut keys = setting.split('.');
    let mut found = root.get(keys.next()?)?;
    for key in keys {
        let DeValue::Table(table) = found.get_ref() else { return None };
        found = table.get(key)?;
    }
    Some(place(text, found.span().start))
}
