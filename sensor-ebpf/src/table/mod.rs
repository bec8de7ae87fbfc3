//! The flow table as the programs use it: a packet's visit ([`account`]), which finds its flow or starts a record for it.
//! Geometry and policy are in `sensor_common::table`. Called by the datapath; by `quotes` and `tag` for the look-up alone.
//!
//! Locks: a record's sequence word guards its contents, a bucket's lock word guards the giving away of its ways. Order:
//! bucket, then record. Both are waited for, for a bounded time; giving up is counted and the packet passes.
//!
//! The functions with C linkage are "global functions" of BPF: the verifier walks each once, on its own, with nothing
//! known of its arguments but their types. Without them it would walk the table's code again for each of the hundreds
//! of ways through the parser. Such functions must test their pointers and return a number.

mod find;
mod insert;
mod obey;
mod update;

use sensor_common::control::Control;
use sensor_common::counter::{Cause, Hook, InterfaceCounters};
use sensor_common::cut::Cut;
use sensor_common::flow::FlowRecord;
use sensor_common::hash;
use sensor_common::packet::Packet;
use sensor_common::table::Bucket;
use sensor_common::verdict::Action;

pub(crate) use self::find::find;
use self::insert::sensor_insert;
pub(crate) use self::obey::is_tagged;
use self::obey::{drop_packet, obey};
use self::update::{fetch, update};
pub(crate) use self::update::{lock_found, unlock};
use crate::atomic;
use crate::bench::cut;
use crate::context;
use crate::datapath::{control, now_ns};
use crate::maps::seed;
use crate::verdicts::{self, HALF_OPEN, is_attempt};

/// A packet on its visit to the table.
#[repr(C)]
pub(crate) struct Visit {
    pub(crate) packet: Packet,
    /// Arrival, monotonic ns; 0 until somebody needs it.
    pub(crate) now_ns: u64,
    pub(crate) ifindex: u32,
    /// Number of a [`Hook`]. No byte of this struct may be left unwritten.
    pub(crate) hook: u16,
    /// 1: the packet is the first SYN of a connection on a tuple that a model's verdict on an earlier one holds; else
    /// 0. That verdict ends with it.
    pub(crate) frees: u16,
    /// The verdict word, without its generation, of the record that the packet begins.
    pub(crate) verdict: u64,
}

impl Visit {
    #[inline(always)]
    pub(crate) fn is_egress(&self) -> bool {
        self.hook == Hook::Egress as u16
    }
}

/// A way that holds the packet's flow.
#[derive(Clone, Copy)]
pub(crate) struct Found {
    bucket: *mut Bucket,
    pub(crate) record: *mut FlowRecord,
    way: usize,
    tag: u32,
    generation: u32,
}

/// Bits of what [`sensor_account`] returns: the low byte is a cause, not an action …
const REFUSED: u64 = 1 << 8;
/// … or there is no record yet, and the upper half is the hash.
const MISS: u64 = 1 << 9;
/// Bit of what [`sensor_insert`] returns: a record was started.
const CREATED: u64 = 1 << 10;

/// Counts the packet in its flow's record, which is started if there is none; the action of the flow's verdict, or the
/// number of a [`Cause`].
#[inline(always)]
pub(crate) fn account(visit: &mut Visit, control: &Control, counters: &mut InterfaceCounters) -> Result<Action, u64> {
    // Whether the host context has to learn of the packet: a flow that is new, or was refused.
    let mut news = 0;
    // SAFETY: both pointers come from references.
    let mut answer = unsafe { sensor_account(visit, counters) };
    // Functions of their own beside `sensor_account`, not below it: their stacks share the kernel's 512 bytes.
    if answer & MISS != 0 {
        let screened = if verdicts::any(control) { verdicts::screen(visit, control, counters) } else { 0 };
        if screened as u8 == Action::Drop as u8 {
            // Who is blocked takes no slot.
            counters.dropped_new += 1;
            if screened & HALF_OPEN != 0 {
                counters.dropped_half_open += 1;
                // The service's flood goes on, and has to show.
                news = REFUSED;
            }
            answer = Action::Drop as u64;
        } else {
            // SAFETY: as above.
            answer = unsafe { sensor_insert(visit, (answer >> 32) as u32, counters) };
            news = answer & (REFUSED | CREATED);
            if news & REFUSED == 0 {
                answer = screened & 0xff;
            }
        }
    }
    if context::is_on() && news != 0 {
        context::note(visit, news & REFUSED != 0, counters);
    }
    let answer = atomic::opaque(answer);
    if answer & REFUSED != 0 { Err(answer & !REFUSED) } else { Ok(Action::from_number(answer as u8)) }
}

/// The packet's flow is in the table: obey its verdict and count the packet.
///
/// # Safety
/// Both pointers are valid, or null.
#[unsafe(no_mangle)]
#[inline(never)]
unsafe extern "C" fn sensor_account(visit: *mut Visit, counters: *mut InterfaceCounters) -> u64 {
    if visit.is_null() || counters.is_null() {
        return REFUSED | Cause::Internal as u64;
    }
    // SAFETY: just tested, and the caller's.
    let (visit, counters) = unsafe { (&mut *visit, &mut *counters) };
    let Some(control) = control() else { return REFUSED | Cause::Internal as u64 };
    let hash = hash::hash(&visit.packet.key, seed);
    let miss = MISS | (hash as u64) << 32;
    let found = match find(&visit.packet, hash) {
        Ok(Some(found)) => found,
        Ok(None) => {
            visit.now_ns = now_ns(control);
            return miss;
        }
        Err(cause) => return REFUSED | cause as u64,
    };
    if cut(Cut::Key) {
        return Action::Pass as u64;
    }
    let verdict = verdicts::word(found.record);
    let mut done = Action::Pass as u64;
    if verdict.is_some() {
        done = match obey(found, visit, verdict, control, counters) {
            Some(done) => done,
            None => {
                visit.now_ns = now_ns(control);
                return miss;
            }
        };
        if done == Action::Drop as u64 {
            return drop_packet(found, visit) as u64;
        }
    }
    // Half-open limits count each SYN, those that repeat within a record included: it goes the way of those without
    // one.
    if control.service_limits != 0 && !verdict.is_some() && is_attempt(visit) {
        visit.now_ns = now_ns(control);
        return miss;
    }
    fetch(found, &visit.packet);
    if cut(Cut::Asked) {
        return Action::Pass as u64;
    }
    visit.now_ns = now_ns(control);
    if cut(Cut::Clock) {
        return Action::Pass as u64;
    }
    match update(found, visit, counters, false) {
        Ok(true) => done,
        Ok(false) => miss,
        Err(cause) => REFUSED | cause as u64,
    }
}
