//! The object's programs by name: test runs without an interface, and what the kernel says of those that are loaded.
//! Called by tests, benches and `replay`; the agent asks for [`ProgramInfo`] once a second.

use anyhow::{Context as _, bail};
use aya::Ebpf;
use aya::maps::Array;
use aya::programs::{Program, TestRun as _};
pub use aya::programs::{TestRunOptions, TestRunResult};
use sensor_common::flow::FlowRecord;

use super::load::Kernel;

/// Which of the object's programs.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Hook {
    /// `sensor_xdp`, received frames.
    Ingress,
    /// `sensor_egress`, sent frames.
    Egress,
    /// `sensor_ingress`, received frames where the driver has no XDP.
    StackIngress,
    /// `sensor_tag`, received frames after XDP.
    Tag,
    /// What benches measure the others against; the agent never loads these.
    Floor(Floor),
    /// One of those that [`Kernel::load_bench`] loads, by name.
    Bench(&'static str),
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

/// What the kernel says of a loaded program.
#[derive(Clone, Debug, serde::Serialize)]
pub struct ProgramInfo {
    /// Name of the program.
    pub name: String,
    /// Instructions the verifier walked (kernel 5.16), a measure of what is left of its budget of a million.
    pub verified_instructions: Option<u32>,
    /// Bytes of machine code.
    pub jited_bytes: u32,
    /// Nanoseconds spent in it and runs of it, if run statistics are on (`sysctl kernel.bpf_stats_enabled`).
    pub run_time_ns: u64,
    /// Runs.
    pub run_count: u64,
}

impl Kernel {
    /// Runs a program on one frame (`BPF_PROG_TEST_RUN`), `repeat` times: return value and mean duration in ns.
    ///
    /// The frame comes from the loopback interface (number 1). [`Kernel::runner`] can say more of it.
    ///
    /// # Errors
    /// If the kernel refuses, e.g. a frame shorter than an Ethernet header.
    pub fn test_run(&mut self, hook: Hook, frame: &[u8], repeat: u32) -> anyhow::Result<(u32, u32)> {
        let mut options = TestRunOptions::new();
        options.data_in = Some(frame);
        options.repeat = repeat;
        let result = self.runner().run(hook, options)?;
        Ok((result.return_value, result.duration.as_nanos() as u32))
    }

    /// Loads an XDP program that only benches run ([`Hook::Bench`]).
    ///
    /// # Errors
    /// If there is none of that name, or the kernel refuses it.
    pub fn load_bench(&mut self, name: &'static str) -> anyhow::Result<()> {
        super::load::load_program(&mut self.ebpf, name)
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

    /// Test runs that several threads can do at once.
    pub fn runner(&self) -> Runner<'_> {
        Runner { ebpf: &self.ebpf, xdp: self.xdp }
    }

    /// What the kernel says of the loaded programs.
    pub fn programs(&self) -> Vec<ProgramInfo> {
        programs(&self.ebpf)
    }
}

/// What the kernel says of an object's loaded programs.
pub(super) fn programs(ebpf: &Ebpf) -> Vec<ProgramInfo> {
    let loaded = ebpf.programs().filter_map(|(name, program)| Some((name, program.info().ok()?)));
    loaded
        .map(|(name, info)| ProgramInfo {
            name: name.to_owned(),
            verified_instructions: info.verified_instruction_count(),
            jited_bytes: info.size_jitted(),
            run_time_ns: info.run_time().as_nanos() as u64,
            run_count: info.run_count(),
        })
        .collect()
}

/// Runs the loaded programs on frames, without an interface. Shared by threads, for tests of what CPUs do to each other.
#[derive(Clone, Copy)]
pub struct Runner<'a> {
    ebpf: &'a Ebpf,
    xdp: &'static str,
}

impl std::fmt::Debug for Runner<'_> {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Runner").field("xdp", &self.xdp).finish_non_exhaustive()
    }
}

impl Runner<'_> {
    /// Runs a program. Contexts are `struct xdp_md` for XDP programs and `struct __sk_buff` for the others.
    ///
    /// # Errors
    /// If the program was not loaded, or the kernel refuses frame or context.
    pub fn run(&self, hook: Hook, options: TestRunOptions<'_>) -> anyhow::Result<TestRunResult> {
        let len = options.data_in.map_or(0, <[u8]>::len);
        let name = match hook {
            Hook::Ingress => self.xdp,
            Hook::Egress => "sensor_egress",
            Hook::StackIngress => "sensor_ingress",
            Hook::Tag => "sensor_tag",
            Hook::Floor(floor) => floor.name(),
            Hook::Bench(name) => name,
        };
        match self.ebpf.program(name) {
            Some(Program::Xdp(program)) => program.test_run(options),
            Some(Program::SchedClassifier(program)) => program.test_run(options),
            _ => bail!("the eBPF object has no program {name}: rebuild it (`cargo xtask ebpf`)"),
        }
        .with_context(|| format!("test run of {name} on a frame of {len} bytes"))
    }
}
