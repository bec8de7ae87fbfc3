//! The hosts, the agent's files on a small disk, and the times in which what is blocked may pass.

use std::path::PathBuf;
use std::process::Command;
use std::sync::Arc;
use std::sync::atomic::AtomicU32;
use std::time::{Duration, Instant};

use sensor::bpf::balance::{Balance, Sample, seen};
use sensor_tests::attacks::{Attack, RunningAttack};
use sensor_tests::checks::{Must as _, shipped_model};
use sensor_tests::pins::PinMount;
use sensor_tests::process::output;
use sensor_tests::topology::{HostSpec, Lab, LabSpec, UPLINK};
use tempfile::TempDir;

use super::agent::Agent;
use super::probes::{Blocked, Clients, Count, NEW, Stream, serve};

pub(super) const SERVICE: u16 = 8080;
const BLOCKED: u16 = 7001;
const SPARED: u16 = 7002;
/// Longer than an agent takes to start on a busy machine, so that a killed one is replaced in time.
const LEASE: Duration = Duration::from_secs(30);
/// What a thread that notes a time may be late.
const LATE: Duration = Duration::from_millis(500);

pub(super) struct Scene {
    pub(super) lab: Lab,
    pub(super) mount: PinMount,
    /// Of the agent; `state` in it is a disk of its own.
    pub(super) folder: TempDir,
    pub(super) agent: Option<Agent>,
    begun: Instant,
    exposed: Vec<(Instant, Instant)>,
    /// When there was a flood.
    pub(super) floods: Vec<(Instant, Instant)>,
    /// Times that programs came onto the uplink.
    pub(super) attached: u64,
    /// Number of the next client's address.
    next: Arc<AtomicU32>,
    clients: Option<Clients>,
    blocked: Option<Stream>,
    spared: Option<Stream>,
}

impl Scene {
    pub(super) fn build() -> Scene {
        let host = HostSpec::default();
        let spec = LabSpec { clients: vec![host.clone(); 2], attackers: vec![host; 2], ..LabSpec::default() };
        let lab = Lab::build(&spec).must("build the hosts");
        // Somewhere for answers to sources that are not there, as a host on the internet has it.
        for words in ["neigh add 198.18.0.254 lladdr 02:00:00:00:00:fe dev eth0", "route add default via 198.18.0.254"]
        {
            lab.edge.netns.ip(words).must("a default route");
        }
        // All of the newcomers' network is at one host.
        lab.clients[0].netns.ip(&format!("route add local {NEW}/16 dev lo")).must("many addresses");
        let through = lab.clients[0].v4[0];
        lab.edge.netns.ip(&format!("route add {NEW}/16 via {through} dev {UPLINK}")).must("a route to them");
        serve(&lab.edge.netns, SERVICE);
        let folder = TempDir::with_prefix("sensor-chaos-").map_err(Into::into).must("make a directory");
        let state = folder.path().join("state");
        std::fs::create_dir(&state).map_err(Into::into).must("make a directory");
        output(Command::new("mount").args(["-t", "tmpfs", "-o", "size=4m", "tmpfs"]).arg(&state)).must("mount a disk");
        let settings = format!("mode = \"enforce\"\n[agent]\nlease = \"{}s\"\n", LEASE.as_secs());
        std::fs::write(folder.path().join("sensor.toml"), settings).map_err(Into::into).must("write the settings");
        let mount = PinMount::new().must("mount a BPF file system");
        Scene {
            lab,
            mount,
            folder,
            agent: None,
            begun: Instant::now(),
            exposed: Vec::new(),
            floods: Vec::new(),
            attached: 0,
            next: Arc::new(AtomicU32::new(0)),
            clients: None,
            blocked: None,
            spared: None,
        }
    }

    pub(super) fn path(&self, name: &str) -> String {
        self.folder.path().join(name).to_string_lossy().into_owned()
    }

    /// First-time clients while a flood goes on and there is no agent.
    pub(super) fn clients_without_agent(&self) -> Count {
        let flood = self.flood(Duration::from_secs(5));
        let clients = Clients::start(&self.lab.clients[0].netns, SERVICE, &self.next);
        std::thread::sleep(Duration::from_secs(5));
        drop(flood);
        clients.end().into_iter().map(|(_, served)| served).collect()
    }

    /// SYNs in the name of others, to the service.
    pub(super) fn flood(&self, lasts: Duration) -> RunningAttack {
        let attack = Attack::packet_flood(100, &format!("-S --rand-source -p {SERVICE}"));
        let attacker = &self.lab.attackers[1];
        attack.start(&attacker.netns, attacker.v4[0], lasts, None).must("start the flood")
    }

    /// Another agent.
    pub(super) fn agent(&self, more: &[&str]) -> Agent {
        let (config, model, pins) = (self.path("sensor.toml"), shipped_model(), self.mount.path());
        let (pins, state) = (pins.to_string_lossy().into_owned(), self.path("state"));
        let args = ["-i", UPLINK, "-i", "churn*", "--config", &config, "--model", &model, "--pins", &pins];
        let args = [&args[..], &["--state-dir", &state, "--metrics-listen", ""], more].concat();
        Agent::start(&self.lab.edge.netns, &self.path("socket"), &args)
    }

    /// The first agent, its verdicts, and the streams that are watched.
    pub(super) fn begin(&mut self) {
        let agent = self.agent(&[]);
        self.attached = 1;
        let address = |host: usize| self.lab.clients[host].v4[0].to_string();
        agent.must_ask(&["verdicts", "add", "drop", &self.lab.attackers[0].v4[0].to_string(), "--for", "24h"]);
        // The verdict first: none is taken on who is on the list.
        agent.must_ask(&["verdicts", "add", "drop", &address(1), "--for", "24h"]);
        agent.must_ask(&["allow", "add", &address(1)]);
        self.agent = Some(agent);
        std::thread::sleep(LATE);
        let edge = &self.lab.edge.netns;
        let stream = |host: &sensor_tests::topology::Host, port| Stream::start((&host.netns, host.v4[0]), edge, port);
        self.begun = Instant::now();
        self.blocked = Some(stream(&self.lab.attackers[0], BLOCKED));
        self.spared = Some(stream(&self.lab.clients[1], SPARED));
        self.clients = Some(Clients::start(&self.lab.clients[0].netns, SERVICE, &self.next));
    }

    /// From `since` until now nobody held the verdicts.
    pub(super) fn exposed_since(&mut self, since: Instant) {
        self.exposed.push((since, Instant::now() + LATE));
    }

    /// The agent, which is there between two deeds.
    pub(super) fn now(&self) -> &Agent {
        self.agent.as_ref().expect("there is an agent")
    }

    /// It lives, and has not panicked; its memory.
    pub(super) fn check(&self) -> u64 {
        self.now().check()
    }

    /// Stops the streams; clients served in floods and between them, spared and blocked datagrams.
    pub(super) fn end(&mut self) -> ([Count; 2], Count, Blocked) {
        let visits = self.clients.take().expect("they run").end();
        let (spared, _) = self.spared.take().expect("it runs").end();
        let (count, arrived) = self.blocked.take().expect("it runs").end();
        let within = |times: &[(Instant, Instant)], at: &Instant| times.iter().any(|(from, to)| from <= at && at <= to);
        let wrong = arrived.iter().filter(|at| !within(&self.exposed, at)).map(|at| *at - self.begun).collect();
        let clients = [true, false].map(|flood| {
            let visits = visits.iter().filter(|(at, _)| within(&self.floods, at) == flood);
            visits.map(|(_, served)| *served).collect()
        });
        (clients, spared, Blocked { count, wrong })
    }

    /// A driver begins anew for each program that comes or goes; one packet can be under way then.
    pub(super) fn may_be_lost(&self) -> u64 {
        2 * self.attached
    }

    /// All that was seen on the uplink is accounted for.
    pub(super) fn balance_is_exact(&self) {
        let path = self.mount.path();
        let balance = self.lab.edge.netns.within(|| Balance::open(&path)).must("enter the edge").must("open the maps");
        let begun = Instant::now();
        loop {
            let sample = balance.sample().must("read the maps").filter(Sample::is_still);
            if sample.as_ref().is_some_and(|sample| sample.at_most() == seen(&sample.counters[0])) {
                return;
            }
            assert!(begun.elapsed() < Duration::from_secs(30), "seen and accounted for never agree: {sample:#?}");
            std::thread::sleep(Duration::from_millis(50));
        }
    }

    pub(super) fn stop(&mut self) {
        let agent = self.agent.take().expect("there is an agent");
        agent.signal(rustix::process::Signal::TERM);
        agent.ends(true);
    }

    pub(super) fn pins(&self) -> Option<Vec<String>> {
        self.mount.pins()
    }

    /// Where the disk is.
    pub(super) fn disk(&self) -> PathBuf {
        self.folder.path().join("state")
    }
}

impl Drop for Scene {
    fn drop(&mut self) {
        self.agent = None;
        if let Err(error) = output(Command::new("umount").arg("-l").arg(self.disk())) {
            eprintln!("unmount the disk: {error:#}");
        }
    }
}
