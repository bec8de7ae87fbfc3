//! What can stand on the never-drop list, and how it is written in commands, configuration, store and JSON.

use std::fmt;
use std::str::FromStr;

use anyhow::{Context as _, Result, bail, ensure};
use ipnet::IpNet;
use sensor_common::flow::FlowKey;
use sensor_common::packet::protocol;
use serde::{Deserialize, Deserializer, Serialize, Serializer, de::Error as _};

use crate::verdicts::scope::Scope;

/// A TCP or UDP port of this host.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Port {
    /// IP protocol number: TCP or UDP.
    pub protocol: u8,
    /// 1 to 65535.
    pub port: u16,
}

/// What is never dropped.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub enum Item {
    /// Packets from or to these addresses.
    Prefix(IpNet),
    /// Packets to or from this port of this host.
    Port(Port),
    /// Packets of this interface.
    Interface(String),
    /// Packets of this flow, in every VLAN.
    Flow(FlowKey),
}

impl Item {
    /// The kind, as commands and metrics name it.
    pub fn kind(&self) -> &'static str {
        match self {
            Item::Prefix(_) => "prefix",
            Item::Port(_) => "port",
            Item::Interface(_) => "interface",
            Item::Flow(_) => "flow",
        }
    }
}

impl fmt::Display for Port {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}/{}", if self.protocol == protocol::TCP { "tcp" } else { "udp" }, self.port)
    }
}

impl FromStr for Port {
    type Err = anyhow::Error;

    fn from_str(text: &str) -> Result<Port> {
        let (name, port) = text.split_once('/').with_context(|| format!("\"{text}\" is no port such as tcp/22"))?;
        let protocol = match name {
            "tcp" => protocol::TCP,
            "udp" => protocol::UDP,
            _ => bail!("\"{text}\" is no port such as tcp/22 or udp/53"),
        };
        let port = port.parse().ok().filter(|port| *port != 0);
        Ok(Port { protocol, port: port.with_context(|| format!("\"{text}\": ports are 1 to 65535"))? })
    }
}

impl fmt::Display for Item {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Item::Prefix(prefix) => write!(f, "{}", Scope::Source(*prefix)),
            Item::Port(port) => write!(f, "{port}"),
            Item::Interface(name) => write!(f, "dev:{name}"),
            Item::Flow(key) => write!(f, "{}", Scope::Flow(*key)),
        }
    }
}

impl FromStr for Item {
    type Err = anyhow::Error;

    fn from_str(text: &str) -> Result<Item> {
        if let Some(name) = text.strip_prefix("dev:") {
            ensure!(!name.is_empty() && name.len() <= 15, "\"{name}\" is no name of an interface");
            return Ok(Item::Interface(name.to_owned()));
        }
        if text.starts_with("tcp/") || text.starts_with("udp/") {
            return Ok(Item::Port(text.parse()?));
        }
        match text.parse::<Scope>() {
            Ok(Scope::Source(prefix)) => Ok(Item::Prefix(prefix)),
            Ok(Scope::Flow(key)) => Ok(Item::Flow(key)),
            Ok(Scope::Service(_)) => {
                bail!("\"{text}\": a port of this host is written tcp/22, a flow has two endpoints")
            }
            Err(_) => bail!("\"{text}\" is no address, prefix, port (tcp/22), interface (dev:eth0) or flow"),
        }
    }
}

macro_rules! as_text {
    ($($type:ty),+) => {
        $(
            impl Serialize for $type {
                fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
                    serializer.collect_str(self)
                }
            }
            impl<'de> Deserialize<'de> for $type {
                fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<$type, D::Error> {
                    String::deserialize(deserializer)?.parse().map_err(|error| D::Error::custom(format!("{error:#}")))
                }
            }
        )+
    };
}

as_text! { Port, Item }
