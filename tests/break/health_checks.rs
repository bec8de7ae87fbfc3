//! Health checks that a model takes for attacks go on, under mode enforce and the shipped model.
//!
//! Two kinds that real checkers make: one connects and resets at once (`option tcp-check` of HAProxy, keepalived), one
//! reads a greeting and closes. From few ports, so that a verdict that outlives its connection meets a later one, as it
//! does within hours elsewhere.

use std::io::{Read as _, Write as _};
use std::time::{Duration, Instant};

use sensor_tests::agent::{Agent, workspace};
use sensor_tests::checks::Must as _;
use sensor_tests::netns::Ns;
use serde_json::Value;

use super::guard_scene::{Home, Talkers, connect, echo, lab, service};

/// Services: one that is only connected to, one that greets.
const RESET: u16 = 7_912;
const GREETING: u16 = 7_913;
const GREETING_BYTES: usize = 100;
const PAUSE: Duration = Duration::from_millis(100);
/// A habit in this test: within seconds, at ten checks of each kind a second.
const SETTINGS: &str = "mode = \"enforce\"\n[policy]\nsteady_after = \"4s\"\nsteady_per_minute = 1500\n";

/// How long checks are counted; longer by hand, with BREAK_SECONDS.
fn seconds() -> u64 {
    std::env::var("BREAK_SECONDS").ok().and_then(|text| text.parse().ok()).unwrap_or(8)
}

#[derive(Debug, Default)]
struct Count {
    made: u64,
    broken: u64,
}

/// One check of each kind.
fn check(netns: &Ns, count: &mut Count) {
    let reset = || -> std::io::Result<()> {
        let stream = connect(netns, RESET)?;
        // Closed like this, it resets.
        rustix::net::sockopt::set_socket_linger(&stream, Some(Duration::ZERO))?;
        Ok(())
    };
    let greeting = || -> std::io::Result<()> {
        let mut stream = connect(netns, GREETING)?;
        stream.set_read_timeout(Some(Duration::from_secs(1)))?;
        stream.read_exact(&mut [0; GREETING_BYTES])
    };
    for outcome in [reset(), greeting()] {
        count.made += 1;
        count.broken += u64::from(outcome.is_err());
    }
}

fn checks(netns: &Ns, time: Duration) -> Count {
    let (mut count, start) = (Count::default(), Instant::now());
    while start.elapsed() < time {
        check(netns, &mut count);
        std::thread::sleep(PAUSE);
    }
    count
}

fn spared(agent: &Agent) -> u64 {
    agent.metrics().must("scrape").sum("sensor_spared_flows_total", &[("reason", "steady")]) as u64
}

/// Checks under these settings: while they are learnt, and from then on.
fn run(settings: &str) -> (Count, Count, u64, usize, Vec<Value>) {
    let lab = lab(1, 0);
    service(&lab, RESET, |mut stream| {
        let _reset = stream.read(&mut [0; 16]);
    });
    service(&lab, GREETING, |mut stream| {
        let _sent = stream.write_all(&[b'x'; GREETING_BYTES]);
        let _closed = stream.read(&mut [0; 16]);
    });
    let model = std::fs::read(workspace().join("models/sensor.onnx")).map_err(Into::into).must("read the model");
    let home = Home::new(settings, &model);
    let agent = home.agent(&lab);
    let netns = &lab.clients[0].netns;
    netns.sysctl("net/ipv4/tcp_tw_reuse", "1").must("reuse ports");
    netns.sysctl("net/ipv4/ip_local_port_range", "20000 29999").must("choose ports");
    let learnt = checks(netns, Duration::from_secs(7));
    // Ports that no verdict of the time before is about.
    netns.sysctl("net/ipv4/ip_local_port_range", "40000 40099").must("choose ports");
    let count = checks(netns, Duration::from_secs(seconds()));
    // The last ones end, and the metrics follow once a second.
    std::thread::sleep(Duration::from_secs(4));
    let spared = spared(&agent);
    agent.stop().must("stop the agent");
    let text = std::fs::read_to_string(home.path("state/audit.jsonl")).map_err(Into::into).must("read the audit");
    let lines: Vec<Value> = text.lines().filter_map(|line| serde_json::from_str(line).ok()).collect();
    let is_drop = |line: &&Value| {
        let late = line["scope"].as_str().is_some_and(|scope| scope.contains(":400"));
        line["event"] == "verdict" && line["action"] == "drop" && late
    };
    let drops = lines.iter().filter(is_drop).count();
    (learnt, count, spared, drops, lines.into_iter().filter(|line| line["event"] == "spared").collect())
}

#[test]
fn health_checks_go_on() {
    let (_, off, none, verdicts, lines) = run(&SETTINGS.replace("4s", "0s"));
    println!("health checks: {} of {} broken without the guard, {verdicts} verdicts of drop", off.broken, off.made);
    assert!(none == 0 && lines.is_empty(), "the guard is off");
    let (learnt, on, spared, verdicts, lines) = run(SETTINGS);
    println!(
        "health checks: {} of {} broken with it, {verdicts} verdicts of drop, {spared} spared; {} of {} while it \
         learnt",
        on.broken, on.made, learnt.broken, learnt.made
    );
    assert_eq!(on.broken, 0, "of {}", on.made);
    assert_eq!(verdicts, 0, "no verdict of drop on a check that is a habit");
    assert!(spared > 0, "the model has not come to see them as benign");
    assert!(!lines.is_empty() && lines.len() <= 2, "the audit says so once for each service: {lines:?}");
    assert!(lines[0]["visits"].as_u64().is_some_and(|visits| visits >= 10), "{lines:?}");
}

/// What a checker may do, its host may not: the same address sends an attack, at the service that it checks and at
/// another.
#[test]
fn a_habit_is_no_licence() {
    let lab = lab(1, 0);
    service(&lab, RESET, echo);
    service(&lab, GREETING, echo);
    let home = Home::new(SETTINGS, &sensor_tests::onnx::model("sizes", 200.0, &[]));
    let agent = home.agent(&lab);
    let netns = &lab.clients[0].netns;
    let visit = || {
        let mut stream = connect(netns, RESET).map_err(Into::into).must("connect");
        stream.write_all(&[0x5a; 3_000]).map_err(Into::into).must("send");
        let _echo = stream.read(&mut [0; 3_000]);
    };
    let start = Instant::now();
    while start.elapsed() < Duration::from_secs(30) && spared(&agent) == 0 {
        visit();
        std::thread::sleep(PAUSE);
    }
    let learnt = spared(&agent);
    assert!(learnt > 0, "what it does slowly is spared");
    for port in [RESET, GREETING] {
        let mut attack = Talkers::connect(netns, port, 40, 3_000);
        sensor_tests::checks::wait_for("its flood is cut", super::guard_scene::PATIENCE, || {
            attack.talk();
            attack.answered() == 0
        });
    }
    println!("health checks: {learnt} visits spared, then 80 of 80 connections of a flood by the same host cut");
    agent.stop().must("stop the agent");
}
