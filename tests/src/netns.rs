//! Network namespaces as guards: made with a unique name, entered by threads or by commands, emptied and removed on drop.
//!
//! A name is `sensor-<pid>-<number>-<role>`: the pid tells [`sweep`] whose namespaces were left behind.

use std::fs::File;
use std::io::{Read, Write};
use std::net::{SocketAddr, TcpStream};
use std::ops::Deref;
use std::os::fd::AsFd;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, anyhow};
use rustix::process::{Pid, Signal};
use rustix::thread::{LinkNameSpaceType, move_into_link_name_space};

use crate::process::output;

const PREFIX: &str = "sensor-";
const DIRECTORY: &str = "/run/netns";

/// The name of a network namespace and what can be done in it. A clone does not keep the namespace alive: that is
/// [`NetNs`]'s part.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Ns {
    name: String,
}

/// A network namespace that exists as long as this value. Everything else is in [`Ns`].
#[derive(Debug)]
pub struct NetNs(Ns);

impl NetNs {
    /// Makes an empty namespace (only `lo`, up). `role` is a short word for people: `edge`, `client0`.
    ///
    /// # Errors
    /// Without root (CAP_SYS_ADMIN), or without iproute2.
    pub fn new(role: &str) -> Result<Self> {
        static NUMBER: AtomicU32 = AtomicU32::new(0);
        let number = NUMBER.fetch_add(1, Ordering::Relaxed);
        let name = format!("{PREFIX}{}-{number}-{role}", std::process::id());
        output(Command::new("ip").args(["netns", "add", &name]))
            .with_context(|| format!("make the network namespace {name}: this needs root"))?;
        let made = Self(Ns { name });
        made.ip("link set lo up")?;
        Ok(made)
    }
}

impl Deref for NetNs {
    type Target = Ns;

    fn deref(&self) -> &Ns {
        &self.0
    }
}

impl Ns {
    /// Name as `ip netns` knows it.
    #[must_use]
    pub fn name(&self) -> &str {
        &self.name
    }

    /// The file that keeps the namespace, for `setns`.
    #[must_use]
    pub fn path(&self) -> PathBuf {
        Path::new(DIRECTORY).join(&self.name)
    }

    /// A command that runs `program` inside. `ip netns exec` replaces itself by the program, so the child's pid is the
    /// program's own.
    #[must_use]
    pub fn command(&self, program: impl AsRef<std::ffi::OsStr>) -> Command {
        let mut command = Command::new("ip");
        command.args(["netns", "exec", &self.name]).arg(program);
        command
    }

    /// Runs `program` inside to its end, returns its standard output.
    ///
    /// # Errors
    /// As [`output`].
    pub fn run(&self, program: &str, args: &[&str]) -> Result<String> {
        output(self.command(program).args(args))
    }

    /// Runs `ip -n <this> <words>`; the words are split at spaces.
    ///
    /// # Errors
    /// If `ip` refuses.
    pub fn ip(&self, words: &str) -> Result<String> {
        output(Command::new("ip").args(["-n", &self.name]).args(words.split_whitespace()))
    }

    /// Runs `work` on a fresh thread inside this namespace. Sockets made there stay in the namespace when they leave
    /// the thread. Only the network is switched; `/proc/thread-self/net` shows this namespace, `/proc/net` does not.
    ///
    /// # Errors
    /// If the kernel refuses `setns`, or `work` panics.
    pub fn within<T: Send>(&self, work: impl FnOnce() -> T + Send) -> Result<T> {
        std::thread::scope(|scope| {
            let thread = scope.spawn(|| enter_forever(&self.path()).map(|()| work()));
            thread.join().map_err(|_panic| anyhow!("work inside {} panicked", self.name))?
        })
    }

    /// Moves the current thread in until the returned guard is dropped. For tests that attach programs: everything
    /// that the thread does, commands that it starts too, happens inside.
    ///
    /// # Errors
    /// If the kernel refuses `setns`.
    pub fn enter(&self) -> Result<Entered> {
        let home = File::open("/proc/thread-self/ns/net").context("open the thread's own network namespace")?;
        enter_forever(&self.path())?;
        Ok(Entered { home, not_send: std::marker::PhantomData })
    }

    /// Sets a sysctl inside, `net/ipv4/tcp_sack` style.
    ///
    /// # Errors
    /// If this kernel has no such setting, or not per namespace.
    pub fn sysctl(&self, key: &str, value: &str) -> Result<()> {
        let path = Path::new("/proc/sys").join(key);
        self.within(|| std::fs::write(&path, value))?
            .with_context(|| format!("set {} to {value} in {}", path.display(), self.name))
    }

    /// The raw answer, head and body, to `GET path` at `address` as seen from inside.
    ///
    /// # Errors
    /// If nothing answers completely within two seconds.
    pub fn http_get(&self, address: SocketAddr, path: &str) -> Result<String> {
        let limit = Duration::from_secs(2);
        // HTTP/1.0: the answer ends with the connection and is not sent in chunks.
        let request = format!("GET {path} HTTP/1.0\r\nHost: localhost\r\n\r\n");
        let get = || -> std::io::Result<Vec<u8>> {
            let mut stream = TcpStream::connect_timeout(&address, limit)?;
            stream.set_read_timeout(Some(limit))?;
            stream.write_all(request.as_bytes())?;
            let mut answer = Vec::new();
            stream.read_to_end(&mut answer)?;
            Ok(answer)
        };
        let answer = self.within(get)?.with_context(|| format!("get http://{address}{path} in {}", self.name))?;
        Ok(String::from_utf8_lossy(&answer).into_owned())
    }

    fn pids(&self) -> Vec<Pid> {
        let own = std::process::id();
        let listed = output(Command::new("ip").args(["netns", "pids", &self.name])).unwrap_or_default();
        listed
            .lines()
            .filter_map(|line| line.trim().parse::<i32>().ok())
            .filter(|pid| u32::try_from(*pid).is_ok_and(|pid| pid != own))
            .filter_map(Pid::from_raw)
            .collect()
    }
}

impl Drop for NetNs {
    fn drop(&mut self) {
        // Daemons that a tool left behind (sshd sessions, nginx workers) have no guard of their own.
        let deadline = Instant::now() + Duration::from_secs(2);
        loop {
            let pids = self.pids();
            if pids.is_empty() || Instant::now() >= deadline {
                break;
            }
            for pid in pids {
                let _gone = rustix::process::kill_process(pid, Signal::KILL);
            }
            std::thread::sleep(Duration::from_millis(20));
        }
        if let Err(error) = output(Command::new("ip").args(["netns", "del", &self.0.name])) {
            eprintln!("remove the network namespace {}: {error:#}", self.0.name);
        }
    }
}

/// The current thread is in another namespace until this is dropped; it cannot move to another thread.
#[derive(Debug)]
pub struct Entered {
    home: File,
    not_send: std::marker::PhantomData<*const ()>,
}

impl Drop for Entered {
    fn drop(&mut self) {
        if let Err(error) = move_into_link_name_space(self.home.as_fd(), Some(LinkNameSpaceType::Network)) {
            eprintln!("return to the thread's own network namespace: {error}");
        }
    }
}

/// Moves the current thread into the namespace at `path`, for the rest of its life.
///
/// # Errors
/// If the file is gone or the kernel refuses `setns`.
pub fn enter_forever(path: &Path) -> Result<()> {
    let file = File::open(path).with_context(|| format!("open the network namespace {}", path.display()))?;
    move_into_link_name_space(file.as_fd(), Some(LinkNameSpaceType::Network))
        .with_context(|| format!("enter the network namespace {}", path.display()))
}

/// Removes namespaces of runs that were killed before they could clean up: those whose maker is no longer alive.
///
/// # Errors
/// Never for a missing directory (no namespace was ever made); else what `ip` reports.
pub fn sweep() -> Result<()> {
    let Ok(entries) = std::fs::read_dir(DIRECTORY) else { return Ok(()) };
    for entry in entries.flatten() {
        let Some(name) = entry.file_name().to_str().map(str::to_owned) else { continue };
        let maker =
            name.strip_prefix(PREFIX).and_then(|rest| rest.split('-').next()).and_then(|pid| pid.parse::<u32>().ok());
        if maker.is_some_and(|pid| !is_alive(pid)) {
            drop(NetNs(Ns { name }));
        }
    }
    Ok(())
}

/// A zombie is not alive: where nobody reaps orphans it would keep its namespaces for ever.
fn is_alive(pid: u32) -> bool {
    let status = std::fs::read_to_string(Path::new("/proc").join(pid.to_string()).join("status"));
    status.is_ok_and(|text| !text.lines().any(|line| line.starts_with("State:") && line.contains('Z')))
}
