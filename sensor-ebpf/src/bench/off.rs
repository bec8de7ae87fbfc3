//! Nothing of benches: what the agent's object has in place of `mod.rs`.

use aya_ebpf::programs::XdpContext;
use sensor_common::cut::Cut;

/// Frames are what they are.
#[inline(always)]
pub(crate) fn vary(_: &XdpContext) {}

/// Packets go to the end.
#[inline(always)]
pub(crate) fn cut(_: Cut) -> bool {
    false
}
