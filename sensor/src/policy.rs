//! Score → verdict. Pure: no clock, no table. Called by the poll thread for every score, and by `sensor replay`.
//!
//! A decision says what mode enforce does; what is done is bounded by the ceiling of the mode, the breaker and drift,
//! in the kernel ([`ceiling`]). Invariant: a decision is never drop or limit for a protected flow or one with fewer
//! packets than `policy.min_packets_drop`, never for a connection whose beginning was not seen, and never above what
//! the label's action, the thresholds and the ramp allow.

use std::collections::HashSet;
use std::net::IpAddr;
use std::time::Duration;

use ipnet::IpNet;
use sensor_common::flow::{FlowRecord, state};
use sensor_common::packet::protocol;
use sensor_common::verdict::{Action, Origin, is_proven};

use crate::allow::List;
use crate::breaker::Party;
use crate::config::{Mode, PolicyConfig};
use crate::model::Score;
use crate::model::contract::Thresholds;
use crate::verdicts::Rate;
use crate::verdicts::scope::{Service, addresses};

/// What becomes of a scored flow.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Decision {
    /// What mode enforce does now.
    pub action: Action,
    /// The same, once the ramp is over and the flow has packets enough.
    pub would: Action,
    /// The score is one to be counted and logged, whatever is done.
    pub reported: bool,
    /// Why no more than a tag is done, although the score says so.
    pub spared: Option<Spared>,
}

impl Decision {
    const PASS: Decision = Decision { action: Action::Pass, would: Action::Pass, reported: false, spared: None };

    /// The same flow, of which no more is done than a tag.
    pub fn spare(self, why: Spared) -> Decision {
        let tag = |action: Action| action.min(Action::Tag);
        Decision { action: tag(self.action), would: tag(self.would), spared: Some(why), ..self }
    }
}

/// Why a model's drop or limit becomes a tag.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Spared {
    /// The beginning of the connection was not seen.
    Midstream,
    /// Its source keeps doing the same ([`crate::steady`]).
    Steady,
    /// Few flows of its source were accused ([`crate::company`]).
    Alone,
}

impl Spared {
    /// Every reason.
    pub const ALL: [Spared; 3] = [Spared::Midstream, Spared::Steady, Spared::Alone];

    /// The name in metrics and logs.
    pub const fn name(self) -> &'static str {
        match self {
            Spared::Midstream => "midstream",
            Spared::Steady => "steady",
            Spared::Alone => "alone",
        }
    }
}

/// The rules between model and verdict.
#[derive(Clone, Debug)]
pub struct Policy {
    thresholds: Thresholds,
    min_packets: u64,
    min_packets_drop: u64,
    /// Action in mode enforce, by label number.
    actions: Vec<Action>,
    /// While the ramp lasts, what is below this score does not drop.
    ramp_score: Option<f32>,
    configured_ramp_score: f32,
    rate: Rate,
}

impl Policy {
    /// `labels`, `thresholds` and `min_packets` are the model's; a threshold of the configuration replaces all of them.
    pub fn new(config: &PolicyConfig, labels: &[String], thresholds: Thresholds, min_packets: u64) -> Policy {
        let action = |(number, label): (usize, &String)| match config.label_actions.get(label) {
            Some(action) => (*action).into(),
            None if number == 0 => Action::Pass,
            None => Action::Drop,
        };
        Policy {
            thresholds: config.threshold.map_or(thresholds, |threshold| Thresholds::all(threshold as f32)),
            min_packets: min_packets.max(config.min_packets as u64),
            min_packets_drop: config.min_packets_drop as u64,
            actions: labels.iter().enumerate().map(action).collect(),
            ramp_score: None,
            configured_ramp_score: config.ramp_score as f32,
            rate: Rate { packets: config.limit_packets, bytes: config.limit_bytes },
        }
    }

    /// Packets that a flow must have before it is scored.
    pub fn min_packets(&self) -> u64 {
        self.min_packets
    }

    /// What becomes of a flow with this record and score.
    pub fn decide(&self, record: &FlowRecord, score: Score, allowed: &List) -> Decision {
        if !self.reports(score) || record.packets() < self.min_packets {
            return Decision::PASS;
        }
        let label = self.actions.get(score.label as usize).copied().unwrap_or(Action::Pass);
        let most = match score.score {
            score if score >= self.thresholds.drop => Action::Drop,
            score if score >= self.thresholds.tag => Action::Tag,
            _ => Action::Pass,
        };
        let mut would = label.min(most);
        if would > Action::Tag && allowed.protects(record) {
            would = Action::Pass;
        }
        let young = record.packets() < self.min_packets_drop;
        let ramped = self.ramp_score.is_some_and(|least| score.score < least);
        let action = if young || ramped { would.min(Action::Tag) } else { would };
        let decision = Decision { action, would, reported: true, spared: None };
        if would > Action::Tag && !began_in_sight(record) { decision.spare(Spared::Midstream) } else { decision }
    }

    /// Whether a score is one to be counted and logged.
    pub fn reports(&self, score: Score) -> bool {
        (1..self.actions.len()).contains(&usize::from(score.label)) && score.score >= self.thresholds.report
    }

    /// Scores from which on something is done.
    pub fn thresholds(&self) -> Thresholds {
        self.thresholds
    }

    /// What a verdict of this action lets through.
    pub fn rate(&self, action: Action) -> Rate {
        if action == Action::Limit { self.rate } else { Rate::default() }
    }

    /// From now on the ramp lasts, or is over.
    pub fn set_ramp(&mut self, lasts: bool) {
        self.ramp_score = lasts.then_some(self.configured_ramp_score);
    }

    /// Whether this score takes an earlier verdict back: only one far below the threshold does, so that scores on both
    /// sides of it do not switch a flow on and off.
    pub fn clears(&self, score: Score) -> bool {
        score.score < self.thresholds.report / 2.0
    }
}

/// The strongest action that is done for verdicts of an origin. `held`: drops of models are held back (the breaker is
/// open, or drift is high).
pub fn ceiling(mode: Mode, origin: Origin, held: bool) -> Action {
    let mode = match mode {
        Mode::Observe => Action::Pass,
        Mode::Tag => Action::Tag,
        Mode::Enforce => Action::Drop,
    };
    if held && origin == Origin::Model { mode.min(Action::Tag) } else { mode }
}

/// How long mode enforce has been on, for the ramp: on the monotonic clock, so that no step of the wall clock ends it,
/// and only while an agent runs.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Ramp {
    spent_ns: u64,
    last_ns: Option<u64>,
}

impl Ramp {
    /// As an earlier agent left it.
    pub fn resume(spent_ms: u64) -> Ramp {
        Ramp { spent_ns: spent_ms.saturating_mul(1_000_000), last_ns: None }
    }

    /// What it has lasted, ms: to be kept.
    pub fn spent_ms(&self) -> u64 {
        self.spent_ns / 1_000_000
    }

    /// It is `now_ns`, and mode enforce is on; whether a ramp of length `whole` goes on.
    pub fn lasts(&mut self, now_ns: u64, whole: Duration) -> bool {
        let last = self.last_ns.replace(now_ns).unwrap_or(now_ns);
        self.spent_ns = self.spent_ns.saturating_add(now_ns.saturating_sub(last));
        u128::from(self.spent_ns) < whole.as_nanos()
    }
}

/// Whether a verdict is one to be counted as what is done, and as what would be done, of (done, would) now and when the
/// flow was counted last: once each, and what is done anew when it has become another.
pub fn to_count((done, would): (Action, Action), before: Option<(Action, Action)>) -> [bool; 2] {
    let anew = |now: Action, before: Option<Action>| now != Action::Pass && Some(now) != before;
    [anew(done, before.map(|(done, _)| done)), done != would && anew(would, before.map(|(_, would)| would))]
}

/// Who began a flow, as far as its packets tell.
pub fn initiator(record: &FlowRecord) -> IpAddr {
    addresses(&record.key)[usize::from(record.state & state::INITIATOR_HIGH != 0)]
}

/// What has a source: its IPv4 address, or the /64 of its IPv6 address, as everywhere where sources are counted
/// ([`sensor_common::context::Ends`]).
pub fn network(source: IpAddr) -> IpNet {
    match source {
        IpAddr::V4(_) => source.into(),
        IpAddr::V6(v6) => {
            let mask = u128::MAX << 64;
            let network = std::net::Ipv6Addr::from_bits(v6.to_bits() & mask);
            IpNet::new(network.into(), 64).unwrap_or_else(|_| source.into())
        }
    }
}

/// The source that a flow under a verdict of drop speaks against: its initiator, if that has shown, in a TCP handshake
/// with proven sequence numbers, that it receives what is sent to its address. UDP, half-open and forged flows speak
/// against nobody: their source may be an innocent one.
pub fn accuses(record: &FlowRecord) -> Option<IpAddr> {
    let known = state::INITIATOR_BY_SYN;
    (record.state & known == known && record.state & state::SELF == 0 && is_proven(record)).then(|| initiator(record))
}

/// Whether the record holds the flow from its first packet on, as far as that can be told: of TCP, from the SYN. Of a
/// connection that was picked up in the middle (it was idle for long, the agent came later), the model sees a rest that
/// it never learnt: that is reported, never a reason to cut it.
pub fn began_in_sight(record: &FlowRecord) -> bool {
    record.key.protocol != protocol::TCP || record.state & state::INITIATOR_BY_SYN != 0
}

/// Whom a flow speaks for or against at the breaker: its remote end, `own` being the addresses of this host. Of flows
/// that this host begins without a handshake, all peers are those of one service (port 0).
pub fn party(record: &FlowRecord, own: &HashSet<IpAddr>) -> Party {
    let initiator_high = record.state & state::INITIATOR_HIGH != 0;
    let ends = addresses(&record.key);
    let (initiator, responder) = (ends[usize::from(initiator_high)], ends[usize::from(!initiator_high)]);
    let outbound = own.contains(&initiator);
    let remote = if outbound { responder } else { initiator };
    if accuses(record).is_some() {
        return Party::Proven(remote);
    }
    let port = if initiator_high { record.key.low_port } else { record.key.high_port };
    let (address, port) = if outbound { (initiator, 0) } else { (responder, port) };
    Party::Unproven(Service { address, port, protocol: record.key.protocol }, remote)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn record(src: [u8; 4], packets: u64) -> FlowRecord {
        let mut record = FlowRecord::zeroed();
        record.key.family = 4;
        record.key.low[0] = u32::from_be_bytes(src);
        record.key.high[0] = u32::from_be_bytes([198, 18, 0, 2]);
        record.directions[0].packets = packets;
        record
    }

    fn config() -> PolicyConfig {
        let mut config = PolicyConfig { min_packets_drop: 16, ..PolicyConfig::default() };
        config.label_actions.insert("scan".to_owned(), crate::config::ActionName::Tag);
        config.label_actions.insert("bulk".to_owned(), crate::config::ActionName::Limit);
        config.never_drop.push("198.18.7.0/24".parse().expect("a prefix"));
        config
    }

    fn policy() -> Policy {
        let labels = ["benign", "scan", "flood", "bulk"].map(str::to_owned);
        Policy::new(&config(), &labels, Thresholds { report: 0.9, tag: 0.91, drop: 0.94 }, 8)
    }

    fn list() -> List {
        List::of(&config().never_drop, &[], &[])
    }

    const FLOOD: Score = Score { label: 2, score: 0.95 };

    fn reported(action: Action) -> Decision {
        Decision { action, would: action, reported: true, spared: None }
    }

    #[test]
    fn label_and_score_bound_the_action() {
        let (flow, list) = (record([198, 18, 0, 1], 16), list());
        let decide = |score| policy().decide(&flow, score, &list);
        assert_eq!(decide(Score { label: 1, score: 0.95 }), reported(Action::Tag));
        assert_eq!(decide(Score { label: 3, score: 0.95 }), reported(Action::Limit));
        assert_eq!(policy().rate(Action::Limit), Rate { packets: 100, bytes: 0 });
        for (score, would) in [(0.94, Action::Drop), (0.93, Action::Tag), (0.905, Action::Pass)] {
            assert_eq!(decide(Score { score, ..FLOOD }), reported(would), "{score}");
        }
        assert_eq!(decide(Score { score: 0.89, ..FLOOD }), Decision::PASS);
        assert!(!policy().clears(Score { score: 0.89, ..FLOOD }), "not by a score just below the threshold");
        assert!(policy().clears(Score { label: 0, score: 0.1 }));
        assert_eq!(decide(Score { label: 0, score: 0.99 }), Decision::PASS);
        assert_eq!(decide(Score { label: 9, score: 0.99 }), Decision::PASS, "unknown labels pass");
    }

    #[test]
    fn a_threshold_of_the_configuration_replaces_all() {
        let config = PolicyConfig { threshold: Some(0.5), ..PolicyConfig::default() };
        let labels = ["benign", "flood"].map(str::to_owned);
        let own = Thresholds { report: 0.9, tag: 0.95, drop: 0.99 };
        let policy = Policy::new(&config, &labels, own, 1);
        let decision = policy.decide(&record([198, 18, 0, 1], 4), Score { label: 1, score: 0.5 }, &List::default());
        assert_eq!((decision.would, policy.thresholds()), (Action::Drop, Thresholds::all(0.5)));
    }

    #[test]
    fn young_and_protected_flows_are_not_dropped() {
        let (policy, list) = (policy(), list());
        assert_eq!(policy.decide(&record([198, 18, 0, 1], 7), FLOOD, &list), Decision::PASS);
        let young = Decision { action: Action::Tag, would: Action::Drop, reported: true, spared: None };
        assert_eq!(policy.decide(&record([198, 18, 0, 1], 15), FLOOD, &list), young);
        let spared = Decision { reported: true, ..Decision::PASS };
        assert_eq!(policy.decide(&record([198, 18, 7, 1], 80), FLOOD, &list), spared);
        let mut group = record([198, 18, 0, 1], 80);
        group.key.high[0] = 0xe000_0012;
        assert_eq!(policy.decide(&group, FLOOD, &list), spared, "to 224.0.0.18");
        assert_eq!(policy.decide(&record([127, 0, 0, 1], 80), FLOOD, &list).would, Action::Drop, "made up");
        let mut discovery = record([198, 18, 0, 1], 80);
        discovery.key.protocol = protocol::ICMPV6;
        assert_eq!(policy.decide(&discovery, FLOOD, &list).would, Action::Pass);
    }

    #[test]
    fn the_ramp_drops_only_what_is_certain() {
        let (mut policy, list, flow) = (policy(), list(), record([198, 18, 0, 1], 80));
        policy.set_ramp(true);
        let doubtful = policy.decide(&flow, FLOOD, &list);
        assert_eq!(doubtful, Decision { action: Action::Tag, would: Action::Drop, reported: true, spared: None });
        assert_eq!(policy.decide(&flow, Score { score: 0.99, ..FLOOD }, &list), reported(Action::Drop));
        policy.set_ramp(false);
        assert_eq!(policy.decide(&flow, FLOOD, &list), reported(Action::Drop));
    }

    #[test]
    fn the_ramp_counts_what_agents_ran() {
        let (second, whole) = (1_000_000_000, Duration::from_secs(60));
        let mut ramp = Ramp::default();
        assert!(ramp.lasts(5_000 * second, whole), "the clock's own zero is long ago");
        assert!(ramp.lasts(5_040 * second, whole));
        // Another boot: the monotonic clock begins anew.
        let mut next = Ramp::resume(ramp.spent_ms());
        assert!(next.lasts(3 * second, whole));
        assert!(next.lasts(22 * second, whole));
        assert!(!next.lasts(23 * second, whole));
        assert!(!Ramp::default().lasts(second, Duration::ZERO), "no ramp");
    }

    #[test]
    fn what_was_withheld_is_counted_when_it_is_done() {
        use Action::{Drop, Pass, Tag};
        assert_eq!(to_count((Pass, Drop), None), [false, true], "observe");
        assert_eq!(to_count((Tag, Drop), None), [true, true], "young, or in the ramp");
        assert_eq!(to_count((Drop, Drop), Some((Tag, Drop))), [true, false], "dropped now");
        assert_eq!(to_count((Pass, Drop), Some((Pass, Drop))), [false, false], "renewed");
        assert_eq!(to_count((Tag, Drop), Some((Tag, Tag))), [false, true]);
        assert_eq!(to_count((Tag, Tag), None), [true, false]);
        assert_eq!(to_count((Pass, Pass), None), [false, false], "a report");
    }

    #[test]
    fn the_ceiling_is_the_modes_and_a_breaker_holds_models_only() {
        use Action::{Drop, Pass, Tag};
        for (mode, free, held) in [(Mode::Observe, Pass, Pass), (Mode::Tag, Tag, Tag), (Mode::Enforce, Drop, Tag)] {
            assert_eq!((ceiling(mode, Origin::Model, false), ceiling(mode, Origin::Model, true)), (free, held));
            assert_eq!(ceiling(mode, Origin::Operator, true), free);
            assert_eq!(ceiling(mode, Origin::Rule, true), free, "the answer to floods asks no model");
        }
    }

    #[test]
    fn a_source_of_ipv6_is_its_64() {
        for (source, expected) in [("198.18.66.7", "198.18.66.7/32"), ("2001:db8:66:1:2:3:4:5", "2001:db8:66:1::/64")] {
            assert_eq!(network(source.parse().expect(source)).to_string(), expected);
        }
    }

    #[test]
    fn only_a_proven_initiator_is_accused() {
        let mut flow = record([198, 18, 0, 1], 80);
        flow.key.protocol = protocol::TCP;
        flow.state = state::INITIATOR_BY_SYN
            | state::SYN
            | state::SYN_ACK
            | state::ESTABLISHED
            | state::ACK_KNOWN
            | state::SEQUENCE_KNOWN << 1
            | state::REVERSE;
        (flow.directions[0].ack, flow.directions[1].next) = (1_000, 1_000);
        assert_eq!(accuses(&flow), Some(IpAddr::from([198, 18, 0, 1])));
        let mut forged = flow;
        forged.directions[0].ack = 77;
        assert_eq!(accuses(&forged), None, "a guessed acknowledgement");
        for (bit, why) in [(state::ESTABLISHED, "half-open"), (state::INITIATOR_BY_SYN, "who began is a guess")] {
            let mut without = flow;
            without.state &= !bit;
            assert_eq!(accuses(&without), None, "{why}");
        }
        let mut datagrams = flow;
        datagrams.key.protocol = protocol::UDP;
        assert_eq!(accuses(&datagrams), None);
        flow.state |= state::INITIATOR_HIGH;
        assert_eq!(initiator(&flow), IpAddr::from([198, 18, 0, 2]));
    }

    #[test]
    fn the_breaker_counts_the_remote_end() {
        let [client, server] = [[198, 18, 0, 1], [198, 18, 0, 2]].map(IpAddr::from);
        let mut flow = record([198, 18, 0, 1], 80);
        (flow.key.protocol, flow.key.low_port, flow.key.high_port) = (protocol::UDP, 40_000, 53);
        let service = |address, port| Service { address, port, protocol: flow.key.protocol };
        let (inside, outside) = (HashSet::from([server]), HashSet::from([client]));
        assert_eq!(party(&flow, &inside), Party::Unproven(service(server, 53), client));
        assert_eq!(party(&flow, &outside), Party::Unproven(service(client, 0), server), "this host asked");
        flow.key.protocol = protocol::TCP;
        flow.state = state::INITIATOR_BY_SYN
            | state::SYN_ACK
            | state::ESTABLISHED
            | state::ACK_KNOWN
            | state::SEQUENCE_KNOWN << 1
            | state::REVERSE;
        assert_eq!(party(&flow, &inside), Party::Proven(client));
        assert_eq!(party(&flow, &outside), Party::Proven(server));
    }

    #[test]
    fn a_flow_whose_beginning_was_not_seen_is_not_cut() {
        let (policy, list) = (policy(), list());
        let mut flow = record([198, 18, 0, 1], 80);
        flow.key.protocol = protocol::TCP;
        assert_eq!(policy.decide(&flow, FLOOD, &list), reported(Action::Drop).spare(Spared::Midstream));
        assert_eq!(
            policy.decide(&flow, Score { label: 1, ..FLOOD }, &list),
            reported(Action::Tag),
            "no more than usual"
        );
        flow.state = state::INITIATOR_BY_SYN;
        assert_eq!(policy.decide(&flow, FLOOD, &list), reported(Action::Drop));
    }
}
