//! Lists of flows, made in slices between polls: whoever asks waits, and no poll does.
//!
//! Invariant: one list is made at a time, that of an administrator first, and what is held for it is bounded by
//! [`crate::view::MAX_FLOWS`], not by the table. Owned by [`super::poll`].

use std::collections::HashMap;

use sensor_common::flow::FlowRecord;
use sensor_common::table::WAYS;
use tokio::sync::oneshot;

use super::clock::now_ns;
use super::poll::Poller;
use super::report::flow;
use crate::view::{FlowOrder, FlowPage, FlowView, FlowsQuery, MAX_FLOWS, SortKey, sort_flows, top};

/// Buckets of a slice, and flows of one: some milliseconds.
const BUCKETS: usize = 512;
const FLOWS: usize = 512;

/// A list that is being made.
pub(super) struct Dump {
    query: FlowsQuery,
    reply: oneshot::Sender<FlowPage>,
    /// Slot that is looked at next.
    at: usize,
    /// Slots and generations of flows that may be among the first, with what they are ordered by.
    ranked: Vec<(f64, usize, u32)>,
    views: Vec<FlowView>,
}

impl Dump {
    pub(super) fn new(query: FlowsQuery, reply: oneshot::Sender<FlowPage>) -> Dump {
        let at = if let FlowOrder::Table { from } = query.order { from } else { 0 };
        let limit = query.limit.clamp(1, MAX_FLOWS);
        Dump { query: FlowsQuery { limit, ..query }, reply, at, ranked: Vec::new(), views: Vec::new() }
    }

    /// The larger, the earlier.
    fn rank(poller: &Poller, slot: usize, record: &FlowRecord, sort: SortKey, now: u64) -> f64 {
        let reverse = record.reverse();
        match sort {
            SortKey::Bytes => (record.forward().l3_bytes + reverse.map_or(0, |half| half.l3_bytes)) as f64,
            SortKey::Packets => record.packets() as f64,
            SortKey::Age => now.saturating_sub(record.first_ns) as f64,
            SortKey::Score => {
                let memory = &poller.memories[slot];
                let score = memory.score.filter(|_| memory.generation == record.generation);
                score.map_or(-1.0, |score| score.score.into())
            }
        }
    }

    /// Goes on for a slice; whether the list is whole.
    fn go_on(&mut self, poller: &Poller, now: u64) -> bool {
        let names: HashMap<u32, &str> =
            poller.attached.iter().map(|one| (one.ifindex, one.interface.as_str())).collect();
        let view =
            |slot: usize, record: &FlowRecord| flow(poller, slot, record, names.get(&record.ifindex).copied(), now);
        let table = &poller.kernel.table;
        let (end, limit) = (table.capacity(), self.query.limit);
        let until = end.min(self.at.saturating_add(BUCKETS * WAYS));
        match self.query.order {
            FlowOrder::Table { .. } => {
                while self.at < until && self.views.len() < limit {
                    let slot = self.at;
                    self.at += 1;
                    if table.bucket(slot / WAYS).tags[slot % WAYS] != 0
                        && let Some(record) = table.copy(slot)
                    {
                        self.views.push(view(slot, &record));
                    }
                }
                self.at >= end || self.views.len() >= limit
            }
            FlowOrder::Largest(sort) if self.at < end => {
                for number in self.at / WAYS..until / WAYS {
                    let tags = table.bucket(number).tags;
                    for (way, _) in tags.iter().enumerate().filter(|(_, tag)| **tag != 0) {
                        let slot = number * WAYS + way;
                        let Some(record) = table.copy(slot) else { continue };
                        self.ranked.push((Dump::rank(poller, slot, &record, sort, now), slot, record.generation));
                    }
                }
                self.at = until;
                if self.at >= end || self.ranked.len() >= 2 * limit + BUCKETS {
                    top(&mut self.ranked, limit, |a, b| b.0.total_cmp(&a.0).then(a.1.cmp(&b.1)));
                    self.ranked.truncate(limit);
                }
                self.at >= end && self.ranked.is_empty()
            }
            FlowOrder::Largest(sort) => {
                for (_, slot, generation) in self.ranked.split_off(self.ranked.len().saturating_sub(FLOWS)) {
                    // One that has ended since is left out.
                    let record = table.copy(slot).filter(|record| record.generation == generation);
                    self.views.extend(record.map(|record| view(slot, &record)));
                }
                if self.ranked.is_empty() {
                    sort_flows(&mut self.views, sort, limit);
                }
                self.ranked.is_empty()
            }
        }
    }

    fn finish(self, end: usize) {
        let Dump { query, reply, at, views, .. } = self;
        let next = matches!(query.order, FlowOrder::Table { .. }).then_some(at).filter(|at| *at < end);
        // Nobody may wait any more.
        let _ = reply.send(FlowPage { flows: views, next });
    }
}

impl Poller {
    /// Takes a wish for a list on.
    pub(super) fn begin_dump(&mut self, query: FlowsQuery, reply: oneshot::Sender<FlowPage>) {
        let (first, dump) = (query.first, Dump::new(query, reply));
        if first {
            self.dumps.push_front(dump);
        } else {
            self.dumps.push_back(dump);
        }
    }

    /// Works on the list whose turn it is, for a slice.
    pub(super) fn go_on_with_dumps(&mut self) {
        let Some(mut dump) = self.dumps.pop_front() else { return };
        if dump.reply.is_closed() {
            return;
        }
        if dump.go_on(self, now_ns()) {
            dump.finish(self.kernel.table.capacity());
        } else {
            self.dumps.push_front(dump);
        }
    }
}
