//! Child processes that cannot outlive their guard, and one-shot commands whose failure says what was run.
//!
//! Each spawned child leads its own process group, so that Ctrl-C reaches only the program that owns the guards, and
//! so that a tool's own children end with it.

use std::fs::File;
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{Child, ChildStderr, ChildStdin, ChildStdout, Command, ExitStatus, Stdio};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail};
use rustix::process::{Pid, Signal, WaitId, WaitIdOptions};

/// How long a child may take to end after SIGTERM before it is killed.
const GRACE: Duration = Duration::from_secs(3);

/// Runs `command` to its end and returns what it wrote to standard output.
///
/// # Errors
/// If it cannot be started (then it is not installed) or ends with a failure; the text holds the command and what it
/// wrote to standard error.
pub fn output(command: &mut Command) -> Result<String> {
    // A group of its own: Ctrl-C is for the caller, which then cleans up with more commands.
    let out = command
        .process_group(0)
        .stdin(Stdio::null())
        .output()
        .with_context(|| format!("start {command:?}: is it installed? `cargo xtask setup` installs the tools"))?;
    if !out.status.success() {
        bail!("{command:?} failed ({}): {}", out.status, String::from_utf8_lossy(&out.stderr).trim());
    }
    Ok(String::from_utf8_lossy(&out.stdout).into_owned())
}

/// A running child and its process group; both are gone after drop.
#[derive(Debug)]
pub struct ChildGuard {
    name: String,
    child: Child,
    log: Option<PathBuf>,
    /// Set once the leader was waited for; from then on its id may be someone else's.
    reaped: Option<ExitStatus>,
}

impl ChildGuard {
    /// Starts `command` with standard output and error in the file `log`, or thrown away without one.
    ///
    /// # Errors
    /// If the log cannot be made or the program cannot be started.
    pub fn spawn(name: &str, command: &mut Command, log: Option<&Path>) -> Result<Self> {
        match log {
            Some(path) => {
                let file = File::create(path).with_context(|| format!("create the log {}", path.display()))?;
                let copy = file.try_clone().with_context(|| format!("share the log {}", path.display()))?;
                command.stdout(file).stderr(copy);
            }
            None => {
                command.stdout(Stdio::null()).stderr(Stdio::null());
            }
        }
        Self::spawn_with_stdio(name, command.stdin(Stdio::null()), log)
    }

    /// Starts `command` as it is: the caller has set its standard streams.
    ///
    /// # Errors
    /// If the program cannot be started.
    pub fn spawn_with_stdio(name: &str, command: &mut Command, log: Option<&Path>) -> Result<Self> {
        let child = command
            .process_group(0)
            .spawn()
            .with_context(|| format!("start {name} ({command:?}): `cargo xtask setup` installs the tools"))?;
        Ok(Self { name: name.to_owned(), child, log: log.map(Path::to_path_buf), reaped: None })
    }

    /// Takes the pipe to the process's standard input, if it was made with one.
    pub fn take_stdin(&mut self) -> Option<ChildStdin> {
        self.child.stdin.take()
    }

    /// Takes the pipe from the process's standard output, if it was made with one.
    pub fn take_stdout(&mut self) -> Option<ChildStdout> {
        self.child.stdout.take()
    }

    /// Takes the pipe from the process's standard error, if it was made with one.
    pub fn take_stderr(&mut self) -> Option<ChildStderr> {
        self.child.stderr.take()
    }

    /// Process id; it is the id of the process group too.
    #[must_use]
    pub fn pid(&self) -> u32 {
        self.child.id()
    }

    /// What the process wrote up to now, empty without a log.
    #[must_use]
    pub fn log(&self) -> String {
        self.log
            .as_deref()
            .and_then(|path| std::fs::read(path).ok())
            .map_or_else(String::new, |bytes| String::from_utf8_lossy(&bytes).into_owned())
    }

    /// Whether what it writes is kept in a file.
    #[must_use]
    pub fn has_log(&self) -> bool {
        self.log.is_some()
    }

    /// Whether it runs still.
    #[must_use]
    pub fn is_running(&self) -> bool {
        !self.has_ended()
    }

    /// Sends `signal` to the process, not to its group.
    ///
    /// # Errors
    /// If the process is gone.
    pub fn signal(&self, signal: Signal) -> Result<()> {
        if self.reaped.is_some() {
            bail!("{} has ended already", self.name);
        }
        let pid = self.group().with_context(|| format!("the process id of {}", self.name))?;
        rustix::process::kill_process(pid, signal).with_context(|| format!("signal {} ({signal:?})", self.name))
    }

    /// Waits up to `limit` for the process to end by itself; `None` when it runs still.
    ///
    /// # Errors
    /// If the kernel refuses the wait.
    pub fn wait_up_to(&mut self, limit: Duration) -> Result<Option<ExitStatus>> {
        let deadline = Instant::now() + limit;
        if let Some(status) = self.reaped {
            return Ok(Some(status));
        }
        while !self.has_ended() {
            if Instant::now() >= deadline {
                return Ok(None);
            }
            std::thread::sleep(Duration::from_millis(10));
        }
        self.finish().map(Some)
    }

    /// SIGTERM, a grace period, SIGKILL to what is left of the group; returns how the process ended.
    ///
    /// # Errors
    /// If the kernel refuses the wait.
    pub fn stop(&mut self) -> Result<ExitStatus> {
        if let Some(status) = self.reaped {
            return Ok(status);
        }
        if let Some(group) = self.group() {
            // A group that is gone already is what we want.
            let _gone = rustix::process::kill_process_group(group, Signal::TERM);
            let deadline = Instant::now() + GRACE;
            while !self.has_ended() && Instant::now() < deadline {
                std::thread::sleep(Duration::from_millis(10));
            }
        }
        self.finish()
    }

    /// Kills the group while the leader's id is still ours (not yet reaped, so not reusable), then reaps the leader.
    fn finish(&mut self) -> Result<ExitStatus> {
        if let Some(group) = self.group() {
            let _gone = rustix::process::kill_process_group(group, Signal::KILL);
        }
        let status = self.child.wait().with_context(|| format!("wait for {}", self.name))?;
        self.reaped = Some(status);
        Ok(status)
    }

    fn group(&self) -> Option<Pid> {
        Pid::from_raw(i32::try_from(self.child.id()).ok()?)
    }

    /// Looks without reaping: a reaped leader's id could belong to someone else when the group is killed.
    fn has_ended(&self) -> bool {
        if self.reaped.is_some() {
            return true;
        }
        let Some(pid) = self.group() else { return true };
        let options = WaitIdOptions::EXITED | WaitIdOptions::NOHANG | WaitIdOptions::NOWAIT;
        match rustix::process::waitid(WaitId::Pid(pid), options) {
            Ok(status) => status.is_some(),
            // Not our child any more: reaped already.
            Err(_) => true,
        }
    }
}

impl Drop for ChildGuard {
    fn drop(&mut self) {
        if let Err(error) = self.stop() {
            eprintln!("{}: {error:#}", self.name);
        }
        if std::thread::panicking() && self.log.is_some() {
            eprintln!("---- log of {} ----\n{}", self.name, self.log());
        }
    }
}
