//! Verdicts in the programs: what becomes of a packet that has no record yet ([`screen`]), and of one whose record holds a
//! verdict ([`obey`]). Logic is in `sensor_common::verdict`. Called by `crate::table`.
//!
//! Whatever would be dropped or limited is held against the never-drop list first, whatever the mode: so what a ceiling
//! withholds is exactly what would have been done. A packet of a flow without a verdict sees nothing of all this, and one
//! that is dropped asks no map: its record remembers that nothing protects it, for one epoch of the never-drop list.

mod allowed;
mod entry;
mod obey;
mod screen;
mod service;
mod source;

use sensor_common::control::Control;
use sensor_common::counter::{ACTION_SLOTS, InterfaceCounters, ORIGIN_SLOTS};
use sensor_common::flow::FlowRecord;
use sensor_common::verdict::{Action, Settled, Verdict, settle};

pub(crate) use self::allowed::is_cleared;
pub(crate) use self::obey::obey;
pub(crate) use self::screen::screen;
pub(crate) use self::service::{is_attempt, note_known};
use crate::atomic;
use crate::table::Visit;

/// Bit of what the functions here return, beside the number of the [`Action`] that is done: nothing protects the packet.
pub(crate) const CLEARED: u64 = 1 << 8;

/// The packet is a half-open attempt beyond the limit of its service or its address.
pub(crate) const HALF_OPEN: u64 = 1 << 9;

/// Whether there is anything that a packet without a record could meet.
#[inline(always)]
pub(crate) fn any(control: &Control) -> bool {
    control.flow_verdicts | control.source_maps | control.service_limits != 0
}

/// The verdict word of a record.
#[inline(always)]
pub(crate) fn word(record: *const FlowRecord) -> Verdict {
    // SAFETY: a map value; the agent stores the word at once.
    Verdict(unsafe { (&raw const (*record).verdict).read_volatile() })
}

/// What is done under the ceiling of the verdict's origin; what that withholds is counted.
#[inline(always)]
pub(crate) fn settled(
    visit: &Visit,
    verdict: Verdict,
    over: bool,
    control: &Control,
    counters: &mut InterfaceCounters,
) -> Action {
    let Settled { would, done } = settle(verdict.action(), over, control.ceiling(verdict.origin()));
    if would as u8 == Action::Drop as u8 {
        count_drop(verdict, counters);
    }
    if (done as u8) < would as u8 {
        // The compiler knows that an action is in range; the verifier has to see it.
        let withheld = &mut counters.withheld[atomic::opaque(would as u64) as usize & (ACTION_SLOTS - 1)];
        withheld.packets += 1;
        withheld.bytes += visit.packet.frame_len as u64;
    }
    done
}

/// Counts a packet that mode enforce drops for whoever wants it so.
#[inline(always)]
fn count_drop(verdict: Verdict, counters: &mut InterfaceCounters) {
    counters.drops_of[atomic::opaque(verdict.origin() as u64) as usize & (ORIGIN_SLOTS - 1)] += 1;
}
