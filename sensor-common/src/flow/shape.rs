//! The shape of a flow over time: subflows, active and idle periods, bulks. Called by [`super::FlowRecord::update`] under
//! the record's lock; each costs an ordinary packet one comparison.
//!
//! What is still going on when a record is read (the last active period) is added by the host, see
//! [`super::FlowRecord::active`].

use bytemuck::{Pod, Zeroable};

use super::{FlowRecord, state};
use crate::packet::Packet;

/// A gap between two frames of a flow that is longer than this starts a new subflow, ns.
pub const SUBFLOW_GAP_NS: u64 = 1_000_000_000;
/// A gap that is longer than this is an idle period, and ends an active one, ns.
pub const IDLE_NS: u64 = 5_000_000_000;
/// A gap between two packets with payload that is longer than this ends a bulk, ns.
pub const BULK_GAP_NS: u64 = 1_000_000_000;
/// Packets with payload that make a bulk.
pub const BULK_PACKETS: u32 = 4;

/// Finished active and idle periods, in µs since the flow's start cut to whole ones, so that periods add up to the
/// duration. Valid where [`FlowRecord::idles`] is not 0.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Pod, Zeroable)]
#[repr(C)]
pub struct Pauses {
    /// Start of the present active period, µs after the flow's first frame.
    pub active_start_us: u64,
    /// Shortest active period that is over, µs.
    pub active_min_us: u64,
    /// Longest active period that is over, µs.
    pub active_max_us: u64,
    /// Sum of their squares, µs², at most `u64::MAX` (exact for flows of up to 71 minutes).
    pub active_square_us2: u64,
    /// Sum of the idle periods, µs.
    pub idle_sum_us: u64,
    /// Shortest idle period, µs.
    pub idle_min_us: u64,
    /// Longest idle period, µs.
    pub idle_max_us: u64,
    /// Sum of their squares, as above.
    pub idle_square_us2: u64,
}

/// A gap of more than [`SUBFLOW_GAP_NS`] before a frame at `now_ns`; `last_ns` is not moved on yet.
#[inline(always)]
pub(super) fn pause(record: &mut FlowRecord, now_ns: u64) {
    record.subflows = record.subflows.saturating_add(1);
    if now_ns.wrapping_sub(record.last_ns) <= IDLE_NS {
        return;
    }
    let pauses = &mut record.pauses;
    if record.idles == 0 {
        pauses.active_start_us = 0;
        pauses.active_min_us = u64::MAX;
        pauses.active_max_us = 0;
        pauses.active_square_us2 = 0;
        pauses.idle_sum_us = 0;
        pauses.idle_min_us = u64::MAX;
        pauses.idle_max_us = 0;
        pauses.idle_square_us2 = 0;
    }
    record.idles = record.idles.saturating_add(1);
    let until_us = record.last_ns.wrapping_sub(record.first_ns) / 1000;
    let now_us = now_ns.wrapping_sub(record.first_ns) / 1000;
    let active_us = until_us.wrapping_sub(pauses.active_start_us);
    let idle_us = now_us.wrapping_sub(until_us);
    pauses.active_start_us = now_us;
    pauses.active_min_us = pauses.active_min_us.min(active_us);
    pauses.active_max_us = pauses.active_max_us.max(active_us);
    pauses.active_square_us2 = pauses.active_square_us2.saturating_add(square(active_us));
    pauses.idle_sum_us = pauses.idle_sum_us.wrapping_add(idle_us);
    pauses.idle_min_us = pauses.idle_min_us.min(idle_us);
    pauses.idle_max_us = pauses.idle_max_us.max(idle_us);
    pauses.idle_square_us2 = pauses.idle_square_us2.saturating_add(square(idle_us));
}

#[inline(always)]
fn square(us: u64) -> u64 {
    if us >> 32 != 0 { u64::MAX } else { us * us }
}

/// A frame with payload: goes on with the run of one direction's payload, or starts a new one.
#[inline(always)]
pub(super) fn payload(record: &mut FlowRecord, packet: &Packet, side: usize, now_ns: u64) {
    let gap_ns = now_ns.wrapping_sub(record.run_last_ns);
    let run_side = (record.state & state::RUN_REVERSE != 0) as usize;
    let goes_on = record.run_packets != 0 && run_side == side && gap_ns <= BULK_GAP_NS;
    record.run_last_ns = now_ns;
    let half = &mut record.directions[side & 1];
    if goes_on && record.run_packets as u32 >= BULK_PACKETS {
        half.bulk_packets = half.bulk_packets.saturating_add(packet.segments);
        half.bulk_bytes = half.bulk_bytes.wrapping_add(packet.payload_len as u64);
        half.bulk_ns = half.bulk_ns.wrapping_add(gap_ns);
        return;
    }
    // Not a bulk yet: three packets at most, with gaps of at most 1 s.
    if goes_on {
        record.run_ns = record.run_ns.wrapping_add(gap_ns as u32);
        record.run_bytes = record.run_bytes.saturating_add(packet.payload_len);
    } else {
        record.run_ns = 0;
        record.run_bytes = packet.payload_len;
        record.run_packets = 0;
        record.state = record.state & !state::RUN_REVERSE | if side == 1 { state::RUN_REVERSE } else { 0 };
    }
    let packets = (record.run_packets as u32).saturating_add(packet.segments);
    if packets < BULK_PACKETS {
        record.run_packets = packets as u8;
        return;
    }
    record.run_packets = BULK_PACKETS as u8;
    half.bulks = half.bulks.saturating_add(1);
    half.bulk_packets = half.bulk_packets.saturating_add(packets);
    half.bulk_bytes = half.bulk_bytes.wrapping_add(record.run_bytes as u64);
    half.bulk_ns = half.bulk_ns.wrapping_add(record.run_ns as u64);
}
