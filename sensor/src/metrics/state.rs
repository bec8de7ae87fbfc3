//! The labelled values behind the exposition. The poll thread writes them through [`super::Metrics`]; a scrape copies them
//! and encodes the copy ([`super::encode`]), so it never holds the poll thread up for long.
//!
//! Counters of the kernel are cumulative there and only copied here, which makes each of them monotone.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::{Mutex, MutexGuard, PoisonError};

use sensor_common::counter::{Cause, InterfaceCounters, Volume};
use sensor_common::verdict::Action;

use super::config::ConfigValues;
use super::enforce::EnforceCounts;
use super::life::{LoadSource, ModelRole};

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

/// Look-ups that found no flow.
pub(super) fn misses(counters: &InterfaceCounters) -> u64 {
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
    /// Whether the programs are on each interface that is to be watched.
    pub(super) attached: BTreeMap<String, bool>,
    pub(super) taken_off: BTreeMap<String, u64>,
    pub(super) link_overruns: u64,
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
    /// Lines that were lost, by where they should have gone.
    pub(super) log_lost: BTreeMap<&'static str, u64>,
    /// `None` before the start is over.
    pub(super) config: Option<ConfigValues>,
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
