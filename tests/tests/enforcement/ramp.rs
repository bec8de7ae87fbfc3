//! What bounds a model after the fact: the ramp binds what observe has decided, and an operator's undo holds although the
//! model would decide the same again.

use std::time::Duration;

use sensor_tests::agent::Agent;
use sensor_tests::checks::{Must as _, wait_for};
use sensor_tests::counters::Received;
use sensor_tests::onnx::model;
use sensor_tests::topology::{EDGE_V4, Lab};

use super::scene::{Files, PATIENCE, UNBOUNDED, lab, send, set_mode, udp};

const PORT: u16 = 7_931;
/// Datagrams after the change, and the pause between them: some doublings of the flow, each of which is judged.
const AFTER: u64 = 300;
const PAUSE: Duration = Duration::from_millis(5);

/// An agent with a flow in the table whose score is 0.95 whatever it sends (`sensor_tests::onnx`). It sends more
/// after `change`: how many of these arrived.
fn judged(lab: &Lab, settings: &str, change: impl FnOnce(&Agent)) -> (Agent, u64, Files) {
    let files = Files::new(settings, Some(&model("sizes", 200.0, &[])));
    let attacker = &lab.attackers[0];
    let source = attacker.v4[0].to_string();
    let edge = (EDGE_V4, PORT);
    let _sink = udp(&lab.edge.netns, edge);
    let agent = files.agent(lab, &[]);
    let socket = udp(&attacker.netns, (attacker.v4[0], 0));
    send(&socket, edge, 1, 215);
    wait_for("the flow is to be dropped", PATIENCE, || {
        send(&socket, edge, 1, 200);
        let flows = agent.flows().must("ask for the flows");
        flows.iter().any(|flow| {
            let is = |name: &str| flow[name] == "drop";
            flow["src"] == source.as_str() && (is("would_verdict") || is("verdict"))
        })
    });
    change(&agent);
    let rule = format!("ip saddr {source} udp dport {PORT}");
    let received = Received::matching(&lab.edge.netns, &[("datagrams", &rule)]).must("count what is received");
    for _ in 0..AFTER {
        send(&socket, edge, 1, 200);
        std::thread::sleep(PAUSE);
    }
    let arrived = received.packets().must("read the counter")[0];
    (agent, arrived, files)
}

#[test]
fn the_ramp_binds_what_observe_has_decided() {
    let lab = lab(0, 1);
    let settings = UNBOUNDED.replace("[breaker]", "threshold = 0.9\nramp = \"1h\"\n[breaker]");
    let (agent, arrived, _files) = judged(&lab, &settings, |agent| set_mode(agent, "enforce"));
    assert_eq!(arrived, AFTER, "0.95 is below policy.ramp_score");
    let status = agent.status().must("ask for the status");
    assert_eq!(status["enforcement"]["ramp"], true);
    let list = agent.ask_json(&["verdicts", "list"]).must("list the verdicts");
    assert_eq!((&list["total"], &list["verdicts"][0]["action"]), (&1.into(), &"tag".into()), "judged anew: {list}");
    agent.stop().must("stop the agent");
    let lab = self::lab(0, 1);
    // Without a ramp the same verdict is done: it is the ramp that the test sees.
    let settings = UNBOUNDED.replace("[breaker]", "threshold = 0.9\n[breaker]");
    let (agent, arrived, _files) = judged(&lab, &settings, |agent| set_mode(agent, "enforce"));
    assert_eq!(arrived, 0);
    agent.stop().must("stop the agent");
}

#[test]
fn an_undo_holds_although_the_model_says_the_same_again() {
    let lab = lab(0, 1);
    let settings = format!("mode = \"enforce\"\n{}", UNBOUNDED.replace("[breaker]", "threshold = 0.9\n[breaker]"));
    let (agent, arrived, _files) = judged(&lab, &settings, |agent| {
        let gone = agent.ask_json(&["verdicts", "remove", "--all"]).must("undo");
        assert_eq!(gone.as_array().map(Vec::len), Some(1), "{gone}");
    });
    assert_eq!(arrived, AFTER);
    let list = agent.ask_json(&["verdicts", "list"]).must("list the verdicts");
    assert_eq!(list["total"], 0, "{list}");
    agent.stop().must("stop the agent");
}
