//! What is written down: each event once, as JSON, with who, when and until when; on standard output too; and a disk that is
//! full loses lines, and nothing else.

use std::collections::BTreeMap;
use std::path::PathBuf;
use std::process::Command;
use std::time::Duration;

use sensor_tests::agent::Agent;
use sensor_tests::checks::{Must as _, run_sensor, wait_for};
use sensor_tests::onnx::model;
use sensor_tests::process::output;
use sensor_tests::topology::EDGE_V4;
use serde_json::Value;
use tempfile::TempDir;

use super::door::Door;
use super::scene::{Files, PATIENCE, UNBOUNDED, add_verdict, json_lines, lab, metric, number, send, set_mode, udp};

const PORT: u16 = 7_950;

/// Lines by event, without what the agent itself found around this host.
fn counted(lines: &[Value]) -> BTreeMap<String, usize> {
    let mut counts = BTreeMap::new();
    for line in lines.iter().filter(|line| line["why"].is_null() || line["why"] == "operator") {
        *counts.entry(line["event"].as_str().unwrap_or("none").to_owned()).or_default() += 1;
    }
    counts
}

#[test]
fn each_event_is_written_once() {
    let lab = lab(1, 1);
    // Reasons need what is usual.
    let usual = r#"[{"edges":[9],"shares":[1,0],"median":8},{"edges":[900],"shares":[1,0],"median":400}]"#;
    let usual = [("quantiles", usual), ("score_quantiles", r#"{"edges":[0.5],"shares":[0.9,0.1]}"#)];
    let files = Files::new(&format!("{UNBOUNDED}[audit]\nstdout = true\n"), Some(&model("sizes", 200.0, &usual)));
    let _sink = udp(&lab.edge.netns, (EDGE_V4, PORT));
    let agent = files.agent(&lab, &[]);
    let attacker = &lab.attackers[0];
    set_mode(&agent, "enforce");
    // Two verdicts of operators: one is taken back, one ends.
    let first = add_verdict(&agent, &["drop", "198.19.1.0/24", "--for", "1h", "--note", "a \"note\"\nof two lines"]);
    let second = add_verdict(&agent, &["limit", "198.19.2.1", "--pps", "9", "--for", "1s"]);
    agent.ask_json(&["verdicts", "remove", &first.to_string()]).must("take it back");
    // One of the model.
    send(&udp(&attacker.netns, (attacker.v4[0], 0)), (EDGE_V4, PORT), 20, 600);
    wait_for("the model's verdict", PATIENCE, || {
        number(&agent.status().must("ask for the status"), "/enforcement/flow_verdicts") == 1
    });
    agent.ask_json(&["allow", "add", "198.19.3.1", "--for", "1s"]).must("allow");
    agent.ask_json(&["allow", "add", "tcp/8022", "--note", "by hand"]).must("allow");
    agent.ask_json(&["allow", "remove", "tcp/8022"]).must("take it back");
    files.write("other.onnx", &model("other", 200.0, &[]));
    files.write("bad.onnx", b"no model");
    for (name, good) in [("other.onnx", true), ("bad.onnx", false)] {
        let (path, socket) = (files.path(name), agent.socket());
        let words =
            ["model", "load", &path.to_string_lossy(), "--socket", &socket.to_string_lossy()].map(str::to_owned);
        let words = words.each_ref().map(String::as_str);
        assert_eq!(run_sensor(&lab.edge.netns, &[], &words).status.success(), good, "load {name}");
    }
    set_mode(&agent, "tag");
    wait_for("what has an end has ended", PATIENCE, || {
        let counts = counted(&files.audit());
        counts.get("expired") == Some(&1) && counts.get("not_allowed") == Some(&2)
    });
    let lost = agent.metrics().must("scrape").sum("sensor_audit_lost_lines_total", &[]);
    let log = agent.stop().must("stop the agent");
    let lines = files.audit();
    let of = |event: &str| -> Vec<&Value> { lines.iter().filter(|line| line["event"] == event).collect() };
    let expected: BTreeMap<String, usize> = [
        ("start", 1),
        ("stop", 1),
        ("mode", 2),
        ("verdict", 3),
        ("removed", 1),
        ("expired", 1),
        ("allowed", 2),
        ("not_allowed", 2),
        // That of the start, one that was loaded, one that was refused.
        ("model", 3),
    ]
    .map(|(event, count)| (event.to_owned(), count))
    .into();
    assert_eq!(counted(&lines), expected, "{lines:#?}");
    for line in of("verdict") {
        assert!(line["until"].as_str().is_some_and(|until| until.ends_with('Z')), "until when: {line}");
        assert!(line["who"].as_str().is_some_and(|who| !who.is_empty()), "by whom: {line}");
    }
    let by_model = of("verdict").into_iter().find(|line| line["origin"] == "model").expect("the model's");
    for field in ["scope", "flow", "action", "done", "score", "label", "model", "reasons", "until"] {
        assert!(!by_model[field].is_null(), "{field} in {by_model}");
    }
    assert_eq!((&of("expired")[0]["id"], &of("removed")[0]["id"]), (&second.into(), &first.into()));
    assert_eq!(of("removed")[0]["note"], "a \"note\"\nof two lines");
    for line in of("mode").iter().chain(&of("removed")) {
        assert!(line["by"].as_str().is_some_and(|by| by.contains("uid 0")), "by whom: {line}");
    }
    assert!(of("model").iter().any(|line| line["refused"].is_string()), "a refused model");
    let printed = log.lines().filter(|line| line.starts_with("{\"time\"")).count();
    println!("audit: {expected:?}, as often on standard output ({printed} lines), {lost} lost");
    // The last line may come after the process is gone: nobody waits for a reader.
    assert!(
        (lines.len() - 1..=lines.len()).contains(&printed),
        "{printed} of {} lines on standard output",
        lines.len()
    );
    assert_eq!(lost, 0.0);
}

/// A file system of 64 KiB.
struct SmallDisk {
    directory: TempDir,
}

impl SmallDisk {
    fn mount() -> SmallDisk {
        let directory = TempDir::with_prefix("sensor-disk-").map_err(Into::into).must("make a directory");
        let mut mount = Command::new("mount");
        mount.args(["-t", "tmpfs", "-o", "size=64k", "tmpfs"]).arg(directory.path());
        output(&mut mount).must("mount a small disk");
        SmallDisk { directory }
    }

    fn path(&self, name: &str) -> PathBuf {
        self.directory.path().join(name)
    }
}

impl Drop for SmallDisk {
    fn drop(&mut self) {
        if let Err(error) = output(Command::new("umount").arg("-l").arg(self.directory.path())) {
            eprintln!("unmount {}: {error:#}", self.directory.path().display());
        }
    }
}

/// Adds so many verdicts, and takes them back.
fn rounds(agent: &Agent, count: u32) {
    let mut door = Door::open(&agent.socket()).must("connect");
    for number in 0..count {
        let body = format!(r#"{{"scope":"198.19.9.{}","action":"drop","for_seconds":3600}}"#, number % 256);
        assert_eq!(door.ask("POST", "/v1/verdicts", &body).must("add a verdict").0, 200);
        let all = r#"{"which":"all"}"#;
        assert_eq!(door.ask("POST", "/v1/verdicts/remove", all).must("take it back").0, 200);
    }
}

#[test]
fn a_full_disk_loses_lines_and_stops_nothing() {
    let (lab, disk) = (lab(1, 0), SmallDisk::mount());
    let path = disk.path("audit.jsonl");
    let files = Files::new(&format!("mode = \"enforce\"\n[audit]\npath = \"{}\"\n", path.display()), None);
    let agent = files.agent(&lab, &[]);
    let client = &lab.clients[0];
    rounds(&agent, 300);
    let lost = metric(&agent, "sensor_audit_lost_lines_total", &[], 1);
    let full = json_lines(&path).len();
    assert!(full > 10 && lost > 10, "{full} lines fit, {lost} are lost");
    // Enforcement goes on.
    let pings = || {
        let mut ping = client.netns.command("ping");
        ping.args(["-q", "-c", "3", "-i", "0.05", "-W", "1", &EDGE_V4.to_string()]);
        output(&mut ping).is_ok()
    };
    assert!(pings());
    let id = add_verdict(&agent, &["drop", &client.v4[0].to_string()]);
    assert!(!pings(), "a verdict holds, whether its line was written or not");
    agent.ask_json(&["verdicts", "remove", &id.to_string()]).must("take it back");
    assert!(pings());
    let status = agent.status().must("ask for the status");
    assert!(number(&status, "/enforcement/audit_lost") >= lost, "the status says so");
    assert_eq!(status["lease"]["state"], "active");
    let errors = agent.log().matches("the audit cannot be written").count();
    assert_eq!(errors, 1, "it is said once");

    // Somebody makes room: lines are written again, and none is spoiled.
    let file = std::fs::OpenOptions::new().write(true).open(&path);
    file.and_then(|file| file.set_len(0)).map_err(Into::into).must("empty it");
    std::thread::sleep(Duration::from_millis(100));
    rounds(&agent, 5);
    wait_for("lines are written again", PATIENCE, || json_lines(&path).len() >= 10);
    let again = json_lines(&path).len();
    println!(
        "audit: {full} lines fitted on a disk of 64 KiB, {lost} lost and counted, {again} written once there was room"
    );
    agent.stop().must("stop the agent");
}
