//! What of this host's own surroundings must never be dropped: default gateways, resolvers, sessions of operators. And
//! what else of them verdicts depend on: its addresses, links with IPv4 link-local neighbours, whether it answers
//! floods of SYNs by cookies.
//!
//! Everything is read from files of the caller's network namespace (`/proc/thread-self/net`), by [`watch`] on a thread of
//! its own, once a minute; a file that is not there says nothing, and one that cannot be read changes nothing. The parsers
//! are pure. A gateway is listed by its addresses, not by its MAC: whoever is on the link can claim an address at that MAC.

use std::collections::{BTreeSet, HashMap, HashSet};
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};
use std::sync::mpsc::{Receiver, SyncSender, sync_channel};
use std::time::Duration;

use anyhow::{Context as _, Result};
use ipnet::IpNet;
use sensor_common::packet::protocol;

use crate::allow::item::Item;
use crate::config::{HostEntry, PolicyConfig};
use crate::verdicts::scope::flow_key;

/// Time between two looks.
const INTERVAL: Duration = Duration::from_secs(60);
/// Sessions that are protected at most.
const MAX_SESSIONS: usize = 256;
/// Looks in a row that must miss something before it is believed to be gone: a route flaps, a file is being rewritten.
const MISSED: u8 = 3;
/// What the local resolver of systemd listens on, and where it says whom it asks.
const STUBS: [&str; 2] = ["127.0.0.53", "127.0.0.54"];
const UPSTREAMS: &str = "/run/systemd/resolve/resolv.conf";

/// Items with a comment each.
pub type Items = Vec<(Item, String)>;

/// What one look found; `None` = it could not be read, which says nothing.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Surroundings {
    /// Default gateways.
    pub gateways: Option<Items>,
    /// Resolvers.
    pub resolvers: Option<Items>,
    /// This host's own addresses.
    pub own: Option<HashSet<IpAddr>>,
    /// Names of the interfaces with a route to IPv4 link-local addresses (169.254.0.0/16).
    pub link_local: Option<HashSet<String>>,
    /// Whether the kernel answers by SYN cookies when a queue of half-open connections is full.
    pub syn_cookies: Option<bool>,
}

/// Looks now.
pub fn surroundings(entries: &[HostEntry]) -> Surroundings {
    let wants = |entry| entries.contains(&entry);
    let gateways = || Some(gateways(&net("route")?, &net("ipv6_route")?));
    let resolvers = || {
        let file = read("/etc/resolv.conf")?;
        let stub = STUBS.iter().any(|stub| file.contains(stub));
        Some(resolvers(&file, &if stub { read(UPSTREAMS)? } else { String::new() }))
    };
    Surroundings {
        gateways: if wants(HostEntry::Gateways) { gateways() } else { Some(Items::new()) },
        resolvers: if wants(HostEntry::Resolvers) { resolvers() } else { Some(Items::new()) },
        own: net("fib_trie").zip(net("if_inet6")).map(|(trie, inet6)| own(&trie, &inet6)),
        link_local: net("route").map(|route| link_local(&route)),
        syn_cookies: syn_cookies(),
    }
}

/// Whether the kernel answers by SYN cookies when a queue of half-open connections is full (`net.ipv4.tcp_syncookies`,
/// which is for both families, of the caller's network namespace); `None` if it cannot be read. A kernel without them
/// has no such setting.
pub fn syn_cookies() -> Option<bool> {
    let value = read("/proc/sys/net/ipv4/tcp_syncookies")?;
    Some(!matches!(value.trim(), "" | "0"))
}

/// What several looks found: an item goes when [`MISSED`] of them in a row missed it.
#[derive(Clone, Debug, Default)]
pub struct Lasting(HashMap<Item, (String, u8)>);

impl Lasting {
    /// Takes a look in; what is there, as far as is known.
    pub fn look(&mut self, found: Option<Items>) -> Items {
        if let Some(found) = found {
            self.0.values_mut().for_each(|(_, missed)| *missed += 1);
            self.0.extend(found.into_iter().map(|(item, note)| (item, (note, 0))));
            self.0.retain(|_, (_, missed)| *missed < MISSED);
        }
        self.0.iter().map(|(item, (note, _))| (item.clone(), note.clone())).collect()
    }
}

/// The established connections to the session ports now, if they are wanted.
pub fn sessions(policy: &PolicyConfig) -> Option<Items> {
    policy.never_drop_host.contains(&HostEntry::Sessions).then(|| {
        let mut found = connections(&net("tcp").unwrap_or_default(), &policy.session_ports);
        found.extend(connections(&net("tcp6").unwrap_or_default(), &policy.session_ports));
        found.truncate(MAX_SESSIONS);
        found
    })
}

/// Looks once a minute on a thread of its own, which ends with the receiver.
///
/// # Errors
/// If there can be no more threads.
pub fn watch(policy: &PolicyConfig) -> Result<Receiver<Surroundings>> {
    let (found, receiver): (SyncSender<Surroundings>, _) = sync_channel(1);
    let entries = policy.never_drop_host.clone();
    let look = move || {
        loop {
            std::thread::sleep(INTERVAL);
            if found.send(surroundings(&entries)).is_err() {
                break;
            }
        }
    };
    std::thread::Builder::new()
        .name("sensor-host".to_owned())
        .spawn(look)
        .context("cannot start the thread that looks at gateways and resolvers")?;
    Ok(receiver)
}

/// The text of a file, empty if there is none; `None` if it cannot be read.
fn read(path: &str) -> Option<String> {
    match std::fs::read(path) {
        Ok(bytes) => Some(String::from_utf8_lossy(&bytes).into_owned()),
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => Some(String::new()),
        Err(_) => None,
    }
}

fn net(name: &str) -> Option<String> {
    read(&format!("/proc/thread-self/net/{name}"))
}

fn item(address: IpAddr) -> Item {
    Item::Prefix(IpNet::from(address))
}

/// From `route` and `ipv6_route`.
fn gateways(route: &str, route6: &str) -> Items {
    const RTF_GATEWAY: u32 = 2;
    let mut found = BTreeSet::new();
    for line in route.lines().skip(1) {
        let words: Vec<&str> = line.split_whitespace().collect();
        let [_, destination, gateway, flags, _, _, _, mask, ..] = words[..] else { continue };
        let flags = u32::from_str_radix(flags, 16).unwrap_or(0);
        if destination == "00000000" && mask == "00000000" && flags & RTF_GATEWAY != 0 {
            found.extend(address4(gateway));
        }
    }
    for line in route6.lines() {
        let words: Vec<&str> = line.split_whitespace().collect();
        let [destination, length, _, _, gateway, _, _, _, flags, ..] = words[..] else { continue };
        let flags = u32::from_str_radix(flags, 16).unwrap_or(0);
        if length == "00" && destination.bytes().all(|byte| byte == b'0') && flags & RTF_GATEWAY != 0 {
            found.extend(address6(gateway));
        }
    }
    found.into_iter().map(|address| (item(address), "default gateway".to_owned())).collect()
}

/// From `route`: interfaces with a route into 169.254.0.0/16, which an address there brings with it.
fn link_local(route: &str) -> HashSet<String> {
    let mut found = HashSet::new();
    for line in route.lines().skip(1) {
        let words: Vec<&str> = line.split_whitespace().collect();
        let [interface, destination, _, _, _, _, _, mask, ..] = words[..] else { continue };
        let (Some(IpAddr::V4(to)), Some(IpAddr::V4(mask))) = (address4(destination), address4(mask)) else { continue };
        if to.is_link_local() && mask.to_bits().leading_ones() >= 16 {
            found.insert(interface.to_owned());
        }
    }
    found
}

/// From `/etc/resolv.conf`, and what the resolver on this host asks.
fn resolvers(file: &str, upstreams: &str) -> Items {
    let servers = |text: &str| -> Vec<IpAddr> {
        let address = |line: &str| {
            let rest = line.trim().strip_prefix("nameserver")?.trim();
            // fe80::1%eth0
            rest.split(['%', ' ', '\t', '#']).next()?.parse().ok()
        };
        text.lines().filter_map(address).collect()
    };
    let found: BTreeSet<IpAddr> = servers(file).into_iter().chain(servers(upstreams)).collect();
    let outside = found.into_iter().filter(|address| !address.is_loopback());
    outside.map(|address| (item(address), "resolver".to_owned())).collect()
}

/// Established connections with a local port among `ports`, from `tcp` or `tcp6`.
fn connections(table: &str, ports: &[u16]) -> Items {
    let mut items = Items::new();
    for line in table.lines().skip(1) {
        let words: Vec<&str> = line.split_whitespace().take(4).collect();
        let [_, local, remote, "01"] = words[..] else { continue };
        let (Some(local), Some(remote)) = (socket(local), socket(remote)) else { continue };
        if ports.contains(&local.port()) && !remote.ip().is_loopback() {
            let key = flow_key(protocol::TCP, local, remote);
            items.push((Item::Flow(key), format!("session of {remote} at port {}", local.port())));
        }
    }
    items
}

/// Addresses of this host, from `fib_trie` and `if_inet6`.
fn own(trie: &str, inet6: &str) -> HashSet<IpAddr> {
    let mut found = HashSet::new();
    let mut last = None;
    for line in trie.lines().map(str::trim) {
        if let Some(address) = line.strip_prefix("|-- ") {
            last = address.parse::<Ipv4Addr>().ok();
        } else if line.starts_with("/32 host LOCAL") {
            found.extend(last.map(IpAddr::V4));
        }
    }
    found.extend(inet6.lines().filter_map(|line| address6(line.split_whitespace().next()?)));
    found
}

/// Eight digits, the bytes of the address in the order of this machine.
fn address4(text: &str) -> Option<IpAddr> {
    let word = u32::from_str_radix(text, 16).ok().filter(|_| text.len() == 8)?;
    Some(IpAddr::V4(Ipv4Addr::from(word.to_ne_bytes())))
}

/// Thirty-two digits in network order.
fn address6(text: &str) -> Option<IpAddr> {
    let bits = u128::from_str_radix(text, 16).ok().filter(|_| text.len() == 32)?;
    Some(IpAddr::V6(Ipv6Addr::from_bits(bits)))
}

/// `0A0012C6:0016`; IPv6 in four words, each in the order of this machine; IPv4 over IPv6 as IPv4.
fn socket(text: &str) -> Option<SocketAddr> {
    let (address, port) = text.split_once(':')?;
    let port = u16::from_str_radix(port, 16).ok()?;
    let address = if address.len() == 8 {
        address4(address)?
    } else {
        let mut octets = [0u8; 16];
        for (number, four) in octets.chunks_mut(4).enumerate() {
            let word = u32::from_str_radix(address.get(number * 8..number * 8 + 8)?, 16).ok()?;
            four.copy_from_slice(&word.to_ne_bytes());
        }
        Ipv6Addr::from(octets).to_canonical()
    };
    Some(SocketAddr::new(address, port))
}

#[cfg(all(test, target_endian = "little"))]
mod tests {
    use super::*;

    fn names(items: &Items) -> Vec<String> {
        items.iter().map(|(item, _)| item.to_string()).collect()
    }

    #[test]
    fn gateways_of_default_routes() {
        let route = "Iface\tDestination\tGateway \tFlags\tRefCnt\tUse\tMetric\tMask\t\tMTU\tWindow\tIRTT\n\
                     eth0\t00000000\t010012C6\t0003\t0\t0\t0\t00000000\t0\t0\t0\n\
                     eth0\t000012C6\t00000000\t0001\t0\t0\t0\t0000FEFF\t0\t0\t0\n\
                     eth0\t0000000A\t020012C6\t0003\t0\t0\t0\t000000FF\t0\t0\t0\n";
        let zero = "0".repeat(32);
        let route6 = format!(
            "{zero} 00 {zero} 00 20010db8000000000000000000000001 00000400 00000001 00000000 00000003 eth0\n\
             20010db8000000000000000000000000 40 {zero} 00 {zero} 00000100 00000001 00000000 00000001 eth0\n"
        );
        assert_eq!(names(&gateways(route, &route6)), ["198.18.0.1", "2001:db8::1"]);
        assert!(gateways("", "").is_empty() && gateways("x\ny z", "q").is_empty());
    }

    #[test]
    fn links_with_link_local_neighbours() {
        let route = "Iface\tDestination\tGateway \tFlags\tRefCnt\tUse\tMetric\tMask\t\tMTU\tWindow\tIRTT\n\
                     eth0\t00000000\t010012C6\t0003\t0\t0\t0\t00000000\t0\t0\t0\n\
                     eth1\t0000FEA9\t00000000\t0001\t0\t0\t0\t0000FFFF\t0\t0\t0\n\
                     eth2\tFEA9FEA9\t010012C6\t0007\t0\t0\t0\tFFFFFFFF\t0\t0\t0\n\
                     eth3\t000000A8\t00000000\t0001\t0\t0\t0\t000000FC\t0\t0\t0\n";
        assert_eq!(link_local(route), ["eth1".to_owned(), "eth2".to_owned()].into());
        assert!(link_local("").is_empty() && link_local("x\ny z").is_empty());
    }

    #[test]
    fn what_one_look_misses_is_still_there() {
        let of = |address: &str| (item(address.parse().expect(address)), "a note".to_owned());
        let (a, b) = (of("198.18.0.1"), of("198.18.0.53"));
        let mut lasting = Lasting::default();
        assert_eq!(lasting.look(Some(vec![a.clone(), b.clone()])).len(), 2);
        for _ in 0..9 {
            assert_eq!(lasting.look(None).len(), 2, "what cannot be read says nothing");
        }
        for _ in 1..MISSED {
            assert_eq!(lasting.look(Some(vec![b.clone()])).len(), 2);
        }
        assert_eq!(lasting.look(Some(vec![b.clone()])), std::slice::from_ref(&b), "gone");
        assert_eq!(lasting.look(Some(vec![a])).len(), 2, "and back at once");
    }

    #[test]
    fn resolvers_outside_of_this_host() {
        let file =
            "# comment\nsearch example\nnameserver 127.0.0.53\nnameserver 2001:db8::53%eth0 # x\noptions edns0\n";
        assert_eq!(names(&resolvers(file, "nameserver 198.18.0.53\n")), ["198.18.0.53", "2001:db8::53"]);
    }

    #[test]
    fn sessions_are_established_connections_to_a_local_port() {
        let table = "  sl  local_address rem_address   st tx_queue rx_queue tr tm->when retrnsmt   uid\n\
                     0: 00000000:0016 00000000:0000 0A 00000000:00000000\n\
                     1: 0A0012C6:0016 070112C6:C350 01 00000000:00000000\n\
                     2: 0A0012C6:0016 080112C6:C350 06 00000000:00000000\n\
                     3: 0A0012C6:0050 090112C6:C350 01 00000000:00000000\n\
                     4: 0100007F:0016 0100007F:C350 01 00000000:00000000\n";
        assert_eq!(names(&connections(table, &[22])), ["tcp,198.18.0.10:22,198.18.1.7:50000"]);
        let mapped = "x\n 0: 0000000000000000FFFF00000A0012C6:0016 0000000000000000FFFF0000070112C6:C350 01\n\
                      1: B80D0120000000000000000010000000:0016 B80D0120000000000000000011000000:C350 01\n";
        assert_eq!(
            names(&connections(mapped, &[22])),
            ["tcp,198.18.0.10:22,198.18.1.7:50000", "tcp,[2001:db8::10]:22,[2001:db8::11]:50000"]
        );
    }

    #[test]
    fn own_addresses() {
        let trie = "Main:\n  +-- 0.0.0.0/0 3 0 5\n     |-- 198.18.0.0\n        /15 link UNICAST\n     |-- 198.18.0.10\n        \
                    /32 host LOCAL\n     |-- 198.19.255.255\n        /32 link BROADCAST\n";
        let own = own(trie, "20010db8000000000000000000000010 02 40 00 80     eth0\n");
        let expected: [IpAddr; 2] = [[198, 18, 0, 10].into(), "2001:db8::10".parse().expect("an address")];
        assert_eq!(own, expected.into());
    }
}
