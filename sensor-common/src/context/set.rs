//! Four entries that share a hash, and how a new flow is noted in one of them. The kernel and a replay run [`Set::note`];
//! the agent and a replay read with [`Set::find`].

use bytemuck::{Pod, Zeroable};

use super::flow::{HALF, Key};
use super::host::{ServiceWindow, SourceWindow};
use super::sketch::{CELL_WORDS, COMPONENTS, clear, distinct, hit, sweep};
use super::window::{LONGEST, WINDOW_TICKS, WINDOWS, estimate, idle_of, later, steps};
use crate::table::tag_of;

/// Entries of a set.
pub const ENTRIES: usize = 4;

/// Ticks after which cells are swept, a quarter of the range of a cell's ticks: 18 minutes.
const SWEEP_TICKS: u32 = 1 << 14;

/// One source or service: 512 bytes, eight cache lines.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Pod, Zeroable)]
#[repr(C)]
pub struct Entry {
    /// The cells of the sketches, four in a word (see [`super::sketch`]). First, because the verifier rounds the place of a
    /// cell up by less than a word, which must not reach past a set.
    pub cells: [u64; CELL_WORDS],
    /// Which.
    pub key: Key,
    /// Tick at which the cells were swept.
    pub swept: u32,
    /// New flows in the current sub-window of each window.
    pub current: [u32; WINDOWS],
    /// New flows in the sub-window before.
    pub previous: [u32; WINDOWS],
    /// Reserved, zero.
    pub reserved: u64,
}

/// A set: one line that tells its entries apart, and the entries.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Pod, Zeroable)]
#[repr(C, align(64))]
pub struct Set {
    /// Sequence lock ([`crate::lock`]).
    pub sequence: u32,
    /// Entries that were given up although they had flows in the last 60 s.
    pub replaced: u32,
    /// Tick of the last of these.
    pub replaced_at: u32,
    /// Reserved, always zero.
    pub reserved: u32,
    /// Hash of each entry, 0 = free.
    pub tags: [u32; ENTRIES],
    /// Tick of each entry's last new flow.
    pub last: [u32; ENTRIES],
    /// New flows of each entry in the longest window and the one before: what it weighs when one has to go.
    pub weights: [u32; ENTRIES],
    /// The entries.
    pub entries: [Entry; ENTRIES],
}

const _: () = assert!(size_of::<Entry>() == 512 && size_of::<Set>() == 64 + ENTRIES * 512);
const _: () = assert!(core::mem::offset_of!(Entry, key) == 448);

/// What became of a new flow that was noted.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Noted {
    /// Its entry was there, or there was room for one.
    Counted,
    /// Another entry, with flows in the last 60 s, had to go for it.
    Replaced,
}

/// What is known of a key.
#[derive(Clone, Copy, Debug)]
pub enum Known<'a> {
    /// Its entry, and the tick of its last new flow.
    Entry(&'a Entry, u32),
    /// It had no new flow in the last 60 s.
    Quiet,
    /// Nothing: its entry may have been given up for another.
    Unknown,
}

impl Set {
    /// Counts a new flow of `key` at `tick`, and its values' `cells` (a cell out of range is none). The caller holds
    /// the lock.
    ///
    /// A `tick` before the entry's last is taken for it: the clocks of two CPUs may differ by a little.
    #[inline(always)]
    pub fn note(&mut self, key: &Key, hash: u32, tick: u32, cells: [u32; 2]) -> Noted {
        let tag = tag_of(hash);
        let mut place = ENTRIES;
        for number in 0..ENTRIES {
            if self.tags[number] == tag && self.entries[number].key.same(key) {
                place = number;
            }
        }
        let known = place < ENTRIES;
        let mut noted = Noted::Counted;
        let mut tick = tick;
        let mut idle = LONGEST;
        if known {
            idle = idle_of(self.last[place & (ENTRIES - 1)], tick);
            tick = later(self.last[place & (ENTRIES - 1)], tick);
        } else {
            place = victim(&self.tags, &self.last, &self.weights, tick);
            let given_up = place & (ENTRIES - 1);
            if self.tags[given_up] != 0 && idle_of(self.last[given_up], tick) < LONGEST {
                self.replaced = self.replaced.wrapping_add(1);
                self.replaced_at = tick;
                noted = Noted::Replaced;
            }
            self.tags[given_up] = tag;
            self.entries[given_up].key = *key;
        }
        // The same number; but to the verifier one that it knows nothing of, so that it walks what follows once and not
        // for each place.
        let place = (place as u32 ^ self.reserved) as usize & (ENTRIES - 1);
        let last = self.last[place];
        let entry = &mut self.entries[place];
        for (window, ticks) in WINDOW_TICKS.iter().enumerate() {
            let passed = if known { steps(last, tick, *ticks) } else { 2 };
            if passed > 0 {
                entry.previous[window] = if passed == 1 { entry.current[window] } else { 0 };
                entry.current[window] = 0;
            }
            entry.current[window] = entry.current[window].saturating_add(1);
        }
        if idle >= LONGEST {
            let empty = entry.reserved;
            clear(&mut entry.cells, empty);
            entry.swept = tick;
        } else if tick.wrapping_sub(entry.swept) >= SWEEP_TICKS {
            sweep(&mut entry.cells, tick);
            entry.swept = tick;
        }
        for cell in cells {
            hit(&mut entry.cells, cell, tick);
        }
        self.last[place] = tick;
        self.weights[place] = entry.current[WINDOWS - 1].saturating_add(entry.previous[WINDOWS - 1]);
        noted
    }

    /// What is known of `key` at tick `now`.
    pub fn find(&self, key: &Key, hash: u32, now: u32) -> Known<'_> {
        let tag = tag_of(hash);
        for (number, entry) in self.entries.iter().enumerate() {
            if self.tags[number] == tag && entry.key.same(key) {
                return Known::Entry(entry, self.last[number]);
            }
        }
        if self.replaced != 0 && idle_of(self.replaced_at, now) < LONGEST { Known::Unknown } else { Known::Quiet }
    }

    /// Entries with a new flow within the longest window before `now`.
    pub fn used(&self, now: u32) -> usize {
        let used = |number: &usize| self.tags[*number] != 0 && idle_of(self.last[*number], now) < LONGEST;
        (0..ENTRIES).filter(used).count()
    }
}

/// The entry that goes for a new one: a free one, else one without flows in the longest window, else the lightest, of
/// equals the one idle longest.
#[inline(always)]
pub fn victim(tags: &[u32; ENTRIES], last: &[u32; ENTRIES], weights: &[u32; ENTRIES], now: u32) -> usize {
    let (mut least, mut place) = (u32::MAX, 0);
    for number in 0..ENTRIES {
        let idle = idle_of(last[number], now);
        let rank = if tags[number] == 0 {
            0
        } else if idle >= LONGEST {
            1
        } else {
            // Idle ticks of an entry in use need 10 bits.
            (weights[number].min(WEIGHTS) + 1) << 10 | (1023 - idle)
        };
        if rank < least {
            least = rank;
            place = number;
        }
    }
    place
}

/// Heavier entries are equal to the choice of a victim.
const WEIGHTS: u32 = 1 << 20;

impl Entry {
    fn new_flows(&self, window: usize, last: u32, now: u32) -> u32 {
        let (current, previous) = (self.current[window] as u64, self.previous[window] as u64);
        estimate(current, previous, last, now, WINDOW_TICKS[window]).min(u32::MAX as u64) as u32
    }

    /// What a source's entry knows at tick `now`; `last` is the tick of its last new flow.
    pub fn source(&self, last: u32, now: u32) -> [SourceWindow; WINDOWS] {
        let ports = distinct(&self.cells, 0, HALF, last, now);
        let hosts = distinct(&self.cells, HALF, HALF, last, now);
        core::array::from_fn(|window| SourceWindow {
            new_flows: self.new_flows(window, last, now),
            ports: ports[window],
            hosts: hosts[window],
            ..SourceWindow::default()
        })
    }

    /// What a service's entry knows at tick `now`; `last` is the tick of its last new flow.
    pub fn service(&self, last: u32, now: u32) -> [ServiceWindow; WINDOWS] {
        let sources = distinct(&self.cells, 0, COMPONENTS, last, now);
        core::array::from_fn(|window| ServiceWindow {
            new_flows: self.new_flows(window, last, now),
            sources: sources[window],
            ..ServiceWindow::default()
        })
    }
}

#[cfg(test)]
mod tests;
