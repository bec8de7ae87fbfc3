//! A flow takes no more memory the longer it is. Alone in its file: what other tests allocate meanwhile would count.

use std::fs::File;
use std::path::Path;

use sensor::replay::capture::Capture;
use sensor::replay::table::{Table, Timeouts};
use sensor_common::flow::FlowRecord;
use sensor_common::packet;

/// CICFlowMeter keeps every packet of a flow.
#[test]
fn memory_does_not_grow_with_packets() {
    let resident_kb = || {
        let status = std::fs::read_to_string("/proc/self/statm").expect("statm");
        status.split_whitespace().nth(1).and_then(|pages| pages.parse::<u64>().ok()).expect("pages") * 4
    };
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("golden/captures/cic-16-memory.pcap");
    let mut capture = Capture::open(File::open(path).expect("a capture")).expect("a capture");
    let mut frames = Vec::new();
    while let Some(frame) = capture.read().expect("whole") {
        frames.push((frame.time_ns, frame.bytes.to_vec()));
    }
    let mut table = Table::new(Timeouts::default(), Vec::new());
    let mut replay = |rounds: std::ops::Range<u64>| {
        for round in rounds {
            for (time_ns, bytes) in &frames {
                let packet = packet::parse(&bytes[..]).expect("well-formed");
                let mut sink = |_: &FlowRecord, reason| -> Result<(), String> { Err(format!("ended: {reason:?}")) };
                table.packet(&packet, time_ns + round * 100_000_000, &mut sink).expect("the flow goes on");
            }
        }
        assert_eq!(table.len(), 1);
    };
    replay(0..100);
    let before = resident_kb();
    replay(100..5_000);
    let grown = resident_kb().saturating_sub(before);
    // A list of 490,000 lengths and times takes 8 MiB.
    assert!(grown < 4096, "490,000 packets of one flow took {grown} KiB");
}
