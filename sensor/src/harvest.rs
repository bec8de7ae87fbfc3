//! What the agent remembers of each slot, and what it does with one when a scan passes by. Pure: index bytes and the
//! time go in, a [`Step`] comes out.
//!
//! Invariant: a slot is scored at most once per stage and once per rescore interval, and is released at most once per
//! flow. A scan passes by flows for which nothing is to be done ([`Memories`]).

mod memories;

use std::time::Duration;

use sensor_common::flow::FlowRecord;
use sensor_common::lock::{STALLED, TAKEN};
use sensor_common::table::{AGED, STAGE_HELD, STAGE_MASK, STAGE_PHASE, STALE, TICK_SHIFT, idle_of, phase, tick_of};

pub use self::memories::Memories;
use crate::config::AgentConfig;
use crate::metrics::EndReason;
use crate::model::Score;

/// Timeouts of flows.
#[derive(Clone, Copy, Debug)]
pub struct Timeouts {
    /// Ticks without a packet that end a flow, unless it is an established TCP connection.
    pub idle_ticks: u16,
    /// Time without a packet that ends an established TCP connection, ns.
    pub established_ns: u64,
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
    /// As the settings have them. `min_packets`: a flow with fewer is not scored.
    pub fn new(agent: &AgentConfig, min_packets: u64) -> Timeouts {
        let ms = |duration: Duration| duration.as_millis().min(u32::MAX as u128) as u32;
        let mut timeouts = Timeouts {
            idle_ticks: ticks(agent.idle_timeout),
            established_ns: agent.established_timeout.as_nanos().min(u64::MAX as u128) as u64,
            linger_ticks: ticks(agent.closed_linger),
            active_ms: ms(agent.active_timeout),
            rescore_ms: ms(agent.rescore_interval),
            min_stage: 0,
        };
        timeouts.set_min_packets(min_packets);
        timeouts
    }

    /// How long an established connection may pause, ns. `crowded`: little room is left in the table.
    pub fn pause_ns(&self, crowded: bool) -> u64 {
        if crowded { self.established_ns.min(CROWDED_PAUSE_NS) } else { self.established_ns }
    }

    /// Whether a flow of this stage is scored. The record of one that is being dropped does not change: when its verdict has
    /// expired, the next packet takes the mark off, and the flow is judged by what it does then.
    fn judges(&self, stage: u8) -> bool {
        stage & STAGE_MASK >= self.min_stage && stage & STAGE_HELD == 0
    }

    /// Another model may want more packets, or fewer.
    pub fn set_min_packets(&mut self, min_packets: u64) {
        self.min_stage = sensor_common::table::stage_of(min_packets.max(1), 0);
    }
}

/// Packets that come on a closed connection later than this, ms, are not the last ones of it.
const CLOSE_MS: u32 = 2_000;
/// How long a connection may pause where the table has little room: as long as ticks can tell, ns.
const CROWDED_PAUSE_NS: u64 = 3_600_000_000_000;

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
    /// An established connection pauses for longer than other flows may: only its record tells for how long.
    Pause,
    /// The flow is older than the active timeout: its next packet has to begin another record, unless one has already.
    Cut,
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
    /// What the index showed when the flow was last told to go on in another record.
    cut: Option<u16>,
    /// When a look first found the flow closed.
    closed_ms: Option<u32>,
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
        self.closed_ms = is_closed(stage).then(|| self.closed_ms.unwrap_or(now_ms));
        let idle = idle_of(now, seen);
        if is_closed(stage) && idle >= timeouts.linger_ticks {
            return Step::Release(EndReason::Closed);
        }
        if idle >= timeouts.idle_ticks {
            return if is_established(stage) { Step::Pause } else { Step::Release(EndReason::Idle) };
        }
        if self.cut != Some(seen) && now_ms.wrapping_sub(self.born_ms) >= timeouts.active_ms {
            return Step::Cut;
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
        let mut rest = timeouts.idle_ticks.saturating_sub(idle);
        if self.cut != Some(seen) {
            rest = rest.min(after_ms(self.born_ms, timeouts.active_ms));
        }
        if is_closed(stage) {
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

    /// The flow was told to go on in another record with its next packet; the index showed `seen` then.
    pub fn mark_cut(&mut self, seen: u16) {
        self.cut = Some(seen);
    }

    /// The record in the slot began at `first_ms` after the agent's start.
    pub fn born_at(&mut self, first_ms: u32) {
        (self.born_ms, self.cut) = (first_ms, None);
    }

    /// The flow went on in another record, which is judged as one that has just begun; its verdict holds on.
    pub fn go_on(&mut self, now_ms: u32) {
        let Memory { tag, generation, score, verdict, would, .. } = *self;
        *self = Memory { tag, generation, score, verdict, would, born_ms: now_ms, ..Memory::default() };
    }

    /// The index shows the tick `to` in place of `from`, though no packet came.
    pub fn aged(&mut self, from: u16, to: u16) {
        if self.seen_scored == from {
            self.seen_scored = to;
        }
        if self.cut == Some(from) {
            self.cut = Some(to);
        }
    }

    /// Whether the connection has ended, as of the last look at `now_ms`. One on which packets still come this long
    /// after its close has not: whoever sends a RST that the other end refuses would be safe from verdicts.
    pub fn has_ended(&self, now_ms: u32) -> bool {
        self.closed_ms.is_some_and(|at| now_ms.wrapping_sub(at) < CLOSE_MS)
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

fn is_closed(stage: u8) -> bool {
    stage & STAGE_PHASE == phase::CLOSED
}

fn is_established(stage: u8) -> bool {
    stage & STAGE_PHASE == phase::ESTABLISHED
}

/// An established connection that pauses, `idle_ns` so far, at a time when the index shows it as idle for `shown`
/// ticks.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Paused {
    /// Whether it has ended.
    pub over: bool,
    /// Whether the index has to be told of the true idle time: it would look fresh soon, or does so already, because no
    /// agent was there in time.
    pub stale: bool,
    /// Ticks for which there is nothing to do.
    pub rest: u32,
}

impl Paused {
    /// `limit_ns`: how long it may pause.
    pub fn look(idle_ns: u64, shown: u16, limit_ns: u64) -> Paused {
        let idle = idle_ns >> TICK_SHIFT;
        let left = limit_ns.saturating_sub(idle_ns) >> TICK_SHIFT;
        // The agent's clock and the tick's edge: two ticks are no difference.
        let stale = shown >= STALE || u64::from(shown) + 2 < idle.min(u64::from(AGED));
        let until = u64::from(STALE.saturating_sub(if stale { idle.min(u64::from(AGED)) as u16 } else { shown }));
        Paused { over: idle_ns >= limit_ns, stale, rest: left.min(until) as u32 }
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
        Timeouts::new(&AgentConfig::default(), 4)
    }

    #[test]
    fn scores_at_each_doubling_once() {
        let (mut memory, timeouts) = (Memory::default(), timeouts());
        let mut scored = Vec::new();
        for (ms, packets) in [(0, 1), (100, 3), (200, 4), (300, 5), (400, 9), (500, 15), (600, 64)] {
            let stage = sensor_common::table::stage_of(packets, 0);
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
            let stage = (random(6) as u8 + 1) | [0, phase::CLOSED, STAGE_HELD, phase::ESTABLISHED][random(4) as usize];
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
        assert_eq!(memory.look(7, 3 | phase::CLOSED, 100, 100 + tick(1), 0, &timeouts), Step::Score);
        assert_eq!(
            memory.look(7, 3 | phase::CLOSED, 100, 100 + tick(2), 0, &timeouts),
            Step::Release(EndReason::Closed)
        );
        assert_eq!(
            memory.look(7, 1, 65_000, 65_000u16.wrapping_add(tick(60)), 0, &timeouts),
            Step::Release(EndReason::Idle)
        );
        assert_eq!(memory.look(7, 9, 100, 100, 1_000, &timeouts), Step::Score);
        assert_eq!(memory.look(7, 1, 100, 100, 1_800_000, &timeouts), Step::Leave, "a shorter flow is another flow");
        assert_eq!(memory.look(7, 1, 101, 100, 3_600_000, &timeouts), Step::Cut);
        memory.mark_cut(101);
        assert_eq!(memory.look(7, 1, 101, 102, 3_600_100, &timeouts), Step::Leave, "until another packet comes");
        assert_eq!(memory.look(7, 1, 102, 102, 3_600_100, &timeouts), Step::Cut);
        memory.born_at(3_600_050);
        assert_eq!(memory.look(7, 1, 102, 102, 3_600_100, &timeouts), Step::Leave);
        assert_eq!(memory.look(0, 0, 0, 100, 0, &timeouts), Step::Leave);
        assert_eq!(memory, Memory::default());
    }

    #[test]
    fn an_established_connection_may_pause_for_days_and_others_may_not() {
        let (mut memory, timeouts) = (Memory::default(), timeouts());
        let minute = ticks(Duration::from_secs(60));
        assert_eq!(memory.look(7, 1 | phase::ESTABLISHED, 100, 100 + minute, 0, &timeouts), Step::Pause);
        assert_eq!(
            memory.look(7, 1 | phase::ANSWERED, 100, 100 + minute, 0, &timeouts),
            Step::Release(EndReason::Idle)
        );
        const HOUR: u64 = 3_600_000_000_000;
        let days = timeouts.pause_ns(false);
        assert_eq!((days, timeouts.pause_ns(true)), (120 * HOUR, HOUR));
        let shown = |ns: u64| (ns >> TICK_SHIFT).min(u64::from(AGED)) as u16;
        let two_hours = Paused::look(2 * HOUR, shown(2 * HOUR), days);
        assert_eq!((two_hours.over, two_hours.stale), (false, false));
        assert!((3_600..3_800).contains(&two_hours.rest), "{two_hours:?}: until it has to be written again");
        assert!(Paused::look(2 * HOUR, STALE, days).stale, "it would look fresh soon");
        assert!(Paused::look(2 * HOUR, 17, days).stale, "nobody wrote it in time: it looks fresh");
        assert!(!Paused::look(HOUR / 2, shown(HOUR / 2) + 1, days).stale);
        assert!(Paused::look(days, AGED, days).over && Paused::look(HOUR, AGED, timeouts.pause_ns(true)).over);
        assert!(Paused::look(days - (5 << TICK_SHIFT), AGED, days).rest <= 5, "it ends in time");
    }

    #[test]
    fn a_flow_on_which_packets_still_come_has_not_ended() {
        let (mut memory, timeouts) = (Memory::default(), timeouts());
        memory.look(7, 3, 100, 100, 0, &timeouts);
        assert!(!memory.has_ended(0));
        for (ms, ended) in [(100, true), (2_000, true), (2_100, false)] {
            memory.look(7, 3 | phase::CLOSED, 110, 110, ms, &timeouts);
            assert_eq!(memory.has_ended(ms), ended, "{ms} ms");
        }
        memory.look(7, 1, 110, 110, 2_200, &timeouts);
        assert!(!memory.has_ended(2_200), "another connection");
    }

    #[test]
    fn an_aged_tick_is_no_packet() {
        let (mut memory, timeouts) = (Memory::default(), timeouts());
        let stage = 4 | phase::ESTABLISHED;
        assert_eq!(memory.look(7, stage, 100, 100, 0, &timeouts), Step::Score);
        memory.mark_scored(100, 0, 1);
        memory.aged(100, 900);
        assert_eq!(memory.look(7, stage, 900, 901, 20_000, &timeouts), Step::Leave, "nothing new to score");
        assert_eq!(memory.look(7, stage, 901, 901, 20_000, &timeouts), Step::Score);
    }

    #[test]
    fn a_flow_that_goes_on_in_another_record_keeps_its_verdict() {
        use sensor_common::verdict::Action;
        let (mut memory, timeouts) = (Memory::default(), timeouts());
        memory.look(7, 9, 100, 100, 0, &timeouts);
        memory.mark_scored(100, 0, 3);
        memory.verdict = Some((Action::Limit, 99));
        memory.go_on(1_800_000);
        assert_eq!(memory.look(7, 1, 101, 101, 1_800_000, &timeouts), Step::Leave);
        assert_eq!(memory.verdict, Some((Action::Limit, 99)));
        assert_eq!(memory.look(7, 3, 102, 102, 1_800_100, &timeouts), Step::Score, "it is judged by what it does now");
    }
}
