//! The loaded programs, and the rounds in which the cases of [`crate::cases`] run on them.

use std::net::IpAddr;

use anyhow::{Context, Result, ensure};
use sensor::bpf::bench::Bench;
use sensor::bpf::load::{Hook, Kernel, LoadOptions, ProgramInfo, Runner, TestRunOptions};
use sensor_common::control::{Control, NO_DSCP};
use sensor_common::counter::InterfaceCounters;
use sensor_common::packet;
use sensor_common::table::occupied_ways;
use sensor_common::verdict::{Action, Entry, Origin, Rate};

use crate::cases::{Case, Group, LOADS, Load, State, groups};
use crate::frames;
use crate::report::{GroupSamples, Samples};

/// Loopback: where the kernel says that the frames of test runs come from.
/// Turns in which places fill with answered flows.
const FILLING: usize = 4;
/// Places that may be left to others.
const SLACK: usize = 8;
const IFINDEX: u32 = 1;
/// Table of the crowds: so large that hardly a bucket overflows (125 MB).
pub(crate) const FLOWS: usize = 131_072;
/// Loads in which all packets come from blocked sources.
const BLOCKED: [Load; 2] = [Load::Blocked, Load::Addresses];
/// Table of the floods: the smallest.
const FEW_FLOWS: usize = 8192;
/// Returned by programs at XDP and at TC.
const XDP_DROP: u32 = 1;
const TC_SHOT: u32 = 2;

/// Loads of the programs, and the frames to run them on.
pub(crate) struct Subjects {
    kernels: Vec<Kernel>,
    groups: Vec<Group>,
    /// Packets that [`Load::Blocked`] and [`Load::Addresses`] were given.
    blocked: [u64; 2],
}

/// Programs that watch loopback, under a lease, in mode enforce. The host context, hash and floors are as in `options`.
pub(crate) fn ready(options: &LoadOptions) -> Result<Kernel> {
    let mut kernel = Kernel::load(options)?;
    kernel.watch(IFINDEX)?;
    let idle = u32::from(u16::MAX);
    let control =
        Control { evict_idle_ticks: idle, tag_dscp: NO_DSCP, tag_mask: 1, tag_mark: 1, ..bytemuck::Zeroable::zeroed() };
    kernel.control.set(&control);
    kernel.control.set_lease(u64::MAX);
    kernel.verdicts.set_ceilings(|_| Action::Drop);
    Ok(kernel)
}

fn load(what: Load) -> Result<Kernel> {
    let options = LoadOptions { flows: FEW_FLOWS, bench: Some(Bench::FLOORS), ..LoadOptions::default() };
    let tunnels = packet::Options { tunnels: u8::MAX, ..packet::Options::NONE };
    let mut kernel = ready(&match what {
        Load::Large => LoadOptions { flows: FLOWS, tagging: true, ..options },
        Load::Small => LoadOptions { frags: false, ..options },
        Load::NoContext => LoadOptions { context: None, ..options },
        Load::Flooded => options,
        Load::Tunnels => LoadOptions { parser: tunnels, ..options },
        Load::Blocked | Load::Addresses => LoadOptions { max_verdicts: 1 << 15, ..options },
    })?;
    match what {
        Load::Large => kernel.load_stack_ingress()?,
        Load::Blocked => block(&mut kernel)?,
        Load::Addresses => block_addresses(&mut kernel)?,
        Load::Small | Load::NoContext | Load::Flooded | Load::Tunnels => {}
    }
    Ok(kernel)
}

/// Blocks one network as a whole, and another in 16,384 parts.
fn block(kernel: &mut Kernel) -> Result<()> {
    let entry = Entry::new(Action::Drop, Origin::Operator, 1, u64::MAX);
    kernel.verdicts.set_source("198.18.0.0/16".parse()?, &entry)?;
    for number in 0..1u32 << 14 {
        let [.., high, low] = (number << 2).to_be_bytes();
        kernel.verdicts.set_source(format!("198.19.{high}.{low}/30").parse()?, &entry)?;
    }
    Ok(())
}

/// Blocks 16,384 single addresses.
fn block_addresses(kernel: &mut Kernel) -> Result<()> {
    let entry = Entry::new(Action::Drop, Origin::Operator, 1, u64::MAX);
    frames::sources().try_for_each(|source| kernel.verdicts.set_source(IpAddr::from(source).into(), &entry))
}

/// As [`run_on`].
pub(crate) fn run(kernel: &Kernel, hook: Hook, frame: &mut Vec<u8>, packets: u32) -> Result<(f64, u32)> {
    run_on(kernel.runner(), hook, frame, packets)
}

/// Packets of `frame`, one after the other: mean ns of a run, and what the last one returned. The frame goes on where they
/// left it.
pub(crate) fn run_on(runner: Runner<'_>, hook: Hook, frame: &mut Vec<u8>, packets: u32) -> Result<(f64, u32)> {
    let mut after = vec![0; frame.len()];
    let options = TestRunOptions {
        data_in: Some(frame),
        data_out: Some(&mut after),
        repeat: packets,
        ..TestRunOptions::default()
    };
    let result = runner.run(hook, options)?;
    ensure!(result.data_size_out as usize == frame.len(), "a program changed the length of a frame");
    *frame = after;
    Ok((result.duration.as_nanos() as f64, result.return_value))
}

/// Counters of the interface that the frames come from.
pub(crate) fn counters(kernel: &Kernel) -> Result<InterfaceCounters> {
    kernel.counters(IFINDEX)
}

impl Subjects {
    /// Loads everything and brings the flows into their states. Only groups and cases whose names contain `only`, with what
    /// they are held against.
    pub(crate) fn load(only: &str) -> Result<Subjects> {
        let mut groups = groups()?;
        for group in groups.iter_mut().filter(|group| !group.name.contains(only)) {
            group.cases.retain(|case| case.name.contains(only));
        }
        let mut number = 0;
        groups.retain(|group| {
            number += 1;
            // The first has what is common to all.
            number == 1 || !group.cases.is_empty()
        });
        let kernels = LOADS.into_iter().map(load).collect::<Result<Vec<_>>>()?;
        let mut loaded = Subjects { kernels, groups: Vec::new(), blocked: [0; 2] };
        for group in &mut groups {
            for case in group.references.iter_mut().chain(&mut group.cases) {
                loaded.prepare(case).with_context(|| format!("{}: {}", group.name, case.name))?;
            }
        }
        loaded.groups = groups;
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

    /// Brings a case's flow into its state, and makes sure that it is in it.
    fn prepare(&mut self, case: &mut Case) -> Result<()> {
        if case.state != State::Plain {
            self.give_verdict(case)?;
        }
        if case.warm > 0 {
            self.run(case, case.warm)?;
        }
        let drop = if case.hook == Hook::Ingress { XDP_DROP } else { TC_SHOT };
        match case.state {
            State::Plain => {}
            State::Dropped | State::BeyondRate => {
                let (_, answer) = self.run(case, 1)?;
                ensure!(answer == drop, "the verdict is not obeyed: the program returned {answer}, not {drop}");
            }
            State::Tagged | State::WithinRate => {
                let before = counters(self.kernel(case.load)?)?;
                let (_, answer) = self.run(case, 1)?;
                ensure!(answer != drop, "the packet was dropped");
                let after = counters(self.kernel(case.load)?)?;
                let place = Action::Tag as usize;
                let tagged = |counters: &InterfaceCounters| counters.tagged + counters.seen[0][place].packets;
                ensure!(
                    case.state != State::Tagged || tagged(&after) > tagged(&before),
                    "the verdict is not obeyed: the packet was not tagged"
                );
            }
        }
        Ok(())
    }

    /// Starts the case's flow, and gives it the verdict of its state.
    fn give_verdict(&mut self, case: &Case) -> Result<()> {
        let rate =
            |packets| Entry::new(Action::Limit, Origin::Operator, 1, u64::MAX).limited(Rate { packets, bytes: 0 });
        let (entry, in_map) = match case.state {
            State::Plain => return Ok(()),
            State::Dropped => (Entry::new(Action::Drop, Origin::Operator, 1, u64::MAX), false),
            State::Tagged => (Entry::new(Action::Tag, Origin::Operator, 1, u64::MAX), false),
            State::WithinRate => (rate(1_000_000_000), true),
            State::BeyondRate => (rate(1), true),
        };
        let kernel = self.kernel(case.load)?;
        // Tagging reads what an ingress program wrote.
        let start = if case.hook == Hook::Tag { Hook::StackIngress } else { case.hook };
        kernel.test_run(start, &case.frame, 1)?;
        let key = packet::parse(&case.frame[..]).ok().context("a frame of the bench is malformed")?.key;
        let found = (0..kernel.table.capacity()).find_map(|slot| {
            kernel.table.copy(slot).filter(|record| record.key == key).map(|record| (slot, record.generation))
        });
        let (slot, generation) = found.context("the flow is not in the table")?;
        if in_map {
            kernel.verdicts.set_flow(&key, &entry)?;
        }
        kernel.table.store_verdict(slot, entry.word().with_generation(generation).0);
        Ok(())
    }

    /// Fills the table with answered flows: 64 for each bucket, so that none has a way left. In turns, as one that is
    /// not answered yet gives way.
    fn fill(&mut self, load: Load) -> Result<()> {
        for back in [false, true].repeat(FILLING) {
            let frame = frames::history(back)?;
            self.kernel(load)?.test_run(Hook::Ingress, &frame, 8 << 16)?;
        }
        let held = self.with_history(load)?;
        ensure!(held + SLACK >= FEW_FLOWS, "{held} of {FEW_FLOWS} places of the table hold a flow with history");
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

    fn run(&mut self, case: &mut Case, packets: u32) -> Result<(f64, u32)> {
        if let Some(number) = BLOCKED.iter().position(|load| *load == case.load)
            && case.hook == Hook::Ingress
        {
            self.blocked[number] += u64::from(packets);
        }
        run(self.kernel(case.load)?, case.hook, &mut case.frame, packets)
    }

    /// All cases in turn, `rounds` times.
    pub(crate) fn measure(&mut self, rounds: u32, packets: u32) -> Result<Vec<GroupSamples>> {
        let mut groups = std::mem::take(&mut self.groups);
        let samples = |case: &Case| Samples { name: case.name, ns: Vec::new() };
        let mut measured: Vec<_> = groups
            .iter()
            .map(|group| GroupSamples {
                name: group.name,
                references: group.references.iter().map(samples).collect(),
                cases: group.cases.iter().map(samples).collect(),
            })
            .collect();
        for _ in 0..rounds {
            for (group, measured) in groups.iter_mut().zip(&mut measured) {
                let cases = group.references.iter_mut().chain(&mut group.cases);
                for (case, samples) in cases.zip(measured.references.iter_mut().chain(&mut measured.cases)) {
                    samples.ns.push(self.run(case, packets)?.0);
                }
            }
        }
        self.check()?;
        Ok(measured)
    }

    /// Flows with history survived the flood, and who is blocked took no slot.
    fn check(&mut self) -> Result<()> {
        for load in [Load::Small, Load::NoContext] {
            let held = self.with_history(load)?;
            ensure!(held + SLACK >= FEW_FLOWS, "the flood pushed out {} flows with history", FEW_FLOWS - held);
        }
        for (load, sent) in BLOCKED.into_iter().zip(self.blocked) {
            let kernel = self.kernel(load)?;
            let taken =
                (0..kernel.table.buckets()).map(|number| occupied_ways(&kernel.table.bucket(number).tags)).sum::<u32>();
            ensure!(taken == 0, "blocked sources took {taken} slots");
            let dropped = counters(kernel)?.dropped_new;
            ensure!(dropped == sent, "{dropped} of {sent} packets of blocked sources were dropped without a record");
        }
        Ok(())
    }
}
