//! What these tests share: the hosts, an agent with its files, and its commands.

use std::net::{SocketAddr, UdpSocket};
use std::path::PathBuf;
use std::process::Output;
use std::time::Duration;

use sensor_tests::agent::Agent;
use sensor_tests::checks::{Must as _, run_sensor, wait_for};
use sensor_tests::netns::Ns;
use sensor_tests::topology::{HostSpec, Lab, LabSpec, UPLINK};
use serde_json::Value;
use tempfile::TempDir;

/// What may take long on a machine that is busy, and is far below it elsewhere.
pub(crate) const PATIENCE: Duration = Duration::from_secs(30);
/// A model may drop as much as it likes, from the fourth packet on.
pub(crate) const UNBOUNDED: &str = "[breaker]\ndrops_per_second = 0\nsource_share = 1.0\n\
    verdicts_per_minute = 0\n";

pub(crate) fn lab() -> Lab {
    let host = HostSpec::default();
    Lab::build(&LabSpec { clients: vec![host.clone()], attackers: vec![host], ..LabSpec::default() })
        .must("build the hosts")
}

/// Configuration and model of an agent.
pub(crate) struct Files {
    directory: TempDir,
}

impl Files {
    pub(crate) fn new(settings: &str) -> Files {
        let files =
            Files { directory: TempDir::with_prefix("sensor-reload-").map_err(Into::into).must("make a directory") };
        files.configure(settings);
        files
    }

    pub(crate) fn path(&self, name: &str) -> PathBuf {
        self.directory.path().join(name)
    }

    pub(crate) fn text(&self, name: &str) -> String {
        self.path(name).to_string_lossy().into_owned()
    }

    pub(crate) fn write(&self, name: &str, bytes: &[u8]) {
        // As one should: beside it first, then by renaming.
        let beside = self.path("new");
        std::fs::write(&beside, bytes).map_err(Into::into).must("write a file");
        std::fs::rename(&beside, self.path(name)).map_err(Into::into).must("rename it into place");
    }

    pub(crate) fn configure(&self, settings: &str) {
        self.write("sensor.toml", format!("{settings}\n{UNBOUNDED}").as_bytes());
    }

    pub(crate) fn agent(&self, lab: &Lab, more: &[&str]) -> Agent {
        let config = self.text("sensor.toml");
        Agent::start(&lab.edge.netns, &[&["-i", UPLINK, "--config", &config], more].concat()).must("start the agent")
    }
}

/// `sensor <words>` with the agent's socket.
pub(crate) fn command(lab: &Lab, agent: &Agent, words: &[&str]) -> Output {
    let socket = agent.socket().to_string_lossy().into_owned();
    run_sensor(&lab.edge.netns, &[], &[words, &["--socket", &socket]].concat())
}

/// `sensor reload`, which has to work; what it says.
pub(crate) fn reload(agent: &Agent) -> Value {
    agent.ask_json(&["reload"]).must("reload")
}

/// Settings among `changed` or `restart` of an answer.
pub(crate) fn settings(answer: &Value, list: &str) -> Vec<String> {
    let changes = answer[list].as_array().unwrap_or_else(|| panic!("no {list} in {answer:#}"));
    changes.iter().map(|change| change["setting"].as_str().unwrap_or_default().to_owned()).collect()
}

pub(crate) fn gauge(agent: &Agent, name: &str) -> f64 {
    agent.metrics().must("scrape").sum(name, &[])
}

/// The hash that `/metrics` shows.
pub(crate) fn hash(agent: &Agent) -> String {
    let metrics = agent.metrics().must("scrape");
    let line = metrics.text().lines().find(|line| line.starts_with("sensor_config_info{")).expect("a hash").to_owned();
    let hash = line.split('"').nth(1).expect("a label").to_owned();
    assert_eq!(hash.len(), 64, "{line}");
    hash
}

/// A UDP socket of `netns` at `address`.
pub(crate) fn udp(netns: &Ns, address: impl Into<SocketAddr>) -> UdpSocket {
    let address = address.into();
    let socket = netns.within(|| UdpSocket::bind(address)).must("enter the namespace");
    let socket = socket.map_err(Into::into).must("bind a UDP socket");
    socket.set_read_timeout(Some(Duration::from_millis(100))).map_err(Into::into).must("set a timeout");
    socket
}

/// Sends one datagram of `size` bytes; whether it arrives at `sink`.
pub(crate) fn arrives(from: &UdpSocket, sink: &UdpSocket, size: usize) -> bool {
    let to = sink.local_addr().map_err(Into::into).must("the sink's address");
    from.send_to(&vec![0x5a; size], to).map_err(Into::into).must("send");
    let mut room = [0; 2048];
    sink.recv_from(&mut room).is_ok()
}

/// Sends datagrams until they arrive, or do not any more.
pub(crate) fn wait_until(what: &str, from: &UdpSocket, sink: &UdpSocket, size: usize, arriving: bool) {
    wait_for(what, PATIENCE, || arrives(from, sink, size) == arriving);
}
