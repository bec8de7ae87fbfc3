//! The object's programs by name: test runs without an interface, and what the kernel says of those that are loaded.
//! Called by tests, benches and `replay`; the agent asks for [`ProgramInfo`] once a second.

use anyhow::{Context as _, bail};
use aya::Ebpf;
use aya::programs::{Program, TestRun as _};
pub use aya::programs::{TestRunOptions, TestRunResult};

#[cfg(feature = "bench")]
use super::bench::Floor;
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
    /// What benches measure the others against.
    #[cfg(feature = "bench")]
    Floor(Floor),
    /// One of those that [`Kernel::load_bench`] loads, by name.
    #[cfg(feature = "bench")]
    Bench(&'static str),
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
            #[cfg(feature = "bench")]
            Hook::Floor(floor) => floor.name(),
            #[cfg(feature = "bench")]
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
