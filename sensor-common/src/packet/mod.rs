//! Frame → [`Packet`]: the one parser of Sensor, run by the kernel programs and by the agent over captures.
//!
//! Carries Ethernet, up to two VLAN tags (802.1Q, 802.1ad), IPv4 with options, IPv6 with extension headers, and TCP,
//! UDP, ICMP, ICMPv6 and other transport protocols. Everything else is a [`Refusal`], which callers count by
//! cause and pass. Invariant: a returned [`Packet`] has lengths that are consistent with each other, so nothing
//! after this module has to check a length again.
//!
//! Written for the BPF verifier too: every read goes through a window that was bounds-checked once, loops are bounded
//! by constants, and offsets stay below [`MAX_HEADER_OFFSET`].

mod frame;
mod names;
mod network;
mod transport;

use crate::counter::Cause;
use crate::flow::FlowKey;

pub use self::frame::{Captured, Frame, Window};
pub use self::names::{Encapsulation, extension, mark, protocol, tcp_option};
use self::network::{ipv4, ipv6};
use self::transport::transport;

/// Where parsing of headers gives up (bytes from the start of the frame); a longer chain is [`Cause::HeaderChain`].
pub const MAX_HEADER_OFFSET: u32 = 1024;
/// VLAN tags that are read; a third one is [`Cause::VlanDepth`].
pub const MAX_VLAN_TAGS: usize = 2;
/// IPv6 extension headers that are skipped; one more is [`Cause::HeaderChain`].
pub const MAX_EXTENSION_HEADERS: usize = 8;

const ETHERTYPE_IPV4: u16 = 0x0800;
const ETHERTYPE_IPV6: u16 = 0x86dd;
const ETHERTYPE_VLAN: u16 = 0x8100;
const ETHERTYPE_QINQ: u16 = 0x88a8;
const ETHERTYPE_QINQ_OLD: u16 = 0x9100;
const ETHERNET_HEADER: u32 = 14;
const VLAN_HEADER: u32 = 4;

/// Why a frame is not part of any flow; it is counted under this cause and passed.
pub type Refusal = Cause;

/// What Sensor takes from one frame.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(C)]
pub struct Packet {
    /// The flow it belongs to, the same for both directions.
    pub key: FlowKey,
    /// Whether the sender is the key's `low` endpoint.
    pub from_low: bool,
    /// Frame length on the wire in bytes, link header included.
    pub frame_len: u32,
    /// Offset of the IP header from the start of the frame, in bytes.
    pub l3_offset: u32,
    /// Length of one wire segment's headers from the start of L3 to the start of the L4 payload, in bytes.
    pub header_len: u32,
    /// L4 payload in bytes (all segments together).
    pub payload_len: u32,
    /// Wire segments (1 but for segmentation-offload super-packets).
    pub segments: u32,
    /// Payload bytes in each segment but the last (0 for an ordinary frame).
    pub segment_size: u32,
    /// TCP flags byte (FIN 0x01 … CWR 0x80), 0 for other protocols.
    pub tcp_flags: u8,
    /// TCP window as sent, not scaled.
    pub window: u16,
    /// TCP sequence number.
    pub seq: u32,
    /// TCP acknowledgement number.
    pub ack: u32,
    /// IPv4 TTL or IPv6 hop limit.
    pub ttl: u8,
    /// IPv4 TOS or IPv6 traffic class (DSCP and ECN).
    pub traffic_class: u8,
    /// Type of an ICMP or ICMPv6 message, 0 for other protocols.
    pub icmp_type: u8,
    /// Code of it.
    pub icmp_code: u8,
    /// Bits of [`mark`].
    pub marks: u16,
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
    /// L3 length in bytes, headers and payload of all wire segments, without link header or padding.
    #[inline(always)]
    pub fn l3_len(&self) -> u64 {
        self.header_len as u64 * self.segments as u64 + self.payload_len as u64
    }

    /// Payload bytes of the last (for an ordinary frame: the only) wire segment.
    #[inline(always)]
    pub fn last_segment(&self) -> u32 {
        self.payload_len.wrapping_sub((self.segments - 1).wrapping_mul(self.segment_size))
    }
}

/// Parses one Ethernet frame.
///
/// # Errors
/// A [`Refusal`] says why the frame belongs to no flow (not IP, cut short, malformed, a later fragment …).
#[inline(always)]
pub fn parse<F: Frame>(frame: F) -> Result<Packet, Refusal> {
    let ethernet = frame.window(0, ETHERNET_HEADER).ok_or(Cause::TruncatedLink)?;
    let mut ethertype = ethernet.be16::<12>();
    let mut offset = ETHERNET_HEADER;
    let mut vlans = [0u16; MAX_VLAN_TAGS];
    let mut depth = 0;
    if let Some(tci) = frame.offloaded_vlan() {
        vlans[0] = tci & 0x0fff;
        depth = 1;
    }
    if is_vlan(ethertype) {
        let tag = frame.window(offset, VLAN_HEADER).ok_or(Cause::TruncatedLink)?;
        vlans[depth] = tag.be16::<0>() & 0x0fff;
        depth += 1;
        ethertype = tag.be16::<2>();
        offset += VLAN_HEADER;
        if is_vlan(ethertype) && depth < MAX_VLAN_TAGS {
            let tag = frame.window(offset, VLAN_HEADER).ok_or(Cause::TruncatedLink)?;
            vlans[1] = tag.be16::<0>() & 0x0fff;
            ethertype = tag.be16::<2>();
            offset += VLAN_HEADER;
        }
        if is_vlan(ethertype) {
            return Err(Cause::VlanDepth);
        }
    }
    let network = match ethertype {
        ETHERTYPE_IPV4 => ipv4(frame, offset)?,
        ETHERTYPE_IPV6 => ipv6(frame, offset)?,
        _ => return Err(Cause::NotIp),
    };
    transport(frame, &network, vlans)
}

#[inline(always)]
fn is_vlan(ethertype: u16) -> bool {
    matches!(ethertype, ETHERTYPE_VLAN | ETHERTYPE_QINQ | ETHERTYPE_QINQ_OLD)
}
