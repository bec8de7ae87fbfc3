//! Host context: what the sources and services around a flow are doing, over sliding windows.

mod host;

pub use self::host::{HostContext, ServiceWindow, SourceWindow, WINDOW_NAMES, WINDOW_TICKS, WINDOWS};

/// Time that a flow has for its first answer before it counts as unanswered, ns: 1 s, the initial retransmission timeout
/// of TCP (RFC 6298).
pub const ANSWER_NS: u64 = 1_000_000_000;
