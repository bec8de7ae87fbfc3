//! The circuit breaker: bounds what a model that is wrong can do. Pure: counts and times go in.
//!
//! It judges what mode enforce would do, in every mode, so that it can be seen before enforcement is switched on. While
//! it is open, verdicts of models tag and no more; those of operators go on. It closes when all has been below the
//! caps for a while, or by command. Called by the poll thread: [`Breaker::verdict`] before each verdict that drops,
//! [`Breaker::second`] once a second.

use std::fmt;
use std::time::Duration;

use serde::{Deserialize, Serialize};

use crate::config::BreakerConfig;

/// What tripped it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Cap {
    /// Packets a second under verdicts of drop.
    Drops,
    /// Share of the active flows under a verdict of drop.
    Flows,
    /// Share of the active sources under a verdict of drop.
    Sources,
    /// New verdicts in a minute.
    Verdicts,
}

impl Cap {
    /// Every cap.
    pub const ALL: [Cap; 4] = [Cap::Drops, Cap::Flows, Cap::Sources, Cap::Verdicts];

    /// The name in metrics and JSON.
    pub const fn name(self) -> &'static str {
        match self {
            Cap::Drops => "drops",
            Cap::Flows => "flows",
            Cap::Sources => "sources",
            Cap::Verdicts => "verdicts",
        }
    }
}

/// A cap that was exceeded.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
pub struct Trip {
    /// Which.
    pub cap: Cap,
    /// What was measured: packets/s, a share (0 to 1), verdicts in the last minute.
    pub measured: f64,
    /// What is allowed.
    pub allowed: f64,
    /// When, Unix time, ms.
    pub unix_ms: u64,
}

impl fmt::Display for Trip {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Trip { cap, measured, allowed, unix_ms: _ } = self;
        let percent = |share: f64| share * 100.0;
        match cap {
            Cap::Drops => {
                write!(f, "{measured:.0} packets/s would be dropped (breaker.drops_per_second = {allowed:.0})")
            }
            Cap::Flows => write!(
                f,
                "{:.0} % of the active flows would be dropped (breaker.flow_share = {allowed})",
                percent(*measured)
            ),
            Cap::Sources => write!(
                f,
                "{:.0} % of the active sources would be dropped (breaker.source_share = {allowed})",
                percent(*measured)
            ),
            Cap::Verdicts => {
                write!(f, "{measured:.0} new verdicts in a minute (breaker.verdicts_per_minute = {allowed:.0})")
            }
        }
    }
}

/// What is going on, once a second. Verdicts are those of models.
#[derive(Clone, Copy, Debug, Default)]
pub struct Load {
    /// Packets under verdicts of drop, dropped or not, since the start.
    pub drops: u64,
    /// Scored flows that are active, and those of them under a verdict of drop.
    pub flows: [u64; 2],
    /// Sources that are active, and those under a verdict of drop.
    pub sources: [u64; 2],
}

/// Slots of the minute in which new verdicts are counted.
const SLOTS: usize = 12;
const SLOT_NS: u64 = 60_000_000_000 / SLOTS as u64;

/// The breaker.
#[derive(Debug)]
pub struct Breaker {
    config: BreakerConfig,
    trip: Option<Trip>,
    /// Since when all has been below the caps, monotonic ns.
    quiet_since: Option<u64>,
    /// Count of drops and time of the last second.
    last: Option<(u64, u64)>,
    /// New verdicts by slot of the last minute, and the number of the newest slot.
    recent: [u64; SLOTS],
    slot: u64,
}

impl Breaker {
    /// Closed, or as an earlier agent left it.
    pub fn new(config: BreakerConfig, trip: Option<Trip>) -> Breaker {
        Breaker { config, trip, quiet_since: None, last: None, recent: [0; SLOTS], slot: 0 }
    }

    /// Takes other caps. What was counted goes on; if it is open, it stays so until all is below these.
    pub fn set_config(&mut self, config: BreakerConfig) {
        self.config = config;
    }

    /// Why it is open; `None`: it is closed.
    pub fn trip(&self) -> Option<&Trip> {
        self.trip.as_ref()
    }

    /// A model's verdict that drops is about to be stored; `flows` as in [`Load`], this one not counted. Whether that
    /// trips the breaker.
    pub fn verdict(&mut self, flows: [u64; 2], now_ns: u64, unix_ms: u64) -> Option<Trip> {
        self.turn(now_ns);
        self.recent[self.slot as usize % SLOTS] += 1;
        let over = self.over_verdicts().or_else(|| self.over_flows([flows[0], flows[1] + 1]));
        self.open(over, unix_ms)
    }

    /// Once a second: whether it trips, or closes (`Err` with why it was open).
    pub fn second(&mut self, load: Load, now_ns: u64, unix_ms: u64) -> Option<Result<Trip, Trip>> {
        self.turn(now_ns);
        let over = self.over_drops(load.drops, now_ns).or_else(|| self.over_verdicts());
        let over = over.or_else(|| self.over_flows(load.flows)).or_else(|| self.over_sources(load.sources));
        self.last = Some((load.drops, now_ns));
        if over.is_some() {
            self.quiet_since = None;
            return self.open(over, unix_ms).map(Ok);
        }
        let since = *self.quiet_since.get_or_insert(now_ns);
        let reset_after = self.config.reset_after;
        let quiet = !reset_after.is_zero() && Duration::from_nanos(now_ns.saturating_sub(since)) >= reset_after;
        if quiet { self.trip.take().map(Err) } else { None }
    }

    /// Closes it by command; why it was open. What was counted is forgotten, so that it does not trip again at once.
    pub fn reset(&mut self) -> Option<Trip> {
        self.recent = [0; SLOTS];
        self.quiet_since = None;
        self.last = None;
        self.trip.take()
    }

    fn open(&mut self, over: Option<(Cap, f64, f64)>, unix_ms: u64) -> Option<Trip> {
        let (cap, measured, allowed) = over?;
        self.quiet_since = None;
        if self.trip.is_some() {
            return None;
        }
        let trip = Trip { cap, measured, allowed, unix_ms };
        self.trip = Some(trip);
        Some(trip)
    }

    /// Moves the minute on.
    fn turn(&mut self, now_ns: u64) {
        let slot = now_ns / SLOT_NS;
        for missed in 0..slot.saturating_sub(self.slot).min(SLOTS as u64) {
            self.recent[(slot - missed) as usize % SLOTS] = 0;
        }
        self.slot = self.slot.max(slot);
    }

    fn over_verdicts(&self) -> Option<(Cap, f64, f64)> {
        let (new, most) = (self.recent.iter().sum::<u64>(), u64::from(self.config.verdicts_per_minute));
        (most > 0 && new > most).then_some((Cap::Verdicts, new as f64, most as f64))
    }

    fn over_drops(&self, drops: u64, now_ns: u64) -> Option<(Cap, f64, f64)> {
        let (before, then) = self.last?;
        let seconds = now_ns.saturating_sub(then) as f64 / 1e9;
        let rate = drops.saturating_sub(before) as f64 / seconds.max(0.1);
        let most = self.config.drops_per_second as f64;
        (most > 0.0 && rate > most).then_some((Cap::Drops, rate, most))
    }

    fn over_flows(&self, [active, under]: [u64; 2]) -> Option<(Cap, f64, f64)> {
        over_share(Cap::Flows, active, under, self.config.flow_share, self.config.min_flows)
    }

    fn over_sources(&self, [active, under]: [u64; 2]) -> Option<(Cap, f64, f64)> {
        over_share(Cap::Sources, active, under, self.config.source_share, self.config.min_sources)
    }
}

/// Below `least` things under a verdict, a share says nothing.
fn over_share(cap: Cap, active: u64, under: u64, allowed: f64, least: u32) -> Option<(Cap, f64, f64)> {
    let share = under as f64 / active.max(under).max(1) as f64;
    (allowed < 1.0 && under >= u64::from(least) && share > allowed).then_some((cap, share, allowed))
}

#[cfg(test)]
mod tests {
    use super::*;

    const SECOND: u64 = 1_000_000_000;

    fn config() -> BreakerConfig {
        BreakerConfig {
            drops_per_second: 1_000,
            flow_share: 0.25,
            min_flows: 10,
            source_share: 0.5,
            min_sources: 4,
            verdicts_per_minute: 60,
            reset_after: Duration::from_secs(30),
        }
    }

    fn breaker() -> Breaker {
        Breaker::new(config(), None)
    }

    fn cap(trip: Option<Trip>) -> Option<Cap> {
        trip.map(|trip| trip.cap)
    }

    #[test]
    fn a_model_that_drops_everything_is_stopped_at_the_share() {
        let mut breaker = breaker();
        let tripped = (0..100).find(|under| breaker.verdict([40, *under], SECOND, 0).is_some());
        assert_eq!(tripped, Some(10), "at the eleventh of forty flows");
        let trip = breaker.trip().expect("open");
        assert_eq!((trip.cap, trip.allowed), (Cap::Flows, 0.25));
        assert!(trip.to_string().contains("28 % of the active flows"), "{trip}");
        assert_eq!(breaker.verdict([40, 20], SECOND, 0), None, "it is open already");
    }

    #[test]
    fn few_flows_are_no_share() {
        let mut breaker = breaker();
        assert!((0..9).all(|under| breaker.verdict([9, under], SECOND, 0).is_none()));
        assert_eq!(cap(breaker.verdict([9, 9], SECOND, 0)), Some(Cap::Flows));
    }

    #[test]
    fn verdicts_are_counted_over_a_minute() {
        let mut breaker = breaker();
        for second in 0..300 {
            assert_eq!(breaker.verdict([1_000, 0], second * SECOND, 0), None, "one a second is allowed: {second}");
        }
        let more = (0..60).find(|_| breaker.verdict([1_000, 0], 300 * SECOND, 0).is_some());
        assert!(more.is_some_and(|more| more < 10), "{more:?}");
        assert_eq!(breaker.trip().map(|trip| trip.cap), Some(Cap::Verdicts));
    }

    #[test]
    fn drops_and_sources_are_looked_at_each_second() {
        let load = |drops, sources| Load { drops, flows: [100, 0], sources };
        let mut breaker = self::breaker();
        assert!(breaker.second(load(50_000, [10, 5]), SECOND, 0).is_none(), "the first second knows no rate");
        assert!(breaker.second(load(51_000, [10, 5]), 2 * SECOND, 0).is_none());
        let trip = breaker.second(load(52_001, [10, 5]), 3 * SECOND, 0).expect("trips").expect("opens");
        assert_eq!(trip.cap, Cap::Drops);
        let mut breaker = self::breaker();
        assert_eq!(breaker.second(load(0, [10, 6]), SECOND, 0).expect("trips").expect("opens").cap, Cap::Sources);
        assert!(self::breaker().second(load(0, [4, 3]), SECOND, 0).is_none(), "three are too few");
    }

    #[test]
    fn it_closes_when_all_was_quiet_for_long_enough() {
        let mut breaker = breaker();
        let load = |flows| Load { drops: 0, flows, sources: [0, 0] };
        assert!(breaker.second(load([20, 12]), 0, 0).is_some());
        for second in 1..=40 {
            assert!(breaker.second(load([20, if second == 10 { 12 } else { 2 }]), second * SECOND, 0).is_none());
        }
        let closed = breaker.second(load([20, 2]), 41 * SECOND, 0).expect("closes").expect_err("not opens");
        assert_eq!((closed.cap, breaker.trip()), (Cap::Flows, None));
        let mut by_hand = Breaker::new(BreakerConfig { reset_after: Duration::ZERO, ..config() }, Some(closed));
        assert!((0..100_000).all(|second| by_hand.second(load([20, 0]), second * SECOND, 0).is_none()));
        assert_eq!(by_hand.reset(), Some(closed));
        assert_eq!(by_hand.trip(), None);
        // What was withheld until now is not of the first second after.
        let much = Load { drops: 1 << 40, flows: [20, 0], sources: [0, 0] };
        assert!(by_hand.second(much, 100_001 * SECOND, 0).is_none());
    }

    #[test]
    fn caps_can_be_off() {
        let off = BreakerConfig {
            drops_per_second: 0,
            flow_share: 1.0,
            source_share: 1.0,
            verdicts_per_minute: 0,
            ..config()
        };
        let mut breaker = Breaker::new(off, None);
        assert!((0..1_000).all(|under| breaker.verdict([1, under], SECOND, 0).is_none()));
        assert!(breaker.second(Load { drops: u64::MAX, flows: [5, 5], sources: [50, 50] }, SECOND, 0).is_none());
    }
}
