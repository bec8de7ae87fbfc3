//! The verdict on a packet's source: that of its address, else that of the longest prefix around it.
//!
//! Most of what is blocked is single addresses: those are asked for in a hash map first, at one cache miss or two, as the
//! prefix tree is walked bit by bit. A map that the control page calls empty is not asked. An entry of the hash map whose time
//! is over is as if it were not there; in the tree it hides shorter prefixes until the agent removes it. Called by
//! `screen` for packets without a record, and by `obey` for those under a rate.

use sensor_common::control::Control;
use sensor_common::verdict::{Entry, PrefixKey};

use super::entry::prefix_entry;
use crate::maps::{SINGLE_SOURCES, SOURCE_VERDICTS};
use crate::table::Visit;

/// The entry that counts for the remote end of a packet, or null. `maps`: [`Control::source_maps`].
#[inline(always)]
pub(super) fn source_entry(visit: &Visit, maps: u32) -> *mut Entry {
    let key = peer(visit);
    // By reference: where the key is on the stack already.
    let single = &key.data;
    if maps & Control::SINGLE_SOURCES != 0
        && let Some(entry) = SINGLE_SOURCES.get_ptr_mut(single)
        // SAFETY: a map value, which the agent writes whole.
        && unsafe { (*entry).until_ns } > visit.now_ns
    {
        return entry;
    }
    if maps & Control::SOURCE_PREFIXES != 0 { prefix_entry(&SOURCE_VERDICTS, &key) } else { core::ptr::null_mut() }
}

/// Key of the remote end's address: the sender of what comes in, the receiver of what goes out.
#[inline(always)]
fn peer(visit: &Visit) -> PrefixKey {
    let packet = &visit.packet;
    let low = packet.from_low != visit.is_egress();
    PrefixKey::of(if low { packet.key.low } else { packet.key.high }, packet.key.family)
}
