//! Verdicts on prefixes of both families: nothing of them passes or takes a place in the table, others go on, the
//! never-drop list wins, and what is undone passes from the next packet on.

use std::net::{IpAddr, SocketAddr};
use std::time::{Duration, Instant};

use sensor_tests::agent::Agent;
use sensor_tests::checks::Must as _;
use sensor_tests::clients::download;
use sensor_tests::servers::Nginx;
use sensor_tests::stop::Stop;
use sensor_tests::topology::{ATTACKER_PREFIXES, EDGE_V4, EDGE_V6, Lab};

use super::scene::{Files, add_verdict, lab, metric, number, send, udp};
use super::stream::Stream;

const PORT: u16 = 7_910;
/// Flows that each address begins.
const FLOWS: u64 = 200;

fn edges() -> [SocketAddr; 2] {
    [(IpAddr::from(EDGE_V4), PORT).into(), (IpAddr::from(EDGE_V6), PORT).into()]
}

/// Two datagrams of each of [`FLOWS`] flows, from an address of the attacker.
fn many_flows(lab: &Lab, source: IpAddr, edge: SocketAddr) {
    for number in 0..FLOWS as u16 {
        send(&udp(&lab.attackers[0].netns, (source, 20_000 + number)), edge, 2, 100);
    }
}

fn flows_from(agent: &Agent, source: IpAddr) -> usize {
    let source = source.to_string();
    let flows = agent.flows().must("ask for the flows");
    flows.iter().filter(|flow| flow["src"] == source.as_str() && flow["protocol"] == "udp").count()
}

#[test]
fn a_blocked_prefix_takes_no_place_and_others_pass() {
    let (lab, files) = (lab(1, 1), Files::new("mode = \"enforce\"\n", None));
    let _nginx = Nginx::start(&lab.edge.netns).must("start nginx");
    let _sinks = edges().map(|edge| udp(&lab.edge.netns, edge));
    let agent = files.agent(&lab, &[]);
    let attacker = &lab.attackers[0];
    for (number, edge) in edges().into_iter().enumerate() {
        let source: [IpAddr; 2] = [attacker.v4[0].into(), attacker.v6[0].into()];
        many_flows(&lab, source[number], edge);
        assert_eq!(flows_from(&agent, source[number]) as u64, FLOWS, "without a verdict each flow has a place");
    }
    for prefix in ATTACKER_PREFIXES {
        add_verdict(&agent, &["drop", prefix, "--for", "1h"]);
    }
    let before = agent.metrics().must("scrape").sum("sensor_packets_total", &[("action", "drop")]) as u64;
    let sources: [IpAddr; 2] = [attacker.v4[1].into(), attacker.v6[1].into()];
    for (source, edge) in sources.into_iter().zip(edges()) {
        many_flows(&lab, source, edge);
        assert_eq!(flows_from(&agent, source), 0, "a blocked source takes no place");
    }
    let dropped = metric(&agent, "sensor_packets_total", &[("action", "drop")], before + 4 * FLOWS) - before;
    let (client, stop) = (&lab.clients[0].netns, Stop::new());
    for base in [format!("http://{EDGE_V4}"), format!("http://[{EDGE_V6}]")] {
        download(client, &base, 700_000, &[], &stop).must("download past a blocked prefix");
    }
    println!("prefixes: {} flows of two blocked prefixes, {dropped} packets dropped, 0 places taken", 2 * FLOWS);
    agent.stop().must("stop the agent");
}

#[test]
fn the_never_drop_list_wins_and_undo_holds_for_the_next_packet() {
    let (lab, files) = (lab(1, 1), Files::new("mode = \"enforce\"\n", None));
    let agent = files.agent(&lab, &[]);
    let attacker = &lab.attackers[0];
    let sources: [[IpAddr; 2]; 2] =
        [[attacker.v4[0].into(), attacker.v4[1].into()], [attacker.v6[0].into(), attacker.v6[1].into()]];
    for (family, (prefix, edge)) in ATTACKER_PREFIXES.into_iter().zip(edges()).enumerate() {
        let [allowed, blocked] = sources[family];
        let other = SocketAddr::new(edge.ip(), PORT + 1);
        let streams = [(allowed, edge), (blocked, other)]
            .map(|(source, to)| Stream::start(&attacker.netns, source, &lab.edge.netns, to));
        let [one, two] = &streams;
        one.go_on(50);
        let id = add_verdict(&agent, &["drop", prefix, "--for", "1h"]);
        let from = [one.next() + 1, two.next() + 1];
        two.go_on(200);
        assert_eq!(one.arrived(from[0]..u64::MAX) + two.arrived(from[1]..u64::MAX), 0, "both are blocked");

        agent.ask_json(&["allow", "add", &allowed.to_string()]).must("allow");
        let from = [one.next() + 1, two.next() + 1];
        one.go_on(200);
        let until = one.next() - 50;
        assert_eq!(one.arrived(from[0]..until), until - from[0], "all that is allowed arrives");
        assert_eq!(two.arrived(from[1]..u64::MAX), 0, "and nothing else of the prefix");
        agent.ask_json(&["allow", "remove", &allowed.to_string()]).must("take it back");
        let from = one.next() + 1;
        one.go_on(200);
        assert_eq!(one.arrived(from..u64::MAX), 0, "blocked again");

        let (asked, from) = (Instant::now(), two.next());
        agent.ask_json(&["verdicts", "remove", &id.to_string()]).must("take the verdict back");
        let (answered, after) = (Instant::now(), two.next() + 1);
        two.go_on(300);
        let until = two.next() - 50;
        assert_eq!(two.arrived(after..until), until - after, "all that was sent after the answer arrives");
        let (_, at) = two.first_from(from).expect("some arrive");
        let interval = agent.status().must("ask for the status")["poll"]["interval_seconds"].as_f64().unwrap_or(0.1);
        println!(
            "undo of {prefix}: first packet {:.1} ms after the command was typed, {:.1} ms {} its answer (poll interval {} ms)",
            (at - asked).as_secs_f64() * 1e3,
            if at < answered { answered - at } else { at - answered }.as_secs_f64() * 1e3,
            if at < answered { "before" } else { "after" },
            interval * 1e3,
        );
        assert!(at < answered + Duration::from_secs(1), "within a poll, and what a busy machine takes");
    }
    let status = agent.status().must("ask for the status");
    assert_eq!(number(&status, "/enforcement/source_verdicts"), 0);
    agent.stop().must("stop the agent");
}
