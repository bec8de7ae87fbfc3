//! Once a second: the breaker, the ramp, half-open floods, what ended on the never-drop list, and the numbers for metrics.

use std::collections::HashMap;
use std::time::Duration;

use sensor_common::packet::protocol;
use sensor_common::verdict::{Action, Origin};

use super::super::clock::now_ns;
use super::super::poll::Poller;
use super::moment;
use crate::audit::Event;
use crate::breaker::{Load, Trip};
use crate::config::{Mode, OriginName};
use crate::metrics::{Enforcement, VerdictChange};
use crate::policy::Ramp;
use crate::verdicts::scope::{Scope, Service};
use crate::verdicts::{Evidence, Moment, Order, Rate};

/// How long a limit of half-open connections holds after the last second in which it was needed.
const HALF_OPEN_FOR: Duration = Duration::from_secs(60);
/// Share of a service's new flows that stay half-open, from which on there is a flood and not a busy service.
const HALF_OPEN_SHARE: f64 = 0.5;
/// Services that are limited at most at the same time by this rule.
const HALF_OPEN_SERVICES: usize = 64;

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
        let sources = self.sources();
        // What operators and rules drop is no fault of the model.
        let drops = self.metrics.would_drop(Origin::Model);
        let load = Load { drops, flows: self.enforcer.scored, sources };
        match self.enforcer.breaker.second(load, now.ns, now.unix_ms) {
            Some(Ok(trip)) => self.tripped(trip),
            Some(Err(trip)) => self.closed(trip, "all was below the caps for breaker.reset_after".to_owned()),
            None => {}
        }
    }

    /// Sources with a new flow in the last minute, and those that a model has dropped.
    pub(super) fn sources(&self) -> [u64; 2] {
        let by_model = |verdict: &&crate::verdicts::Verdict| {
            verdict.origin == OriginName::Model && Action::from(verdict.action) == Action::Drop
        };
        let book = &self.enforcer.book;
        // Sources are few beside flows: only if there are any is the book read through.
        let under = if book.held()[1] == 0 {
            0
        } else {
            book.iter().filter(by_model).filter(|verdict| matches!(verdict.scope, Scope::Source(_))).count() as u64
        };
        [self.metrics.context_view().map_or(0, |context| context.sources), under]
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
        self.enforcer.scored[1] = 0;
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

    /// Limits half-open connections to services that are flooded with them.
    fn watch_half_open(&mut self, now: Moment) {
        let most = self.config.policy.half_open_limit;
        let Some(follower) = self.follower.as_ref().filter(|_| most > 0) else { return };
        let mut flooded: Vec<(Service, String)> = Vec::new();
        for (service, rate, share) in follower.half_open(now.ns, f64::from(most)) {
            if service.protocol == protocol::TCP && share >= HALF_OPEN_SHARE && flooded.len() < HALF_OPEN_SERVICES {
                let note = format!("{rate:.0} half-open connections a second, {:.0} % of all", share * 100.0);
                flooded.push((service, note));
            }
        }
        // While a limit works, what it stops is in no record: the entry says whether it is still needed.
        if self.enforcer.book.held()[2] > 0 {
            let counts: HashMap<u64, u64> = match self.kernel.verdicts.services() {
                Ok(entries) => entries.into_iter().map(|(_, entry)| (entry.id, entry.packets)).collect(),
                Err(error) => return tracing::error!("{error:#}"),
            };
            let own = self.enforcer.book.iter().filter(|verdict| verdict.origin == OriginName::Rule);
            let own: Vec<_> = own.map(|verdict| (verdict.id, verdict.scope)).collect();
            for (id, scope) in own {
                let Scope::Service(service) = scope else { continue };
                let packets = counts.get(&id).copied().unwrap_or_default();
                let before = self.enforcer.limited.insert(id, packets).unwrap_or_default();
                if packets > before && !flooded.iter().any(|(known, _)| *known == service) {
                    flooded.push((service, String::new()));
                }
            }
        }
        for (service, note) in flooded {
            let scope = Scope::Service(service);
            let half = HALF_OPEN_FOR.as_nanos() as u64 / 2;
            let held = self.enforcer.book.of(&scope);
            if self.enforcer.pardons.holds(&scope, now.ns) {
                continue;
            }
            if held.is_some_and(|verdict| {
                verdict.origin != OriginName::Rule || verdict.until_ns > now.ns.saturating_add(half)
            }) {
                continue;
            }
            let order = Order {
                scope,
                action: Action::Limit,
                rate: Rate { packets: u64::from(most), bytes: 0 },
                // No model is asked: neither its breaker nor drift takes this answer to floods away.
                origin: Origin::Rule,
                for_ms: HALF_OPEN_FOR.as_millis() as u64,
                evidence: Evidence { who: "half-open rule".to_owned(), note: note.clone(), ..Evidence::default() },
            };
            match self.enter(order) {
                Ok((id, true)) => tracing::warn!(
                    "half-open connections to {service} are limited to {most} a second (verdict {id}): {note}"
                ),
                Ok((_, false)) => {}
                Err(reason) => self.refused(&reason),
            }
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
            ramp: enforcer.ramp,
            verdicts: enforcer.book.counts(),
            never_drop: enforcer.allow.counts(),
            audit: [enforcer.audit.written(), enforcer.audit.lost()],
            store_errors: enforcer.store.errors(),
            state_kept: self.config.agent.state_dir.is_some().then(|| enforcer.store.problem().is_none()),
        });
    }

    /// A model's verdict that drops is about to be stored.
    pub(in crate::agent) fn before_drop(&mut self) {
        let now = now_ns();
        let unix_ms = moment().unix_ms;
        if let Some(trip) = self.enforcer.breaker.verdict(self.enforcer.scored, now, unix_ms) {
            self.tripped(trip);
        }
        self.enforcer.scored[1] += 1;
    }

    /// The verdict was renewed in the book; counted only.
    pub(in crate::agent) fn count_renewed(&self, id: u64) {
        if let Some(verdict) = self.enforcer.book.get(id) {
            self.note_change(VerdictChange::Renewed, verdict);
        }
    }
}
