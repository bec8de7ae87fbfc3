//! What a sample carries of its flow's surroundings: plain integers per window, for the flow's source and for the
//! service it goes to. Filled by the agent and by a replay; read by the features.

use super::window::WINDOWS;

/// What happened to the flows that one source address started, within one window.
///
/// Counts of events are sliding-window counters: those of the current sub-window plus those of the previous one, weighted
/// by how much of it the window still covers, rounded to the nearest integer (ties up).
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct SourceWindow {
    /// Flows that the address started.
    pub new_flows: u32,
    /// Distinct (protocol, destination port) of these flows, an estimate (see [`crate::context`]); protocols without
    /// ports do not count.
    pub ports: u32,
    /// Distinct destination addresses of these flows, an estimate.
    pub hosts: u32,
    /// Flows that had no packet in reverse direction [`ANSWER_NS`](crate::context::ANSWER_NS) after their first packet,
    /// or when they ended, if that was earlier. Counted at that time.
    pub unanswered: u32,
    /// Flows in which a TCP RST was seen, counted when it was noticed.
    pub resets: u32,
    /// Flows that were judged: answered or not. (A flow is judged once.)
    pub judged: u32,
    /// Of the flows that were judged, those that failed: no answer, or the answer was a reset of the handshake.
    pub failed: u32,
    /// L3 bytes, both directions.
    pub bytes: u64,
}

/// What happened to the flows that went to one service (destination address, port and protocol), within one window.
/// Counts as in [`SourceWindow`].
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct ServiceWindow {
    /// Flows that were started to the service.
    pub new_flows: u32,
    /// Distinct source addresses of these flows, an estimate.
    pub sources: u32,
    /// Flows without an answer, as in [`SourceWindow::unanswered`]; in addition those whose records were lost in a
    /// flood, as far as `new_flows` exceeds what was judged.
    pub unanswered: u32,
    /// Flows in which a TCP RST was seen.
    pub resets: u32,
    /// Flows that were judged, those of lost records (see `unanswered`) included.
    pub judged: u32,
    /// Of these, those that failed: no answer, or the answer was a reset of the handshake.
    pub failed: u32,
    /// L3 bytes, both directions.
    pub bytes: u64,
}

/// The context of one flow at one time.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct HostContext {
    /// The initiator's address, by window ([`WINDOW_NAMES`](super::WINDOW_NAMES)). `None`: not known, because another source took its place
    /// in a full table, or context is off.
    pub source: Option<[SourceWindow; WINDOWS]>,
    /// The responder's address and port and the protocol (port 0 where the protocol has none), by window. `None`: not
    /// known.
    pub service: Option<[ServiceWindow; WINDOWS]>,
}

impl HostContext {
    /// Nothing is known: features have no value.
    pub const NONE: HostContext = HostContext { source: None, service: None };
}
