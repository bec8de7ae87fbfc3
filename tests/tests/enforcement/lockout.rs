//! Nobody is locked out: an operator's session, gateways, resolvers, neighbour discovery and loopback go on under a model
//! to which everything is an attack, and under operators' verdicts on the very addresses.

use std::net::{IpAddr, Ipv4Addr, SocketAddr, UdpSocket};
use std::path::PathBuf;
use std::time::{Duration, Instant};

use sensor_tests::agent::Agent;
use sensor_tests::checks::{Must as _, wait_for};
use sensor_tests::clients::{download, ping};
use sensor_tests::netns::Ns;
use sensor_tests::onnx::model;
use sensor_tests::servers::{Nginx, Ssh};
use sensor_tests::stop::Stop;
use sensor_tests::topology::{EDGE_V4, EDGE_V6, Lab, UPLINK};

use super::scene::{EVERYTHING, Files, PATIENCE, UNBOUNDED, add_verdict, lab, number, udp};
use super::session::Session;

/// Where the hosts of the scene are among the clients.
const OPERATOR: usize = 0;
const GATEWAY: usize = 1;
const RESOLVER: usize = 2;
const BYSTANDER: usize = 3;

/// What `/etc/resolv.conf` is in a namespace.
struct Resolvers(PathBuf);

impl Resolvers {
    fn set(netns: &Ns, servers: &[IpAddr]) -> Resolvers {
        let directory = PathBuf::from("/etc/netns").join(netns.name());
        let text: String = servers.iter().map(|server| format!("nameserver {server}\n")).collect();
        let made =
            std::fs::create_dir_all(&directory).and_then(|()| std::fs::write(directory.join("resolv.conf"), text));
        made.map_err(Into::into).must("write resolv.conf of the namespace");
        Resolvers(directory)
    }
}

impl Drop for Resolvers {
    fn drop(&mut self) {
        let _gone = std::fs::remove_dir_all(&self.0);
    }
}

/// Answers each datagram at port 53 of the resolver until the test is over.
fn answer(socket: &UdpSocket, stop: &Stop) {
    let mut room = [0; 512];
    socket.set_read_timeout(Some(Duration::from_millis(50))).map_err(Into::into).must("set a timeout");
    while !stop.is_raised() {
        if let Ok((length, from)) = socket.recv_from(&mut room) {
            let _refused = socket.send_to(&room[..length], from);
        }
    }
}

/// Asks the resolver from the edge, each time from another port.
fn ask_resolver(edge: &Ns, resolver: IpAddr) {
    let socket = udp(edge, (Ipv4Addr::UNSPECIFIED, 0));
    let mut room = [0; 512];
    socket.set_read_timeout(Some(PATIENCE)).map_err(Into::into).must("set a timeout");
    for _ in 0..5 {
        socket.send_to(b"a question", (resolver, 53)).map_err(Into::into).must("ask the resolver");
        socket.recv(&mut room).map_err(Into::into).must("hear from the resolver");
    }
}

/// Everything that must not be cut off, once around.
fn around(lab: &Lab, session: &mut Session) {
    let (edge, gateway, stop) = (&lab.edge.netns, &lab.clients[GATEWAY], Stop::new());
    for _ in 0..5 {
        session.say().must("go on with the session");
    }
    let pings = |netns: &Ns, from: IpAddr, to: IpAddr| {
        let (from, to) = (from.to_string(), to.to_string());
        ping(netns, &["-c", "5", "-i", "0.05", "-W", "5", "-I", &from, &to], &stop).must("ping");
    };
    let (gateway4, gateway6) = (IpAddr::from(gateway.v4[0]), IpAddr::from(gateway.v6[0]));
    pings(edge, EDGE_V4.into(), gateway4);
    // Neighbours have to be found anew.
    edge.ip(&format!("-6 neigh flush dev {UPLINK}")).must("forget the neighbours");
    gateway.netns.ip(&format!("-6 neigh flush dev {UPLINK}")).must("forget the neighbours");
    pings(edge, EDGE_V6.into(), gateway6);
    pings(&gateway.netns, gateway4, EDGE_V4.into());
    pings(&gateway.netns, gateway6, EDGE_V6.into());
    ask_resolver(edge, lab.clients[RESOLVER].v4[0].into());
    for base in ["http://127.0.0.1", "http://[::1]"] {
        download(edge, base, 700_000, &[], &stop).must("download over loopback");
    }
}

/// Whether a host cannot use the edge's web server.
fn is_cut_off(netns: &Ns) -> bool {
    let quick = ["--connect-timeout", "1", "--max-time", "1.5"];
    download(netns, &format!("http://{EDGE_V4}"), 2_000_000, &quick, &Stop::new()).is_err()
}

fn refused(agent: &Agent, scope: &str) -> String {
    let answer = agent.ask_json(&["verdicts", "add", "drop", scope]);
    format!("{:#}", answer.err().unwrap_or_else(|| panic!("a verdict on {scope} was taken")))
}

#[test]
fn nobody_is_locked_out() {
    let lab = lab(4, 0);
    let (edge, clients) = (&lab.edge.netns, &lab.clients);
    let gateway = &clients[GATEWAY];
    edge.ip(&format!("route add default via {}", gateway.v4[0])).must("set the gateway");
    edge.ip(&format!("-6 route add default via {}", gateway.v6[0])).must("set the gateway");
    let resolver = &clients[RESOLVER];
    let _resolvers = Resolvers::set(edge, &[resolver.v4[0].into(), resolver.v6[0].into()]);
    let (_nginx, ssh) = (Nginx::start(edge).must("start nginx"), Ssh::start(edge).must("start sshd"));
    let socket = udp(&resolver.netns, SocketAddr::from((resolver.v4[0], 53)));
    let operator = &clients[OPERATOR];
    let mut session = Session::open(&operator.netns, &ssh.key(), &EDGE_V4.to_string()).must("open a session");

    let files = Files::new(&format!("mode = \"enforce\"\n{UNBOUNDED}"), Some(&model("all", EVERYTHING, &[])));
    let agent = files.agent(&lab, &["-i", "lo", "--xdp-mode", "auto"]);
    let stop = Stop::new();
    std::thread::scope(|scope| {
        let _end = Raise(&stop);
        scope.spawn(|| answer(&socket, &stop));
        let begun = Instant::now();
        while begun.elapsed() < Duration::from_secs(2) {
            around(&lab, &mut session);
        }
        wait_for("the model cuts others off", PATIENCE, || is_cut_off(&clients[BYSTANDER].netns));

        // By hand it is no easier.
        let own = operator.v4[0].to_string();
        add_verdict(&agent, &["drop", &own, "--for", "1h"]);
        assert!(is_cut_off(&operator.netns), "new connections of the operator's address are dropped");
        around(&lab, &mut session);
        add_verdict(&agent, &["drop", "198.18.1.0/24", "--for", "1h"]);
        add_verdict(&agent, &["drop", "2001:db8::1:0/112", "--for", "1h"]);
        around(&lab, &mut session);
        // What neighbours live by is not made up: a verdict that covers its addresses does not concern it.
        for scoped in ["fe81::/16", "169.254.0.0/16", "224.0.0.0/4", "ff00::/8"] {
            add_verdict(&agent, &["drop", scoped, "--for", "1h"]);
        }
        around(&lab, &mut session);
        for (scope, word) in [
            ("198.18.0.0/15", "an address of this host"),
            (&gateway.v4[0].to_string(), "gateway"),
            (&resolver.v6[0].to_string(), "resolver"),
            ("127.0.0.1", "an address of this host"),
        ] {
            let reason = refused(&agent, scope);
            assert!(reason.contains(word), "{scope}: {reason}");
        }
    });
    let status = agent.status().must("ask for the status");
    let by = &status["enforcement"]["never_drop_by"];
    assert!(by["session"].as_u64().is_some_and(|sessions| sessions >= 1), "{by}");
    println!(
        "lock-out: {} lines of the session came back, {} packets protected, {} verdicts on flows",
        session.said(),
        number(&status, "/enforcement/protected_packets"),
        number(&status, "/enforcement/flow_verdicts"),
    );
    agent.stop().must("stop the agent");
}

/// Ends what the other threads of a scope do, however the test leaves it.
struct Raise<'a>(&'a Stop);

impl Drop for Raise<'_> {
    fn drop(&mut self) {
        self.0.raise();
    }
}
