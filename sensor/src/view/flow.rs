//! Flows as the control socket shows them, and their order.
//!
//! Invariant: the JSON names are a promise to readers of `sensor flows --json`. Called by `agent` (fills and sorts them) and
//! `cli` (prints them), through [`super`].

use std::cmp::Ordering;
use std::collections::BTreeMap;

use clap::ValueEnum;
use sensor_common::packet::protocol;
use serde::{Deserialize, Serialize};

use crate::config::ActionName;

/// One flow.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct FlowView {
    /// Identifies the flow while it lives: record and generation.
    pub id: String,
    /// Interface of the first frame.
    pub interface: String,
    /// Address of the initiator.
    pub src: String,
    /// Port of the initiator; 0 without ports.
    pub sport: u16,
    /// Address of the responder.
    pub dst: String,
    /// Port of the responder; 0 without ports.
    pub dport: u16,
    /// "tcp", "udp", "icmp" …, else the number.
    pub protocol: String,
    /// VLAN ids, outer first.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub vlans: Vec<u16>,
    /// Wire packets from the initiator.
    pub initiator_packets: u64,
    /// L3 bytes from the initiator.
    pub initiator_bytes: u64,
    /// Wire packets from the responder.
    pub responder_packets: u64,
    /// L3 bytes from the responder.
    pub responder_bytes: u64,
    /// Frames that a drop verdict stopped; in none of the above.
    pub dropped_packets: u64,
    /// Frames that found the record locked by another CPU for too long; in none of the above.
    pub busy_packets: u64,
    /// Seconds since the first frame.
    pub age_seconds: f64,
    /// Seconds since the last frame.
    pub idle_seconds: f64,
    /// The last score, 0 to 1.
    pub score: Option<f64>,
    /// The label that goes with the score.
    pub label: Option<String>,
    /// What happens to the flow's packets now.
    pub verdict: ActionName,
    /// What mode enforce would do, where the mode withholds it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub would_verdict: Option<ActionName>,
}

impl FlowView {
    /// Packets of both directions.
    pub fn packets(&self) -> u64 {
        self.initiator_packets + self.responder_packets
    }

    /// Bytes of both directions.
    pub fn bytes(&self) -> u64 {
        self.initiator_bytes + self.responder_bytes
    }
}

/// Order of a list of flows, largest first.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize, ValueEnum)]
#[serde(rename_all = "lowercase")]
pub enum SortKey {
    /// L3 bytes of both directions.
    #[default]
    Bytes,
    /// Packets of both directions.
    Packets,
    /// Score; flows without one last.
    Score,
    /// Age.
    Age,
}

impl SortKey {
    /// The name in the command line and the query.
    pub const fn name(self) -> &'static str {
        match self {
            SortKey::Bytes => "bytes",
            SortKey::Packets => "packets",
            SortKey::Score => "score",
            SortKey::Age => "age",
        }
    }
}

/// Flows of one answer at most: some 5 MB of JSON.
pub const MAX_FLOWS: usize = 10_000;

/// Which flows, and in what order.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum FlowOrder {
    /// The largest.
    Largest(SortKey),
    /// As they stand in the table, from this slot on: pages of a list of all.
    Table {
        /// That slot.
        from: usize,
    },
}

/// A list of flows that somebody wants.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct FlowsQuery {
    /// Which.
    pub order: FlowOrder,
    /// At most this many, and at most [`MAX_FLOWS`].
    pub limit: usize,
    /// It goes before those of others: an administrator asks.
    pub first: bool,
}

/// A part of the list.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct FlowPage {
    /// The flows.
    pub flows: Vec<FlowView>,
    /// Where the next page begins, if there is one.
    pub next: Option<usize>,
}

/// Keeps the `limit` largest flows by `key`, in order (0 = all). Ties are broken by id, so that output is stable.
pub fn sort_flows(flows: &mut Vec<FlowView>, key: SortKey, limit: usize) {
    top(flows, limit, |a, b| {
        let order = match key {
            SortKey::Bytes => b.bytes().cmp(&a.bytes()),
            SortKey::Packets => b.packets().cmp(&a.packets()),
            SortKey::Score => b.score.unwrap_or(-1.0).total_cmp(&a.score.unwrap_or(-1.0)),
            SortKey::Age => b.age_seconds.total_cmp(&a.age_seconds),
        };
        order.then_with(|| a.id.cmp(&b.id))
    });
}

/// Keeps the first `limit` items by `order`, in order (0 = all), without sorting the rest.
///
/// The poll thread can rank light (index, key) pairs with this before it builds any [`FlowView`].
pub fn top<T>(items: &mut Vec<T>, limit: usize, order: impl Fn(&T, &T) -> Ordering) {
    if limit > 0 && limit < items.len() {
        items.select_nth_unstable_by(limit - 1, &order);
        items.truncate(limit);
    }
    items.sort_unstable_by(order);
}

/// The features of one flow.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct FeaturesView {
    /// The flow.
    pub flow: FlowView,
    /// Value by name; null = missing.
    pub features: BTreeMap<String, Option<f64>>,
}

/// IP protocols that have a name here.
const PROTOCOLS: [(u8, &str); 15] = [
    (protocol::ICMP, "icmp"),
    (2, "igmp"),
    (4, "ipip"),
    (protocol::TCP, "tcp"),
    (protocol::UDP, "udp"),
    (41, "ipv6"),
    (47, "gre"),
    (50, "esp"),
    (protocol::AH, "ah"),
    (protocol::ICMPV6, "icmpv6"),
    (89, "ospf"),
    (103, "pim"),
    (112, "vrrp"),
    (protocol::SCTP, "sctp"),
    (protocol::UDP_LITE, "udplite"),
];

/// The name of an IP protocol number.
pub fn protocol_name(number: u8) -> String {
    let known = PROTOCOLS.iter().find(|(known, _)| *known == number);
    known.map_or_else(|| number.to_string(), |(_, name)| (*name).to_owned())
}

/// The IP protocol of a name or a number.
pub fn protocol_number(name: &str) -> Option<u8> {
    let known = PROTOCOLS.iter().find(|(_, known)| *known == name);
    known.map(|(number, _)| *number).or_else(|| name.parse().ok())
}

#[cfg(test)]
pub(crate) mod tests {
    use super::*;

    /// A TCP flow with so many bytes in one packet.
    pub(crate) fn flow(id: &str, bytes: u64, score: Option<f64>) -> FlowView {
        FlowView {
            id: id.to_owned(),
            interface: "eth0".to_owned(),
            src: "198.18.0.1".to_owned(),
            sport: 40_000,
            dst: "2001:db8::1".to_owned(),
            dport: 443,
            protocol: protocol_name(6),
            vlans: Vec::new(),
            initiator_packets: 1,
            initiator_bytes: bytes,
            responder_packets: 0,
            responder_bytes: 0,
            dropped_packets: 0,
            busy_packets: 0,
            age_seconds: 1.5,
            idle_seconds: 0.5,
            score,
            label: score.map(|_| "scan".to_owned()),
            verdict: ActionName::Pass,
            would_verdict: score.map(|_| ActionName::Drop),
        }
    }

    fn ids(flows: &[FlowView]) -> Vec<&str> {
        flows.iter().map(|flow| flow.id.as_str()).collect()
    }

    #[test]
    fn sorts_and_limits() {
        let flows = vec![flow("a", 10, None), flow("b", 30, Some(0.2)), flow("c", 20, Some(0.9)), flow("d", 30, None)];
        let sorted = |key, limit| {
            let mut flows = flows.clone();
            sort_flows(&mut flows, key, limit);
            flows
        };
        assert_eq!(ids(&sorted(SortKey::Bytes, 0)), ["b", "d", "c", "a"]);
        assert_eq!(ids(&sorted(SortKey::Bytes, 3)), ["b", "d", "c"]);
        assert_eq!(ids(&sorted(SortKey::Score, 2)), ["c", "b"]);
        assert_eq!(ids(&sorted(SortKey::Age, 99)), ["a", "b", "c", "d"]);
    }

    #[test]
    fn json_keeps_the_promised_names() {
        let json = serde_json::to_value(flow("7-1", 10, Some(0.5))).expect("JSON");
        for name in [
            "src",
            "sport",
            "dst",
            "dport",
            "protocol",
            "initiator_packets",
            "initiator_bytes",
            "responder_packets",
            "responder_bytes",
            "age_seconds",
            "idle_seconds",
            "score",
            "label",
            "verdict",
            "id",
        ] {
            assert!(json.get(name).is_some(), "{name}");
        }
        assert_eq!((&json["verdict"], &json["protocol"]), (&"pass".into(), &"tcp".into()));
        assert!(serde_json::to_value(flow("7-1", 10, None)).expect("JSON")["score"].is_null());
    }
}
