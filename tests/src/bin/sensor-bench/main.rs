//! `sensor-bench`: what Sensor costs, as ratios within one run: a packet in the kernel programs (`datapath`, `scaling`), a host's
//! traffic (`victim`), and how long an attack goes on (`reaction`). Needs root. Reached by `cargo xtask bench`.

mod beside;
mod cases;
mod cpus;
mod frames;
mod poll;
mod profile;
mod reaction;
mod report;
mod scaling;
mod subjects;
mod victim;

use anyhow::Result;
use clap::{Parser, Subcommand};
use rustix::thread::sched_getcpu;
use sensor_tests::cpus::stay_on;

use report::Report;
use subjects::Subjects;

/// Measures Sensor.
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
        /// Only groups and cases whose names contain this, with what they are held against.
        #[arg(long, default_value = "", hide_default_value = true)]
        only: String,
        /// Rounds; medians and minima are over these.
        #[arg(long, default_value_t = 11, value_parser = clap::value_parser!(u32).range(1..=1000))]
        repeats: u32,
        /// Packets of each subject in a round.
        #[arg(long, default_value_t = 1_000_000, value_parser = clap::value_parser!(u32).range(1000..=100_000_000))]
        packets: u32,
    },
    /// Two CPUs that count in one flow (parallel program runs): the lock and its alternatives.
    Cpus {
        /// Prints JSON instead of a table.
        #[arg(long)]
        json: bool,
        /// Rounds; numbers are medians over these.
        #[arg(long, default_value_t = 5, value_parser = clap::value_parser!(u32).range(1..=1000))]
        repeats: u32,
        /// Packets of the measured CPU in a round of each subject; the other one sends more.
        #[arg(long, default_value_t = 1_000_000, value_parser = clap::value_parser!(u32).range(1000..=100_000_000))]
        packets: u32,
    },
    /// Nanoseconds that the parts of a packet's way take: the programs, cut short at one place after the other.
    Profile {
        /// Prints JSON instead of a table.
        #[arg(long)]
        json: bool,
        /// Rounds; medians are over these.
        #[arg(long, default_value_t = 11, value_parser = clap::value_parser!(u32).range(1..=1000))]
        repeats: u32,
        /// Packets of each part in a round.
        #[arg(long, default_value_t = 500_000, value_parser = clap::value_parser!(u32).range(1000..=100_000_000))]
        packets: u32,
    },
    /// Nanoseconds a packet against the number of flows, and packets a second of two CPUs. Takes 4 GiB of memory.
    Scaling {
        /// Prints JSON instead of a table.
        #[arg(long)]
        json: bool,
        /// Rounds; medians are over these.
        #[arg(long, default_value_t = 5, value_parser = clap::value_parser!(u32).range(1..=1000))]
        repeats: u32,
        /// Packets of each subject in a round.
        #[arg(long, default_value_t = 1_000_000, value_parser = clap::value_parser!(u32).range(1000..=100_000_000))]
        packets: u32,
    },
    /// Throughput of a host with and without the agent: TCP, UDP, requests and new connections, over veth.
    Victim {
        /// Prints JSON instead of a table.
        #[arg(long)]
        json: bool,
        /// Only the loads whose name contains this.
        #[arg(long, default_value = "", hide_default_value = true)]
        only: String,
        /// Rounds of all loads.
        #[arg(long, default_value_t = 7, value_parser = clap::value_parser!(u32).range(1..=100))]
        repeats: u32,
        /// Seconds of each load.
        #[arg(long, default_value_t = 1, value_parser = clap::value_parser!(u32).range(1..=60))]
        seconds: u32,
        /// An argument for the agents, such as `--agent=--poll-interval=1s`; can be repeated.
        #[arg(long, allow_hyphen_values = true, conflicts_with = "parts")]
        agent: Vec<String>,
        /// Instead of throughput: what a run of the programs takes there, by the kernel's own statistics, cut short at one place after
        /// the other.
        #[arg(long)]
        parts: bool,
    },
    /// The agent's poll over 131,072 slots, beside reading a hash map with system calls.
    Poll {
        /// Prints JSON instead of a table.
        #[arg(long)]
        json: bool,
        /// Polls of each case (three where one takes long).
        #[arg(long, default_value_t = 21, value_parser = clap::value_parser!(u32).range(1..=1000))]
        repeats: u32,
    },
    /// From the packet that completes a decision point to the first dropped one, at three poll intervals.
    Reaction {
        /// Prints JSON instead of a table.
        #[arg(long)]
        json: bool,
        /// Flows at each interval.
        #[arg(long, default_value_t = 400, value_parser = clap::value_parser!(u32).range(20..=50_000))]
        flows: u32,
    },
}

fn main() -> Result<()> {
    match Options::parse().bench {
        Bench::Datapath { json, only, repeats, packets } => datapath(json, &only, repeats, packets),
        Bench::Cpus { json, repeats, packets } => cpus::run(repeats, packets, json),
        Bench::Profile { json, repeats, packets } => {
            stay_on_one_cpu()?;
            profile::run(repeats, packets, json)
        }
        Bench::Scaling { json, repeats, packets } => scaling::measure(repeats, packets, json),
        Bench::Victim { json, only, repeats, seconds, agent: _, parts: true } => {
            victim::parts(repeats, seconds, &only, json)
        }
        Bench::Victim { json, only, repeats, seconds, agent, parts: false } => {
            victim::run(repeats, seconds, &only, &agent, json)
        }
        Bench::Poll { json, repeats } => poll::run(repeats, json),
        Bench::Reaction { json, flows } => reaction::run(flows, json),
    }
}

/// Runs on one CPU, in rounds that interleave all subjects, because the same program drifts by a fifth between
/// invocations: only ratios within one run mean anything.
fn datapath(json: bool, only: &str, repeats: u32, packets: u32) -> Result<()> {
    let cpu = stay_on_one_cpu()?;
    let mut subjects = Subjects::load(only)?;
    let report = Report::new(cpu, packets, subjects.programs()?, subjects.measure(repeats, packets)?);
    if json {
        println!("{}", serde_json::to_string_pretty(&report.json())?);
    } else {
        print!("{}", report.table());
    }
    Ok(())
}

/// The CPU that this thread runs on from now on.
fn stay_on_one_cpu() -> Result<usize> {
    let cpu = sched_getcpu();
    stay_on(cpu)?;
    Ok(cpu)
}
