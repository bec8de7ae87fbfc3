//! Frame → [`Packet`]: the one parser of Sensor, run by the kernel programs and by the agent over captures.
//!
//! Carries Ethernet, up to two VLAN tags (802.1Q, 802.1ad), PPPoE sessions, MPLS, IPv4 with options, IPv6 with extension
//! headers, fragments, and TCP, UDP, SCTP, ICMP, ICMPv6 and other transport protocols; by setting, the inner flow of
//! GRE, IP-in-IP, VXLAN, Geneve and GTP-U. Everything else is a [`Refusal`], which callers count by cause and pass.
//! Invariant: a returned [`Packet`] has lengths that are consistent with each other, so nothing after this module has to
//! check a length again.
//!
//! Two ways lead to a packet: [`plain`] reads nearly all of them in one go, and says [`Progress::More`] of whatever is
//! out of the ordinary; then [`walk`] goes header by header ([`Stages`]). Where both can read a frame, they say the same.
//! Written for the BPF verifier too: every read goes through a window that was bounds-checked once, loops are bounded by
//! constants, offsets stay below [`MAX_HEADER_OFFSET`], and each stage keeps what it knows in memory that the caller
//! lends, so that the kernel's shell can make each a function that is verified once.

mod frame;
#[cfg(any(feature = "std", test))]
mod host;
mod ip;
mod link;
mod names;
mod options;
mod plain;
mod quote;
mod tcp_options;
#[cfg(test)]
mod tests;
mod transport;
mod tunnel;
mod walk;

use bytemuck::Zeroable;

use crate::counter::Cause;
use crate::flow::FlowKey;

pub use self::frame::{Captured, Frame, SAMPLE_BYTES, Window};
#[cfg(any(feature = "std", test))]
pub use self::host::Parser;
pub use self::names::{Encapsulation, extension, mark, protocol, tcp_option};
pub use self::options::{GENEVE_PORTS, MAX_PORTS, Options, Ports, VXLAN_PORTS};
pub use self::plain::{plain, syn_options};
pub use self::quote::{quoted, quoted_key};
pub use self::walk::{MAX_TUNNELS, Place, Progress, Stages, parse, parse_with, read_sample, stage, walk};

/// Where parsing of headers gives up (bytes from the start of the frame); a longer chain is [`Cause::HeaderChain`].
pub const MAX_HEADER_OFFSET: u32 = 1024;
/// VLAN tags that are read; a third one is [`Cause::VlanDepth`].
pub const MAX_VLAN_TAGS: usize = 2;
/// MPLS labels that are skipped; one more is [`Cause::HeaderChain`].
pub const MAX_MPLS_LABELS: usize = 8;
/// Extension headers that are skipped; one more is [`Cause::HeaderChain`].
pub const MAX_EXTENSION_HEADERS: usize = 8;

const ETHERTYPE_IPV4: u16 = 0x0800;
const ETHERTYPE_IPV6: u16 = 0x86dd;
/// Transparent Ethernet bridging, in GRE and Geneve.
const ETHERTYPE_ETHERNET: u16 = 0x6558;
const ETHERNET_HEADER: u32 = 14;

/// Why a frame is not part of any flow; it is counted under this cause and passed.
pub type Refusal = Cause;

/// What Sensor takes from one frame.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Zeroable)]
#[repr(C)]
pub struct Packet {
    /// The flow it belongs to, the same for both directions.
    pub key: FlowKey,
    /// IPv4 TTL or IPv6 hop limit.
    pub ttl: u8,
    /// IPv4 TOS or IPv6 traffic class (DSCP and ECN).
    pub traffic_class: u8,
    /// Bits of [`mark`].
    pub marks: u16,
    /// Frame length on the wire in bytes, link header included.
    pub frame_len: u32,
    /// Offset of the IP header (of a tunnelled flow: the inner one) from the start of the frame, in bytes.
    pub l3_offset: u16,
    /// Offset of the L4 payload from the start of the frame, in bytes.
    pub payload_offset: u16,
    /// Bytes of one wire segment's L3 length that are no payload: the headers from the start of L3 to the payload, and
    /// what UDP leaves over behind it.
    pub header_len: u32,
    /// L4 payload in bytes (all segments together).
    pub payload_len: u32,
    /// Wire segments (1 but for segmentation-offload super-packets).
    pub segments: u32,
    /// Payload bytes in each segment but the last (0 for an ordinary frame).
    pub segment_size: u32,
    /// Whether the sender is the key's `low` endpoint.
    pub from_low: bool,
    /// TCP flags byte (FIN 0x01 … CWR 0x80), 0 for other protocols.
    pub tcp_flags: u8,
    /// TCP window as sent, not scaled.
    pub window: u16,
    /// TCP sequence number.
    pub seq: u32,
    /// TCP acknowledgement number.
    pub ack: u32,
    /// Type of an ICMP or ICMPv6 message, 0 for other protocols.
    pub icmp_type: u8,
    /// Code of it.
    pub icmp_code: u8,
    /// TCP maximum segment size option of a SYN, bytes, 0 = none.
    pub mss: u16,
    /// TCP window scale option of a SYN, [`NO_WSCALE`] = none.
    pub wscale: u8,
    /// Bits of [`tcp_option`]; read on SYNs only.
    pub tcp_options: u8,
    /// Bits of [`extension`].
    pub extensions: u8,
    /// Bytes of `sample` that are payload; 0 where payload hints are off.
    pub sample_len: u8,
    /// IPv6 flow label (20 bits), 0 for IPv4.
    pub flow_label: u32,
    /// Of a fragment: IPv4 identification or IPv6 fragment identification, else 0.
    pub fragment_id: u32,
    /// The first 16 payload bytes as big-endian words, zero-padded.
    pub sample: [u32; 4],
}

/// [`Packet::wscale`] of a SYN without the option, and of everything else.
pub const NO_WSCALE: u8 = 0xff;

impl Packet {
    /// What every parse starts from: nothing is known of a frame but its length on the wire, bytes.
    #[inline(always)]
    pub fn start(frame_len: u32) -> Packet {
        // Not field by field: the compiler would clear the kernel's stack field by field as well.
        let mut packet = <Packet as Zeroable>::zeroed();
        packet.frame_len = frame_len;
        packet.wscale = NO_WSCALE;
        packet
    }

    /// L3 length in bytes, headers and payload of all wire segments, without link header or padding.
    #[inline(always)]
    pub fn l3_len(&self) -> u64 {
        self.header_len as u64 * self.segments as u64 + self.payload_len as u64
    }

    /// TTL, traffic class and marks in one word.
    #[inline(always)]
    pub fn look(&self) -> u32 {
        (self.marks as u32) << 16 | (self.traffic_class as u32) << 8 | self.ttl as u32
    }

    /// Payload bytes of the last (for an ordinary frame: the only) wire segment.
    #[inline(always)]
    pub fn last_segment(&self) -> u32 {
        self.payload_len.wrapping_sub((self.segments - 1).wrapping_mul(self.segment_size))
    }
}

// No padding: the kernel's shell hands packets to functions that may read all of it, so all of it must be written.
const _: () = assert!(size_of::<Packet>() == size_of::<FlowKey>() + 72);
