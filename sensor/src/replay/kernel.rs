//! Captures through the programs in the kernel (`sensor extract --kernel`, `cargo xtask parity`): each frame is given to
//! the loaded program by `BPF_PROG_TEST_RUN` under the capture's clock, and records are read back from the mmapped table.
//!
//! The host's own table goes the same way beside it and says when a flow ends or reaches a snapshot, and in which order;
//! the record that is handed over then is the kernel's. So rows come in the host's order and with its reasons, and every
//! record has its counterpart. The kernel's table is of one size: a record whose bucket has no way for one more waits in
//! this process until its flow's next packet, so that the programs never have to give one up.

pub mod engine;
mod fit;
mod turn;

use std::collections::HashMap;

use anyhow::{Context, Result, bail, ensure};
use sensor_common::control::{Control, NO_DSCP};
use sensor_common::counter::{CAUSE_SLOTS, InterfaceCounters};
use sensor_common::flow::{FlowKey, FlowRecord, note};
use sensor_common::hash::{Seed, hash};
use sensor_common::packet;
use sensor_common::table::{MAX_BUCKETS, MIN_BUCKETS, WAYS, bucket_of, tag_of};

use super::capture::Captured;
use super::link;
use crate::bpf::load::{ContextTables, Hook, Kernel, LoadOptions, TestRunOptions};
use crate::bpf::probe;
use crate::bpf::sys::Slot;
use crate::context::REPLAY_SEED;

pub use self::fit::{Fit, Fitter, Unfit};
pub use self::turn::Turn;

/// Flows of the kernel's table, unless something else is asked for: those that find no place in it wait here.
pub const DEFAULT_FLOWS: usize = 65_536;
/// Where the kernel says that the frames of test runs come from: the loopback interface.
const IFINDEX: u32 = 1;
/// XDP_PASS.
const PASS: u32 = 2;
/// Shortest frame that test runs take: an Ethernet header.
const SHORTEST: usize = 14;
/// Longest frame of one buffer: a page without XDP's headroom (256 bytes) and the kernel's own end (at most 384).
const LONGEST_BUFFER: usize = 4096 - 256 - 384;
/// Longest frame of several buffers: the first and 17 pages, the least that a kernel can be built with.
const LONGEST: usize = LONGEST_BUFFER + 17 * 4096;

/// Loaded programs with the replay clock, for one capture after the other.
#[derive(Debug)]
pub struct KernelReplay {
    kernel: Kernel,
    seed: Seed,
    options: packet::Options,
    fitter: Fitter,
    /// Counters when the capture began.
    before: InterfaceCounters,
    /// Records that came through the eviction ring and were not asked for yet.
    evicted: Vec<FlowRecord>,
    /// Records that left the table in this capture, by the ring or taken at their end.
    gone: u64,
    /// Records that wait here for their flow's next packet.
    parked: HashMap<FlowKey, FlowRecord>,
}

impl KernelReplay {
    /// Loads the programs with a table of at least `flows` flows. `parser`: what they read beyond the ordinary.
    ///
    /// # Errors
    /// Without root (CAP_BPF, CAP_NET_ADMIN), or for more flows than the table can have.
    pub fn load(flows: usize, parser: packet::Options) -> Result<KernelReplay> {
        let (least, most) = (MIN_BUCKETS as usize * WAYS, MAX_BUCKETS as usize * WAYS);
        if flows > most {
            bail!("the kernel's flow table holds {most} flows at most, not {flows}: replay without --kernel");
        }
        let flows = flows.next_power_of_two().max(least);
        let frags = probe::kernel().xdp_frags;
        let seed = Some(REPLAY_SEED);
        let options = LoadOptions { flows, frags, replay_clock: true, seed, parser, ..LoadOptions::default() };
        let mut kernel = Kernel::load(&options).context(
            "the programs cannot be loaded for --kernel, which needs root; without it, the same records are made in \
             this process",
        )?;
        kernel.watch(IFINDEX)?;
        kernel.control.set(&Control {
            tag_dscp: NO_DSCP,
            // Flows end when the host says so.
            evict_idle_ticks: u32::MAX,
            ..bytemuck::Zeroable::zeroed()
        });
        let before = kernel.counters(IFINDEX)?;
        Ok(KernelReplay {
            seed: kernel.seed(),
            options: parser,
            fitter: Fitter::new(parser, kernel.seed(), SHORTEST..=if frags { LONGEST } else { LONGEST_BUFFER }),
            kernel,
            before,
            evicted: Vec::new(),
            gone: 0,
            parked: HashMap::new(),
        })
    }

    /// Flows that the table can hold.
    pub fn capacity(&self) -> usize {
        self.kernel.table.capacity()
    }

    /// A parser that has seen nothing and does what the programs' does.
    pub fn parser(&self) -> link::Parser {
        link::Parser::seeded(self.options, self.seed)
    }

    /// The hash keys of the loaded programs.
    pub fn seed(&self) -> Seed {
        self.seed
    }

    /// Forgets everything of the capture before.
    ///
    /// # Errors
    /// If the kernel refuses to read its counters, or a record cannot be released.
    pub fn begin(&mut self) -> Result<()> {
        for record in self.left()? {
            let (slot, record) =
                self.find(&record.key)?.context("a record left the table by itself; please report this")?;
            self.kernel.table.release(slot, record.generation, record.last_ns);
        }
        if let Some(ContextTables { sources, services }) = &self.kernel.context {
            sources.clear();
            services.clear();
        }
        if self.fitter.begin() {
            self.kernel.forget_fragments()?;
        }
        self.evicted.clear();
        self.parked.clear();
        self.gone = 0;
        self.before = self.kernel.counters(IFINDEX)?;
        Ok(())
    }

    /// Makes of a captured frame what the programs can be given.
    ///
    /// # Errors
    /// If the link type is not supported.
    pub fn fit(&mut self, captured: &Captured<'_>) -> Result<Fit<'_>> {
        self.fitter.fit(captured)
    }

    /// The turn of the frame that was fitted last, which arrived at `time_ns` and belongs to the flow of `key`. It runs
    /// when the host asks for a record that it changes, or with [`Turn::finish`]; records that end before it are taken
    /// before it runs.
    pub fn turn(&mut self, time_ns: u64, key: Option<FlowKey>) -> Turn<'_> {
        Turn { replay: self, time_ns: Some(time_ns), key }
    }

    /// A turn without a frame, for what ends with the capture.
    pub fn last_turn(&mut self) -> Turn<'_> {
        Turn { replay: self, time_ns: None, key: None }
    }

    /// The next record that the programs gave up though the host did not: there should be none.
    pub fn next_given_up(&mut self) -> Option<FlowRecord> {
        self.evicted.pop()
    }

    /// The host context that the programs keep.
    pub fn context(&self) -> Option<&ContextTables> {
        self.kernel.context.as_ref()
    }

    /// Packets of this capture that the programs refused, by cause.
    ///
    /// # Errors
    /// If the kernel refuses to read its counters.
    pub fn refused(&self) -> Result<[u64; CAUSE_SLOTS]> {
        let mut refused = self.kernel.counters(IFINDEX)?.unrecorded;
        for (count, before) in refused.iter_mut().zip(&self.before.unrecorded) {
            *count -= before;
        }
        Ok(refused)
    }

    /// Records of this capture that were given up for lack of room while the ring to this process was full.
    ///
    /// # Errors
    /// If the kernel refuses to read its counters.
    pub fn lost_packets(&self) -> Result<u64> {
        Ok(self.kernel.counters(IFINDEX)?.evicted_lost_packets - self.before.evicted_lost_packets)
    }

    /// Records that are in the table, which none should be when the capture has ended.
    ///
    /// # Errors
    /// If the kernel refuses to read its counters, or a record cannot be copied.
    pub fn left(&self) -> Result<Vec<FlowRecord>> {
        let now = self.kernel.counters(IFINDEX)?;
        let lost = now.evicted_lost_flows - self.before.evicted_lost_flows;
        if now.flows_created - self.before.flows_created == self.gone + lost {
            // The whole index is not read for nothing: that would be most of the time for a small capture.
            return Ok(Vec::new());
        }
        let mut left = Vec::new();
        for number in 0..self.kernel.table.buckets() {
            let bucket = self.kernel.table.bucket(number);
            for way in (0..WAYS).filter(|way| bucket.tags[*way] != 0) {
                left.push(self.copy(number * WAYS + way)?);
            }
        }
        Ok(left)
    }

    fn copy(&self, slot: Slot) -> Result<FlowRecord> {
        self.kernel.table.copy(slot).context("a record is being written though no program runs; please report this")
    }

    /// Bucket and tag of a flow.
    fn place(&self, key: &FlowKey) -> (usize, u32) {
        let hash = hash(key, |position| self.seed[position]);
        (bucket_of(hash, self.kernel.table.buckets() as u32) as usize, tag_of(hash))
    }

    fn find(&self, key: &FlowKey) -> Result<Option<(Slot, FlowRecord)>> {
        let (number, tag) = self.place(key);
        let bucket = self.kernel.table.bucket(number);
        for way in (0..WAYS).filter(|way| bucket.tags[*way] == tag) {
            let slot = number * WAYS + way;
            let record = self.copy(slot)?;
            if record.key == *key {
                return Ok(Some((slot, record)));
            }
        }
        Ok(None)
    }

    /// Takes a flow's record out of the table, or from where it waits.
    fn take(&mut self, key: &FlowKey) -> Result<Option<FlowRecord>> {
        let taken = match self.find(key)? {
            Some((slot, record)) => Some(self.release(slot, &record)?),
            None => self.parked.remove(key),
        };
        self.gone += taken.is_some() as u64;
        Ok(taken)
    }

    fn release(&self, slot: Slot, record: &FlowRecord) -> Result<FlowRecord> {
        let released = self.kernel.table.release(slot, record.generation, record.last_ns);
        released.context("a record changed though no program ran; please report this")
    }

    /// The flow goes on in another record with its next packet.
    fn mark_due(&mut self, key: &FlowKey) -> Result<()> {
        if let Some(record) = self.parked.get_mut(key) {
            record.steady = record.steady & note::ALL | note::DUE;
        } else if let Some((slot, record)) = self.find(key)? {
            let told = self.kernel.table.mark_due(slot, record.generation);
            ensure!(told, "a record is being written though no program runs; please report this");
        }
        Ok(())
    }

    /// Sees to it that the flow's record is in the table, or has a way to be started in.
    fn make_room(&mut self, key: &FlowKey) -> Result<()> {
        let (number, tag) = self.place(key);
        let bucket = self.kernel.table.bucket(number);
        if bucket.tags.contains(&tag) && self.find(key)?.is_some() {
            return Ok(());
        }
        let free = match bucket.tags.iter().position(|tag| *tag == 0) {
            Some(way) => number * WAYS + way,
            None => {
                let mut idle_longest = None;
                for slot in number * WAYS..(number + 1) * WAYS {
                    let record = self.copy(slot)?;
                    if idle_longest.is_none_or(|(_, last_ns)| record.last_ns < last_ns) {
                        idle_longest = Some((slot, record.last_ns));
                    }
                }
                let (slot, _) = idle_longest.context("a bucket has ways")?;
                let record = self.release(slot, &self.copy(slot)?)?;
                self.parked.insert(record.key, record);
                slot
            }
        };
        if let Some(record) = self.parked.remove(key) {
            self.kernel.table.put(free, &record, tag);
        }
        Ok(())
    }

    fn run(&mut self, time_ns: u64) -> Result<()> {
        self.kernel.control.set_replay_clock(time_ns);
        let options = TestRunOptions { data_in: Some(self.fitter.frame()), ..TestRunOptions::default() };
        let answer = self.kernel.runner().run(Hook::Ingress, options)?.return_value;
        if answer != PASS {
            bail!("the program answered {answer} to a frame of {} bytes, not pass", self.fitter.frame().len());
        }
        while let Some(record) = self.kernel.next_evicted() {
            self.evicted.push(record);
            self.gone += 1;
        }
        Ok(())
    }
}
