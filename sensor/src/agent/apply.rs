//! A configuration that was read again comes into force: between two polls, all of it or nothing.
//!
//! Invariant: what can fail is done first, and undone if it does; nothing is taken before. Files were opened by the
//! thread that read them ([`super::reload`]). Called by [`super::life`].

use std::path::PathBuf;
use std::sync::PoisonError;

use super::clock::now_ns;
use super::enforce::{Around, moment};
use super::poll::Poller;
use super::reload::{Prepared, Reloaded};
use super::start::page;
use crate::audit::Event;
use crate::config::change::{self, Change};
use crate::config::{Config, PolicyConfig};
use crate::control::SharedPolicy;
use crate::harvest::Timeouts;
use crate::logging::Logger;
use crate::metrics::ModelRole;
use crate::verdicts::book::Room;
use crate::view::{ConfigState, ConfigView, LastReload, ModelReload, ReloadView};

/// Where the audit goes.
pub(super) const SINKS: [&str; 5] = ["audit.path", "audit.max_mib", "audit.files", "audit.stdout", "audit.journald"];

/// What the poll thread knows of the configuration beside its settings.
pub(super) struct Settled {
    file: Option<PathBuf>,
    /// Without what commands changed and what the start found.
    configured: Config,
    hash: String,
    restart: Vec<Change>,
    last: Option<LastReload>,
    /// The control socket goes by this.
    shared: SharedPolicy,
    /// `None`: there is none to be changed.
    logger: Option<Logger>,
}

impl Settled {
    pub(super) fn new(
        file: Option<PathBuf>,
        configured: Config,
        shared: SharedPolicy,
        logger: Option<Logger>,
    ) -> Settled {
        let hash = configured.hash();
        Settled { file, configured, hash, restart: Vec::new(), last: None, shared, logger }
    }

    fn take(&mut self, configured: Config, restart: Vec<Change>) {
        self.hash = configured.hash();
        (self.configured, self.restart) = (configured, restart);
    }

    /// Hash of the configuration in force.
    pub(super) fn hash(&self) -> String {
        self.hash.clone()
    }

    /// For the status.
    pub(super) fn state(&self) -> ConfigState {
        ConfigState {
            file: self.file.as_ref().map(|file| file.display().to_string()),
            hash: self.hash(),
            restart: self.restart.clone(),
            last_reload: self.last.clone(),
        }
    }

    /// All settings in force.
    pub(super) fn view(&self) -> ConfigView {
        ConfigView { state: self.state(), toml: self.configured.to_toml().unwrap_or_default() }
    }

    /// The last lines of the log.
    pub(super) fn log(&self) -> String {
        self.logger.as_ref().map(Logger::recent).unwrap_or_default()
    }

    /// Log lines that were lost, by where they should have gone.
    pub(super) fn lost_lines(&self) -> Vec<(&'static str, u64)> {
        self.logger.as_ref().map_or_else(Vec::new, |logger| logger.lost().collect())
    }

    /// Logs how many were, once lines are taken again.
    pub(super) fn tell_lost_lines(&self) {
        self.logger.iter().for_each(Logger::tell_lost);
    }
}

/// When the time limits of flows are over, as far as settings say it.
pub(super) fn timeouts(config: &Config, min_packets: u64) -> Timeouts {
    Timeouts::new(&config.agent, min_packets)
}

impl Poller {
    /// Takes a configuration that was read again, or says why not.
    pub(super) fn take_config(&mut self, reloaded: Reloaded) {
        let Reloaded { by, result, reply, taken } = reloaded;
        // What a sink tells up to its end is that there is another one.
        let before = self.enforcer.audit.clone();
        let answer = result.and_then(|prepared| self.take_prepared(prepared, &by));
        // The other thread waits; it is gone if the agent stops.
        let _ = taken.send(answer.is_ok());
        let hash = self.settled.hash();
        let file = self.settled.file.as_ref().map(|file| file.display().to_string());
        let name = file.as_deref().unwrap_or("(no file)");
        let (changed, restart) = match &answer {
            Ok(view) => {
                self.metrics.config_taken(hash.clone());
                let list = |changes: &[Change]| {
                    let one = |change: &Change| format!("{}: {} -> {}", change.setting, change.from, change.to);
                    changes.iter().map(one).collect::<Vec<_>>().join(", ")
                };
                match (view.changed.is_empty(), &self.settled.file) {
                    (true, None) => tracing::info!("there is no configuration file; models were loaded again ({by})"),
                    (true, Some(_)) => tracing::info!("configuration {name} read again ({by}): nothing has changed"),
                    (false, _) => {
                        tracing::info!("configuration {name} is in force ({by}): {}", list(&view.changed));
                    }
                }
                if !view.restart.is_empty() {
                    tracing::warn!("not in force before a restart: {}", list(&view.restart));
                }
                (view.changed.clone(), view.restart.clone())
            }
            Err(reason) => {
                self.metrics.config_refused();
                tracing::error!("configuration {name} refused ({by}), the one before it is in force: {reason}");
                (Vec::new(), Vec::new())
            }
        };
        let refused = answer.as_ref().err().cloned();
        self.settled.last = Some(LastReload { unix_ms: moment().unix_ms, by: by.clone(), error: refused.clone() });
        let moved = changed.iter().any(|change| SINKS.contains(&change.setting.as_str()));
        let event = Event::Reload { by, file, hash, changed, restart, refused };
        if moved {
            before.write(event.clone());
        }
        self.enforcer.audit.write(event);
        if let Some(reply) = reply {
            // Nobody waits any more if it cannot be sent.
            let told = |reason| format!("the configuration is refused, the one before goes on: {reason}");
            let _ = reply.send(answer.map_err(told));
        }
    }

    /// # Errors
    /// The kernel refuses something; nothing has changed then.
    fn take_prepared(&mut self, prepared: Prepared, by: &str) -> Result<ReloadView, String> {
        let Prepared { change, models, without, audit, around, watch } = prepared;
        if change.changes("mode") {
            let tagging = self.prepare_tagging(change.config.mode);
            tagging.map_err(|error| format!("mode: {error:#} (tag.enabled = false does without)"))?;
        }
        let before = self.config.interfaces.clone();
        if change.changes("interfaces") {
            self.watch_interfaces(&change.config.interfaces).map_err(|error| format!("{error:#}"))?;
        }
        let rest = self.configure_allowed(&change).and_then(|()| self.configure_log(&change));
        if let Err(reason) = rest {
            // What was not changed is not changed back either.
            let back = self.enforcer.configure_allowed(&self.config.policy);
            self.protect(&back);
            if change.changes("interfaces")
                && let Err(error) = self.watch_interfaces(&before)
            {
                tracing::error!("the interfaces of before are not watched: {error:#}");
            }
            return Err(reason);
        }

        if let Some(opened) = audit {
            self.enforcer.audit = self.enforcer.audit.reopened(opened);
        }
        self.set_config(&change);
        let models: Vec<ModelReload> = models
            .into_iter()
            .map(|outcome| {
                let refused = outcome.result.as_ref().err().map(|error| format!("{error:#}"));
                let (role, path) = (outcome.role.name().to_owned(), Some(outcome.path.display().to_string()));
                self.take_model(outcome);
                ModelReload { role, path, refused }
            })
            .collect();
        // Scores of the old model are of no use to the new one: first the model, then its rules.
        for role in [ModelRole::Shadow, ModelRole::Active].into_iter().filter(|role| without.contains(role)) {
            self.unload(role);
        }
        self.renew_policy();
        self.timeouts = timeouts(&self.config, self.policy.min_packets());
        self.memories.wake();
        if change.changes("model.drift_window") || !self.config.model.drift_fallback && self.enforcer.drifted {
            self.renew_drift();
        }
        if let Some(watch) = watch {
            self.enforcer.look_anew(watch);
        }
        self.set_enforcement(&change, around, by);

        self.settled.take(change.config, change.restart.clone());
        Ok(ReloadView {
            file: self.settled.file.as_ref().map(|file| file.display().to_string()),
            hash: self.settled.hash(),
            changed: change.live,
            restart: change.restart,
            models,
        })
    }

    /// The never-drop list follows, and verdicts that it forbids are gone.
    fn configure_allowed(&mut self, change: &change::Outcome) -> Result<(), String> {
        let names = ["policy.never_drop", "policy.never_drop_ports", "policy.never_drop_interfaces"];
        if !names.iter().any(|name| change.changes(name)) {
            return Ok(());
        }
        let changes = self.enforcer.configure_allowed(&change.config.policy);
        let refused = self.protect(&changes);
        refused.map_or(Ok(()), |error| Err(format!("policy.never_drop: the kernel refused it: {error}")))
    }

    /// Log lines have another level or form.
    fn configure_log(&mut self, change: &change::Outcome) -> Result<(), String> {
        match &self.settled.logger {
            Some(logger) if change.changes("log") => {
                logger.set(&change.config.log).map_err(|error| format!("log: {error:#}"))
            }
            _ => Ok(()),
        }
    }

    /// The settings themselves, and what only needs to be told of them.
    fn set_config(&mut self, change: &change::Outcome) {
        let interfaces = std::mem::take(&mut self.config.interfaces);
        let (path, shadow) = (self.config.model.path.take(), self.config.model.shadow.take());
        self.config = change.config.clone();
        // What the start found, and what commands loaded.
        self.config.interfaces = interfaces;
        if !change.changes("model.path") {
            self.config.model.path = path;
        }
        if !change.changes("model.shadow") {
            self.config.model.shadow = shadow;
        }
        if change.changes("tag") || change.changes("kernel.evict_idle") {
            self.kernel.control.set(&page(&self.config));
        }
        self.health.set_stale_after(self.config.agent.lease);
        self.renew_lease(now_ns());
        let shared = &self.settled.shared;
        shared.write().unwrap_or_else(PoisonError::into_inner).clone_from(&self.config.policy);
    }

    /// What holds for verdicts that there are, at once.
    fn set_enforcement(&mut self, change: &change::Outcome, around: Option<Around>, by: &str) {
        if change.changes("policy.operator_share") {
            let PolicyConfig { max_verdicts, operator_share, .. } = self.config.policy;
            self.enforcer.book.set_room(Room::new(max_verdicts, operator_share));
        }
        self.enforcer.steady.set_rules(self.config.policy.steady());
        self.enforcer.company.set_enough(self.config.policy.accused_flows);
        if change.changes("breaker") {
            self.enforcer.breaker.set_config(self.config.breaker.clone());
        }
        if change.changes("policy.half_open_limit") {
            self.follow_half_open_limit();
        }
        if let Some(Around { surroundings, sessions }) = around {
            self.take_surroundings(surroundings);
            self.take_sessions(Some(sessions.unwrap_or_default()));
        }
        if change.changes("mode") {
            self.configure_mode(by.to_owned());
        }
        self.count_ramp(moment());
        self.obey_ceilings();
        self.restamp(now_ns());
        self.publish_enforcement();
    }
}
