//! What the hosts themselves count, independent of the agent: interface counters, and netfilter counters at the
//! receiver by source. XDP drops before netfilter, so the latter count what was let through.

use anyhow::{Context, Result};
use serde_json::Value;

use crate::netns::Ns;
use crate::process::output;

/// An interface's counters since it was made.
#[derive(Clone, Copy, Debug, Default)]
pub struct Interface {
    /// Bytes received.
    pub rx_bytes: u64,
    /// Packets received; on veth also those that XDP dropped.
    pub rx_packets: u64,
    /// Bytes sent.
    pub tx_bytes: u64,
    /// Packets that were to be received and were not.
    pub rx_dropped: u64,
    /// Packets sent.
    pub tx_packets: u64,
    /// Packets that were to be sent and were not; on veth also those that the peer had no room for.
    pub tx_dropped: u64,
}

/// Reads the counters of `device` in `netns`.
///
/// # Errors
/// If there is no such interface.
pub fn interface(netns: &Ns, device: &str) -> Result<Interface> {
    let text = netns
        .within(|| std::fs::read_to_string("/proc/thread-self/net/dev"))?
        .context("read /proc/thread-self/net/dev")?;
    let line = text
        .lines()
        .find_map(|line| line.trim_start().strip_prefix(device)?.strip_prefix(':'))
        .with_context(|| format!("no interface {device} in {}", netns.name()))?;
    let numbers: Vec<u64> = line.split_whitespace().filter_map(|word| word.parse().ok()).collect();
    let at = |index: usize| numbers.get(index).copied().unwrap_or_default();
    Ok(Interface {
        rx_bytes: at(0),
        rx_packets: at(1),
        rx_dropped: at(3),
        tx_bytes: at(8),
        tx_packets: at(9),
        tx_dropped: at(11),
    })
}

/// Packets and the bytes of their IP datagrams.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Total {
    /// Packets as netfilter saw them: with offloads on, several may have been merged.
    pub packets: u64,
    /// IP headers and payload.
    pub bytes: u64,
}

/// Counters of received packets, kept by nftables in the receiver's namespace. They need no clean-up of their own: they
/// go with the namespace.
#[derive(Debug)]
pub struct Received<'a> {
    netns: &'a Ns,
    names: Vec<String>,
}

impl<'a> Received<'a> {
    /// Counts, from now on, packets from each `(name, source)`; a source is an address or a prefix. A packet counts for
    /// every source that it matches. IPv4 only. Names are lower-case words.
    ///
    /// # Errors
    /// Without nftables.
    pub fn count(netns: &'a Ns, sources: &[(&str, &str)]) -> Result<Self> {
        let rules: Vec<_> = sources.iter().map(|(name, source)| (*name, format!("ip saddr {source}"))).collect();
        let rules: Vec<_> = rules.iter().map(|(name, rule)| (*name, rule.as_str())).collect();
        Self::matching(netns, &rules)
    }

    /// Counts, from now on, packets that match each `(name, expression)`; an expression is what nft takes before a
    /// statement, as in `ip saddr 198.18.1.1 meta mark 83`. Names are lower-case words, new ones in this namespace.
    ///
    /// # Errors
    /// Without nftables, or if it does not take an expression.
    pub fn matching(netns: &'a Ns, expressions: &[(&str, &str)]) -> Result<Self> {
        let mut rules = String::from(
            "add table inet lab\nadd chain inet lab seen { type filter hook prerouting priority -400; }\n",
        );
        for (name, expression) in expressions {
            rules += &format!("add counter inet lab {name}\nadd rule inet lab seen {expression} counter name {name}\n");
        }
        let file = tempfile::NamedTempFile::new().context("make a file for the nft rules")?;
        std::fs::write(file.path(), rules).context("write the nft rules")?;
        output(netns.command("nft").arg("-f").arg(file.path()))?;
        Ok(Self { netns, names: expressions.iter().map(|(name, _)| (*name).to_owned()).collect() })
    }

    /// Packets counted up to now, in the order of the sources.
    ///
    /// # Errors
    /// If nft fails.
    pub fn packets(&self) -> Result<Vec<u64>> {
        Ok(self.totals()?.into_iter().map(|total| total.packets).collect())
    }

    /// Packets and bytes counted up to now, in the order of the expressions.
    ///
    /// # Errors
    /// If nft fails.
    pub fn totals(&self) -> Result<Vec<Total>> {
        let text = self.netns.run("nft", &["-j", "list", "counters", "table", "inet", "lab"])?;
        let listed: Value = serde_json::from_str(&text).context("parse nft's answer")?;
        let entries = listed["nftables"].as_array().cloned().unwrap_or_default();
        let find = |name: &String| {
            let entry = entries.iter().map(|entry| &entry["counter"]).find(|counter| counter["name"] == name.as_str());
            let number = |key: &str| entry.and_then(|counter| counter[key].as_u64()).unwrap_or_default();
            Total { packets: number("packets"), bytes: number("bytes") }
        };
        Ok(self.names.iter().map(find).collect())
    }
}
