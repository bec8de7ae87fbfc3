//! Well-behaved clients: real programs that do one thing each, and a crowd that repeats such things.
//!
//! A job returns the bytes that it moved, `None` when it was stopped half way, or an error, which is a service that
//! failed a client.

use std::io::{Read, Write};
use std::os::fd::AsFd;
use std::path::Path;
use std::process::{Command, Stdio};
use std::time::Duration;

use anyhow::{Context, Result, bail};
use rustix::event::{PollFd, PollFlags, Timespec, poll};

use crate::content;
use crate::netns::Ns;
use crate::process::ChildGuard;
use crate::rng::Rng;
use crate::servers::{USER, ZONE};
use crate::stop::Stop;
use crate::topology::{EDGE_V4, EDGE_V6};

/// How curl is called everywhere: quiet, failures are failures, the test certificate is accepted, and a transfer that
/// stands still for six seconds has failed.
const CURL: [&str; 8] =
    ["-sSfk", "--no-progress-meter", "--connect-timeout", "5", "--speed-limit", "1", "--speed-time", "6"];

/// The four ways to the web server, IPv4 first.
#[must_use]
pub fn web_bases() -> [String; 4] {
    [
        format!("http://{EDGE_V4}"),
        format!("https://{EDGE_V4}"),
        format!("http://[{EDGE_V6}]"),
        format!("https://[{EDGE_V6}]"),
    ]
}

/// Downloads the file of `size` bytes and compares each byte. `more` are further arguments of curl.
///
/// # Errors
/// If the transfer fails, or a byte is not what the server has.
pub fn download(netns: &Ns, base: &str, size: u64, more: &[&str], stop: &Stop) -> Result<Option<u64>> {
    let expected = content::served(size)?;
    let mut at = 0;
    let mut command = netns.command("curl");
    command.args(CURL).args(more).arg(format!("{base}/{}", content::name(size)));
    let done = pump(&mut command, None, stop, |bytes| {
        if expected.get(at..at + bytes.len()) != Some(bytes) {
            bail!("the file of {size} bytes differs within the {} bytes from {at}", bytes.len());
        }
        at += bytes.len();
        Ok(())
    })?;
    if done && at as u64 != size {
        bail!("{at} bytes of {size} arrived");
    }
    Ok(done.then_some(size))
}

/// Downloads several files over one connection, at most `rate` requests in time (curl's `--rate`: `5/s`, `40/m`).
///
/// # Errors
/// If a transfer fails or the sizes do not add up.
pub fn browse(netns: &Ns, base: &str, sizes: &[u64], rate: &str, stop: &Stop) -> Result<Option<u64>> {
    let mut command = netns.command("curl");
    command.args(CURL).args(["--rate", rate]).args(sizes.iter().map(|size| format!("{base}/{}", content::name(*size))));
    let mut received = 0;
    let done = pump(&mut command, None, stop, |bytes| {
        received += bytes.len() as u64;
        Ok(())
    })?;
    let expected = sizes.iter().sum();
    if done && received != expected {
        bail!("{received} bytes of {expected} arrived");
    }
    Ok(done.then_some(expected))
}

/// Posts the file at `path` with `more` arguments of curl.
///
/// # Errors
/// If the transfer fails.
pub fn upload(netns: &Ns, base: &str, path: &Path, more: &[&str], stop: &Stop) -> Result<Option<u64>> {
    let size = std::fs::metadata(path).with_context(|| format!("look at {}", path.display()))?.len();
    let mut command = netns.command("curl");
    command
        .args(CURL)
        .args(more)
        .arg("--data-binary")
        .arg(format!("@{}", path.display()))
        .arg(format!("{base}/upload"));
    Ok(pump(&mut command, None, stop, |_| Ok(()))?.then_some(size))
}

/// Looks a name up; `more` are further arguments of dig (`AAAA`, `+tcp`).
///
/// # Errors
/// If there is no answer.
pub fn look_up(netns: &Ns, name: &str, more: &[&str], stop: &Stop) -> Result<Option<u64>> {
    let mut command = netns.command("dig");
    command.arg(format!("@{EDGE_V4}")).args(["+short", "+tries=2", "+time=2"]).arg(format!("{name}.{ZONE}")).args(more);
    let mut bytes = 0;
    let done = pump(&mut command, None, stop, |answer| {
        bytes += answer.len() as u64;
        Ok(())
    })?;
    if done && bytes == 0 {
        bail!("no answer for {name}.{ZONE}");
    }
    Ok(done.then_some(bytes))
}

/// Runs a command: whether it came to its end, and all that it wrote.
fn said(command: &mut Command, stop: &Stop) -> Result<(bool, String)> {
    let mut text = Vec::new();
    let done = pump(command, None, stop, |bytes| {
        text.extend_from_slice(bytes);
        Ok(())
    })?;
    Ok((done, String::from_utf8_lossy(&text).into_owned()))
}

/// Pings with `more` arguments of ping; a lost answer is a failure.
///
/// # Errors
/// If an answer is missing.
pub fn ping(netns: &Ns, more: &[&str], stop: &Stop) -> Result<Option<u64>> {
    let mut command = netns.command("ping");
    command.args(["-q", "-n"]).args(more);
    let (done, text) = said(&mut command, stop)?;
    if done && !text.contains(" 0% packet loss") {
        bail!("ping lost answers: {}", text.trim());
    }
    Ok(done.then_some(0))
}

/// `wrk` on a few connections with a pause before each request, of `pause_ms` and up to as much again.
///
/// # Errors
/// If wrk fails, or requests failed.
pub fn steady_requests(netns: &Ns, connections: u32, seconds: u64, pause_ms: u64, stop: &Stop) -> Result<Option<u64>> {
    let script = tempfile::Builder::new().suffix(".lua").tempfile().context("make wrk's script")?;
    let text = format!("function delay() return math.random({pause_ms}, {}) end\n", pause_ms * 2);
    std::fs::write(script.path(), text).context("write wrk's script")?;
    let mut command = netns.command("wrk");
    command.args(["-t", "1", "-c", &connections.to_string(), "-d", &format!("{seconds}s"), "-s"]).arg(script.path());
    command.arg(format!("http://{EDGE_V4}/{}", content::name(9_000)));
    let (done, text) = said(&mut command, stop)?;
    if text.contains("Socket errors") || text.contains("Non-2xx") {
        bail!("wrk: {}", text.trim());
    }
    Ok(done.then_some(0))
}

/// Runs `remote` over SSH with `input` as its standard input; returns the bytes that came back.
///
/// # Errors
/// If the session fails.
pub fn ssh(netns: &Ns, key: &Path, remote: &str, input: Input, stop: &Stop) -> Result<Option<u64>> {
    let mut command = netns.command("ssh");
    command.args(["-F", "none", "-q", "-o", "StrictHostKeyChecking=no", "-o", "UserKnownHostsFile=/dev/null"]);
    command
        .args([
            "-o",
            "BatchMode=yes",
            "-o",
            "ConnectTimeout=10",
            "-o",
            "ServerAliveInterval=3",
            "-o",
            "ServerAliveCountMax=2",
        ])
        .args(["-i"])
        .arg(key);
    if matches!(input, Input::Typed(..)) {
        command.arg("-tt");
    }
    command.arg(format!("{USER}@{EDGE_V4}")).arg(remote);
    let mut bytes = 0;
    let done = pump(&mut command, Some(input), stop, |answer| {
        bytes += answer.len() as u64;
        Ok(())
    })?;
    Ok(done.then_some(bytes))
}

/// What a session sends.
#[derive(Debug)]
pub enum Input {
    /// All at once.
    Bulk(Vec<u8>),
    /// Key by key, with pauses as of a person.
    Typed(String, Rng),
}

impl Input {
    fn send(self, mut to: impl Write, stop: &Stop) {
        // A server that hangs up shows in the exit status of the program.
        match self {
            Self::Bulk(bytes) => {
                let _hung_up = to.write_all(&bytes);
            }
            Self::Typed(text, mut rng) => {
                for key in text.bytes() {
                    let pause = if key == b'\n' { rng.millis(300..900) } else { rng.millis(40..180) };
                    if !stop.sleep(pause) || to.write_all(&[key]).and_then(|()| to.flush()).is_err() {
                        return;
                    }
                }
            }
        }
    }
}

/// Runs a command, feeds it `input`, hands on what it writes. Returns false if it was stopped before its end.
fn pump(
    command: &mut Command,
    input: Option<Input>,
    stop: &Stop,
    mut take: impl FnMut(&[u8]) -> Result<()>,
) -> Result<bool> {
    command.stdin(if input.is_some() { Stdio::piped() } else { Stdio::null() });
    command.stdout(Stdio::piped()).stderr(Stdio::piped());
    let shown = format!("{command:?}");
    let mut guard = ChildGuard::spawn_with_stdio("client", command, None)?;
    let (mut stdout, stdin) = (guard.take_stdout().context("no pipe from the client")?, guard.take_stdin());
    let mut stderr = guard.take_stderr().context("no pipe from the client")?;
    let wait = Timespec { tv_sec: 0, tv_nsec: 100_000_000 };
    let ended = std::thread::scope(|scope| {
        if let Some((input, stdin)) = input.zip(stdin) {
            scope.spawn(move || input.send(stdin, stop));
        }
        let mut buffer = vec![0; 1 << 16];
        let outcome = loop {
            if stop.is_raised() {
                break Ok(false);
            }
            let ready =
                poll(&mut [PollFd::new(&stdout.as_fd(), PollFlags::IN)], Some(&wait)).is_ok_and(|count| count > 0);
            if !ready {
                continue;
            }
            match stdout.read(&mut buffer) {
                Ok(0) => break Ok(true),
                Ok(length) => {
                    if let Err(error) = take(&buffer[..length]) {
                        break Err(error);
                    }
                }
                Err(error) => break Err(error.into()),
            }
        };
        if !matches!(outcome, Ok(true)) {
            // The feeding thread blocks on the pipe while the program lives.
            let _status = guard.stop();
        }
        outcome
    });
    if !ended.with_context(|| shown.clone())? {
        return Ok(false);
    }
    let status = loop {
        if let Some(status) = guard.wait_up_to(Duration::from_secs(1))? {
            break status;
        }
        if stop.is_raised() {
            return Ok(false);
        }
    };
    if !status.success() && !stop.is_raised() {
        let mut text = String::new();
        let _unreadable = stderr.read_to_string(&mut text);
        bail!("{shown} failed ({status}): {}", text.trim());
    }
    Ok(status.success())
}
