//! Two hosts on one veth pair, the server side watched in one way: every way has a pair of its own, so that loads can
//! change from one to the other at once, without anything to be started.

use std::net::Ipv4Addr;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use rustix::process::Signal;
use sensor::bpf::attach::Attached;
use sensor::bpf::bench::{Bare, Bench};
use sensor::bpf::load::{Kernel, LoadOptions, ProgramInfo};
use sensor::config::XdpMode;
use sensor_common::cut::Cut;
use sensor_common::verdict::Action;
use sensor_tests::agent::Agent;
use sensor_tests::netns::NetNs;
use sensor_tests::process::ChildGuard;
use sensor_tests::servers::Nginx;

pub(super) const SERVER: Ipv4Addr = Ipv4Addr::new(198, 18, 0, 10);
const DEVICE: &str = "eth0";
/// What an agent has after it was stopped, to catch up before a load begins.
const SETTLE: Duration = Duration::from_millis(250);

/// What watches the interface.
#[derive(Clone, Copy, PartialEq)]
pub(super) enum Watch {
    Nothing,
    /// A native XDP program that passes everything: it takes super-packets from a veth pair as any XDP program does.
    Bare,
    Native,
    Tc,
    /// Sensor's programs in native XDP and at TC's egress, without an agent.
    Parts {
        /// Where packets are cut short.
        cut: Option<Cut>,
        /// Mode tag, with `sensor_tag`.
        tag: bool,
    },
}

pub(super) const WATCHES: [(Watch, &str); 4] =
    [(Watch::Nothing, "without"), (Watch::Bare, "bare XDP"), (Watch::Native, "native XDP"), (Watch::Tc, "TC")];

/// What the agent took so far.
#[derive(Clone, Copy, Debug, Default)]
pub(super) struct Taken {
    /// CPU seconds.
    pub(super) cpu: f64,
    pub(super) rss_mib: f64,
    /// Resident without the kernel maps that it maps, as the agent itself says.
    pub(super) own_mib: f64,
}

/// Programs that this process holds.
enum Programs {
    Bare(Bare),
    Sensor { kernel: Box<Kernel>, _attached: Attached },
}

impl Programs {
    fn parts(cut: Option<Cut>, tagging: bool) -> Result<Programs> {
        let bench = Some(Bench { floors: false, cut });
        let mut kernel = Kernel::load(&LoadOptions { bench, tagging, ..LoadOptions::default() })?;
        let mut attached = kernel.attach(DEVICE, XdpMode::Native, true)?;
        if tagging {
            kernel.set_tagging(&mut attached, true)?;
            kernel.verdicts.set_ceilings(|_| Action::Tag);
        }
        Ok(Programs::Sensor { kernel: Box::new(kernel), _attached: attached })
    }
}

pub(super) struct Pair {
    pub(super) client: NetNs,
    pub(super) server: NetNs,
    agent: Option<Agent>,
    programs: Option<Programs>,
    _nginx: Nginx,
    _iperf: ChildGuard,
}

impl Pair {
    pub(super) fn build(watch: Watch, model: &str, more: &[String]) -> Result<Pair> {
        let (client, server) = (NetNs::new("client")?, NetNs::new("server")?);
        client.ip(&format!("link add {DEVICE} type veth peer name {DEVICE} netns {}", server.name()))?;
        for (host, address) in [(&client, "198.18.0.1"), (&server, &SERVER.to_string())] {
            host.ip(&format!("addr add {address}/15 dev {DEVICE}"))?;
            host.ip(&format!("link set {DEVICE} up"))?;
        }
        // A client that opens connections by the ten thousand must not run out of ports.
        client.sysctl("net/ipv4/ip_local_port_range", "1024 65535")?;
        client.sysctl("net/ipv4/tcp_tw_reuse", "1")?;
        let nginx = Nginx::start(&server)?;
        let iperf =
            ChildGuard::spawn("iperf3", server.command("iperf3").args(["-s", "-B", &SERVER.to_string()]), None)?;
        let deadline = Instant::now() + Duration::from_secs(5);
        while client.run("iperf3", &["-c", &SERVER.to_string(), "-n", "1"]).is_err() {
            ensure!(Instant::now() < deadline, "iperf3's server does not answer");
            std::thread::sleep(Duration::from_millis(50));
        }
        let start = |mode: &str| {
            let mut words = vec!["-i", DEVICE, "--xdp-mode", mode, "--model", model];
            words.extend(more.iter().map(String::as_str));
            Agent::start(&server, &words).map(Some)
        };
        let (agent, programs) = match watch {
            Watch::Nothing => (None, None),
            Watch::Bare => (None, Some(server.within(|| Bare::attach(DEVICE).map(Programs::Bare))??)),
            Watch::Native => (start("native")?, None),
            Watch::Tc => (start("tc")?, None),
            Watch::Parts { cut, tag } => (None, Some(server.within(|| Programs::parts(cut, tag))??)),
        };
        let pair = Pair { client, server, agent, programs, _nginx: nginx, _iperf: iperf };
        pair.rest()?;
        Ok(pair)
    }

    /// Lets the agent run.
    pub(super) fn wake(&self) -> Result<()> {
        if let Some(agent) = &self.agent {
            agent.kill(Signal::CONT)?;
        }
        std::thread::sleep(SETTLE);
        Ok(())
    }

    /// Stops the agent, so that it takes nothing from the loads of other pairs. Its programs stay on the interface.
    pub(super) fn rest(&self) -> Result<()> {
        self.agent.as_ref().map_or(Ok(()), |agent| agent.kill(Signal::STOP))
    }

    /// What the kernel says of the programs, if they are held here.
    pub(super) fn programs(&self) -> Vec<ProgramInfo> {
        match &self.programs {
            Some(Programs::Bare(bare)) => bare.programs(),
            Some(Programs::Sensor { kernel, .. }) => kernel.programs(),
            None => Vec::new(),
        }
    }

    pub(super) fn taken(&self) -> Result<Option<Taken>> {
        self.agent.as_ref().map(taken).transpose()
    }

    /// Ends the agent in order, which must have seen at least so many packets.
    pub(super) fn stop(mut self, least: f64) -> Result<()> {
        let Some(agent) = self.agent.take() else { return Ok(()) };
        agent.kill(Signal::CONT)?;
        // Counters are read once a second.
        std::thread::sleep(Duration::from_millis(1200));
        let seen = agent.metrics()?.sum("sensor_packets_total", &[]);
        ensure!(seen > least, "the agent saw {seen} packets of all loads");
        agent.stop().map(drop)
    }
}

fn taken(agent: &Agent) -> Result<Taken> {
    let pid = agent.pid();
    // First: to be asked for metrics takes CPU time, too.
    let cpu = cpu_seconds(pid)?;
    let own = agent.metrics()?.sum("sensor_agent_memory_bytes", &[]);
    ensure!(own > 0.0, "the agent does not say how much memory it takes");
    Ok(Taken { cpu, rss_mib: status_mib(pid, "VmRSS")?, own_mib: own / f64::from(1 << 20) })
}

/// CPU seconds that a process took so far.
fn cpu_seconds(pid: u32) -> Result<f64> {
    let stat = std::fs::read_to_string(format!("/proc/{pid}/stat")).context("read the agent's CPU time")?;
    // The name may hold spaces; user and system time are the 12th and 13th numbers behind it, in ticks of 10 ms.
    let fields: Vec<&str> = stat.rsplit_once(')').map_or("", |(_, rest)| rest).split_whitespace().collect();
    let ticks = |index: usize| fields.get(index).and_then(|field| field.parse::<f64>().ok());
    ticks(11).zip(ticks(12)).map(|(user, system)| (user + system) / 100.0).context("no CPU times in stat")
}

/// A number of kilobytes in `/proc/<pid>/status`, as MiB.
fn status_mib(pid: u32, key: &str) -> Result<f64> {
    let status = std::fs::read_to_string(format!("/proc/{pid}/status")).context("read the agent's memory")?;
    let line = status.lines().find_map(|line| line.strip_prefix(key)?.strip_prefix(':'));
    let kib = line.and_then(|line| line.trim().strip_suffix("kB")?.trim().parse::<f64>().ok());
    Ok(kib.with_context(|| format!("no {key} in /proc/{pid}/status"))? / 1024.0)
}
