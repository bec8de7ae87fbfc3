//! What only `cargo xtask bench` needs, with an eBPF object of its own (feature `bench`): the real programs with what benches ask of
//! them, those that these are measured against, the least that an interface can have of native XDP, and flow records in a hash
//! map of the kernel. The agent never loads that object.

use std::os::fd::OwnedFd;

use anyhow::Context as _;
use aya::maps::{Array, HashMap};
use aya::programs::{Xdp, XdpMode};
use aya::sys::{Stats, enable_stats};
use aya::{Ebpf, EbpfLoader};
use sensor_common::cut::Cut;
use sensor_common::flow::{FlowKey, FlowRecord};

use super::load::{Kernel, ProgramInfo, load_program};
use super::object::Object;
use super::sys::Plain;

static OBJECT: &[u8] = aya::include_bytes_aligned!(env!("SENSOR_EBPF_BENCH_OBJECT_PATH"));

/// What is asked of the programs for benches; by default nothing, and they do what the agent's own do.
#[derive(Clone, Copy, Debug, Default)]
pub struct Bench {
    /// Whether the [`Floor`]s are loaded beside the real programs, and frames change from run to run as they say.
    pub floors: bool,
    /// How far packets go; `None`: to the end.
    pub cut: Option<Cut>,
}

impl Bench {
    /// With the floors, to the end.
    pub const FLOORS: Bench = Bench { floors: true, cut: None };
}

/// The object for benches, with `flows` entries in the hash maps of floors that are loaded.
pub(super) fn object(bench: Bench, flows: usize) -> Object {
    let Bench { floors, cut } = bench;
    let entries = if floors { u32::try_from(flows).unwrap_or(u32::MAX) } else { 1 };
    Object {
        bytes: OBJECT,
        own_maps: Some("BENCH_"),
        entries: vec![("BENCH_LRU", entries), ("BENCH_AGGREGATE", entries)],
        globals: vec![("VARY", floors as u8), ("CUT", cut.map_or(0, |cut| cut as u8))],
        programs: if floors { Floor::ALL.map(Floor::name).to_vec() } else { Vec::new() },
    }
}

/// The programs that benches measure the others against.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Floor {
    /// Nothing but the call.
    Drop,
    /// A frame that changes from run to run.
    Vary,
    /// The parser.
    Parse,
    /// Parse and clock.
    Clock,
    /// The same record in a hash map of the kernel.
    Lru,
    /// Eight counters in a hash map of the kernel, as flow exporters keep them.
    Aggregate,
    /// At TC: nothing but the call.
    StackNext,
    /// At TC: parse and clock.
    StackClock,
}

impl Floor {
    /// All of them.
    pub const ALL: [Floor; 8] = [
        Floor::Drop,
        Floor::Vary,
        Floor::Parse,
        Floor::Clock,
        Floor::Lru,
        Floor::Aggregate,
        Floor::StackNext,
        Floor::StackClock,
    ];

    /// Name of the program.
    pub fn name(self) -> &'static str {
        match self {
            Floor::Drop => "floor_drop",
            Floor::Vary => "floor_vary",
            Floor::Parse => "floor_parse",
            Floor::Clock => "floor_clock",
            Floor::Lru => "floor_lru",
            Floor::Aggregate => "floor_aggregate",
            Floor::StackNext => "floor_tc_next",
            Floor::StackClock => "floor_tc_clock",
        }
    }
}

/// A program that passes everything, on an interface until this is dropped.
#[derive(Debug)]
pub struct Bare {
    ebpf: Ebpf,
}

/// The kernel's run statistics of all programs ([`ProgramInfo`]), on until this is dropped. They add to each run what two looks at the
/// clock take.
#[derive(Debug)]
pub struct RunStatistics {
    #[expect(dead_code, reason = "held: the statistics are off when it is closed")]
    on: OwnedFd,
}

impl RunStatistics {
    /// Turns them on.
    ///
    /// # Errors
    /// If the kernel refuses (before 5.8, or without CAP_SYS_ADMIN).
    pub fn new() -> anyhow::Result<RunStatistics> {
        let on = enable_stats(Stats::RunTime).context("the kernel does not turn run statistics of programs on")?;
        Ok(RunStatistics { on })
    }
}

impl Bare {
    /// Attaches the program to an interface of this thread's network namespace, in its driver.
    ///
    /// # Errors
    /// If the kernel refuses the object or the program, the driver has no native XDP, or another program is there.
    pub fn attach(interface: &str) -> anyhow::Result<Bare> {
        let mut ebpf = EbpfLoader::new().load(OBJECT).context("the kernel refused the maps")?;
        let program: &mut Xdp = ebpf
            .program_mut("floor_pass")
            .context("the eBPF object has no program floor_pass: rebuild it (`cargo xtask ebpf`)")?
            .try_into()
            .context("program floor_pass is of another type")?;
        program.load().context("the kernel's verifier refused program floor_pass")?;
        program.attach(interface, XdpMode::Driver).with_context(|| format!("{interface}: no native XDP"))?;
        Ok(Bare { ebpf })
    }

    /// What the kernel says of the program.
    pub fn programs(&self) -> Vec<ProgramInfo> {
        super::run::programs(&self.ebpf)
    }
}

impl Kernel {
    /// Loads one more program of the object for benches ([`Hook::Bench`](super::run::Hook::Bench)).
    ///
    /// # Errors
    /// If there is none of that name, or the kernel refuses it.
    pub fn load_bench(&mut self, name: &'static str) -> anyhow::Result<()> {
        load_program(&mut self.ebpf, name)
    }

    /// What the programs `floor_record_*` and `floor_sums_*` did with packets of `frame_len` bytes since the last call; none of them
    /// runs now: packets that are counted, and packets that found a lock taken for too long. Those counted in records are told by the
    /// sum of both directions, which is what two CPUs write in any case.
    ///
    /// # Errors
    /// If the kernel refuses to read or write their maps.
    pub fn take_shared(&mut self, frame_len: u64) -> anyhow::Result<(u64, u64)> {
        let records = self.take_values("BENCH_SHARED", |bytes: &[u8; size_of::<FlowRecord>()]| {
            let record = bytemuck::pod_read_unaligned::<FlowRecord>(bytes);
            (record.frame_bytes, record.lost.into())
        })?;
        let sums = self.take_values("BENCH_SUMS", |bytes: &[u8; 192]| {
            // Locks and the busy ones, and a line for each direction that begins with its packets.
            let words: [u64; 24] = bytemuck::pod_read_unaligned(bytes);
            (words[8] + words[16], words[1])
        })?;
        Ok((records.0 / frame_len.max(1) + sums.0, records.1 + sums.1))
    }

    fn take_values<const N: usize>(
        &mut self,
        map: &str,
        packets: fn(&[u8; N]) -> (u64, u64),
    ) -> anyhow::Result<(u64, u64)> {
        let data = self.ebpf.map_mut(map).with_context(|| format!("the eBPF object has no map {map}: rebuild it"))?;
        let mut values = Array::<_, [u8; N]>::try_from(data).with_context(|| format!("map {map}"))?;
        let mut total = (0, 0);
        for number in 0..values.len() {
            let (counted, busy) = packets(&values.get(&number, 0).with_context(|| format!("reading map {map}"))?);
            total = (total.0 + counted, total.1 + busy);
            values.set(number, [0; N], 0).with_context(|| format!("writing map {map}"))?;
        }
        Ok(total)
    }

    /// Reads all records of the hash map that `floor_lru` keeps ([`Bench::floors`]), as agents of the usual
    /// design do at each poll: two system calls for each, one for the next key and one for its value. How many there are, and
    /// their packets.
    ///
    /// # Errors
    /// If the kernel refuses.
    pub fn read_hash(&self) -> anyhow::Result<(usize, u64)> {
        let map = self.ebpf.map("BENCH_LRU").context("the eBPF object has no map BENCH_LRU: rebuild it")?;
        let map = HashMap::<_, Plain<FlowKey>, Plain<FlowRecord>>::try_from(map).context("map BENCH_LRU")?;
        let (mut records, mut packets) = (0, 0);
        for pair in map.iter() {
            let (_, record) = pair.context("reading map BENCH_LRU")?;
            (records, packets) = (records + 1, packets + record.0.packets());
        }
        Ok((records, packets))
    }
}
