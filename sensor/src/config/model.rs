//! `[model]`: the files, what checking them may take, and how flows are scored.

use std::path::PathBuf;
use std::time::Duration;

use serde::{Deserialize, Serialize};

use super::problem::Checks;
use super::{MINUTE, SECOND};

/// `[model]`
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct ModelConfig {
    /// The ONNX file; `None` (in the file: ""): flows are recorded and counted, nothing is scored.
    #[serde(with = "super::forms::empty_is_none")]
    pub path: Option<PathBuf>,
    /// A second model that is scored beside the first, without effect; `None` (in the file: ""): none.
    #[serde(with = "super::forms::empty_is_none")]
    pub shadow: Option<PathBuf>,
    /// Whether a file that changes is loaded again.
    pub watch: bool,
    /// Largest number of flows in one inference call.
    pub max_batch: u32,
    /// Threads that share a large inference call.
    pub threads: u32,
    /// Flows scored in one poll; the rest waits for the next.
    pub max_flows_per_poll: u32,
    /// Largest model file, MiB.
    pub max_file_mib: u32,
    /// Memory that the check of a model may take, MiB.
    pub load_memory_mib: u32,
    /// Time that the check of a model may take.
    #[serde(with = "super::forms::duration")]
    pub load_timeout: Duration,
    /// Longest inference call of a full batch that a model is taken with.
    #[serde(with = "super::forms::duration")]
    pub max_inference: Duration,
    /// Scored flows in one window of the drift indices, 0 = none are computed.
    pub drift_window: u32,
    /// Whether drops become tags while drift is high.
    pub drift_fallback: bool,
}

impl Default for ModelConfig {
    fn default() -> ModelConfig {
        ModelConfig {
            path: Some(PathBuf::from("models/sensor.onnx")),
            shadow: None,
            watch: true,
            max_batch: 512,
            threads: 1,
            max_flows_per_poll: 8192,
            max_file_mib: 64,
            load_memory_mib: 2048,
            load_timeout: Duration::from_secs(30),
            max_inference: Duration::from_millis(500),
            drift_window: 2000,
            drift_fallback: false,
        }
    }
}

impl ModelConfig {
    pub(super) fn check(&self, checks: &mut Checks) {
        checks.number(&["model.max_batch"], self.max_batch, 1, 4096);
        checks.number(&["model.threads"], self.threads, 1, crate::model::network::MAX_THREADS as u32);
        let flows = self.max_flows_per_poll;
        let fits = (self.max_batch..=1 << 20).contains(&flows);
        checks.ensure(fits, &["model.max_flows_per_poll", "model.max_batch"], || {
            format!(
                "model.max_flows_per_poll = {flows}: must be from {} (model.max_batch) to {}",
                self.max_batch,
                1 << 20
            )
        });
        checks.ensure(self.shadow.is_none() || self.path.is_some(), &["model.shadow", "model.path"], || {
            "model.shadow is set and model.path is not: a shadow is compared with the model beside it".to_owned()
        });
        checks.number(&["model.max_file_mib"], self.max_file_mib, 1, 1024);
        checks.number(&["model.load_memory_mib"], self.load_memory_mib, 256, 1 << 16);
        checks.within(&["model.load_timeout"], self.load_timeout, SECOND, 10 * MINUTE);
        checks.within(&["model.max_inference"], self.max_inference, Duration::from_millis(1), MINUTE);
        checks.number(&["model.drift_window"], self.drift_window, 0, 10_000_000);
    }
}
