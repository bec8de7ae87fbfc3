//! The thread that loads models while the agent runs: on SIGHUP, when a file changes, and for `sensor model load`.
//!
//! Invariant: the poll thread never waits for a file, a check or a build. It gets models that are ready, swaps them
//! between two polls, and gives the old ones back to be dropped here. A model that fails leaves the running one alone.
//! Called by [`super::serve`] (starts it), by the signal handler and by [`super::poll`].

use std::fs;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::sync::mpsc::{Receiver, RecvTimeoutError, SyncSender, sync_channel};
use std::time::{Duration, Instant, SystemTime};

use anyhow::{Context, Result};
use tokio::sync::oneshot;

use crate::config::Config;
use crate::metrics::{LoadSource, ModelRole};
use crate::model::{Model, accept, file, isolate};
use crate::view::{ModelView, Peer};

/// Time between two looks at the files.
const WATCH_INTERVAL: Duration = Duration::from_millis(500);
/// Jobs that may wait for the thread.
const JOBS: usize = 8;

/// Whoever waits for a load: the model that is in use since, or what went wrong.
pub(super) type Reply = oneshot::Sender<Result<ModelView, String>>;

/// What the thread is asked.
pub(super) enum Job {
    /// Load this file.
    Load { role: ModelRole, path: PathBuf, by: Peer, reply: Reply },
    /// Load again whatever file each role has.
    Again,
    /// Drop a model that is no longer used: that can take longer than a poll may.
    Retire(#[expect(dead_code, reason = "it is only dropped")] Box<Model>),
}

/// A load that is over.
pub(super) struct Outcome {
    pub(super) role: ModelRole,
    pub(super) source: LoadSource,
    pub(super) path: PathBuf,
    pub(super) took: Duration,
    pub(super) result: Result<Box<Model>>,
    /// Who asked, and waits.
    pub(super) reply: Option<(Peer, Reply)>,
}

/// The files of a configuration as they are now. To be taken before they are read: what is written later is a change.
pub(super) struct Files(Vec<(ModelRole, Watched)>);

impl Files {
    /// Nothing is watched.
    #[cfg(feature = "bench")]
    pub(super) const fn none() -> Files {
        Files(Vec::new())
    }

    pub(super) fn now(config: &Config) -> Files {
        let files = [(ModelRole::Active, &config.model.path), (ModelRole::Shadow, &config.model.shadow)];
        Files(files.into_iter().filter_map(|(role, path)| Some((role, Watched::new(path.clone()?)))).collect())
    }
}

/// The poll thread's end.
pub(super) struct Loader {
    pub(super) jobs: SyncSender<Job>,
    pub(super) outcomes: Receiver<Outcome>,
}

impl Loader {
    /// Starts the thread; it ends when the last sender of jobs is gone. `files` are those that are in use.
    pub(super) fn start(config: &Config, Files(files): Files) -> Result<Loader> {
        let (jobs, inbox) = sync_channel(JOBS);
        let (outbox, outcomes) = sync_channel(JOBS);
        let mut thread = Thread { files, config: config.clone(), outbox };
        std::thread::Builder::new()
            .name("sensor-model".to_owned())
            .stack_size(2 * isolate::STACK)
            .spawn(move || thread.run(&inbox))
            .context("cannot start the thread that loads models")?;
        Ok(Loader { jobs, outcomes })
    }
}

struct Thread {
    config: Config,
    /// What is watched.
    files: Vec<(ModelRole, Watched)>,
    outbox: SyncSender<Outcome>,
}

impl Thread {
    fn run(&mut self, inbox: &Receiver<Job>) {
        loop {
            let going = match inbox.recv_timeout(WATCH_INTERVAL) {
                Ok(Job::Load { role, path, by, reply }) => {
                    self.load(role, path, LoadSource::Command, Some((by, reply)))
                }
                Ok(Job::Again) => {
                    let paths: Vec<_> = self.files.iter().map(|(role, file)| (*role, file.path.clone())).collect();
                    paths.into_iter().all(|(role, path)| self.load(role, path, LoadSource::Signal, None))
                }
                Ok(Job::Retire(_)) => true,
                Err(RecvTimeoutError::Timeout) => !self.config.model.watch || self.look(),
                Err(RecvTimeoutError::Disconnected) => false,
            };
            if !going {
                return;
            }
        }
    }

    /// Looks at the files; whether the poll thread is still there.
    fn look(&mut self) -> bool {
        let changed = |(role, file): &mut (ModelRole, Watched)| file.has_changed().then(|| (*role, file.path.clone()));
        let changed: Vec<_> = self.files.iter_mut().filter_map(changed).collect();
        changed.into_iter().all(|(role, path)| self.load(role, path, LoadSource::File, None))
    }

    /// Loads a file; whether the poll thread is still there.
    fn load(&mut self, role: ModelRole, path: PathBuf, source: LoadSource, reply: Option<(Peer, Reply)>) -> bool {
        let begun = Instant::now();
        // Before it is read: what is written later is a change.
        let watched = Watched::new(path.clone());
        let result = accept::load(&path, &self.config).map(Box::new);
        match self.files.iter_mut().find(|(of, _)| *of == role) {
            // A refused file of another name is not watched: the one in use still is.
            Some((_, file)) if result.is_ok() || file.path == path => *file = watched,
            Some(_) => {}
            None if result.is_ok() => self.files.push((role, watched)),
            None => {}
        }
        self.outbox.send(Outcome { role, source, path, took: begun.elapsed(), result, reply }).is_ok()
    }
}

/// A file and how it was when it was last loaded.
struct Watched {
    path: PathBuf,
    loaded: Stamp,
    /// Seen at the last look and not loaded yet: a file is loaded when it is the same at two looks.
    settling: Option<Stamp>,
}

/// Tells two versions of a file, and of its side-car, apart: device, inode, size, time of modification.
type Stamp = [Option<(u64, u64, u64, Option<SystemTime>)>; 2];

impl Watched {
    fn new(path: PathBuf) -> Watched {
        Watched { loaded: stamp(&path), settling: None, path }
    }

    fn has_changed(&mut self) -> bool {
        let now = stamp(&self.path);
        if now == self.loaded || now[0].is_none() {
            // A file that is gone is no new model.
            self.settling = None;
            return false;
        }
        self.settling.replace(now) == Some(now)
    }
}

fn stamp(path: &Path) -> Stamp {
    [path.to_owned(), file::side_car_of(path)].map(|path| {
        let metadata = fs::metadata(path).ok()?;
        Some((metadata.dev(), metadata.ino(), metadata.len(), metadata.modified().ok()))
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_file_has_changed_when_it_is_another_one_at_two_looks() {
        let folder = tempfile::tempdir().expect("temporary folder");
        let path = folder.path().join("m.onnx");
        fs::write(&path, "one").expect("write");
        let mut watched = Watched::new(path.clone());
        assert!(!watched.has_changed() && !watched.has_changed());
        fs::write(folder.path().join("new"), "two").expect("write");
        fs::rename(folder.path().join("new"), &path).expect("rename");
        assert!(!watched.has_changed(), "it may still be written");
        assert!(watched.has_changed());
        let mut watched = Watched::new(path.clone());
        fs::write(file::side_car_of(&path), "threshold = 1").expect("write");
        assert!(!watched.has_changed() && watched.has_changed(), "a side-car is part of it");
        fs::remove_file(&path).expect("remove");
        assert!(!watched.has_changed() && !watched.has_changed(), "gone is not changed");
    }
    #[test]
    fn what_is_renamed_while_the_agent_starts_is_loaded() {
        let folder = tempfile::tempdir().expect("temporary folder");
        let path = folder.path().join("m.onnx");
        fs::write(&path, "one").expect("write");
        let mut config = Config::default();
        (config.model.path, config.model.max_file_mib) = (Some(path.clone()), 1);
        let files = Files::now(&config);
        // Here the agent has read the first file, and then somebody puts another one in its place.
        fs::write(folder.path().join("new"), vec![0; 2 << 20]).expect("write");
        fs::rename(folder.path().join("new"), &path).expect("rename");
        let loader = Loader::start(&config, files).expect("start");
        let Outcome { role, source, result, .. } = loader.outcomes.recv_timeout(WATCH_INTERVAL * 20).expect("seen");
        assert_eq!((role, source), (ModelRole::Active, LoadSource::File));
        let text = format!("{:#}", result.expect_err("too large"));
        assert!(text.contains("model.max_file_mib"), "{text}");
    }
}
