//! The circuit breaker: bounds what a model that is wrong can do. Pure: flows, counts and times go in.
//!
//! It judges what mode enforce would do, in every mode, so that it can be seen before enforcement is switched on. While
//! it is open, verdicts of models tag and no more; those of operators go on. It closes when all has been below the
//! caps for a while, or by command.
//!
//! It counts sources that have proven themselves in a handshake, not flows ([`crowd`]): one attacker is one source,
//! however many connections he makes, and a forged source is none. Unproven flows have a breaker for each service
//! ([`services`]). Called by the poll thread: [`Breaker::passed`] and [`Breaker::accused`] for each flow that was
//! judged, [`Breaker::second`] once a second.

mod crowd;
mod quiet;
mod services;

use std::fmt;
use std::net::IpAddr;

use serde::{Deserialize, Serialize};

use self::crowd::Crowd;
pub use self::crowd::{Share, source_of};
use self::quiet::Quiet;
pub use self::services::Services;
use crate::config::BreakerConfig;
use crate::verdicts::scope::Service;

/// Sources that are remembered: more than a minute's verdicts may be against.
const SOURCES: usize = 8_192;

/// What tripped it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Cap {
    /// Packets a second under verdicts of drop.
    Drops,
    /// Share of the active proven sources with a flow under a verdict. (An earlier version counted flows.)
    #[serde(alias = "flows")]
    Sources,
    /// Sources newly under a verdict in a minute.
    Verdicts,
    /// Share of the sources of unproven flows to one service: for that service only.
    Service,
}

impl Cap {
    /// Every cap.
    pub const ALL: [Cap; 4] = [Cap::Drops, Cap::Sources, Cap::Verdicts, Cap::Service];

    /// The name in metrics and JSON.
    pub const fn name(self) -> &'static str {
        match self {
            Cap::Drops => "drops",
            Cap::Sources => "sources",
            Cap::Verdicts => "verdicts",
            Cap::Service => "service",
        }
    }
}

/// Whom a judged flow speaks for or against.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Party {
    /// The remote end has shown, in a TCP handshake, that it is at this address.
    Proven(IpAddr),
    /// It has not: of this service, the client that says to be at this address.
    Unproven(Service, IpAddr),
}

/// What opened.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum Opened {
    /// The breaker: all verdicts of models.
    All(Trip),
    /// That of the unproven flows of one service.
    Service(Service, Trip),
}

/// A cap that was exceeded.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
pub struct Trip {
    /// Which.
    pub cap: Cap,
    /// What was measured: packets/s, a share (0 to 1), sources in the last minute.
    pub measured: f64,
    /// What is allowed.
    pub allowed: f64,
    /// When, Unix time, ms.
    pub unix_ms: u64,
}

impl fmt::Display for Trip {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Trip { cap, measured, allowed, unix_ms: _ } = self;
        let percent = measured * 100.0;
        match cap {
            Cap::Drops => {
                write!(f, "{measured:.0} packets/s would be dropped (breaker.drops_per_second = {allowed:.0})")
            }
            Cap::Sources => write!(
                f,
                "flows of {percent:.0} % of the active sources would be dropped (breaker.source_share = {allowed})"
            ),
            Cap::Verdicts => write!(
                f,
                "new verdicts on flows of {measured:.0} sources in a minute \
                 (breaker.verdicts_per_minute = {allowed:.0})"
            ),
            Cap::Service => write!(
                f,
                "unproven flows of {percent:.0} % of the sources of one service would be dropped \
                 (breaker.source_share = {allowed})"
            ),
        }
    }
}

/// What is going on, once a second. Verdicts are those of models.
#[derive(Clone, Copy, Debug, Default)]
pub struct Load {
    /// Packets under verdicts of drop, dropped or not, since the start.
    pub drops: u64,
    /// Proven sources with a flow under a verdict of drop.
    pub sources: u64,
}

/// What a second changed.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Second {
    /// It opened.
    pub opened: Option<Trip>,
    /// It closed; why it was open.
    pub closed: Option<Trip>,
    /// Services whose own breaker closed.
    pub services: Vec<Service>,
}

/// Slots of the minute in which new verdicts are counted.
const SLOTS: usize = 12;
const SLOT_NS: u64 = crowd::MINUTE / SLOTS as u64;

/// The breaker.
#[derive(Debug)]
pub struct Breaker {
    config: BreakerConfig,
    trip: Option<Trip>,
    quiet: Quiet,
    crowd: Crowd,
    services: Services,
    /// Count of drops and time of the last second.
    last: Option<(u64, u64)>,
    /// Sources newly accused, by slot of the last minute, and the number of the newest slot.
    recent: [u64; SLOTS],
    slot: u64,
}

impl Breaker {
    /// Closed, or as an earlier agent left it: open, and quiet for so long.
    pub fn new(config: BreakerConfig, trip: Option<Trip>, quiet_ms: u64) -> Breaker {
        Breaker {
            config,
            trip,
            quiet: Quiet::resume(quiet_ms),
            crowd: Crowd::new(SOURCES),
            services: Services::default(),
            last: None,
            recent: [0; SLOTS],
            slot: 0,
        }
    }

    /// Takes other caps. What was counted goes on; if it is open, it stays so until all is below these.
    pub fn set_config(&mut self, config: BreakerConfig) {
        self.config = config;
    }

    /// Another model, or another rule, judges from now on: whom the one before let pass says nothing of it.
    pub fn another_model(&mut self) {
        self.crowd.another_model();
        self.services.another_model();
    }

    /// Why it is open; `None`: it is closed.
    pub fn trip(&self) -> Option<&Trip> {
        self.trip.as_ref()
    }

    /// How long all has been below the caps, ms, while an agent ran: to be kept while it is open.
    pub fn quiet_ms(&self) -> u64 {
        self.quiet.spent_ms()
    }

    /// The breakers of services.
    pub fn services(&self) -> &Services {
        &self.services
    }

    /// Whether drops of unproven flows to this party's service are held back.
    pub fn holds(&self, party: Party) -> bool {
        matches!(party, Party::Unproven(service, _) if self.services.holds(&service))
    }

    /// A flow was judged, and the model lets it pass.
    pub fn passed(&mut self, party: Party, now_ns: u64) {
        match party {
            Party::Proven(source) => self.crowd.passed(source, now_ns),
            Party::Unproven(service, source) => self.services.passed(service, source, now_ns),
        }
    }

    /// A model drops or limits a flow, or would; whether that opens something.
    pub fn accused(&mut self, party: Party, now_ns: u64, unix_ms: u64) -> Option<Opened> {
        let source = match party {
            Party::Proven(source) => source,
            Party::Unproven(service, source) => {
                let share = self.services.accused(service, source, &self.config, now_ns)?;
                let (measured, allowed) = (share.value(), self.config.source_share);
                return Some(Opened::Service(service, Trip { cap: Cap::Service, measured, allowed, unix_ms }));
            }
        };
        // Of a source that is accused already, another flow is no news.
        if !self.crowd.accused(source, now_ns) {
            return None;
        }
        self.turn(now_ns);
        self.recent[self.slot as usize % SLOTS] += 1;
        let over = self.over_verdicts().or_else(|| self.over_sources(self.crowd.share(now_ns)));
        self.open(over, now_ns, unix_ms).map(Opened::All)
    }

    /// Whether one more source, of `blocked` that are, would be one of too many: for rules that block whole sources.
    pub fn would_block_too_many(&self, blocked: u64) -> bool {
        let share = Share { accused: blocked + 1, of: (self.crowd.len() as u64).max(blocked + 1) };
        is_over(share, &self.config)
    }

    /// Once a second: whether it trips, or closes.
    pub fn second(&mut self, load: Load, now_ns: u64, unix_ms: u64) -> Second {
        self.turn(now_ns);
        self.crowd.forget(now_ns);
        let services = self.services.second(&self.config, now_ns);
        let share = self.crowd.share(now_ns);
        let over = self.over_drops(load, share, now_ns).or_else(|| self.over_verdicts());
        let over = over.or_else(|| self.over_sources(share));
        self.last = Some((load.drops, now_ns));
        if over.is_some() {
            let opened = self.open(over, now_ns, unix_ms);
            self.quiet.broken(now_ns);
            return Second { opened, services, ..Second::default() };
        }
        // Open, what it looks at also is who would still be cut off.
        let held = self.trip.is_some() && is_over(self.crowd.share_with(load.sources, now_ns), &self.config);
        let closed = if self.quiet.second(held, now_ns, self.config.reset_after) { self.trip.take() } else { None };
        Second { closed, services, ..Second::default() }
    }

    /// Closes it by command; why it was open, and which services' were. What was counted is forgotten, so that it does
    /// not trip again at once.
    pub fn reset(&mut self) -> (Option<Trip>, Vec<Service>) {
        self.recent = [0; SLOTS];
        self.quiet = Quiet::default();
        self.last = None;
        self.crowd.acquit();
        (self.trip.take(), self.services.reset())
    }

    fn open(&mut self, over: Option<(Cap, f64, f64)>, now_ns: u64, unix_ms: u64) -> Option<Trip> {
        let (cap, measured, allowed) = over?;
        self.quiet.broken(now_ns);
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

    /// A flood of one source that is dropped is what a verdict is for: the rate counts only with several sources.
    fn over_drops(&self, load: Load, share: Share, now_ns: u64) -> Option<(Cap, f64, f64)> {
        let (before, then) = self.last?;
        let seconds = now_ns.saturating_sub(then) as f64 / 1e9;
        let rate = load.drops.saturating_sub(before) as f64 / seconds.max(0.1);
        let most = self.config.drops_per_second as f64;
        let several = load.sources.max(share.accused) >= u64::from(self.config.min_sources);
        (several && most > 0.0 && rate > most).then_some((Cap::Drops, rate, most))
    }

    fn over_sources(&self, share: Share) -> Option<(Cap, f64, f64)> {
        is_over(share, &self.config).then(|| (Cap::Sources, share.value(), self.config.source_share))
    }
}

/// Below `min_sources`, a share says nothing.
fn is_over(share: Share, config: &BreakerConfig) -> bool {
    let allowed = config.source_share;
    allowed < 1.0 && share.accused >= u64::from(config.min_sources) && share.value() > allowed
}

#[cfg(test)]
mod tests;
