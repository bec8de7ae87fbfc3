//! A model's verdict on a connection must not cut off the next one from the same port, and must not end for less than
//! that.
//!
//! Program runs: records, map and packets as the agent and the wire would have them.

use std::io::{Read as _, Write as _};
use std::net::{SocketAddr, TcpListener, TcpStream};
use std::time::Duration;

use sensor::bpf::load::Hook;
use sensor_common::flow::note;
use sensor_common::tcp::{ACK, FIN, PSH, RST, SYN};
use sensor_common::verdict::{Action, Entry, Origin, Verdict};
use sensor_tests::agent::Agent;
use sensor_tests::checks::{Must as _, wait_for};
use sensor_tests::frames::Frame;
use sensor_tests::onnx::model;
use sensor_tests::topology::{EDGE_V4, Lab, LabSpec, UPLINK};

use crate::host::{DROP, Host, PASS, SECOND_NS, key, server};

const PATIENCE: Duration = Duration::from_secs(30);

fn client() -> SocketAddr {
    "198.18.0.1:4000".parse().expect("an address")
}

/// A connection under a verdict of `origin` in its record and in the map.
fn condemned(origin: Origin) -> Host {
    let mut host = Host::new(8_192);
    host.connect(client());
    let until_ns = host.now_ns + 600 * SECOND_NS;
    host.kernel.verdicts.set_flow(&key(client()), &Entry::new(Action::Drop, origin, 7, until_ns)).expect("written");
    let (slot, record) = host.slot(client()).expect("recorded");
    let word = Verdict::new(Action::Drop, 1, record.generation, until_ns).of(origin);
    host.kernel.table.store_verdict(slot, word.0);
    host.now_ns += SECOND_NS;
    assert_eq!(host.request(client(), 1_101), DROP);
    host
}

fn send(host: &mut Host, flags: u8, seq: u32) -> u32 {
    host.now_ns += SECOND_NS / 10;
    host.run(Hook::Ingress, &Frame::tcp(client(), server(), flags).seq(seq, 9_001))
}

fn holds(host: &Host) -> bool {
    let entry = host.kernel.verdicts.flow(&key(client())).expect("read").expect("in the map");
    entry.action_at(host.now_ns) == Action::Drop
}

#[test]
fn the_next_connection_from_the_same_port_is_free() {
    let mut host = condemned(Origin::Model);
    let old = host.record(client()).expect("held");
    assert_eq!(send(&mut host, SYN, 777_000), PASS, "another connection");
    let new = host.record(client()).expect("recorded");
    assert_eq!((new.generation, new.packets()), (old.generation.wrapping_add(1), 1));
    assert_eq!((new.verdict, new.steady & note::FREED), (0, note::FREED), "and its record says so");
    assert_eq!(host.kernel.next_evicted().map(|record| record.packets()), Some(4), "the old record went to the agent");
    assert!(!holds(&host), "in the map, too");
    assert_eq!(send(&mut host, SYN, 777_000), PASS, "sent again");
    assert_eq!(host.record(client()).map(|record| record.packets()), Some(2), "in the same record");
    assert_eq!(send(&mut host, ACK, 777_001), PASS);
    assert_eq!(host.record(client()).map(|record| record.packets()), Some(3));
}

#[test]
fn the_next_connection_is_free_after_the_record_is_gone() {
    let mut host = condemned(Origin::Model);
    let (slot, record) = host.slot(client()).expect("held");
    host.kernel.table.release(slot, record.generation, record.last_ns).expect("released");
    assert_eq!(send(&mut host, ACK | PSH, 1_201), DROP, "what goes on stays under the verdict");
    assert_eq!(host.record(client()), None);
    assert_eq!(send(&mut host, SYN, 777_000), PASS);
    assert!(!holds(&host));
    assert_eq!(send(&mut host, ACK, 777_001), PASS);
}

#[test]
fn nothing_less_than_another_connection_ends_a_verdict() {
    let mut host = condemned(Origin::Model);
    for (flags, seq, what) in [
        (RST, 1_101, "a reset"),
        (RST | ACK, 55, "a reset that the server refuses"),
        (FIN | ACK, 1_101, "a close"),
        (SYN | ACK, 777_000, "an answer that nobody asked for"),
        (SYN | FIN, 777_000, "no SYN"),
        (ACK | PSH, 1_102, "what comes after them"),
    ] {
        assert_eq!(send(&mut host, flags, seq), DROP, "{what}");
        assert!(holds(&host), "{what}");
    }
    let mut host = condemned(Origin::Operator);
    assert_eq!(
        send(&mut host, SYN, 777_000),
        DROP,
        "what an operator says of the ports holds for all that comes on them"
    );
    assert!(holds(&host));
    let mut host = Host::new(8_192);
    assert_eq!(send(&mut host, SYN, 1_000), PASS);
    let (slot, record) = host.slot(client()).expect("recorded");
    let word = Verdict::new(Action::Drop, 1, record.generation, host.now_ns + 600 * SECOND_NS);
    host.kernel.table.store_verdict(slot, word.0);
    assert_eq!(send(&mut host, SYN, 1_000), DROP, "the same SYN again is the same connection");
}

/// A whole agent whose model drops a connection for its large segments; the client gives it up and connects again from
/// its port.
#[test]
fn a_client_whose_connection_was_dropped_connects_again_from_its_port() {
    let lab = Lab::build(&LabSpec { clients: vec![Default::default()], ..LabSpec::default() }).must("build the hosts");
    let directory = tempfile::tempdir().expect("a directory");
    let [config, file, state] = ["sensor.toml", "active.onnx", "state"].map(|name| directory.path().join(name));
    let settings = "mode = \"enforce\"\n[policy]\nmin_packets = 4\nmin_packets_drop = 4\nramp = \"0s\"\n[breaker]\n\
        drops_per_second = 0\nsource_share = 1.0\nverdicts_per_minute = 0\n";
    std::fs::write(&config, settings).expect("written");
    std::fs::write(&file, model("sizes", 200.0, &[])).expect("written");
    let [config, file, state] = [config, file, state].map(|path| path.to_string_lossy().into_owned());
    let args = ["-i", UPLINK, "--config", &config, "--state-dir", &state, "--model", &file];
    let agent = Agent::start(&lab.edge.netns, &args).must("start the agent");

    let address = SocketAddr::from((EDGE_V4, 7_023));
    let listener = lab.edge.netns.within(|| TcpListener::bind(address)).must("enter").expect("listen");
    let (client, port) = (&lab.clients[0], 41_000);
    let from = SocketAddr::from((client.v4[0], port));
    let mut first = client.netns.within(|| connect_from(from, address)).must("enter").expect("connect");
    let (accepted, _) = listener.accept().expect("accept");
    first.set_nonblocking(true).expect("set");
    let verdict = || {
        let flows = agent.flows().must("ask for the flows");
        flows.iter().find(|flow| flow["sport"] == port).map(|flow| flow["verdict"].clone())
    };
    wait_for("the connection is dropped", PATIENCE, || {
        let _full = first.write(&[0x5a; 1_000]);
        verdict().is_some_and(|verdict| verdict == "drop")
    });
    // Gives up with a RST, which is dropped, so that the server knows nothing of it.
    rustix::net::sockopt::set_socket_linger(&first, Some(Duration::ZERO)).expect("set");
    drop(first);
    let mut second = client.netns.within(|| connect_from(from, address)).must("enter").expect("connect again");
    second.set_read_timeout(Some(PATIENCE)).expect("set");
    let (mut shell, peer) = listener.accept().expect("accept");
    assert_eq!(peer, from);
    let mut answer = [0; 2];
    second.write_all(b"ls").expect("say");
    shell.read_exact(&mut answer).expect("hear");
    shell.write_all(&answer).expect("answer");
    second.read_exact(&mut answer).expect("hear the answer");
    assert_eq!(verdict(), Some("pass".into()));
    let held = || agent.ask_json(&["verdicts", "list"]).must("list the verdicts").to_string();
    // The book follows once the agent has read the new flow's record.
    wait_for("no verdict is left", PATIENCE, || {
        second.write_all(b"ls").expect("say");
        !held().contains(&port.to_string())
    });
    drop(accepted);
    agent.stop().must("stop the agent");
}

fn connect_from(from: SocketAddr, to: SocketAddr) -> std::io::Result<TcpStream> {
    use rustix::net::{AddressFamily, SocketType, bind, connect, socket, sockopt};
    let socket = socket(AddressFamily::INET, SocketType::STREAM, None)?;
    sockopt::set_socket_reuseaddr(&socket, true)?;
    bind(&socket, &from)?;
    connect(&socket, &to)?;
    Ok(socket.into())
}
