//! `sensor-parity CAPTURE...`: the programs in the kernel against native code, on captures. Exit code 1 for a mismatch.
//!
//! Needs root. Reached by `cargo xtask parity`.

use std::path::PathBuf;
use std::process::ExitCode;
use std::time::Instant;

use anyhow::{Context, Result, ensure};
use clap::Parser;
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
    /// List every capture that was not compared whole, with the reason
    #[arg(short, long)]
    verbose: bool,
}

fn main() -> Result<ExitCode> {
    let Options { mut captures, flows, verbose } = Options::parse();
    if captures.is_empty() {
        captures.push(
            std::env::var_os("SENSOR_CAPTURES").map_or_else(|| PathBuf::from("../shared/captures"), PathBuf::from),
        );
    }
    let files = parity::captures(&captures)?;
    let mut same = true;
    for (name, options) in parity::SETTINGS {
        println!("{name}:");
        let mut rig = Parity::load(flows, options)?;
        same &= compare(&mut rig, &files, verbose)?;
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
