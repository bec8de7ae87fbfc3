//! Limits hold what they promise: packets and bytes a second as the receiver's interface saw them, by the kernel's time
//! stamps, so that a test on a busy machine counts the same.

use std::net::{Ipv4Addr, SocketAddr};
use std::time::{Duration, Instant};

use sensor_tests::capture::Capture;
use sensor_tests::checks::{Must as _, wait_for};
use sensor_tests::onnx::model;
use sensor_tests::topology::{EDGE_V4, UPLINK};

use super::scene::{Files, PATIENCE, UNBOUNDED, add_verdict, lab, udp};

const PORT: u16 = 7_920;
/// How long everybody sends, several times what is allowed.
const LENGTH: Duration = Duration::from_secs(4);
const SECOND_NS: u64 = 1_000_000_000;

/// Who sends, frames of what size, and what passes in a second: packets, or bytes.
struct Case {
    name: &'static str,
    source: Ipv4Addr,
    payload: usize,
    allowed: f64,
    bytes: bool,
}

/// Arrival and length of each frame from a source.
fn frames(path: &std::path::Path, source: Ipv4Addr) -> Vec<(u64, u64)> {
    let mut capture = sensor::replay::open(path).must("open the capture");
    let mut frames = Vec::new();
    while let Some(frame) = capture.read().must("read the capture") {
        // Ethernet, IPv4, source address.
        if frame.bytes.get(12..14) == Some(&[8, 0]) && frame.bytes.get(26..30) == Some(&source.octets()) {
            frames.push((frame.time_ns, u64::from(frame.wire_len)));
        }
    }
    frames
}

/// What passed in each whole second, and in all of them, a second. The first tenth is the burst that a limit allows.
fn rates(frames: &[(u64, u64)], bytes: bool) -> (f64, f64) {
    let begin = frames.first().expect("some frames").0 + SECOND_NS / 2;
    let end = frames.last().expect("some frames").0;
    let weight = |frame: &(u64, u64)| if bytes { frame.1 } else { 1 } as f64;
    let within =
        |from: u64, until: u64| frames.iter().filter(|frame| (from..until).contains(&frame.0)).map(weight).sum::<f64>();
    let seconds = (end - begin) / SECOND_NS;
    assert!(seconds >= 2, "frames for {seconds} s only");
    let mut each: Vec<f64> =
        (0..seconds).map(|number| within(begin + number * SECOND_NS, begin + (number + 1) * SECOND_NS)).collect();
    each.sort_by(f64::total_cmp);
    (each[each.len() / 2], within(begin, begin + seconds * SECOND_NS) / seconds as f64)
}

#[test]
fn limits_let_through_what_they_say_within_five_percent() {
    let lab = lab(1, 1);
    // Payloads of more than 200 bytes are an attack to this model, and it limits the flow.
    let label = "[policy.label_actions]\nflood = \"limit\"\n";
    let settings = UNBOUNDED.replace("[breaker]", &format!("limit_packets = 300\n{label}[breaker]"));
    let files = Files::new(&format!("mode = \"enforce\"\n{settings}"), Some(&model("sizes", 200.0, &[])));
    let edge = SocketAddr::from((EDGE_V4, PORT));
    let _sink = udp(&lab.edge.netns, edge);
    let agent = files.agent(&lab, &[]);
    let attacker = &lab.attackers[0];
    let cases = [
        Case { name: "pps", source: attacker.v4[0], payload: 100, allowed: 1_000.0, bytes: false },
        Case { name: "bps", source: attacker.v4[1], payload: 180, allowed: 250_000.0, bytes: true },
        Case { name: "model", source: attacker.v4[2], payload: 600, allowed: 300.0, bytes: false },
    ];
    add_verdict(&agent, &["limit", &cases[0].source.to_string(), "--pps", "1000"]);
    add_verdict(&agent, &["limit", &cases[1].source.to_string(), "--bps", "250000"]);
    let sockets = cases.each_ref().map(|case| udp(&attacker.netns, (case.source, PORT)));
    let flood = |length: Duration| {
        let (begun, mut next) = (Instant::now(), Instant::now());
        while begun.elapsed() < length {
            for (case, socket) in cases.iter().zip(&sockets) {
                for _ in 0..4 {
                    let _refused = socket.send_to(&vec![0; case.payload], edge);
                }
            }
            next += Duration::from_millis(1);
            std::thread::sleep(next.saturating_duration_since(Instant::now()));
        }
    };
    // The model's verdict comes with the first poll.
    flood(Duration::from_millis(50));
    let limited = cases[2].source.to_string();
    wait_for("the model limits its flow", PATIENCE, || {
        let flows = agent.flows().must("ask for the flows");
        flows.iter().any(|flow| flow["src"] == limited.as_str() && flow["verdict"] == "limit")
    });
    let (path, log) = (files.path("edge.pcap"), files.path("tcpdump.log"));
    let capture = Capture::start(&lab.edge.netns, UPLINK, &path, &log).must("start the capture");
    flood(LENGTH);
    let captured = capture.finish().must("end the capture");
    assert_eq!(captured.dropped, 0, "the capture is complete");
    for Case { name, source, payload: _, allowed, bytes } in &cases {
        let (median, all) = rates(&frames(&path, *source), *bytes);
        let unit = if *bytes { "bytes/s" } else { "packets/s" };
        let off = |rate: f64| (rate / allowed - 1.0) * 100.0;
        println!(
            "rate {name}: {allowed} {unit} allowed; {median:.0} in the middle second ({:+.2} %), {all:.0} in all ({:+.2} %)",
            off(median),
            off(all)
        );
        assert!(all <= allowed * 1.05, "{name}: {all} {unit} passed of {allowed}");
        // A second in which the sender had no CPU may have less.
        assert!(median >= allowed * 0.95, "{name}: {median} {unit} passed of {allowed}");
    }
    agent.stop().must("stop the agent");
}
