//! What the agent remembers of each slot, and what it does with one when a scan passes by. Pure: index bytes and the
//! time go in, a [`Step`] comes out.
//!
//! Invariant: a slot is scored at most once per stage and once per rescore interval, and is released at most once per
//! flow. The scan needs one byte per way (the stage) to see that nothing is to be done.

use std::time::Duration;

use sensor_common::table::{STAGE_CLOSED, STAGE_HELD, STAGE_MASK, TICK_SHIFT, idle_of};

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

    /// Another model may want more packets, or fewer.
    pub fn set_min_packets(&mut self, min_packets: u64) {
        self.min_stage = sensor_common::table::stage_of(min_packets.max(1), false);
    }
}

/// A duration in table ticks, rounded up. Settings end at 60 minutes, which the 73 of a tick's range can hold.
pub fn ticks(duration: Duration) -> u16 {
    duration.as_nanos().div_ceil(1 << TICK_SHIFT).min(u16::MAX as u128) as u16
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
    scored: bool,
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
    /// Whether the slot held a flow at the last look.
    pub fn is_occupied(&self) -> bool {
        self.tag != 0
    }

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
        // The record of a flow that is being dropped does not change. When its verdict has expired, the next packet takes
        // the mark off, and the flow is judged by what it does then.
        if length < timeouts.min_stage || stage & STAGE_HELD != 0 {
            return Step::Leave;
        }
        let due = length > self.scored_stage
            || (self.seen_scored != seen && now_ms.wrapping_sub(self.scored_ms) >= timeouts.rescore_ms);
        if !due {
            return Step::Leave;
        }
        Step::Score
    }

    /// The flow was copied for scoring at `now_ms`, when the index showed `seen`.
    pub fn mark_scored(&mut self, seen: u16, now_ms: u32, generation: u32) {
        self.scored_stage = self.stage;
        self.scored_ms = now_ms;
        self.seen_scored = seen;
        self.scored = true;
        self.generation = generation;
    }

    /// The slot was released.
    pub fn forget(&mut self) {
        *self = Memory::default();
    }
}

#[cfg(test)]
mod tests {
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
        assert!(!memory.is_occupied());
    }
}
