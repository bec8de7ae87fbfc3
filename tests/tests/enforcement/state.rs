//! What survives a restart, and a state that is damaged: the agent starts, and says what it did.

use std::net::{SocketAddr, TcpListener, TcpStream};

use sensor_tests::agent::Agent;
use sensor_tests::checks::Must as _;
use sensor_tests::onnx::model;
use serde_json::Value;

use super::scene::{EVERYTHING, Files, add_verdict, lab, number, set_mode};

/// Scopes of the verdicts, with their origins, and operators' entries of the never-drop list.
fn kept(agent: &Agent) -> (Vec<String>, Vec<String>) {
    let list = agent.ask_json(&["verdicts", "list"]).must("list the verdicts");
    let verdicts = list["verdicts"].as_array().expect("a list").iter();
    let mut verdicts: Vec<String> =
        verdicts.map(|one| format!("{} {} {}", one["origin"], one["action"], one["scope"])).collect();
    verdicts.sort();
    let allowed = agent.ask_json(&["allow", "list"]).must("list what is allowed");
    let allowed = allowed.as_array().expect("a list").iter().filter(|entry| entry["why"] == "operator");
    (verdicts, allowed.map(|entry| entry["item"].to_string()).collect())
}

#[test]
fn verdicts_mode_breaker_and_never_drop_list_survive_a_restart() {
    let lab = lab(1, 1);
    let settings = "mode = \"observe\"\n[breaker]\nmin_sources = 1\n[policy]\nmin_packets = 1\nmin_packets_drop = 1\n";
    let files = Files::new(settings, Some(&model("all", EVERYTHING, &[])));
    let agent = files.agent(&lab, &[]);
    set_mode(&agent, "enforce");
    for words in [
        &["drop", "198.19.1.0/24", "--for", "1h"][..],
        &["limit", "2001:db8:1::/48", "--for", "2h", "--pps", "10", "--bps", "1000"],
        &["drop", "tcp,198.19.2.1:4000,198.18.0.10:80", "--for", "1h"],
        &["limit", "tcp,198.18.0.10:80", "--pps", "50", "--for", "1h"],
    ] {
        add_verdict(&agent, words);
    }
    for words in [&["tcp/8022"][..], &["198.19.3.0/24", "--for", "1h"], &["2001:db8:3::1"]] {
        agent.ask_json(&[&["allow", "add"], words].concat()).must("allow");
    }
    let attacker = &lab.attackers[0];
    let edge = SocketAddr::from((sensor_tests::topology::EDGE_V4, 7_960));
    let listener = lab.edge.netns.within(|| TcpListener::bind(edge)).must("enter the namespace");
    let _listener = listener.map_err(Into::into).must("bind a TCP port");
    let stream = attacker.netns.within(|| TcpStream::connect(edge)).must("enter the namespace");
    let _proven = stream.map_err(Into::into).must("connect");
    sensor_tests::checks::wait_for("the breaker opens", super::scene::PATIENCE, || {
        agent.ask_json(&["breaker"]).must("ask for the breaker")["open"] == true
    });
    let (before, reason) = (kept(&agent), agent.ask_json(&["breaker"]).must("ask for the breaker"));
    let ends = |agent: &Agent, scope: &str| -> Value {
        let list = agent.ask_json(&["verdicts", "list"]).must("list the verdicts");
        let found = list["verdicts"].as_array().expect("a list").iter().find(|one| one["scope"] == scope).cloned();
        found.expect("the verdict")["until_unix_ms"].clone()
    };
    let end = ends(&agent, "198.19.1.0/24");
    agent.stop().must("stop the agent");

    let again = files.agent(&lab, &[]);
    assert_eq!(kept(&again), before, "verdicts and never-drop entries");
    assert_eq!(ends(&again, "198.19.1.0/24"), end, "they end when they would have");
    assert_eq!(again.ask_json(&["mode"]).must("ask for the mode")["mode"], "enforce");
    let breaker = again.ask_json(&["breaker"]).must("ask for the breaker");
    assert_eq!((&breaker["open"], &breaker["reason"]), (&true.into(), &reason["reason"]));
    println!("restart: {} verdicts, {} never-drop entries, mode and breaker as before", before.0.len(), before.1.len());
    again.stop().must("stop the agent");
    // The operator's word is about the configuration of then.
    files.write("sensor.toml", settings.replace("observe", "tag").as_bytes());
    let third = files.agent(&lab, &[]);
    assert_eq!(third.ask_json(&["mode"]).must("ask for the mode")["mode"], "tag", "another configuration goes first");
    third.stop().must("stop the agent");
}

#[test]
fn a_damaged_state_is_set_aside() {
    let lab = lab(1, 0);
    let files = Files::new("mode = \"enforce\"\n", None);
    let agent = files.agent(&lab, &[]);
    for number in 0..50 {
        add_verdict_quietly(&agent, number);
    }
    agent.stop().must("stop the agent");
    let path = files.path("state/state.redb");
    let whole = std::fs::read(&path).map_err(Into::into).must("read the state");
    let half = &whole[..whole.len() / 2];
    let flipped: Vec<u8> =
        whole.iter().enumerate().map(|(at, byte)| if at % 97 == 5 { !byte } else { *byte }).collect();
    let mut said = Vec::new();
    for (name, bytes) in
        [("nonsense", &b"this is no database"[..]), ("half", half), ("flipped", &flipped), ("empty", b"")]
    {
        std::fs::write(&path, bytes).map_err(Into::into).must("damage the state");
        let agent = files.agent(&lab, &[]);
        let status = agent.status().must("ask for the status");
        let held = number(&status, "/enforcement/source_verdicts");
        // And it is a state again.
        add_verdict_quietly(&agent, 200);
        let log = agent.stop().must("stop the agent");
        let aside = log.contains("cannot be used");
        assert!(aside || name == "empty" || held == 50, "{name}: {held} verdicts, and no word of it: {log}");
        said.push((name, held, aside));
    }
    let agent = files.agent(&lab, &[]);
    let status = agent.status().must("ask for the status");
    assert_eq!(number(&status, "/enforcement/source_verdicts"), 1, "what came after the damage is kept");
    agent.stop().must("stop the agent");
    println!("damaged state (how, verdicts that were read, set aside): {said:?}");
}

fn add_verdict_quietly(agent: &Agent, number: u32) {
    let mut door = super::door::Door::open(&agent.socket()).must("connect");
    let body = format!(r#"{{"scope":"198.19.4.{number}","action":"drop","for_seconds":3600}}"#);
    assert_eq!(door.ask("POST", "/v1/verdicts", &body).must("add a verdict").0, 200);
}
