//! What interfaces counted that are not watched any more.
//!
//! Invariant: what was counted is in the sums of the metrics once. For [`KEPT_FOR`] it stays in the series of its
//! interface, which goes on there if one of that name comes back. Then it is added to the sum of all that are gone, and
//! its series ends: hosts make interfaces with new names for each container, and each is a label.

use std::collections::BTreeMap;
use std::time::Duration;

use bytemuck::Zeroable as _;
use sensor_common::counter::InterfaceCounters;

/// For so long the series of an interface that is gone stays: longer than scrapes are apart.
pub const KEPT_FOR: Duration = Duration::from_secs(300);
/// At most so many such series; the oldest end first.
pub const KEPT: usize = 256;

/// Counters by name, and the sum of those without.
#[derive(Clone, Debug)]
pub struct Former {
    named: BTreeMap<String, Counted>,
    gone: InterfaceCounters,
}

#[derive(Clone, Debug)]
struct Counted {
    counters: InterfaceCounters,
    /// When something was added last, or an interface of that name was last watched.
    since: Duration,
}

impl Former {
    /// Begins with what was counted for agents before this one, on interfaces that this one does not watch.
    pub fn new(gone: InterfaceCounters) -> Former {
        Former { named: BTreeMap::new(), gone }
    }

    /// Keeps what an interface counted under a number that it does not have any more. `now`: since any fixed moment.
    pub fn keep(&mut self, interface: &str, counters: &InterfaceCounters, now: Duration) {
        let empty = || Counted { counters: InterfaceCounters::zeroed(), since: now };
        let counted = self.named.entry(interface.to_owned()).or_insert_with(empty);
        counted.counters.add(counters);
        counted.since = now;
    }

    /// What interfaces of this name counted before.
    pub fn of(&self, interface: &str) -> Option<&InterfaceCounters> {
        self.named.get(interface).map(|counted| &counted.counters)
    }

    /// The sum of those that have no series of their own any more; `None` if that is nothing.
    pub fn gone(&self) -> Option<&InterfaceCounters> {
        (self.gone.seen != InterfaceCounters::zeroed().seen).then_some(&self.gone)
    }

    /// Ends series whose time is over, and says whose. `stays`: an interface of that name is watched, or is to be.
    pub fn fold(&mut self, now: Duration, stays: impl Fn(&str) -> bool) -> Vec<String> {
        let mut idle = Vec::new();
        for (name, counted) in &mut self.named {
            if stays(name) {
                counted.since = now;
            } else {
                idle.push((counted.since, name.clone()));
            }
        }
        idle.sort_unstable();
        let surplus = idle.len().saturating_sub(KEPT);
        let ends = |(position, (since, name)): (usize, (Duration, String))| {
            (position < surplus || now.saturating_sub(since) >= KEPT_FOR).then_some(name)
        };
        let ended: Vec<String> = idle.into_iter().enumerate().filter_map(ends).collect();
        for name in &ended {
            if let Some(counted) = self.named.remove(name) {
                self.gone.add(&counted.counters);
            }
        }
        ended
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn counted(flows: u64) -> InterfaceCounters {
        let mut counters = InterfaceCounters { ifindex: 7, flows_created: flows, ..InterfaceCounters::zeroed() };
        counters.seen[0][0].packets = flows;
        counters
    }

    fn sum(former: &Former) -> u64 {
        former.named.values().map(|one| one.counters.flows_created).sum::<u64>() + former.gone.flows_created
    }

    #[test]
    fn a_name_that_does_not_come_back_ends_in_the_sum() {
        let at = Duration::from_secs;
        let mut former = Former::new(InterfaceCounters::zeroed());
        assert!(former.gone().is_none());
        former.keep("veth1", &counted(3), at(10));
        former.keep("eth0", &counted(5), at(10));
        former.keep("veth1", &counted(4), at(20));
        assert_eq!(former.of("veth1").map(|counters| counters.flows_created), Some(7));
        let stays = |name: &str| name == "eth0";
        assert!(former.fold(at(319), stays).is_empty());
        assert_eq!(former.fold(at(320), stays), ["veth1"]);
        assert!(former.of("veth1").is_none());
        assert_eq!((former.gone().map(|gone| gone.flows_created), sum(&former)), (Some(7), 12));
        // One that is watched under a name keeps what was counted there before, from the end of that on.
        assert!(former.fold(at(10_000), stays).is_empty());
        assert!(former.fold(at(10_299), |_| false).is_empty());
        assert_eq!(former.fold(at(10_300), |_| false), ["eth0"]);
        assert_eq!(sum(&former), 12);
    }

    #[test]
    fn there_are_not_more_than_so_many() {
        let mut former = Former::new(counted(1));
        for number in 0..KEPT as u64 + 10 {
            former.keep(&format!("veth{number}"), &counted(1), Duration::from_secs(number));
        }
        let ended = former.fold(Duration::from_secs(280), |name| name == "veth0");
        assert_eq!(ended, (1..10).map(|number| format!("veth{number}")).collect::<Vec<_>>());
        assert_eq!((former.named.len(), sum(&former)), (KEPT + 1, KEPT as u64 + 11));
    }
}
