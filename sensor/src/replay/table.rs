//! The flow table of a replay: the same records as the kernel's, in a hash map that grows as it must.
//!
//! Time is that of the packets. Flows end when they are idle, old, closed and lingered, reopened (TCP port reuse), or
//! when the capture ends; each ended record is handed to a sink exactly once, so that
//! `packets offered = Σ arrivals of records handed over + arrivals of records still held`.
//! Called by [`super::extract`] and by tests that compare the kernel's records with these.

use std::cmp::Reverse;
use std::collections::{BinaryHeap, HashMap};

use sensor_common::flow::{FlowKey, FlowRecord, state};
use sensor_common::packet::Packet;

/// Seconds to nanoseconds.
const SECOND_NS: u64 = 1_000_000_000;

/// When flows end.
#[derive(Clone, Copy, Debug)]
pub struct Timeouts {
    /// A flow without packets for this long is over, ns.
    pub idle_ns: u64,
    /// A flow that is this old is cut in two, ns.
    pub active_ns: u64,
    /// A closed TCP flow waits this long for late packets, ns.
    pub linger_ns: u64,
}

impl Default for Timeouts {
    fn default() -> Timeouts {
        Timeouts { idle_ns: 60 * SECOND_NS, active_ns: 30 * 60 * SECOND_NS, linger_ns: 2 * SECOND_NS }
    }
}

/// Why a record was handed over.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Reason {
    /// Not ended: it reached a snapshot.
    Snapshot,
    /// No packet for the idle timeout.
    Idle,
    /// The active timeout was reached.
    Active,
    /// TCP closed it.
    Closed,
    /// A new connection took its tuple.
    Reopened,
    /// The capture's clock went back by more than the idle timeout, as in merged captures.
    Clock,
    /// The capture ended.
    End,
}

impl Reason {
    /// The name in exports.
    pub const fn name(self) -> &'static str {
        match self {
            Reason::Snapshot => "snapshot",
            Reason::Idle => "idle",
            Reason::Active => "active",
            Reason::Closed => "closed",
            Reason::Reopened => "reopened",
            Reason::Clock => "clock",
            Reason::End => "end",
        }
    }
}

/// One flow and where it stands.
struct Slot {
    record: FlowRecord,
    /// Snapshots that were taken.
    taken: usize,
}

/// A deadline at which a slot has to be looked at: time, slot, generation of the slot's record.
type Deadline = Reverse<(u64, u32, u32)>;

/// The flows of one capture.
pub struct Table {
    timeouts: Timeouts,
    /// Packet counts at which a flow is handed over without ending, ascending.
    snapshots: Vec<u64>,
    index: HashMap<FlowKey, u32>,
    slots: Vec<Slot>,
    free: Vec<u32>,
    deadlines: BinaryHeap<Deadline>,
    now_ns: u64,
}

impl Table {
    /// An empty table. `snapshots`: packet counts at which a flow is handed over while it goes on.
    pub fn new(timeouts: Timeouts, mut snapshots: Vec<u64>) -> Table {
        snapshots.sort_unstable();
        snapshots.dedup();
        Table {
            timeouts,
            snapshots,
            index: HashMap::new(),
            slots: Vec::new(),
            free: Vec::new(),
            deadlines: BinaryHeap::new(),
            now_ns: 0,
        }
    }

    /// Flows that are held.
    pub fn len(&self) -> usize {
        self.index.len()
    }

    /// Whether no flow is held.
    pub fn is_empty(&self) -> bool {
        self.index.is_empty()
    }

    /// Counts a packet that arrived at `time_ns`, after ending what has timed out by then.
    ///
    /// The clock does not run backwards for small steps (captures of several queues are not strictly ordered). A step
    /// back by more than the idle timeout is another recording: all flows end, and the clock starts again.
    ///
    /// # Errors
    /// Those of `sink`.
    pub fn packet<E>(
        &mut self,
        packet: &Packet,
        time_ns: u64,
        sink: &mut impl FnMut(&FlowRecord, Reason) -> Result<(), E>,
    ) -> Result<(), E> {
        if time_ns.saturating_add(self.timeouts.idle_ns) < self.now_ns {
            self.end_all(Reason::Clock, sink)?;
            self.now_ns = time_ns;
        }
        self.now_ns = self.now_ns.max(time_ns);
        self.expire(sink)?;
        let mut slot = self.index.get(&packet.key).copied();
        if let Some(number) = slot {
            let record = &self.slots[number as usize].record;
            let ended = if record.is_reopened_by(packet) {
                Some(Reason::Reopened)
            } else if time_ns.saturating_sub(record.first_ns) >= self.timeouts.active_ns {
                Some(Reason::Active)
            } else {
                None
            };
            if let Some(reason) = ended {
                self.end(number, reason, sink)?;
                slot = None;
            }
        }
        let number = match slot {
            Some(number) => number,
            None => self.start(packet, time_ns),
        };
        let Slot { record, taken } = &mut self.slots[number as usize];
        let open = record.state & state::CLOSED == 0;
        record.update(packet, time_ns);
        if open && record.state & state::CLOSED != 0 {
            let at = record.last_ns.saturating_add(self.timeouts.linger_ns);
            self.deadlines.push(Reverse((at, number, record.generation)));
        }
        while self.snapshots.get(*taken).is_some_and(|count| record.packets() >= *count) {
            *taken += 1;
            sink(record, Reason::Snapshot)?;
        }
        Ok(())
    }

    /// Ends every flow that is left.
    ///
    /// # Errors
    /// Those of `sink`.
    pub fn finish<E>(&mut self, sink: &mut impl FnMut(&FlowRecord, Reason) -> Result<(), E>) -> Result<(), E> {
        self.end_all(Reason::End, sink)
    }

    fn start(&mut self, packet: &Packet, time_ns: u64) -> u32 {
        let number = self.free.pop().unwrap_or_else(|| {
            self.slots.push(Slot { record: FlowRecord::zeroed(), taken: 0 });
            (self.slots.len() - 1) as u32
        });
        let slot = &mut self.slots[number as usize];
        slot.taken = 0;
        // The generation tells a deadline of an earlier flow in this slot from one of this flow.
        let generation = slot.record.generation.wrapping_add(1);
        slot.record.start(packet, time_ns, 0, generation);
        self.index.insert(packet.key, number);
        self.deadlines.push(Reverse((time_ns.saturating_add(self.timeouts.idle_ns), number, generation)));
        number
    }

    /// Looks at every slot whose deadline has come. A flow that saw packets since gets its next deadline: one heap
    /// operation per flow and idle timeout, not per packet.
    fn expire<E>(&mut self, sink: &mut impl FnMut(&FlowRecord, Reason) -> Result<(), E>) -> Result<(), E> {
        while let Some(&Reverse((at, number, generation))) = self.deadlines.peek() {
            if at > self.now_ns {
                break;
            }
            self.deadlines.pop();
            let record = &self.slots[number as usize].record;
            if record.generation != generation || self.index.get(&record.key) != Some(&number) {
                continue;
            }
            let closed = record.state & state::CLOSED != 0;
            let wait_ns = if closed { self.timeouts.linger_ns } else { self.timeouts.idle_ns };
            let due = record.last_ns.saturating_add(wait_ns);
            if due <= self.now_ns {
                self.end(number, if closed { Reason::Closed } else { Reason::Idle }, sink)?;
            } else {
                self.deadlines.push(Reverse((due, number, generation)));
            }
        }
        Ok(())
    }

    fn end<E>(
        &mut self,
        number: u32,
        reason: Reason,
        sink: &mut impl FnMut(&FlowRecord, Reason) -> Result<(), E>,
    ) -> Result<(), E> {
        let record = &self.slots[number as usize].record;
        self.index.remove(&record.key);
        self.free.push(number);
        sink(record, reason)
    }

    /// Ends every flow, in the order of their slots, so that the same capture gives the same rows.
    fn end_all<E>(
        &mut self,
        reason: Reason,
        sink: &mut impl FnMut(&FlowRecord, Reason) -> Result<(), E>,
    ) -> Result<(), E> {
        let mut held: Vec<u32> = self.index.values().copied().collect();
        held.sort_unstable();
        self.deadlines.clear();
        for number in held {
            self.end(number, reason, sink)?;
        }
        Ok(())
    }
}
