//! `[policy]`, `[breaker]` and `[audit]`: from score to verdict, what bounds it, and what is written down of it.

use std::collections::BTreeMap;
use std::path::PathBuf;
use std::time::Duration;

use ipnet::IpNet;
use serde::{Deserialize, Serialize};

use super::forms::{duration, empty_is_none};
use super::problem::Checks;
use super::{ActionName, HostEntry, MINUTE, SECOND};
use crate::allow::item::Port;
use crate::steady::Rules;

/// `[policy]`
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct PolicyConfig {
    /// Score from which on a flow gets a verdict, in place of the model's own.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub threshold: Option<f64>,
    /// Packets of a flow before its first score (a power of two).
    pub min_packets: u32,
    /// Packets of a flow before it is dropped or limited; until then it is tagged.
    pub min_packets_drop: u32,
    /// How long a verdict holds unless it is renewed.
    #[serde(with = "duration")]
    pub verdict_ttl: Duration,
    /// Verdicts of each scope that are held at once.
    pub max_verdicts: u32,
    /// Share of them that models and rules leave to operators and the fleet.
    pub operator_share: f64,
    /// Flows with an endpoint in one of these are never dropped; what a link cannot do without is not, either.
    pub never_drop: Vec<IpNet>,
    /// Ports of this host that are never dropped.
    pub never_drop_ports: Vec<Port>,
    /// Interfaces whose packets are never dropped.
    pub never_drop_interfaces: Vec<String>,
    /// What of this host's own surroundings is never dropped.
    pub never_drop_host: Vec<HostEntry>,
    /// Local TCP ports whose established connections are sessions of operators.
    pub session_ports: Vec<u16>,
    /// For so long after mode enforce began, only scores from `ramp_score` on drop.
    #[serde(with = "duration")]
    pub ramp: Duration,
    /// See `ramp`.
    pub ramp_score: f64,
    /// Packets a second that action limit of the model lets through, 0 = not limited in packets.
    pub limit_packets: u64,
    /// Bytes a second, likewise.
    pub limit_bytes: u64,
    /// Flows of a source under a verdict of drop, with completed handshakes, after which the source gets it; 0 = never.
    pub escalate_flows: u32,
    /// Accused flows of one source in a minute from which on a model's drop or limit is done; 0 or 1 = each is.
    pub accused_flows: u32,
    /// A source whose connections to a service were the same for so long is not dropped for them; 0 = never.
    #[serde(with = "duration")]
    pub steady_after: Duration,
    /// Such connections a minute at most.
    pub steady_per_minute: u32,
    /// SYNs a second to a service or an address that lead to no connection, from which on clients that are not known
    /// have to repeat theirs, where the kernel's SYN cookies do not do the work; 0 = never.
    pub half_open_limit: u32,
    /// Action per label of the model; other labels get the mode's action.
    pub label_actions: BTreeMap<String, ActionName>,
}

/// `[breaker]`
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct BreakerConfig {
    /// Packets a second under verdicts of drop, 0 = any number.
    pub drops_per_second: u64,
    /// Share of the active proven sources that may have a flow under a verdict, 1 = all.
    pub source_share: f64,
    /// Sources with a flow under a verdict below which their share is not looked at.
    pub min_sources: u32,
    /// Sources newly under a verdict in a minute, 0 = any number.
    pub verdicts_per_minute: u32,
    /// It closes when all was below the caps for so long; 0 = by command only.
    #[serde(with = "duration")]
    pub reset_after: Duration,
}

/// `[audit]`
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct AuditConfig {
    /// The file; `None` (in the file: ""): none. A relative path starts at `agent.state_dir`.
    #[serde(with = "empty_is_none")]
    pub path: Option<PathBuf>,
    /// Size at which a new file is begun, MiB.
    pub max_mib: u32,
    /// Files that are kept, the one in use included.
    pub files: u32,
    /// Whether the lines go to standard output, too.
    pub stdout: bool,
    /// Whether they go to the journal, too.
    pub journald: bool,
    /// New verdicts a second whose features are looked into.
    pub explain_per_second: u32,
}

impl Default for PolicyConfig {
    fn default() -> PolicyConfig {
        PolicyConfig {
            threshold: None,
            min_packets: 4,
            min_packets_drop: 4,
            verdict_ttl: Duration::from_secs(10 * 60),
            max_verdicts: 12_000,
            operator_share: 0.25,
            never_drop: Vec::new(),
            never_drop_ports: Vec::new(),
            never_drop_interfaces: Vec::new(),
            never_drop_host: vec![HostEntry::Gateways, HostEntry::Resolvers, HostEntry::Sessions],
            session_ports: vec![22],
            ramp: Duration::ZERO,
            ramp_score: 0.99,
            limit_packets: 100,
            limit_bytes: 0,
            escalate_flows: 0,
            accused_flows: 10,
            steady_after: Duration::from_secs(10 * 60),
            steady_per_minute: 60,
            half_open_limit: 0,
            label_actions: BTreeMap::new(),
        }
    }
}

impl Default for BreakerConfig {
    fn default() -> BreakerConfig {
        BreakerConfig {
            drops_per_second: 1_000_000,
            source_share: 0.5,
            min_sources: 3,
            verdicts_per_minute: 600,
            reset_after: Duration::from_secs(10 * 60),
        }
    }
}

impl Default for AuditConfig {
    fn default() -> AuditConfig {
        AuditConfig {
            path: Some(PathBuf::from("audit.jsonl")),
            max_mib: 16,
            files: 5,
            stdout: false,
            journald: false,
            explain_per_second: 20,
        }
    }
}

impl PolicyConfig {
    /// When a habit spares its source.
    pub fn steady(&self) -> Rules {
        let after_ns = u64::try_from(self.steady_after.as_nanos()).unwrap_or(u64::MAX);
        Rules { after_ns, per_minute: self.steady_per_minute }
    }

    pub(super) fn check(&self, checks: &mut Checks) {
        let share = |score: f64| (0.0..=1.0).contains(&score);
        if let Some(threshold) = self.threshold {
            checks.ensure(share(threshold), &["policy.threshold"], || {
                format!("policy.threshold = {threshold}: must be from 0.0 to 1.0")
            });
        }
        packets(checks, &["policy.min_packets"], self.min_packets);
        packets(checks, &["policy.min_packets_drop"], self.min_packets_drop);
        checks.within(&["policy.verdict_ttl"], self.verdict_ttl, 2 * SECOND, 24 * 60 * MINUTE);
        checks.number(&["policy.max_verdicts"], self.max_verdicts, 64, 1 << 20);
        let operators = self.operator_share;
        checks.ensure((0.0..=0.9).contains(&operators), &["policy.operator_share"], || {
            format!("policy.operator_share = {operators}: must be from 0.0 to 0.9")
        });
        checks.within(&["policy.ramp"], self.ramp, Duration::ZERO, 366 * 24 * 60 * MINUTE);
        checks.ensure(share(self.ramp_score), &["policy.ramp_score"], || {
            format!("policy.ramp_score = {}: must be from 0.0 to 1.0", self.ramp_score)
        });
        let limits = self.label_actions.values().any(|action| *action == ActionName::Limit);
        let bounded = !limits || self.limit_packets > 0 || self.limit_bytes > 0;
        checks.ensure(bounded, &["policy.label_actions", "policy.limit_packets"], || {
            "policy.label_actions has a limit: set policy.limit_packets or policy.limit_bytes".to_owned()
        });
        checks.number(&["policy.escalate_flows"], self.escalate_flows, 0, 65_536);
        checks.within(&["policy.steady_after"], self.steady_after, Duration::ZERO, 24 * 60 * MINUTE);
        checks.number(&["policy.accused_flows"], self.accused_flows, 0, 64);
        checks.number(&["policy.steady_per_minute"], self.steady_per_minute, 1, 6_000);
        checks.number(&["policy.half_open_limit"], self.half_open_limit, 0, 10_000_000);
    }
}

fn packets(checks: &mut Checks, setting: &'static [&'static str; 1], packets: u32) {
    checks.number(setting, packets, 1, 65_536);
    checks.ensure(packets == 0 || packets.is_power_of_two(), setting, || {
        let name = setting[0];
        format!("{name} = {packets}: must be a power of two, because flows are looked at when their count doubles")
    });
}

impl BreakerConfig {
    pub(super) fn check(&self, checks: &mut Checks) {
        let share = |share: f64| share > 0.0 && share <= 1.0;
        let text = |share| format!("= {share}: must be above 0.0, up to 1.0 (off)");
        let sources = self.source_share;
        checks.ensure(share(sources), &["breaker.source_share"], || format!("breaker.source_share {}", text(sources)));
        checks.number(&["breaker.min_sources"], self.min_sources, 1, 4_096);
        checks.within(&["breaker.reset_after"], self.reset_after, Duration::ZERO, 24 * 60 * MINUTE);
    }
}

impl AuditConfig {
    pub(super) fn check(&self, checks: &mut Checks) {
        checks.number(&["audit.max_mib"], self.max_mib, 1, 1 << 12);
        checks.number(&["audit.files"], self.files, 1, 1000);
        checks.number(&["audit.explain_per_second"], self.explain_per_second, 0, 1000);
    }
}
