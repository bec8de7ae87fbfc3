//! Interfaces that come and go, change their names, or are many: which of them the agent watches, how soon, and that
//! every packet is counted once. The senders' counts are the measure, and the maps' own balance. Needs root.

use std::io::{BufRead as _, BufReader, Write as _};
use std::net::SocketAddr;
use std::process::{ChildStdin, ChildStdout, Stdio};
use std::time::{Duration, Instant};

use sensor::bpf::balance::{Balance, Sample, seen};
use sensor_tests::agent::{Agent, Metrics};
use sensor_tests::checks::{Must as _, assert_clean, assert_refused, has_xdp, run_sensor, wait_for};
use sensor_tests::frames::Frame;
use sensor_tests::netns::NetNs;
use sensor_tests::pins::PinMount;
use sensor_tests::process::ChildGuard;

/// What is promised: an interface is watched so soon after it was made.
const WITHIN: Duration = Duration::from_secs(2);
/// For what a busy machine may take longer.
const PATIENCE: Duration = Duration::from_secs(20);

/// Takes `device count frame` in lines, sends that frame so often, and answers with a line.
const SENDER: &str = "import socket, sys
out = socket.socket(socket.AF_PACKET, socket.SOCK_RAW)
for line in sys.stdin:
    device, count, frame = line.split()
    frame = bytes.fromhex(frame)
    for _ in range(int(count)):
        out.sendto(frame, (device, 0))
    print('sent', flush=True)";

/// Two namespaces, between which pairs are made: one end where the agent is, the other where frames are sent. Nothing
/// else sends anything.
struct Scene {
    edge: NetNs,
    peer: NetNs,
    mount: PinMount,
    input: ChildStdin,
    output: BufReader<ChildStdout>,
    _sender: ChildGuard,
}

impl Scene {
    fn build() -> Scene {
        let (edge, peer) = (NetNs::new("edge").must("make a namespace"), NetNs::new("peer").must("make a namespace"));
        for netns in [&edge, &peer] {
            netns.sysctl("net/ipv6/conf/default/disable_ipv6", "1").must("switch IPv6 off");
        }
        let mut command = peer.command("python3");
        command.args(["-c", SENDER]).stdin(Stdio::piped()).stdout(Stdio::piped());
        let mut sender = ChildGuard::spawn_with_stdio("sender", &mut command, None).must("start the sender");
        let (input, output) = sender.take_stdin().zip(sender.take_stdout()).expect("it has pipes");
        let mount = PinMount::new().must("mount a BPF file system");
        Scene { edge, peer, mount, input, output: BufReader::new(output), _sender: sender }
    }

    /// A pair: `device` at the edge, the same name at the peer.
    fn pair(&self, device: &str) {
        self.edge
            .ip(&format!("link add {device} type veth peer name {device} netns {}", self.peer.name()))
            .must("make a pair");
        for netns in [&self.edge, &self.peer] {
            netns.ip(&format!("link set {device} up")).must("set it up");
        }
    }

    fn remove(&self, device: &str) {
        self.edge.ip(&format!("link del {device}")).must("remove a pair");
    }

    /// Hands frames of one flow to the peer's end of a pair, which they have left when this returns.
    fn send(&mut self, device: &str, frames: u64) {
        let port = device.bytes().fold(1024u16, |port, byte| port.wrapping_mul(31).wrapping_add(byte.into()) | 1024);
        let address = |last: u8, port: u16| SocketAddr::from(([198, 18, 0, last], port));
        let frame = Frame::udp(address(2, port), address(1, 7)).payload(64).build();
        let frame: String = frame.iter().map(|byte| format!("{byte:02x}")).collect();
        writeln!(self.input, "{device} {frames} {frame}").map_err(Into::into).must("tell the sender");
        let mut line = String::new();
        self.output.read_line(&mut line).map_err(Into::into).must("hear of the sender");
        assert_eq!(line, "sent\n");
    }

    fn agent(&self, interfaces: &[&str]) -> Agent {
        Agent::start(&self.edge, &self.args(interfaces, &self.pins())).must("start the agent")
    }

    fn pins(&self) -> String {
        self.mount.path().to_string_lossy().into_owned()
    }

    fn args<'a>(&self, interfaces: &[&'a str], pins: &'a str) -> Vec<&'a str> {
        let each = interfaces.iter().flat_map(|interface| ["-i", interface]);
        each.chain(["--model", "", "--pins", pins]).collect()
    }

    fn balance(&self) -> Balance {
        let path = self.mount.path();
        self.edge.within(|| Balance::open(&path)).must("enter the edge").must("open the maps")
    }
}

fn metrics(agent: &Agent) -> Metrics {
    agent.metrics().must("scrape")
}

fn received(metrics: &Metrics, device: &str) -> f64 {
    metrics.sum("sensor_packets_total", &[("direction", "ingress"), ("interface", device)])
}

/// 1 or 0 as the metric says; `None` if there is no series.
fn attached(metrics: &Metrics, device: &str) -> Option<bool> {
    let name = format!("sensor_interface_attached{{interface=\"{device}\"}} ");
    let value = metrics.text().lines().find_map(|line| line.strip_prefix(&name))?;
    Some(value.trim() == "1")
}

/// Nothing moves, and all that was seen is accounted for.
fn settle(balance: &Balance) -> Sample {
    let begun = Instant::now();
    loop {
        let sample = balance.sample().must("read the maps").filter(Sample::is_still);
        if let Some(sample) = &sample
            && sample.at_most() == seen(&sample.counters[0])
        {
            return sample.clone();
        }
        assert!(begun.elapsed() < PATIENCE, "seen and accounted for never agree: {sample:#?}");
        std::thread::sleep(Duration::from_millis(50));
    }
}

#[test]
fn two_hundred_pairs_come_and_go_and_no_packet_is_missed() {
    const BATCHES: usize = 20;
    const PAIRS: usize = 10;
    const FRAMES: u64 = 23;
    let mut scene = Scene::build();
    scene.pair("steady0");
    let agent = scene.agent(&["steady0", "veth*", "!veth-skip*"]);
    let balance = scene.balance();
    scene.pair("veth-skip0");
    let (mut sent, mut latest) = (0, Duration::ZERO);
    for batch in 0..BATCHES {
        let devices: Vec<String> = (0..PAIRS).map(|number| format!("veth{batch}x{number}")).collect();
        let mut made: Vec<(&String, Instant)> = Vec::new();
        for device in &devices {
            scene.pair(device);
            made.push((device, Instant::now()));
            scene.send("steady0", 3);
            sent += 3;
        }
        let begun = Instant::now();
        while !made.is_empty() {
            let now = metrics(&agent);
            made.retain(|(device, since)| {
                let is_watched = attached(&now, device) == Some(true);
                if is_watched {
                    latest = latest.max(since.elapsed());
                }
                !is_watched
            });
            assert!(begun.elapsed() < PATIENCE, "not watched: {made:?}\n{}", agent.log());
        }
        for device in &devices {
            scene.send(device, FRAMES);
            scene.send("steady0", 2);
            sent += FRAMES + 2;
        }
        // Half of them go at once, and are counted for all that.
        for device in devices.iter().step_by(2) {
            scene.remove(device);
        }
        let whole = |device: &String| received(&metrics(&agent), device) == FRAMES as f64;
        wait_for("each pair's packets are in its series", PATIENCE, || devices.iter().all(whole));
        for device in devices.iter().skip(1).step_by(2) {
            scene.remove(device);
        }
    }
    eprintln!("watched at most {latest:?} after it was made");
    assert!(latest <= WITHIN, "{latest:?}");
    scene.send("veth-skip0", 5);
    wait_for("all series together have what was sent", PATIENCE, || {
        metrics(&agent).sum("sensor_packets_total", &[("direction", "ingress")]) == sent as f64
    });
    let end = metrics(&agent);
    assert_eq!((attached(&end, "steady0"), attached(&end, "veth-skip0")), (Some(true), None));
    assert_eq!(attached(&end, "veth0x0"), None, "an interface that a pattern matched and that is gone is not missing");
    assert!(!has_xdp(&scene.edge, "veth-skip0"));
    let sample = settle(&balance);
    assert_eq!(seen(&sample.counters[0]), sent, "frames sent, and in the maps");
    let links = scene.mount.pins().expect("there are pins").iter().filter(|pin| pin.starts_with("link-")).count();
    assert_eq!(
        links,
        if sensor::bpf::probe::kernel().tcx { 2 } else { 1 },
        "of interfaces that are gone nothing is pinned"
    );
    let log = agent.stop().must("stop the agent");
    assert_eq!(log.matches("WARN").count(), 0, "{log}");
    for device in ["steady0", "veth-skip0"] {
        assert_clean(&scene.edge, device);
    }
    assert_eq!(scene.mount.pins(), None, "pins are left");
}

#[test]
fn a_hundred_and_thirty_at_once_are_watched_and_taken_over() {
    const PAIRS: u64 = 130;
    let mut scene = Scene::build();
    let devices: Vec<String> = (0..PAIRS).map(|number| format!("veth{number}")).collect();
    devices.iter().for_each(|device| scene.pair(device));
    let first = scene.agent(&["veth*"]);
    let balance = scene.balance();
    let count = |agent: &Agent| agent.status().must("ask")["interfaces"].as_array().map_or(0, Vec::len) as u64;
    assert_eq!(count(&first), PAIRS);
    devices.iter().for_each(|device| scene.send(device, 3));
    let pins = scene.pins();
    let args = [scene.args(&["veth*"], &pins), vec!["--takeover"]].concat();
    let second = first.start_beside(&args).must("start the next agent");
    first.wait_for_end(PATIENCE).must("the first agent ends");
    assert_eq!(count(&second), PAIRS);
    devices.iter().for_each(|device| scene.send(device, 4));
    let whole = || devices.iter().all(|device| received(&metrics(&second), device) == 7.0);
    wait_for("each has its packets", PATIENCE, whole);
    assert_eq!(seen(&settle(&balance).counters[0]), 7 * PAIRS);
    let begun = Instant::now();
    second.stop().must("stop the agent");
    eprintln!("{PAIRS} interfaces were let go in {:?}", begun.elapsed());
    devices.iter().step_by(40).for_each(|device| assert_clean(&scene.edge, device));
    assert_eq!(scene.mount.pins(), None, "pins are left");
}

/// Gives a link another name while it is up, which Linux takes from 6.2 on; else while it is down.
fn rename(netns: &NetNs, from: &str, to: &str) {
    let name = format!("link set {from} name {to}");
    if sensor::bpf::probe::kernel().version >= (6, 2) {
        netns.ip(&name).must("rename the link");
        return;
    }
    for words in [format!("link set {from} down"), name, format!("link set {to} up")] {
        netns.ip(&words).must("rename the link");
    }
}

#[test]
fn a_renamed_interface_stays_watched_and_another_one_of_the_old_name_is_found() {
    let mut scene = Scene::build();
    for device in ["eth0", "veth1"] {
        scene.pair(device);
    }
    let agent = scene.agent(&["eth0", "veth*", "lan*"]);
    let balance = scene.balance();
    let counted = |device: &str, frames: f64| {
        wait_for(&format!("{device} has {frames}"), PATIENCE, || received(&metrics(&agent), device) == frames);
    };
    let is_attached = |device: &str, expected: Option<bool>| {
        wait_for(&format!("{device}: {expected:?}"), PATIENCE, || attached(&metrics(&agent), device) == expected);
    };
    scene.send("veth1", 5);
    counted("veth1", 5.0);
    rename(&scene.edge, "veth1", "lan1");
    // No packet is missed: it is watched all the time.
    scene.send("veth1", 6);
    is_attached("lan1", Some(true));
    counted("lan1", 11.0);
    assert_eq!((attached(&metrics(&agent), "veth1"), received(&metrics(&agent), "veth1")), (None, 0.0));

    // Another one has the old name now.
    scene.peer.ip("link set veth1 name other1").must("rename the peer's end");
    scene.pair("veth1");
    is_attached("veth1", Some(true));
    scene.send("veth1", 3);
    counted("veth1", 3.0);

    scene.send("eth0", 7);
    counted("eth0", 7.0);
    // Whoever named it meant its packets: no entry asks for the new name, and none of them is missed.
    rename(&scene.edge, "eth0", "wan0");
    scene.send("eth0", 2);
    is_attached("wan0", Some(true));
    is_attached("eth0", Some(false));
    counted("wan0", 9.0);
    scene.peer.ip("link set eth0 name other0").must("rename the peer's end");
    scene.pair("eth0");
    is_attached("eth0", Some(true));
    scene.send("eth0", 4);
    scene.send("other0", 9);
    counted("eth0", 4.0);
    counted("wan0", 18.0);
    // And a third name, and the old one back.
    rename(&scene.edge, "wan0", "wan1");
    is_attached("wan1", Some(true));
    is_attached("wan0", None);
    scene.send("other0", 1);
    counted("wan1", 19.0);
    // What a pattern took is let go: its name said what it is.
    rename(&scene.edge, "veth1", "pod1");
    is_attached("veth1", None);
    wait_for("it is let go", PATIENCE, || !has_xdp(&scene.edge, "pod1"));
    assert_eq!(metrics(&agent).sum("sensor_packets_total", &[]), 37.0);
    assert_eq!(seen(&settle(&balance).counters[0]), 37);
    let log = agent.stop().must("stop the agent");
    for words in
        ["veth1 is called lan1 now", "eth0 is called wan0 now and stays watched", "eth0 is there again: attached"]
    {
        assert!(log.contains(words), "{words}: {log}");
    }
    for device in ["eth0", "wan1", "pod1", "lan1"] {
        assert_clean(&scene.edge, device);
    }
}

#[test]
fn a_star_takes_neither_the_loopback_interface_nor_what_stands_on_others() {
    let scene = Scene::build();
    for device in ["port0", "eth1"] {
        scene.pair(device);
    }
    for words in ["link add br0 type bridge", "link set br0 up", "tuntap add tun0 mode tun"] {
        scene.edge.ip(words).must("make a link");
    }
    // A bridge has no XDP in its driver.
    let pins = scene.pins();
    let args = [scene.args(&["*", "!eth9*"], &pins), vec!["--xdp-mode", "auto"]].concat();
    let agent = Agent::start(&scene.edge, &args).must("start the agent");
    let watched = |agent: &Agent| -> Vec<String> {
        let status = agent.status().must("ask for the status");
        let interfaces = status["interfaces"].as_array().cloned().unwrap_or_default();
        let mut names: Vec<_> = interfaces.iter().filter_map(|one| one["name"].as_str().map(str::to_owned)).collect();
        names.sort();
        names
    };
    assert_eq!(watched(&agent), ["br0", "eth1", "port0"]);
    scene.edge.ip("link set port0 master br0").must("make it a port");
    wait_for("the bridge is let go for its port", PATIENCE, || watched(&agent) == ["eth1", "port0"]);
    scene.edge.ip("link set port0 nomaster").must("make it none");
    wait_for("the bridge is watched again", PATIENCE, || watched(&agent) == ["br0", "eth1", "port0"]);
    agent.stop().must("stop the agent");
    for device in ["br0", "eth1", "port0"] {
        assert_clean(&scene.edge, device);
    }
}

#[test]
fn a_name_must_be_there_and_a_pattern_need_not() {
    let scene = Scene::build();
    scene.pair("eth0");
    let pins = scene.pins();
    let agent = scene.agent(&["eth*", "wlan*"]);
    let mut args = vec!["run", "--takeover"];
    args.extend(scene.args(&["eth*", "nope0"], &pins));
    let socket = agent.socket().to_string_lossy().into_owned();
    args.extend(["--metrics-listen", "", "--socket", &socket]);
    assert_refused(&run_sensor(&scene.edge, &[], &args), 1, &["no interface", "nope0", "eth0, lo"]);
    assert!(agent.is_running() && has_xdp(&scene.edge, "eth0"), "the agent that runs goes on: {}", agent.log());
    for (interfaces, words) in [(["!eth0", "eth1"], "there is no pattern"), (["eth0", "eth0"], "named twice")] {
        let mut args = vec!["run"];
        args.extend(scene.args(&interfaces, ""));
        assert_refused(&run_sensor(&scene.edge, &[], &args), 1, &["interfaces", words]);
    }
    agent.stop().must("stop the agent");
    let agent = scene.agent(&["wlan*"]);
    assert!(agent.log().contains("no interface matches"), "{}", agent.log());
    scene.pair("wlan0");
    wait_for("it is watched", PATIENCE, || attached(&metrics(&agent), "wlan0") == Some(true));
    agent.stop().must("stop the agent");
    assert_clean(&scene.edge, "wlan0");
}

#[test]
fn an_agent_that_names_no_interface_waits_for_the_default_route() {
    let (edge, peer) = (NetNs::new("edge").must("make a namespace"), NetNs::new("peer").must("make a namespace"));
    edge.ip(&format!("link add v0 type veth peer name v0 netns {}", peer.name())).must("make a pair");
    edge.ip("addr add 198.18.0.1/24 dev v0").must("an address");
    for netns in [&edge, &peer] {
        netns.ip("link set v0 up").must("set it up");
    }
    let agent = Agent::start(&edge, &["--model", ""]).must("start without a default route");
    assert!(!has_xdp(&edge, "v0"), "nobody asked for it");
    // What has nothing to do with interfaces goes on meanwhile.
    agent.ask_json(&["mode", "tag"]).must("change the mode");
    agent.ask_json(&["reload"]).must("an unrelated reload");
    edge.ip("route add default via 198.18.0.2").must("a default route");
    wait_for("the interface of the route is watched", PATIENCE, || has_xdp(&edge, "v0"));
    agent.stop().must("stop");
    assert!(!has_xdp(&edge, "v0"), "nothing is left");
}

#[test]
fn packets_that_pass_two_watched_interfaces_are_said_to_count_twice() {
    let scene = Scene::build();
    for device in ["eth0", "port0"] {
        scene.pair(device);
    }
    let made = [
        "link add br0 type bridge",
        "link set br0 up",
        "link set port0 master br0",
        "link add mac0 link eth0 type macvlan",
        "link set mac0 up",
        "link add a0 type veth peer name a1",
    ];
    for words in made {
        scene.edge.ip(words).must("make a link");
    }
    let pins = scene.pins();
    let names = ["br0", "port0", "eth0", "a0"];
    let args = [scene.args(&names, &pins), vec!["--xdp-mode", "auto"]].concat();
    let agent = Agent::start(&scene.edge, &args).must("start the agent");
    let said = |agent: &Agent, pair: &str| agent.log().contains(&format!("{pair} are both watched"));
    wait_for("the bridge is named", PATIENCE, || said(&agent, "br0 and port0"));
    assert!(!said(&agent, "mac0 and eth0") && !said(&agent, "a0 and a1"), "{}", agent.log());
    agent.stop().must("stop the agent");
    // Both ends of a pair, and a macvlan interface with its parent.
    let names = ["mac0", "eth0", "a0", "a1"];
    let args = [scene.args(&names, &pins), vec!["--xdp-mode", "auto"]].concat();
    let agent = Agent::start(&scene.edge, &args).must("start the agent");
    wait_for("both are named", PATIENCE, || {
        said(&agent, "mac0 and eth0") && (said(&agent, "a0 and a1") || said(&agent, "a1 and a0"))
    });
    agent.stop().must("stop the agent");
    let doctor = run_sensor(&scene.edge, &[], &["doctor", "-i", "br0", "-i", "port0", "-i", "lo"]);
    let text = String::from_utf8_lossy(&doctor.stdout);
    assert!(text.contains("port0 has the same packets") && text.contains("loopback"), "{text}");
}

#[test]
fn an_interface_without_ethernet_frames_is_refused_whatever_sys_shows() {
    let edge = NetNs::new("edge").must("make a namespace");
    edge.ip("tuntap add tun0 mode tun").must("make a link");
    edge.ip("link set tun0 up").must("set it up");
    // As containers do: in the network namespace, with the host's /sys.
    let mut command = std::process::Command::new("nsenter");
    command.arg(format!("--net={}", edge.path().display())).arg(sensor_tests::agent::binary().must("find the binary"));
    command.args(["run", "-i", "tun0", "--model", "", "--pins", "", "--state-dir", "", "--metrics-listen", ""]);
    let folder = tempfile::tempdir().map_err(Into::into).must("make a folder");
    command.arg("--socket").arg(folder.path().join("socket")).stdin(Stdio::null());
    let output = command.output().map_err(Into::into).must("run sensor");
    assert_refused(&output, 1, &["tun0 carries no Ethernet frames (tun, WireGuard or another tunnel, type 65534)"]);
    let doctor = run_sensor(&edge, &[], &["doctor", "-i", "tun0"]);
    let text = String::from_utf8_lossy(&doctor.stdout);
    assert!(!doctor.status.success() && text.contains("no Ethernet header: tun, WireGuard"), "{text}");
}
