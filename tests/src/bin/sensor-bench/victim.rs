//! `sensor-bench victim`: what the traffic of a host loses to Sensor. The same load without an agent, with native XDP and
//! with TC ingress, one after the other in every round, so that each ratio compares neighbours in time.

use std::fmt::Write as _;
use std::net::Ipv4Addr;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use sensor_tests::agent::Agent;
use sensor_tests::checks::shipped_model;
use sensor_tests::content;
use sensor_tests::netns::{NetNs, Ns};
use sensor_tests::process::{ChildGuard, output};
use sensor_tests::servers::Nginx;
use serde_json::{Value, json};

use crate::report::{median, quantile};

const SERVER: Ipv4Addr = Ipv4Addr::new(198, 18, 0, 10);
const DEVICE: &str = "eth0";

/// A load, and the unit of its result.
#[derive(Clone, Copy)]
enum Load {
    /// One TCP connection at full speed, bits/s.
    Tcp,
    /// UDP datagrams of this payload at full speed, datagrams/s that arrive.
    Udp(u32),
    /// A new connection for each small request, requests/s.
    Churn,
}

const LOADS: [Load; 6] = [Load::Tcp, Load::Udp(64), Load::Udp(256), Load::Udp(512), Load::Udp(1400), Load::Churn];

impl Load {
    fn name(self) -> String {
        match self {
            Load::Tcp => "TCP, one stream (Gbit/s)".to_owned(),
            Load::Udp(bytes) => format!("UDP, {bytes} bytes (k datagrams/s)"),
            Load::Churn => "connections, one request each (k/s)".to_owned(),
        }
    }

    fn scale(self) -> f64 {
        match self {
            Load::Tcp => 1e9,
            Load::Udp(_) | Load::Churn => 1e3,
        }
    }

    /// Runs the load for `seconds`; what arrived in a second.
    fn run(self, client: &Ns, seconds: u32) -> Result<f64> {
        let (target, time) = (SERVER.to_string(), seconds.to_string());
        let iperf = |more: &[&str]| -> Result<Value> {
            let text = output(client.command("iperf3").args(["-J", "-c", &target, "-t", &time]).args(more))?;
            serde_json::from_str(&text).context("parse iperf3's answer")
        };
        let number = |value: &Value| value.as_f64().with_context(|| format!("no number in iperf3's answer: {value}"));
        match self {
            Load::Tcp => number(&iperf(&[])?["end"]["sum_received"]["bits_per_second"]),
            Load::Udp(bytes) => {
                let answer = iperf(&["-u", "-b", "0", "-l", &bytes.to_string()])?;
                let sum = &answer["end"]["sum"];
                let arrived = number(&sum["packets"])? - number(&sum["lost_packets"])?;
                Ok(arrived / number(&sum["seconds"])?)
            }
            Load::Churn => {
                let url = format!("http://{target}/{}", content::name(1_460));
                let words = ["-t", "1", "-c", "16", "-d", &time, "-H", "Connection: close", &url];
                let text = output(client.command("wrk").args(words))?;
                let line = text.lines().find_map(|line| line.trim().strip_prefix("Requests/sec:"));
                line.and_then(|number| number.trim().parse().ok()).with_context(|| format!("wrk says: {text}"))
            }
        }
    }
}

/// What watches the interface during a load.
#[derive(Clone, Copy, PartialEq)]
enum Watch {
    Nothing,
    Native,
    Tc,
}

const WATCHES: [(Watch, &str); 3] = [(Watch::Nothing, "without"), (Watch::Native, "native XDP"), (Watch::Tc, "TC")];

/// What the agent took during the loads.
#[derive(Default)]
struct Taken {
    cpu: Vec<f64>,
    rss_mib: f64,
    anonymous_mib: f64,
}

/// Two hosts on one veth pair; the server side is watched.
struct Pair {
    client: NetNs,
    server: NetNs,
    _nginx: Nginx,
    _iperf: ChildGuard,
}

impl Pair {
    fn build() -> Result<Pair> {
        sensor_tests::netns::sweep()?;
        let (client, server) = (NetNs::new("client")?, NetNs::new("server")?);
        client.ip(&format!("link add {DEVICE} type veth peer name {DEVICE} netns {}", server.name()))?;
        for (host, address) in [(&client, "198.18.0.1"), (&server, &SERVER.to_string())] {
            host.ip(&format!("addr add {address}/15 dev {DEVICE}"))?;
            host.ip(&format!("link set {DEVICE} up"))?;
        }
        // A client that opens connections by the ten thousand must not run out of ports.
        client.sysctl("net/ipv4/ip_local_port_range", "1024 65535")?;
        client.sysctl("net/ipv4/tcp_tw_reuse", "1")?;
        let nginx = Nginx::start(&server)?;
        let iperf =
            ChildGuard::spawn("iperf3", server.command("iperf3").args(["-s", "-B", &SERVER.to_string()]), None)?;
        let pair = Pair { client, server, _nginx: nginx, _iperf: iperf };
        let deadline = Instant::now() + Duration::from_secs(5);
        while pair.client.run("iperf3", &["-c", &SERVER.to_string(), "-n", "1"]).is_err() {
            ensure!(Instant::now() < deadline, "iperf3's server does not answer");
            std::thread::sleep(Duration::from_millis(50));
        }
        Ok(pair)
    }

    fn agent(&self, mode: &str, model: &str) -> Result<Agent> {
        Agent::start(&self.server, &["-i", DEVICE, "--xdp-mode", mode, "--model", model])
    }
}

/// CPU seconds that a process took so far.
fn cpu_seconds(pid: u32) -> Result<f64> {
    let stat = std::fs::read_to_string(format!("/proc/{pid}/stat")).context("read the agent's CPU time")?;
    // The name may hold spaces; user and system time are the 12th and 13th numbers behind it, in ticks of 10 ms.
    let fields: Vec<&str> = stat.rsplit_once(')').map_or("", |(_, rest)| rest).split_whitespace().collect();
    let ticks = |index: usize| fields.get(index).and_then(|field| field.parse::<f64>().ok());
    ticks(11).zip(ticks(12)).map(|(user, system)| (user + system) / 100.0).context("no CPU times in stat")
}

/// A number of kilobytes in `/proc/<pid>/status`, as MiB.
fn status_mib(pid: u32, key: &str) -> Result<f64> {
    let status = std::fs::read_to_string(format!("/proc/{pid}/status")).context("read the agent's memory")?;
    let line = status.lines().find_map(|line| line.strip_prefix(key)?.strip_prefix(':'));
    let kib = line.and_then(|line| line.trim().strip_suffix("kB")?.trim().parse::<f64>().ok());
    Ok(kib.with_context(|| format!("no {key} in /proc/{pid}/status"))? / 1024.0)
}

/// Rounds of all loads under all watches.
pub(crate) fn run(rounds: u32, seconds: u32, as_json: bool) -> Result<()> {
    let pair = Pair::build()?;
    let model = shipped_model();
    // [load][watch][round]
    let mut results = vec![vec![Vec::new(); WATCHES.len()]; LOADS.len()];
    let mut taken = Taken::default();
    for round in 0..rounds {
        for (load, results) in LOADS.iter().zip(&mut results) {
            // Every watch comes first in some rounds: what drifts, drifts for all.
            for turn in 0..WATCHES.len() {
                let which = (turn + round as usize) % WATCHES.len();
                let agent = match WATCHES[which].0 {
                    Watch::Nothing => None,
                    Watch::Native => Some(pair.agent("native", &model)?),
                    Watch::Tc => Some(pair.agent("tc", &model)?),
                };
                let before = agent.as_ref().map(|agent| cpu_seconds(agent.pid())).transpose()?;
                let begun = Instant::now();
                results[which].push(load.run(&pair.client, seconds)?);
                if let (Some(agent), Some(before)) = (&agent, before) {
                    let pid = agent.pid();
                    taken.cpu.push((cpu_seconds(pid)? - before) / begun.elapsed().as_secs_f64());
                    taken.rss_mib = taken.rss_mib.max(status_mib(pid, "VmRSS")?);
                    taken.anonymous_mib = taken.anonymous_mib.max(status_mib(pid, "RssAnon")?);
                    let seen = agent.metrics()?.sum("sensor_packets_total", &[]);
                    ensure!(seen > 1000.0, "the agent saw {seen} packets of the load {}", load.name());
                }
                if let Some(agent) = agent {
                    agent.stop()?;
                }
            }
        }
        eprintln!("round {} of {rounds}", round + 1);
    }
    if as_json {
        println!("{}", serde_json::to_string_pretty(&to_json(rounds, seconds, &results, &taken))?);
    } else {
        print!("{}", table(rounds, seconds, &results, &taken));
    }
    Ok(())
}

/// The ratios of one watch to none, round by round.
fn ratios(results: &[Vec<f64>], watch: usize) -> Vec<f64> {
    results[watch].iter().zip(&results[0]).map(|(with, without)| with / without).collect()
}

fn table(rounds: u32, seconds: u32, results: &[Vec<Vec<f64>>], taken: &Taken) -> String {
    let mut text = format!("{rounds} rounds of {seconds} s for each load and watch, medians; ratios pair by pair\n\n");
    // Writing to a String cannot fail.
    let _ = write!(text, "{:<38}", "load");
    for (_, name) in WATCHES {
        let _ = write!(text, " {name:>12}");
    }
    let _ = writeln!(text, " {:>22} {:>22}", "native / without", "TC / without");
    for (load, results) in LOADS.iter().zip(results) {
        let _ = write!(text, "{:<38}", load.name());
        for samples in results {
            let _ = write!(text, " {:>12.2}", median(samples) / load.scale());
        }
        for watch in 1..WATCHES.len() {
            let ratios = ratios(results, watch);
            let spread =
                format!("{:.3} ({:.2}–{:.2})", median(&ratios), quantile(&ratios, 0.25), quantile(&ratios, 0.75));
            let _ = write!(text, " {spread:>22}");
        }
        text.push('\n');
    }
    let _ = writeln!(
        text,
        "\nthe agent: {:.1} % of one CPU (median), {:.1} % at most; {:.0} MiB resident at most, {:.0} MiB of it its own",
        100.0 * median(&taken.cpu),
        100.0 * quantile(&taken.cpu, 1.0),
        taken.rss_mib,
        taken.anonymous_mib
    );
    text
}

fn to_json(rounds: u32, seconds: u32, results: &[Vec<Vec<f64>>], taken: &Taken) -> Value {
    let loads: Vec<Value> = LOADS
        .iter()
        .zip(results)
        .map(|(load, results)| {
            let watches: Vec<Value> = WATCHES
                .iter()
                .enumerate()
                .map(|(watch, (_, name))| {
                    json!({
                        "watch": name,
                        "median": median(&results[watch]),
                        "ratio_to_without": median(&ratios(results, watch)),
                        "samples": results[watch],
                    })
                })
                .collect();
            json!({ "load": load.name(), "watches": watches })
        })
        .collect();
    json!({
        "rounds": rounds, "seconds": seconds, "loads": loads,
        "agent": { "cpu": median(&taken.cpu), "rss_mib": taken.rss_mib, "anonymous_mib": taken.anonymous_mib },
    })
}
