//! The table of interfaces in the programs' counters: who has a slot there is watched.
//!
//! Invariant: what was counted is in the sum over all entries once, wherever the agent is killed (an interface whose number the
//! entry of the gone ones bears is in that). Called by [`crate::bpf::attach`], and by the agent for what it publishes.

use anyhow::{Context as _, bail};
use aya::maps::PerCpuValues;
use bytemuck::Zeroable as _;
use sensor_common::counter::{FREED, INTERFACE_PROBES, InterfaceCounters, interface_slot};

use super::Kernel;
use crate::bpf::sys::Counters;

impl Kernel {
    /// Interfaces that have a slot in the counters' table.
    ///
    /// # Errors
    /// If the kernel refuses to read the map.
    pub fn watched(&self) -> anyhow::Result<Vec<u32>> {
        let mut watched = Vec::new();
        for slot in 0..self.slots {
            let values = self.counters.get(&slot, 0).context("reading map COUNTERS")?;
            watched.extend(values.first().and_then(|counters| counters.0.owner()));
        }
        Ok(watched)
    }

    /// Takes the slot back that [`Kernel::watch`] gave, and says what was counted there. No program runs there any more.
    ///
    /// That stays in the sums: first it is added where the gone ones are, and that entry bears the interface's number for as
    /// long as both have it. The next agent finishes what one did not that was killed meanwhile ([`Kernel::resume`]).
    pub(in crate::bpf) fn unwatch(&mut self, ifindex: u32) -> anyhow::Result<InterfaceCounters> {
        self.finish_unwatch()?;
        let counters = self.counters(ifindex)?;
        // Whoever gets the slot next does not get the exemption with it.
        self.control.set_exempt(counters.slot, false);
        self.write_gone(|gone| {
            gone.add(&counters);
            gone.ifindex = ifindex;
        })?;
        self.finish_unwatch()?;
        Ok(counters)
    }

    /// Frees the slot of the interface whose counters were added to those that are gone, if there is one.
    pub(super) fn finish_unwatch(&mut self) -> anyhow::Result<()> {
        let ifindex = self.gone()?.ifindex;
        if ifindex == 0 {
            return Ok(());
        }
        self.clear_counters(ifindex)?;
        self.write_gone(|gone| gone.ifindex = 0)
    }

    fn write_gone(&mut self, change: impl FnOnce(&mut InterfaceCounters)) -> anyhow::Result<()> {
        let mut values = self.counters.get(&self.slots, 0).context("reading map COUNTERS")?.to_vec();
        if let Some(first) = values.first_mut() {
            change(&mut first.0);
        }
        let values = PerCpuValues::try_from(values).context("counters of all CPUs")?;
        self.counters.set(self.slots, values, 0).context("writing map COUNTERS")
    }

    /// What interfaces counted that were watched once and are not any more.
    ///
    /// # Errors
    /// If the kernel refuses to read the map.
    pub fn gone(&self) -> anyhow::Result<InterfaceCounters> {
        let values = self.counters.get(&self.slots, 0).context("reading map COUNTERS")?;
        Ok(values.first().map_or_else(InterfaceCounters::zeroed, |counters| counters.0))
    }

    fn clear_counters(&mut self, ifindex: u32) -> anyhow::Result<()> {
        for slot in self.places(ifindex) {
            let mut values = self.counters.get(&slot, 0).context("reading map COUNTERS")?.to_vec();
            if values.first().is_some_and(|counters| counters.0.ifindex == ifindex) {
                values.fill(Counters(InterfaceCounters { ifindex: FREED, ..InterfaceCounters::zeroed() }));
                let values = PerCpuValues::try_from(values).context("counters of all CPUs")?;
                return self.counters.set(slot, values, 0).context("writing map COUNTERS");
            }
        }
        Ok(())
    }

    /// Gives an interface a slot in the counters' table, and whether it had none before; programs pass the packets of
    /// interfaces without one untouched.
    ///
    /// # Errors
    /// If the slots around the interface's number are taken, or the kernel refuses.
    pub fn watch(&mut self, ifindex: u32) -> anyhow::Result<bool> {
        let mut free = None;
        for slot in self.places(ifindex) {
            let values = self.counters.get(&slot, 0).context("reading map COUNTERS")?;
            let first = values.first().map_or_else(InterfaceCounters::zeroed, |counters| counters.0);
            match first.owner() {
                Some(owner) if owner == ifindex => return Ok(false),
                Some(_) => {}
                // It may be in one behind a slot that was given back.
                None if first.ifindex == FREED => drop(free.get_or_insert((slot, values.len()))),
                None => {
                    free.get_or_insert((slot, values.len()));
                    break;
                }
            }
        }
        let Some((slot, cpus)) = free else {
            bail!(
                "interface number {ifindex} finds no place in the table of {} interfaces: watch fewer, or raise \
                 kernel.max_interfaces (and restart)",
                self.slots
            );
        };
        let value = Counters(InterfaceCounters { ifindex, slot, ..InterfaceCounters::zeroed() });
        let values = PerCpuValues::try_from(vec![value; cpus]).context("counters of all CPUs")?;
        self.counters.set(slot, values, 0).context("writing map COUNTERS")?;
        Ok(true)
    }

    /// Watched interfaces on which nothing is dropped or limited, and no others.
    ///
    /// # Errors
    /// If one is not watched, or the kernel refuses.
    pub fn exempt(&mut self, interfaces: &[u32]) -> anyhow::Result<()> {
        let mut wanted = Vec::new();
        for ifindex in interfaces {
            wanted.push(self.counters(*ifindex)?.slot);
        }
        let set = self.control.exempt_slots();
        // First what is added: a change takes no protection away for a moment.
        wanted.iter().filter(|slot| !set.contains(slot)).for_each(|slot| self.control.set_exempt(*slot, true));
        set.iter().filter(|slot| !wanted.contains(slot)).for_each(|slot| self.control.set_exempt(*slot, false));
        Ok(())
    }

    /// Says whether an interface may have neighbours with IPv4 link-local addresses
    /// ([`sensor_common::verdict::is_of_link`]).
    ///
    /// # Errors
    /// The interface is not watched, or the kernel refuses to read its counters.
    pub fn set_link_local(&mut self, ifindex: u32, link_local: bool) -> anyhow::Result<()> {
        let slot = self.counters(ifindex)?.slot;
        self.control.set_link_local(slot, link_local);
        Ok(())
    }

    /// Counters of an interface, summed over the CPUs.
    ///
    /// # Errors
    /// If the kernel refuses to read the map.
    pub fn counters(&self, ifindex: u32) -> anyhow::Result<InterfaceCounters> {
        for slot in self.places(ifindex) {
            let values = self.counters.get(&slot, 0).context("reading map COUNTERS")?;
            if values.first().is_some_and(|counters| counters.0.ifindex == ifindex) {
                let mut total = InterfaceCounters { ifindex, slot, ..InterfaceCounters::zeroed() };
                values.iter().for_each(|counters| total.add(&counters.0));
                return Ok(total);
            }
        }
        bail!("interface number {ifindex} is not watched")
    }

    /// Where an interface may have its counters, in the order in which programs look.
    fn places(&self, ifindex: u32) -> impl Iterator<Item = u32> + use<> {
        let slots = self.slots;
        (0..INTERFACE_PROBES).map(move |attempt| interface_slot(ifindex, attempt, slots))
    }
}
