//! What is measured: the loaded programs, each on a frame whose flow is in the state that its name says.

use std::net::SocketAddr;

use anyhow::{Context, Result, ensure};
use sensor::bpf::load::{Hook, Kernel, LoadOptions, ProgramInfo, TestRunOptions};
use sensor_common::control::{Control, NO_DSCP};
use sensor_common::tcp::ACK;
use sensor_common::verdict::{Action, Verdict};
use sensor_tests::frames::{Frame, SERVICE_VLAN, VLAN};

use crate::report::Samples;

/// Loopback: where the kernel says that the frames of test runs come from.
const IFINDEX: u32 = 1;
/// Table of the crowds: so large that no bucket overflows (200 MB).
const FLOWS: usize = 262_144;
/// Sizes of the sets of flows that take turns, with the name of each.
const CROWDS: [(u32, &str); 3] = [
    (1024, "ingress, 1,024 flows in turn *"),
    (16_384, "ingress, 16,384 flows in turn *"),
    (65_536, "ingress, 65,536 flows in turn *"),
];

/// One subject: a program on one frame.
struct Subject {
    name: &'static str,
    /// Which of the two loads.
    frags: bool,
    hook: Hook,
    frame: Vec<u8>,
}

/// The programs with and without support for frames of several buffers, and the frames to run them on.
pub(crate) struct Subjects {
    frags: Kernel,
    single: Kernel,
    subjects: Vec<Subject>,
}

fn address(text: &str) -> Result<SocketAddr> {
    text.parse().with_context(|| format!("address {text}"))
}

fn load(frags: bool) -> Result<Kernel> {
    let flows = if frags { FLOWS } else { 8192 };
    let options = LoadOptions { flows, frags, floors: true, tagging: true, ..LoadOptions::default() };
    let mut kernel = Kernel::load(&options)?;
    kernel.load_stack_ingress()?;
    kernel.watch(IFINDEX)?;
    let idle = u32::from(u16::MAX);
    kernel.control.set(&Control { evict_idle_ticks: idle, tag_dscp: NO_DSCP, ..bytemuck::Zeroable::zeroed() });
    kernel.control.set_lease(u64::MAX);
    kernel.verdicts.set_ceilings(|_| Action::Drop);
    Ok(kernel)
}

/// The established flow that is measured: packets with payload behind a handshake's state do not change it further.
fn hot(port: u16) -> Result<Frame> {
    let (client, server) = (address(&format!("198.18.0.1:{port}"))?, address("198.18.0.2:443")?);
    Ok(Frame::tcp(client, server, ACK).seq(1, 1).tcp_options(12).payload(1000))
}

impl Subjects {
    /// Loads everything and brings the flows into their states.
    pub(crate) fn load() -> Result<Subjects> {
        let (client6, server6) = (address("[2001:db8::1]:1000")?, address("[2001:db8::2]:443")?);
        let v6 = Frame::tcp(client6, server6, ACK).seq(1, 1).tcp_options(12).payload(1000);
        let back = Frame::tcp(address("198.18.0.2:443")?, address("198.18.0.1:1000")?, ACK).payload(1000);
        let subject = |name, frags, hook, frame: Frame| Subject { name, frags, hook, frame: frame.build() };
        let mut subjects = vec![
            subject("floor: nothing but the call", true, Hook::FloorDrop, hot(1000)?),
            subject("floor: parse and clock", true, Hook::FloorClock, hot(1000)?),
            subject("ingress, one TCP flow", false, Hook::Ingress, hot(1000)?),
            subject("ingress, one TCP flow (xdp.frags)", true, Hook::Ingress, hot(1000)?),
            subject("ingress, dropped by verdict (xdp.frags)", true, Hook::Ingress, hot(2000)?),
            subject("ingress, VLAN (xdp.frags)", true, Hook::Ingress, hot(1000)?.tag(VLAN, 5)),
            subject("ingress, QinQ (xdp.frags)", true, Hook::Ingress, hot(1000)?.tag(SERVICE_VLAN, 5).tag(VLAN, 6)),
            subject("ingress, IPv6 (xdp.frags)", true, Hook::Ingress, v6),
            subject("TC ingress, one TCP flow", true, Hook::StackIngress, hot(1000)?),
            subject("egress, one TCP flow", true, Hook::Egress, back),
            subject("tag, flow without a verdict", true, Hook::Tag, hot(1000)?),
        ];
        let mut arp = subject("ingress, not IP (xdp.frags)", true, Hook::Ingress, hot(1000)?);
        arp.frame[12..14].copy_from_slice(&[0x08, 0x06]);
        subjects.push(arp);
        let mut loaded = Subjects { frags: load(true)?, single: load(false)?, subjects };
        loaded.drop_flow(&hot(2000)?.build())?;
        Ok(loaded)
    }

    /// Gives the frame's flow a verdict, and makes sure that it holds.
    fn drop_flow(&mut self, frame: &[u8]) -> Result<()> {
        let kernel = &mut self.frags;
        kernel.test_run(Hook::Ingress, frame, 1)?;
        let key = sensor_common::packet::parse(frame).ok().context("a frame of the bench is malformed")?.key;
        let found = (0..kernel.table.capacity()).find_map(|slot| {
            kernel.table.copy(slot).filter(|record| record.key == key).map(|record| (slot, record.generation))
        });
        let (slot, generation) = found.context("the flow to drop is not in the table")?;
        kernel.table.store_verdict(slot, Verdict::new(Action::Drop, 0, generation, u64::MAX).0);
        let (action, _) = kernel.test_run(Hook::Ingress, frame, 1)?;
        ensure!(action == 1, "the verdict is not obeyed: the program returned {action}, not XDP_DROP");
        Ok(())
    }

    /// What the kernel says of the programs.
    pub(crate) fn programs(&self) -> Result<Vec<ProgramInfo>> {
        let mut programs = self.frags.programs();
        programs.extend(self.single.programs());
        programs.sort_by(|a, b| a.name.cmp(&b.name));
        programs.dedup_by(|a, b| a.name == b.name);
        ensure!(!programs.is_empty(), "the kernel says nothing of the loaded programs");
        Ok(programs)
    }

    /// All subjects in turn, `rounds` times.
    pub(crate) fn measure(&mut self, rounds: u32, packets: u32) -> Result<Vec<Samples>> {
        let mut samples: Vec<_> =
            self.subjects.iter().map(|subject| Samples { name: subject.name, ns: Vec::new() }).collect();
        let mut crowds: Vec<_> = CROWDS.iter().map(|(_, name)| Samples { name, ns: Vec::new() }).collect();
        let frames = (0..CROWDS[CROWDS.len() - 1].0).map(crowd).collect::<Result<Vec<_>>>()?;
        // Not measured: caches warm, and every flow of the crowds in the table.
        self.each(&frames, Hook::Ingress)?;
        for _ in 0..rounds {
            for (subject, samples) in self.subjects.iter().zip(&mut samples) {
                let kernel = if subject.frags { &mut self.frags } else { &mut self.single };
                let (_, ns) = kernel.test_run(subject.hook, &subject.frame, packets)?;
                samples.ns.push(ns as f64);
            }
            let call = samples[0].ns.last().copied().context("no floor")?;
            for ((flows, _), samples) in CROWDS.iter().zip(&mut crowds) {
                let turn = &frames[..*flows as usize];
                let difference = self.each(turn, Hook::Ingress)? - self.each(turn, Hook::FloorDrop)?;
                samples.ns.push(difference + call);
            }
        }
        samples.extend(crowds);
        Ok(samples)
    }

    /// Runs a program once on each frame; the median of what the kernel's own clock says, ns. (A median, because on a busy
    /// machine some runs are interrupted.)
    fn each(&self, frames: &[Vec<u8>], hook: Hook) -> Result<f64> {
        let runner = self.frags.runner();
        let mut ns = Vec::with_capacity(frames.len());
        for frame in frames {
            let options = TestRunOptions { data_in: Some(frame), ..TestRunOptions::default() };
            ns.push(runner.run(hook, options)?.duration.as_nanos());
        }
        ns.sort_unstable();
        Ok(ns.get(ns.len() / 2).copied().unwrap_or_default() as f64)
    }
}

/// The frame of one flow of a crowd.
fn crowd(number: u32) -> Result<Vec<u8>> {
    let client = SocketAddr::from(((0xc613_0000u32 + (number >> 4)).to_be_bytes(), 10_000 + (number & 15) as u16));
    Ok(Frame::tcp(client, address("198.18.0.2:443")?, ACK).seq(1, 1).build())
}
