//! The labelled values behind the exposition, and how they are written. The poll thread writes them through
//! [`super::Metrics`]; a scrape copies them and encodes the copy, so it never holds the poll thread up for long.
//!
//! Counters of the kernel are cumulative there and only copied here, which makes each of them monotone.

use std::collections::{BTreeMap, BTreeSet};
use std::fmt;
use std::sync::{Mutex, MutexGuard, PoisonError};

use prometheus_client::collector::Collector;
use prometheus_client::encoding::{DescriptorEncoder, EncodeMetric, MetricEncoder};
use prometheus_client::metrics::counter::ConstCounter;
use prometheus_client::metrics::gauge::ConstGauge;
use sensor_common::counter::{Cause, Hook, InterfaceCounters, Volume};
use sensor_common::verdict::Action;

use super::declared::{self, Kind, Metric};
use super::enforce::{EnforceCounts, Enforcement};
use super::life::{LoadSource, ModelRole};
use super::process;
use crate::allow::Why;
use crate::breaker::Cap;
use crate::config::{Mode, OriginName};
use crate::verdicts::scope::Scope;

/// Why a flow ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum EndReason {
    /// No packet for the idle timeout.
    Idle,
    /// TCP closed it.
    Closed,
    /// Older than the active timeout.
    Active,
    /// Given up by the kernel for a new flow.
    Evicted,
    /// The agent stopped.
    Shutdown,
}

impl EndReason {
    /// Every reason.
    pub const ALL: [EndReason; 5] =
        [EndReason::Idle, EndReason::Closed, EndReason::Active, EndReason::Evicted, EndReason::Shutdown];

    /// The name in metrics.
    pub const fn name(self) -> &'static str {
        match self {
            EndReason::Idle => "idle",
            EndReason::Closed => "closed",
            EndReason::Active => "active",
            EndReason::Evicted => "evicted",
            EndReason::Shutdown => "shutdown",
        }
    }
}

/// One interface: the kernel's sums, and the look-ups that hit, which are derived from them.
#[derive(Clone, Copy, Debug)]
pub(super) struct Interface {
    pub(super) counters: InterfaceCounters,
    pub(super) hits: u64,
}

impl Interface {
    pub(super) fn new(counters: &InterfaceCounters, before: Option<&Interface>) -> Interface {
        let unparsed: u64 =
            Cause::ALL.iter().filter(|cause| cause.stage() == "parse").map(|&cause| lost(counters, cause)).sum();
        let without = unparsed + lost(counters, Cause::Internal) + misses(counters);
        let hits = seen(counters).packets.saturating_sub(without);
        // The parts of the difference are read one after the other while packets arrive: it must not step back.
        Interface { counters: *counters, hits: hits.max(before.map_or(0, |interface| interface.hits)) }
    }
}

/// Packets and bytes of an interface, all hooks and actions.
pub(super) fn seen(counters: &InterfaceCounters) -> Volume {
    let mut total = Volume::default();
    for volume in counters.seen.iter().flatten() {
        total.packets += volume.packets;
        total.bytes += volume.bytes;
    }
    total
}

pub(super) fn lost(counters: &InterfaceCounters, cause: Cause) -> u64 {
    counters.unrecorded[cause as usize]
}

fn misses(counters: &InterfaceCounters) -> u64 {
    let lost = lost(counters, Cause::BucketFull) + lost(counters, Cause::BucketBusy);
    counters.flows_created + counters.dropped_new + lost
}

/// Stage and cause of packets in records that the kernel gave up while the ring to the agent was full.
pub(super) const EVICTED_LOST: (&str, &str) = ("evict", "ring_full");
/// Labels of models that are told apart, of all models since the start.
const MAX_LABELS: usize = 256;
/// What stands for the labels beyond.
pub(super) const OTHER_LABEL: &str = "other";
/// Verdicts by action and label.
pub(super) type VerdictCounts = BTreeMap<(Action, String), u64>;

/// A model in use.
#[derive(Clone, Debug)]
pub(super) struct LoadedModel {
    pub(super) hash: String,
    pub(super) name: String,
    pub(super) loaded_unix: f64,
}

/// How often active model and shadow agreed: `decisions[active][shadow]`, `labels[same]`.
#[derive(Clone, Copy, Debug, Default)]
pub(super) struct ShadowCounts {
    pub(super) decisions: [[u64; Action::ALL.len()]; Action::ALL.len()],
    pub(super) labels: [u64; 2],
}

/// Drift in the last window.
#[derive(Clone, Debug)]
pub(super) struct DriftValues {
    pub(super) features: Vec<(String, f64)>,
    pub(super) score: Option<f64>,
    pub(super) level: u64,
}

/// All labelled values.
#[derive(Clone, Debug, Default)]
pub(super) struct State {
    pub(super) interfaces: BTreeMap<String, Interface>,
    /// Bytes of kernel maps that this process maps.
    pub(super) mapped: u64,
    /// Whether the programs are on each interface of the configuration.
    pub(super) attached: BTreeMap<String, bool>,
    /// Sources and services of the host context in use.
    pub(super) context: Option<(u64, u64)>,
    pub(super) ended: BTreeMap<EndReason, u64>,
    /// Frames in records that were released and evicted.
    pub(super) ended_packets: [u64; 2],
    pub(super) unscored: u64,
    pub(super) verdicts: VerdictCounts,
    pub(super) would: VerdictCounts,
    pub(super) reported: BTreeMap<String, u64>,
    labels: BTreeSet<String>,
    pub(super) programs: BTreeMap<String, (f64, u64)>,
    pub(super) models: BTreeMap<ModelRole, LoadedModel>,
    pub(super) loads: BTreeMap<(ModelRole, LoadSource, bool), u64>,
    pub(super) shadow: Option<ShadowCounts>,
    pub(super) drift: Option<DriftValues>,
    pub(super) drift_windows: u64,
    pub(super) drift_fallback: bool,
    pub(super) enforce: EnforceCounts,
}

impl State {
    /// The label under which one of a model's is counted: itself, or [`OTHER_LABEL`] if there are too many.
    pub(super) fn label(&mut self, label: &str) -> String {
        if self.labels.contains(label) || (self.labels.len() < MAX_LABELS && self.labels.insert(label.to_owned())) {
            return label.to_owned();
        }
        OTHER_LABEL.to_owned()
    }

    /// Packets in no record, by stage and cause, all interfaces.
    pub(super) fn losses(&self) -> Vec<(&'static str, &'static str, u64)> {
        let sum = |of: &dyn Fn(&InterfaceCounters) -> u64| -> u64 {
            self.interfaces.values().map(|interface| of(&interface.counters)).sum()
        };
        let kernel = Cause::ALL.iter().map(|&cause| (cause.stage(), cause.name(), sum(&|c| lost(c, cause))));
        let evicted = (EVICTED_LOST.0, EVICTED_LOST.1, sum(&|c| c.evicted_lost_packets));
        kernel.chain([evicted]).collect()
    }
}

/// [`State`], shared between the poll thread and the registry.
#[derive(Debug, Default)]
pub(super) struct Shared(Mutex<State>);

impl Shared {
    pub(super) fn lock(&self) -> MutexGuard<'_, State> {
        // Whoever panicked left whole numbers behind; metrics go on.
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// A sample's value.
enum Value {
    Count(u64),
    Real(f64),
}

impl Value {
    fn encode(self, kind: Kind, encoder: MetricEncoder<'_>) -> fmt::Result {
        match (kind, self) {
            (Kind::Counter, Value::Count(value)) => ConstCounter::new(value).encode(encoder),
            (Kind::Counter, Value::Real(value)) => ConstCounter::new(value).encode(encoder),
            (_, Value::Count(value)) => ConstGauge::new(value).encode(encoder),
            (_, Value::Real(value)) => ConstGauge::new(value).encode(encoder),
        }
    }
}

struct Writer<'a>(DescriptorEncoder<'a>);

impl Writer<'_> {
    /// Writes a metric with all its samples; none, if there are no samples.
    fn family<const N: usize>(
        &mut self,
        metric: &'static Metric,
        samples: impl IntoIterator<Item = ([String; N], Value)>,
    ) -> fmt::Result {
        let mut samples = samples.into_iter().peekable();
        if samples.peek().is_none() {
            return Ok(());
        }
        debug_assert_eq!(metric.labels.len(), N, "{}", metric.name);
        let (name, unit) = metric.open_metrics();
        // The registry adds the stop to what it registers, not to what a collector writes.
        let help = format!("{}.", metric.help);
        let mut encoder = self.0.encode_descriptor(name, &help, unit.as_ref(), metric.metric_type())?;
        for (values, value) in samples {
            if N == 0 {
                // A family of no labels would be written with empty braces. There is one sample.
                return value.encode(metric.kind, encoder);
            }
            let labels: Vec<(&str, &str)> = metric.labels.iter().copied().zip(values.iter().map(|v| &**v)).collect();
            value.encode(metric.kind, encoder.encode_family(&labels)?)?;
        }
        Ok(())
    }
}

/// Encodes [`Shared`] and the process's own numbers at each scrape.
#[derive(Debug)]
pub(super) struct StateCollector {
    pub(super) shared: std::sync::Arc<Shared>,
    pub(super) started_unix: f64,
}

impl Collector for StateCollector {
    fn encode(&self, encoder: DescriptorEncoder<'_>) -> fmt::Result {
        let state = self.shared.lock().clone();
        let mut writer = Writer(encoder);
        kernel(&mut writer, &state)?;
        agent(&mut writer, &state)?;

        let none: [String; 0] = [];
        writer.family(&declared::PROCESS_START, [(none.clone(), Value::Real(self.started_unix))])?;
        writer.family(&declared::PROCESS_CPU, [(none.clone(), Value::Real(process::cpu_seconds()))])?;
        writer.family(
            &declared::OWN_MEMORY,
            process::own_bytes(state.mapped).map(|bytes| (none.clone(), Value::Count(bytes))),
        )?;
        writer.family(&declared::PROCESS_MEMORY, process::resident_bytes().map(|bytes| (none, Value::Count(bytes))))
    }
}

fn kernel(writer: &mut Writer<'_>, state: &State) -> fmt::Result {
    let volumes = |of: fn(&Volume) -> u64| {
        state.interfaces.iter().flat_map(move |(name, interface)| {
            Hook::ALL.iter().flat_map(move |&hook| {
                Action::ALL.iter().map(move |&action| {
                    let volume = &interface.counters.seen[hook as usize][action as usize];
                    ([name.clone(), hook.name().into(), action.name().into()], Value::Count(of(volume)))
                })
            })
        })
    };
    let single = |of: fn(&InterfaceCounters) -> u64| {
        state.interfaces.iter().map(move |(name, i)| ([name.clone()], Value::Count(of(&i.counters))))
    };
    let attached = state.attached.iter().map(|(name, &attached)| ([name.clone()], Value::Count(attached.into())));
    writer.family(&declared::ATTACHED, attached)?;
    writer.family(&declared::PACKETS, volumes(|volume| volume.packets))?;
    writer.family(&declared::BYTES, volumes(|volume| volume.bytes))?;
    writer.family(
        &declared::LOOKUPS,
        state.interfaces.iter().flat_map(|(name, interface)| {
            [("hit", interface.hits), ("miss", misses(&interface.counters))]
                .map(|(result, count)| ([name.clone(), result.to_owned()], Value::Count(count)))
        }),
    )?;
    let losses = state.losses().into_iter();
    writer.family(&declared::LOSS, losses.map(|(stage, cause, n)| ([stage.into(), cause.into()], Value::Count(n))))?;
    writer.family(&declared::LEASE_EXPIRED, single(|counters| counters.lease_expired))?;
    let withheld = |of: fn(&Volume) -> u64| {
        state.interfaces.iter().flat_map(move |(name, interface)| {
            Action::ALL.iter().skip(1).map(move |&action| {
                let volume = &interface.counters.withheld[action as usize];
                ([name.clone(), action.name().into()], Value::Count(of(volume)))
            })
        })
    };
    writer.family(&declared::WITHHELD, withheld(|volume| volume.packets))?;
    writer.family(&declared::WITHHELD_BYTES, withheld(|volume| volume.bytes))?;
    writer.family(&declared::PROTECTED, single(|counters| counters.protected))?;
    writer.family(
        &declared::DROPPED_NEW,
        state.interfaces.iter().flat_map(|(name, Interface { counters, .. })| {
            let half_open = counters.dropped_half_open;
            [("verdict", counters.dropped_new.saturating_sub(half_open)), ("half_open", half_open)]
                .map(|(cause, packets)| ([name.clone(), cause.to_owned()], Value::Count(packets)))
        }),
    )?;
    writer.family(&declared::LIMIT_BUSY, single(|counters| counters.limit_busy))?;
    writer.family(&declared::TAGGED, single(|counters| counters.tagged))?;
    writer.family(&declared::KERNEL_CREATED, single(|counters| counters.flows_created))?;
    writer.family(
        &declared::EVICTIONS,
        state.interfaces.iter().flat_map(|(name, Interface { counters, .. })| {
            [("delivered", counters.evicted), ("lost", counters.evicted_lost_flows)]
                .map(|(outcome, flows)| ([name.clone(), outcome.to_owned()], Value::Count(flows)))
        }),
    )?;
    let entries = state.context.map(|(sources, services)| [("source", sources), ("service", services)]);
    let entries = entries.into_iter().flatten();
    writer.family(&declared::CONTEXT_ENTRIES, entries.map(|(kind, n)| ([kind.to_owned()], Value::Count(n))))?;
    let sum = |of: fn(&InterfaceCounters) -> u64| state.interfaces.values().map(|i| of(&i.counters)).sum();
    writer.family(&declared::CONTEXT_REPLACED, [([], Value::Count(sum(|counters| counters.context_replaced)))])?;
    writer.family(&declared::CONTEXT_LOST, [([], Value::Count(sum(|counters| counters.context_lost)))])?;
    let created = state.interfaces.values().map(|interface| interface.counters.flows_created).sum();
    writer.family(&declared::CREATED, [([], Value::Count(created))])
}

fn agent(writer: &mut Writer<'_>, state: &State) -> fmt::Result {
    writer.family(
        &declared::ENDED,
        EndReason::ALL.iter().map(|reason| {
            ([reason.name().to_owned()], Value::Count(state.ended.get(reason).copied().unwrap_or_default()))
        }),
    )?;
    let outcomes = ["released", "evicted"].into_iter().zip(state.ended_packets);
    writer.family(&declared::ENDED_PACKETS, outcomes.map(|(outcome, n)| ([outcome.to_owned()], Value::Count(n))))?;
    writer.family(&declared::UNSCORED, [([], Value::Count(state.unscored))])?;
    for (metric, counts) in [(&declared::VERDICTS, &state.verdicts), (&declared::WOULD, &state.would)] {
        let samples = counts
            .iter()
            .map(|((action, label), count)| ([action.name().to_owned(), label.clone()], Value::Count(*count)));
        writer.family(metric, samples)?;
    }
    let reported = state.reported.iter().map(|(label, count)| ([label.clone()], Value::Count(*count)));
    writer.family(&declared::REPORTED, reported)?;
    let programs = || state.programs.iter().map(|(name, values)| ([name.clone()], values));
    writer.family(&declared::PROGRAM_TIME, programs().map(|(name, (seconds, _))| (name, Value::Real(*seconds))))?;
    writer.family(&declared::PROGRAM_RUNS, programs().map(|(name, (_, runs))| (name, Value::Count(*runs))))?;
    models(writer, state)?;
    enforcement(writer, &state.enforce)?;
    writer.family(&declared::BUILD_INFO, [([env!("CARGO_PKG_VERSION").to_owned()], Value::Count(1))])
}

fn enforcement(writer: &mut Writer<'_>, counts: &EnforceCounts) -> fmt::Result {
    let EnforceCounts { now, changes, trips, refused, errors } = counts;
    let Enforcement { mode, tripped, ramp, verdicts, never_drop, audit: [written, lost], store_errors } = now;
    let modes = [Mode::Observe, Mode::Tag, Mode::Enforce];
    let level = |on: bool| Value::Count(u64::from(on));
    writer.family(&declared::MODE, modes.map(|one| ([one.name().to_owned()], level(*mode == Some(one)))))?;
    writer.family(&declared::RAMP, [([], level(*ramp))])?;
    writer.family(&declared::BREAKER_OPEN, [([], level(*tripped))])?;
    writer.family(
        &declared::BREAKER_TRIPS,
        Cap::ALL.map(|cap| ([cap.name().to_owned()], Value::Count(trips.get(&cap).copied().unwrap_or_default()))),
    )?;
    // Every scope stands there, so that one that ran empty says 0.
    let mut held: BTreeMap<_, u64> =
        Scope::KINDS.iter().map(|scope| ((*scope, Action::Drop, OriginName::Model), 0)).collect();
    held.extend(verdicts);
    writer.family(
        &declared::VERDICTS_HELD,
        held.into_iter().map(|((scope, action, origin), count)| {
            ([scope, action.name(), origin.name()].map(str::to_owned), Value::Count(count))
        }),
    )?;
    writer.family(
        &declared::VERDICT_CHANGES,
        changes.iter().map(|((change, scope, origin), count)| {
            ([change.name(), scope, origin.name()].map(str::to_owned), Value::Count(*count))
        }),
    )?;
    writer.family(&declared::VERDICTS_REFUSED, [([], Value::Count(*refused))])?;
    writer.family(&declared::VERDICT_ERRORS, [([], Value::Count(*errors))])?;
    writer.family(
        &declared::NEVER_DROP,
        Why::ALL.map(|why| ([why.name().to_owned()], Value::Count(never_drop.get(&why).copied().unwrap_or_default()))),
    )?;
    writer.family(&declared::AUDIT_LINES, [([], Value::Count(*written))])?;
    writer.family(&declared::AUDIT_LOST, [([], Value::Count(*lost))])?;
    writer.family(&declared::STORE_ERRORS, [([], Value::Count(*store_errors))])
}

fn models(writer: &mut Writer<'_>, state: &State) -> fmt::Result {
    let models = || state.models.iter().map(|(role, model)| (role.name().to_owned(), model));
    writer.family(
        &declared::MODEL_INFO,
        models().map(|(role, model)| ([role, model.hash.clone(), model.name.clone()], Value::Count(1))),
    )?;
    writer.family(&declared::MODEL_LOADED, models().map(|(role, model)| ([role], Value::Real(model.loaded_unix))))?;
    writer.family(
        &declared::MODEL_LOADS,
        state.loads.iter().map(|((role, source, taken), count)| {
            let result = if *taken { "loaded" } else { "refused" };
            ([role.name(), source.name(), result].map(str::to_owned), Value::Count(*count))
        }),
    )?;
    if let Some(ShadowCounts { decisions, labels }) = &state.shadow {
        let pairs = Action::ALL.iter().flat_map(|ours| Action::ALL.iter().map(move |theirs| (*ours, *theirs)));
        writer.family(
            &declared::SHADOW_FLOWS,
            pairs.map(|(ours, theirs)| {
                let count = decisions[ours as usize][theirs as usize];
                ([ours.name().to_owned(), theirs.name().to_owned()], Value::Count(count))
            }),
        )?;
        let labels = [("different", labels[0]), ("same", labels[1])];
        writer.family(&declared::SHADOW_LABELS, labels.map(|(name, n)| ([name.to_owned()], Value::Count(n))))?;
    }
    if let Some(DriftValues { features, score, level }) = &state.drift {
        let indices = features.iter().map(|(name, psi)| ([name.clone()], Value::Real(*psi)));
        writer.family(&declared::DRIFT_FEATURE, indices)?;
        writer.family(&declared::DRIFT_SCORE, score.map(|psi| ([], Value::Real(psi))))?;
        writer.family(&declared::DRIFT_LEVEL, [([], Value::Count(*level))])?;
    }
    writer.family(&declared::DRIFT_WINDOWS, [([], Value::Count(state.drift_windows))])?;
    writer.family(&declared::DRIFT_FALLBACK, [([], Value::Count(u64::from(state.drift_fallback)))])
}
