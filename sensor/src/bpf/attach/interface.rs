//! Interfaces of this thread's network namespace by name and number, and whether they can be watched at all.

use anyhow::{Context as _, bail};
use rustix::net::netdevice::{index_to_name, name_to_index};
use rustix::net::{AddressFamily, SocketFlags, SocketType, socket_with};

/// Refuses what the parser cannot read: frames without an Ethernet header (tunnels, PPP).
pub(super) fn check_kind(interface: &str) -> anyhow::Result<()> {
    // ARPHRD_ETHER and ARPHRD_LOOPBACK (linux/if_arp.h). Another namespace's /sys may not show the interface: then only
    // the counter of packets that are not IP can tell.
    match std::fs::read_to_string(format!("/sys/class/net/{interface}/type")).as_deref().map(str::trim) {
        Ok("1") | Err(_) => Ok(()),
        Ok("772") => {
            tracing::warn!(
                "{interface}: each packet on the loopback interface is sent and received, and counted twice"
            );
            Ok(())
        }
        Ok(kind) => bail!(
            "{interface} carries no Ethernet frames (type {kind}): watch the interface that its packets leave the host by"
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

/// Whether this thread's network namespace has an interface of this number, whatever its name is now.
pub fn is_there(ifindex: u32) -> bool {
    // Without a socket nothing is known, and nothing is to change.
    socket_with(AddressFamily::INET, SocketType::DGRAM, SocketFlags::CLOEXEC, None)
        .map_or(true, |socket| index_to_name(&socket, ifindex) != Err(rustix::io::Errno::NODEV))
}

/// The present name of the interface of this number.
pub(super) fn name(ifindex: u32) -> anyhow::Result<String> {
    let socket = socket_with(AddressFamily::INET, SocketType::DGRAM, SocketFlags::CLOEXEC, None)
        .context("no socket to ask for interfaces")?;
    index_to_name(&socket, ifindex).with_context(|| format!("there is no interface with number {ifindex}"))
}

/// Statistics of the interfaces of this thread's network namespace.
pub(crate) const STATISTICS: &str = "/proc/thread-self/net/dev";

pub(super) fn interfaces() -> Vec<String> {
    let table = std::fs::read_to_string(STATISTICS).unwrap_or_default();
    let mut names: Vec<_> = table.lines().filter_map(|line| Some(line.rsplit_once(':')?.0.trim().to_owned())).collect();
    names.sort();
    names
}
