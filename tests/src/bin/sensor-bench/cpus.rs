//! Two CPUs at once on one flow: what the lock of a record costs, and its alternatives. Parallel program runs, each thread pinned to a
//! CPU of its own; one CPU is measured while the other is at work all the time, then they change places.
//!
//! Invariant: with any lock or atomics, every packet is in the sums or counted as busy; the bench fails otherwise. Without, what is
//! missing shows that two CPUs really meet.

use std::net::SocketAddr;

use anyhow::{Context, Result, bail, ensure};
use sensor::bpf::bench::Bench;
use sensor::bpf::load::{Hook, Kernel, LoadOptions};
use sensor_common::control::{Control, NO_DSCP};
use sensor_common::counter::Cause;
use sensor_tests::cpus::{first_two, stay_on};
use sensor_tests::frames::Frame;
use serde_json::json;

use crate::beside::{ATTEMPTS, Attempt, IN_VAIN, beside};
use crate::report::median;
use crate::subjects::run_on;

/// Loopback: where the kernel says that the frames of test runs come from.
const IFINDEX: u32 = 1;

/// How long packets wait for the real program's lock, ns, besides as long as they do.
const PATIENCE_NS: [u64; 3] = [1000, 5000, 20_000];

/// One way to count.
struct Subject {
    name: String,
    /// Number of a load of the programs.
    load: usize,
    hook: Hook,
    /// Whether nothing may be missing that is not counted.
    exact: bool,
}

/// What the CPUs send, by number.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Scene {
    Alone,
    TwoFlows,
    OneDirection,
    BothDirections,
}

const SCENES: [(Scene, &str); 4] = [
    (Scene::Alone, "one CPU"),
    (Scene::TwoFlows, "two flows"),
    (Scene::OneDirection, "one direction"),
    (Scene::BothDirections, "both directions"),
];

/// A subject in a scene.
#[derive(Default)]
struct Samples {
    /// Of each CPU and round, ns a packet.
    ns: [Vec<f64>; 2],
    /// Packets that are in no sum for each one sent while all CPUs of the scene were at work, of each measured CPU and round. (What the
    /// other CPU sends meanwhile is taken to be as much.)
    missing: Vec<f64>,
}

fn load(patience_ns: u64) -> Result<Kernel> {
    let options = LoadOptions {
        flows: 8192,
        frags: false,
        lock_patience_ns: patience_ns,
        bench: Some(Bench::default()),
        ..LoadOptions::default()
    };
    let mut kernel = Kernel::load(&options)?;
    kernel.watch(IFINDEX)?;
    let idle = u32::from(u16::MAX);
    kernel.control.set(&Control { evict_idle_ticks: idle, tag_dscp: NO_DSCP, ..bytemuck::Zeroable::zeroed() });
    Ok(kernel)
}

fn subjects() -> Vec<Subject> {
    let of = |name: &str, program, exact| Subject { name: name.to_owned(), load: 0, hook: Hook::Bench(program), exact };
    let waits = PATIENCE_NS.into_iter().enumerate().map(|(load, ns)| Subject {
        name: format!("sensor_xdp, waits for {} us", ns / 1000),
        load,
        hook: Hook::Ingress,
        exact: true,
    });
    waits
        .chain([
            of("record, no lock", "floor_record_bare", false),
            of("record, 64 tries in place", "floor_record_tries", true),
            of("record, waits for 20 us", "floor_record_wait", true),
            of("six sums, no lock", "floor_sums_bare", false),
            of("six sums, waits for 20 us", "floor_sums_wait", true),
            of("six sums, atomic additions", "floor_sums_atomics", true),
            of("six sums, bpf_spin_lock", "floor_sums_spin", true),
        ])
        .collect()
}

/// The frames of both CPUs: datagrams, of which any number make an ordinary flow.
fn frames(scene: Scene) -> Result<[Vec<u8>; 2]> {
    let address = |text: &str| text.parse::<SocketAddr>().with_context(|| format!("address {text}"));
    let (client, other, server) =
        (address("198.18.0.1:1000")?, address("198.18.0.1:1003")?, address("198.18.0.2:443")?);
    let up = |client| Frame::udp(client, server).payload(1000).build();
    let second = match scene {
        Scene::TwoFlows => up(other),
        Scene::Alone | Scene::OneDirection => up(client),
        Scene::BothDirections => Frame::udp(server, client).payload(1000).build(),
    };
    Ok([up(client), second])
}

/// Packets in records and those that found one busy: of the real program so far, of alternatives since the last call.
fn counted(kernel: &mut Kernel, hook: Hook, frame: &[u8]) -> Result<(u64, u64)> {
    if hook != Hook::Ingress {
        return kernel.take_shared(frame.len() as u64);
    }
    let records = (0..kernel.table.capacity()).filter_map(|slot| kernel.table.copy(slot));
    let recorded = records.map(|record| record.frames()).sum();
    let unrecorded = kernel.counters(IFINDEX)?.unrecorded;
    Ok((recorded, unrecorded[Cause::RecordBusy as usize] + unrecorded[Cause::BucketBusy as usize]))
}

/// Packets that are in no sum after a run on a subject, which is one that sends packets and says how many.
fn missing<T>(
    kernel: &mut Kernel,
    subject: &Subject,
    frame: &[u8],
    run: impl FnOnce(&Kernel) -> Result<(T, u64)>,
) -> Result<(T, u64)> {
    let before = counted(kernel, subject.hook, frame)?;
    let (value, sent) = run(kernel)?;
    let after = counted(kernel, subject.hook, frame)?;
    // What was taken from the maps of alternatives counts from zero.
    let before = if subject.hook == Hook::Ingress { before } else { (0, 0) };
    let (recorded, busy) = (after.0 - before.0, after.1 - before.1);
    ensure!(
        !subject.exact || recorded + busy == sent,
        "{}: of {sent} packets {recorded} are in records or sums, and {busy} are counted as busy",
        subject.name
    );
    let missing = sent.checked_sub(recorded).with_context(|| format!("{}: more than was sent", subject.name))?;
    Ok((value, missing))
}

/// One round of a subject in a scene.
fn measure(kernel: &mut Kernel, subject: &Subject, scene: Scene, cpus: [usize; 2], packets: u32) -> Result<Samples> {
    let (mut samples, mut both, hook) = (Samples::default(), frames(scene)?, subject.hook);
    let sample = both[0].clone();
    if scene == Scene::Alone {
        stay_on(cpus[0])?;
        let run = |kernel: &Kernel| Ok((run_on(kernel.runner(), hook, &mut both[0], packets)?.0, u64::from(packets)));
        let (ns, missing) = missing(kernel, subject, &sample, run)?;
        samples.ns[0].push(ns);
        samples.missing.push(missing as f64 / f64::from(packets));
        return Ok(samples);
    }
    for measured in 0..2 {
        let mut found = None;
        for attempt in ATTEMPTS {
            let run = |kernel: &Kernel| {
                let [first, second] = &mut both;
                let mut streams = [(first, cpus[0]), (second, cpus[1])];
                streams.rotate_left(measured);
                let Attempt { ns, sent } = beside(kernel.runner(), hook, streams, packets, attempt)?;
                Ok((ns, sent))
            };
            let (ns, missing) = missing(kernel, subject, &sample, run)?;
            found = ns.map(|ns| (ns, missing));
            if found.is_some() {
                break;
            }
        }
        let Some((ns, missing)) = found else { bail!(IN_VAIN) };
        samples.ns[measured].push(ns);
        samples.missing.push(missing as f64 / (2.0 * f64::from(packets)));
    }
    Ok(samples)
}

/// Runs the bench and prints what it found.
///
/// # Errors
/// If there are not two CPUs, the kernel refuses a program, or packets are missing.
pub(crate) fn run(rounds: u32, packets: u32, as_json: bool) -> Result<()> {
    let [first, second] = first_two()?.context("two CPUs are needed, and this process may use one")?;
    let mut kernels = PATIENCE_NS.into_iter().map(load).collect::<Result<Vec<_>>>()?;
    let subjects = subjects();
    for subject in &subjects {
        if let Hook::Bench(name) = subject.hook {
            kernels[subject.load].load_bench(name)?;
        }
    }
    let mut all: Vec<[Samples; 4]> = subjects.iter().map(|_| Default::default()).collect();
    for _ in 0..rounds {
        for (subject, samples) in subjects.iter().zip(&mut all) {
            for ((scene, _), into) in SCENES.into_iter().zip(samples) {
                let one = measure(&mut kernels[subject.load], subject, scene, [first, second], packets)?;
                into.missing.extend(one.missing);
                into.ns.iter_mut().zip(one.ns).for_each(|(into, ns)| into.extend(ns));
            }
        }
    }
    if as_json {
        let of = |samples: &Samples| {
            let medians = samples.ns.iter().filter(|ns| !ns.is_empty()).map(|ns| median(ns)).collect::<Vec<_>>();
            json!({ "median_ns_of_each_cpu": medians, "samples_ns": samples.ns, "missing": samples.missing })
        };
        let rows = subjects.iter().zip(&all).map(|(subject, samples)| {
            let scenes: serde_json::Map<_, _> =
                SCENES.iter().zip(samples).map(|((_, name), samples)| ((*name).to_owned(), of(samples))).collect();
            json!({ "name": subject.name, "exact": subject.exact, "scenes": scenes })
        });
        let report = json!({ "cpus": [first, second], "packets": packets, "subjects": rows.collect::<Vec<_>>() });
        println!("{}", serde_json::to_string_pretty(&report)?);
        return Ok(());
    }
    println!("{rounds} rounds on CPUs {first} and {second}, {packets} packets on the measured one\n");
    println!("ns/packet of each CPU while the other is at work, and how many of 100 packets are in no sum (medians)\n");
    let heads = SCENES.map(|(_, name)| format!("{name:>25}")).concat();
    println!("{:<29}{heads}", "");
    for (subject, samples) in subjects.iter().zip(&all) {
        let cells = samples.each_ref().map(|samples| {
            let ns = samples.ns.iter().filter(|ns| !ns.is_empty()).map(|ns| format!("{:.0}", median(ns)));
            let text = ns.collect::<Vec<_>>().join(" ");
            format!("{text:>16} {:>7.3}%", 100.0 * median(&samples.missing))
        });
        println!("{:<29}{}", subject.name, cells.concat());
    }
    Ok(())
}
