//! What these tests share: the hosts, an agent with its files, and what the audit of that agent says.

use std::net::{SocketAddr, UdpSocket};
use std::path::{Path, PathBuf};
use std::time::Duration;

use sensor_tests::agent::Agent;
use sensor_tests::checks::{Must as _, wait_for};
use sensor_tests::netns::Ns;
use sensor_tests::topology::{HostSpec, Lab, LabSpec, UPLINK};
use serde_json::Value;
use tempfile::TempDir;

/// The turn of a model ([`sensor_tests::onnx::model`]) to which every flow is an attack.
pub(crate) const EVERYTHING: f32 = -1_000.0;
/// Settings that let a model drop as much as it likes, from the first packet on.
pub(crate) const UNBOUNDED: &str = "[policy]\nmin_packets = 1\nmin_packets_drop = 1\n\
    [breaker]\ndrops_per_second = 0\nsource_share = 1.0\nverdicts_per_minute = 0\n";
/// What may take long on a machine that is busy, and is far below it elsewhere.
pub(crate) const PATIENCE: Duration = Duration::from_secs(15);

pub(crate) fn lab(clients: usize, attackers: usize) -> Lab {
    let hosts = |count| vec![HostSpec { addresses: 3, ..HostSpec::default() }; count];
    Lab::build(&LabSpec { clients: hosts(clients), attackers: hosts(attackers), ..LabSpec::default() })
        .must("build the hosts")
}

/// Configuration, model and state of an agent; they outlive it, so that the next one finds them.
pub(crate) struct Files {
    directory: TempDir,
    model: bool,
}

impl Files {
    /// `settings`: the configuration file. `model`: the ONNX file, if anything is to be scored.
    pub(crate) fn new(settings: &str, model: Option<&[u8]>) -> Files {
        let directory = TempDir::with_prefix("sensor-enforcement-").map_err(Into::into).must("make a directory");
        let files = Files { directory, model: model.is_some() };
        files.write("sensor.toml", settings.as_bytes());
        files.write("active.onnx", model.unwrap_or_default());
        files
    }

    pub(crate) fn path(&self, name: &str) -> PathBuf {
        self.directory.path().join(name)
    }

    pub(crate) fn write(&self, name: &str, bytes: &[u8]) {
        std::fs::write(self.path(name), bytes).map_err(Into::into).must("write a file of the agent");
    }

    /// An agent on the edge's uplink.
    pub(crate) fn agent(&self, lab: &Lab, more: &[&str]) -> Agent {
        let text = |name: &str| self.path(name).to_string_lossy().into_owned();
        let model = if self.model { text("active.onnx") } else { String::new() };
        let (config, state) = (text("sensor.toml"), text("state"));
        let args = ["-i", UPLINK, "--config", &config, "--state-dir", &state, "--model", &model];
        Agent::start(&lab.edge.netns, &[&args, more].concat()).must("start the agent")
    }

    /// Every line of the audit, the oldest first.
    ///
    /// # Panics
    /// If a line is no JSON, or does not say when.
    pub(crate) fn audit(&self) -> Vec<Value> {
        let path = self.path("state").join("audit.jsonl");
        let older = (1..2_000).map(|number| PathBuf::from(format!("{}.{number}", path.display())));
        let mut files: Vec<PathBuf> = older.take_while(|path| path.exists()).collect();
        files.reverse();
        files.push(path);
        files.iter().flat_map(|path| json_lines(path)).collect()
    }

    /// The lines of one kind of event.
    pub(crate) fn events(&self, event: &str) -> Vec<Value> {
        self.audit().into_iter().filter(|line| line["event"] == event).collect()
    }
}

/// The lines of an audit file.
///
/// # Panics
/// If a line is no JSON, or does not say when.
pub(crate) fn json_lines(path: &Path) -> Vec<Value> {
    let text = std::fs::read_to_string(path).map_err(Into::into).must("read the audit");
    assert!(text.is_empty() || text.ends_with('\n'), "half a line at the end of {}", path.display());
    let line = |line: &str| -> Value {
        let value: Value = serde_json::from_str(line).unwrap_or_else(|error| panic!("{error}: {line}"));
        assert!(value["time"].as_str().is_some_and(|time| time.ends_with('Z')), "{line}");
        value
    };
    text.lines().map(line).collect()
}

/// The number under `path` of a status.
pub(crate) fn number(status: &Value, path: &str) -> u64 {
    status.pointer(path).and_then(Value::as_u64).unwrap_or_else(|| panic!("no {path} in {status:#}"))
}

/// A metric, once it is `at_least` this much (counters are read once a second).
pub(crate) fn metric(agent: &Agent, name: &str, labels: &[(&str, &str)], at_least: u64) -> u64 {
    let read = || agent.metrics().must("scrape").sum(name, labels) as u64;
    wait_for(&format!("{name} is {at_least}"), PATIENCE, || read() >= at_least);
    read()
}

/// A UDP socket of `netns` at `address`.
pub(crate) fn udp(netns: &Ns, address: impl Into<SocketAddr>) -> UdpSocket {
    let address = address.into();
    let socket = netns.within(|| UdpSocket::bind(address)).must("enter the namespace");
    socket.map_err(Into::into).must("bind a UDP socket")
}

/// Sends `count` datagrams of `size` bytes, slowly enough that none finds a full queue.
pub(crate) fn send(socket: &UdpSocket, to: impl Into<SocketAddr>, count: u64, size: usize) {
    let (to, payload) = (to.into(), vec![0x5a; size]);
    for number in 0..count {
        socket.send_to(&payload, to).map_err(Into::into).must("send a datagram");
        if number % 20 == 19 {
            std::thread::sleep(Duration::from_millis(1));
        }
    }
}

/// Turns a mode on, as an operator does.
pub(crate) fn set_mode(agent: &Agent, mode: &str) {
    let answer = agent.ask_json(&["mode", mode]).must("change the mode");
    assert_eq!(answer["mode"], mode, "{answer}");
}

/// Adds a verdict, as an operator does; its number.
pub(crate) fn add_verdict(agent: &Agent, words: &[&str]) -> u64 {
    let answer = agent.ask_json(&[&["verdicts", "add"], words].concat()).must("add a verdict");
    answer["id"].as_u64().unwrap_or_else(|| panic!("no number in {answer}"))
}
