//! Interfaces that come and go while the agent runs: those that the list asks for are attached, others are let go.
//!
//! [`crate::bpf::probe::links`] says what changed; that is looked at behind each poll, and everything once a second in
//! any case. Parts: [`watch`] attaches and lets go, [`news`] keeps the log short.
//!
//! Invariant: what an interface counted stays in the sums of metrics and kernel maps when it is gone ([`Former`]).
//! Interfaces are known by their numbers, so a new name is no new interface.

mod news;
mod watch;

use std::collections::{BTreeMap, BTreeSet};
use std::time::{Duration, Instant};

use bytemuck::Zeroable as _;
use sensor_common::counter::InterfaceCounters;

use self::news::News;
use super::poll::Poller;
use crate::bpf::attach::still::Still;
use crate::bpf::attach::{self, Attached};
use crate::bpf::load::Kernel;
use crate::bpf::probe;
use crate::bpf::probe::links::Links;
use crate::interfaces::attempts::Attempts;
use crate::interfaces::former::Former;
use crate::interfaces::{self, Link, List};

/// What stands in metrics for all interfaces that are not watched any more, and whose series ended. No interface has
/// such a name.
const GONE: &str = "(gone)";

/// Which interfaces are to be watched, and which of them are not.
pub(super) struct Interfaces {
    list: List,
    links: Links,
    /// State of `links` that was looked at last.
    looked_at: u64,
    /// Interfaces that are to be watched and are not yet, by number.
    waiting: BTreeMap<u32, Waiting>,
    /// Plain names that were watched, and that no interface has now.
    lost: BTreeSet<String>,
    /// Interfaces that stay watched under a name that the list does not ask for, and the plain name by which it did.
    kept: BTreeMap<u32, String>,
    /// Pairs of watched interfaces that the same packets pass, of which it was said.
    doubled: BTreeSet<(u32, u32)>,
    former: Former,
    /// The kernel has TCX.
    tcx: bool,
    news: News,
    still: Still,
    started: Instant,
}

/// An interface that is to be watched.
#[derive(Debug)]
struct Waiting {
    name: String,
    attempts: Attempts,
}

impl Interfaces {
    /// Of a list and what is known of the interfaces.
    ///
    /// # Errors
    /// If there can be no thread for [`Still`].
    pub(super) fn new(list: List, links: Links, kernel: &Kernel, tcx: bool) -> anyhow::Result<Interfaces> {
        let gone = kernel.gone().unwrap_or_else(|error| {
            tracing::warn!("counters of former interfaces: {error:#}");
            InterfaceCounters::zeroed()
        });
        Ok(Interfaces {
            list,
            links,
            looked_at: 0,
            waiting: BTreeMap::new(),
            lost: BTreeSet::new(),
            kept: BTreeMap::new(),
            doubled: BTreeSet::new(),
            former: Former::new(gone),
            tcx,
            news: News::default(),
            still: Still::begin()?,
            started: Instant::now(),
        })
    }

    fn now(&self) -> Duration {
        self.started.elapsed()
    }

    /// The plain name by which an interface was to be watched that has another one now.
    pub(super) fn former_name(&self, ifindex: u32) -> Option<&str> {
        self.kept.get(&ifindex).map(String::as_str)
    }

    /// An interface that was watched by its plain name stays watched when it gets another one: whoever named it meant
    /// its packets, and udev or an operator renames it while they go on. Patterns are about names, and let it go.
    fn keep_renamed<'a>(
        &mut self,
        attached: &[Attached],
        links: &'a BTreeMap<u32, Link>,
        wanted: &mut BTreeMap<u32, &'a Link>,
    ) {
        for one in attached.iter().filter(|one| self.list.is_named(&one.interface)) {
            self.kept.entry(one.ifindex).or_insert_with(|| one.interface.clone());
        }
        let list = &self.list;
        self.kept.retain(|ifindex, _| {
            let Some(link) = links.get(ifindex) else { return false };
            let stays = !wanted.contains_key(ifindex) && link.ethernet && !list.excludes(&link.name);
            if stays {
                wanted.insert(*ifindex, link);
            }
            stays
        });
    }

    /// Says of which interfaces packets count twice.
    fn warn_of_doubled(&mut self, wanted: &BTreeMap<u32, &Link>) {
        let watched: Vec<&Link> = wanted.values().copied().collect();
        let pairs = interfaces::doubled(&watched);
        for (upper, lower) in &pairs {
            if !self.doubled.contains(&(upper.ifindex, lower.ifindex)) && self.news.is_told("doubled") {
                tracing::warn!("{}", interfaces::doubled_text(&upper.name, &lower.name));
            }
        }
        self.doubled = pairs.into_iter().map(|(upper, lower)| (upper.ifindex, lower.ifindex)).collect();
    }
}

/// What became of an interface that is watched.
enum Change {
    Gone,
    Renamed(String),
    /// Others took these programs off.
    TakenOff(Vec<&'static str>),
    /// It is there, and the list does not ask for it any more.
    Unwanted(String),
}

impl Poller {
    /// Follows changes of the interfaces. Attaches until `until`, one in any case; the rest waits for the next call.
    pub(super) fn follow_interfaces(&mut self, until: Instant) {
        let changes = self.interfaces.links.changes();
        if changes != self.interfaces.looked_at {
            self.look_at_interfaces();
            self.interfaces.looked_at = changes;
        }
        self.watch_waiting(until);
    }

    /// Compares what is watched with what is to be, whether something seems to have changed or not.
    pub(super) fn look_at_interfaces(&mut self) {
        let links = self.interfaces.links.now();
        let mut wanted: BTreeMap<u32, &Link> =
            self.interfaces.list.select(links.values()).into_iter().map(|link| (link.ifindex, link)).collect();
        self.interfaces.keep_renamed(&self.attached, &links, &mut wanted);
        let changed: Vec<(u32, Change)> = self
            .attached
            .iter()
            .filter_map(|one| {
                Some((one.ifindex, change(one, links.get(&one.ifindex), wanted.contains_key(&one.ifindex))?))
            })
            .collect();
        let any = !changed.is_empty();
        self.apply(changed);
        let watched: BTreeSet<u32> = self.attached.iter().map(|one| one.ifindex).collect();
        for (ifindex, link) in wanted.iter().filter(|(ifindex, _)| !watched.contains(ifindex)) {
            let new = || Waiting { name: link.name.clone(), attempts: Attempts::default() };
            let waiting = self.interfaces.waiting.entry(*ifindex).or_insert_with(new);
            if waiting.name != link.name {
                *waiting = new();
            }
        }
        self.interfaces.waiting.retain(|ifindex, _| wanted.contains_key(ifindex));
        self.interfaces.warn_of_doubled(&wanted);
        if any {
            self.protect_interfaces_again();
            self.publish_states();
        }
    }

    /// Once a second: attaches again where others took programs off.
    pub(super) fn look_for_taken_off(&mut self) {
        let expected = self.kernel.expected(&self.attached);
        let lacks = |ifindex: &u32| {
            let one = expected.iter().find(|one| one.ifindex == *ifindex)?;
            let programs = one.missing().ok().filter(|programs| !programs.is_empty())?;
            Some((*ifindex, Change::TakenOff(programs)))
        };
        let suspects = self.interfaces.still.exchange(expected.clone());
        let changed: Vec<_> = suspects.iter().filter_map(lacks).collect();
        if !changed.is_empty() {
            self.apply(changed);
            self.watch_waiting(Instant::now());
            self.publish_states();
        }
    }

    fn apply(&mut self, changed: Vec<(u32, Change)>) {
        let (mut gone, mut unwanted) = (Vec::new(), Vec::new());
        for (ifindex, change) in changed {
            let Some(position) = self.attached.iter().position(|one| one.ifindex == ifindex) else { continue };
            match change {
                Change::Renamed(name) => {
                    let old = std::mem::replace(&mut self.attached[position].interface, name.clone());
                    if self.interfaces.kept.contains_key(&ifindex) {
                        tracing::warn!(
                            "{old} is called {name} now and stays watched under that name, which `interfaces` does not \
                             ask for: name it there, or it is let go with the next reload or restart"
                        );
                    } else {
                        tracing::info!("{old} is called {name} now, and is watched under that name");
                    }
                    if self.interfaces.list.is_named(&old) {
                        self.interfaces.lost.insert(old.clone());
                    }
                    self.seen_check.add(&name);
                    let former = &self.interfaces.former;
                    match self.kernel.counters(ifindex) {
                        Ok(mut counters) => {
                            former.of(&name).into_iter().for_each(|before| counters.add(before));
                            self.metrics.rename((&old, former.of(&old)), (&name, &counters));
                        }
                        Err(error) => tracing::warn!("counters of {name}: {error:#}"),
                    }
                }
                Change::TakenOff(programs) => {
                    let one = self.attached.remove(position);
                    let name = one.interface.clone();
                    self.metrics.taken_off(&name);
                    if self.interfaces.news.is_told("taken off") {
                        tracing::warn!(
                            "{name}: others took {} off, which is not the agent's doing; attaching again",
                            programs.join(" and ")
                        );
                    }
                    self.let_go(vec![one], true);
                    let waiting = Waiting { name, attempts: Attempts::default() };
                    self.interfaces.waiting.insert(ifindex, waiting);
                }
                Change::Gone => gone.push(self.attached.remove(position)),
                Change::Unwanted(name) => {
                    let one = self.attached.remove(position);
                    if name == one.interface {
                        if self.interfaces.news.is_told("no longer watched") {
                            tracing::info!(
                                "{name} is not watched any more: the list does not ask for it, or for one below it"
                            );
                        }
                    } else {
                        tracing::warn!(
                            "{} is called {name} now, which `interfaces` does not ask for: it is not watched any more",
                            one.interface
                        );
                    }
                    unwanted.push(one);
                }
            }
        }
        for one in &gone {
            if self.interfaces.list.is_named(&one.interface) {
                tracing::warn!(
                    "{} is gone: its packets are not seen until there is an interface of that name again",
                    one.interface
                );
            } else if self.interfaces.news.is_told("gone") {
                tracing::info!("{} is gone", one.interface);
            }
        }
        for one in gone.iter().chain(&unwanted) {
            if self.interfaces.list.is_named(&one.interface) {
                self.interfaces.lost.insert(one.interface.clone());
            }
        }
        let there = !unwanted.is_empty();
        self.let_go(gone.into_iter().chain(unwanted).collect(), there);
    }

    /// Once a second, where nothing is named and there was no default route at the start: whether there is one now.
    fn await_default_route(&mut self) {
        let is_named = !self.config.interfaces.is_empty() || !self.interfaces.list.names().is_empty();
        if is_named || probe::default_interface().is_err() {
            return;
        }
        if let Err(error) = self.watch_interfaces(&[])
            && self.interfaces.news.is_told("refused")
        {
            tracing::warn!("the interface of the default route cannot be watched yet: {error:#}");
        }
    }

    /// Once a second: what was counted, and what is said of interfaces.
    pub(super) fn publish_interfaces(&mut self) {
        self.await_default_route();
        for attached in &self.attached {
            self.publish_counters(&attached.interface, attached.ifindex);
        }
        let Interfaces { list, former, news, started, .. } = &mut self.interfaces;
        let watched: BTreeSet<&str> = self.attached.iter().map(|one| one.interface.as_str()).collect();
        let ended = former.fold(started.elapsed(), |name| watched.contains(name) || list.is_named(name));
        self.metrics.fold(&ended, GONE, former.gone());
        news.tell_the_rest();
        self.publish_states();
    }

    /// On which interfaces the programs are: once a second, and when that changes.
    pub(super) fn publish_states(&self) {
        let Interfaces { list, waiting, links, .. } = &self.interfaces;
        let refused = waiting.values().filter(|one| one.attempts.have_failed());
        let mut states: BTreeMap<String, bool> = list.names().iter().map(|name| (name.clone(), false)).collect();
        states.extend(refused.map(|one| (one.name.clone(), false)));
        states.extend(self.attached.iter().map(|one| (one.interface.clone(), true)));
        self.metrics.interfaces(states, links.overruns());
    }

    /// The kernel's counters of an interface, with what was counted under its name before.
    pub(super) fn publish_counters(&self, interface: &str, ifindex: u32) {
        match self.kernel.counters(ifindex) {
            Ok(mut counters) => {
                if let Some(former) = self.interfaces.former.of(interface) {
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
        if let Some(gone) = self.interfaces.former.gone() {
            self.metrics.kernel(GONE, gone);
        }
    }
}

/// What became of an interface. The kernel is asked again: what is known of it (`link`) may be older than it is. Where
/// the two do not agree, the next look decides.
fn change(one: &Attached, link: Option<&Link>, wanted: bool) -> Option<Change> {
    let name = match attach::present_name(one.ifindex) {
        Ok(None) => return Some(Change::Gone),
        Ok(Some(name)) => name,
        Err(_) => return None,
    };
    link.filter(|link| link.name == name)?;
    match (wanted, name == one.interface) {
        (false, _) => Some(Change::Unwanted(name)),
        (true, false) => Some(Change::Renamed(name)),
        (true, true) => None,
    }
}
