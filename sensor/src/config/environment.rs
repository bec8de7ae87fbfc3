//! Settings from the environment: `SENSOR_`, the section, `_`, the key, all upper case. `SENSOR_POLICY_THRESHOLD=0.9`
//! is `policy.threshold = 0.9`.
//!
//! The names come from the settings themselves, so there is none that could be forgotten. Text needs no quotes. Lists
//! are separated by commas, or written as in the file. A variable that is none of this is an error: a misspelt one must
//! not be passed over in silence.

use std::collections::BTreeMap;

use ipnet::IpNet;

use super::{ActionName, Config, HostEntry, Override, Tunnel, removed};
use crate::allow::item::Port;

const PREFIX: &str = "SENSOR_";

/// Variables that are no settings: logging, tests, benches and models.
const OTHERS: [&str; 6] =
    ["SENSOR_LOG", "SENSOR_BIN", "SENSOR_CAPTURES", "SENSOR_DEBIAN_MIRROR", "SENSOR_MODEL", "SENSOR_WRITE_DOCS"];
/// How variables of the build begin.
const BUILD: [&str; 2] = ["SENSOR_BPF_", "SENSOR_EBPF_"];

/// Variables of this process that may be settings.
pub fn of_process() -> Vec<(String, String)> {
    let ours = std::env::vars_os().filter_map(|(name, value)| {
        let name = name.into_string().ok().filter(|name| name.starts_with(PREFIX))?;
        Some((name, value.to_string_lossy().into_owned()))
    });
    let mut ours: Vec<_> = ours.collect();
    ours.sort();
    ours
}

/// Every setting, with a value of its type.
pub fn settings() -> BTreeMap<String, toml::Value> {
    let mut full = Config { interfaces: vec!["eth0".to_owned()], ..Config::default() };
    full.flows.tunnels = vec![Tunnel::Gre];
    full.policy.threshold = Some(0.5);
    full.policy.never_drop = vec![IpNet::new_assert([198, 18, 0, 0].into(), 15)];
    full.policy.never_drop_ports = vec![Port { protocol: sensor_common::packet::protocol::TCP, port: 22 }];
    full.policy.never_drop_interfaces = vec!["eth0".to_owned()];
    full.policy.never_drop_host = vec![HostEntry::Gateways];
    full.policy.label_actions = BTreeMap::from([("scan".to_owned(), ActionName::Tag)]);
    full.tag.dscp = Some(8);
    let mut settings = BTreeMap::new();
    for (name, value) in toml::Table::try_from(full).unwrap_or_default() {
        match value {
            toml::Value::Table(section) => {
                settings.extend(section.into_iter().map(|(key, value)| (format!("{name}.{key}"), value)));
            }
            value => drop(settings.insert(name, value)),
        }
    }
    settings
}

/// The variable of a setting.
pub fn name_of(setting: &str) -> String {
    format!("{PREFIX}{}", setting.replace('.', "_").to_uppercase())
}

/// What these variables set, and what is wrong with the others.
pub(super) fn overrides(variables: &[(String, String)]) -> (Vec<Override>, Vec<String>) {
    let (mut found, mut wrong) = (Vec::new(), Vec::new());
    if variables.is_empty() {
        return (found, wrong);
    }
    let known: BTreeMap<String, (String, toml::Value)> =
        settings().into_iter().map(|(setting, value)| (name_of(&setting), (setting, value))).collect();
    for (name, text) in variables {
        match known.get(name) {
            Some((setting, sample)) => match value(text, sample) {
                Ok(value) => found.push(Override { origin: name.clone(), setting: setting.clone(), value }),
                Err(error) => wrong.push(format!("{name}: \"{text}\" {error}")),
            },
            None if is_other(name, text) => {}
            None => {
                if let Some(text) = removed::of_variable(name) {
                    wrong.push(format!("{name}: {text}"));
                    continue;
                }
                let distance = |known: &&String| strsim::damerau_levenshtein(known, name);
                let nearest = known.keys().min_by_key(distance).map_or("", |nearest| nearest);
                wrong.push(format!(
                    "{name}: there is no such setting; the nearest is {nearest} (`sensor config --default` lists all)"
                ));
            }
        }
    }
    (found, wrong)
}

fn is_other(name: &str, text: &str) -> bool {
    OTHERS.contains(&name) || BUILD.iter().any(|begin| name.starts_with(begin)) || is_of_a_cluster(name, text)
}

/// A value in the form of the file. `sample`: one of its type.
fn value(text: &str, sample: &toml::Value) -> Result<toml::Value, String> {
    use toml::Value;
    let text = text.trim();
    let as_toml = |wanted: &str| text.parse::<Value>().map_err(|_| format!("is not {wanted}"));
    match sample {
        Value::String(_) => Ok(Value::String(text.to_owned())),
        Value::Array(_) if text.starts_with('[') => as_toml("a list such as [\"a\", \"b\"]"),
        Value::Array(samples) => {
            let words = text.split(',').map(str::trim).filter(|word| !word.is_empty());
            let sample = samples.first().cloned().unwrap_or_else(|| Value::String(String::new()));
            words.map(|word| value(word, &sample)).collect::<Result<_, _>>().map(Value::Array)
        }
        Value::Table(_) if text.starts_with('{') => as_toml("a table such as { a = \"b\" }"),
        Value::Table(_) => {
            let words = text.split(',').map(str::trim).filter(|word| !word.is_empty());
            let pair = |word: &str| {
                let (key, value) = word.split_once('=').ok_or_else(|| format!("has no = in \"{word}\""))?;
                Ok((key.trim().to_owned(), Value::String(value.trim().to_owned())))
            };
            words.map(pair).collect::<Result<toml::Table, String>>().map(Value::Table)
        }
        Value::Boolean(_) => as_toml("true or false"),
        Value::Integer(_) | Value::Float(_) | Value::Datetime(_) => as_toml("a number"),
    }
}

/// Kubernetes tells each container of the services in its namespace, in variables named after them. A service named
/// `sensor` or `sensor-…` must not keep the agent from starting.
fn is_of_a_cluster(name: &str, text: &str) -> bool {
    let digits = |text: &str| !text.is_empty() && text.bytes().all(|byte| byte.is_ascii_digit());
    let protocol = |text: &str| matches!(text, "TCP" | "UDP" | "SCTP");
    let words: Vec<&str> = name.split('_').collect();
    match words[..] {
        [.., "SERVICE", "HOST" | "PORT"] => true,
        // Of a setting's name with a slip, the value is no address.
        [.., "PORT"] => ["tcp://", "udp://", "sctp://"].iter().any(|begin| text.starts_with(begin)),
        [.., "PORT", port, proto] if digits(port) && protocol(proto) => true,
        [.., "PORT", port, proto, "PROTO" | "ADDR"] if digits(port) && protocol(proto) => true,
        _ => name.contains("_SERVICE_PORT_"),
    }
}
