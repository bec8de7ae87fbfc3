//! What became of the flows of each source and service: judged, unanswered, failed, reset, and their bytes, in the same
//! sliding windows as the programs' counts. Fed from records, live and ended; of fixed size, with the programs' rule of who
//! gives way.
//!
//! A record that never reaches the agent (the ring was full, the bucket was full) is not in here. How many those are
//! is told by [`Ledger::lose`], and [`Ledger::service`] takes a service's new flows that were not judged as unanswered, as far
//! as flows were lost.

use sensor_common::context::window::{LONGEST, estimate, idle_of, later, steps};
use sensor_common::context::{ENTRIES, Ends, Key, ServiceWindow, SourceWindow, WINDOW_TICKS, WINDOWS, victim};
use sensor_common::table::{TICK_SHIFT, tag_of};

/// What is counted, in the order of an account's columns.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) struct Events {
    pub(super) judged: u64,
    pub(super) unanswered: u64,
    pub(super) failed: u64,
    pub(super) resets: u64,
    pub(super) bytes: u64,
    pub(super) half_open: u64,
}

const COLUMNS: usize = 6;
/// Length of the middle window, seconds.
const WINDOW_SECONDS: f64 = WINDOW_TICKS[1] as f64 * (1u64 << TICK_SHIFT) as f64 / 1e9;

impl Events {
    fn columns(self) -> [u64; COLUMNS] {
        let Events { judged, unanswered, failed, resets, bytes, half_open } = self;
        [judged, unanswered, failed, resets, bytes, half_open]
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
        let [judged, unanswered, failed, resets, bytes, half_open] = std::array::from_fn(|column| {
            estimate(current[column], previous[column], self.last, now, WINDOW_TICKS[window])
        });
        Events { judged, unanswered, failed, resets, bytes, half_open }
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
    /// Flows whose records were lost, in the first column.
    lost: Counts,
}

impl Ledger {
    /// An empty ledger of so many sources and services, powers of two from 4.
    pub fn new(sources: u32, services: u32) -> Ledger {
        let pages = |entries: u32| vec![Page::default(); (entries as usize / ENTRIES).next_power_of_two()];
        Ledger { sources: pages(sources), services: pages(services), lost: Counts::default() }
    }

    /// Bytes of memory, fixed.
    pub fn memory_bytes(&self) -> usize {
        (self.sources.len() + self.services.len()) * size_of::<Page>()
    }

    /// Forgets everything.
    pub fn clear(&mut self) {
        self.sources.fill(Page::default());
        self.services.fill(Page::default());
        self.lost = Counts::default();
    }

    /// Counts flows of any service whose records the agent will never see.
    pub fn lose(&mut self, flows: u64, tick: u32) {
        if flows > 0 {
            self.lost.add(tick, [flows, 0, 0, 0, 0, 0]);
        }
    }

    pub(super) fn add(&mut self, ends: &Ends, tick: u32, events: Events) {
        let amounts = events.columns();
        if amounts != [0; COLUMNS] {
            page_mut(&mut self.sources, ends.source_hash).add(&ends.source, ends.source_hash, tick, amounts);
            page_mut(&mut self.services, ends.service_hash).add(&ends.service, ends.service_hash, tick, amounts);
        }
    }

    /// Services with at least so many half-open connections a second over the last ten: the rate, and their share of the
    /// flows that were judged. A look at every account: for once a second.
    pub fn half_open(&self, now: u32, least: f64) -> Vec<(Key, f64, f64)> {
        let mut found = Vec::new();
        for page in &self.services {
            for place in (0..ENTRIES).filter(|place| page.tags[*place] != 0) {
                let Events { judged, half_open, .. } = page.counts[place].window(1, now);
                let rate = half_open as f64 / WINDOW_SECONDS;
                if rate >= least {
                    found.push((page.keys[place], rate, half_open as f64 / judged.max(1) as f64));
                }
            }
        }
        found
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
            let Events { judged, unanswered, failed, resets, bytes, half_open: _ } = events[window];
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
            let Events { judged, unanswered, failed, resets, bytes, half_open: _ } = events[window];
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
