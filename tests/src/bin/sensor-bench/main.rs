//! `sensor-bench datapath`: what the kernel programs cost a packet, beside the least that any program can cost.
//!
//! Runs on one CPU, in rounds that interleave all subjects, because the same program drifts by a fifth between
//! invocations: only ratios within one run mean anything. Needs root. Reached by `cargo xtask bench datapath`.

mod report;
mod subjects;

use anyhow::{Context, Result};
use clap::{Parser, Subcommand};
use rustix::thread::{CpuSet, sched_getcpu, sched_setaffinity};

use report::Report;
use subjects::Subjects;

/// Measures Sensor's kernel programs.
#[derive(Parser)]
#[command(name = "sensor-bench")]
struct Options {
    #[command(subcommand)]
    bench: Bench,
}

#[derive(Subcommand)]
enum Bench {
    /// Nanoseconds a packet in the kernel programs (BPF_PROG_TEST_RUN).
    Datapath {
        /// Prints JSON instead of a table.
        #[arg(long)]
        json: bool,
        /// Only the cases whose name contains this, and the floors.
        #[arg(long, default_value = "", hide_default_value = true)]
        only: String,
        /// Rounds; medians and minima are over these.
        #[arg(long, default_value_t = 11, value_parser = clap::value_parser!(u32).range(1..=1000))]
        repeats: u32,
        /// Packets of each subject in a round.
        #[arg(long, default_value_t = 1_000_000, value_parser = clap::value_parser!(u32).range(1000..=100_000_000))]
        packets: u32,
    },
}

fn main() -> Result<()> {
    let Bench::Datapath { json, only, repeats, packets } = Options::parse().bench;
    let cpu = sched_getcpu();
    let mut set = CpuSet::new();
    set.set(cpu);
    sched_setaffinity(None, &set).with_context(|| format!("stay on CPU {cpu}"))?;
    let mut subjects = Subjects::load(&only)?;
    let report = Report::new(cpu, packets, subjects.programs()?, subjects.measure(repeats, packets)?);
    if json {
        println!("{}", serde_json::to_string_pretty(&report.json())?);
    } else {
        print!("{}", report.table());
    }
    Ok(())
}
