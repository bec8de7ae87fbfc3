//! The flow table of a replay: the same records as the kernel's, in memory that grows up to a stated number of flows.
//!
//! Time is that of the packets. Flows end when they are idle, old, closed and lingered, reopened (TCP port reuse), when
//! a new flow needs the place of the one that has been idle longest, or when the capture ends; each ended record is
//! handed to a sink exactly once, so that
//! `packets offered = Σ arrivals of records handed over + arrivals of records still held`.
//! Called by [`super::engine`] and by tests that compare the kernel's records with these.

mod end;
mod index;
mod order;
#[cfg(test)]
mod tests;

use std::cell::Cell;
use std::cmp::Reverse;
use std::rc::Rc;

use sensor_common::context::HostContext;
use sensor_common::flow::{FlowKey, FlowRecord};
use sensor_common::hash::Seed;
use sensor_common::packet::Packet;
use sensor_common::table::{Pressure, TICK_SHIFT, eviction_rank, stage_of};

pub(super) use self::end::SECOND_NS;
pub use self::end::{Reason, Timeouts};
use self::index::Index;
use self::order::{List, Order};
use crate::context::Replay;

/// Flows that are held at once unless something else is asked for: their records take 150 to 190 MB.
pub const DEFAULT_MAX_FLOWS: usize = 200_000;
/// Records that are allocated together: a table of few flows stays small, and records never move.
const CHUNK: usize = 1 << 10;

/// What is known of a slot beside its record.
#[derive(Clone, Copy, Default)]
struct Slot {
    /// Hash of the flow's key.
    hash: u32,
    /// Snapshots that were taken.
    taken: u32,
    /// Number of the flow.
    flow: u64,
}

/// The flows of one capture.
pub struct Table {
    timeouts: Timeouts,
    max_flows: usize,
    /// Packet counts at which a flow is handed over without ending, ascending; once for all that one packet reaches.
    snapshots: Vec<u64>,
    index: Index,
    /// Records by slot, in chunks of [`CHUNK`].
    chunks: Vec<Vec<FlowRecord>>,
    slots: Vec<Slot>,
    free: Vec<u32>,
    /// Slots in use, those idle longest first: open flows, and closed ones that linger.
    order: Order,
    now_ns: u64,
    /// Nothing can time out before this.
    due_ns: u64,
    /// The host context, if it is followed, and where that of the record that is handed over is put.
    context: Option<(Box<Replay>, Rc<Cell<HostContext>>)>,
    /// Records that were begun.
    begun: u64,
    /// Where the number of the record that is handed over is put.
    number: Rc<Cell<u64>>,
}

impl Table {
    /// An empty table of at most [`DEFAULT_MAX_FLOWS`]. `snapshots`: packet counts at which a flow is handed over while
    /// it goes on.
    pub fn new(timeouts: Timeouts, mut snapshots: Vec<u64>) -> Table {
        snapshots.sort_unstable();
        snapshots.dedup();
        Table {
            timeouts,
            max_flows: DEFAULT_MAX_FLOWS,
            snapshots,
            index: Index::new(),
            chunks: Vec::new(),
            slots: Vec::new(),
            free: Vec::new(),
            order: Order::default(),
            now_ns: 0,
            due_ns: u64::MAX,
            context: None,
            begun: 0,
            number: Rc::default(),
        }
    }

    /// Whenever the sink is called, `number` holds that of its record: records are numbered from 1 in the order in
    /// which they begin, whatever snapshots are taken.
    #[must_use]
    pub fn with_numbers(self, number: Rc<Cell<u64>>) -> Table {
        Table { number, ..self }
    }

    /// Follows the host context as the programs and the agent do, under the hash keys `seed`. Whenever the sink is called,
    /// `context` holds that of its record: at the time of the snapshot's packet, or when the flow ended.
    #[must_use]
    pub fn with_context(self, seed: Seed, context: Rc<Cell<HostContext>>) -> Table {
        Table { context: Some((Box::new(Replay::new(seed)), context)), ..self }
    }

    /// Holds at most `max_flows` at once, at least 1.
    #[must_use]
    pub fn with_max_flows(self, max_flows: usize) -> Table {
        Table { max_flows: max_flows.clamp(1, u32::MAX as usize / 2), ..self }
    }

    /// Flows that are held.
    pub fn len(&self) -> usize {
        self.slots.len() - self.free.len()
    }

    /// Whether no flow is held.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    fn record(&self, number: u32) -> &FlowRecord {
        &self.chunks[number as usize / CHUNK][number as usize % CHUNK]
    }

    fn record_mut(&mut self, number: u32) -> &mut FlowRecord {
        &mut self.chunks[number as usize / CHUNK][number as usize % CHUNK]
    }

    /// Counts packets that arrived at these times, after ending what had timed out by then.
    ///
    /// The clock does not run backwards for small steps (captures of several queues are not strictly ordered). A step
    /// back by more than the idle timeout is another recording: all flows end, and the clock starts again.
    ///
    /// Several packets at once are faster than one by one: what they need of the table is fetched for all of them
    /// before the first is counted, so that the waits for memory overlap.
    ///
    /// # Errors
    /// Those of `sink`.
    pub fn packets<E>(
        &mut self,
        packets: &[(u64, Packet)],
        sink: &mut impl FnMut(&FlowRecord, Reason) -> Result<(), E>,
    ) -> Result<(), E> {
        for batch in packets.chunks(BATCH) {
            let mut hashes = [0; BATCH];
            for (hash, (_, packet)) in hashes.iter_mut().zip(batch) {
                *hash = self.index.hash(&packet.key);
            }
            self.fetch(&hashes[..batch.len()], batch);
            for (hash, (time_ns, packet)) in hashes.iter().zip(batch) {
                self.count(packet, None, *hash, *time_ns, sink)?;
            }
        }
        Ok(())
    }

    /// Brings what ordinary packets of these hashes touch into the cache: reads that depend on nothing wait for memory
    /// together.
    fn fetch(&self, hashes: &[u32], packets: &[(u64, Packet)]) {
        let mut found = [u32::MAX; BATCH];
        for (number, hash) in found.iter_mut().zip(hashes) {
            *number = self.index.guess(*hash).unwrap_or(u32::MAX);
        }
        let mut sum = 0;
        let records = || found.iter().zip(packets).filter(|(number, _)| **number != u32::MAX);
        for (number, _) in records() {
            let record = self.record(*number);
            sum ^= record.generation as u64 ^ record.last_ns;
        }
        for (number, (_, packet)) in records() {
            let record = self.record(*number);
            let half = &record.directions[record.direction_of(packet) & 1];
            sum ^= half.last_ns ^ half.iat_square_low ^ half.size_bins[0] as u64;
        }
        std::hint::black_box(sum);
    }

    /// As [`Self::packets`], for one.
    ///
    /// # Errors
    /// Those of `sink`.
    pub fn packet<E>(
        &mut self,
        packet: &Packet,
        time_ns: u64,
        sink: &mut impl FnMut(&FlowRecord, Reason) -> Result<(), E>,
    ) -> Result<(), E> {
        self.packet_with_quote(packet, None, time_ns, sink)
    }

    /// As [`Self::packet`]; where the packet is an ICMP error, the flow that it quotes learns of it, if it is held.
    ///
    /// # Errors
    /// Those of `sink`.
    pub fn packet_with_quote<E>(
        &mut self,
        packet: &Packet,
        quoted: Option<&FlowKey>,
        time_ns: u64,
        sink: &mut impl FnMut(&FlowRecord, Reason) -> Result<(), E>,
    ) -> Result<(), E> {
        let hash = self.index.hash(&packet.key);
        self.count(packet, quoted, hash, time_ns, sink)
    }

    fn count<E>(
        &mut self,
        packet: &Packet,
        quoted: Option<&FlowKey>,
        hash: u32,
        time_ns: u64,
        sink: &mut impl FnMut(&FlowRecord, Reason) -> Result<(), E>,
    ) -> Result<(), E> {
        if time_ns.saturating_add(self.timeouts.idle_ns) < self.now_ns {
            self.end_all(Reason::Clock, sink)?;
            self.now_ns = time_ns;
            if let Some((context, _)) = &mut self.context {
                context.clear();
            }
        }
        self.now_ns = self.now_ns.max(time_ns);
        if let Some((mut context, cell)) = self.context.take() {
            context.advance(self.now_ns, |number| self.record(number));
            self.context = Some((context, cell));
        }
        if self.due_ns <= self.now_ns {
            self.expire(sink)?;
        }
        let mut slot = self.index.find(hash, |number| self.record(number).key.same(&packet.key));
        match slot.and_then(|number| Some((number, self.over(self.record(number), packet, time_ns)?))) {
            Some((number, Reason::Cut)) => self.cut(number, packet, time_ns, sink)?,
            Some((number, reason)) => {
                self.end(number, reason, sink)?;
                slot = None;
            }
            None => {}
        }
        let number = match slot {
            Some(number) => number,
            None => self.start(packet, hash, time_ns, sink)?,
        };
        let record = self.record_mut(number);
        record.update(packet, time_ns);
        let phase = record.phase();
        self.touch(number, phase);
        if let Some((mut context, cell)) = self.context.take() {
            context.packet(number, self.record(number).generation, self.now_ns);
            self.context = Some((context, cell));
        }
        // After the error was counted in its own flow, as in the programs; the quoted flow is not touched by it otherwise.
        if let Some(key) = quoted
            && let Some(number) = self.index.find(self.index.hash(key), |number| self.record(number).key.same(key))
        {
            self.record_mut(number).quoted(packet.icmp_type, packet.icmp_code);
        }
        // A super-packet may reach several at once: one row, not the same again.
        let taken = self.slots[number as usize].taken as usize;
        let left = &self.snapshots[taken..];
        if left.is_empty() {
            return Ok(());
        }
        let packets = self.record(number).packets();
        let reached = left.iter().take_while(|count| packets >= **count).count();
        if reached > 0 {
            self.slots[number as usize].taken += reached as u32;
            self.place_context(number, self.now_ns);
            self.hand_over(number, Reason::Snapshot(self.slots[number as usize].taken), sink)?;
        }
        Ok(())
    }

    /// Whether a flow is over before this packet of its tuple, and why.
    fn over(&self, record: &FlowRecord, packet: &Packet, time_ns: u64) -> Option<Reason> {
        if self.timeouts.reopen && record.is_reopened_by(packet) {
            return Some(Reason::Reopened);
        }
        let list = self.list(record.phase());
        if record.last_ns.saturating_add(self.wait_ns(list)) <= self.now_ns {
            return Some(if list == List::Lingering { Reason::Closed } else { Reason::Idle });
        }
        let old = time_ns.saturating_sub(record.first_ns) >= self.timeouts.active_ns;
        old.then_some(if self.timeouts.goes_on { Reason::Cut } else { Reason::Active })
    }

    /// Where a flow in this phase waits for its end.
    fn list(&self, phase: u8) -> List {
        List::of(phase, self.timeouts.linger_ns < self.timeouts.idle_ns)
    }

    fn wait_ns(&self, list: List) -> u64 {
        match list {
            List::Lingering => self.timeouts.linger_ns,
            List::OneSided | List::Answered => self.timeouts.idle_ns,
            List::Established => self.timeouts.established_ns,
        }
    }

    /// Ends every flow that is left.
    ///
    /// # Errors
    /// Those of `sink`.
    pub fn finish<E>(&mut self, sink: &mut impl FnMut(&FlowRecord, Reason) -> Result<(), E>) -> Result<(), E> {
        self.end_all(Reason::End, sink)
    }

    fn start<E>(
        &mut self,
        packet: &Packet,
        hash: u32,
        time_ns: u64,
        sink: &mut impl FnMut(&FlowRecord, Reason) -> Result<(), E>,
    ) -> Result<u32, E> {
        if self.len() == self.max_flows
            && let Some(number) = self.given_up_first()
        {
            self.end(number, Reason::Evicted, sink)?;
        }
        let number = self.free.pop().unwrap_or_else(|| self.grow());
        self.begun += 1;
        self.slots[number as usize] = Slot { hash, taken: 0, flow: self.begun };
        let record = self.record_mut(number);
        let generation = record.generation.wrapping_add(1);
        record.start(packet, time_ns, 0, generation);
        if let Some((context, _)) = &mut self.context {
            context.start(packet, self.now_ns);
        }
        self.index.insert(hash, number);
        self.order.push(List::OneSided, number);
        self.due_ns = self.due_ns.min(time_ns.saturating_add(self.timeouts.idle_ns));
        Ok(number)
    }

    /// A slot more.
    fn grow(&mut self) -> u32 {
        let number = self.slots.len();
        if number.is_multiple_of(CHUNK) {
            self.chunks.push(Vec::with_capacity(CHUNK));
        }
        if let Some(chunk) = self.chunks.last_mut() {
            chunk.push(FlowRecord::zeroed());
        }
        self.slots.push(Slot::default());
        self.order.grow();
        number as u32
    }

    /// The flow was seen now: it is the last to be idle for long.
    fn touch(&mut self, number: u32, phase: u8) {
        let list = self.list(phase);
        self.order.move_to_end(list, number);
        if list == List::Lingering {
            let due_ns = self.record(number).last_ns.saturating_add(self.timeouts.linger_ns);
            self.due_ns = self.due_ns.min(due_ns);
        }
    }

    /// Puts the context of a flow where the sink finds it.
    fn place_context(&self, number: u32, now_ns: u64) {
        if let Some((context, cell)) = &self.context {
            cell.set(context.context(self.record(number), now_ns));
        }
    }

    /// Who gives way for a new flow, of those idle longest in each list: the one that the programs would give up
    /// ([`eviction_rank`]), as if every flow with history were idle, for there is always one that goes here.
    fn given_up_first(&self) -> Option<u32> {
        let rank = |number: &u32| {
            let record = self.record(*number);
            let idle = self.now_ns.saturating_sub(record.last_ns) >> TICK_SHIFT;
            let idle = u32::try_from(idle).unwrap_or(u32::MAX);
            let pressure = Pressure { idle, evict_idle: 0, crowds: false, opens: false };
            (eviction_rank(1, stage_of(record.packets(), record.phase()), pressure), Reverse(record.last_ns))
        };
        List::ALL.into_iter().filter_map(|list| self.order.first(list)).max_by_key(rank)
    }

    /// The active timeout is over for a flow that goes on with this packet: its record is handed over, and another one
    /// begins in its place.
    fn cut<E>(
        &mut self,
        number: u32,
        packet: &Packet,
        time_ns: u64,
        sink: &mut impl FnMut(&FlowRecord, Reason) -> Result<(), E>,
    ) -> Result<(), E> {
        if let Some((mut context, cell)) = self.context.take() {
            context.end(number, self.record(number), self.now_ns);
            self.context = Some((context, cell));
            self.place_context(number, self.now_ns);
        }
        self.hand_over(number, Reason::Cut, sink)?;
        self.record_mut(number).go_on(packet, time_ns, 0);
        self.begun += 1;
        let slot = &mut self.slots[number as usize];
        (slot.taken, slot.flow) = (0, self.begun);
        Ok(())
    }

    /// Ends what has timed out. The lists are in the order of arrival, so only their heads are looked at; where packets
    /// came out of order, a flow behind a younger one ends a little late, or when its next packet comes.
    fn expire<E>(&mut self, sink: &mut impl FnMut(&FlowRecord, Reason) -> Result<(), E>) -> Result<(), E> {
        let mut due_ns = u64::MAX;
        while let Some(number) = self.order.first(List::Lingering) {
            let due = self.record(number).last_ns.saturating_add(self.timeouts.linger_ns);
            if due > self.now_ns {
                due_ns = due;
                break;
            }
            self.end(number, Reason::Closed, sink)?;
        }
        // In the order in which they were last seen, whatever they have shown.
        loop {
            let due = |list: List| {
                let number = self.order.first(list)?;
                let due = self.record(number).last_ns.saturating_add(self.wait_ns(list));
                Some((due > self.now_ns, self.order.turn(number), due, number))
            };
            let lists = [List::OneSided, List::Answered, List::Established];
            let heads = || lists.into_iter().filter_map(due);
            match heads().min() {
                Some((false, _, _, number)) => self.end(number, Reason::Idle, sink)?,
                _ => {
                    due_ns = heads().map(|(_, _, due, _)| due).fold(due_ns, u64::min);
                    break;
                }
            }
        }
        self.due_ns = due_ns;
        Ok(())
    }

    fn end<E>(
        &mut self,
        number: u32,
        reason: Reason,
        sink: &mut impl FnMut(&FlowRecord, Reason) -> Result<(), E>,
    ) -> Result<(), E> {
        self.index.remove(self.slots[number as usize].hash, number);
        self.order.remove(number);
        self.free.push(number);
        if let Some((mut context, cell)) = self.context.take() {
            let record = self.record(number);
            // That a flow timed out is only noticed when another packet comes.
            let wait_ns = self.wait_ns(self.list(record.phase()));
            let ended_ns = match reason {
                Reason::Idle | Reason::Closed => record.last_ns.saturating_add(wait_ns).min(self.now_ns),
                _ => self.now_ns,
            };
            context.end(number, record, ended_ns);
            self.context = Some((context, cell));
            self.place_context(number, ended_ns);
        }
        self.hand_over(number, reason, sink)
    }

    fn hand_over<E>(
        &self,
        number: u32,
        reason: Reason,
        sink: &mut impl FnMut(&FlowRecord, Reason) -> Result<(), E>,
    ) -> Result<(), E> {
        self.number.set(self.slots[number as usize].flow);
        sink(self.record(number), reason)
    }

    /// Ends every flow, in the order of their slots: the same capture gives the same rows, and memory is read in order.
    fn end_all<E>(
        &mut self,
        reason: Reason,
        sink: &mut impl FnMut(&FlowRecord, Reason) -> Result<(), E>,
    ) -> Result<(), E> {
        let mut held: Vec<u32> = List::ALL.into_iter().flat_map(|list| self.order.slots(list)).collect();
        held.sort_unstable();
        for number in held {
            self.end(number, reason, sink)?;
        }
        self.due_ns = u64::MAX;
        Ok(())
    }
}

/// Packets that are fetched for together: enough to overlap the waits, few enough to stay in the first cache.
const BATCH: usize = 16;
