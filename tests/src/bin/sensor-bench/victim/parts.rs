//! `sensor-bench victim --parts`: what a run of each program takes while real traffic passes, by the kernel's run statistics. The
//! programs as they are, and cut short at one place after the other ([`Cut`]).
//!
//! A test run (`profile`) has caches and branch predictor to itself; here the stack, servers and clients take them between two
//! packets. The statistics add two looks at the clock to each run: the program that passes everything shows how much.

use std::collections::BTreeMap;

use anyhow::{Result, ensure};
use sensor::bpf::bench::RunStatistics;
use sensor::bpf::load::ProgramInfo;
use sensor_common::cut::Cut;
use sensor_tests::checks::shipped_model;
use serde_json::json;

use super::busy::Busy;
use super::load::{LOADS, Load};
use super::pair::{Pair, Watch};
use crate::report::median;

const fn cut(at: Cut) -> Watch {
    Watch::Parts { cut: Some(at), tag: false }
}

const PARTS: [(Watch, &str); 7] = [
    (Watch::Bare, "nothing but the call"),
    (cut(Cut::Parsed), "headers read"),
    (cut(Cut::Key), "the record found"),
    (cut(Cut::Clock), "clock read"),
    (cut(Cut::Locked), "record locked and unlocked"),
    (Watch::Parts { cut: None, tag: false }, "all"),
    (Watch::Parts { cut: None, tag: true }, "all, mode tag"),
];

/// Fewer runs of a program in a slice say nothing.
const LEAST_RUNS: u64 = 1000;

/// Samples of ns a run, by program.
type Samples = BTreeMap<String, Vec<f64>>;

/// Rounds of all loads whose name contains `only`.
pub(crate) fn run(rounds: u32, seconds: u32, only: &str, as_json: bool) -> Result<()> {
    sensor_tests::netns::sweep()?;
    let clock = Busy::new()?;
    let model = shipped_model();
    let pairs = PARTS.iter().map(|(watch, _)| Pair::build(*watch, &model, &[])).collect::<Result<Vec<_>>>()?;
    let loads: Vec<Load> = LOADS.into_iter().filter(|load| load.name().contains(only)).collect();
    ensure!(!loads.is_empty(), "no load's name contains {only:?}");
    let _statistics = RunStatistics::new()?;
    // [load][part]
    let mut all = vec![vec![Samples::new(); PARTS.len()]; loads.len()];
    for round in 0..rounds as usize {
        for (load, samples) in loads.iter().zip(&mut all) {
            for turn in 0..pairs.len() {
                let part = (turn + round) % pairs.len();
                let before = pairs[part].programs();
                load.run(&pairs[part], &clock, seconds)?;
                note(&mut samples[part], &before, &pairs[part].programs());
            }
        }
        eprintln!("round {} of {rounds}", round + 1);
    }
    ensure!(all.iter().flatten().all(|samples| !samples.is_empty()), "a part ran no program");
    if as_json {
        let of_part = |((_, name), samples): (&(Watch, &str), &Samples)| json!({ "part": name, "ns": samples });
        let of_load = |(load, parts): (&Load, &Vec<Samples>)| {
            let parts: Vec<_> = PARTS.iter().zip(parts).map(of_part).collect();
            json!({ "load": load.name(), "parts": parts })
        };
        let loads: Vec<_> = loads.iter().zip(&all).map(of_load).collect();
        println!("{}", serde_json::to_string_pretty(&json!({ "rounds": rounds, "seconds": seconds, "loads": loads }))?);
        return Ok(());
    }
    println!("ns a run of each program while the load runs, up to and with each part; medians of {rounds} rounds");
    for (load, parts) in loads.iter().zip(&all) {
        println!("\n{}", load.name());
        for ((_, name), samples) in PARTS.iter().zip(parts) {
            let programs = samples.iter().map(|(program, ns)| format!("{program} {:.0}", median(ns)));
            println!("  {name:<28} {}", programs.collect::<Vec<_>>().join(", "));
        }
    }
    Ok(())
}

fn note(samples: &mut Samples, before: &[ProgramInfo], after: &[ProgramInfo]) {
    for (before, after) in before.iter().zip(after) {
        let runs = after.run_count - before.run_count;
        if runs >= LEAST_RUNS {
            let ns = (after.run_time_ns - before.run_time_ns) as f64 / runs as f64;
            samples.entry(after.name.clone()).or_default().push(ns);
        }
    }
}
