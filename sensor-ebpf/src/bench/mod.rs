//! What only benches need, and only their object has (cargo feature `bench`): the programs that `cargo xtask bench` measures beside the
//! real ones, and in the real ones the two functions here. The agent's object has [`off.rs`](off.rs) in place of this.

use aya_ebpf::Global;
use aya_ebpf::programs::XdpContext;
use sensor_common::cut::Cut;

mod aggregate;
mod floor;
mod shared;
mod vary;
mod whole;

/// How far packets go, a number of [`Cut`], 0 = to the end.
#[unsafe(no_mangle)]
static CUT: Global<u8> = Global::new(0);

/// Makes the frame the next one of its kind, if it asks for that.
#[inline(always)]
pub(crate) fn vary(ctx: &XdpContext) {
    vary::next(ctx);
}

/// Whether packets go no farther.
#[inline(always)]
pub(crate) fn cut(at: Cut) -> bool {
    CUT.load() == at as u8
}
