//! A flow's first packet: a record is started on a free way of the bucket, or on that of the flow which is given up soonest
//! (`sensor_common::table::eviction_rank`) and which goes to the agent whole. Called by [`super::account`] for what was not found.
//!
//! Under the bucket's lock, so that two CPUs do not start one flow twice. A tag is written after all else: whoever finds it finds
//! a whole record.

use sensor_common::counter::{Cause, InterfaceCounters};
use sensor_common::flow::{FlowRecord, note, state};
use sensor_common::packet::protocol;
use sensor_common::table::{
    Bucket, Pressure, Votes, WAYS, bucket_of, crowd_of, eviction_rank, idle_of, is_same, is_spare, network_of,
    occupied_ways, tag_of, tick_of,
};
use sensor_common::tcp;
use sensor_common::verdict::Verdict;

use super::find::{HIT, find};
use super::update::{unlock, update};
use super::{CREATED, REFUSED, Visit};
use crate::datapath::control;
use crate::maps::{BUCKETS, INDEX, RECORDS};
use crate::record::{count, evict, stage, start};
use crate::{atomic, lock};

/// Starts a record for a flow that has none.
///
/// # Safety
/// Both pointers are valid, or null.
#[unsafe(no_mangle)]
#[inline(never)]
pub(super) unsafe extern "C" fn sensor_insert(visit: *const Visit, hash: u32, counters: *mut InterfaceCounters) -> u64 {
    if visit.is_null() || counters.is_null() {
        return REFUSED | Cause::Internal as u64;
    }
    // SAFETY: just tested, and the caller's.
    let (visit, counters) = unsafe { (&*visit, &mut *counters) };
    let created = counters.flows_created;
    match insert(visit, hash, counters) {
        Ok(()) if counters.flows_created != created => CREATED,
        Ok(()) => 0,
        Err(cause) => REFUSED | cause as u64,
    }
}

#[inline(always)]
fn insert(visit: &Visit, hash: u32, counters: &mut InterfaceCounters) -> Result<(), Cause> {
    let number = bucket_of(hash, BUCKETS.load());
    let bucket = INDEX.get_ptr_mut(number).ok_or(Cause::Internal)?;
    // SAFETY: a map value.
    let word = unsafe { &raw mut (*bucket).lock };
    // SAFETY: 4 aligned bytes of a map value.
    let free = unsafe { lock::take(word) }.ok_or(Cause::BucketBusy)?;
    let outcome = insert_locked(visit, hash, number, bucket, counters);
    // SAFETY: 4 aligned bytes of a map value, whose lock this CPU holds.
    unsafe { lock::give_back(word, free) };
    outcome
}

#[inline(always)]
fn insert_locked(
    visit: &Visit,
    hash: u32,
    number: u32,
    bucket: *mut Bucket,
    counters: &mut InterfaceCounters,
) -> Result<(), Cause> {
    let tick = tick_of(visit.now_ns);
    let evict_idle = control().ok_or(Cause::Internal)?.evict_idle_ticks;
    // Another CPU may have started the flow between the look-up and the lock: a second record would split its counts.
    if let Some(found) = find(&visit.packet, hash)?
        && update(found, visit, counters, true)?
    {
        return Ok(());
    }
    // SAFETY: a map value; this CPU holds the bucket's lock, and the other writers (seen, stages) only make a choice stale.
    let bucket = unsafe { &mut *bucket };
    // SAFETY: a reference.
    let mut victim = unsafe { sensor_victim(bucket, tick as u32, evict_idle, 0) };
    if victim & SPARE == 0 {
        // The bucket is full of flows: whether one network crowds it is in their records.
        let crowd = crowd(number, bucket.high);
        let opens = visit.packet.key.protocol == protocol::TCP && tcp::is_first_syn(visit.packet.tcp_flags);
        let more = crowd | (opens as u32) << OPENS_SHIFT;
        if crowd != 0 {
            // SAFETY: a reference.
            victim = unsafe { sensor_victim(bucket, tick as u32, evict_idle, more) };
        }
    }
    if victim & HIT == 0 {
        return Err(Cause::BucketFull);
    }
    let way = victim as usize & (WAYS - 1);
    let record = RECORDS.get_ptr_mut(number * WAYS as u32 + way as u32).ok_or(Cause::Internal)?;
    // SAFETY: a map value.
    let sequence = unsafe { lock::take(&raw mut (*record).sequence) }.ok_or(Cause::RecordBusy)?;
    let ways = occupied_ways(&bucket.tags);
    let occupied = bucket.tags[way] != 0;
    bucket.tags[way] = 0;
    // SAFETY: under the record's lock this CPU is the only writer.
    let contents = unsafe { &mut *record };
    if occupied {
        evict(contents, counters);
    }
    start(contents, visit, ways);
    inherit(contents, visit);
    count(contents, visit);
    bucket.stages[way] = stage(contents);
    bucket.seen[way] = tick;
    bucket.set_high(way, contents.state & state::INITIATOR_HIGH != 0);
    // Whoever finds the tag finds a whole record. Before the record is unlocked: else the agent could release it first,
    // and the tag would lead to a record that was already handed over.
    // SAFETY: in bounds of a map value.
    unsafe { atomic::release((&raw mut bucket.tags).cast::<u32>().add(way), tag_of(hash)) };
    unlock(record, sequence);
    counters.flows_created += 1;
    Ok(())
}

/// A record begins with the verdict that its first packet met.
#[inline(always)]
pub(super) fn inherit(record: &mut FlowRecord, visit: &Visit) {
    if visit.verdict != 0 {
        record.verdict = Verdict(visit.verdict).with_generation(record.generation).0;
    }
    if visit.frees != 0 {
        record.steady |= note::FREED;
    }
}

/// Bit of what [`sensor_victim`] returns: the way is free, or its flow is closed.
const SPARE: u64 = 1 << 9;
/// Bit of its last argument, above those of the ways of a network that crowds the bucket: the packet opens a
/// connection.
const OPENS_SHIFT: u32 = WAYS as u32;

/// The way of the bucket that is given up soonest, with [`HIT`]; 0 if none is. A function of its own for the reason that
/// `sensor_find` is.
///
/// # Safety
/// The pointer is valid, or null.
#[unsafe(no_mangle)]
#[inline(never)]
unsafe extern "C" fn sensor_victim(bucket: *const Bucket, tick: u32, evict_idle: u32, crowd: u32) -> u64 {
    if bucket.is_null() {
        return 0;
    }
    // SAFETY: just tested, and the caller's.
    let Bucket { tags, stages, seen, high, .. } = unsafe { &*bucket };
    // The same rank; but to the verifier a number that it knows nothing of, so that it walks the next way once and not
    // for each rank of this one.
    let zero = high >> WAYS;
    let (mut best, mut way) = (0, 0);
    for candidate in 0..WAYS {
        let pressure = Pressure {
            idle: idle_of(tick as u16, seen[candidate]) as u32,
            evict_idle,
            crowds: crowd >> candidate & 1 != 0,
            opens: crowd >> OPENS_SHIFT & 1 != 0,
        };
        let rank = eviction_rank(tags[candidate], stages[candidate], pressure) ^ zero;
        if rank > best {
            best = rank;
            way = candidate;
        }
    }
    if best == 0 {
        return 0;
    }
    HIT | way as u64 | if is_spare(best) { SPARE } else { 0 }
}

/// Bit n: way n of bucket `number` belongs to the network that crowds it ([`Votes`]). `high`: [`Bucket::high`].
#[inline(always)]
fn crowd(number: u32, high: u32) -> u32 {
    // SAFETY: no pointers.
    unsafe { sensor_crowd(number, high) as u32 }
}

/// See [`crowd`].
///
/// # Safety
/// None.
#[unsafe(no_mangle)]
#[inline(never)]
unsafe extern "C" fn sensor_crowd(number: u32, high: u32) -> u64 {
    let mut votes = Votes::default();
    for way in 0..WAYS {
        let Some(network) = network_in(number, way, high) else { return 0 };
        votes.add(network);
    }
    let (leader, mut ways) = (votes.leader(), 0);
    for way in 0..WAYS {
        let Some(network) = network_in(number, way, high) else { return 0 };
        ways |= is_same(network, leader) << way;
    }
    crowd_of(ways)
}

/// The network that the flow in a way came from. Programs on other CPUs may be writing the record: what comes of a
/// mixture is another flow that is given up.
#[inline(always)]
fn network_in(number: u32, way: usize, high: u32) -> Option<u64> {
    let record = RECORDS.get_ptr(number * WAYS as u32 + way as u32)?;
    // SAFETY: a map value.
    let key = unsafe { &(*record).key };
    // Without a branch, as in `Votes`.
    let from_high = (high >> way & 1).wrapping_neg();
    let word = |position: usize| key.low[position] ^ (key.low[position] ^ key.high[position]) & from_high;
    Some(network_of([word(0), word(1)], key.family))
}
