//! Maps that one agent leaves and the next one goes on with ([`crate::bpf::pins`]): what it finds, what it notes for whoever
//! comes after it, and how it ends. Called by `agent::start`, at the end of a poll thread, and by [`crate::bpf::attach`].

use anyhow::Context as _;
use aya::Ebpf;
use aya::maps::{MapData, RingBuf};
use sensor_common::counter::MAX_INTERFACES;

use super::Kernel;
use crate::bpf::attach::Attached;
use crate::bpf::pins::{Left, Pins};

impl Kernel {
    /// Whether the maps are those of an agent before this one.
    pub fn adopted(&self) -> bool {
        self.adopted
    }

    /// Where maps and links are pinned, if they are.
    pub fn pins(&self) -> Option<&std::path::Path> {
        self.pins.as_ref().map(Pins::path)
    }

    /// Which directory that is ([`Pins::identity`]).
    ///
    /// # Errors
    /// If the kernel does not say.
    pub fn pins_identity(&self) -> anyhow::Result<Option<[u64; 2]>> {
        self.pins.as_ref().map(Pins::identity).transpose()
    }

    /// Becomes the owner of the pins, if no other agent is.
    ///
    /// # Errors
    /// As [`Pins::own`].
    pub fn own_pins(&mut self) -> anyhow::Result<bool> {
        self.pins.as_mut().map_or(Ok(true), Pins::own)
    }

    /// The agent that left the maps is gone: goes on where it ended. Nothing else may have been done with this kernel
    /// before. Records that it had locked in its last moment are freed, and counted in what is returned.
    ///
    /// # Errors
    /// If the maps cannot be opened again.
    pub fn resume(&mut self) -> anyhow::Result<usize> {
        let Some(pins) = &self.pins else { return Ok(0) };
        if !self.adopted {
            return Ok(0);
        }
        // It read on in the ring after this one had looked where it was.
        let ring = MapData::from_pin(pins.map_path("EVICTED")).context("map EVICTED")?;
        let ring = RingBuf::try_from(aya::maps::Map::RingBuf(ring)).context("map EVICTED")?;
        self.first_evicted = Some(std::mem::replace(&mut self.evicted, ring));
        self.verdicts.look_again()?;
        self.note_meta()?;
        self.finish_unwatch()?;
        let interrupted = self.control.finish();
        self.counted = interrupted.ring;
        let freed = self.table.free_locks_of_the_dead(interrupted.slot);
        self.control.moved();
        Ok(freed)
    }

    /// Says in the pins who has them, and which qdiscs and filters are ours to remove.
    pub(in crate::bpf) fn note_meta(&self) -> anyhow::Result<()> {
        let Some(pins) = &self.pins else { return Ok(()) };
        let Some(mut meta) = pins.meta()? else { return Ok(()) };
        meta.pid = std::process::id();
        meta.qdiscs = places::<{ MAX_INTERFACES as usize }>(&self.qdiscs);
        meta.programs = places(&self.filter_programs());
        pins.set_meta(&meta)
    }

    /// Programs that are filters under clsact, of this agent and of those before it.
    pub(in crate::bpf) fn filter_programs(&self) -> Vec<u32> {
        [filter_programs(&self.ebpf), self.earlier.clone()].concat()
    }

    /// Ends without taking anything off: maps, programs and links stay for the next agent.
    ///
    /// # Errors
    /// If nothing is pinned.
    pub fn leave(mut self, attached: Vec<Attached>) -> anyhow::Result<Left> {
        let mut pins = self.pins.take().context("nothing is pinned, so nothing can be left to the next agent")?;
        pins.leave(true);
        attached.into_iter().for_each(Attached::leave);
        Ok(Left(pins))
    }
}

impl Kernel {
    /// What the kernel says of one of the programs; `None` if it is not loaded.
    pub(in crate::bpf) fn program_info(&self, name: &str) -> Option<aya::programs::ProgramInfo> {
        self.ebpf.program(name)?.info().ok()
    }
}

/// The loaded programs that may become filters.
pub(super) fn filter_programs(ebpf: &Ebpf) -> Vec<u32> {
    let programs = ebpf.programs().filter(|(name, _)| crate::bpf::attach::is_filter(name));
    programs.filter_map(|(_, program)| Some(program.info().ok()?.id())).collect()
}

/// The first of these numbers, then zeros.
pub(super) fn places<const N: usize>(numbers: &[u32]) -> [u32; N] {
    let mut places = [0; N];
    for (place, number) in places.iter_mut().zip(numbers) {
        *place = *number;
    }
    places
}
