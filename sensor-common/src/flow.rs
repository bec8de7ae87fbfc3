//! Flow key and flow record: what the kernel keeps of a connection, and how a packet changes it.
//!
//! A record is bidirectional. "Forward" is the initiator's direction: the SYN's sender where one was seen, else the
//! sender of the first packet ([`state`] says which). All values are exact integers; means and deviations are derived
//! on the host ([`crate::features`]). Layout is by cache line: whoever adds a field says which line it is on.

mod direction;

use bytemuck::{Pod, Zeroable};

use crate::packet::{Packet, protocol};
use crate::tcp;
use crate::verdict::Verdict;

use self::direction::add_square;
pub use self::direction::{Direction, SIZE_BINS, size_bin};

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
    /// Three-way handshake completed.
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
    /// Sender and receiver are the same endpoint: every packet counts as forward.
    pub const SELF: u32 = 1 << 13;
}

/// Identity of a flow, the same for both directions: the endpoint with the smaller (address, port) is `low`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Pod, Zeroable)]
#[repr(C)]
pub struct FlowKey {
    /// Address of the low endpoint; IPv4 in the first word.
    pub low: [u32; 4],
    /// Address of the high endpoint.
    pub high: [u32; 4],
    /// Port of the low endpoint (ICMP echo: the identifier; without ports: 0).
    pub low_port: u16,
    /// Port of the high endpoint.
    pub high_port: u16,
    /// IP protocol number.
    pub protocol: u8,
    /// 4 or 6.
    pub family: u8,
    /// What the flow is tunnelled in, the number of a [`crate::packet::Encapsulation`]; 0 = nothing.
    pub encapsulation: u8,
    /// Reserved, zero.
    pub reserved: u8,
    /// VLAN ids, outer first, 0 = none.
    pub vlans: [u16; 2],
    /// VNI, TEID or GRE key of the tunnel, 0 = none.
    pub tunnel: u32,
}

/// Where addresses mean what they mean: the same addresses in another VLAN or tunnel are another flow.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Domain {
    /// See [`FlowKey::vlans`].
    pub vlans: [u16; 2],
    /// See [`FlowKey::encapsulation`].
    pub encapsulation: u8,
    /// See [`FlowKey::tunnel`].
    pub tunnel: u32,
}

impl FlowKey {
    /// The key of a packet, and whether its sender is the low endpoint.
    #[inline(always)]
    pub fn canonical(
        src: [u32; 4],
        dst: [u32; 4],
        src_port: u16,
        dst_port: u16,
        protocol: u8,
        family: u8,
        domain: Domain,
    ) -> (FlowKey, bool) {
        let Domain { vlans, encapsulation, tunnel } = domain;
        let mut key = FlowKey {
            low: src,
            high: dst,
            low_port: src_port,
            high_port: dst_port,
            protocol,
            family,
            encapsulation,
            reserved: 0,
            vlans,
            tunnel,
        };
        let from_low = key.order();
        (key, from_low)
    }

    /// Exchanges the endpoints' addresses where `mask` is all ones.
    #[inline(always)]
    pub fn exchange_addresses(&mut self, mask: u32) {
        for word in 0..4 {
            exchange(&mut self.low[word], &mut self.high[word], mask);
        }
    }

    /// Makes the smaller endpoint `low`, where the source is on entry; whether it stays there.
    ///
    /// A subtraction from the lowest digit up and exchanges under a mask, not comparisons: each branch would double the
    /// ways that the verifier has to walk from here on, and which endpoint sends is what no branch predictor knows.
    #[inline(always)]
    pub fn order(&mut self) -> bool {
        let v6 = self.family != 4;
        let mut borrow = (self.low_port as i64 - self.high_port as i64 - 1) >> 63;
        if v6 {
            borrow = (self.low[3] as i64 - self.high[3] as i64 + borrow) >> 63;
            borrow = (self.low[2] as i64 - self.high[2] as i64 + borrow) >> 63;
            borrow = (self.low[1] as i64 - self.high[1] as i64 + borrow) >> 63;
        }
        borrow = (self.low[0] as i64 - self.high[0] as i64 + borrow) >> 63;
        let exchanged = !borrow as u32;
        exchange(&mut self.low[0], &mut self.high[0], exchanged);
        if v6 {
            exchange(&mut self.low[1], &mut self.high[1], exchanged);
            exchange(&mut self.low[2], &mut self.high[2], exchanged);
            exchange(&mut self.low[3], &mut self.high[3], exchanged);
        }
        let difference = (self.low_port ^ self.high_port) & exchanged as u16;
        self.low_port ^= difference;
        self.high_port ^= difference;
        borrow != 0
    }

    /// The key as 32-bit words: 0–3 low address, 4–7 high address, 8 ports, 9 protocol, family and
    /// encapsulation, 10 VLANs, 11 tunnel id.
    #[inline(always)]
    pub fn words(&self) -> [u32; KEY_WORDS] {
        let FlowKey { low, high, low_port, high_port, protocol, family, encapsulation, reserved, vlans, tunnel } =
            *self;
        [
            low[0],
            low[1],
            low[2],
            low[3],
            high[0],
            high[1],
            high[2],
            high[3],
            (low_port as u32) << 16 | high_port as u32,
            (protocol as u32) << 24 | (family as u32) << 16 | (encapsulation as u32) << 8 | reserved as u32,
            (vlans[0] as u32) << 16 | vlans[1] as u32,
            tunnel,
        ]
    }

    /// Equality without an early exit per byte: what the kernel compares on a hit.
    #[inline(always)]
    pub fn same(&self, other: &FlowKey) -> bool {
        let (a, b) = (self.words(), other.words());
        let mut differs = (a[0] ^ b[0]) | (a[4] ^ b[4]) | (a[8] ^ b[8]);
        differs |= (a[9] ^ b[9]) | (a[10] ^ b[10]) | (a[11] ^ b[11]);
        if self.family != 4 {
            differs |= (a[1] ^ b[1]) | (a[2] ^ b[2]) | (a[3] ^ b[3]);
            differs |= (a[5] ^ b[5]) | (a[6] ^ b[6]) | (a[7] ^ b[7]);
        }
        differs == 0
    }
}

/// Exchanges two words where `mask` is all ones.
#[inline(always)]
fn exchange(a: &mut u32, b: &mut u32, mask: u32) {
    let difference = (*a ^ *b) & mask;
    *a ^= difference;
    *b ^= difference;
}

/// One of the first [`FIRST_N`] arrivals of a flow, both directions in order.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Pod, Zeroable)]
#[repr(C)]
pub struct Arrival {
    /// Time since the flow's previous arrival, µs, at most `u32::MAX`; 0 for the first.
    pub iat_us: u32,
    /// L4 payload, bytes, at most `u16::MAX`.
    pub payload: u16,
    /// TCP flags.
    pub flags: u8,
    /// 0 = forward, 1 = reverse.
    pub direction: u8,
}

/// All that the kernel keeps of a connection: 768 bytes, twelve cache lines.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Pod, Zeroable)]
#[repr(C, align(64))]
pub struct FlowRecord {
    // Line 0: what every packet reads.
    /// Sequence lock: odd while a writer is inside.
    pub sequence: u32,
    /// Moves on each time the record is given to another connection.
    pub generation: u32,
    /// The verdict word ([`Verdict`]).
    pub verdict: u64,
    /// Identity.
    pub key: FlowKey,

    // Line 1: the flow as a whole.
    /// First arrival, monotonic ns.
    pub first_ns: u64,
    /// Last arrival, monotonic ns.
    pub last_ns: u64,
    /// Smallest inter-arrival time over both directions, ns; `u64::MAX` before the second frame.
    pub iat_min_ns: u64,
    /// Largest inter-arrival time over both directions, ns.
    pub iat_max_ns: u64,
    /// Sum of squares of inter-arrival times over both directions, ns², low 64 bits.
    pub iat_square_low: u64,
    /// The same, high 64 bits.
    pub iat_square_high: u64,
    /// Frame bytes on the wire, both directions, link headers and padding of each handed-over frame included.
    pub frame_bytes: u64,
    /// Bits of [`state`].
    pub state: u32,
    /// Entries of `first` that are filled.
    pub first_len: u32,

    // Lines 2–4 and 5–7.
    /// Forward and reverse direction.
    pub directions: [Direction; 2],

    // Lines 8–9.
    /// The first arrivals.
    pub first: [Arrival; FIRST_N],

    // Line 10: handshake.
    /// Arrival of the first SYN, ns, 0 = none.
    pub syn_ns: u64,
    /// Arrival of the first SYN-ACK, ns, 0 = none.
    pub syn_ack_ns: u64,
    /// Arrival of the ACK that completed the handshake, ns, 0 = none.
    pub established_ns: u64,
    /// Per direction: sequence number after the FIN.
    pub fin_end: [u32; 2],
    /// Frames that a drop verdict stopped; they are in no other field. Added to without the lock.
    pub dropped: u64,
    /// Interface of the first frame.
    pub ifindex: u32,
    /// Reserved, zero (the rest of line 10, and line 11).
    pub reserved: [u32; 21],
}

const _: () = assert!(size_of::<FlowRecord>() == 768 && size_of::<Direction>() == 192);
const _: () = assert!(core::mem::offset_of!(FlowRecord, first_ns) == 64);
const _: () = assert!(core::mem::offset_of!(FlowRecord, directions) == 128);

impl FlowRecord {
    /// A record of nothing.
    pub fn zeroed() -> FlowRecord {
        <FlowRecord as Zeroable>::zeroed()
    }

    /// Makes this the record of `packet`'s connection, with nothing counted yet: call [`FlowRecord::update`] next.
    /// Leaves `sequence` alone. Only the lines that are valid from the start are written; the reverse half is set up
    /// by its first packet and arrivals by theirs.
    #[inline(always)]
    pub fn start(&mut self, packet: &Packet, now_ns: u64, ifindex: u32, generation: u32) {
        self.generation = generation;
        self.verdict = Verdict::default().0;
        self.key = packet.key;
        self.state = initiator(packet);
        self.first_ns = now_ns;
        self.last_ns = now_ns;
        self.iat_min_ns = u64::MAX;
        self.iat_max_ns = 0;
        self.iat_square_low = 0;
        self.iat_square_high = 0;
        self.fin_end = [0; 2];
        self.ifindex = ifindex;
        self.first_len = 0;
        self.syn_ns = 0;
        self.syn_ack_ns = 0;
        self.established_ns = 0;
        self.frame_bytes = 0;
        self.dropped = 0;
        self.reserved = [0; 21];
        // The direction of the first packet need not be forward: a SYN-ACK can come first.
        self.directions[0].start(now_ns);
        if self.direction_of(packet) == 1 {
            self.directions[1].start(now_ns);
            self.state |= state::REVERSE;
        }
    }

    /// 0 if `packet` goes from the initiator to the responder, 1 if back.
    #[inline(always)]
    pub fn direction_of(&self, packet: &Packet) -> usize {
        let initiator_low = self.state & state::INITIATOR_HIGH == 0;
        let reverse = packet.from_low != initiator_low && self.state & state::SELF == 0;
        reverse as usize
    }

    /// Counts one frame of this connection that arrived at `now_ns`.
    #[inline(always)]
    pub fn update(&mut self, packet: &Packet, now_ns: u64) {
        let side = self.direction_of(packet) & 1;
        if side == 1 && self.state & state::REVERSE == 0 {
            self.directions[1].start(now_ns);
            self.state |= state::REVERSE;
        }
        // Clocks of two CPUs may differ by a little: time never runs backwards in a record.
        let iat_ns = now_ns.saturating_sub(self.last_ns);
        if self.frames() > 0 {
            self.iat_min_ns = self.iat_min_ns.min(iat_ns);
            self.iat_max_ns = self.iat_max_ns.max(iat_ns);
            add_square(&mut self.iat_square_low, &mut self.iat_square_high, iat_ns);
        }
        self.last_ns = self.last_ns.max(now_ns);
        self.frame_bytes = self.frame_bytes.wrapping_add(packet.frame_len as u64);
        if (self.first_len as usize) < FIRST_N {
            let micros = iat_ns / 1000;
            self.first[self.first_len as usize & (FIRST_N - 1)] = Arrival {
                iat_us: if micros > u32::MAX as u64 { u32::MAX } else { micros as u32 },
                payload: if packet.payload_len > u16::MAX as u32 { u16::MAX } else { packet.payload_len as u16 },
                flags: packet.tcp_flags,
                direction: side as u8,
            };
            self.first_len += 1;
        }
        self.directions[side].update(packet, now_ns);
        if packet.key.protocol == protocol::TCP {
            tcp::follow(self, packet, side, now_ns);
        }
    }

    #[inline(always)]
    fn reverse_arrivals(&self) -> u64 {
        if self.state & state::REVERSE == 0 { 0 } else { self.directions[1].arrivals as u64 }
    }

    /// The initiator's direction.
    pub fn forward(&self) -> &Direction {
        &self.directions[0]
    }

    /// The responder's direction, `None` while it has sent nothing (its lines are not valid then).
    pub fn reverse(&self) -> Option<&Direction> {
        (self.state & state::REVERSE != 0).then_some(&self.directions[1])
    }

    /// Frames of both directions, as the hooks handed them over.
    #[inline(always)]
    pub fn frames(&self) -> u64 {
        self.directions[0].arrivals as u64 + self.reverse_arrivals()
    }

    /// Wire packets of both directions.
    #[inline(always)]
    pub fn packets(&self) -> u64 {
        let reverse = if self.state & state::REVERSE == 0 { 0 } else { self.directions[1].packets };
        self.directions[0].packets.wrapping_add(reverse)
    }

    /// L3 bytes of both directions.
    #[inline(always)]
    pub fn l3_bytes(&self) -> u64 {
        let reverse = if self.state & state::REVERSE == 0 { 0 } else { self.directions[1].l3_bytes };
        self.directions[0].l3_bytes.wrapping_add(reverse)
    }

    /// Whether `packet` opens a new connection on the tuple of this finished one (TCP port reuse).
    #[inline(always)]
    pub fn is_reopened_by(&self, packet: &Packet) -> bool {
        self.state & state::CLOSED != 0 && tcp::is_first_syn(packet.tcp_flags)
    }
}

/// Whether the initiator is the `high` endpoint of a flow whose first packet this is.
#[inline(always)]
pub fn starts_high(packet: &Packet) -> bool {
    initiator(packet) & state::INITIATOR_HIGH != 0
}

/// State bits that say who the initiator is, from the first packet that was seen.
#[inline(always)]
fn initiator(packet: &Packet) -> u32 {
    let mut from_initiator = true;
    let mut bits = 0;
    if packet.key.protocol == protocol::TCP && packet.tcp_flags & tcp::SYN != 0 {
        from_initiator = packet.tcp_flags & tcp::ACK == 0;
        bits |= state::INITIATOR_BY_SYN;
    }
    if packet.from_low != from_initiator {
        bits |= state::INITIATOR_HIGH;
    }
    let key = &packet.key;
    let same_address = key.low[0] == key.high[0]
        && key.low[1] == key.high[1]
        && key.low[2] == key.high[2]
        && key.low[3] == key.high[3];
    // ICMP echo carries one identifier for both ends, so equal ports alone do not make an endpoint talk to itself.
    if same_address && key.low_port == key.high_port {
        bits = (bits | state::SELF) & !state::INITIATOR_HIGH;
    }
    bits
}
