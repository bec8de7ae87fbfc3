//! Whether the kernel computes the whole numbers of features as the host does: the frame brings numbers and the host's
//! answers, and is dropped if the program's own are the same.

use aya_ebpf::bindings::xdp_action;
use aya_ebpf::macros::xdp;
use aya_ebpf::programs::XdpContext;
use sensor_common::whole::{FRACTION_BITS, Wide, fraction, rate, variance};

/// Where the numbers begin: aligned, behind what could be a link header.
const START: usize = 16;
/// Count, sum, the two halves of the sum of squares; then fraction, rate and both variances.
const WORDS: usize = 8;

/// See the module.
#[xdp]
pub(crate) fn floor_whole(ctx: XdpContext) -> u32 {
    let (start, end) = (ctx.data(), ctx.data_end());
    if start + START + WORDS * 8 > end {
        return xdp_action::XDP_ABORTED;
    }
    // SAFETY: just compared with the frame's end; any bytes are a number.
    let words = unsafe { ((start + START) as *const [u64; WORDS]).read_unaligned() };
    let [count, sum, high, low, part, speed, plain, fine] = words;
    let square = Wide { high, low };
    let same = fraction(sum, count) == part
        && rate(count, sum) == speed
        && variance(count, sum, square, 0) == plain
        && variance(count, sum, square, FRACTION_BITS) == fine;
    if same { xdp_action::XDP_DROP } else { xdp_action::XDP_PASS }
}
