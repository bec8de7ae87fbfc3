//! Host context in a replay: the tables of new flows and the ledger, driven by the packets' own times.
//!
//! Flows are numbered by the caller (`slot`), which says when one starts, when it got a packet and when it ends.

use std::collections::VecDeque;

use sensor_common::context::{DEFAULT_SERVICES, DEFAULT_SOURCES, HostContext};
use sensor_common::flow::FlowRecord;
use sensor_common::hash::{SEED_WORDS, Seed};
use sensor_common::packet::Packet;
use sensor_common::table::TICK_SHIFT;

use super::watch::VISIT_TICKS;
use super::{Brief, HostNotes, Ledger, Watch, ends_of, host_context};

/// Hash keys of a replay: the same in every run, so that the same capture gives the same numbers. (SplitMix64 from 0.)
pub const REPLAY_SEED: Seed = {
    let mut seed = [0; SEED_WORDS];
    let mut state = 0u64;
    let mut position = 0;
    while position < SEED_WORDS {
        state = state.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut word = state;
        word = (word ^ word >> 30).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        word = (word ^ word >> 27).wrapping_mul(0x94d0_49bb_1331_11eb);
        seed[position] = word ^ word >> 31;
        position += 1;
    }
    seed
};

/// Looks that may wait before those that nobody wants any more are taken out.
const MIN_VISITS: usize = 1024;

/// A look that is to be taken at a flow.
#[derive(Clone, Copy, Debug)]
struct Visit {
    at_ns: u64,
    slot: u32,
    generation: u32,
}

/// The flow in a slot.
#[derive(Clone, Copy, Debug, Default)]
struct Followed {
    watch: Watch,
    /// Generation of the flow for which a look is waiting.
    waiting: Option<u32>,
}

/// The context of a replay.
#[derive(Debug)]
pub struct Replay {
    seed: Seed,
    notes: HostNotes,
    ledger: Ledger,
    followed: Vec<Followed>,
    /// In the order of their time: all wait equally long. At most one for each flow that is held is still wanted; those of
    /// flows that ended before are taken out when they are more than these, also if the capture's time stands still.
    visits: VecDeque<Visit>,
}

impl Replay {
    /// Empty, of the sizes that the agent has by default. `seed`: [`REPLAY_SEED`], or that of programs to be compared.
    pub fn new(seed: Seed) -> Replay {
        Replay {
            seed,
            notes: HostNotes::new(seed, DEFAULT_SOURCES, DEFAULT_SERVICES),
            ledger: Ledger::new(DEFAULT_SOURCES, DEFAULT_SERVICES),
            followed: Vec::new(),
            visits: VecDeque::new(),
        }
    }

    /// Forgets everything: another recording begins.
    pub fn clear(&mut self) {
        self.notes.clear();
        self.ledger.clear();
        self.followed.clear();
        self.visits.clear();
    }

    /// A flow starts with `packet`.
    pub fn start(&mut self, packet: &Packet, now_ns: u64) {
        self.notes.note(packet, now_ns);
    }

    /// The flow in `slot` got a packet (its first or another).
    pub fn packet(&mut self, slot: u32, generation: u32, now_ns: u64) {
        let number = slot as usize;
        if number >= self.followed.len() {
            self.followed.resize(number + 1, Followed::default());
        }
        let followed = &mut self.followed[number];
        if followed.waiting != Some(generation) {
            followed.waiting = Some(generation);
            let at_ns = now_ns.saturating_add((VISIT_TICKS as u64) << TICK_SHIFT);
            if self.visits.len() >= MIN_VISITS.max(2 * self.followed.len()) {
                let followed = &self.followed;
                self.visits.retain(|visit| followed[visit.slot as usize].waiting == Some(visit.generation));
            }
            self.visits.push_back(Visit { at_ns, slot, generation });
        }
    }

    /// Time moves on to `now_ns`: takes the looks that are due. `record` gives the record that a slot holds now.
    pub fn advance<'a>(&mut self, now_ns: u64, record: impl Fn(u32) -> &'a FlowRecord) {
        while let Some(&Visit { at_ns, slot, generation }) = self.visits.front() {
            if at_ns > now_ns {
                break;
            }
            self.visits.pop_front();
            let followed = &mut self.followed[slot as usize];
            if followed.waiting != Some(generation) {
                continue;
            }
            followed.waiting = None;
            let record = record(slot);
            let ends = ends_of(record, &self.seed);
            followed.watch.enter(&Brief::of(record), &ends, at_ns, false, &mut self.ledger);
        }
    }

    /// The flow in `slot` ends with this record.
    pub fn end(&mut self, slot: u32, record: &FlowRecord, now_ns: u64) {
        if let Some(followed) = self.followed.get_mut(slot as usize) {
            followed.waiting = None;
            let ends = ends_of(record, &self.seed);
            followed.watch.enter(&Brief::of(record), &ends, now_ns, true, &mut self.ledger);
        }
    }

    /// The context of a flow at `now_ns`.
    pub fn context(&self, record: &FlowRecord, now_ns: u64) -> HostContext {
        host_context(&self.notes, &self.ledger, &ends_of(record, &self.seed), now_ns)
    }

    #[cfg(test)]
    pub(super) fn waiting(&self) -> usize {
        self.visits.len()
    }

    #[cfg(test)]
    pub(super) fn ledger_mut(&mut self) -> &mut Ledger {
        &mut self.ledger
    }

    /// The tables of new flows.
    pub fn notes(&self) -> &HostNotes {
        &self.notes
    }
}
