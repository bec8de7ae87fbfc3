//! The agent's metrics: typed methods for the poll thread, text for `/metrics`, totals for the summary and the status.
//!
//! Every metric is declared in [`declared`]; every value has one writer, the poll thread. Nothing here blocks for
//! longer than it takes to copy some thousand numbers: of the labels of all models that were loaded, the first 256 are
//! told apart.

mod config;
pub mod declared;
mod encode;
mod enforce;
mod life;
mod process;
mod state;
pub mod text;

use std::collections::BTreeMap;
use std::sync::Arc;
use std::sync::atomic::AtomicU64;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use prometheus_client::metrics::counter::Counter;
use prometheus_client::metrics::gauge::Gauge;
use prometheus_client::metrics::histogram::{Histogram, exponential_buckets};
use prometheus_client::registry::{Metric as Registered, Registry};
use sensor_common::counter::InterfaceCounters;
use sensor_common::verdict::Action;

use self::declared::Metric;
use self::encode::StateCollector;
pub use self::enforce::{Enforcement, VerdictChange};
pub use self::life::{Agreement, LoadSource, ModelRole};
pub use self::state::EndReason;
use self::state::{Interface, Shared, VerdictCounts, seen};
use crate::view::{ContextView, PacketsView, VerdictsView};

/// Cumulative totals, for the summary line.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Totals {
    /// Frames seen.
    pub packets: u64,
    /// Bytes seen.
    pub bytes: u64,
    /// Frames dropped.
    pub dropped: u64,
    /// Flow records in use now.
    pub flows_active: u64,
    /// Flow records started.
    pub flows_created: u64,
    /// Flows ended.
    pub flows_ended: u64,
    /// Scores given.
    pub scored: u64,
    /// Verdicts stored.
    pub verdicts: u64,
    /// Verdicts that the mode withheld.
    pub would_verdicts: u64,
    /// Packets lost to the table or on the way to the agent (not those that no flow can be made of).
    pub lost: u64,
}

/// All metrics of one agent.
#[derive(Debug)]
pub struct Metrics {
    registry: Registry,
    shared: Arc<Shared>,
    flows_active: Gauge<u64, AtomicU64>,
    capacity: Gauge<u64, AtomicU64>,
    occupancy: Gauge<f64, AtomicU64>,
    map_memory: Gauge<u64, AtomicU64>,
    scored: Counter,
    inference: Histogram,
    inference_errors: Counter,
    lease: Gauge<u64, AtomicU64>,
    poll: Histogram,
    overruns: Counter,
    shadow_inference: Histogram,
    shadow_difference: Histogram,
    shadow_skipped: Counter,
    shadow_errors: Counter,
}

impl Default for Metrics {
    fn default() -> Metrics {
        Metrics::new()
    }
}

impl Metrics {
    /// Registers everything. One per process and agent.
    pub fn new() -> Metrics {
        let mut registry = Registry::default();
        let shared = Arc::new(Shared::default());
        let started_unix = SystemTime::now().duration_since(UNIX_EPOCH).map_or(0.0, |age| age.as_secs_f64());
        let metrics = Metrics {
            flows_active: register(&mut registry, &declared::ACTIVE, Gauge::default()),
            capacity: register(&mut registry, &declared::CAPACITY, Gauge::default()),
            occupancy: register(&mut registry, &declared::OCCUPANCY, Gauge::default()),
            map_memory: register(&mut registry, &declared::MAP_MEMORY, Gauge::default()),
            scored: register(&mut registry, &declared::SCORED, Counter::default()),
            // 20 µs to 1.3 s: from a small batch of a small model to one that must not be used.
            inference: register(&mut registry, &declared::INFERENCE, histogram(20e-6)),
            inference_errors: register(&mut registry, &declared::INFERENCE_ERRORS, Counter::default()),
            lease: register(&mut registry, &declared::LEASE, Gauge::default()),
            // 50 µs to 3.3 s: from an idle table to one whose polls are late.
            poll: register(&mut registry, &declared::POLL, histogram(50e-6)),
            overruns: register(&mut registry, &declared::OVERRUNS, Counter::default()),
            shadow_inference: register(&mut registry, &declared::SHADOW_INFERENCE, histogram(20e-6)),
            // 0.0001 to 1.
            shadow_difference: register(
                &mut registry,
                &declared::SHADOW_DIFFERENCE,
                Histogram::new([0.0001, 0.001, 0.01, 0.05, 0.1, 0.2, 0.3, 0.5, 0.7, 0.9]),
            ),
            shadow_skipped: register(&mut registry, &declared::SHADOW_SKIPPED, Counter::default()),
            shadow_errors: register(&mut registry, &declared::SHADOW_ERRORS, Counter::default()),
            shared: shared.clone(),
            registry: Registry::default(),
        };
        registry.register_collector(Box::new(StateCollector { shared, started_unix }));
        Metrics { registry, ..metrics }
    }

    /// Takes over the kernel's counters of an interface: sums over all CPUs since the programs were loaded.
    pub fn kernel(&self, interface: &str, counters: &InterfaceCounters) {
        let mut state = self.shared.lock();
        let value = Interface::new(counters, state.interfaces.get(interface));
        match state.interfaces.get_mut(interface) {
            Some(entry) => *entry = value,
            None => drop(state.interfaces.insert(interface.to_owned(), value)),
        }
    }

    /// Ends the series of interfaces whose counters are in those of `gone` now, if there are any: in one step, so that no scrape sees
    /// a sum without them.
    pub fn fold(&self, interfaces: &[String], gone: &str, counters: Option<&InterfaceCounters>) {
        let mut state = self.shared.lock();
        if let Some(counters) = counters {
            let value = Interface::new(counters, state.interfaces.get(gone));
            state.interfaces.insert(gone.to_owned(), value);
        }
        state.interfaces.retain(|name, _| !interfaces.contains(name));
        let ended: u64 = interfaces.iter().filter_map(|name| state.taken_off.remove(name)).sum();
        if ended > 0 {
            *state.taken_off.entry(gone.to_owned()).or_default() += ended;
        }
    }

    /// An interface has a new name: its counters are in the series of that one from now on, and in that of the old one is what other
    /// interfaces of that name counted before, if any did.
    pub fn rename(&self, old: (&str, Option<&InterfaceCounters>), new: (&str, &InterfaceCounters)) {
        let mut state = self.shared.lock();
        state.interfaces.remove(old.0);
        for (name, counters) in old.1.map(|before| (old.0, before)).into_iter().chain([new]) {
            let value = Interface::new(counters, state.interfaces.get(name));
            state.interfaces.insert(name.to_owned(), value);
        }
    }

    /// Sets on which interfaces the programs are, and on which they should be; and how often changes of interfaces were lost.
    pub fn interfaces(&self, attached: BTreeMap<String, bool>, overruns: u64) {
        let mut state = self.shared.lock();
        (state.attached, state.link_overruns) = (attached, overruns);
    }

    /// The programs were found taken off an interface.
    pub fn taken_off(&self, interface: &str) {
        *self.shared.lock().taken_off.entry(interface.to_owned()).or_default() += 1;
    }

    /// Takes over a program's statistics: cumulative time and runs.
    pub fn program(&self, program: &str, run_time: Duration, runs: u64) {
        self.shared.lock().programs.insert(program.to_owned(), (run_time.as_secs_f64(), runs));
    }

    /// Sets the table's capacity and the records in use, both in flows.
    pub fn table(&self, capacity: u64, occupied: u64) {
        self.capacity.set(capacity);
        self.flows_active.set(occupied);
        self.occupancy.set(if capacity == 0 { 0.0 } else { occupied as f64 / capacity as f64 });
    }

    /// Sets the memory of all maps, in bytes, and how much of it this process maps.
    pub fn map_memory(&self, bytes: u64, mapped: u64) {
        self.map_memory.set(bytes);
        self.shared.lock().mapped = mapped;
    }

    /// Resident memory of this process without the maps that it maps, in bytes; 0 if it cannot be told.
    pub fn own_memory(&self) -> u64 {
        process::own_bytes(self.shared.lock().mapped).unwrap_or_default()
    }

    /// Sets the entries of the host context in use.
    pub fn context(&self, sources: u64, services: u64) {
        self.shared.lock().context = Some((sources, services));
    }

    /// The host context for the status; `None` while nothing is known of it.
    pub fn context_view(&self) -> Option<ContextView> {
        let state = self.shared.lock();
        let sum = |of: fn(&InterfaceCounters) -> u64| state.interfaces.values().map(|i| of(&i.counters)).sum();
        state.context.map(|(sources, services)| ContextView {
            sources,
            services,
            replaced: sum(|counters| counters.context_replaced),
            lost: sum(|counters| counters.context_lost),
        })
    }

    /// The kernel's counters as they were last taken over, of each interface.
    pub fn interface_counters(&self) -> Vec<InterfaceCounters> {
        self.shared.lock().interfaces.values().map(|interface| interface.counters).collect()
    }

    /// Counts flows that ended.
    pub fn flows_ended(&self, reason: EndReason, flows: u64) {
        *self.shared.lock().ended.entry(reason).or_default() += flows;
    }

    /// Takes over what the books say: frames in records that were released, and in those that were evicted.
    pub fn ended_packets(&self, released: u64, evicted: u64) {
        self.shared.lock().ended_packets = [released, evicted];
    }

    /// Counts a flow that ended and was not scored for lack of room.
    pub fn unscored(&self) {
        self.shared.lock().unscored += 1;
    }

    /// Counts one inference call that scored a batch of flows.
    pub fn inference(&self, flows: u64, duration: Duration) {
        self.scored.inc_by(flows);
        self.inference.observe(duration.as_secs_f64());
    }

    /// Counts one inference call that failed.
    pub fn inference_error(&self) {
        self.inference_errors.inc();
    }

    /// Counts verdicts that were stored in records. `label` is one of the model's.
    pub fn verdicts(&self, action: Action, label: &str, verdicts: u64) {
        let mut state = self.shared.lock();
        let label = state.label(label);
        *state.verdicts.entry((action, label)).or_default() += verdicts;
    }

    /// Counts verdicts that the mode withheld. `label` is one of the model's.
    pub fn would_verdicts(&self, action: Action, label: &str, verdicts: u64) {
        let mut state = self.shared.lock();
        let label = state.label(label);
        *state.would.entry((action, label)).or_default() += verdicts;
    }

    /// Counts flows that are reported and nothing more. `label` is one of the model's.
    pub fn reported(&self, label: &str, flows: u64) {
        let mut state = self.shared.lock();
        let label = state.label(label);
        *state.reported.entry(label).or_default() += flows;
    }

    /// Sets whether the programs obey verdicts.
    pub fn lease(&self, active: bool) {
        self.lease.set(active as u64);
    }

    /// Counts one poll, and whether it took longer than the interval.
    pub fn poll(&self, duration: Duration, overrun: bool) {
        self.poll.observe(duration.as_secs_f64());
        self.overruns.inc_by(overrun as u64);
    }

    /// Polls that took longer than the interval.
    pub fn overruns(&self) -> u64 {
        self.overruns.get()
    }

    /// The exposition in OpenMetrics 1.0 text.
    pub fn open_metrics(&self) -> String {
        let mut text = String::with_capacity(16 * 1024);
        // Writing to a string fails only if a metric's own encoding does, and then the rest still stands.
        if let Err(error) = prometheus_client::encoding::text::encode(&mut text, &self.registry) {
            tracing::error!(%error, "cannot encode the metrics");
        }
        text
    }

    /// The exposition in Prometheus text 0.0.4.
    pub fn prometheus(&self) -> String {
        text::prometheus(&self.open_metrics())
    }

    /// Totals over all interfaces.
    pub fn totals(&self) -> Totals {
        let state = self.shared.lock();
        let mut totals = Totals {
            flows_active: self.flows_active.get(),
            scored: self.scored.get(),
            flows_ended: state.ended.values().sum(),
            verdicts: state.verdicts.values().sum(),
            would_verdicts: state.would.values().sum(),
            lost: state.losses().iter().filter(|(stage, _, _)| *stage != "parse").map(|(_, _, n)| n).sum(),
            ..Totals::default()
        };
        for Interface { counters, .. } in state.interfaces.values() {
            let all = seen(counters);
            totals.packets += all.packets;
            totals.bytes += all.bytes;
            totals.dropped += counters.seen.iter().map(|hook| hook[Action::Drop as usize].packets).sum::<u64>();
            totals.flows_created += counters.flows_created;
        }
        totals
    }

    /// Packets seen, in records and not, for the status. `interface`: of one, else of all.
    pub fn packets_view(&self, interface: Option<&str>) -> PacketsView {
        let state = self.shared.lock();
        let mut view = PacketsView::default();
        let of_one = interface.map(|wanted| state.interfaces.get(wanted));
        let of_all = interface.is_none().then(|| state.interfaces.values());
        for Interface { counters, .. } in of_one.flatten().into_iter().chain(of_all.into_iter().flatten()) {
            let all = seen(counters);
            let of = |action: Action| counters.seen.iter().map(|hook| hook[action as usize].packets).sum::<u64>();
            view.seen += all.packets;
            view.bytes += all.bytes;
            view.passed += of(Action::Pass);
            view.tagged += of(Action::Tag);
            view.limited += of(Action::Limit);
            view.dropped += of(Action::Drop);
            view.unrecorded += counters.unrecorded.iter().sum::<u64>();
        }
        view.recorded = view.seen.saturating_sub(view.unrecorded).saturating_sub(view.dropped);
        view
    }

    /// Verdicts by action and label, for the status.
    pub fn verdicts_view(&self) -> VerdictsView {
        let state = self.shared.lock();
        VerdictsView { stored: by_action(&state.verdicts), withheld: by_action(&state.would) }
    }

    /// Packets by stage and cause of their loss, without those that are 0, for the status.
    pub fn loss_view(&self) -> BTreeMap<String, BTreeMap<String, u64>> {
        let mut view: BTreeMap<String, BTreeMap<String, u64>> = BTreeMap::new();
        for (stage, cause, packets) in self.shared.lock().losses().into_iter().filter(|(_, _, packets)| *packets > 0) {
            view.entry(stage.to_owned()).or_default().insert(cause.to_owned(), packets);
        }
        view
    }
}

fn histogram(smallest: f64) -> Histogram {
    Histogram::new(exponential_buckets(smallest, 2.0, 17))
}

fn register<M: Registered + Clone>(registry: &mut Registry, metric: &'static Metric, value: M) -> M {
    match metric.open_metrics() {
        (name, Some(unit)) => registry.register_with_unit(name, metric.help, unit, value.clone()),
        (name, None) => registry.register(name, metric.help, value.clone()),
    }
    value
}

fn by_action(counts: &VerdictCounts) -> BTreeMap<String, BTreeMap<String, u64>> {
    let mut view: BTreeMap<String, BTreeMap<String, u64>> = BTreeMap::new();
    for ((action, label), count) in counts {
        view.entry(action.name().to_owned()).or_default().insert(label.clone(), *count);
    }
    view
}

#[cfg(test)]
mod tests;
