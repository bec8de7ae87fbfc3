//! Interfaces of this thread's network namespace by name and number, and whether they can be watched at all.

use anyhow::{Context as _, bail};
use rustix::net::netdevice::{index_to_name, name_to_index};
use rustix::net::{AddressFamily, SocketFlags, SocketType, socket_with};

use crate::bpf::probe;

/// Refuses what the parser cannot read: frames without an Ethernet header (tunnels, PPP).
pub(super) fn check_kind(interface: &str) -> anyhow::Result<()> {
    match probe::frames(interface)? {
        Some(probe::ETHERNET) | None => Ok(()),
        Some(probe::LOOPBACK) => {
            tracing::warn!(
                "{interface}: each packet on the loopback interface is sent and received, and counted twice"
            );
            Ok(())
        }
        Some(kind) => bail!(
            "{interface} carries no Ethernet frames ({}, type {kind}): watch the interface that its packets leave the \
             host by",
            probe::frames_name(kind)
        ),
    }
}

/// Number of an interface of this thread's network namespace, which `/sys` may not show (`nsenter --net`).
///
/// # Errors
/// If there is none of that name; the error lists those there are.
pub fn ifindex(interface: &str) -> anyhow::Result<u32> {
    let socket = socket_with(AddressFamily::INET, SocketType::DGRAM, SocketFlags::CLOEXEC, None)
        .context("no socket to ask for interfaces")?;
    match name_to_index(&socket, interface) {
        Ok(number) => Ok(number),
        Err(_) => bail!("there is no interface {interface:?}; this host has: {}", interfaces().join(", ")),
    }
}

/// The present name of the interface of this number; `None`: this thread's network namespace has none.
///
/// # Errors
/// If nothing can be asked; then nothing is known.
pub fn present_name(ifindex: u32) -> anyhow::Result<Option<String>> {
    let socket = socket_with(AddressFamily::INET, SocketType::DGRAM, SocketFlags::CLOEXEC, None)
        .context("no socket to ask for interfaces")?;
    match index_to_name(&socket, ifindex) {
        Ok(name) => Ok(Some(name)),
        Err(rustix::io::Errno::NODEV) => Ok(None),
        Err(error) => Err(error).context("asking for the name of an interface"),
    }
}

/// As [`present_name`], of one that must be there.
pub(super) fn name(ifindex: u32) -> anyhow::Result<String> {
    present_name(ifindex)?.with_context(|| format!("there is no interface with number {ifindex}"))
}

/// Statistics of the interfaces of this thread's network namespace.
pub(crate) const STATISTICS: &str = "/proc/thread-self/net/dev";

pub(super) fn interfaces() -> Vec<String> {
    let table = std::fs::read_to_string(STATISTICS).unwrap_or_default();
    let mut names: Vec<_> = table.lines().filter_map(|line| Some(line.rsplit_once(':')?.0.trim().to_owned())).collect();
    names.sort();
    names
}
