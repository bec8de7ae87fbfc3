//! What a receiver would accept, as far as an observer knows it (RFC 9293 §3.10.7.4, RFC 5961).
//!
//! The observer sees every acknowledgement and every segment, or nearly; so it knows of the receiver's next number that
//! it is not below the greatest acknowledgement and not above the highest number that was sent. The bounds are those of
//! Guido van Rooij, "Real Stateful TCP Packet Filtering in IP Filter" (2001), which the kernel's connection tracking
//! has, too:
//!
//! * A segment starts at or below the right edge of the receiver's window (the greatest acknowledgement and the window
//!   that came with it), and not further below the acknowledgement than the largest window was wide (what is below was
//!   sent before the sender saw the acknowledgement).
//! * An acknowledgement is of something that was sent, and not older than the largest window (RFC 5961 §5.2).
//!
//! Where the receiver's acknowledgements are not seen, there is no window: [`LEAP`] and [`GREATEST`] bound what is
//! taken for granted.

use crate::flow::{FlowRecord, Numbers, note, state};
use crate::packet::{NO_WSCALE, Packet};

/// The largest window scale (RFC 7323 §2.3), which counts where the handshake was not seen.
const SCALE_MAX: u8 = 14;
/// The largest window that TCP can announce.
const GREATEST: u32 = 65_535 << SCALE_MAX;
/// How far a sender may leap where no window is known, bytes. What leaps further is believed when the next segment goes
/// on there.
const LEAP: u32 = 1 << 20;
/// The least that counts as a direction's largest window: acknowledgements may be this much older than the newest,
/// whatever the window (as MAXACKWINDOW in nf_conntrack).
const LEAST: u32 = 66_000;

/// Whether `side` has acknowledged something of what the other side is known to have sent.
#[inline(always)]
pub(super) fn is_known(record: &FlowRecord, side: usize) -> bool {
    let sender = side ^ 1;
    let bits = record.state;
    if bits & state::ACK_KNOWN << side == 0 {
        return false;
    }
    let ahead = record.directions[side & 1].ack.wrapping_sub(record.directions[sender & 1].next) as i32;
    // An acknowledgement of what nobody sent could be taken while nothing was known of the other side.
    bits & state::SEQUENCE_KNOWN << sender == 0 || ahead <= 0
}

/// By how many bits the windows that `side` announces are to be shifted: both SYNs must offer it. A record that goes on
/// from an earlier one has the options of no SYN.
#[inline(always)]
fn scale(record: &FlowRecord, side: usize) -> u32 {
    let syns = [state::SYN | state::SYN_ACK_BACK, state::SYN_ACK | state::SYN_BACK];
    let of = |side: usize| {
        let seen = record.state & syns[side & 1] != 0 && record.steady & note::CONTINUED == 0;
        if seen { record.openings[side & 1].wscale } else { SCALE_MAX }
    };
    let (own, others) = (of(side), of(side ^ 1));
    if own == NO_WSCALE || others == NO_WSCALE { 0 } else { own.min(SCALE_MAX) as u32 }
}

/// The window of the receiver's last acknowledgement, bytes. That of a SYN-ACK is never scaled.
#[inline(always)]
fn window(record: &FlowRecord, receiver: usize) -> u32 {
    let half = &record.directions[receiver & 1];
    let fresh = receiver == 1 && half.acks == half.flags[1];
    let shift = if fresh { 0 } else { scale(record, receiver) };
    (half.window_last as u32) << (shift & 15)
}

/// The largest window that `side` announced, bytes; at least [`LEAST`].
#[inline(always)]
pub(super) fn largest(record: &FlowRecord, side: usize) -> u32 {
    let window = (record.directions[side & 1].window_max as u32) << (scale(record, side) & 15);
    if window < LEAST { LEAST } else { window }
}

/// Whether the receiver would take a packet of this sequence number in: as new, or as one that it has.
#[inline(always)]
pub(super) fn has_place(record: &FlowRecord, packet: &Packet, side: usize, extent: u32) -> bool {
    let bits = record.state;
    if bits & state::SEQUENCE_KNOWN << side == 0 {
        return true;
    }
    let next = record.directions[side & 1].next;
    let ahead = packet.seq.wrapping_sub(next) as i32;
    // Nothing comes behind a FIN.
    if ahead >= 0 && extent > 0 && bits & state::FIN << side != 0 {
        return false;
    }
    if ahead == 0 {
        return true;
    }
    let receiver = side ^ 1;
    let known = is_known(record, receiver);
    let acknowledged = if known { record.directions[receiver & 1].ack } else { next };
    if ahead > 0 {
        let edge = acknowledged.wrapping_add(if known { window(record, receiver) } else { LEAP });
        return packet.seq.wrapping_sub(edge) as i32 <= 0;
    }
    let below = acknowledged.wrapping_sub(packet.seq) as i32;
    let most = if known { largest(record, receiver) } else { GREATEST };
    if below > most as i32 {
        return false;
    }
    // Before the beginning, as long as numbers cannot have come round.
    let numbers = &record.numbers[side & 1];
    let whole = record.steady & note::CONTINUED == 0 && record.directions[side & 1].payload_bytes < 1 << 30;
    !(numbers.begun() && whole && (packet.seq.wrapping_sub(numbers.first) as i32) < 0)
}

/// Whether the packet's acknowledgement is one that its receiver would take: of what was sent, and not too old.
#[inline(always)]
pub(super) fn acknowledges(record: &FlowRecord, packet: &Packet, side: usize) -> bool {
    let sender = side ^ 1;
    if record.state & state::SEQUENCE_KNOWN << sender == 0 {
        return true;
    }
    let next = record.directions[sender & 1].next;
    if packet.ack.wrapping_sub(next) as i32 > 0 {
        return false;
    }
    if is_known(record, side) {
        let behind = record.directions[side & 1].ack.wrapping_sub(packet.ack) as i32;
        return behind <= largest(record, side) as i32;
    }
    let numbers: &Numbers = &record.numbers[sender & 1];
    !numbers.begun() || packet.ack.wrapping_sub(numbers.first) as i32 > 0
}
