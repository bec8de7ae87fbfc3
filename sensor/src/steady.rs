//! Sources that keep doing the same thing: health checks, probes, collectors. A model that calls one an attack does not
//! cut it.
//!
//! A health check looks like an attack to a model of single flows: it connects and resets (a scan), or reads a greeting
//! and closes (a guess at a password). What tells it apart is that it is the same each time, for hours, slowly, with
//! the service answering each time. So does no scan, which visits each port once, and no flood. A patient guesser can
//! do it, at the rate of a health check and from one address; he is tagged and reported all the same.
//!
//! A habit is that of one source (an address, of IPv6 its /64) at one service (address, port). It counts connections
//! that were proven in a handshake, answered, and ended by the client or in order, each of the shape of the first. It
//! spares the source once it is `after` old. It is forgotten, and begins anew, at the first connection that has another
//! shape, that the service resets, or that makes the rate rise above `per_minute`, or to three times what it was.
//!
//! Pure. Invariant: bounded in memory; what is forgotten or never learnt is judged by the model alone.

use std::collections::HashMap;
use std::net::IpAddr;

use sensor_common::flow::{FlowRecord, state};

use crate::breaker::{Party, source_of};
use crate::verdicts::scope::Service;

/// Habits that are followed.
const MOST: usize = 4_096;
/// Connections that make one.
const LEAST: u64 = 10;
/// Starts that tell the rate.
const STARTS: usize = 8;
/// A habit without a connection for so long is over.
const OVER_NS: u64 = 3_600_000_000_000;
const MINUTE_NS: u64 = 60_000_000_000;
/// How much a rate may rise above the habit's own.
const RISE: u64 = 3;
/// What two connections of one shape may differ in beside half of it.
const SLACK_PACKETS: u64 = 3;
const SLACK_BYTES: u64 = 64;

/// From when on a habit spares, and how often it may happen.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Rules {
    /// Age of a habit that spares, ns; 0: none does.
    pub after_ns: u64,
    /// Connections in a minute.
    pub per_minute: u32,
}

/// A proven TCP connection, as far as habits go.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Visit {
    source: IpAddr,
    service: Service,
    start_ns: u64,
    /// Packets and payload bytes, there and back.
    shape: [[u64; 2]; 2],
    closed: bool,
    reset_by_service: bool,
}

impl Visit {
    /// `None`: the flow proves no source, or another one than the service's client.
    pub fn of(record: &FlowRecord, party: Party) -> Option<Visit> {
        let initiator_high = record.state & state::INITIATOR_HIGH != 0;
        let [low, high] = crate::verdicts::scope::addresses(&record.key);
        let (client, address, port) =
            if initiator_high { (high, low, record.key.low_port) } else { (low, high, record.key.high_port) };
        let outside = record.key.encapsulation == 0;
        if party != Party::Proven(client) || !outside {
            return None;
        }
        let has = |bits: u32| record.state & bits == bits;
        Some(Visit {
            source: source_of(client),
            service: Service { address, port, protocol: record.key.protocol },
            start_ns: record.first_ns,
            shape: record.directions.map(|direction| [direction.packets, direction.payload_bytes]),
            closed: has(state::CLOSED),
            // After a FIN, a reset only says that nobody waits any more.
            reset_by_service: has(state::RST | state::RST_REVERSE) && !has(state::RST_AFTER_FIN),
        })
    }

    /// Who visits whom.
    pub fn ends(&self) -> (IpAddr, Service) {
        (self.source, self.service)
    }
}

/// Why a connection is spared.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Habitual {
    /// Connections of this shape before it.
    pub visits: u64,
    /// Since the first one, ns.
    pub age_ns: u64,
    /// It is the first that this habit spares.
    pub first: bool,
}

#[derive(Clone, Copy, Debug)]
struct Habit {
    first_ns: u64,
    visits: u64,
    shape: [[u64; 2]; 2],
    /// Starts of the last connections, in order; 0: none.
    starts: [u64; STARTS],
    spared: bool,
}

impl Habit {
    fn new(visit: &Visit) -> Habit {
        let mut starts = [0; STARTS];
        starts[STARTS - 1] = visit.start_ns;
        Habit { first_ns: visit.start_ns, visits: 0, shape: visit.shape, starts, spared: false }
    }

    /// Whether a connection of this start was not seen before.
    fn begins(&mut self, start_ns: u64) -> bool {
        if self.starts.contains(&start_ns) || start_ns < self.starts[0] {
            return false;
        }
        self.starts[0] = start_ns;
        self.starts.sort_unstable();
        true
    }

    /// Whether the last connections came faster than they may.
    fn hurries(&self, rules: Rules) -> bool {
        let gaps = (STARTS - 1) as u64;
        let [oldest, .., newest] = self.starts;
        if oldest == 0 {
            return false;
        }
        let span = newest - oldest;
        let usual = newest.saturating_sub(self.first_ns) / self.visits.max(1);
        let learnt = self.visits >= 2 * STARTS as u64;
        span * u64::from(rules.per_minute) < gaps * MINUTE_NS || (learnt && span * RISE < gaps * usual)
    }

    fn allows(&self, visit: &Visit) -> bool {
        let most = |usual: u64, slack: u64| usual + usual / 2 + slack;
        visit
            .shape
            .iter()
            .zip(&self.shape)
            .all(|(now, usual)| now[0] <= most(usual[0], SLACK_PACKETS) && now[1] <= most(usual[1], SLACK_BYTES))
    }

    /// The same, of a connection that is over: it is no less, either.
    fn equals(&self, visit: &Visit) -> bool {
        let least = |usual: u64, slack: u64| (usual / 2).saturating_sub(slack);
        self.allows(visit)
            && visit
                .shape
                .iter()
                .zip(&self.shape)
                .all(|(now, usual)| now[0] >= least(usual[0], SLACK_PACKETS) && now[1] >= least(usual[1], SLACK_BYTES))
    }
}

/// The habits of all sources.
#[derive(Debug)]
pub struct Steady {
    rules: Rules,
    habits: HashMap<(IpAddr, Service), Habit>,
    pruned_ns: u64,
}

impl Steady {
    /// None yet.
    pub fn new(rules: Rules) -> Steady {
        Steady { rules, habits: HashMap::new(), pruned_ns: 0 }
    }

    /// Takes other rules; habits go on.
    pub fn set_rules(&mut self, rules: Rules) {
        self.rules = rules;
    }

    /// Habits that are followed.
    pub fn len(&self) -> usize {
        self.habits.len()
    }

    /// Whether there is none.
    pub fn is_empty(&self) -> bool {
        self.habits.is_empty()
    }

    /// A connection has ended.
    pub fn ended(&mut self, visit: &Visit, now_ns: u64) {
        if self.rules.after_ns == 0 {
            return;
        }
        if visit.reset_by_service {
            self.habits.remove(&visit.ends());
            return;
        }
        // It was cut, or fell silent: it says neither.
        if !visit.closed {
            return;
        }
        if !self.habits.contains_key(&visit.ends()) && !self.make_room(now_ns) {
            return;
        }
        let rules = self.rules;
        let habit = self.habits.entry(visit.ends()).or_insert_with(|| Habit::new(visit));
        habit.begins(visit.start_ns);
        if !habit.equals(visit) || habit.hurries(rules) {
            // What it does from now on may become another one.
            *habit = Habit::new(visit);
        }
        habit.visits += 1;
    }

    /// Whether a connection that the model would cut is one of a habit.
    pub fn spares(&mut self, visit: &Visit) -> Option<Habitual> {
        let rules = self.rules;
        let habit = self.habits.get_mut(&visit.ends()).filter(|_| rules.after_ns > 0)?;
        habit.begins(visit.start_ns);
        if habit.hurries(rules) || visit.reset_by_service {
            self.habits.remove(&visit.ends());
            return None;
        }
        let age_ns = visit.start_ns.saturating_sub(habit.first_ns);
        if habit.visits < LEAST || age_ns < rules.after_ns || !habit.allows(visit) {
            return None;
        }
        let first = !std::mem::replace(&mut habit.spared, true);
        Some(Habitual { visits: habit.visits, age_ns, first })
    }

    /// Whether there is room for one more. Of a full house, those go that are over, and young ones that do nothing;
    /// once a second at most, as strangers may fill it again at once.
    fn make_room(&mut self, now_ns: u64) -> bool {
        if self.habits.len() < MOST {
            return true;
        }
        if now_ns.saturating_sub(self.pruned_ns) >= MINUTE_NS / 60 {
            self.pruned_ns = now_ns;
            self.habits.retain(|_, habit| {
                let idle = now_ns.saturating_sub(habit.starts[STARTS - 1]);
                idle < if habit.visits < LEAST { MINUTE_NS } else { OVER_NS }
            });
        }
        self.habits.len() < MOST
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use sensor_common::packet::protocol;

    const SECOND: u64 = 1_000_000_000;
    const RULES: Rules = Rules { after_ns: 600 * SECOND, per_minute: 60 };

    /// A health check that resets: SYN, SYN-ACK, ACK, RST.
    fn check(start_ns: u64) -> Visit {
        Visit {
            source: IpAddr::from([198, 18, 1, 1]),
            service: Service { address: IpAddr::from([198, 18, 0, 10]), port: 443, protocol: protocol::TCP },
            start_ns,
            shape: [[3, 0], [1, 0]],
            closed: true,
            reset_by_service: false,
        }
    }

    /// Checks every two seconds for `seconds`, from `begin` on.
    fn learn(steady: &mut Steady, begin: u64, seconds: u64) -> u64 {
        for second in (0..seconds).step_by(2) {
            let now = begin + second * SECOND;
            steady.ended(&check(now), now + SECOND);
        }
        begin + seconds * SECOND
    }

    fn learnt() -> (Steady, u64) {
        let mut steady = Steady::new(RULES);
        let now = learn(&mut steady, SECOND, 700);
        (steady, now)
    }

    #[test]
    fn a_check_is_spared_once_it_is_a_habit() {
        let mut steady = Steady::new(RULES);
        let now = learn(&mut steady, SECOND, 598);
        assert_eq!(steady.spares(&check(now)), None, "not ten minutes old");
        let now = learn(&mut steady, now, 20);
        let spared = steady.spares(&check(now)).expect("a habit");
        assert!(spared.first && spared.visits == 309 && spared.age_ns == 618 * SECOND, "{spared:?}");
        assert!(!steady.spares(&check(now)).expect("the same connection, judged again").first);
        let off = Rules { after_ns: 0, ..RULES };
        steady.set_rules(off);
        assert_eq!(steady.spares(&check(now)), None);
    }

    #[test]
    fn nobody_else_is_spared() {
        let (mut steady, now) = learnt();
        let other = Visit { source: IpAddr::from([198, 18, 1, 2]), ..check(now) };
        assert_eq!(steady.spares(&other), None, "another source");
        let service = Service { port: 22, ..check(now).service };
        assert_eq!(steady.spares(&Visit { service, ..check(now) }), None, "another port: that is a scan's second one");
        for shape in [[[3, 500], [1, 0]], [[40, 0], [1, 0]], [[3, 0], [1, 9_000]]] {
            assert_eq!(steady.spares(&Visit { shape, ..check(now) }), None, "{shape:?}");
        }
        assert!(steady.spares(&check(now)).is_some());
    }

    #[test]
    fn a_burst_ends_it_at_once() {
        let (mut steady, now) = learnt();
        let spared = (0..1_000).take_while(|number| steady.spares(&check(now + number * 50_000_000)).is_some()).count();
        assert!(spared <= STARTS, "{spared} of a burst");
        assert!(steady.is_empty());
        let now = learn(&mut steady, now + 60 * SECOND, 598);
        assert_eq!(steady.spares(&check(now)), None, "it begins anew");
    }

    #[test]
    fn a_rate_that_rises_ends_it_below_the_cap_too() {
        let mut steady = Steady::new(RULES);
        (0..100).for_each(|number| steady.ended(&check(SECOND + number * 30 * SECOND), 0));
        let now = SECOND + 100 * 30 * SECOND;
        let spared = (0..60).take_while(|number| steady.spares(&check(now + number * 5 * SECOND)).is_some()).count();
        assert!(spared <= STARTS, "{spared} at six times the rate");
    }

    #[test]
    fn a_quick_source_never_gets_one() {
        let mut steady = Steady::new(RULES);
        for number in 0..20_000 {
            let visit = check(SECOND + number * 100_000_000);
            steady.ended(&visit, visit.start_ns);
            assert_eq!(steady.spares(&visit), None, "{number}");
        }
    }

    #[test]
    fn a_service_that_resets_ends_it_and_so_does_another_shape() {
        let (mut steady, now) = learnt();
        steady.ended(&Visit { reset_by_service: true, ..check(now) }, now);
        assert_eq!(steady.spares(&check(now + 2 * SECOND)), None);
        let (mut steady, now) = learnt();
        steady.ended(&Visit { shape: [[20, 4_000], [20, 9_000]], ..check(now) }, now);
        assert_eq!(steady.spares(&check(now + 2 * SECOND)), None);
        let (mut steady, now) = learnt();
        steady.ended(&Visit { closed: false, shape: [[2, 0], [1, 0]], ..check(now) }, now);
        assert!(steady.spares(&check(now + 2 * SECOND)).is_some(), "one that was cut says nothing");
    }

    #[test]
    fn a_shape_does_not_creep() {
        let mut steady = Steady::new(RULES);
        let mut bytes = 100;
        for number in 0..2_000 {
            let visit = Visit { shape: [[8, bytes], [6, 300]], ..check(SECOND + number * 2 * SECOND) };
            steady.ended(&visit, visit.start_ns);
            bytes += bytes / 100 + 1;
            let huge = Visit { shape: [[8, 4 * bytes], [6, 300]], ..visit };
            assert_eq!(steady.spares(&huge), None, "{number}");
        }
    }

    #[test]
    fn strangers_do_not_push_habits_out() {
        let (mut steady, now) = learnt();
        for number in 0..100_000u32 {
            let source = IpAddr::from((0xc613_0000 + number).to_be_bytes());
            steady.ended(&Visit { source, ..check(now) }, now);
        }
        assert_eq!(steady.len(), MOST);
        assert!(steady.spares(&check(now)).is_some());
        let later = now + 2 * MINUTE_NS;
        let source = IpAddr::from([198, 20, 0, 1]);
        steady.ended(&Visit { source, ..check(later) }, later);
        assert_eq!(steady.len(), 2, "strangers that did not come back made room");
    }

    #[test]
    fn only_a_proven_client_of_the_service_visits() {
        let [client, server] = [[198, 18, 0, 1], [198, 18, 0, 2]].map(IpAddr::from);
        let mut record = FlowRecord::zeroed();
        (record.key.family, record.key.protocol, record.key.high_port) = (4, protocol::TCP, 443);
        record.key.low[0] = u32::from_be_bytes([198, 18, 0, 1]);
        record.key.high[0] = u32::from_be_bytes([198, 18, 0, 2]);
        record.state = state::RST | state::CLOSED;
        let visit = Visit::of(&record, Party::Proven(client)).expect("a visit");
        assert_eq!(visit.ends(), (client, Service { address: server, port: 443, protocol: protocol::TCP }));
        assert!(visit.closed && !visit.reset_by_service, "its own reset");
        assert_eq!(Visit::of(&record, Party::Proven(server)), None, "this host is the client");
        assert_eq!(Visit::of(&record, Party::Unproven(visit.service, client)), None);
        record.state |= state::RST_REVERSE;
        assert!(Visit::of(&record, Party::Proven(client)).expect("a visit").reset_by_service);
    }
}
