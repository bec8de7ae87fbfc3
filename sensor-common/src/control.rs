//! The control page: one mmapped record that the agent writes and every program reads, and the agent's books behind it.

use bytemuck::{Pod, Zeroable};

use crate::counter::MAX_INTERFACES;
use crate::verdict::Action;

/// What the agent tells the programs at run time. Each field is written with one store.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Pod, Zeroable)]
#[repr(C, align(64))]
pub struct Control {
    /// Verdicts are obeyed while the monotonic clock (ns) is below this; the agent moves it on at every poll.
    pub lease_until_ns: u64,
    /// The packet clock (ns) when the programs were loaded with [`CLOCK_REPLAY`].
    pub replay_now_ns: u64,
    /// Value that tagging puts under `tag_mask` of the skb mark.
    pub tag_mark: u32,
    /// Bits of the skb mark that tagging may change; 0 = the mark is left alone.
    pub tag_mask: u32,
    /// DSCP (0–63) that tagging sets, or [`NO_DSCP`].
    pub tag_dscp: u32,
    /// A way whose flow has history is given up for a new flow once idle for this many ticks (see [`crate::table`]).
    pub evict_idle_ticks: u32,
    /// Of each [`crate::verdict::Origin`], the number of the strongest action that is done: 0 (observe), 1 (tag), 3 (enforce).
    /// The last one is that of unknown origins, and stays 0. Written with one 32-bit store.
    pub ceilings: [u8; 4],
    /// Moves on with each change of the never-drop list, after it: 1 to [`crate::verdict::EPOCHS`].
    pub allow_epoch: u32,
    /// Entries of the map of flow verdicts; 0: it is not looked at.
    pub flow_verdicts: u32,
    /// Which maps of verdicts on sources hold any ([`Control::SINGLE_SOURCES`], [`Control::SOURCE_PREFIXES`]); the others are
    /// not looked at.
    pub source_maps: u32,
    /// Entries of the map of limits of half-open attempts, likewise.
    pub service_limits: u32,
    /// 1: sources that complete a handshake are remembered.
    pub note_known: u32,
    /// Whether there is any bit in `exempt`: 1 or 0.
    pub any_exempt: u64,
    /// The agent's books: a line of their own, which programs do not touch.
    pub books: Books,
    /// Interfaces where nothing is dropped or limited, a bit for each slot of the counters' table. Asked of packets under a
    /// verdict only.
    pub exempt: [u64; EXEMPT_WORDS],
    /// Interfaces that may have neighbours with IPv4 link-local addresses, likewise ([`crate::verdict::Link`]).
    pub link_local: [u64; EXEMPT_WORDS],
    /// Zero: room for fields of later versions, to which 0 must mean that nothing is asked.
    pub spare: [u64; SPARE_WORDS],
}

/// Words of [`Control::spare`].
const SPARE_WORDS: usize = 8;

/// Words of [`Control::exempt`].
pub const EXEMPT_WORDS: usize = MAX_INTERFACES as usize / 64;

/// What became of records that are not in the table any more. Here and not in the agent, so that it can be read while the
/// agent stands still, and goes on after it was killed.
///
/// A record moves in steps, and the agent can end between any two of them. So it first notes which record it takes and what
/// the sum will be; whoever takes over finishes what was begun, and no record counts twice or not at all.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Pod, Zeroable)]
#[repr(C, align(64))]
pub struct Books {
    /// Frames in records that the agent released.
    pub released: u64,
    /// Frames in records that were given up for new flows, which the agent took from the ring.
    pub evicted: u64,
    /// The record that is being taken: its slot + 1, or [`Books::FROM_RING`] and a fingerprint; 0 = none.
    pub moving: u64,
    /// What `released` or `evicted` is when it is done.
    pub target: u64,
    /// Zero.
    pub reserved: [u64; 4],
}

impl Books {
    /// [`Books::moving`] is the fingerprint of a record of the ring.
    pub const FROM_RING: u64 = 1 << 63;
}

const _: () = assert!(
    size_of::<Control>() == 128 + (2 * EXEMPT_WORDS + SPARE_WORDS) * 8 && core::mem::offset_of!(Control, books) == 64
);

impl Control {
    /// Bit of [`Control::source_maps`]: there are verdicts on single addresses.
    pub const SINGLE_SOURCES: u32 = 1;
    /// Bit of [`Control::source_maps`]: there are verdicts on prefixes.
    pub const SOURCE_PREFIXES: u32 = 2;

    /// Whether nothing is dropped or limited on the interface that has this slot of the counters' table.
    #[inline(always)]
    pub const fn is_exempt(&self, slot: u32) -> bool {
        self.exempt[(slot / 64) as usize & (EXEMPT_WORDS - 1)] >> (slot & 63) & 1 != 0
    }

    /// Whether the interface that has this slot may have neighbours with IPv4 link-local addresses.
    #[inline(always)]
    pub const fn is_link_local(&self, slot: u32) -> bool {
        self.link_local[(slot / 64) as usize & (EXEMPT_WORDS - 1)] >> (slot & 63) & 1 != 0
    }

    /// The strongest action that is done for verdicts of an origin.
    #[inline(always)]
    pub const fn ceiling(&self, origin: u8) -> Action {
        Action::from_number(if origin < 4 { self.ceilings[origin as usize & 3] } else { 0 })
    }
}

/// `tag_dscp`: leave the DSCP alone.
pub const NO_DSCP: u32 = u32::MAX;

/// Load-time constant `CLOCK`: packets are stamped with `bpf_ktime_get_ns`.
pub const CLOCK_KERNEL: u8 = 0;
/// Load-time constant `CLOCK`: packets are stamped with [`Control::replay_now_ns`].
pub const CLOCK_REPLAY: u8 = 1;
