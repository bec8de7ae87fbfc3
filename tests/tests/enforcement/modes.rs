//! Modes change while the agent runs and traffic flows: what observe and tag count as withheld is, packet by packet, what
//! enforce then drops of the same traffic; and a change holds for the next packet.

use std::net::{IpAddr, SocketAddr, UdpSocket};

use sensor_tests::agent::Agent;
use sensor_tests::checks::{Must as _, wait_for};
use sensor_tests::clients::download;
use sensor_tests::counters::Received;
use sensor_tests::onnx::model;
use sensor_tests::servers::Nginx;
use sensor_tests::stop::Stop;
use sensor_tests::topology::{EDGE_V4, Lab};

use super::scene::{Files, PATIENCE, UNBOUNDED, add_verdict, lab, number, send, set_mode, udp};
use super::stream::Stream;

const PORT: u16 = 7_930;
/// Packets of each replay: of the source that an operator blocks, and of the flow that the model drops.
const SENT: [u64; 2] = [1_200, 800];

/// The same packets each time.
struct Replay {
    blocked: Vec<UdpSocket>,
    flood: UdpSocket,
    edge: SocketAddr,
}

impl Replay {
    fn new(lab: &Lab) -> Replay {
        let attacker = &lab.attackers[0];
        Replay {
            blocked: (0..3).map(|_| udp(&attacker.netns, (attacker.v4[0], 0))).collect(),
            flood: udp(&attacker.netns, (attacker.v4[1], 0)),
            edge: (EDGE_V4, PORT).into(),
        }
    }

    fn run(&self) {
        for socket in &self.blocked {
            send(socket, self.edge, SENT[0] / 3, 50);
        }
        send(&self.flood, self.edge, SENT[1], 600);
    }
}

/// Packets that were dropped, withheld and marked so far.
fn counts(agent: &Agent) -> [u64; 3] {
    let (metrics, status) = (agent.metrics().must("scrape"), agent.status().must("ask for the status"));
    let dropped = metrics.sum("sensor_packets_total", &[("action", "drop"), ("direction", "ingress")]) as u64;
    let tagged = metrics.sum("sensor_tagged_packets_total", &[]) as u64;
    [dropped, number(&status, "/enforcement/withheld_packets"), tagged]
}

#[test]
fn observe_counts_what_enforce_drops() {
    let lab = lab(1, 1);
    let files = Files::new(UNBOUNDED, Some(&model("sizes", 200.0, &[])));
    let _nginx = Nginx::start(&lab.edge.netns).must("start nginx");
    let replay = Replay::new(&lab);
    let _sink = udp(&lab.edge.netns, replay.edge);
    let agent = files.agent(&lab, &[]);
    assert_eq!(agent.status().must("ask for the status")["mode"], "observe", "the default");
    let attacker = &lab.attackers[0];
    let (operator, model) = (attacker.v4[0].to_string(), attacker.v4[1].to_string());
    add_verdict(&agent, &["drop", &operator, "--for", "1h"]);
    send(&replay.flood, replay.edge, 20, 600);
    wait_for("the model would drop its flow", PATIENCE, || {
        let flows = agent.flows().must("ask for the flows");
        flows.iter().any(|flow| flow["src"] == model.as_str() && flow["would_verdict"] == "drop")
    });
    let rules = [operator, model].map(|source| format!("ip saddr {source} udp dport {PORT}"));
    let marked = format!("{} meta mark & 0xff == 0x53", rules[1]);
    let [operator, model] = &rules;
    let names = [("operator", operator.as_str()), ("model", model.as_str()), ("marked", marked.as_str())];
    let received = Received::matching(&lab.edge.netns, &names).must("count what is received");
    let (client, stop) = (&lab.clients[0].netns, Stop::new());
    let all = SENT[0] + SENT[1];
    let mut withheld_by = Vec::new();
    for mode in ["observe", "tag", "enforce", "observe"] {
        set_mode(&agent, mode);
        let tagging = agent.status().must("ask for the status")["interfaces"][0]["tag"].is_string();
        assert_eq!(tagging, mode != "observe", "sensor_tag is attached where the mode needs it: {mode}");
        let (before, arrived) = (counts(&agent), received.packets().must("read the counters"));
        replay.run();
        download(client, &format!("http://{EDGE_V4}"), 700_000, &[], &stop).must("download, whatever the mode");
        let passes = mode != "enforce";
        let [drops, withheld, tags] = match mode {
            "observe" => [0, all, 0],
            "tag" => [0, all, all],
            _ => [all, 0, 0],
        };
        // Counters are read once a second.
        let change = || {
            let now = counts(&agent);
            std::array::from_fn::<u64, 3, _>(|place| now[place] - before[place])
        };
        wait_for(&format!("the counts of {mode}"), PATIENCE, || {
            change().iter().sum::<u64>() >= drops + withheld + tags
        });
        assert_eq!(change(), [drops, withheld, tags], "dropped, withheld and marked in mode {mode}");
        withheld_by.push((mode, withheld, drops));
        let now = received.packets().must("read the counters");
        let expected = SENT.map(|count| if passes { count } else { 0 });
        let marks = if mode == "tag" { SENT[1] } else { 0 };
        assert_eq!(
            [now[0] - arrived[0], now[1] - arrived[1], now[2] - arrived[2]],
            [expected[0], expected[1], marks],
            "arrived of the operator's source, of the model's flow, and marked of it, in mode {mode}"
        );
    }
    println!("modes: replay of {all} packets, (mode, withheld, dropped): {withheld_by:?}");
    let modes = files.events("mode");
    let changes: Vec<_> = modes.iter().map(|line| (line["from"].as_str(), line["to"].as_str())).collect();
    let [observe, tag, enforce] = ["observe", "tag", "enforce"].map(Some);
    assert_eq!(changes, [(observe, tag), (tag, enforce), (enforce, observe)]);
    agent.stop().must("stop the agent");
}

#[test]
fn a_change_of_mode_holds_for_the_next_packet() {
    let (lab, files) = (lab(1, 1), Files::new("", None));
    let agent = files.agent(&lab, &[]);
    let attacker = &lab.attackers[0];
    let edge = &lab.edge.netns;
    let stream = Stream::start(&attacker.netns, IpAddr::from(attacker.v4[0]), edge, (EDGE_V4, PORT).into());
    add_verdict(&agent, &["drop", &attacker.v4[0].to_string(), "--for", "1h"]);
    let mut seen = Vec::new();
    for round in 0..6 {
        let mode = ["enforce", "observe", "enforce", "tag"][round % 4];
        let asked = stream.next();
        set_mode(&agent, mode);
        let from = stream.next() + 1;
        stream.go_on(200);
        let until = stream.next() - 50;
        let expected = if mode == "enforce" { 0 } else { until - from };
        assert_eq!(stream.arrived(from..until), expected, "of {} in mode {mode}", until - from);
        seen.push((mode, from - asked));
    }
    println!(
        "modes: (mode, packets sent while the command ran): {seen:?}; after its answer none was treated as before"
    );
    agent.stop().must("stop the agent");
}
