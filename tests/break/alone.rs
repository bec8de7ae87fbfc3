//! A model that is wrong about a flow: as shipped, one connection of a source goes on, and a source with many is cut.

use std::collections::HashMap;
use std::io::{Read as _, Write as _};
use std::net::{IpAddr, TcpListener, TcpStream};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use sensor_tests::agent::Agent;
use sensor_tests::checks::{Must as _, wait_for};
use sensor_tests::netns::Ns;
use sensor_tests::onnx::model;
use sensor_tests::topology::{EDGE_V4, HostSpec, Lab, LabSpec, UPLINK};

const PORT: u16 = 6514;
/// As a log shipper does: lines that nobody answers.
const LINES: usize = 60;
const EVERY: Duration = Duration::from_millis(100);
const LINE: [u8; 80] = [b'x'; 80];

type Received = Arc<Mutex<HashMap<IpAddr, usize>>>;

/// A collector: counts bytes by source, and answers nothing.
fn collect(netns: &Ns) -> Received {
    let listener = netns.within(|| TcpListener::bind((EDGE_V4, PORT))).must("enter the edge");
    let listener = listener.map_err(Into::into).must("listen");
    let received = Received::default();
    let counts = received.clone();
    std::thread::spawn(move || {
        for mut stream in listener.incoming().flatten() {
            let (counts, peer) = (counts.clone(), stream.peer_addr());
            std::thread::spawn(move || {
                let (mut room, Ok(peer)) = ([0; 4096], peer) else { return };
                while let Ok(length) = stream.read(&mut room)
                    && length > 0
                {
                    *counts.lock().unwrap_or_else(PoisonError::into_inner).entry(peer.ip()).or_default() += length;
                }
            });
        }
    });
    received
}

/// Sends lines on so many connections at once.
fn ship(netns: &Ns, connections: usize) {
    let streams: Vec<TcpStream> = (0..connections)
        .map(|_| {
            let stream = netns.within(|| TcpStream::connect((EDGE_V4, PORT))).must("enter a host");
            stream.map_err(Into::into).must("connect")
        })
        .collect();
    for _ in 0..LINES {
        let begun = Instant::now();
        for mut stream in &streams {
            // What does not arrive waits in the socket.
            let _ = stream.write_all(&LINE);
        }
        std::thread::sleep(EVERY.saturating_sub(begun.elapsed()));
    }
    // Their ends must not pass for lines.
    std::mem::forget(streams);
}

#[test]
fn one_accused_connection_goes_on_and_a_source_with_many_is_cut() {
    const MANY: usize = 30;
    let host = HostSpec::default();
    let lab = Lab::build(&LabSpec { clients: vec![host.clone()], attackers: vec![host], ..LabSpec::default() })
        .must("build the hosts");
    let folder = tempfile::tempdir().map_err(Into::into).must("make a directory");
    let path = folder.path().join("accuses.onnx");
    // Every flow is an attack to it.
    std::fs::write(&path, model("accuses", -1_000.0, &[])).map_err(Into::into).must("write a model");
    let received = collect(&lab.edge.netns);
    let args = ["-i", UPLINK, "--mode", "enforce", "--model", &path.to_string_lossy()];
    let agent = Agent::start_as_shipped(&lab.edge.netns, &args).must("start the agent");
    std::thread::scope(|scope| {
        scope.spawn(|| ship(&lab.clients[0].netns, 1));
        scope.spawn(|| ship(&lab.attackers[0].netns, MANY));
    });
    let got = |host: &sensor_tests::topology::Host| {
        let counts = received.lock().unwrap_or_else(PoisonError::into_inner);
        counts.get(&IpAddr::from(host.v4[0])).copied().unwrap_or_default()
    };
    wait_for("every line of the one connection arrives", Duration::from_secs(10), || {
        got(&lab.clients[0]) == LINES * LINE.len()
    });
    let (all, arrived) = (MANY * LINES * LINE.len(), got(&lab.attackers[0]));
    assert!(arrived < all / 2, "{arrived} of {all} bytes of many connections arrived: {}", agent.log());
    let spared = agent.metrics().must("scrape").sum("sensor_spared_flows_total", &[("reason", "alone")]);
    assert!(spared >= 1.0, "the one connection is counted as spared");
    agent.stop().must("stop the agent");
}
