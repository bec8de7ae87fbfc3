//! What a running agent can take of another configuration. Pure.
//!
//! Every setting is decided here, once: each struct is built field by field from the old one and the new one, so that a
//! new field does not compile before somebody says whether it is live or needs a restart.

use serde::{Deserialize, Serialize};

use super::{
    AgentConfig, AuditConfig, BreakerConfig, Config, ContextConfig, FlowsConfig, KernelConfig, LogConfig,
    MetricsConfig, ModelConfig, PolicyConfig, TagConfig,
};

/// A setting with another value than before.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Change {
    /// Which, as in "policy.threshold".
    pub setting: String,
    /// Its value before, in the form of the file; "not set" without one.
    pub from: String,
    /// Its value in the new configuration.
    pub to: String,
}

/// What becomes of a configuration when another one comes.
#[derive(Clone, Debug, PartialEq)]
pub struct Outcome {
    /// What is in force then: the new values of live settings, the old ones of the others.
    pub config: Config,
    /// Live settings that change.
    pub live: Vec<Change>,
    /// Settings that stay as they are until a restart.
    pub restart: Vec<Change>,
}

impl Outcome {
    /// Whether a live setting, or one of a section, changes: "policy.threshold", "audit".
    pub fn changes(&self, name: &str) -> bool {
        let within = |change: &Change| {
            change.setting.strip_prefix(name).is_some_and(|rest| rest.is_empty() || rest.starts_with('.'))
        };
        self.live.iter().any(within)
    }
}

/// Compares, and decides each setting.
pub fn compare(old: &Config, new: &Config) -> Outcome {
    let mut names = Names::default();
    let config = merge(old, new, &mut names);
    let tables = [old, new].map(|config| toml::Table::try_from(config).unwrap_or_default());
    let value = |table: &toml::Table, setting: &str| {
        let mut keys = setting.split('.');
        let first = keys.next().and_then(|key| table.get(key));
        let value = keys.try_fold(first?, |value, key| value.get(key));
        value.map(toml::Value::to_string)
    };
    let changes = |names: Vec<&str>| {
        let change = |setting: &str| {
            let [from, to] =
                tables.each_ref().map(|table| value(table, setting).unwrap_or_else(|| "not set".to_owned()));
            Change { setting: setting.to_owned(), from, to }
        };
        names.into_iter().map(change).collect()
    };
    Outcome { config, live: changes(names.live), restart: changes(names.restart) }
}

/// Names of settings that differ.
#[derive(Default)]
struct Names {
    live: Vec<&'static str>,
    restart: Vec<&'static str>,
}

impl Names {
    /// The agent takes the new value at once.
    fn live<T: Clone + PartialEq>(&mut self, name: &'static str, old: &T, new: &T) -> T {
        if old != new {
            self.live.push(name);
        }
        new.clone()
    }

    /// The old value stays: programs, maps and sockets were made with it.
    fn restart<T: Clone + PartialEq>(&mut self, name: &'static str, old: &T, new: &T) -> T {
        if old != new {
            self.restart.push(name);
        }
        old.clone()
    }
}

fn merge(old: &Config, new: &Config, names: &mut Names) -> Config {
    Config {
        interfaces: names.live("interfaces", &old.interfaces, &new.interfaces),
        mode: names.live("mode", &old.mode, &new.mode),
        kernel: kernel(&old.kernel, &new.kernel, names),
        context: context(&old.context, &new.context, names),
        flows: flows(&old.flows, &new.flows, names),
        agent: agent(&old.agent, &new.agent, names),
        model: model(&old.model, &new.model, names),
        policy: policy(&old.policy, &new.policy, names),
        breaker: breaker(&old.breaker, &new.breaker, names),
        audit: audit(&old.audit, &new.audit, names),
        tag: tag(&old.tag, &new.tag, names),
        metrics: metrics(&old.metrics, &new.metrics, names),
        log: log(&old.log, &new.log, names),
    }
}

fn kernel(old: &KernelConfig, new: &KernelConfig, names: &mut Names) -> KernelConfig {
    KernelConfig {
        xdp_mode: names.restart("kernel.xdp_mode", &old.xdp_mode, &new.xdp_mode),
        flows: names.restart("kernel.flows", &old.flows, &new.flows),
        max_interfaces: names.restart("kernel.max_interfaces", &old.max_interfaces, &new.max_interfaces),
        evict_idle: names.live("kernel.evict_idle", &old.evict_idle, &new.evict_idle),
        max_memory_mib: names.restart("kernel.max_memory_mib", &old.max_memory_mib, &new.max_memory_mib),
        // Log calls are pruned from the programs when they are loaded.
        bpf_log: names.restart("kernel.bpf_log", &old.bpf_log, &new.bpf_log),
    }
}

fn context(old: &ContextConfig, new: &ContextConfig, names: &mut Names) -> ContextConfig {
    ContextConfig {
        enabled: names.restart("context.enabled", &old.enabled, &new.enabled),
        sources: names.restart("context.sources", &old.sources, &new.sources),
        services: names.restart("context.services", &old.services, &new.services),
    }
}

/// The parser is made with these when the programs are loaded.
fn flows(old: &FlowsConfig, new: &FlowsConfig, names: &mut Names) -> FlowsConfig {
    FlowsConfig {
        tunnels: names.restart("flows.tunnels", &old.tunnels, &new.tunnels),
        vxlan_ports: names.restart("flows.vxlan_ports", &old.vxlan_ports, &new.vxlan_ports),
        geneve_ports: names.restart("flows.geneve_ports", &old.geneve_ports, &new.geneve_ports),
        payload_hints: names.restart("flows.payload_hints", &old.payload_hints, &new.payload_hints),
    }
}

fn agent(old: &AgentConfig, new: &AgentConfig, names: &mut Names) -> AgentConfig {
    AgentConfig {
        poll_interval: names.live("agent.poll_interval", &old.poll_interval, &new.poll_interval),
        lease: names.live("agent.lease", &old.lease, &new.lease),
        idle_timeout: names.live("agent.idle_timeout", &old.idle_timeout, &new.idle_timeout),
        established_timeout: names.live(
            "agent.established_timeout",
            &old.established_timeout,
            &new.established_timeout,
        ),
        active_timeout: names.live("agent.active_timeout", &old.active_timeout, &new.active_timeout),
        closed_linger: names.live("agent.closed_linger", &old.closed_linger, &new.closed_linger),
        rescore_interval: names.live("agent.rescore_interval", &old.rescore_interval, &new.rescore_interval),
        pins: names.restart("agent.pins", &old.pins, &new.pins),
        // It needs pins, which are made at the start or not at all.
        on_agent_loss: names.restart("agent.on_agent_loss", &old.on_agent_loss, &new.on_agent_loss),
        socket: names.restart("agent.socket", &old.socket, &new.socket),
        socket_group: names.restart("agent.socket_group", &old.socket_group, &new.socket_group),
        state_dir: names.restart("agent.state_dir", &old.state_dir, &new.state_dir),
    }
}

fn model(old: &ModelConfig, new: &ModelConfig, names: &mut Names) -> ModelConfig {
    ModelConfig {
        path: names.live("model.path", &old.path, &new.path),
        shadow: names.live("model.shadow", &old.shadow, &new.shadow),
        watch: names.live("model.watch", &old.watch, &new.watch),
        max_batch: names.live("model.max_batch", &old.max_batch, &new.max_batch),
        threads: names.live("model.threads", &old.threads, &new.threads),
        max_flows_per_poll: names.live("model.max_flows_per_poll", &old.max_flows_per_poll, &new.max_flows_per_poll),
        max_file_mib: names.live("model.max_file_mib", &old.max_file_mib, &new.max_file_mib),
        load_memory_mib: names.live("model.load_memory_mib", &old.load_memory_mib, &new.load_memory_mib),
        load_timeout: names.live("model.load_timeout", &old.load_timeout, &new.load_timeout),
        max_inference: names.live("model.max_inference", &old.max_inference, &new.max_inference),
        drift_window: names.live("model.drift_window", &old.drift_window, &new.drift_window),
        drift_fallback: names.live("model.drift_fallback", &old.drift_fallback, &new.drift_fallback),
    }
}

fn policy(old: &PolicyConfig, new: &PolicyConfig, names: &mut Names) -> PolicyConfig {
    PolicyConfig {
        threshold: names.live("policy.threshold", &old.threshold, &new.threshold),
        min_packets: names.live("policy.min_packets", &old.min_packets, &new.min_packets),
        min_packets_drop: names.live("policy.min_packets_drop", &old.min_packets_drop, &new.min_packets_drop),
        verdict_ttl: names.live("policy.verdict_ttl", &old.verdict_ttl, &new.verdict_ttl),
        // The kernel's maps have this size: more do not fit, and fewer would give back no memory.
        max_verdicts: names.restart("policy.max_verdicts", &old.max_verdicts, &new.max_verdicts),
        operator_share: names.live("policy.operator_share", &old.operator_share, &new.operator_share),
        never_drop: names.live("policy.never_drop", &old.never_drop, &new.never_drop),
        never_drop_ports: names.live("policy.never_drop_ports", &old.never_drop_ports, &new.never_drop_ports),
        never_drop_interfaces: names.live(
            "policy.never_drop_interfaces",
            &old.never_drop_interfaces,
            &new.never_drop_interfaces,
        ),
        never_drop_host: names.live("policy.never_drop_host", &old.never_drop_host, &new.never_drop_host),
        session_ports: names.live("policy.session_ports", &old.session_ports, &new.session_ports),
        ramp: names.live("policy.ramp", &old.ramp, &new.ramp),
        ramp_score: names.live("policy.ramp_score", &old.ramp_score, &new.ramp_score),
        limit_packets: names.live("policy.limit_packets", &old.limit_packets, &new.limit_packets),
        limit_bytes: names.live("policy.limit_bytes", &old.limit_bytes, &new.limit_bytes),
        escalate_flows: names.live("policy.escalate_flows", &old.escalate_flows, &new.escalate_flows),
        steady_after: names.live("policy.steady_after", &old.steady_after, &new.steady_after),
        accused_flows: names.live("policy.accused_flows", &old.accused_flows, &new.accused_flows),
        steady_per_minute: names.live("policy.steady_per_minute", &old.steady_per_minute, &new.steady_per_minute),
        half_open_limit: names.live("policy.half_open_limit", &old.half_open_limit, &new.half_open_limit),
        label_actions: names.live("policy.label_actions", &old.label_actions, &new.label_actions),
    }
}

fn breaker(old: &BreakerConfig, new: &BreakerConfig, names: &mut Names) -> BreakerConfig {
    BreakerConfig {
        drops_per_second: names.live("breaker.drops_per_second", &old.drops_per_second, &new.drops_per_second),
        source_share: names.live("breaker.source_share", &old.source_share, &new.source_share),
        min_sources: names.live("breaker.min_sources", &old.min_sources, &new.min_sources),
        verdicts_per_minute: names.live(
            "breaker.verdicts_per_minute",
            &old.verdicts_per_minute,
            &new.verdicts_per_minute,
        ),
        reset_after: names.live("breaker.reset_after", &old.reset_after, &new.reset_after),
    }
}

fn audit(old: &AuditConfig, new: &AuditConfig, names: &mut Names) -> AuditConfig {
    AuditConfig {
        path: names.live("audit.path", &old.path, &new.path),
        max_mib: names.live("audit.max_mib", &old.max_mib, &new.max_mib),
        files: names.live("audit.files", &old.files, &new.files),
        stdout: names.live("audit.stdout", &old.stdout, &new.stdout),
        journald: names.live("audit.journald", &old.journald, &new.journald),
        explain_per_second: names.live("audit.explain_per_second", &old.explain_per_second, &new.explain_per_second),
    }
}

fn tag(old: &TagConfig, new: &TagConfig, names: &mut Names) -> TagConfig {
    TagConfig {
        // Whether sensor_tag is loaded is decided with the other programs.
        enabled: names.restart("tag.enabled", &old.enabled, &new.enabled),
        mark: names.live("tag.mark", &old.mark, &new.mark),
        mask: names.live("tag.mask", &old.mask, &new.mask),
        dscp: names.live("tag.dscp", &old.dscp, &new.dscp),
    }
}

fn metrics(old: &MetricsConfig, new: &MetricsConfig, names: &mut Names) -> MetricsConfig {
    MetricsConfig {
        listen: names.restart("metrics.listen", &old.listen, &new.listen),
        allowed_hosts: names.restart("metrics.allowed_hosts", &old.allowed_hosts, &new.allowed_hosts),
    }
}

fn log(old: &LogConfig, new: &LogConfig, names: &mut Names) -> LogConfig {
    LogConfig {
        format: names.live("log.format", &old.format, &new.format),
        level: names.live("log.level", &old.level, &new.level),
        summary: names.restart("log.summary", &old.summary, &new.summary),
    }
}

#[cfg(test)]
mod tests {
    use super::super::environment;
    use super::*;

    /// Every setting, changed by itself, is told as what it is, and nothing else is.
    #[test]
    fn each_setting_is_decided() {
        let old = Config::default();
        let (mut live, mut restart) = (0, 0);
        for (setting, sample) in environment::settings() {
            let new = changed(&old, &setting, &sample);
            let outcome = compare(&old, &new);
            assert_eq!(outcome.live.len() + outcome.restart.len(), 1, "{setting}: {outcome:?}");
            let change = outcome.live.first().or(outcome.restart.first()).expect("one");
            assert_eq!(change.setting, setting);
            assert_ne!(change.from, change.to, "{setting}");
            // A live one is the whole difference; of the other nothing is taken.
            assert_eq!(outcome.config, if outcome.live.is_empty() { old.clone() } else { new }, "{setting}");
            (live, restart) = (live + outcome.live.len(), restart + outcome.restart.len());
        }
        assert!(live > restart && restart > 5, "{live} live, {restart} need a restart");
    }

    /// The configuration with another value of this setting.
    fn changed(old: &Config, setting: &str, sample: &toml::Value) -> Config {
        use toml::Value;
        let table = toml::Table::try_from(old).expect("TOML");
        let others: Vec<Value> = match sample {
            Value::Boolean(value) => vec![Value::Boolean(!value)],
            Value::Integer(value) => vec![Value::Integer(value + 1)],
            Value::Float(value) => vec![Value::Float(value / 2.0)],
            // A choice, a duration, a path, an address or a level.
            Value::String(_) => ["enforce", "generic", "debug", "keep", "7s", "/other", "127.0.0.1:1", "json"]
                .map(|text| Value::String(text.to_owned()))
                .into(),
            other => vec![other.clone(), Value::Array(Vec::new()), Value::Array(vec!["other".into()])],
        };
        let parse = |value: Value| {
            let mut table = table.clone();
            match setting.split_once('.') {
                Some((section, key)) => {
                    let section = table.get_mut(section).and_then(Value::as_table_mut).expect("a section");
                    section.insert(key.to_owned(), value);
                }
                None => drop(table.insert(setting.to_owned(), value)),
            }
            table.try_into::<Config>().ok().filter(|new| new != old)
        };
        others.into_iter().find_map(parse).unwrap_or_else(|| panic!("no other value of {setting} is known"))
    }

    #[test]
    fn what_needs_a_restart_is_named_and_the_rest_is_taken() {
        let old = Config::default();
        let mut new = old.clone();
        new.kernel.flows *= 2;
        new.policy.threshold = Some(0.75);
        let outcome = compare(&old, &new);
        assert_eq!((outcome.config.kernel.flows, outcome.config.policy.threshold), (old.kernel.flows, Some(0.75)));
        let change = |setting: &str, from: &str, to: &str| Change {
            setting: setting.to_owned(),
            from: from.to_owned(),
            to: to.to_owned(),
        };
        assert_eq!(outcome.live, [change("policy.threshold", "not set", "0.75")]);
        assert_eq!(outcome.restart, [change("kernel.flows", "65536", "131072")]);
        assert!(outcome.changes("policy") && outcome.changes("policy.threshold") && !outcome.changes("pol"));
    }
}
