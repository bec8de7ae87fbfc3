//! Score → verdict. Pure: no clock, no table. Called by the poll thread for every score.
//!
//! Invariant: what [`Decision::action`] asks for is never stronger than the mode allows, and never more than pass for a
//! flow with a protected endpoint.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use ipnet::IpNet;
use sensor_common::flow::FlowRecord;
use sensor_common::packet::protocol;
use sensor_common::verdict::Action;

use crate::config::{Mode, PolicyConfig};
use crate::model::Score;
use crate::model::contract::Thresholds;

/// What becomes of a scored flow.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Decision {
    /// To be stored in the record.
    pub action: Action,
    /// What mode enforce would store.
    pub would: Action,
    /// The score is one to be counted and logged, whatever is done.
    pub reported: bool,
}

impl Decision {
    const PASS: Decision = Decision { action: Action::Pass, would: Action::Pass, reported: false };
}

/// The rules between model and verdict.
#[derive(Clone, Debug)]
pub struct Policy {
    mode: Mode,
    thresholds: Thresholds,
    min_packets: u64,
    never_drop: Vec<IpNet>,
    /// Action in mode enforce, by label number.
    actions: Vec<Action>,
    /// Nothing is dropped: what would be is tagged.
    fallback: bool,
}

impl Policy {
    /// `labels`, `thresholds` and `min_packets` are the model's; a threshold of the configuration replaces all of them.
    pub fn new(
        mode: Mode,
        config: &PolicyConfig,
        labels: &[String],
        thresholds: Thresholds,
        min_packets: u64,
    ) -> Policy {
        let action = |(number, label): (usize, &String)| match config.label_actions.get(label) {
            Some(action) => (*action).into(),
            None if number == 0 => Action::Pass,
            None => Action::Drop,
        };
        Policy {
            mode,
            thresholds: config.threshold.map_or(thresholds, |threshold| Thresholds::all(threshold as f32)),
            min_packets: min_packets.max(config.min_packets as u64),
            never_drop: config.never_drop.clone(),
            actions: labels.iter().enumerate().map(action).collect(),
            fallback: false,
        }
    }

    /// Packets that a flow must have before it is scored.
    pub fn min_packets(&self) -> u64 {
        self.min_packets
    }

    /// What becomes of a flow with this record and score.
    pub fn decide(&self, record: &FlowRecord, score: Score) -> Decision {
        if !self.reports(score) || record.packets() < self.min_packets {
            return Decision::PASS;
        }
        let mut would = self.actions.get(score.label as usize).copied().unwrap_or(Action::Pass);
        // Neighbour discovery is ICMPv6: without it, IPv6 stops (RFC 4890 §4.4).
        if would == Action::Drop && (self.is_protected(record) || record.key.protocol == protocol::ICMPV6) {
            would = Action::Pass;
        }
        let allowed = match score.score {
            score if score >= self.thresholds.drop => Action::Drop,
            score if score >= self.thresholds.tag => Action::Tag,
            _ => Action::Pass,
        };
        would = would.min(allowed);
        let action = match self.mode {
            Mode::Observe => Action::Pass,
            Mode::Tag => would.min(Action::Tag),
            Mode::Enforce if self.fallback => would.min(Action::Tag),
            Mode::Enforce => would,
        };
        Decision { action, would, reported: true }
    }

    /// Whether a score is one to be counted and logged.
    pub fn reports(&self, score: Score) -> bool {
        (1..self.actions.len()).contains(&usize::from(score.label)) && score.score >= self.thresholds.report
    }

    /// Scores from which on something is done.
    pub fn thresholds(&self) -> Thresholds {
        self.thresholds
    }

    /// From now on, what would be dropped is tagged (or not any more).
    pub fn set_fallback(&mut self, fallback: bool) {
        self.fallback = fallback;
    }

    /// Whether drops are held back.
    pub fn fallback(&self) -> bool {
        self.fallback
    }

    /// Whether this score takes an earlier verdict back: only one far below the threshold does, so that scores on both
    /// sides of it do not switch a flow on and off.
    pub fn clears(&self, score: Score) -> bool {
        score.score < self.thresholds.report / 2.0
    }

    fn is_protected(&self, record: &FlowRecord) -> bool {
        let ends = endpoints(record);
        self.never_drop.iter().any(|prefix| ends.iter().any(|address| prefix.contains(address)))
    }
}

/// Addresses of a flow: the key's low and high endpoint.
pub fn endpoints(record: &FlowRecord) -> [IpAddr; 2] {
    let address = |words: [u32; 4]| match record.key.family {
        4 => IpAddr::V4(Ipv4Addr::from(words[0])),
        _ => IpAddr::V6(Ipv6Addr::from(words.iter().fold(0u128, |sum, word| sum << 32 | *word as u128))),
    };
    [address(record.key.low), address(record.key.high)]
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

    fn policy(mode: Mode) -> Policy {
        let labels = ["benign", "scan", "flood"].map(str::to_owned);
        let mut config = PolicyConfig::default();
        config.label_actions.insert("scan".to_owned(), crate::config::ActionName::Tag);
        config.never_drop.push("198.18.7.0/24".parse().expect("a prefix"));
        Policy::new(mode, &config, &labels, Thresholds { report: 0.9, tag: 0.91, drop: 0.94 }, 8)
    }

    const FLOOD: Score = Score { label: 2, score: 0.95 };

    #[test]
    fn the_mode_bounds_the_action() {
        let flow = record([198, 18, 0, 1], 8);
        let decide = |mode, score| policy(mode).decide(&flow, score);
        let reported = |action, would| Decision { action, would, reported: true };
        assert_eq!(decide(Mode::Observe, FLOOD), reported(Action::Pass, Action::Drop));
        assert_eq!(decide(Mode::Tag, FLOOD), reported(Action::Tag, Action::Drop));
        assert_eq!(decide(Mode::Enforce, FLOOD), reported(Action::Drop, Action::Drop));
        let scan = Score { label: 1, score: 0.95 };
        assert_eq!(decide(Mode::Enforce, scan), reported(Action::Tag, Action::Tag));
        for (score, would) in [(0.94, Action::Drop), (0.93, Action::Tag), (0.905, Action::Pass)] {
            assert_eq!(decide(Mode::Enforce, Score { score, ..FLOOD }), reported(would, would), "{score}");
        }
        let mut cautious = policy(Mode::Enforce);
        cautious.set_fallback(true);
        assert_eq!(cautious.decide(&flow, FLOOD), reported(Action::Tag, Action::Drop));
        assert_eq!(decide(Mode::Enforce, Score { score: 0.89, ..FLOOD }), Decision::PASS);
        assert!(!policy(Mode::Tag).clears(Score { score: 0.89, ..FLOOD }), "not by a score just below the threshold");
        assert!(policy(Mode::Tag).clears(Score { label: 0, score: 0.1 }));
        assert_eq!(decide(Mode::Enforce, Score { label: 0, score: 0.99 }), Decision::PASS);
        assert_eq!(decide(Mode::Enforce, Score { label: 9, score: 0.99 }), Decision::PASS, "unknown labels pass");
    }

    #[test]
    fn a_threshold_of_the_configuration_replaces_all() {
        let config = PolicyConfig { threshold: Some(0.5), ..PolicyConfig::default() };
        let labels = ["benign", "flood"].map(str::to_owned);
        let own = Thresholds { report: 0.9, tag: 0.95, drop: 0.99 };
        let policy = Policy::new(Mode::Enforce, &config, &labels, own, 1);
        let decision = policy.decide(&record([198, 18, 0, 1], 4), Score { label: 1, score: 0.5 });
        assert_eq!((decision.would, policy.thresholds()), (Action::Drop, Thresholds::all(0.5)));
    }

    #[test]
    fn young_and_protected_flows_pass() {
        let enforce = policy(Mode::Enforce);
        assert_eq!(enforce.decide(&record([198, 18, 0, 1], 7), FLOOD), Decision::PASS);
        for source in [[198, 18, 7, 1], [127, 0, 0, 1]] {
            let decision = enforce.decide(&record(source, 80), FLOOD);
            assert_eq!(decision, Decision { reported: true, ..Decision::PASS }, "{source:?}");
        }
    }
}
