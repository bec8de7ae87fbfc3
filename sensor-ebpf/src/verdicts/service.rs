//! The limit of half-open attempts that a service can have, and the sources that are known to be there, which it spares.
//! `screen` asks it of first SYNs that no verdict concerns; the table has sources of proven connections remembered
//! ([`note_known`]).

use sensor_common::counter::InterfaceCounters;
use sensor_common::flow::{FlowKey, FlowRecord, state};
use sensor_common::packet::protocol;
use sensor_common::tcp;
use sensor_common::verdict::{Action, ServiceKey, is_proven, known, mapped};

use super::HALF_OPEN;
use super::entry::sensor_charge;
use super::screen::sensor_decide;
use crate::datapath::control;
use crate::maps::{KNOWN, SERVICE_LIMITS, seed};
use crate::table::Visit;

/// Whether the packet is a half-open attempt from outside.
#[inline(always)]
pub(super) fn is_attempt(visit: &Visit) -> bool {
    let packet = &visit.packet;
    !visit.is_egress() && packet.key.protocol == protocol::TCP && tcp::is_first_syn(packet.tcp_flags)
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
    let (packet, now_ns) = (&visit.packet, visit.now_ns);
    let FlowKey { low, high, low_port, high_port, family, .. } = packet.key;
    let (to, port) = if packet.from_low { (high, high_port) } else { (low, low_port) };
    let key = ServiceKey { address: mapped(to, family), port, protocol: packet.key.protocol, reserved: 0 };
    let Some(entry) = SERVICE_LIMITS.get_ptr_mut(key) else { return 0 };
    // SAFETY: a map value.
    let limit = unsafe { &*entry };
    if limit.until_ns <= now_ns {
        return 0;
    }
    if control.lease_until_ns <= now_ns {
        counters.lease_expired += 1;
        return 0;
    }
    let from = mapped(if packet.from_low { low } else { high }, family);
    let (set, tag) = known::place(&from, seed);
    if let Some(set) = KNOWN.get_ptr(set) {
        for way in 0..known::KNOWN_WAYS {
            // SAFETY: 8 aligned bytes of a map value.
            if known::holds(unsafe { (&raw const (*set)[way]).read_volatile() }, tag, now_ns) {
                return 0;
            }
        }
    }
    // SAFETY: a map value and references.
    if unsafe { sensor_charge(entry, visit, counters) } == 0 {
        return 0;
    }
    let over = limit.word().0 & !0xf | Action::Drop as u64;
    // SAFETY: as above.
    let answer = unsafe { sensor_decide(visit, over, entry, counters) };
    // An attempt has no record with a verdict that a tag could be read from: all but a drop passes.
    if answer as u8 == Action::Drop as u8 { HALF_OPEN | Action::Drop as u64 } else { 0 }
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
    let (set, tag) = known::place(&mapped(address, packet.key.family), seed);
    let Some(set) = KNOWN.get_ptr_mut(set) else { return 1 };
    // SAFETY: aligned words of a map value, which other CPUs write whole.
    let words = core::array::from_fn(|way| unsafe { (&raw const (*set)[way]).read_volatile() });
    let way = known::way_of(&words, tag, now_ns);
    // SAFETY: as above; the number is in bounds, and the verifier sees it.
    unsafe { set.cast::<u64>().add(way & (known::KNOWN_WAYS - 1)).write_volatile(known::word(tag, now_ns)) };
    0
}
