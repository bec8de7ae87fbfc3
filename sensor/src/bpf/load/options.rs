//! What is fixed when the programs are loaded, and the sizes of maps that follow from it. Made by the agent of its
//! configuration, and by tests and benches.

use sensor_common::context::{DEFAULT_SERVICES, DEFAULT_SOURCES, ENTRIES};
use sensor_common::counter::{MIN_INTERFACES, counter_entries};
use sensor_common::hash::Seed;
use sensor_common::lock::PATIENCE_NS;
use sensor_common::packet;
use sensor_common::table::WAYS;

use crate::bpf::pins::Size;

/// Room for flows that are never dropped, beside the verdicts on flows in the same map: an attack that causes as many of those
/// as may be must not keep an operator's session from it. 256 flows, outside VLANs and in 16.
const ALLOWED_FLOWS: u32 = 256 * 17;

/// What is fixed when the programs are loaded.
#[derive(Clone, Debug)]
pub struct LoadOptions {
    /// Flows the table holds: a power of two from 8,192 to 1,048,576.
    pub flows: usize,
    /// Slots for interfaces: a power of two from 64 to 4,096.
    pub interfaces: u32,
    /// Whether frames of several buffers are accepted (needs kernel 5.18; see `probe`).
    pub frags: bool,
    /// Host context: sources and services that are kept (powers of two from 64 to 65,536), `None` = off.
    pub context: Option<(u32, u32)>,
    /// Most verdicts on flows, and as many on sources and prefixes: 1 to 1,048,576. Memory is taken for those there are.
    pub max_verdicts: u32,
    /// Most memory of all maps with all entries that they may get, bytes; the load fails if they could take more.
    pub max_memory: u64,
    /// Whether `sensor_tag` is loaded.
    pub tagging: bool,
    /// What the programs' parser reads beyond the ordinary.
    pub parser: packet::Options,
    /// Level of messages from the programs, 0 (off) to 5 (trace).
    pub log_level: u8,
    /// Packets are stamped by [`crate::bpf::sys::ControlPage::set_replay_clock`] instead of the kernel's clock.
    pub replay_clock: bool,
    /// What benches ask of the object made for them; `None`, which production always has: the agent's own is loaded.
    #[cfg(feature = "bench")]
    pub bench: Option<crate::bpf::bench::Bench>,
    /// How long a packet waits for a lock at most, ns, up to about 25,000. For benches.
    pub lock_patience_ns: u64,
    /// Hash keys; `None` draws them from the kernel's random source, which production always does.
    pub seed: Option<Seed>,
}

impl Default for LoadOptions {
    fn default() -> Self {
        LoadOptions {
            flows: 65_536,
            interfaces: MIN_INTERFACES,
            context: Some((DEFAULT_SOURCES, DEFAULT_SERVICES)),
            frags: true,
            max_verdicts: 12_000,
            max_memory: u64::MAX,
            tagging: false,
            parser: packet::Options::NONE,
            log_level: 0,
            replay_clock: false,
            #[cfg(feature = "bench")]
            bench: None,
            lock_patience_ns: PATIENCE_NS,
            seed: None,
        }
    }
}

impl LoadOptions {
    /// The maps whose size is set at load; the options are in range.
    pub fn sizes(&self) -> Vec<Size> {
        let buckets = (self.flows / WAYS) as u32;
        let (sources, services) = self.context.unwrap_or_default();
        let sets = |entries: u32| (entries / ENTRIES as u32).max(1);
        let size = |map, entries, setting, unit| Size { map, entries, setting: (setting, unit), spare: 0 };
        let verdicts = |map, spare| Size { spare, ..size(map, self.max_verdicts + spare, "policy.max_verdicts", 1) };
        vec![
            size("INDEX", buckets, "kernel.flows", WAYS as u32),
            size("RECORDS", buckets * WAYS as u32, "kernel.flows", 1),
            Size {
                spare: counter_entries(0),
                ..size("COUNTERS", counter_entries(self.interfaces), "kernel.max_interfaces", 1)
            },
            size("SOURCES", sets(sources), "context.sources", ENTRIES as u32),
            size("SERVICES", sets(services), "context.services", ENTRIES as u32),
            verdicts("FLOW_VERDICTS", ALLOWED_FLOWS),
            // Full, a prefix map refuses to replace what is in it (kernels before 6.13).
            verdicts("SOURCE_VERDICTS", 1),
            // Its index takes memory at the load; an address beyond goes into the map before. Behind the others, whose number is
            // the setting's: that is what an error about pinned maps names.
            size("SINGLE_SOURCES", 1 << self.max_verdicts.max(1).ilog2(), "policy.max_verdicts", 1),
        ]
    }
}
