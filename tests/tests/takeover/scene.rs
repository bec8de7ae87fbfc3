//! A host under attack whose agent pins what it has, and a stream of datagrams that is counted at both ends.

use std::io::Write as _;
use std::net::UdpSocket;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use rustix::net::sockopt::set_socket_recv_buffer_size_force;
use sensor_tests::agent::Agent;
use sensor_tests::attacks::RunningAttack;
use sensor_tests::checks::{Must as _, assert_clean, dropped_flood, flow, shipped_model, wait_until_dropped};
use sensor_tests::counters::Received;
use sensor_tests::pins::PinMount;
use sensor_tests::streams::Media;
use sensor_tests::topology::{EDGE_V4, HostSpec, Lab, LabSpec, UPLINK};
use serde_json::Value;
use tempfile::NamedTempFile;

pub(crate) const LEASE: Duration = Duration::from_secs(1);
/// What a loaded machine may take beyond the lease.
pub(crate) const MARGIN: Duration = Duration::from_secs(1);
/// Where the stream goes to.
pub(crate) const STREAM_PORT: u16 = 5555;
/// Between two bursts of the stream, and datagrams in a burst: some 10,000 a second.
const BURST: (Duration, u64) = (Duration::from_millis(1), 10);

pub(crate) struct Scene {
    pub(crate) lab: Lab,
    pub(crate) mount: PinMount,
    _media: Media,
    configuration: NamedTempFile,
    text: String,
    strings: [String; 2],
}

impl Scene {
    /// `agent`: more settings of the section `[agent]`.
    pub(crate) fn build(agent: &str) -> Self {
        Self::with_lease(LEASE, agent)
    }

    pub(crate) fn with_lease(lease: Duration, agent: &str) -> Self {
        let host = HostSpec::default();
        let lab = Lab::build(&LabSpec { clients: vec![host.clone()], attackers: vec![host], ..LabSpec::default() })
            .must("build the hosts");
        let _media = Media::start(&lab.edge.netns).must("bind the UDP ports");
        let mount = PinMount::new().must("mount a BPF file system");
        // The stream may look like an attack to the model; it is no part of the question.
        let text = format!(
            "mode = \"enforce\"\n[policy]\nnever_drop = [\"198.18.1.0/24\"]\n[agent]\nlease = \"{}s\"\n{agent}",
            lease.as_secs()
        );
        let configuration = write(&text);
        let strings = [mount.path().to_string_lossy().into_owned(), shipped_model()];
        Self { lab, mount, _media, configuration, text, strings }
    }

    /// The scene's configuration with more sections.
    pub(crate) fn configuration(&self, more: &str) -> NamedTempFile {
        write(&format!("{}{more}", self.text))
    }

    pub(crate) fn args<'a>(&'a self, more: &[&'a str]) -> Vec<&'a str> {
        // The path of a temporary file is UTF-8.
        self.args_with(self.configuration.path().to_str().unwrap_or_default(), more)
    }

    pub(crate) fn args_with<'a>(&'a self, configuration: &'a str, more: &[&'a str]) -> Vec<&'a str> {
        let [pins, model] = &self.strings;
        [&["-i", UPLINK, "--config", configuration, "--model", model, "--pins", pins], more].concat()
    }

    pub(crate) fn agent(&self, more: &[&str]) -> Agent {
        Agent::start(&self.lab.edge.netns, &self.args(more)).must("start the agent")
    }

    /// A flood that `agent` drops.
    pub(crate) fn flood(&self, agent: &Agent, sport: u16) -> RunningAttack {
        dropped_flood(agent, &self.lab.attackers[0], sport)
    }

    pub(crate) fn received(&self) -> Received<'_> {
        let source = self.lab.attackers[0].v4[0].to_string();
        Received::count(&self.lab.edge.netns, &[("flood", &source)]).must("count what is received")
    }

    /// An agent that drops a flood, and what has arrived of it.
    pub(crate) fn dropping(&self) -> (Received<'_>, Agent, RunningAttack) {
        let received = self.received();
        let agent = self.agent(&[]);
        let flood = self.flood(&agent, 4444);
        wait_until_dropped(&received);
        (received, agent, flood)
    }

    /// Stops the last agent, which leaves nothing: on the interface or pinned.
    pub(crate) fn end(&self, agent: Agent) {
        agent.stop().must("stop the last agent");
        assert_clean(&self.lab.edge.netns, UPLINK);
        assert_eq!(self.mount.pins(), None, "pins are left");
    }

    pub(crate) fn client(&self) -> String {
        self.lab.clients[0].v4[0].to_string()
    }

    pub(crate) fn stream_flow(&self, agent: &Agent) -> Value {
        let flows = agent.flows().must("ask for the flows");
        flow(&flows, &self.client(), "udp", Some(STREAM_PORT)).clone()
    }

    /// The flood's flow that is dropped.
    pub(crate) fn flood_flow(&self, agent: &Agent) -> Value {
        let source = self.lab.attackers[0].v4[0].to_string();
        let flows = agent.flows().must("ask for the flows");
        let dropped = |flow: &&Value| flow["src"] == source.as_str() && flow["verdict"] == "drop";
        flows.iter().find(dropped).unwrap_or_else(|| panic!("no flow is dropped: {flows:#?}")).clone()
    }

    /// As if an agent of another version had made the pins.
    pub(crate) fn change_schema(&self) {
        let pins = sensor::bpf::pins::Pins::open(&self.mount.path()).must("open the pins");
        let mut meta = pins.meta().must("read what they are").expect("an agent runs");
        meta.version ^= 1;
        pins.set_meta(&meta).must("say that they are of another version");
    }
}

fn write(text: &str) -> NamedTempFile {
    let mut file = NamedTempFile::new().map_err(Into::into).must("make a configuration");
    file.write_all(text.as_bytes()).map_err(Into::into).must("write the configuration");
    file
}

/// Numbered datagrams from the client to the edge.
pub(crate) struct Stream {
    client: String,
    stop: Arc<AtomicBool>,
    received: Arc<AtomicU64>,
    sender: JoinHandle<u64>,
    receiver: JoinHandle<()>,
}

impl Stream {
    pub(crate) fn start(lab: &Lab) -> Stream {
        let client = &lab.clients[0];
        let inside = |host: &sensor_tests::topology::Host, port: u16| {
            let address = (host.v4[0], port);
            let socket = host.netns.within(|| UdpSocket::bind(address)).must("enter the namespace");
            socket.map_err(Into::into).must("bind")
        };
        let (from, to) = (inside(client, 0), inside(&lab.edge, STREAM_PORT));
        // What waits while this machine is busy must not be lost here.
        set_socket_recv_buffer_size_force(&to, 64 << 20).map_err(Into::into).must("enlarge the buffer");
        to.set_read_timeout(Some(Duration::from_millis(50))).map_err(Into::into).must("set a timeout");
        from.connect((EDGE_V4, STREAM_PORT)).map_err(Into::into).must("connect");
        let (stop, received) = (Arc::new(AtomicBool::new(false)), Arc::new(AtomicU64::new(0)));
        let sender = std::thread::spawn({
            let stop = stop.clone();
            move || {
                let (begun, mut sent) = (Instant::now(), 0u64);
                while !stop.load(Ordering::Relaxed) {
                    let due = (begun.elapsed().as_micros() / BURST.0.as_micros()) as u64 * BURST.1;
                    while sent < due {
                        // A full queue of the sender's own is no loss on the way.
                        sent += from.send(&sent.to_be_bytes()).is_ok() as u64;
                    }
                    std::thread::sleep(BURST.0);
                }
                sent
            }
        });
        let receiver = std::thread::spawn({
            let (stop, received) = (stop.clone(), received.clone());
            move || {
                let (mut buffer, mut quiet) = ([0; 16], 0);
                // After the end, what is still on its way.
                while quiet < 10 {
                    match to.recv(&mut buffer) {
                        Ok(_) => {
                            received.fetch_add(1, Ordering::Relaxed);
                            quiet = 0;
                        }
                        Err(_) => quiet += stop.load(Ordering::Relaxed) as u32,
                    }
                }
            }
        });
        Stream { client: client.v4[0].to_string(), stop, received, sender, receiver }
    }

    pub(crate) fn received(&self) -> u64 {
        self.received.load(Ordering::Relaxed)
    }

    pub(crate) fn flow(&self, agent: &Agent) -> Value {
        let flows = agent.flows().must("ask for the flows");
        flow(&flows, &self.client, "udp", Some(STREAM_PORT)).clone()
    }

    /// Datagrams sent and received.
    pub(crate) fn end(self) -> (u64, u64) {
        self.stop.store(true, Ordering::Relaxed);
        let sent = self.sender.join().expect("the sender ends");
        self.receiver.join().expect("the receiver ends");
        (sent, self.received.load(Ordering::Relaxed))
    }
}
