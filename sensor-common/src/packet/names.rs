//! Names of the numbers and bits that a [`super::Packet`] carries.

/// IP protocol numbers (IANA) that the parser treats by name.
pub mod protocol {
    #![expect(missing_docs, reason = "IANA names")]
    pub const HOP_BY_HOP: u8 = 0;
    pub const ICMP: u8 = 1;
    pub const IPV4: u8 = 4;
    pub const TCP: u8 = 6;
    pub const UDP: u8 = 17;
    pub const IPV6: u8 = 41;
    pub const ROUTING: u8 = 43;
    pub const FRAGMENT: u8 = 44;
    pub const GRE: u8 = 47;
    pub const ESP: u8 = 50;
    pub const AH: u8 = 51;
    pub const ICMPV6: u8 = 58;
    pub const DESTINATION_OPTIONS: u8 = 60;
    pub const SCTP: u8 = 132;
    pub const MOBILITY: u8 = 135;
    pub const UDP_LITE: u8 = 136;
    pub const HIP: u8 = 139;
    pub const SHIM6: u8 = 140;
}

/// Bits of [`super::Packet::marks`].
pub mod mark {
    /// IPv4: don't fragment.
    pub const DONT_FRAGMENT: u16 = 1;
    /// A fragment of a datagram, the first one included. (An IPv6 fragment header that says "whole" is none.)
    pub const FRAGMENT: u16 = 2;
    /// A fragment behind the first: its flow is known from the first one.
    pub const LATER_FRAGMENT: u16 = 4;
    /// IPv4 options are present.
    pub const IP_OPTIONS: u16 = 8;
    /// An ICMP or ICMPv6 error, which quotes a packet.
    pub const ICMP_ERROR: u16 = 16;
    /// The flow is one inside of a tunnel.
    pub const TUNNELLED: u16 = 64;
    /// Carried over MPLS.
    pub const MPLS: u16 = 128;
    /// Carried in a PPPoE session.
    pub const PPPOE: u16 = 256;
    /// What is below IP, and stays when a tunnel leads to another IP header.
    pub(crate) const OF_LINK: u16 = TUNNELLED | MPLS | PPPOE;
}

/// Bits of [`super::Packet::extensions`]: IPv6 extension headers, and AH and ESP of either family.
pub mod extension {
    /// Hop-by-hop options (RFC 8200).
    pub const HOP_BY_HOP: u8 = 1;
    /// Routing header.
    pub const ROUTING: u8 = 2;
    /// Fragment header.
    pub const FRAGMENT: u8 = 4;
    /// Authentication header (RFC 4302).
    pub const AH: u8 = 8;
    /// Destination options.
    pub const DESTINATION: u8 = 16;
    /// Mobility header (RFC 6275).
    pub const MOBILITY: u8 = 32;
    /// Host identity protocol or Shim6.
    pub const HIP_SHIM: u8 = 64;
    /// Encapsulating security payload (RFC 4303), which ends what can be read.
    pub const ESP: u8 = 128;
}

/// Bits of [`super::Packet::tcp_options`].
pub mod tcp_option {
    /// Maximum segment size.
    pub const MSS: u8 = 1;
    /// Window scale.
    pub const WSCALE: u8 = 2;
    /// Selective acknowledgements are permitted.
    pub const SACK_PERMITTED: u8 = 4;
    /// A selective acknowledgement.
    pub const SACK: u8 = 8;
    /// Timestamps.
    pub const TIMESTAMPS: u8 = 16;
    /// Any other but "no operation" and "end".
    pub const OTHER: u8 = 32;
}

/// What a flow is carried in, the number in [`crate::flow::FlowKey::encapsulation`].
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
#[repr(u8)]
pub enum Encapsulation {
    /// No tunnel.
    None = 0,
    /// GRE (RFC 2784, RFC 2890); the tunnel id is its key.
    Gre = 1,
    /// IP in IP, any pair of versions (RFC 2003, RFC 4213, RFC 2473); no tunnel id.
    Ip = 2,
    /// VXLAN (RFC 7348); the tunnel id is the VNI.
    Vxlan = 3,
    /// Geneve (RFC 8926); the tunnel id is the VNI.
    Geneve = 4,
    /// GTP-U (3GPP TS 29.281); no tunnel id: a TEID names one direction only, and would cut flows in two.
    Gtp = 5,
}

impl Encapsulation {
    /// Every kind of tunnel.
    pub const TUNNELS: [Encapsulation; 5] =
        [Encapsulation::Gre, Encapsulation::Ip, Encapsulation::Vxlan, Encapsulation::Geneve, Encapsulation::Gtp];

    /// Its bit in [`super::Options::tunnels`].
    #[inline(always)]
    pub const fn bit(self) -> u8 {
        1 << self as u8
    }

    /// The name in settings and exports.
    pub const fn name(self) -> &'static str {
        match self {
            Encapsulation::None => "none",
            Encapsulation::Gre => "gre",
            Encapsulation::Ip => "ipip",
            Encapsulation::Vxlan => "vxlan",
            Encapsulation::Geneve => "geneve",
            Encapsulation::Gtp => "gtp",
        }
    }
}
