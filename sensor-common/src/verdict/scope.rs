//! Keys of the verdict maps and of the never-drop list. One map holds both families: prefixes begin with the family, so that
//! ::/0 is not all of IPv4; single addresses are 128 bits, IPv4 mapped (::ffff:0:0/96, RFC 4291 §2.5.5.2). VLANs and
//! tunnels are no part of an address here.

use bytemuck::{Pod, Zeroable};

/// Most verdicts of a scope that can be configured.
pub const MAX_VERDICTS: u32 = 1 << 20;
/// Prefixes on the never-drop list.
pub const MAX_ALLOWED: u32 = 1 << 16;
/// Services with a limit of half-open attempts.
pub const MAX_SERVICES: u32 = 1 << 10;
/// Bit of an entry of the never-drop list: it is allowed. (Without it, a longer prefix takes a part out again.)
pub const ALLOWED_FLAG: u32 = 1;
/// 64-bit words of the never-drop ports: TCP's, then UDP's.
pub const PORT_WORDS: u32 = 2 * 1024;

/// Key of a longest-prefix-match map.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Pod, Zeroable)]
#[repr(C)]
pub struct PrefixKey {
    /// Bits that count: 32 of the family, and those of the prefix.
    pub bits: u32,
    /// Family and address.
    pub data: PrefixData,
}

/// What prefixes are compared by, and the key of a map of single addresses: 4 or 6, then the address in network byte order, IPv4 in the first word. The last word is
/// zero and counts for no prefix: the kernel puts an entry right behind its key, and programs add to numbers of eight bytes
/// in entries atomically. Where such a number crosses a cache line, the CPU locks the memory bus (more than a microsecond a
/// packet), and kernels that detect split locks stop.
pub type PrefixData = [u32; 6];

const _: () = assert!(size_of::<PrefixData>().is_multiple_of(align_of::<u64>()));

impl PrefixKey {
    /// The key that finds the longest prefix around an address of a [`crate::flow::FlowKey`] of this family.
    #[inline(always)]
    pub const fn of(address: [u32; 4], family: u8) -> PrefixKey {
        let [a, b, c, d] = address;
        let v6 = family != 4;
        let data = [family as u32, a.to_be(), b.to_be(), c.to_be(), d.to_be(), 0];
        PrefixKey { bits: if v6 { 160 } else { 64 }, data }
    }
}

/// Key of a service.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Pod, Zeroable)]
#[repr(C)]
pub struct ServiceKey {
    /// The address, in the order of [`mapped`].
    pub address: [u32; 4],
    /// Destination port; 0 of TCP: all ports of the address that have no entry of their own.
    pub port: u16,
    /// IP protocol number.
    pub protocol: u8,
    /// Reserved, zero.
    pub reserved: u8,
}

/// An address of a [`crate::flow::FlowKey`] of this family as the maps have it: 16 bytes as they are on the wire.
#[inline(always)]
pub const fn mapped(address: [u32; 4], family: u8) -> [u32; 4] {
    if family == 4 {
        return [0, 0, 0xffffu32.to_be(), address[0].to_be()];
    }
    [address[0].to_be(), address[1].to_be(), address[2].to_be(), address[3].to_be()]
}

/// Word and bit of a port in the never-drop ports; `udp`: of UDP's, not TCP's.
#[inline(always)]
pub const fn port_bit(port: u16, udp: bool) -> (u32, u32) {
    ((udp as u32) << 10 | port as u32 >> 6, port as u32 & 63)
}

#[cfg(test)]
mod tests {
    use core::net::{Ipv4Addr, Ipv6Addr};

    use super::*;

    #[test]
    fn addresses_are_as_on_the_wire() {
        let bytes = |words: [u32; 4]| -> [u8; 16] { bytemuck::cast(words) };
        let v4 = Ipv4Addr::new(198, 18, 0, 1);
        assert_eq!(bytes(mapped([u32::from(v4), 7, 7, 7], 4)), v4.to_ipv6_mapped().octets());
        let v6 = Ipv6Addr::new(0x2001, 0xdb8, 0, 0, 0, 0, 0, 9);
        assert_eq!(bytes(mapped([0x2001_0db8, 0, 0, 9], 6)), v6.octets());
    }

    #[test]
    fn ports_have_bits_of_their_own() {
        let bits: std::collections::HashSet<_> =
            (0..=u16::MAX).flat_map(|port| [port_bit(port, false), port_bit(port, true)]).collect();
        assert_eq!(bits.len(), 2 << 16);
        assert!(bits.iter().all(|(word, bit)| *word < PORT_WORDS && *bit < 64));
    }
}
