//! The least that an interface can have of native XDP: a program that passes every packet. Attached by `bench victim`, to
//! tell what XDP itself costs a driver from what Sensor adds; the agent never does.

use anyhow::Context as _;
use aya::programs::{Xdp, XdpMode};
use aya::{Ebpf, EbpfLoader};

use super::load::OBJECT;

/// A program that passes everything, on an interface until this is dropped.
#[derive(Debug)]
pub struct Bare {
    #[expect(dead_code, reason = "held: the program is taken off when it is dropped")]
    ebpf: Ebpf,
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
}
