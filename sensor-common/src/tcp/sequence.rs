//! What sequence and acknowledgement numbers say about a direction: repeated, late and duplicate packets.
//!
//! An observer sees one copy of the traffic, some of it perhaps not at all, and keeps a few words per direction, so
//! each term has a rule that takes a fixed number of steps. `highest` is one past the highest sequence number seen in the
//! direction (`Direction::next`); SYN and FIN count as one byte (RFC 9293 §3.4); numbers wrap; packets with RST are left
//! out, their numbers may be anything.
//!
//! * **Skipped bytes**: a packet that starts above `highest` skips what lies between (it was lost before the observer, or
//!   comes late). Skipped bytes are counted (`missing`), with the end of the newest such range (`gap_end`), until they have
//!   come or the other side has acknowledged that end.
//! * **Keep-alive** (RFC 9293 §3.8.4): starts one byte below `highest`, payload of 0 or 1 byte, no SYN or FIN.
//! * **Out of order**: lies wholly below `highest`, and fits into the skipped bytes: it ends at or below `gap_end` and is no
//!   longer than `missing`. The observer sees these bytes for the first time.
//! * **Retransmitted**: takes sequence space, lies wholly below `highest`, and is none of the above: the observer has seen
//!   these bytes. A repeated SYN (in a simultaneous open the SYN-ACK, too) and a repeated FIN are among them. Of a super-packet that lies partly below, the segments
//!   that lie wholly below; an ordinary packet that does brings new bytes and is not counted.
//! * **Duplicate ACK** (RFC 5681 §2): no payload, no SYN or FIN, the acknowledgement number and the window are those of the
//!   sender's last acknowledgement, that number is its greatest, and the other side has sent bytes above it. Keep-alives are
//!   none.
//!
//! A SYN with another number than the one before starts the direction anew. A FIN ends its sequence space: what lies behind
//! it is ignored.

use super::{ACK, FIN, SYN};
use crate::flow::{FlowRecord, state};
use crate::packet::Packet;

/// A packet without RST.
#[inline(always)]
pub(super) fn follow(record: &mut FlowRecord, packet: &Packet, side: usize) {
    let side = side & 1;
    let flags = packet.tcp_flags;
    let bits = record.state;
    let extent = packet.payload_len.wrapping_add((flags & FIN) as u32 + (flags >> 1 & 1) as u32);
    let next = record.directions[side].next;
    let mut plain = true;
    // Nearly all packets start where the one before ended.
    if packet.seq == next && bits & ((state::SEQUENCE_KNOWN | state::FIN) << side) == state::SEQUENCE_KNOWN << side {
        record.directions[side].next = next.wrapping_add(extent);
    } else {
        plain = unexpected(record, packet, side, extent);
    }
    if flags & ACK == 0 {
        return;
    }
    let half = &mut record.directions[side];
    let newer = packet.ack.wrapping_sub(half.ack) as i32;
    let window_last = half.window_last;
    half.window_last = packet.window;
    if newer > 0 || bits & state::ACK_KNOWN << side == 0 {
        half.ack = packet.ack;
        record.state |= state::ACK_KNOWN << side;
    } else if newer == 0 && extent == 0 && packet.window == window_last && plain {
        let other = side ^ 1;
        let known = bits & state::SEQUENCE_KNOWN << other != 0;
        if known && record.directions[other].next.wrapping_sub(packet.ack) as i32 > 0 {
            let half = &mut record.directions[side];
            half.duplicate_acks = half.duplicate_acks.saturating_add(1);
        }
    }
}

/// A packet that does not start where the one before ended; false if it is a keep-alive.
#[inline(always)]
fn unexpected(record: &mut FlowRecord, packet: &Packet, side: usize, extent: u32) -> bool {
    let bits = record.state;
    // An endpoint that talks to itself: two sequence spaces in one direction.
    if bits & state::SELF != 0 {
        return true;
    }
    let other = side ^ 1;
    let acknowledged = if bits & state::ACK_KNOWN << other != 0 { Some(record.directions[other].ack) } else { None };
    let half = &mut record.directions[side];
    let end = packet.seq.wrapping_add(extent);
    let is_syn = packet.tcp_flags & SYN != 0;
    let known = bits & state::SEQUENCE_KNOWN << side != 0;
    if !known || (is_syn && end != half.next) {
        half.next = end;
        half.missing = 0;
        record.state |= state::SEQUENCE_KNOWN << side;
        return true;
    }
    let ahead = packet.seq.wrapping_sub(half.next) as i32;
    if ahead >= 0 {
        // Behind a FIN, or an acknowledgement of a sender whose data was not seen: nothing to learn.
        if extent == 0 || bits & state::FIN << side != 0 {
            return true;
        }
        let open = is_open(half.gap_end, acknowledged);
        half.missing = if open { half.missing.saturating_add(ahead as u32) } else { ahead as u32 };
        half.gap_end = packet.seq;
        half.next = end;
        return true;
    }
    if ahead == -1 && packet.payload_len <= 1 && packet.tcp_flags & (SYN | FIN) == 0 {
        half.keep_alives = half.keep_alives.saturating_add(1);
        return false;
    }
    if extent == 0 {
        return true;
    }
    let beyond = end.wrapping_sub(half.next) as i32;
    if beyond > 0 {
        // Partly new.
        if let Some(old) = (ahead.wrapping_neg() as u32).checked_div(packet.segment_size) {
            half.retransmitted = half.retransmitted.saturating_add(old);
        }
        if bits & state::FIN << side == 0 {
            half.next = end;
        }
        return true;
    }
    let fits = extent <= half.missing && end.wrapping_sub(half.gap_end) as i32 <= 0;
    if fits && is_open(half.gap_end, acknowledged) {
        half.missing = half.missing.wrapping_sub(extent);
        half.out_of_order = half.out_of_order.saturating_add(packet.segments);
    } else {
        half.retransmitted = half.retransmitted.saturating_add(packet.segments);
    }
    true
}

/// Whether the other side has not acknowledged up to `gap_end` yet.
#[inline(always)]
fn is_open(gap_end: u32, acknowledged: Option<u32>) -> bool {
    match acknowledged {
        Some(ack) => (ack.wrapping_sub(gap_end) as i32) < 0,
        None => true,
    }
}
