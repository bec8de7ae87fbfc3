//! The two maps of verdicts on sources: single addresses in a hash map, prefixes in a tree.
//!
//! Invariant: a prefix is in one of them only. An address that finds the hash map full goes into the tree, where it holds as
//! well and costs its packets more; so both together have room for `policy.max_verdicts`, and the hash map for the largest
//! power of two in that, as its index takes memory at the load. Used by [`super::Verdicts`].

use std::collections::HashSet;
use std::net::IpAddr;

use anyhow::Context as _;
use aya::maps::lpm_trie::Key;
use aya::maps::{HashMap, LpmTrie, Map, MapData, MapError};
use ipnet::IpNet;
use sensor_common::control::Control;
use sensor_common::verdict::{Entry, PrefixData};

use super::{found, renewed};
use crate::bpf::pins::map_data;
use crate::bpf::sys::Plain;

pub(super) struct Sources {
    singles: HashMap<MapData, Plain<PrefixData>, Plain<Entry>>,
    prefixes: LpmTrie<MapData, Plain<PrefixData>, Plain<Entry>>,
    /// Entries of `singles`, and how many it takes.
    held: u32,
    room: u32,
    /// What is in `prefixes`. (The kernel's look-up gives shorter ones, too.)
    in_tree: HashSet<IpNet>,
}

impl Sources {
    /// Takes the maps `SINGLE_SOURCES` and `SOURCE_VERDICTS`. What is in them counts from [`Sources::look_again`] on.
    pub(super) fn new(singles: Map, prefixes: Map) -> anyhow::Result<Sources> {
        let room = map_data(&singles).map(MapData::info).transpose().context("the size of map SINGLE_SOURCES")?;
        Ok(Sources {
            room: room.map_or(0, |info| info.max_entries()),
            singles: HashMap::try_from(singles).context("map SINGLE_SOURCES")?,
            prefixes: LpmTrie::try_from(prefixes).context("map SOURCE_VERDICTS")?,
            held: 0,
            in_tree: HashSet::new(),
        })
    }

    pub(super) fn look_again(&mut self) -> anyhow::Result<()> {
        let held = self.singles.keys().map(|key| key.map(|_| 1)).sum::<Result<_, MapError>>();
        self.held = held.context("reading map SINGLE_SOURCES")?;
        let in_tree = self.prefixes.keys().map(|key| key.map(|key| prefix_of(&key)));
        self.in_tree = in_tree.collect::<Result<_, _>>().context("reading map SOURCE_VERDICTS")?;
        Ok(())
    }

    pub(super) fn len(&self) -> u32 {
        self.held + self.in_tree.len() as u32
    }

    /// [`Control::source_maps`].
    pub(super) fn maps(&self) -> u32 {
        let singles = if self.held > 0 { Control::SINGLE_SOURCES } else { 0 };
        singles | if self.in_tree.is_empty() { 0 } else { Control::SOURCE_PREFIXES }
    }

    /// Adds or renews; whether it is new.
    pub(super) fn set(&mut self, prefix: IpNet, entry: &Entry) -> anyhow::Result<bool> {
        let prefix = prefix.trunc();
        let before = self.get(prefix)?.map(Plain);
        let value = renewed(entry, before);
        let has_room = before.is_some() || self.held < self.room;
        if is_single(prefix) && has_room && !self.in_tree.contains(&prefix) {
            self.singles.insert(key_of(prefix), value, 0).context("writing map SINGLE_SOURCES")?;
            self.held += u32::from(before.is_none());
        } else {
            self.prefixes
                .insert(&prefix_key(prefix), value, 0)
                .context("writing map SOURCE_VERDICTS (full? see policy.max_verdicts)")?;
            self.in_tree.insert(prefix);
        }
        Ok(before.is_none())
    }

    /// Takes out exactly this prefix; what it was.
    pub(super) fn remove(&mut self, prefix: IpNet) -> anyhow::Result<Option<Entry>> {
        let prefix = prefix.trunc();
        let before = self.get(prefix)?;
        if before.is_none() {
            return Ok(None);
        }
        if self.in_tree.contains(&prefix) {
            self.prefixes.remove(&prefix_key(prefix)).context("writing map SOURCE_VERDICTS")?;
            self.in_tree.remove(&prefix);
        } else {
            self.singles.remove(&key_of(prefix)).context("writing map SINGLE_SOURCES")?;
            self.held = self.held.saturating_sub(1);
        }
        Ok(before)
    }

    /// The entry of exactly this prefix.
    pub(super) fn get(&self, prefix: IpNet) -> anyhow::Result<Option<Entry>> {
        let prefix = prefix.trunc();
        let entry = if self.in_tree.contains(&prefix) {
            found(self.prefixes.get(&prefix_key(prefix), 0)).context("reading map SOURCE_VERDICTS")?
        } else if is_single(prefix) {
            found(self.singles.get(&key_of(prefix), 0)).context("reading map SINGLE_SOURCES")?
        } else {
            None
        };
        Ok(entry.map(|entry| entry.0))
    }

    pub(super) fn all(&self) -> anyhow::Result<Vec<(IpNet, Entry)>> {
        let singles = self.singles.iter().map(|pair| pair.map(|(key, entry)| (address_in(&key.0).into(), entry.0)));
        let mut all: Vec<_> = singles.collect::<Result<_, _>>().context("reading map SINGLE_SOURCES")?;
        for pair in self.prefixes.iter() {
            let (key, entry) = pair.context("reading map SOURCE_VERDICTS")?;
            all.push((prefix_of(&key), entry.0));
        }
        Ok(all)
    }
}

/// Whether it is one address.
fn is_single(prefix: IpNet) -> bool {
    prefix.prefix_len() == prefix.max_prefix_len()
}

fn key_of(prefix: IpNet) -> Plain<PrefixData> {
    let mut data = PrefixData::default();
    match prefix.network() {
        IpAddr::V4(address) => data[..2].copy_from_slice(&[4, u32::from(address).to_be()]),
        IpAddr::V6(address) => {
            let words: [u32; 4] = bytemuck::cast(address.octets());
            data[0] = 6;
            data[1..5].copy_from_slice(&words);
        }
    }
    Plain(data)
}

fn address_in(data: &PrefixData) -> IpAddr {
    let [family, a, b, c, d, _] = *data;
    match family {
        4 => IpAddr::from(u32::from_be(a).to_be_bytes()),
        _ => IpAddr::from(bytemuck::cast::<[u32; 4], [u8; 16]>([a, b, c, d])),
    }
}

pub(super) fn prefix_key(prefix: IpNet) -> Key<Plain<PrefixData>> {
    Key::new(32 + u32::from(prefix.prefix_len()), key_of(prefix))
}

pub(super) fn prefix_of(key: &Key<Plain<PrefixData>>) -> IpNet {
    let address = address_in(&key.data().0);
    // The maps hold only what came from a prefix.
    IpNet::new(address, key.prefix_len().saturating_sub(32) as u8).unwrap_or_else(|_| address.into())
}

#[cfg(test)]
mod tests {
    use sensor_common::verdict::PrefixKey;

    use super::*;

    #[test]
    fn prefixes_survive_the_way_into_a_key_and_back() {
        for text in ["198.18.0.0/15", "198.18.0.1/32", "0.0.0.0/0", "2001:db8::/32", "2001:db8::1/128", "::/0"] {
            let prefix: IpNet = text.parse().expect("a prefix");
            assert_eq!(prefix_of(&prefix_key(prefix)), prefix, "{text}");
            assert_eq!(IpNet::from(address_in(&key_of(prefix).0)) == prefix, is_single(prefix), "{text}");
        }
        let looked_up = PrefixKey::of([u32::from_be_bytes([198, 18, 0, 1]), 0, 0, 0], 4);
        let host = prefix_key("198.18.0.1/32".parse().expect("a prefix"));
        assert_eq!((host.prefix_len(), host.data().0), (looked_up.bits, looked_up.data));
        let host_bits: IpNet = "198.18.7.9/16".parse().expect("a prefix");
        assert_eq!(prefix_of(&prefix_key(host_bits)).to_string(), "198.18.0.0/16");
    }
}
