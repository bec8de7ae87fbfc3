//! Host context: what the sources and services around a flow are doing, over sliding windows of 1 s, 10 s and 60 s.
//!
//! Two tables of fixed size, one of source addresses and one of destination services, each an array of [`Set`]s of four
//! entries. A new flow's first packet is noted in both ([`Set::note`]): by the kernel programs on the path of new flows
//! only, whether the flow found a place in the flow table or not, and by a replay with the same code. Nothing else
//! touches them, so what a flood adds to a service is seen even if no record of it ever reaches the agent. What needs
//! the flow's further life (answers, resets, bytes) is kept by the agent from the records.
//!
//! * Counts are sliding-window counters ([`window`]).
//! * Distinct values are estimated from cells that hold the tick of their last hit ([`sketch`], with its error).
//! * An entry is found by its whole key, so two sources are never taken for one.
//! * A set that is full gives up an entry without flows for 60 s, else the one with the fewest flows, of equals the one
//!   idle longest: a flood of sources with one flow each pushes out one entry with history in each set at most,
//!   and from then on itself. A key that has no entry had no flows in the last 60 s, or the set says that it is not known.

mod flow;
mod host;
mod set;
pub mod sketch;
pub mod window;

pub use self::flow::{Ends, KEY_WORDS, Key, NewFlow};
pub use self::host::{HostContext, ServiceWindow, SourceWindow};
pub use self::set::{ENTRIES, Entry, Known, Noted, Set, victim};
pub use self::window::{WINDOW_NAMES, WINDOW_TICKS, WINDOWS};

/// Time that a flow has for its first answer before it counts as unanswered, ns: 1 s, the initial retransmission timeout
/// of TCP (RFC 6298).
pub const ANSWER_NS: u64 = 1_000_000_000;

/// Smallest and largest number of sources or services that can be configured (a power of two).
pub const MIN_ENTRIES: u32 = 64;
/// See [`MIN_ENTRIES`].
pub const MAX_ENTRIES: u32 = 1 << 16;
/// Sources that are kept unless configured otherwise.
pub const DEFAULT_SOURCES: u32 = 2048;
/// Services that are kept unless configured otherwise.
pub const DEFAULT_SERVICES: u32 = 1024;

/// The tick of a time, ns: 2^26 ns (67 ms), as in [`crate::table`], but with 32 bits (9.1 years).
#[inline(always)]
pub const fn tick_of(now_ns: u64) -> u32 {
    (now_ns >> crate::table::TICK_SHIFT) as u32
}
