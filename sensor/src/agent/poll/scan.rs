//! What a poll does with the table: flows that are due are copied, those that have ended are released, and records that the
//! programs gave up are taken from their ring.

use sensor_common::flow::FlowRecord;
use sensor_common::table::{Bucket, WAYS, tick_of};

use super::super::clock::now_ns;
use super::{Candidate, Poller};
use crate::harvest::{Memory, Step};
use crate::metrics::EndReason;

impl Poller {
    /// Records that the programs gave up for new flows.
    pub(super) fn take_evicted(&mut self) {
        let mut ended = 0;
        // Bounded: in a flood the programs refill the ring while it is read.
        while ended < self.config.model.max_flows_per_poll as u64 {
            let Some(record) = self.kernel.next_evicted() else { break };
            ended += 1;
            self.ended(None, record);
        }
        if ended > 0 {
            self.metrics.flows_ended(EndReason::Evicted, ended);
        }
    }

    /// A flow that ended is scored a last time. `slot`: where it was, if that is known.
    fn ended(&mut self, slot: Option<usize>, record: FlowRecord) {
        self.flow_ended(&record.key);
        if let Some(follower) = &mut self.follower {
            follower.ended(slot, &record, now_ns());
        }
        if self.model.is_none() || record.packets() < self.policy.min_packets() {
            return;
        }
        if self.records.len() < self.config.model.max_flows_per_poll as usize {
            self.candidates.push(Candidate { slot: None });
            self.records.push(record);
        } else {
            self.metrics.unscored();
        }
    }

    /// Looks at every bucket once, from the cursor on.
    pub(super) fn scan(&mut self, now: u64) {
        let buckets = self.kernel.table.buckets();
        let start = self.cursor;
        self.cursor = 0;
        self.occupied = 0;
        let mut full = false;
        for offset in 0..buckets {
            let number = (start + offset) % buckets;
            let bucket = self.kernel.table.bucket(number);
            if bucket.tags == [0; WAYS] && !self.remembered[number] {
                continue;
            }
            self.scan_bucket(number, &bucket, now, full);
            self.remembered[number] = self.memories[number * WAYS..][..WAYS].iter().any(Memory::is_occupied);
            if !full && self.records.len() >= self.config.model.max_flows_per_poll as usize {
                full = true;
                self.cursor = (number + 1) % buckets;
            }
        }
    }

    fn scan_bucket(&mut self, number: usize, bucket: &Bucket, now: u64, full: bool) {
        let now_ms = self.started.elapsed().as_millis() as u32;
        for way in 0..WAYS {
            let slot = number * WAYS + way;
            let (tag, stage, seen) = (bucket.tags[way], bucket.stages[way], bucket.seen[way]);
            self.occupied += (tag != 0) as u64;
            if let Some(follower) = &mut self.follower {
                follower.look(&self.kernel.table, slot, tag, seen, now);
            }
            let step = self.memories[slot].look(tag, stage, seen, tick_of(now), now_ms, &self.timeouts);
            // Of the flows that go on, also those that this poll is the first to score: they are judged by the share below.
            if self.memories[slot].score.is_some() || step == Step::Score {
                self.enforcer.counting[0] += 1;
                self.enforcer.counting[1] += u64::from(self.memories[slot].is_condemned(now));
            }
            match step {
                Step::Leave => {}
                Step::Release(reason) => self.release(slot, reason),
                Step::Score if self.model.is_none() || full || self.memories[slot].is_condemned(now) => {}
                Step::Score => {
                    // Writers inside at every try: the next poll looks again.
                    if let Some(record) = self.kernel.table.copy(slot) {
                        self.memories[slot].mark_scored(seen, now_ms, record.generation);
                        self.candidates.push(Candidate { slot: Some(slot) });
                        self.records.push(record);
                    }
                }
            }
        }
    }

    /// Frees a slot, unless a packet arrived meanwhile.
    fn release(&mut self, slot: usize, reason: EndReason) {
        let Some(record) = self.kernel.table.copy(slot) else { return };
        let Some(record) = self.kernel.release(slot, record.generation, record.last_ns) else { return };
        self.memories[slot].forget();
        self.occupied = self.occupied.saturating_sub(1);
        self.metrics.flows_ended(reason, 1);
        self.ended(Some(slot), record);
    }
}
