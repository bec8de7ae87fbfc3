//! One host with one link, an agent that pins its maps, a flood of tuples that never come twice, flows that last, and TCP.

use std::io::{Read as _, Write as _};
use std::net::{Ipv4Addr, SocketAddr, TcpListener, TcpStream, UdpSocket};
use std::ops::Range;
use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use sensor::bpf::balance::{Balance, Sample, seen};
use sensor_tests::agent::Agent;
use sensor_tests::checks::Must as _;
use sensor_tests::counters::{Interface, interface};
use sensor_tests::netns::{NetNs, Ns};
use sensor_tests::pins::PinMount;
use tempfile::NamedTempFile;

use crate::lasting::{LASTING, Lasting, SINK, condemned};

pub(crate) const DEVICE: &str = "eth0";
pub(crate) const EDGE: Ipv4Addr = Ipv4Addr::new(198, 18, 0, 10);
pub(crate) const PEER: Ipv4Addr = Ipv4Addr::new(198, 18, 0, 2);
/// Packets of each that are sent while there is no flood.
const PAUSE: u64 = 100;
const HTTP: u16 = 8080;
/// Tuples of the flood: addresses in 198.19.0.0/16, and ports.
const ADDRESSES: u32 = 1 << 16;

/// The smallest table, whose flows are released soon.
const CONFIGURATION: &str = "mode = \"enforce\"
[kernel]
flows = 8192
[agent]
idle_timeout = \"3s\"
closed_linger = \"1s\"
";

pub(crate) struct Scene {
    mode: &'static str,
    pub(crate) edge: NetNs,
    peer: NetNs,
    pub(crate) mount: PinMount,
    configuration: NamedTempFile,
    /// Takes what the lasting flows send, and never reads it.
    _sink: UdpSocket,
    pub(crate) lasting: Lasting,
    flood: UdpSocket,
    server: Option<JoinHandle<()>>,
    stop: Arc<AtomicBool>,
}

/// What the senders say that they sent.
#[derive(Clone, Copy, Debug, Default)]
pub(crate) struct Tally {
    pub(crate) flood: u64,
    pub(crate) transfers: u64,
}

impl Scene {
    /// `mode`: how received packets are seen.
    pub(crate) fn build(mode: &'static str) -> Scene {
        let (edge, peer) = (NetNs::new("edge").must("make a namespace"), NetNs::new("peer").must("make a namespace"));
        // What is not for this host is thrown away without an answer.
        edge.sysctl("net/ipv4/ip_forward", "0").must("switch forwarding off");
        for netns in [&edge, &peer] {
            netns.sysctl("net/ipv6/conf/default/disable_ipv6", "1").must("switch IPv6 off");
        }
        link(&edge, &peer);
        let _sink = bind(&edge, EDGE, SINK);
        let lasting = Lasting::bind(&peer);
        let flood = bind(&peer, PEER, 0);
        let stop = Arc::new(AtomicBool::new(false));
        let server = Some(serve(&edge, &stop));
        let mut configuration = NamedTempFile::new().map_err(Into::into).must("make a configuration");
        configuration.write_all(CONFIGURATION.as_bytes()).map_err(Into::into).must("write the configuration");
        let mount = PinMount::new().must("mount a BPF file system");
        Scene { mode, edge, peer, mount, configuration, _sink, lasting, flood, server, stop }
    }

    fn args<'a>(&'a self, pins: &'a str, more: &[&'a str]) -> Vec<&'a str> {
        let configuration = self.configuration.path().to_str().unwrap_or_default();
        let fixed = ["-i", DEVICE, "--model", "", "--xdp-mode", self.mode, "--config", configuration, "--pins", pins];
        [&fixed, more].concat()
    }

    fn pins(&self) -> String {
        self.mount.path().to_string_lossy().into_owned()
    }

    /// An agent that pins. The lasting flows have begun, and it drops one of them.
    pub(crate) fn agent(&self) -> Agent {
        let agent = Agent::start(&self.edge, &self.args(&self.pins(), &[])).must("start the agent");
        // A flow that is dropped from its first packet on takes no place.
        self.lasting.send();
        agent.ask_json(&["verdicts", "add", "drop", &condemned(), "--for", "1h"]).must("have a flow dropped");
        self.lasting.send();
        agent
    }

    /// Another one, in place of `agent`.
    pub(crate) fn agent_after(&self, agent: &Agent, more: &[&str]) -> Agent {
        agent.start_beside(&self.args(&self.pins(), more)).must("start the next agent")
    }

    /// An agent that leaves nothing behind.
    pub(crate) fn agent_without_pins(&self) -> Agent {
        Agent::start(&self.edge, &self.args("", &[])).must("start the agent")
    }

    pub(crate) fn balance(&self) -> Arc<Balance> {
        Arc::new(Balance::open(Path::new(&self.pins())).must("open the pinned maps"))
    }

    /// Sends the tuples of the flood, each `times` times, while all else is sent too; `meanwhile` does what it likes.
    pub(crate) fn send(&self, tuples: Range<u32>, times: u32, meanwhile: impl FnOnce(&AtomicU64)) -> Tally {
        self.send_with(tuples, times, true, meanwhile)
    }

    /// As [`Scene::send`], without TCP: each packet is one that a sender counts.
    pub(crate) fn send_datagrams(&self, tuples: Range<u32>, times: u32, meanwhile: impl FnOnce(&AtomicU64)) -> Tally {
        self.send_with(tuples, times, false, meanwhile)
    }

    fn send_with(&self, tuples: Range<u32>, times: u32, tcp: bool, meanwhile: impl FnOnce(&AtomicU64)) -> Tally {
        let (progress, done) = (AtomicU64::new(0), AtomicBool::new(false));
        std::thread::scope(|scope| {
            let flood = scope.spawn(|| {
                let mut sent = 0;
                for tuple in tuples {
                    let address = Ipv4Addr::from_bits(0xc613_0000 | (tuple % ADDRESSES));
                    let port = 1024 + (tuple / ADDRESSES) as u16;
                    for _ in 0..times {
                        sent += self.flood.send_to(&[0; 18], (address, port)).is_ok() as u64;
                    }
                    progress.fetch_add(1, Ordering::Relaxed);
                }
                sent
            });
            let lasting = scope.spawn(|| {
                while !done.load(Ordering::Relaxed) {
                    self.lasting.send();
                    std::thread::sleep(Duration::from_millis(1));
                }
            });
            let transfers = scope.spawn(|| {
                let mut transfers = 0;
                while tcp && !done.load(Ordering::Relaxed) {
                    transfers += self.fetch().is_ok() as u64;
                }
                transfers
            });
            meanwhile(&progress);
            let flood = flood.join().expect("the flood ends");
            done.store(true, Ordering::Relaxed);
            lasting.join().expect("the lasting flows end");
            let transfers = transfers.join().expect("the transfers end");
            Tally { flood, transfers }
        })
    }

    /// One transfer over TCP.
    fn fetch(&self) -> std::io::Result<()> {
        let limit = Duration::from_millis(300);
        let address = SocketAddr::from((EDGE, HTTP));
        let stream = self.peer.within(|| TcpStream::connect_timeout(&address, limit)).must("enter the namespace");
        let mut stream = stream?;
        stream.set_read_timeout(Some(limit))?;
        stream.read_to_end(&mut Vec::new()).map(drop)
    }

    /// Nothing is on its way any more: every packet is where the programs and the agent say.
    pub(crate) fn settle(&self, balance: &Balance, what: &str) -> Sample {
        let deadline = Instant::now() + Duration::from_secs(8);
        let (mut last, mut alive) = (None, None::<Instant>);
        loop {
            // Flows that last are not to end because the test takes its time.
            if alive.is_none_or(|since| since.elapsed() > Duration::from_secs(1)) {
                self.lasting.send();
                alive = Some(Instant::now());
            }
            let sample = balance.sample().must("read the maps");
            let still = sample.filter(Sample::is_still);
            let received = self.received().rx_packets;
            if let Some(sample) = &still
                && sample.at_most() == seen(&sample.counters[0])
                && last == Some((received, sample.counters[0]))
            {
                return sample.clone();
            }
            assert!(
                Instant::now() < deadline,
                "{what}: seen and accounted for never agree; the last sample: {still:#?}"
            );
            last = still.map(|sample| (received, sample.counters[0]));
            // What was queued for a CPU has been taken when nothing has come for so long.
            std::thread::sleep(Duration::from_millis(150));
        }
    }

    /// What the device itself counts.
    pub(crate) fn received(&self) -> Interface {
        interface(&self.edge, DEVICE).must("read the counters of the device")
    }

    /// What the device at the other end counts.
    pub(crate) fn handed_over(&self) -> Interface {
        interface(&self.peer, DEVICE).must("read the counters of the device")
    }

    /// Lasting flows are in the table with all that was sent of them and came out of the device at the sender's end. What the flood
    /// took the room of is bounded for all flows together only; so packets without a flood show it of each flow.
    pub(crate) fn lasting_are_whole(&self, balance: &Balance) {
        let before = self.lasting.found(balance);
        let lost = self.handed_over().tx_dropped;
        let [found, sent] = [0, 1].map(|of| before.iter().map(|flow| flow[of]).sum::<u64>());
        assert!(found >= sent.saturating_sub(lost), "{found} of {sent} found; the device had no room for {lost}");
        for _ in 0..PAUSE {
            self.lasting.send();
            std::thread::sleep(Duration::from_millis(1));
        }
        self.settle(balance, "lasting flows alone");
        let lost = self.handed_over().tx_dropped - lost;
        assert!(lost < PAUSE / 2, "the device has no room for {lost} packets without a flood");
        for (port, (before, after)) in LASTING.zip(before.into_iter().zip(self.lasting.found(balance))) {
            let [found, sent] = [0, 1].map(|of| after[of] - before[of]);
            assert!(sent >= PAUSE, "port {port}: {sent} sent");
            assert!(
                (sent - lost..=sent).contains(&found),
                "port {port}: {sent} sent, {found} found; the device had no room for {lost} of all"
            );
        }
    }

    pub(crate) fn set_down(&self) {
        self.edge.ip(&format!("link set {DEVICE} down")).must("set the link down");
    }

    pub(crate) fn set_up(&self) {
        self.edge.ip(&format!("link set {DEVICE} up")).must("set the link up");
        // With the link went what was known of the neighbour.
        addresses(&self.edge, &self.peer);
    }

    /// Removes the interface, and makes one of the same name.
    pub(crate) fn replace_link(&self) {
        self.edge.ip(&format!("link del {DEVICE}")).must("remove the link");
        link(&self.edge, &self.peer);
    }
}

impl Drop for Scene {
    fn drop(&mut self) {
        self.stop.store(true, Ordering::Relaxed);
        if let Some(server) = self.server.take() {
            let _panicked = server.join();
        }
    }
}

pub(crate) fn bind(netns: &Ns, address: Ipv4Addr, port: u16) -> UdpSocket {
    let socket = netns.within(|| UdpSocket::bind((address, port))).must("enter the namespace");
    socket.map_err(Into::into).must("bind")
}

fn link(edge: &Ns, peer: &Ns) {
    let words = format!(
        "link add {DEVICE} address 02:00:00:00:00:01 type veth peer name {DEVICE} address 02:00:00:00:00:02 netns {}",
        peer.name()
    );
    edge.ip(&words).must("make a link");
    edge.ip(&format!("addr add {EDGE}/24 dev {DEVICE}")).must("add an address");
    peer.ip(&format!("addr add {PEER}/24 dev {DEVICE}")).must("add an address");
    for netns in [edge, peer] {
        netns.ip(&format!("link set {DEVICE} up")).must("set the link up");
    }
    addresses(edge, peer);
}

/// Neighbours that need not be asked for, and a way for the flood.
fn addresses(edge: &Ns, peer: &Ns) {
    let neighbour =
        |address, last| format!("neigh replace {address} lladdr 02:00:00:00:00:0{last} dev {DEVICE} nud permanent");
    edge.ip(&neighbour(PEER, 2)).must("name the neighbour");
    peer.ip(&neighbour(EDGE, 1)).must("name the neighbour");
    peer.ip(&format!("route replace 198.19.0.0/16 via {EDGE}")).must("add a route");
}

/// Sends 200 kB to whoever connects.
fn serve(edge: &Ns, stop: &Arc<AtomicBool>) -> JoinHandle<()> {
    let listener = edge.within(|| TcpListener::bind((EDGE, HTTP))).must("enter the namespace");
    let listener = listener.map_err(Into::into).must("listen");
    listener.set_nonblocking(true).map_err(Into::into).must("make a socket non-blocking");
    let stop = stop.clone();
    std::thread::spawn(move || {
        while !stop.load(Ordering::Relaxed) {
            match listener.accept() {
                Ok((mut stream, _)) => {
                    // A client that went away is no concern of the server.
                    let _ = stream.set_nonblocking(false);
                    let _ = stream.set_write_timeout(Some(Duration::from_millis(300)));
                    let _ = stream.write_all(&vec![7; 200_000]);
                }
                Err(_) => std::thread::sleep(Duration::from_millis(2)),
            }
        }
    })
}
