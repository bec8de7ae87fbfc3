//! A disk that is full, and a bit that flipped: a command says when what it changed would not survive a restart, the
//! state is written again once there is room, and an agent that finds damage begins in mode observe and says why.

use std::fs::{self, File};
use std::io::Write as _;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Duration;

use rustix::process::Signal;
use sensor_tests::agent::{Agent, binary};
use sensor_tests::checks::{Must as _, wait_for};
use sensor_tests::netns::NetNs;
use sensor_tests::process::output;
use serde_json::Value;
use tempfile::TempDir;

const PATIENCE: Duration = Duration::from_secs(20);

/// A file system of some MiB, and an interface whose agent keeps its state there.
struct Host {
    netns: NetNs,
    disk: TempDir,
    config: TempDir,
}

impl Host {
    fn new() -> Host {
        let directory = |prefix| TempDir::with_prefix(prefix).map_err(Into::into).must("make a directory");
        let (disk, config) = (directory("sensor-disk-"), directory("sensor-config-"));
        output(Command::new("mount").args(["-t", "tmpfs", "-o", "size=4m", "tmpfs"]).arg(disk.path()))
            .must("mount a small disk");
        let netns = NetNs::new("host").must("make a namespace");
        netns.ip("link add here type veth peer name there").must("make a link");
        for name in ["here", "there"] {
            netns.ip(&format!("link set {name} up")).must("set it up");
        }
        let text = "mode = \"enforce\"\n[audit]\npath = \"\"\n";
        fs::write(config.path().join("sensor.toml"), text).map_err(Into::into).must("write the configuration");
        Host { netns, disk, config }
    }

    fn state(&self) -> PathBuf {
        self.disk.path().join("state")
    }

    fn agent(&self) -> Agent {
        let (config, state) = (self.config.path().join("sensor.toml"), self.state());
        let text = |path: &Path| path.to_string_lossy().into_owned();
        let args = ["-i", "here", "--config", &text(&config), "--state-dir", &text(&state), "--model", ""];
        Agent::start(&self.netns, &args).must("start the agent")
    }

    /// Takes all room there is.
    fn fill(&self) {
        let mut file = File::create(self.filler()).map_err(Into::into).must("make a file");
        for size in [65_536, 4_096, 1] {
            while file.write_all(&vec![b'x'; size]).is_ok() {}
        }
    }

    fn filler(&self) -> PathBuf {
        self.disk.path().join("filler")
    }
}

impl Drop for Host {
    fn drop(&mut self) {
        if let Err(error) = output(Command::new("umount").arg("-l").arg(self.disk.path())) {
            eprintln!("unmount {}: {error:#}", self.disk.path().display());
        }
    }
}

/// How `sensor WORDS --json` ends: whether the change is kept.
fn change(agent: &Agent, words: &[&str]) -> bool {
    let mut command = Command::new(binary().must("find the binary"));
    let out = command.args(words).arg("--json").arg("--socket").arg(agent.socket()).output();
    let out = out.map_err(Into::into).must("run the command");
    let (said, error) = (String::from_utf8_lossy(&out.stdout), String::from_utf8_lossy(&out.stderr));
    let answer: Value = serde_json::from_str(&said).map_err(Into::into).must("JSON");
    let kept = out.status.success();
    assert_eq!(answer.get("not_kept").is_none(), kept, "{words:?}: {said}");
    assert_eq!(error.contains("warning: not kept: "), !kept, "{words:?}: {error}");
    kept
}

fn mode(agent: &Agent) -> Value {
    agent.ask_json(&["mode"]).must("ask for the mode")["mode"].clone()
}

fn allowed(agent: &Agent) -> Vec<String> {
    let list = agent.ask_json(&["allow", "list"]).must("list what is allowed");
    let operators = list.as_array().expect("a list").iter().filter(|entry| entry["why"] == "operator");
    let mut items: Vec<String> = operators.map(|entry| entry["item"].as_str().expect("an item").to_owned()).collect();
    items.sort();
    items
}

fn is_kept(agent: &Agent) -> bool {
    agent.metrics().must("scrape").sum("sensor_state_kept", &[]) == 1.0
}

#[test]
fn a_full_disk_is_told_and_what_was_kept_survives() {
    let host = Host::new();
    let agent = host.agent();
    assert!(change(&agent, &["allow", "add", "198.19.1.0/24"]), "there is room");
    wait_for("the state is kept", PATIENCE, || is_kept(&agent));
    host.fill();
    // What the files have room for inside is kept; at some time there is none.
    let mut kept = vec!["198.19.1.0/24".to_owned()];
    let mut lost = Vec::new();
    let note = "x".repeat(3_000);
    for number in 0..200 {
        let item = format!("198.19.2.{number}/32");
        match change(&agent, &["allow", "add", &item, "--note", &note]) {
            true => kept.push(item),
            false => lost.push(item),
        }
        if lost.len() > 2 {
            break;
        }
    }
    assert!(lost.len() > 2, "the disk never was full: {} kept", kept.len());
    // Verdicts are in the database alone.
    let verdict = |number: u32| ["verdicts".to_owned(), "add".into(), "drop".into(), format!("198.19.4.{number}")];
    let refused = (0..200).any(|number| {
        let words = verdict(number);
        let words: Vec<&str> = words.iter().map(String::as_str).collect();
        !change(&agent, &[&words[..], &["--note", &note]].concat())
    });
    assert!(refused, "each of 200 verdicts with a note of 3 kB was said to be kept");
    let observe = change(&agent, &["mode", "observe"]);
    assert_eq!(mode(&agent), "observe", "the command does what it can");
    wait_for("a metric says that nothing is kept", PATIENCE, || !is_kept(&agent));
    assert!(agent.status().must("ask for the status")["state_problem"].is_string());
    assert!(agent.log().contains("No space left"), "{}", agent.log());
    // Killed now, and the disk is still full: what was said to be kept is there.
    agent.kill(Signal::KILL).must("kill it");
    drop(agent);
    let agent = host.agent();
    let there = allowed(&agent);
    assert!(kept.iter().all(|item| there.contains(item)), "{kept:?} were kept, {there:?} are there");
    assert_eq!(mode(&agent) == "observe", observe, "the mode is that which was kept");

    // Somebody makes room: everything is written again, without a restart.
    change(&agent, &["allow", "add", "198.19.3.0/24", "--note", &note]);
    change(&agent, &["mode", "observe"]);
    fs::remove_file(host.filler()).map_err(Into::into).must("make room");
    wait_for("the state is kept again", PATIENCE, || is_kept(&agent));
    let before = allowed(&agent);
    agent.kill(Signal::KILL).must("kill it");
    drop(agent);
    let agent = host.agent();
    assert_eq!((allowed(&agent), mode(&agent)), (before, "observe".into()));
    println!("a full disk: {} entries kept, {} refused and told, mode observe kept: {observe}", kept.len(), lost.len());
    agent.stop().must("stop the agent");
}

#[test]
fn damage_means_observe_and_the_list_stays() {
    let host = Host::new();
    let agent = host.agent();
    assert!(change(&agent, &["allow", "add", "198.19.1.0/24"]));
    agent.stop().must("stop the agent");
    for (name, damage) in
        [("state.toml", "flip"), ("state.redb", "flip"), ("state.toml", "gone"), ("state.redb", "gone")]
    {
        let path = host.state().join(name);
        let mut bytes = fs::read(&path).map_err(Into::into).must("read it");
        match damage {
            // The version of the database's format, a character of the file.
            "flip" => {
                let at = if name == "state.toml" { bytes.len() / 2 } else { 2 };
                bytes[at] ^= 4;
                fs::write(&path, bytes).map_err(Into::into).must("damage it");
            }
            _ => fs::remove_file(&path).map_err(Into::into).must("remove it"),
        }
        let agent = host.agent();
        assert_eq!(mode(&agent), "observe", "{name} {damage}");
        assert_eq!(allowed(&agent), ["198.19.1.0/24"], "{name} {damage}");
        let status = agent.status().must("ask for the status");
        assert!(status["state_doubt"].as_str().is_some_and(|text| text.contains(name)), "{status:#}");
        assert!(agent.log().contains("mode observe, because it is not known what was wanted"), "{}", agent.log());
        // It stays so over a restart, until somebody says what is wanted.
        agent.stop().must("stop the agent");
        let agent = host.agent();
        assert_eq!(mode(&agent), "observe", "{name} {damage}, a start later");
        assert!(change(&agent, &["mode", "enforce"]));
        agent.stop().must("stop the agent");
        let agent = host.agent();
        assert_eq!(mode(&agent), "enforce", "{name} {damage}, after the command");
        agent.stop().must("stop the agent");
    }
}
