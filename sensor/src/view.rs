//! What the control socket says: the JSON types, and the requests that reach the poll thread.
//!
//! The same types are written by the agent and read by `sensor flows` and `sensor status`, so both sides agree.
//! Pure: no clock, no socket. Called by `agent` (fills them), `control` (carries them) and `cli` (prints them).

use std::cmp::Ordering;
use std::collections::BTreeMap;
use std::path::PathBuf;

use clap::ValueEnum;
use sensor_common::packet::protocol;
use serde::{Deserialize, Serialize};
use tokio::sync::oneshot;

use crate::config::{ActionName, Mode};

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

/// The agent as a whole.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct StatusView {
    /// Version of the agent.
    pub version: String,
    /// Process id of the agent.
    pub pid: u32,
    /// What is done with verdicts.
    pub mode: Mode,
    /// Seconds since the start.
    pub uptime_seconds: f64,
    /// Whether the programs obey verdicts.
    pub lease: LeaseView,
    /// The poll loop.
    pub poll: PollView,
    /// The model in use.
    pub model: Option<ModelView>,
    /// The model that is scored beside it, without effect.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub shadow: Option<ModelView>,
    /// Drift in the last complete window; absent before the first, and without quantiles in the model.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub drift: Option<DriftView>,
    /// The watched interfaces.
    pub interfaces: Vec<InterfaceView>,
    /// The flow table.
    pub table: TableView,
    /// The host context; `None` if it is off.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub context: Option<ContextView>,
    /// Packets of all interfaces.
    pub packets: PacketsView,
    /// Flows.
    pub flows: FlowsView,
    /// Verdicts so far.
    pub verdicts: VerdictsView,
    /// Packets in no record, by stage and cause; causes that never happened are left out.
    pub loss: BTreeMap<String, BTreeMap<String, u64>>,
}

/// State of the lease.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum LeaseState {
    /// Verdicts are obeyed.
    Active,
    /// The agent was late: all traffic passes until its next poll.
    Expired,
}

/// The lease.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
pub struct LeaseView {
    /// Whether verdicts are obeyed.
    pub state: LeaseState,
    /// Seconds until it runs out unless it is renewed.
    pub remaining_seconds: f64,
    /// Length, in seconds.
    pub seconds: f64,
}

/// The poll loop.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
pub struct PollView {
    /// Interval, in seconds.
    pub interval_seconds: f64,
    /// Duration of the last poll, in seconds.
    pub last_seconds: f64,
    /// Polls that took longer than the interval.
    pub overruns: u64,
}

/// A model.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct ModelView {
    /// The file.
    pub path: String,
    /// Name that the file gives itself.
    pub name: String,
    /// SHA-256 of the file, hexadecimal.
    pub hash: String,
    /// "classifier", "anomaly" …
    pub kind: String,
    /// Number of features.
    pub features: usize,
    /// Labels, in the model's order.
    pub labels: Vec<String>,
    /// Score from which on a flow gets a verdict.
    pub threshold: f64,
}

/// Drift: population stability indices of the last complete window.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct DriftView {
    /// "stable", "moderate" (from 0.1 on) or "high" (from 0.25 on).
    pub level: String,
    /// That of the score.
    pub score: Option<f64>,
    /// The feature with the highest one.
    pub highest: Option<(String, f64)>,
    /// Whether drops become tags because of it.
    pub fallback: bool,
}

/// The features of one flow.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct FeaturesView {
    /// The flow.
    pub flow: FlowView,
    /// Value by name; null = missing.
    pub features: BTreeMap<String, Option<f64>>,
}

/// A watched interface.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct InterfaceView {
    /// Name.
    pub name: String,
    /// Index.
    pub ifindex: u32,
    /// "native" or "generic".
    pub xdp: String,
    /// "tcx" or "clsact".
    pub egress: String,
    /// "tcx" or "clsact" where `sensor_tag` is attached.
    pub tag: Option<String>,
    /// Packets of this interface.
    pub packets: PacketsView,
}

/// The flow table.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct TableView {
    /// Flows that fit.
    pub capacity: u64,
    /// Flow records in use.
    pub occupancy: u64,
    /// Memory of all maps, in bytes.
    pub memory_bytes: u64,
}

/// The host context.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct ContextView {
    /// Sources with a new flow in the last 60 s.
    pub sources: u64,
    /// Services with one.
    pub services: u64,
    /// Entries that were given up although they had one.
    pub replaced: u64,
    /// New flows that were not counted.
    pub lost: u64,
}

/// Packets, as the hooks saw them. `seen = recorded + unrecorded + dropped = passed + tagged + dropped`.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct PacketsView {
    /// All.
    pub seen: u64,
    /// Their bytes.
    pub bytes: u64,
    /// In flow records.
    pub recorded: u64,
    /// In none, by [`StatusView::loss`].
    pub unrecorded: u64,
    /// Passed untouched.
    pub passed: u64,
    /// Passed under a verdict of action tag.
    pub tagged: u64,
    /// Dropped.
    pub dropped: u64,
}

/// Flows so far.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct FlowsView {
    /// Records started.
    pub created: u64,
    /// Flows ended.
    pub ended: u64,
    /// Scores given.
    pub scored: u64,
}

/// Verdicts so far, by action and label.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct VerdictsView {
    /// Stored in records.
    pub stored: BTreeMap<String, BTreeMap<String, u64>>,
    /// Withheld by the mode.
    pub withheld: BTreeMap<String, BTreeMap<String, u64>>,
}

/// What the poll thread is asked. It answers between two polls; a dropped reply means that nobody waits any more.
#[derive(Debug)]
pub enum Request {
    /// The largest flows.
    Flows {
        /// Order.
        sort: SortKey,
        /// At most this many, 0 = all.
        limit: usize,
        /// Where the answer goes.
        reply: oneshot::Sender<Vec<FlowView>>,
    },
    /// The features of a flow, by its id; `None` if it lives no more.
    Features {
        /// [`FlowView::id`]
        id: String,
        /// Where the answer goes.
        reply: oneshot::Sender<Option<FeaturesView>>,
    },
    /// Load a model file in place of the one in use; the answer comes when it is in use, or refused.
    Load {
        /// The file.
        path: PathBuf,
        /// In place of the shadow.
        shadow: bool,
        /// Where the answer goes.
        reply: oneshot::Sender<Result<ModelView, String>>,
    },
    /// The status.
    Status {
        /// Where the answer goes.
        reply: oneshot::Sender<StatusView>,
    },
}

/// The name of an IP protocol number.
pub fn protocol_name(number: u8) -> String {
    let name = match number {
        protocol::ICMP => "icmp",
        2 => "igmp",
        4 => "ipip",
        protocol::TCP => "tcp",
        protocol::UDP => "udp",
        41 => "ipv6",
        47 => "gre",
        50 => "esp",
        protocol::AH => "ah",
        protocol::ICMPV6 => "icmpv6",
        89 => "ospf",
        103 => "pim",
        112 => "vrrp",
        protocol::SCTP => "sctp",
        protocol::UDP_LITE => "udplite",
        _ => return number.to_string(),
    };
    name.to_owned()
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
