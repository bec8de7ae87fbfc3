//! The instructions that the datapath needs and Rust does not offer. `core::sync::atomic` has no compare-and-swap for this target,
//! and the compiler's intrinsics change from release to release; the instructions themselves (kernel 5.12) do not.
//! Each block may touch memory, so the compiler keeps no copy across it.

use core::arch::asm;
use core::sync::atomic::{Ordering, compiler_fence};

use crate::maps::STRONG_ORDER;

/// Sets `*word` to `new` if it is `expected`; whether it was. A full barrier.
///
/// # Safety
/// `word` points to 4 aligned bytes of a map value.
#[inline(always)]
pub(crate) unsafe fn swap_if(word: *mut u32, expected: u32, new: u32) -> bool {
    let found: u64;
    // SAFETY: the caller's `word` is a map value; the instruction reads and writes these 4 bytes alone.
    unsafe {
        asm!(
            "w0 = cmpxchg32_32({word} + 0, w0, {new})",
            word = in(reg) word,
            new = in(wreg) new,
            inout("r0") expected as u64 => found,
        );
    }
    found as u32 == expected
}

/// Adds to `*word`, whoever else does at the same time.
///
/// # Safety
/// `word` points to 8 aligned bytes of a map value.
#[inline(always)]
pub(crate) unsafe fn add(word: *mut u64, value: u64) {
    // SAFETY: the caller's `word` is a map value; the instruction reads and writes these 8 bytes alone.
    unsafe { asm!("lock *(u64 *)({word} + 0) += {value}", word = in(reg) word, value = in(reg) value) }
}

/// The same for 4 bytes.
///
/// # Safety
/// `word` points to 4 aligned bytes of a map value.
#[inline(always)]
pub(crate) unsafe fn add_word(word: *mut u32, value: u32) {
    // SAFETY: the caller's `word` is a map value; the instruction reads and writes these 4 bytes alone.
    unsafe { asm!("lock *(u32 *)({word} + 0) += {value}", word = in(reg) word, value = in(wreg) value) }
}

/// Stores `value` so that whoever sees it also sees every earlier store: gives a lock back.
///
/// # Safety
/// `word` points to 4 aligned bytes of a map value.
#[inline(always)]
pub(crate) unsafe fn release(word: *mut u32, value: u32) {
    if STRONG_ORDER.load() != 0 {
        // Stores are not reordered on this CPU; only the compiler has to be held back.
        compiler_fence(Ordering::Release);
        // SAFETY: the caller's `word` is a map value.
        unsafe { word.write_volatile(value) };
    } else {
        // SAFETY: the caller's `word` is a map value; an exchange is a full barrier.
        unsafe {
            asm!("{value} = xchg32_32({word} + 0, {value})", word = in(reg) word, value = inout(wreg) value => _)
        };
    }
}

/// The same number, with all that the compiler knows of it forgotten: it would drop a mask that it can prove useless,
/// while the verifier, which knows less, needs to see it.
#[inline(always)]
pub(crate) fn opaque(value: u64) -> u64 {
    let mut value = value;
    // SAFETY: a move to itself. (An empty block would leave two lines of debug information on one instruction, which the
    // kernel refuses.)
    unsafe { asm!("{value} = {value}", value = inout(reg) value, options(pure, nomem, nostack, preserves_flags)) };
    value
}
