//! What is counted of enforcement: verdicts that hold, their comings and goings, the mode, the breaker, the never-drop list,
//! audit and store. Called by the poll thread. No label holds an address.

use std::collections::BTreeMap;

use sensor_common::counter::InterfaceCounters;
use sensor_common::verdict::{Action, Origin};

use super::Metrics;
use crate::allow::Why;
use crate::breaker::Cap;
use crate::config::{Mode, OriginName};
use crate::policy::Spared;

/// What became of a verdict.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum VerdictChange {
    /// Entered.
    Added,
    /// Holds for longer.
    Renewed,
    /// Ended by itself.
    Expired,
    /// Taken back.
    Removed,
}

impl VerdictChange {
    /// The name in metrics.
    pub const fn name(self) -> &'static str {
        match self {
            VerdictChange::Added => "added",
            VerdictChange::Renewed => "renewed",
            VerdictChange::Expired => "expired",
            VerdictChange::Removed => "removed",
        }
    }
}

/// Levels, and totals that others keep.
#[derive(Clone, Debug, Default)]
pub struct Enforcement {
    /// `None` before the start is over.
    pub mode: Option<Mode>,
    /// Whether the breaker is open.
    pub tripped: bool,
    /// Services whose own breaker is open.
    pub services_held: u64,
    /// Whether the ramp lasts.
    pub ramp: bool,
    /// Verdicts that hold, by kind of scope, action, origin.
    pub verdicts: BTreeMap<(&'static str, Action, OriginName), u64>,
    /// Entries of the never-drop list.
    pub never_drop: BTreeMap<Why, u64>,
    /// Audit lines: written, lost.
    pub audit: [u64; 2],
    /// Failures of the store.
    pub store_errors: u64,
    /// Whether what changed would survive a restart; `None`: nothing is to.
    pub state_kept: Option<bool>,
}

/// Counts of enforcement.
#[derive(Clone, Debug, Default)]
pub(super) struct EnforceCounts {
    pub(super) now: Enforcement,
    pub(super) changes: BTreeMap<(VerdictChange, &'static str, OriginName), u64>,
    pub(super) trips: BTreeMap<Cap, u64>,
    pub(super) refused: u64,
    pub(super) spared: BTreeMap<Spared, u64>,
    pub(super) errors: u64,
}

impl Metrics {
    /// Sets the levels.
    pub fn enforcement(&self, now: Enforcement) {
        self.shared.lock().enforce.now = now;
    }

    /// Sets how many lines were lost, by where they should have gone.
    pub fn log_lost(&self, lost: impl Iterator<Item = (&'static str, u64)>) {
        self.shared.lock().log_lost.extend(lost);
    }

    /// Counts what became of a verdict.
    pub fn verdict_change(&self, change: VerdictChange, scope: &'static str, origin: OriginName) {
        *self.shared.lock().enforce.changes.entry((change, scope, origin)).or_default() += 1;
    }

    /// Counts a verdict of a model or a rule that could not be entered.
    pub fn verdict_refused(&self) {
        self.shared.lock().enforce.refused += 1;
    }

    /// Counts a flow that a model would drop or limit, and that is tagged for this reason.
    pub fn spared(&self, why: Spared) {
        *self.shared.lock().enforce.spared.entry(why).or_default() += 1;
    }

    /// Counts a write to the kernel's maps that failed.
    pub fn verdict_error(&self) {
        self.shared.lock().enforce.errors += 1;
    }

    /// Counts that the breaker opened.
    pub fn breaker_tripped(&self, cap: Cap) {
        *self.shared.lock().enforce.trips.entry(cap).or_default() += 1;
    }

    /// Packets that verdicts of this origin drop so far, dropped or withheld.
    pub fn would_drop(&self, origin: Origin) -> u64 {
        self.sum(|counters| counters.drops_of[origin as usize])
    }

    /// Packets that mode enforce would have dropped, and that were passed.
    pub fn withheld(&self) -> u64 {
        self.sum(|counters| counters.withheld[Action::Drop as usize].packets)
    }

    /// Packets that passed against a verdict because of the never-drop list.
    pub fn protected(&self) -> u64 {
        self.sum(|counters| counters.protected)
    }

    fn sum(&self, of: impl Fn(&InterfaceCounters) -> u64) -> u64 {
        self.shared.lock().interfaces.values().map(|interface| of(&interface.counters)).sum()
    }
}
