//! A dropped flow stays dropped when its record was given up and its place was taken by others.

use std::net::SocketAddr;
use std::time::Duration;

use sensor_tests::agent::Agent;
use sensor_tests::checks::{Must as _, wait_for};
use sensor_tests::counters::Received;
use sensor_tests::onnx::model;
use sensor_tests::topology::EDGE_V4;
use serde_json::Value;

use super::scene::{Files, PATIENCE, UNBOUNDED, lab, metric, number, send, udp};

const PORT: u16 = 7_940;
/// The smallest table, and flows that fill it several times.
const FLOWS: u64 = 8_192;
const FLOOD: u64 = 40_000;

fn flow_of(agent: &Agent, sport: u16) -> Option<Value> {
    let flows = agent.flows().must("ask for the flows");
    flows.into_iter().find(|flow| flow["sport"] == sport && flow["dport"] == PORT)
}

#[test]
fn a_dropped_flow_stays_dropped_after_its_place_was_reused() {
    let lab = lab(1, 1);
    let settings = format!(
        "mode = \"enforce\"\n[kernel]\nflows = {FLOWS}\nevict_idle = \"1s\"\n\
         [agent]\nidle_timeout = \"1s\"\n{UNBOUNDED}"
    );
    let files = Files::new(&settings, Some(&model("sizes", 200.0, &[])));
    let edge = SocketAddr::from((EDGE_V4, PORT));
    let _sink = udp(&lab.edge.netns, edge);
    let agent = files.agent(&lab, &[]);
    let attacker = &lab.attackers[0];
    let flood = udp(&attacker.netns, (attacker.v4[0], 0));
    let sport = flood.local_addr().map_err(Into::into).must("its port").port();
    send(&flood, edge, 20, 600);
    wait_for("the flow is dropped", PATIENCE, || flow_of(&agent, sport).is_some_and(|flow| flow["verdict"] == "drop"));
    let expression = format!("ip saddr {} udp sport {sport}", attacker.v4[0]);
    let received = Received::matching(&lab.edge.netns, &[("flood", &expression)]).must("count what is received");
    let others = udp(&attacker.netns, (attacker.v4[1], 0));
    for _ in 0..3 {
        // Silent for longer than the timeout: the record goes.
        wait_for("the record is given up", PATIENCE, || flow_of(&agent, sport).is_none());
        for number in 0..FLOOD {
            let port = 10_000 + (number % 50_000) as u16;
            let _refused = others.send_to(&[0; 10], (EDGE_V4, port));
            if number % 100 == 99 {
                std::thread::sleep(Duration::from_millis(1));
            }
        }
        send(&flood, edge, 500, 600);
        let again = flow_of(&agent, sport);
        assert!(again.is_none_or(|flow| flow["verdict"] == "drop"), "a new record has the verdict");
    }
    assert_eq!(received.packets().must("read the counter"), [0], "packets of the dropped flow that arrived");
    let status = agent.status().must("ask for the status");
    let replaced = metric(&agent, "sensor_flows_created_total", &[], 3 * FLOOD / 2);
    println!(
        "reuse: {replaced} flows went through {FLOWS} places, {} packets dropped, 0 arrived",
        agent.metrics().must("scrape").sum("sensor_packets_total", &[("action", "drop")]),
    );
    assert_eq!(number(&status, "/enforcement/flow_verdicts"), 1, "one verdict all the time");
    agent.ask_json(&["verdicts", "remove", "--all"]).must("take it back");
    agent.stop().must("stop the agent");
}
