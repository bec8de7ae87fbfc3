//! The laboratory: one protected host (`edge`), clients and attackers, each a namespace with one interface `eth0`, on
//! one Ethernet segment made by a bridge in a fifth kind of namespace (`net`).
//!
//! ```text
//!   client0..  198.18.1.0/24  2001:db8::1:0/112 ─┐
//!                                                 ├─ net: br0 ─── eth0 edge 198.18.0.10  2001:db8::10
//!   attacker0.. 198.18.66.0/24 2001:db8::66:0/112 ┘
//! ```
//!
//! Invariant: who is an attacker is told by the source prefix alone, in live runs and in captures.

use std::net::{Ipv4Addr, Ipv6Addr};
use std::time::Duration;

use anyhow::{Context, Result, bail};

use crate::netns::{self, NetNs, Ns};
use crate::rng::Rng;

/// The protected host's addresses.
pub const EDGE_V4: Ipv4Addr = Ipv4Addr::new(198, 18, 0, 10);
/// See [`EDGE_V4`].
pub const EDGE_V6: Ipv6Addr = Ipv6Addr::new(0x2001, 0xdb8, 0, 0, 0, 0, 0, 0x10);
/// Prefixes of the well-behaved hosts.
pub const CLIENT_PREFIXES: [&str; 2] = ["198.18.1.0/24", "2001:db8::1:0/112"];
/// Prefixes of the attackers.
pub const ATTACKER_PREFIXES: [&str; 2] = ["198.18.66.0/24", "2001:db8::66:0/112"];
/// Prefixes of the protected host itself.
pub const EDGE_PREFIXES: [&str; 2] = ["198.18.0.10/32", "2001:db8::10/128"];
/// The one interface of each host.
pub const UPLINK: &str = "eth0";

/// What distinguishes one host's network stack from another's, as seen on the wire.
#[derive(Clone, Debug)]
pub struct HostSpec {
    /// Addresses of each family, 1 to 9. The first is the usual source.
    pub addresses: u8,
    /// Interface MTU in bytes, at least 1280 (IPv6).
    pub mtu: u32,
    /// Default TTL and hop limit of packets sent.
    pub ttl: u8,
    /// TCP timestamps offered.
    pub timestamps: bool,
    /// TCP selective acknowledgements offered.
    pub sack: bool,
    /// TCP window scaling offered.
    pub window_scaling: bool,
    /// Rate in Mbit/s of the host's access line, both ways; `None` is unlimited.
    pub rate_mbit: Option<u32>,
}

impl Default for HostSpec {
    fn default() -> Self {
        Self { addresses: 1, mtu: 1500, ttl: 64, timestamps: true, sack: true, window_scaling: true, rate_mbit: None }
    }
}

impl HostSpec {
    /// A stack drawn at random: what clients and attackers share, so that a model cannot tell them apart by their
    /// operating system or access line.
    #[must_use]
    pub fn draw(rng: &mut Rng) -> Self {
        let windows = rng.one_in(3);
        let hops = u8::try_from(rng.range(1..24)).unwrap_or(1);
        Self {
            addresses: 3,
            mtu: rng.pick(&[1500, 1500, 1500, 1492, 1420, 1280]),
            ttl: if windows { 128 } else { 64 } - hops,
            timestamps: !windows,
            sack: !rng.one_in(8),
            window_scaling: !rng.one_in(8),
            rate_mbit: rng.pick(&[None, None, Some(400), Some(100), Some(30)]),
        }
    }
}

/// One host: its namespace and the addresses of its `eth0`.
#[derive(Debug)]
pub struct Host {
    /// Where its programs run.
    pub netns: NetNs,
    /// Addresses, usual source first; never empty.
    pub v4: Vec<Ipv4Addr>,
    /// Addresses, usual source first; never empty.
    pub v6: Vec<Ipv6Addr>,
}

impl Host {
    /// Makes address number `index` (counted from 0, wrapping) the source of connections that choose none.
    ///
    /// # Errors
    /// If the route cannot be replaced.
    pub fn use_source(&self, index: usize) -> Result<Ipv4Addr> {
        let source = self.v4[index % self.v4.len()];
        self.netns.ip(&format!("route replace 198.18.0.0/15 dev {UPLINK} src {source}"))?;
        Ok(source)
    }
}

/// What to build.
#[derive(Clone, Debug, Default)]
pub struct LabSpec {
    /// The protected host's stack.
    pub edge: HostSpec,
    /// One host each.
    pub clients: Vec<HostSpec>,
    /// One host each.
    pub attackers: Vec<HostSpec>,
    /// Switches segmentation and receive offloads off at the edge's interface, so that a capture there holds packets
    /// as a wire would carry them. Live runs leave the defaults: the programs must cope with them.
    pub wire_segments: bool,
}

/// The running laboratory. Hosts go first on drop, then the segment between them.
#[derive(Debug)]
pub struct Lab {
    /// The protected host.
    pub edge: Host,
    /// Well-behaved hosts.
    pub clients: Vec<Host>,
    /// Attackers.
    pub attackers: Vec<Host>,
    /// Holds the bridge; its ports are named after the hosts.
    pub net: NetNs,
}

impl Lab {
    /// Builds the hosts and waits until the edge answers each of them. Also sweeps what killed runs left behind.
    ///
    /// # Errors
    /// Without root or iproute2, or if the hosts cannot reach each other.
    pub fn build(spec: &LabSpec) -> Result<Self> {
        if spec.clients.len() > 20 || spec.attackers.len() > 20 {
            bail!("the address plan has room for 20 clients and 20 attackers");
        }
        netns::sweep()?;
        let net = NetNs::new("net")?;
        net.ip("link add br0 type bridge stp_state 0 mcast_snooping 0")
            .context("make a bridge: the kernel needs CONFIG_BRIDGE")?;
        net.ip("link set br0 up")?;
        let edge = host(&net, "edge", &spec.edge, &[EDGE_V4], &[EDGE_V6])?;
        if spec.wire_segments {
            wire_segments(&edge.netns, UPLINK)?;
            wire_segments(&net, "edge")?;
        }
        let group = |role: &str, third: u8, word: u16, specs: &[HostSpec]| -> Result<Vec<Host>> {
            (0u8..)
                .zip(specs)
                .map(|(index, spec)| {
                    let numbers = (0..spec.addresses.clamp(1, 9)).map(|address| 10 + index * 10 + address);
                    let v4: Vec<_> = numbers.clone().map(|number| Ipv4Addr::new(198, 18, third, number)).collect();
                    let v6: Vec<_> =
                        numbers.map(|n| Ipv6Addr::new(0x2001, 0xdb8, 0, 0, 0, 0, word, n.into())).collect();
                    host(&net, &format!("{role}{index}"), spec, &v4, &v6)
                })
                .collect()
        };
        let clients = group("client", 1, 0x1, &spec.clients)?;
        let attackers = group("attacker", 66, 0x66, &spec.attackers)?;
        let lab = Self { edge, clients, attackers, net };
        lab.wait_until_reachable()?;
        Ok(lab)
    }

    /// All hosts but the edge.
    pub fn others(&self) -> impl Iterator<Item = &Host> {
        self.clients.iter().chain(&self.attackers)
    }

    fn wait_until_reachable(&self) -> Result<()> {
        for host in self.others() {
            for target in [EDGE_V4.to_string(), EDGE_V6.to_string()] {
                host.netns
                    .run("ping", &["-c", "1", "-w", "5", "-q", &target])
                    .with_context(|| format!("{target} does not answer {}", host.netns.name()))?;
            }
        }
        // Neighbour probes of the pings are over when the measurement starts.
        std::thread::sleep(Duration::from_millis(50));
        Ok(())
    }
}

fn host(net: &Ns, role: &str, spec: &HostSpec, v4: &[Ipv4Addr], v6: &[Ipv6Addr]) -> Result<Host> {
    let netns = NetNs::new(role)?;
    let HostSpec { addresses: _, mtu, ttl, timestamps, sack, window_scaling, rate_mbit } = spec;
    let digit = |on: bool| if on { "1" } else { "0" };
    netns.sysctl("net/ipv4/ip_default_ttl", &ttl.to_string())?;
    netns.sysctl("net/ipv6/conf/default/hop_limit", &ttl.to_string())?;
    netns.sysctl("net/ipv4/tcp_timestamps", digit(*timestamps))?;
    netns.sysctl("net/ipv4/tcp_sack", digit(*sack))?;
    netns.sysctl("net/ipv4/tcp_window_scaling", digit(*window_scaling))?;
    net.ip(&format!("link add {role} mtu {mtu} type veth peer name {UPLINK} mtu {mtu} netns {}", netns.name()))?;
    net.ip(&format!("link set {role} master br0 up"))?;
    netns.ip(&format!("link set {UPLINK} up"))?;
    for address in v4 {
        netns.ip(&format!("addr add {address}/15 dev {UPLINK}"))?;
    }
    for address in v6 {
        // Duplicate detection would keep the address unusable for a second.
        netns.ip(&format!("addr add {address}/64 dev {UPLINK} nodad"))?;
    }
    if let Some(rate) = rate_mbit {
        for (owner, device) in [(&*netns, UPLINK), (net, role)] {
            let shaper = format!("qdisc add dev {device} root tbf rate {rate}mbit burst 64kb latency 60ms");
            owner.run("tc", &shaper.split(' ').collect::<Vec<_>>())?;
        }
    }
    Ok(Host { netns, v4: v4.to_vec(), v6: v6.to_vec() })
}

fn wire_segments(netns: &Ns, device: &str) -> Result<()> {
    let words = format!("-K {device} tso off gso off gro off");
    netns.run("ethtool", &words.split(' ').collect::<Vec<_>>()).map(drop)
}
