//! One attacker cannot open the breaker: not by many connections on a quiet host, not by short ones in a row. A model
//! that accuses everybody opens it within ten seconds.

use std::io::{Read as _, Write as _};
use std::net::{SocketAddr, UdpSocket};
use std::time::{Duration, Instant};

use sensor_tests::agent::Agent;
use sensor_tests::checks::{Must as _, wait_for};
use sensor_tests::netns::Ns;
use sensor_tests::onnx::model;
use sensor_tests::topology::EDGE_V4;

use super::guard_scene::{Home, PATIENCE, Talkers, connect, echo, lab, service};

const PORT: u16 = 7_910;
/// Messages that the model of these tests takes for an attack, and ones that it lets pass.
const ATTACK: usize = 1_200;
const BENIGN: usize = 20;
/// A turn to which every flow is an attack.
const EVERYTHING: f32 = -1_000.0;
const ENFORCE: &str = "mode = \"enforce\"\n";

fn is_open(agent: &Agent) -> bool {
    agent.metrics().must("scrape").sum("sensor_breaker_open", &[]) > 0.0
}

/// A hundred connections of one attacker beside `benign` ones of a client.
fn attack_beside(benign: usize) {
    let lab = lab(1, 1);
    service(&lab, PORT, echo);
    let home = Home::new(ENFORCE, &model("sizes", 200.0, &[]));
    let agent = home.agent(&lab);
    let mut clients = Talkers::connect(&lab.clients[0].netns, PORT, benign, BENIGN);
    (0..5).for_each(|_| {
        clients.talk();
        std::thread::sleep(Duration::from_millis(100));
    });
    let mut attackers = Talkers::connect(&lab.attackers[0].netns, PORT, 100, ATTACK);
    let start = Instant::now();
    while start.elapsed() < Duration::from_secs(8) {
        attackers.talk();
        clients.talk();
        std::thread::sleep(Duration::from_millis(250));
    }
    let (cut, served) = (100 - attackers.answered(), clients.answered());
    let open = is_open(&agent);
    println!(
        "breaker: {cut} of 100 attacker connections cut beside {benign} benign ones, {served} of which go on; \
         open: {open}"
    );
    assert_eq!(served, benign, "benign connections go on");
    assert!(!open && cut >= 98, "{cut} of 100 are cut, breaker open: {open}");
    agent.stop().must("stop the agent");
}

#[test]
fn a_hundred_connections_of_one_attacker_alone_are_cut() {
    attack_beside(0);
}

#[test]
fn a_hundred_connections_of_one_attacker_beside_four_are_cut() {
    attack_beside(4);
}

#[test]
fn a_hundred_connections_of_one_attacker_beside_fifty_are_cut() {
    attack_beside(50);
}

#[test]
fn short_connections_of_one_attacker_do_not_open_it() {
    let lab = lab(1, 1);
    service(&lab, PORT, echo);
    let home = Home::new(ENFORCE, &model("sizes", 200.0, &[]));
    let agent = home.agent(&lab);
    let netns: &Ns = &lab.attackers[0].netns;
    let ask = || {
        let mut stream = connect(netns, PORT).map_err(Into::into).must("connect");
        stream.set_read_timeout(Some(Duration::from_millis(500))).map_err(Into::into).must("set a timeout");
        // Those that live until a poll are cut.
        let _cut = stream.write_all(&[0x5a; 3 * ATTACK]);
        let _answer = stream.read(&mut [0; ATTACK]);
    };
    (0..1_000).for_each(|_| ask());
    let judged = || {
        let metrics = agent.metrics().must("scrape");
        let names = ["sensor_would_verdicts_total", "sensor_verdicts_total", "sensor_reported_flows_total"];
        names.map(|name| metrics.sum(name, &[])).iter().sum::<f64>()
    };
    // Their records end a few seconds after them.
    wait_for("they were judged", PATIENCE, || judged() > 900.0);
    assert!(!is_open(&agent), "a thousand connections of one source are one decision");
    let mut held = Talkers::connect(netns, PORT, 20, ATTACK);
    wait_for("its next connections are cut", PATIENCE, || {
        held.talk();
        held.answered() == 0
    });
    assert!(!is_open(&agent));
    agent.stop().must("stop the agent");
}

/// Every client keeps connecting; how long until the breaker opens.
fn everybody(clients: usize) -> Duration {
    let lab = lab(clients, 0);
    service(&lab, PORT, echo);
    let home = Home::new(ENFORCE, &model("all", EVERYTHING, &[]));
    let agent = home.agent(&lab);
    let start = Instant::now();
    let mut talkers: Vec<Talkers> =
        lab.clients.iter().map(|client| Talkers::connect(&client.netns, PORT, 2, BENIGN)).collect();
    wait_for("the breaker opens", PATIENCE, || {
        talkers.iter_mut().for_each(Talkers::talk);
        is_open(&agent)
    });
    let took = start.elapsed();
    let reason = agent.status().must("ask for the status")["enforcement"]["breaker"]["reason"].to_string();
    let served: usize = talkers.iter_mut().map(Talkers::answered).sum();
    println!(
        "breaker: {clients} clients of a model that accuses everybody: open after {took:?}, {served} \
         connections go on; {reason}"
    );
    assert!(reason.contains("active sources"), "{reason}");
    agent.stop().must("stop the agent");
    took
}

#[test]
fn a_model_that_accuses_everybody_opens_it_for_three_clients() {
    assert!(everybody(3) < Duration::from_secs(10));
}

#[test]
fn a_model_that_accuses_everybody_opens_it_for_fifteen_clients() {
    assert!(everybody(15) < Duration::from_secs(10));
}

/// UDP proves no source: it opens the breaker of its service, and of no other flows.
#[test]
fn a_model_that_is_wrong_about_a_udp_service_is_held_there() {
    let lab = lab(4, 1);
    service(&lab, PORT, echo);
    let bind = |netns: &Ns, address: SocketAddr| {
        let socket = netns.within(|| UdpSocket::bind(address)).must("enter the namespace");
        socket.map_err(Into::into).must("bind a UDP socket")
    };
    let edge = SocketAddr::from((EDGE_V4, PORT));
    let server = bind(&lab.edge.netns, edge);
    std::thread::spawn(move || {
        let mut buffer = [0; 2_048];
        while let Ok((length, client)) = server.recv_from(&mut buffer) {
            let _gone = server.send_to(&buffer[..length], client);
        }
    });
    let home = Home::new(ENFORCE, &model("sizes", 200.0, &[]));
    let agent = home.agent(&lab);
    let clients: Vec<UdpSocket> =
        lab.clients.iter().map(|client| bind(&client.netns, (client.v4[0], 40_000).into())).collect();
    let held = || agent.metrics().must("scrape").sum("sensor_breaker_held_services", &[]) as u64;
    let send = || {
        for client in &clients {
            client.send_to(&[0x5a; ATTACK], edge).map_err(Into::into).must("send a datagram");
        }
    };
    let took = wait_for("the breaker of the service opens", PATIENCE, || {
        send();
        held() == 1
    });
    assert!(took < Duration::from_secs(10), "{took:?}");
    assert!(!is_open(&agent), "forged sources could do this");
    for client in &clients {
        client.set_read_timeout(Some(Duration::from_millis(200))).map_err(Into::into).must("set a timeout");
        while client.recv(&mut [0; ATTACK]).is_ok() {}
    }
    wait_for("all clients are served again", PATIENCE, || {
        send();
        clients.iter().all(|client| client.recv(&mut [0; ATTACK]).is_ok())
    });
    let mut attackers = Talkers::connect(&lab.attackers[0].netns, PORT, 20, ATTACK);
    wait_for("an attacker with proven connections is cut all the same", PATIENCE, || {
        attackers.talk();
        attackers.answered() == 0
    });
    println!("breaker: a UDP service with four clients is held after {took:?}");
    agent.ask_json(&["breaker", "reset"]).must("close it");
    wait_for("the service's breaker is closed", PATIENCE, || held() == 0);
    agent.stop().must("stop the agent");
}
