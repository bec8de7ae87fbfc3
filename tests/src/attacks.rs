//! Attacks with the tools that attackers use, each bounded in time by `timeout` beside its guard.
//!
//! A constructor only describes; [`Attack::start`] runs it from a host.

use std::net::Ipv4Addr;
use std::path::{Path, PathBuf};
use std::time::Duration;

use anyhow::{Context, Result};
use tempfile::TempDir;

use crate::netns::Ns;
use crate::process::ChildGuard;
use crate::topology::{EDGE_V4, EDGE_V6};

/// What a flow is, in `labels.csv`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Label {
    /// Well-behaved.
    Benign,
    /// Looks for open ports and versions.
    Scan,
    /// Too many packets, connections or requests.
    Flood,
    /// Holds connections open with as little as possible.
    SlowHttp,
    /// Tries passwords.
    BruteForce,
}

impl Label {
    /// The word in `labels.csv`.
    #[must_use]
    pub const fn word(self) -> &'static str {
        match self {
            Self::Benign => "benign",
            Self::Scan => "scan",
            Self::Flood => "flood",
            Self::SlowHttp => "slow-http",
            Self::BruteForce => "brute-force",
        }
    }
}

/// An attack tool with its arguments.
#[derive(Clone, Debug)]
pub struct Attack {
    /// What its flows are.
    pub label: Label,
    program: &'static str,
    args: Vec<String>,
    /// Passwords to try, for the tool's `-P`.
    passwords: usize,
    v6: bool,
}

impl Attack {
    /// A tool with arguments as one would type them. In them `{edge}` is the edge's address, `{host}` the same as a URL
    /// has it, `{source}` the address that the attack comes from.
    #[must_use]
    pub fn new(label: Label, program: &'static str, typed: &str) -> Self {
        let args = typed.split_whitespace().map(str::to_owned).collect();
        Self { label, program, args, passwords: 0, v6: false }
    }

    /// The same over IPv6; `hping3` cannot.
    #[must_use]
    pub fn over_v6(mut self) -> Self {
        self.v6 = true;
        if matches!(self.program, "nmap" | "hydra") {
            self.args.insert(0, "-6".to_owned());
        }
        self
    }

    /// The same over TLS, for attacks on the web server.
    #[must_use]
    pub fn over_tls(mut self) -> Self {
        for word in &mut self.args {
            *word = word.replace("http://", "https://");
        }
        self
    }

    /// `nmap` with the given scan technique, ports and timing: `-sS -p 1-1000 -T4`.
    #[must_use]
    pub fn scan(technique: &str) -> Self {
        Self::new(Label::Scan, "nmap", &format!("-n -Pn {technique} {{edge}}"))
    }

    /// `hping3` sending a packet every `interval_us` microseconds: `-S -p 80` is a SYN flood from changing ports,
    /// `-2 -k -s 4444 -p 53` a UDP flood in one flow.
    #[must_use]
    pub fn packet_flood(interval_us: u32, kind: &str) -> Self {
        Self::new(Label::Flood, "hping3", &format!("-q -n -I eth0 -a {{source}} -i u{interval_us} {kind} {{edge}}"))
    }

    /// `wrk` as fast as it gets answers, on `connections` connections; each is used for one request with `short`.
    #[must_use]
    pub fn http_flood(connections: u32, path: &str, short: bool) -> Self {
        let mut attack =
            Self::new(Label::Flood, "wrk", &format!("-t 1 -c {connections} -d 600s http://{{host}}{path}"));
        if short {
            attack.args.extend(["-H".to_owned(), "Connection: close".to_owned()]);
        }
        attack
    }

    /// `slowhttptest`: `mode` is `-H` (headers), `-B` (body), `-X` (reading) or `-R` (ranges), with `more` arguments.
    #[must_use]
    pub fn slow_http(mode: &str, connections: u32, per_second: u32, more: &str) -> Self {
        let typed = format!(
            "{mode} -c {connections} -r {per_second} -l 600 -p 60 -v 0 {more} -u http://{{host}}/file-8000000.bin"
        );
        Self::new(Label::SlowHttp, "slowhttptest", &typed)
    }

    /// `hydra` guessing SSH passwords over `tasks` connections at once.
    #[must_use]
    pub fn ssh_guessing(tasks: u32) -> Self {
        let typed = format!("-I -l operator -P {{passwords}} -t {tasks} ssh://{{host}}");
        Self { passwords: 20_000, ..Self::new(Label::BruteForce, "hydra", &typed) }
    }

    /// `hydra` guessing passwords of the web server's private area over `tasks` connections at once.
    #[must_use]
    pub fn http_guessing(tasks: u32) -> Self {
        let typed = format!("-I -l reader -P {{passwords}} -t {tasks} {{edge}} http-get /private/file-137.bin");
        Self { passwords: 200_000, ..Self::new(Label::BruteForce, "hydra", &typed) }
    }

    /// Runs it in `netns` from the address `source` (see [`crate::topology::Host::use_source`]) for at most `limit`; it may end earlier (a scan that is done). `log` takes its output.
    ///
    /// # Errors
    /// If the tool is not installed.
    pub fn start(&self, netns: &Ns, source: Ipv4Addr, limit: Duration, log: Option<&Path>) -> Result<RunningAttack> {
        let directory = TempDir::with_prefix("sensor-attack-").context("make a directory for the attack tool")?;
        let list = directory.path().join("passwords");
        if self.passwords > 0 {
            write_passwords(&list, self.passwords)?;
        }
        let mut command = netns.command("timeout");
        // hydra writes its restore file where it runs.
        command.current_dir(directory.path()).args(["-k", "1"]).arg(format!("{:.1}", limit.as_secs_f64()));
        // Tools that send as fast as they can would starve the clients of CPU, which no host on a network could.
        command.args(["nice", "-n", "10", self.program]);
        let (edge, host) = if self.v6 {
            (EDGE_V6.to_string(), format!("[{EDGE_V6}]"))
        } else {
            (EDGE_V4.to_string(), EDGE_V4.to_string())
        };
        command.args(self.args.iter().map(|word| {
            let word = word.replace("{edge}", &edge).replace("{host}", &host);
            word.replace("{source}", &source.to_string()).replace("{passwords}", &list.to_string_lossy())
        }));
        let guard = ChildGuard::spawn(self.program, &mut command, log)?;
        Ok(RunningAttack { guard, _directory: directory })
    }
}

/// An attack that runs until its limit, its end, or drop.
#[derive(Debug)]
pub struct RunningAttack {
    guard: ChildGuard,
    _directory: TempDir,
}

impl RunningAttack {
    /// Whether the tool is still at it.
    #[must_use]
    pub fn is_running(&self) -> bool {
        self.guard.is_running()
    }
}

fn write_passwords(path: &PathBuf, count: usize) -> Result<()> {
    let words: Vec<String> = (0..count).map(|number| format!("Winter{}{}", 1990 + number % 40, number)).collect();
    std::fs::write(path, words.join("\n")).with_context(|| format!("write {}", path.display()))
}
