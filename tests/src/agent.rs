//! The agent under test: the real `sensor` binary, started in a namespace, asked over its own doors.

use std::net::{Ipv4Addr, SocketAddr};
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::sync::Arc;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail};
use rustix::process::Signal;
use serde_json::Value;
use tempfile::TempDir;

use crate::netns::Ns;
use crate::process::{ChildGuard, output};

/// Where the agent serves its metrics; each namespace has a loopback of its own.
const METRICS: SocketAddr = SocketAddr::new(std::net::IpAddr::V4(Ipv4Addr::LOCALHOST), 9469);

/// Loading programs into a busy kernel takes a while; a start that takes longer has failed.
const START_LIMIT: Duration = Duration::from_secs(30);

/// The setting `policy.accused_flows` as a variable.
const ACCUSED_FLOWS: &str = "SENSOR_POLICY_ACCUSED_FLOWS";

/// A running agent; SIGTERM on drop, and its log is shown if the test panics.
#[derive(Debug)]
pub struct Agent {
    guard: ChildGuard,
    netns: Ns,
    binary: PathBuf,
    /// Shared with an agent that was started beside this one.
    directory: Arc<TempDir>,
}

impl Agent {
    /// Starts `sensor run <args>` in `netns` with a socket and a log of its own and waits until it is ready: it says so
    /// in its log, and its socket and `/metrics` answer.
    ///
    /// # Errors
    /// If there is no binary (see [`binary`]), or the agent ends or is not ready in time; the text holds its log.
    pub fn start(netns: &Ns, args: &[&str]) -> Result<Self> {
        let directory = TempDir::with_prefix("sensor-agent-").context("make the agent's directory")?;
        Self::start_in(directory, netns, args)
    }

    /// Starts another agent with the same control socket while this one is there: to take over from it.
    ///
    /// # Errors
    /// As [`Agent::start`].
    pub fn start_beside(&self, args: &[&str]) -> Result<Self> {
        let number = std::fs::read_dir(self.directory.path()).context("the agent's directory")?.count();
        let log = self.directory.path().join(format!("sensor-{number}.log"));
        Self::start_with(self.directory.clone(), log, &self.netns, args, Some("1"))
    }

    /// As [`Agent::start`], with socket and log in `directory`, where an earlier agent may have left its own.
    ///
    /// # Errors
    /// As [`Agent::start`].
    pub fn start_in(directory: TempDir, netns: &Ns, args: &[&str]) -> Result<Self> {
        let log = directory.path().join("sensor.log");
        Self::start_with(Arc::new(directory), log, netns, args, Some("1"))
    }

    /// As [`Agent::start`], where a model needs as many accused flows of a source as in the shipped configuration.
    ///
    /// # Errors
    /// As [`Agent::start`].
    pub fn start_as_shipped(netns: &Ns, args: &[&str]) -> Result<Self> {
        let directory = TempDir::with_prefix("sensor-agent-").context("make the agent's directory")?;
        let log = directory.path().join("sensor.log");
        Self::start_with(Arc::new(directory), log, netns, args, None)
    }

    /// As [`Agent::start`], with these for its standard output and its standard error; there is no log then.
    ///
    /// # Errors
    /// As [`Agent::start`].
    pub fn start_into(netns: &Ns, args: &[&str], stdout: impl Into<Stdio>, stderr: impl Into<Stdio>) -> Result<Self> {
        let directory = Arc::new(TempDir::with_prefix("sensor-agent-").context("make the agent's directory")?);
        let (binary, mut command) = Self::command(&directory, netns, args)?;
        command.stdin(Stdio::null()).stdout(stdout).stderr(stderr);
        let guard = ChildGuard::spawn_with_stdio("sensor", &mut command, None)?;
        // Its ends of pipes would hold them open.
        drop(command);
        let agent = Self { guard, netns: netns.clone(), binary, directory };
        agent.wait_until_ready()?;
        Ok(agent)
    }

    fn start_with(
        directory: Arc<TempDir>,
        log: PathBuf,
        netns: &Ns,
        args: &[&str],
        accused_flows: Option<&str>,
    ) -> Result<Self> {
        let (binary, mut command) = Self::command(&directory, netns, args)?;
        // Most tests are about one flow, or a few; by default a model needs more of a source.
        command.envs(accused_flows.map(|number| (ACCUSED_FLOWS, number)));
        let guard = ChildGuard::spawn("sensor", &mut command, Some(&log))?;
        let agent = Self { guard, netns: netns.clone(), binary, directory };
        agent.wait_until_ready()?;
        Ok(agent)
    }

    fn command(directory: &TempDir, netns: &Ns, args: &[&str]) -> Result<(PathBuf, Command)> {
        let binary = binary()?;
        let socket = directory.path().join("sensor.sock");
        let mut command = netns.command(&binary);
        command.arg("run").args(args);
        // Agents of tests run side by side: what is pinned would be one directory for all.
        if !args.contains(&"--pins") {
            command.args(["--pins", ""]);
        }
        // What most tests are about; of itself, the agent takes TC on veth links.
        if !args.contains(&"--xdp-mode") {
            command.args(["--xdp-mode", "native"]);
        }
        if !args.contains(&"--state-dir") {
            command.arg("--state-dir").arg(directory.path().join("state"));
        }
        command.arg("--socket").arg(&socket).args(["--metrics-listen", &METRICS.to_string()]);
        Ok((binary, command))
    }

    /// Ends the agent if it still runs, and hands over its directory for [`Agent::start_in`].
    ///
    /// # Errors
    /// If another agent shares it.
    pub fn into_directory(self) -> Result<TempDir> {
        Arc::into_inner(self.directory).context("another agent shares the directory")
    }

    /// What `sensor status --json` says.
    ///
    /// # Errors
    /// If the command fails or its answer is not JSON.
    pub fn status(&self) -> Result<Value> {
        self.ask(&["status", "--json"])
    }

    /// What `sensor flows --json` says: every flow in the table, by packets.
    ///
    /// # Errors
    /// If the command fails or its answer is not a JSON array.
    pub fn flows(&self) -> Result<Vec<Value>> {
        match self.ask(&["flows", "--json", "--sort", "packets", "--limit", "1000000"])? {
            Value::Array(flows) => Ok(flows),
            other => bail!("`sensor flows --json` gives no array: {other}"),
        }
    }

    /// The text of `/metrics`.
    ///
    /// # Errors
    /// If it does not answer with status 200 within two seconds.
    pub fn metrics(&self) -> Result<Metrics> {
        let answer = self.http_get("/metrics")?;
        let (head, body) = answer.split_once("\r\n\r\n").context("/metrics gives no HTTP answer")?;
        if !head.starts_with("HTTP/1.1 200") && !head.starts_with("HTTP/1.0 200") {
            bail!("/metrics answers {}", head.lines().next().unwrap_or_default());
        }
        Ok(Metrics(body.to_owned()))
    }

    /// The raw answer to a GET of `path` at the metrics address, head and body.
    ///
    /// # Errors
    /// If nothing answers within two seconds.
    pub fn http_get(&self, path: &str) -> Result<String> {
        self.netns.http_get(METRICS, path)
    }

    /// Sends a signal to the agent: `Signal::KILL` for a crash, `Signal::STOP` for a hang.
    ///
    /// # Errors
    /// If it is gone.
    pub fn kill(&self, signal: Signal) -> Result<()> {
        self.guard.signal(signal)
    }

    /// SIGTERM, and waits; returns the log.
    ///
    /// # Errors
    /// If the agent does not end with success by itself.
    pub fn stop(self) -> Result<String> {
        self.stop_by(Signal::TERM, || {})
    }

    /// As [`Agent::stop`], by `signal`; `look` runs when the agent has ended and before its directory is removed.
    ///
    /// # Errors
    /// If the agent does not end with success by itself.
    pub fn stop_by(mut self, signal: Signal, look: impl FnOnce()) -> Result<String> {
        self.guard.signal(signal)?;
        match self.guard.wait_up_to(Duration::from_secs(10))? {
            Some(status) if status.success() => {
                look();
                Ok(self.log())
            }
            Some(status) => bail!("the agent ended with {status}; its log:\n{}", self.log()),
            None => bail!("the agent does not end within 10 s of {signal:?}; its log:\n{}", self.log()),
        }
    }

    /// Its process.
    #[must_use]
    pub fn pid(&self) -> u32 {
        self.guard.pid()
    }

    /// Waits for an end that was asked for otherwise; returns the log.
    ///
    /// # Errors
    /// If it does not end with success within `limit`.
    pub fn wait_for_end(mut self, limit: Duration) -> Result<String> {
        match self.guard.wait_up_to(limit)? {
            Some(status) if status.success() => Ok(self.log()),
            Some(status) => bail!("the agent ended with {status}; its log:\n{}", self.log()),
            None => bail!("the agent does not end within {limit:?}; its log:\n{}", self.log()),
        }
    }

    /// Whether the process lives.
    #[must_use]
    pub fn is_running(&self) -> bool {
        self.guard.is_running()
    }

    /// What it wrote up to now.
    #[must_use]
    pub fn log(&self) -> String {
        self.guard.log()
    }

    /// The control socket.
    #[must_use]
    pub fn socket(&self) -> PathBuf {
        self.directory.path().join("sensor.sock")
    }

    /// What `sensor WORDS --json` says.
    ///
    /// # Errors
    /// If the command fails or its answer is not JSON.
    pub fn ask_json(&self, words: &[&str]) -> Result<Value> {
        self.ask(&[words, &["--json"]].concat())
    }

    /// Where it keeps its state and its audit.
    #[must_use]
    pub fn state_directory(&self) -> PathBuf {
        self.directory.path().join("state")
    }

    fn ask(&self, words: &[&str]) -> Result<Value> {
        let text = output(self.netns.command(&self.binary).args(words).arg("--socket").arg(self.socket()))?;
        serde_json::from_str(&text).with_context(|| format!("parse the answer of `sensor {}`", words.join(" ")))
    }

    fn wait_until_ready(&self) -> Result<()> {
        let deadline = Instant::now() + START_LIMIT;
        while Instant::now() < deadline {
            if !self.guard.is_running() {
                bail!("the agent ended at its start; its log:\n{}", self.log());
            }
            let says = !self.guard.has_log() || self.log().contains("ready");
            if says && UnixStream::connect(self.socket()).is_ok() && self.metrics().is_ok() {
                return Ok(());
            }
            std::thread::sleep(Duration::from_millis(25));
        }
        bail!("the agent is not ready after {START_LIMIT:?}; its log:\n{}", self.log())
    }
}

/// One scrape.
#[derive(Clone, Debug)]
pub struct Metrics(String);

impl Metrics {
    /// The whole text.
    #[must_use]
    pub fn text(&self) -> &str {
        &self.0
    }

    /// Sum over the series of `name` that carry all of `labels` (name and value); 0 without any.
    #[must_use]
    pub fn sum(&self, name: &str, labels: &[(&str, &str)]) -> f64 {
        let wanted: Vec<String> = labels.iter().map(|(label, value)| format!("{label}=\"{value}\"")).collect();
        let value = |line: &str| -> Option<f64> {
            let rest = line.strip_prefix(name)?;
            let (labels, value) = match rest.strip_prefix('{') {
                Some(inner) => inner.rsplit_once('}')?,
                None => ("", rest.strip_prefix(' ')?),
            };
            let has = |pair: &String| labels.split(',').any(|label| label == pair);
            wanted.iter().all(has).then(|| value.split_whitespace().next()?.parse().ok())?
        };
        // `sum()` of no floats is -0.0, which is shown as such.
        self.0.lines().filter_map(value).fold(0.0, |sum, value| sum + value)
    }
}

/// The `sensor` binary: `SENSOR_BIN`, else beside the running program (`target/<profile>`), else the workspace's
/// `target/release`.
///
/// # Errors
/// If there is none; the text says how to build it.
pub fn binary() -> Result<PathBuf> {
    if let Some(path) = std::env::var_os("SENSOR_BIN") {
        let path = PathBuf::from(path);
        return std::path::absolute(&path)
            .ok()
            .filter(|path| path.is_file())
            .with_context(|| format!("SENSOR_BIN names {}, which is no file", path.display()));
    }
    let own = std::env::current_exe().context("find the running program")?;
    // Tests run in target/<profile>/deps, programs in target/<profile>.
    let beside = own.ancestors().skip(1).take(2).map(|directory| directory.join("sensor"));
    let release = workspace().join("target/release/sensor");
    beside.chain([release]).find(|path| path.is_file()).context(
        "there is no `sensor` binary: build it with `cargo build --release -p sensor`, or set SENSOR_BIN to one",
    )
}

/// The workspace's root, where the shipped model and configuration are.
#[must_use]
pub fn workspace() -> &'static Path {
    let tests = Path::new(env!("CARGO_MANIFEST_DIR"));
    tests.parent().unwrap_or(tests)
}

#[cfg(test)]
mod tests {
    use super::Metrics;

    #[test]
    fn sums_only_the_series_that_carry_the_labels() {
        let text = "# TYPE a counter\na_total{x=\"1\",y=\"d\"} 3\na_total{x=\"2\",y=\"d\"} 4\na_total{x=\"2\",y=\"p\"} 5\na_total_b 9\nplain 7\n";
        let metrics = Metrics(text.to_owned());
        assert_eq!(metrics.sum("a_total", &[("y", "d")]), 7.0);
        assert_eq!(metrics.sum("a_total", &[]), 12.0);
        assert_eq!(metrics.sum("plain", &[]), 7.0);
        assert_eq!(metrics.sum("none", &[]).to_string(), "0", "not -0");
    }
}
