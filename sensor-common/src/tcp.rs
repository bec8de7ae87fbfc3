//! TCP as far as a flow record follows it: handshake and close (RFC 9293 §3.5 and §3.6).
//!
//! Only what an observer on the path can know: a connection is closed when each side's FIN was acknowledged by the
//! other, or when either side reset it. Called under the record's lock by [`crate::flow::FlowRecord::update`].

use crate::flow::{FlowRecord, state};
use crate::packet::Packet;

/// No more data from the sender.
pub const FIN: u8 = 0x01;
/// Synchronise sequence numbers.
pub const SYN: u8 = 0x02;
/// Reset.
pub const RST: u8 = 0x04;
/// The acknowledgement number is valid.
pub const ACK: u8 = 0x10;

/// Whether these flags open a connection (SYN and neither ACK nor RST nor FIN).
#[inline(always)]
pub fn is_first_syn(flags: u8) -> bool {
    flags & (SYN | ACK | RST | FIN) == SYN
}

/// Follows handshake and close. `side`: 0 = from the initiator.
#[inline(always)]
pub(crate) fn follow(record: &mut FlowRecord, packet: &Packet, side: usize, now_ns: u64) {
    let flags = packet.tcp_flags;
    let bits = record.state;
    // Nearly every packet of a connection is a plain ACK or PSH-ACK in the established state: nothing to follow.
    let quiet = flags & (FIN | SYN | RST) == 0 && bits & (state::FIN | state::FIN << 1) == 0;
    if quiet && bits & (state::SYN_ACK | state::ESTABLISHED) != state::SYN_ACK {
        return;
    }
    let mut new = bits;
    if flags & RST != 0 {
        new |= state::RST | state::CLOSED;
        // A flow that was first seen in mid-connection was established before.
        if bits & state::ESTABLISHED == 0 && bits & (state::SYN | state::SYN_ACK) != 0 {
            new |= state::RST_EARLY;
        }
    } else if flags & SYN != 0 {
        if flags & ACK == 0 && side == 0 && bits & state::SYN == 0 {
            new |= state::SYN;
            record.syn_ns = now_ns;
        }
        if flags & ACK != 0 && side == 1 && bits & state::SYN_ACK == 0 {
            new |= state::SYN_ACK;
            record.syn_ack_ns = now_ns;
        }
    } else if flags & ACK != 0
        && side == 0
        && bits & (state::SYN | state::SYN_ACK | state::ESTABLISHED) == state::SYN | state::SYN_ACK
    {
        new |= state::ESTABLISHED;
        record.established_ns = now_ns;
    }
    if flags & FIN != 0 && bits & (state::FIN << side) == 0 {
        new |= state::FIN << side;
        record.fin_end[side & 1] = packet.seq.wrapping_add(packet.payload_len).wrapping_add(1);
    }
    // The other side's FIN is acknowledged once the acknowledgement reaches past it (sequence numbers wrap).
    let other = side ^ 1;
    if flags & ACK != 0
        && new & (state::FIN << other) != 0
        && packet.ack.wrapping_sub(record.fin_end[other & 1]) < 1 << 31
    {
        new |= state::FIN_ACKED << other;
    }
    let both = state::FIN_ACKED | state::FIN_ACKED << 1;
    if new & both == both {
        new |= state::CLOSED;
    }
    record.state = new;
}
