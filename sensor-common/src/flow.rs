//! Flow key and flow record: what the kernel keeps of a connection, and how a packet changes it.
//!
//! A record is bidirectional. "Forward" is the initiator's direction: the SYN's sender where one was seen, else the
//! sender of the first packet ([`state`] says which). All values are exact integers; means and deviations are derived
//! on the host ([`crate::features`]). Layout is by cache line: whoever adds a field says which line it is on.
//! Time never runs backwards in a record: a packet with an older time counts as of the record's last one.

mod bins;
mod derived;
mod direction;
mod hint;
mod key;
mod numbers;
mod opening;
mod quick;
mod record;
mod shape;
mod view;

#[cfg(test)]
mod tests;

pub use self::bins::{IAT_BIN_EDGES_NS, IAT_BINS, SIZE_BINS, iat_bin, size_bin};
pub use self::derived::{BOTH, Gaps};
pub use self::direction::{Direction, icmp_kind, ip_seen};
pub use self::hint::ENTROPY_UNIT;
pub use self::key::{Domain, FlowKey};
pub use self::numbers::Numbers;
pub use self::opening::Opening;
pub use self::quick::Quick;
pub use self::record::{Arrival, FlowRecord, Spare, starts_high};
pub use self::shape::{BULK_GAP_NS, BULK_PACKETS, IDLE_NS, Pauses, SUBFLOW_GAP_NS};
pub use self::view::Periods;

/// Arrivals whose size, spacing and flags are kept one by one.
pub const FIRST_N: usize = 16;
/// Words of a [`FlowKey`].
pub const KEY_WORDS: usize = 12;

/// Bits of [`FlowRecord::state`].
pub mod state {
    /// The initiator is the key's `high` endpoint.
    pub const INITIATOR_HIGH: u32 = 1 << 0;
    /// The initiator is known from a SYN or SYN-ACK, not guessed from the first packet.
    pub const INITIATOR_BY_SYN: u32 = 1 << 1;
    /// SYN without ACK seen from the initiator.
    pub const SYN: u32 = 1 << 2;
    /// SYN with ACK seen from the responder.
    pub const SYN_ACK: u32 = 1 << 3;
    /// Handshake completed: three-way, or the four messages of a simultaneous open (RFC 9293 §3.5).
    pub const ESTABLISHED: u32 = 1 << 4;
    /// FIN seen from the initiator; the next bit: from the responder.
    pub const FIN: u32 = 1 << 5;
    /// The initiator's FIN was acknowledged; the next bit: the responder's.
    pub const FIN_ACKED: u32 = 1 << 7;
    /// RST seen.
    pub const RST: u32 = 1 << 9;
    /// RST seen before the handshake was completed.
    pub const RST_EARLY: u32 = 1 << 10;
    /// The connection is over: both FINs acknowledged (RFC 9293) or reset.
    pub const CLOSED: u32 = 1 << 11;
    /// The reverse direction's half has been set up.
    pub const REVERSE: u32 = 1 << 12;
    /// Sender and receiver are the same endpoint: every packet but an ICMP echo reply counts as forward.
    pub const SELF: u32 = 1 << 13;
    /// SYN without ACK seen from the responder: simultaneous open.
    pub const SYN_BACK: u32 = 1 << 14;
    /// SYN with ACK seen from the initiator: simultaneous open.
    pub const SYN_ACK_BACK: u32 = 1 << 15;
    /// The last frame came from the responder.
    pub const LAST_REVERSE: u32 = 1 << LAST_REVERSE_SHIFT;
    /// The last frame with payload came from the responder.
    pub const RUN_REVERSE: u32 = 1 << 17;
    /// The initiator's next sequence number is known; the next bit: the responder's.
    pub const SEQUENCE_KNOWN: u32 = 1 << 18;
    /// The initiator's greatest acknowledgement is known; the next bit: the responder's.
    pub const ACK_KNOWN: u32 = 1 << 20;
    /// The initiator's first payload was seen; the next bit: the responder's.
    pub const PAYLOAD: u32 = 1 << 22;
    /// The first RST came from the responder.
    pub const RST_REVERSE: u32 = 1 << 24;
    /// The first RST came after a FIN of either side.
    pub const RST_AFTER_FIN: u32 = 1 << 25;
    /// The responder's FIN came before the initiator's.
    pub const FIN_REVERSE_FIRST: u32 = 1 << 26;
    /// Both FINs were acknowledged before any RST.
    pub const GRACEFUL: u32 = 1 << 27;
    /// From this bit on, 4 bits: ways of its bucket that other flows held when it was born, 0 to 8.
    pub const WAYS_SHIFT: u32 = 28;

    pub(crate) const LAST_REVERSE_SHIFT: u32 = 16;
}

/// Bits of [`FlowRecord::steady`] beside its two for the directions: the course of the record itself.
pub mod note {
    /// TCP: both ends have shown that they receive what the other sends.
    pub const LASTING: u8 = 1 << 2;
    /// The record was handed over because its active timeout was over; the flow goes on in another one.
    pub const CUT: u8 = 1 << 4;
    /// The record began with a SYN that ended a model's verdict on its tuple.
    pub const FREED: u8 = 1 << 5;
    /// The record goes on from an earlier one of the same flow.
    pub const CONTINUED: u8 = 1 << 6;
    /// The active timeout is over: the flow's next packet begins another record. Set by the agent, with the bits of the
    /// directions cleared, so that the packet takes the long way.
    pub const DUE: u8 = 1 << 7;
    /// All of them.
    pub const ALL: u8 = LASTING | CUT | FREED | CONTINUED | DUE;
}
