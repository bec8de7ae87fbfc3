//! `[context]` and `[flows]`: what is read of packets, and what is kept beside flows.

use anyhow::{Context as _, Result, ensure};
use sensor_common::context::{DEFAULT_SERVICES, DEFAULT_SOURCES, MAX_ENTRIES, MIN_ENTRIES};
use sensor_common::packet::{self, GENEVE_PORTS, MAX_PORTS, Ports, VXLAN_PORTS};
use serde::{Deserialize, Serialize};

use super::Tunnel;
use super::problem::Checks;

/// `[context]`
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct ContextConfig {
    /// Whether sources and services are followed.
    pub enabled: bool,
    /// Source addresses that are kept (a power of two).
    pub sources: u32,
    /// Services that are kept (a power of two).
    pub services: u32,
}

/// `[flows]`
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct FlowsConfig {
    /// Tunnels whose inner flows are counted in place of the outer one.
    pub tunnels: Vec<Tunnel>,
    /// UDP ports of VXLAN.
    pub vxlan_ports: Vec<u16>,
    /// UDP ports of Geneve.
    pub geneve_ports: Vec<u16>,
    /// Whether the first payload bytes are looked at for the payload-hint features.
    pub payload_hints: bool,
}

impl Default for FlowsConfig {
    fn default() -> FlowsConfig {
        FlowsConfig {
            tunnels: Vec::new(),
            vxlan_ports: VXLAN_PORTS.to_vec(),
            geneve_ports: GENEVE_PORTS.to_vec(),
            payload_hints: false,
        }
    }
}

impl FlowsConfig {
    /// The same for the parser.
    pub fn parser_options(&self) -> packet::Options {
        let tunnels = self.tunnels.iter().fold(0, |bits, tunnel| bits | packet::Encapsulation::from(*tunnel).bit());
        packet::Options {
            tunnels,
            payload_hints: self.payload_hints,
            vxlan_ports: Ports::of(&self.vxlan_ports),
            geneve_ports: Ports::of(&self.geneve_ports),
        }
    }

    pub(super) fn check(&self, checks: &mut Checks) {
        let FlowsConfig { tunnels: _, vxlan_ports, geneve_ports, payload_hints: _ } = self;
        for (setting, ports) in [(&["flows.vxlan_ports"], vxlan_ports), (&["flows.geneve_ports"], geneve_ports)] {
            checks.result(setting, check_ports(ports).with_context(|| format!("{} = {ports:?}", setting[0])));
        }
    }
}

/// Whether these can be the ports of one kind of tunnel.
///
/// # Errors
/// None, too many, port 0.
pub fn check_ports(ports: &[u16]) -> Result<()> {
    ensure!((1..=MAX_PORTS).contains(&ports.len()), "must be 1 to {MAX_PORTS} UDP ports");
    ensure!(!ports.contains(&0), "there is no UDP port 0");
    Ok(())
}

impl Default for ContextConfig {
    fn default() -> ContextConfig {
        ContextConfig { enabled: true, sources: DEFAULT_SOURCES, services: DEFAULT_SERVICES }
    }
}

impl ContextConfig {
    /// Sources and services that are kept, `None` = off.
    pub fn sizes(&self) -> Option<(u32, u32)> {
        self.enabled.then_some((self.sources, self.services))
    }

    pub(super) fn check(&self, checks: &mut Checks) {
        let ContextConfig { enabled: _, sources, services } = *self;
        let fits = |entries: u32| entries.is_power_of_two() && (MIN_ENTRIES..=MAX_ENTRIES).contains(&entries);
        let text = |entries| format!("= {entries}: must be a power of two from {MIN_ENTRIES} to {MAX_ENTRIES}");
        checks.ensure(fits(sources), &["context.sources"], || format!("context.sources {}", text(sources)));
        checks.ensure(fits(services), &["context.services"], || format!("context.services {}", text(services)));
    }
}
