//! Memory of the kernel maps: what they have after the load, what they can grow to, and whether the configuration allows it.
//! Called by [`super::load`] before any program is loaded.

use anyhow::{Context as _, ensure};
use aya::Ebpf;
use aya::maps::{Map, MapType};

use super::pins::map_data;

/// A bucket of a hash map (`struct bucket`, as many as entries, rounded up to a power of two), and the kernel's own part of an
/// entry (`struct htab_elem`), on 64-bit machines.
const HASH_BUCKET: u64 = 16;
const HASH_ENTRY: u64 = 48;
/// The same of a prefix map (`struct lpm_trie_node`), and what the allocator rounds it up by, at most.
const PREFIX_NODE: u64 = 40;
const ROUNDED: u64 = 24;

/// Memory of all maps, bytes.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Memory {
    /// Taken at the load.
    pub taken: u64,
    /// With every verdict, limit and prefix that there may be.
    pub most: u64,
    /// Of `taken`: mapped into this process, and so a part of its resident memory, too.
    pub mapped: u64,
}

/// Maps by the setting that makes them large.
const BY_SETTING: [(&str, &[&str]); 4] = [
    ("kernel.flows", &["INDEX", "RECORDS"]),
    ("context.sources and context.services", &["SOURCES", "SERVICES"]),
    ("kernel.max_interfaces", &["COUNTERS"]),
    ("policy.max_verdicts", &["FLOW_VERDICTS", "SOURCE_VERDICTS", "SINGLE_SOURCES"]),
];

impl Memory {
    /// Of the maps that were created.
    ///
    /// # Errors
    /// If the kernel does not say how large a map is.
    pub(super) fn of(ebpf: &Ebpf) -> anyhow::Result<Memory> {
        Memory::of_maps(ebpf, |_| true)
    }

    fn of_maps(ebpf: &Ebpf, which: impl Fn(&str) -> bool) -> anyhow::Result<Memory> {
        let mut sum = Memory::default();
        for (name, map) in ebpf.maps().filter(|(name, _)| which(name)) {
            let Memory { taken, most, mapped } = of_map(name, map)?;
            sum = Memory { taken: sum.taken + taken, most: sum.most + most, mapped: sum.mapped + mapped };
        }
        Ok(sum)
    }

    /// Refuses maps that can grow beyond `limit` bytes.
    ///
    /// # Errors
    /// The one that says which settings take how much.
    pub(super) fn check(&self, ebpf: &Ebpf, limit: u64) -> anyhow::Result<()> {
        if self.most <= limit {
            return Ok(());
        }
        let mut parts = Vec::new();
        for (setting, maps) in BY_SETTING {
            let part = Memory::of_maps(ebpf, |name| maps.contains(&name))?;
            parts.push(format!("{:.1} MiB by {setting}", mib(part.most)));
        }
        ensure!(
            self.most <= limit,
            "the kernel maps can take {:.1} MiB, and kernel.max_memory_mib allows {:.0}: lower a setting ({}), or allow more",
            mib(self.most),
            mib(limit),
            parts.join(", ")
        );
        Ok(())
    }
}

/// Bytes as MiB.
pub fn mib(bytes: u64) -> f64 {
    bytes as f64 / f64::from(1 << 20)
}

fn of_map(name: &str, map: &Map) -> anyhow::Result<Memory> {
    let what = || format!("the size of map {name}");
    let Some(data) = map_data(map) else { return Ok(Memory::default()) };
    let info = data.info().with_context(what)?;
    let (entries, key, value) =
        (u64::from(info.max_entries()), u64::from(info.key_size()), u64::from(info.value_size()));
    let kind = info.map_type().with_context(what)?;
    let taken = match kind {
        // Its entries are bytes.
        MapType::RingBuf => entries,
        MapType::PerCpuArray => entries * value.next_multiple_of(8) * aya::util::nr_cpus().unwrap_or(1) as u64,
        // The rest is taken when an entry is written.
        MapType::Hash => entries.next_power_of_two() * HASH_BUCKET,
        MapType::LpmTrie => 0,
        _ => entries * value.next_multiple_of(8),
    };
    let grows = match kind {
        // What is in it is not in SOURCE_VERDICTS, where it would be larger: together they hold what that one does.
        MapType::Hash if name == "SINGLE_SOURCES" => 0,
        MapType::Hash => entries * (HASH_ENTRY + key.next_multiple_of(8) + value.next_multiple_of(8)),
        // With a node between each two prefixes, which has no value.
        MapType::LpmTrie => entries * (2 * (PREFIX_NODE + key + ROUNDED) + value),
        _ => 0,
    };
    let is_mapped = ["INDEX", "RECORDS", "SOURCES", "SERVICES", "CONTROL", "EVICTED"].contains(&name);
    Ok(Memory { taken, most: taken + grows, mapped: if is_mapped { taken } else { 0 } })
}
