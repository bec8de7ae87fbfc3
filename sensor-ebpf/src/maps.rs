//! Maps and load-time constants. Sizes here are the smallest; the agent sets the real ones at load.

use aya_ebpf::Global;
use aya_ebpf::bindings::{BPF_F_MMAPABLE, BPF_F_NO_PREALLOC};
use aya_ebpf::macros::map;
use aya_ebpf::maps::{Array, HashMap, LpmTrie, PerCpuArray, RingBuf};
use sensor_common::context::Set;
use sensor_common::control::Control;
use sensor_common::counter::{INTERFACE_PROBES, InterfaceCounters, MIN_INTERFACES, counter_entries, interface_slot};
use sensor_common::flow::{FlowKey, FlowRecord};
use sensor_common::fragment;
use sensor_common::hash::{SEED_WORDS, Seed};
use sensor_common::lock::PATIENCE_NS;
use sensor_common::packet::{Options, Ports};
use sensor_common::table::{Bucket, EVICTED_BYTES, MIN_BUCKETS, WAYS};
use sensor_common::verdict::{
    Entry, KNOWN_SETS, KnownSet, MAX_ALLOWED, MAX_SERVICES, PORT_WORDS, PrefixData, REPEAT_SETS, RepeatSet, ServiceKey,
};

use crate::atomic;

/// Bucket lines, mmapped by the agent.
#[map]
pub(crate) static INDEX: Array<Bucket> = Array::with_max_entries(MIN_BUCKETS, BPF_F_MMAPABLE);

/// Flow records, mmapped by the agent.
#[map]
pub(crate) static RECORDS: Array<FlowRecord> = Array::with_max_entries(MIN_BUCKETS * WAYS as u32, BPF_F_MMAPABLE);

/// The control page, mmapped by the agent.
#[map]
pub(crate) static CONTROL: Array<Control> = Array::with_max_entries(1, BPF_F_MMAPABLE);

/// Counters by interface slot; a slot is in use if its `ifindex` is set.
#[map]
static COUNTERS: PerCpuArray<InterfaceCounters> = PerCpuArray::with_max_entries(counter_entries(MIN_INTERFACES), 0);

/// Slots of [`COUNTERS`], a power of two.
#[unsafe(no_mangle)]
static INTERFACE_SLOTS: Global<u32> = Global::new(MIN_INTERFACES);

/// First fragments of datagrams, for the later ones.
#[map]
pub(crate) static FRAGMENTS: Array<fragment::Slot> = Array::with_max_entries(fragment::SLOTS, 0);

/// Records that were given up for a new flow, whole.
#[map]
pub(crate) static EVICTED: RingBuf = RingBuf::with_byte_size(EVICTED_BYTES, 0);

/// Sources and services of the host context, mmapped by the agent.
#[map]
pub(crate) static SOURCES: Array<Set> = Array::with_max_entries(1, BPF_F_MMAPABLE);

/// See [`SOURCES`].
#[map]
pub(crate) static SERVICES: Array<Set> = Array::with_max_entries(1, BPF_F_MMAPABLE);

/// Verdicts on flows. Memory for an entry is taken when it is written, here and in the maps below but for the arrays.
#[map]
pub(crate) static FLOW_VERDICTS: HashMap<FlowKey, Entry> = HashMap::with_max_entries(1, BPF_F_NO_PREALLOC);

/// Verdicts on single source addresses; those that find no place are in [`SOURCE_VERDICTS`].
#[map]
pub(crate) static SINGLE_SOURCES: HashMap<PrefixData, Entry> = HashMap::with_max_entries(1, BPF_F_NO_PREALLOC);

/// Verdicts on prefixes of sources.
#[map]
pub(crate) static SOURCE_VERDICTS: LpmTrie<PrefixData, Entry> = LpmTrie::with_max_entries(1, 0);

/// Limits of half-open attempts to services, and (port 0) to addresses.
#[map]
pub(crate) static SERVICE_LIMITS: HashMap<ServiceKey, Entry> =
    HashMap::with_max_entries(MAX_SERVICES, BPF_F_NO_PREALLOC);

/// Prefixes that are never dropped, with flags.
#[map]
pub(crate) static ALLOWED: LpmTrie<PrefixData, u32> = LpmTrie::with_max_entries(MAX_ALLOWED, 0);

/// Ports that are never dropped, a bit each (`sensor_common::verdict::port_bit`).
#[map]
pub(crate) static ALLOWED_PORTS: Array<u64> = Array::with_max_entries(PORT_WORDS, 0);

/// Sources that completed a handshake, and when (`sensor_common::verdict::known`).
#[map]
pub(crate) static KNOWN: Array<KnownSet> = Array::with_max_entries(KNOWN_SETS, 0);

/// Half-open attempts that were dropped, and when (`sensor_common::verdict::repeat`).
#[map]
pub(crate) static REPEATS: Array<RepeatSet> = Array::with_max_entries(REPEAT_SETS, 0);

/// Sets of [`SOURCES`], a power of two; 0 = no context is kept.
#[unsafe(no_mangle)]
pub(crate) static SOURCE_SETS: Global<u32> = Global::new(0);

/// Sets of [`SERVICES`], a power of two; 0 = no context is kept.
#[unsafe(no_mangle)]
pub(crate) static SERVICE_SETS: Global<u32> = Global::new(0);

/// Number of buckets, a power of two.
#[unsafe(no_mangle)]
pub(crate) static BUCKETS: Global<u32> = Global::new(MIN_BUCKETS);

/// Where the time of a packet comes from (`sensor_common::control::CLOCK_*`).
#[unsafe(no_mangle)]
pub(crate) static CLOCK: Global<u8> = Global::new(0);

/// Tunnels whose inner flows are read (`sensor_common::packet::Options::tunnels`).
#[unsafe(no_mangle)]
static TUNNELS: Global<u8> = Global::new(0);

/// 1: the first payload bytes are read (`sensor_common::packet::Options::payload_hints`).
#[unsafe(no_mangle)]
static PAYLOAD_HINTS: Global<u8> = Global::new(0);

/// UDP ports of VXLAN and of Geneve (`sensor_common::packet::Ports::packed`).
#[unsafe(no_mangle)]
static VXLAN_PORTS: Global<u64> = Global::new(Ports::VXLAN.packed());

/// See [`VXLAN_PORTS`].
#[unsafe(no_mangle)]
static GENEVE_PORTS: Global<u64> = Global::new(Ports::GENEVE.packed());

/// What the parser reads. The verifier knows these numbers, and does not walk what they switch off.
#[inline(always)]
pub(crate) fn parser_options() -> Options {
    let options = Options { tunnels: TUNNELS.load(), payload_hints: PAYLOAD_HINTS.load() != 0, ..Options::NONE };
    if options.tunnels == 0 {
        // Ports are not loaded for nothing.
        return options;
    }
    Options {
        vxlan_ports: Ports::from_packed(VXLAN_PORTS.load()),
        geneve_ports: Ports::from_packed(GENEVE_PORTS.load()),
        ..options
    }
}

/// How long a packet waits for a lock at most, ns. Benches try others.
#[unsafe(no_mangle)]
pub(crate) static LOCK_PATIENCE_NS: Global<u64> = Global::new(PATIENCE_NS);

/// 1 on CPUs that do not reorder stores (x86-64), where giving a lock back needs no barrier.
#[unsafe(no_mangle)]
pub(crate) static STRONG_ORDER: Global<u8> = Global::new(0);

/// Hash keys of this load.
#[unsafe(no_mangle)]
static SEED: Seed = [0; SEED_WORDS];

/// The i-th hash key.
#[inline(always)]
pub(crate) fn seed(position: usize) -> u64 {
    // SAFETY: in bounds for every caller (the positions are constants below SEED_WORDS). Volatile, because the agent
    // changes the constant between compilation and load.
    unsafe { (&raw const SEED).cast::<u64>().add(position).read_volatile() }
}

/// This CPU's counters of a watched interface. One slot is looked at for most interfaces, watched or not.
#[inline(always)]
pub(crate) fn counters(ifindex: u32) -> Option<&'static mut InterfaceCounters> {
    let mut attempt = 0;
    while attempt < INTERFACE_PROBES {
        let slot = COUNTERS.get_ptr_mut(interface_slot(ifindex, attempt, INTERFACE_SLOTS.load()))?;
        // SAFETY: a per-CPU map value; programs on one CPU do not preempt each other at this hook, and the agent only reads
        // (it sets `ifindex` before it attaches).
        let slot = unsafe { &mut *slot };
        if slot.ifindex == ifindex {
            return Some(slot);
        }
        if slot.ifindex == 0 {
            return None;
        }
        // A loop for the verifier, too: unrolled, it would take a place on the stack for each key.
        attempt = atomic::opaque(attempt as u64 + 1) as u32;
    }
    None
}
