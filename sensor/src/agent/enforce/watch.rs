//! Once a second: the breaker, the ramp, what ended on the never-drop list, and the numbers for metrics.

use sensor_common::verdict::{Action, Origin};

use super::super::poll::Poller;
use super::moment;
use crate::audit::Event;
use crate::breaker::{Load, Second, Trip};
use crate::config::{Mode, OriginName};
use crate::metrics::{Enforcement, VerdictChange};
use crate::policy::Ramp;
use crate::verdicts::Moment;
use crate::verdicts::scope::Scope;

impl Poller {
    /// Everything that is due once a second.
    pub(in crate::agent) fn enforcement_second(&mut self) {
        let now = moment();
        self.enforcer.explanations = self.config.audit.explain_per_second;
        self.expire_allowed();
        let around = self.enforcer.surroundings.as_ref().and_then(|found| found.try_recv().ok());
        if let Some(around) = around {
            self.take_surroundings(around);
        }
        self.watch_breaker(now);
        self.count_ramp(now);
        self.watch_half_open(now);
        let enforcer = &mut self.enforcer;
        if enforcer.store.is_behind() {
            let state = enforcer.state();
            enforcer.store.replace(enforcer.book.iter(), enforcer.allow.entries().into_iter(), state);
        }
        self.publish_enforcement();
    }

    fn watch_breaker(&mut self, now: Moment) {
        let by_rule = "all was below the caps for breaker.reset_after";
        let minute = |ms: u64| ms / 60_000;
        let quiet_before = minute(self.enforcer.breaker.quiet_ms());
        // What operators and rules drop is no fault of the model.
        let drops = self.metrics.would_drop(Origin::Model);
        let load = Load { drops, sources: self.enforcer.accusations.len() as u64 };
        let Second { opened, closed, services } = self.enforcer.breaker.second(load, now.ns, now.unix_ms);
        if let Some(trip) = opened {
            self.tripped(trip);
        }
        if let Some(trip) = closed {
            self.closed(trip, by_rule.to_owned());
        } else if self.enforcer.breaker.trip().is_some() && quiet_before != minute(self.enforcer.breaker.quiet_ms()) {
            // So that a restart does not begin the quiet time anew.
            self.enforcer.keep_state();
        }
        for service in services {
            self.service_freed(service, by_rule.to_owned());
        }
    }

    /// Sources that a model has dropped whole.
    pub(super) fn blocked_sources(&self) -> u64 {
        let by_model = |verdict: &&crate::verdicts::Verdict| {
            verdict.origin == OriginName::Model
                && Action::from(verdict.action) == Action::Drop
                && matches!(verdict.scope, Scope::Source(_))
        };
        let book = &self.enforcer.book;
        // Sources are few beside flows: only if there are any is the book read through.
        if book.held()[1] == 0 { 0 } else { book.iter().filter(by_model).count() as u64 }
    }

    /// The breaker opened: from the next packet on, models tag.
    pub(in crate::agent) fn tripped(&mut self, trip: Trip) {
        self.obey_ceilings();
        self.metrics.breaker_tripped(trip.cap);
        tracing::error!(
            "the breaker is open: {trip}; verdicts of models tag and no more until it is closed (`sensor breaker reset`)"
        );
        self.enforcer.audit.write(Event::BreakerTripped { trip, text: trip.to_string() });
        self.enforcer.keep_state();
        self.publish_enforcement();
    }

    /// The breaker closed.
    pub(super) fn closed(&mut self, trip: Trip, by: String) {
        // What a model decided that exceeded its caps is not obeyed afterwards: flows that go on are judged anew, under the caps.
        let decided = self.enforcer.book.models_below(f64::INFINITY);
        self.withdraw_all(decided, "the breaker closes");
        self.obey_ceilings();
        tracing::warn!("the breaker is closed ({by}); it was open because {trip}");
        self.enforcer.audit.write(Event::BreakerReset { trip, by });
        self.enforcer.keep_state();
        self.publish_enforcement();
    }

    /// The ramp begins with mode enforce.
    pub(in crate::agent) fn count_ramp(&mut self, now: Moment) {
        let enforcer = &mut self.enforcer;
        let minute = |enforced: Option<Ramp>| enforced.map(|ramp| ramp.spent_ms() / 60_000);
        let before = minute(enforcer.enforced);
        let lasts = enforcer.mode == Mode::Enforce
            && enforcer.enforced.get_or_insert_default().lasts(now.ns, self.config.policy.ramp);
        if lasts && before != minute(enforcer.enforced) {
            enforcer.keep_state();
        }
        let begins = lasts && !enforcer.ramp;
        if lasts != enforcer.ramp {
            enforcer.ramp = lasts;
            let score = self.config.policy.ramp_score;
            enforcer.audit.write(Event::Ramp { lasts, score });
            match lasts {
                true => tracing::info!("the ramp begins: only scores from {score} on drop (policy.ramp)"),
                false => tracing::info!("the ramp is over"),
            }
        }
        self.policy.set_ramp(lasts);
        if begins {
            // What observe has decided, or an earlier agent without a ramp, is bound by it, too: those flows are judged anew.
            let doubtful = self.enforcer.book.models_below(self.config.policy.ramp_score);
            self.withdraw_all(doubtful, "the ramp begins");
        }
    }

    /// A verdict of a model or a rule could not be entered.
    pub(in crate::agent) fn refused(&mut self, reason: &str) {
        self.metrics.verdict_refused();
        tracing::debug!("no verdict: {reason}");
    }

    /// Gauges and totals for metrics and the status.
    pub(in crate::agent) fn publish_enforcement(&self) {
        let enforcer = &self.enforcer;
        self.metrics.enforcement(Enforcement {
            mode: Some(enforcer.mode),
            tripped: enforcer.breaker.trip().is_some(),
            services_held: enforcer.breaker.services().open().len() as u64,
            ramp: enforcer.ramp,
            verdicts: enforcer.book.counts(),
            never_drop: enforcer.allow.counts(),
            audit: [enforcer.audit.written(), enforcer.audit.lost()],
            store_errors: enforcer.store.errors(),
            state_kept: self.config.agent.state_dir.is_some().then(|| enforcer.store.problem().is_none()),
        });
    }

    /// The verdict was renewed in the book; counted only.
    pub(in crate::agent) fn count_renewed(&self, id: u64) {
        if let Some(verdict) = self.enforcer.book.get(id) {
            self.note_change(VerdictChange::Renewed, verdict);
        }
    }
}
