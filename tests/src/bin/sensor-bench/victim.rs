//! `sensor-bench victim`: what the traffic of a host loses to Sensor. The same loads without an agent, with a native XDP
//! program that does nothing, with Sensor in native XDP, and with Sensor at TC's ingress, one after the other in every
//! round, so that each ratio compares neighbours in time.
//!
//! Native XDP on veth switches off super-packets whatever the program does, so what Sensor itself costs there is its ratio
//! to the program that does nothing. On few CPUs, sender, receiver and agent share them with whatever else runs: the
//! processor time of them all for each unit that arrived says what the rates say, and more steadily.

mod busy;
mod load;
mod pair;
mod parts;

use std::fmt::Write as _;

use anyhow::{Result, ensure};
use sensor_tests::checks::shipped_model;
use serde_json::{Value, json};

pub(crate) use self::parts::run as parts;

use self::busy::Busy;
use self::load::{Done, LOADS, Load};
use self::pair::{Pair, Taken, WATCHES};
use crate::report::{median, quantile};

/// Ratios that are told: of a watch to another, by their places in [`WATCHES`].
const RATIOS: [(usize, usize, &str); 4] =
    [(2, 1, "native / bare"), (2, 0, "native / without"), (3, 0, "TC / without"), (1, 0, "bare / without")];

/// What was measured of one load, by watch and round.
struct Measured {
    load: Load,
    done: Vec<Vec<Done>>,
    /// Share of one CPU that the agent took, by watch.
    agent: Vec<Vec<f64>>,
}

impl Measured {
    fn ratios(&self, watch: usize, to: usize, value: impl Fn(&Done) -> f64) -> Vec<f64> {
        self.done[watch].iter().zip(&self.done[to]).map(|(one, other)| value(one) / value(other)).collect()
    }

    fn values(&self, watch: usize, value: impl Fn(&Done) -> f64) -> Vec<f64> {
        self.done[watch].iter().map(value).collect()
    }
}

/// Rounds of all loads whose name contains `only`, under all watches. `more`: arguments for the agents.
pub(crate) fn run(rounds: u32, seconds: u32, only: &str, more: &[String], as_json: bool) -> Result<()> {
    sensor_tests::netns::sweep()?;
    let clock = Busy::new()?;
    let model = shipped_model();
    let pairs: Vec<Pair> = WATCHES.iter().map(|(watch, _)| Pair::build(*watch, &model, more)).collect::<Result<_>>()?;
    let loads = LOADS.into_iter().filter(|load| load.name().contains(only));
    let none = || vec![Vec::new(); WATCHES.len()];
    let mut all: Vec<_> =
        loads.map(|load| Measured { load, done: vec![Vec::new(); WATCHES.len()], agent: none() }).collect();
    ensure!(!all.is_empty(), "no load's name contains {only:?}");
    let mut most = Taken::default();
    for round in 0..rounds {
        for measured in &mut all {
            // Every watch comes first in some rounds: what drifts, drifts for all.
            for turn in 0..pairs.len() {
                let which = (turn + round as usize) % pairs.len();
                slice(&pairs[which], which, (&clock, seconds), measured, &mut most)?;
            }
        }
        eprintln!("round {} of {rounds}", round + 1);
    }
    for pair in pairs {
        pair.stop(f64::from(rounds) * all.len() as f64 * 500.0)?;
    }
    if as_json {
        println!("{}", serde_json::to_string_pretty(&to_json(rounds, seconds, &all, most))?);
    } else {
        print!("{}", table(rounds, seconds, &all, most));
    }
    Ok(())
}

/// One load under one watch.
fn slice(
    pair: &Pair,
    which: usize,
    (clock, seconds): (&Busy, u32),
    measured: &mut Measured,
    most: &mut Taken,
) -> Result<()> {
    pair.wake()?;
    let before = pair.taken()?;
    let done = measured.load.run(pair, clock, seconds)?;
    if let (Some(before), Some(after)) = (before, pair.taken()?) {
        measured.agent[which].push((after.cpu - before.cpu) / done.seconds);
        most.rss_mib = most.rss_mib.max(after.rss_mib);
        most.own_mib = most.own_mib.max(after.own_mib);
    }
    measured.done[which].push(done);
    pair.rest()
}

fn spread(ratios: &[f64]) -> String {
    format!("{:.3} ({:.2}–{:.2})", median(ratios), quantile(ratios, 0.25), quantile(ratios, 0.75))
}

fn table(rounds: u32, seconds: u32, all: &[Measured], most: Taken) -> String {
    let mut text = format!(
        "{rounds} rounds of {seconds} s for each load and watch; medians, ratios pair by pair with their quartiles\n\n"
    );
    let rate = |done: &Done| done.rate;
    section(&mut text, "load", all, rate, |measured| (measured.load.name(), measured.load.scale()));
    // Writing to a String cannot fail.
    let _ = writeln!(
        text,
        "\nprocessor time of client, server, agent and kernel for what arrived; here smaller is better\n"
    );
    let busy = |done: &Done| done.busy_ns;
    let name = |measured: &Measured| (format!("µs for a {}: {}", measured.load.unit().1, short(measured.load)), 1e3);
    section(&mut text, "µs", all, busy, name);
    let _ = writeln!(text, "\nthe agent, share of one CPU (median, most)\n");
    for measured in all {
        let _ = write!(text, "{:<48}", measured.load.name());
        for (watch, (_, name)) in WATCHES.iter().enumerate().filter(|(watch, _)| !measured.agent[*watch].is_empty()) {
            let shares = &measured.agent[watch];
            let _ = write!(text, " {name} {:.1} %, {:.1} %", 100.0 * median(shares), 100.0 * quantile(shares, 1.0));
        }
        text.push('\n');
    }
    let _ = writeln!(
        text,
        "{:.0} MiB resident at most, {:.0} MiB at most without the kernel maps that it maps (sensor_agent_memory_bytes)",
        most.rss_mib, most.own_mib
    );
    text
}

/// The name without the unit of its rate.
fn short(load: Load) -> String {
    load.name().split(" (").next().unwrap_or_default().to_owned()
}

fn section(
    text: &mut String,
    title: &str,
    all: &[Measured],
    value: impl Fn(&Done) -> f64 + Copy,
    name: impl Fn(&Measured) -> (String, f64),
) {
    let _ = write!(text, "{title:<58}");
    for (_, name) in WATCHES {
        let _ = write!(text, " {name:>10}");
    }
    for (_, _, name) in RATIOS {
        let _ = write!(text, " {name:>20}");
    }
    text.push('\n');
    for measured in all {
        let (name, scale) = name(measured);
        let _ = write!(text, "{name:<58}");
        for watch in 0..WATCHES.len() {
            let _ = write!(text, " {:>10.2}", median(&measured.values(watch, value)) / scale);
        }
        for (watch, to, _) in RATIOS {
            let _ = write!(text, " {:>20}", spread(&measured.ratios(watch, to, value)));
        }
        text.push('\n');
    }
}

fn to_json(rounds: u32, seconds: u32, all: &[Measured], most: Taken) -> Value {
    let rate = |done: &Done| done.rate;
    let busy = |done: &Done| done.busy_ns;
    let of_load = |measured: &Measured| {
        let watch = |(watch, (_, name)): (usize, &(pair::Watch, &str))| {
            json!({
                "watch": name,
                "rate": measured.values(watch, rate),
                "busy_ns": measured.values(watch, busy),
                "agent_cpu": measured.agent[watch],
            })
        };
        let ratio = |(watch, to, name): (usize, usize, &str)| {
            let (rates, busy) = (measured.ratios(watch, to, rate), measured.ratios(watch, to, busy));
            json!({ "name": name, "rate": median(&rates), "busy": median(&busy) })
        };
        let watches: Vec<Value> = WATCHES.iter().enumerate().map(watch).collect();
        let ratios: Vec<Value> = RATIOS.into_iter().map(ratio).collect();
        json!({ "load": measured.load.name(), "busy_unit": measured.load.unit().1, "watches": watches, "ratios": ratios })
    };
    let Taken { cpu: _, rss_mib, own_mib } = most;
    let loads: Vec<Value> = all.iter().map(of_load).collect();
    json!({
        "rounds": rounds, "seconds": seconds, "loads": loads,
        "agent": { "rss_mib": rss_mib, "own_mib": own_mib },
    })
}
