//! The thread that reads files while the agent runs: the configuration on SIGHUP and for `sensor reload`, models also
//! when a file changes and for `sensor model load`.
//!
//! Invariant: the poll thread never waits for a file, a check or a build. It gets models and settings that are ready,
//! takes them between two polls, and gives old models back to be dropped here. What fails leaves the running one alone.
//! Called by [`super::serve`] (starts it), by the signal handler and by [`super::poll`].

use std::fs;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::sync::mpsc::{Receiver, RecvTimeoutError, SyncSender, sync_channel};
use std::time::{Duration, Instant, SystemTime};

use anyhow::{Context, Result};
use tokio::sync::oneshot;

use super::apply::SINKS;
use super::enforce::Around;
use crate::audit::Opened;
use crate::config::{Config, Source, change};
use crate::host::{self, Surroundings};
use crate::metrics::{LoadSource, ModelRole};
use crate::model::{Model, accept, file, isolate};
use crate::view::{ModelView, Peer, ReloadView};

/// Time between two looks at the files.
const WATCH_INTERVAL: Duration = Duration::from_millis(500);
/// Jobs that may wait for the thread.
const JOBS: usize = 8;

/// Answers who waits for a load: the model that is in use since, or what went wrong.
pub(super) type Reply = oneshot::Sender<Result<ModelView, String>>;

/// Answers who waits for a reload.
pub(super) type ReloadReply = oneshot::Sender<Result<ReloadView, String>>;

/// What the thread is asked.
pub(super) enum Job {
    /// Load this file.
    Load { role: ModelRole, path: PathBuf, by: Peer, reply: Reply },
    /// Read the configuration again, and load again whatever file each role has. Nobody waits if it is a signal.
    Reload { by: String, reply: Option<ReloadReply> },
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

/// Something for the poll thread.
pub(super) enum Done {
    Model(Outcome),
    Config(Box<Reloaded>),
}

/// A configuration that was read again.
pub(super) struct Reloaded {
    pub(super) by: String,
    /// What is to be taken, all of it or nothing; or why it is refused.
    pub(super) result: Result<Prepared, String>,
    /// Who asked, and waits.
    pub(super) reply: Option<ReloadReply>,
    /// This thread waits to hear whether it was taken.
    pub(super) taken: SyncSender<bool>,
}

/// Later looks around this host.
pub(super) type Watch = Receiver<Surroundings>;

/// A configuration whose files are open.
pub(super) struct Prepared {
    pub(super) change: change::Outcome,
    pub(super) models: Vec<Outcome>,
    /// The model and the shadow that the configuration does not have any more.
    pub(super) without: Vec<ModelRole>,
    /// New sinks of the audit, if those are changed.
    pub(super) audit: Option<Opened>,
    /// What is around this host, if something else is to be looked at, or the mode changes: sessions first.
    pub(super) around: Option<Around>,
    /// Later looks, if something else is to be looked at.
    pub(super) watch: Option<Watch>,
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
    pub(super) outcomes: Receiver<Done>,
}

impl Loader {
    /// Starts the thread; it ends when the last sender of jobs is gone. `config` is what came of `source`; `files` are
    /// those that are in use.
    pub(super) fn start(config: &Config, source: Source, Files(files): Files) -> Result<Loader> {
        let (jobs, inbox) = sync_channel(JOBS);
        let (outbox, outcomes) = sync_channel(JOBS);
        let mut thread = Thread { files, config: config.clone(), source, outbox };
        std::thread::Builder::new()
            .name("sensor-model".to_owned())
            .stack_size(2 * isolate::STACK)
            .spawn(move || thread.run(&inbox))
            .context("cannot start the thread that loads models")?;
        Ok(Loader { jobs, outcomes })
    }
}

struct Thread {
    /// As it was configured, without models that were loaded by command.
    config: Config,
    source: Source,
    /// What is watched.
    files: Vec<(ModelRole, Watched)>,
    outbox: SyncSender<Done>,
}

impl Thread {
    fn run(&mut self, inbox: &Receiver<Job>) {
        loop {
            let going = match inbox.recv_timeout(WATCH_INTERVAL) {
                Ok(Job::Load { role, path, by, reply }) => {
                    self.load(role, path, LoadSource::Command, Some((by, reply)))
                }
                Ok(Job::Reload { by, reply }) => self.reload(by, reply),
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
        let (watched, outcome) = read(role, path, source, &self.config);
        self.watch(role, watched, outcome.result.is_ok());
        self.outbox.send(Done::Model(Outcome { reply, ..outcome })).is_ok()
    }

    fn watch(&mut self, role: ModelRole, watched: Watched, loaded: bool) {
        match self.files.iter_mut().find(|(of, _)| *of == role) {
            // A refused file of another name is not watched: the one in use still is.
            Some((_, file)) if loaded || file.path == watched.path => *file = watched,
            Some(_) => {}
            None if loaded => self.files.push((role, watched)),
            None => {}
        }
    }

    /// Reads the configuration again; whether the poll thread is still there.
    fn reload(&mut self, by: String, reply: Option<ReloadReply>) -> bool {
        if reply.as_ref().is_some_and(ReloadReply::is_closed) {
            // The client has been told that nothing is done.
            return true;
        }
        let (taken, answer) = sync_channel(1);
        let source = if reply.is_some() { LoadSource::Command } else { LoadSource::Signal };
        let (result, seen) = match self.prepare(source) {
            Ok((prepared, seen)) => (Ok(prepared), seen),
            Err(reason) => (Err(reason), Vec::new()),
        };
        let config = result.as_ref().ok().map(|prepared| prepared.change.config.clone());
        let without = result.as_ref().map(|prepared| prepared.without.clone()).unwrap_or_default();
        if self.outbox.send(Done::Config(Box::new(Reloaded { by, result, reply, taken }))).is_err() {
            return false;
        }
        match (answer.recv(), config) {
            (Ok(true), Some(config)) => {
                self.config = config;
                self.files.retain(|(role, _)| !without.contains(role));
                seen.into_iter().for_each(|(role, watched, loaded)| self.watch(role, watched, loaded));
                true
            }
            (answer, _) => answer.is_ok(),
        }
    }

    /// Everything of a reload that takes time or can fail; the error is for whoever asked. With it, what is watched
    /// afterwards and whether it was loaded.
    fn prepare(&self, source: LoadSource) -> Result<(Prepared, Vec<Seen>), String> {
        let new = self.source.resolve().map_err(|wrong| wrong.to_string())?;
        let change = change::compare(&self.config, &new);
        // What waits for a restart and what does not must go together until then.
        let problems: Vec<_> = change.config.problems().into_iter().map(|problem| problem.text).collect();
        if !problems.is_empty() {
            return Err(format!("{} (as long as other settings wait for a restart)", problems.join("; ")));
        }
        let config = &change.config;
        // A model that cannot be had with these settings is an error in them; of one that was fine with them before,
        // the file is to blame, and the settings are good.
        let strict = ["model", "agent.lease", "policy.threshold", "policy.label_actions"]
            .iter()
            .any(|name| change.changes(name));
        let (mut models, mut seen, mut without) = (Vec::new(), Vec::new(), Vec::new());
        let roles = [
            (ModelRole::Active, "model.path", &config.model.path),
            (ModelRole::Shadow, "model.shadow", &config.model.shadow),
        ];
        for (role, setting, configured) in roles {
            // One that was loaded by command stays in its place until the configuration names another.
            let in_use = self.files.iter().find(|(of, _)| *of == role).map(|(_, file)| file.path.clone());
            let path = if change.changes(setting) { configured.clone() } else { in_use };
            let Some(path) = path else {
                without.push(role);
                continue;
            };
            let (watched, outcome) = read(role, path, source, config);
            if let Err(error) = &outcome.result
                && strict
            {
                return Err(format!("{setting}: {error:#}"));
            }
            seen.push((role, watched, outcome.result.is_ok()));
            models.push(outcome);
        }
        let audit = if SINKS.iter().any(|name| change.changes(name)) {
            let (opened, failures) = Opened::of(&config.audit, config.agent.state_dir.as_deref());
            if !failures.is_empty() {
                return Err(failures.join("; "));
            }
            Some(opened)
        } else {
            None
        };
        let looks = ["policy.never_drop_host", "policy.session_ports"].iter().any(|name| change.changes(name));
        let watch = looks.then(|| host::watch(&config.policy)).transpose().map_err(|error| format!("{error:#}"))?;
        let around = (looks || change.changes("mode")).then(|| Around::look(config));
        Ok((Prepared { change, models, without, audit, around, watch }, seen))
    }
}

/// Loads a model, and how its file was before.
fn read(role: ModelRole, path: PathBuf, source: LoadSource, config: &Config) -> (Watched, Outcome) {
    let begun = Instant::now();
    // Before it is read: what is written later is a change.
    let watched = Watched::new(path.clone());
    let result = accept::load(&path, config).map(Box::new);
    (watched, Outcome { role, source, path, took: begun.elapsed(), result, reply: None })
}

/// A file that was read for a role, and whether it could be loaded.
type Seen = (ModelRole, Watched, bool);

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
        let loader = Loader::start(&config, Source::default(), files).expect("start");
        let Done::Model(outcome) = loader.outcomes.recv_timeout(WATCH_INTERVAL * 20).expect("seen") else {
            panic!("nobody asked for a reload")
        };
        let Outcome { role, source, result, .. } = outcome;
        assert_eq!((role, source), (ModelRole::Active, LoadSource::File));
        let text = format!("{:#}", result.expect_err("too large"));
        assert!(text.contains("model.max_file_mib"), "{text}");
    }
}
