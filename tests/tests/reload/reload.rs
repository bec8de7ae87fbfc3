//! SIGHUP and `sensor reload`, on real packets.

use std::net::{TcpListener, TcpStream};
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::Duration;

use rustix::process::Signal;
use sensor_tests::agent::Agent;
use sensor_tests::checks::{Must as _, text, wait_for};
use sensor_tests::onnx::model;
use sensor_tests::topology::{EDGE_V4, UPLINK};
use serde_json::Value;

use super::scene::{Files, PATIENCE, arrives, command, gauge, hash, lab, reload, settings, udp, wait_until};

const PORT: u16 = 7_990;
/// A flow of such payloads is a flood to the model, and one of the others is not.
const LARGE: usize = 600;
/// A flow of these has a score of 0.69 at its fourth packet, and of 0.83 at its eighth.
const DOUBTFUL: usize = 201;

/// SIGHUP, and waits until it was answered for.
fn hangup(agent: &Agent, by: impl Fn(&Value) -> bool) -> Value {
    agent.kill(Signal::HUP).must("send SIGHUP");
    let mut status = Value::Null;
    wait_for("SIGHUP was answered", PATIENCE, || {
        status = agent.status().must("ask for the status");
        by(&status["config"])
    });
    status["config"].clone()
}

#[test]
fn what_the_file_says_holds_for_the_next_packets() {
    let lab = lab();
    let files = Files::new("");
    files.write("m.onnx", &model("sizes", 200.0, &[]));
    let path = files.text("m.onnx");
    let attacker = lab.attackers[0].v4[0];
    let configure = |policy: &str| {
        files.configure(&format!("mode = \"enforce\"\n[model]\npath = \"{path}\"\n[policy]\n{policy}\n"));
    };
    configure("threshold = 0.95");
    let agent = files.agent(&lab, &[]);
    let sink = udp(&lab.edge.netns, (EDGE_V4, PORT));
    let flood = udp(&lab.attackers[0].netns, (attacker, 0));
    wait_until("the flood is dropped", &flood, &sink, LARGE, false);
    let (first, since) = (hash(&agent), gauge(&agent, "sensor_config_last_reload_success_timestamp_seconds"));
    assert_eq!(gauge(&agent, "sensor_config_last_reload_successful"), 1.0, "that of the start");

    // A dropped flow passes again when its source comes onto the list, at once.
    configure(&format!("threshold = 0.95\nnever_drop = [\"127.0.0.0/8\", \"{attacker}/32\"]"));
    let state = hangup(&agent, |config| !config["last_reload"].is_null());
    assert_eq!(state["last_reload"]["by"], "SIGHUP");
    assert!(state["last_reload"]["error"].is_null(), "{state}");
    for _ in 0..20 {
        assert!(arrives(&flood, &sink, LARGE), "a packet of a protected source is dropped");
    }
    assert!(gauge(&agent, "sensor_config_last_reload_success_timestamp_seconds") > since);
    let second = hash(&agent);
    assert!(second != first && state["hash"] == second, "{state}");

    // And is dropped again when it is off the list.
    configure("threshold = 0.95");
    let answer = reload(&agent);
    assert_eq!(settings(&answer, "changed"), ["policy.never_drop"], "{answer:#}");
    assert_eq!(hash(&agent), first, "the same settings have the same hash");
    wait_until("the flood is dropped again", &flood, &sink, LARGE, false);

    // A lower threshold holds for the next score.
    let client = &lab.clients[0];
    let doubtful = || udp(&client.netns, (client.v4[0], 0));
    let before = doubtful();
    assert_eq!((0..8).filter(|_| arrives(&before, &sink, DOUBTFUL)).count(), 8);
    configure("threshold = 0.55");
    let answer = reload(&agent);
    assert_eq!(settings(&answer, "changed"), ["policy.threshold"], "{answer:#}");
    assert_eq!((&answer["changed"][0]["from"], &answer["changed"][0]["to"]), (&"0.95".into(), &"0.55".into()));
    let after = doubtful();
    for _ in 0..6 {
        // The last ones may be dropped already.
        let _ = arrives(&after, &sink, DOUBTFUL);
    }
    let port = after.local_addr().map_err(Into::into).must("its address").port();
    wait_for("a doubtful flow is dropped", PATIENCE, || {
        let flows = agent.flows().must("ask for the flows");
        flows.iter().any(|flow| flow["sport"] == port && flow["verdict"] == "drop")
    });

    // The ceiling of another mode holds for verdicts that there are.
    files.configure(&format!("mode = \"observe\"\n[model]\npath = \"{path}\"\n[policy]\nthreshold = 0.55\n"));
    let answer = reload(&agent);
    assert_eq!(settings(&answer, "changed"), ["mode"], "{answer:#}");
    for _ in 0..20 {
        assert!(arrives(&flood, &sink, LARGE), "dropped in mode observe");
    }
    let audit = std::fs::read_to_string(agent.state_directory().join("audit.jsonl")).map_err(Into::into).must("audit");
    let reloads = audit.lines().filter(|line| line.contains("\"event\":\"reload\"")).count();
    assert_eq!(reloads, 4, "{audit}");
    agent.stop().must("stop the agent");
}

#[test]
fn a_wrong_file_is_refused_whole() {
    let lab = lab();
    let files = Files::new("");
    files.write("m.onnx", &model("sizes", 200.0, &[]));
    let good = format!("mode = \"enforce\"\n[model]\npath = \"{}\"\n", files.text("m.onnx"));
    files.configure(&good);
    let agent = files.agent(&lab, &[]);
    let sink = udp(&lab.edge.netns, (EDGE_V4, PORT));
    let flood = udp(&lab.attackers[0].netns, (lab.attackers[0].v4[0], 0));
    wait_until("the flood is dropped", &flood, &sink, LARGE, false);
    let first = hash(&agent);

    let file = files.text("sensor.toml");
    let cases: [(&str, String, &[&str]); 5] = [
        (
            "a range",
            "mode = \"observe\"\n[policy]\nthreshold = 7\nmin_packets = 3\n".into(),
            &[":3:13: policy.threshold", ":4:15: policy.min_packets"],
        ),
        ("a key", "mode = \"observe\"\nmoode = 1\n".into(), &[":2:1: unknown field"]),
        ("syntax", "mode = \"observe\"\n[policy\n".into(), &[":2:"]),
        ("a model", "mode = \"observe\"\n[model]\npath = \"/nowhere.onnx\"\n".into(), &["model.path", "/nowhere.onnx"]),
        ("an audit", format!("{good}[audit]\npath = \"/proc/nowhere/a\"\n"), &["audit.path"]),
    ];
    for (what, settings, words) in cases {
        files.configure(&settings);
        let output = command(&lab, &agent, &["reload"]);
        let said = text(&output.stderr);
        assert_eq!(output.status.code(), Some(1), "{what}: {said}");
        for word in words {
            let located = if word.starts_with(':') { format!("{file}{word}") } else { (*word).to_owned() };
            assert!(said.contains(&located), "{what}: no {located} in {said}");
        }
        assert!(said.contains("the one before goes on"), "{what}: {said}");
        assert_eq!(gauge(&agent, "sensor_config_last_reload_successful"), 0.0, "{what}");
        assert_eq!(hash(&agent), first, "{what}");
        let status = agent.status().must("ask for the status");
        assert_eq!(status["mode"], "enforce", "{what}");
        assert!(!status["config"]["last_reload"]["error"].is_null(), "{what}");
        assert!((0..3).all(|_| !arrives(&flood, &sink, LARGE)), "{what}: the flood passes");
    }
    // A model file that is damaged is no error of the settings: they are taken, and the model in use goes on.
    files.write("m.onnx", b"no model");
    files.configure(&format!("{good}[audit]\nexplain_per_second = 7\n"));
    let output = command(&lab, &agent, &["reload"]);
    let said = text(&output.stdout);
    assert_eq!(output.status.code(), Some(1), "{said}");
    assert!(said.contains("changed   audit.explain_per_second: 20 -> 7") && said.contains("REFUSED"), "{said}");
    assert_eq!(gauge(&agent, "sensor_config_last_reload_successful"), 1.0);
    assert_eq!(agent.status().must("ask for the status")["model"]["name"], "sizes");
    assert!((0..3).all(|_| !arrives(&flood, &sink, LARGE)), "the flood passes");
    files.write("m.onnx", &model("sizes", 200.0, &[]));
    // A signal is told of in the log.
    files.configure("mode = 1\n");
    let state = hangup(&agent, |config| config["last_reload"]["by"] == "SIGHUP");
    assert!(state["last_reload"]["error"].as_str().is_some_and(|error| error.contains(":1:8:")), "{state}");
    files.configure(&good);
    assert_eq!(settings(&reload(&agent), "changed"), ["audit.explain_per_second"]);
    assert_eq!(gauge(&agent, "sensor_config_last_reload_successful"), 1.0);
    let log = agent.stop().must("stop the agent");
    assert!(log.contains("refused (SIGHUP), the one before it is in force"), "{log}");
}

#[test]
fn what_needs_a_restart_is_named_and_flags_go_first() {
    let lab = lab();
    let files = Files::new("mode = \"tag\"\n[model]\npath = \"\"\n");
    let agent = files.agent(&lab, &["--mode", "observe", "--poll-interval", "50ms"]);
    files.configure(
        "mode = \"enforce\"\n[model]\npath = \"\"\n[kernel]\nflows = 8192\nevict_idle = \"5s\"\n\
         [agent]\npoll_interval = \"200ms\"\nidle_timeout = \"7s\"\n[log]\nlevel = \"debug\"\nformat = \"json\"\n",
    );
    let answer = reload(&agent);
    assert_eq!(settings(&answer, "changed"), ["kernel.evict_idle", "agent.idle_timeout", "log.format", "log.level"]);
    assert_eq!(settings(&answer, "restart"), ["kernel.flows"], "{answer:#}");
    let status = agent.status().must("ask for the status");
    assert_eq!((&status["mode"], &status["poll"]["interval_seconds"]), (&"observe".into(), &0.05.into()));
    assert_eq!(settings(&status["config"], "restart"), ["kernel.flows"]);
    let shown = text(&command(&lab, &agent, &["status"]).stdout);
    assert!(shown.contains("a restart is needed for kernel.flows"), "{shown}");
    assert!(agent.log().lines().any(|line| line.starts_with('{') && line.contains("kernel.flows")), "{}", agent.log());

    // What is set by command holds until the mode of the configuration changes.
    agent.ask_json(&["mode", "tag"]).must("set the mode");
    reload(&agent);
    assert_eq!(agent.status().must("ask for the status")["mode"], "tag");
    // Again: what waited for a restart does not any more.
    files.configure("[model]\npath = \"\"\n");
    assert!(settings(&reload(&agent), "restart").is_empty());
    agent.stop().must("stop the agent");
}

#[test]
fn a_mode_of_a_command_ends_with_that_of_the_file() {
    let lab = lab();
    let files = Files::new("[model]\npath = \"\"\n");
    let agent = files.agent(&lab, &[]);
    agent.ask_json(&["mode", "enforce"]).must("set the mode");
    assert!(settings(&reload(&agent), "changed").is_empty());
    assert_eq!(agent.status().must("ask for the status")["mode"], "enforce", "the file's mode is the same");
    files.configure("mode = \"tag\"\n[model]\npath = \"\"\n");
    reload(&agent);
    let status = agent.status().must("ask for the status");
    assert_eq!((&status["mode"], &status["enforcement"]["configured_mode"]), (&"tag".into(), &"tag".into()));
    agent.stop().must("stop the agent");
}

#[test]
fn sessions_are_protected_before_the_file_changes_the_mode() {
    let lab = lab();
    let text = |mode: &str, ports: &str| {
        format!("mode = \"{mode}\"\n[model]\npath = \"\"\n[policy]\nsession_ports = [{ports}]\n")
    };
    let files = Files::new(&text("observe", "7995"));
    let agent = files.agent(&lab, &[]);
    let listener = lab.edge.netns.within(|| TcpListener::bind((EDGE_V4, 7_995))).must("enter the edge");
    let listener = listener.map_err(Into::into).must("listen");
    let client = lab.clients[0].netns.within(|| TcpStream::connect((EDGE_V4, 7_995))).must("enter the client");
    let _client = client.map_err(Into::into).must("connect");
    let _session = listener.accept().map_err(Into::into).must("accept");
    let sessions = || {
        let list = agent.ask_json(&["allow", "list"]).must("list");
        list.as_array().expect("a list").iter().filter(|entry| entry["why"] == "session").count()
    };
    assert_eq!(sessions(), 0, "it began after the agent");
    files.configure(&text("enforce", "7995"));
    assert_eq!(settings(&reload(&agent), "changed"), ["mode"]);
    assert_eq!(sessions(), 1);
    files.configure(&text("enforce", "7996"));
    assert_eq!(settings(&reload(&agent), "changed"), ["policy.session_ports"]);
    assert_eq!(sessions(), 0, "it is no session any more");
    agent.stop().must("stop the agent");
}

#[test]
fn interfaces_come_and_go_with_the_file() {
    let lab = lab();
    let edge = &lab.edge.netns;
    edge.ip("link add reload0 type veth peer name reload1").must("make a link");
    edge.ip("link set reload0 up").must("bring it up");
    let names = |list: &str| format!("interfaces = [{list}]\nmode = \"tag\"\n[model]\npath = \"\"\n");
    let uplink = format!("\"{UPLINK}\"");
    let files = Files::new(&names(&uplink));
    let agent = Agent::start(edge, &["--config", &files.text("sensor.toml")]).must("start the agent");
    let watched = || -> Vec<String> {
        let status = agent.status().must("ask for the status");
        let list = status["interfaces"].as_array().expect("a list").clone();
        list.iter().map(|one| one["name"].as_str().unwrap_or_default().to_owned()).collect()
    };
    assert_eq!(watched(), [UPLINK]);
    files.configure(&names(&format!("{uplink}, \"reload0\"")));
    assert_eq!(settings(&reload(&agent), "changed"), ["interfaces"]);
    assert_eq!(watched(), [UPLINK, "reload0"], "attached when the answer is there");
    // One that is not there is refused, and nothing of the file is taken.
    let wrong = names("\"reload0\", \"nowhere0\"").replace("tag", "enforce");
    files.configure(&wrong);
    let output = command(&lab, &agent, &["reload"]);
    let said = text(&output.stderr);
    assert!(output.status.code() == Some(1) && said.contains("nowhere0"), "{said}");
    assert_eq!(watched(), [UPLINK, "reload0"]);
    assert_eq!(agent.status().must("ask for the status")["mode"], "tag");
    files.configure(&names(&uplink));
    reload(&agent);
    assert_eq!(watched(), [UPLINK]);
    let shown = edge.ip("-d link show dev reload0").must("look at the link");
    assert!(!shown.contains("prog/xdp"), "the program is off: {shown}");
    agent.stop().must("stop the agent");
}

#[test]
fn without_a_file_models_are_loaded_again() {
    let lab = lab();
    let files = Files::new("");
    files.write("m.onnx", &model("first", 200.0, &[]));
    let agent = Agent::start(&lab.edge.netns, &["-i", UPLINK, "--model", &files.text("m.onnx")]).must("start");
    files.write("m.onnx", &model("second", 200.0, &[]));
    let output = command(&lab, &agent, &["reload"]);
    let said = text(&output.stdout);
    assert!(output.status.success() && said.contains("there is no configuration file"), "{said}");
    assert_eq!(agent.status().must("ask for the status")["model"]["name"], "second");
    agent.stop().must("stop the agent");
}

#[test]
fn no_packet_is_lost_while_the_file_is_read_again_and_again() {
    let lab = lab();
    let files = Files::new("mode = \"enforce\"\n[model]\npath = \"\"\n");
    let agent = files.agent(&lab, &[]);
    let sink = udp(&lab.edge.netns, (EDGE_V4, PORT));
    let client = udp(&lab.clients[0].netns, (lab.clients[0].v4[0], 0));
    let (stop, received) = (AtomicBool::new(false), AtomicU64::new(0));
    let mut sent = 0u64;
    std::thread::scope(|scope| {
        scope.spawn(|| {
            let mut room = [0; 2048];
            while !stop.load(Ordering::Relaxed) {
                received.fetch_add(u64::from(sink.recv_from(&mut room).is_ok()), Ordering::Relaxed);
            }
        });
        let sender = scope.spawn(|| {
            let mut sent = 0u64;
            while !stop.load(Ordering::Relaxed) {
                client.send_to(&[1; 50], (EDGE_V4, PORT)).map_err(Into::into).must("send");
                sent += 1;
                std::thread::sleep(Duration::from_micros(500));
            }
            sent
        });
        for round in 0..20 {
            let never = if round % 2 == 0 { ", \"198.19.0.0/16\"" } else { "" };
            files.configure(&format!(
                "mode = \"enforce\"\n[model]\npath = \"\"\n[policy]\nthreshold = 0.{}\nnever_drop = [\"127.0.0.0/8\"{never}]\n",
                90 - round
            ));
            // Two at once: both are answered, one after the other.
            let answers: Vec<_> = (0..2).map(|_| scope.spawn(|| reload(&agent))).collect();
            let answers =
                answers.into_iter().map(|one| one.join().unwrap_or_else(|panic| std::panic::resume_unwind(panic)));
            let changed: usize = answers.map(|answer| usize::from(!settings(&answer, "changed").is_empty())).sum();
            assert_eq!(changed, 1, "one of the two finds the change");
        }
        stop.store(true, Ordering::Relaxed);
        sent = sender.join().unwrap_or_else(|panic| std::panic::resume_unwind(panic));
    });
    // What is still in the sink's queue.
    let mut room = [0; 2048];
    while sink.recv_from(&mut room).is_ok() {
        received.fetch_add(1, Ordering::Relaxed);
    }
    let metrics = agent.metrics().must("scrape");
    println!(
        "{sent} packets sent while the configuration was read 40 times; {} polls late",
        metrics.sum("sensor_poll_overruns_total", &[])
    );
    assert!(sent > 100, "{sent}");
    assert_eq!(received.load(Ordering::Relaxed), sent);
    assert_eq!(metrics.sum("sensor_lease_expired_packets_total", &[]), 0.0);
    agent.stop().must("stop the agent");
}
