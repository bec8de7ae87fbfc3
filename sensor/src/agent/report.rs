//! What the poll thread says of itself: flow list, status, verdict lines, summary lines, and whether packets are seen at all.

use std::collections::HashMap;
use std::path::Path;
use std::time::{Duration, Instant};

use sensor_common::features::{FEATURES, Feature, Sample};
use sensor_common::flow::{FlowRecord, state};
use sensor_common::verdict::{Action, Origin, Verdict};

use super::clock::now_ns;
use super::poll::Poller;
use crate::bpf::attach::STATISTICS;
use crate::config::ActionName;
use crate::model::{Model, Score};
use crate::policy::{Decision, Spared};
use crate::verdicts::scope::addresses;
use crate::view::{
    DriftView, FeaturesView, FlowView, FlowsView, InterfaceView, LeaseState, LeaseView, ModelView, PollView,
    StatusView, TableView, protocol_name,
};

/// How long an interface may receive packets that no program sees before the agent says so.
const SEEN_WITHIN: Duration = Duration::from_secs(10);

/// A flow as lists show it.
pub(super) fn flow(poller: &Poller, slot: usize, record: &FlowRecord, interface: Option<&str>, now: u64) -> FlowView {
    let memory = &poller.memories[slot];
    let known = memory.generation == record.generation;
    let score = memory.score.filter(|_| known);
    let label = score.zip(poller.model.as_ref()).and_then(|(score, model)| model.labels.get(score.label as usize));
    let word = Verdict(record.verdict);
    let action = word.action_at(record.generation, now);
    let origin = Origin::from_number(word.origin()).unwrap_or_default();
    let done = action.min(poller.enforcer.ceiling(origin));
    let would = memory.would.filter(|_| known).map(|(_, would)| would).max(Some(action));
    let (src, sport, dst, dport) = oriented(record);
    let reverse = record.reverse();
    FlowView {
        id: format!("{slot}-{}", record.generation),
        interface: interface.map_or_else(|| record.ifindex.to_string(), str::to_owned),
        src,
        sport,
        dst,
        dport,
        protocol: protocol_name(record.key.protocol),
        vlans: record.key.vlans.iter().copied().filter(|vlan| *vlan != 0).collect(),
        initiator_packets: record.forward().packets,
        initiator_bytes: record.forward().l3_bytes,
        responder_packets: reverse.map_or(0, |half| half.packets),
        responder_bytes: reverse.map_or(0, |half| half.l3_bytes),
        dropped_packets: record.dropped,
        busy_packets: record.lost.into(),
        age_seconds: seconds(now, record.first_ns),
        idle_seconds: seconds(now, record.last_ns),
        score: score.map(|score| score.score as f64),
        label: label.cloned(),
        verdict: done.into(),
        would_verdict: would.filter(|would| *would > done).map(ActionName::from),
    }
}

/// Addresses and ports as initiator → responder.
fn oriented(record: &FlowRecord) -> (String, u16, String, u16) {
    let [low, high] = addresses(&record.key).map(|address| address.to_string());
    if record.state & state::INITIATOR_HIGH == 0 {
        (low, record.key.low_port, high, record.key.high_port)
    } else {
        (high, record.key.high_port, low, record.key.low_port)
    }
}

/// Initiator and responder as people read them.
pub(super) fn oriented_text(record: &FlowRecord) -> String {
    let (src, sport, dst, dport) = oriented(record);
    let end = |address: String, port: u16| match (port, address.contains(':')) {
        (0, _) => address,
        (port, true) => format!("[{address}]:{port}"),
        (port, false) => format!("{address}:{port}"),
    };
    format!("{} {} > {}", protocol_name(record.key.protocol), end(src, sport), end(dst, dport))
}

fn seconds(now: u64, then: u64) -> f64 {
    now.saturating_sub(then) as f64 / 1e9
}

/// The features of a flow that lives, by its id ([`FlowView::id`]); `None` if there is none any more.
pub(super) fn features(poller: &Poller, id: &str) -> Option<FeaturesView> {
    let (slot, generation) = id.split_once('-')?;
    let (slot, generation) = (slot.parse::<usize>().ok()?, generation.parse::<u32>().ok()?);
    if slot >= poller.kernel.table.capacity() {
        return None;
    }
    let record = poller.kernel.table.copy(slot).filter(|record| record.generation == generation)?;
    let now = now_ns();
    let attached = poller.attached.iter().find(|attached| attached.ifindex == record.ifindex);
    let interface = attached.map(|attached| attached.interface.as_str());
    let sample = Sample { record: &record, context: &poller.host_context(&record, now) };
    let value = |feature: &Feature| Some(feature.value(&sample)).filter(|value| value.is_finite());
    Some(FeaturesView {
        flow: flow(poller, slot, &record, interface, now),
        features: FEATURES.iter().map(|feature| (feature.name.to_owned(), value(feature))).collect(),
    })
}

/// A model as the control socket shows it.
pub(super) fn model(model: &Model, path: &Path) -> ModelView {
    ModelView {
        path: path.display().to_string(),
        name: model.name.clone(),
        hash: model.hash.clone(),
        kind: model.kind.name().to_owned(),
        features: model.features.len(),
        labels: model.labels.clone(),
        threshold: model.thresholds.report as f64,
    }
}

/// The first digits of a model's hash, as logs show it.
pub(super) fn short_hash(model: &Model) -> &str {
    &model.hash[..model.hash.len().min(12)]
}

/// The state of the agent.
pub(super) fn status(poller: &Poller) -> StatusView {
    let Poller { config, kernel, attached, model, shadow, drift, enforcer, metrics, .. } = poller;
    let totals = metrics.totals();
    let remaining = poller.lease_until_ns.saturating_sub(now_ns());
    StatusView {
        version: env!("CARGO_PKG_VERSION").to_owned(),
        pid: std::process::id(),
        mode: poller.enforcer.mode,
        uptime_seconds: poller.started.elapsed().as_secs_f64(),
        lease: LeaseView {
            state: if remaining > 0 { LeaseState::Active } else { LeaseState::Expired },
            remaining_seconds: remaining as f64 / 1e9,
            seconds: config.agent.lease.as_secs_f64(),
        },
        poll: PollView {
            interval_seconds: config.agent.poll_interval.as_secs_f64(),
            last_seconds: poller.last_poll.as_secs_f64(),
            overruns: metrics.overruns(),
        },
        model: model.as_ref().map(|loaded| self::model(loaded, config.model.path.as_deref().unwrap_or(Path::new("")))),
        shadow: shadow
            .as_ref()
            .map(|shadow| self::model(&shadow.model, config.model.shadow.as_deref().unwrap_or(Path::new("")))),
        drift: drift.last.as_ref().zip(drift.level).map(|(window, level)| DriftView {
            level: level.name().to_owned(),
            score: window.score,
            highest: window
                .features
                .iter()
                .zip(model.iter().flat_map(|model| &model.features))
                .max_by(|a, b| a.0.total_cmp(b.0))
                .map(|(psi, feature)| (feature.name.to_owned(), *psi)),
            fallback: enforcer.drifted,
        }),
        interfaces: attached
            .iter()
            .map(|attached| InterfaceView {
                name: attached.interface.clone(),
                ifindex: attached.ifindex,
                xdp: attached.xdp.name().to_owned(),
                egress: attached.egress.name().to_owned(),
                tag: attached.tags().then(|| attached.egress.name().to_owned()),
                packets: metrics.packets_view(Some(&attached.interface)),
            })
            .collect(),
        table: TableView {
            capacity: kernel.table.capacity() as u64,
            occupancy: totals.flows_active,
            memory_bytes: kernel.memory().taken,
            agent_bytes: metrics.own_memory(),
        },
        context: metrics.context_view(),
        packets: metrics.packets_view(None),
        flows: FlowsView { created: totals.flows_created, ended: totals.flows_ended, scored: totals.scored },
        verdicts: metrics.verdicts_view(),
        enforcement: poller.enforcement_view(),
        config: poller.settled.state(),
        state_problem: enforcer.store.problem(),
        state_doubt: enforcer.doubt.as_ref().map(|doubt| doubt.text.clone()),
        loss: metrics.loss_view(),
    }
}

/// One line per verdict: who, what, why, and what is done.
pub(super) fn log_verdict(
    record: &FlowRecord,
    score: Score,
    label: &str,
    done: Action,
    decision: Decision,
    model: &Model,
) {
    let Decision { would, spared, .. } = decision;
    let (src, sport, dst, dport) = oriented(record);
    tracing::info!(
        src,
        sport,
        dst,
        dport,
        protocol = protocol_name(record.key.protocol),
        packets = record.packets(),
        label,
        score = score.score,
        action = done.name(),
        would = would.name(),
        spared = spared.map(Spared::name),
        model = short_hash(model),
        "{}",
        match (done, would) {
            _ if spared.is_some() => "spared: tagged and no more",
            (Action::Pass, Action::Pass) => "reported",
            (Action::Pass, _) => "verdict withheld by the mode",
            _ => "verdict",
        }
    );
}

/// Proves after attaching that the programs see packets: an attachment that succeeded is no proof.
pub(super) struct SeenCheck {
    waiting: Vec<Unproven>,
}

/// An interface of which no packet was seen yet.
struct Unproven {
    interface: String,
    since: Instant,
    /// Its own count of received packets at the first look.
    before: Option<u64>,
}

impl SeenCheck {
    pub(super) fn new<'a>(attached: impl Iterator<Item = &'a str>) -> SeenCheck {
        let mut check = SeenCheck { waiting: Vec::new() };
        attached.for_each(|interface| check.add(interface));
        check
    }

    /// One more that was attached.
    pub(super) fn add(&mut self, interface: &str) {
        self.waiting.retain(|one| one.interface != interface);
        self.waiting.push(Unproven { interface: interface.to_owned(), since: Instant::now(), before: None });
    }

    /// Takes out the interfaces that were proven, have been quiet or are gone; warns of those that received packets unseen.
    pub(super) fn look(&mut self, seen: impl Fn(&str) -> u64) {
        self.waiting.retain(|one| seen(&one.interface) == 0);
        let is_over = |one: &Unproven| one.since.elapsed() >= SEEN_WITHIN;
        if !self.waiting.iter().any(|one| one.before.is_none() || is_over(one)) {
            return;
        }
        // The kernel adds up all interfaces for it, so it is read when something is asked of it, and once.
        let received = received();
        let mut quiet = Vec::new();
        self.waiting.retain_mut(|one| {
            let Some(now) = received.get(&one.interface) else { return false };
            let before = *one.before.get_or_insert(*now);
            if !is_over(one) {
                return true;
            }
            let (interface, packets) = (one.interface.as_str(), now.saturating_sub(before));
            if packets > 0 {
                tracing::warn!(
                    interface,
                    packets,
                    "attached, but the interface received packets that the programs did not see; try --xdp-mode tc"
                );
            } else {
                quiet.push(interface.to_owned());
            }
            false
        });
        match quiet.as_slice() {
            [] => {}
            [interface] => tracing::info!(interface, "no traffic yet"),
            several => tracing::info!("no traffic yet on {} interfaces", several.len()),
        }
    }
}

/// Packets that each interface received.
fn received() -> HashMap<String, u64> {
    let table = std::fs::read_to_string(STATISTICS).unwrap_or_default();
    let packets = |line: &str| {
        let (name, numbers) = line.rsplit_once(':')?;
        Some((name.trim().to_owned(), numbers.split_whitespace().nth(1)?.parse().ok()?))
    };
    table.lines().filter_map(packets).collect()
}
