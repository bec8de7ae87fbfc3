//! Segments that the receiver would not accept, as far as is known: they are counted as packets and put aside. What is
//! known can be wrong (the observer lost packets, or sees one side), so there is proof to the contrary:
//!
//! * the receiver acknowledges what was put aside, and nothing else that is known;
//! * where the receiver is not seen, the sender goes on there with the next segment;
//! * where the receiver was seen and is silent now, the sender goes on there for two seconds. (A receiver that gets
//!   what it does not accept answers each of them, Linux at least twice a second: RFC 9293 §3.10.7.4,
//!   `tcp_invalid_ratelimit`.)
//!
//! Then the direction goes on behind what was put aside.

use super::SYN;
use super::window::is_known;
use crate::flow::{FlowRecord, Numbers, state};
use crate::packet::Packet;
use crate::table::tick_of;

/// Segments in a row that are believed where the receiver is not seen.
const RUN_UNSEEN: u32 = 2;
/// Segments in a row that are believed where the receiver fell silent …
const RUN_SILENT: u32 = 4;
/// … for so many ticks: two seconds.
const SILENCE_TICKS: u16 = 30;

/// Puts a packet aside. It takes sequence space, or nothing is done.
#[inline(always)]
pub(super) fn put(record: &mut FlowRecord, packet: &Packet, side: usize, extent: u32, now_ns: u64) {
    if extent == 0 {
        return;
    }
    let tick = tick_of(now_ns);
    let numbers = &mut record.numbers[side & 1];
    let follows = numbers.notes & Numbers::ASIDE != 0 && numbers.aside == packet.seq;
    let (mut run, mut since) = (1, tick);
    if follows {
        let before = numbers.notes >> Numbers::RUN_SHIFT & 15;
        run = if before < 15 { before + 1 } else { 15 };
        if before > 0 {
            since = (numbers.notes >> Numbers::TICK_SHIFT) as u16;
        }
    }
    if run == 1 {
        numbers.aside_from = packet.seq;
    }
    numbers.aside = packet.seq.wrapping_add(extent);
    let mut notes = numbers.notes & Numbers::BEGUN | Numbers::ASIDE;
    notes |= run << Numbers::RUN_SHIFT | (since as u32) << Numbers::TICK_SHIFT;
    if packet.tcp_flags & SYN != 0 {
        notes |= Numbers::SYN | (packet.wscale as u32) << Numbers::SCALE_SHIFT;
    }
    numbers.notes = notes;
    let receiver = side ^ 1;
    if !is_known(record, receiver) {
        if run >= RUN_UNSEEN {
            take(record, side);
        }
        return;
    }
    let silent = tick_of(record.directions[receiver & 1].last_ns).wrapping_sub(since) as i16 <= 0;
    if silent && run >= RUN_SILENT && tick.wrapping_sub(since) >= SILENCE_TICKS {
        take(record, side);
        // It is not seen any more: what it had acknowledged and sent bounds nothing.
        record.state &= !((state::ACK_KNOWN | state::SEQUENCE_KNOWN) << receiver);
    }
}

/// Whether the packet's acknowledgement, which nothing that is known explains, proves that what the other side sent
/// aside was accepted. The other side goes on there then.
#[inline(always)]
pub(super) fn is_proven(record: &mut FlowRecord, packet: &Packet, side: usize) -> bool {
    let sender = side ^ 1;
    let numbers = &record.numbers[sender & 1];
    if !numbers.is_aside(packet.ack) && !numbers.is_syn_aside(packet.ack) {
        return false;
    }
    take(record, sender);
    // Whatever this side acknowledged before was of other numbers.
    record.state &= !(state::ACK_KNOWN << side);
    true
}

/// The direction goes on behind what was put aside.
#[inline(always)]
fn take(record: &mut FlowRecord, side: usize) {
    let numbers = &mut record.numbers[side & 1];
    let (end, notes) = (numbers.aside, numbers.notes);
    if notes & Numbers::SYN != 0 {
        numbers.first = numbers.aside_from;
        record.openings[side & 1].wscale = (notes >> Numbers::SCALE_SHIFT) as u8;
    }
    numbers.notes = notes & Numbers::BEGUN;
    let half = &mut record.directions[side & 1];
    half.next = end;
    half.missing = 0;
    let mut bits = record.state | state::SEQUENCE_KNOWN << side;
    // It went on behind its FIN, so that was none.
    bits &= !((state::FIN | state::FIN_ACKED) << side);
    if bits & state::RST == 0 {
        bits &= !(state::CLOSED | state::GRACEFUL);
    }
    record.state = bits;
}
