//! Hosts, an agent in mode enforce, and TCP peers whose every byte is the test's own.

use std::io::{ErrorKind, Read as _, Write as _};
use std::net::{IpAddr, SocketAddr, TcpListener, TcpStream};
use std::path::PathBuf;
use std::time::{Duration, Instant};

use sensor_tests::agent::Agent;
use sensor_tests::checks::Must as _;
use sensor_tests::netns::Ns;
use sensor_tests::topology::{EDGE_V4, HostSpec, Lab, LabSpec, UPLINK};
use tempfile::TempDir;

/// What may take long on a machine that is busy.
pub(crate) const PATIENCE: Duration = Duration::from_secs(30);

pub(crate) fn lab(clients: usize, attackers: usize) -> Lab {
    let hosts = |count| vec![HostSpec { addresses: 3, ..HostSpec::default() }; count];
    Lab::build(&LabSpec { clients: hosts(clients), attackers: hosts(attackers), ..LabSpec::default() })
        .must("build the hosts")
}

/// An agent's configuration, model and state, which outlive it.
pub(crate) struct Home(TempDir);

impl Home {
    pub(crate) fn new(settings: &str, model: &[u8]) -> Home {
        let home = Home(TempDir::with_prefix("sensor-break-").map_err(Into::into).must("make a directory"));
        for (name, bytes) in [("sensor.toml", settings.as_bytes()), ("active.onnx", model)] {
            std::fs::write(home.path(name), bytes).map_err(Into::into).must("write a file of the agent");
        }
        home
    }

    pub(crate) fn path(&self, name: &str) -> PathBuf {
        self.0.path().join(name)
    }

    pub(crate) fn agent(&self, lab: &Lab) -> Agent {
        let text = |name: &str| self.path(name).to_string_lossy().into_owned();
        let (config, state, model) = (text("sensor.toml"), text("state"), text("active.onnx"));
        let args = ["-i", UPLINK, "--config", &config, "--state-dir", &state, "--model", &model];
        Agent::start(&lab.edge.netns, &args).must("start the agent")
    }
}

/// A TCP service on the edge that runs `serve` for each connection, each in a thread; all end with their peers.
pub(crate) fn service(lab: &Lab, port: u16, serve: impl Fn(TcpStream) + Clone + Send + 'static) {
    let listener = lab.edge.netns.within(|| TcpListener::bind((EDGE_V4, port))).must("enter the namespace");
    let listener = listener.map_err(Into::into).must("bind a TCP port");
    std::thread::spawn(move || {
        for stream in listener.incoming().flatten() {
            let serve = serve.clone();
            std::thread::spawn(move || serve(stream));
        }
    });
}

/// Sends back what comes.
pub(crate) fn echo(mut stream: TcpStream) {
    let mut buffer = [0; 4_096];
    while let Ok(length) = stream.read(&mut buffer) {
        if length == 0 || stream.write_all(&buffer[..length]).is_err() {
            return;
        }
    }
}

pub(crate) fn connect(netns: &Ns, port: u16) -> std::io::Result<TcpStream> {
    let edge = SocketAddr::from((IpAddr::from(EDGE_V4), port));
    netns.within(|| TcpStream::connect_timeout(&edge, Duration::from_secs(2))).must("enter the namespace")
}

/// Connections of one host that send a message of `size` bytes to an echo service again and again.
pub(crate) struct Talkers {
    streams: Vec<TcpStream>,
    message: Vec<u8>,
}

impl Talkers {
    pub(crate) fn connect(netns: &Ns, port: u16, count: usize, size: usize) -> Talkers {
        let stream = || {
            let stream = connect(netns, port).map_err(Into::into).must("connect");
            stream.set_nonblocking(true).map_err(Into::into).must("make a socket non-blocking");
            stream
        };
        Talkers { streams: (0..count).map(|_| stream()).collect(), message: vec![0x5a; size] }
    }

    /// One message on each; what has come back is read.
    pub(crate) fn talk(&mut self) {
        for stream in &mut self.streams {
            drain(stream);
            // One that is cut off has a full buffer in the end.
            let _full = stream.write(&self.message);
        }
    }

    /// How many are answered within two seconds.
    pub(crate) fn answered(&mut self) -> usize {
        let _read: usize = self.streams.iter_mut().map(drain).sum();
        // What was on its way.
        std::thread::sleep(Duration::from_millis(300));
        let _read: usize = self.streams.iter_mut().map(drain).sum();
        let message = std::mem::take(&mut self.message);
        let mut waiting: Vec<&mut TcpStream> =
            self.streams.iter_mut().filter_map(|stream| stream.write(&message).is_ok().then_some(stream)).collect();
        let (asked, deadline) = (waiting.len(), Instant::now() + Duration::from_secs(2));
        while !waiting.is_empty() && Instant::now() < deadline {
            waiting.retain_mut(|stream| drain(stream) == 0);
            std::thread::sleep(Duration::from_millis(10));
        }
        let answered = asked - waiting.len();
        self.message = message;
        answered
    }
}

/// Reads what is there; its length.
fn drain(stream: &mut TcpStream) -> usize {
    let (mut buffer, mut sum) = ([0; 4_096], 0);
    loop {
        match stream.read(&mut buffer) {
            Ok(0) => return sum,
            Ok(length) => sum += length,
            Err(error) if error.kind() == ErrorKind::Interrupted => {}
            Err(_) => return sum,
        }
    }
}
