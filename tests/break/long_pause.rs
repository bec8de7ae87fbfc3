//! A connection that pauses stays what it is: its record, its beginning, its verdict.

use std::io::{Read as _, Write as _};
use std::net::{SocketAddr, TcpListener, TcpStream};
use std::time::Duration;

use sensor::bpf::load::Hook;
use sensor::replay::{ExtractOptions, run};
use sensor_common::flow::{note, state};
use sensor_common::table::{STAGE_PHASE, phase};
use sensor_common::tcp::{ACK, SYN};
use sensor_common::verdict::{Action, Verdict};
use sensor_tests::agent::Agent;
use sensor_tests::checks::{Must as _, wait_for};
use sensor_tests::frames::Frame;
use sensor_tests::topology::{EDGE_V4, Lab, LabSpec, UPLINK};
use serde_json::Value;

use crate::host::{Host, SECOND_NS, server};

const PORT: u16 = 7_022;
const PATIENCE: Duration = Duration::from_secs(60);

/// A whole agent whose other flows end after a second: a session pauses until a datagram sent after its last word has
/// been forgotten, and longer.
#[test]
fn a_session_that_pauses_goes_on_in_its_record() {
    let lab = Lab::build(&LabSpec { clients: vec![Default::default()], ..LabSpec::default() }).must("build the hosts");
    let directory = tempfile::tempdir().expect("a directory");
    let config = directory.path().join("sensor.toml");
    let settings = "[model]\npath = \"\"\n[agent]\nidle_timeout = \"1s\"\nactive_timeout = \"20s\"\n";
    std::fs::write(&config, settings).expect("written");
    let state = directory.path().join("state");
    let args = ["-i", UPLINK, "--config", &config.to_string_lossy(), "--state-dir", &state.to_string_lossy()];
    let agent = Agent::start(&lab.edge.netns, &args).must("start the agent");

    let address = SocketAddr::from((EDGE_V4, PORT));
    let listener = lab.edge.netns.within(|| TcpListener::bind(address)).must("enter").expect("listen");
    let client = &lab.clients[0];
    let mut session = client.netns.within(|| TcpStream::connect(address)).must("enter").expect("connect");
    let (mut shell, from) = listener.accept().expect("accept");
    let mut say = |word: &[u8]| {
        session.write_all(word).expect("say");
        let mut heard = vec![0; word.len()];
        shell.read_exact(&mut heard).expect("hear");
        shell.write_all(&heard).expect("answer");
        session.read_exact(&mut heard).expect("hear the answer");
    };
    for _ in 0..10 {
        say(b"ls");
    }
    let flow = |sport: u16| -> Option<Value> {
        let flows = agent.flows().must("ask for the flows");
        flows.into_iter().find(|flow| flow["sport"] == sport)
    };
    let packets = |flow: &Value| flow["initiator_packets"].as_u64().unwrap_or_else(|| panic!("no packets in {flow:#}"));
    wait_for("the session is recorded", PATIENCE, || flow(from.port()).is_some_and(|flow| packets(&flow) > 10));
    let before = flow(from.port()).expect("recorded");
    for _ in 0..3 {
        let other = client.netns.within(|| std::net::UdpSocket::bind((client.v4[0], 0))).must("enter").expect("bind");
        let other_port = other.local_addr().expect("bound").port();
        other.send_to(b"?", (EDGE_V4, 9)).expect("send");
        wait_for("the datagram is recorded", PATIENCE, || flow(other_port).is_some());
        wait_for("the datagram is forgotten", PATIENCE, || flow(other_port).is_none());
    }
    say(b"exit");
    let after = || flow(from.port()).expect("the session still has its record");
    wait_for("the session goes on", PATIENCE, || packets(&after()) > packets(&before));
    assert_eq!(after()["id"], before["id"], "in the same record");
    let ended = |reason| agent.metrics().must("scrape").sum("sensor_flows_ended_total", &[("reason", reason)]) as u64;
    assert_eq!(ended("active"), 0);

    // It is older than the active timeout soon, and goes on in another record with its next word, as the same
    // connection.
    wait_for("the record is cut", PATIENCE, || {
        say(b"ls");
        ended("active") == 1
    });
    wait_for("it goes on", PATIENCE, || packets(&after()) < packets(&before));
    assert_eq!(after()["src"], before["src"], "whoever speaks first in it");
    agent.stop().must("stop the agent");
}

#[test]
fn a_cut_keeps_what_is_known_of_the_connection() {
    let mut host = Host::new(8_192);
    let client: SocketAddr = "198.18.0.1:4000".parse().expect("an address");
    host.connect(client);
    let (slot, before) = host.slot(client).expect("recorded");
    let word = Verdict::new(Action::Tag, 1, before.generation, host.now_ns + 3_600 * SECOND_NS);
    host.kernel.table.store_verdict(slot, word.0);
    assert!(host.kernel.table.mark_due(slot, before.generation));
    assert!(!host.kernel.table.mark_due(slot, before.generation.wrapping_add(1)), "another flow");
    assert_eq!(host.record(client).map(|record| record.packets()), Some(4), "nothing happens before the next packet");
    host.now_ns += 1_800 * SECOND_NS;
    host.request(client, 1_101);
    let complete = host.kernel.next_evicted().expect("handed over");
    assert_eq!((complete.packets(), complete.steady & note::CUT), (4, note::CUT));
    let after = host.record(client).expect("it goes on");
    assert_eq!((after.packets(), after.first_ns, after.iat_max_ns), (1, host.now_ns, 0), "the pause is in no record");
    let known = state::INITIATOR_BY_SYN | state::INITIATOR_HIGH | state::SYN | state::SYN_ACK | state::ESTABLISHED;
    assert_eq!(after.state & known, before.state & known);
    assert_eq!((after.generation, after.verdict), (before.generation, word.0));
    assert_eq!(after.steady & (note::CONTINUED | note::DUE | note::CUT), note::CONTINUED);
    // The answer goes on where it was, so nothing of it is taken for sent again.
    host.run(Hook::Egress, &Frame::tcp(server(), client, ACK).seq(9_001, 1_201).payload(10));
    host.request(client, 1_201);
    let after = host.record(client).expect("it goes on");
    assert_eq!((after.directions[0].packets, after.directions[1].packets), (2, 1));
    assert_eq!(after.directions.map(|half| (half.retransmitted, half.missing)), [(0, 0); 2]);
    assert_eq!(host.kernel.next_evicted(), None, "once");
}

#[test]
fn only_what_two_ends_built_is_established() {
    let host = Host::new(8_192);
    let shown = |client: SocketAddr| {
        let (slot, _) = host.slot(client).expect("recorded");
        host.kernel.table.bucket(slot / 8).stages[slot % 8] & STAGE_PHASE
    };
    let client = |port: u16| SocketAddr::new("198.18.0.1".parse().expect("an address"), port);
    host.connect(client(1));
    assert_eq!(shown(client(1)), phase::ESTABLISHED);
    // In the middle of a connection: known once both ends acknowledge each other, but not how it began.
    host.run(Hook::Ingress, &Frame::tcp(client(2), server(), ACK).seq(500, 900).payload(10));
    assert_eq!(shown(client(2)), phase::ONE_SIDED);
    host.run(Hook::Egress, &Frame::tcp(server(), client(2), ACK).seq(900, 510));
    assert_eq!(shown(client(2)), phase::ESTABLISHED);
    assert_eq!(host.record(client(2)).map(|record| record.state & state::INITIATOR_BY_SYN), Some(0));
    // Forged: the third segment acknowledges what the server never said.
    host.run(Hook::Ingress, &Frame::tcp(client(3), server(), SYN).seq(1_000, 0));
    host.run(Hook::Egress, &Frame::tcp(server(), client(3), SYN | ACK).seq(9_000, 1_001));
    host.run(Hook::Ingress, &Frame::tcp(client(3), server(), ACK).seq(1_001, 4_444));
    assert_eq!(shown(client(3)), phase::ONE_SIDED);
}

/// A capture of a connection that pauses for forty minutes: the programs and the agent's own code make the same rows of
/// it.
#[test]
fn a_replay_cuts_where_the_programs_do() {
    let client: SocketAddr = "198.18.0.1:4000".parse().expect("an address");
    let forth = |flags, seq, ack, payload| Frame::tcp(client, server(), flags).seq(seq, ack).payload(payload).build();
    let back = |flags, seq, ack, payload| Frame::tcp(server(), client, flags).seq(seq, ack).payload(payload).build();
    let pause = 2_400;
    let mut packets = vec![
        (0, forth(SYN, 1_000, 0, 0)),
        (0, back(SYN | ACK, 9_000, 1_001, 0)),
        (0, forth(ACK, 1_001, 9_001, 0)),
        (5, forth(ACK, 1_001, 9_001, 50)),
        (5, back(ACK, 9_001, 1_051, 70)),
        (300, forth(ACK, 1_051, 9_071, 50)),
        (pause, back(ACK, 9_071, 1_101, 70)),
        (pause, forth(ACK, 1_101, 9_141, 0)),
    ];
    // Past the first frames, so that the mark has to be found off the fast path.
    for number in 0..30 {
        packets.push((pause + number, forth(ACK, 1_101 + 10 * number as u32, 9_141, 10)));
        packets.push((pause + number, back(ACK, 9_141, 1_111 + 10 * number as u32, 0)));
    }
    packets.push((2 * pause, forth(ACK, 1_401, 9_141, 10)));
    let directory = tempfile::tempdir().expect("a directory");
    let capture = directory.path().join("pause.pcap");
    let mut file: Vec<u8> =
        [0xa1b2_c3d4u32, 0x0004_0002, 0, 0, 65_535, 1].iter().flat_map(|word| word.to_le_bytes()).collect();
    for (at_s, frame) in &packets {
        let header = [1_000 + *at_s as u32, 0, frame.len() as u32, frame.len() as u32];
        file.extend(header.iter().flat_map(|word| word.to_le_bytes()));
        file.extend(frame);
    }
    std::fs::write(&capture, file).expect("written");
    let rows = |kernel| {
        let options = ExtractOptions { captures: vec![capture.clone()], kernel, ..ExtractOptions::default() };
        let (mut output, mut report) = (Vec::new(), Vec::new());
        run(&options, Box::new(&mut output), &mut report).expect("readable");
        String::from_utf8(output).expect("text")
    };
    let native = rows(false);
    assert_eq!(native.lines().count(), 1 + 3, "three records of one connection:\n{native}");
    let column = |row: &str, name: &str| {
        let place = native.lines().next().and_then(|header| header.split(',').position(|column| column == name));
        row.split(',').nth(place.unwrap_or_else(|| panic!("no column {name}"))).unwrap_or_default().to_owned()
    };
    for row in native.lines().skip(1) {
        assert_eq!((column(row, "src"), column(row, "initiator_by_syn")), ("198.18.0.1".to_owned(), "1".to_owned()));
    }
    assert_eq!(rows(true), native);
}
