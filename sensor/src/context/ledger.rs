//! What became of the flows of each source and service: judged, unanswered, failed, reset, and their bytes, in the same
//! sliding windows as the programs' counts. Fed from records, live and ended; of fixed size, with the programs' rule of who
//! gives way.
//!
//! A record that never reaches the agent (the ring was full, the bucket was full) is not in here. How many those are
//! is told by [`Ledger::lose`], and [`Ledger::service`] takes a service's new flows that were not judged as unanswered, as far
//! as flows were lost.

use std::collections::HashMap;

use sensor_common::context::window::{LONGEST, estimate, idle_of, later, steps};
use sensor_common::context::{ENTRIES, Ends, Key, ServiceWindow, SourceWindow, WINDOW_TICKS, WINDOWS, victim};
use sensor_common::hash::hash_words;
use sensor_common::table::{TICK_SHIFT, tag_of};

/// What is counted, in the order of an account's columns.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) struct Events {
    pub(super) judged: u64,
    pub(super) unanswered: u64,
    pub(super) failed: u64,
    pub(super) resets: u64,
    pub(super) bytes: u64,
    /// SYNs that led to no connection.
    pub(super) half_open: u64,
    /// Connections whose handshake was completed.
    pub(super) opened: u64,
}

const COLUMNS: usize = 7;
/// Length of the middle window, seconds.
const WINDOW_SECONDS: f64 = WINDOW_TICKS[1] as f64 * (1u64 << TICK_SHIFT) as f64 / 1e9;

impl Events {
    fn columns(self) -> [u64; COLUMNS] {
        let Events { judged, unanswered, failed, resets, bytes, half_open, opened } = self;
        [judged, unanswered, failed, resets, bytes, half_open, opened]
    }
}

/// A sliding counter of each column in each window.
#[derive(Clone, Copy, Debug, Default)]
struct Counts {
    /// Tick of the last event.
    last: u32,
    current: [[u64; COLUMNS]; WINDOWS],
    previous: [[u64; COLUMNS]; WINDOWS],
}

impl Counts {
    /// Adds events of tick `tick`; those that are late go where they belong, and into no window that they have left.
    fn add(&mut self, tick: u32, amounts: [u64; COLUMNS]) {
        let now = later(self.last, tick);
        for (window, ticks) in WINDOW_TICKS.iter().enumerate() {
            let (current, previous) = (&mut self.current[window], &mut self.previous[window]);
            match steps(self.last, now, *ticks) {
                0 => {}
                1 => *previous = std::mem::take(current),
                _ => (*current, *previous) = Default::default(),
            }
            let place = match steps(tick, now, *ticks) {
                0 => current,
                1 => previous,
                _ => continue,
            };
            for (sum, amount) in place.iter_mut().zip(amounts) {
                *sum = sum.saturating_add(amount);
            }
        }
        self.last = now;
    }

    fn window(&self, window: usize, now: u32) -> Events {
        let (current, previous) = (&self.current[window], &self.previous[window]);
        let [judged, unanswered, failed, resets, bytes, half_open, opened] = std::array::from_fn(|column| {
            estimate(current[column], previous[column], self.last, now, WINDOW_TICKS[window])
        });
        Events { judged, unanswered, failed, resets, bytes, half_open, opened }
    }
}

/// The accounts of four sources or services.
#[derive(Clone, Copy, Debug, Default)]
struct Page {
    tags: [u32; ENTRIES],
    last: [u32; ENTRIES],
    weights: [u32; ENTRIES],
    /// Whether an account was ever given up although it had events in the last 60 s, and the tick of the last time.
    replaced: Option<u32>,
    keys: [Key; ENTRIES],
    counts: [Counts; ENTRIES],
}

impl Page {
    fn find(&self, key: &Key, tag: u32) -> Option<usize> {
        (0..ENTRIES).find(|place| self.tags[*place] == tag && self.keys[*place] == *key)
    }

    fn add(&mut self, key: &Key, hash: u32, tick: u32, amounts: [u64; COLUMNS]) {
        let tag = tag_of(hash);
        let place = self.find(key, tag).unwrap_or_else(|| {
            let place = victim(&self.tags, &self.last, &self.weights, tick);
            if self.tags[place] != 0 && idle_of(self.last[place], tick) < LONGEST {
                self.replaced = Some(tick);
            }
            self.tags[place] = tag;
            self.keys[place] = *key;
            self.counts[place] = Counts { last: tick, ..Counts::default() };
            place
        });
        let counts = &mut self.counts[place];
        counts.add(tick, amounts);
        self.last[place] = counts.last;
        let judged = counts.current[WINDOWS - 1][0].saturating_add(counts.previous[WINDOWS - 1][0]);
        self.weights[place] = judged.min(u32::MAX as u64) as u32;
    }

    /// `None`: not known, because accounts had to go.
    fn read(&self, key: &Key, hash: u32, now: u32) -> Option<[Events; WINDOWS]> {
        match self.find(key, tag_of(hash)) {
            Some(place) => Some(std::array::from_fn(|window| self.counts[place].window(window, now))),
            None if self.replaced.is_some_and(|tick| idle_of(tick, now) < LONGEST) => None,
            None => Some([Events::default(); WINDOWS]),
        }
    }
}

/// The accounts of all sources and services that are followed.
#[derive(Debug)]
pub struct Ledger {
    sources: Vec<Page>,
    services: Vec<Page>,
    /// Of destination addresses, all ports together: a flood that goes to many ports shows here. SYNs and connections
    /// only.
    hosts: Vec<Page>,
    /// Flows whose records were lost, in the first column.
    lost: Counts,
}

impl Ledger {
    /// An empty ledger of so many sources and services, powers of two from 4.
    pub fn new(sources: u32, services: u32) -> Ledger {
        let pages = |entries: u32| vec![Page::default(); (entries as usize / ENTRIES).next_power_of_two()];
        let hosts = pages((services / HOSTS_OF_SERVICES).max(ENTRIES as u32));
        Ledger { sources: pages(sources), services: pages(services), hosts, lost: Counts::default() }
    }

    /// Bytes of memory, fixed.
    pub fn memory_bytes(&self) -> usize {
        (self.sources.len() + self.services.len() + self.hosts.len()) * size_of::<Page>()
    }

    /// Forgets everything.
    pub fn clear(&mut self) {
        self.sources.fill(Page::default());
        self.services.fill(Page::default());
        self.hosts.fill(Page::default());
        self.lost = Counts::default();
    }

    /// Counts flows of any service whose records the agent will never see.
    pub fn lose(&mut self, flows: u64, tick: u32) {
        if flows > 0 {
            self.lost.add(tick, Events { judged: flows, ..Events::default() }.columns());
        }
    }

    pub(super) fn add(&mut self, ends: &Ends, tick: u32, events: Events) {
        let amounts = events.columns();
        if amounts != [0; COLUMNS] {
            page_mut(&mut self.sources, ends.source_hash).add(&ends.source, ends.source_hash, tick, amounts);
            page_mut(&mut self.services, ends.service_hash).add(&ends.service, ends.service_hash, tick, amounts);
        }
        let Events { half_open, opened, .. } = events;
        if half_open + opened > 0 {
            let (host, hash) = host_of(&ends.service);
            let amounts = Events { judged: half_open + opened, half_open, opened, ..Events::default() }.columns();
            page_mut(&mut self.hosts, hash).add(&host, hash, tick, amounts);
        }
    }

    /// Services, and addresses (their keys have port 0), to which at least so many SYNs a second led to no connection,
    /// over the last ten: the rate, and their share of SYNs and connections. Of an address, what goes to a service that
    /// is named does not count again. A look at every account: for once a second.
    pub fn half_open(&self, now: u32, least: f64) -> Vec<(Key, f64, f64)> {
        let over = |pages: &[Page], named: &HashMap<Key, [u64; 2]>| {
            let mut found = Vec::new();
            for page in pages {
                for place in (0..ENTRIES).filter(|place| page.tags[*place] != 0) {
                    let key = page.keys[place];
                    let Events { half_open, opened, .. } = page.counts[place].window(1, now);
                    let [at_services, opened_there] = named.get(&key).copied().unwrap_or_default();
                    let half_open = half_open.saturating_sub(at_services);
                    let all = half_open + opened.saturating_sub(opened_there);
                    if half_open as f64 / WINDOW_SECONDS >= least {
                        found.push((key, [half_open, all]));
                    }
                }
            }
            found
        };
        let mut found = over(&self.services, &HashMap::new());
        let mut named: HashMap<Key, [u64; 2]> = HashMap::new();
        for (key, [half_open, all]) in &found {
            let sums = named.entry(host_of(key).0).or_default();
            *sums = [sums[0] + half_open, sums[1] + all - half_open];
        }
        found.extend(over(&self.hosts, &named));
        let share = |[half_open, all]: [u64; 2]| half_open as f64 / all.max(1) as f64;
        let rate = |half_open| half_open as f64 / WINDOW_SECONDS;
        found.into_iter().map(|(key, counts)| (key, rate(counts[0]), share(counts))).collect()
    }

    /// Completes what the programs noted of a source.
    pub(super) fn source(
        &self,
        key: &Key,
        hash: u32,
        noted: [SourceWindow; WINDOWS],
        now: u32,
    ) -> Option<[SourceWindow; WINDOWS]> {
        let events = page(&self.sources, hash).read(key, hash, now)?;
        Some(std::array::from_fn(|window| {
            let Events { judged, unanswered, failed, resets, bytes, .. } = events[window];
            SourceWindow {
                unanswered: narrow(unanswered),
                resets: narrow(resets),
                judged: narrow(judged),
                failed: narrow(failed),
                bytes,
                ..noted[window]
            }
        }))
    }

    /// Completes what the programs noted of a service.
    pub(super) fn service(
        &self,
        key: &Key,
        hash: u32,
        noted: [ServiceWindow; WINDOWS],
        now: u32,
    ) -> Option<[ServiceWindow; WINDOWS]> {
        let events = page(&self.services, hash).read(key, hash, now)?;
        Some(std::array::from_fn(|window| {
            let Events { judged, unanswered, failed, resets, bytes, .. } = events[window];
            let unjudged = (noted[window].new_flows as u64).saturating_sub(judged);
            let lost = self.lost.window(window, now).judged.min(unjudged);
            ServiceWindow {
                unanswered: narrow(unanswered + lost),
                resets: narrow(resets),
                judged: narrow(judged + lost),
                failed: narrow(failed + lost),
                bytes,
                ..noted[window]
            }
        }))
    }
}

/// One account of an address for so many of services.
const HOSTS_OF_SERVICES: u32 = 4;

/// The address of a service, all ports of its protocol, and a hash of it. Not a secret one: it is not for attackers to
/// choose which addresses there are behind this host.
fn host_of(service: &Key) -> (Key, u32) {
    let mut host = *service;
    host.0[4] &= 0xffff_0000;
    let multiplier = |position: usize| 0x9e37_79b9_7f4a_7c15u64.wrapping_mul(2 * position as u64 + 1);
    let hash = hash_words(&host.0, multiplier);
    (host, hash)
}

fn page(pages: &[Page], hash: u32) -> &Page {
    &pages[hash as usize & (pages.len() - 1)]
}

fn page_mut(pages: &mut [Page], hash: u32) -> &mut Page {
    let mask = pages.len() - 1;
    &mut pages[hash as usize & mask]
}

fn narrow(count: u64) -> u32 {
    count.min(u32::MAX as u64) as u32
}
