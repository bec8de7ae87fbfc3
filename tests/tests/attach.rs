//! The agent on a veth, native, at TC ingress and generic: what it says of itself, what it counts of known traffic, and that nothing
//! of it is left after a stop. The hosts' own counters are the measure. Needs root.

use std::io::{Read as _, Write as _};
use std::net::{TcpListener, TcpStream, UdpSocket};
use std::time::Duration;

use aya::programs::{SchedClassifier, TcAttachType};
use rustix::process::Signal;
use sensor_tests::agent::{Agent, binary};
use sensor_tests::checks::{Must as _, assert_clean, flow, has_xdp, wait_for};
use sensor_tests::clients::{download, ping};
use sensor_tests::counters::{Received, Total};
use sensor_tests::netns::NetNs;
use sensor_tests::pins::PinMount;
use sensor_tests::process::ChildGuard;
use sensor_tests::servers::Nginx;
use sensor_tests::stop::Stop;
use sensor_tests::topology::{EDGE_V4, EDGE_V6, Host, HostSpec, Lab, LabSpec, UPLINK};
use serde_json::Value;
use tempfile::TempDir;

const PORT: u16 = 7007;
const SENT: u64 = 50;
const ANSWERED: u64 = 20;
/// IPv4 and UDP headers.
const HEADERS: u64 = 28;

fn lab() -> Lab {
    // As on a wire: the hosts' counters then count what records count, segments.
    Lab::build(&LabSpec { clients: vec![HostSpec::default()], wire_segments: true, ..LabSpec::default() })
        .must("build the hosts")
}

/// `SENT` datagrams of 100 bytes to the edge, `ANSWERED` of 200 back, each counted by whoever received it.
fn exchange_datagrams(lab: &Lab) {
    let bind = |host: &Host, port: u16| {
        let address = (host.v4[0], port);
        let socket = host.netns.within(|| UdpSocket::bind(address)).must("enter the namespace");
        let socket = socket.map_err(Into::into).must("bind");
        socket.set_read_timeout(Some(Duration::from_secs(2))).map_err(Into::into).must("set a timeout");
        socket
    };
    let (edge, client) = (bind(&lab.edge, PORT), bind(&lab.clients[0], PORT + 1));
    let mut buffer = [0; 512];
    for number in 0..SENT {
        client.send_to(&[7; 100], (EDGE_V4, PORT)).map_err(Into::into).must("send");
        let (length, sender) = edge.recv_from(&mut buffer).map_err(Into::into).must("receive at the edge");
        assert_eq!(length, 100);
        if number < ANSWERED {
            edge.send_to(&[8; 200], sender).map_err(Into::into).must("answer");
            assert_eq!(client.recv(&mut buffer).map_err(Into::into).must("receive the answer"), 200);
        }
    }
}

fn sides(flow: &Value) -> [Total; 2] {
    let number = |key: &str| flow[key].as_u64().unwrap_or_else(|| panic!("{key} in {flow}"));
    let side =
        |name: &str| Total { packets: number(&format!("{name}_packets")), bytes: number(&format!("{name}_bytes")) };
    [side("initiator"), side("responder")]
}

/// How many packets a flow may hold of a transfer of so many segments: a few more (the handshake, what was sent again), and
/// fewer by what was lost to a locked record, at most 64 KiB in one piece.
fn segments_kept(flow: &Value, segments: u64) -> std::ops::Range<u64> {
    let busy = flow["busy_packets"].as_u64().expect("a number");
    segments.saturating_sub(busy * 46)..segments + 40
}

/// Whether a flow holds what the hosts counted. Data and their acknowledgements meet on two CPUs here, and where one loses
/// its CPU inside the record, the other's packet is in none of the flow's numbers but that of such packets.
fn agree(flow: &Value, hosts: [Total; 2]) -> bool {
    match flow["busy_packets"].as_u64() {
        Some(0) => sides(flow) == hosts,
        busy => {
            let packets = |sides: [Total; 2]| sides.iter().map(|side| side.packets).sum::<u64>();
            busy == packets(hosts).checked_sub(packets(sides(flow)))
        }
    }
}

fn counts_what_the_hosts_count(xdp_mode: &str, stop_signal: Signal) {
    let lab = lab();
    let client = &lab.clients[0];
    let (source, source_v6) = (client.v4[0].to_string(), client.v6[0].to_string());
    let _nginx = Nginx::start(&lab.edge.netns).must("start nginx");
    let agent =
        Agent::start(&lab.edge.netns, &["-i", UPLINK, "--xdp-mode", xdp_mode, "--model", ""]).must("start the agent");

    let status = agent.status().must("ask for the status");
    assert_eq!(status["mode"], "observe");
    assert_eq!(status["interfaces"][0]["name"], UPLINK);
    assert_eq!(status["interfaces"][0]["xdp"], xdp_mode);
    assert_eq!(has_xdp(&lab.edge.netns, UPLINK), xdp_mode != "tc");
    let shown = lab.edge.netns.ip(&format!("link show dev {UPLINK}")).must("look at the device");
    assert_eq!(shown.contains("xdpgeneric"), xdp_mode == "generic", "{shown}");

    let rule = format!("ip saddr {source} tcp dport 80");
    let at_edge = Received::matching(&lab.edge.netns, &[("up", &rule)]).must("count at the edge");
    let at_client = Received::matching(&client.netns, &[("down", "tcp sport 80")]).must("count at the client");
    let stop = Stop::new();
    exchange_datagrams(&lab);
    for target in [EDGE_V4.to_string(), EDGE_V6.to_string()] {
        let done = ping(&client.netns, &["-c", "7", "-i", "0.05", "-s", "100", &target], &stop);
        done.must("ping the edge");
    }
    let size = 700_000;
    download(&client.netns, &format!("http://{EDGE_V4}"), size, &[], &stop).must("download");
    // The last acknowledgements are on their way when curl ends: both counts are read until they agree, or for long enough
    // (a closed flow stays for two seconds).
    let mut tries = 0;
    let (flows, hosts) = loop {
        std::thread::sleep(Duration::from_millis(100));
        let flows = agent.flows().must("ask for the flows");
        let hosts = [at_edge.totals().must("read the counters")[0], at_client.totals().must("read the counters")[0]];
        tries += 1;
        if tries == 10 || agree(flow(&flows, &source, "tcp", Some(80)), hosts) {
            break (flows, hosts);
        }
    };

    let udp = sides(flow(&flows, &source, "udp", Some(PORT)));
    assert_eq!(udp[0], Total { packets: SENT, bytes: SENT * (HEADERS + 100) });
    assert_eq!(udp[1], Total { packets: ANSWERED, bytes: ANSWERED * (HEADERS + 200) });
    // Echo: IP header, 8 bytes of ICMP, 100 of data.
    assert_eq!(sides(flow(&flows, &source, "icmp", None)), [Total { packets: 7, bytes: 7 * 128 }; 2]);
    let echo = |one: &&Value| one["src"] == source_v6 && one["protocol"] == "icmpv6" && one["sport"] != 0;
    let v6: Vec<&Value> = flows.iter().filter(echo).collect();
    assert_eq!(v6.len(), 1, "{flows:#?}");
    assert_eq!(sides(v6[0]), [Total { packets: 7, bytes: 7 * 148 }; 2]);
    let tcp = flow(&flows, &source, "tcp", Some(80));
    assert!(agree(tcp, hosts), "initiator and responder of {tcp}, and what the hosts counted: {hosts:?}");
    assert!(hosts[1].bytes > size, "the client received a file of {size} bytes in {hosts:?}");

    // Counters of the interface come once a second.
    wait_for("the interface's counters reach what was seen", Duration::from_secs(3), || {
        let metrics = agent.metrics().must("scrape");
        let of = |direction| metrics.sum("sensor_packets_total", &[("direction", direction), ("interface", UPLINK)]);
        of("ingress") >= (SENT + 7) as f64 && of("egress") >= (ANSWERED + 7) as f64
    });
    stops_without_a_trace(&lab, agent, stop_signal);
}

fn pins() -> Vec<String> {
    let entries = std::fs::read_dir("/sys/fs/bpf").into_iter().flatten().flatten();
    entries
        .map(|entry| entry.file_name().to_string_lossy().into_owned())
        .filter(|name| name.contains("sensor"))
        .collect()
}

fn stops_without_a_trace(lab: &Lab, agent: Agent, signal: Signal) {
    let socket = agent.socket();
    assert!(socket.exists());
    // The path is the agent's directory, which goes with the guard: look while it is there.
    let directory = socket.parent().map(std::path::Path::to_path_buf).unwrap_or_default();
    let log = agent.stop_by(signal, || {
        assert!(directory.exists());
        assert!(!socket.exists(), "the control socket is still there");
    });
    assert!(log.must("the agent ends with success").contains("programs detached"));
    assert_clean(&lab.edge.netns, UPLINK);
    assert_eq!(pins(), Vec::<String>::new());
    let left = lab.edge.netns.run("ss", &["-Hltn", "sport", "=", ":9469"]).must("list the listeners");
    assert_eq!(left, "", "the metrics port is still open");
    ping(&lab.clients[0].netns, &["-c", "3", "-i", "0.05", &EDGE_V4.to_string()], &Stop::new()).must("ping afterwards");
}

#[test]
fn native_counts_what_the_hosts_count_and_leaves_nothing() {
    counts_what_the_hosts_count("native", Signal::TERM);
}

#[test]
fn generic_counts_what_the_hosts_count_and_leaves_nothing() {
    counts_what_the_hosts_count("generic", Signal::INT);
}

#[test]
fn tc_ingress_counts_what_the_hosts_count_and_leaves_nothing() {
    counts_what_the_hosts_count("tc", Signal::TERM);
}

/// Bridges have no XDP of their own.
#[test]
fn a_device_without_native_xdp_is_watched_at_tc_ingress() {
    let (edge, peer) = (NetNs::new("edge").must("make a namespace"), NetNs::new("peer").must("make a namespace"));
    edge.ip(&format!("link add eth0 type veth peer name eth0 netns {}", peer.name())).must("make a link");
    edge.ip("link add bridge0 type bridge").must("make a bridge");
    edge.ip("link set eth0 master bridge0").must("put the link under it");
    for (netns, device, last) in [(&edge, "bridge0", 1), (&peer, "eth0", 2)] {
        netns.sysctl(&format!("net/ipv6/conf/{device}/disable_ipv6"), "1").must("switch IPv6 off");
        netns.ip(&format!("addr add 198.18.5.{last}/24 dev {device}")).must("add an address");
        netns.ip("link set eth0 up").must("set the link up");
        netns.ip(&format!("link set {device} up")).must("set the device up");
    }
    let agent = Agent::start(&edge, &["-i", "bridge0", "--model", "", "--xdp-mode", "auto"]).must("start the agent");
    let status = agent.status().must("ask for the status");
    assert_eq!(status["interfaces"][0]["xdp"], "tc", "{status}");
    assert!(!has_xdp(&edge, "bridge0"));
    ping(&peer, &["-c", "5", "-i", "0.05", "198.18.5.1"], &Stop::new()).must("ping");
    let flows = agent.flows().must("ask for the flows");
    assert_eq!(sides(flow(&flows, "198.18.5.2", "icmp", None)), [Total { packets: 5, bytes: 5 * 84 }; 2]);
    if sensor::bpf::probe::kernel().tcx {
        let directory = TempDir::new().map_err(Into::into).must("make a directory");
        let (program, socket) = (binary().must("find the binary"), directory.path().join("sensor.sock"));
        let (program, socket) = (program.to_string_lossy(), socket.to_string_lossy());
        let args = ["run", "-i", "bridge0", "--model", "", "--pins", "", "--metrics-listen", "", "--socket", &socket];
        let error = format!("{:#}", edge.run(&program, &args).expect_err("two agents on one device"));
        assert!(error.contains("another sensor agent"), "{error}");
    }
    agent.stop().must("stop the agent");
    assert_clean(&edge, "bridge0");
}

/// Native XDP on a veth link would take segmentation offload from the other end, which nobody asked for.
#[test]
fn a_veth_link_keeps_its_offloads_unless_native_xdp_is_asked_for() {
    let lab = Lab::build(&LabSpec { clients: vec![HostSpec::default()], ..LabSpec::default() }).must("build the hosts");
    let offload = || {
        let features = lab.net.run("ethtool", &["-k", "edge"]).must("ask for the offloads");
        features.lines().any(|line| line.trim() == "tcp-segmentation-offload: on")
    };
    assert!(offload(), "it has it without Sensor");
    for (mode, taken, keeps) in [("auto", "tc", true), ("native", "native", false)] {
        let args = ["-i", UPLINK, "--xdp-mode", mode, "--model", ""];
        let agent = Agent::start(&lab.edge.netns, &args).must("start the agent");
        assert_eq!(agent.status().must("ask for the status")["interfaces"][0]["xdp"], taken);
        assert_eq!(offload(), keeps, "{mode}");
        agent.stop().must("stop the agent");
        assert!(offload(), "it is as before");
    }
}

/// What one end sends as super-packets arrives as such at the other's TC ingress.
#[test]
fn merged_packets_count_as_their_segments_at_tc_ingress() {
    let lab = Lab::build(&LabSpec { clients: vec![HostSpec::default()], ..LabSpec::default() }).must("build the hosts");
    let client = &lab.clients[0];
    let args = ["-i", UPLINK, "--xdp-mode", "tc", "--model", ""];
    let agent = Agent::start(&client.netns, &args).must("start the agent at the client");
    let listener = lab.edge.netns.within(|| TcpListener::bind((EDGE_V4, PORT))).must("enter the namespace");
    let listener = listener.map_err(Into::into).must("listen");
    let size = 2_000_000;
    let server = std::thread::spawn(move || {
        let (mut stream, _) = listener.accept()?;
        stream.write_all(&vec![7; size])
    });
    let stream = client.netns.within(|| TcpStream::connect((EDGE_V4, PORT))).must("enter the namespace");
    let mut received = Vec::new();
    stream.and_then(|mut stream| stream.read_to_end(&mut received)).map_err(Into::into).must("receive");
    assert_eq!(received.len(), size);
    server.join().expect("the server ends").map_err(Into::into).must("send");
    std::thread::sleep(Duration::from_millis(100));

    let flows = agent.flows().must("ask for the flows");
    let transfer = flow(&flows, &client.v4[0].to_string(), "tcp", Some(PORT));
    let [_, responder] = sides(transfer);
    let segments = size.div_ceil(1448) as u64;
    assert!(segments_kept(transfer, segments).contains(&responder.packets), "{segments} segments of data, {transfer}");
    let metrics = agent.metrics().must("scrape");
    let frames = metrics.sum("sensor_packets_total", &[("direction", "ingress")]);
    assert!(frames < segments as f64 / 2.0, "{frames} frames stood for {segments} segments");
    agent.stop().must("stop the agent");
}

#[test]
fn super_packets_count_as_their_segments() {
    // Offloads as they are by default: the edge sends super-packets, and its records still count wire packets.
    let lab = Lab::build(&LabSpec { clients: vec![HostSpec::default()], ..LabSpec::default() }).must("build the hosts");
    let source = lab.clients[0].v4[0].to_string();
    let _nginx = Nginx::start(&lab.edge.netns).must("start nginx");
    let agent = Agent::start(&lab.edge.netns, &["-i", UPLINK, "--model", ""]).must("start the agent");
    let size = 2_000_000;
    download(&lab.clients[0].netns, &format!("http://{EDGE_V4}"), size, &[], &Stop::new()).must("download");
    std::thread::sleep(Duration::from_millis(100));
    let flows = agent.flows().must("ask for the flows");
    let transfer = flow(&flows, &source, "tcp", Some(80));
    let [_, responder] = sides(transfer);
    let segments = size.div_ceil(1448);
    assert!(segments_kept(transfer, segments).contains(&responder.packets), "{segments} segments of data, {transfer}");
    // Each segment has 52 bytes of headers with timestamps; the head of the answer is some hundred bytes.
    let bytes = size + responder.packets * 52;
    let whole = transfer["busy_packets"] == 0;
    assert!(!whole || (bytes..bytes + 1000).contains(&responder.bytes), "{bytes} expected, {responder:?}");
}

#[test]
fn interfaces_are_those_of_the_network_namespace_and_not_of_sysfs() {
    // `nsenter --net` leaves /sys as it was, where this interface is not.
    let netns = NetNs::new("edge").must("make a namespace");
    netns.ip("link add only0 type veth peer name only1").must("make an interface");
    netns.ip("link set only0 up").must("set it up");
    let directory = TempDir::new().map_err(Into::into).must("make a directory");
    let (socket, log) = (directory.path().join("sensor.sock"), directory.path().join("sensor.log"));
    let mut command = std::process::Command::new("nsenter");
    command.arg(format!("--net={}", netns.path().display())).arg(binary().must("find the binary"));
    command
        .args([
            "run",
            "-i",
            "only0",
            "--xdp-mode",
            "native",
            "--model",
            "",
            "--pins",
            "",
            "--metrics-listen",
            "",
            "--socket",
        ])
        .arg(&socket);
    let mut agent = ChildGuard::spawn("sensor", &mut command, Some(&log)).must("start the agent");
    wait_for("the program is on the interface", Duration::from_secs(10), || {
        assert!(agent.is_running(), "the agent ended: {}", agent.log());
        has_xdp(&netns, "only0")
    });
    assert!(agent.stop().must("stop the agent").success(), "{}", agent.log());
    assert_clean(&netns, "only0");
}

#[test]
fn an_interface_that_cannot_be_watched_again_is_tried_at_growing_pauses() {
    if !sensor::bpf::probe::kernel().tcx {
        return;
    }
    let (edge, mount) = (NetNs::new("edge").must("make a namespace"), PinMount::new().must("mount a BPF file system"));
    let make = |number: u32| {
        edge.ip(&format!("link add eth0 index {number} type veth peer name peer0")).must("make a link");
        edge.ip("link set eth0 up").must("set the link up");
    };
    make(100);
    let pins = mount.path();
    let args = ["-i", "eth0", "--model", "", "--pins", &pins.to_string_lossy()];
    let agent = Agent::start(&edge, &args).must("start the agent");
    // In the place of the pin that comes after XDP was attached.
    let obstacle = pins.join("link-200-egress");
    std::fs::create_dir(&obstacle).map_err(Into::into).must("make a directory");
    edge.ip("link del eth0").must("delete the link");
    make(200);
    wait_for("the third attempt fails", Duration::from_secs(10), || agent.log().contains("next attempt in 4 s"));
    let attempts =
        |agent: &Agent| agent.log().matches("is there again, and cannot be watched, next attempt in").count();
    assert_eq!(attempts(&agent), 3, "{}", agent.log());
    assert!(!has_xdp(&edge, "eth0"), "nothing of it stays");
    std::fs::remove_dir(&obstacle).map_err(Into::into).must("remove the directory");
    std::thread::sleep(Duration::from_secs(2));
    assert!(!agent.log().contains("is there again: attached"), "the pause is not over");
    wait_for("it is watched", Duration::from_secs(6), || agent.log().contains("is there again: attached"));
    assert_eq!(attempts(&agent), 3, "{}", agent.log());
    agent.stop().must("stop the agent");
    assert_clean(&edge, "eth0");
    assert_eq!(mount.pins(), None, "pins are left");
}

#[test]
fn tagging_follows_a_renamed_interface_and_is_refused_where_it_cannot_begin() {
    if !sensor::bpf::probe::kernel().tcx {
        return;
    }
    let (edge, mount) = (NetNs::new("edge").must("make a namespace"), PinMount::new().must("mount a BPF file system"));
    edge.ip("link add eth0 index 100 type veth peer name peer0").must("make a link");
    edge.ip("link set eth0 up").must("set the link up");
    let pins = mount.path();
    let args = ["-i", "eth0", "--model", "", "--pins", &pins.to_string_lossy()];
    let agent = Agent::start(&edge, &args).must("start the agent");
    let tagging = || agent.status().must("ask for the status")["interfaces"][0]["tag"].is_string();
    let mode = |agent: &Agent| agent.status().must("ask for the status")["mode"].clone();

    let obstacle = pins.join("link-100-tag");
    std::fs::create_dir(&obstacle).map_err(Into::into).must("make a directory");
    let refused = agent.ask_json(&["mode", "tag"]).expect_err("the pin has no place").to_string();
    assert!(refused.contains("the mode stays observe"), "{refused}");
    assert_eq!((mode(&agent), tagging()), ("observe".into(), false));
    std::fs::remove_dir(&obstacle).map_err(Into::into).must("remove the directory");

    // Another one gets its name: both are watched.
    for words in ["link set eth0 down", "link set eth0 name lan0", "link set lan0 up"] {
        edge.ip(words).must("rename the link");
    }
    edge.ip("link add eth0 index 200 type veth peer name peer1").must("make another link");
    agent.ask_json(&["mode", "tag"]).must("change the mode");
    let programs = |interface: &str| {
        let query = || SchedClassifier::query_tcx(interface, TcAttachType::Ingress).map(|(_, programs)| programs.len());
        edge.within(query).must("enter the edge").map_err(Into::into).must("ask for the programs")
    };
    wait_for("both are tagged", Duration::from_secs(10), || (programs("lan0"), programs("eth0")) == (1, 1));
    assert!(tagging());
    agent.ask_json(&["mode", "observe"]).must("change the mode");
    assert_eq!((programs("lan0"), programs("eth0"), tagging()), (0, 0, false));
    agent.stop().must("stop the agent");
    assert_clean(&edge, "lan0");
    assert_clean(&edge, "eth0");
    assert_eq!(mount.pins(), None, "pins are left");
}

#[test]
fn a_router_counts_what_it_forwards_once() {
    let hosts = ["left", "router", "right"].map(|role| NetNs::new(role).must("make a namespace"));
    let [left, router, right] = &hosts;
    for (host, number) in [(left, 1), (right, 2)] {
        let device = format!("eth{number}");
        let words = format!("link add eth0 type veth peer name {device} netns {}", router.name());
        host.ip(&words).must("make a link");
        for (netns, device, last) in [(host, "eth0", 2), (router, device.as_str(), 1)] {
            // No packet comes but those of the test.
            netns.sysctl(&format!("net/ipv6/conf/{device}/disable_ipv6"), "1").must("switch IPv6 off");
            netns.ip(&format!("addr add 198.18.{number}.{last}/24 dev {device}")).must("add an address");
            netns.ip(&format!("link set {device} up")).must("set the link up");
        }
        host.ip(&format!("route add default via 198.18.{number}.1")).must("add a route");
    }
    router.sysctl("net/ipv4/ip_forward", "1").must("switch forwarding on");
    let agent = Agent::start(router, &["-i", "eth1", "-i", "eth2", "--model", ""]).must("start the agent");
    ping(left, &["-c", "7", "-i", "0.05", "198.18.2.2"], &Stop::new()).must("ping through the router");

    let flows = agent.flows().must("ask for the flows");
    assert_eq!(flows.len(), 1, "{flows:#?}");
    assert_eq!(sides(flow(&flows, "198.18.1.2", "icmp", None)), [Total { packets: 7, bytes: 7 * 84 }; 2]);
    assert_eq!(flows[0]["interface"], "eth1");
    wait_for("what was forwarded is counted by cause", Duration::from_secs(3), || {
        agent.metrics().must("scrape").sum("sensor_loss_packets_total", &[("cause", "forwarded")]) == 14.0
    });
    let metrics = agent.metrics().must("scrape");
    for interface in ["eth1", "eth2"] {
        let labels = [("interface", interface), ("direction", "ingress")];
        assert!(metrics.sum("sensor_packets_total", &labels) >= 7.0, "{interface}");
    }
    agent.stop().must("stop the agent");
    for device in ["eth1", "eth2"] {
        assert_clean(router, device);
    }
}
