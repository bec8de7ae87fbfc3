//! `sensor-parity CAPTURE...`: the programs in the kernel against native code, on captures. Exit code 1 for a mismatch.
//!
//! Needs root. Reached by `cargo xtask parity`.

use std::path::PathBuf;
use std::process::ExitCode;
use std::time::Instant;

use anyhow::{Context, Result, ensure};
use clap::Parser;
use sensor_tests::differences::Difference;
use sensor_tests::live::{Clock, Crossing, Way, Wire};
use sensor_tests::parity::{self, Outcome, Parity};

/// Compares, integer by integer, the flow records that the programs in the kernel make of captures (BPF_PROG_TEST_RUN)
/// with those that `sensor extract` makes.
#[derive(Parser)]
#[command(name = "sensor-parity")]
struct Options {
    /// Captures, or folders of captures [default: $SENSOR_CAPTURES, else ../shared/captures]
    #[arg(value_name = "CAPTURE")]
    captures: Vec<PathBuf>,
    /// Flows that the kernel's table holds; those that have no place wait outside
    #[arg(long, default_value_t = 65_536)]
    flows: usize,
    /// Send the frames over a veth pair to the programs at their real hooks instead, one at a time: native XDP, generic XDP,
    /// TC's ingress and egress, under the captures' clock and under the kernel's
    #[arg(long)]
    live: bool,
    /// With --live: at most so many frames of each capture
    #[arg(long, value_name = "N", default_value_t = u64::MAX, hide_default_value = true, requires = "live")]
    frames: u64,
    /// List every capture that was not compared whole, with the reason
    #[arg(short, long)]
    verbose: bool,
}

fn main() -> Result<ExitCode> {
    let Options { mut captures, flows, live, frames, verbose } = Options::parse();
    if captures.is_empty() {
        captures.push(
            std::env::var_os("SENSOR_CAPTURES").map_or_else(|| PathBuf::from("../shared/captures"), PathBuf::from),
        );
    }
    let files = parity::captures(&captures)?;
    if live {
        return cross(&files, frames, verbose);
    }
    let mut same = true;
    for (name, options) in parity::SETTINGS {
        println!("{name}:");
        let mut rig = Parity::load(flows, options)?;
        same &= compare(&mut rig, &files, verbose)?;
    }
    Ok(if same { ExitCode::SUCCESS } else { ExitCode::FAILURE })
}

/// Sends all files over a wire, in every way.
fn cross(files: &[PathBuf], frames: u64, verbose: bool) -> Result<ExitCode> {
    let ways = Way::ALL
        .into_iter()
        .map(|way| (way, Clock::Replay))
        .chain([(Way::Native, Clock::Kernel), (Way::Stack, Clock::Kernel)]);
    let mut same = true;
    for (way, clock) in ways {
        for (setting, options) in parity::SETTINGS {
            let (start, mut wire, mut all, mut compared) =
                (Instant::now(), Wire::new(way, clock, options)?, Crossing::default(), 0);
            for file in files {
                let crossing = wire.capture(file, frames).with_context(|| file.display().to_string())?;
                for Difference { field, left, right } in &crossing.differences {
                    println!("MISMATCH {}: {field}: kernel {left}, native {right}", file.display());
                }
                if let Some(reason) = crossing.stopped.as_ref().filter(|_| verbose) {
                    println!("{}: {} frames, then: {reason}", file.display(), crossing.frames);
                }
                compared += (crossing.frames > 0) as u32;
                same &= crossing.differences.is_empty();
                all.add(&crossing);
            }
            let (way, seconds) = (way.name(), start.elapsed().as_secs_f64());
            println!("{way}, {clock:?} clock, {setting}: {compared} of {} files: {all}; {seconds:.1} s", files.len());
            ensure!(all.frames > 0, "no frame crossed: name captures, or folders of captures");
        }
    }
    Ok(if same { ExitCode::SUCCESS } else { ExitCode::FAILURE })
}

/// Compares all files; whether they agree.
fn compare(rig: &mut Parity, files: &[PathBuf], verbose: bool) -> Result<bool> {
    let start = Instant::now();
    let mut all = Outcome::default();
    let (mut compared, mut partly) = (0, Vec::new());
    for file in files {
        let outcome = rig.capture(file).with_context(|| file.display().to_string())?;
        for mismatch in &outcome.described {
            println!("MISMATCH {}: {mismatch}", file.display());
        }
        compared += (outcome.packets > 0) as u32;
        if let Some(reason) = &outcome.stopped {
            partly.push(format!("{}: {} packets, then: {reason}", file.display(), outcome.packets));
        }
        for (reason, count) in &outcome.not_compared {
            partly.push(format!("{}: {count} of its packets: {reason}", file.display()));
        }
        all.add(&outcome);
    }
    if verbose {
        for line in &partly {
            println!("not compared: {line}");
        }
    } else if !partly.is_empty() {
        println!("{} captures have parts that were not compared; --verbose lists them", partly.len());
    }
    println!("{compared} of {} files compared: {all}; {:.1} s", files.len(), start.elapsed().as_secs_f64());
    ensure!(all.packets > 0, "no packet was compared: name captures, or folders of captures");
    Ok(all.mismatches == 0)
}
