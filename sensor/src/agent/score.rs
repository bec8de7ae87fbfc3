//! The scoring part of a poll: records that the scan copied → model → policy → verdicts in the table.
//!
//! Invariant: a flow that is not scored (the model failed) keeps the verdict that it has. Called by [`super::poll`].

use std::ops::Range;
use std::time::Instant;

use sensor_common::context::HostContext;
use sensor_common::verdict::{Action, Verdict};

use super::clock::now_ns;
use super::poll::{Candidate, Poller};
use super::report;
use crate::model::{Model, Score};
use crate::policy::Decision;

/// Verdicts that are logged one by one in a second; the rest is one line with their number.
const LOGGED_PER_SECOND: u32 = 20;

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
            self.infer(first..last, &mut scores, now);
            self.observe_drift(&scores);
            if self.shadow.is_some() {
                all.extend((0..last - first).map(|offset| scores.get(offset).copied()));
            }
            for (number, score) in (first..last).zip(&scores) {
                match self.candidates[number] {
                    Candidate { slot: Some(slot) } => self.judge(number, slot, *score, now),
                    Candidate { slot: None } => self.judge_ended(number, *score),
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
        let record = &self.records[number];
        let decision = self.policy.decide(record, score);
        let memory = &mut self.memories[slot];
        if memory.verdict.is_some_and(|(_, until)| until <= now) {
            // It has expired: what follows is a new verdict, to be counted and logged.
            (memory.verdict, memory.would) = (None, None);
        }
        if self.policy.clears(score) && memory.verdict.take().is_some() {
            // More packets have cleared the flow.
            self.kernel.table.store_verdict(slot, Verdict::default().0);
        }
        let reported_before = memory.score.replace(score).is_some_and(|before| self.policy.reports(before));
        let new_report = decision.reported && !reported_before;
        let would = Some(decision.would).filter(|action| *action != Action::Pass);
        let new = memory.would != would;
        memory.would = would;
        if would.is_none() {
            if new_report {
                self.announce(number, score, decision);
            }
            return;
        }
        if decision.action != Action::Pass {
            let until = now + self.config.policy.verdict_ttl.as_nanos() as u64;
            let verdict = Verdict::new(decision.action, score.label, record.generation, until);
            self.kernel.table.store_verdict(slot, verdict.0);
            memory.verdict = Some((decision.action, verdict.until_ns()));
        }
        // A renewed verdict is neither counted nor logged again.
        if new {
            self.announce(number, score, decision);
        }
    }

    /// The flow has ended: nothing can be stored, but what would have been is counted.
    fn judge_ended(&mut self, number: usize, score: Score) {
        let decision = self.policy.decide(&self.records[number], score);
        if decision.would != Action::Pass {
            self.metrics.would_verdicts(decision.would, self.label(score), 1);
        } else if decision.reported {
            self.metrics.reported(self.label(score), 1);
        }
    }

    /// Counts and logs a new verdict, or a report without one.
    fn announce(&mut self, number: usize, score: Score, decision: Decision) {
        let label = self.label(score);
        if decision.would == Action::Pass {
            self.metrics.reported(label, 1);
        } else if decision.action == Action::Pass {
            self.metrics.would_verdicts(decision.would, label, 1);
        } else {
            self.metrics.verdicts(decision.action, label, 1);
            if decision.action != decision.would {
                self.metrics.would_verdicts(decision.would, label, 1);
            }
        }
        if self.logged < LOGGED_PER_SECOND {
            if let Some(model) = &self.model {
                report::log_verdict(&self.records[number], score, label, decision, model);
            }
            self.logged += 1;
        } else {
            self.unlogged += 1;
        }
    }

    fn label(&self, score: Score) -> &str {
        let labels = self.model.as_ref().map(|model| model.labels.as_slice()).unwrap_or_default();
        labels.get(score.label as usize).map_or("?", String::as_str)
    }
}
