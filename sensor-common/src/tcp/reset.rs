//! Which RST ends a connection (RFC 9293 §3.10.7, RFC 5961 §3.2), as Linux does it (`tcp_validate_incoming`,
//! `tcp_rcv_synsent_state_process`).
//!
//! * **Answer to a SYN**: it acknowledges the SYN.
//! * **In a connection**: it is exactly at the number that its receiver waits for. The observer knows two that this can
//!   be: the highest that was sent, if it arrived, and the greatest that was acknowledged. Linux takes the end of the
//!   newest selective acknowledgement as well, which is the first of the two, and after a FIN the number of that FIN.
//! * Anything else is dropped, or answered by a challenge ACK: nothing is closed. (Stacks before RFC 5961 close on any
//!   RST in the window. If they do, nothing more comes of that side, and each segment to it is answered by an exact
//!   RST.)
//!
//! The receiver may have waited for the other one of the two numbers. It shows by acknowledging something behind the
//! RST: then the connection goes on, and the RST was none ([`doubt`]). Until all that was sent before the RST is
//! acknowledged, the flow keeps its place as long as one that is being closed ([`FlowRecord::is_over`]).

use super::ACK;
use super::window::is_known;
use crate::flow::{FlowRecord, state};
use crate::packet::Packet;

/// A packet with RST.
#[inline(always)]
pub(super) fn follow(record: &mut FlowRecord, packet: &Packet, side: usize) {
    let side = side & 1;
    let bits = record.state;
    if bits & state::RST != 0 {
        return;
    }
    let Some(number) = takes_effect(record, packet, side) else { return };
    record.numbers[side].reset = number;
    let mut new = bits | state::RST | state::CLOSED;
    // A flow that was first seen in mid-connection was established before.
    if bits & state::ESTABLISHED == 0 && bits & (state::SYN | state::SYN_ACK) != 0 {
        new |= state::RST_EARLY;
    }
    if bits & (state::FIN | state::FIN << 1) != 0 {
        new |= state::RST_AFTER_FIN;
    }
    if side == 1 {
        new |= state::RST_REVERSE;
    }
    record.state = new;
}

/// The number that the receiver of a RST waited for, if it is one that closes.
#[inline(always)]
fn takes_effect(record: &FlowRecord, packet: &Packet, side: usize) -> Option<u32> {
    let (bits, seq) = (record.state, packet.seq);
    let receiver = side ^ 1;
    if bits & state::SELF != 0 {
        return Some(seq);
    }
    let known = bits & state::SEQUENCE_KNOWN << side != 0;
    let answered = is_known(record, receiver);
    let opener = &record.numbers[receiver & 1];
    if !known && !answered && opener.begun() && bits & state::SEQUENCE_KNOWN << receiver != 0 {
        // The receiver has sent a SYN and waits for its answer.
        let of_syn = packet.ack.wrapping_sub(opener.first) as i32 > 0
            && packet.ack.wrapping_sub(record.directions[receiver & 1].next) as i32 <= 0;
        let answers = packet.tcp_flags & ACK != 0 && (of_syn || opener.is_syn_aside(packet.ack));
        return if answers { Some(seq) } else { None };
    }
    if !known && !answered {
        return Some(seq);
    }
    let next = record.directions[side & 1].next;
    if known && (seq == next || bits & state::FIN << side != 0 && seq.wrapping_add(1) == next) {
        return Some(next);
    }
    if answered && seq == record.directions[receiver & 1].ack { Some(seq) } else { None }
}

/// A packet that was accepted after a RST: if it acknowledges what lies behind the RST of the other side, its sender
/// did not take that RST.
#[inline(always)]
pub(super) fn doubt(record: &mut FlowRecord, packet: &Packet, side: usize) {
    const OF_RESET: u32 = state::RST | state::RST_EARLY | state::RST_REVERSE | state::RST_AFTER_FIN | state::CLOSED;
    let bits = record.state;
    let from = (bits & state::RST_REVERSE != 0) as usize;
    if bits & state::GRACEFUL != 0 || from == side || packet.tcp_flags & ACK == 0 {
        return;
    }
    if packet.ack.wrapping_sub(record.numbers[from].reset) as i32 > 0 {
        record.state = bits & !OF_RESET;
    }
}

/// Whether the receiver of the RST has acknowledged all that was sent before it, as far as that is known: then it was
/// at the number that the receiver waited for.
#[inline(always)]
pub(crate) fn is_certain(record: &FlowRecord) -> bool {
    let from = (record.state & state::RST_REVERSE != 0) as usize;
    let receiver = from ^ 1;
    !is_known(record, receiver) || record.directions[receiver & 1].ack == record.numbers[from & 1].reset
}
