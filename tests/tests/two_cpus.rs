//! Two CPUs that really receive, or receive and send, packets of one flow at once: native XDP on a veth of two queues, each served by the
//! CPU that sends into it. Every packet is in the flow's record, or counted there and by cause. Needs root and two CPUs.

use std::net::UdpSocket;
use std::thread;
use std::time::Duration;

use sensor_tests::agent::Agent;
use sensor_tests::checks::{Must as _, flow, wait_for};
use sensor_tests::counters::Received;
use sensor_tests::cpus::{first_two, stay_on};
use sensor_tests::netns::NetNs;

const DEVICE: &str = "eth0";
const EDGE: &str = "198.18.7.1";
const PEER: &str = "198.18.7.2";
const PORT: u16 = 7007;
const PEER_PORT: u16 = 7008;
/// Datagrams of each CPU.
const SENT: u64 = 100_000;

fn bind(netns: &NetNs, address: &str, port: u16) -> UdpSocket {
    let socket = netns.within(|| UdpSocket::bind((address, port))).must("enter the namespace");
    socket.map_err(Into::into).must("bind")
}

/// Frames that each receive queue of the edge gave to XDP.
fn by_queue(edge: &NetNs) -> [u64; 2] {
    let text = edge.run("ethtool", &["-S", DEVICE]).must("read the queues' counters");
    [0, 1].map(|queue| {
        let name = format!("rx_queue_{queue}_xdp_packets:");
        let line = text.lines().find_map(|line| line.trim().strip_prefix(&name)?.trim().parse().ok());
        line.unwrap_or_else(|| panic!("no {name} in {text}"))
    })
}

fn two_cpus_agree(both_directions: bool) {
    let Some(cpus) = first_two().must("ask which CPUs may be used") else {
        println!("skipped: this process may use one CPU only");
        return;
    };
    let (edge, peer) = (NetNs::new("edge").must("make a namespace"), NetNs::new("peer").must("make a namespace"));
    let queues = "numtxqueues 2 numrxqueues 2";
    let words = format!("link add {DEVICE} {queues} type veth peer name {DEVICE} {queues} netns {}", peer.name());
    edge.ip(&words).must("make a link");
    for (netns, address) in [(&edge, EDGE), (&peer, PEER)] {
        netns.sysctl(&format!("net/ipv6/conf/{DEVICE}/disable_ipv6"), "1").must("switch IPv6 off");
        netns.ip(&format!("addr add {address}/24 dev {DEVICE}")).must("add an address");
        netns.ip(&format!("link set {DEVICE} up")).must("set the link up");
    }
    // What a CPU sends goes into its own queue, which the same CPU serves at the other end.
    for (queue, cpu) in cpus.into_iter().enumerate() {
        // Groups of 32 CPUs, the highest first.
        let mask = format!("{:x}{}", 1u32 << (cpu % 32), ",00000000".repeat(cpu / 32));
        let script = format!("echo {mask} > /sys/class/net/{DEVICE}/queues/tx-{queue}/xps_cpus");
        peer.run("sh", &["-c", &script]).must("bind a queue to a CPU");
    }
    let agent = Agent::start(&edge, &["-i", DEVICE, "--xdp-mode", "native", "--model", ""]).must("start the agent");
    let rule = format!("udp dport {PORT}");
    let received = Received::matching(&edge, &[("up", &rule)]).must("count at the edge");

    let (sink, source) = (bind(&edge, EDGE, PORT), bind(&peer, PEER, PEER_PORT));
    sink.set_read_timeout(Some(Duration::from_secs(2))).map_err(Into::into).must("set a timeout");
    source.send_to(&[7; 100], (EDGE, PORT)).map_err(Into::into).must("send");
    sink.recv(&mut [0; 200]).map_err(Into::into).must("receive: who the initiator is, is known");
    thread::scope(|scope| {
        let (source, sink) = (&source, &sink);
        for (number, cpu) in cpus.into_iter().enumerate() {
            scope.spawn(move || {
                stay_on(cpu).must("stay on a CPU");
                let (from, to, size) = match number {
                    1 if both_directions => (sink, (PEER, PEER_PORT), 300),
                    _ => (source, (EDGE, PORT), 100),
                };
                for _ in 0..SENT {
                    from.send_to(&[7; 300][..size], to).map_err(Into::into).must("send");
                }
            });
        }
    });

    // Of what comes, the link may lose some before XDP; of what the edge sends, all pass the program.
    let up = received.packets().must("read the counter")[0];
    let down = if both_directions { SENT } else { 0 };
    let flows = agent.flows().must("ask for the flows");
    let one = flow(&flows, PEER, "udp", Some(PORT));
    let number = |key: &str| one[key].as_u64().unwrap_or_else(|| panic!("{key} in {one}"));
    let (forward, reverse) = (number("initiator_packets"), number("responder_packets"));
    let busy = number("busy_packets");
    println!("{up} came, {down} went: {forward} and {reverse} in the record, {busy} busy");
    assert_eq!(forward + reverse + busy, up + down, "{one}");
    assert!(forward <= up && reverse <= down, "{one}");
    assert_eq!(number("initiator_bytes"), forward * 128, "bytes belong to packets");
    assert_eq!(number("responder_bytes"), reverse * 328, "bytes belong to packets");
    let [first, second] = by_queue(&edge);
    assert!(first > SENT / 2, "{first} frames came by the first CPU");
    assert!(both_directions || second > SENT / 2, "{second} frames came by the second CPU");
    wait_for("the packets that found the record busy are counted by cause", Duration::from_secs(3), || {
        let cause = [("cause", "record_busy")];
        let seen = |direction| [("direction", direction), ("interface", DEVICE)];
        let metrics = agent.metrics().must("scrape");
        let [ingress, egress] = ["ingress", "egress"].map(|name| metrics.sum("sensor_packets_total", &seen(name)));
        ingress >= up as f64 && egress >= down as f64 && metrics.sum("sensor_loss_packets_total", &cause) == busy as f64
    });
    agent.stop().must("stop the agent");
}

#[test]
fn two_cpus_that_receive_one_flow_count_every_packet() {
    two_cpus_agree(false);
}

#[test]
fn two_cpus_that_receive_and_send_one_flow_count_every_packet() {
    two_cpus_agree(true);
}
