//! Counters of the programs: what was seen, per interface, direction and action, and why a packet is in no record.
//!
//! One [`InterfaceCounters`] per interface slot and CPU. The identity that the agent checks and tests hold:
//! `Σ packets = packets in records + dropped + Σ unrecorded[cause]`, in frames as the hook saw them.

use bytemuck::{Pod, Zeroable};

use crate::verdict::{Action, Origin};

/// The least and the most interfaces that the counters' table can have slots for; a power of two, set at load.
pub const MIN_INTERFACES: u32 = 64;
/// See [`MIN_INTERFACES`]. Each CPU has counters for every slot.
pub const MAX_INTERFACES: u32 = 4096;
/// Stands in place of an interface's number in a slot that one had and gave back. A look-up goes on behind it, and ends at a slot
/// that nobody ever had.
pub const FREED: u32 = u32::MAX;

/// Entries of the counters' table with so many slots. In the last one the counters of interfaces are added up that were watched
/// and are not any more: behind the slots, so that no program finds it. Their packets stay part of the sums, as they stay in
/// records.
pub const fn counter_entries(slots: u32) -> u32 {
    slots + 1
}

/// Direction of a packet at an interface.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
#[repr(u8)]
pub enum Hook {
    /// Received by the interface (XDP).
    Ingress = 0,
    /// Sent by the interface (TC).
    Egress = 1,
}

impl Hook {
    /// Every hook, in the order of its number.
    pub const ALL: [Hook; 2] = [Hook::Ingress, Hook::Egress];
    /// The name in metrics.
    pub const fn name(self) -> &'static str {
        match self {
            Hook::Ingress => "ingress",
            Hook::Egress => "egress",
        }
    }
}

/// Why a packet that was seen is in no flow record. Every such packet was passed.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
#[repr(u8)]
pub enum Cause {
    /// Not IPv4 or IPv6 (ARP, LLDP, 802.3 …); in captures also: of a link type that is not read.
    NotIp = 0,
    /// The frame ends inside the link header.
    TruncatedLink = 1,
    /// The frame ends before the IP header or datagram does.
    TruncatedNetwork = 2,
    /// The frame ends inside the transport header.
    TruncatedTransport = 3,
    /// IP header with impossible version or lengths.
    MalformedNetwork = 4,
    /// Transport header with impossible lengths.
    MalformedTransport = 5,
    /// More than two VLAN tags.
    VlanDepth = 6,
    /// IPv6 extension headers beyond what is followed.
    HeaderChain = 7,
    /// A fragment behind the first, of a datagram whose first fragment is not known: it carries no ports.
    Fragment = 8,
    /// Forwarded by this host and counted when it came in.
    Forwarded = 9,
    /// New flow, but every way of its bucket holds an active flow with history.
    BucketFull = 10,
    /// New flow, but another CPU held the bucket's lock for too long.
    BucketBusy = 11,
    /// Another writer held the record's lock for too long.
    RecordBusy = 12,
    /// A map look-up that cannot fail failed.
    Internal = 13,
}

impl Cause {
    /// Number of causes.
    pub const COUNT: usize = 14;

    /// Every cause, in the order of its number.
    pub const ALL: [Cause; Cause::COUNT] = [
        Cause::NotIp,
        Cause::TruncatedLink,
        Cause::TruncatedNetwork,
        Cause::TruncatedTransport,
        Cause::MalformedNetwork,
        Cause::MalformedTransport,
        Cause::VlanDepth,
        Cause::HeaderChain,
        Cause::Fragment,
        Cause::Forwarded,
        Cause::BucketFull,
        Cause::BucketBusy,
        Cause::RecordBusy,
        Cause::Internal,
    ];

    /// The cause of a number; [`Cause::Internal`] of a number that is none.
    #[inline(always)]
    pub const fn from_number(number: u8) -> Cause {
        match number {
            0 => Cause::NotIp,
            1 => Cause::TruncatedLink,
            2 => Cause::TruncatedNetwork,
            3 => Cause::TruncatedTransport,
            4 => Cause::MalformedNetwork,
            5 => Cause::MalformedTransport,
            6 => Cause::VlanDepth,
            7 => Cause::HeaderChain,
            8 => Cause::Fragment,
            9 => Cause::Forwarded,
            10 => Cause::BucketFull,
            11 => Cause::BucketBusy,
            12 => Cause::RecordBusy,
            _ => Cause::Internal,
        }
    }

    /// The stage that could not go on, as in metrics.
    pub const fn stage(self) -> &'static str {
        match self {
            Cause::NotIp
            | Cause::TruncatedLink
            | Cause::TruncatedNetwork
            | Cause::TruncatedTransport
            | Cause::MalformedNetwork
            | Cause::MalformedTransport
            | Cause::VlanDepth
            | Cause::HeaderChain
            | Cause::Fragment
            | Cause::Forwarded => "parse",
            Cause::BucketFull | Cause::BucketBusy => "insert",
            Cause::RecordBusy | Cause::Internal => "update",
        }
    }

    /// The name in metrics.
    pub const fn name(self) -> &'static str {
        match self {
            Cause::NotIp => "not_ip",
            Cause::TruncatedLink => "truncated_link",
            Cause::TruncatedNetwork => "truncated_network",
            Cause::TruncatedTransport => "truncated_transport",
            Cause::MalformedNetwork => "malformed_network",
            Cause::MalformedTransport => "malformed_transport",
            Cause::VlanDepth => "vlan_depth",
            Cause::HeaderChain => "header_chain",
            Cause::Fragment => "fragment",
            Cause::Forwarded => "forwarded",
            Cause::BucketFull => "bucket_full",
            Cause::BucketBusy => "bucket_busy",
            Cause::RecordBusy => "record_busy",
            Cause::Internal => "internal",
        }
    }
}

/// Packets and frame bytes.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Pod, Zeroable)]
#[repr(C)]
pub struct Volume {
    /// Frames as the hook saw them (a super-packet is one).
    pub packets: u64,
    /// Frame bytes, link header included.
    pub bytes: u64,
}

/// Slots of a table indexed by [`Cause`]: a power of two, so that a masked index is in bounds without a branch, with
/// room for causes of later versions.
pub const CAUSE_SLOTS: usize = 32;
/// Slots of a table indexed by [`Action`], likewise.
pub const ACTION_SLOTS: usize = 4;

/// Slots of a table indexed by [`Origin`], likewise.
pub const ORIGIN_SLOTS: usize = 4;

const _: () = assert!(Cause::COUNT <= CAUSE_SLOTS && Action::ALL.len() <= ACTION_SLOTS);
const _: () = assert!(Origin::ALL.len() <= ORIGIN_SLOTS);

/// The slot, of so many (a power of two), where interface `ifindex` is looked for at the `attempt`-th try (0 ≤ attempt <
/// [`INTERFACE_PROBES`]).
///
/// Numbers in sequence, as the kernel gives them, have slots of their own. Two that have the same first slot go different ways
/// from there, so that the slots of interfaces that stay for long do not form runs.
#[inline(always)]
pub const fn interface_slot(ifindex: u32, attempt: u32, slots: u32) -> u32 {
    let step = (ifindex / MIN_INTERFACES).wrapping_mul(2).wrapping_add(1);
    ifindex.wrapping_add(attempt.wrapping_mul(step)) & slots.wrapping_sub(1)
}

/// Slots that are tried for an interface.
pub const INTERFACE_PROBES: u32 = 8;

/// Counters of one interface on one CPU.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Pod, Zeroable)]
#[repr(C)]
pub struct InterfaceCounters {
    /// The interface these counters belong to; 0: the slot was never used; [`FREED`]: it is not in use any more.
    pub ifindex: u32,
    /// The slot itself: its bit in [`crate::control::Control::exempt`].
    pub slot: u32,
    /// All packets seen, by hook and action that was taken.
    pub seen: [[Volume; ACTION_SLOTS]; 2],
    /// Of these, packets in no record, by cause.
    pub unrecorded: [u64; CAUSE_SLOTS],
    /// Flow records started.
    pub flows_created: u64,
    /// Flow records given up for a new flow and handed to the agent whole.
    pub evicted: u64,
    /// Packets in records that were given up while the ring to the agent was full: counted here, lost to the agent.
    pub evicted_lost_packets: u64,
    /// Records given up while the ring to the agent was full.
    pub evicted_lost_flows: u64,
    /// Packets that `sensor_tag` marked.
    pub tagged: u64,
    /// Packets whose verdict was not obeyed because the agent's lease had run out.
    pub lease_expired: u64,
    /// Entries of the host context that were given up although they had flows in the last 60 s.
    pub context_replaced: u64,
    /// New flows that the host context did not count, because another CPU held the set's lock for too long.
    pub context_lost: u64,
    /// Packets whose verdict asks for more than the ceiling of its origin allows, by what mode enforce would have done.
    pub withheld: [Volume; ACTION_SLOTS],
    /// Packets that mode enforce drops, whether they were dropped or withheld, by the number of the verdict's origin.
    pub drops_of: [u64; ORIGIN_SLOTS],
    /// Packets that passed against a verdict because they are on the never-drop list.
    pub protected: u64,
    /// Dropped packets in no record: of blocked flows and sources, which were to begin one, and half-open attempts over
    /// a limit.
    pub dropped_new: u64,
    /// Of these, half-open attempts over the limit of their service or its address.
    pub dropped_half_open: u64,
    /// Packets that passed a rate limit unasked because another CPU held it for too long.
    pub limit_busy: u64,
    /// Zero: room for counters of later versions.
    pub spare: [u64; 8],
}

impl InterfaceCounters {
    /// The interface that has this slot, if one has.
    pub const fn owner(&self) -> Option<u32> {
        match self.ifindex {
            0 | FREED => None,
            ifindex => Some(ifindex),
        }
    }

    /// Adds what another CPU counted for the same interface. Destructured, so that a new counter is not forgotten here.
    pub fn add(&mut self, other: &InterfaceCounters) {
        let InterfaceCounters {
            ifindex: _,
            slot: _,
            seen,
            unrecorded,
            flows_created,
            evicted,
            evicted_lost_packets,
            evicted_lost_flows,
            tagged,
            lease_expired,
            context_replaced,
            context_lost,
            withheld,
            drops_of,
            protected,
            dropped_new,
            dropped_half_open,
            limit_busy,
            spare,
        } = other;
        let volumes = self.seen.iter_mut().flatten().chain(&mut self.withheld);
        for (total, value) in volumes.zip(seen.iter().flatten().chain(withheld)) {
            total.packets += value.packets;
            total.bytes += value.bytes;
        }
        let counts = self.unrecorded.iter_mut().chain(&mut self.drops_of).chain(&mut self.spare);
        for (total, value) in counts.zip(unrecorded.iter().chain(drops_of).chain(spare)) {
            *total += value;
        }
        self.flows_created += flows_created;
        self.evicted += evicted;
        self.evicted_lost_packets += evicted_lost_packets;
        self.evicted_lost_flows += evicted_lost_flows;
        self.tagged += tagged;
        self.lease_expired += lease_expired;
        self.context_replaced += context_replaced;
        self.context_lost += context_lost;
        self.protected += protected;
        self.dropped_new += dropped_new;
        self.dropped_half_open += dropped_half_open;
        self.limit_busy += limit_busy;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// How many interfaces find no slot of 1,024.
    fn without_a_slot(interfaces: impl Iterator<Item = u32>) -> usize {
        let mut taken = [false; 1024];
        let none = |ifindex: &u32| {
            let mut slots = (0..INTERFACE_PROBES).map(|attempt| interface_slot(*ifindex, attempt, 1024) as usize);
            slots.find(|slot| !taken[*slot]).map(|slot| taken[slot] = true).is_none()
        };
        interfaces.filter(none).count()
    }

    #[test]
    fn interfaces_in_sequence_fill_all_slots_and_scattered_ones_find_theirs() {
        assert_eq!(without_a_slot(900..900 + 1024), 0);
        let mut state = 1u32;
        let mut scattered = std::iter::repeat_with(|| {
            state = state.wrapping_mul(1_664_525).wrapping_add(1_013_904_223);
            state >> 12
        });
        assert_eq!(without_a_slot(scattered.by_ref().take(300)), 0);
        assert!(without_a_slot(scattered.take(700)) < 14);
        for (slots, ifindex) in [(MIN_INTERFACES, 77), (MAX_INTERFACES, 5_000_001), (1024, i32::MAX as u32)] {
            let mut tried: Vec<_> = (0..INTERFACE_PROBES).map(|n| interface_slot(ifindex, n, slots)).collect();
            assert!(tried.iter().all(|slot| *slot < slots));
            tried.sort_unstable();
            tried.dedup();
            assert_eq!(tried.len(), INTERFACE_PROBES as usize, "{ifindex}");
        }
    }

    #[test]
    fn numbers_are_positions() {
        for (position, cause) in Cause::ALL.iter().enumerate() {
            assert_eq!(*cause as usize, position);
            assert_eq!(Cause::from_number(position as u8), *cause);
        }
        for (position, action) in Action::ALL.iter().enumerate() {
            assert_eq!(*action as usize, position);
        }
        for (position, hook) in Hook::ALL.iter().enumerate() {
            assert_eq!(*hook as usize, position);
        }
    }
}
