//! The scoring part of a poll: records that the scan copied → model → policy → verdicts in the table.
//!
//! Invariant: a flow that is not scored (the model failed) keeps the verdict that it has. Called by [`super::poll`].

use std::ops::Range;
use std::time::{Duration, Instant};

use sensor_common::context::HostContext;
use sensor_common::features::Sample;
use sensor_common::flow::{FlowRecord, note, state};
use sensor_common::packet::protocol;
use sensor_common::table::phase;
use sensor_common::verdict::{Action, Origin, Verdict};

use super::clock::now_ns;
use super::poll::{Candidate, Poller};
use super::report;
use super::start::lease_until;
use crate::config::OriginName;
use crate::model::{Model, Score, explain};
use crate::policy::{self, Decision};
use crate::vector;
use crate::verdicts::scope::Scope;
use crate::verdicts::{Evidence, Order, Reason};

/// Verdicts that are logged one by one in a second; the rest is one line with their number.
const LOGGED_PER_SECOND: u32 = 20;
/// Features that a verdict names.
const REASONS: usize = 5;

/// How long a verdict on an answered flow without a handshake lasts at most.
const ANSWERED_TTL: Duration = Duration::from_secs(60);

/// How long a model's verdict on a flow lasts. Whoever knows the ports can send in the name of either end of a flow
/// without a handshake: where it was answered, it may be an innocent's, and is judged anew by what it does after a
/// minute.
fn lasts(record: &FlowRecord, configured: Duration) -> Duration {
    let answered = record.key.protocol != protocol::TCP && record.phase() == phase::ANSWERED;
    if answered { configured.min(ANSWERED_TTL) } else { configured }
}

impl Poller {
    /// Scores what was copied, and stores what the policy decides. A shadow is scored until `deadline`.
    pub(super) fn score(&mut self, now: u64, deadline: Instant) {
        if self.model.is_none() {
            return;
        }
        let (mut first, batch) = (0, self.config.model.max_batch as usize);
        let mut scores = std::mem::take(&mut self.scores);
        let mut all = Vec::with_capacity(if self.shadow.is_some() { self.records.len() } else { 0 });
        while first < self.records.len() {
            let last = (first + batch).min(self.records.len());
            // A model that is slow over many flows must not let the lease run out.
            self.renew_lease(now_ns());
            if Instant::now() >= deadline {
                // Verdicts first: reasons are for polls that have the time.
                self.enforcer.explanations = 0;
            }
            self.infer(first..last, &mut scores, now);
            self.observe_drift(&scores);
            if self.shadow.is_some() {
                all.extend((0..last - first).map(|offset| scores.get(offset).copied()));
            }
            for (number, score) in (first..last).zip(&scores) {
                match self.candidates[number] {
                    Candidate { slot: Some(slot) } => self.judge(number, slot, *score, now),
                    Candidate { slot: None } => {
                        let record = self.records[number];
                        self.judge_ended(&record, *score, now);
                    }
                }
            }
            first = last;
        }
        self.scores = scores;
        self.score_shadow(&all, now, deadline);
    }

    /// One inference call. `scores` has one score per record, or none if it failed.
    fn infer(&mut self, rows: Range<usize>, scores: &mut Vec<Score>, now: u64) {
        let contexts = self.contexts(self.model.as_ref(), rows.clone(), now);
        let Some(model) = &mut self.model else { return };
        let (begun, invalid, count) = (Instant::now(), model.invalid(), rows.len());
        match model.score(&self.records[rows], &contexts, scores) {
            Ok(()) => self.metrics.inference(count as u64, begun.elapsed()),
            Err(error) => {
                self.metrics.inference_error();
                tracing::error!("inference failed, {count} flows stay unscored: {error:#}");
            }
        }
        if model.invalid() > invalid {
            self.metrics.inference_error();
            tracing::error!("the model gave no finite number for {} flows; they pass", model.invalid() - invalid);
        }
    }

    /// The host context of these records, if the model looks at it.
    pub(super) fn contexts(&self, model: Option<&Model>, rows: Range<usize>, now: u64) -> Vec<HostContext> {
        if !model.is_some_and(Model::wants_context) {
            return Vec::new();
        }
        self.records[rows].iter().map(|record| self.host_context(record, now)).collect()
    }

    /// What becomes of the living flow in `slot`, whose record is number `number`.
    fn judge(&mut self, number: usize, slot: usize, score: Score, now: u64) {
        let record = self.records[number];
        if record.steady & note::FREED != 0 {
            self.freed(&record);
        }
        let score = self.standing_score(&record, score, now);
        let decision = self.policy.decide(&record, score, &self.enforcer.allow);
        let mut decision = self.spare(&record, score, decision, now);
        let record = &record;
        let now_ms = self.ms_of(now);
        let memory = &mut self.memories[slot];
        let wanted = decision.action;
        let ended = memory.has_ended(now_ms);
        if ended {
            // There is nothing left to drop but what comes next on these ports.
            decision = Decision { action: Action::Pass, would: Action::Pass, ..decision };
        }
        if memory.verdict.is_some_and(|(_, until)| until <= now) {
            // It has expired: what follows is a new verdict, to be counted and logged.
            (memory.verdict, memory.would) = (None, None);
        }
        let cleared = self.policy.clears(score) && memory.verdict.take().is_some();
        let reported_before = memory.judged(record, score).is_some_and(|before| self.policy.reports(before));
        let new_report = decision.reported && !reported_before;
        let announced = memory.would.take();
        if cleared {
            // More packets have cleared the flow.
            self.clear_flow(number, slot, score);
        }
        if decision.action <= Action::Tag && decision.spared.is_none() {
            // A model that is wrong about everybody is so about those that are gone, too.
            self.weigh(record, ended && wanted > Action::Tag, now);
        }
        if decision.would == Action::Pass {
            if new_report {
                self.announce(number, score, decision, announced);
            }
            return;
        }
        // What another verdict covers is neither counted nor logged, until that one has ended.
        let Some(stored) = self.decide_flow(number, slot, score, decision, now) else { return };
        let decision = Decision { action: stored, ..decision };
        let told = (stored.min(self.enforcer.ceiling(Origin::Model)), decision.would);
        self.memories[slot].would = Some(told);
        // A renewed verdict is not announced again; one that was withheld, and is not any more, is.
        if announced != Some(told) {
            self.announce(number, score, decision, announced);
        }
    }

    /// Stores a decision: in the book, in the kernel, in the record. The action that was stored; `None`: another verdict
    /// covers it.
    fn decide_flow(
        &mut self,
        number: usize,
        slot: usize,
        score: Score,
        decision: Decision,
        now: u64,
    ) -> Option<Action> {
        let record = self.records[number];
        let (key, generation) = (record.key, record.generation);
        if self.enforcer.pardons.holds(&Scope::Flow(key), now) {
            return None;
        }
        if self.enforcer.book.covers(&key, policy::initiator(&record), decision.action) {
            return None;
        }
        let mut decision = decision;
        if decision.action > Action::Tag {
            let party = self.weigh(&record, true, now);
            if self.enforcer.breaker.holds(party) {
                decision.action = Action::Tag;
            }
        }
        let ttl = lasts(&record, self.config.policy.verdict_ttl);
        let until = now + ttl.as_nanos() as u64;
        let own = self.enforcer.book.of(&Scope::Flow(key));
        let same = own.filter(|own| Action::from(own.action) == decision.action).map(|own| (own.id, own.until_ns));
        let word = |action, until| Verdict::new(action, score.label, generation, until);
        if let Some((id, until_ns)) = same {
            // What stands in the kernel's map and in the store is moved on when half of its time is over.
            if until_ns.saturating_sub(now) > ttl.as_nanos() as u64 / 2 {
                self.store_word(slot, word(decision.action, until_ns));
                return Some(decision.action);
            }
            self.count_renewed(id);
        }
        let accused = (decision.action == Action::Drop).then(|| policy::accuses(&self.records[number])).flatten();
        let evidence = self.evidence(number, score, same.is_none());
        let order = Order {
            scope: Scope::Flow(key),
            action: decision.action,
            rate: self.policy.rate(decision.action),
            origin: Origin::Model,
            for_ms: ttl.as_millis() as u64,
            evidence: evidence.clone(),
        };
        match self.enter(order) {
            Ok((id, _)) => {
                self.store_word(slot, word(decision.action, until));
                let enough = self.config.policy.escalate_flows;
                if let Some(source) = accused
                    && self.enforcer.accuse(id, source, enough)
                {
                    self.escalate(source, evidence);
                }
            }
            Err(reason) => {
                self.refused(&reason);
                // What is in no list could be neither seen nor undone: it tags and no more.
                let most = decision.action.min(Action::Tag);
                self.store_word(slot, word(most, until));
                return Some(most);
            }
        }
        Some(decision.action)
    }

    fn store_word(&mut self, slot: usize, word: Verdict) {
        self.kernel.table.store_verdict(slot, word.0);
        self.memories[slot].verdict = Some((word.action(), word.until_ns()));
    }

    /// Takes back what the model decided of a flow.
    fn clear_flow(&mut self, number: usize, slot: usize, score: Score) {
        let key = self.records[number].key;
        let own = self.enforcer.book.of(&Scope::Flow(key)).filter(|own| own.origin == OriginName::Model);
        match own.map(|own| own.id) {
            Some(id) => drop(self.withdraw(id, format!("the model, with a score of {:.3}", score.score))),
            None => self.kernel.table.store_verdict(slot, Verdict::default().0),
        }
    }

    /// Why a flow gets its verdict. `explain`: with the features that made the score, as often as the configuration allows.
    fn evidence(&mut self, number: usize, score: Score, explain: bool) -> Evidence {
        let record = &self.records[number];
        let mut evidence = Evidence {
            label: Some(self.label(score).to_owned()),
            label_number: score.label,
            score: Some(f64::from(score.score)),
            flow: Some(report::oriented_text(record)),
            ..Evidence::default()
        };
        let explain = explain && self.enforcer.explanations > 0;
        let context = self.host_context(record, now_ns());
        let Some(model) = &mut self.model else { return evidence };
        evidence.who = format!("model {}", model.name);
        evidence.model = Some(model.hash.clone());
        if !explain {
            return evidence;
        }
        self.enforcer.explanations -= 1;
        // Each is a call of the model.
        self.lease_until_ns = lease_until(&self.config, now_ns());
        self.kernel.control.set_lease(self.lease_until_ns);
        self.watchdog.feed();
        let sample = Sample { record: &self.records[number], context: &context };
        let mut row = vec![0.0; model.features.len()];
        vector::fill(&model.features, &sample, &mut row);
        match explain::explain(model, &row) {
            Ok(explanation) => {
                let reason = |effect: explain::Effect| {
                    Some(Reason {
                        feature: effect.feature.to_owned(),
                        value: effect.value.map(f64::from),
                        effect: f64::from(effect.effect?),
                    })
                };
                // None is better than one that any other feature would be, too.
                let effects = explanation.effects.into_iter().filter(|_| !explanation.same);
                evidence.reasons = effects.filter_map(reason).take(REASONS).collect();
            }
            Err(error) => tracing::debug!("a score could not be explained: {error:#}"),
        }
        evidence
    }

    /// The flow has ended: nothing can be stored, but what would have been is counted, unless it had a verdict: that was.
    pub(super) fn judge_ended(&mut self, record: &FlowRecord, score: Score, now: u64) {
        if Verdict(record.verdict).is_some() {
            return;
        }
        let decision = self.policy.decide(record, score, &self.enforcer.allow);
        let decision = self.spare(record, score, decision, now);
        match decision.spared {
            Some(why) => self.metrics.spared(why),
            None => drop(self.weigh(record, decision.action > Action::Tag, now)),
        }
        let closed = record.state & state::CLOSED != 0;
        if decision.would != Action::Pass && !closed {
            self.metrics.would_verdicts(decision.would, self.label(score), 1);
        } else if decision.reported {
            self.metrics.reported(self.label(score), 1);
        }
    }

    /// Counts and logs a new verdict, or a report without one. `before`: what was done and would have been, as it was
    /// announced last.
    fn announce(&mut self, number: usize, score: Score, decision: Decision, before: Option<(Action, Action)>) {
        let label = self.label(score);
        let done = decision.action.min(self.enforcer.ceiling(Origin::Model));
        let [counted_done, counted_would] = policy::to_count((done, decision.would), before);
        if decision.would == Action::Pass {
            self.metrics.reported(label, 1);
        }
        if let Some(why) = decision.spared {
            self.metrics.spared(why);
        }
        if counted_done {
            self.metrics.verdicts(done, label, 1);
        }
        if counted_would {
            self.metrics.would_verdicts(decision.would, label, 1);
        }
        if self.logged < LOGGED_PER_SECOND {
            if let Some(model) = &self.model {
                report::log_verdict(&self.records[number], score, label, done, decision, model);
            }
            self.logged += 1;
        } else {
            self.unlogged += 1;
        }
    }

    pub(super) fn label(&self, score: Score) -> &str {
        let labels = self.model.as_ref().map(|model| model.labels.as_slice()).unwrap_or_default();
        labels.get(score.label as usize).map_or("?", String::as_str)
    }
}
