//! What is counted of the configuration. Called by the poll thread.

use std::time::{SystemTime, UNIX_EPOCH};

use super::Metrics;

/// The configuration in force, and how the last attempt to read it ended.
#[derive(Clone, Debug, Default)]
pub(super) struct ConfigValues {
    pub(super) hash: String,
    pub(super) successful: bool,
    pub(super) success_unix: f64,
}

impl Metrics {
    /// A configuration with this hash is in force.
    pub fn config_taken(&self, hash: String) {
        let success_unix = SystemTime::now().duration_since(UNIX_EPOCH).map_or(0.0, |age| age.as_secs_f64());
        self.shared.lock().config = Some(ConfigValues { hash, successful: true, success_unix });
    }

    /// A configuration was refused.
    pub fn config_refused(&self) {
        self.shared.lock().config.get_or_insert_default().successful = false;
    }
}
