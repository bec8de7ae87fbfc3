//! What a verdict or an allow entry is about, and how it is written: in commands, JSON, the audit and the store.
//!
//! One form for all: an address (`198.18.66.7`), a prefix (`2001:db8:66::/48`), a flow
//! (`tcp,198.18.66.7:4444,198.18.0.10:80`, in either order of the ends), a service (`tcp,198.18.0.10:80`). Flows and
//! services of a VLAN or a tunnel name it: `,vlan=5`, `,tunnel=3:77` (kind and id).

use std::fmt;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};
use std::str::FromStr;

use anyhow::{Context as _, Result, bail, ensure};
use ipnet::IpNet;
use sensor_common::flow::{Domain, FlowKey};
use serde::{Deserialize, Deserializer, Serialize, Serializer, de::Error as _};

use crate::view::{protocol_name, protocol_number};

/// A destination service.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Service {
    /// Its address.
    pub address: IpAddr,
    /// Its port, 0 without ports; of TCP, 0 is all ports of the address.
    pub port: u16,
    /// IP protocol number.
    pub protocol: u8,
}

/// What a verdict is about.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Scope {
    /// One flow, both directions.
    Flow(FlowKey),
    /// All flows that these sources begin: one address (a prefix of full length) or a prefix, without host bits.
    Source(IpNet),
    /// Half-open connections to a service, or to all ports of an address.
    Service(Service),
}

impl Scope {
    /// A source address or prefix; host bits are cut off.
    pub fn source(prefix: IpNet) -> Scope {
        Scope::Source(plain(prefix))
    }

    /// The kind, as commands and metrics name it.
    pub fn kind(&self) -> &'static str {
        match self {
            Scope::Flow(_) => "flow",
            Scope::Source(prefix) if prefix.prefix_len() == prefix.max_prefix_len() => "source",
            Scope::Source(_) => "prefix",
            Scope::Service(_) => "service",
        }
    }

    /// Every kind.
    pub const KINDS: [&'static str; 4] = ["flow", "source", "prefix", "service"];
}

/// Without host bits, and an IPv4 address that is written as an IPv6 one as what it is: a prefix has one form.
pub fn plain(prefix: IpNet) -> IpNet {
    if let IpNet::V6(v6) = prefix
        && let Some(v4) = v6.addr().to_ipv4_mapped()
        && v6.prefix_len() >= 96
        && let Ok(mapped) = IpNet::new(v4.into(), v6.prefix_len() - 96)
    {
        return mapped.trunc();
    }
    prefix.trunc()
}

/// The addresses of a key: low and high endpoint.
pub fn addresses(key: &FlowKey) -> [IpAddr; 2] {
    let address = |words: [u32; 4]| match key.family {
        4 => IpAddr::V4(Ipv4Addr::from(words[0])),
        _ => IpAddr::V6(Ipv6Addr::from(words.iter().fold(0u128, |sum, word| sum << 32 | *word as u128))),
    };
    [address(key.low), address(key.high)]
}

/// An address as keys hold it.
pub fn words(address: IpAddr) -> [u32; 4] {
    match address {
        IpAddr::V4(v4) => [v4.to_bits(), 0, 0, 0],
        IpAddr::V6(v6) => {
            let bits = v6.to_bits();
            [96, 64, 32, 0].map(|shift| (bits >> shift) as u32)
        }
    }
}

/// The key of the flow between two endpoints, outside VLANs and tunnels.
pub fn flow_key(protocol: u8, a: SocketAddr, b: SocketAddr) -> FlowKey {
    let family = if a.is_ipv4() { 4 } else { 6 };
    let (src, dst) = (words(a.ip()), words(b.ip()));
    FlowKey::canonical(src, dst, a.port(), b.port(), protocol, family, Domain::default()).0
}

fn endpoint(f: &mut fmt::Formatter<'_>, address: IpAddr, port: u16) -> fmt::Result {
    if port == 0 { write!(f, ",{address}") } else { write!(f, ",{}", SocketAddr::new(address, port)) }
}

impl fmt::Display for Service {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&protocol_name(self.protocol))?;
        endpoint(f, self.address, self.port)
    }
}

impl fmt::Display for Scope {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let key = match self {
            Scope::Source(prefix) if prefix.prefix_len() == prefix.max_prefix_len() => {
                return write!(f, "{}", prefix.addr());
            }
            Scope::Source(prefix) => return write!(f, "{prefix}"),
            Scope::Service(service) => return write!(f, "{service}"),
            Scope::Flow(key) => key,
        };
        let [low, high] = addresses(key);
        f.write_str(&protocol_name(key.protocol))?;
        endpoint(f, low, key.low_port)?;
        endpoint(f, high, key.high_port)?;
        // By position: a priority tag (VLAN 0) may stand before another.
        match key.vlans {
            [0, 0] => {}
            [outer, 0] => write!(f, ",vlan={outer}")?,
            [outer, inner] => write!(f, ",vlan={outer},vlan={inner}")?,
        }
        if (key.encapsulation, key.tunnel) != (0, 0) {
            write!(f, ",tunnel={}:{}", key.encapsulation, key.tunnel)?;
        }
        Ok(())
    }
}

impl FromStr for Scope {
    type Err = anyhow::Error;

    fn from_str(text: &str) -> Result<Scope> {
        let text = text.trim();
        if let Ok(address) = text.parse::<IpAddr>() {
            return Ok(Scope::source(address.into()));
        }
        if let Ok(prefix) = text.parse::<IpNet>() {
            return Ok(Scope::source(prefix));
        }
        let mut parts = text.split(',');
        let protocol = parts.next().unwrap_or_default();
        let Some(protocol) = protocol_number(protocol) else {
            bail!(
                "\"{text}\" is no address, prefix, flow or service: write 198.18.66.7, 198.18.66.0/24, \
                 tcp,198.18.66.7:4444,198.18.0.10:80 or tcp,198.18.0.10:80"
            )
        };
        let (mut ends, mut domain, mut vlans) = (Vec::new(), Domain::default(), 0);
        for part in parts {
            if let Some(vlan) = part.strip_prefix("vlan=") {
                let id = vlan.parse().ok().filter(|id| *id < 4096);
                ensure!(vlans < 2, "\"{text}\": more than two VLANs");
                domain.vlans[vlans] = id.with_context(|| format!("\"{vlan}\" is no VLAN id (0 to 4095)"))?;
                vlans += 1;
            } else if let Some(tunnel) = part.strip_prefix("tunnel=") {
                let (kind, id) = tunnel.split_once(':').with_context(|| format!("\"{part}\" is not tunnel=KIND:ID"))?;
                domain.encapsulation = kind.parse().with_context(|| format!("kind of tunnel \"{kind}\""))?;
                domain.tunnel = id.parse().with_context(|| format!("id of tunnel \"{id}\""))?;
            } else {
                ends.push(end(part).with_context(|| format!("\"{part}\" in \"{text}\" is no endpoint"))?);
            }
        }
        match ends[..] {
            [to] if domain == Domain::default() => {
                Ok(Scope::Service(Service { address: to.ip(), port: to.port(), protocol }))
            }
            [a, b] => {
                ensure!(a.is_ipv4() == b.is_ipv4(), "\"{text}\": the ends of a flow are of one family");
                let family = if a.is_ipv4() { 4 } else { 6 };
                let (src, dst) = (words(a.ip()), words(b.ip()));
                Ok(Scope::Flow(FlowKey::canonical(src, dst, a.port(), b.port(), protocol, family, domain).0))
            }
            _ => bail!("\"{text}\": a flow has two endpoints, a service one (and no VLAN or tunnel)"),
        }
    }
}

fn end(text: &str) -> Result<SocketAddr> {
    match text.parse::<IpAddr>() {
        Ok(address) => Ok(SocketAddr::new(address, 0)),
        Err(_) => Ok(text.parse::<SocketAddr>()?),
    }
}

impl Serialize for Scope {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_str(self)
    }
}

impl<'de> Deserialize<'de> for Scope {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Scope, D::Error> {
        String::deserialize(deserializer)?.parse().map_err(|error| D::Error::custom(format!("{error:#}")))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_scope_reads_back_as_it_was_written() {
        for (text, kind) in [
            ("198.18.66.7", "source"),
            ("2001:db8::7", "source"),
            ("198.18.66.0/24", "prefix"),
            ("2001:db8:66::/48", "prefix"),
            ("tcp,198.18.0.10:80,198.18.66.7:4444", "flow"),
            ("udp,[2001:db8::1]:53,[2001:db8::2]:4000,vlan=5,vlan=7", "flow"),
            ("icmp,198.18.0.10,198.18.66.7,tunnel=3:77", "flow"),
            // What a wire can carry, a standard or not.
            ("udp,198.18.0.10:53,198.18.66.7:4000,vlan=4095", "flow"),
            ("udp,198.18.0.10:53,198.18.66.7:4000,vlan=0,vlan=5", "flow"),
            ("tcp,198.18.0.10:80", "service"),
            ("udp,[2001:db8::1]:53", "service"),
        ] {
            let scope: Scope = text.parse().expect(text);
            assert_eq!((scope.to_string().as_str(), scope.kind()), (text, kind));
            let json = serde_json::to_string(&scope).expect("JSON");
            assert_eq!(serde_json::from_str::<Scope>(&json).expect("JSON"), scope);
        }
    }

    #[test]
    fn one_thing_has_one_form() {
        let same = |a: &str, b: &str| assert_eq!(a.parse::<Scope>().expect(a), b.parse().expect(b));
        same("tcp,198.18.66.7:4444,198.18.0.10:80", "tcp,198.18.0.10:80,198.18.66.7:4444");
        same("198.18.66.7/24", "198.18.66.0/24");
        same("::ffff:198.18.66.7", "198.18.66.7");
        same("::ffff:198.18.66.0/120", "198.18.66.0/24");
        same("6,198.18.0.10:80", "tcp,198.18.0.10:80");
    }

    #[test]
    fn nonsense_is_refused_with_the_part_that_is_wrong() {
        for (text, word) in [
            ("198.18.66.256", "no address"),
            ("tcp", "two endpoints"),
            ("tcp,198.18.0.1:1,[2001:db8::1]:2", "family"),
            ("tcp,198.18.0.1:1,198.18.0.2:2,198.18.0.3:3", "two endpoints"),
            ("tcp,198.18.0.1:http", "no endpoint"),
            ("tcp,198.18.0.1:1,198.18.0.2:2,vlan=4096", "VLAN"),
            ("tcp,198.18.0.1:1,198.18.0.2:2,vlan=1,vlan=2,vlan=3", "two VLANs"),
        ] {
            let error = format!("{:#}", text.parse::<Scope>().expect_err(text));
            assert!(error.contains(word), "{text}: {error}");
        }
    }
}
