//! Frames of `cargo xtask bench` that change from run to run: a program run repeats one frame, and one flow whose packets
//! all carry the same sequence number, or one flow at all, is not what a datapath meets. Off unless the bench asks for it.
//!
//! What changes is said by the frame, in the 12 bytes of its link addresses, which nothing else reads:
//! 0–3 counter, 4 where a 32-bit number is (0 = none) to which 8–9 are added, 5 and 6 where the low and the high
//! half of the flow's number are put, 7 bits of the flow's number (0 = one flow), 10 shift: 2^shift packets of each flow
//! come in a row.

use core::arch::asm;

use aya_ebpf::Global;
use aya_ebpf::programs::XdpContext;

/// 1: frames are changed before they are read, as they ask for themselves.
#[unsafe(no_mangle)]
static VARY: Global<u8> = Global::new(0);

/// Link addresses.
const PLAN: usize = 12;

/// A load or store of packet bytes, which need not be aligned.
macro_rules! load {
    ($width:literal, $from:expr) => {{
        let value: u64;
        // SAFETY: the caller tested the bounds.
        unsafe { asm!(concat!("{value} = *(", $width, " *)({from} + 0)"), value = out(reg) value, from = in(reg) $from) };
        value
    }};
}

macro_rules! store {
    ($width:literal, $to:expr, $value:expr) => {
        // SAFETY: the caller tested the bounds.
        unsafe { asm!(concat!("*(", $width, " *)({to} + 0) = {value}"), to = in(reg) $to, value = in(reg) $value) }
    };
}

/// Makes the frame the next one.
#[inline(always)]
pub(super) fn next(ctx: &XdpContext) {
    if VARY.load() == 0 {
        return;
    }
    let (start, end) = (ctx.data(), ctx.data_end());
    if start + PLAN > end {
        return;
    }
    let plan = load!("u32", start + 4);
    let word = start + (plan & 0xff) as usize;
    if plan & 0xff != 0 && word + 4 <= end {
        let sum = (load!("u32", word) as u32).swap_bytes().wrapping_add(load!("u16", start + 8) as u32);
        store!("u32", word, sum.swap_bytes() as u64);
    }
    let bits = plan >> 24 & 0x3f;
    if bits == 0 {
        return;
    }
    let counter = load!("u32", start).wrapping_add(1);
    store!("u32", start, counter);
    // Every number once, in an order that no prefetcher follows.
    let turn = counter >> (load!("u8", start + 10) & 31);
    let number = (turn.wrapping_mul(0x9e37_79b9) & 0xffff_ffff) >> (32 - bits);
    let (low, high) = (start + (plan >> 8 & 0xff) as usize, start + (plan >> 16 & 0xff) as usize);
    if low + 2 <= end {
        store!("u16", low, number);
    }
    if bits > 16 && high + 2 <= end {
        store!("u16", high, number >> 16);
    }
}
