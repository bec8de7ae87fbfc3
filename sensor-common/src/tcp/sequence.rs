//! What sequence and acknowledgement numbers say about a direction: repeated, late and duplicate packets.
//!
//! An observer sees one copy of the traffic, some of it perhaps not at all, and keeps a few words per direction, so
//! each term has a rule that takes a fixed number of steps. `highest` is one past the highest sequence number seen in
//! the direction (`Direction::next`); SYN and FIN count as one byte (RFC 9293 §3.4); numbers wrap. Only what the
//! receiver would accept counts ([`super::window`]); the rest is put aside ([`super::aside`]), and no number, state or
//! count follows it.
//!
//! * **Skipped bytes**: a packet that starts above `highest` skips what lies between (it was lost before the observer, or
//!   comes late). Skipped bytes are counted (`missing`), with the end of the newest such range (`gap_end`), until they have
//!   come or the other side has acknowledged that end.
//! * **Keep-alive** (RFC 9293 §3.8.4): starts one byte below `highest`, payload of 0 or 1 byte, no SYN or FIN, and all
//!   that was sent is acknowledged (where the other side is not seen: may be).
//! * **Out of order**: lies wholly below `highest`, and fits into the skipped bytes: it ends at or below `gap_end` and is no
//!   longer than `missing`. The observer sees these bytes for the first time.
//! * **Retransmitted**: takes sequence space, lies wholly below `highest`, and is none of the above: the observer has seen
//!   these bytes. A repeated SYN (in a simultaneous open the SYN-ACK, too), however late, and a repeated FIN are among
//!   them. Of a super-packet that lies partly below, the segments that lie wholly below; an ordinary packet that does
//!   brings new bytes and is not counted.
//! * **Duplicate ACK** (RFC 5681 §2): no payload, no SYN or FIN, the acknowledgement number and the window are those of the
//!   sender's last acknowledgement, that number is its greatest, and the other side has sent bytes above it. Keep-alives are
//!   none.
//!
//! A SYN with another number than the one before starts the direction anew while nothing of it is acknowledged: the
//! receiver decides by its answer which one holds. In a connection it changes nothing (RFC 9293 §3.10.7.4: it is
//! answered by a challenge ACK). A FIN ends its sequence space: what lies behind it is put aside.

use super::window::{acknowledges, has_place, is_known};
use super::{ACK, FIN, SYN, aside};
use crate::flow::{FlowRecord, Numbers, state};
use crate::packet::Packet;

/// A packet without RST; false if the receiver would not accept it.
#[inline(always)]
pub(super) fn follow(record: &mut FlowRecord, packet: &Packet, side: usize, now_ns: u64) -> bool {
    let side = side & 1;
    let flags = packet.tcp_flags;
    let extent = packet.payload_len.wrapping_add((flags & FIN) as u32 + (flags >> 1 & 1) as u32);
    // An endpoint that talks to itself: two sequence spaces in one direction.
    if record.state & state::SELF != 0 {
        return true;
    }
    let is_syn = flags & SYN != 0;
    if !is_syn && !has_place(record, packet, side, extent) {
        aside::put(record, packet, side, extent, now_ns);
        return false;
    }
    if flags & ACK != 0 && !acknowledges(record, packet, side) && !aside::is_proven(record, packet, side) {
        // A SYN-ACK that acknowledges nothing was not asked for.
        if !is_syn {
            aside::put(record, packet, side, extent, now_ns);
        }
        return false;
    }
    let known = record.state & state::SEQUENCE_KNOWN << side != 0;
    let mut plain = true;
    if is_syn {
        if !synchronise(record, packet, side, extent, now_ns) {
            return false;
        }
    } else if !known {
        begin(record, packet, side, extent);
    } else if packet.seq == record.directions[side].next {
        // Nearly all packets start where the one before ended.
        let half = &mut record.directions[side];
        half.next = half.next.wrapping_add(extent);
    } else {
        plain = unexpected(record, packet, side, extent);
    }
    if flags & ACK != 0 {
        acknowledge(record, packet, side, extent, plain);
    }
    true
}

/// The first packet of a direction, or what stands for it.
#[inline(always)]
fn begin(record: &mut FlowRecord, packet: &Packet, side: usize, extent: u32) {
    let half = &mut record.directions[side & 1];
    half.next = packet.seq.wrapping_add(extent);
    half.missing = 0;
    record.state |= state::SEQUENCE_KNOWN << side;
}

/// A SYN, with or without ACK; false if it is none of this connection.
#[inline(always)]
fn synchronise(record: &mut FlowRecord, packet: &Packet, side: usize, extent: u32, now_ns: u64) -> bool {
    let side = side & 1;
    let known = record.state & state::SEQUENCE_KNOWN << side != 0;
    let begun = record.numbers[side].begun();
    let end = packet.seq.wrapping_add(extent);
    let again = known && begun && packet.seq == record.numbers[side].first;
    if !again && known && is_known(record, side ^ 1) {
        aside::put(record, packet, side, extent, now_ns);
        return false;
    }
    let numbers = &mut record.numbers[side];
    let half = &mut record.directions[side];
    if again || numbers.is_syn_aside(end) && numbers.aside_from == packet.seq {
        half.retransmitted = half.retransmitted.saturating_add(packet.segments);
    }
    if again {
        // Without data before, and with it now.
        if end.wrapping_sub(half.next) as i32 > 0 {
            half.next = end;
        }
        return true;
    }
    let mut notes = Numbers::BEGUN;
    if known {
        // Nobody has said yet which of the two holds.
        notes |= Numbers::ASIDE;
        numbers.aside = half.next;
        numbers.aside_from = half.next;
        if begun {
            notes |= Numbers::SYN | (record.openings[side].wscale as u32) << Numbers::SCALE_SHIFT;
            numbers.aside_from = numbers.first;
        }
    }
    numbers.first = packet.seq;
    numbers.notes = notes;
    begin(record, packet, side, extent);
    true
}

/// Takes an acknowledgement that the receiver would take.
#[inline(always)]
fn acknowledge(record: &mut FlowRecord, packet: &Packet, side: usize, extent: u32, plain: bool) {
    let other = side ^ 1;
    let known = record.state & state::SEQUENCE_KNOWN << other != 0;
    let sent = record.directions[other & 1].next;
    let bounded = is_known(record, side);
    let half = &mut record.directions[side & 1];
    let newer = packet.ack.wrapping_sub(half.ack) as i32;
    if newer > 0 || !bounded {
        half.window_last = packet.window;
        half.ack = packet.ack;
        record.state |= state::ACK_KNOWN << side;
    } else if newer == 0 {
        let same = packet.window == half.window_last;
        half.window_last = packet.window;
        if same && extent == 0 && plain && known && sent.wrapping_sub(packet.ack) as i32 > 0 {
            half.duplicate_acks = half.duplicate_acks.saturating_add(1);
        }
    }
}

/// A packet that does not start where the one before ended; false if it is a keep-alive.
#[inline(always)]
fn unexpected(record: &mut FlowRecord, packet: &Packet, side: usize, extent: u32) -> bool {
    let bits = record.state;
    let other = side ^ 1;
    let (known, acknowledged) = (is_known(record, other), record.directions[other & 1].ack);
    let half = &mut record.directions[side & 1];
    let end = packet.seq.wrapping_add(extent);
    let ahead = packet.seq.wrapping_sub(half.next) as i32;
    if ahead >= 0 {
        // An acknowledgement of a sender whose data was not seen: nothing to learn.
        if extent == 0 {
            return true;
        }
        let open = is_open(half.gap_end, known, acknowledged);
        half.missing = if open { half.missing.saturating_add(ahead as u32) } else { ahead as u32 };
        half.gap_end = packet.seq;
        half.next = end;
        return true;
    }
    let outstanding = known && acknowledged != half.next;
    if ahead == -1 && packet.payload_len <= 1 && packet.tcp_flags & FIN == 0 && !outstanding {
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
    if fits && is_open(half.gap_end, known, acknowledged) {
        half.missing = half.missing.wrapping_sub(extent);
        half.out_of_order = half.out_of_order.saturating_add(packet.segments);
    } else {
        half.retransmitted = half.retransmitted.saturating_add(packet.segments);
    }
    true
}

/// Whether the other side has not acknowledged up to `gap_end` yet, as far as it is `known`.
#[inline(always)]
fn is_open(gap_end: u32, known: bool, acknowledged: u32) -> bool {
    !known || (acknowledged.wrapping_sub(gap_end) as i32) < 0
}
