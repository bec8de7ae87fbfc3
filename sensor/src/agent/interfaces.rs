//! Interfaces that go while they are watched, and come back under another number. Looked at once a second.
//!
//! Invariant: what an interface counted stays in its sums, and in those of the kernel maps, when it is gone.

use std::collections::BTreeMap;

use bytemuck::Zeroable as _;
use sensor_common::counter::InterfaceCounters;

use super::poll::Poller;
use super::report::SeenCheck;
use crate::bpf::attach::{self, Refused, TcAttachment};
use crate::bpf::load::Kernel;

/// What stands in metrics for all interfaces that agents before this one watched. No interface has such a name.
const GONE: &str = "(gone)";

/// Interfaces that are not there.
#[derive(Debug)]
pub(super) struct Interfaces {
    missing: Vec<Missing>,
    /// What interfaces counted under numbers that they do not have any more.
    former: BTreeMap<String, InterfaceCounters>,
    /// What was counted for agents before this one, on interfaces that this one does not watch.
    gone: InterfaceCounters,
}

#[derive(Debug)]
struct Missing {
    interface: String,
    egress: TcAttachment,
    /// It has been said that it is there again and cannot be watched.
    told: bool,
}

impl Interfaces {
    pub(super) fn new(kernel: &Kernel) -> Interfaces {
        let gone = kernel.gone().unwrap_or_else(|error| {
            tracing::warn!("counters of former interfaces: {error:#}");
            InterfaceCounters::zeroed()
        });
        Interfaces { missing: Vec::new(), former: BTreeMap::new(), gone }
    }
}

impl Poller {
    /// Lets go of interfaces that are gone, and watches those that are back.
    pub(super) fn follow_interfaces(&mut self) {
        let gone = |one: &attach::Attached| !attach::is_there(one.ifindex);
        while let Some(position) = self.attached.iter().position(gone) {
            self.let_go(position);
        }
        for mut missing in std::mem::take(&mut self.interfaces.missing) {
            if attach::ifindex(&missing.interface).is_err() || !self.watch_again(&mut missing) {
                self.interfaces.missing.push(missing);
            }
        }
        self.follow_tagging();
        for interface in &self.config.interfaces {
            let attached = self.attached.iter().any(|one| one.interface == *interface);
            self.metrics.attached(interface, attached);
        }
    }

    fn let_go(&mut self, position: usize) {
        let one = self.attached.remove(position);
        let (interface, ifindex, egress) = (one.interface.clone(), one.ifindex, one.egress);
        tracing::warn!("{interface} is gone: its packets are not seen until there is an interface of that name again");
        match self.kernel.let_go(one) {
            Ok(counters) => self.keep_counters(&interface, &counters),
            Err(error) => tracing::warn!("{interface}, number {ifindex}: {error:#}"),
        }
        self.interfaces.missing.push(Missing { interface, egress, told: false });
    }

    /// What an interface counted under a number under which it is not watched any more.
    fn keep_counters(&mut self, interface: &str, counters: &InterfaceCounters) {
        let former = self.interfaces.former.entry(interface.to_owned()).or_insert_with(InterfaceCounters::zeroed);
        former.add(counters);
        self.metrics.kernel(interface, former);
    }

    /// Whether it worked.
    fn watch_again(&mut self, missing: &mut Missing) -> bool {
        let Missing { interface, egress, told } = missing;
        let exempt = self.is_exempt(interface);
        match self.kernel.try_attach(interface, self.config.kernel.xdp_mode, *egress == TcAttachment::Tcx, exempt) {
            Ok(one) => {
                tracing::info!(
                    "{interface} is there again: attached, XDP {}, egress {}",
                    one.xdp.name(),
                    one.egress.name()
                );
                self.attached.push(one);
                self.seen_check = Some(SeenCheck::new(&self.attached));
                self.protect_interfaces_again();
                true
            }
            Err(Refused { error, counted }) => {
                self.keep_counters(interface, &counted);
                if !std::mem::replace(told, true) {
                    tracing::warn!("{interface} is there again, and cannot be watched: {error:#}");
                }
                false
            }
        }
    }

    pub(super) fn publish_counters(&self, interface: &str, ifindex: u32) {
        match self.kernel.counters(ifindex) {
            Ok(mut counters) => {
                if let Some(former) = self.interfaces.former.get(interface) {
                    counters.add(former);
                }
                self.metrics.kernel(interface, &counters);
            }
            Err(error) => tracing::warn!("counters of {interface}: {error:#}"),
        }
    }

    /// What is not in the table any more, and what was counted on interfaces that are not watched any more.
    pub(super) fn publish_books(&self) {
        let books = self.kernel.control.books();
        self.metrics.ended_packets(books.released, books.evicted);
        if self.interfaces.gone.seen != InterfaceCounters::zeroed().seen {
            self.metrics.kernel(GONE, &self.interfaces.gone);
        }
    }
}
