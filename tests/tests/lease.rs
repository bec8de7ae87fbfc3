//! Fail open: an agent that is killed, or that hangs, while it drops a flood. The flood's packets must arrive at the
//! receiver again within the lease, and nothing of a dead agent may be in the way of the next one. Needs root.

use std::io::Write as _;
use std::time::{Duration, Instant};

use rustix::process::Signal;
use sensor_tests::agent::Agent;
use sensor_tests::attacks::{Attack, RunningAttack};
use sensor_tests::cgroup::MemoryGroup;
use sensor_tests::checks::{
    Must as _, assert_clean, count, dropped_flood, has_xdp, shipped_model, wait_for, wait_until_dropped,
};
use sensor_tests::clients::ping;
use sensor_tests::counters::Received;
use sensor_tests::stop::Stop;
use sensor_tests::streams::{Media, SINK_PORT};
use sensor_tests::topology::{EDGE_V4, HostSpec, Lab, LabSpec, UPLINK};
use tempfile::TempDir;

const LEASE: Duration = Duration::from_secs(1);
/// What a loaded machine may take beyond the lease.
const MARGIN: Duration = Duration::from_secs(1);

struct Scene {
    lab: Lab,
    _media: Media,
    configuration: tempfile::NamedTempFile,
}

impl Scene {
    fn build() -> Self {
        let host = HostSpec::default();
        let lab = Lab::build(&LabSpec { clients: vec![host.clone()], attackers: vec![host], ..LabSpec::default() })
            .must("build the hosts");
        let _media = Media::start(&lab.edge.netns).must("bind the UDP ports");
        let mut configuration = tempfile::NamedTempFile::new().map_err(Into::into).must("make a configuration");
        let text = format!("mode = \"enforce\"\n[agent]\nlease = \"{}s\"\n", LEASE.as_secs());
        configuration.write_all(text.as_bytes()).map_err(Into::into).must("write the configuration");
        Self { lab, _media, configuration }
    }

    /// An agent with its socket in `directory`.
    fn agent(&self, directory: TempDir) -> Agent {
        let (path, model) = (self.configuration.path().to_string_lossy(), shipped_model());
        let args = ["-i", UPLINK, "--config", &path, "--model", &model];
        Agent::start_in(directory, &self.lab.edge.netns, &args).must("start the agent")
    }

    /// A flood that `agent` drops.
    fn flood(&self, agent: &Agent, sport: u16) -> RunningAttack {
        dropped_flood(agent, &self.lab.attackers[0], sport)
    }

    fn received(&self) -> Received<'_> {
        let source = self.lab.attackers[0].v4[0].to_string();
        Received::count(&self.lab.edge.netns, &[("flood", &source)]).must("count what is received")
    }
}

fn directory() -> TempDir {
    TempDir::new().map_err(Into::into).must("make the agent's directory")
}

#[test]
fn after_sigkill_traffic_flows_and_a_new_agent_takes_over() {
    let scene = Scene::build();
    let edge = &scene.lab.edge.netns;
    let received = scene.received();
    let agent = scene.agent(directory());
    let flood = scene.flood(&agent, 4444);
    wait_until_dropped(&received);
    assert!(agent.is_running() && flood.is_running());
    let before = count(&received);
    agent.kill(Signal::KILL).must("kill the agent");
    wait_for("the flood arrives again", LEASE + MARGIN, || count(&received) > before + 20);
    wait_for("the kernel has cleared the agent away", Duration::from_secs(3), || !agent.is_running());
    assert_clean(edge, UPLINK);
    ping(&scene.lab.clients[0].netns, &["-c", "3", "-i", "0.05", &EDGE_V4.to_string()], &Stop::new())
        .must("ping past a killed agent");

    let socket = agent.socket();
    assert!(socket.exists(), "a killed agent leaves its socket, which the next start must cope with");
    let next = scene.agent(agent.into_directory().must("have the directory"));
    drop(flood);
    let flood = scene.flood(&next, 4454);
    wait_until_dropped(&received);
    assert!(flood.is_running());
    next.stop().must("stop the new agent");
    assert_clean(edge, UPLINK);
}

#[test]
fn while_the_agent_hangs_traffic_flows_after_the_lease() {
    let scene = Scene::build();
    let edge = &scene.lab.edge.netns;
    let received = scene.received();
    let agent = scene.agent(directory());
    let flood = scene.flood(&agent, 4444);
    wait_until_dropped(&received);
    let before = count(&received);
    agent.kill(Signal::STOP).must("stop the agent in its tracks");
    let held = Instant::now();
    wait_for("the flood arrives again", LEASE + MARGIN, || count(&received) > before + 20);
    let open = held.elapsed();
    assert!(open > LEASE / 2, "verdicts hold while the lease runs, but packets came after {open:?}");
    assert!(has_xdp(edge, UPLINK), "a hanging agent's programs stay attached");
    let at = count(&received);
    wait_for("traffic keeps flowing", Duration::from_secs(2), || count(&received) > at + 200);

    agent.kill(Signal::CONT).must("let the agent go on");
    wait_for("the lease runs again", Duration::from_secs(3), || {
        agent.status().is_ok_and(|status| status["lease"]["state"] == "active")
    });
    // Another flow: what came through meanwhile may have changed the model's mind about the first.
    drop(flood);
    let flood = scene.flood(&agent, 4454);
    wait_until_dropped(&received);
    assert!(flood.is_running());
    wait_for("the packets let through are counted", Duration::from_secs(3), || {
        agent.metrics().must("scrape").sum("sensor_lease_expired_packets_total", &[]) > 200.0
    });
    agent.stop().must("stop the agent");
    assert_clean(edge, UPLINK);
}

#[test]
fn out_of_memory_is_a_kill_like_any_other() {
    let scene = Scene::build();
    let received = scene.received();
    let agent = scene.agent(directory());
    let flood = scene.flood(&agent, 4444);
    wait_until_dropped(&received);
    // New flows, whose list takes more memory than there is.
    let attack = Attack::packet_flood(100, &format!("-2 --rand-source -s 1024 -p {SINK_PORT}"));
    let attacker = &scene.lab.attackers[0];
    let crowd = attack.start(&attacker.netns, attacker.v4[0], Duration::from_secs(20), None).must("start the crowd");
    wait_for("the table fills", Duration::from_secs(15), || {
        agent.status().is_ok_and(|status| status["table"]["occupancy"].as_u64().is_some_and(|used| used > 20_000))
    });
    drop(crowd);
    let group = MemoryGroup::new().must("make a memory group");
    group.add(agent.pid()).must("move the agent into it");
    group.limit(1 << 20).must("leave it little memory");
    let before = count(&received);
    let asked = agent.flows();
    let died = Instant::now();
    assert!(asked.is_err(), "the agent had enough memory for its answer");
    wait_for("it is killed", Duration::from_secs(5), || !agent.is_running());
    assert_eq!(group.killed().must("ask what was killed"), 1, "{}", agent.log());
    wait_for("the flood arrives again", LEASE + MARGIN, || count(&received) > before + 20);
    eprintln!("out of memory: traffic flowed within {:?}", died.elapsed());
    drop(flood);
    assert_clean(&scene.lab.edge.netns, UPLINK);
}
