//! The control page: one mmapped record that the agent writes and every program reads.

use bytemuck::{Pod, Zeroable};

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
    /// Reserved, zero.
    pub reserved: [u64; 4],
}

/// `tag_dscp`: leave the DSCP alone.
pub const NO_DSCP: u32 = u32::MAX;

/// Load-time constant `CLOCK`: packets are stamped with `bpf_ktime_get_ns`.
pub const CLOCK_KERNEL: u8 = 0;
/// Load-time constant `CLOCK`: packets are stamped with [`Control::replay_now_ns`].
pub const CLOCK_REPLAY: u8 = 1;
