//! Sequence locks ([`sensor_common::lock`]) as the programs take them: one try in place, which is all that an uncontended packet
//! pays for, and a wait in a function of its own behind it. A packet waits for [`LOCK_PATIENCE_NS`] at most, or [`BRIEF_NS`];
//! whoever does not get the lock goes on without, and counts that.
//!
//! Who holds a lock needs less than a microsecond, unless its CPU is taken away (by a hypervisor, or the agent's thread by
//! the scheduler, or for less than that by an interrupt). Who has waited in vain counts that in the word, and behind three nobody
//! waits for that holder: a stall of any length delays traffic by three waits, not by one for each packet. A lock that many CPUs
//! want all the time is another matter: each waits for its turn.

use aya_ebpf::helpers::bpf_ktime_get_ns;
use sensor_common::lock::{IN_VAIN, STALLED, STEP, TAKEN};

use crate::atomic;
use crate::maps::LOCK_PATIENCE_NS;

/// How often a lock is looked at in that time at most: the verifier walks the loop. Between two looks the clock is read, which
/// takes some 20 ns and leaves the line to its holder. (More than 2,700 are too many branches for it.)
const LOOKS: u32 = 1024;
/// How long a packet waits where little is lost without the lock, and where a flood of new flows from all CPUs meets, ns.
const BRIEF_NS: u64 = 1000;
/// What [`sensor_wait`] returns if the lock was not to be had; else it is the word.
const BUSY: u64 = 1 << 32;

/// Takes the lock; the (free) word that [`give_back`] moves on.
///
/// # Safety
/// `word` points to 4 aligned bytes of a map value.
#[inline(always)]
pub(crate) unsafe fn take(word: *mut u32) -> Option<u32> {
    // SAFETY: the caller's.
    unsafe { take_within(word, LOCK_PATIENCE_NS.load()) }
}

/// As [`take`], with less patience.
///
/// # Safety
/// As [`take`].
#[inline(always)]
pub(crate) unsafe fn take_briefly(word: *mut u32) -> Option<u32> {
    // SAFETY: the caller's.
    unsafe { take_within(word, BRIEF_NS) }
}

#[inline(always)]
unsafe fn take_within(word: *mut u32, patience_ns: u64) -> Option<u32> {
    // SAFETY: the caller's; volatile, because other CPUs write it.
    let free = unsafe { word.read_volatile() };
    // SAFETY: the caller's.
    if free & TAKEN == 0 && unsafe { atomic::swap_if(word, free, free | TAKEN) } {
        return Some(free);
    }
    // SAFETY: the caller's.
    let answer = unsafe { sensor_wait(word, patience_ns) };
    if answer & BUSY == 0 { Some(answer as u32) } else { None }
}

/// Takes a lock that another CPU had a moment ago, within `patience_ns`: the free word, or [`BUSY`].
///
/// # Safety
/// The pointer is valid, or null; to 4 aligned bytes of a map value.
#[unsafe(no_mangle)]
#[inline(never)]
unsafe extern "C" fn sensor_wait(word: *mut u32, patience_ns: u64) -> u64 {
    if word.is_null() {
        return BUSY;
    }
    // SAFETY: a helper without arguments.
    let end = unsafe { bpf_ktime_get_ns() }.wrapping_add(patience_ns);
    // SAFETY: just tested, and the caller's; volatile, because other CPUs write it.
    let first = unsafe { word.read_volatile() };
    let mut seen = first;
    for _ in 0..LOOKS {
        // SAFETY: as above.
        if seen & TAKEN == 0 && unsafe { atomic::swap_if(word, seen, seen | TAKEN) } {
            return seen as u64;
        }
        // SAFETY: a helper without arguments.
        if seen & STALLED == STALLED || unsafe { bpf_ktime_get_ns() } >= end {
            break;
        }
        // SAFETY: as above.
        seen = unsafe { word.read_volatile() };
    }
    // One holder all the time. If it goes at this moment, nothing is changed.
    if seen & TAKEN != 0 && seen & STALLED != STALLED && seen | STALLED == first | STALLED {
        // SAFETY: as above.
        unsafe { atomic::swap_if(word, seen, seen + IN_VAIN) };
    }
    BUSY
}

/// The free word of a lock that this CPU holds, read again: to keep it from [`take`] on can take stack where there is none.
///
/// # Safety
/// `word` points to 4 aligned bytes of a map value, and this CPU holds the lock: nobody else moves the word on then, but may
/// count in it.
#[inline(always)]
pub(crate) unsafe fn free_word(word: *const u32) -> u32 {
    // SAFETY: the caller's; volatile, because others count in it that they waited in vain.
    unsafe { word.read_volatile() & !(TAKEN | STALLED) }
}

/// Gives the lock back.
///
/// # Safety
/// `word` points to 4 aligned bytes of a map value, and this CPU holds the lock; `free` is what [`take`]
/// gave, or [`free_word`] since.
#[inline(always)]
pub(crate) unsafe fn give_back(word: *mut u32, free: u32) {
    // SAFETY: the caller's.
    unsafe { atomic::release(word, free.wrapping_add(STEP)) };
}
