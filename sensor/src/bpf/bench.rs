//! What `cargo xtask bench` compares with, and the agent never uses: the least that an interface can have of native XDP, and
//! flow records in a hash map of the kernel.

use std::os::fd::OwnedFd;

use anyhow::Context as _;
use aya::maps::HashMap;
use aya::programs::{Xdp, XdpMode};
use aya::sys::{Stats, enable_stats};
use aya::{Ebpf, EbpfLoader};
use sensor_common::flow::{FlowKey, FlowRecord};

use super::load::{Kernel, OBJECT, ProgramInfo};
use super::sys::Plain;

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
    /// Reads all records of the hash map that `floor_lru` keeps ([`super::load::LoadOptions::floors`]), as agents of the usual
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
