//! The flow record: layout, start, update.

use bytemuck::{Pod, Zeroable};

use super::bins::add_square;
use super::hint::hint;
use super::shape::{Pauses, SUBFLOW_GAP_NS, pause, payload};
use super::{Direction, FIRST_N, FlowKey, Numbers, Opening, Quick, note, state};
use crate::packet::{Packet, mark, protocol};
use crate::table::phase;
use crate::tcp;
use crate::verdict::Verdict;

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

/// All that the kernel keeps of a connection: 1,024 bytes, sixteen cache lines. An ordinary packet
/// ([`FlowRecord::quick`]) touches lines 0 and 1 and the first three of its direction's four; the others are touched at
/// the start and by what is out of the ordinary.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Pod, Zeroable)]
#[repr(C, align(64))]
pub struct FlowRecord {
    // Line 0: what every packet reads.
    /// Sequence lock ([`crate::lock`]).
    pub sequence: u32,
    /// Moves on each time the record is given to another connection.
    pub generation: u32,
    /// The verdict word ([`Verdict`]).
    pub verdict: u64,
    /// Identity.
    pub key: FlowKey,

    // Line 1: the flow as a whole.
    /// Last arrival, monotonic ns.
    pub last_ns: u64,
    /// Smallest inter-arrival time over both directions, ns; `u64::MAX` before the second frame.
    pub iat_min_ns: u64,
    /// Largest inter-arrival time over both directions, ns.
    pub iat_max_ns: u64,
    /// Sum of squares of inter-arrival times over both directions, ns², low 64 bits (96 in all: exact up to 78 hours).
    pub iat_square_low: u64,
    /// Frame bytes on the wire, both directions, link headers and padding of each handed-over frame included.
    pub frame_bytes: u64,
    /// Last arrival with payload, monotonic ns.
    pub run_last_ns: u64,
    /// High 32 bits of the sum of squares.
    pub iat_square_high: u32,
    /// Bits of [`state`].
    pub state: u32,
    /// Bursts: longest runs of frames of one direction, the present one included.
    pub bursts: u32,
    /// Bit n, 0 or 1: direction n is in a state in which ordinary packets can take the short way
    /// ([`FlowRecord::quick`]); above, bits of [`note`].
    pub steady: u8,
    /// Packets until [`FlowRecord::packets`] may reach a power of two.
    pub until_stage: u8,
    /// Packets in the present run of one direction's payload, at most [`super::BULK_PACKETS`].
    pub run_packets: u8,
    /// Entries of `first` that are filled.
    pub first_len: u8,

    // Lines 2–5 and 6–9.
    /// Forward and reverse direction.
    pub directions: [Direction; 2],

    // Lines 10–11.
    /// The first arrivals.
    pub first: [Arrival; FIRST_N],

    // Line 12.
    /// Of each direction, what its first packets say.
    pub openings: [Opening; 2],
    /// Interface of the first frame.
    pub ifindex: u32,
    /// Frames that could not be counted because the record was locked; they are in no other field. Added to without
    /// the lock.
    pub lost: u32,

    // Line 13.
    /// First arrival, monotonic ns.
    pub first_ns: u64,
    /// First arrival of the direction that did not begin, ns, 0 = none.
    pub reply_ns: u64,
    /// Arrival of the first SYN-ACK, ns, 0 = none.
    pub syn_ack_ns: u64,
    /// Arrival of the packet that completed the handshake, ns, 0 = none.
    pub established_ns: u64,
    /// Frames that a drop verdict stopped; they are in no other field. Added to without the lock.
    pub dropped: u64,
    /// Length of the present run of payload while it is no bulk yet, ns.
    pub run_ns: u32,
    /// Its payload, bytes.
    pub run_bytes: u32,
    /// Gaps of more than 1 s between two frames, plus one.
    pub subflows: u32,
    /// Gaps of more than 5 s between two frames: idle periods.
    pub idles: u32,
    /// ICMP errors that quote a packet of this flow.
    pub icmp_errors: u32,
    /// Type and code of the first of these errors.
    pub error_type: u8,
    /// See `error_type`.
    pub error_code: u8,
    /// For which epoch of the never-drop list the flow was found to be without protection ([`crate::verdict::cleared`]).
    pub cleared: u16,

    // Line 14.
    /// Active and idle periods; valid where `idles` is not 0.
    pub pauses: Pauses,

    // Line 15.
    /// Of each TCP direction, the sequence numbers that are seldom asked for; not valid in other flows.
    pub numbers: [Numbers; 2],
    /// Room for fields of later versions.
    pub spare: Spare,
}

/// Words without a meaning yet, so that a later version can keep something more in the same maps, and agents of both
/// versions can take them over from each other. Versions that do not know of a word never write here, so a word is
/// valid only where `generation` is the record's: else it is of a former flow, and counts as 0.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Pod, Zeroable)]
#[repr(C)]
pub struct Spare {
    /// [`FlowRecord::generation`] of the flow that the words are of.
    pub generation: u32,
    /// The words.
    pub words: [u32; 5],
}

const _: () = assert!(size_of::<FlowRecord>() == 1024 && size_of::<Direction>() == 256);
const _: () = assert!(core::mem::offset_of!(FlowRecord, last_ns) == 64);
const _: () = assert!(core::mem::offset_of!(FlowRecord, directions) == 128);
const _: () = assert!(core::mem::offset_of!(FlowRecord, openings) == 12 * 64);
const _: () = assert!(core::mem::offset_of!(FlowRecord, first_ns) == 13 * 64);
const _: () = assert!(core::mem::offset_of!(FlowRecord, pauses) == 14 * 64);
const _: () = assert!(core::mem::offset_of!(FlowRecord, numbers) == 15 * 64);
const _: () = assert!(core::mem::offset_of!(FlowRecord, spare) == 15 * 64 + 40);

impl FlowRecord {
    /// A record of nothing.
    pub fn zeroed() -> FlowRecord {
        <FlowRecord as Zeroable>::zeroed()
    }

    /// Makes this the record of `packet`'s connection, with nothing counted yet: call [`FlowRecord::update`] next.
    /// Leaves `sequence` alone. Only what is
    /// valid from the start is written; a direction is set up by its first packet, arrivals and pauses by theirs.
    #[inline(always)]
    pub fn start(&mut self, packet: &Packet, now_ns: u64, ifindex: u32, generation: u32) {
        // A line that others have no use for.
        if packet.key.protocol == protocol::TCP {
            self.numbers[0].start();
            self.numbers[1].start();
        }
        self.begin(packet, now_ns, ifindex, generation);
    }

    /// [`FlowRecord::start`], but for what a record that goes on from an earlier one keeps in its place.
    #[inline(always)]
    fn begin(&mut self, packet: &Packet, now_ns: u64, ifindex: u32, generation: u32) {
        self.generation = generation;
        self.verdict = Verdict::default().0;
        self.key = packet.key;
        self.state = initiator(packet);
        self.last_ns = now_ns;
        self.iat_min_ns = u64::MAX;
        self.iat_max_ns = 0;
        self.iat_square_low = 0;
        self.iat_square_high = 0;
        self.frame_bytes = 0;
        self.run_last_ns = 0;
        self.bursts = 1;
        self.cleared = 0;
        self.steady = 0;
        self.until_stage = 1;
        self.run_packets = 0;
        self.first_len = 0;
        self.ifindex = ifindex;
        self.lost = 0;
        self.first_ns = now_ns;
        self.reply_ns = 0;
        self.syn_ack_ns = 0;
        self.established_ns = 0;
        self.dropped = 0;
        self.run_ns = 0;
        self.run_bytes = 0;
        self.subflows = 1;
        self.idles = 0;
        self.icmp_errors = 0;
        self.error_type = 0;
        self.error_code = 0;
        // The direction of the first packet need not be forward: a SYN-ACK can come first.
        self.directions[0].start(now_ns);
        if self.direction_of(packet) == 1 {
            self.directions[1].start(now_ns);
            self.state |= state::REVERSE | state::LAST_REVERSE;
        }
    }

    /// Makes this the record of what follows in the same flow, with nothing counted yet: the active timeout is over.
    /// Call [`FlowRecord::update`] next. What is known of the flow stays: its generation and verdict, who began it and
    /// how, how far handshake and close are, sequence numbers.
    #[inline(always)]
    pub fn go_on(&mut self, packet: &Packet, now_ns: u64, ifindex: u32) {
        const GONE: u32 = state::LAST_REVERSE | state::RUN_REVERSE | state::PAYLOAD | state::PAYLOAD << 1;
        let (bits, verdict, cleared) = (self.state & !GONE, self.verdict, self.cleared);
        let notes = self.steady & (note::LASTING | note::FREED) | note::CONTINUED;
        let [forward, reverse] = &self.directions;
        let (next, ack, window) = (forward.next, forward.ack, forward.window_last);
        let (reverse_next, reverse_ack, reverse_window) = (reverse.next, reverse.ack, reverse.window_last);
        self.begin(packet, now_ns, ifindex, self.generation);
        (self.state, self.verdict, self.cleared, self.steady) = (bits, verdict, cleared, notes);
        let half = &mut self.directions[0];
        (half.next, half.ack, half.window_last) = (next, ack, window);
        let back = self.direction_of(packet) == 1;
        if bits & state::REVERSE != 0 || back {
            let half = &mut self.directions[1];
            half.start(now_ns);
            if bits & state::REVERSE != 0 {
                (half.next, half.ack, half.window_last) = (reverse_next, reverse_ack, reverse_window);
            }
            self.state |= state::REVERSE;
        }
        if back {
            self.state |= state::LAST_REVERSE;
        }
    }

    /// Notes the pressure on the table at the flow's birth: call it after [`FlowRecord::start`], where there are buckets.
    /// `ways`: ways of the bucket that other flows held, 0 to 8; 8: one of them was given up for this flow.
    #[inline(always)]
    pub fn born_among(&mut self, ways: u32) {
        self.state |= (ways & 0xf) << state::WAYS_SHIFT;
    }

    /// 0 if `packet` goes from the initiator to the responder, 1 if back.
    #[inline(always)]
    pub fn direction_of(&self, packet: &Packet) -> usize {
        if self.state & state::SELF != 0 {
            return is_echo_reply(packet) as usize;
        }
        let initiator_low = self.state & state::INITIATOR_HIGH == 0;
        (packet.from_low != initiator_low) as usize
    }

    /// Counts one frame of this connection that arrived at `now_ns`.
    #[inline(always)]
    pub fn update(&mut self, packet: &Packet, now_ns: u64) {
        if self.quick(packet, now_ns) == Quick::No {
            self.long(packet, now_ns);
        }
    }

    /// What [`FlowRecord::update`] does with a packet for which the short way does not do.
    #[inline(always)]
    pub(super) fn long(&mut self, packet: &Packet, now_ns: u64) {
        self.count(packet, now_ns);
        self.follow(packet);
        if self.look(packet) {
            self.hint(packet);
        }
        self.settle();
    }

    /// The first part of [`FlowRecord::update`] of a packet for which the short way does not do: volume, size, spacing. The
    /// kernel calls the parts one by one, as functions that are verified each on its own and share one piece of stack.
    #[inline(always)]
    pub fn count(&mut self, packet: &Packet, now_ns: u64) {
        let side = self.direction_of(packet) & 1;
        // Clocks of two CPUs may differ by a little: time never runs backwards in a record.
        let now_ns = if now_ns < self.last_ns { self.last_ns } else { now_ns };
        let iat_ns = now_ns.wrapping_sub(self.last_ns);
        if side == 1 && self.state & state::REVERSE == 0 {
            self.directions[1].start(now_ns);
            self.state |= state::REVERSE;
        }
        if self.first_len > 0 {
            self.iat_min_ns = self.iat_min_ns.min(iat_ns);
            self.iat_max_ns = self.iat_max_ns.max(iat_ns);
            add_square(&mut self.iat_square_low, &mut self.iat_square_high, iat_ns);
            if iat_ns > SUBFLOW_GAP_NS {
                pause(self, now_ns);
            }
        }
        self.last_ns = now_ns;
        self.frame_bytes = self.frame_bytes.wrapping_add(packet.frame_len as u64);
        let turn = (self.state >> state::LAST_REVERSE_SHIFT & 1) ^ side as u32;
        self.bursts = self.bursts.saturating_add(turn);
        self.state ^= turn << state::LAST_REVERSE_SHIFT;
        if self.directions[side].packets == 0 {
            self.openings[side].start(packet);
            if self.first_len > 0 {
                self.reply_ns = now_ns;
            }
        }
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
        let left = (self.until_stage as u32).saturating_sub(packet.segments);
        self.until_stage = if left == 0 { self.left_in_stage() } else { left as u8 };
        // Rare on the wire, so one test for all.
        if packet.marks & mark::FRAGMENT != 0 || packet.extensions != 0 {
            self.odd(packet, side);
        }
    }

    /// The second part: TCP. The first one has moved `last_ns` on.
    #[inline(always)]
    pub fn follow(&mut self, packet: &Packet) {
        if packet.key.protocol == protocol::TCP && packet.marks & mark::LATER_FRAGMENT == 0 {
            let side = self.direction_of(packet) & 1;
            tcp::follow(self, packet, side, self.last_ns);
        }
    }

    /// The third part: bulks. Whether this is the direction's first payload, whose hints [`FlowRecord::hint`] then takes.
    #[inline(always)]
    pub fn look(&mut self, packet: &Packet) -> bool {
        if packet.payload_len == 0 {
            return false;
        }
        let side = self.direction_of(packet) & 1;
        payload(self, packet, side, self.last_ns);
        let first = self.state & state::PAYLOAD << side == 0;
        self.state |= state::PAYLOAD << side;
        first && packet.sample_len > 0
    }

    /// The fourth part: hints of a direction's first payload.
    #[inline(always)]
    pub fn hint(&mut self, packet: &Packet) {
        let side = self.direction_of(packet) & 1;
        hint(&mut self.openings[side], packet);
    }

    /// The last part: whether packets that come now can take the short way.
    #[inline(always)]
    pub fn settle(&mut self) {
        let mut notes = self.steady & note::ALL;
        if self.has_two_ends() {
            notes |= note::LASTING;
        }
        self.steady = if notes & note::DUE != 0 { notes } else { notes | self.find_steady() };
    }

    /// Whether a TCP connection has shown by now that its initiator receives what the responder sends: a handshake
    /// whose beginning was seen is over, and what the initiator acknowledges is what the responder sent
    /// ([`crate::verdict::is_proven`]). In a tunnel the sender writes both sides, and the handshake has to do.
    #[inline(always)]
    fn has_two_ends(&self) -> bool {
        let wanted = state::REVERSE | state::ACK_KNOWN | state::SEQUENCE_KNOWN << 1;
        let bits = self.state;
        if self.key.protocol != protocol::TCP || bits & (wanted | state::CLOSED) != wanted {
            return false;
        }
        if bits & (state::SYN | state::ESTABLISHED) == state::SYN {
            return false;
        }
        let [forward, reverse] = &self.directions;
        let seen = forward.packets > 0 && reverse.packets > 0;
        let behind = reverse.next.wrapping_sub(forward.ack) as u64;
        seen && (self.key.encapsulation != 0 || behind <= reverse.payload_bytes.wrapping_add(1))
    }

    /// What the flow has shown so far: one of [`phase`].
    #[inline(always)]
    pub fn phase(&self) -> u8 {
        if self.is_over() {
            return phase::CLOSED;
        }
        if self.key.protocol == protocol::TCP {
            if self.steady & note::LASTING == 0 {
                return phase::ONE_SIDED;
            }
            let closing = self.state & (state::FIN | state::FIN << 1 | state::CLOSED) != 0;
            return if closing { phase::ANSWERED } else { phase::ESTABLISHED };
        }
        let answered =
            self.state & state::REVERSE != 0 && self.directions[0].packets > 0 && self.directions[1].packets > 0;
        if answered { phase::ANSWERED } else { phase::ONE_SIDED }
    }

    #[inline(always)]
    fn odd(&mut self, packet: &Packet, side: usize) {
        let opening = &mut self.openings[side & 1];
        opening.extensions |= packet.extensions;
        if packet.marks & mark::FRAGMENT != 0 {
            opening.fragments = opening.fragments.saturating_add(packet.segments);
        }
    }

    /// An ICMP error of this type and code quotes a packet of this flow. Call it under the record's lock. The error
    /// itself is counted in its own flow.
    #[inline(always)]
    pub fn quoted(&mut self, icmp_type: u8, icmp_code: u8) {
        if self.icmp_errors == 0 {
            self.error_type = icmp_type;
            self.error_code = icmp_code;
        }
        self.icmp_errors = self.icmp_errors.saturating_add(1);
    }

    #[inline(always)]
    fn reverse_arrivals(&self) -> u64 {
        if self.state & state::REVERSE == 0 { 0 } else { self.directions[1].arrivals() }
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
        self.directions[0].arrivals() + self.reverse_arrivals()
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

    /// Whether the connection is over for both ends, as far as is known. After a RST that may have missed the number
    /// that its receiver waited for, it may go on: then it takes an acknowledgement or the idle timeout to know.
    #[inline(always)]
    fn is_over(&self) -> bool {
        let bits = self.state;
        bits & state::CLOSED != 0 && (bits & state::RST == 0 || bits & state::GRACEFUL != 0 || tcp::is_certain(self))
    }

    /// Whether `packet` belongs to a new connection on the tuple of this one: it is the first SYN after the close; or,
    /// in a connection whose close was not seen, the SYN-ACK to a SYN with another number.
    #[inline(always)]
    pub fn is_reopened_by(&self, packet: &Packet) -> bool {
        if packet.tcp_flags & tcp::SYN == 0 || packet.key.protocol != protocol::TCP {
            return false;
        }
        if tcp::is_first_syn(packet.tcp_flags) {
            return self.is_over();
        }
        let side = self.direction_of(packet) & 1;
        let joined = self.state & state::ACK_KNOWN << side != 0;
        joined && packet.tcp_flags & tcp::ACK != 0 && self.numbers[side ^ 1].is_syn_aside(packet.ack)
    }

    /// Whether `packet` is the first SYN of another connection than this one, though this one did not close as far as
    /// was seen: its sequence number is not that of the SYN that its sender sent before.
    #[inline(always)]
    pub fn is_superseded_by(&self, packet: &Packet) -> bool {
        if packet.key.protocol != protocol::TCP || !tcp::is_first_syn(packet.tcp_flags) {
            return false;
        }
        let side = self.direction_of(packet) & 1;
        let end = packet.seq.wrapping_add(packet.payload_len).wrapping_add(1);
        let known = self.state & state::SEQUENCE_KNOWN << side != 0;
        let numbers = &self.numbers[side];
        let repeats = known && self.directions[side].next == end || numbers.begun() && numbers.first == packet.seq;
        !repeats
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

/// On one address, the message type alone tells a reply from a request.
#[inline(always)]
fn is_echo_reply(packet: &Packet) -> bool {
    match packet.key.protocol {
        protocol::ICMP => packet.icmp_type == 0,
        protocol::ICMPV6 => packet.icmp_type == 129,
        _ => false,
    }
}
