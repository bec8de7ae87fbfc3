//! Frames for program runs: Ethernet, VLAN tags, IPv4 with options, IPv6 with extension headers, and a transport header.
//!
//! A [`Frame`] describes a well-formed frame; what is malformed is made by changing the bytes of [`Frame::build`]. Only
//! the IPv4 header checksum is computed: nothing here looks at the others. Used by `tests/programs` and `sensor-bench`.

use std::net::{IpAddr, SocketAddr};

use sensor_common::packet::protocol;

/// EtherType of a customer VLAN tag (802.1Q).
pub const VLAN: u16 = 0x8100;
/// EtherType of a service VLAN tag (802.1ad).
pub const SERVICE_VLAN: u16 = 0x88a8;
/// Bytes of the Ethernet header.
pub const ETHERNET_HEADER: usize = 14;

/// A frame to build. Both addresses are of one family.
#[derive(Clone, Debug)]
pub struct Frame {
    src: SocketAddr,
    dst: SocketAddr,
    protocol: u8,
    vlans: Vec<(u16, u16)>,
    options: usize,
    extensions: Vec<(u8, usize)>,
    fragment: Option<(u16, bool)>,
    ttl: u8,
    class: u8,
    flags: u8,
    seq: u32,
    ack: u32,
    window: u16,
    tcp_options: usize,
    icmp: (u8, u8),
    payload: usize,
    pad_to: usize,
}

impl Frame {
    /// A frame of any IP protocol. Protocols without ports ignore those of the addresses; ICMP echo takes the source's
    /// as its identifier.
    pub fn new(protocol: u8, src: SocketAddr, dst: SocketAddr) -> Frame {
        Frame {
            src,
            dst,
            protocol,
            vlans: Vec::new(),
            options: 0,
            extensions: Vec::new(),
            fragment: None,
            ttl: 64,
            class: 0,
            flags: 0,
            seq: 0,
            ack: 0,
            window: 64_240,
            tcp_options: 0,
            icmp: (0, 0),
            payload: 0,
            pad_to: 0,
        }
    }

    /// A TCP segment.
    pub fn tcp(src: SocketAddr, dst: SocketAddr, flags: u8) -> Frame {
        Frame { flags, ..Frame::new(protocol::TCP, src, dst) }
    }

    /// A UDP datagram.
    pub fn udp(src: SocketAddr, dst: SocketAddr) -> Frame {
        Frame::new(protocol::UDP, src, dst)
    }

    /// An ICMP or ICMPv6 message, by the family of `src`.
    pub fn icmp(src: SocketAddr, dst: SocketAddr, kind: u8, code: u8) -> Frame {
        let number = if src.is_ipv4() { protocol::ICMP } else { protocol::ICMPV6 };
        Frame { icmp: (kind, code), ..Frame::new(number, src, dst) }
    }

    /// Adds a VLAN tag inside of those there are: EtherType and tag control information.
    pub fn tag(mut self, ethertype: u16, tci: u16) -> Frame {
        self.vlans.push((ethertype, tci));
        self
    }

    /// IPv4 options, bytes (a multiple of 4, at most 40).
    pub fn options(self, bytes: usize) -> Frame {
        Frame { options: bytes, ..self }
    }

    /// Adds an IPv6 extension header behind those there are: protocol number and bytes (a multiple of 8; AH: of 4).
    pub fn extension(mut self, kind: u8, bytes: usize) -> Frame {
        self.extensions.push((kind, bytes));
        self
    }

    /// Makes it a fragment: offset in units of 8 bytes, and whether more follow. IPv6 gets a fragment header, the last
    /// of its extension headers.
    pub fn fragment(self, offset: u16, more: bool) -> Frame {
        Frame { fragment: Some((offset, more)), ..self }
    }

    /// Sequence and acknowledgement number of TCP.
    pub fn seq(self, seq: u32, ack: u32) -> Frame {
        Frame { seq, ack, ..self }
    }

    /// Window of TCP.
    pub fn window(self, window: u16) -> Frame {
        Frame { window, ..self }
    }

    /// Options of TCP, bytes (a multiple of 4, at most 40).
    pub fn tcp_options(self, bytes: usize) -> Frame {
        Frame { tcp_options: bytes, ..self }
    }

    /// TTL or hop limit, and TOS or traffic class.
    pub fn hops(self, ttl: u8, class: u8) -> Frame {
        Frame { ttl, class, ..self }
    }

    /// Payload behind the transport header, bytes.
    pub fn payload(self, bytes: usize) -> Frame {
        Frame { payload: bytes, ..self }
    }

    /// Pads the frame behind the datagram, as Ethernet does to 60 bytes.
    pub fn pad(self, to: usize) -> Frame {
        Frame { pad_to: to, ..self }
    }

    /// The bytes.
    pub fn build(&self) -> Vec<u8> {
        let mut frame = vec![2, 0, 0, 0, 0, 2, 2, 0, 0, 0, 0, 1];
        for (ethertype, tci) in &self.vlans {
            frame.extend(ethertype.to_be_bytes());
            frame.extend(tci.to_be_bytes());
        }
        let transport = self.transport();
        match (self.src.ip(), self.dst.ip()) {
            (IpAddr::V4(src), IpAddr::V4(dst)) => self.ipv4(&mut frame, src.octets(), dst.octets(), &transport),
            (IpAddr::V6(src), IpAddr::V6(dst)) => self.ipv6(&mut frame, src.octets(), dst.octets(), &transport),
            _ => panic!("addresses of two families: {} and {}", self.src, self.dst),
        }
        if frame.len() < self.pad_to {
            frame.resize(self.pad_to, 0);
        }
        frame
    }

    fn ipv4(&self, frame: &mut Vec<u8>, src: [u8; 4], dst: [u8; 4], transport: &[u8]) {
        frame.extend([0x08, 0x00]);
        let start = frame.len();
        let header = 20 + self.options;
        frame.extend([0x40 | (header / 4) as u8, self.class]);
        frame.extend(((header + transport.len()) as u16).to_be_bytes());
        let fragment = self.fragment.map_or(0x4000, |(offset, more)| offset | (more as u16) << 13);
        frame.extend([0x12, 0x34]);
        frame.extend(fragment.to_be_bytes());
        frame.extend([self.ttl, self.protocol, 0, 0]);
        frame.extend(src);
        frame.extend(dst);
        // Option 1: no operation.
        frame.resize(start + header, 1);
        let sum = !ones_complement(&frame[start..]);
        frame[start + 10..start + 12].copy_from_slice(&sum.to_be_bytes());
        frame.extend(transport);
    }

    fn ipv6(&self, frame: &mut Vec<u8>, src: [u8; 16], dst: [u8; 16], transport: &[u8]) {
        let mut chain = self.extensions.clone();
        if self.fragment.is_some() {
            chain.push((protocol::FRAGMENT, 8));
        }
        let next = |position: usize| chain.get(position).map_or(self.protocol, |(kind, _)| *kind);
        let extensions: usize = chain.iter().map(|(_, bytes)| bytes).sum();
        frame.extend([0x86, 0xdd]);
        // Version, traffic class, and a flow label that no byte of the class may disturb.
        frame.extend((0x6000_0000 | (self.class as u32) << 20 | 0x000a_bcde).to_be_bytes());
        frame.extend(((extensions + transport.len()) as u16).to_be_bytes());
        frame.extend([next(0), self.ttl]);
        frame.extend(src);
        frame.extend(dst);
        for (position, (kind, bytes)) in chain.iter().enumerate() {
            let mut header = vec![0; *bytes];
            header[0] = next(position + 1);
            match *kind {
                protocol::FRAGMENT => {
                    let (offset, more) = self.fragment.unwrap_or((0, false));
                    header[2..4].copy_from_slice(&(offset << 3 | more as u16).to_be_bytes());
                }
                protocol::AH => header[1] = (bytes / 4 - 2) as u8,
                _ => header[1] = (bytes / 8 - 1) as u8,
            }
            frame.extend(header);
        }
        frame.extend(transport);
    }

    fn transport(&self) -> Vec<u8> {
        let mut bytes = Vec::new();
        let (src, dst) = (self.src.port().to_be_bytes(), self.dst.port().to_be_bytes());
        match self.protocol {
            protocol::TCP => {
                bytes.extend([src, dst].concat());
                bytes.extend(self.seq.to_be_bytes());
                bytes.extend(self.ack.to_be_bytes());
                bytes.extend([((20 + self.tcp_options) << 2) as u8, self.flags]);
                bytes.extend(self.window.to_be_bytes());
                bytes.resize(20, 0);
                bytes.resize(20 + self.tcp_options, 1);
            }
            protocol::UDP | protocol::UDP_LITE => {
                bytes.extend([src, dst].concat());
                bytes.extend(((8 + self.payload) as u16).to_be_bytes());
                bytes.extend([0, 0]);
            }
            protocol::SCTP => {
                bytes.extend([src, dst].concat());
                bytes.resize(12, 0);
            }
            protocol::ICMP | protocol::ICMPV6 => {
                bytes.extend([self.icmp.0, self.icmp.1, 0, 0]);
                bytes.extend(src);
                bytes.extend([0, 1]);
            }
            _ => {}
        }
        bytes.extend((0..self.payload).map(|position| position as u8));
        bytes
    }
}

/// The checksum of RFC 1071 before its complement, over bytes of even length. 0xffff over a header whose checksum is right.
pub fn ones_complement(bytes: &[u8]) -> u16 {
    let mut sum: u32 = bytes.chunks_exact(2).map(|pair| u16::from_be_bytes([pair[0], pair[1]]) as u32).sum();
    while sum > 0xffff {
        sum = (sum & 0xffff) + (sum >> 16);
    }
    sum as u16
}
