//! A packet that has no record: [`screen`], which the table calls before it gives a slot away, so that who is blocked takes none.
//!
//! The verdict on the flow comes first, then that on the source, of which the stricter holds; where there is neither, the
//! service's limit of half-open attempts. A record that the packet begins inherits what was found (`visit.verdict`).

use sensor_common::control::Control;
use sensor_common::counter::InterfaceCounters;
use sensor_common::packet::protocol;
use sensor_common::tcp;
use sensor_common::verdict::{Action, Entry, Origin, Verdict};

use super::allowed::sensor_protected;
use super::entry::{OVER, acted, charge, flow_entry};
use super::service::{is_attempt, sensor_half_open};
use super::settled;
use super::source::source_entry;
use crate::datapath::control;
use crate::table::Visit;

/// What becomes of a packet that has no record, and of a record that it begins (`visit.verdict`): the number of what is done,
/// and [`HALF_OPEN`].
#[inline(always)]
pub(crate) fn screen(visit: &mut Visit, control: &Control, counters: &mut InterfaceCounters) -> u64 {
    let mut answer = NO_VERDICT;
    if control.flow_verdicts | control.source_maps != 0 {
        // SAFETY: both pointers come from references.
        answer = unsafe { sensor_screen(visit, counters) };
    }
    if answer & NO_VERDICT != 0 && control.service_limits != 0 && is_attempt(visit) {
        // SAFETY: as above.
        answer = unsafe { sensor_half_open(visit, counters) };
    }
    answer & !NO_VERDICT
}

/// Bit of what [`sensor_screen`] returns: no verdict concerns the packet.
const NO_VERDICT: u64 = 1 << 10;

/// See [`screen`].
///
/// # Safety
/// Both pointers are valid, or null.
#[unsafe(no_mangle)]
#[inline(never)]
unsafe extern "C" fn sensor_screen(visit: *mut Visit, counters: *mut InterfaceCounters) -> u64 {
    if visit.is_null() || counters.is_null() {
        return 0;
    }
    // SAFETY: just tested, and the caller's.
    let (visit, counters) = unsafe { (&mut *visit, &mut *counters) };
    let Some(control) = control() else { return 0 };
    let now_ns = visit.now_ns;
    let mut chosen: *mut Entry = core::ptr::null_mut();
    let mut action = Action::Pass;
    if control.flow_verdicts != 0 {
        let entry = flow_entry(&visit.packet.key);
        if !entry.is_null() {
            // SAFETY: a map value.
            let flow = unsafe { &*entry };
            action = flow.action_at(now_ns);
            if action != Action::Pass && ends_with_its_connection(flow, visit) {
                // A record under way keeps the entry; else this packet begins another connection.
                visit.frees = 1;
                action = Action::Pass;
                // SAFETY: 8 aligned bytes of a map value: over for every packet from now on.
                unsafe { (&raw mut (*entry).until_ns).write_volatile(0) };
            } else if action != Action::Pass {
                chosen = entry;
            } else if flow.action == Action::Pass as u8 && flow.until_ns > now_ns {
                // An allowed session: nothing of its source concerns it.
                return 0;
            }
        }
    }
    if control.source_maps != 0 && action != Action::Drop && source_concerns(visit) {
        let entry = source_entry(visit, control.source_maps);
        if !entry.is_null() {
            // SAFETY: a map value.
            let wanted = unsafe { &*entry }.action_at(now_ns);
            if wanted as u8 > action as u8 {
                action = wanted;
                chosen = entry;
            }
        }
    }
    if chosen.is_null() || action == Action::Pass {
        return NO_VERDICT;
    }
    // SAFETY: a map value.
    let word = unsafe { &*chosen }.word();
    visit.verdict = word.0;
    if control.lease_until_ns <= now_ns {
        counters.lease_expired += 1;
        return 0;
    }
    // SAFETY: references and a map value.
    unsafe { sensor_decide(visit, word.0, chosen, counters) }
}

/// Whether a verdict on a flow ends because the packet opens another connection on its tuple: a model judged what the
/// one before did. What operators and rules say of a tuple holds for whatever comes on it. Whoever is under a verdict
/// gains nothing: another port would do as well.
#[inline(always)]
fn ends_with_its_connection(flow: &Entry, visit: &Visit) -> bool {
    let packet = &visit.packet;
    flow.origin == Origin::Model as u8 && packet.key.protocol == protocol::TCP && tcp::is_first_syn(packet.tcp_flags)
}

/// Whether a verdict on the remote end's address concerns a packet without a record: all that comes in; and of what goes
/// out, segments in the middle of a TCP connection, whose record is gone. (Else one retransmission of this host would open
/// the way again for a source that is blocked.) A connection that this host opens is its own business.
#[inline(always)]
fn source_concerns(visit: &Visit) -> bool {
    !visit.is_egress() || visit.packet.key.protocol == protocol::TCP && !tcp::is_first_syn(visit.packet.tcp_flags)
}

/// What is done with a packet that has no record and that a verdict concerns, after the never-drop list, the rate, and the
/// ceiling: the number of the action. `entry`: where the verdict comes from.
///
/// # Safety
/// All pointers are valid, or null; `entry` is a map value.
#[unsafe(no_mangle)]
#[inline(never)]
pub(super) unsafe extern "C" fn sensor_decide(
    visit: *const Visit,
    word: u64,
    entry: *mut Entry,
    counters: *mut InterfaceCounters,
) -> u64 {
    if visit.is_null() || counters.is_null() {
        return 0;
    }
    // SAFETY: just tested, and the caller's.
    let (visit, counters) = unsafe { (&*visit, &mut *counters) };
    let Some(control) = control() else { return 0 };
    let action = Verdict(word).action();
    let mut over = false;
    if action as u8 >= Action::Limit as u8 {
        // SAFETY: a reference.
        if unsafe { sensor_protected(visit, counters.slot) } != 0 {
            counters.protected += 1;
            return 0;
        }
        if !entry.is_null() {
            if action == Action::Limit {
                // SAFETY: a map value and references.
                over = unsafe { charge(entry, visit, counters) } == OVER;
            } else {
                // SAFETY: a map value.
                unsafe { acted(entry, visit) };
            }
        }
    }
    settled(visit, Verdict(word), over, control, counters) as u64
}
