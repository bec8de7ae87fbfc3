//! A packet of a flow that is in the table: the record's lock, and the count under it. Called by `sensor_account`, and by
//! `insert` for a flow that another CPU has started meanwhile.
//!
//! Programs change a record under its lock only, and only if tag and generation are still those of the flow that was found; but
//! for `dropped` and `lost`, which are added to without it.

use sensor_common::counter::{Cause, InterfaceCounters};
use sensor_common::cut::Cut;
use sensor_common::flow::{FlowRecord, state};
use sensor_common::packet::Packet;
use sensor_common::table::{Bucket, STAGE_HELD, WAYS, tick_of};
use sensor_common::tcp;

use super::insert::inherit;
use super::{Found, Visit};
use crate::bench::cut;
use crate::datapath::control;
use crate::record::{self, restart};
use crate::{atomic, lock, verdicts};

/// Takes the lock of the record that was found: its sequence, or `None` if the record was given to another flow meanwhile.
#[inline(always)]
pub(crate) fn lock_found(found: Found) -> Result<Option<u32>, Cause> {
    // SAFETY: a map value.
    let sequence = unsafe { lock::take(&raw mut (*found.record).sequence) }.ok_or(Cause::RecordBusy)?;
    // Tags change under this lock only. The generation alone would not do: whoever read the tag before the slot was
    // released, and the generation after, would count into a record that is in nobody's hands.
    // SAFETY: map values, and the way is in bounds. Volatile: the agent writes tags too.
    let (generation, tag) = unsafe {
        let tags = (&raw const (*found.bucket).tags).cast::<u32>();
        ((*found.record).generation, tags.add(found.way & (WAYS - 1)).read_volatile())
    };
    if generation != found.generation || tag != found.tag {
        unlock(found.record, sequence);
        return Ok(None);
    }
    Ok(Some(sequence))
}

/// Gives a record's lock back.
#[inline(always)]
pub(crate) fn unlock(record: *mut FlowRecord, sequence: u32) {
    // SAFETY: a map value, whose lock this CPU holds.
    unsafe { lock::give_back(&raw mut (*record).sequence, sequence) };
}

/// Asks for the lines of the record that an ordinary packet will need, before any of it has come: nothing behind the lock
/// is read before it is taken, so without this the waits for memory would come one after the other.
#[inline(always)]
pub(super) fn fetch(found: Found, packet: &Packet) {
    let record = found.record;
    // SAFETY: map values; what is read is not used.
    unsafe {
        let high = (&raw const (*found.bucket).high).read_volatile() >> found.way & 1;
        let [forward, reverse] = [&raw const (*record).directions[0], &raw const (*record).directions[1]];
        let (half, other) = if packet.from_low as u32 == high { (reverse, forward) } else { (forward, reverse) };
        (&raw const (*record).last_ns).read_volatile();
        (&raw const (*half).last_ns).read_volatile();
        (&raw const (*half).iat_square_low).read_volatile();
        (&raw const (*half).size_bins[0]).read_volatile();
        // What the other side sent, if it sent anything: the processor guesses that, and does not wait for it.
        let both = state::SEQUENCE_KNOWN | state::SEQUENCE_KNOWN << 1;
        if (&raw const (*record).state).read_volatile() & both == both {
            (&raw const (*other).next).read_volatile();
        }
    }
}

/// Counts the packet in the record that was found; false if the record was given to another flow meanwhile, or (unless
/// `reopens`) if the packet begins another connection on the tuple of a closed one: that one has not been screened.
#[inline(always)]
pub(super) fn update(
    found: Found,
    visit: &Visit,
    counters: &mut InterfaceCounters,
    reopens: bool,
) -> Result<bool, Cause> {
    let sequence = match lock_found(found) {
        Ok(Some(sequence)) => sequence,
        Ok(None) => return Ok(false),
        Err(cause) => {
            // SAFETY: 4 aligned bytes of a map value.
            unsafe { atomic::add_word(&raw mut (*found.record).lost, 1) };
            return Err(cause);
        }
    };
    if cut(Cut::Locked) {
        unlock(found.record, sequence);
        return Ok(true);
    }
    // SAFETY: under the record's lock this CPU is the only writer.
    let record = unsafe { &mut *found.record };
    // SAFETY: a map value; only programs write seen and stage, and either value of a race will do.
    let bucket = unsafe { &mut *found.bucket };
    let way = found.way & (WAYS - 1);
    let mut established = false;
    let least = if visit.frees != 0 { record::SUPERSEDES } else { record::REOPENS };
    if visit.packet.tcp_flags & tcp::SYN != 0 && record::news(record, visit) >= least {
        if !reopens {
            unlock(found.record, sequence);
            return Ok(false);
        }
        restart(record, bucket, visit, counters);
        inherit(record, visit);
        bucket.stages[way] = record::stage(record);
        bucket.set_high(way, record.state & state::INITIATOR_HIGH != 0);
    } else {
        let may_change = record::update(record, visit);
        let stage = bucket.stages[way];
        // Only a packet in many changes the stage: when the count outgrows it, when TCP closes, when a hold ends.
        if may_change || stage & STAGE_HELD != 0 {
            let new = record::stage(record);
            if new != stage {
                bucket.stages[way] = new;
                established = record.state & state::ESTABLISHED != 0;
            }
        }
    }
    // SAFETY: a map value, whose lock this CPU holds.
    unlock(found.record, unsafe { lock::free_word(&raw const (*found.record).sequence) });
    if established && control().is_some_and(|control| control.note_known != 0) {
        verdicts::note_known(found.record, visit);
    }
    touch(bucket, way, tick_of(visit.now_ns));
    Ok(true)
}

/// Writes the tick only if it moved on, so that the line is not dirtied by every packet.
#[inline(always)]
pub(super) fn touch(bucket: &mut Bucket, way: usize, tick: u16) {
    if bucket.seen[way & (WAYS - 1)] != tick {
        bucket.seen[way & (WAYS - 1)] = tick;
    }
}
