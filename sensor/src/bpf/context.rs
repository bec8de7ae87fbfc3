//! The host context's two tables: their sizes at load, and the copies that the agent reads of them.

use anyhow::bail;
use sensor_common::context::{ENTRIES, MAX_ENTRIES, MIN_ENTRIES, Set, tick_of};

use super::sys::Sets;
use crate::context::Notes;

/// The two tables of the host context in shared memory.
#[derive(Debug)]
pub struct ContextTables {
    /// Source addresses.
    pub sources: Sets,
    /// Destination services.
    pub services: Sets,
}

impl ContextTables {
    /// Sources and services with a new flow in the last 60 s.
    pub fn used(&self, now_ns: u64) -> [u64; 2] {
        let now = tick_of(now_ns);
        [&self.sources, &self.services].map(|table| {
            let used = |number| table.copy(number).map_or(0, |set| set.used(now) as u64);
            (0..table.sets()).map(used).sum()
        })
    }
}

impl Notes for ContextTables {
    fn source<R>(&self, hash: u32, read: impl FnOnce(&Set) -> R) -> Option<R> {
        self.sources.copy(hash as usize & (self.sources.sets() - 1)).as_ref().map(read)
    }
    fn service<R>(&self, hash: u32, read: impl FnOnce(&Set) -> R) -> Option<R> {
        self.services.copy(hash as usize & (self.services.sets() - 1)).as_ref().map(read)
    }
}

/// Sets of sources and of services, 0 if context is off.
pub(super) fn context_sets(context: Option<(u32, u32)>) -> anyhow::Result<(u32, u32)> {
    let Some((sources, services)) = context else { return Ok((0, 0)) };
    for (entries, what) in [(sources, "sources"), (services, "services")] {
        if !entries.is_power_of_two() || !(MIN_ENTRIES..=MAX_ENTRIES).contains(&entries) {
            bail!(
                "a context of {entries} {what} is not possible: use a power of two from {MIN_ENTRIES} to {MAX_ENTRIES}"
            );
        }
    }
    Ok((sources / ENTRIES as u32, services / ENTRIES as u32))
}
