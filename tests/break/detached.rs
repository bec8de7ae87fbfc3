//! Somebody takes the agent's programs off an interface, as `bpftool link detach` does without asking. A source that is
//! blocked must be blocked again within seconds, and the agent must say what happened.

use std::time::Duration;

use sensor::bpf::load::{Kernel, LoadOptions};
use sensor::config::XdpMode;
use sensor_tests::agent::Agent;
use sensor_tests::checks::{Must as _, assert_clean, has_xdp, wait_for};
use sensor_tests::netns::NetNs;
use sensor_tests::pins::PinMount;
use serde_json::Value;

/// The agent looks once a second; a busy machine takes longer.
const PATIENCE: Duration = Duration::from_secs(20);
const DEVICE: &str = "eth0";

/// Number of the XDP link on the edge's interface, by that of its program.
fn xdp_link(edge: &NetNs) -> u64 {
    let json = |text: String| serde_json::from_str::<Value>(&text).expect("an answer in JSON");
    let device = json(edge.ip(&format!("-j -d link show dev {DEVICE}")).must("ask for the device"));
    let program = device.pointer("/0/xdp/prog/id").expect("an XDP program");
    let links = json(edge.run("bpftool", &["-j", "link", "show"]).must("list the links"));
    let mut links = links.as_array().into_iter().flatten();
    let own = links.find(|link| link["prog_id"] == *program).expect("its link");
    own["id"].as_u64().expect("it has a number")
}

fn is_blocked(peer: &NetNs) -> bool {
    peer.run("ping", &["-c", "1", "-W", "1", "198.18.0.1"]).is_err()
}

fn value(agent: &Agent, name: &str) -> f64 {
    agent.metrics().must("scrape").sum(name, &[("interface", DEVICE)])
}

#[test]
fn programs_that_others_took_off_are_back_within_seconds() {
    let (edge, peer) = (NetNs::new("edge").must("make a namespace"), NetNs::new("peer").must("make a namespace"));
    edge.ip(&format!("link add {DEVICE} type veth peer name {DEVICE} netns {}", peer.name())).must("make a pair");
    for (netns, address) in [(&edge, "198.18.0.1/24"), (&peer, "198.18.0.2/24")] {
        netns.ip(&format!("addr add {address} dev {DEVICE}")).must("an address");
        netns.ip(&format!("link set {DEVICE} up")).must("set it up");
    }
    assert!(!is_blocked(&peer));
    let mount = PinMount::new().must("mount a BPF file system");
    let pins = mount.path().to_string_lossy().into_owned();
    for pinned in [true, false] {
        let pins = if pinned { pins.as_str() } else { "" };
        let args = ["-i", DEVICE, "--mode", "enforce", "--model", "", "--pins", pins];
        let agent = Agent::start(&edge, &args).must("start the agent");
        agent.ask_json(&["verdicts", "add", "drop", "198.18.0.2"]).must("block the peer");
        wait_for("the peer is blocked", PATIENCE, || is_blocked(&peer));
        for times in 1..=3 {
            edge.run("bpftool", &["link", "detach", "id", &xdp_link(&edge).to_string()]).must("take it off");
            let again = || value(&agent, "sensor_interface_taken_off_total") >= f64::from(times);
            wait_for("the agent noticed", PATIENCE, again);
            wait_for("it is attached", PATIENCE, || value(&agent, "sensor_interface_attached") == 1.0);
            wait_for("the peer is blocked again", PATIENCE, || has_xdp(&edge, DEVICE) && is_blocked(&peer));
        }
        // The balance went on: what was counted before and after is in one series.
        assert!(value(&agent, "sensor_packets_total") > 3.0);
        let log = agent.stop().must("stop the agent");
        assert!(log.contains("others took sensor_xdp off"), "{log}");
        assert_clean(&edge, DEVICE);
        assert!(!is_blocked(&peer));
    }
}

#[test]
fn the_program_of_sent_packets_is_put_back_too() {
    if !sensor::bpf::probe::kernel().tcx {
        // Filters of clsact are looked for in the same way; the VM matrix has such kernels.
        return;
    }
    let edge = NetNs::new("edge").must("make a namespace");
    edge.ip(&format!("link add {DEVICE} type veth peer name other0")).must("make a pair");
    edge.ip(&format!("link set {DEVICE} up")).must("set it up");
    let mount = PinMount::new().must("mount a BPF file system");
    let pins = mount.path().to_string_lossy().into_owned();
    let args = ["-i", DEVICE, "--xdp-mode", "tc", "--model", "", "--pins", &pins];
    let agent = Agent::start(&edge, &args).must("start the agent");
    let links = || -> Vec<String> {
        mount.pins().unwrap_or_default().into_iter().filter(|pin| pin.starts_with("link-")).collect()
    };
    let before = links();
    assert_eq!(before.len(), 2, "sensor_ingress and sensor_egress: {before:?}");
    for (times, link) in before.iter().enumerate() {
        let path = mount.path().join(link).to_string_lossy().into_owned();
        edge.run("bpftool", &["link", "detach", "pinned", &path]).must("take it off");
        let noticed = || value(&agent, "sensor_interface_taken_off_total") > times as f64;
        wait_for("the agent noticed", PATIENCE, noticed);
        wait_for("it is attached", PATIENCE, || value(&agent, "sensor_interface_attached") == 1.0);
        wait_for("both are there again", PATIENCE, || links().len() == 2);
    }
    let log = agent.stop().must("stop the agent");
    assert!(log.contains("others took sensor_ingress off") && log.contains("others took sensor_egress off"), "{log}");
    assert_eq!(mount.pins(), None, "pins are left");
}

/// Before kernel 6.6 programs at TC are filters under a qdisc, which `tc` takes off with all that hangs there.
#[test]
fn filters_that_others_took_off_are_missed() {
    let edge = NetNs::new("edge").must("make a namespace");
    edge.ip(&format!("link add {DEVICE} type veth peer name other0")).must("make a pair");
    edge.ip(&format!("link set {DEVICE} up")).must("set it up");
    let mut kernel = Kernel::load(&LoadOptions::default()).must("load the programs");
    let attached = edge.within(|| kernel.attach(DEVICE, XdpMode::Tc, false)).must("enter the edge").must("attach them");
    let attached = vec![attached];
    let missing = |kernel: &Kernel| {
        let expected = kernel.expected(&attached);
        edge.within(|| expected[0].missing()).must("enter the edge").must("ask the kernel")
    };
    assert_eq!(missing(&kernel), Vec::<&str>::new());
    edge.run("tc", &["filter", "del", "dev", DEVICE, "egress"]).must("take a filter off");
    assert_eq!(missing(&kernel), ["sensor_egress"]);
    edge.run("tc", &["qdisc", "del", "dev", DEVICE, "clsact"]).must("take the qdisc off");
    let mut both = missing(&kernel);
    both.sort_unstable();
    assert_eq!(both, ["sensor_egress", "sensor_ingress"]);
    edge.ip(&format!("link del {DEVICE}")).must("remove the link");
    assert_eq!(missing(&kernel), Vec::<&str>::new(), "what is gone lacks nothing");
}
