//! The schema of the shared maps as one number: an agent adopts the maps of another only if both have the same.
//!
//! It follows from the names, offsets and types of all fields of all shared structs, nested ones included, so that a
//! change of the layout changes it by itself: a field that is missing below does not compile, and the loader refuses an
//! object with a map that is not in [`MAPS`]. Spare words are part of the layout: what is kept in them later, and a
//! cause that is added, leaves the number as it is. Only a change of *meaning* that leaves all names and places as they
//! are needs [`REVISION`]. Called by `sensor::bpf::pins` and the loader.

pub mod layout;

use core::mem::offset_of;

use bytemuck::{Pod, Zeroable};

pub(crate) use self::layout::layout;
use self::layout::{Layout, START, layout_of, text, word};
use crate::context::{self, Entry as ContextEntry, Set};
use crate::control::{Books, Control};
use crate::counter::{self, Cause, InterfaceCounters, MAX_INTERFACES, Volume};
use crate::flow::{Arrival, Direction, FlowKey, FlowRecord, Numbers, Opening, Pauses, Spare, note, state};
use crate::fragment::Slot;
use crate::hash::{SEED_WORDS, Seed};
use crate::table::{AGED, Bucket, EVICTED_BYTES, STAGE_HELD, STAGE_MASK, STAGE_PHASE, TICK_SHIFT, WAYS, phase};
use crate::verdict::{
    Action, Entry, KNOWN_SETS, KnownSet, MAX_ALLOWED, MAX_SERVICES, Origin, PORT_WORDS, PrefixData, PrefixKey,
    REPEAT_SETS, RepeatSet, ServiceKey, Verdict,
};

/// Raised by hand when what a field, a number or the hash means changes, but none of their names, types and places.
pub const REVISION: u64 = 5;

/// The schema of this build.
pub const VERSION: u64 = {
    let mut hash = word(START, REVISION);
    let mut position = 0;
    while position < MAPS.len() {
        hash = word(text(hash, MAPS[position].name), MAPS[position].layout);
        position += 1;
    }
    position = 0;
    while position < CAUSES {
        hash = text(hash, Cause::ALL[position].name());
        position += 1;
    }
    position = 0;
    while position < Action::ALL.len() {
        hash = text(hash, Action::ALL[position].name());
        position += 1;
    }
    position = 0;
    while position < Origin::ALL.len() {
        hash = text(hash, Origin::ALL[position].name());
        position += 1;
    }
    position = 0;
    while position < STATE.len() {
        hash = word(hash, STATE[position] as u64);
        position += 1;
    }
    // Of the words whose bits have names only in functions: one value.
    hash = word(hash, Verdict::new(Action::Drop, 0x5a, 0x1234, 77 << 40).of(Origin::Fleet).0);
    hash = word(hash, (STAGE_MASK as u64) << 16 | (STAGE_HELD as u64) << 8 | STAGE_PHASE as u64);
    hash = word(hash, (phase::ANSWERED as u64) << 16 | (phase::CLOSED as u64) << 8 | phase::ESTABLISHED as u64);
    hash = word(hash, (AGED as u64) << 8 | note::ALL as u64);
    word(word(hash, (WAYS as u64) << 8 | TICK_SHIFT as u64), counter::interface_slot(777, 3, 1024) as u64)
};

/// Causes that every version knows: one that is added behind them takes a slot that was 0 before.
const CAUSES: usize = 14;

/// Bits of a record's `state`, which its layout does not show.
const STATE: [u32; 24] = [
    state::INITIATOR_HIGH,
    state::INITIATOR_BY_SYN,
    state::SYN,
    state::SYN_ACK,
    state::ESTABLISHED,
    state::FIN,
    state::FIN_ACKED,
    state::RST,
    state::RST_EARLY,
    state::CLOSED,
    state::REVERSE,
    state::SELF,
    state::SYN_BACK,
    state::SYN_ACK_BACK,
    state::LAST_REVERSE,
    state::RUN_REVERSE,
    state::SEQUENCE_KNOWN,
    state::ACK_KNOWN,
    state::PAYLOAD,
    state::RST_REVERSE,
    state::RST_AFTER_FIN,
    state::FIN_REVERSE_FIRST,
    state::GRACEFUL,
    state::WAYS_SHIFT,
];

/// A map that programs and agents share.
#[derive(Clone, Copy, Debug)]
pub struct Map {
    /// Its name in the object, and that of its pin.
    pub name: &'static str,
    /// Bytes of a key; 0 of a ring.
    pub key_size: u32,
    /// Bytes of a value; 0 of a ring.
    pub value_size: u32,
    /// Hash of the layouts of key and value, and of the number of entries where it is fixed.
    layout: u64,
}

/// Every map of the agent's object, but for its constants and its messages.
pub const MAPS: &[Map] = &[
    map::<u32, Bucket>("INDEX", 0),
    map::<u32, FlowRecord>("RECORDS", 0),
    map::<u32, Control>("CONTROL", 1),
    map::<u32, InterfaceCounters>("COUNTERS", 0),
    map::<u32, Slot>("FRAGMENTS", crate::fragment::SLOTS as u64),
    map::<u32, Set>("SOURCES", 0),
    map::<u32, Set>("SERVICES", 0),
    map::<FlowKey, Entry>("FLOW_VERDICTS", 0),
    map::<PrefixData, Entry>("SINGLE_SOURCES", 0),
    map::<PrefixKey, Entry>("SOURCE_VERDICTS", 0),
    map::<ServiceKey, Entry>("SERVICE_LIMITS", MAX_SERVICES as u64),
    map::<PrefixKey, u32>("ALLOWED", MAX_ALLOWED as u64),
    map::<u32, u64>("ALLOWED_PORTS", PORT_WORDS as u64),
    map::<u32, KnownSet>("KNOWN", KNOWN_SETS as u64),
    map::<u32, RepeatSet>("REPEATS", REPEAT_SETS as u64),
    Map { name: "EVICTED", key_size: 0, value_size: 0, layout: word(FlowRecord::HASH, EVICTED_BYTES as u64) },
];

/// `entries`: 0 if they are set at load.
const fn map<K: Layout, V: Layout>(name: &'static str, entries: u64) -> Map {
    Map {
        name,
        key_size: size_of::<K>() as u32,
        value_size: size_of::<V>() as u32,
        layout: word(word(K::HASH, V::HASH), entries),
    }
}

/// What an agent leaves beside its pinned maps for the one that adopts them.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Pod, Zeroable)]
#[repr(C)]
pub struct Meta {
    /// [`VERSION`] of the agent that made the maps. First in every version of Sensor.
    pub version: u64,
    /// Device and inode of the network namespace that the interfaces' numbers belong to.
    pub netns: [u64; 2],
    /// The hash keys of the tables.
    pub seed: Seed,
    /// Interfaces on which the agent added the clsact qdisc, 0 = none.
    pub qdiscs: [u32; MAX_INTERFACES as usize],
    /// The agent's process, for messages: that it lives is told by its lock on the directory.
    pub pid: u32,
    /// Reserved, zero.
    pub reserved: u32,
    /// Kernel numbers of programs that may be filters under clsact, those of the last agent first; 0 = none. No name or map
    /// tells whose a filter is: to list programs takes CAP_SYS_ADMIN.
    pub programs: [u32; META_PROGRAMS],
}

/// Places in [`Meta::programs`]: three of each of the last agents, as takeovers can fail half-way.
pub const META_PROGRAMS: usize = 16;

const _: () = assert!(offset_of!(Meta, version) == 0 && SEED_WORDS % 2 == 1);

layout!(Bucket { tags, seen, stages, lock, high });
layout!(Volume { packets, bytes });
layout!(Arrival { iat_us, payload, flags, direction });
layout!(Control {
    lease_until_ns,
    replay_now_ns,
    tag_mark,
    tag_mask,
    tag_dscp,
    evict_idle_ticks,
    ceilings,
    allow_epoch,
    flow_verdicts,
    source_maps,
    service_limits,
    note_known,
    any_exempt,
    books,
    exempt,
    link_local,
    spare
});
layout!(Books { released, evicted, moving, target, reserved });
layout!(InterfaceCounters {
    ifindex,
    slot,
    seen,
    unrecorded,
    flows_created,
    evicted,
    evicted_lost_packets,
    evicted_lost_flows,
    tagged,
    lease_expired,
    context_replaced,
    context_lost,
    withheld,
    drops_of,
    protected,
    dropped_new,
    dropped_half_open,
    limit_busy,
    spare
});
layout!(FlowKey { low, high, low_port, high_port, protocol, family, encapsulation, reserved, vlans, tunnel });
layout!(Direction {
    last_ns,
    packets,
    l3_bytes,
    payload_bytes,
    l3_square,
    payload_square,
    iat_min_ns,
    iat_max_ns,
    iat_square_low,
    bulk_bytes,
    bulk_ns,
    l3_max,
    payload_max,
    iat_bins,
    size_bins,
    bulk_packets,
    acks,
    pushes,
    next,
    ack,
    usual,
    l3_min,
    payload_min,
    window_last,
    keep_alives,
    flags,
    iat_square_high,
    missing,
    gap_end,
    retransmitted,
    out_of_order,
    duplicate_acks,
    zero_windows,
    bulks,
    window_min,
    window_max,
    ttl_min,
    ttl_max,
    ip_seen,
    traffic_class
});
layout!(Opening {
    flow_label,
    fragments,
    version,
    window,
    mss,
    wscale,
    tcp_options,
    flags,
    ttl,
    extensions,
    hint_len,
    hint_text,
    hint_high,
    hint_entropy,
    icmp_type,
    icmp_code,
    reserved
});
layout!(Pauses {
    active_start_us,
    active_min_us,
    active_max_us,
    active_square_us2,
    idle_sum_us,
    idle_min_us,
    idle_max_us,
    idle_square_us2
});
layout!(FlowRecord {
    sequence,
    generation,
    verdict,
    key,
    last_ns,
    iat_min_ns,
    iat_max_ns,
    iat_square_low,
    frame_bytes,
    run_last_ns,
    iat_square_high,
    state,
    bursts,
    steady,
    until_stage,
    run_packets,
    first_len,
    directions,
    first,
    openings,
    ifindex,
    lost,
    first_ns,
    reply_ns,
    syn_ack_ns,
    established_ns,
    dropped,
    run_ns,
    run_bytes,
    subflows,
    idles,
    icmp_errors,
    error_type,
    error_code,
    cleared,
    pauses,
    numbers,
    spare
});
layout!(Spare { generation, words });
layout!(Numbers { first, aside_from, aside, reset, notes });
layout!(ContextEntry { cells, key, swept, current, previous, reserved });
layout!(Set { sequence, replaced, replaced_at, reserved, tags, last, weights, entries });
layout!(Entry {
    id,
    until_ns,
    action,
    origin,
    label,
    flags,
    sequence,
    packet_cost,
    byte_cost,
    packet_tat_ns,
    byte_tat_ns,
    packet_rest,
    byte_rest,
    reserved,
    packets,
    bytes
});
layout!(PrefixKey { bits, data });
layout!(ServiceKey { address, port, protocol, reserved });

impl Layout for context::Key {
    const HASH: u64 = layout_of(|key: &context::Key| &key.0);
}

#[cfg(test)]
mod tests {
    use super::*;

    /// What layouts cannot show. If this fails, raise [`REVISION`], and then change the number here.
    #[test]
    fn the_hash_is_that_of_this_revision() {
        let seed = |position: usize| 0x9e37_79b9_7f4a_7c15_u64.wrapping_mul(position as u64 * 2 + 1);
        let key = FlowKey::canonical([1, 2, 3, 4], [5, 6, 7, 8], 9, 10, 6, 6, crate::flow::Domain::default()).0;
        let hashes = (REVISION, crate::hash::hash(&key, seed), crate::hash::hash_words(&[1, 2, 3], seed));
        assert_eq!(hashes, (5, 3_364_507_731, 1_846_465_449));
    }

    /// An update of the agent keeps the flows of the one before only while this stays. What is added belongs into spare
    /// words, or behind the causes of today. If it must change, say so in CHANGELOG.md.
    #[test]
    fn the_schema_is_that_of_contract_3() {
        assert_eq!(VERSION, 12_667_661_266_568_462_480);
    }
}
