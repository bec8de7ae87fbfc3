//! The archive: tar and gzip, written beside its place and renamed, so that there is a whole one or none.

use std::io::Write as _;
use std::path::Path;
use std::time::{SystemTime, UNIX_EPOCH};

use anyhow::{Context as _, Result};
use flate2::Compression;
use flate2::write::GzEncoder;
use tempfile::NamedTempFile;

use super::Summary;
use super::redact::Redactor;

/// The folder inside.
const FOLDER: &str = "sensor-support";
/// Larger items are cut: what is last counts.
const MAX_BYTES: usize = 16 << 20;

pub(super) struct Archive {
    tar: tar::Builder<GzEncoder<NamedTempFile>>,
    redactor: Redactor,
    manifest: String,
    summary: Summary,
    unix_seconds: u64,
}

impl Archive {
    pub(super) fn begin(path: &Path, hide_addresses: bool) -> Result<Archive> {
        let folder = path.parent().filter(|folder| !folder.as_os_str().is_empty()).unwrap_or(Path::new("."));
        // Such a file is readable for its owner only.
        let file = tempfile::Builder::new().prefix(".sensor-support-").tempfile_in(folder);
        let file = file.with_context(|| format!("cannot write into {}", folder.display()))?;
        let age = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
        let about = if hide_addresses {
            "Addresses are replaced by numbers (address-1 …), the same one by the same number; --with-addresses keeps them."
        } else {
            "Addresses, flows and verdicts are in here (--with-addresses)."
        };
        Ok(Archive {
            tar: tar::Builder::new(GzEncoder::new(file, Compression::default())),
            redactor: Redactor::new(hide_addresses),
            manifest: format!(
                "sensor {} support archive, {}\n{about}\nPasswords and tokens that stand in URLs or behind their names are removed, and comments of the file. Read it before you\npass it on.\n\n",
                env!("CARGO_PKG_VERSION"),
                humantime::format_rfc3339_seconds(SystemTime::now())
            ),
            summary: Summary { items: 0, missing: 0 },
            unix_seconds: age.as_secs(),
        })
    }

    /// Adds an item, or the reason why there is none.
    pub(super) fn add(&mut self, name: &str, text: Result<String>) -> Result<()> {
        match text {
            Ok(text) => {
                let cut = last(&text, MAX_BYTES);
                let note = if cut.len() < text.len() { ", its last part" } else { "" };
                let text = self.redactor.text(cut);
                self.append(name, &text)?;
                self.manifest += &format!("{name:22} {} bytes{note}\n", text.len());
                self.summary.items += 1;
            }
            Err(error) => {
                let reason = self.redactor.text(&format!("{error:#}")).replace('\n', "; ");
                self.manifest += &format!("{name:22} missing: {reason}\n");
                self.summary.missing += 1;
            }
        }
        Ok(())
    }

    fn append(&mut self, name: &str, text: &str) -> Result<()> {
        let mut header = tar::Header::new_gnu();
        header.set_size(text.len() as u64);
        header.set_mode(0o600);
        header.set_mtime(self.unix_seconds);
        let added = self.tar.append_data(&mut header, format!("{FOLDER}/{name}"), text.as_bytes());
        added.context("cannot write the archive")
    }

    /// Writes what is left, and gives it its name.
    pub(super) fn end(mut self, path: &Path) -> Result<Summary> {
        let manifest = std::mem::take(&mut self.manifest);
        self.append("MANIFEST", &manifest)?;
        let cannot = || format!("cannot write {}", path.display());
        let mut file = self.tar.into_inner().and_then(GzEncoder::finish).with_context(cannot)?;
        file.flush().with_context(cannot)?;
        file.as_file().sync_all().with_context(cannot)?;
        file.persist_noclobber(path).with_context(cannot)?;
        Ok(self.summary)
    }
}

/// The end of a text, whole lines of at most so many bytes.
fn last(text: &str, bytes: usize) -> &str {
    if text.len() <= bytes {
        return text;
    }
    let from = text.len() - bytes;
    let line = text.as_bytes()[from..].iter().position(|byte| *byte == b'\n').map_or(text.len(), |at| from + at + 1);
    text.get(line..).unwrap_or_default()
}
