//! What is counted of the life of the models: loads, the shadow's agreement, drift.
//!
//! Called by the poll thread. No label is unbounded: roles, sources and actions are enumerations, features are those of
//! the contract, and a model's name and hash stand only while it is in use.

use std::time::{Duration, SystemTime, UNIX_EPOCH};

use sensor_common::verdict::Action;

use super::Metrics;
use super::state::{DriftValues, LoadedModel};
use crate::model::drift::Level;

/// What a model is used for.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum ModelRole {
    /// Its scores have an effect.
    Active,
    /// It is only compared.
    Shadow,
}

impl ModelRole {
    /// The name in metrics and logs.
    pub const fn name(self) -> &'static str {
        match self {
            ModelRole::Active => "active",
            ModelRole::Shadow => "shadow",
        }
    }
}

/// What asked for a model to be loaded.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum LoadSource {
    /// The start of the agent.
    Start,
    /// SIGHUP.
    Signal,
    /// The file changed.
    File,
    /// `sensor model load`.
    Command,
}

impl LoadSource {
    /// The name in metrics and logs.
    pub const fn name(self) -> &'static str {
        match self {
            LoadSource::Start => "start",
            LoadSource::Signal => "signal",
            LoadSource::File => "file",
            LoadSource::Command => "command",
        }
    }
}

/// One inference call of the shadow, compared with the active model.
#[derive(Clone, Debug, Default)]
pub struct Agreement {
    /// Its duration.
    pub duration: Duration,
    /// Flows by the action on the active model's score and on the shadow's.
    pub decisions: [[u64; Action::ALL.len()]; Action::ALL.len()],
    /// Flows with different labels, and with the same.
    pub labels: [u64; 2],
    /// Differences of the scores, 0 to 1.
    pub differences: Vec<f64>,
}

impl Metrics {
    /// Names the model in use for a role: hash and name.
    pub fn model(&self, role: ModelRole, model: Option<(&str, &str)>) {
        let loaded_unix = SystemTime::now().duration_since(UNIX_EPOCH).map_or(0.0, |age| age.as_secs_f64());
        let mut state = self.shared.lock();
        match model {
            Some((hash, name)) => {
                let model = LoadedModel { hash: hash.to_owned(), name: name.to_owned(), loaded_unix };
                state.models.insert(role, model);
            }
            None => drop(state.models.remove(&role)),
        }
        if role == ModelRole::Shadow && model.is_some() {
            state.shadow.get_or_insert_default();
        }
    }

    /// Counts a load that is over.
    pub fn model_load(&self, role: ModelRole, source: LoadSource, taken: bool) {
        *self.shared.lock().loads.entry((role, source, taken)).or_default() += 1;
    }

    /// Counts flows that the shadow scored.
    pub fn shadow(&self, agreement: &Agreement) {
        let Agreement { duration, decisions, labels, differences } = agreement;
        self.shadow_inference.observe(duration.as_secs_f64());
        differences.iter().for_each(|difference| self.shadow_difference.observe(*difference));
        let mut state = self.shared.lock();
        let counts = state.shadow.get_or_insert_default();
        for (sum, more) in counts.decisions.iter_mut().flatten().zip(decisions.iter().flatten()) {
            *sum += more;
        }
        for (sum, more) in counts.labels.iter_mut().zip(labels) {
            *sum += more;
        }
    }

    /// Counts flows that the shadow had no time for.
    pub fn shadow_skipped(&self, flows: u64) {
        self.shadow_skipped.inc_by(flows);
    }

    /// Counts a call of the shadow that failed.
    pub fn shadow_error(&self) {
        self.shadow_errors.inc();
    }

    /// Publishes the drift indices of a window.
    pub fn drift<'a>(&self, features: impl Iterator<Item = (&'a str, f64)>, score: Option<f64>, level: Level) {
        let features = features.map(|(name, psi)| (name.to_owned(), psi)).collect();
        let mut state = self.shared.lock();
        state.drift = Some(DriftValues { features, score, level: level as u64 });
        state.drift_windows += 1;
    }

    /// Another model is in use: the indices of the old one are taken away, and drops are obeyed.
    pub fn drift_reset(&self) {
        let mut state = self.shared.lock();
        (state.drift, state.drift_fallback) = (None, false);
    }

    /// Sets whether drops become tags.
    pub fn drift_fallback(&self, active: bool) {
        self.shared.lock().drift_fallback = active;
    }
}
