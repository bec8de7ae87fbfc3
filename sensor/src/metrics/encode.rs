//! How the labelled values of [`super::state`] are written at a scrape, in the order of the exposition: the kernel's, the
//! agent's own, its process's.
//!
//! Every metric is one of [`super::declared`]; one without samples is left out. Called by the registry.

use std::collections::BTreeMap;
use std::fmt;

use prometheus_client::collector::Collector;
use prometheus_client::encoding::{DescriptorEncoder, EncodeMetric, MetricEncoder};
use prometheus_client::metrics::counter::ConstCounter;
use prometheus_client::metrics::gauge::ConstGauge;
use sensor_common::counter::{Hook, InterfaceCounters, Volume};
use sensor_common::verdict::Action;

use super::config::ConfigValues;
use super::declared::{self, Kind, Metric};
use super::enforce::{EnforceCounts, Enforcement};
use super::process;
use super::state::{DriftValues, EndReason, Interface, ShadowCounts, Shared, State, misses};
use crate::allow::Why;
use crate::breaker::Cap;
use crate::config::{Mode, OriginName};
use crate::policy::Spared;
use crate::verdicts::scope::Scope;

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
    let taken_off = state.taken_off.iter().map(|(name, &times)| ([name.clone()], Value::Count(times)));
    writer.family(&declared::TAKEN_OFF, taken_off)?;
    writer.family(&declared::LINK_OVERRUNS, [([], Value::Count(state.link_overruns))])?;
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
    if let Some(ConfigValues { hash, successful, success_unix }) = &state.config {
        writer.family(&declared::CONFIG_INFO, [([hash.clone()], Value::Count(1))])?;
        writer.family(&declared::CONFIG_RELOADED, [([], Value::Count(u64::from(*successful)))])?;
        writer.family(&declared::CONFIG_RELOAD_TIME, [([], Value::Real(*success_unix))])?;
    }
    enforcement(writer, &state.enforce)?;
    let lost = state.log_lost.iter().map(|(sink, lines)| ([(*sink).to_owned()], Value::Count(*lines)));
    writer.family(&declared::LOG_LOST, lost)?;
    writer.family(&declared::BUILD_INFO, [([env!("CARGO_PKG_VERSION").to_owned()], Value::Count(1))])
}

fn enforcement(writer: &mut Writer<'_>, counts: &EnforceCounts) -> fmt::Result {
    let EnforceCounts { now, changes, trips, refused, spared, errors } = counts;
    let Enforcement {
        mode,
        tripped,
        services_held,
        ramp,
        verdicts,
        never_drop,
        audit: [written, lost],
        store_errors,
        state_kept,
    } = now;
    let modes = [Mode::Observe, Mode::Tag, Mode::Enforce];
    let level = |on: bool| Value::Count(u64::from(on));
    writer.family(&declared::MODE, modes.map(|one| ([one.name().to_owned()], level(*mode == Some(one)))))?;
    writer.family(&declared::RAMP, [([], level(*ramp))])?;
    writer.family(&declared::BREAKER_OPEN, [([], level(*tripped))])?;
    writer.family(&declared::SERVICES_HELD, [([], Value::Count(*services_held))])?;
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
    writer.family(
        &declared::SPARED,
        Spared::ALL.map(|why| ([why.name().to_owned()], Value::Count(spared.get(&why).copied().unwrap_or_default()))),
    )?;
    writer.family(&declared::VERDICT_ERRORS, [([], Value::Count(*errors))])?;
    writer.family(
        &declared::NEVER_DROP,
        Why::ALL.map(|why| ([why.name().to_owned()], Value::Count(never_drop.get(&why).copied().unwrap_or_default()))),
    )?;
    writer.family(&declared::AUDIT_LINES, [([], Value::Count(*written))])?;
    writer.family(&declared::AUDIT_LOST, [([], Value::Count(*lost))])?;
    writer.family(&declared::STORE_ERRORS, [([], Value::Count(*store_errors))])?;
    writer.family(&declared::STATE_KEPT, state_kept.map(|kept| ([], level(kept))))
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
