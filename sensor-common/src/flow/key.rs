//! Identity of a flow. Called by the parser, which makes keys, and by both sides of the table, which look them up.

use bytemuck::{Pod, Zeroable};

use super::KEY_WORDS;

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

    /// The key as 32-bit words, as it lies in memory: 0–3 low address, 4–7 high address, 8 ports, 9 protocol, family and
    /// encapsulation, 10 VLANs, 11 tunnel id.
    #[inline(always)]
    pub fn words(&self) -> &[u32; KEY_WORDS] {
        bytemuck::cast_ref(self)
    }

    /// Equality without an early exit per byte: what the kernel compares on a hit.
    #[inline(always)]
    pub fn same(&self, other: &FlowKey) -> bool {
        let (a, b) = (self.words(), other.words());
        let mut differs = (a[0] ^ b[0]) | (a[4] ^ b[4]) | (a[8] ^ b[8]);
        differs |= (a[9] ^ b[9]) | (a[10] ^ b[10]) | (a[11] ^ b[11]);
        if differs != 0 || self.family == 4 {
            return differs == 0;
        }
        differs |= (a[1] ^ b[1]) | (a[2] ^ b[2]) | (a[3] ^ b[3]);
        differs |= (a[5] ^ b[5]) | (a[6] ^ b[6]) | (a[7] ^ b[7]);
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
