//! Where rows go: a file or standard output.
//!
//! Invariant: a file gets its name when it is complete. Until then the rows are in a file beside it with a name of its
//! own (`.NAME.….partial`), which is taken away if the run fails. Called by [`super::extract`].

use std::fs::{File, Permissions};
use std::io::{self, ErrorKind};
use std::os::fd::AsFd;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result, anyhow, ensure};
use tempfile::NamedTempFile;

/// An output that rows can be written to.
pub(super) enum Output {
    /// Standard output, a pipe or a device: what is written is gone.
    Stream(File),
    /// A file that has no name yet.
    Pending {
        /// Its content.
        file: NamedTempFile,
        /// Its name.
        path: PathBuf,
        /// Whether a file of that name may be replaced.
        force: bool,
    },
}

impl Output {
    /// Opens `path`, or standard output for `None` and `-`.
    ///
    /// # Errors
    /// If there is such a file already and not `force`, if it is a directory, or if nothing can be written there.
    pub(super) fn open(path: Option<&Path>, force: bool) -> Result<Output> {
        let Some(path) = path.filter(|path| path.as_os_str() != "-") else {
            // Not `Stdout`, which would look for line feeds in everything.
            let stdout = io::stdout().as_fd().try_clone_to_owned().context("open standard output")?;
            return Ok(Output::Stream(stdout.into()));
        };
        if let Ok(about) = path.metadata() {
            ensure!(!about.is_dir(), "{} is a directory: name a file inside it", path.display());
            if !about.is_file() {
                let file = File::options().write(true).open(path);
                return Ok(Output::Stream(file.with_context(|| format!("open {}", path.display()))?));
            }
            ensure!(force, "{}", exists(path));
        }
        let name = path.file_name().with_context(|| format!("{} names no file", path.display()))?;
        let folder = path.parent().filter(|folder| !folder.as_os_str().is_empty()).unwrap_or(Path::new("."));
        let file = tempfile::Builder::new()
            .prefix(&format!(".{}.", name.to_string_lossy()))
            .suffix(".partial")
            .permissions(Permissions::from_mode(0o666))
            .tempfile_in(folder)
            .with_context(|| format!("create {}", path.display()))?;
        Ok(Output::Pending { file, path: path.to_owned(), force })
    }

    /// A handle to write to.
    ///
    /// # Errors
    /// If the process has too many open files.
    pub(super) fn writer(&self) -> Result<File> {
        match self {
            Output::Stream(file) => file.try_clone(),
            Output::Pending { file, .. } => file.as_file().try_clone(),
        }
        .context("open the output")
    }

    /// Gives a file that is complete its name.
    ///
    /// # Errors
    /// If there is such a file by now, or the folder does not allow it.
    pub(super) fn commit(self) -> Result<()> {
        let Output::Pending { file, path, force } = self else { return Ok(()) };
        let kept = if force { file.persist(&path) } else { file.persist_noclobber(&path) };
        match kept {
            Ok(_) => Ok(()),
            Err(error) if error.error.kind() == ErrorKind::AlreadyExists => Err(anyhow!(exists(&path))),
            Err(error) => Err(error.error).with_context(|| format!("create {}", path.display())),
        }
    }

    /// Takes away what was written, and says what is left of `rows`.
    pub(super) fn abandon(self) -> String {
        match self {
            Output::Stream(_) => "what was written before is incomplete".to_owned(),
            Output::Pending { path, .. } => format!("{} was not written", path.display()),
        }
    }
}

fn exists(path: &Path) -> String {
    format!("{} exists: remove it, name another output, or use --force", path.display())
}
