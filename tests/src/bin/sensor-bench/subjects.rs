//! What is measured: the loaded programs, each on a frame that makes its flows what the subject's name says.
//!
//! A program run repeats one frame. Where packets of a flow differ, or flows do, the frame itself says what becomes other
//! in each repeat ([`Plan`]; `sensor-ebpf/src/vary.rs`): the sequence number of a connection that goes on, or the
//! client of a crowd. That costs a few nanoseconds, which the floors have, too.

use std::net::SocketAddr;

use anyhow::{Context, Result, ensure};
use sensor::bpf::load::{Hook, Kernel, LoadOptions, ProgramInfo, TestRunOptions};
use sensor_common::control::{Control, NO_DSCP};
use sensor_common::packet;
use sensor_common::tcp::{ACK, SYN};
use sensor_common::verdict::{Action, Verdict};
use sensor_tests::frames::{Frame, SERVICE_VLAN, VLAN};

use crate::report::Samples;

/// Loopback: where the kernel says that the frames of test runs come from.
const IFINDEX: u32 = 1;
/// Table of the crowds: so large that hardly a bucket overflows (125 MB).
const FLOWS: usize = 131_072;
/// Table of the floods: the smallest.
const FEW_FLOWS: usize = 8192;

/// The loads that subjects run in.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Load {
    /// As the agent does it where the kernel can, with a large table.
    Large,
    /// Without support for frames of several buffers, the smallest table.
    Small,
    /// The same without host context.
    NoContext,
    /// With all tunnels read.
    Tunnels,
}

const LOADS: [Load; 4] = [Load::Large, Load::Small, Load::NoContext, Load::Tunnels];

/// One subject: a program on one frame.
struct Subject {
    name: &'static str,
    load: Load,
    hook: Hook,
    frame: Vec<u8>,
    /// The subject that does the same with a hash map of the kernel, by name.
    hash: Option<&'static str>,
    /// Runs before the first round.
    warm: u32,
}

/// What changes in a frame from run to run.
#[derive(Clone, Copy, Debug, Default)]
struct Plan {
    /// Where a 32-bit number is that grows, and by how much.
    word: (usize, u16),
    /// Where the low and the high half of the flow's number go, and its bits.
    flow: (usize, usize, u8),
    /// Logarithm of the packets of each flow in a row.
    shift: u8,
}

/// Offsets in an untagged IPv4 frame.
const SOURCE: usize = 14 + 14;
const PORT: usize = 14 + 20;
const SEQ: usize = PORT + 4;
const ACKNOWLEDGED: usize = PORT + 8;

/// Loads of the programs, and the frames to run them on.
pub(crate) struct Subjects {
    kernels: Vec<Kernel>,
    subjects: Vec<Subject>,
}

fn address(text: &str) -> Result<SocketAddr> {
    text.parse().with_context(|| format!("address {text}"))
}

fn load(what: Load) -> Result<Kernel> {
    let options = LoadOptions { flows: FEW_FLOWS, frags: false, floors: true, ..LoadOptions::default() };
    let mut kernel = Kernel::load(&match what {
        Load::Large => LoadOptions { flows: FLOWS, frags: true, tagging: true, ..options },
        Load::Small => options,
        Load::NoContext => LoadOptions { context: None, ..options },
        Load::Tunnels => {
            LoadOptions { parser: packet::Options { tunnels: u8::MAX, ..packet::Options::NONE }, ..options }
        }
    })?;
    if what == Load::Large {
        kernel.load_stack_ingress()?;
    }
    kernel.watch(IFINDEX)?;
    let idle = u32::from(u16::MAX);
    kernel.control.set(&Control { evict_idle_ticks: idle, tag_dscp: NO_DSCP, ..bytemuck::Zeroable::zeroed() });
    kernel.control.set_lease(u64::MAX);
    kernel.verdicts.set_ceilings(|_| Action::Drop);
    Ok(kernel)
}

/// A TCP segment with payload.
fn segment(port: u16) -> Result<Frame> {
    let (client, server) = (address(&format!("198.18.0.1:{port}"))?, address("198.18.0.2:443")?);
    Ok(Frame::tcp(client, server, ACK).seq(1, 1).tcp_options(12).payload(1000))
}

fn datagram(port: u16) -> Result<Frame> {
    Ok(Frame::udp(address(&format!("198.18.0.1:{port}"))?, address("198.18.0.2:443")?).payload(1000))
}

/// An acknowledgement of one of many clients, each with an address of its own.
fn crowd() -> Result<Frame> {
    Ok(Frame::tcp(address("198.18.0.0:10000")?, address("198.19.0.2:443")?, ACK).seq(1, 1))
}

/// A SYN of anybody.
fn flood() -> Result<Frame> {
    Ok(Frame::tcp(address("198.18.0.0:0")?, address("198.19.0.2:443")?, SYN).seq(1, 0))
}

/// A UDP datagram with `inner` in VXLAN (RFC 7348).
fn vxlan(inner: &[u8]) -> Result<Vec<u8>> {
    let outer = Frame::udp(address("198.18.0.3:50000")?, address("198.18.0.4:4789")?).payload(8 + inner.len());
    let mut frame = outer.build();
    let at = frame.len() - inner.len();
    frame[at - 8] = 0x08;
    frame[at..].copy_from_slice(inner);
    Ok(frame)
}

fn planned(mut frame: Vec<u8>, plan: Plan) -> Vec<u8> {
    let ((word, step), (low, high, bits)) = (plan.word, plan.flow);
    frame[..4].fill(0);
    frame[4..8].copy_from_slice(&[word as u8, low as u8, high as u8, bits]);
    frame[8..10].copy_from_slice(&step.to_ne_bytes());
    frame[10] = plan.shift;
    frame
}

/// A connection that goes on: `before` bytes more than an untagged IPv4 frame has before TCP.
fn goes_on(frame: Frame, before: usize) -> Vec<u8> {
    planned(frame.build(), Plan { word: (SEQ + before, 1000), ..Plan::default() })
}

const CROWDS: [(u8, &str, &str, &str); 3] = [
    (10, "1,024 flows at random", "LRU hash, 1,024 flows at random", "floor: parse and clock, 1,024 flows"),
    (14, "16,384 flows at random", "LRU hash, 16,384 flows at random", "floor: parse and clock, 16,384 flows"),
    (16, "65,536 flows at random", "LRU hash, 65,536 flows at random", "floor: parse and clock, 65,536 flows"),
];

fn subjects() -> Result<Vec<Subject>> {
    let mut all = Vec::new();
    let mut add = |name, load, hook, frame| {
        all.push(Subject { name, load, hook, frame: planned_once(frame), hash: None, warm: 2000 });
    };
    let hot = || Ok::<_, anyhow::Error>(goes_on(segment(1000)?, 0));
    add("floor: nothing but the call", Load::Large, Hook::FloorDrop, hot()?);
    add("floor: parse and clock", Load::Large, Hook::FloorClock, hot()?);
    add("floor: parse", Load::Large, Hook::FloorParse, hot()?);
    add("floor: a frame that changes", Load::Large, Hook::FloorVary, hot()?);
    add("LRU hash, one TCP flow", Load::Large, Hook::FloorLru, hot()?);
    add("one TCP flow", Load::Small, Hook::Ingress, hot()?);
    add("one TCP flow (xdp.frags)", Load::Large, Hook::Ingress, hot()?);
    add("one UDP flow (xdp.frags)", Load::Large, Hook::Ingress, datagram(1000)?.build());
    add("the same TCP segment again and again (xdp.frags)", Load::Large, Hook::Ingress, segment(1001)?.build());
    add("dropped by verdict (xdp.frags)", Load::Large, Hook::Ingress, goes_on(segment(2000)?, 0));
    add("one TCP flow, VLAN (xdp.frags)", Load::Large, Hook::Ingress, goes_on(segment(1000)?.tag(VLAN, 5), 4));
    let double = segment(1000)?.tag(SERVICE_VLAN, 5).tag(VLAN, 6);
    add("one TCP flow, QinQ (xdp.frags)", Load::Large, Hook::Ingress, goes_on(double, 8));
    let (client6, server6) = (address("[2001:db8::1]:1000")?, address("[2001:db8::2]:443")?);
    let v6 = Frame::tcp(client6, server6, ACK).seq(1, 1).tcp_options(12).payload(1000);
    add("one TCP flow, IPv6 (xdp.frags)", Load::Large, Hook::Ingress, goes_on(v6, 20));
    let tunnelled = vxlan(&segment(1000)?.build())?;
    let plan = Plan { word: (SEQ + 50, 1000), ..Plan::default() };
    add("one TCP flow in VXLAN, tunnels read", Load::Tunnels, Hook::Ingress, planned(tunnelled.clone(), plan));
    add("one TCP flow, tunnels read", Load::Tunnels, Hook::Ingress, hot()?);
    add("VXLAN, tunnels not read", Load::Small, Hook::Ingress, tunnelled);
    let mut arp = segment(1000)?.build();
    arp[12..14].copy_from_slice(&[0x08, 0x06]);
    add("not IP (xdp.frags)", Load::Large, Hook::Ingress, arp);
    add("TC ingress, one UDP flow", Load::Large, Hook::StackIngress, datagram(3000)?.build());
    add("egress, one UDP flow", Load::Large, Hook::Egress, datagram(3001)?.build());
    add("tag, flow without a verdict", Load::Large, Hook::Tag, datagram(3000)?.build());
    for (bits, name, hash, floor) in CROWDS {
        let flow = (SOURCE, PORT, bits);
        let frame = planned(crowd()?.build(), Plan { word: (ACKNOWLEDGED, 1), flow, ..Plan::default() });
        let warm = 20 << bits;
        let hooks = [(name, Hook::Ingress, Some(hash)), (hash, Hook::FloorLru, None), (floor, Hook::FloorClock, None)];
        for (name, hook, hash) in hooks {
            all.push(Subject { name, load: Load::Large, hook, frame: frame.clone(), hash, warm });
        }
    }
    let any = planned(flood()?.build(), Plan { flow: (SOURCE, PORT, 32), ..Plan::default() });
    let mut add = |name, load, hook, hash, warm| {
        all.push(Subject { name, load, hook, frame: any.clone(), hash, warm });
    };
    let hash = "LRU hash full, each packet a new flow";
    add("table full of history, each packet a new flow", Load::Small, Hook::Ingress, Some(hash), 0);
    add("the same without context", Load::NoContext, Hook::Ingress, Some(hash), 0);
    add("each packet a new flow that evicts one", Load::Tunnels, Hook::Ingress, Some(hash), 1 << 20);
    add(hash, Load::Small, Hook::FloorLru, None, 1 << 20);
    add("floor: parse and clock, each packet a new flow", Load::Small, Hook::FloorClock, None, 1000);
    for subject in &mut all {
        if subject.name.starts_with("one TCP flow") {
            subject.hash = Some("LRU hash, one TCP flow");
        }
    }
    Ok(all)
}

/// A frame that has no plan of its own gets one that changes nothing.
fn planned_once(frame: Vec<u8>) -> Vec<u8> {
    // What `Frame::build` starts with.
    if frame[..6] == [2, 0, 0, 0, 0, 2] { planned(frame, Plan::default()) } else { frame }
}

impl Subjects {
    /// Loads everything and brings the flows into their states.
    /// Only subjects whose name contains `only`, and the floors.
    pub(crate) fn load(only: &str) -> Result<Subjects> {
        let kernels = LOADS.into_iter().map(load).collect::<Result<Vec<_>>>()?;
        let mut loaded = Subjects { kernels, subjects: subjects()? };
        loaded.subjects.retain(|subject| subject.name.contains(only) || subject.name.starts_with("floor: "));
        loaded.drop_flow(&planned(segment(2000)?.build(), Plan::default()))?;
        for number in 0..loaded.subjects.len() {
            let warm = loaded.subjects[number].warm;
            if warm > 0 {
                loaded.run(number, warm)?;
            }
        }
        // After the others found their places.
        for load in [Load::Small, Load::NoContext] {
            loaded.fill(load)?;
        }
        Ok(loaded)
    }

    fn kernel(&mut self, load: Load) -> Result<&mut Kernel> {
        let number = LOADS.iter().position(|known| *known == load).context("a load that is not known")?;
        self.kernels.get_mut(number).context("a load that was not made")
    }

    /// Gives the frame's flow a verdict, and makes sure that it holds.
    fn drop_flow(&mut self, frame: &[u8]) -> Result<()> {
        let kernel = self.kernel(Load::Large)?;
        kernel.test_run(Hook::Ingress, frame, 1)?;
        let key = packet::parse(frame).ok().context("a frame of the bench is malformed")?.key;
        let found = (0..kernel.table.capacity()).find_map(|slot| {
            kernel.table.copy(slot).filter(|record| record.key == key).map(|record| (slot, record.generation))
        });
        let (slot, generation) = found.context("the flow to drop is not in the table")?;
        kernel.table.store_verdict(slot, Verdict::new(Action::Drop, 0, generation, u64::MAX).0);
        let (action, _) = kernel.test_run(Hook::Ingress, frame, 1)?;
        ensure!(action == 1, "the verdict is not obeyed: the program returned {action}, not XDP_DROP");
        Ok(())
    }

    /// Fills the table with flows of eight packets.
    fn fill(&mut self, load: Load) -> Result<()> {
        let frame = Frame::udp(address("198.18.0.0:7")?, address("198.18.0.2:53")?).payload(64).build();
        let plan = Plan { flow: (SOURCE, PORT, 16), shift: 3, ..Plan::default() };
        self.kernel(load)?.test_run(Hook::Ingress, &planned(frame, plan), 8 << 16)?;
        let held = self.with_history(load)?;
        ensure!(held == FEW_FLOWS, "{held} of {FEW_FLOWS} places of the table hold a flow with history");
        Ok(())
    }

    /// Flows of more than three packets.
    fn with_history(&mut self, load: Load) -> Result<usize> {
        let table = &self.kernel(load)?.table;
        let history = |slot: &usize| table.copy(*slot).is_some_and(|record| record.packets() > 3);
        Ok((0..table.capacity()).filter(history).count())
    }

    /// What the kernel says of the programs.
    pub(crate) fn programs(&self) -> Result<Vec<ProgramInfo>> {
        let mut programs: Vec<_> = self.kernels.iter().take(2).flat_map(Kernel::programs).collect();
        programs.sort_by(|a, b| a.name.cmp(&b.name));
        programs.dedup_by(|a, b| a.name == b.name);
        ensure!(!programs.is_empty(), "the kernel says nothing of the loaded programs");
        Ok(programs)
    }

    /// Mean of `packets` runs of a subject, ns. Its frame goes on where the last run left it.
    fn run(&mut self, number: usize, packets: u32) -> Result<f64> {
        let Subject { load, hook, frame, .. } = &self.subjects[number];
        let (load, hook, frame) = (*load, *hook, frame.clone());
        let mut after = vec![0; frame.len()];
        let options = TestRunOptions {
            data_in: Some(&frame),
            data_out: Some(&mut after),
            repeat: packets,
            ..TestRunOptions::default()
        };
        let result = self.kernel(load)?.runner().run(hook, options)?;
        ensure!(result.data_size_out as usize == frame.len(), "a program changed the length of a frame");
        self.subjects[number].frame = after;
        Ok(result.duration.as_nanos() as f64)
    }

    /// All subjects in turn, `rounds` times.
    pub(crate) fn measure(&mut self, rounds: u32, packets: u32) -> Result<Vec<Samples>> {
        let samples = |subject: &Subject| Samples { name: subject.name, hash: subject.hash, ns: Vec::new() };
        let mut samples: Vec<_> = self.subjects.iter().map(samples).collect();
        for _ in 0..rounds {
            for (number, samples) in samples.iter_mut().enumerate() {
                samples.ns.push(self.run(number, packets)?);
            }
        }
        for load in [Load::Small, Load::NoContext] {
            let held = self.with_history(load)?;
            ensure!(held == FEW_FLOWS, "the flood pushed out {} flows with history", FEW_FLOWS - held);
        }
        Ok(samples)
    }
}
