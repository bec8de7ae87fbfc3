//! All packets that were seen, against all places where they can be: added up from the pinned maps, from outside of the agent,
//! while programs and agent go on. Called by tests (feature `bench`).
//!
//! Parts are read one after the other while records move from the table to the ring and to the agent's books, so one sum
//! cannot be exact. Two are taken, which must hold the truth between them. `at_most` looks at each place before those that
//! records move on to: what moves meanwhile counts twice, but never not at all. `at_least` looks at them in the opposite
//! order: what moves may be missed, but never counts twice. All numbers but the table's only grow, so
//! `at_most ≥ seen before`, and `at_least ≤ seen after + packets in the programs`: a program counts a packet as seen last,
//! and there is one on a CPU at most, because bottom halves are off while it runs.

use std::path::Path;
use std::time::{Duration, Instant};

use anyhow::Context as _;
use aya::maps::{Map, MapData, PerCpuArray};
use bytemuck::Zeroable as _;
use sensor_common::control::Books;
use sensor_common::counter::InterfaceCounters;
use sensor_common::flow::FlowRecord;
use sensor_common::table::{EVICTED_BYTES, WAYS};
use sensor_common::verdict::Action;

use super::sys::{ControlPage, Counters, RingView, Table};

/// How long a record or the ring may be in use by others before there is no sample: an agent can stand still with a record
/// locked.
const PATIENCE: Duration = Duration::from_millis(20);

/// The pinned maps of an agent, opened beside it. They live on for as long as this does.
pub struct Balance {
    table: Table,
    control: ControlPage,
    ring: RingView,
    counters: PerCpuArray<MapData, Counters>,
}

impl std::fmt::Debug for Balance {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Balance").field("table", &self.table).field("control", &self.control).finish_non_exhaustive()
    }
}

/// One look at everything. All numbers are frames as the hooks saw them.
#[derive(Clone, Debug)]
pub struct Sample {
    /// Counters of all interfaces, before anything else was read, between, and after.
    pub counters: [InterfaceCounters; 3],
    /// Frames in records of the table, read before the ring and after it.
    pub table: [u64; 2],
    /// Records of the table, at the second look.
    pub flows: u64,
    /// Frames in records that wait in the ring.
    pub ring: u64,
    /// What the agent took.
    pub books: Books,
    /// CPUs that may be running a program.
    pub cpus: u64,
}

/// Frames that the programs saw.
pub fn seen(counters: &InterfaceCounters) -> u64 {
    counters.seen.iter().flatten().map(|volume| volume.packets).sum()
}

/// Frames that are in no record because of a cause, a verdict, or a full ring.
pub fn elsewhere(counters: &InterfaceCounters) -> u64 {
    let dropped: u64 = counters.seen.iter().map(|hook| hook[Action::Drop as usize].packets).sum();
    counters.unrecorded.iter().sum::<u64>() + dropped + counters.evicted_lost_packets
}

impl Sample {
    fn sum(&self, table: u64) -> u64 {
        table + self.ring + self.books.released + self.books.evicted + elsewhere(&self.counters[1])
    }

    /// Frames accounted for; what moved meanwhile may count twice.
    pub fn at_most(&self) -> u64 {
        self.sum(self.table[0])
    }

    /// Frames accounted for; what moved meanwhile may be missing.
    pub fn at_least(&self) -> u64 {
        self.sum(self.table[1])
    }

    /// Whether `seen = recorded + elsewhere` can hold.
    ///
    /// # Errors
    /// It cannot: by how much.
    pub fn check(&self) -> Result<(), String> {
        let [before, _, after] = self.counters.map(|counters| seen(&counters));
        if self.at_most() < before {
            return Err(format!("{} packets are nowhere: {self:#?}", before - self.at_most()));
        }
        if self.at_least() > after + self.cpus {
            return Err(format!("{} packets count twice: {self:#?}", self.at_least() - after));
        }
        Ok(())
    }

    /// Whether nothing moved, so that the sum is that of one moment; then it is exact if it is equal to what was seen.
    pub fn is_still(&self) -> bool {
        self.table[0] == self.table[1] && self.counters[0] == self.counters[2]
    }
}

impl Balance {
    /// Opens what is pinned in `directory`.
    ///
    /// # Errors
    /// If there are not all of the maps there, or they may not be opened.
    pub fn open(directory: &Path) -> anyhow::Result<Balance> {
        let map = |name: &str| {
            let path = directory.join(name);
            MapData::from_pin(&path).with_context(|| format!("cannot open the pinned map {}", path.display()))
        };
        let (index, records, control, ring) = (map("INDEX")?, map("RECORDS")?, map("CONTROL")?, map("EVICTED")?);
        let buckets = index.info().context("what the kernel says of map INDEX")?.max_entries() as usize;
        Ok(Balance {
            table: Table::new(index.fd(), records.fd(), buckets)?,
            control: ControlPage::new(control.fd())?,
            ring: RingView::new(ring.fd(), EVICTED_BYTES)?,
            counters: PerCpuArray::try_from(Map::PerCpuArray(map("COUNTERS")?)).context("map COUNTERS")?,
        })
    }

    /// Looks at everything once; `None` if the agent stands still with a record in its hands, or watches other interfaces
    /// now than at the beginning.
    ///
    /// # Errors
    /// If the kernel refuses to read a map.
    pub fn sample(&self) -> anyhow::Result<Option<Sample>> {
        let (first, before) = self.counters()?;
        let Some((early, _)) = self.in_table() else { return Ok(None) };
        let Some((ring, books)) = self.in_ring() else { return Ok(None) };
        let (middle, _) = self.counters()?;
        let Some((late, flows)) = self.in_table() else { return Ok(None) };
        let (last, after) = self.counters()?;
        let cpus = aya::util::nr_cpus().map_or(1, |cpus| cpus as u64);
        let sample = Sample { counters: [first, middle, last], table: [early, late], flows, ring, books, cpus };
        Ok((before == after).then_some(sample))
    }

    /// Every record of the table, of one moment each.
    pub fn records(&self) -> Vec<FlowRecord> {
        let slots = 0..self.table.buckets() * WAYS;
        slots.filter_map(|slot| self.table.contents(slot).flatten()).collect()
    }

    /// The sum over interfaces, those that are gone included, and the numbers of the others.
    fn counters(&self) -> anyhow::Result<(InterfaceCounters, Vec<u32>)> {
        let read = |entry: u32| self.counters.get(&entry, 0).context("reading map COUNTERS");
        let (mut total, mut interfaces) = (InterfaceCounters::zeroed(), Vec::new());
        let slots = self.counters.len() - 1;
        let gone = read(slots)?;
        gone.iter().for_each(|counters| total.add(&counters.0));
        let moving = gone.first().map_or(0, |counters| counters.0.ifindex);
        for entry in 0..slots {
            let values = read(entry)?;
            // An interface that is being given up is in the sum of those that are gone already.
            let owner = values.first().and_then(|counters| counters.0.owner());
            if let Some(ifindex) = owner.filter(|ifindex| *ifindex != moving) {
                interfaces.push(ifindex);
                values.iter().for_each(|counters| total.add(&counters.0));
            }
        }
        Ok((total, interfaces))
    }

    /// Frames in the table, and records.
    fn in_table(&self) -> Option<(u64, u64)> {
        let (mut frames, mut flows) = (0, 0);
        for slot in 0..self.table.capacity() {
            if let Some(record) = patient(|| self.table.contents(slot))? {
                frames += record.frames();
                flows += 1;
            }
        }
        Some((frames, flows))
    }

    /// Frames in the ring, and the books of the same moment.
    fn in_ring(&self) -> Option<(u64, Books)> {
        patient(|| {
            let books = self.control.books();
            let waiting = self.ring.waiting()?;
            // A record that moves is in the ring and in the books.
            let is_still = books.moving == 0 && self.control.books() == books;
            is_still.then(|| (waiting.iter().map(FlowRecord::frames).sum(), books))
        })
    }
}

fn patient<T>(mut look: impl FnMut() -> Option<T>) -> Option<T> {
    let begun = Instant::now();
    loop {
        let found = look();
        if found.is_some() || begun.elapsed() > PATIENCE {
            return found;
        }
        std::thread::yield_now();
    }
}
