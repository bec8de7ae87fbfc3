//! A flow's record as the programs change it: [`FlowRecord`]'s own functions, each as a global function of BPF (see
//! [`crate::table`]), one after the other, so that they share a stack. Callers hold the record's lock.

use aya_ebpf::bindings::BPF_RB_NO_WAKEUP;
use sensor_common::counter::InterfaceCounters;
use sensor_common::flow::{FlowRecord, Quick, note};
use sensor_common::packet::protocol;
use sensor_common::table::{Bucket, occupied_ways, stage_of};

use crate::maps::{EVICTED, counters};
use crate::table::Visit;

/// The stage byte of a record.
#[inline(always)]
pub(crate) fn stage(record: &FlowRecord) -> u8 {
    // SAFETY: a reference.
    unsafe { sensor_stage(record) as u8 }
}

/// See [`stage`]. A function of its own: it takes stack where there is little, and few packets come here.
///
/// # Safety
/// The pointer is valid, or null.
#[unsafe(no_mangle)]
#[inline(never)]
unsafe extern "C" fn sensor_stage(record: *const FlowRecord) -> u64 {
    if record.is_null() {
        return 0;
    }
    // SAFETY: just tested, and the caller's; the caller holds the record's lock.
    let record = unsafe { &*record };
    stage_of(record.packets(), record.phase()) as u64
}

/// What a packet with SYN is to the record of its tuple: [`REOPENS`] ([`FlowRecord::is_reopened_by`]), [`SUPERSEDES`]
/// ([`FlowRecord::is_superseded_by`]), or 0.
#[inline(always)]
pub(crate) fn news(record: &FlowRecord, visit: &Visit) -> u64 {
    // SAFETY: references.
    unsafe { sensor_news(record, visit) }
}

/// See [`news`].
pub(crate) const SUPERSEDES: u64 = 1;
/// See [`news`].
pub(crate) const REOPENS: u64 = 2;

/// See [`news`]. Programs on other CPUs may write the record meanwhile, unless the caller holds its lock.
///
/// # Safety
/// Both pointers are valid, or null.
#[unsafe(no_mangle)]
#[inline(never)]
unsafe extern "C" fn sensor_news(record: *const FlowRecord, visit: *const Visit) -> u64 {
    if record.is_null() || visit.is_null() {
        return 0;
    }
    // SAFETY: just tested, and the caller's.
    let (record, visit) = unsafe { (&*record, &*visit) };
    if record.is_reopened_by(&visit.packet) {
        return REOPENS;
    }
    if record.is_superseded_by(&visit.packet) { SUPERSEDES } else { 0 }
}

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
        Quick::No => {
            if record.steady & note::DUE != 0 {
                // SAFETY: both pointers come from references.
                unsafe { sensor_cut(record, visit) };
            }
            count(record, visit);
        }
    }
    true
}

/// The active timeout is over: the record goes to the agent, and the flow goes on in another one in its place. If the
/// ring to the agent is full, the flow stays in this one, and its next packet tries again.
///
/// The counters are looked up again: to hand them down the way of every packet would take stack that there is not.
///
/// # Safety
/// Both pointers are valid, or null.
#[unsafe(no_mangle)]
#[inline(never)]
unsafe extern "C" fn sensor_cut(record: *mut FlowRecord, visit: *const Visit) -> u64 {
    if record.is_null() || visit.is_null() {
        return 1;
    }
    // SAFETY: just tested, and the caller's; the caller holds the record's lock.
    let (record, visit) = unsafe { (&mut *record, &*visit) };
    record.steady |= note::CUT;
    if send(record) {
        if let Some(counters) = counters(visit.ifindex) {
            counters.evicted += 1;
            counters.flows_created += 1;
        }
        record.go_on(&visit.packet, visit.now_ns, visit.ifindex);
    } else {
        record.steady &= !note::CUT;
    }
    0
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
    if send(record) {
        counters.evicted += 1;
    } else {
        counters.evicted_lost_flows += 1;
        counters.evicted_lost_packets += record.frames();
    }
}

/// Puts a record into the ring to the agent; whether there was room.
#[inline(always)]
fn send(record: &FlowRecord) -> bool {
    // SAFETY: the record is `size_of::<FlowRecord>()` bytes of a map value, which the helper copies.
    let sent = unsafe {
        aya_ebpf::helpers::generated::bpf_ringbuf_output(
            (&raw const EVICTED).cast_mut().cast(),
            core::ptr::from_ref(record).cast_mut().cast(),
            size_of::<FlowRecord>() as u64,
            BPF_RB_NO_WAKEUP as u64,
        )
    };
    sent == 0
}
