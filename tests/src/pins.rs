//! A BPF file system of a test's own, for what its agents pin.

use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context, Result};
use tempfile::TempDir;

use crate::process::output;

/// A mounted BPF file system; unmounted on drop, and with it goes every pin that is left.
#[derive(Debug)]
pub struct PinMount {
    directory: TempDir,
}

impl PinMount {
    /// Mounts it. Needs root.
    ///
    /// # Errors
    /// If the kernel has no BPF file system.
    pub fn new() -> Result<Self> {
        let directory = TempDir::with_prefix("sensor-pins-").context("make a directory to mount at")?;
        output(Command::new("mount").args(["-t", "bpf", "bpf"]).arg(directory.path()))?;
        Ok(Self { directory })
    }

    /// Where an agent is told to pin; it makes this directory itself.
    #[must_use]
    pub fn path(&self) -> PathBuf {
        self.directory.path().join("sensor")
    }

    /// The mount itself.
    #[must_use]
    pub fn root(&self) -> &Path {
        self.directory.path()
    }

    /// Names of all pins; `None` if there is not even a directory.
    #[must_use]
    pub fn pins(&self) -> Option<Vec<String>> {
        let entries = std::fs::read_dir(self.path()).ok()?.flatten();
        Some(entries.map(|entry| entry.file_name().to_string_lossy().into_owned()).collect())
    }
}

impl Drop for PinMount {
    fn drop(&mut self) {
        if let Err(error) = output(Command::new("umount").arg("-l").arg(self.directory.path())) {
            eprintln!("unmount {}: {error:#}", self.directory.path().display());
        }
    }
}
