//! Sequence locks: a word of a map value that is odd while a writer is inside, and moves on with each. Tried a bounded
//! number of times; whoever does not get it goes on without, and counts that.

use crate::atomic;

/// How often a lock is tried.
pub(crate) const TRIES: u32 = 64;

/// Takes the lock; the (even) sequence that [`give_back`] moves on.
///
/// # Safety
/// `word` points to 4 aligned bytes of a map value.
#[inline(always)]
pub(crate) unsafe fn take(word: *mut u32) -> Option<u32> {
    for _ in 0..TRIES {
        // SAFETY: the caller's; volatile, because other CPUs write it.
        let sequence = unsafe { word.read_volatile() };
        // SAFETY: the caller's.
        if sequence & 1 == 0 && unsafe { atomic::swap_if(word, sequence, sequence.wrapping_add(1)) } {
            return Some(sequence);
        }
    }
    None
}

/// Gives the lock back.
///
/// # Safety
/// `word` points to 4 aligned bytes of a map value, and this CPU holds the lock, which [`take`] gave with `sequence`.
#[inline(always)]
pub(crate) unsafe fn give_back(word: *mut u32, sequence: u32) {
    // SAFETY: the caller's.
    unsafe { atomic::release(word, sequence.wrapping_add(2)) };
}
