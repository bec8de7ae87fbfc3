//! `sensor extract` holds as many flows as it is told to, however many there are: a stream on standard input whose flows end
//! by the idle timeout, and one whose flows would all live on. Ten million flows: see docs/operations.md.

use std::io::Write as _;
use std::process::{Command, Stdio};

use sensor_tests::agent::binary;
use sensor_tests::frames::Frame;

/// Flows of each stream.
const FLOWS: u32 = 300_000;
/// Flows after which nothing may grow any more.
const WARM: u32 = 100_000;
/// Memory that may be added between [`WARM`] and [`FLOWS`], KiB: that of 4,000 more flows.
const SLACK_KIB: u64 = 4096;

/// Peak memory of a process so far, KiB.
fn peak_kib(process: u32) -> u64 {
    let status = std::fs::read_to_string(format!("/proc/{process}/status")).expect("the process lives");
    let line = status.lines().find_map(|line| line.strip_prefix("VmHWM:")).expect("its peak memory");
    line.trim().trim_end_matches(" kB").parse().expect("a number")
}

/// Streams flows of one packet, `gap_ns` apart; the peaks after [`WARM`] flows and after all, KiB.
fn stream(gap_ns: u64, arguments: &[&str]) -> (u64, u64) {
    let mut child = Command::new(binary().expect("the program is built"))
        .args(["extract", "-", "--quiet", "--view", "nfstream", "--force", "-o", "/dev/null", "--format", "csv"])
        .args(arguments)
        .stdin(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .expect("the program starts");
    let mut input = child.stdin.take().expect("a pipe");
    let mut frame =
        Frame::udp("198.18.0.1:9".parse().expect("address"), "198.19.0.1:53".parse().expect("address")).build();
    // Nanoseconds, Ethernet (pcap, draft-ietf-opsawg-pcap).
    let mut bytes = Vec::new();
    for word in [0xa1b2_3c4d, 2 | 4 << 16, 0, 0, 262_144, 1] {
        bytes.extend(u32::to_le_bytes(word));
    }
    let mut warm_kib = 0;
    for number in 0..FLOWS {
        // The source's address: 198.18.0.0/15 has room for 131,072, the port for the rest.
        frame[28..30].copy_from_slice(&(number as u16).to_be_bytes());
        frame[34..36].copy_from_slice(&(1024 + (number >> 16) as u16).to_be_bytes());
        let at_ns = u64::from(number) * gap_ns;
        let length = frame.len() as u32;
        for word in [1_700_000_000 + (at_ns / 1_000_000_000) as u32, (at_ns % 1_000_000_000) as u32, length, length] {
            bytes.extend(word.to_le_bytes());
        }
        bytes.extend(&frame);
        if number % 1000 == 999 || number + 1 == WARM || number + 1 == FLOWS {
            input.write_all(&bytes).expect("the program reads on");
            bytes.clear();
        }
        if number + 1 == WARM {
            warm_kib = peak_kib(child.id());
        }
    }
    // All but what the pipe holds was read.
    let kib = peak_kib(child.id());
    drop(input);
    let output = child.wait_with_output().expect("the program ends");
    let report = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success() && report.contains("300000"), "{report}");
    (warm_kib, kib)
}

#[test]
fn flows_that_end_by_the_idle_timeout_leave_no_memory_behind() {
    // 10,000 flows at once.
    let (warm_kib, kib) = stream(1_000_000, &["--idle-timeout", "10s"]);
    println!("{warm_kib} KiB after {WARM} flows, {kib} KiB after {FLOWS}");
    assert!(kib < warm_kib + SLACK_KIB, "{warm_kib} KiB after {WARM} flows, {kib} KiB after {FLOWS}");
}

#[test]
fn the_number_of_flows_that_are_held_is_that_of_max_flows() {
    let (few_kib, few) = stream(1000, &["--max-flows", "10000"]);
    let (_, more) = stream(1000, &["--max-flows", "60000"]);
    println!("{few} KiB with 10,000 flows, {more} KiB with 60,000");
    assert!(few < few_kib + SLACK_KIB, "{few_kib} KiB after {WARM} flows, {few} KiB after {FLOWS}");
    // A record is 1,024 bytes, and what stands beside it less than 200.
    let flow_bytes = more.saturating_sub(few) * 1024 / 50_000;
    assert!((960..1230).contains(&flow_bytes), "{flow_bytes} bytes a flow");
}
