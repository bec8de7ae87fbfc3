//! The flow table as the programs use it: find, lock, update, claim. Geometry and policy are in `sensor_common::table`.
//!
//! Locks: a record's sequence word guards its contents, a bucket's lock word guards the giving away of its ways. Order:
//! bucket, then record. Both are waited for, for a bounded time; giving up is counted and the packet passes.
//!
//! The functions with C linkage are "global functions" of BPF: the verifier walks each once, on its own, with nothing
//! known of its arguments but their types. Without them it would walk the table's code again for each of the hundreds
//! of ways through the parser. Such functions must test their pointers and return a number.

use sensor_common::control::Control;
use sensor_common::counter::{Cause, Hook, InterfaceCounters};
use sensor_common::cut::Cut;
use sensor_common::flow::FlowRecord;
use sensor_common::flow::state;
use sensor_common::hash;
use sensor_common::packet::{Packet, protocol};
use sensor_common::table::{
    Bucket, STAGE_HELD, WAYS, bucket_of, eviction_rank, occupied_ways, stage_of, tag_of, tick_of,
};
use sensor_common::verdict::{Action, Verdict, cleared, local_end};

use crate::atomic;
use crate::context;
use crate::datapath::{coarse_ns, control, now_ns};
use crate::lock;
use crate::maps::{BUCKETS, INDEX, RECORDS, cut, seed};
use crate::record::{self, count, evict, restart, start};
use crate::verdicts::{self, CLEARED, HALF_OPEN};

/// A packet on its visit to the table.
#[repr(C)]
pub(crate) struct Visit {
    pub(crate) packet: Packet,
    /// Arrival, monotonic ns; 0 until somebody needs it.
    pub(crate) now_ns: u64,
    pub(crate) ifindex: u32,
    /// Number of a [`Hook`]. No byte of this struct may be left unwritten.
    pub(crate) hook: u32,
    /// The verdict word, without its generation, of the record that the packet begins.
    pub(crate) verdict: u64,
}

impl Visit {
    #[inline(always)]
    pub(crate) fn is_egress(&self) -> bool {
        self.hook == Hook::Egress as u32
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

/// The number of the action that is done with a packet whose record holds a verdict word; `None` if the packet begins
/// another connection, on the tuple of a closed one, which the word was not for.
#[inline(always)]
fn obey(
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
    if unsafe { &*found.record }.is_reopened_by(&visit.packet) {
        return None;
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
        && control.exempt_slots == 0
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

#[inline(always)]
fn generation(record: *const FlowRecord) -> u32 {
    // SAFETY: a map value, which other CPUs write.
    unsafe { (&raw const (*record).generation).read_volatile() }
}

/// The way that holds the packet's flow, without any lock: `update` looks again under the record's.
#[inline(always)]
pub(crate) fn find(packet: &Packet, hash: u32) -> Result<Option<Found>, Cause> {
    let number = bucket_of(hash, BUCKETS.load());
    let tag = tag_of(hash);
    let bucket = INDEX.get_ptr_mut(number).ok_or(Cause::Internal)?;
    let mut way = 0;
    // SAFETY: `way` is in bounds of a map value. Volatile: other CPUs write it.
    while unsafe { (&raw const (*bucket).tags).cast::<u32>().add(way).read_volatile() } != tag {
        way += 1;
        if way == WAYS {
            return Ok(None);
        }
    }
    if cut(Cut::Bucket) {
        return Err(Cause::Internal);
    }
    // The same number; but to the verifier one that it knows nothing of, so that it walks what follows once and not for
    // each way.
    // SAFETY: a map value.
    let zero = unsafe { (&raw const (*bucket).high).read_volatile() } >> WAYS;
    let way = (way as u32 ^ zero) & (WAYS as u32 - 1);
    let record = RECORDS.get_ptr_mut(number * WAYS as u32 + way).ok_or(Cause::Internal)?;
    // SAFETY: a map value. A half-written key can at worst fail to match, or match a record that `update` refuses.
    let generation = unsafe { (&raw const (*record).generation).read_volatile() };
    // SAFETY: as above.
    if unsafe { &(*record).key }.same(&packet.key) {
        return Ok(Some(Found { bucket, record, way: way as usize, tag, generation }));
    }
    find_behind(packet, hash)
}

/// As [`find`], where another flow of the bucket has the same tag: rare, so not part of it.
#[inline(always)]
fn find_behind(packet: &Packet, hash: u32) -> Result<Option<Found>, Cause> {
    // SAFETY: a reference.
    let answer = unsafe { sensor_find(packet, hash) };
    if answer & HIT == 0 {
        return Ok(None);
    }
    let way = answer as u32 & (WAYS as u32 - 1);
    let number = bucket_of(hash, BUCKETS.load());
    let bucket = INDEX.get_ptr_mut(number).ok_or(Cause::Internal)?;
    let record = RECORDS.get_ptr_mut(number * WAYS as u32 + way).ok_or(Cause::Internal)?;
    Ok(Some(Found { bucket, record, way: way as usize, tag: tag_of(hash), generation: (answer >> 32) as u32 }))
}

/// Bit of what [`sensor_find`] returns: the low bits are the way, and the upper half is the record's generation.
const HIT: u64 = 1 << 8;

/// See [`find_behind`]. A function of its own, so that the verifier walks what follows once, and not for each way.
///
/// # Safety
/// The pointer is valid, or null.
#[unsafe(no_mangle)]
#[inline(never)]
unsafe extern "C" fn sensor_find(packet: *const Packet, hash: u32) -> u64 {
    if packet.is_null() {
        return 0;
    }
    // SAFETY: just tested, and the caller's.
    let packet = unsafe { &*packet };
    let number = bucket_of(hash, BUCKETS.load());
    let Some(bucket) = INDEX.get_ptr_mut(number) else { return 0 };
    let tag = tag_of(hash);
    for way in 0..WAYS {
        // SAFETY: `way` is in bounds of a map value. Volatile: other CPUs write it.
        if unsafe { (&raw const (*bucket).tags).cast::<u32>().add(way).read_volatile() } != tag {
            continue;
        }
        let Some(record) = RECORDS.get_ptr_mut(number * WAYS as u32 + way as u32) else { return 0 };
        // SAFETY: a map value. A half-written key can at worst fail to match, or match a record that `update` refuses.
        let generation = unsafe { (&raw const (*record).generation).read_volatile() };
        // SAFETY: as above.
        if unsafe { &(*record).key }.same(&packet.key) {
            return (generation as u64) << 32 | HIT | way as u64;
        }
    }
    0
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
fn drop_packet(found: Found, visit: &Visit) -> Action {
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

/// Writes the tick only if it moved on, so that the line is not dirtied by every packet.
#[inline(always)]
fn touch(bucket: &mut Bucket, way: usize, tick: u16) {
    if bucket.seen[way & (WAYS - 1)] != tick {
        bucket.seen[way & (WAYS - 1)] = tick;
    }
}

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
fn fetch(found: Found, packet: &Packet) {
    let record = found.record;
    // SAFETY: map values; what is read is not used.
    unsafe {
        let high = (&raw const (*found.bucket).high).read_volatile() >> found.way & 1;
        let [forward, reverse] = [&raw const (*record).directions[0], &raw const (*record).directions[1]];
        let half = if packet.from_low as u32 == high { reverse } else { forward };
        (&raw const (*record).last_ns).read_volatile();
        (&raw const (*half).last_ns).read_volatile();
        (&raw const (*half).iat_square_low).read_volatile();
        (&raw const (*half).size_bins[0]).read_volatile();
    }
}

/// Counts the packet in the record that was found; false if the record was given to another flow meanwhile, or (unless
/// `reopens`) if the packet begins another connection on the tuple of a closed one: that one has not been screened.
#[inline(always)]
fn update(found: Found, visit: &Visit, counters: &mut InterfaceCounters, reopens: bool) -> Result<bool, Cause> {
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
    // SAFETY: a map value; see `drop_packet`.
    let bucket = unsafe { &mut *found.bucket };
    let way = found.way & (WAYS - 1);
    let mut established = false;
    if record.is_reopened_by(&visit.packet) {
        if !reopens {
            unlock(found.record, sequence);
            return Ok(false);
        }
        restart(record, bucket, visit, counters);
        inherit(record, visit);
        bucket.stages[way] = 1;
        bucket.set_high(way, record.state & state::INITIATOR_HIGH != 0);
    } else {
        let may_change = record::update(record, visit);
        let stage = bucket.stages[way];
        // Only a packet in many changes the stage: when the count outgrows it, when TCP closes, when a hold ends.
        if may_change || stage & STAGE_HELD != 0 {
            let new = stage_of(record.packets(), record.state & state::CLOSED != 0);
            if new != stage {
                bucket.stages[way] = new;
                established = record.state & state::ESTABLISHED != 0;
            }
        }
    }
    unlock(found.record, sequence);
    if established && control().is_some_and(|control| control.note_known != 0) {
        verdicts::note_known(found.record, visit);
    }
    touch(bucket, way, tick_of(visit.now_ns));
    Ok(true)
}

/// Starts a record for a flow that has none.
///
/// # Safety
/// Both pointers are valid, or null.
#[unsafe(no_mangle)]
#[inline(never)]
unsafe extern "C" fn sensor_insert(visit: *const Visit, hash: u32, counters: *mut InterfaceCounters) -> u64 {
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
    let idle_ticks = control().ok_or(Cause::Internal)?.evict_idle_ticks;
    // Another CPU may have started the flow between the look-up and the lock: a second record would split its counts.
    if let Some(found) = find(&visit.packet, hash)?
        && update(found, visit, counters, true)?
    {
        return Ok(());
    }
    // SAFETY: a map value; this CPU holds the bucket's lock, and the other writers (seen, stages) only make a choice stale.
    let bucket = unsafe { &mut *bucket };
    // SAFETY: a reference.
    let victim = unsafe { sensor_victim(bucket, tick as u32, idle_ticks) };
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
    bucket.stages[way] = stage_of(contents.packets(), contents.state & state::CLOSED != 0);
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
fn inherit(record: &mut FlowRecord, visit: &Visit) {
    if visit.verdict != 0 {
        record.verdict = Verdict(visit.verdict).with_generation(record.generation).0;
    }
}

/// The way of the bucket that is given up soonest, with [`HIT`]; 0 if none is. A function of its own for the reason that
/// [`sensor_find`] is.
///
/// # Safety
/// The pointer is valid, or null.
#[unsafe(no_mangle)]
#[inline(never)]
unsafe extern "C" fn sensor_victim(bucket: *const Bucket, tick: u32, idle_ticks: u32) -> u64 {
    if bucket.is_null() {
        return 0;
    }
    // SAFETY: just tested, and the caller's.
    let Bucket { tags, stages, seen, .. } = unsafe { &*bucket };
    let (mut best, mut way) = (0, 0);
    for candidate in 0..WAYS {
        let rank = eviction_rank(tags[candidate], stages[candidate], seen[candidate], tick as u16, idle_ticks);
        if rank > best {
            best = rank;
            way = candidate;
        }
    }
    if best == 0 { 0 } else { HIT | way as u64 }
}
