//! dnsmasq as an authoritative name server for one zone; it never asks anyone else.

use anyhow::{Context, Result};
use tempfile::TempDir;

use super::wait_for_port;
use crate::netns::Ns;
use crate::process::ChildGuard;
use crate::topology::{EDGE_V4, EDGE_V6};

/// The zone: every name below it has the edge's addresses.
pub const ZONE: &str = "edge.test";

/// A running dnsmasq.
#[derive(Debug)]
pub struct Dns {
    _guard: ChildGuard,
    _directory: TempDir,
}

impl Dns {
    /// Starts dnsmasq in `netns` on port 53, UDP and TCP, of both families.
    ///
    /// # Errors
    /// If dnsmasq is not installed or does not come up.
    pub fn start(netns: &Ns) -> Result<Self> {
        let directory = TempDir::with_prefix("sensor-dns-").context("make dnsmasq's directory")?;
        let mut command = netns.command("dnsmasq");
        command.args(["--keep-in-foreground", "--conf-file=/dev/null", "--no-resolv", "--no-hosts", "--user=root"]);
        command.args(["--pid-file=", "--log-facility=-"]);
        command.args([format!("--address=/{ZONE}/{EDGE_V4}"), format!("--address=/{ZONE}/{EDGE_V6}")]);
        // A long answer, so that answers differ in size.
        command.arg(format!("--txt-record=long.{ZONE},{}", "v=sensor ".repeat(24)));
        let guard = ChildGuard::spawn("dnsmasq", &mut command, Some(&directory.path().join("dnsmasq.log")))?;
        wait_for_port(netns, 53, &guard, "dnsmasq")?;
        Ok(Self { _guard: guard, _directory: directory })
    }
}
