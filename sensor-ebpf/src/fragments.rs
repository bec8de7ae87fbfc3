//! The fragment table in the kernel: a map of [`fragment::Slot`]s, each with its own lock, which is tried a bounded
//! number of times. Whoever does not get it goes on without: a first fragment is not remembered, a later one counted.

use sensor_common::fragment;
use sensor_common::packet::{Packet, mark};

use crate::lock;
use crate::maps::{FRAGMENTS, seed};

/// Passes a fragment by the table: a first one is remembered, a later one gets its flow; false if that is not known.
#[inline(always)]
pub(crate) fn pass(packet: &mut Packet, now_ns: u64) -> bool {
    // SAFETY: a reference.
    unsafe { sensor_fragment(packet, now_ns, 1) != 0 }
}

/// As [`pass`], but nothing is remembered: for those who see what was counted already.
#[inline(always)]
pub(crate) fn look_up(packet: &mut Packet, now_ns: u64) -> bool {
    // SAFETY: a reference.
    unsafe { sensor_fragment(packet, now_ns, 0) != 0 }
}

/// See [`pass`].
///
/// # Safety
/// The packet is valid, or null.
#[unsafe(no_mangle)]
#[inline(never)]
unsafe extern "C" fn sensor_fragment(packet: *mut Packet, now_ns: u64, store: u32) -> u64 {
    if packet.is_null() {
        return 0;
    }
    // SAFETY: just tested, and the caller's.
    let packet = unsafe { &mut *packet };
    let first = packet.marks & mark::LATER_FRAGMENT == 0;
    if first && store == 0 {
        return 1;
    }
    let datagram = fragment::datagram(packet);
    let Some(slot) = FRAGMENTS.get_ptr_mut(fragment::slot_of(&datagram, seed)) else { return first as u64 };
    // SAFETY: a map value.
    let word = unsafe { &raw mut (*slot).sequence };
    // SAFETY: 4 aligned bytes of a map value.
    let Some(sequence) = (unsafe { lock::take(word) }) else { return first as u64 };
    // SAFETY: a map value, whose lock this CPU holds.
    let slot = unsafe { &mut *slot };
    let known = if first {
        slot.store(&datagram, packet, now_ns);
        true
    } else {
        slot.resolve(&datagram, packet, now_ns)
    };
    // SAFETY: as above.
    unsafe { lock::give_back(word, sequence) };
    known as u64
}
