//! Verdicts: what about, why, by whom, until when. Pure: time is an argument. Those that hold are in the [`book`].

pub mod book;
pub mod pardon;
pub mod scope;

use sensor_common::verdict::{Action, Origin};
use serde::{Deserialize, Serialize};

use self::scope::Scope;
use crate::config::{ActionName, OriginName};

/// A point in time on both clocks.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Moment {
    /// Monotonic, ns: what the kernel compares with.
    pub ns: u64,
    /// Unix time, ms: what people read, and what survives a reboot.
    pub unix_ms: u64,
}

impl Moment {
    /// So much later, or earlier.
    pub fn plus_ms(self, ms: u64) -> Moment {
        Moment { ns: self.ns.saturating_add(ms.saturating_mul(1_000_000)), unix_ms: self.unix_ms.saturating_add(ms) }
    }
}

/// What a limit lets through; 0 = not limited in this unit.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Rate {
    /// Packets a second.
    pub packets: u64,
    /// Bytes of frames a second.
    pub bytes: u64,
}

/// A feature's part in a score.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Reason {
    /// Feature.
    pub feature: String,
    /// Its value; `None` = missing.
    pub value: Option<f64>,
    /// What the score loses without it.
    pub effect: f64,
}

/// A verdict to be entered.
#[derive(Clone, Debug, PartialEq)]
pub struct Order {
    /// What about.
    pub scope: Scope,
    /// What enforce does.
    pub action: Action,
    /// For [`Action::Limit`].
    pub rate: Rate,
    /// Who decides: bounds what is done.
    pub origin: Origin,
    /// Until when, from now, ms.
    pub for_ms: u64,
    /// Why.
    pub evidence: Evidence,
}

/// Why there is a verdict, and by whom.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(default)]
pub struct Evidence {
    /// Who: a model's name and hash, a rule, a user.
    pub who: String,
    /// Comment of an operator, or the rule in words.
    #[serde(skip_serializing_if = "String::is_empty")]
    pub note: String,
    /// Label of the model.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub label: Option<String>,
    /// The label's number in the model's list.
    #[serde(skip_serializing_if = "is_zero")]
    pub label_number: u8,
    /// Score, 0 to 1.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub score: Option<f64>,
    /// Hash of the model.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub model: Option<String>,
    /// The features that made the score, largest effect first.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub reasons: Vec<Reason>,
    /// Initiator and responder of the flow, as people read them.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub flow: Option<String>,
}

fn is_zero(number: &u8) -> bool {
    *number == 0
}

/// How far a clock may be set back before the ends of what was kept make no sense.
const CLOCK_SLACK_MS: u64 = 60_000;

/// A verdict that holds.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Verdict {
    /// Number.
    pub id: u64,
    /// What about.
    pub scope: Scope,
    /// What enforce does.
    pub action: ActionName,
    /// For limits.
    #[serde(default)]
    pub rate: Rate,
    /// Who decided.
    pub origin: OriginName,
    /// Why.
    #[serde(flatten)]
    pub evidence: Evidence,
    /// When it was entered, Unix time, ms.
    pub created_unix_ms: u64,
    /// When it ends, Unix time, ms.
    pub until_unix_ms: u64,
    /// The same, monotonic ns.
    #[serde(skip)]
    pub until_ns: u64,
}

impl Verdict {
    /// Whether the clock was set back since it was entered, so that nobody knows how much of its time is over.
    pub fn is_from_later(&self, now: Moment) -> bool {
        self.created_unix_ms > now.unix_ms.saturating_add(CLOCK_SLACK_MS)
    }

    /// What is done under a ceiling.
    pub fn done(&self, ceiling: Action) -> Action {
        Action::from(self.action).min(ceiling)
    }
}
