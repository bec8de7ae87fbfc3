//! What the agent remembers of each slot, and what it does with one when a scan passes by. Pure: index bytes and the
//! time go in, a [`Step`] comes out.
//!
//! Invariant: a slot is scored at most once per stage and once per rescore interval, and is released at most once per
//! flow. A scan passes by flows for which nothing is to be done ([`Memories`]).

mod memories;

use std::time::Duration;

use sensor_common::flow::FlowRecord;
use sensor_common::lock::{STALLED, TAKEN};
use sensor_common::table::{STAGE_CLOSED, STAGE_HELD, STAGE_MASK, TICK_SHIFT, idle_of, tick_of};

pub use self::memories::{Counts, Memories};
use crate::metrics::EndReason;
use crate::model::Score;

/// Timeouts of flows.
#[derive(Clone, Copy, Debug)]
pub struct Timeouts {
    /// Ticks without a packet that end a flow.
    pub idle_ticks: u16,
    /// Ticks without a packet that release a closed flow.
    pub linger_ticks: u16,
    /// Age that ends a flow, ms.
    pub active_ms: u32,
    /// Time between two scores of a flow that goes on, ms.
    pub rescore_ms: u32,
    /// Smallest stage that is scored.
    pub min_stage: u8,
}

impl Timeouts {
    /// `min_packets`: a flow with fewer is not scored.
    pub fn new(idle: Duration, linger: Duration, active: Duration, rescore: Duration, min_packets: u64) -> Timeouts {
        Timeouts {
            idle_ticks: ticks(idle),
            linger_ticks: ticks(linger),
            active_ms: active.as_millis().min(u32::MAX as u128) as u32,
            rescore_ms: rescore.as_millis().min(u32::MAX as u128) as u32,
            min_stage: sensor_common::table::stage_of(min_packets.max(1), false),
        }
    }

    /// Whether a flow of this stage is scored. The record of one that is being dropped does not change: when its verdict has
    /// expired, the next packet takes the mark off, and the flow is judged by what it does then.
    fn judges(&self, stage: u8) -> bool {
        stage & STAGE_MASK >= self.min_stage && stage & STAGE_HELD == 0
    }

    /// Another model may want more packets, or fewer.
    pub fn set_min_packets(&mut self, min_packets: u64) {
        self.min_stage = sensor_common::table::stage_of(min_packets.max(1), false);
    }
}

/// A duration in table ticks, rounded up. Settings end at 60 minutes, which the 73 of a tick's range can hold.
pub fn ticks(duration: Duration) -> u16 {
    duration.as_nanos().div_ceil(1 << TICK_SHIFT).min(u16::MAX as u128) as u16
}

/// Ticks that are over, wherever in one they begin, no later than this many ns.
fn whole_ticks(ns: u64) -> u16 {
    (ns >> TICK_SHIFT).min(u16::MAX.into()) as u16
}

/// What a scan is to do with a slot.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Step {
    /// Nothing.
    Leave,
    /// Copy the record and score it.
    Score,
    /// Take the record out of the table.
    Release(EndReason),
}

/// What the agent remembers of the flow in a slot.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub struct Memory {
    tag: u32,
    /// Start of the memory, ms since the agent's start.
    born_ms: u32,
    scored_ms: u32,
    stage: u8,
    scored_stage: u8,
    seen_scored: u16,
    /// Lock word of the record that `score` is of; `None` if it is another model's.
    judged: Option<u32>,
    /// Generation of the record when it was last copied.
    pub generation: u32,
    /// The last score.
    pub score: Option<Score>,
    /// What the last score decided that mode enforce does, and until when it holds (monotonic ns).
    pub verdict: Option<(sensor_common::verdict::Action, u64)>,
    /// What is done and what mode enforce would do, as it was announced last.
    pub would: Option<(sensor_common::verdict::Action, sensor_common::verdict::Action)>,
}

impl Memory {
    /// Whether a verdict of drop holds: the flow is not judged again before it ends. So it is in every mode, or what observe
    /// counts would not be what enforce does.
    pub fn is_condemned(&self, now_ns: u64) -> bool {
        matches!(self.verdict, Some((sensor_common::verdict::Action::Drop, until)) if until > now_ns)
    }

    /// The index shows `tag`, `stage` and `seen` for this slot at tick `now`, `now_ms` after the agent's start.
    pub fn look(&mut self, tag: u32, stage: u8, seen: u16, now: u16, now_ms: u32, timeouts: &Timeouts) -> Step {
        if tag == 0 {
            *self = Memory::default();
            return Step::Leave;
        }
        let length = stage & STAGE_MASK;
        if tag != self.tag || length < self.stage {
            // A verdict that was put into the record before the first look at it (a restored one) is this flow's.
            let verdict = self.verdict.filter(|_| self.tag == 0);
            *self = Memory { tag, born_ms: now_ms, verdict, ..Memory::default() };
        }
        self.stage = length;
        let closed = stage & STAGE_CLOSED != 0;
        let idle = idle_of(now, seen);
        if closed && idle >= timeouts.linger_ticks {
            return Step::Release(EndReason::Closed);
        }
        if idle >= timeouts.idle_ticks {
            return Step::Release(EndReason::Idle);
        }
        if now_ms.wrapping_sub(self.born_ms) >= timeouts.active_ms {
            return Step::Release(EndReason::Active);
        }
        if !timeouts.judges(stage) {
            return Step::Leave;
        }
        let due = length > self.scored_stage
            || (self.seen_scored != seen && now_ms.wrapping_sub(self.scored_ms) >= timeouts.rescore_ms);
        if !due {
            return Step::Leave;
        }
        Step::Score
    }

    /// Ticks after a look that answered [`Step::Leave`], for which another does the same while the index shows the same.
    pub fn rest(&self, stage: u8, seen: u16, now_ns: u64, now_ms: u32, timeouts: &Timeouts) -> u16 {
        let after_ms = |since_ms: u32, ms: u32| {
            whole_ticks(u64::from(ms.saturating_sub(now_ms.wrapping_sub(since_ms))) * 1_000_000)
        };
        let idle = idle_of(tick_of(now_ns), seen);
        let mut rest = timeouts.idle_ticks.saturating_sub(idle).min(after_ms(self.born_ms, timeouts.active_ms));
        if stage & STAGE_CLOSED != 0 {
            rest = rest.min(timeouts.linger_ticks.saturating_sub(idle));
        }
        if timeouts.judges(stage) && self.seen_scored != seen {
            rest = rest.min(after_ms(self.scored_ms, timeouts.rescore_ms));
        }
        match self.verdict {
            // Then it is not condemned any more.
            Some((_, until)) if self.is_condemned(now_ns) => rest.min(whole_ticks(until - now_ns)),
            _ => rest,
        }
    }

    /// The flow was copied for scoring at `now_ms`, when the index showed `seen`.
    pub fn mark_scored(&mut self, seen: u16, now_ms: u32, generation: u32) {
        self.scored_stage = self.stage;
        self.scored_ms = now_ms;
        self.seen_scored = seen;
        self.generation = generation;
    }

    /// The copy of the record got a score; the one before it.
    pub fn judged(&mut self, record: &FlowRecord, score: Score) -> Option<Score> {
        self.judged = Some(version(record));
        self.score.replace(score)
    }

    /// What the same model said of this record when it was as it is now, if it did.
    pub fn score_of(&self, record: &FlowRecord) -> Option<Score> {
        let same = self.generation == record.generation && self.judged == Some(version(record));
        self.score.filter(|_| same)
    }

    /// Another model judges from now on. `keep`: its labels are the same, so that the last score can be shown still.
    pub fn another_model(&mut self, keep: bool) {
        self.judged = None;
        self.score = self.score.filter(|_| keep);
    }

    /// The slot was released.
    pub fn forget(&mut self) {
        *self = Memory::default();
    }
}

/// The record's lock word without whoever is inside: each writer moves it on.
fn version(record: &FlowRecord) -> u32 {
    record.sequence & !(TAKEN | STALLED)
}

#[cfg(test)]
mod tests {
    use sensor_common::lock::STEP;

    use super::*;

    fn timeouts() -> Timeouts {
        let seconds = Duration::from_secs;
        Timeouts::new(seconds(60), seconds(2), seconds(1800), seconds(10), 4)
    }

    #[test]
    fn scores_at_each_doubling_once() {
        let (mut memory, timeouts) = (Memory::default(), timeouts());
        let mut scored = Vec::new();
        for (ms, packets) in [(0, 1), (100, 3), (200, 4), (300, 5), (400, 9), (500, 15), (600, 64)] {
            let stage = sensor_common::table::stage_of(packets, false);
            if memory.look(7, stage, 100, 100, ms, &timeouts) == Step::Score {
                memory.mark_scored(100, ms, 1);
                scored.push(packets);
            }
        }
        assert_eq!(scored, [4, 9, 64]);
        // No new packet: not scored again; with new packets, once the interval is over.
        assert_eq!(memory.look(7, 7, 100, 260, 10_700, &timeouts), Step::Leave);
        assert_eq!(memory.look(7, 7, 250, 260, 10_500, &timeouts), Step::Leave);
        assert_eq!(memory.look(7, 7, 250, 260, 10_600, &timeouts), Step::Score);
    }

    #[test]
    fn nothing_is_due_while_a_flow_rests() {
        use sensor_common::verdict::Action;
        let timeouts = timeouts();
        let mut state = 1u64;
        // Knuth's MMIX.
        let mut random = |below: u64| {
            state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
            (state >> 33) % below
        };
        let (mut rests, mut ends) = (0, 0);
        for _ in 0..20_000 {
            let now_ns = 10_000_000_000_000 + random(1 << 36);
            let now_ms = |now_ns: u64| (now_ns / 1_000_000) as u32;
            let seen = |ago_ms: u64| tick_of(now_ns - ago_ms * 1_000_000);
            let stage = (random(6) as u8 + 1) | [0, STAGE_CLOSED, STAGE_HELD][random(3) as usize];
            let last = seen(random(70_000));
            let mut memory = Memory {
                tag: 7,
                born_ms: now_ms(now_ns) - random(1_900_000) as u32,
                scored_ms: now_ms(now_ns) - random(20_000) as u32,
                stage: 1,
                scored_stage: random(7) as u8,
                seen_scored: if random(2) == 0 { last } else { seen(80_000) },
                score: Some(Score { label: 1, score: 1.0 }),
                verdict: (random(2) == 0).then_some((Action::Drop, now_ns + random(40_000_000_000))),
                ..Memory::default()
            };
            let look = |memory: &mut Memory, at: u64| {
                (memory.look(7, stage, last, tick_of(at), now_ms(at), &timeouts), memory.is_condemned(at))
            };
            let first = look(&mut memory, now_ns);
            if first.0 != Step::Leave {
                continue;
            }
            let rest = memory.rest(stage, last, now_ns, now_ms(now_ns), &timeouts);
            rests += u32::from(rest > 0);
            for after in [0, rest / 2, rest.saturating_sub(1)].into_iter().filter(|after| *after < rest) {
                let latest = (((now_ns >> TICK_SHIFT) + u64::from(after) + 1) << TICK_SHIFT) - 1;
                assert_eq!(look(&mut memory, latest), first, "{after} of {rest} ticks: {memory:?}, stage {stage}");
            }
            // Not much longer than it may: what ends it comes within two ticks.
            let over = (((now_ns >> TICK_SHIFT) + u64::from(rest) + 2) << TICK_SHIFT) - 1;
            ends += u32::from(look(&mut memory, over) != first);
        }
        assert!(rests > 1_000 && ends > 1_000, "{rests} rests, {ends} ends");
    }

    #[test]
    fn a_score_is_that_of_a_record_until_it_changes() {
        let (mut memory, timeouts) = (Memory::default(), timeouts());
        let mut record = FlowRecord::zeroed();
        (record.sequence, record.generation) = (16, 3);
        let score = Score { label: 1, score: 0.5 };
        memory.look(7, 3, 100, 100, 0, &timeouts);
        memory.mark_scored(100, 0, 3);
        assert_eq!(memory.score_of(&record), None, "copied, and the model failed");
        assert_eq!((memory.judged(&record, score), memory.score_of(&record)), (None, Some(score)));
        let other = |sequence, generation| {
            let mut other = record;
            (other.sequence, other.generation) = (sequence, generation);
            other
        };
        assert_eq!(memory.score_of(&other(16 | TAKEN, 3)), Some(score), "the agent itself holds it");
        assert_eq!(memory.score_of(&other(16 + STEP, 3)), None, "a packet came");
        assert_eq!(memory.score_of(&other(16, 4)), None, "another connection");
        memory.another_model(true);
        assert_eq!((memory.score_of(&record), memory.score), (None, Some(score)));
        memory.another_model(false);
        assert_eq!(memory.score, None);
    }

    #[test]
    fn a_verdict_that_came_before_the_first_look_stays() {
        use sensor_common::verdict::Action;
        let (mut memory, timeouts) = (Memory::default(), timeouts());
        memory.verdict = Some((Action::Drop, 99));
        memory.look(7, 5, 100, 100, 0, &timeouts);
        assert!(memory.is_condemned(98) && !memory.is_condemned(99));
        memory.look(8, 5, 100, 100, 0, &timeouts);
        assert_eq!(memory.verdict, None, "another flow");
    }

    #[test]
    fn ends_by_close_idle_and_age() {
        let (mut memory, timeouts) = (Memory::default(), timeouts());
        let tick = |seconds: u64| ticks(Duration::from_secs(seconds));
        assert_eq!(memory.look(7, 3, 110, 100, 0, &timeouts), Step::Score, "stamped after the scan read its clock");
        assert_eq!(
            memory.look(7, 4 | STAGE_HELD, 100, 100, 0, &timeouts),
            Step::Leave,
            "dropped: nothing new to judge"
        );
        assert_eq!(memory.look(7, 3 | STAGE_CLOSED, 100, 100 + tick(1), 0, &timeouts), Step::Score);
        assert_eq!(
            memory.look(7, 3 | STAGE_CLOSED, 100, 100 + tick(2), 0, &timeouts),
            Step::Release(EndReason::Closed)
        );
        assert_eq!(
            memory.look(7, 1, 65_000, 65_000u16.wrapping_add(tick(60)), 0, &timeouts),
            Step::Release(EndReason::Idle)
        );
        assert_eq!(memory.look(7, 9, 100, 100, 1_000, &timeouts), Step::Score);
        assert_eq!(memory.look(7, 1, 100, 100, 1_800_000, &timeouts), Step::Leave, "a shorter flow is another flow");
        assert_eq!(memory.look(7, 1, 101, 100, 3_600_000, &timeouts), Step::Release(EndReason::Active));
        assert_eq!(memory.look(0, 0, 0, 100, 0, &timeouts), Step::Leave);
        assert_eq!(memory, Memory::default());
    }
}
