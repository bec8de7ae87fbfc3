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
    attempts: Attempts,
}

/// The most seconds between two attempts.
const LONGEST_PAUSE: u32 = 60;

/// Attempts to watch an interface that is there again. One that fails may have had XDP on it for a moment, for which some drivers
/// stop the link: so each pause is twice the one before.
#[derive(Debug, Default)]
struct Attempts {
    /// Number of the interface that was tried.
    ifindex: u32,
    /// Seconds after the last one.
    pause: u32,
    /// Seconds of it that are left.
    left: u32,
    error: String,
}

impl Attempts {
    /// Whether it is time for one. Called once a second.
    fn due(&mut self, ifindex: u32) -> bool {
        if self.ifindex != ifindex {
            *self = Attempts { ifindex, ..Attempts::default() };
        }
        self.left = self.left.saturating_sub(1);
        self.left == 0
    }

    /// It failed. Whether that is to be said: the error is another one, or the pause is longer than before.
    fn failed(&mut self, error: String) -> bool {
        let pause = (2 * self.pause).clamp(1, LONGEST_PAUSE);
        let is_news = pause > self.pause || error != self.error;
        (self.pause, self.left, self.error) = (pause, pause, error);
        is_news
    }
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
            match attach::ifindex(&missing.interface) {
                Ok(ifindex) if missing.attempts.due(ifindex) && self.watch_again(&mut missing) => continue,
                Ok(_) => {}
                Err(_) => missing.attempts = Attempts::default(),
            }
            self.interfaces.missing.push(missing);
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
        self.interfaces.missing.push(Missing { interface, egress, attempts: Attempts::default() });
    }

    /// What an interface counted under a number under which it is not watched any more.
    fn keep_counters(&mut self, interface: &str, counters: &InterfaceCounters) {
        let former = self.interfaces.former.entry(interface.to_owned()).or_insert_with(InterfaceCounters::zeroed);
        former.add(counters);
        self.metrics.kernel(interface, former);
    }

    /// Whether it worked.
    fn watch_again(&mut self, missing: &mut Missing) -> bool {
        let Missing { interface, egress, attempts } = missing;
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
                if attempts.failed(format!("{error:#}")) {
                    let pause = attempts.pause;
                    tracing::warn!(
                        "{interface} is there again, and cannot be watched, next attempt in {pause} s: {error:#}"
                    );
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

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn pauses_grow_to_a_minute_and_only_news_are_told() {
        let mut attempts = Attempts::default();
        let (mut tried, mut told) = (Vec::new(), Vec::new());
        for second in 0..300 {
            if attempts.due(3) {
                tried.push(second);
                if attempts.failed("no place".to_owned()) {
                    told.push(second);
                }
            }
        }
        assert_eq!(tried, [0, 1, 3, 7, 15, 31, 63, 123, 183, 243]);
        assert_eq!(told, [0, 1, 3, 7, 15, 31, 63]);
        assert!((300..303).all(|_| !attempts.due(3)) && attempts.due(3));
        assert!(attempts.failed("no memory".to_owned()), "another reason");
        assert!(!attempts.due(3) && attempts.due(4), "another interface of that name");
        assert!(attempts.failed("no memory".to_owned()) && attempts.pause == 1);
    }
}
