//! Features of the flows of a capture, in a program of one's own.
//!
//!     cargo run -p sensor-common --features std --example features [FILE.pcap]
//!
//! Reads a pcap file of Ethernet frames (by default a golden capture of the project), keeps one record per flow, and
//! prints some features of each. What a real program adds: timeouts, and reading whatever its packets come from.

use std::collections::HashMap;
use std::path::{Path, PathBuf};

use sensor_common::features::{Sample, by_name};
use sensor_common::flow::{FlowKey, FlowRecord};
use sensor_common::packet::{self, Captured};

/// The frames of a little-endian pcap file: time in ns, kept bytes, length on the wire.
fn frames(file: &[u8]) -> impl Iterator<Item = (u64, Captured<'_>)> {
    let word = |at: usize| Some(u32::from_le_bytes(file.get(at..at + 4)?.try_into().ok()?));
    let unit_ns = if word(0) == Some(0xa1b2_3c4d) { 1 } else { 1_000 };
    let mut at = 24;
    std::iter::from_fn(move || {
        let time_ns = word(at)? as u64 * 1_000_000_000 + word(at + 4)? as u64 * unit_ns;
        let (kept, wire_len) = (word(at + 8)? as usize, word(at + 12)?);
        let bytes = file.get(at + 16..at + 16 + kept)?;
        at += 16 + kept;
        Some((time_ns, Captured { bytes, wire_len }))
    })
}

/// The records of all flows, and how many frames belong to none.
fn flows(file: &[u8]) -> (HashMap<FlowKey, FlowRecord>, u64) {
    let (mut flows, mut refused) = (HashMap::new(), 0);
    for (time_ns, frame) in frames(file) {
        // The error says why: not IP, cut short, malformed …
        let Ok(packet) = packet::parse(frame) else {
            refused += 1;
            continue;
        };
        let record = flows.entry(packet.key).or_insert_with(|| {
            let mut record = FlowRecord::zeroed();
            record.start(&packet, time_ns, 0, 1);
            record
        });
        record.update(&packet, time_ns);
    }
    (flows, refused)
}

fn value(record: &FlowRecord, feature: &str) -> f64 {
    by_name(feature).map_or(f64::NAN, |feature| feature.value(&Sample::of(record)))
}

fn print(file: &[u8]) {
    let (flows, refused) = flows(file);
    println!("{} flows, {refused} frames without one", flows.len());
    for record in flows.values() {
        println!("protocol {}, port {}:", value(record, "protocol"), value(record, "responder_port"));
        // NaN is "missing": a feature that does not exist for this flow is never 0.
        for name in ["duration", "fwd_packets", "bwd_packets", "fwd_payload_mean", "flow_iat_std", "closed"] {
            println!("    {name:<18}{}", value(record, name));
        }
    }
}

fn main() -> std::io::Result<()> {
    let golden = Path::new(env!("CARGO_MANIFEST_DIR")).join("../tests/golden/captures/cic-07-fin.pcap");
    let path = std::env::args_os().nth(1).map_or(golden, PathBuf::from);
    print(&std::fs::read(path)?);
    Ok(())
}

#[test]
fn the_golden_capture_has_one_flow_that_was_closed() {
    let file = include_bytes!("../../tests/golden/captures/cic-07-fin.pcap");
    let (flows, refused) = flows(file);
    let records: Vec<_> = flows.values().collect();
    assert_eq!((records.len(), refused), (1, 0));
    assert_eq!((value(records[0], "fwd_packets"), value(records[0], "closed")), (6.0, 1.0));
    print(file);
}
