//! The demo behind `cargo xtask run --demo`: a host with real services, clients that check every byte they download,
//! real attacks, and the agent in between, in network namespaces of one machine.
//!
//! The numbers in the table are not the agent's word alone: requests are counted by the clients, packets sent by the
//! attackers' interfaces, packets let through by netfilter behind XDP on the protected host.

mod attackers;
mod board;

use std::path::PathBuf;
use std::process::ExitCode;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail};
use clap::Parser;
use sensor_tests::agent::{Agent, workspace};
use sensor_tests::clients::{self, Input};
use sensor_tests::content::SIZES;
use sensor_tests::crowd::Crowd;
use sensor_tests::rng::Rng;
use sensor_tests::servers::Servers;
use sensor_tests::stop::Stop;
use sensor_tests::streams::{ECHO_PORT, Media, Stream};
use sensor_tests::topology::{EDGE_V4, HostSpec, Lab, LabSpec, UPLINK};

use attackers::Attackers;
use board::{Board, Sample};

/// How often the agent and the counters are read; the first reading of each second is shown.
const SAMPLE: Duration = Duration::from_millis(250);
/// Time before the attack. Time after it: longer than curl waits on a stalled transfer, so that a benign flow which
/// was dropped late still counts as a failure.
const BEFORE: Duration = Duration::from_secs(10);
const AFTER: Duration = Duration::from_secs(8);

/// Shows Sensor against real attacks on a host with real clients. Needs root and the tools of `cargo xtask setup`.
#[derive(Parser)]
#[command(name = "sensor-demo")]
struct Options {
    /// Run the agent in mode observe: nothing is dropped, for contrast.
    #[arg(long)]
    observe: bool,
    /// Seconds in all: 10 before the attack, 8 after it.
    #[arg(long, default_value_t = 45, value_parser = clap::value_parser!(u64).range(25..=600))]
    duration: u64,
    /// One JSON object per second and one at the end, instead of the table.
    #[arg(long)]
    json: bool,
    /// The model. Without it the one that the variable SENSOR_MODEL names, else the shipped one.
    #[arg(long)]
    model: Option<PathBuf>,
    /// Shows the agent's log at the end.
    #[arg(long)]
    show_log: bool,
    /// Further arguments of `sensor run`.
    #[arg(last = true)]
    agent_args: Vec<String>,
}

fn main() -> ExitCode {
    match run(&Options::parse()) {
        Ok(code) => code,
        Err(error) => {
            eprintln!("sensor-demo: {error:#}");
            ExitCode::FAILURE
        }
    }
}

fn run(options: &Options) -> Result<ExitCode> {
    let stop = Stop::on_signals()?;
    let named = options.model.clone().or_else(|| std::env::var_os("SENSOR_MODEL").map(PathBuf::from));
    let model = named.unwrap_or_else(|| workspace().join("models/sensor.onnx"));
    if !model.is_file() {
        bail!("there is no model at {}: name one with --model or SENSOR_MODEL", model.display());
    }
    let mode = if options.observe { "observe" } else { "enforce" };
    if !options.json {
        println!("building the hosts: edge {EDGE_V4}, clients 198.18.1.0/24, attackers 198.18.66.0/24");
    }
    let mut rng = Rng::new(u64::from(std::process::id()));
    let spec = LabSpec {
        edge: HostSpec::default(),
        clients: (0..4).map(|_| HostSpec::draw(&mut rng)).collect(),
        attackers: vec![HostSpec::default(); attackers::COUNT],
        wire_segments: false,
    };
    let lab = Lab::build(&spec)?;
    let servers = Servers::start(&lab.edge.netns)?;
    let _media = Media::start(&lab.edge.netns)?;
    let mut attackers = Attackers::new(&lab)?;
    let model = model.to_string_lossy().into_owned();
    let mut args = vec!["-i", UPLINK, "--mode", mode, "--model", &model];
    args.extend(options.agent_args.iter().map(String::as_str));
    let agent = Agent::start_as_shipped(&lab.edge.netns, &args)?;
    let mut crowd = Crowd::new();
    admit_clients(&mut crowd, &lab, &servers, &mut rng);

    let board = Board::new(options.json, options.observe);
    board.start(&agent.status().context("ask the agent for its status")?);
    let start = Instant::now();
    let total = Duration::from_secs(options.duration);
    let mut next_row = Duration::ZERO;
    while start.elapsed() < total && !stop.is_raised() {
        let elapsed = start.elapsed();
        let phase = if elapsed < BEFORE {
            "before"
        } else if elapsed < total.saturating_sub(AFTER) {
            attackers.attack()?;
            "attack"
        } else {
            attackers.rest();
            "after"
        };
        attackers
            .look(&agent.flows().with_context(|| format!("ask the agent for its flows; its log:\n{}", agent.log()))?)?;
        if elapsed >= next_row {
            next_row = Duration::from_secs(elapsed.as_secs() + 1);
            board.row(&Sample {
                at: elapsed,
                phase,
                clients: crowd.tally.count(),
                sent: attackers.sent(),
                passed: attackers.passed(),
                connections: servers.nginx.upkeep().map_or(0, |upkeep| upkeep.active),
                flows: attackers.flows_in_table(),
                dropped_flows: attackers.dropped_flows(),
                dropped_packets: agent.metrics()?.sum("sensor_packets_total", &[("action", "drop")]),
            });
        }
        let _go_on = stop.sleep((start + elapsed + SAMPLE).saturating_duration_since(Instant::now()));
    }
    attackers.rest();
    let count = crowd.disperse();
    if stop.is_raised() {
        eprintln!("stopped by a signal: cleaning up");
        return Ok(ExitCode::from(130));
    }
    let good = board.verdict(&attackers, count, &crowd.tally.errors());
    let log = agent.stop()?;
    if options.show_log || !good {
        eprintln!("---- the agent's log ----\n{log}");
    }
    Ok(if good { ExitCode::SUCCESS } else { ExitCode::FAILURE })
}

/// Clients of several kinds on every client host.
fn admit_clients(crowd: &mut Crowd, lab: &Lab, servers: &Servers, rng: &mut Rng) {
    for host in &lab.clients {
        for base in clients::web_bases() {
            let net = (*host.netns).clone();
            crowd.join(rng.fork(), 100..900, move |rng, stop| {
                clients::download(&net, &base, rng.pick(&SIZES[..9]), &[], stop)
            });
        }
        let (net, [base, ..]) = ((*host.netns).clone(), clients::web_bases());
        crowd.join(rng.fork(), 200..1500, move |rng, stop| {
            let sizes: Vec<u64> = (0..rng.range(2..8)).map(|_| rng.pick(&SIZES[1..6])).collect();
            clients::browse(&net, &base, &sizes, rng.pick(&["60/m", "3/s"]), stop)
        });
        let net = (*host.netns).clone();
        crowd.join(rng.fork(), 100..800, move |rng, stop| {
            let kinds: [&[&str]; 3] = [&[], &["AAAA"], &["+tcp"]];
            clients::look_up(&net, "www", rng.pick(&kinds), stop)
        });
    }
    let [first, second, third, ..] = lab.clients.as_slice() else { return };
    let (net, key) = ((*first.netns).clone(), servers.ssh.key());
    crowd.join(rng.fork(), 500..2000, move |rng, stop| {
        let typed = "date\nuname -a\nls /usr/bin | head -50\nexit\n".to_owned();
        clients::ssh(&net, &key, "sh", Input::Typed(typed, rng.fork()), stop)
    });
    let net = (*second.netns).clone();
    crowd.join(rng.fork(), 200..1000, move |_, stop| {
        clients::ping(&net, &["-c", "5", "-i", "0.5", &EDGE_V4.to_string()], stop)
    });
    let net = (*third.netns).clone();
    crowd.join(rng.fork(), 200..1000, move |rng, stop| {
        let call = Stream {
            port: ECHO_PORT,
            payload_bytes: 160,
            interval: Duration::from_millis(20),
            length: rng.millis(3_000..8_000),
        };
        let (sent, answered) = call.send(&net, stop)?;
        // The last answers of a call are on their way when it ends.
        if !stop.is_raised() && answered + 5 < sent {
            bail!("a call lost {} of {sent} packets", sent - answered);
        }
        Ok(Some(sent * 160))
    });
}
