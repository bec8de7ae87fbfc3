//! The loads of `bench victim`, and the processor time that one takes.

use std::io::ErrorKind;
use std::net::{Ipv4Addr, UdpSocket};
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, anyhow};
use sensor_tests::content;
use sensor_tests::cpus;
use sensor_tests::netns::Ns;
use sensor_tests::process::output;
use serde_json::Value;

use super::busy::Busy;
use super::pair::{Pair, SERVER};

/// A load, and what its result counts.
#[derive(Clone, Copy)]
pub(super) enum Load {
    /// One TCP connection at full speed, bits that arrive.
    Tcp,
    /// UDP datagrams of this payload, sent as fast as one process can, datagrams that arrive.
    Udp(u32),
    /// UDP datagrams of this payload that a server sends back, [`WINDOW`] of them on their way at a time, answers. Nothing
    /// overflows, so the result says how long a datagram takes on the whole way and nothing of who is scheduled when.
    Echo(usize),
    /// Small requests on 16 connections that stay, requests.
    Requests,
    /// A new connection for each small request, 16 at a time, requests.
    Churn,
}

pub(super) const LOADS: [Load; 9] = [
    Load::Tcp,
    Load::Udp(64),
    Load::Udp(256),
    Load::Udp(512),
    Load::Udp(1400),
    Load::Echo(64),
    Load::Echo(1400),
    Load::Requests,
    Load::Churn,
];

/// Datagrams on their way in a closed loop.
const WINDOW: u32 = 16;
const ECHO_PORT: u16 = 7;
/// Without an answer for so long, a datagram is lost and the window is filled again.
const LOST: Duration = Duration::from_millis(20);
/// Closed connections leave the table after a linger of two seconds: what that costs belongs to the load.
const CHURN_SECONDS: u32 = 4;

/// What a load did.
#[derive(Clone, Copy, Debug)]
pub(super) struct Done {
    /// Units that arrived in a second.
    pub(super) rate: f64,
    /// Processor time for a unit, ns: client, server, agent and kernel.
    pub(super) busy_ns: f64,
    /// Wall-clock time, seconds.
    pub(super) seconds: f64,
}

impl Load {
    pub(super) fn name(self) -> String {
        match self {
            Load::Tcp => "TCP, one stream (Gbit/s)".to_owned(),
            Load::Udp(bytes) => format!("UDP, {bytes} bytes (k datagrams/s)"),
            Load::Echo(bytes) => format!("UDP there and back, {bytes} bytes (k/s)"),
            Load::Requests => "requests, kept connections (k/s)".to_owned(),
            Load::Churn => "connections, one request each (k/s)".to_owned(),
        }
    }

    pub(super) fn scale(self) -> f64 {
        match self {
            Load::Tcp => 1e9,
            _ => 1e3,
        }
    }

    /// Units of which the processor time is told, and their name.
    pub(super) fn unit(self) -> (f64, &'static str) {
        match self {
            Load::Tcp => (8.0 * 1460.0, "1,460 bytes"),
            Load::Udp(_) => (1.0, "datagram"),
            Load::Echo(_) => (1.0, "round trip"),
            Load::Requests | Load::Churn => (1.0, "request"),
        }
    }

    /// Runs the load for about `seconds`.
    pub(super) fn run(self, pair: &Pair, clock: &Busy, seconds: u32) -> Result<Done> {
        let begun = Instant::now();
        let busy = clock.seconds()?;
        let rate = match self {
            Load::Tcp => {
                let answer = iperf(&pair.client, seconds, &[])?;
                number(&answer["end"]["sum_received"]["bits_per_second"])?
            }
            Load::Udp(bytes) => {
                let sum = &iperf(&pair.client, seconds, &["-u", "-b", "0", "-l", &bytes.to_string()])?["end"]["sum"];
                (number(&sum["packets"])? - number(&sum["lost_packets"])?) / number(&sum["seconds"])?
            }
            Load::Echo(bytes) => echo(pair, bytes, Duration::from_secs(seconds.into()))?,
            Load::Requests => wrk(&pair.client, seconds, &[])?,
            Load::Churn => wrk(&pair.client, seconds.max(CHURN_SECONDS), &["-H", "Connection: close"])?,
        };
        let seconds = begun.elapsed().as_secs_f64();
        let busy_ns = (clock.seconds()? - busy) / (rate * seconds / self.unit().0) * 1e9;
        Ok(Done { rate, busy_ns, seconds })
    }
}

fn iperf(client: &Ns, seconds: u32, more: &[&str]) -> Result<Value> {
    let (target, time) = (SERVER.to_string(), seconds.to_string());
    let text = output(client.command("iperf3").args(["-J", "-c", &target, "-t", &time]).args(more))?;
    serde_json::from_str(&text).context("parse iperf3's answer")
}

fn number(value: &Value) -> Result<f64> {
    value.as_f64().with_context(|| format!("no number in iperf3's answer: {value}"))
}

/// Requests a second.
fn wrk(client: &Ns, seconds: u32, more: &[&str]) -> Result<f64> {
    let (url, time) = (format!("http://{SERVER}/{}", content::name(1_460)), seconds.to_string());
    let text = output(client.command("wrk").args(["-t", "1", "-c", "16", "-d", &time]).args(more).arg(&url))?;
    let line = text.lines().find_map(|line| line.trim().strip_prefix("Requests/sec:"));
    line.and_then(|number| number.trim().parse().ok()).with_context(|| format!("wrk says: {text}"))
}

/// Keeps the thread on one CPU, if there is that one.
fn stay_on(cpu: usize) {
    // Where it may not be used, the scheduler chooses: noisier, not wrong.
    let _ = cpus::stay_on(cpu);
}

/// Answers a second of a closed loop between two threads, each on a CPU of its own.
fn echo(pair: &Pair, bytes: usize, time: Duration) -> Result<f64> {
    let server = pair.server.within(|| socket((SERVER, ECHO_PORT).into()))??;
    let client = pair.client.within(|| socket((Ipv4Addr::UNSPECIFIED, 0).into()))??;
    client.connect((SERVER, ECHO_PORT)).context("connect to the echo server")?;
    let done = AtomicBool::new(false);
    std::thread::scope(|scope| {
        let serving = scope.spawn(|| serve(&server, &done));
        let asking = scope.spawn(|| ask(&client, bytes, time));
        let answers = asking.join().map_err(|_panic| anyhow!("the echo client panicked"))?;
        done.store(true, Ordering::Relaxed);
        serving.join().map_err(|_panic| anyhow!("the echo server panicked"))??;
        answers
    })
}

fn socket(address: std::net::SocketAddr) -> Result<UdpSocket> {
    let socket = UdpSocket::bind(address).with_context(|| format!("bind {address}"))?;
    socket.set_read_timeout(Some(LOST)).context("set a time limit")?;
    Ok(socket)
}

fn is_timeout(error: &std::io::Error) -> bool {
    matches!(error.kind(), ErrorKind::WouldBlock | ErrorKind::TimedOut | ErrorKind::Interrupted)
}

fn serve(socket: &UdpSocket, done: &AtomicBool) -> Result<()> {
    stay_on(1);
    let mut buffer = [0; 2048];
    while !done.load(Ordering::Relaxed) {
        match socket.recv_from(&mut buffer) {
            // One that cannot be sent is one that is lost: the client waits for it.
            Ok((len, from)) => drop(socket.send_to(&buffer[..len], from)),
            Err(error) if is_timeout(&error) => {}
            Err(error) => return Err(error).context("the echo server's socket"),
        }
    }
    Ok(())
}

fn ask(socket: &UdpSocket, bytes: usize, time: Duration) -> Result<f64> {
    stay_on(0);
    let mut buffer = [0; 2048];
    let begun = Instant::now();
    let (mut answers, mut missing) = (0u64, WINDOW);
    while begun.elapsed() < time {
        for _ in 0..std::mem::take(&mut missing) {
            socket.send(&buffer[..bytes]).context("send to the echo server")?;
        }
        match socket.recv(&mut buffer) {
            Ok(_) => (answers, missing) = (answers + 1, 1),
            Err(error) if is_timeout(&error) => missing = WINDOW,
            Err(error) => return Err(error).context("the echo client's socket"),
        }
    }
    Ok(answers as f64 / begun.elapsed().as_secs_f64())
}
