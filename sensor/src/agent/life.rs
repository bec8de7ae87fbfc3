//! The life of the models in the poll thread: swap, shadow, drift.
//!
//! Invariant: a swap takes place between two polls and takes no verdict away; a shadow's scores reach metrics and
//! nothing else. Called by [`super::poll`] and [`super::score`].

use std::sync::mpsc::TrySendError;
use std::time::{Duration, Instant};

use super::clock::now_ns;
use super::poll::Poller;
use super::reload::{Done, Job, Outcome, ReloadReply, Reply};
use super::report;
use super::start::lease_until;
use crate::audit::Event;
use crate::config::Config;
use crate::metrics::ModelRole;
use crate::model::contract::Thresholds;
use crate::model::drift::{Drift, Level, Window};
use crate::model::{Model, Score};
use crate::policy::Policy;
use crate::view::Peer;

/// What is left of an expectation after a refusal ([`Pace`]): a tenth after 45 polls.
const PACE_DECAY: f64 = 0.95;
/// Time between two messages that the shadow fails.
const FAILED_INTERVAL: Duration = Duration::from_secs(1);

/// The model that is scored beside the active one.
pub(super) struct Shadow {
    pub(super) model: Model,
    policy: Policy,
    scores: Vec<Score>,
    pace: Pace,
    /// Calls that failed since that was logged last, and when that was.
    failed: u32,
    logged: Option<Instant>,
}

impl Shadow {
    pub(super) fn new(model: Model, config: &Config) -> Shadow {
        Shadow {
            policy: policy(config, Some(&model)),
            model,
            scores: Vec::new(),
            pace: Pace::default(),
            failed: 0,
            logged: None,
        }
    }
}

/// What a call of the shadow is expected to take: as long for each row as the last one did.
#[derive(Default)]
struct Pace {
    seconds_per_row: f64,
}

impl Pace {
    fn took(&mut self, rows: usize, time: Duration) {
        self.seconds_per_row = time.as_secs_f64() / rows.max(1) as f64;
    }

    /// Whether `rows` rows can be done in `left`. Each refusal lowers what is expected, so that one slow call does not keep a
    /// shadow out for ever.
    fn fits(&mut self, rows: usize, left: Duration) -> bool {
        let fits = !left.is_zero() && self.seconds_per_row * rows as f64 <= left.as_secs_f64();
        if !fits {
            self.seconds_per_row *= PACE_DECAY;
        }
        fits
    }
}

/// Drift of the active model.
#[derive(Default)]
pub(super) struct DriftState {
    counts: Option<Drift>,
    pub(super) last: Option<Window>,
    pub(super) level: Option<Level>,
}

impl DriftState {
    pub(super) fn new(config: &Config, model: Option<&Model>) -> DriftState {
        let counts = model.and_then(|model| Drift::new(model, u64::from(config.model.drift_window)));
        DriftState { counts, last: None, level: None }
    }
}

/// The policy for a model.
pub(super) fn policy(config: &Config, model: Option<&Model>) -> Policy {
    let (labels, thresholds, min_packets) = match model {
        Some(model) => (model.labels.as_slice(), model.thresholds, model.min_packets),
        None => (&[][..], Thresholds::all(f32::INFINITY), 0),
    };
    Policy::new(&config.policy, labels, thresholds, min_packets)
}

impl Poller {
    /// Hands a request to the thread that loads models.
    pub(super) fn request_load(&mut self, path: std::path::PathBuf, shadow: bool, by: Peer, reply: Reply) {
        let role = if shadow { ModelRole::Shadow } else { ModelRole::Active };
        if role == ModelRole::Shadow && self.model.is_none() {
            return drop(reply.send(Err("there is no model that a shadow could be compared with".to_owned())));
        }
        let job = Job::Load { role, path, by, reply };
        if let Err(TrySendError::Full(job) | TrySendError::Disconnected(job)) = self.loader.jobs.try_send(job)
            && let Job::Load { reply, .. } = job
        {
            drop(reply.send(Err("other models are being loaded; try again later".to_owned())));
        }
    }

    /// Hands a request to the thread that reads the configuration.
    pub(super) fn request_reload(&mut self, by: Peer, reply: ReloadReply) {
        let job = Job::Reload { by: format!("operator {by}"), reply: Some(reply) };
        if let Err(TrySendError::Full(job) | TrySendError::Disconnected(job)) = self.loader.jobs.try_send(job)
            && let Job::Reload { reply: Some(reply), .. } = job
        {
            drop(reply.send(Err("other files are being loaded; try again later".to_owned())));
        }
    }

    /// Takes over what was loaded since the last poll.
    pub(super) fn take_loaded(&mut self) {
        while let Ok(done) = self.loader.outcomes.try_recv() {
            match done {
                Done::Model(outcome) => self.take_model(outcome),
                Done::Config(reloaded) => self.take_config(*reloaded),
            }
        }
    }

    /// Takes a model, or says why it was refused.
    pub(super) fn take_model(&mut self, outcome: Outcome) {
        let Outcome { role, source, path, took, result, reply } = outcome;
        self.metrics.model_load(role, source, result.is_ok());
        let by = reply.as_ref().map_or_else(|| source.name().to_owned(), |(peer, _)| format!("operator {peer}"));
        let answer = match result {
            Ok(model) => {
                tracing::info!(
                    "{} model {} ({}) loaded from {} in {:.0} ms ({})",
                    role.name(),
                    model.name,
                    report::short_hash(&model),
                    path.display(),
                    took.as_secs_f64() * 1e3,
                    source.name()
                );
                let view = report::model(&model, &path);
                self.enforcer.audit.write(Event::Model {
                    role: role.name(),
                    name: model.name.clone(),
                    model: model.hash.clone(),
                    by,
                    refused: None,
                });
                match role {
                    ModelRole::Active => self.swap(*model, path),
                    ModelRole::Shadow => self.swap_shadow(*model, path),
                }
                Ok(view)
            }
            Err(error) => {
                let goes_on = match role {
                    ModelRole::Active => self.model.as_ref(),
                    ModelRole::Shadow => self.shadow.as_ref().map(|shadow| &shadow.model),
                };
                let goes_on = goes_on.map_or("none is in use".to_owned(), |model| {
                    format!("{} ({}) goes on", model.name, report::short_hash(model))
                });
                tracing::error!("{} model refused ({}), {goes_on}: {error:#}", role.name(), source.name());
                self.enforcer.audit.write(Event::Model {
                    role: role.name(),
                    name: path.display().to_string(),
                    model: String::new(),
                    by,
                    refused: Some(format!("{error:#}")),
                });
                Err(format!("{error:#}"))
            }
        };
        if let Some((_, reply)) = reply {
            // Nobody waits any more if it cannot be sent.
            let _ = reply.send(answer);
        }
    }

    fn swap(&mut self, model: Model, path: std::path::PathBuf) {
        let same_labels = self.model.as_ref().is_some_and(|old| old.labels == model.labels);
        // A score's label is a number in the old model's list. Verdicts stay as they are until they expire, or the new model
        // clears the flow.
        self.memories.iter_mut().for_each(|memory| memory.another_model(same_labels));
        // The same model again has the same drift: what was counted, and a fallback, go on.
        if self.model.as_ref().is_none_or(|old| old.hash != model.hash) {
            self.policy = policy(&self.config, Some(&model));
            self.policy.set_ramp(self.enforcer.ramp());
            self.enforcer.breaker.another_model();
            if std::mem::take(&mut self.enforcer.drifted) {
                self.enforcer.audit.write(Event::Drift { held: false });
                self.obey_ceilings();
            }
            self.timeouts.set_min_packets(self.policy.min_packets());
            self.drift = DriftState::new(&self.config, Some(&model));
            self.metrics.drift_reset();
        }
        self.metrics.model(ModelRole::Active, Some((&model.hash, &model.name)));
        self.config.model.path = Some(path);
        if let Some(old) = self.model.replace(model) {
            self.retire(old);
        }
    }

    fn swap_shadow(&mut self, model: Model, path: std::path::PathBuf) {
        self.metrics.model(ModelRole::Shadow, Some((&model.hash, &model.name)));
        self.config.model.shadow = Some(path);
        if let Some(old) = self.shadow.replace(Shadow::new(model, &self.config)) {
            self.retire(old.model);
        }
    }

    /// There is no such model any more. Verdicts stay until they end.
    pub(super) fn unload(&mut self, role: ModelRole) {
        let old = match role {
            ModelRole::Active => self.model.take(),
            ModelRole::Shadow => self.shadow.take().map(|shadow| shadow.model),
        };
        let Some(old) = old else { return };
        self.metrics.model(role, None);
        if role == ModelRole::Active {
            self.memories.iter_mut().for_each(|memory| memory.another_model(false));
            self.renew_drift();
        }
        tracing::info!("{} model {} is not in use any more", role.name(), old.name);
        self.retire(old);
    }

    /// Drift is counted anew, and holds nothing back.
    pub(super) fn renew_drift(&mut self) {
        if std::mem::take(&mut self.enforcer.drifted) {
            self.enforcer.audit.write(Event::Drift { held: false });
            self.obey_ceilings();
        }
        self.drift = DriftState::new(&self.config, self.model.as_ref());
        self.metrics.drift_reset();
    }

    /// The rules of the configuration, for the models in use.
    pub(super) fn renew_policy(&mut self) {
        self.policy = policy(&self.config, self.model.as_ref());
        self.enforcer.breaker.another_model();
        self.policy.set_ramp(self.enforcer.ramp());
        if let Some(shadow) = &mut self.shadow {
            shadow.policy = policy(&self.config, Some(&shadow.model));
        }
    }

    fn retire(&mut self, old: Model) {
        // If the thread is busy, it is dropped here.
        let _ = self.loader.jobs.try_send(Job::Retire(Box::new(old)));
    }

    /// Scores the records of this poll once more, with the shadow, and compares; `active` has a score for each record
    /// that the active model has scored. Verdicts are stored by now, so that the shadow delays none; what it has no time
    /// for until `deadline` is counted.
    pub(super) fn score_shadow(&mut self, active: &[Option<Score>], now: u64, deadline: Instant) {
        let wanted = self.shadow.as_ref().map(|shadow| &shadow.model);
        let contexts = self.contexts(wanted, 0..self.records.len(), now);
        let (Some(shadow), Some(model)) = (&mut self.shadow, &self.model) else { return };
        let Shadow { model: other, policy, scores, pace, failed, logged } = shadow;
        let batch = self.config.model.max_batch as usize;
        for (number, records) in self.records.chunks(batch).enumerate() {
            let first = number * batch;
            if !pace.fits(records.len(), deadline.saturating_duration_since(Instant::now())) {
                self.metrics.shadow_skipped((self.records.len() - first) as u64);
                return;
            }
            self.lease_until_ns = lease_until(&self.config, now_ns());
            self.kernel.control.set_lease(self.lease_until_ns);
            self.watchdog.feed();
            let (begun, invalid) = (Instant::now(), other.invalid());
            let contexts = contexts.get(first..first + records.len()).unwrap_or_default();
            let result = other.score(records, contexts, scores);
            pace.took(records.len(), begun.elapsed());
            if let Err(error) = result {
                self.metrics.shadow_error();
                *failed += 1;
                if logged.is_none_or(|last| last.elapsed() >= FAILED_INTERVAL) {
                    tracing::warn!(
                        "the shadow model failed in {failed} calls, now on {} flows: {error:#}",
                        records.len()
                    );
                    (*failed, *logged) = (0, Some(Instant::now()));
                }
                continue;
            }
            if other.invalid() > invalid {
                self.metrics.shadow_error();
            }
            let mut agreement = crate::metrics::Agreement { duration: begun.elapsed(), ..Default::default() };
            for ((record, theirs), ours) in records.iter().zip(&*scores).zip(&active[first..]) {
                let Some(ours) = ours else { continue };
                let label = |model: &Model, score: &Score| model.labels.get(usize::from(score.label)).cloned();
                let allow = &self.enforcer.allow;
                let ours_would = self.policy.decide(record, *ours, allow).would;
                let decisions = (ours_would, policy.decide(record, *theirs, allow).would);
                agreement.decisions[decisions.0 as usize][decisions.1 as usize] += 1;
                agreement.labels[usize::from(label(model, ours) == label(other, theirs))] += 1;
                agreement.differences.push(f64::from((ours.score - theirs.score).abs()));
            }
            self.metrics.shadow(&agreement);
        }
    }

    /// Counts scored rows for drift; at the end of a window, publishes the indices and falls back or returns.
    pub(super) fn observe_drift(&mut self, scores: &[Score]) {
        let (Some(model), Some(counts)) = (&self.model, &mut self.drift.counts) else { return };
        let Some(window) = counts.observe(model.inputs(), scores, model.unscored()) else { return };
        let names = model.features.iter().map(|feature| feature.name);
        self.metrics.drift(names.zip(window.features.iter().copied()), window.score, window.level());
        let level = window.level();
        if self.drift.level.unwrap_or(Level::Stable) != level {
            let top = window.features.iter().zip(&model.features).max_by(|a, b| a.0.total_cmp(b.0));
            let top = top.map_or(String::new(), |(psi, feature)| format!(", most in {} ({psi:.2})", feature.name));
            let score = window.score.map_or(String::new(), |psi| format!(", score {psi:.2}"));
            tracing::warn!("drift is {}{score}{top}: PSI over {} flows", level.name(), self.config.model.drift_window);
        }
        (self.drift.last, self.drift.level) = (Some(window), Some(level));
        let fallback = self.config.model.drift_fallback && level == Level::High;
        if fallback != self.enforcer.drifted {
            self.enforcer.drifted = fallback;
            self.obey_ceilings();
            self.metrics.drift_fallback(fallback);
            self.enforcer.audit.write(Event::Drift { held: fallback });
            if fallback {
                tracing::warn!("drift is high: what models would drop is tagged");
            } else {
                tracing::info!("drift is not high any more: drops are obeyed again");
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_shadow_is_asked_what_it_has_time_for() {
        let mut pace = Pace::default();
        let ms = Duration::from_millis;
        assert!(!pace.fits(1, Duration::ZERO) && pace.fits(512, ms(1)), "nothing is known of it");
        pace.took(512, ms(50));
        assert!(pace.fits(512, ms(51)) && pace.fits(5, ms(1)) && !pace.fits(512, ms(40)));
        // A call that was slow for once is forgotten.
        pace.took(512, ms(400));
        assert_eq!((0..).position(|_| pace.fits(512, ms(40))), Some(45));
    }
}
