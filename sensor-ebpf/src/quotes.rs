//! ICMP errors: the flow whose packet one quotes, if it is in the table, learns of it. The error itself was counted in a
//! flow of its own.

use sensor_common::hash;

use crate::maps::seed;
use crate::parse::Source;
use crate::table::{self, Visit};

/// Tells the quoted flow. `visit` has been accounted; its packet's key is lost.
#[inline(always)]
pub(crate) fn quoted<S: Source>(source: S, visit: &mut Visit) {
    if source.quoted(&mut visit.packet) {
        // SAFETY: a reference.
        unsafe { sensor_quote(visit) };
    }
}

/// See [`quoted`]: the packet's key is that of the quoted flow.
///
/// # Safety
/// The pointer is valid, or null.
#[unsafe(no_mangle)]
#[inline(never)]
unsafe extern "C" fn sensor_quote(visit: *const Visit) -> u64 {
    if visit.is_null() {
        return 1;
    }
    // SAFETY: just tested, and the caller's.
    let visit = unsafe { &*visit };
    let packet = &visit.packet;
    let Ok(Some(found)) = table::find(packet, hash::hash(&packet.key, seed)) else { return 1 };
    let Ok(Some(sequence)) = table::lock_found(found) else { return 1 };
    // SAFETY: under the record's lock this CPU is the only writer.
    unsafe { &mut *found.record }.quoted(packet.icmp_type, packet.icmp_code);
    table::unlock(found.record, sequence);
    0
}
