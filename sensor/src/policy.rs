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

/// What becomes of a scored flow.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Decision {
    /// To be stored in the record.
    pub action: Action,
    /// What mode enforce would store.
    pub would: Action,
}

impl Decision {
    const PASS: Decision = Decision { action: Action::Pass, would: Action::Pass };
}

/// The rules between model and verdict.
#[derive(Clone, Debug)]
pub struct Policy {
    mode: Mode,
    threshold: f32,
    min_packets: u64,
    never_drop: Vec<IpNet>,
    /// Action in mode enforce, by label number.
    actions: Vec<Action>,
}

impl Policy {
    /// `labels`, `threshold` and `min_packets` are the model's.
    pub fn new(mode: Mode, config: &PolicyConfig, labels: &[String], threshold: f32, min_packets: u64) -> Policy {
        let action = |(number, label): (usize, &String)| match config.label_actions.get(label) {
            Some(action) => (*action).into(),
            None if number == 0 => Action::Pass,
            None => Action::Drop,
        };
        Policy {
            mode,
            threshold,
            min_packets: min_packets.max(config.min_packets as u64),
            never_drop: config.never_drop.clone(),
            actions: labels.iter().enumerate().map(action).collect(),
        }
    }

    /// Packets that a flow must have before it is scored.
    pub fn min_packets(&self) -> u64 {
        self.min_packets
    }

    /// What becomes of a flow with this record and score.
    pub fn decide(&self, record: &FlowRecord, score: Score) -> Decision {
        if score.label == 0 || score.score < self.threshold || record.packets() < self.min_packets {
            return Decision::PASS;
        }
        let mut would = self.actions.get(score.label as usize).copied().unwrap_or(Action::Pass);
        // Neighbour discovery is ICMPv6: without it, IPv6 stops (RFC 4890 §4.4).
        if would == Action::Drop && (self.is_protected(record) || record.key.protocol == protocol::ICMPV6) {
            would = Action::Pass;
        }
        let action = match self.mode {
            Mode::Observe => Action::Pass,
            Mode::Tag => would.min(Action::Tag),
            Mode::Enforce => would,
        };
        Decision { action, would }
    }

    /// Whether this score takes an earlier verdict back: only one far below the threshold does, so that scores on both
    /// sides of it do not switch a flow on and off.
    pub fn clears(&self, score: Score) -> bool {
        score.score < self.threshold / 2.0
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
        Policy::new(mode, &config, &labels, 0.9, 8)
    }

    const FLOOD: Score = Score { label: 2, score: 0.95 };

    #[test]
    fn the_mode_bounds_the_action() {
        let flow = record([198, 18, 0, 1], 8);
        let decide = |mode, score| policy(mode).decide(&flow, score);
        assert_eq!(decide(Mode::Observe, FLOOD), Decision { action: Action::Pass, would: Action::Drop });
        assert_eq!(decide(Mode::Tag, FLOOD), Decision { action: Action::Tag, would: Action::Drop });
        assert_eq!(decide(Mode::Enforce, FLOOD), Decision { action: Action::Drop, would: Action::Drop });
        let scan = Score { label: 1, score: 0.95 };
        assert_eq!(decide(Mode::Enforce, scan), Decision { action: Action::Tag, would: Action::Tag });
        assert_eq!(decide(Mode::Enforce, Score { score: 0.89, ..FLOOD }), Decision::PASS);
        assert!(!policy(Mode::Tag).clears(Score { score: 0.89, ..FLOOD }), "not by a score just below the threshold");
        assert!(policy(Mode::Tag).clears(Score { label: 0, score: 0.1 }));
        assert_eq!(decide(Mode::Enforce, Score { label: 0, score: 0.99 }), Decision::PASS);
        assert_eq!(decide(Mode::Enforce, Score { label: 9, score: 0.99 }), Decision::PASS, "unknown labels pass");
    }

    #[test]
    fn young_and_protected_flows_pass() {
        let enforce = policy(Mode::Enforce);
        assert_eq!(enforce.decide(&record([198, 18, 0, 1], 7), FLOOD), Decision::PASS);
        assert_eq!(enforce.decide(&record([198, 18, 7, 1], 80), FLOOD), Decision::PASS);
        assert_eq!(enforce.decide(&record([127, 0, 0, 1], 80), FLOOD), Decision::PASS);
    }
}
