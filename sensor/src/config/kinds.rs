//! The choices among settings, each with its name in the file, on the command line and in JSON.

use std::fmt;

use clap::ValueEnum;
use sensor_common::packet::Encapsulation;
use sensor_common::verdict::{Action, Origin};
use serde::{Deserialize, Serialize};

/// What the agent does with verdicts.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize, ValueEnum)]
#[serde(rename_all = "lowercase")]
pub enum Mode {
    /// No packet is touched; what would have been done is counted.
    #[default]
    Observe,
    /// Received packets of flows under a verdict carry the configured skb mark and DSCP.
    Tag,
    /// Verdicts of action drop are obeyed.
    Enforce,
}

/// What becomes of verdicts when the agent is killed, hangs or is out of memory.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize, ValueEnum)]
#[serde(rename_all = "lowercase")]
pub enum AgentLoss {
    /// They end with the lease: all traffic passes.
    #[default]
    Open,
    /// They hold until they expire.
    Keep,
}

/// How XDP is attached.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize, ValueEnum)]
#[serde(rename_all = "lowercase")]
pub enum XdpMode {
    /// Native, else the TC ingress hook.
    #[default]
    Auto,
    /// In the driver, or fail.
    Native,
    /// The TC ingress hook, on any interface.
    Tc,
    /// XDP in the network stack, on any interface.
    Generic,
}

/// A tunnel whose inner flows can be counted.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize, ValueEnum)]
#[serde(rename_all = "lowercase")]
pub enum Tunnel {
    /// GRE, with or without a key.
    Gre,
    /// IP in IP, any pair of versions (also 6in4).
    Ipip,
    /// VXLAN, over the UDP ports of `vxlan_ports`.
    Vxlan,
    /// Geneve, over the UDP ports of `geneve_ports`.
    Geneve,
    /// GTP-U, UDP port 2152.
    Gtp,
}

impl From<Tunnel> for Encapsulation {
    fn from(tunnel: Tunnel) -> Encapsulation {
        match tunnel {
            Tunnel::Gre => Encapsulation::Gre,
            Tunnel::Ipip => Encapsulation::Ip,
            Tunnel::Vxlan => Encapsulation::Vxlan,
            Tunnel::Geneve => Encapsulation::Geneve,
            Tunnel::Gtp => Encapsulation::Gtp,
        }
    }
}

/// Log level of the kernel programs.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize, ValueEnum)]
#[serde(rename_all = "lowercase")]
#[repr(u8)]
pub enum BpfLog {
    /// Log calls are pruned from the programs at load.
    #[default]
    Off = 0,
    /// Errors.
    Error = 1,
    /// And warnings.
    Warn = 2,
    /// And notices.
    Info = 3,
    /// And details.
    Debug = 4,
    /// Everything.
    Trace = 5,
}

/// An action as it is named in settings and JSON.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize, ValueEnum)]
#[serde(rename_all = "lowercase")]
pub enum ActionName {
    /// Packets pass as they are.
    Pass,
    /// Received packets pass with the agent's mark.
    Tag,
    /// Packets beyond a rate are dropped, or half-open connections beyond one.
    Limit,
    /// Packets are dropped.
    Drop,
}

/// Who decided a verdict, as it is named in JSON and metrics.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize, ValueEnum)]
#[serde(rename_all = "lowercase")]
pub enum OriginName {
    /// A model.
    Model,
    /// A person or a program at the control socket.
    Operator,
    /// Another sensor.
    Fleet,
    /// A rule on what was measured, without a model.
    Rule,
}

/// What of the host's own surroundings is never dropped.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize, ValueEnum)]
#[serde(rename_all = "lowercase")]
pub enum HostEntry {
    /// Default gateways.
    Gateways,
    /// Resolvers that this host asks.
    Resolvers,
    /// Connections to the session ports that are established when the agent starts or an operator acts.
    Sessions,
}

/// Form of the log lines.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize, ValueEnum)]
#[serde(rename_all = "lowercase")]
pub enum LogFormat {
    /// Journald where standard error is the journal, else text.
    #[default]
    Auto,
    /// For people.
    Text,
    /// One JSON object a line.
    Json,
    /// To the journal, with the fields of each line.
    Journald,
}

macro_rules! names {
    ($($type:ident { $($variant:ident = $name:literal),+ })+) => {
        $(
            impl $type {
                /// The name in settings, logs and JSON.
                pub const fn name(self) -> &'static str {
                    match self { $($type::$variant => $name),+ }
                }
            }
            impl fmt::Display for $type {
                fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                    f.pad(self.name())
                }
            }
        )+
    };
}

names! {
    Mode { Observe = "observe", Tag = "tag", Enforce = "enforce" }
    BpfLog { Off = "off", Error = "error", Warn = "warn", Info = "info", Debug = "debug", Trace = "trace" }
    AgentLoss { Open = "open", Keep = "keep" }
    LogFormat { Auto = "auto", Text = "text", Json = "json", Journald = "journald" }
    XdpMode { Auto = "auto", Native = "native", Tc = "tc", Generic = "generic" }
    Tunnel { Gre = "gre", Ipip = "ipip", Vxlan = "vxlan", Geneve = "geneve", Gtp = "gtp" }
    ActionName { Pass = "pass", Tag = "tag", Limit = "limit", Drop = "drop" }
    OriginName { Model = "model", Operator = "operator", Fleet = "fleet", Rule = "rule" }
    HostEntry { Gateways = "gateways", Resolvers = "resolvers", Sessions = "sessions" }
}

impl From<Action> for ActionName {
    fn from(action: Action) -> ActionName {
        match action {
            Action::Pass => ActionName::Pass,
            Action::Tag => ActionName::Tag,
            Action::Limit => ActionName::Limit,
            Action::Drop => ActionName::Drop,
        }
    }
}

impl From<ActionName> for Action {
    fn from(name: ActionName) -> Action {
        match name {
            ActionName::Pass => Action::Pass,
            ActionName::Tag => Action::Tag,
            ActionName::Limit => Action::Limit,
            ActionName::Drop => Action::Drop,
        }
    }
}

impl From<Origin> for OriginName {
    fn from(origin: Origin) -> OriginName {
        match origin {
            Origin::Model => OriginName::Model,
            Origin::Operator => OriginName::Operator,
            Origin::Fleet => OriginName::Fleet,
            Origin::Rule => OriginName::Rule,
        }
    }
}

impl From<OriginName> for Origin {
    fn from(name: OriginName) -> Origin {
        match name {
            OriginName::Model => Origin::Model,
            OriginName::Operator => Origin::Operator,
            OriginName::Fleet => Origin::Fleet,
            OriginName::Rule => Origin::Rule,
        }
    }
}
