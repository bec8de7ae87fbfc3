//! The command line: parses it, builds the [`Config`], calls the rest, and turns errors into one line.
//!
//! Exit codes: 0 done, 1 failed (one line on standard error says why), 2 the command line is wrong.

mod enforce;
mod extract;
mod model;
mod print;
mod replay;
mod stdout;
mod support;

use std::ffi::OsString;
use std::future::Future;
use std::io::Write as _;
use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::time::Duration;

use anyhow::{Context, Result, anyhow};
use clap::{Args, CommandFactory, Parser, Subcommand};

use crate::agent::Takeover;
use crate::bpf::probe::{self, InterfaceCapabilities, links};
use crate::config::{self, BpfLog, Config, LogFormat, Mode, Override, Source, XdpMode, environment};
use crate::interfaces::{List, doubled};
use crate::replay::View;
use crate::view::SortKey;
use crate::{control, doctor, logging, service, store};
use print::Format;
use stdout::say;

/// Watches the flows of a host's interfaces, scores them with a model, and acts on the scores.
#[derive(Debug, Parser)]
#[command(name = "sensor", version, max_term_width = 100)]
struct Cli {
    #[command(subcommand)]
    command: Command,
}

#[derive(Debug, Subcommand)]
enum Command {
    /// Run the agent (as root). SIGINT and SIGTERM stop it and detach everything; SIGUSR2 ends it and leaves all to the next
    Run {
        /// Take over maps and programs of an agent that runs or was killed (needs pins). "compatible": or fail if they do
        /// not fit this version and configuration; "always": start anew then
        #[arg(long, value_enum, value_name = "WHEN", num_args = 0..=1, require_equals = true, default_missing_value = "compatible")]
        takeover: Option<Takeover>,
        #[command(flatten)]
        settings: Settings,
    },
    /// Take off the programs that an agent which is gone left attached, and its pins
    Detach {
        /// Directory of the pins
        #[arg(long, value_name = "DIR", default_value_os_t = Config::default().agent.pins.unwrap_or_default())]
        pins: PathBuf,
    },
    /// Show the largest flows of the running agent
    Flows {
        #[command(flatten)]
        socket: Socket,
        /// Order, largest first
        #[arg(long, value_enum, default_value_t)]
        sort: SortKey,
        /// At most this many, 0 = all [default: 50, with --json all]
        #[arg(long, value_name = "N")]
        limit: Option<usize>,
        /// One JSON array
        #[arg(long)]
        json: bool,
    },
    /// Show the state of the running agent
    Status {
        #[command(flatten)]
        socket: Socket,
        /// One JSON object
        #[arg(long)]
        json: bool,
    },
    /// List, show, add and take back verdicts
    Verdicts {
        #[command(subcommand)]
        command: enforce::VerdictsCommand,
    },
    /// List and change what is never dropped
    Allow {
        #[command(subcommand)]
        command: enforce::AllowCommand,
    },
    /// Show the mode of the running agent, or change it; it holds over restarts, until the configuration's mode changes
    Mode {
        /// The new mode
        #[arg(value_enum)]
        mode: Option<Mode>,
        #[command(flatten)]
        socket: Socket,
        /// One JSON object
        #[arg(long)]
        json: bool,
    },
    /// Show why the circuit breaker is open, or close it
    Breaker {
        /// What to do with it
        #[arg(value_enum)]
        command: Option<enforce::BreakerCommand>,
        #[command(flatten)]
        socket: Socket,
        /// One JSON object
        #[arg(long, global = true)]
        json: bool,
    },
    /// Say what this kernel and its interfaces can do, and how to get what is missing
    Doctor {
        /// Interface to look at, or a pattern; may be repeated [default: that of the default route]
        #[arg(short, long = "interface", value_name = "IFACE")]
        interfaces: Vec<String>,
        /// One JSON object
        #[arg(long)]
        json: bool,
    },
    /// Work with model files
    Model {
        #[command(subcommand)]
        command: model::ModelCommand,
    },
    /// Turn packet captures into feature vectors, a row a flow; needs no privileges
    Extract(Box<extract::Extract>),
    /// Score the flows of packet captures with a model, a row a look, and say what would be done; needs no privileges
    Replay(replay::Replay),
    /// List the features that a model can be given, or the columns of another view of `extract`
    Features {
        /// Columns of this view instead: also cicflowmeter, nfstream
        #[arg(long, value_enum, default_value_t)]
        view: View,
        /// Form of the list
        #[arg(long, value_enum, default_value_t)]
        format: Format,
        /// These features only, in this order; the hash is then that of a model of theirs
        #[arg(long, value_delimiter = ',', value_name = "NAMES")]
        of: Vec<String>,
    },
    /// List the metrics
    Metrics {
        /// Form of the list
        #[arg(long, value_enum, default_value_t)]
        format: Format,
    },
    /// Print the configuration that `run` would use with the same flags, or check it
    #[command(args_conflicts_with_subcommands = true)]
    Config {
        #[command(subcommand)]
        command: Option<ConfigCommand>,
        /// Print the default file, with its comments
        #[arg(long)]
        default: bool,
        #[command(flatten)]
        settings: Box<Settings>,
    },
    /// Have the running agent read its configuration file again; a wrong one changes nothing, and the exit status is 1
    Reload {
        #[command(flatten)]
        socket: Socket,
        /// One JSON object
        #[arg(long)]
        json: bool,
    },
    /// Write one archive with what others need to see what is wrong: configuration, status, metrics, log, versions
    Support(support::Support),
}

#[derive(Debug, Subcommand)]
enum ConfigCommand {
    /// Say nothing if the configuration is right; else say what is wrong, as FILE:LINE:COLUMN, with exit status 1. Without
    /// --config, /etc/sensor/sensor.toml is checked if it is there
    Check {
        #[command(flatten)]
        settings: Box<Settings>,
    },
}

#[derive(Debug, Args)]
struct Socket {
    /// Control socket of the agent
    #[arg(
        long,
        global = true,
        value_name = "PATH",
        env = "SENSOR_AGENT_SOCKET",
        hide_env_values = true,
        default_value_os_t = Config::default().agent.socket
    )]
    socket: PathBuf,
}

/// Settings that win over the configuration file.
#[derive(Debug, Args)]
struct Settings {
    /// Interface to watch, or a pattern such as 'veth*'; '!veth-skip*' takes out of patterns. May be repeated [default: the
    /// interface of the default route]
    #[arg(short, long = "interface", value_name = "IFACE")]
    interfaces: Vec<String>,
    /// Configuration file; `sensor config --default` prints one
    #[arg(short, long, value_name = "FILE")]
    config: Option<PathBuf>,
    /// ONNX model; "" for none
    #[arg(long, value_name = "FILE")]
    model: Option<OsString>,
    /// What is done with verdicts
    #[arg(long, value_enum)]
    mode: Option<Mode>,
    /// Address of /metrics and /healthz; "" for none
    #[arg(long, value_name = "ADDR:PORT")]
    metrics_listen: Option<String>,
    /// Control socket
    #[arg(long, value_name = "PATH")]
    socket: Option<PathBuf>,
    /// Directory of the pins, in a BPF file system; "" for none
    #[arg(long, value_name = "DIR")]
    pins: Option<OsString>,
    /// Where verdicts and the never-drop list survive a restart; "" for nowhere
    #[arg(long, value_name = "PATH")]
    state_dir: Option<OsString>,
    /// How XDP is attached
    #[arg(long, value_enum)]
    xdp_mode: Option<XdpMode>,
    /// Time between two polls, as in 100ms
    #[arg(long, value_name = "DUR", value_parser = humantime::parse_duration)]
    poll_interval: Option<Duration>,
    /// Form of the log lines
    #[arg(long, value_enum)]
    log_format: Option<LogFormat>,
    /// Log level of the kernel programs
    #[arg(long, value_enum, value_name = "LEVEL")]
    bpf_log: Option<BpfLog>,
    /// Print one line per second on standard output
    #[arg(long)]
    summary: bool,
}

impl Settings {
    /// Where the settings come from: the file, the environment of this process, these flags.
    fn source(self) -> Result<Source> {
        let Settings {
            interfaces,
            config: file,
            model,
            mode,
            metrics_listen,
            socket,
            pins,
            state_dir,
            xdp_mode,
            poll_interval,
            log_format,
            bpf_log,
            summary,
        } = self;
        let mut flags = Vec::new();
        let mut set = |flag: &str, setting: &str, value: Option<toml::Value>| {
            let one = |value| Override { origin: flag.to_owned(), setting: setting.to_owned(), value };
            flags.extend(value.map(one));
        };
        let text = |flag: &str, text: OsString| match text.into_string() {
            Ok(text) => Ok(toml::Value::String(text)),
            Err(text) => Err(anyhow!("{flag} {}: this is not UTF-8", text.display())),
        };
        // The agent does not change its directory, but the configuration wants to be read without knowing it.
        let absolute = |flag: &str, path: PathBuf| match path.as_os_str().is_empty() {
            true => Ok(toml::Value::String(String::new())),
            false => text(flag, std::path::absolute(path).with_context(|| flag.to_owned())?.into()),
        };
        if let Some(listen) = metrics_listen.as_deref().filter(|listen| !listen.is_empty()) {
            listen.parse::<SocketAddr>().with_context(|| {
                format!("--metrics-listen \"{listen}\" is not an address and port such as 127.0.0.1:9469")
            })?;
        }
        let name = |name: &str| toml::Value::String(name.to_owned());
        let list = interfaces.iter().map(|interface| name(interface)).collect();
        set("--interface", "interfaces", (!interfaces.is_empty()).then_some(toml::Value::Array(list)));
        set("--model", "model.path", model.map(|path| text("--model", path)).transpose()?);
        set("--mode", "mode", mode.map(|mode| name(mode.name())));
        set("--metrics-listen", "metrics.listen", metrics_listen.map(|listen| name(&listen)));
        set("--socket", "agent.socket", socket.map(|path| absolute("--socket", path)).transpose()?);
        set("--pins", "agent.pins", pins.map(|path| text("--pins", path)).transpose()?);
        set("--state-dir", "agent.state_dir", state_dir.map(|path| absolute("--state-dir", path.into())).transpose()?);
        set("--xdp-mode", "kernel.xdp_mode", xdp_mode.map(|mode| name(mode.name())));
        let interval = poll_interval.map(|interval| name(&humantime::format_duration(interval).to_string()));
        set("--poll-interval", "agent.poll_interval", interval);
        set("--log-format", "log.format", log_format.map(|format| name(format.name())));
        set("--bpf-log", "kernel.bpf_log", bpf_log.map(|level| name(level.name())));
        set("--summary", "log.summary", summary.then_some(toml::Value::Boolean(true)));
        let file = file.map(std::path::absolute).transpose().context("--config")?;
        Ok(Source { file, environment: environment::of_process(), flags })
    }
}

/// The command line as it is declared, for what is generated from it (examples/pages.rs).
pub fn command() -> clap::Command {
    Cli::command()
}

/// Runs the command line of this process.
pub fn main() -> ExitCode {
    let command = match Cli::try_parse() {
        Ok(Cli { command }) => command,
        // Help and version among them.
        Err(text) => match stdout::unless_closed(text.print()) {
            Ok(()) => return ExitCode::from(u8::try_from(text.exit_code()).unwrap_or(1)),
            Err(error) => return failed(&error),
        },
    };
    match dispatch(command) {
        Ok(code) => code,
        Err(error) if stdout::is_closed(&error) => ExitCode::SUCCESS,
        Err(error) => failed(&error),
    }
}

fn failed(error: &anyhow::Error) -> ExitCode {
    service::failed(error);
    logging::complain(&format!("sensor: error: {error:#}"));
    ExitCode::FAILURE
}

fn dispatch(command: Command) -> Result<ExitCode> {
    match command {
        Command::Run { takeover, settings } => {
            let source = settings.source()?;
            let config = source.resolve()?;
            let logger = logging::init(&config.log, config.kernel.bpf_log)?;
            if source.file.is_none() && Path::new(config::SYSTEM_FILE).exists() {
                tracing::warn!("{0} is not read: name it with --config {0}", config::SYSTEM_FILE);
            }
            let result = crate::agent::run(config, source, logger.clone(), takeover);
            logger.flush();
            result?;
        }
        Command::Detach { pins } => {
            let left = crate::agent::detach(&pins)?;
            say(&match left {
                true => format!("took off what an agent had left at {}\n", pins.display()),
                false => format!("nothing to take off is to be seen at {}\n", pins.display()),
            })?;
        }
        Command::Flows { socket, sort, limit, json } => {
            let limit = limit.unwrap_or(if json { 0 } else { 50 });
            let flows = wait(control::get_flows(&socket.socket, sort, limit))?;
            say(&if json { print::json(&flows)? } else { print::flows(&flows) })?;
        }
        Command::Status { socket, json } => {
            let status = wait(control::get_status(&socket.socket))?;
            say(&if json { print::json(&status)? } else { print::status(&status) })?;
        }
        Command::Verdicts { command } => return enforce::verdicts(command),
        Command::Allow { command } => return enforce::allow(command),
        Command::Mode { mode, socket, json } => return enforce::mode(mode, &socket, json),
        Command::Breaker { command, socket, json } => return enforce::breaker(command, &socket, json),
        Command::Doctor { interfaces, json } => return doctor(interfaces, json),
        Command::Model { command } => return model::run(command),
        Command::Replay(arguments) => return replay::run(arguments),
        Command::Extract(arguments) => crate::replay::extract(&arguments.options()?)?,
        Command::Features { view: View::Sensor, format, of } => say(&print::features(format, &of)?)?,
        Command::Features { view, format, of: _ } => say(&print::columns(view, format)?)?,
        Command::Metrics { format } => say(&print::metrics(format)?)?,
        Command::Config { command: Some(ConfigCommand::Check { settings }), .. } => return check(*settings),
        Command::Config { default: true, .. } => say(config::DEFAULT_FILE)?,
        Command::Config { settings, .. } => say(&settings.source()?.resolve()?.to_toml()?)?,
        Command::Reload { socket, json } => {
            let view = wait(control::reload(&socket.socket))?;
            say(&if json { print::json(&view)? } else { print::reload(&view) })?;
            return Ok(if view.is_whole() { ExitCode::SUCCESS } else { ExitCode::FAILURE });
        }
        Command::Support(arguments) => return support::run(&arguments),
    }
    Ok(ExitCode::SUCCESS)
}

/// `sensor config check`.
fn check(settings: Settings) -> Result<ExitCode> {
    let mut source = settings.source()?;
    if source.file.is_none() && Path::new(config::SYSTEM_FILE).exists() {
        source.file = Some(config::SYSTEM_FILE.into());
    }
    let Err(config::Wrong(lines)) = source.resolve() else { return Ok(ExitCode::SUCCESS) };
    let mut stderr = std::io::stderr();
    for line in lines {
        // The exit status says it, too.
        let _ = writeln!(stderr, "{line}");
    }
    Ok(ExitCode::FAILURE)
}

fn doctor(interfaces: Vec<String>, json: bool) -> Result<ExitCode> {
    let list = List::parse(&interfaces)?;
    let names: Vec<Result<String>> = match (list.names(), list.patterns()) {
        ([], []) => vec![probe::default_interface()],
        (names, []) => names.iter().cloned().map(Ok).collect(),
        (names, _) => {
            let links = links::list()?;
            let matched = list.select(links.values()).into_iter().map(|link| &link.name);
            names.iter().chain(matched.filter(|name| !list.is_named(name))).cloned().map(Ok).collect()
        }
    };
    let (mut found, mut errors) = (Vec::<InterfaceCapabilities>::new(), Vec::new());
    for name in names {
        match name.and_then(|name| probe::interface(&name)) {
            Ok(interface) => found.push(interface),
            Err(error) => errors.push(format!("{error:#}")),
        }
    }
    let links = links::list().unwrap_or_default();
    let watched: Vec<_> = found.iter().filter_map(|interface| links.get(&interface.ifindex)).collect();
    let pairs = doubled(&watched).into_iter().map(|(upper, lower)| (upper.name.clone(), lower.name.clone()));
    let pairs: Vec<_> = pairs.collect();
    let mut report = doctor::examine(probe::kernel(), found, errors);
    doctor::judge_pairs(&mut report, &pairs);
    let directory = Config::default().agent.state_dir;
    doctor::judge_state(&mut report, directory.and_then(|directory| store::doubt_in(&directory)));
    say(&if json { print::json(&report)? } else { doctor::render(&report) })?;
    Ok(if report.can_run { ExitCode::SUCCESS } else { ExitCode::FAILURE })
}

fn wait<T>(future: impl Future<Output = Result<T>>) -> Result<T> {
    tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()
        .context("cannot start the client's runtime")?
        .block_on(future)
}

#[cfg(test)]
mod tests;
