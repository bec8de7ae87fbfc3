//! What a poll does with the table: flows that are due are copied, those that have ended are released, and records that the
//! programs gave up are taken from their ring.

use sensor_common::context;
use sensor_common::flow::FlowRecord;
use sensor_common::table::{Bucket, WAYS, occupied_ways, tick_of};

use super::{Candidate, Poller};
use crate::harvest::Step;
use crate::metrics::EndReason;
use crate::model::{Model, Score};

/// What one scan goes by.
struct Scan {
    /// Monotonic clock, ns.
    now: u64,
    /// Since the agent's start.
    now_ms: u32,
    /// A score tells of the record alone, so that of an unchanged record stands.
    lasting: bool,
    /// No more can be scored in this poll.
    full: bool,
}

impl Poller {
    /// Records that the programs gave up for new flows.
    pub(super) fn take_evicted(&mut self, now: u64) {
        let mut ended = 0;
        // Bounded: in a flood the programs refill the ring while it is read.
        while ended < self.config.model.max_flows_per_poll as u64 {
            let Some(record) = self.kernel.next_evicted() else { break };
            ended += 1;
            self.ended(None, &record, None, now);
        }
        if ended > 0 {
            self.metrics.flows_ended(EndReason::Evicted, ended);
        }
    }

    /// A flow that ended is scored a last time, unless its `score` is known already. `slot`: where it was, if that is known.
    fn ended(&mut self, slot: Option<usize>, record: &FlowRecord, score: Option<Score>, now: u64) {
        self.flow_ended(&record.key);
        self.note_visit(record, now);
        if let Some(follower) = &mut self.follower {
            follower.ended(slot, record, now);
        }
        if self.model.is_none() || record.packets() < self.policy.min_packets() {
            return;
        }
        if let Some(score) = score {
            self.judge_ended(record, score, now);
        } else if self.records.len() < self.config.model.max_flows_per_poll as usize {
            self.candidates.push(Candidate { slot: None });
            self.records.push(*record);
        } else {
            self.metrics.unscored();
        }
    }

    /// Looks at every bucket once, from the cursor on, and at the flows in it that do not rest.
    pub(super) fn scan(&mut self, now: u64) {
        let buckets = self.kernel.table.buckets();
        let start = self.cursor;
        self.cursor = 0;
        self.occupied = 0;
        let now_ms = (now.saturating_sub(self.started_ns) / 1_000_000) as u32;
        // What a source does changes while its flow waits for its end.
        let lasting = !self.model.as_ref().is_some_and(Model::wants_context);
        let mut scan = Scan { now, now_ms, lasting, full: false };
        for offset in 0..buckets {
            let number = (start + offset) % buckets;
            let bucket = self.kernel.table.bucket(number);
            self.occupied += u64::from(occupied_ways(&bucket.tags));
            let mut ways = self.memories.to_look_at(number, &bucket, context::tick_of(now));
            while ways != 0 {
                self.look(number, ways.trailing_zeros() as usize, &bucket, &scan);
                ways &= ways - 1;
            }
            if !scan.full && self.records.len() >= self.config.model.max_flows_per_poll as usize {
                scan.full = true;
                self.cursor = (number + 1) % buckets;
            }
        }
    }

    fn look(&mut self, number: usize, way: usize, bucket: &Bucket, scan: &Scan) {
        let Scan { now, now_ms, lasting: _, full } = *scan;
        let slot = number * WAYS + way;
        let (tag, stage, seen) = (bucket.tags[way], bucket.stages[way], bucket.seen[way]);
        let unseen = self.follower.as_mut().map(|follower| follower.look(&self.kernel.table, slot, tag, seen, now));
        let memory = &mut self.memories[slot];
        let step = memory.look(tag, stage, seen, tick_of(now), now_ms, &self.timeouts);
        // Of the flows that go on, also those that this poll is the first to score: they are judged by the share below.
        let (scored, condemned) = (memory.score.is_some() || step == Step::Score, memory.is_condemned(now));
        let mut rest = unseen.unwrap_or(u32::MAX);
        match step {
            Step::Leave if tag == 0 => {}
            Step::Leave => rest = rest.min(memory.rest(stage, seen, now, now_ms, &self.timeouts).into()),
            Step::Release(reason) => {
                rest = 0;
                self.release(slot, reason, scan);
            }
            Step::Score => {
                rest = 0;
                // Writers inside at every try: the next poll looks again.
                if self.model.is_some()
                    && !full
                    && !condemned
                    && let Some(record) = self.kernel.table.copy(slot)
                {
                    memory.mark_scored(seen, now_ms, record.generation);
                    self.candidates.push(Candidate { slot: Some(slot) });
                    self.records.push(record);
                }
            }
        }
        self.memories.rest(slot, bucket, context::tick_of(now).saturating_add(rest), scored, condemned);
    }

    /// Frees a slot, unless a packet arrived meanwhile.
    fn release(&mut self, slot: usize, reason: EndReason, scan: &Scan) {
        let Some((generation, last_ns)) = self.kernel.table.stamp(slot) else { return };
        let Some(record) = self.kernel.release(slot, generation, last_ns) else { return };
        let score = self.memories[slot].score_of(&record).filter(|_| scan.lasting);
        self.memories[slot].forget();
        self.occupied = self.occupied.saturating_sub(1);
        self.metrics.flows_ended(reason, 1);
        self.ended(Some(slot), &record, score, scan.now);
    }
}
