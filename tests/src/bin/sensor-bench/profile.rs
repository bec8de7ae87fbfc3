//! `sensor-bench profile`: what the parts of a packet's way cost. The programs are loaded several times, each cut short at
//! another place ([`Cut`]), and run in turn on the same frames.
//!
//! A part's cost is the difference to the row above. What is cut short waits less: a CPU goes on with the next packet
//! while the last one's lines are still on their way, up to where the clock is read. So lines that come from memory show
//! in the row of the clock, not in the one that asks for them. The same record in an LRU hash stands below, from the same run.

use anyhow::{Result, ensure};
use sensor::bpf::bench::{Bench, Floor};
use sensor::bpf::load::{Hook, LoadOptions};
use sensor_common::cut::Cut;
use serde_json::json;

use crate::frames;
use crate::report::median;
use crate::subjects::{FLOWS, ready, run as run_packets};

/// Where packets are cut short, and what the row is called.
const PARTS: [(Option<Cut>, &str); 7] = [
    (Some(Cut::Parsed), "headers read"),
    (Some(Cut::Bucket), "hashed, tag found in the bucket"),
    (Some(Cut::Key), "the record's key compared"),
    (Some(Cut::Asked), "the record's lines asked for"),
    (Some(Cut::Clock), "clock read"),
    (Some(Cut::Locked), "record locked and unlocked"),
    (None, "all: the record updated"),
];

/// What stands around the parts: ahead of them the call alone, behind them the usual design.
const CALL: (Floor, &str) = (Floor::Drop, "nothing but the call");
const LRU: (Floor, &str) = (Floor::Lru, "the same record in an LRU hash");

/// Logarithms of the number of flows.
const CROWDS: [u8; 4] = [0, 10, 14, 16];

/// Medians over `repeats` rounds of `packets` each, on the CPU that the caller chose.
pub(crate) fn run(repeats: u32, packets: u32, as_json: bool) -> Result<()> {
    let options = LoadOptions { flows: FLOWS, frags: false, ..LoadOptions::default() };
    let load = |(cut, _): &(Option<Cut>, _)| {
        ready(&LoadOptions { bench: Some(Bench { floors: true, cut: *cut }), ..options.clone() })
    };
    let kernels = PARTS.iter().map(load).collect::<Result<Vec<_>>>()?;
    let mut rows = vec![(&kernels[0], Hook::Floor(CALL.0))];
    rows.extend(kernels.iter().map(|kernel| (kernel, Hook::Ingress)));
    rows.push((&kernels[0], Hook::Floor(LRU.0)));
    // [crowd][row]: each goes on where it was left.
    let frame = |bits: &u8| if *bits == 0 { frames::tcp(1000) } else { frames::crowd(*bits, 443) };
    let frames = CROWDS.iter().map(|bits| Ok(vec![frame(bits)?; rows.len()]));
    let mut frames = frames.collect::<Result<Vec<_>>>()?;
    // [crowd][row][round]
    let mut samples = vec![vec![Vec::new(); rows.len()]; CROWDS.len()];
    for round in 0..=repeats {
        for ((bits, frames), samples) in CROWDS.iter().zip(&mut frames).zip(&mut samples) {
            let count = if round == 0 { packets.max(20 << bits) } else { packets };
            for ((frame, samples), (kernel, hook)) in frames.iter_mut().zip(samples).zip(&rows) {
                let (ns, _) = run_packets(kernel, *hook, frame, count)?;
                // The first round only brings the flows into the table.
                if round > 0 {
                    samples.push(ns);
                }
            }
        }
    }
    ensure!(samples.iter().flatten().all(|samples| samples.len() == repeats as usize), "a sample is missing");
    let names = || std::iter::once(CALL.1).chain(PARTS.iter().map(|(_, name)| *name)).chain(std::iter::once(LRU.1));
    if as_json {
        let rows: Vec<_> = names()
            .enumerate()
            .map(|(row, name)| {
                let medians: Vec<_> = samples.iter().map(|crowd| median(&crowd[row])).collect();
                json!({ "part": name, "median_ns": medians })
            })
            .collect();
        println!("{}", serde_json::to_string_pretty(&json!({ "flows": CROWDS.map(|bits| 1 << bits), "parts": rows }))?);
        return Ok(());
    }
    println!("ns/packet up to and with each part, medians of {repeats} rounds, {packets} packets each\n");
    print!("{:<36}", "part");
    CROWDS.iter().for_each(|bits| print!(" {:>10} {:>7}", format!("{} flows", 1 << bits), "+"));
    println!();
    for (row, name) in names().enumerate() {
        print!("{name:<36}");
        for crowd in &samples {
            let ns = median(&crowd[row]);
            if row > PARTS.len() {
                print!(" {ns:>10.0} {:>7}", "");
                continue;
            }
            let before = row.checked_sub(1).map_or(0.0, |row| median(&crowd[row]));
            print!(" {ns:>10.0} {:>7.0}", ns - before);
        }
        println!();
    }
    Ok(())
}
