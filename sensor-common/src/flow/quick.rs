//! The short way of a packet through a record: nearly every packet of a flow that is past its first [`FIRST_N`] frames
//! goes on as the one before did, and changes little more than sums. Called by [`FlowRecord::update`] and, as the first
//! of its parts, by the kernel programs, under the record's lock.
//!
//! Invariant: where it counts a packet, the record is, bit for bit, what the long way would have made of it. All that
//! speaks against the short way is looked at before the first field is written.

use super::bins::add_small_square;
use super::shape::{SUBFLOW_GAP_NS, payload};
use super::{FIRST_N, FlowRecord, state};
use crate::packet::{Packet, mark, protocol};
use crate::table::bit_length;
use crate::tcp;

/// What came of the short way.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Quick {
    /// The packet is not ordinary; nothing was changed.
    No,
    /// It is counted.
    Counted,
    /// It is counted, and the flow's packets may have reached a power of two.
    Stage,
}

/// Marks that no ordinary packet has.
const ODD: u32 = ((mark::FRAGMENT | mark::LATER_FRAGMENT | mark::ICMP_ERROR) as u32) << 16;

impl FlowRecord {
    /// Counts an ordinary packet.
    #[inline(always)]
    pub fn quick(&mut self, packet: &Packet, now_ns: u64) -> Quick {
        // TCP: an acknowledgement of what was not sent (RFC 5961 §5.2).
        if self.acknowledges_more(packet) {
            return Quick::No;
        }
        let bits = self.state;
        let side = self.side_of(packet);
        if self.steady & 1 << side == 0 {
            return Quick::No;
        }
        let now_ns = if now_ns < self.last_ns { self.last_ns } else { now_ns };
        let iat_ns = now_ns.wrapping_sub(self.last_ns);
        let half = &mut self.directions[side];
        let own_ns = now_ns.wrapping_sub(half.last_ns);
        if packet.look() != half.usual || packet.segments != 1 || packet.extensions != 0 {
            return Quick::No;
        }
        if iat_ns > SUBFLOW_GAP_NS || own_ns >> 32 != 0 || half.packets >= u32::MAX as u64 {
            return Quick::No;
        }
        let has_payload = packet.payload_len > 0;
        if has_payload && bits & state::PAYLOAD << side == 0 {
            return Quick::No;
        }
        if packet.key.protocol == protocol::TCP && !tcp::follow_quick(half, packet) {
            return Quick::No;
        }
        half.quick(packet, own_ns, now_ns);
        if iat_ns < self.iat_min_ns {
            self.iat_min_ns = iat_ns;
        }
        if iat_ns > self.iat_max_ns {
            self.iat_max_ns = iat_ns;
        }
        add_small_square(&mut self.iat_square_low, &mut self.iat_square_high, iat_ns);
        self.last_ns = now_ns;
        self.frame_bytes = self.frame_bytes.wrapping_add(packet.frame_len as u64);
        if (bits >> state::LAST_REVERSE_SHIFT & 1) as usize != side {
            self.bursts = self.bursts.saturating_add(1);
            self.state = bits ^ 1 << state::LAST_REVERSE_SHIFT;
        }
        if has_payload {
            payload(self, packet, side, now_ns);
        }
        self.until_stage = self.until_stage.wrapping_sub(1);
        if self.until_stage == 0 {
            self.until_stage = self.left_in_stage();
            return Quick::Stage;
        }
        Quick::Counted
    }

    /// Whether the packet acknowledges more than the other side is known to have sent.
    #[inline(always)]
    fn acknowledges_more(&self, packet: &Packet) -> bool {
        let [forward, reverse] = &self.directions;
        let bits = self.state;
        // Only a new acknowledgement costs a look at the other side, which is in another line.
        if self.side_of(packet) == 0 {
            let known = bits & state::SEQUENCE_KNOWN << 1 != 0 && packet.ack != forward.ack;
            known && packet.ack.wrapping_sub(reverse.next) as i32 > 0
        } else {
            let known = bits & state::SEQUENCE_KNOWN != 0 && packet.ack != reverse.ack;
            known && packet.ack.wrapping_sub(forward.next) as i32 > 0
        }
    }

    /// [`FlowRecord::direction_of`] where nobody talks to themselves.
    #[inline(always)]
    fn side_of(&self, packet: &Packet) -> usize {
        let high = self.state & state::INITIATOR_HIGH != 0;
        if packet.from_low == high { 1 } else { 0 }
    }

    /// Packets until the flow's count reaches a power of two, at most 255.
    #[inline(always)]
    pub(super) fn left_in_stage(&self) -> u8 {
        let packets = self.packets();
        let left = (1u64 << (bit_length(packets) & 63)).wrapping_sub(packets);
        if left > u8::MAX as u64 { u8::MAX } else { left as u8 }
    }

    /// See [`FlowRecord::steady`].
    #[inline(always)]
    pub(super) fn find_steady(&self) -> u8 {
        const OVER: u32 = state::FIN | state::FIN << 1 | state::RST | state::SELF;
        let bits = self.state;
        let handshake = bits & (state::SYN_ACK | state::ESTABLISHED) == state::SYN_ACK;
        if (self.first_len as usize) < FIRST_N || bits & OVER != 0 || handshake {
            return 0;
        }
        let known = match self.key.protocol {
            protocol::TCP => state::SEQUENCE_KNOWN | state::ACK_KNOWN,
            protocol::UDP => 0,
            _ => return 0,
        };
        let mut steady = 0;
        let [forward, reverse] = &self.directions;
        if bits & known == known && forward.packets > 0 && forward.usual & ODD == 0 {
            steady |= 1;
        }
        let known = known << 1;
        if bits & known == known && bits & state::REVERSE != 0 && reverse.usual & ODD == 0 {
            steady |= 2;
        }
        steady
    }
}
