//! A flow's record as the programs change it: [`FlowRecord`]'s own functions, each as a global function of BPF (see
//! [`crate::table`]), one after the other, so that they share a stack. Callers hold the record's lock.

use aya_ebpf::bindings::BPF_RB_NO_WAKEUP;
use sensor_common::counter::InterfaceCounters;
use sensor_common::flow::{FlowRecord, Quick};
use sensor_common::packet::protocol;
use sensor_common::table::{Bucket, occupied_ways};

use crate::maps::EVICTED;
use crate::table::Visit;

/// A new connection on the tuple of a closed one: the old record goes to the agent, the slot stays.
#[inline(always)]
pub(crate) fn restart(record: &mut FlowRecord, bucket: &Bucket, visit: &Visit, counters: &mut InterfaceCounters) {
    evict(record, counters);
    // Its own way held the connection that is over.
    start(record, visit, occupied_ways(&bucket.tags).saturating_sub(1));
    count(record, visit);
    counters.flows_created += 1;
}

/// [`FlowRecord::update`]; whether the flow's stage may have changed.
#[inline(always)]
pub(crate) fn update(record: &mut FlowRecord, visit: &Visit) -> bool {
    match record.quick(&visit.packet, visit.now_ns) {
        Quick::Counted => return false,
        Quick::Stage => {}
        Quick::No => count(record, visit),
    }
    true
}

/// The long way of [`FlowRecord::update`] in its parts: each verified once, and one after the other, so that they share a
/// stack.
#[inline(always)]
pub(crate) fn count(record: &mut FlowRecord, visit: &Visit) {
    // SAFETY: both pointers come from references.
    unsafe { sensor_count(record, visit) };
    if visit.packet.key.protocol == protocol::TCP {
        // SAFETY: as above.
        unsafe { sensor_follow(record, visit) };
    }
    if visit.packet.payload_len > 0 {
        // SAFETY: as above.
        if unsafe { sensor_look(record, visit) } != 0 {
            // SAFETY: as above.
            unsafe { sensor_hint(record, visit) };
        }
    }
    record.settle();
}

/// See [`count`].
///
/// # Safety
/// Both pointers are valid, or null.
#[unsafe(no_mangle)]
#[inline(never)]
unsafe extern "C" fn sensor_count(record: *mut FlowRecord, visit: *const Visit) -> u64 {
    if record.is_null() || visit.is_null() {
        return 1;
    }
    // SAFETY: just tested, and the caller's; the caller holds the record's lock.
    let (record, visit) = unsafe { (&mut *record, &*visit) };
    record.count(&visit.packet, visit.now_ns);
    0
}

/// See [`count`].
///
/// # Safety
/// Both pointers are valid, or null.
#[unsafe(no_mangle)]
#[inline(never)]
unsafe extern "C" fn sensor_follow(record: *mut FlowRecord, visit: *const Visit) -> u64 {
    if record.is_null() || visit.is_null() {
        return 1;
    }
    // SAFETY: just tested, and the caller's; the caller holds the record's lock.
    let (record, visit) = unsafe { (&mut *record, &*visit) };
    record.follow(&visit.packet);
    0
}

/// See [`count`].
///
/// # Safety
/// Both pointers are valid, or null.
#[unsafe(no_mangle)]
#[inline(never)]
unsafe extern "C" fn sensor_look(record: *mut FlowRecord, visit: *const Visit) -> u64 {
    if record.is_null() || visit.is_null() {
        return 0;
    }
    // SAFETY: just tested, and the caller's; the caller holds the record's lock.
    let (record, visit) = unsafe { (&mut *record, &*visit) };
    record.look(&visit.packet) as u64
}

/// See [`count`].
///
/// # Safety
/// Both pointers are valid, or null.
#[unsafe(no_mangle)]
#[inline(never)]
unsafe extern "C" fn sensor_hint(record: *mut FlowRecord, visit: *const Visit) -> u64 {
    if record.is_null() || visit.is_null() {
        return 1;
    }
    // SAFETY: just tested, and the caller's; the caller holds the record's lock.
    let (record, visit) = unsafe { (&mut *record, &*visit) };
    record.hint(&visit.packet);
    0
}

/// [`FlowRecord::start`] with the next generation, verified once.
#[inline(always)]
pub(crate) fn start(record: &mut FlowRecord, visit: &Visit, occupied_ways: u32) {
    // SAFETY: both pointers come from references.
    unsafe { sensor_start(record, visit, occupied_ways) };
}

/// See [`start`].
///
/// # Safety
/// Both pointers are valid, or null.
#[unsafe(no_mangle)]
#[inline(never)]
unsafe extern "C" fn sensor_start(record: *mut FlowRecord, visit: *const Visit, occupied_ways: u32) -> u64 {
    if record.is_null() || visit.is_null() {
        return 1;
    }
    // SAFETY: just tested, and the caller's; the caller holds the record's lock.
    let (record, visit) = unsafe { (&mut *record, &*visit) };
    let generation = record.generation.wrapping_add(1);
    record.start(&visit.packet, visit.now_ns, visit.ifindex, generation);
    record.born_among(occupied_ways);
    0
}

/// Hands a record to the agent before it is overwritten, or counts what the agent will not see.
#[inline(always)]
pub(crate) fn evict(record: &FlowRecord, counters: &mut InterfaceCounters) {
    // SAFETY: the record is `size_of::<FlowRecord>()` bytes of a map value, which the helper copies.
    let sent = unsafe {
        aya_ebpf::helpers::generated::bpf_ringbuf_output(
            (&raw const EVICTED).cast_mut().cast(),
            core::ptr::from_ref(record).cast_mut().cast(),
            size_of::<FlowRecord>() as u64,
            BPF_RB_NO_WAKEUP as u64,
        )
    };
    if sent == 0 {
        counters.evicted += 1;
    } else {
        counters.evicted_lost_flows += 1;
        counters.evicted_lost_packets += record.frames();
    }
}
