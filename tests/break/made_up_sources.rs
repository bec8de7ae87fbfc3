//! Packets in the name of addresses that cannot be there (169.254.0.0/16 beyond the link, multicast as a source) are no
//! exception from a verdict; what a link lives by is.

use std::time::Duration;

use sensor_tests::agent::Agent;
use sensor_tests::checks::{Must as _, wait_for};
use sensor_tests::frames::Frame;
use sensor_tests::raw::RawSender;
use sensor_tests::topology::{HostSpec, Lab, LabSpec, UPLINK};

const PATIENCE: Duration = Duration::from_secs(20);
const FRAMES: u64 = 200;

/// Ingress frames of one action.
fn counted(agent: &Agent, action: &str) -> u64 {
    let labels = [("direction", "ingress"), ("action", action)];
    agent.metrics().must("scrape").sum("sensor_packets_total", &labels) as u64
}

fn drop_all(agent: &Agent) {
    for scope in ["169.254.1.9", "224.0.0.0/4", "255.255.255.255", "fe80::9", "ff00::/8", "198.18.66.0/24"] {
        agent.ask_json(&["verdicts", "add", "drop", scope, "--for", "10m"]).must("add a verdict");
    }
}

/// Sends [`FRAMES`] frames, and waits until all of them met `action`.
fn meet(agent: &Agent, sender: &mut RawSender, what: &str, action: &str, frame: &[u8]) {
    let before = counted(agent, action);
    for _ in 0..FRAMES {
        assert!(sender.send(frame).must("send a frame"));
    }
    wait_for(&format!("{what}: {action}"), PATIENCE, || counted(agent, action) >= before + FRAMES);
}

#[test]
fn a_flood_in_the_name_of_what_cannot_be_there_is_dropped() {
    let spec = LabSpec { attackers: vec![HostSpec::default()], ..LabSpec::default() };
    let lab = Lab::build(&spec).must("build the hosts");
    let (edge, attacker) = (&lab.edge.netns, &lab.attackers[0].netns);
    let mut sender = RawSender::start(attacker, UPLINK).must("start the sender");
    let at = |text: &str| text.parse().unwrap_or_else(|error| panic!("{text}: {error}"));
    let udp = |from: &str, to: &str, hops: u8| Frame::udp(at(from), at(to)).hops(hops, 0).payload(200).build();
    let agent = Agent::start(edge, &["-i", UPLINK, "--mode", "enforce", "--model", ""]).must("start the agent");
    drop_all(&agent);
    for (from, to, hops) in [
        ("169.254.1.9:9", "198.18.0.10:80", 64),
        ("224.0.0.5:9", "198.18.0.10:80", 64),
        ("255.255.255.255:9", "198.18.0.10:80", 64),
        ("[fe80::9]:9", "[2001:db8::10]:80", 60),
        ("[ff02::1]:9", "[2001:db8::10]:80", 60),
    ] {
        meet(&agent, &mut sender, from, "drop", &udp(from, to, hops));
    }
    // A neighbour that is blocked: its VRRP, OSPF hellos and mDNS go to groups.
    let group = |number: u8, to: &str| Frame::new(number, at("198.18.66.1:0"), at(to)).hops(255, 0).payload(40).build();
    meet(&agent, &mut sender, "VRRP", "pass", &group(112, "224.0.0.18:0"));
    meet(&agent, &mut sender, "OSPF", "pass", &group(89, "224.0.0.5:0"));
    meet(&agent, &mut sender, "mDNS", "pass", &udp("198.18.66.1:5353", "224.0.0.251:5353", 255));
    meet(&agent, &mut sender, "mDNS of IPv6", "pass", &udp("[fe80::9]:5353", "[ff02::fb]:5353", 255));
    meet(&agent, &mut sender, "BGP between neighbours", "pass", &udp("[fe80::9]:179", "[fe80::10]:179", 64));
    let advertisement = Frame::icmp(at("[fe80::9]:0"), at("[2001:db8::10]:0"), 134, 0).hops(255, 0).payload(40).build();
    meet(&agent, &mut sender, "a router's advertisement", "pass", &advertisement);
    meet(&agent, &mut sender, "and nothing else of it", "drop", &udp("198.18.66.1:5353", "198.18.0.10:5353", 255));
    agent.stop().must("stop the agent");

    // Where the interface has a link-local address, its neighbours have, too.
    edge.ip(&format!("addr add 169.254.1.1/16 dev {UPLINK}")).must("give a link-local address");
    let agent = Agent::start(edge, &["-i", UPLINK, "--mode", "enforce", "--model", ""]).must("start the agent");
    drop_all(&agent);
    meet(&agent, &mut sender, "a link-local neighbour", "pass", &udp("169.254.1.9:9", "198.18.0.10:80", 64));
    meet(&agent, &mut sender, "a group as a source", "drop", &udp("224.0.0.5:9", "198.18.0.10:80", 64));
    agent.stop().must("stop the agent");
}
