//! What a poll does with the table: flows that are due are copied, those that have ended are released, and records that the
//! programs gave up are taken from their ring.

use sensor_common::context;
use sensor_common::flow::{FlowRecord, note};
use sensor_common::table::{Bucket, TICK_SHIFT, WAYS, idle_of, occupied_ways, shown_tick, tick_of};

use super::{Candidate, Poller};
use crate::bpf::sys::Times;
use crate::harvest::{Paused, Step};
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
    /// Little room was left in the table at the last scan.
    crowded: bool,
}

/// A table of which more than so many quarters are taken is crowded.
const CROWDED_QUARTERS: u64 = 3;

impl Poller {
    /// Records that the programs gave up for new flows.
    pub(super) fn take_evicted(&mut self, now: u64) {
        let (mut ended, mut cut) = (0, 0);
        // Bounded: in a flood the programs refill the ring while it is read.
        while ended + cut < self.config.model.max_flows_per_poll as u64 {
            let Some(record) = self.kernel.next_evicted() else { break };
            if record.steady & note::CUT != 0 {
                cut += 1;
                self.went_on(&record, now);
            } else {
                ended += 1;
                self.flow_ended(&record);
                self.note_visit(&record, now);
                self.ended(None, &record, None, now);
            }
        }
        for (reason, flows) in [(EndReason::Evicted, ended), (EndReason::Active, cut)] {
            if flows > 0 {
                self.metrics.flows_ended(reason, flows);
            }
        }
    }

    /// The active timeout was over: a record is complete, and its flow goes on in another one.
    fn went_on(&mut self, record: &FlowRecord, now: u64) {
        if let Some((slot, _)) = self.find(&record.key) {
            let now_ms = self.ms_of(now);
            self.memories[slot].go_on(now_ms);
        }
        self.ended(None, record, None, now);
    }

    /// Time since the agent's start, ms. It wraps.
    pub(in crate::agent) fn ms_of(&self, ns: u64) -> u32 {
        (ns.saturating_sub(self.started_ns) / 1_000_000) as u32
    }

    /// A record that is complete is scored a last time, unless its `score` is known already. `slot`: where it was, if
    /// that is known.
    fn ended(&mut self, slot: Option<usize>, record: &FlowRecord, score: Option<Score>, now: u64) {
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
        let crowded = self.occupied * 4 > self.kernel.table.capacity() as u64 * CROWDED_QUARTERS;
        self.occupied = 0;
        let now_ms = self.ms_of(now);
        // What a source does changes while its flow waits for its end.
        let lasting = !self.model.as_ref().is_some_and(Model::wants_context);
        let mut scan = Scan { now, now_ms, lasting, full: false, crowded };
        for offset in 0..buckets {
            let number = (start + offset) % buckets;
            let mut bucket = self.kernel.table.bucket(number);
            self.occupied += u64::from(occupied_ways(&bucket.tags));
            let mut ways = self.memories.to_look_at(number, &bucket, context::tick_of(now));
            while ways != 0 {
                self.look(number, ways.trailing_zeros() as usize, &mut bucket, &scan);
                ways &= ways - 1;
            }
            if !scan.full && self.records.len() >= self.config.model.max_flows_per_poll as usize {
                scan.full = true;
                self.cursor = (number + 1) % buckets;
            }
        }
    }

    fn look(&mut self, number: usize, way: usize, bucket: &mut Bucket, scan: &Scan) {
        let Scan { now, now_ms, full, .. } = *scan;
        let slot = number * WAYS + way;
        let (tag, stage, seen) = (bucket.tags[way], bucket.stages[way], bucket.seen[way]);
        let unseen = self.follower.as_mut().map(|follower| follower.look(&self.kernel.table, slot, tag, seen, now));
        let memory = &mut self.memories[slot];
        let step = memory.look(tag, stage, seen, tick_of(now), now_ms, &self.timeouts);
        let condemned = memory.is_condemned(now);
        let mut rest = unseen.unwrap_or(u32::MAX);
        match step {
            Step::Leave if tag == 0 => {}
            Step::Leave => rest = rest.min(memory.rest(stage, seen, now, now_ms, &self.timeouts).into()),
            Step::Release(reason) => {
                rest = 0;
                self.release(slot, reason, scan);
            }
            Step::Pause => rest = rest.min(self.pause(slot, &mut bucket.seen[way], scan)),
            Step::Cut => {
                rest = 0;
                self.cut(slot, seen, scan);
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
        self.memories.rest(slot, bucket, context::tick_of(now).saturating_add(rest));
    }

    /// An established connection has had no packet for longer than other flows may: whether it has ended, its record
    /// says. Else the index is told of it, where ticks would soon say otherwise. Ticks for which there is nothing to
    /// do.
    fn pause(&mut self, slot: usize, seen: &mut u16, scan: &Scan) -> u32 {
        // Writers inside at every try: the next poll looks again.
        let Some((_, last_ns)) = self.kernel.table.stamp(slot) else { return 0 };
        let (now, tick) = (scan.now, tick_of(scan.now));
        let idle_ns = now.saturating_sub(last_ns);
        let paused = Paused::look(idle_ns, idle_of(tick, *seen), self.timeouts.pause_ns(scan.crowded));
        if paused.over {
            self.release(slot, EndReason::Idle, scan);
            return 0;
        }
        let shown = shown_tick(tick, idle_ns >> TICK_SHIFT);
        if paused.stale && self.kernel.table.age(slot, *seen, shown) {
            self.memories[slot].aged(*seen, shown);
            *seen = shown;
        }
        paused.rest
    }

    /// The flow is older than the active timeout, unless it has begun another record: its next packet is told to.
    fn cut(&mut self, slot: usize, seen: u16, scan: &Scan) {
        let Some(Times { generation, first_ns, .. }) = self.kernel.table.times(slot) else { return };
        let first_ms = self.ms_of(first_ns);
        let young = scan.now_ms.wrapping_sub(first_ms) < self.timeouts.active_ms;
        if first_ns >= self.started_ns && young {
            self.memories[slot].born_at(first_ms);
        } else if self.kernel.table.mark_due(slot, generation) {
            self.memories[slot].mark_cut(seen);
        }
    }

    /// Frees a slot, unless a packet arrived meanwhile.
    fn release(&mut self, slot: usize, reason: EndReason, scan: &Scan) {
        let Some((generation, last_ns)) = self.kernel.table.stamp(slot) else { return };
        let Some(record) = self.kernel.release(slot, generation, last_ns) else { return };
        let score = self.memories[slot].score_of(&record).filter(|_| scan.lasting);
        self.memories[slot].forget();
        self.occupied = self.occupied.saturating_sub(1);
        self.metrics.flows_ended(reason, 1);
        self.flow_ended(&record);
        self.note_visit(&record, scan.now);
        self.ended(Some(slot), &record, score, scan.now);
    }
}
