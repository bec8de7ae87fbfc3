//! Floods of SYNs with made-up sources: clients that come for the first time are served as well with Sensor as without
//! it, and better where a queue of half-open connections overflows behind this host.
//!
//! ```text
//!   outside (48 clients, the flood) ─ eth0 [router eth1] ─ server
//! ```

use std::cell::Cell;
use std::io::{BufRead as _, BufReader};
use std::process::Stdio;
use std::time::Duration;

use sensor_tests::agent::Agent;
use sensor_tests::checks::{Must as _, wait_for};
use sensor_tests::netns::{self, NetNs, Ns};
use sensor_tests::process::ChildGuard;
use tempfile::TempDir;

const CLIENTS: usize = 48;
const PORT: u16 = 80;
const SERVER: &str = "198.18.0.10";
const UPLINK: &str = "eth0";
const PATIENCE: Duration = Duration::from_secs(20);
/// What a client waits for at most, seconds: the first SYN, and its repetitions after 1, 3 and 7 s.
const CLIENT_SECONDS: &str = "8";

/// Where the service is, and what runs there.
struct Scene {
    outside: NetNs,
    router: Option<NetNs>,
    server: NetNs,
    _service: ChildGuard,
    /// Networks whose clients have come.
    networks: Cell<u8>,
}

/// A link between `outside` and another namespace, which reaches all of 198.18.0.0/15 by it.
fn uplink(outside: &NetNs, inside: &NetNs, address: &str) {
    outside.ip(&format!("link add {UPLINK} type veth peer name {UPLINK} netns {}", inside.name())).must("make a link");
    for (netns, own) in [(outside, "198.18.255.1/30"), (inside, "198.18.255.2/30")] {
        netns.ip(&format!("addr add {own} dev {UPLINK}")).must("give an address");
        netns.ip(&format!("link set {UPLINK} up")).must("set it up");
    }
    // Every address of the clients' networks is one of this namespace.
    outside.ip("route add local 198.18.16.0/20 dev lo").must("give the clients their addresses");
    outside.ip(&format!("route add {address} via 198.18.255.2")).must("make a route");
    for net in ["198.18.16.0/20", "198.19.0.0/16"] {
        inside.ip(&format!("route add {net} via 198.18.255.1")).must("make a route");
    }
}

impl Scene {
    /// `forwarded`: behind a router, on a kernel without SYN cookies and with a small queue.
    fn build(forwarded: bool) -> Scene {
        netns::sweep().must("sweep");
        let (outside, server) = (NetNs::new("outside").must("make"), NetNs::new("server").must("make"));
        let router = forwarded.then(|| {
            let router = NetNs::new("router").must("make");
            uplink(&outside, &router, SERVER);
            router.sysctl("net/ipv4/ip_forward", "1").must("forward");
            router.ip(&format!("link add eth1 type veth peer name {UPLINK} netns {}", server.name())).must("link");
            for (netns, link, own) in [(&router, "eth1", "198.18.0.1/24"), (&server, UPLINK, "198.18.0.10/24")] {
                netns.ip(&format!("addr add {own} dev {link}")).must("give an address");
                netns.ip(&format!("link set {link} up")).must("set it up");
            }
            server.ip("route add 198.16.0.0/12 via 198.18.0.1").must("make a route");
            server.sysctl("net/ipv4/tcp_syncookies", "0").must("switch cookies off");
            server.sysctl("net/ipv4/tcp_max_syn_backlog", "128").must("bound the queue");
            router
        });
        if !forwarded {
            uplink(&outside, &server, SERVER);
            server.ip(&format!("addr add {SERVER}/32 dev {UPLINK}")).must("give an address");
        }
        let mut service = server.command("python3");
        service.args(["-c", include_str!("syn_flood/server.py"), &PORT.to_string(), "128"]).stdout(Stdio::piped());
        let mut service = ChildGuard::spawn_with_stdio("service", &mut service, None).must("start the service");
        let mut line = String::new();
        let said = BufReader::new(service.take_stdout().expect("piped")).read_line(&mut line);
        assert!(said.is_ok() && line == "ready\n", "the service says {line:?}");
        let scene = Scene { outside, router, server, _service: service, networks: Cell::new(0) };
        assert_eq!(scene.served(), CLIENTS, "without a flood");
        scene
    }

    /// Where the agent runs.
    fn edge(&self) -> &Ns {
        self.router.as_ref().unwrap_or(&self.server)
    }

    /// How many clients are served, of [`CLIENTS`]. They come for the first time: none was here before, the kernel
    /// remembers those, too.
    fn served(&self) -> usize {
        let number = self.networks.get();
        assert!(number < 16, "no more networks");
        self.networks.set(number + 1);
        let network = format!("198.18.{}", 16 + number);
        let script = include_str!("syn_flood/clients.py");
        let (port, count) = (PORT.to_string(), CLIENTS.to_string());
        let said = self.outside.run("python3", &["-c", script, SERVER, &port, &network, &count, CLIENT_SECONDS]);
        said.must("run the clients").trim().parse().expect("a number")
    }

    /// `rate` SYNs a second to `ports` ports from `first` on.
    fn flood(&self, rate: u32, first: u16, ports: u16) -> ChildGuard {
        let mac = |netns: &Ns| {
            let text = netns.run("cat", &[&format!("/sys/class/net/{UPLINK}/address")]).must("read an address");
            text.trim().to_owned()
        };
        let (rate, first, ports) = (rate.to_string(), first.to_string(), ports.to_string());
        let mut flood = self.outside.command("python3");
        flood.args(["-c", include_str!("syn_flood/flood.py"), UPLINK, &mac(&self.outside), &mac(self.edge()), SERVER]);
        flood.args([&first, &ports, &rate, "60"]);
        ChildGuard::spawn("flood", &mut flood, None).must("start the flood")
    }

    fn agent(&self, files: &TempDir, settings: &str) -> Agent {
        let config = files.path().join("sensor.toml");
        std::fs::write(&config, settings).map_err(Into::into).must("write the configuration");
        let config = config.to_string_lossy().into_owned();
        Agent::start(self.edge(), &["-i", UPLINK, "--config", &config, "--model", ""]).must("start the agent")
    }
}

fn files() -> TempDir {
    TempDir::with_prefix("sensor-syn-flood-").map_err(Into::into).must("make a directory")
}

/// Clients served under a flood of `rate`, once it has worked for two seconds.
fn under_flood(scene: &Scene, rate: u32, agent: Option<&Agent>) -> usize {
    let flood = scene.flood(rate, PORT, 1);
    match agent {
        Some(agent) => wait_for("the agent sees the flood", PATIENCE, || {
            agent.metrics().must("scrape").sum("sensor_packets_total", &[("direction", "ingress")]) > f64::from(rate)
        }),
        None => {
            std::thread::sleep(Duration::from_secs(2));
            Duration::ZERO
        }
    };
    let served = scene.served();
    assert!(flood.is_running());
    served
}

#[test]
fn first_time_clients_are_served_as_without_an_agent() {
    let scene = Scene::build(false);
    let without = under_flood(&scene, 3_000, None);
    let files = files();
    let agent = scene.agent(&files, "mode = \"enforce\"\n");
    let with = under_flood(&scene, 3_000, Some(&agent));
    println!("3,000 SYNs/s: {without} of {CLIENTS} first-time clients served without an agent, {with} in enforce");
    assert!(with * 100 >= without * 95, "{with} of {without}");
    let status = agent.status().must("ask for the status");
    assert_eq!(status["enforcement"]["service_limits"], 0);
    agent.stop().must("stop the agent");
}

/// A limit that is switched on: `half_open_limit` of the tests.
const LIMIT: &str = "[policy]\nhalf_open_limit = 50\n";

/// Scopes of the verdicts that there are.
fn scopes(agent: &Agent) -> Vec<String> {
    let list = agent.ask_json(&["verdicts", "list"]).must("list the verdicts");
    let verdicts = list["verdicts"].as_array().expect("a list").iter();
    verdicts.filter_map(|verdict| verdict["scope"].as_str()).map(str::to_owned).collect()
}

#[test]
fn a_limit_is_not_set_where_cookies_do_the_work() {
    let scene = Scene::build(false);
    let files = files();
    let agent = scene.agent(&files, &format!("mode = \"enforce\"\n{LIMIT}"));
    let flood = scene.flood(3_000, PORT, 1);
    wait_for("the agent says that it leaves the flood to the kernel", PATIENCE, || {
        agent.log().contains("are left to the kernel's SYN cookies, and policy.half_open_limit sets no limit")
    });
    assert_eq!(scene.served(), CLIENTS);
    assert_eq!(scopes(&agent), Vec::<String>::new());
    drop(flood);
    // Without cookies, it is this host's to help.
    scene.server.sysctl("net/ipv4/tcp_syncookies", "0").must("switch cookies off");
    let agent = {
        agent.stop().must("stop the agent");
        scene.agent(&files, &format!("mode = \"enforce\"\n{LIMIT}"))
    };
    let _flood = scene.flood(3_000, PORT, 1);
    wait_for("a limit is set", PATIENCE, || scopes(&agent) == [format!("tcp,{SERVER}:{PORT}")]);
    agent.stop().must("stop the agent");
}

#[test]
fn clients_of_a_forwarded_service_are_served_where_its_queue_overflows() {
    let scene = Scene::build(true);
    let without = under_flood(&scene, 3_000, None);
    let files = files();
    let agent = scene.agent(&files, &format!("mode = \"enforce\"\n{LIMIT}"));
    let flood = scene.flood(3_000, PORT, 1);
    wait_for("the service is limited", PATIENCE, || scopes(&agent) == [format!("tcp,{SERVER}:{PORT}")]);
    // What fills its queue from before goes within the time of its answers' repetitions, or is pruned for others.
    let mut served = 0;
    wait_for("clients are served", Duration::from_secs(90), || {
        served = scene.served();
        served * 100 >= CLIENTS * 95
    });
    assert!(flood.is_running() || served > 0);
    println!("3,000 SYNs/s to a queue of 128: {without} of {CLIENTS} without an agent, {served} with the limit");
    assert!(without * 2 < CLIENTS, "the queue did not overflow: {without} of {CLIENTS} without an agent");
    agent.stop().must("stop the agent");
}

#[test]
fn a_flood_to_many_ports_is_limited_at_the_address() {
    let scene = Scene::build(true);
    // Closed ports refuse, which is no flood of half-open connections: these are silent.
    scene.server.ip("route replace blackhole 198.19.0.0/16").must("make the server silent");
    let files = files();
    let agent = scene.agent(&files, &format!("mode = \"enforce\"\n{LIMIT}"));
    let _flood = scene.flood(2_000, 1_000, 600);
    wait_for("the address is limited", PATIENCE, || scopes(&agent) == [format!("tcp,{SERVER}")]);
    let count = |action: &str| {
        let labels = [("direction", "ingress"), ("action", action)];
        agent.metrics().must("scrape").sum("sensor_packets_total", &labels)
    };
    let before = [count("pass"), count("drop")];
    wait_for("SYNs are dropped", PATIENCE, || count("drop") - before[1] > 4_000.0);
    let [passed, dropped] = [count("pass") - before[0], count("drop") - before[1]];
    println!("2,000 SYNs/s to 600 ports: {dropped} dropped, {passed} passed");
    assert!(passed < dropped / 20.0, "{passed} passed, {dropped} dropped");
    agent.stop().must("stop the agent");
}

/// The whole table, for the record: takes some minutes.
#[test]
#[ignore = "measures; `cargo nextest run --run-ignored only -E 'test(first_time_clients_at_each_rate)' --no-capture`"]
fn first_time_clients_at_each_rate() {
    for forwarded in [false, true] {
        for rate in [1_000, 3_000, 20_000] {
            let kinds = [
                ("no agent", None),
                ("observe", Some("mode = \"observe\"\n".to_owned())),
                ("enforce", Some("mode = \"enforce\"\n".to_owned())),
                ("limit on", Some(format!("mode = \"enforce\"\n{LIMIT}"))),
            ];
            for (kind, settings) in kinds {
                let scene = Scene::build(forwarded);
                let files = files();
                let agent = settings.map(|settings| scene.agent(&files, &settings));
                let flood = scene.flood(rate, PORT, 1);
                std::thread::sleep(Duration::from_secs(5));
                let served = [scene.served(), scene.served()];
                assert!(flood.is_running(), "the flood has ended");
                let place = if forwarded { "forwarded, queue of 128" } else { "local, cookies" };
                println!("{place}, {rate} SYNs/s, {kind}: {served:?} of {CLIENTS}");
                drop((flood, agent));
            }
        }
    }
}
