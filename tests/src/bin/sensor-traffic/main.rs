//! Makes labelled traffic: real clients and real attack tools against real servers in network namespaces, captured at
//! the server's interface. The model is trained on what it writes.
//!
//! Output directory: one `NN-name.pcap` for each scenario and `labels.csv` with the columns
//! `capture,prefix,protocol,label`. The label of a flow is that of the first row of its capture whose `prefix` holds
//! the flow's initiator (the sender of its first packet) and whose `protocol` is the flow's or empty. A flow
//! without a row (none is expected) is not to be used.

mod scenarios;

use std::fmt::Write as _;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail};
use clap::Parser;
use sensor_tests::attacks::Label;
use sensor_tests::capture::{Capture, Captured};
use sensor_tests::crowd::{Count, Crowd};
use sensor_tests::rng::Rng;
use sensor_tests::servers::Servers;
use sensor_tests::stop::Stop;
use sensor_tests::streams::Media;
use sensor_tests::topology::{ATTACKER_PREFIXES, CLIENT_PREFIXES, EDGE_PREFIXES, HostSpec, Lab, LabSpec, UPLINK};

use scenarios::Scenario;

/// Makes labelled captures of good and bad traffic. Needs root and the tools of `cargo xtask setup`.
#[derive(Parser)]
#[command(name = "sensor-traffic")]
struct Options {
    /// Directory for the captures and labels.csv; made if missing.
    #[arg(long)]
    out: PathBuf,
    /// Seconds of traffic, over all scenarios.
    #[arg(long, default_value_t = 240, value_parser = clap::value_parser!(u64).range(20..=7200))]
    seconds: u64,
    /// Draws rates, sizes, pauses and network stacks. The same seed gives the same plan, not the same packets.
    #[arg(long, default_value_t = 1)]
    seed: u64,
    /// Only scenarios whose name contains this.
    #[arg(long)]
    only: Option<String>,
}

fn main() -> Result<()> {
    let options = Options::parse();
    let stop = Stop::on_signals()?;
    std::fs::create_dir_all(&options.out).with_context(|| format!("make {}", options.out.display()))?;
    let out = options.out.canonicalize().with_context(|| format!("find {}", options.out.display()))?;
    let mut rng = Rng::new(options.seed);
    let mut plan = scenarios::all(&mut rng);
    if let Some(part) = &options.only {
        plan.retain(|scenario| scenario.name.contains(part.as_str()));
    }
    let weights: u32 = plan.iter().map(|scenario| scenario.weight).sum();
    if weights == 0 {
        bail!("no scenario has {:?} in its name", options.only.unwrap_or_default());
    }
    let share = Duration::from_secs(options.seconds) / weights;
    let mut labels = String::from("capture,prefix,protocol,label\n");
    let mut lost = 0;
    println!(
        "{:<26} {:>8} {:>8} {:>9} {:>7} {:>6} {:>7}",
        "capture", "seconds", "packets", "uncaught", "good", "failed", "attacks"
    );
    for (index, scenario) in plan.iter().enumerate() {
        if stop.is_raised() {
            bail!("stopped by a signal; {} of {} captures are complete", index, plan.len());
        }
        let file = format!("{index:02}-{}.pcap", scenario.name);
        let done = run(scenario, share * scenario.weight, &out.join(&file), &mut rng, &stop)?;
        let Done { captured, count, attacks, seconds, errors } = done;
        let Captured { packets, dropped } = captured;
        let Count { ok, failed, bytes: _ } = count;
        println!("{file:<26} {seconds:>8.1} {packets:>8} {dropped:>9} {ok:>7} {failed:>6} {attacks:>7}");
        for error in errors.iter().take(3) {
            eprintln!("  {error}");
        }
        lost += dropped;
        write_labels(&mut labels, &file, scenario);
        // After each capture, so that what a run that was cut short has completed can be used.
        let path = out.join("labels.csv");
        std::fs::write(&path, &labels).with_context(|| format!("write {}", path.display()))?;
    }
    if lost > 0 {
        eprintln!("{lost} packets were not captured: the machine was too busy; flows with gaps are in the captures");
    }
    Ok(())
}

struct Done {
    captured: Captured,
    count: Count,
    attacks: usize,
    seconds: f64,
    errors: Vec<String>,
}

fn run(scenario: &Scenario, time: Duration, file: &Path, rng: &mut Rng, stop: &Stop) -> Result<Done> {
    let draw = |rng: &mut Rng, count: usize| (0..count).map(|_| HostSpec::draw(rng)).collect();
    let spec =
        LabSpec { edge: HostSpec::default(), clients: draw(rng, 4), attackers: draw(rng, 2), wire_segments: true };
    let lab = Lab::build(&spec).with_context(|| format!("build the laboratory for {}", scenario.name))?;
    let servers = Servers::start(&lab.edge.netns)?;
    let _media = Media::start(&lab.edge.netns)?;
    let directory = tempfile::TempDir::with_prefix("sensor-traffic-").context("make a working directory")?;
    let capture = Capture::start(&lab.edge.netns, UPLINK, file, &directory.path().join("tcpdump.log"))?;
    let start = Instant::now();
    let mut crowd = Crowd::new();
    scenarios::good_traffic(&mut crowd, &lab, servers.ssh.key(), directory.path().join("upload"), rng)?;
    let attacks = attack(scenario, &lab, start, time, rng, stop)?;
    let count = crowd.disperse();
    let seconds = start.elapsed().as_secs_f64();
    // Answers under way, and resets of closed connections, belong to the flows.
    std::thread::sleep(Duration::from_millis(200));
    let captured = capture.finish()?;
    Ok(Done { captured, count, attacks, seconds, errors: crowd.tally.errors() })
}

/// Runs the scenario's attacks until `time` is over; returns how many were started.
fn attack(scenario: &Scenario, lab: &Lab, start: Instant, time: Duration, rng: &mut Rng, stop: &Stop) -> Result<usize> {
    let mut started = 0;
    let turns = u32::try_from(scenario.attacks.len().max(1)).unwrap_or(1);
    let slot = if scenario.together { time } else { time / turns };
    let mut running = Vec::new();
    for (attack, index) in scenario.attacks.iter().zip(0u32..) {
        let end = if scenario.together { start + time } else { start + slot * (index + 1) };
        let host = &lab.attackers[started % lab.attackers.len()];
        // A scan that is done early comes again from another address.
        while end.saturating_duration_since(Instant::now()) > Duration::from_millis(300) && !stop.is_raised() {
            let source = host.use_source(started)?;
            let limit = end.saturating_duration_since(Instant::now());
            let tool = attack.start(&host.netns, source, limit, None)?;
            started += 1;
            if scenario.together {
                running.push(tool);
                break;
            }
            while tool.is_running() && Instant::now() < end && stop.sleep(Duration::from_millis(20)) {}
            drop(tool);
            let _go_on = stop.sleep(rng.millis(50..250));
        }
    }
    let _go_on = stop.sleep((start + time).saturating_duration_since(Instant::now()));
    Ok(started)
}

fn write_labels(labels: &mut String, file: &str, scenario: &Scenario) {
    let benign = Label::Benign.word();
    let mut row = |prefix: &str, protocol: &str, label: &str| {
        let _ = writeln!(labels, "{file},{prefix},{protocol},{label}");
    };
    for prefix in CLIENT_PREFIXES.into_iter().chain(EDGE_PREFIXES) {
        row(prefix, "", benign);
    }
    // Neighbour discovery and router solicitations of everyone.
    row("fe80::/10", "", benign);
    row("::/128", "", benign);
    let Some(label) = scenario.label() else { return };
    // Attackers find their neighbours as everyone does.
    row(ATTACKER_PREFIXES[1], "icmpv6", benign);
    for prefix in ATTACKER_PREFIXES {
        row(prefix, "", label.word());
    }
    if scenario.spoofed {
        row("0.0.0.0/0", "", label.word());
    }
}
