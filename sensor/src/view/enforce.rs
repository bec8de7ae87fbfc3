//! What the control socket says of verdicts, the never-drop list, the mode and the breaker, and what it can be asked to
//! change. Written by the agent and by the commands, read by both.

use serde::{Deserialize, Serialize};
use tokio::sync::oneshot;

use crate::allow::Entry;
use crate::allow::item::Item;
use crate::breaker::Trip;
use crate::config::{ActionName, Mode};
use crate::host::Items;
use crate::store::Unkept;
use crate::verdicts::Verdict;

/// A verdict, and what it does now.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct VerdictView {
    /// The verdict.
    #[serde(flatten)]
    pub verdict: Verdict,
    /// What is done under the mode and the breaker: never more than the verdict's action.
    pub done: ActionName,
    /// Seconds until it ends.
    pub remaining_seconds: f64,
    /// Packets that met it in the kernel's table of verdicts: dropped there, limited, or withheld there. Packets of flows with
    /// a record are in the flow's own count.
    pub packets: u64,
    /// Their bytes.
    pub bytes: u64,
}

/// A list of verdicts.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct VerdictList {
    /// How many there are in all.
    pub total: u64,
    /// The newest of them.
    pub verdicts: Vec<VerdictView>,
}

/// A verdict that somebody wants.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct NewVerdict {
    /// What about: an address, a prefix, a flow, a service, or the id of a living flow as in the list of flows.
    pub scope: String,
    /// "tag", "limit" or "drop".
    pub action: ActionName,
    /// For how long, seconds.
    pub for_seconds: u64,
    /// For a limit: packets a second, 0 = not limited in packets.
    #[serde(default)]
    pub packets_per_second: u64,
    /// For a limit: bytes a second, likewise.
    #[serde(default)]
    pub bytes_per_second: u64,
    /// Why.
    #[serde(default)]
    pub note: String,
}

/// Many verdicts that say the same of different things: a list of addresses.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct NewVerdicts {
    /// What about, at most [`MAX_BATCH`] of them.
    pub scopes: Vec<String>,
    /// The rest, as in [`NewVerdict`].
    pub action: ActionName,
    /// See `action`.
    pub for_seconds: u64,
    /// See `action`.
    #[serde(default)]
    pub packets_per_second: u64,
    /// See `action`.
    #[serde(default)]
    pub bytes_per_second: u64,
    /// See `action`.
    #[serde(default)]
    pub note: String,
}

/// Verdicts in one request: some 0.1 s of the poll thread.
pub const MAX_BATCH: usize = 10_000;

/// What came of a batch.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct BatchView {
    /// Entered, or renewed.
    pub added: u64,
    /// Those that were not, and why.
    pub refused: Vec<(String, String)>,
}

/// Something that is never to be dropped.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct NewAllow {
    /// What.
    pub item: Item,
    /// For how long, seconds; absent: until it is removed.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub for_seconds: Option<u64>,
    /// Why.
    #[serde(default)]
    pub note: String,
}

/// Which verdicts are to be taken back.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Which {
    /// The one with this number.
    Id(u64),
    /// That of exactly this scope.
    Scope(String),
    /// Every one.
    All,
}

/// The mode.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct ModeView {
    /// In force.
    pub mode: Mode,
    /// What the configuration says.
    pub configured: Mode,
    /// Whether the ramp lasts (policy.ramp).
    #[serde(default)]
    pub ramp: bool,
    /// Why it is observe, whatever the configuration says: what was kept is damaged.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub doubt: Option<String>,
}

/// What came of a change, and whether it would survive a restart.
#[derive(Clone, Debug, PartialEq)]
pub struct Kept<T> {
    /// What came of it.
    pub value: T,
    /// Why it would not; `None`: it would, or nothing is to (agent.state_dir).
    pub not_kept: Option<String>,
}

impl<T: Serialize> Serialize for Kept<T> {
    /// The value itself; an object says why in a field `not_kept`, if it is not.
    fn serialize<S: serde::Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        let Some(reason) = &self.not_kept else { return self.value.serialize(serializer) };
        let mut value = serde_json::to_value(&self.value).map_err(serde::ser::Error::custom)?;
        if let serde_json::Value::Object(fields) = &mut value {
            fields.insert("not_kept".to_owned(), reason.as_str().into());
        }
        value.serialize(serializer)
    }
}

/// The circuit breaker.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct BreakerView {
    /// Whether verdicts of models are held at tag.
    pub open: bool,
    /// Why.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub trip: Option<Trip>,
    /// The same in words.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub reason: Option<String>,
    /// Services whose flows without a proven source are held at tag: each has a breaker for these.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub services: Vec<String>,
}

/// Enforcement in the status.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct EnforcementView {
    /// The mode that the configuration says.
    pub configured_mode: Mode,
    /// Whether the ramp lasts.
    pub ramp: bool,
    /// The breaker.
    pub breaker: BreakerView,
    /// Verdicts that hold: on flows, on sources and prefixes, on services.
    pub flow_verdicts: u64,
    /// See `flow_verdicts`.
    pub source_verdicts: u64,
    /// See `flow_verdicts`.
    pub service_limits: u64,
    /// Entries of the never-drop list.
    pub never_drop: u64,
    /// Of these, by reason.
    pub never_drop_by: std::collections::BTreeMap<String, u64>,
    /// Packets that mode enforce would have dropped or limited, and that were passed.
    pub withheld_packets: u64,
    /// Packets that passed against a verdict because of the never-drop list.
    pub protected_packets: u64,
    /// Audit lines that were lost.
    pub audit_lost: u64,
}

/// Who asks.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Peer {
    /// User.
    pub uid: u32,
    /// Process, if it is known.
    pub pid: Option<i32>,
}

impl std::fmt::Display for Peer {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self.pid {
            Some(pid) => write!(f, "uid {}, pid {pid}", self.uid),
            None => write!(f, "uid {}", self.uid),
        }
    }
}

/// An answer, or why there is none.
pub type Reply<T> = oneshot::Sender<Result<T, String>>;

impl EnforceRequest {
    /// Whether nobody waits for the answer any more: whoever asked was told that nothing was done, so nothing may be.
    pub fn is_abandoned(&self) -> bool {
        match self {
            EnforceRequest::Verdicts { reply, limit: _ } => reply.is_closed(),
            EnforceRequest::Verdict { reply, .. } | EnforceRequest::Add { reply, .. } => reply.is_closed(),
            EnforceRequest::AddMany { reply, .. } => reply.is_closed(),
            EnforceRequest::Remove { reply, .. } => reply.is_closed(),
            EnforceRequest::Allowed { reply } => reply.is_closed(),
            EnforceRequest::Allow { reply, .. } => reply.is_closed(),
            EnforceRequest::Disallow { reply, .. } => reply.is_closed(),
            EnforceRequest::Mode { reply, .. } => reply.is_closed(),
            EnforceRequest::Breaker { reply, .. } => reply.is_closed(),
            EnforceRequest::Kept { reply } => reply.is_closed(),
        }
    }
}

/// What the poll thread is asked about enforcement.
#[derive(Debug)]
pub enum EnforceRequest {
    /// The newest verdicts, at most so many (0 = all).
    Verdicts {
        /// At most.
        limit: usize,
        /// Where the answer goes.
        reply: Reply<VerdictList>,
    },
    /// One verdict.
    Verdict {
        /// Its number.
        id: u64,
        /// Where the answer goes.
        reply: Reply<VerdictView>,
    },
    /// Enter a verdict.
    Add {
        /// Which.
        new: NewVerdict,
        /// Who asks.
        by: Peer,
        /// Sessions of operators at this moment, if they are protected.
        sessions: Option<Items>,
        /// Where the answer goes.
        reply: Reply<VerdictView>,
    },
    /// Enter many verdicts.
    AddMany {
        /// Which.
        new: NewVerdicts,
        /// Who asks.
        by: Peer,
        /// As in [`EnforceRequest::Add`].
        sessions: Option<Items>,
        /// Where the answer goes.
        reply: Reply<BatchView>,
    },
    /// Take verdicts back.
    Remove {
        /// Which.
        which: Which,
        /// Who asks.
        by: Peer,
        /// Where the answer goes: those that are gone.
        reply: Reply<Vec<Verdict>>,
    },
    /// The never-drop list.
    Allowed {
        /// Where the answer goes.
        reply: Reply<Vec<Entry>>,
    },
    /// Put something on the never-drop list.
    Allow {
        /// What.
        new: NewAllow,
        /// Who asks.
        by: Peer,
        /// Where the answer goes.
        reply: Reply<Entry>,
    },
    /// Take something of an operator off the never-drop list.
    Disallow {
        /// What.
        item: Item,
        /// Who asks.
        by: Peer,
        /// Where the answer goes.
        reply: Reply<Item>,
    },
    /// The mode; with `to`, after a change.
    Mode {
        /// The mode wanted.
        to: Option<Mode>,
        /// Who asks.
        by: Peer,
        /// As in [`EnforceRequest::Add`].
        sessions: Option<Items>,
        /// Where the answer goes.
        reply: Reply<ModeView>,
    },
    /// Whether the changes up to now would survive a restart; `None`: nothing is to.
    Kept {
        /// Where the answer goes, when the disk has them or refused them.
        reply: Reply<Option<oneshot::Receiver<Unkept>>>,
    },
    /// The breaker; with `reset`, after it was closed.
    Breaker {
        /// Close it.
        reset: bool,
        /// Who asks.
        by: Peer,
        /// Where the answer goes.
        reply: Reply<BreakerView>,
    },
}
