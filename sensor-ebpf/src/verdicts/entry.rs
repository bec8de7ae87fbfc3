//! Entries of the maps of verdicts: which one concerns a packet, its rate, and the sums of what it dropped. Called by `obey`,
//! `screen` and `service`; `allowed` and `source` take the look-up of prefixes.
//!
//! An entry's lock guards its rate alone; the agent writes the rest, and the sums are added to by all CPUs.

use aya_ebpf::helpers::generated::bpf_map_lookup_elem;
use aya_ebpf::maps::LpmTrie;
use sensor_common::counter::InterfaceCounters;
use sensor_common::flow::FlowKey;
use sensor_common::verdict::{Entry, PrefixData, PrefixKey};

use crate::maps::FLOW_VERDICTS;
use crate::table::Visit;
use crate::{atomic, lock};

/// The verdict on a flow, or null.
#[inline(always)]
pub(super) fn flow_entry(key: &FlowKey) -> *mut Entry {
    // A copy: kernels before 6.0 take keys from the stack only.
    let key = *key;
    FLOW_VERDICTS.get_ptr_mut(key).unwrap_or(core::ptr::null_mut())
}

/// The value of the longest prefix around an address, or null.
#[inline(always)]
pub(super) fn prefix_entry<V>(map: &'static LpmTrie<PrefixData, V>, key: &PrefixKey) -> *mut V {
    // aya's own key is packed: it would be put together byte by byte.
    // SAFETY: the key is of the map's size.
    unsafe { bpf_map_lookup_elem(core::ptr::from_ref(map).cast_mut().cast(), core::ptr::from_ref(key).cast()).cast() }
}

/// What a rate says of a packet: there is none for it …
pub(super) const NONE: u64 = 0;
/// … it is within it …
pub(super) const WITHIN: u64 = 1;
/// … it is beyond it …
pub(super) const OVER: u64 = 2;
/// … or its flow is one that is never dropped.
pub(super) const ALLOWED_FLOW: u64 = 3;

/// Charges a packet to an entry, and counts it there if it is beyond the rate: [`WITHIN`] or [`OVER`].
///
/// # Safety
/// `entry` is a map value.
#[inline(always)]
pub(super) unsafe fn charge(entry: *mut Entry, visit: &Visit, counters: &mut InterfaceCounters) -> u64 {
    // SAFETY: the caller's, and references.
    if unsafe { sensor_charge(entry, visit, counters) } == 0 {
        return WITHIN;
    }
    // SAFETY: the caller's.
    unsafe { acted(entry, visit) };
    OVER
}

/// Charges a packet to the rate of an entry: 1 if it is beyond. If another CPU holds the entry for too long, the packet passes
/// unasked.
///
/// # Safety
/// All pointers are valid, or null; `entry` is a map value.
#[unsafe(no_mangle)]
#[inline(never)]
pub(super) unsafe extern "C" fn sensor_charge(
    entry: *mut Entry,
    visit: *const Visit,
    counters: *mut InterfaceCounters,
) -> u64 {
    if entry.is_null() || visit.is_null() || counters.is_null() {
        return 0;
    }
    // SAFETY: just tested, and the caller's.
    let (visit, counters) = unsafe { (&*visit, &mut *counters) };
    // SAFETY: a map value.
    let sequence_word = unsafe { &raw mut (*entry).sequence };
    // SAFETY: 4 aligned bytes of a map value.
    let Some(sequence) = (unsafe { lock::take(sequence_word) }) else {
        counters.limit_busy += 1;
        return 0;
    };
    // SAFETY: under the entry's lock this CPU is the only writer of the rate.
    let admitted = unsafe { &mut *entry }.admits(visit.packet.segments, visit.packet.frame_len, visit.now_ns);
    // SAFETY: as above.
    unsafe { lock::give_back(sequence_word, sequence) };
    !admitted as u64
}

/// Counts a packet that an entry dropped, or would have.
///
/// # Safety
/// `entry` is a map value.
#[inline(always)]
pub(super) unsafe fn acted(entry: *mut Entry, visit: &Visit) {
    // SAFETY: 8 aligned bytes each of a map value.
    unsafe {
        atomic::add(&raw mut (*entry).packets, 1);
        atomic::add(&raw mut (*entry).bytes, visit.packet.frame_len as u64);
    }
}
