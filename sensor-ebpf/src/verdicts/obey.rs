//! A packet whose record holds a verdict: [`obey`], which the table calls unless the record itself remembers enough to drop
//! the packet. A rate is looked up where the verdict came from, in the map of flows or in those of sources.

use sensor_common::counter::InterfaceCounters;
use sensor_common::flow::{FlowRecord, state};
use sensor_common::verdict::{Action, Verdict};

use super::allowed::{depends_on_packet, sensor_protected};
use super::entry::{ALLOWED_FLOW, NONE, OVER, charge, flow_entry};
use super::source::source_entry;
use super::{CLEARED, settled};
use crate::datapath::control;
use crate::table::Visit;

/// What becomes of a packet whose record (of the right generation) holds `verdict`, of `action`: the number of what is done,
/// and [`CLEARED`].
#[inline(always)]
pub(crate) fn obey(
    record: *const FlowRecord,
    visit: &Visit,
    verdict: Verdict,
    counters: &mut InterfaceCounters,
) -> u64 {
    // SAFETY: a map value and references.
    unsafe { sensor_obey(visit, record, verdict.0, counters) }
}

/// See [`obey`].
///
/// # Safety
/// All pointers are valid, or null.
#[unsafe(no_mangle)]
#[inline(never)]
unsafe extern "C" fn sensor_obey(
    visit: *const Visit,
    record: *const FlowRecord,
    word: u64,
    counters: *mut InterfaceCounters,
) -> u64 {
    if visit.is_null() || record.is_null() || counters.is_null() {
        return 0;
    }
    // SAFETY: just tested, and the caller's.
    let (visit, counters) = unsafe { (&*visit, &mut *counters) };
    let Some(control) = control() else { return 0 };
    let action = Verdict(word).action();
    let (mut limit, mut answer) = (NONE, 0);
    if action as u8 >= Action::Limit as u8 {
        // SAFETY: a reference.
        let mut protected = unsafe { sensor_protected(visit, counters.slot) } != 0;
        if !protected && control.flow_verdicts != 0 {
            // SAFETY: references.
            limit = unsafe { sensor_flow_limit(visit, word, counters) };
            protected = limit == ALLOWED_FLOW;
        }
        if protected {
            counters.protected += 1;
            return 0;
        }
        if !depends_on_packet(visit) {
            answer = CLEARED;
        }
        // A source's rate is for what it sends.
        if action == Action::Limit && limit == NONE && control.source_maps != 0 && !visit.is_egress() {
            // SAFETY: a map value; either value of a race will do.
            let initiator_high = unsafe { (*record).state } & state::INITIATOR_HIGH != 0;
            if visit.packet.from_low != initiator_high {
                // SAFETY: references.
                limit = unsafe { sensor_source_limit(visit, counters) };
            }
        }
    }
    answer | settled(visit, Verdict(word), limit == OVER, control, counters) as u64
}

/// The rate of the packet's flow, if `word` asks for one.
///
/// # Safety
/// Both pointers are valid, or null.
#[unsafe(no_mangle)]
#[inline(never)]
unsafe extern "C" fn sensor_flow_limit(visit: *const Visit, word: u64, counters: *mut InterfaceCounters) -> u64 {
    if visit.is_null() || counters.is_null() {
        return NONE;
    }
    // SAFETY: just tested, and the caller's.
    let (visit, counters) = unsafe { (&*visit, &mut *counters) };
    let entry = flow_entry(&visit.packet.key);
    if entry.is_null() {
        return NONE;
    }
    // SAFETY: a map value.
    let flow = unsafe { &*entry };
    if flow.until_ns <= visit.now_ns {
        return NONE;
    }
    if flow.action == Action::Pass as u8 {
        return ALLOWED_FLOW;
    }
    if flow.action != Action::Limit as u8 || Verdict(word).action() != Action::Limit {
        return NONE;
    }
    // SAFETY: a map value and references.
    unsafe { charge(entry, visit, counters) }
}

/// The rate of the packet's source.
///
/// # Safety
/// Both pointers are valid, or null.
#[unsafe(no_mangle)]
#[inline(never)]
unsafe extern "C" fn sensor_source_limit(visit: *const Visit, counters: *mut InterfaceCounters) -> u64 {
    if visit.is_null() || counters.is_null() {
        return NONE;
    }
    // SAFETY: just tested, and the caller's.
    let (visit, counters) = unsafe { (&*visit, &mut *counters) };
    let Some(control) = control() else { return NONE };
    let entry = source_entry(visit, control.source_maps);
    // SAFETY: a map value.
    if entry.is_null() || unsafe { &*entry }.action_at(visit.now_ns) != Action::Limit {
        return NONE;
    }
    // SAFETY: a map value and references.
    unsafe { charge(entry, visit, counters) }
}
