//! What the control socket says of the configuration, and of a reload of it.

use serde::{Deserialize, Serialize};

use crate::config::change::Change;

/// What came of a reload that was not refused.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct ReloadView {
    /// The file that was read; `None`: the agent has none.
    pub file: Option<String>,
    /// Hash of the configuration that is in force now.
    pub hash: String,
    /// Settings that have changed.
    pub changed: Vec<Change>,
    /// Settings of the file that stay as they were until a restart.
    pub restart: Vec<Change>,
    /// The models, which were loaded again.
    pub models: Vec<ModelReload>,
}

impl ReloadView {
    /// Whether no model was refused.
    pub fn is_whole(&self) -> bool {
        self.models.iter().all(|model| model.refused.is_none())
    }
}

/// A model that was loaded again.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct ModelReload {
    /// "active" or "shadow".
    pub role: String,
    /// The file; `None`: there is no such model any more.
    pub path: Option<String>,
    /// Why the file was refused; the model in use goes on then.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub refused: Option<String>,
}

/// The configuration in the status.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct ConfigState {
    /// The file; `None`: the agent was started without.
    pub file: Option<String>,
    /// Hash of what is in force: SHA-256, hexadecimal.
    pub hash: String,
    /// Settings of the file that wait for a restart.
    #[serde(default)]
    pub restart: Vec<Change>,
    /// The last reload; absent before the first.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub last_reload: Option<LastReload>,
}

/// A reload that is over.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct LastReload {
    /// When, Unix time, ms.
    pub unix_ms: u64,
    /// Who asked for it.
    pub by: String,
    /// Why it was refused; the configuration before it is in force then.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub error: Option<String>,
}

/// The configuration that is in force.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct ConfigView {
    /// As in the status.
    #[serde(flatten)]
    pub state: ConfigState,
    /// All settings, as TOML.
    pub toml: String,
}
