//! The programs' two tables in this process, for a replay and for tests that compare.

use bytemuck::Zeroable as _;
use sensor_common::context::{ENTRIES, NewFlow, Noted, Set, tick_of};
use sensor_common::flow::starts_high;
use sensor_common::hash::Seed;
use sensor_common::packet::Packet;

use super::Notes;

/// Sources and services.
#[derive(Debug)]
pub struct HostNotes {
    sources: Vec<Set>,
    services: Vec<Set>,
    seed: Seed,
    replaced: u64,
}

impl HostNotes {
    /// Empty tables of so many entries, powers of two from 4.
    pub fn new(seed: Seed, sources: u32, services: u32) -> HostNotes {
        let sets = |entries: u32| vec![Set::zeroed(); (entries as usize / ENTRIES).next_power_of_two()];
        HostNotes { sources: sets(sources), services: sets(services), seed, replaced: 0 }
    }

    /// Notes the first packet of a flow.
    pub fn note(&mut self, packet: &Packet, now_ns: u64) {
        let NewFlow { ends, source_cells, service_cells } =
            NewFlow::new(&packet.key, starts_high(packet), |position| self.seed[position]);
        let tick = tick_of(now_ns);
        let (source, service) = (index(&self.sources, ends.source_hash), index(&self.services, ends.service_hash));
        for noted in [
            self.sources[source].note(&ends.source, ends.source_hash, tick, source_cells),
            self.services[service].note(&ends.service, ends.service_hash, tick, service_cells),
        ] {
            self.replaced += (noted == Noted::Replaced) as u64;
        }
    }

    /// Entries that were given up although they had flows in the last 60 s.
    pub fn replaced(&self) -> u64 {
        self.replaced
    }

    /// All sets, of sources and of services.
    pub fn sets(&self) -> (&[Set], &[Set]) {
        (&self.sources, &self.services)
    }

    /// Forgets everything.
    pub fn clear(&mut self) {
        for set in self.sources.iter_mut().chain(&mut self.services) {
            *set = Set::zeroed();
        }
        self.replaced = 0;
    }
}

impl Notes for HostNotes {
    fn source<R>(&self, hash: u32, read: impl FnOnce(&Set) -> R) -> Option<R> {
        Some(read(&self.sources[index(&self.sources, hash)]))
    }
    fn service<R>(&self, hash: u32, read: impl FnOnce(&Set) -> R) -> Option<R> {
        Some(read(&self.services[index(&self.services, hash)]))
    }
}

/// The number of sets is a power of two.
fn index(sets: &[Set], hash: u32) -> usize {
    hash as usize & (sets.len() - 1)
}
