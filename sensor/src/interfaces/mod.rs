//! Which interfaces are to be watched: the list of the configuration (plain names, patterns, exclusions) against those
//! there are.
//!
//! Pure: [`crate::bpf::probe::links`] says what there is, `agent` attaches. [`former`] keeps what interfaces counted
//! that are gone, [`attempts`] spaces attempts out.

pub mod attempts;
pub mod former;
mod pattern;

use std::collections::BTreeSet;

use anyhow::{Result, bail, ensure};
use sensor_common::counter::MAX_INTERFACES;

pub use self::pattern::matches;

/// Longest name of an interface, bytes (Linux, IFNAMSIZ).
const MAX_NAME: usize = 15;
/// Longest pattern, bytes.
const MAX_PATTERN: usize = 64;

/// What the kernel says of an interface.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Link {
    /// Number.
    pub ifindex: u32,
    /// Name.
    pub name: String,
    /// It carries Ethernet frames, and is not the loopback interface.
    pub ethernet: bool,
    /// "veth", "bridge" …; `None` for hardware.
    pub kind: Option<String>,
    /// The bridge, bond or team that it is a port of.
    pub master: Option<u32>,
    /// The interface that it stands on (VLAN, macvlan …), or whose peer it is (veth), in this network namespace.
    pub lower: Option<u32>,
}

impl Link {
    /// The interface that what this one carries passes, too, where that is not a port of it.
    fn stands_on(&self) -> Option<u32> {
        let is_upper = matches!(self.kind.as_deref(), Some("vlan" | "macvlan" | "macvtap" | "ipvlan" | "ipvtap"));
        self.lower.filter(|_| is_upper)
    }
}

/// Of interfaces that are watched, the pairs that the same packets pass: a bridge and its port, a VLAN and its parent,
/// the two ends of a veth pair. They count once at each. The first of a pair is the one that stands on the other.
pub fn doubled<'a>(watched: &[&'a Link]) -> Vec<(&'a Link, &'a Link)> {
    let by_number = |number: u32| watched.iter().find(|link| link.ifindex == number).copied();
    let mut pairs = Vec::new();
    for link in watched.iter().copied() {
        pairs.extend(link.master.and_then(by_number).map(|master| (master, link)));
        pairs.extend(link.stands_on().and_then(by_number).map(|lower| (link, lower)));
        let peer = link.lower.filter(|_| link.kind.as_deref() == Some("veth")).and_then(by_number);
        pairs.extend(peer.filter(|peer| peer.ifindex > link.ifindex).map(|peer| (link, peer)));
    }
    pairs
}

/// What is said of such a pair.
pub fn doubled_text(upper: &str, lower: &str) -> String {
    format!(
        "{upper} and {lower} are both watched: a packet that passes both counts twice, in flows, features and limits; \
         watch one of them"
    )
}

/// The list.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct List {
    names: Vec<String>,
    patterns: Vec<String>,
    excluded: Vec<String>,
}

impl List {
    /// Reads the entries: a plain name, a pattern with `*` and `?`, or `!` and what patterns are not to take.
    ///
    /// # Errors
    /// An entry that can be no interface's name, stands there twice, or excludes where there is no pattern; too many
    /// names.
    pub fn parse(entries: &[String]) -> Result<List> {
        let mut list = List::default();
        for (position, entry) in entries.iter().enumerate() {
            let (excluded, name) = entry.strip_prefix('!').map_or((false, entry.as_str()), |rest| (true, rest));
            let is_pattern = name.contains(['*', '?']);
            let longest = if is_pattern { MAX_PATTERN } else { MAX_NAME };
            let is_name = !name.is_empty() && name.len() <= longest && !name.contains(['/', ' ', '\0', '!']);
            ensure!(
                is_name,
                "interfaces: \"{entry}\" is not an interface name (1 to 15 bytes, no slash or space), nor a pattern \
                 (as in \"veth*\", or \"!veth-skip*\" for what patterns leave out)"
            );
            if entries[..position].contains(entry) {
                bail!("interfaces: \"{entry}\" is named twice");
            }
            let part = match (excluded, is_pattern) {
                (true, _) => &mut list.excluded,
                (false, true) => &mut list.patterns,
                (false, false) => &mut list.names,
            };
            part.push(name.to_owned());
        }
        ensure!(
            list.excluded.is_empty() || !list.patterns.is_empty(),
            "interfaces: \"!{}\" leaves something out, but there is no pattern that it could be left out of; add one, \
             as in \"*\"",
            list.excluded.first().map_or("", String::as_str)
        );
        ensure!(
            list.names.len() <= MAX_INTERFACES as usize,
            "interfaces: {} are named, one agent can watch {MAX_INTERFACES}",
            list.names.len()
        );
        Ok(list)
    }

    /// The plain names: each of these interfaces must be there when the agent starts.
    pub fn names(&self) -> &[String] {
        &self.names
    }

    /// The patterns.
    pub fn patterns(&self) -> &[String] {
        &self.patterns
    }

    /// Whether an interface is named, not only matched by a pattern.
    pub fn is_named(&self, interface: &str) -> bool {
        self.names.iter().any(|name| name == interface)
    }

    /// Whether an entry takes this name out of what patterns match.
    pub fn excludes(&self, interface: &str) -> bool {
        self.excluded.iter().any(|pattern| matches(pattern, interface))
    }

    /// Of the interfaces there are, those to be watched.
    ///
    /// A pattern takes no loopback interface, none that carries no Ethernet frames, and none that stands on another one
    /// of the list (the bridge of a watched port, the VLAN of a watched interface): its packets would be counted twice.
    /// A plain name takes what it names.
    pub fn select<'a>(&self, links: impl IntoIterator<Item = &'a Link>) -> Vec<&'a Link> {
        let found: Vec<&Link> =
            links.into_iter().filter(|link| self.is_named(&link.name) || self.takes(link)).collect();
        let numbers: BTreeSet<u32> = found.iter().map(|link| link.ifindex).collect();
        let masters: BTreeSet<u32> = found.iter().filter_map(|link| link.master).collect();
        let is_upper = |link: &Link| {
            masters.contains(&link.ifindex) || link.stands_on().is_some_and(|lower| numbers.contains(&lower))
        };
        found.into_iter().filter(|link| self.is_named(&link.name) || !is_upper(link)).collect()
    }

    /// Whether a pattern takes an interface, if it does not stand on another one.
    fn takes(&self, link: &Link) -> bool {
        let is_matched = self.patterns.iter().any(|pattern| matches(pattern, &link.name));
        link.ethernet && is_matched && !self.excludes(&link.name)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn list(entries: &[&str]) -> Result<List> {
        List::parse(&entries.iter().map(|entry| (*entry).to_owned()).collect::<Vec<_>>())
    }

    fn refused(entries: &[&str]) -> String {
        format!("{:#}", list(entries).expect_err("refused"))
    }

    fn link(ifindex: u32, name: &str) -> Link {
        Link { ifindex, name: name.to_owned(), ethernet: true, ..Link::default() }
    }

    fn selected(entries: &[&str], links: &[Link]) -> Vec<String> {
        list(entries).expect("a list").select(links).iter().map(|link| link.name.clone()).collect()
    }

    #[test]
    fn names_patterns_and_exclusions() {
        let there = ["lo", "eth0", "eth1", "veth1", "veth-skip1", "tun0"].map(|name| link(0, name));
        let [lo, .., tun] = there.clone();
        let mut there = there.to_vec();
        there[0] = Link { ethernet: false, ..lo };
        there[5] = Link { ethernet: false, ..tun };
        assert_eq!(selected(&["eth0", "veth*", "!veth-skip*"], &there), ["eth0", "veth1"]);
        assert_eq!(selected(&["*"], &there), ["eth0", "eth1", "veth1", "veth-skip1"], "no loopback, no tunnel");
        assert_eq!(selected(&["lo", "tun0"], &there), ["lo", "tun0"], "who names it gets it");
        assert_eq!(selected(&["*", "!eth?", "eth1"], &there), ["eth1", "veth1", "veth-skip1"], "a name wins");
        assert_eq!(selected(&["wlan*"], &there), [""; 0]);
        assert!(selected(&[], &there).is_empty());
    }

    #[test]
    fn pairs_that_the_same_packets_pass_are_named() {
        let kind = |kind: &str| Some(kind.to_owned());
        let there = [
            link(2, "eth0"),
            Link { kind: kind("bridge"), ..link(3, "br0") },
            Link { kind: kind("veth"), master: Some(3), ..link(4, "port1") },
            Link { kind: kind("macvlan"), lower: Some(2), ..link(5, "mac0") },
            Link { kind: kind("veth"), lower: Some(7), ..link(6, "veth1") },
            Link { kind: kind("veth"), lower: Some(6), ..link(7, "veth2") },
            Link { kind: kind("vxlan"), lower: Some(2), ..link(8, "vxlan1") },
        ];
        let pairs = |names: &[&str]| -> Vec<String> {
            let watched: Vec<&Link> = there.iter().filter(|link| names.contains(&link.name.as_str())).collect();
            doubled(&watched).iter().map(|(upper, lower)| format!("{} {}", upper.name, lower.name)).collect()
        };
        assert_eq!(pairs(&["eth0", "br0", "port1"]), ["br0 port1"]);
        assert_eq!(pairs(&["eth0", "mac0", "br0"]), ["mac0 eth0"]);
        assert_eq!(pairs(&["veth1", "veth2"]), ["veth1 veth2"]);
        assert_eq!(pairs(&["eth0", "vxlan1"]), [""; 0], "what a tunnel carries is another flow than the tunnel");
        assert_eq!(pairs(&["port1", "mac0", "veth2"]), [""; 0]);
    }

    #[test]
    fn what_stands_on_a_watched_interface_is_left_out() {
        let kind = |kind: &str| Some(kind.to_owned());
        let there = [
            link(2, "eth0"),
            Link { kind: kind("bridge"), ..link(3, "br0") },
            Link { kind: kind("veth"), master: Some(3), ..link(4, "veth1") },
            Link { kind: kind("vlan"), lower: Some(2), ..link(5, "eth0.7") },
            Link { kind: kind("bridge"), ..link(6, "br1") },
            // The two ends of a pair, both here.
            Link { kind: kind("veth"), lower: Some(8), ..link(7, "veth2") },
            Link { kind: kind("veth"), lower: Some(7), ..link(8, "veth3") },
        ];
        assert_eq!(selected(&["*"], &there), ["eth0", "veth1", "br1", "veth2", "veth3"]);
        assert_eq!(selected(&["br*", "eth0.*"], &there), ["br0", "eth0.7", "br1"], "nothing below them is watched");
        assert_eq!(selected(&["*", "br0"], &there), ["eth0", "br0", "veth1", "br1", "veth2", "veth3"], "a name wins");
    }

    #[test]
    fn what_cannot_be_meant_is_refused() {
        assert!(refused(&["eth0", "eth0"]).contains("named twice"));
        assert!(refused(&["a-name-that-is-too-long"]).contains("not an interface name"));
        for entry in ["", "!", "eth 0", "a/b", "!!eth0", "!*/"] {
            assert!(refused(&["*", entry]).contains("not an interface name"), "{entry:?}");
        }
        assert!(refused(&["eth0", "!veth*"]).contains("there is no pattern"));
        assert!(list(&["a-pattern-longer-than-a-name*"]).is_ok());
    }
}
