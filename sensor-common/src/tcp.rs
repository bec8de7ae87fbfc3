//! TCP as far as a flow record follows it: handshake and close (RFC 9293 §3.5 and §3.6), and sequence numbers
//! ([`sequence`]).
//!
//! Only what an observer on the path can know: a connection is closed when each side's FIN was acknowledged by the
//! other, or when either side reset it ([`reset`]). State and counts follow what the receiver would accept
//! ([`window`]); what it would not is put aside until there is proof that it did ([`aside`]). Called under the record's
//! lock by [`crate::flow::FlowRecord::update`].

mod aside;
mod reset;
mod sequence;
mod window;

pub(crate) use self::reset::is_certain;
use crate::flow::{Direction, FlowRecord, state};
use crate::packet::Packet;

/// No more data from the sender.
pub const FIN: u8 = 0x01;
/// Synchronise sequence numbers.
pub const SYN: u8 = 0x02;
/// Reset.
pub const RST: u8 = 0x04;
/// The sender has nothing more to send for now.
pub const PSH: u8 = 0x08;
/// The acknowledgement number is valid.
pub const ACK: u8 = 0x10;

/// Whether these flags open a connection (SYN and neither ACK nor RST nor FIN).
#[inline(always)]
pub fn is_first_syn(flags: u8) -> bool {
    flags & (SYN | ACK | RST | FIN) == SYN
}

/// Follows a packet that goes on where the direction's last one ended, in a connection in which there is nothing to
/// follow but sequence numbers ([`FlowRecord::steady`]), and counts its flags; false, and nothing is changed, if it is
/// anything else.
#[inline(always)]
pub(crate) fn follow_quick(half: &mut Direction, packet: &Packet) -> bool {
    let flags = packet.tcp_flags;
    if flags & !PSH != ACK || packet.seq != half.next || packet.window == 0 {
        return false;
    }
    let newer = packet.ack.wrapping_sub(half.ack) as i32;
    if newer < 0 {
        return false;
    }
    if packet.window != half.window_last {
        half.window_last = packet.window;
        half.window_min = half.window_min.min(packet.window);
        half.window_max = half.window_max.max(packet.window);
    } else if newer == 0 && packet.payload_len == 0 {
        // Perhaps a duplicate acknowledgement.
        return false;
    }
    half.ack = packet.ack;
    half.next = half.next.wrapping_add(packet.payload_len);
    half.acks = half.acks.wrapping_add(1);
    half.pushes = half.pushes.wrapping_add((flags >> 3 & 1) as u32);
    true
}

/// Follows sequence numbers, handshake and close. `side`: 0 = from the initiator.
#[inline(always)]
pub(crate) fn follow(record: &mut FlowRecord, packet: &Packet, side: usize, now_ns: u64) {
    let flags = packet.tcp_flags;
    if flags & RST != 0 {
        return reset::follow(record, packet, side);
    }
    if !sequence::follow(record, packet, side, now_ns) {
        return;
    }
    if record.state & state::RST != 0 {
        reset::doubt(record, packet, side);
    }
    let bits = record.state;
    // Nearly every packet of a connection is a plain ACK or PSH-ACK in the established state: nothing to follow.
    let quiet = flags & (FIN | SYN) == 0 && bits & (state::FIN | state::FIN << 1) == 0;
    if quiet && bits & (state::SYN_ACK | state::ESTABLISHED) != state::SYN_ACK {
        return;
    }
    let mut new = bits;
    if flags & SYN != 0 {
        new |= synchronise(record, packet, side, now_ns);
    } else if flags & ACK != 0
        && side == 0
        && bits & (state::SYN | state::SYN_ACK | state::ESTABLISHED) == state::SYN | state::SYN_ACK
    {
        new |= state::ESTABLISHED;
        record.established_ns = now_ns;
    }
    if flags & FIN != 0 && bits & (state::FIN << side) == 0 && ends(record, packet, side) {
        new |= state::FIN << side | state::SEQUENCE_KNOWN << side;
        if side == 1 && bits & state::FIN == 0 {
            new |= state::FIN_REVERSE_FIRST;
        }
        // Nothing may come behind a FIN: from here on, `next` is what its acknowledgement has to reach.
        record.directions[side & 1].next = packet.seq.wrapping_add(packet.payload_len).wrapping_add(1);
    }
    // The other side's FIN is acknowledged once the acknowledgement reaches past it (sequence numbers wrap).
    let other = side ^ 1;
    if flags & ACK != 0
        && new & (state::FIN << other) != 0
        && packet.ack.wrapping_sub(record.directions[other & 1].next) < 1 << 31
    {
        new |= state::FIN_ACKED << other;
    }
    let both = state::FIN_ACKED | state::FIN_ACKED << 1;
    if new & both == both {
        if new & state::RST == 0 {
            new |= state::GRACEFUL;
        }
        new |= state::CLOSED;
    }
    record.state = new;
}

/// Whether a FIN that the receiver would accept ends the direction: it does not lie in what was seen without it. (In a
/// gap it does: its receiver drops what it holds behind.)
#[inline(always)]
fn ends(record: &FlowRecord, packet: &Packet, side: usize) -> bool {
    let half = &record.directions[side & 1];
    let end = packet.seq.wrapping_add(packet.payload_len).wrapping_add(1);
    end.wrapping_sub(half.next) as i32 >= 0 || half.missing > 0 || record.state & state::SELF != 0
}

/// A SYN, with or without ACK. In a simultaneous open both sides send a SYN, and then both a SYN-ACK.
#[inline(always)]
fn synchronise(record: &mut FlowRecord, packet: &Packet, side: usize, now_ns: u64) -> u32 {
    let bits = record.state;
    let opening = &mut record.openings[side & 1];
    opening.mss = packet.mss;
    opening.wscale = packet.wscale;
    opening.tcp_options |= packet.tcp_options;
    if packet.tcp_flags & ACK == 0 {
        return if side == 0 { state::SYN } else { state::SYN_BACK };
    }
    let mut new = state::SYN_ACK_BACK;
    if side == 1 {
        new = state::SYN_ACK;
        if bits & state::SYN_ACK == 0 {
            record.syn_ack_ns = now_ns;
        }
    }
    let all = state::SYN | state::SYN_BACK | state::SYN_ACK | state::SYN_ACK_BACK;
    if (bits | new) & all == all && bits & state::ESTABLISHED == 0 {
        new |= state::ESTABLISHED;
        record.established_ns = now_ns;
    }
    new
}
