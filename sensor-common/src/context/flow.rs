//! What a new flow means to the context: the keys and hashes of its source and of the service it goes to.

use bytemuck::{Pod, Zeroable};

use super::sketch::{COMPONENTS, cell_of};
use crate::flow::FlowKey;
use crate::hash::hash_words;
use crate::packet::protocol;

/// 32-bit words of a [`Key`].
pub const KEY_WORDS: usize = 7;

/// A source or a service: 0–3 address (of an IPv6 source: its /64), 4 protocol, family and encapsulation, port, 5
/// VLANs, 6 tunnel id. Of a source, protocol and port are 0.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash, Pod, Zeroable)]
#[repr(C)]
pub struct Key(pub [u32; KEY_WORDS]);

impl Key {
    #[inline(always)]
    fn new(address: [u32; 4], key: &FlowKey, protocol: u8, port: u16) -> Key {
        let place = key.family | key.encapsulation << 4;
        Key([
            address[0],
            address[1],
            address[2],
            address[3],
            (protocol as u32) << 24 | (place as u32) << 16 | port as u32,
            (key.vlans[0] as u32) << 16 | key.vlans[1] as u32,
            key.tunnel,
        ])
    }

    /// Equality without a branch per word.
    #[inline(always)]
    pub fn same(&self, other: &Key) -> bool {
        let (a, b) = (&self.0, &other.0);
        let differs = (a[0] ^ b[0])
            | (a[1] ^ b[1])
            | (a[2] ^ b[2])
            | (a[3] ^ b[3])
            | (a[4] ^ b[4])
            | (a[5] ^ b[5])
            | (a[6] ^ b[6]);
        differs == 0
    }
}

/// The source and the service of a flow, with their hashes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Ends {
    /// Who started the flow: its IPv4 address, or the /64 of its IPv6 address.
    pub source: Key,
    /// What it goes to.
    pub service: Key,
    /// Hash of the source.
    pub source_hash: u32,
    /// Hash of the service.
    pub service_hash: u32,
}

impl Ends {
    /// The ends of a flow whose initiator is the key's `high` endpoint, or the `low` one. `seed` as in [`crate::hash::hash`].
    #[inline(always)]
    pub fn new(key: &FlowKey, initiator_high: bool, seed: impl Fn(usize) -> u64) -> Ends {
        let (from, to, port) =
            if initiator_high { (key.high, key.low, key.low_port) } else { (key.low, key.high, key.high_port) };
        let port = if has_ports(key.protocol) { port } else { 0 };
        let source = Key::new(network(from, key.family), key, 0, 0);
        let service = Key::new(to, key, key.protocol, port);
        Ends { source_hash: hash_words(&source.0, &seed), service_hash: hash_words(&service.0, &seed), source, service }
    }
}

/// What stands for a source: who has one address of an IPv6 /64 has all of them (RFC 4291 §2.5.4).
#[inline(always)]
const fn network(address: [u32; 4], family: u8) -> [u32; 4] {
    // IPv4 has nothing in the last words.
    let [a, b, c, d] = address;
    let low = if family == 6 { 0 } else { u32::MAX };
    [a, b, c & low, d & low]
}

/// A new flow, ready to be noted.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct NewFlow {
    /// Source and service.
    pub ends: Ends,
    /// Cells that it hits in the source's entry: of its port, or none, and of its host.
    pub source_cells: [u32; 2],
    /// Cells that it hits in the service's entry: of its source, and none.
    pub service_cells: [u32; 2],
}

/// Components of each of a source's two sketches (ports, then hosts).
pub(super) const HALF: usize = COMPONENTS / 2;
/// A cell that is none.
const NONE: u32 = u32::MAX;

impl NewFlow {
    /// As [`Ends::new`].
    #[inline(always)]
    pub fn new(key: &FlowKey, initiator_high: bool, seed: impl Fn(usize) -> u64) -> NewFlow {
        let ends = Ends::new(key, initiator_high, &seed);
        let mut host = ends.service;
        host.0[4] &= 0x00ff_0000;
        let host_cell = cell_of(hash_words(&host.0, &seed), HALF) + (HALF * super::sketch::COMPONENT) as u32;
        let port = ends.service.0[4] & 0xff00_ffff;
        let port_cell = if has_ports(key.protocol) { cell_of(hash_words(&[port], &seed), HALF) } else { NONE };
        NewFlow {
            source_cells: [port_cell, host_cell],
            service_cells: [cell_of(ends.source_hash, COMPONENTS), NONE],
            ends,
        }
    }
}

/// Whether a key's ports are ports (of ICMP they are an identifier).
#[inline(always)]
const fn has_ports(protocol: u8) -> bool {
    matches!(protocol, protocol::TCP | protocol::UDP | protocol::SCTP)
}
