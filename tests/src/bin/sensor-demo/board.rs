//! What the demo shows: a line per second and the verdict, as a table or as JSON lines.

use std::time::Duration;

use sensor_tests::crowd::Count;
use serde_json::{Value, json};

use crate::attackers::Attackers;

/// One line.
pub(crate) struct Sample {
    pub(crate) at: Duration,
    pub(crate) phase: &'static str,
    pub(crate) clients: Count,
    pub(crate) sent: u64,
    pub(crate) passed: u64,
    /// Connections that nginx has open.
    pub(crate) connections: u64,
    pub(crate) flows: usize,
    pub(crate) dropped_flows: usize,
    pub(crate) dropped_packets: f64,
}

pub(crate) struct Board {
    json: bool,
    observe: bool,
}

impl Board {
    pub(crate) const fn new(json: bool, observe: bool) -> Self {
        Self { json, observe }
    }

    /// Says what is running.
    pub(crate) fn start(&self, status: &Value) {
        if self.json {
            println!("{}", json!({ "status": status }));
            return;
        }
        let interface = &status["interfaces"][0];
        let text = |value: &Value| value.as_str().unwrap_or("?").to_owned();
        println!(
            "agent in mode {}: XDP {}, egress {}",
            text(&status["mode"]),
            text(&interface["xdp"]),
            text(&interface["egress"])
        );
        println!("clients check every byte; `sent` is counted at the attackers, `passed` by netfilter behind XDP\n");
        println!(
            "              ---- clients ----------   -- attack packets --           --- agent ---------------------"
        );
        println!(
            "{:>5} {:<7} {:>7} {:>6} {:>9}   {:>9} {:>10} {:>9}   {:>7} {:>8} {:>13}",
            "s", "phase", "ok", "failed", "MB", "sent", "passed", "web conns", "flows", "dropped", "packets dropped"
        );
    }

    pub(crate) fn row(&self, sample: &Sample) {
        let Sample { at, phase, clients, sent, passed, connections, flows, dropped_flows, dropped_packets } = sample;
        let Count { ok, failed, bytes } = clients;
        if self.json {
            println!(
                "{}",
                json!({
                    "seconds": at.as_secs_f64(), "phase": phase,
                    "clients": { "ok": ok, "failed": failed, "bytes": bytes },
                    "attack_packets": { "sent": sent, "passed": passed },
                    "web_connections": connections,
                    "flows": flows, "flows_dropped": dropped_flows, "packets_dropped": dropped_packets,
                })
            );
            return;
        }
        let megabytes = *bytes as f64 / 1e6;
        println!(
            "{:>5.0} {phase:<7} {ok:>7} {failed:>6} {megabytes:>9.1}   {sent:>9} {passed:>10} {connections:>9}   {flows:>7} {dropped_flows:>8} {dropped_packets:>13.0}",
            at.as_secs_f64()
        );
    }

    /// Sums up; returns whether the run was as it should be.
    pub(crate) fn verdict(&self, attackers: &Attackers<'_>, clients: Count, errors: &[String]) -> bool {
        let Count { ok, failed, bytes } = clients;
        let (mut decidable, mut dropped, mut before_drop) = (0, 0, 0);
        let (mut attacks, mut never) = (Vec::new(), Vec::new());
        for (index, one) in attackers.list.iter().enumerate() {
            let (seen, long, hit) = attackers.flows_of(index);
            decidable += long;
            dropped += hit;
            match one.first_drop {
                Some((_, passed)) => before_drop += passed,
                None => never.push(one.name),
            }
            attacks.push(json!({
                "attack": one.name, "source": one.source, "sent": one.sent, "passed": one.passed,
                "flows_seen": seen, "flows_decidable": long, "flows_dropped": hit,
                "first_drop_seconds": one.first_drop.map(|(after, _)| after.as_secs_f64()),
                "passed_before_first_drop": one.first_drop.map(|(_, passed)| passed),
            }));
        }
        let benign_dropped: Vec<&String> = attackers.benign_dropped.values().collect();
        let good = failed == 0 && ok > 0 && (self.observe || dropped > 0);
        if self.json {
            println!(
                "{}",
                json!({ "verdict": {
                    "good": good, "observe": self.observe,
                    "attack_flows": { "decidable": decidable, "dropped": dropped },
                    "benign": { "ok": ok, "failed": failed, "bytes": bytes, "errors": errors },
                    "benign_flows_dropped": benign_dropped,
                    "passed_before_first_drop": before_drop,
                    "attacks": attacks,
                }})
            );
            return good;
        }
        println!(
            "\n{:<14} {:<14} {:>9} {:>9} {:>7} {:>9} {:>8} {:>18}",
            "attack", "from", "sent", "passed", "flows", "decidable", "dropped", "first drop"
        );
        for one in &attacks {
            let word = |key: &str| one[key].as_str().unwrap_or_default().to_owned();
            let number = |key: &str| one[key].as_u64().unwrap_or_default();
            let first = match (&one["first_drop_seconds"], &one["passed_before_first_drop"]) {
                (Value::Null, _) => "never".to_owned(),
                (after, passed) => format!("{:.2} s, {passed} pkts", after.as_f64().unwrap_or_default()),
            };
            println!(
                "{:<14} {:<14} {:>9} {:>9} {:>7} {:>9} {:>8} {first:>18}",
                word("attack"),
                word("source"),
                number("sent"),
                number("passed"),
                number("flows_seen"),
                number("flows_decidable"),
                number("flows_dropped")
            );
        }
        for error in errors {
            println!("client failed: {error}");
        }
        for flow in &benign_dropped {
            println!("benign flow dropped: {flow}");
        }
        let would = if self.observe { "that would have been dropped" } else { "dropped" };
        println!(
            "\nattack flows {would}: {dropped} of {decidable}, benign transfers: {ok} ok, {failed} failed, packets let through before first drop: {before_drop}"
        );
        if !never.is_empty() {
            println!("attacks without a dropped flow: {}", never.join(", "));
        }
        println!("{}", if good { "GOOD" } else { "NOT GOOD" });
        good
    }
}
