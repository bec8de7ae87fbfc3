//! The agent's settings: one struct, filled from defaults, then the file, then the environment, then the command line
//! ([`Source`]).
//!
//! Invariant: a [`Config`] that passed [`Config::validate`] needs no further checks of ranges anywhere. [`change`] says
//! of each setting whether a running agent can take another value. `config/sensor.toml` lists every setting with its
//! default; a test holds the two together. Called by `cli`.

pub mod change;
pub mod environment;
mod file;
mod flows;
mod forms;
mod kinds;
mod model;
mod policy;
mod problem;
mod removed;
mod source;

use std::net::SocketAddr;
use std::path::PathBuf;
use std::time::Duration;

use anyhow::{Context, Result, anyhow, ensure};
use sensor_common::counter::{MAX_INTERFACES, MIN_INTERFACES};
use sensor_common::table::{MAX_BUCKETS, MIN_BUCKETS, WAYS};
use serde::{Deserialize, Serialize};

pub use self::file::read;
pub use self::flows::{ContextConfig, FlowsConfig, check_ports};
use self::forms::{duration, empty_is_none};
pub use self::kinds::{ActionName, AgentLoss, BpfLog, HostEntry, LogFormat, Mode, OriginName, Tunnel, XdpMode};
pub use self::model::ModelConfig;
pub use self::policy::{AuditConfig, BreakerConfig, PolicyConfig};
pub use self::problem::Problem;
use self::problem::{Checks, show};
pub use self::source::{Override, SYSTEM_FILE, Source, Wrong};
use crate::interfaces::List;

/// The documented default configuration file.
pub const DEFAULT_FILE: &str = include_str!("../../config/sensor.toml");

/// Slots for interfaces where a pattern says which are watched.
const SLOTS_FOR_PATTERNS: u32 = 1024;

/// Everything that can be set. Each field is explained in `config/sensor.toml`.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct Config {
    /// Interfaces to watch ([`List`]); empty: the one of the default route.
    pub interfaces: Vec<String>,
    /// What is done with verdicts.
    pub mode: Mode,
    /// The programs and the flow table.
    pub kernel: KernelConfig,
    /// The host context.
    pub context: ContextConfig,
    /// What is read of packets.
    pub flows: FlowsConfig,
    /// The poll loop.
    pub agent: AgentConfig,
    /// The model.
    pub model: ModelConfig,
    /// From score to verdict.
    pub policy: PolicyConfig,
    /// What bounds the verdicts of models.
    pub breaker: BreakerConfig,
    /// What is written down of verdicts.
    pub audit: AuditConfig,
    /// What a verdict of action tag does.
    pub tag: TagConfig,
    /// The metrics endpoint.
    pub metrics: MetricsConfig,
    /// Logs.
    pub log: LogConfig,
}

/// `[kernel]`
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct KernelConfig {
    /// How XDP is attached.
    pub xdp_mode: XdpMode,
    /// Capacity of the flow table, in flows (a power of two).
    pub flows: u32,
    /// Idle time after which a flow with history may be given up for a new one.
    #[serde(with = "duration")]
    pub evict_idle: Duration,
    /// Interfaces that can be watched at once (a power of two); 0: as many as the list asks for.
    pub max_interfaces: u32,
    /// Most memory of the kernel maps, MiB; 0: as much as the settings make it.
    pub max_memory_mib: u32,
    /// Log level of the programs.
    pub bpf_log: BpfLog,
}

/// `[agent]`
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct AgentConfig {
    /// Time between two polls of the table.
    #[serde(with = "duration")]
    pub poll_interval: Duration,
    /// Verdicts are obeyed for this long after the last poll.
    #[serde(with = "duration")]
    pub lease: Duration,
    /// A flow without packets for this long has ended, unless it is an established TCP connection.
    #[serde(with = "duration")]
    pub idle_timeout: Duration,
    /// An established TCP connection without packets for this long has ended.
    #[serde(with = "duration")]
    pub established_timeout: Duration,
    /// A flow that is older than this is ended and starts anew.
    #[serde(with = "duration")]
    pub active_timeout: Duration,
    /// A closed TCP flow is kept this long for late segments.
    #[serde(with = "duration")]
    pub closed_linger: Duration,
    /// A long flow is scored again after this long.
    #[serde(with = "duration")]
    pub rescore_interval: Duration,
    /// Where maps and links are pinned, in a BPF file system; `None` (in the file: ""): nowhere.
    #[serde(with = "empty_is_none")]
    pub pins: Option<PathBuf>,
    /// What becomes of enforcement when the agent is lost.
    pub on_agent_loss: AgentLoss,
    /// The control socket.
    pub socket: PathBuf,
    /// Group whose members may read at the control socket; "": none.
    pub socket_group: String,
    /// Where verdicts and the never-drop list survive a restart; `None` (in the file: ""): nothing is kept.
    #[serde(with = "empty_is_none")]
    pub state_dir: Option<PathBuf>,
}

/// `[tag]`
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct TagConfig {
    /// Whether `sensor_tag` is attached in modes tag and enforce.
    pub enabled: bool,
    /// Value put under `mask` of the skb mark.
    pub mark: u32,
    /// Bits of the skb mark that may change.
    pub mask: u32,
    /// DSCP to set, 0–63.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub dscp: Option<u8>,
}

/// `[metrics]`
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct MetricsConfig {
    /// Address of /metrics and /healthz; `None` (in the file: ""): none.
    #[serde(with = "empty_is_none")]
    pub listen: Option<SocketAddr>,
    /// Names by which scrapers call this host, beside its own name, localhost and addresses.
    pub allowed_hosts: Vec<String>,
}

/// `[log]`
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct LogConfig {
    /// Form of the lines.
    pub format: LogFormat,
    /// Level, or directives as in `info,sensor::policy=debug`.
    pub level: String,
    /// Print one line per second with the totals on standard output.
    pub summary: bool,
}

/// How long an established TCP connection may pause unless something else is asked for: as long as Linux's connection
/// tracking keeps one (`nf_conntrack_tcp_timeout_established`), so that a firewall and Sensor forget it at the same
/// time. Of the agent and of replays.
pub const ESTABLISHED_TIMEOUT: Duration = Duration::from_secs(5 * 24 * 3600);

impl Default for KernelConfig {
    fn default() -> KernelConfig {
        KernelConfig {
            xdp_mode: XdpMode::Auto,
            flows: 65_536,
            evict_idle: Duration::from_secs(10),
            max_interfaces: 0,
            max_memory_mib: 0,
            bpf_log: BpfLog::Off,
        }
    }
}

impl Default for AgentConfig {
    fn default() -> AgentConfig {
        AgentConfig {
            poll_interval: Duration::from_millis(100),
            lease: Duration::from_secs(5),
            idle_timeout: Duration::from_secs(60),
            established_timeout: ESTABLISHED_TIMEOUT,
            active_timeout: Duration::from_secs(30 * 60),
            closed_linger: Duration::from_secs(2),
            rescore_interval: Duration::from_secs(10),
            pins: Some(PathBuf::from("/sys/fs/bpf/sensor")),
            on_agent_loss: AgentLoss::Open,
            socket: PathBuf::from("/run/sensor/sensor.sock"),
            socket_group: String::new(),
            state_dir: Some(PathBuf::from("/var/lib/sensor")),
        }
    }
}

impl Default for TagConfig {
    fn default() -> TagConfig {
        TagConfig { enabled: true, mark: 0x53, mask: 0xff, dscp: None }
    }
}

impl Default for MetricsConfig {
    fn default() -> MetricsConfig {
        MetricsConfig { listen: Some(SocketAddr::from(([127, 0, 0, 1], 9469))), allowed_hosts: Vec::new() }
    }
}

impl Default for LogConfig {
    fn default() -> LogConfig {
        LogConfig { format: LogFormat::default(), level: "info".to_owned(), summary: false }
    }
}

impl KernelConfig {
    /// Buckets of the flow table.
    pub const fn buckets(&self) -> u32 {
        self.flows / WAYS as u32
    }

    /// Slots of the table of interfaces, for a list.
    pub fn interface_slots(&self, list: &List) -> u32 {
        match (self.max_interfaces, list.patterns()) {
            (0, []) => (2 * list.names().len() as u32).next_power_of_two().clamp(MIN_INTERFACES, MAX_INTERFACES),
            (0, _) => SLOTS_FOR_PATTERNS,
            (slots, _) => slots,
        }
    }
}

impl Config {
    /// Parses the text of a file; `name` is for messages. Ranges are checked by [`Config::problems`], after everything
    /// that wins over the file was applied ([`Source`]).
    ///
    /// # Errors
    /// A line of it is not a setting; the message names the line.
    pub fn parse(text: &str, name: &str) -> Result<Config> {
        if let Some((setting, replaced, (line, column))) = removed::in_text(text) {
            return Err(anyhow!("{name}:{line}:{column}: {}", removed::explain(setting, replaced)));
        }
        toml::from_str(text).map_err(|error| {
            let (line, column) = file::place(text, error.span().map_or(0, |span| span.start));
            anyhow!("{name}:{line}:{column}: {}", one_line(&error))
        })
    }

    /// The configuration as TOML.
    ///
    /// # Errors
    /// A path that is not UTF-8.
    pub fn to_toml(&self) -> Result<String> {
        toml::to_string(self).context("cannot write the configuration as TOML")
    }

    /// The hash that tells two configurations apart: SHA-256 of [`Config::to_toml`], hexadecimal.
    pub fn hash(&self) -> String {
        use sha2::Digest as _;
        // A path that is not UTF-8 can come from no file, variable or flag.
        let digest = sha2::Sha256::digest(self.to_toml().unwrap_or_default());
        digest.iter().map(|byte| format!("{byte:02x}")).collect()
    }

    /// Checks every range and every relation between settings.
    ///
    /// # Errors
    /// What [`Config::problems`] finds, in one line.
    pub fn validate(&self) -> Result<()> {
        let problems: Vec<String> = self.problems().into_iter().map(|problem| problem.text).collect();
        ensure!(problems.is_empty(), "{}", problems.join("; "));
        Ok(())
    }

    /// Every setting that cannot work, with what would.
    pub fn problems(&self) -> Vec<Problem> {
        let Config {
            interfaces,
            mode: _,
            kernel,
            context,
            flows,
            agent,
            model,
            policy,
            breaker,
            audit,
            tag,
            metrics: _,
            log,
        } = self;
        let mut checks = Checks::default();
        match List::parse(interfaces) {
            Ok(list) => kernel.check(&list, &mut checks),
            Err(error) => {
                checks.result(&["interfaces"], Err(error));
                kernel.check(&List::default(), &mut checks);
            }
        }
        context.check(&mut checks);
        flows.check(&mut checks);
        agent.check(&mut checks);
        model.check(&mut checks);
        policy.check(&mut checks);
        breaker.check(&mut checks);
        audit.check(&mut checks);
        checks.ensure(tag.mark & !tag.mask == 0, &["tag.mark", "tag.mask"], || {
            format!("tag.mark = {:#x}: has bits outside tag.mask = {:#x}; widen the mask", tag.mark, tag.mask)
        });
        if let Some(dscp) = tag.dscp {
            checks.number(&["tag.dscp"], dscp, 0, 63);
        }
        checks.result(&["log.level"], crate::logging::check(&log.level));
        checks.0
    }
}

impl KernelConfig {
    fn check(&self, list: &List, checks: &mut Checks) {
        let KernelConfig { xdp_mode: _, flows, max_interfaces, evict_idle, max_memory_mib, bpf_log: _ } = self;
        let (least, most) = (MIN_BUCKETS * WAYS as u32, MAX_BUCKETS * WAYS as u32);
        checks.ensure(flows.is_power_of_two() && (least..=most).contains(flows), &["kernel.flows"], || {
            format!("kernel.flows = {flows}: must be a power of two from {least} to {most}")
        });
        let counts = MIN_INTERFACES..=MAX_INTERFACES;
        let fits = *max_interfaces == 0 || (max_interfaces.is_power_of_two() && counts.contains(max_interfaces));
        checks.ensure(fits, &["kernel.max_interfaces"], || {
            format!(
                "kernel.max_interfaces = {max_interfaces}: must be a power of two from {MIN_INTERFACES} to {MAX_INTERFACES}, \
                 or 0 for what interfaces asks for"
            )
        });
        let named = list.names().len();
        checks.ensure(named <= self.interface_slots(list) as usize, &["interfaces", "kernel.max_interfaces"], || {
            format!("interfaces: {named} are named, but kernel.max_interfaces = {max_interfaces}: raise it")
        });
        checks.within(&["kernel.evict_idle"], *evict_idle, SECOND, 60 * MINUTE);
        let fits = *max_memory_mib == 0 || (16..=1 << 16).contains(max_memory_mib);
        checks.ensure(fits, &["kernel.max_memory_mib"], || {
            format!("kernel.max_memory_mib = {max_memory_mib}: must be from 16 to 65536, or 0 for no limit")
        });
    }
}

impl AgentConfig {
    fn check(&self, checks: &mut Checks) {
        let agent = self;
        checks.within(&["agent.poll_interval"], agent.poll_interval, Duration::from_millis(10), SECOND);
        checks.within(&["agent.lease"], agent.lease, Duration::from_millis(50), MINUTE);
        checks.ensure(agent.lease >= agent.poll_interval * 5, &["agent.lease", "agent.poll_interval"], || {
            format!(
                "agent.lease = {}: must be at least five times agent.poll_interval ({}), or one slow poll ends enforcement",
                show(agent.lease),
                show(agent.poll_interval)
            )
        });
        checks.within(&["agent.idle_timeout"], agent.idle_timeout, SECOND, 60 * MINUTE);
        let established = agent.established_timeout;
        checks.within(&["agent.established_timeout"], established, SECOND, 30 * 24 * 60 * MINUTE);
        checks.ensure(established >= agent.idle_timeout, &["agent.established_timeout", "agent.idle_timeout"], || {
            format!(
                "agent.established_timeout = {}: must be at least agent.idle_timeout ({}), or connections would end before other flows",
                show(established),
                show(agent.idle_timeout)
            )
        });
        checks.within(&["agent.active_timeout"], agent.active_timeout, 10 * SECOND, 24 * 60 * MINUTE);
        checks.within(&["agent.closed_linger"], agent.closed_linger, Duration::ZERO, MINUTE);
        checks.within(&["agent.rescore_interval"], agent.rescore_interval, SECOND, 60 * MINUTE);
        if let Some(pins) = &agent.pins {
            // The BPF file system refuses dots in names of its own.
            let dotted = pins.file_name().is_none_or(|name| name.to_string_lossy().contains('.'));
            checks.ensure(pins.is_absolute() && !dotted, &["agent.pins"], || {
                format!("agent.pins = \"{}\": must be an absolute path whose last part has no dot", pins.display())
            });
        }
        let kept = agent.on_agent_loss == AgentLoss::Open || agent.pins.is_some();
        checks.ensure(kept, &["agent.on_agent_loss", "agent.pins"], || {
            "agent.on_agent_loss = \"keep\": needs agent.pins, without which the programs end with the agent".to_owned()
        });
        let socket = agent.socket.as_os_str().len();
        checks.ensure(agent.socket.is_absolute() && socket <= 107, &["agent.socket"], || {
            format!("agent.socket = \"{}\": must be an absolute path of at most 107 bytes", agent.socket.display())
        });
        if let Some(directory) = &agent.state_dir {
            checks.ensure(directory.is_absolute(), &["agent.state_dir"], || {
                format!("agent.state_dir = \"{}\": must be an absolute path", directory.display())
            });
        }
    }
}

const SECOND: Duration = Duration::from_secs(1);
const MINUTE: Duration = Duration::from_secs(60);

/// What a parser says, in one line.
fn one_line(error: &toml::de::Error) -> String {
    error.message().trim_end().replace('\n', "; ")
}

#[cfg(test)]
mod tests;
