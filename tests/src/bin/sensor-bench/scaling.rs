//! `sensor-bench scaling`: what a packet costs against the number of flows, in the smallest table that holds them and in the
//! largest, and how many packets a second two CPUs handle at once. docs/performance.md says what is to be seen there.

use std::fmt::Write as _;

use anyhow::{Result, bail};
use sensor::bpf::bench::{Bench, Floor};
use sensor::bpf::load::{Hook, Kernel, LoadOptions, Runner};
use sensor_common::counter::Cause;
use sensor_tests::cpus::{first_two, stay_on};
use serde_json::{Value, json};

use crate::beside::{ATTEMPTS, IN_VAIN, beside};
use crate::frames;
use crate::report::median;
use crate::subjects::{counters, ready, run};

/// Binary logarithms of the numbers of flows.
const FLOWS: [u8; 8] = [0, 6, 10, 12, 14, 16, 18, 20];
/// Slots of the largest table, and of the smallest.
const MOST: usize = 1 << 20;
const FEWEST: usize = 8192;
/// Packets of each flow before the first round: the first 16 frames cost more than those of an established flow.
const WARM: u32 = 20;
/// How long a measured run beside another CPU is to take, ns.
const BESIDE_NS: f64 = 2e8;

/// What is measured for one number of flows; medians, ns a packet.
struct Crowd {
    flows: usize,
    floor: f64,
    /// LRU hash with as many entries as the smallest table has slots.
    lru: f64,
    slots: usize,
    /// In the smallest table that holds the flows in half of its slots, or in the largest.
    small: f64,
    large: f64,
    /// Share of packets whose flow found no place in the largest table.
    homeless: f64,
}

fn load(flows: usize) -> Result<Kernel> {
    ready(&LoadOptions { flows, bench: Some(Bench::FLOORS), ..LoadOptions::default() })
}

fn homeless(kernel: &Kernel) -> Result<u64> {
    Ok(counters(kernel)?.unrecorded[Cause::BucketFull as usize])
}

fn crowd(bits: u8, largest: &Kernel, repeats: u32, packets: u32) -> Result<Crowd> {
    let slots = (2usize << bits).clamp(FEWEST, MOST);
    let own = if slots < MOST { Some(load(slots)?) } else { None };
    let smallest = own.as_ref().unwrap_or(largest);
    let frame = frames::crowd(bits, 443)?;
    let subjects = [
        (smallest, Hook::Floor(Floor::Clock)),
        (smallest, Hook::Floor(Floor::Lru)),
        (smallest, Hook::Ingress),
        (largest, Hook::Ingress),
    ];
    // Where both tables are one, it is measured once.
    let subjects = if own.is_some() { &subjects[..] } else { &subjects[..3] };
    let mut streams = vec![(frame, Vec::new()); subjects.len()];
    for ((kernel, hook), (frame, _)) in subjects.iter().zip(&mut streams) {
        run(kernel, *hook, frame, (WARM << bits).max(2000))?;
    }
    let before = homeless(largest)?;
    for _ in 0..repeats {
        for ((kernel, hook), (frame, samples)) in subjects.iter().zip(&mut streams) {
            samples.push(run(kernel, *hook, frame, packets)?.0);
        }
    }
    let homeless = (homeless(largest)? - before) as f64 / (f64::from(repeats) * f64::from(packets));
    let medians: Vec<_> = streams.iter().map(|(_, samples)| median(samples)).collect();
    let large = medians.last().copied().unwrap_or(f64::NAN);
    let [floor, lru, small] = [medians[0], medians[1], medians[2]];
    Ok(Crowd { flows: 1 << bits, floor, lru, slots, small, large, homeless })
}

/// What one CPU and two CPUs do; medians, packets a second.
struct Together {
    name: &'static str,
    one: f64,
    two: f64,
    /// Share of the packets of two CPUs whose record was locked for too long.
    busy: f64,
}

/// Runs one of two frames on its CPU while the other CPU runs the other frame all the while; ns a packet.
fn next_to(
    runner: Runner<'_>,
    hook: Hook,
    [(frame, cpu), (other_frame, other_cpu)]: [(&mut Vec<u8>, usize); 2],
    packets: u32,
) -> Result<f64> {
    for attempt in ATTEMPTS {
        let streams = [(&mut *frame, cpu), (&mut *other_frame, other_cpu)];
        if let Some(ns) = beside(runner, hook, streams, packets, attempt)?.ns {
            return Ok(ns);
        }
    }
    bail!(IN_VAIN)
}

fn together(
    name: &'static str,
    kernel: &Kernel,
    hook: Hook,
    mut frames: [Vec<u8>; 2],
    cpus: [usize; 2],
    (warm, repeats, packets): (u32, u32, u32),
) -> Result<Together> {
    for frame in &mut frames {
        run(kernel, hook, frame, warm)?;
    }
    let (mut alone, mut both, mut busy, mut seen) = (Vec::new(), Vec::new(), 0, 0);
    let busy_and_seen = || {
        let counters = counters(kernel)?;
        let seen = counters.seen[0].iter().map(|volume| volume.packets).sum::<u64>();
        Ok::<_, anyhow::Error>((counters.unrecorded[Cause::RecordBusy as usize], seen))
    };
    for _ in 0..repeats {
        for (cpu, frame) in cpus.into_iter().zip(&mut frames) {
            stay_on(cpu)?;
            alone.push(1e9 / run(kernel, hook, frame, packets)?.0);
        }
        let packets = (BESIDE_NS * 1e-9 * median(&alone)) as u32;
        let before = busy_and_seen()?;
        let [first, second] = &mut frames;
        let mut sum = 0.0;
        sum += 1e9 / next_to(kernel.runner(), hook, [(&mut *first, cpus[0]), (&mut *second, cpus[1])], packets)?;
        sum += 1e9 / next_to(kernel.runner(), hook, [(second, cpus[1]), (first, cpus[0])], packets)?;
        let after = busy_and_seen()?;
        both.push(sum);
        busy += after.0 - before.0;
        seen += after.1 - before.1;
    }
    let busy = if seen > 0 { busy as f64 / seen as f64 } else { 0.0 };
    Ok(Together { name, one: median(&alone), two: median(&both), busy })
}

fn all_together(cpus: [usize; 2], repeats: u32, packets: u32) -> Result<Vec<Together>> {
    let kernel = load(1 << 18)?;
    let one = || Ok::<_, anyhow::Error>([frames::tcp(1000)?, frames::tcp(1001)?]);
    let crowds = |bits| Ok::<_, anyhow::Error>([frames::crowd(bits, 443)?, frames::crowd(bits, 444)?]);
    let measure = |name, hook, frames, warm| together(name, &kernel, hook, frames, cpus, (warm, repeats, packets));
    Ok(vec![
        measure("parse and clock", Hook::Floor(Floor::Clock), one()?, 2000)?,
        measure("one flow each", Hook::Ingress, one()?, 2000)?,
        measure("LRU hash, one flow each", Hook::Floor(Floor::Lru), one()?, 2000)?,
        measure("16,384 flows each", Hook::Ingress, crowds(14)?, WARM << 14)?,
        measure("LRU hash, 16,384 flows each", Hook::Floor(Floor::Lru), crowds(14)?, WARM << 14)?,
        measure("65,536 flows each", Hook::Ingress, crowds(16)?, WARM << 16)?,
        measure("LRU hash, 65,536 flows each", Hook::Floor(Floor::Lru), crowds(16)?, WARM << 16)?,
        measure("both on one flow", Hook::Ingress, [frames::tcp(1002)?, frames::tcp(1002)?], 2000)?,
        measure(
            "aggregating agent, both on one flow",
            Hook::Floor(Floor::Aggregate),
            [frames::tcp(1002)?, frames::tcp(1002)?],
            2000,
        )?,
    ])
}

/// Measures and prints.
///
/// # Errors
/// If the programs or tables do not load, or a run fails.
pub(crate) fn measure(repeats: u32, packets: u32, json: bool) -> Result<()> {
    let cpus = first_two()?;
    if let Some([first, _]) = cpus {
        stay_on(first)?;
    }
    let largest = load(MOST)?;
    let crowds: Vec<_> =
        FLOWS.into_iter().map(|bits| crowd(bits, &largest, repeats, packets)).collect::<Result<_>>()?;
    drop(largest);
    let together = cpus.map(|cpus| all_together(cpus, repeats, packets)).transpose()?;
    let together = together.unwrap_or_default();
    if json {
        println!("{}", serde_json::to_string_pretty(&as_json(repeats, packets, &crowds, &together))?);
    } else {
        print!("{}", as_table(repeats, packets, &crowds, &together));
    }
    Ok(())
}

fn as_json(repeats: u32, packets: u32, crowds: &[Crowd], together: &[Together]) -> Value {
    let crowd = |crowd: &Crowd| {
        let Crowd { flows, floor, lru, slots, small, large, homeless } = crowd;
        json!({
            "flows": flows,
            "floor_ns": floor,
            "lru_hash_ns": lru,
            "smallest_table_slots": slots,
            "smallest_table_ns": small,
            "largest_table_slots": MOST,
            "largest_table_ns": large,
            "share_without_a_place": homeless,
        })
    };
    let pair = |pair: &Together| {
        let Together { name, one, two, busy } = pair;
        json!({ "name": name, "one_cpu_pps": one, "two_cpus_pps": two, "ratio": two / one, "share_busy": busy })
    };
    json!({
        "rounds": repeats,
        "packets": packets,
        "flows": crowds.iter().map(crowd).collect::<Vec<_>>(),
        "cpus": together.iter().map(pair).collect::<Vec<_>>(),
    })
}

fn as_table(repeats: u32, packets: u32, crowds: &[Crowd], together: &[Together]) -> String {
    let mut text = format!(
        "{repeats} interleaved rounds of {packets} packets; ns a packet, medians\n\n{:>9} | {:>6} | {:>9} {:>7} {:>7} {:>6} | \
         {:>9} {:>7} {:>8} | {:>7}\n",
        "flows", "floor", "slots", "ns", "× floor", "× LRU", "1 M slots", "× floor", "no place", "LRU"
    );
    // Writing to a String cannot fail.
    for Crowd { flows, floor, lru, slots, small, large, homeless } in crowds {
        let _ = writeln!(
            text,
            "{flows:>9} | {floor:>6.1} | {slots:>9} {small:>7.1} {:>7.2} {:>6.2} | {large:>9.1} {:>7.2} {:>7.2}% | {lru:>7.1}",
            small / floor,
            small / lru,
            large / floor,
            100.0 * homeless,
        );
    }
    if together.is_empty() {
        text.push_str("\ntwo CPUs: this process may use one only\n");
        return text;
    }
    let _ = writeln!(
        text,
        "\n{:<38} {:>12} {:>12} {:>6} {:>12}",
        "M packets/s (CPUs at once)", "one CPU", "two CPUs", "ratio", "record busy"
    );
    for Together { name, one, two, busy } in together {
        let (ratio, busy) = (two / one, 100.0 * busy);
        let _ = writeln!(text, "{name:<38} {:>12.2} {:>12.2} {ratio:>6.2} {busy:>11.4}%", one / 1e6, two / 1e6);
    }
    text
}
