//! The look-up of a packet's flow, without any lock: what it finds may be another flow's a moment later, so whoever writes
//! looks again under the record's lock ([`super::lock_found`]). Called for every packet, by `insert` once more under the bucket's
//! lock, and by `quotes` and `tag`.

use sensor_common::counter::Cause;
use sensor_common::cut::Cut;
use sensor_common::flow::FlowRecord;
use sensor_common::packet::Packet;
use sensor_common::table::{WAYS, bucket_of, tag_of};

use super::Found;
use crate::bench::cut;
use crate::maps::{BUCKETS, INDEX, RECORDS};

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
pub(super) const HIT: u64 = 1 << 8;

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

#[inline(always)]
pub(super) fn generation(record: *const FlowRecord) -> u32 {
    // SAFETY: a map value, which other CPUs write.
    unsafe { (&raw const (*record).generation).read_volatile() }
}
