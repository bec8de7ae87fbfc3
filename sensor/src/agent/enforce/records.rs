//! Records follow the book: the word of each record in the table is what the book says of its flow.
//!
//! Called when a verdict comes or goes (its own flow, at once), and in each poll for the flows of sources whose verdicts have
//! changed.

use std::net::IpAddr;

use ipnet::IpNet;
use sensor_common::flow::{FlowKey, FlowRecord, state};
use sensor_common::hash::hash;
use sensor_common::table::{WAYS, bucket_of, tag_of};
use sensor_common::verdict::{Action, Origin, Verdict as Word};

use super::super::poll::Poller;
use super::enter::is_outlived;
use super::{Enforcer, moment};
use crate::config::{ActionName, OriginName};
use crate::policy::{accuses, initiator};
use crate::verdicts::Verdict;
use crate::verdicts::scope::{Scope, addresses};

/// Prefixes that are compared one by one with each record; with more, the book is asked.
const FEW: usize = 8;

/// The word that this verdict puts into a record.
fn word_of(verdict: &Verdict, generation: u32) -> Word {
    Word::new(verdict.action.into(), verdict.evidence.label_number, generation, verdict.until_ns)
        .of(verdict.origin.into())
}

impl Enforcer {
    /// Records of these sources have to follow the book.
    pub(super) fn mark(&mut self, scope: &Scope) {
        if let Scope::Source(prefix) = scope {
            self.stale.push(*prefix);
        }
    }
}

impl Poller {
    /// Where a flow is in the table.
    pub(in crate::agent) fn find(&self, key: &FlowKey) -> Option<(usize, FlowRecord)> {
        let seed = self.kernel.seed();
        let hash = hash(key, |position| seed[position]);
        let first = bucket_of(hash, self.kernel.table.buckets() as u32) as usize;
        let bucket = self.kernel.table.bucket(first);
        let tagged = (0..WAYS).filter(|way| bucket.tags[*way] == tag_of(hash)).map(|way| first * WAYS + way);
        tagged.into_iter().find_map(|slot| {
            let record = self.kernel.table.copy(slot)?;
            record.key.same(key).then_some((slot, record))
        })
    }

    /// Makes the word of a record what the book says.
    pub(super) fn stamp(&mut self, slot: usize, record: &FlowRecord, now: u64) {
        let enforcer = &self.enforcer;
        let verdict = enforcer.book.of_flow(&record.key, initiator(record));
        let verdict =
            verdict.filter(|verdict| !enforcer.allow.protects(record) && !is_outlived(verdict, record, moment()));
        let old = Word(record.verdict);
        let (by_model, accusing) = match verdict {
            Some(verdict) if verdict.origin == OriginName::Model => (
                Some((Action::from(verdict.action), verdict.until_ns)),
                matches!(verdict.scope, Scope::Flow(_)) && verdict.action == ActionName::Drop,
            ),
            _ => (None, false),
        };
        let id = verdict.map(|verdict| verdict.id);
        let word = match verdict {
            Some(verdict) => word_of(verdict, record.generation),
            // A tag of the model that the book had no room for.
            None if self.memories[slot].verdict.is_some()
                && old.origin() == Origin::Model as u8
                && old.action() == Action::Tag =>
            {
                return;
            }
            None => Word::default(),
        };
        // So that it is not judged while it is dropped, and is cleared by a good score.
        self.memories[slot].verdict = by_model;
        if accusing && let (Some(id), Some(source)) = (id, accuses(record)) {
            self.enforcer.accuse(id, source, 0);
        }
        if word != old && (word.is_some() || old.action_at(record.generation, now) != Action::Pass) {
            self.kernel.table.store_verdict(slot, word.0);
        }
    }

    /// One pass over the records, if verdicts on sources have changed.
    pub(in crate::agent) fn restamp(&mut self, now: u64) {
        let (stale, all) = (std::mem::take(&mut self.enforcer.stale), std::mem::take(&mut self.enforcer.all_stale));
        if stale.is_empty() && !all {
            return;
        }
        let few = !all && stale.len() <= FEW;
        let within = |address: IpAddr| stale.iter().any(|prefix: &IpNet| prefix.contains(&address));
        for number in 0..self.kernel.table.buckets() {
            self.breathe(number);
            let tags = self.kernel.table.bucket(number).tags;
            for way in (0..WAYS).filter(|way| tags[*way] != 0) {
                let slot = number * WAYS + way;
                let Some(head) = self.kernel.table.head(slot) else { continue };
                let source = addresses(&head.key)[usize::from(head.state & state::INITIATOR_HIGH != 0)];
                // A record without a word that no verdict concerns stays as it is.
                let concerned = if few {
                    within(source)
                } else {
                    Word(head.verdict).is_some() || self.enforcer.book.of_flow(&head.key, source).is_some()
                };
                if concerned && let Some(record) = self.kernel.table.copy(slot) {
                    self.stamp(slot, &record, now);
                }
            }
        }
    }

    /// The records of a verdict that is gone follow what is left.
    pub(super) fn clear(&mut self, verdict: &Verdict) {
        if let Scope::Flow(key) = &verdict.scope
            && let Some((slot, record)) = self.find(key)
        {
            (self.memories[slot].verdict, self.memories[slot].would) = (None, None);
            self.stamp(slot, &record, moment().ns);
        }
        self.enforcer.mark(&verdict.scope);
        self.enforcer.again.push(verdict.scope);
    }

    /// Looks once more at what was taken back before this poll: a packet that met the verdict just before may have begun a
    /// record with its word just after.
    pub(super) fn clear_again(&mut self, now: u64) {
        let again = std::mem::take(&mut self.enforcer.again);
        for (number, scope) in again.into_iter().enumerate() {
            self.breathe(number);
            self.enforcer.mark(&scope);
            if let Scope::Flow(key) = scope
                && let Some((slot, record)) = self.find(&key)
                && record.verdict != 0
            {
                self.stamp(slot, &record, now);
            }
        }
    }
}
