//! Fragments behind the first find their flow: the first fragment of a datagram leaves its ports here, under what all
//! fragments of the datagram carry (RFC 791, RFC 8200: addresses, identification, and for IPv4 the protocol).
//!
//! A direct-mapped table: the hash is seeded, a new datagram takes the slot, whoever was there, and an entry is good for
//! [`TIMEOUT_NS`], before and after: a clock may step back, and a slot from its future would never be too old. Nobody waits for fragments: one that comes before the first, or finds its slot taken, is counted as
//! [`Cause::Fragment`]. Called between parser and flow table; the kernel keeps the slots in a map and takes
//! [`Slot::sequence`] as a lock, the host has `Fragments`.

use bytemuck::{Pod, Zeroable};

#[cfg(any(feature = "std", test))]
use crate::counter::Cause;
use crate::flow::FlowKey;
use crate::hash;
use crate::packet::{Packet, extension, mark, protocol};

/// Slots of the table, a power of two.
pub const SLOTS: u32 = 4096;
/// How long a datagram's fragments find their flow after the first one: the time that Linux takes to give up reassembly.
pub const TIMEOUT_NS: u64 = 30_000_000_000;

/// What is known of one datagram.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Pod, Zeroable)]
#[repr(C)]
pub struct Slot {
    /// The kernel's sequence lock ([`crate::lock`]).
    pub sequence: u32,
    /// Source port.
    src_port: u16,
    /// Destination port.
    dst_port: u16,
    /// Arrival of the first fragment, ns.
    first_ns: u64,
    /// The datagram, see [`datagram`]; of family 0 if there is none.
    datagram: FlowKey,
    /// Transport protocol, which later IPv6 fragments need not carry.
    protocol: u32,
    /// Reserved, zero.
    reserved: u32,
}

#[cfg(any(feature = "std", test))]
crate::schema::layout!(Slot { sequence, src_port, dst_port, first_ns, datagram, protocol, reserved });

/// What all fragments of `packet`'s datagram share, as a key: `low` is the source, and the identification stands for the
/// ports.
#[inline(always)]
pub fn datagram(packet: &Packet) -> FlowKey {
    let mut key = packet.key;
    key.exchange_addresses((packet.from_low as u32).wrapping_sub(1));
    key.low_port = (packet.fragment_id >> 16) as u16;
    key.high_port = packet.fragment_id as u16;
    // The protocol that the IP header names. Later IPv6 fragments name what follows the first one's fragment header.
    if key.family == 6 {
        key.protocol = 0;
    } else if packet.extensions & extension::AH != 0 {
        key.protocol = protocol::AH;
    }
    key
}

/// The slot of a datagram. `seed`: see [`hash::hash`].
#[inline(always)]
pub fn slot_of(datagram: &FlowKey, seed: impl Fn(usize) -> u64) -> u32 {
    hash::hash(datagram, seed) & (SLOTS - 1)
}

impl Slot {
    /// Remembers the flow of a first fragment.
    #[inline(always)]
    pub fn store(&mut self, datagram: &FlowKey, packet: &Packet, now_ns: u64) {
        let FlowKey { low_port, high_port, protocol, .. } = packet.key;
        (self.src_port, self.dst_port) = if packet.from_low { (low_port, high_port) } else { (high_port, low_port) };
        self.first_ns = now_ns;
        self.datagram = *datagram;
        self.protocol = protocol as u32;
    }

    /// Gives a later fragment the ports and protocol of the first; whether that one is known.
    #[inline(always)]
    pub fn resolve(&self, datagram: &FlowKey, packet: &mut Packet, now_ns: u64) -> bool {
        if !self.datagram.same(datagram) || now_ns.abs_diff(self.first_ns) > TIMEOUT_NS {
            return false;
        }
        packet.key.exchange_addresses((packet.from_low as u32).wrapping_sub(1));
        packet.key.low_port = self.src_port;
        packet.key.high_port = self.dst_port;
        packet.key.protocol = self.protocol as u8;
        packet.from_low = packet.key.order();
        true
    }
}

/// Whether the table has something to do with this packet.
#[inline(always)]
pub fn concerns(packet: &Packet) -> bool {
    packet.marks & mark::FRAGMENT != 0
}

/// The table on the host.
#[cfg(any(feature = "std", test))]
#[derive(Clone, Debug)]
pub struct Fragments {
    slots: Vec<Slot>,
    seed: hash::Seed,
}

#[cfg(any(feature = "std", test))]
impl Fragments {
    /// An empty table (300 kB). The same seed as the kernel's gives the same collisions.
    pub fn new(seed: hash::Seed) -> Fragments {
        Fragments { slots: vec![Slot::zeroed(); SLOTS as usize], seed }
    }

    /// Passes a packet by the table: a first fragment is remembered, a later one gets its flow.
    ///
    /// # Errors
    /// [`Cause::Fragment`] for a later fragment whose first one is not known.
    pub fn pass(&mut self, packet: &mut Packet, now_ns: u64) -> Result<(), Cause> {
        if !concerns(packet) {
            return Ok(());
        }
        let datagram = datagram(packet);
        let slot = &mut self.slots[slot_of(&datagram, |position| self.seed[position]) as usize];
        if packet.marks & mark::LATER_FRAGMENT == 0 {
            slot.store(&datagram, packet, now_ns);
            Ok(())
        } else if slot.resolve(&datagram, packet, now_ns) {
            Ok(())
        } else {
            Err(Cause::Fragment)
        }
    }
}

impl Default for Slot {
    fn default() -> Slot {
        Slot::zeroed()
    }
}
