//! The limits of half-open attempts that services and addresses can have, and the clients that are known to be there,
//! which they spare. `screen` asks of first SYNs that no verdict concerns; the table has sources of proven connections
//! remembered ([`note_known`]).
//!
//! Over a limit, a client is asked to repeat itself: its SYN is dropped and remembered, and passes when it comes again
//! (`sensor_common::verdict::repeat`).

use sensor_common::counter::InterfaceCounters;
use sensor_common::flow::{FlowKey, FlowRecord, state};
use sensor_common::hash;
use sensor_common::packet::protocol;
use sensor_common::tcp;
use sensor_common::verdict::repeat::{self, Heard, REPEAT_WAYS};
use sensor_common::verdict::{Action, Entry, ServiceKey, is_proven, known, mapped};

use super::HALF_OPEN;
use super::screen::sensor_decide;
use crate::datapath::control;
use crate::lock;
use crate::maps::{KNOWN, REPEATS, SERVICE_LIMITS, seed};
use crate::table::Visit;

/// Whether the packet is a half-open attempt from outside.
#[inline(always)]
pub(crate) fn is_attempt(visit: &Visit) -> bool {
    let packet = &visit.packet;
    !visit.is_egress() && packet.key.protocol == protocol::TCP && tcp::is_first_syn(packet.tcp_flags)
}

/// The limit that holds for a half-open attempt: that of its service, else that of its destination address; or null.
#[inline(always)]
fn limit_of(visit: &Visit) -> *mut Entry {
    let packet = &visit.packet;
    let FlowKey { low, high, low_port, high_port, family, .. } = packet.key;
    let (to, port) = if packet.from_low { (high, high_port) } else { (low, low_port) };
    let mut key = ServiceKey { address: mapped(to, family), port, protocol: packet.key.protocol, reserved: 0 };
    if let Some(entry) = SERVICE_LIMITS.get_ptr_mut(key)
        // SAFETY: a map value, which the agent writes whole.
        && unsafe { (*entry).until_ns } > visit.now_ns
    {
        return entry;
    }
    key.port = 0;
    match SERVICE_LIMITS.get_ptr_mut(key) {
        // SAFETY: as above.
        Some(entry) if unsafe { (*entry).until_ns } > visit.now_ns => entry,
        _ => core::ptr::null_mut(),
    }
}

/// The limit of a service for a half-open attempt that no verdict concerns: [`HALF_OPEN`] and the number of drop, or 0.
///
/// # Safety
/// Both pointers are valid, or null.
#[unsafe(no_mangle)]
#[inline(never)]
pub(super) unsafe extern "C" fn sensor_half_open(visit: *const Visit, counters: *mut InterfaceCounters) -> u64 {
    if visit.is_null() || counters.is_null() {
        return 0;
    }
    // SAFETY: just tested, and the caller's.
    let (visit, counters) = unsafe { (&*visit, &mut *counters) };
    let Some(control) = control() else { return 0 };
    let entry = limit_of(visit);
    if entry.is_null() {
        return 0;
    }
    if control.lease_until_ns <= visit.now_ns {
        counters.lease_expired += 1;
        return 0;
    }
    // SAFETY: a map value and references.
    if unsafe {
        sensor_is_known(visit) != 0 || sensor_bears(entry, visit, counters) != 0 || sensor_repeats(visit, 0) != 0
    } {
        return 0;
    }
    // SAFETY: a map value.
    let over = unsafe { &*entry }.word().0 & !0xf | Action::Drop as u64;
    // SAFETY: a map value and references.
    let answer = unsafe { sensor_decide(visit, over, entry, counters) };
    // An attempt has no record with a verdict that a tag could be read from: all but a drop passes.
    if answer as u8 != Action::Drop as u8 {
        return 0;
    }
    // Only what is dropped can come again.
    // SAFETY: a reference.
    unsafe { sensor_repeats(visit, 1) };
    HALF_OPEN | Action::Drop as u64
}

/// Whether a handshake has proven the packet's source: 1 or 0.
///
/// # Safety
/// The pointer is valid, or null.
#[unsafe(no_mangle)]
#[inline(never)]
unsafe extern "C" fn sensor_is_known(visit: *const Visit) -> u64 {
    if visit.is_null() {
        return 0;
    }
    // SAFETY: just tested, and the caller's.
    let Visit { packet, now_ns, .. } = unsafe { &*visit };
    let from = mapped(if packet.from_low { packet.key.low } else { packet.key.high }, packet.key.family);
    let place = known::place(&from, seed);
    let Some(set) = KNOWN.get_ptr(place.set) else { return 0 };
    let mut found = 0;
    for way in 0..known::KNOWN_WAYS {
        // SAFETY: 8 aligned bytes of a map value.
        found |= known::holds(unsafe { (&raw const (*set)[way]).read_volatile() }, place, *now_ns) as u64;
    }
    found
}

/// Charges an attempt to the rate of a limit: 1 if it is within it. If another CPU holds the entry for too long, the
/// attempt passes unasked.
///
/// # Safety
/// All pointers are valid, or null; `entry` is a map value.
#[unsafe(no_mangle)]
#[inline(never)]
unsafe extern "C" fn sensor_bears(entry: *mut Entry, visit: *const Visit, counters: *mut InterfaceCounters) -> u64 {
    if entry.is_null() || visit.is_null() || counters.is_null() {
        return 1;
    }
    // SAFETY: just tested, and the caller's.
    let (visit, counters) = unsafe { (&*visit, &mut *counters) };
    // SAFETY: a map value.
    let sequence_word = unsafe { &raw mut (*entry).sequence };
    // SAFETY: 4 aligned bytes of a map value.
    let Some(sequence) = (unsafe { lock::take(sequence_word) }) else {
        counters.limit_busy += 1;
        return 1;
    };
    // SAFETY: under the entry's lock this CPU is the only writer of the rate.
    let within = unsafe { &mut *entry }.bears(visit.now_ns);
    // SAFETY: as above.
    unsafe { lock::give_back(sequence_word, sequence) };
    within as u64
}

/// Whether an attempt repeats one that was dropped: 1 or 0. `note`: 1 if it is dropped now, and to be remembered.
///
/// # Safety
/// The pointer is valid, or null.
#[unsafe(no_mangle)]
#[inline(never)]
unsafe extern "C" fn sensor_repeats(visit: *const Visit, note: u32) -> u64 {
    if visit.is_null() {
        return 0;
    }
    // SAFETY: just tested, and the caller's.
    let Visit { packet, now_ns, .. } = unsafe { &*visit };
    let flow = hash::hash(&packet.key, seed);
    let (number, fingerprint) = repeat::place(flow, packet.from_low, packet.seq, seed);
    let Some(set) = REPEATS.get_ptr_mut(number) else { return 0 };
    // SAFETY: aligned words of a map value, which other CPUs write whole.
    let words = core::array::from_fn(|way| unsafe { (&raw const (*set)[way]).read_volatile() });
    match repeat::hear(&words, fingerprint, *now_ns) {
        Heard::Repeated => 1,
        Heard::New { way, word } if note != 0 => {
            // SAFETY: as above; the number is in bounds, and the verifier sees it.
            unsafe { set.cast::<u32>().add(way & (REPEAT_WAYS - 1)).write_volatile(word) };
            0
        }
        Heard::New { .. } => 0,
    }
}

/// Remembers the source of a connection whose initiator has proven that it is there. Called now and then for each
/// established connection, without the record's lock.
#[inline(always)]
pub(crate) fn note_known(record: *const FlowRecord, visit: &Visit) {
    // SAFETY: a map value and a reference.
    unsafe { sensor_known(record, visit) };
}

/// See [`note_known`].
///
/// # Safety
/// Both pointers are valid, or null.
#[unsafe(no_mangle)]
#[inline(never)]
unsafe extern "C" fn sensor_known(record: *const FlowRecord, visit: *const Visit) -> u64 {
    if record.is_null() || visit.is_null() {
        return 1;
    }
    // SAFETY: just tested, and the caller's. Programs on other CPUs may write the record meanwhile: it is a hint.
    let (record, visit) = unsafe { (&*record, &*visit) };
    let packet = &visit.packet;
    let initiator_high = record.state & state::INITIATOR_HIGH != 0;
    let forward = packet.from_low != initiator_high;
    // Connections that this host opened say nothing of who comes in.
    if forward == visit.is_egress() || !is_proven(record) {
        return 1;
    }
    let address = if initiator_high { packet.key.high } else { packet.key.low };
    let now_ns = visit.now_ns;
    let place = known::place(&mapped(address, packet.key.family), seed);
    let Some(set) = KNOWN.get_ptr_mut(place.set) else { return 1 };
    // SAFETY: aligned words of a map value, which other CPUs write whole.
    let words = core::array::from_fn(|way| unsafe { (&raw const (*set)[way]).read_volatile() });
    let way = known::way_of(&words, place, now_ns);
    // SAFETY: as above; the number is in bounds, and the verifier sees it.
    unsafe { set.cast::<u64>().add(way & (known::KNOWN_WAYS - 1)).write_volatile(known::word(place, now_ns)) };
    0
}
