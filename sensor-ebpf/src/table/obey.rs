//! What the verdict in a record does with a packet of its flow: [`obey`] for `sensor_account`, [`is_tagged`] for `sensor_tag`.
//!
//! A verdict holds for the generation that it was given to, until its time or the agent's lease is over, and never against
//! the never-drop list (`crate::verdicts`). The lock is taken only to note that nothing protects the flow.

use sensor_common::control::Control;
use sensor_common::counter::InterfaceCounters;
use sensor_common::packet::protocol;
use sensor_common::table::{STAGE_HELD, WAYS, tick_of};
use sensor_common::tcp;
use sensor_common::verdict::{Action, Origin, Verdict, cleared, local_end};

use super::find::generation;
use super::update::{lock_found, touch, unlock};
use super::{Found, Visit};
use crate::atomic;
use crate::datapath::{coarse_ns, now_ns};
use crate::record;
use crate::verdicts::{self, CLEARED};

/// The number of the action that is done with a packet whose record holds a verdict word; `None` if the packet begins
/// another connection, on the tuple of a closed one, which the word was not for.
#[inline(always)]
pub(super) fn obey(
    found: Found,
    visit: &mut Visit,
    verdict: Verdict,
    control: &Control,
    counters: &mut InterfaceCounters,
) -> Option<u64> {
    visit.now_ns = coarse_ns(control);
    let action = verdict.action_at(found.generation, visit.now_ns);
    if action == Action::Pass {
        return Some(Action::Pass as u64);
    }
    // SAFETY: a map value; only a hint, whoever inserts looks again under the lock.
    let record = unsafe { &*found.record };
    if tcp::is_first_syn(visit.packet.tcp_flags) {
        let news = record::news(record, visit);
        if news == record::REOPENS {
            return None;
        }
        if news == record::SUPERSEDES && verdict.origin() == Origin::Model as u8 {
            visit.frees = 1;
            return None;
        }
    }
    if control.lease_until_ns <= visit.now_ns {
        counters.lease_expired += 1;
        return Some(Action::Pass as u64);
    }
    // SAFETY: a map value, which the agent writes. Before the never-drop list is looked at: what is found is of this epoch.
    let epoch = unsafe { (&raw const control.allow_epoch).read_volatile() };
    // What nearly every packet of a flow to be dropped meets, and no more than that, whatever the mode. Of ICMP, some packets
    // of a flow are protected and others are not.
    if action == Action::Drop
        && control.any_exempt == 0
        && visit.packet.key.protocol != protocol::ICMP
        && visit.packet.key.protocol != protocol::ICMPV6
        && verdicts::is_cleared(found.record, visit, epoch)
        && generation(found.record) == found.generation
    {
        return Some(verdicts::settled(visit, verdict, false, control, counters) as u64);
    }
    // Rates are of finer grain than the timer.
    if action == Action::Limit {
        visit.now_ns = now_ns(control);
    }
    let answer = verdicts::obey(found.record, visit, verdict, counters);
    if answer & CLEARED != 0 && !verdicts::is_cleared(found.record, visit, epoch) {
        // Under the lock: else what was found of this flow could be noted of the next one in the slot.
        if let Ok(Some(sequence)) = lock_found(found) {
            let end = local_end(visit.packet.from_low, visit.is_egress());
            // SAFETY: a map value, whose lock this CPU holds.
            unsafe { (*found.record).cleared = cleared((*found.record).cleared, epoch, end) };
            unlock(found.record, sequence);
        }
    }
    Some(answer & 0xff)
}

/// Whether a packet of the flow is to be marked: its verdict asks for a tag, or for more than the ceiling allows.
#[inline(always)]
pub(crate) fn is_tagged(found: Found, visit: &Visit, control: &Control) -> bool {
    let verdict = verdicts::word(found.record);
    if !verdict.is_some() {
        return false;
    }
    let now_ns = coarse_ns(control);
    let action = verdict.action_at(found.generation, now_ns);
    if action.min(control.ceiling(verdict.origin())) != Action::Tag || control.lease_until_ns <= now_ns {
        return false;
    }
    // What nothing may drop is not marked in place of a drop either; the ingress program, which came before, has noted it.
    action == Action::Tag || verdicts::is_cleared(found.record, visit, control.allow_epoch)
}

/// A dropped packet costs no lock: it is counted, and its flow stays in the table.
#[inline(always)]
pub(super) fn drop_packet(found: Found, visit: &Visit) -> Action {
    let way = found.way & (WAYS - 1);
    // SAFETY: 8 aligned bytes of a map value.
    unsafe { atomic::add(&raw mut (*found.record).dropped, 1) };
    // SAFETY: a map value; only programs write seen and stage, and either value of a race will do.
    let bucket = unsafe { &mut *found.bucket };
    touch(bucket, way, tick_of(visit.now_ns));
    if bucket.stages[way] & STAGE_HELD == 0 {
        bucket.stages[way] |= STAGE_HELD;
    }
    Action::Drop
}
