//! Truncated, malformed and foreign frames on a real interface: each is counted by its cause and passed, native and
//! generic. They are sent raw; nftables on the receiving device counts, behind XDP, what came through. Needs root.

use std::fmt::Write as _;
use std::time::Duration;

use sensor_tests::agent::Agent;
use sensor_tests::checks::{Must as _, shipped_model, wait_for};
use sensor_tests::netns::{NetNs, Ns};
use serde_json::Value;

/// Source address of every frame here, by which the receiver counts.
const SENDER: [u8; 6] = [2, 0, 0, 0, 0, 0x66];

/// Writes each frame, given in hexadecimal, to the interface: nothing else sends frames as they are.
const SEND: &str = "import socket, sys
out = socket.socket(socket.AF_PACKET, socket.SOCK_RAW)
out.bind(('eth0', 0))
for frame in sys.argv[1:]:
    out.send(bytes.fromhex(frame))";

fn ethernet(rest: &[u8]) -> Vec<u8> {
    [&[0xff; 6][..], &SENDER, rest].concat()
}

/// An IPv4 packet of `protocol`; the header checksum is left out, which no counter here looks at.
fn ipv4(protocol: u8, total: u16, fragment: u16, payload: &[u8]) -> Vec<u8> {
    let mut header = vec![0x08, 0x00, 0x45, 0];
    header.extend(total.to_be_bytes());
    header.extend([0, 7]);
    header.extend(fragment.to_be_bytes());
    header.extend([64, protocol, 0, 0, 198, 18, 0, 1, 198, 18, 0, 2]);
    ethernet(&[&header, payload].concat())
}

/// TCP with `offset` as its data offset in words.
fn tcp(offset: u8) -> Vec<u8> {
    let mut header = vec![0x10, 0x00, 0x00, 80];
    header.extend([0; 8]);
    header.extend([offset << 4, 0x10, 0, 0, 0, 0, 0, 0]);
    header
}

/// A frame for each cause that a single frame can have. The last of each: whether the kernel's own stack hands the frame
/// on to the receiver's hook (it throws cut VLAN tags away before).
fn frames() -> Vec<(&'static str, Vec<u8>, bool)> {
    let vlan = [0x81, 0x00, 0x00, 0x05];
    let udp = [0x13, 0x88, 0x13, 0x89, 0, 12, 0, 0, 1, 2, 3, 4];
    let mut options = vec![0x86, 0xdd, 0x60, 0, 0, 0, 0, 80, 60, 64];
    options.extend([0x20; 32]);
    // Ten destination options, each naming the next.
    options.extend([60, 0, 1, 4, 0, 0, 0, 0].repeat(10));
    let mut low_ihl = ipv4(17, 32, 0, &udp);
    low_ihl[14] = 0x43;
    let mut version = ipv4(17, 32, 0, &udp);
    version[14] = 0x55;
    vec![
        ("not_ip", ethernet(&[0x88, 0xb5, 1, 2, 3, 4]), true),
        ("truncated_link", ethernet(&[0x81, 0x00, 0x00]), false),
        ("truncated_network", ethernet(&[0x08, 0x00, 0x45, 0, 0, 40, 0, 1]), true),
        ("truncated_network", ipv4(17, 500, 0, &udp), true),
        ("truncated_network", ethernet(&[0x86, 0xdd, 0x60, 0, 0, 0, 0, 8, 17, 64]), true),
        ("malformed_network", low_ihl, true),
        ("malformed_network", version, true),
        ("truncated_transport", ipv4(17, 24, 0, &[0x13, 0x88, 0x13, 0x89]), true),
        ("malformed_transport", ipv4(6, 40, 0, &tcp(3)), true),
        ("malformed_transport", ipv4(6, 40, 0, &tcp(15)), true),
        ("vlan_depth", ethernet(&[&vlan[..], &vlan, &vlan, &[0x88, 0xb5, 0, 0, 0, 0]].concat()), true),
        ("header_chain", ethernet(&options), true),
        ("fragment", ipv4(17, 32, 0x2001, &udp), true),
    ]
}

fn send(netns: &Ns, frames: &[Vec<u8>]) {
    let hex = |frame: &Vec<u8>| {
        frame.iter().fold(String::new(), |mut text, byte| {
            let _ = write!(text, "{byte:02x}");
            text
        })
    };
    let words: Vec<String> = frames.iter().map(hex).collect();
    let mut args = vec!["-c", SEND];
    args.extend(words.iter().map(String::as_str));
    netns.run("python3", &args).must("send frames");
}

/// Frames from [`SENDER`] that came through to the receiving device.
fn received(netns: &Ns) -> u64 {
    let text = netns.run("nft", &["-j", "list", "counters", "table", "netdev", "lab"]).must("read the counter");
    let listed: Value = serde_json::from_str(&text).map_err(Into::into).must("parse nft's answer");
    let entries = listed["nftables"].as_array().cloned().unwrap_or_default();
    entries
        .iter()
        .find_map(|entry| entry["counter"]["packets"].as_u64())
        .unwrap_or_else(|| panic!("no counter: {text}"))
}

fn counts_and_passes(xdp_mode: &str) {
    let (sender, edge) = (NetNs::new("sender").must("make a namespace"), NetNs::new("edge").must("make a namespace"));
    for netns in [&sender, &edge] {
        // No frame comes but those of the test.
        netns.sysctl("net/ipv6/conf/default/disable_ipv6", "1").must("switch IPv6 off");
    }
    sender.ip(&format!("link add eth0 type veth peer name eth0 netns {}", edge.name())).must("make a link");
    for netns in [&sender, &edge] {
        netns.ip("link set eth0 up").must("set the link up");
    }
    let rules = "table netdev lab { counter through { }
        chain seen { type filter hook ingress device eth0 priority 0;
        ether saddr 02:00:00:00:00:66 counter name through; }; }";
    edge.run("nft", &[rules]).must("count what comes through");
    let model = shipped_model();
    let args = ["-i", "eth0", "--mode", "enforce", "--model", &model, "--xdp-mode", xdp_mode];
    let agent = Agent::start(&edge, &args).must("start the agent");

    let frames = frames();
    let copies = 10;
    for _ in 0..copies {
        send(&sender, &frames.iter().map(|(_, frame, _)| frame.clone()).collect::<Vec<_>>());
    }
    let sent = (copies * frames.len()) as f64;
    wait_for("all frames are counted", Duration::from_secs(5), || {
        agent.metrics().must("scrape").sum("sensor_packets_total", &[("direction", "ingress")]) >= sent
    });
    let metrics = agent.metrics().must("scrape");
    for (cause, _, _) in &frames {
        let of_cause = frames.iter().filter(|(other, _, _)| other == cause).count() * copies;
        let counted = metrics.sum("sensor_loss_packets_total", &[("cause", cause)]);
        assert_eq!(counted, of_cause as f64, "{cause}, in\n{}", metrics.text());
    }
    assert_eq!(metrics.sum("sensor_loss_packets_total", &[]), sent);
    let passed = metrics.sum("sensor_packets_total", &[("direction", "ingress"), ("action", "pass")]);
    assert_eq!(passed, sent, "every frame is passed");
    assert_eq!(agent.flows().must("ask for the flows"), Vec::<Value>::new(), "none of them is a flow");
    let through = frames.iter().filter(|(_, _, through)| *through).count() * copies;
    assert_eq!(received(&edge), through as u64, "frames that came through to the device");

    // A protocol without ports, and UDP under two VLAN tags, are flows.
    let mut tagged = ipv4(17, 32, 0, &[0x13, 0x88, 0x13, 0x89, 0, 12, 0, 0, 1, 2, 3, 4]);
    tagged.splice(12..12, [0x88, 0xa8, 0, 7, 0x81, 0, 0, 9]);
    send(&sender, &[ipv4(253, 24, 0, &[1, 2, 3, 4]), tagged]);
    let flows = agent.flows().must("ask for the flows");
    assert!(flows.iter().any(|flow| flow["protocol"] == "253" && flow["initiator_bytes"] == 24), "{flows:#?}");
    let vlans = |flow: &Value| flow["vlans"] == serde_json::json!([7, 9]) && flow["dport"] == 5001;
    assert!(flows.iter().any(vlans), "{flows:#?}");
    assert_eq!(flows.len(), 2);
    agent.stop().must("stop the agent");
}

#[test]
fn native_counts_odd_frames_by_cause_and_passes_them() {
    counts_and_passes("native");
}

#[test]
fn generic_counts_odd_frames_by_cause_and_passes_them() {
    counts_and_passes("generic");
}
