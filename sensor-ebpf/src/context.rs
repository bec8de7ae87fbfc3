//! The host context as the programs keep it: a new flow is noted with its source and with its service. What that means
//! is in `sensor_common::context`.
//!
//! A set's sequence word is its lock, waited for as briefly as may be; what is given up on is counted
//! (`context_lost`), and the packet goes on. Called by [`crate::table`] for new flows only, those included that found no
//! place in the flow table.

use aya_ebpf::maps::Array;
use sensor_common::context::{Key, NewFlow, Noted, Set, tick_of};
use sensor_common::counter::InterfaceCounters;
use sensor_common::flow::starts_high;
use sensor_common::packet::protocol;
use sensor_common::tcp;

use crate::maps::{SERVICE_SETS, SERVICES, SOURCE_SETS, SOURCES, seed};
use crate::table::Visit;
use crate::{atomic, lock};

/// Whether context is kept: known to the verifier, which takes out what is not.
#[inline(always)]
pub(crate) fn is_on() -> bool {
    SOURCE_SETS.load() != 0
}

/// Notes the first packet of a flow. `refused`: the flow found no place in the table, and its next packet comes here again:
/// then only TCP's opening segment counts, and every packet of other protocols.
#[inline(always)]
pub(crate) fn note(visit: &Visit, refused: bool, counters: &mut InterfaceCounters) {
    let packet = &visit.packet;
    if refused && packet.key.protocol == protocol::TCP && !tcp::is_first_syn(packet.tcp_flags) {
        return;
    }
    // SAFETY: both pointers come from references.
    unsafe {
        sensor_context(visit, counters);
        sensor_service(visit, counters);
    }
}

/// The source's part of [`note`]. Each part is a function of its own, because both together take more of the 512 bytes of stack
/// than older kernels, which round each function's share up to 32 bytes, have left.
///
/// # Safety
/// Both pointers are valid, or null.
#[unsafe(no_mangle)]
#[inline(never)]
unsafe extern "C" fn sensor_context(visit: *const Visit, counters: *mut InterfaceCounters) -> u64 {
    if visit.is_null() || counters.is_null() {
        return 1;
    }
    // SAFETY: just tested, and the caller's.
    let (visit, counters) = unsafe { (&*visit, &mut *counters) };
    let NewFlow { ends, source_cells, .. } = NewFlow::new(&visit.packet.key, starts_high(&visit.packet), seed);
    let tick = tick_of(visit.now_ns);
    let note = Note { key: ends.source, hash: ends.source_hash, tick, cells: source_cells };
    note_in(&SOURCES, SOURCE_SETS.load(), &note, counters);
    0
}

/// The service's part of [`note`].
///
/// # Safety
/// Both pointers are valid, or null.
#[unsafe(no_mangle)]
#[inline(never)]
unsafe extern "C" fn sensor_service(visit: *const Visit, counters: *mut InterfaceCounters) -> u64 {
    if visit.is_null() || counters.is_null() {
        return 1;
    }
    // SAFETY: just tested, and the caller's.
    let (visit, counters) = unsafe { (&*visit, &mut *counters) };
    let NewFlow { ends, service_cells, .. } = NewFlow::new(&visit.packet.key, starts_high(&visit.packet), seed);
    let tick = tick_of(visit.now_ns);
    let note = Note { key: ends.service, hash: ends.service_hash, tick, cells: service_cells };
    note_in(&SERVICES, SERVICE_SETS.load(), &note, counters);
    0
}

/// What [`Set::note`] takes.
#[repr(C)]
struct Note {
    key: Key,
    hash: u32,
    tick: u32,
    cells: [u32; 2],
}

/// Notes a new flow in one of the tables, of `sets` sets.
#[inline(always)]
fn note_in(table: &Array<Set>, sets: u32, note: &Note, counters: &mut InterfaceCounters) {
    let Some(set) = table.get_ptr_mut(note.hash & sets.wrapping_sub(1)) else { return };
    // SAFETY: a map value and a reference.
    match unsafe { sensor_note(set, note) } {
        COUNTED => {}
        REPLACED => counters.context_replaced += 1,
        _ => counters.context_lost += 1,
    }
}

/// What [`sensor_note`] returns, besides that the lock was not to be had.
const COUNTED: u64 = 0;
/// See [`COUNTED`].
const REPLACED: u64 = 1;
const LOST: u64 = 2;

/// [`Set::note`] under the set's lock, verified once.
///
/// # Safety
/// Both pointers are valid, or null; `set` is a map value.
#[unsafe(no_mangle)]
#[inline(never)]
unsafe extern "C" fn sensor_note(set: *mut Set, note: *const Note) -> u64 {
    if set.is_null() || note.is_null() {
        return LOST;
    }
    // SAFETY: just tested, and the caller's.
    let Note { key, hash, tick, cells } = unsafe { &*note };
    // SAFETY: a map value.
    let word = unsafe { &raw mut (*set).sequence };
    // SAFETY: 4 aligned bytes of a map value.
    let Some(sequence) = (unsafe { lock::take_briefly(word) }) else { return LOST };
    // The compiler can prove that cells are in range and would not test it; the verifier needs to see the test.
    let cells = cells.map(|cell| atomic::opaque(cell as u64) as u32);
    // SAFETY: under the set's lock this CPU is the only writer.
    let noted = unsafe { &mut *set }.note(key, *hash, *tick, cells);
    // SAFETY: 4 aligned bytes of a map value, whose lock this CPU holds.
    unsafe { lock::give_back(word, sequence) };
    if noted == Noted::Replaced { REPLACED } else { COUNTED }
}
