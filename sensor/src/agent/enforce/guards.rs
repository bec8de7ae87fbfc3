//! What bounds a model, flow by flow: the breaker hears of each judged flow, unproven flows of a held service are
//! tagged, and sources that keep doing the same are spared.

use sensor_common::flow::FlowRecord;
use sensor_common::verdict::Action;

use super::super::poll::Poller;
use super::moment;
use crate::audit::Event;
use crate::breaker::{Opened, Party, Trip};
use crate::company;
use crate::config::OriginName;
use crate::model::Score;
use crate::policy::{self, Decision, Spared};
use crate::steady::{Habitual, Visit};
use crate::verdicts::Verdict;
use crate::verdicts::scope::{Scope, Service, addresses};

impl Poller {
    /// The breaker hears of a flow that was judged: `accused` if the model drops or limits it, or would.
    pub(in crate::agent) fn weigh(&mut self, record: &FlowRecord, accused: bool, now: u64) -> Party {
        let party = policy::party(record, self.enforcer.allow.own());
        if !accused {
            // Who serves whom in a connection that was picked up midway is a guess.
            if policy::began_in_sight(record) {
                self.enforcer.breaker.passed(party, now);
            }
            return party;
        }
        match self.enforcer.breaker.accused(party, now, moment().unix_ms) {
            Some(Opened::All(trip)) => self.tripped(trip),
            Some(Opened::Service(service, trip)) => self.service_held(service, trip),
            None => {}
        }
        party
    }

    /// A connection has ended: it may be one of a habit.
    pub(in crate::agent) fn note_visit(&mut self, record: &FlowRecord, now: u64) {
        let party = policy::party(record, self.enforcer.allow.own());
        if let Some(visit) = Visit::of(record, party) {
            self.enforcer.steady.ended(&visit, now);
        }
    }

    /// The score that counts for a flow: the one with which it was accused before, if it has turned out to be a flood
    /// by itself. What is sent for long looks less like one to a model than its beginning did.
    pub(in crate::agent) fn standing_score(&self, record: &FlowRecord, score: Score, now: u64) -> Score {
        if !company::is_heavy(record) {
            return score;
        }
        let (Party::Proven(source) | Party::Unproven(_, source)) = policy::party(record, self.enforcer.allow.own());
        let before = self.enforcer.company.accused(source, record, now);
        before.filter(|before| before.score > score.score).unwrap_or(score)
    }

    /// What becomes of a decision if the flow is one of a habit, or of a source that is hardly accused otherwise.
    pub(in crate::agent) fn spare(
        &mut self,
        record: &FlowRecord,
        score: Score,
        decision: Decision,
        now: u64,
    ) -> Decision {
        if decision.would <= Action::Tag {
            return decision;
        }
        let party = policy::party(record, self.enforcer.allow.own());
        if let Some(visit) = Visit::of(record, party)
            && let Some(habit) = self.enforcer.steady.spares(&visit)
        {
            return self.spare_habit(&visit, habit, score, decision);
        }
        let (Party::Proven(source) | Party::Unproven(_, source)) = party;
        let enough = self.enforcer.company.accuse(source, record, score, now);
        if enough || company::is_heavy(record) { decision } else { decision.spare(Spared::Alone) }
    }

    fn spare_habit(&mut self, visit: &Visit, habit: Habitual, score: Score, decision: Decision) -> Decision {
        if habit.first {
            let ((source, service), minutes) = (visit.ends(), habit.age_ns / 60_000_000_000);
            let label = self.label(score).to_owned();
            let visits = habit.visits;
            tracing::info!(
                "{source} is not dropped at {service}, although the model says {label}: it has done the same {visits} \
                 times in {minutes} minutes (policy.steady_after); it is tagged"
            );
            self.enforcer.audit.write(Event::Spared {
                source,
                service: service.to_string(),
                label,
                score: f64::from(score.score),
                visits,
                seconds: habit.age_ns / 1_000_000_000,
            });
        }
        decision.spare(Spared::Steady)
    }

    /// A model is wrong about the unproven flows of one service, or somebody forges their sources: they are tagged
    /// only.
    fn service_held(&mut self, service: Service, trip: Trip) {
        self.metrics.breaker_tripped(trip.cap);
        tracing::error!(
            "the breaker of {service} is open: {trip}; its flows without a proven source are tagged and no more until it \
             is closed (`sensor breaker reset`)"
        );
        self.enforcer.audit.write(Event::ServiceHeld { service: service.to_string(), trip, text: trip.to_string() });
        self.withdraw_unproven(service, "the breaker of its service is open");
        self.publish_enforcement();
    }

    pub(super) fn service_freed(&mut self, service: Service, by: String) {
        tracing::warn!("the breaker of {service} is closed ({by})");
        self.enforcer.audit.write(Event::ServiceFreed { service: service.to_string(), by });
        self.publish_enforcement();
    }

    /// Takes back what models decided of this service's flows without a proven source.
    fn withdraw_unproven(&mut self, service: Service, by: &str) {
        let own = self.enforcer.allow.own();
        let concerned = |verdict: &&Verdict| {
            let Scope::Flow(key) = &verdict.scope else { return false };
            let ends = addresses(key);
            verdict.origin == OriginName::Model
                && Action::from(verdict.action) > Action::Tag
                && key.protocol == service.protocol
                && ends.contains(&service.address)
                && self.find(key).is_none_or(
                    |(_, record)| matches!(policy::party(&record, own), Party::Unproven(of, _) if of == service),
                )
        };
        let ids = self.enforcer.book.iter().filter(concerned).map(|verdict| verdict.id).collect();
        self.withdraw_all(ids, by);
    }
}
