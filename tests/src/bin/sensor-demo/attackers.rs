//! The attacks of the demo, one host each, and what is known of each from outside and from the agent.

use std::collections::HashMap;
use std::time::{Duration, Instant};

use anyhow::Result;
use sensor_tests::attacks::{Attack, RunningAttack};
use sensor_tests::counters::{Received, interface};
use sensor_tests::topology::{Host, Lab, UPLINK};
use serde_json::Value;

/// A flow with fewer packets than this can be over before the model sees it: the first decision point.
const DECIDABLE_PACKETS: u64 = 4;

/// How many hosts the attacks need.
pub(crate) const COUNT: usize = 5;

/// One attack from one host.
#[derive(Debug)]
pub(crate) struct Attacker<'a> {
    pub(crate) name: &'static str,
    pub(crate) source: String,
    host: &'a Host,
    attack: Attack,
    running: Option<RunningAttack>,
    /// The host's counter before the attack.
    sent_before: u64,
    passed_before: u64,
    /// Packets since the attack began, by the attacker's interface.
    pub(crate) sent: u64,
    /// Packets since the attack began, by the edge's netfilter.
    pub(crate) passed: u64,
    /// How long after the attack's start the first dropped flow was seen, and how many packets had passed by then.
    pub(crate) first_drop: Option<(Duration, u64)>,
}

/// A flow from an attacker that the agent listed at some time.
#[derive(Debug, Default)]
struct Seen {
    attacker: usize,
    packets: u64,
    dropped: bool,
}

/// All attacks.
#[derive(Debug)]
pub(crate) struct Attackers<'a> {
    pub(crate) list: Vec<Attacker<'a>>,
    received: Received<'a>,
    begun: Option<Instant>,
    seen: HashMap<String, Seen>,
    /// Flows of clients that the agent dropped, by id.
    pub(crate) benign_dropped: HashMap<String, String>,
    in_table: usize,
    dropped_in_table: usize,
}

impl<'a> Attackers<'a> {
    pub(crate) fn new(lab: &'a Lab) -> Result<Self> {
        let attacks: [(&str, Attack); COUNT] = [
            ("udp_flood", Attack::packet_flood(250, "-2 -k -s 4444 -p 5514 -d 512")),
            ("http_flood", Attack::http_flood(40, "/file-1460.bin", false)),
            ("slow_headers", Attack::slow_http("-H", 200, 40, "-i 3 -x 24")),
            ("ssh_guessing", Attack::ssh_guessing(8)),
            ("version_scan", Attack::scan("-sV -p 22,53,80,443")),
        ];
        let list: Vec<Attacker<'a>> = attacks
            .into_iter()
            .zip(&lab.attackers)
            .map(|((name, attack), host)| Attacker {
                name,
                source: host.v4[0].to_string(),
                host,
                attack,
                running: None,
                sent_before: 0,
                passed_before: 0,
                sent: 0,
                passed: 0,
                first_drop: None,
            })
            .collect();
        let sources: Vec<(&str, &str)> = list.iter().map(|one| (one.name, one.source.as_str())).collect();
        let received = Received::count(&lab.edge.netns, &sources)?;
        let seen = HashMap::new();
        Ok(Self { list, received, begun: None, seen, benign_dropped: HashMap::new(), in_table: 0, dropped_in_table: 0 })
    }

    /// Starts the attacks, and those again that have ended.
    pub(crate) fn attack(&mut self) -> Result<()> {
        if self.begun.is_none() {
            let passed = self.received.packets()?;
            for (one, passed) in self.list.iter_mut().zip(passed) {
                one.sent_before = interface(&one.host.netns, UPLINK)?.tx_packets;
                one.passed_before = passed;
            }
            self.begun = Some(Instant::now());
        }
        for one in &mut self.list {
            if one.running.as_ref().is_none_or(|running| !running.is_running()) {
                // Bounded also if this program is killed.
                let limit = Duration::from_secs(600);
                one.running = Some(one.attack.start(&one.host.netns, one.host.v4[0], limit, None)?);
            }
        }
        Ok(())
    }

    /// Ends the attacks.
    pub(crate) fn rest(&mut self) {
        for one in &mut self.list {
            one.running = None;
        }
    }

    /// Takes in what the agent lists and what the hosts count.
    pub(crate) fn look(&mut self, flows: &[Value]) -> Result<()> {
        (self.in_table, self.dropped_in_table) = (flows.len(), 0);
        let mut dropping = vec![false; self.list.len()];
        for flow in flows {
            let text = |key: &str| flow[key].as_str().unwrap_or_default();
            let dropped = text("verdict") == "drop";
            self.dropped_in_table += usize::from(dropped);
            if let Some(attacker) = self.list.iter().position(|one| one.source == text("src")) {
                let seen = self.seen.entry(text("id").to_owned()).or_default();
                seen.attacker = attacker;
                seen.packets = seen.packets.max(
                    flow["initiator_packets"].as_u64().unwrap_or_default()
                        + flow["responder_packets"].as_u64().unwrap_or_default(),
                );
                seen.dropped |= dropped;
                dropping[attacker] |= dropped;
            } else if dropped {
                let shown = format!(
                    "{} {} > {} {} {}",
                    text("protocol"),
                    text("src"),
                    text("dst"),
                    flow["dport"],
                    text("label")
                );
                self.benign_dropped.insert(text("id").to_owned(), shown);
            }
        }
        let Some(begun) = self.begun else { return Ok(()) };
        let passed = self.received.packets()?;
        for ((one, passed), dropping) in self.list.iter_mut().zip(passed).zip(dropping) {
            one.sent = interface(&one.host.netns, UPLINK)?.tx_packets.saturating_sub(one.sent_before);
            one.passed = passed.saturating_sub(one.passed_before);
            if dropping && one.first_drop.is_none() {
                one.first_drop = Some((begun.elapsed(), one.passed));
            }
        }
        Ok(())
    }

    /// Attack packets sent.
    pub(crate) fn sent(&self) -> u64 {
        self.list.iter().map(|one| one.sent).sum()
    }

    /// Attack packets that came through to the edge's network stack.
    pub(crate) fn passed(&self) -> u64 {
        self.list.iter().map(|one| one.passed).sum()
    }

    /// Flows in the table at the last look, everybody's.
    pub(crate) const fn flows_in_table(&self) -> usize {
        self.in_table
    }

    /// Flows in the table at the last look with a verdict of drop.
    pub(crate) const fn dropped_flows(&self) -> usize {
        self.dropped_in_table
    }

    /// Of one attacker: flows ever seen, those long enough for a decision, those dropped.
    pub(crate) fn flows_of(&self, attacker: usize) -> (usize, usize, usize) {
        let own = || self.seen.values().filter(|seen| seen.attacker == attacker);
        let decidable = own().filter(|seen| seen.packets >= DECIDABLE_PACKETS || seen.dropped).count();
        (own().count(), decidable, own().filter(|seen| seen.dropped).count())
    }
}
