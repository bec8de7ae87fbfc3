//! What several whole-agent tests check in the same way. Everything here panics: a check that does not hold is a
//! failed test.

use std::process::{Command, Output, Stdio};
use std::time::{Duration, Instant};

use rustix::process::Signal;
use serde_json::Value;

use crate::agent::{Agent, binary, workspace};
use crate::attacks::{Attack, RunningAttack};
use crate::counters::Received;
use crate::netns::Ns;
use crate::streams::SINK_PORT;
use crate::topology::Host;

/// A part of a test that may fail for want of a tool or a namespace. `what` is shown if it does.
pub trait Must<T> {
    /// The value.
    ///
    /// # Panics
    /// With `what` and the whole chain of causes.
    fn must(self, what: &str) -> T;
}

impl<T> Must<T> for anyhow::Result<T> {
    #[track_caller]
    fn must(self, what: &str) -> T {
        match self {
            Ok(value) => value,
            Err(error) => panic!("{what}: {error:#}"),
        }
    }
}

/// Asks `is_so` every 20 ms until it holds; returns how long that took.
///
/// # Panics
/// If it does not hold within `limit`.
#[track_caller]
pub fn wait_for(what: &str, limit: Duration, mut is_so: impl FnMut() -> bool) -> Duration {
    let start = Instant::now();
    loop {
        if is_so() {
            return start.elapsed();
        }
        assert!(start.elapsed() < limit, "not within {limit:?}: {what}");
        std::thread::sleep(Duration::from_millis(20));
    }
}

/// Kills an agent, and waits until nothing of its process is left.
///
/// # Panics
/// If it has ended before, or that takes more than 5 s.
#[track_caller]
pub fn kill(agent: &Agent) {
    agent.kill(Signal::KILL).must("kill the agent");
    wait_for("the kernel has cleared the agent away", Duration::from_secs(5), || !agent.is_running());
}

/// The shipped model's path.
///
/// # Panics
/// If it is not there.
#[must_use]
pub fn shipped_model() -> String {
    let path = workspace().join("models/sensor.onnx");
    assert!(path.is_file(), "there is no model at {}", path.display());
    path.to_string_lossy().into_owned()
}

/// The only flow of `flows` (see [`crate::agent::Agent::flows`]) with this initiator, protocol and responder port.
///
/// # Panics
/// If there is none or more than one.
#[track_caller]
#[must_use]
pub fn flow<'a>(flows: &'a [Value], src: &str, protocol: &str, dport: Option<u16>) -> &'a Value {
    let is_it = |flow: &&Value| {
        flow["src"] == src && flow["protocol"] == protocol && dport.is_none_or(|port| flow["dport"] == port)
    };
    let found: Vec<&Value> = flows.iter().filter(is_it).collect();
    assert_eq!(found.len(), 1, "flows from {src}, {protocol} to port {dport:?}, among {flows:#?}");
    found[0]
}

/// A UDP flood in one flow, to the sink of [`crate::streams::Media`]: thousands of packets a second.
#[must_use]
pub fn udp_flood(sport: u16) -> Attack {
    Attack::packet_flood(100, &format!("-2 -k -s {sport} -p {SINK_PORT} -d 512"))
}

/// Starts a [`udp_flood`] from `attacker` and waits for the agent to drop it. The model judges what the machine made of
/// the packets' timing, so a flood may be missed; then a flow from the next of five source ports is tried.
///
/// # Panics
/// If none of the five is dropped.
#[track_caller]
#[must_use]
pub fn dropped_flood(agent: &Agent, attacker: &Host, sport: u16) -> RunningAttack {
    let source = attacker.v4[0].to_string();
    let mut missed = Vec::new();
    for sport in sport..sport + 5 {
        let flood = udp_flood(sport)
            .start(&attacker.netns, attacker.v4[0], Duration::from_secs(60), None)
            .must("start the flood");
        let begun = Instant::now();
        while begun.elapsed() < Duration::from_secs(6) {
            std::thread::sleep(Duration::from_millis(50));
            let flows = agent.flows().must("ask for the flows");
            let Some(own) = flows.into_iter().find(|flow| flow["src"] == source && flow["sport"] == sport) else {
                continue;
            };
            if own["verdict"] == "drop" {
                return flood;
            }
            missed.retain(|other: &Value| other["sport"] != sport);
            missed.push(own);
        }
    }
    panic!("no flood is dropped: {missed:#?}");
}

/// Packets of the only source, or of the first, that is counted.
///
/// # Panics
/// If nft fails.
#[track_caller]
#[must_use]
pub fn count(received: &Received<'_>) -> u64 {
    received.packets().must("read the counter")[0]
}

/// Waits until the receiver has seen nothing of the flood for half a second.
///
/// # Panics
/// If that takes more than 15 s.
#[track_caller]
pub fn wait_until_dropped(received: &Received<'_>) {
    let (mut last, mut since) = (count(received), Instant::now());
    wait_for("the flood is dropped", Duration::from_secs(15), || {
        let now = count(received);
        if now != last {
            (last, since) = (now, Instant::now());
        }
        since.elapsed() >= Duration::from_millis(500)
    });
}

/// Whether an XDP program is on `device`.
///
/// # Panics
/// If there is no such device.
#[track_caller]
#[must_use]
pub fn has_xdp(netns: &Ns, device: &str) -> bool {
    netns.ip(&format!("-d link show dev {device}")).must("look at the device").contains("prog/xdp")
}

/// Nothing of the agent is left on `device`: no XDP program, no qdisc but the device's own, no filter.
///
/// # Panics
/// If something is.
#[track_caller]
pub fn assert_clean(netns: &Ns, device: &str) {
    assert!(!has_xdp(netns, device), "an XDP program is still on {device}");
    let qdiscs = netns.run("tc", &["qdisc", "show", "dev", device]).must("list the qdiscs");
    assert!(!qdiscs.contains("clsact") && !qdiscs.contains("ingress"), "a qdisc is still on {device}: {qdiscs}");
    for hook in ["ingress", "egress"] {
        // Without the qdisc tc refuses to list, which is the answer wanted.
        let filters = netns.run("tc", &["filter", "show", "dev", device, hook]).unwrap_or_default();
        assert!(!filters.contains("sensor"), "a filter is still on {device}: {filters}");
    }
}

/// Runs `sensor <args>` in `netns` to its end, as the command line of a person; `prefix` are words before the binary.
///
/// # Panics
/// If it cannot be started or does not end within 20 seconds.
#[track_caller]
#[must_use]
pub fn run_sensor(netns: &Ns, prefix: &[&str], args: &[&str]) -> Output {
    let mut command: Command = netns.command("timeout");
    command.args(["-k", "1", "20"]).args(prefix);
    if prefix.is_empty() {
        command.arg(binary().must("find the binary"));
    }
    let output = command.args(args).stdin(Stdio::null()).output().map_err(Into::into).must("run sensor");
    assert_ne!(output.status.code(), Some(124), "sensor {args:?} does not end: {}", text(&output.stderr));
    output
}

/// A start that had to fail: exit code `code`, one line on standard error that contains each of `words`, nothing on
/// standard output.
///
/// # Panics
/// If it is otherwise.
#[track_caller]
pub fn assert_refused(output: &Output, code: i32, words: &[&str]) {
    let stderr = text(&output.stderr);
    assert_eq!(output.status.code(), Some(code), "stderr: {stderr}");
    let lines: Vec<&str> = stderr.lines().filter(|line| !line.trim().is_empty()).collect();
    assert_eq!(lines.len(), 1, "one line, not:\n{stderr}");
    for word in words {
        assert!(lines[0].contains(word), "\"{word}\" is not in: {}", lines[0]);
    }
    assert_eq!(text(&output.stdout), "", "standard output");
}

/// What a program wrote.
#[must_use]
pub fn text(bytes: &[u8]) -> String {
    String::from_utf8_lossy(bytes).into_owned()
}
