//! `sensor-bench reaction`: how long an attack goes on after the packet that gives it away. A model that calls every flow
//! with large payloads a flood judges flows of known packets; the receiver says which of them arrived.

use std::collections::HashMap;
use std::io::Write as _;
use std::net::{SocketAddr, UdpSocket};
use std::ops::RangeFrom;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, anyhow, ensure};
use rustix::net::sockopt::set_socket_recv_buffer_size_force;
use sensor_tests::agent::Agent;
use sensor_tests::netns::{NetNs, Ns};
use sensor_tests::onnx::model;
use sensor_tests::stop::Stop;
use serde_json::json;
use tempfile::TempDir;

use crate::report::quantile;

const DEVICE: &str = "eth0";
/// Ports of the flows, each of its own: a flow that comes again is dropped from its first packet on.
const FIRST_PORT: u16 = 10_000;
const SERVER: ([u8; 4], u16) = ([198, 18, 0, 10], 7_900);
/// Poll intervals that are tried, ms.
const INTERVALS: [u32; 3] = [10, 50, 100];
/// Packets of a flow before its first score: the decision point.
const DECISION: u32 = 4;
/// Flows that are sent to at the same time, in turn.
const TOGETHER: usize = 20;
/// From packet to packet of one flow.
const GAP: Duration = Duration::from_millis(1);
/// How long a flow is sent: longer than any reaction that is to be measured.
const LENGTH: Duration = Duration::from_millis(400);

/// Here, all flows are attacks.
const NO_BREAKER: &str = "[breaker]\ndrops_per_second = 0\nsource_share = 1.0\nverdicts_per_minute = 0\n";

/// What one flow tells.
struct Reaction {
    /// From the sending of the packet that completes the decision point to that of the first packet that was dropped, ms.
    ms: f64,
    /// Packets behind the decision point that were let through.
    through: u32,
}

/// Two hosts on one veth pair.
struct Pair {
    client: NetNs,
    server: NetNs,
}

fn pair() -> Result<Pair> {
    sensor_tests::netns::sweep()?;
    let pair = Pair { client: NetNs::new("client")?, server: NetNs::new("server")? };
    pair.client.ip(&format!("link add {DEVICE} type veth peer name {DEVICE} netns {}", pair.server.name()))?;
    for (host, address) in [(&pair.client, "198.18.0.1"), (&pair.server, "198.18.0.10")] {
        host.ip(&format!("addr add {address}/15 dev {DEVICE}"))?;
        host.ip(&format!("link set {DEVICE} up"))?;
    }
    Ok(pair)
}

fn socket(netns: &Ns, address: ([u8; 4], u16)) -> Result<UdpSocket> {
    netns.within(|| UdpSocket::bind(SocketAddr::from(address)))?.context("bind a UDP socket")
}

/// Measures `flows` flows at each poll interval.
pub(crate) fn run(flows: u32, as_json: bool) -> Result<()> {
    let pair = pair()?;
    let directory = TempDir::new().context("make a directory")?;
    let file = directory.path().join("flood.onnx");
    std::fs::write(&file, model("reaction", 200.0, &[])).context("write the model")?;
    let mut rows = Vec::new();
    for interval in INTERVALS {
        let path = directory.path().join("sensor.toml");
        let text = format!(
            "mode = \"enforce\"\n[agent]\npoll_interval = \"{interval}ms\"\n[policy]\nmin_packets = {DECISION}\n{NO_BREAKER}"
        );
        std::fs::File::create(&path).and_then(|mut file| file.write_all(text.as_bytes())).context("write settings")?;
        let words = ["-i", DEVICE, "--config", &path.to_string_lossy(), "--model", &file.to_string_lossy()];
        let agent = Agent::start(&pair.server, &words)?;
        let receiver = socket(&pair.server, SERVER)?;
        // What the receiver has not taken yet must not be lost while others have the CPU.
        set_socket_recv_buffer_size_force(&receiver, 16 << 20).context("make the receiver's buffer larger")?;
        let mut reactions = Vec::new();
        while reactions.len() < flows as usize {
            let ports = FIRST_PORT + reactions.len() as u16..;
            reactions.extend(batch(&pair.client, &receiver, ports)?);
        }
        agent.stop()?;
        let ms: Vec<f64> = reactions.iter().map(|reaction| reaction.ms).collect();
        let through: Vec<f64> = reactions.iter().map(|reaction| f64::from(reaction.through)).collect();
        rows.push((interval, ms, through));
    }
    if as_json {
        let row = |(interval, ms, through): &(u32, Vec<f64>, Vec<f64>)| {
            json!({
                "poll_interval_ms": interval, "flows": ms.len(),
                "reaction_ms": { "p50": quantile(ms, 0.5), "p99": quantile(ms, 0.99), "max": quantile(ms, 1.0) },
                "packets_through": { "p50": quantile(through, 0.5), "p99": quantile(through, 0.99) },
            })
        };
        println!("{}", serde_json::to_string_pretty(&rows.iter().map(row).collect::<Vec<_>>())?);
        return Ok(());
    }
    println!(
        "from the packet that completes a decision point ({DECISION} packets) to the first dropped one, at a packet a"
    );
    println!("millisecond and flow, {TOGETHER} flows at a time\n");
    println!(
        "{:<16} {:>7} {:>10} {:>10} {:>10} {:>16} {:>6}",
        "poll interval", "flows", "p50 ms", "p99 ms", "max ms", "let through p50", "p99"
    );
    for (interval, ms, through) in &rows {
        println!(
            "{:<16} {:>7} {:>10.1} {:>10.1} {:>10.1} {:>16.0} {:>6.0}",
            format!("{interval} ms"),
            ms.len(),
            quantile(ms, 0.5),
            quantile(ms, 0.99),
            quantile(ms, 1.0),
            quantile(through, 0.5),
            quantile(through, 0.99)
        );
    }
    Ok(())
}

/// Sends new flows in turn for [`LENGTH`], and asks the receiver what came of each.
fn batch(client: &Ns, receiver: &UdpSocket, ports: RangeFrom<u16>) -> Result<Vec<Reaction>> {
    let senders = ports.take(TOGETHER).map(|port| socket(client, ([198, 18, 0, 1], port)));
    let senders = senders.collect::<Result<Vec<_>>>()?;
    let sending = Stop::new();
    let (sent, arrived) = std::thread::scope(|scope| {
        let taking = scope.spawn(|| take(receiver, &sending));
        let sent = send(&senders);
        sending.raise();
        let arrived = taking.join().map_err(|_panic| anyhow!("the receiver panicked"))?;
        Ok::<_, anyhow::Error>((sent?, arrived?))
    })?;
    let reaction = |(sender, sent): (&UdpSocket, &Vec<Instant>)| -> Result<Reaction> {
        let port = sender.local_addr().context("a socket's port")?.port();
        let flags = arrived.get(&port).with_context(|| format!("nothing arrived from port {port}"))?;
        // All up to the first dropped one have arrived, or the receiver's buffer was too small to tell.
        ensure!(
            flags.iter().all(|arrived| *arrived),
            "packets of port {port} were lost, or passed behind a dropped one"
        );
        ensure!(flags.len() < sent.len(), "the flow from port {port} was never dropped");
        let decision = DECISION as usize - 1;
        ensure!(flags.len() > decision, "the flow from port {port} was dropped before its decision point");
        let ms = sent[flags.len()].duration_since(sent[decision]).as_secs_f64() * 1e3;
        Ok(Reaction { ms, through: (flags.len() - DECISION as usize) as u32 })
    };
    senders.iter().zip(&sent).map(reaction).collect()
}

/// Sends to all flows in turn, a packet with its number each; when each was sent.
fn send(senders: &[UdpSocket]) -> Result<Vec<Vec<Instant>>> {
    let mut sent: Vec<Vec<Instant>> = vec![Vec::new(); senders.len()];
    let mut packet = [0u8; 600];
    let begun = Instant::now();
    let mut next = begun;
    while begun.elapsed() < LENGTH {
        for (sender, sent) in senders.iter().zip(&mut sent) {
            packet[..4].copy_from_slice(&(sent.len() as u32).to_le_bytes());
            sent.push(Instant::now());
            sender.send_to(&packet, SocketAddr::from(SERVER)).context("send")?;
            next += GAP / TOGETHER as u32;
            std::thread::sleep(next.saturating_duration_since(Instant::now()));
        }
    }
    Ok(sent)
}

/// Of each source port, which packets arrived, until nothing comes any more.
fn take(receiver: &UdpSocket, sending: &Stop) -> Result<HashMap<u16, Vec<bool>>> {
    receiver.set_read_timeout(Some(Duration::from_millis(50))).context("set a read timeout")?;
    let mut arrived: HashMap<u16, Vec<bool>> = HashMap::new();
    let mut packet = [0u8; 600];
    loop {
        let Ok((_, from)) = receiver.recv_from(&mut packet) else {
            if sending.is_raised() {
                return Ok(arrived);
            }
            continue;
        };
        let number = u32::from_le_bytes([packet[0], packet[1], packet[2], packet[3]]) as usize;
        let flags = arrived.entry(from.port()).or_default();
        flags.resize(flags.len().max(number + 1), false);
        flags[number] = true;
    }
}
