//! The never-drop list: what no verdict drops or limits, whoever decided it. Pure: time is an argument.
//!
//! An item (a prefix, a local port, an interface, a flow) can stand here for several reasons at once and goes when the last
//! one does. The list is checked before a verdict is written, and each [`Change`] goes to the kernel, which checks again
//! before it drops ([`crate::bpf`]): there it always wins. Called by the poll thread and by `sensor replay`.

pub mod item;

use std::collections::{BTreeMap, HashMap, HashSet};
use std::net::IpAddr;

use anyhow::{Result, bail};
use ipnet::IpNet;
use sensor_common::flow::{Direction, FlowKey, FlowRecord, icmp_kind, state};
use sensor_common::packet::protocol;
use sensor_common::verdict::{LOOPBACK, Link, is_of_link};
use serde::{Deserialize, Serialize};

use self::item::{Item, Port};
use crate::verdicts::Moment;
use crate::verdicts::scope::{Scope, addresses, plain};

/// Why an item stands on the list.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Why {
    /// The configuration names it.
    Configuration,
    /// `sensor allow add`.
    Operator,
    /// A default gateway.
    Gateway,
    /// A resolver that this host asks.
    Resolver,
    /// A session of a management port.
    Session,
}

impl Why {
    /// Every reason.
    pub const ALL: [Why; 5] = [Why::Configuration, Why::Operator, Why::Gateway, Why::Resolver, Why::Session];

    /// The name in metrics, JSON and tables.
    pub const fn name(self) -> &'static str {
        match self {
            Why::Configuration => "configuration",
            Why::Operator => "operator",
            Why::Gateway => "gateway",
            Why::Resolver => "resolver",
            Why::Session => "session",
        }
    }
}

/// One entry.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Entry {
    /// What is never dropped.
    pub item: Item,
    /// Why.
    pub why: Why,
    /// Comment.
    #[serde(default, skip_serializing_if = "String::is_empty")]
    pub note: String,
    /// Who added it.
    #[serde(default, skip_serializing_if = "String::is_empty")]
    pub who: String,
    /// When it ends, Unix time, ms; `None` = not by itself.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub until_unix_ms: Option<u64>,
    /// The same, monotonic ns.
    #[serde(skip)]
    pub until_ns: Option<u64>,
}

/// An item that is protected from now on, or no longer.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Change {
    /// Which.
    pub item: Item,
    /// Whether it is protected.
    pub allowed: bool,
}

/// The list.
#[derive(Debug, Default)]
pub struct List {
    entries: HashMap<Item, BTreeMap<Why, Entry>>,
    /// Lengths of the prefixes in use, IPv4 and IPv6.
    lengths: [BTreeMap<u8, usize>; 2],
    /// Flows, without VLANs and tunnels.
    flows: HashSet<FlowKey>,
    /// Indexes of the interfaces.
    indexes: HashSet<u32>,
    /// This host's addresses.
    own: HashSet<IpAddr>,
    /// Indexes of the interfaces that may have neighbours with IPv4 link-local addresses.
    link_local: HashSet<u32>,
}

impl List {
    /// The list of a configuration: its prefixes, ports and interfaces.
    pub fn of(prefixes: &[IpNet], ports: &[Port], interfaces: &[String]) -> List {
        let mut list = List::default();
        let items = prefixes.iter().map(|prefix| Item::Prefix(plain(*prefix)));
        let items = items.chain(ports.iter().map(|port| Item::Port(*port)));
        for item in items.chain(interfaces.iter().cloned().map(Item::Interface)) {
            list.add(entry(item, Why::Configuration));
        }
        list
    }

    /// Adds an entry, or replaces the one of the same item and reason.
    pub fn add(&mut self, entry: Entry) -> Option<Change> {
        let item = entry.item.clone();
        let reasons = self.entries.entry(item.clone()).or_default();
        let new = reasons.is_empty();
        reasons.insert(entry.why, entry);
        if !new {
            return None;
        }
        match &item {
            Item::Prefix(prefix) => *self.lengths[family(prefix)].entry(prefix.prefix_len()).or_default() += 1,
            Item::Flow(key) => drop(self.flows.insert(bare(key))),
            Item::Port(_) | Item::Interface(_) => {}
        }
        Some(Change { item, allowed: true })
    }

    /// Takes an entry out.
    ///
    /// # Errors
    /// There is none for this reason; the text names the reasons that there are.
    pub fn remove(&mut self, item: &Item, why: Why) -> Result<Option<Change>> {
        let Some(reasons) = self.entries.get_mut(item) else { bail!("{item} is not on the never-drop list") };
        if reasons.remove(&why).is_none() {
            let others: Vec<_> = reasons.keys().map(|why| why.name()).collect();
            bail!("{item} was not added by {}: it stands there because of {}", why.name(), others.join(" and "));
        }
        if !reasons.is_empty() {
            return Ok(None);
        }
        self.entries.remove(item);
        match item {
            Item::Prefix(prefix) => {
                let lengths = &mut self.lengths[family(prefix)];
                if let Some(count) = lengths.get_mut(&prefix.prefix_len()) {
                    *count -= 1;
                    if *count == 0 {
                        lengths.remove(&prefix.prefix_len());
                    }
                }
            }
            Item::Flow(key) => {
                let same = |other: &Item| matches!(other, Item::Flow(other) if bare(other) == bare(key));
                if !self.entries.keys().any(same) {
                    self.flows.remove(&bare(key));
                }
            }
            Item::Port(_) | Item::Interface(_) => {}
        }
        Ok(Some(Change { item: item.clone(), allowed: false }))
    }

    /// Makes `items` those that stand here for `why`, with a comment each.
    pub fn replace(&mut self, why: Why, items: &[(Item, String)]) -> Vec<Change> {
        let wanted: HashSet<&Item> = items.iter().map(|(item, _)| item).collect();
        let old = self.entries.iter().filter(|(item, reasons)| reasons.contains_key(&why) && !wanted.contains(item));
        let old: Vec<Item> = old.map(|(item, _)| item.clone()).collect();
        let mut changes: Vec<Change> = items
            .iter()
            .filter_map(|(item, note)| self.add(Entry { note: note.clone(), ..entry(item.clone(), why) }))
            .collect();
        changes.extend(old.iter().filter_map(|item| self.remove(item, why).ok().flatten()));
        changes
    }

    /// Takes out what has ended; the entries, and what is not protected any more.
    pub fn expire(&mut self, now_ns: u64) -> (Vec<Entry>, Vec<Change>) {
        let ended = |entry: &&Entry| entry.until_ns.is_some_and(|until| until <= now_ns);
        let ended: Vec<Entry> = self.entries.values().flat_map(BTreeMap::values).filter(ended).cloned().collect();
        let changes = ended.iter().filter_map(|entry| self.remove(&entry.item, entry.why).ok().flatten()).collect();
        (ended, changes)
    }

    /// Takes an entry over from an earlier agent; `false` if it has ended.
    pub fn restore(&mut self, mut entry: Entry, now: Moment) -> bool {
        if let Some(until) = entry.until_unix_ms {
            let left = until.saturating_sub(now.unix_ms);
            if left == 0 {
                return false;
            }
            entry.until_ns = Some(now.plus_ms(left).ns);
        }
        self.add(entry);
        true
    }

    /// Names this host's addresses: they say which end of a flow is the local one.
    pub fn set_own(&mut self, own: HashSet<IpAddr>) {
        self.own = own;
    }

    /// Whether this is an address of this host.
    pub fn own(&self) -> &HashSet<IpAddr> {
        &self.own
    }

    /// The port at this host's end, if exactly one end is this host.
    fn local_port(&self, key: &FlowKey) -> Option<u16> {
        match addresses(key).map(|address| self.own.contains(&address)) {
            [true, false] => Some(key.low_port),
            [false, true] => Some(key.high_port),
            _ => None,
        }
    }

    /// Names the indexes of the interfaces on the list.
    pub fn set_indexes(&mut self, indexes: HashSet<u32>) {
        self.indexes = indexes;
    }

    /// Names the indexes of the interfaces that may have neighbours with IPv4 link-local addresses.
    pub fn set_link_local(&mut self, indexes: HashSet<u32>) {
        self.link_local = indexes;
    }

    /// Whether the flow is what a link cannot do without, by its addresses, as seen at its first packet.
    fn is_of_link(&self, record: &FlowRecord) -> bool {
        let from_low = record.state & state::INITIATOR_HIGH == 0;
        let initiator = addresses(&record.key)[usize::from(!from_low)];
        let link = Link {
            loopback: record.ifindex == LOOPBACK,
            link_local: self.link_local.contains(&record.ifindex),
            egress: self.own.contains(&initiator),
        };
        is_of_link(&record.key, from_low, record.directions[0].ttl_min, link)
    }

    /// All entries, those of the configuration first.
    pub fn entries(&self) -> Vec<&Entry> {
        let mut entries: Vec<_> = self.entries.values().flat_map(BTreeMap::values).collect();
        entries.sort_by_cached_key(|entry| (entry.why, entry.item.kind(), entry.item.to_string()));
        entries
    }

    /// The entry that a command added for this item.
    pub fn by_command(&self, item: &Item) -> Option<&Entry> {
        self.entries.get(item)?.get(&Why::Operator)
    }

    /// Every protected item.
    pub fn items(&self) -> impl Iterator<Item = &Item> {
        self.entries.keys()
    }

    /// Entries by reason.
    pub fn counts(&self) -> BTreeMap<Why, u64> {
        let mut counts = BTreeMap::new();
        for why in self.entries.values().flat_map(BTreeMap::keys) {
            *counts.entry(*why).or_default() += 1;
        }
        counts
    }

    /// Whether something keeps a flow from being dropped: an endpoint, the local port, the interface, the flow itself.
    pub fn protects(&self, record: &FlowRecord) -> bool {
        let key = &record.key;
        if addresses(key).iter().any(|address| self.covers(*address).is_some()) {
            return true;
        }
        let responder = if record.state & state::INITIATOR_HIGH == 0 { key.high_port } else { key.low_port };
        // Of a flow that this host forwards, no end is local.
        let port = self.local_port(key).unwrap_or(responder);
        self.entries.contains_key(&Item::Port(Port { protocol: key.protocol, port }))
            || (!self.flows.is_empty() && self.flows.contains(&bare(key)))
            || self.indexes.contains(&record.ifindex)
            || is_vital(record)
            || self.is_of_link(record)
    }

    /// What keeps a verdict of this scope from being written: the whole of it is protected.
    pub fn forbids(&self, scope: &Scope) -> Option<String> {
        let item = match scope {
            Scope::Source(prefix) => self.covers_prefix(prefix)?,
            Scope::Service(service) => {
                let port = Item::Port(Port { protocol: service.protocol, port: service.port });
                if self.entries.contains_key(&port) { port } else { self.covers(service.address)? }
            }
            Scope::Flow(key) => {
                if is_dhcp(key) {
                    return Some("DHCP is never dropped".to_owned());
                }
                let flow = || self.flows.contains(&bare(key)).then_some(Item::Flow(*key));
                let port = || {
                    let port = Item::Port(Port { protocol: key.protocol, port: self.local_port(key)? });
                    self.entries.contains_key(&port).then_some(port)
                };
                let address = addresses(key).into_iter().find_map(|address| self.covers(address));
                address.or_else(flow).or_else(port)?
            }
        };
        let reasons = self.entries.get(&item).map(|reasons| reasons.keys().map(|why| why.name()).collect::<Vec<_>>());
        let reasons = reasons.unwrap_or_default().join(" and ");
        Some(format!("{item} is on the never-drop list ({reasons}); see `sensor allow list`"))
    }

    /// Whether this is a flow that stands on the list itself, in whatever VLAN or tunnel.
    pub fn lists(&self, scope: &Scope) -> bool {
        matches!(scope, Scope::Flow(key) if self.flows.contains(&bare(key)))
    }

    /// Whether anything inside a prefix is on the list.
    pub fn touches(&self, prefix: &IpNet) -> bool {
        let inside = |item: &Item| matches!(item, Item::Prefix(inner) if prefix.contains(inner));
        self.entries.keys().any(inside) || self.covers_prefix(prefix).is_some()
    }

    fn covers(&self, address: IpAddr) -> Option<Item> {
        self.covers_prefix(&IpNet::from(address))
    }

    fn covers_prefix(&self, prefix: &IpNet) -> Option<Item> {
        let lengths = &self.lengths[family(prefix)];
        lengths.range(..=prefix.prefix_len()).find_map(|(length, _)| {
            let wider = Item::Prefix(IpNet::new(prefix.addr(), *length).ok()?.trunc());
            self.entries.contains_key(&wider).then_some(wider)
        })
    }
}

/// An entry without end and comment.
pub fn entry(item: Item, why: Why) -> Entry {
    Entry { item, why, note: String::new(), who: String::new(), until_unix_ms: None, until_ns: None }
}

/// What a network cannot live without: ICMPv6 but for echoes (RFC 4890 §4.4), and DHCP. The kernel decides by the packet, so
/// what is not seen here is protected there all the same ([`sensor_common::verdict::is_essential`]).
fn is_vital(record: &FlowRecord) -> bool {
    let key = &record.key;
    let echoes = |direction: &Direction| {
        u64::from(direction.flags[icmp_kind::ECHO_REQUEST]) + u64::from(direction.flags[icmp_kind::ECHO_REPLY])
    };
    let icmpv6 = key.protocol == protocol::ICMPV6 && key.encapsulation == 0;
    (icmpv6 && record.directions.iter().all(|direction| echoes(direction) == 0)) || is_dhcp(key)
}

fn is_dhcp(key: &FlowKey) -> bool {
    let within = |pair: [u16; 2]| [key.low_port, key.high_port].iter().all(|port| pair.contains(port));
    key.protocol == protocol::UDP && key.encapsulation == 0 && (within([67, 68]) || within([546, 547]))
}

/// The flow wherever it runs.
fn bare(key: &FlowKey) -> FlowKey {
    FlowKey { vlans: [0; 2], tunnel: 0, encapsulation: 0, ..*key }
}

fn family(prefix: &IpNet) -> usize {
    usize::from(matches!(prefix, IpNet::V6(_)))
}

#[cfg(test)]
mod tests;
