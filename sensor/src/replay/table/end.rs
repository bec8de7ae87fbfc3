//! When the flows of a replay end, and why a record is handed over. Called by [`super`] and by all that reads its records.

use crate::config::ESTABLISHED_TIMEOUT;

/// Seconds to nanoseconds.
pub(in crate::replay) const SECOND_NS: u64 = 1_000_000_000;

/// When flows end.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Timeouts {
    /// A flow without packets for this long is over, ns, unless it is an established TCP connection.
    pub idle_ns: u64,
    /// An established TCP connection without packets for this long is over, ns; not shorter than `idle_ns`.
    pub established_ns: u64,
    /// A flow that is this old is cut in two, ns.
    pub active_ns: u64,
    /// A closed TCP flow waits this long for late packets, ns; not longer than `idle_ns`.
    pub linger_ns: u64,
    /// Whether a SYN on the tuple of a closed TCP flow begins a new one.
    pub reopen: bool,
    /// Whether a flow that is cut keeps what is known of it ([`sensor_common::flow::FlowRecord::go_on`]); else what
    /// follows is a new flow.
    pub goes_on: bool,
}

impl Default for Timeouts {
    fn default() -> Timeouts {
        Timeouts {
            idle_ns: 60 * SECOND_NS,
            established_ns: ESTABLISHED_TIMEOUT.as_nanos() as u64,
            active_ns: 30 * 60 * SECOND_NS,
            linger_ns: 2 * SECOND_NS,
            reopen: true,
            goes_on: true,
        }
    }
}

/// Why a record was handed over.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Reason {
    /// Not ended: it reached the n-th packet count for snapshots, from 1.
    Snapshot(u32),
    /// No packet for the idle timeout.
    Idle,
    /// The active timeout was reached.
    Active,
    /// The active timeout was reached, and the flow goes on in another record.
    Cut,
    /// TCP closed it.
    Closed,
    /// A new connection took its tuple.
    Reopened,
    /// A new flow took its place: it had been idle longest of all.
    Evicted,
    /// The capture's clock went back by more than the idle timeout, as in merged captures.
    Clock,
    /// The capture ended.
    End,
}

impl Reason {
    /// Whether the record is complete: nothing is added to it any more.
    pub const fn is_end(self) -> bool {
        !matches!(self, Reason::Snapshot(_))
    }

    /// The name in exports.
    pub const fn name(self) -> &'static str {
        match self {
            Reason::Snapshot(_) => "snapshot",
            Reason::Idle => "idle",
            Reason::Active | Reason::Cut => "active",
            Reason::Closed => "closed",
            Reason::Reopened => "reopened",
            Reason::Evicted => "evicted",
            Reason::Clock => "clock",
            Reason::End => "end",
        }
    }
}
