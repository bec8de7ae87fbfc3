//! `sensor-bench poll`: how long the agent's poll takes over a table of 131,072 slots, what it does to a record that is due,
//! and the same number of records read from a hash map of the kernel with system calls, all in one run and on one CPU.

use std::fmt::Write as _;
use std::process::Stdio;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use rustix::process::Signal;
use rustix::thread::{gettid, sched_getcpu};
use sensor::agent::bench::Polls;
use sensor::bpf::bench::{Bench, Floor};
use sensor::bpf::load::{Hook, Kernel, LoadOptions};
use sensor::config::Config;
use sensor::model::contract::Thresholds;
use sensor::model::{Model, accept};
use sensor_common::table::WAYS;
use sensor_common::tcp::ACK;
use sensor_tests::checks::shipped_model;
use sensor_tests::cpus::stay_on;
use sensor_tests::frames::Frame;
use sensor_tests::process::ChildGuard;
use serde_json::{Value, json};

use crate::report::{median, quantile};

const SLOTS: usize = 131_072;
/// Twice as many flows as there are slots come, so that hardly a slot stays free; each with eight packets in a row.
const FLOW_BITS: u8 = 18;
const PACKETS_SHIFT: u8 = 3;
/// A scan is to take no longer.
const TARGET_MS: f64 = 5.0;

/// What was timed: milliseconds of each repeat, over so many slots or flows.
struct Case {
    name: &'static str,
    of: usize,
    ms: Vec<f64>,
}

/// `repeats` of each case.
pub(crate) fn run(repeats: u32, as_json: bool) -> Result<()> {
    let cpu = sched_getcpu();
    // Running a model takes a large stack.
    let (cases, calls) = accept::on_large_stack(|| {
        stay_on(cpu)?;
        measure(repeats)
    })?;
    if as_json {
        println!("{}", serde_json::to_string_pretty(&to_json(&cases, calls, cpu))?);
    } else {
        print!("{}", table(&cases, calls, cpu, repeats));
    }
    Ok(())
}

fn polls(model: Option<Model>) -> Result<Polls> {
    let options = LoadOptions { flows: SLOTS, bench: Some(Bench::FLOORS), ..LoadOptions::default() };
    let mut kernel = Kernel::load(&options)?;
    // Where the kernel says that the frames of test runs come from.
    kernel.watch(1)?;
    let mut config = Config::default();
    config.kernel.flows = SLOTS as u32;
    config.agent.idle_timeout = Duration::from_secs(3600);
    config.agent.state_dir = None;
    config.agent.pins = None;
    Polls::new(config, kernel, model)
}

/// Flows of one client address each, through both the table and the hash map.
fn fill(polls: &mut Polls) -> Result<()> {
    let mut frame = Frame::tcp("198.18.0.0:10000".parse()?, "198.19.0.2:443".parse()?, ACK).payload(64).build();
    // See sensor-ebpf/src/bench/vary.rs: the flow's number goes into the low half of the address and the port.
    frame[..12].fill(0);
    frame[5..8].copy_from_slice(&[14 + 14, 14 + 20, FLOW_BITS]);
    frame[10] = PACKETS_SHIFT;
    let runs = 1 << (FLOW_BITS + PACKETS_SHIFT);
    for hook in [Hook::Ingress, Hook::Floor(Floor::Lru)] {
        polls.kernel().test_run(hook, &frame, runs)?;
    }
    Ok(())
}

/// Polls until nothing is due any more: all flows are scored, and looked at for the host context.
fn settle(polls: &mut Polls) -> Result<()> {
    let deadline = Instant::now() + Duration::from_secs(60);
    let begun = Instant::now();
    loop {
        polls.poll();
        // The first look at a flow comes about a second after it was noticed, 16,384 in a poll.
        if polls.scored() == 0 && begun.elapsed() > Duration::from_secs(2) {
            break;
        }
        ensure!(Instant::now() < deadline, "there is always a flow to score");
    }
    for _ in 0..2 * SLOTS / 16_384 {
        polls.poll();
    }
    Ok(())
}

fn ms(duration: Duration) -> f64 {
    duration.as_secs_f64() * 1e3
}

/// The cases, and system calls in one poll of a full table, if they could be counted.
fn measure(repeats: u32) -> Result<(Vec<Case>, Option<u64>)> {
    let mut model = Model::load(shipped_model().as_ref())?;
    // No verdict, whatever the model makes of these flows: writing one into the kernel's maps takes a system call.
    model.thresholds = Thresholds::all(f32::INFINITY);
    let mut polls = polls(Some(model))?;
    let mut cases = Vec::new();
    let mut time = |name, of: usize, work: &mut dyn FnMut() -> Result<Duration>| -> Result<()> {
        let samples = (0..repeats).map(|_| Ok(ms(work()?))).collect::<Result<_>>()?;
        cases.push(Case { name, of, ms: samples });
        Ok(())
    };
    for _ in 0..3 {
        polls.poll();
    }
    time("poll, table empty", SLOTS, &mut || Ok(polls.poll()))?;
    fill(&mut polls)?;
    polls.poll();
    let full = polls.occupied() as usize;
    // How many find their bucket full is up to the keys of the hash.
    ensure!(full * 100 >= SLOTS * 98, "only {full} of {SLOTS} slots hold a flow");
    settle(&mut polls)?;
    time("poll, full of idle flows", SLOTS, &mut || Ok(polls.poll()))?;
    ensure!(polls.scored() == 0, "a flow without packets was scored again");
    let calls = system_calls(&mut polls)?;
    let limit = Config::default().model.max_flows_per_poll;
    time("poll, all flows due, 8,192 of them scored", SLOTS, &mut || {
        polls.forget();
        polls.set_most(limit);
        Ok(polls.poll())
    })?;
    // A bucket is looked at as a whole.
    let most = limit as usize..limit as usize + WAYS;
    ensure!(most.contains(&polls.scored()), "{} flows were scored, not {limit}", polls.scored());
    time("records of all flows copied", full, &mut || Ok(polls.copy(false).1))?;
    time("copied, features computed", full, &mut || Ok(polls.copy(true).1))?;
    let few = repeats.min(3);
    let mut samples = Vec::new();
    polls.set_most(SLOTS as u32);
    for _ in 0..few {
        polls.forget();
        samples.push(ms(polls.poll()));
        ensure!(polls.scored() == full, "{} of {full} flows were scored", polls.scored());
    }
    cases.push(Case { name: "poll, all flows due, all scored (shipped model)", of: full, ms: samples });
    let mut samples = Vec::new();
    for _ in 0..few {
        let begun = Instant::now();
        let (records, packets) = polls.kernel().read_hash()?;
        samples.push(ms(begun.elapsed()));
        ensure!(records * 10 >= SLOTS * 9 && packets > 0, "the hash map holds {records} records");
    }
    cases.push(Case { name: "LRU hash map, all records read with system calls", of: full, ms: samples });
    // Once: nothing is left then. Without scores, which were timed above.
    polls.set_most(0);
    polls.set_idle_ticks(0);
    cases.push(Case { name: "poll, all flows have ended and are released", of: full, ms: vec![ms(polls.poll())] });
    polls.poll();
    ensure!(polls.occupied() == 0, "{} flows were not released", polls.occupied());
    Ok((cases, calls))
}

/// System calls of this thread in one poll, as strace counts them; `None` without strace.
fn system_calls(polls: &mut Polls) -> Result<Option<u64>> {
    let thread = gettid().as_raw_nonzero().to_string();
    let directory = tempfile::TempDir::with_prefix("sensor-bench-").context("make a directory for strace")?;
    let log = directory.path().join("calls");
    let mut command = std::process::Command::new("strace");
    command.args(["-qq", "-o"]).arg(&log).args(["-p", &thread]).stdin(Stdio::null());
    let Ok(mut strace) = ChildGuard::spawn("strace", &mut command, None) else { return Ok(None) };
    let traced = || {
        let status = std::fs::read_to_string("/proc/thread-self/status").unwrap_or_default();
        status.lines().any(|line| line.strip_prefix("TracerPid:").is_some_and(|pid| pid.trim() != "0"))
    };
    let deadline = Instant::now() + Duration::from_secs(3);
    while !traced() {
        if Instant::now() > deadline {
            return Ok(None);
        }
        std::thread::sleep(Duration::from_millis(20));
    }
    // Marks, which are calls themselves: what is between them is the poll.
    let _ = rustix::process::getppid();
    polls.poll();
    let _ = rustix::process::getppid();
    strace.signal(Signal::INT)?;
    strace.wait_up_to(Duration::from_secs(3))?;
    let text = std::fs::read_to_string(&log).context("read what strace wrote")?;
    let marks: Vec<usize> =
        text.lines().enumerate().filter(|(_, line)| line.contains("getppid(")).map(|(number, _)| number).collect();
    let [.., first, last] = marks[..] else { return Ok(None) };
    Ok(Some((last - first - 1) as u64))
}

fn table(cases: &[Case], calls: Option<u64>, cpu: usize, repeats: u32) -> String {
    let mut text = format!("table of {SLOTS} slots, CPU {cpu}, up to {repeats} repeats\n\n");
    // Writing to a String cannot fail.
    let _ = writeln!(text, "{:<52} {:>10} {:>10} {:>10} {:>14}", "", "median ms", "min ms", "ns each", "each a second");
    for Case { name, of, ms } in cases {
        let (middle, min) = (median(ms), quantile(ms, 0.0));
        let ns = middle * 1e6 / *of as f64;
        let _ = writeln!(text, "{name:<52} {middle:>10.2} {min:>10.2} {ns:>10.1} {:>14.0}", 1e9 / ns);
    }
    text.push('\n');
    for (one, other, ratio) in ratios(cases) {
        let _ = writeln!(text, "{ratio:.3} × : {one} / {other}");
    }
    let scan = median(&cases[1].ms);
    let met = if scan <= TARGET_MS { "met" } else { "missed" };
    let _ = writeln!(text, "scan of a full table: {scan:.2} ms, target {TARGET_MS} ms: {met}");
    let _ = match calls {
        Some(calls) => writeln!(text, "system calls in one poll of a full table, counted by strace: {calls}"),
        None => writeln!(text, "system calls in one poll: not counted (strace is not installed, or may not trace)"),
    };
    text
}

/// Cases beside the reading of a hash map.
fn ratios(cases: &[Case]) -> Vec<(&'static str, &'static str, f64)> {
    let Some(hash) = cases.iter().find(|case| case.name.starts_with("LRU hash")) else { return Vec::new() };
    let others = cases.iter().filter(|case| case.name.contains("idle flows") || case.name.contains("copied"));
    others.map(|case| (case.name, hash.name, median(&case.ms) / median(&hash.ms))).collect()
}

fn to_json(cases: &[Case], calls: Option<u64>, cpu: usize) -> Value {
    let of = |Case { name, of, ms }: &Case| json!({ "name": name, "of": of, "median_ms": median(ms), "ms": ms });
    let all: Vec<Value> = cases.iter().map(of).collect();
    let ratios: Vec<Value> =
        ratios(cases).into_iter().map(|(one, to, ratio)| json!({ "name": one, "to": to, "ratio": ratio })).collect();
    json!({ "slots": SLOTS, "cpu": cpu, "cases": all, "ratios": ratios, "target_ms": TARGET_MS, "system_calls": calls })
}
