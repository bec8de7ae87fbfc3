//! tcpdump as a guard: writes what passes an interface, headers only, with the original lengths.

use std::path::Path;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail};
use rustix::process::Signal;

use crate::netns::Ns;
use crate::process::ChildGuard;

/// Bytes kept of each packet: every header up to two tunnels deep, little payload.
const SNAP_BYTES: &str = "256";

/// A running capture.
#[derive(Debug)]
pub struct Capture {
    guard: ChildGuard,
}

/// What tcpdump said at its end.
#[derive(Clone, Copy, Debug)]
pub struct Captured {
    /// Packets in the file.
    pub packets: u64,
    /// Packets that the kernel had no room for: the capture is not complete if this is not 0.
    pub dropped: u64,
}

impl Capture {
    /// Starts to capture IP traffic of `device` in `netns` into the file `path` (pcap, nanosecond time stamps) and waits
    /// until it does. tcpdump's messages go to `log`.
    ///
    /// # Errors
    /// If tcpdump is missing or refuses.
    pub fn start(netns: &Ns, device: &str, path: &Path, log: &Path) -> Result<Self> {
        let mut command = netns.command("tcpdump");
        command.args([
            "-i",
            device,
            "-s",
            SNAP_BYTES,
            "-B",
            "65536",
            "-n",
            "--time-stamp-precision=nano",
            "-Z",
            "root",
        ]);
        command.arg("-w").arg(path).args(["ip", "or", "ip6"]);
        let guard = ChildGuard::spawn("tcpdump", &mut command, Some(log))?;
        let deadline = Instant::now() + Duration::from_secs(10);
        while !guard.log().contains("listening on") {
            if Instant::now() >= deadline || !guard.is_running() {
                bail!("tcpdump does not start on {device}:\n{}", guard.log());
            }
            std::thread::sleep(Duration::from_millis(20));
        }
        Ok(Self { guard })
    }

    /// Ends the capture and completes the file.
    ///
    /// # Errors
    /// If tcpdump ended early or does not say what it did.
    pub fn finish(mut self) -> Result<Captured> {
        self.guard.signal(Signal::INT).context("end the capture")?;
        if self.guard.wait_up_to(Duration::from_secs(10))?.is_none() {
            bail!("tcpdump does not end");
        }
        let log = self.guard.log();
        let number = |what: &str| {
            let line = log.lines().find(|line| line.contains(what))?;
            line.split_whitespace().next()?.parse().ok()
        };
        let (packets, dropped) = number("captured")
            .zip(number("dropped by kernel"))
            .with_context(|| format!("read tcpdump's summary:\n{log}"))?;
        Ok(Captured { packets, dropped })
    }
}
