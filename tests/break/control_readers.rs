//! Members of `agent.socket_group` that ask for all flows, over and over, from 32 connections: the agent's memory stays
//! bounded, its polls go on, a blocked client stays blocked, and root is answered at once.

use std::net::UdpSocket;
use std::path::Path;
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use sensor_tests::agent::Agent;
use sensor_tests::checks::{Must as _, wait_for};
use sensor_tests::process::{ChildGuard, output};
use sensor_tests::topology::{EDGE_V4, HostSpec, Lab, LabSpec, UPLINK};
use tempfile::TempDir;

const NOBODY: &str = "65533";
const GROUP: &str = "65432";
const READERS: usize = 32;
const FLOWS: u16 = 40_000;
const LASTS: Duration = Duration::from_secs(6);
/// What the agent may take more, MiB: the answers that are in memory at a time. All flows in each of 32 answers took
/// 1.2 GB.
const MORE_MIB: u64 = 200;
/// How long root may wait, on a machine that runs other tests, and every program without optimisation.
const ANSWERED: Duration = Duration::from_secs(3);

/// Asks as a member of the group, many times over one connection.
fn reader(socket: &Path) -> ChildGuard {
    let mut command = Command::new("setpriv");
    command.args(["--reuid", NOBODY, "--regid", GROUP, "--clear-groups", "curl", "-s", "--max-time", "60"]);
    command.arg("--unix-socket").arg(socket);
    for _ in 0..200 {
        command.args(["-o", "/dev/null", "http://localhost/v1/flows?limit=1000000"]);
    }
    command.stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::null());
    ChildGuard::spawn_with_stdio("a reader", &mut command, None).must("start a reader")
}

fn resident_mib(pid: u32) -> u64 {
    let status = std::fs::read_to_string(format!("/proc/{pid}/status")).map_err(Into::into).must("read its status");
    let line = status.lines().find_map(|line| line.strip_prefix("VmRSS:")).expect("resident memory");
    line.split_whitespace().next().and_then(|kib| kib.parse::<u64>().ok()).expect("a number") / 1024
}

fn pings(lab: &Lab) -> bool {
    let mut ping = lab.clients[1].netns.command("ping");
    output(ping.args(["-q", "-c", "1", "-W", "1", &EDGE_V4.to_string()])).is_ok()
}

fn flood(lab: &Lab) {
    let client = &lab.clients[0];
    let socket =
        client.netns.within(|| UdpSocket::bind((client.v4[0], 0))).must("enter").map_err(Into::into).must("bind");
    for port in 1..=FLOWS {
        // A full queue loses some.
        let _ = socket.send_to(b"x", (EDGE_V4, 10_000 + port));
        if port.is_multiple_of(500) {
            std::thread::sleep(Duration::from_millis(5));
        }
    }
}

fn polls(agent: &Agent) -> f64 {
    agent.metrics().must("scrape").sum("sensor_poll_seconds_count", &[])
}

#[test]
fn readers_hold_nobody_up() {
    let lab = Lab::build(&LabSpec { clients: vec![HostSpec::default(); 2], ..LabSpec::default() });
    let lab = lab.must("build the hosts");
    let folder = TempDir::with_prefix("sensor-break-").map_err(Into::into).must("make a directory");
    let config = folder.path().join("sensor.toml");
    let text = format!("mode = \"enforce\"\n[agent]\nsocket_group = \"{GROUP}\"\n");
    std::fs::write(&config, text).map_err(Into::into).must("write the configuration");
    let args = ["-i", UPLINK, "--config", &config.to_string_lossy(), "--model", ""];
    let agent = Agent::start(&lab.edge.netns, &args).must("start the agent");
    std::fs::set_permissions(agent.socket().parent().expect("a directory"), {
        use std::os::unix::fs::PermissionsExt as _;
        std::fs::Permissions::from_mode(0o755)
    })
    .map_err(Into::into)
    .must("let the group reach the socket");
    agent.ask_json(&["verdicts", "add", "drop", &lab.clients[1].v4[0].to_string(), "--for", "1h"]).must("block it");
    flood(&lab);
    wait_for("there are many flows", Duration::from_secs(20), || {
        agent.metrics().must("scrape").sum("sensor_flows_active", &[]) > f64::from(FLOWS) * 0.8
    });
    let before = resident_mib(agent.pid());
    let readers: Vec<_> = (0..READERS).map(|_| reader(&agent.socket())).collect();
    let (begun, polled) = (Instant::now(), polls(&agent));
    let (mut most, mut longest, mut asked) = (0, Duration::ZERO, 0);
    while begun.elapsed() < LASTS {
        let at = Instant::now();
        let status = agent.status().must("root is answered");
        longest = longest.max(at.elapsed());
        asked += 1;
        assert_eq!(status["lease"]["state"], "active");
        most = most.max(resident_mib(agent.pid()).saturating_sub(before));
        assert!(!pings(&lab), "a blocked client stays blocked");
    }
    // An administrator's own list, of all flows, while they go on.
    let at = Instant::now();
    let flows = agent.flows().must("root gets a list");
    let (list, seconds) = (at.elapsed(), begun.elapsed().as_secs_f64());
    let rate = (polls(&agent) - polled) / seconds;
    println!(
        "{READERS} readers of {} flows: {most} MiB more, root was answered within {longest:?} ({asked} times), all flows within \
         {list:?}, {rate:.1} polls/s",
        flows.len()
    );
    assert!(flows.len() > usize::from(FLOWS) / 2, "the pages of a list are all of it: {}", flows.len());
    let mut ids: Vec<_> = flows.iter().map(|flow| flow["id"].as_str().unwrap_or_default()).collect();
    ids.sort_unstable();
    ids.dedup();
    assert_eq!(ids.len(), flows.len(), "each once");
    assert!(most < MORE_MIB, "{most} MiB");
    assert!(longest < ANSWERED, "{longest:?}");
    assert!(rate > 3.0, "{rate} polls a second, of 10");
    drop(readers);
    agent.stop().must("stop the agent");
}
