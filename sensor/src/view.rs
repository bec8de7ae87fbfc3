//! What the control socket says: the JSON types, and the requests that reach the poll thread.
//!
//! The same types are written by the agent and read by `sensor flows` and `sensor status`, so both sides agree.
//! Pure: no clock, no socket. Called by `agent` (fills them), `control` (carries them) and `cli` (prints them).

use std::collections::BTreeMap;
use std::path::PathBuf;

use serde::{Deserialize, Serialize};
use tokio::sync::oneshot;

use crate::config::Mode;

mod enforce;
pub(crate) mod flow;
mod reload;

pub use enforce::{
    BatchView, BreakerView, EnforceRequest, EnforcementView, Kept, MAX_BATCH, ModeView, NewAllow, NewVerdict,
    NewVerdicts, Peer, Reply, VerdictList, VerdictView, Which,
};
pub use flow::{
    FeaturesView, FlowOrder, FlowPage, FlowView, FlowsQuery, MAX_FLOWS, SortKey, protocol_name, protocol_number,
    sort_flows, top,
};
pub use reload::{ConfigState, ConfigView, LastReload, ModelReload, ReloadView};

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
    /// What is in force.
    pub enforcement: EnforcementView,
    /// The configuration.
    #[serde(default)]
    pub config: ConfigState,
    /// Why changes of verdicts, mode and never-drop list would not survive a restart now; absent: they would.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub state_problem: Option<String>,
    /// Why the mode is observe, whatever the configuration says: what was kept is damaged. Absent: it is not.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub state_doubt: Option<String>,
    /// Packets in no record, by stage and cause; causes that never happened are left out.
    pub loss: BTreeMap<String, BTreeMap<String, u64>>,
}

/// What an agent says that left everything to another.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct HandOverView {
    /// Its process, which ends now.
    pub pid: u32,
    /// Its version.
    pub version: String,
    /// Flows in the table.
    pub flows: u64,
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
    /// "tcx" or "clsact" while `sensor_tag` is attached.
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
    /// Resident memory of the agent without the maps, which it maps, in bytes.
    #[serde(default)]
    pub agent_bytes: u64,
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

/// Packets, as the hooks saw them. `seen = recorded + unrecorded + dropped = passed + tagged + limited + dropped`.
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
    /// Passed under a verdict of action limit.
    #[serde(default)]
    pub limited: u64,
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
    /// A list of flows.
    Flows {
        /// Which.
        query: FlowsQuery,
        /// Where the answer goes.
        reply: oneshot::Sender<FlowPage>,
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
        /// Who asks.
        by: Peer,
        /// Where the answer goes.
        reply: oneshot::Sender<Result<ModelView, String>>,
    },
    /// End, and leave maps and programs to the agent that asks.
    HandOver {
        /// Who asks.
        pid: u32,
        /// The directory of pins that it wants ([`crate::bpf::pins::Pins::identity`]).
        pins: [u64; 2],
        /// Where the answer goes, when the agent has begun to leave.
        reply: oneshot::Sender<Result<HandOverView, String>>,
    },
    /// Read the configuration again; the answer comes when it is in force, or refused.
    Reload {
        /// Who asks.
        by: Peer,
        /// Where the answer goes.
        reply: Reply<ReloadView>,
    },
    /// The configuration that is in force.
    Config {
        /// Where the answer goes.
        reply: oneshot::Sender<ConfigView>,
    },
    /// The metrics, in Prometheus text.
    Metrics {
        /// Where the answer goes.
        reply: oneshot::Sender<String>,
    },
    /// The last lines of the log.
    Log {
        /// Where the answer goes.
        reply: oneshot::Sender<String>,
    },
    /// Verdicts, the never-drop list, the mode, the breaker.
    Enforce(EnforceRequest),
    /// The status.
    Status {
        /// Where the answer goes.
        reply: oneshot::Sender<StatusView>,
    },
}

impl Request {
    /// Whether nobody waits for the answer any more: whoever asked was told that nothing was done, so nothing may be.
    pub fn is_abandoned(&self) -> bool {
        match self {
            Request::Flows { reply, .. } => reply.is_closed(),
            Request::Features { reply, .. } => reply.is_closed(),
            Request::Load { reply, .. } => reply.is_closed(),
            Request::HandOver { reply, .. } => reply.is_closed(),
            Request::Reload { reply, .. } => reply.is_closed(),
            Request::Config { reply } => reply.is_closed(),
            Request::Metrics { reply } => reply.is_closed(),
            Request::Log { reply } => reply.is_closed(),
            Request::Enforce(request) => request.is_abandoned(),
            Request::Status { reply } => reply.is_closed(),
        }
    }
}
