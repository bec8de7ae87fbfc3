//! An agent whose standard error is a pipe, so that its reader can stop reading.

use std::io::Read as _;
use std::process::{Command, Stdio};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use rustix::pipe::fcntl_setpipe_size;
use rustix::process::Signal;
use sensor_tests::agent::binary;
use sensor_tests::checks::{Must as _, text};
use sensor_tests::netns::Ns;
use sensor_tests::process::ChildGuard;

/// The smallest pipe that Linux makes, in bytes: a few lines of log.
const PIPE: usize = 4096;
/// A busy machine loads the programs in seconds.
const START: Duration = Duration::from_secs(40);

pub(super) struct Agent {
    guard: ChildGuard,
    socket: String,
    reads: Arc<AtomicBool>,
    said: Arc<Mutex<String>>,
}

impl Agent {
    /// Starts one and waits until it is ready.
    pub(super) fn start(netns: &Ns, socket: &str, args: &[&str]) -> Agent {
        let mut command = netns.command(binary().must("find the binary"));
        command.arg("run").args(args).args(["--socket", socket]).stderr(Stdio::piped()).stdout(Stdio::null());
        let mut guard = ChildGuard::spawn_with_stdio("sensor", &mut command, None).must("start the agent");
        let mut stderr = guard.take_stderr().expect("a pipe");
        fcntl_setpipe_size(&stderr, PIPE).map_err(Into::into).must("make the pipe small");
        let (reads, said) = (Arc::new(AtomicBool::new(true)), Arc::new(Mutex::new(String::new())));
        std::thread::spawn({
            let (reads, said) = (reads.clone(), said.clone());
            move || {
                let mut buffer = [0; 1024];
                loop {
                    while !reads.load(Ordering::Relaxed) {
                        std::thread::sleep(Duration::from_millis(20));
                    }
                    match stderr.read(&mut buffer) {
                        Ok(length) if length > 0 => lock(&said).push_str(&text(&buffer[..length])),
                        _ => return,
                    }
                }
            }
        });
        let agent = Agent { guard, socket: socket.to_owned(), reads, said };
        let begun = Instant::now();
        while !agent.said().contains("ready") {
            assert!(agent.guard.is_running() && begun.elapsed() < START, "it does not start: {}", agent.said());
            std::thread::sleep(Duration::from_millis(20));
        }
        agent
    }

    /// What it wrote, as far as it was read.
    pub(super) fn said(&self) -> String {
        lock(&self.said).clone()
    }

    /// Whether somebody reads what it writes.
    pub(super) fn read(&self, reads: bool) {
        self.reads.store(reads, Ordering::Relaxed);
    }

    pub(super) fn signal(&self, signal: Signal) {
        self.guard.signal(signal).must("send a signal");
    }

    /// Runs `sensor WORDS`: whether it succeeded, and all that it wrote.
    pub(super) fn ask(&self, words: &[&str]) -> (bool, String) {
        let mut command = Command::new("timeout");
        command.arg("20").arg(binary().must("find the binary")).args(words).args(["--socket", &self.socket]);
        let output = command.output().map_err(Into::into).must("run sensor");
        (output.status.success(), text(&output.stdout) + &text(&output.stderr))
    }

    /// As [`Agent::ask`], of what has to succeed.
    pub(super) fn must_ask(&self, words: &[&str]) -> String {
        let (done, said) = self.ask(words);
        assert!(done, "sensor {words:?}: {said}\nthe agent: {}", self.said());
        said
    }

    /// It runs and has not panicked; its resident memory, bytes.
    pub(super) fn check(&self) -> u64 {
        let said = self.said();
        assert!(self.guard.is_running(), "the agent ended by itself: {said}");
        assert!(!said.contains("panicked"), "{said}");
        let status = std::fs::read_to_string(format!("/proc/{}/status", self.guard.pid())).unwrap_or_default();
        let line = status.lines().find_map(|line| line.strip_prefix("VmRSS:")).unwrap_or_default();
        line.trim().trim_end_matches(" kB").parse::<u64>().unwrap_or_default() * 1024
    }

    /// Waits for an end that was asked for; `success`: it must be one.
    pub(super) fn ends(mut self, success: bool) {
        let limit = Duration::from_secs(20);
        let status = self.guard.wait_up_to(limit).must("wait");
        let status = status.unwrap_or_else(|| panic!("it does not end within {limit:?}: {}", self.said()));
        assert!(status.success() || !success, "it ended with {status}: {}", self.said());
        assert_ne!(status.code(), Some(101), "it panicked: {}", self.said());
    }
}

fn lock(said: &Mutex<String>) -> std::sync::MutexGuard<'_, String> {
    said.lock().unwrap_or_else(PoisonError::into_inner)
}
