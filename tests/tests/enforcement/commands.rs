//! Enforcement by hand with real traffic: verdicts, modes and the never-drop list by command, over a restart, and what the
//! audit says of it. No model: what is dropped here was asked for. Needs root.

use std::io::Write as _;
use std::net::IpAddr;
use std::os::unix::fs::PermissionsExt as _;
use std::time::Duration;

use sensor_tests::agent::{Agent, binary};
use sensor_tests::checks::{Must as _, assert_clean, wait_for};
use sensor_tests::clients::download;
use sensor_tests::counters::Received;
use sensor_tests::netns::Ns;
use sensor_tests::process::ChildGuard;
use sensor_tests::servers::Nginx;
use sensor_tests::stop::Stop;
use sensor_tests::topology::{EDGE_V4, EDGE_V6, HostSpec, Lab, LabSpec, UPLINK};
use serde_json::Value;

const PINGS: u64 = 5;

/// Echo replies to [`PINGS`] requests, each command a new flow.
fn answered(from: &Ns, target: IpAddr) -> u64 {
    let count = PINGS.to_string();
    let args = ["-c", &count, "-i", "0.05", "-W", "0.3", "-q", &target.to_string()];
    let output = from.command("ping").args(args).output().map_err(Into::into).must("run ping");
    let text = String::from_utf8_lossy(&output.stdout).into_owned();
    let received = text.split(", ").find_map(|part| part.strip_suffix(" received")?.parse().ok());
    received.unwrap_or_else(|| panic!("ping says: {text}"))
}

struct Scene {
    lab: Lab,
}

impl Scene {
    fn build() -> Scene {
        let host = HostSpec { addresses: 2, ..HostSpec::default() };
        let lab = Lab::build(&LabSpec { clients: vec![host.clone()], attackers: vec![host], ..LabSpec::default() })
            .must("build the hosts");
        Scene { lab }
    }

    fn agent(&self, args: &[&str]) -> Agent {
        Agent::start(&self.lab.edge.netns, &[&["-i", UPLINK, "--model", ""], args].concat()).must("start the agent")
    }

    /// Replies to the attacker and to the client.
    fn answered(&self) -> [u64; 2] {
        [&self.lab.attackers[0], &self.lab.clients[0]].map(|host| answered(&host.netns, EDGE_V4.into()))
    }
}

fn id(verdict: &Value) -> String {
    verdict["id"].as_u64().expect("a number").to_string()
}

fn audit(agent: &Agent) -> Vec<Value> {
    let text = std::fs::read_to_string(agent.state_directory().join("audit.jsonl")).expect("an audit");
    text.lines().map(|line| serde_json::from_str(line).expect(line)).collect()
}

#[test]
fn verdicts_by_command_hold_in_mode_enforce_and_only_there() {
    let scene = Scene::build();
    let edge = &scene.lab.edge.netns;
    let agent = scene.agent(&[]);
    let source = scene.lab.attackers[0].v4[0].to_string();
    let ask = |words: &[&str]| agent.ask_json(words).must("ask the agent");

    // Observe: counted, and passed.
    let verdict = ask(&["verdicts", "add", "drop", &source, "--for", "2m", "--note", "by hand"]);
    assert_eq!(
        (&verdict["done"], &verdict["action"], &verdict["origin"]),
        (&"pass".into(), &"drop".into(), &"operator".into())
    );
    assert_eq!(scene.answered(), [PINGS, PINGS]);
    wait_for("what was withheld is counted", Duration::from_secs(3), || {
        ask(&["status"])["enforcement"]["withheld_packets"].as_u64() >= Some(PINGS)
    });

    // A flow that lives: its packets stop with the change of the mode, and come again with the undo.
    let received = Received::count(edge, &[("attacker", &source)]).must("count what is received");
    let count = || received.packets().must("read the counter")[0];
    let mut steady = scene.lab.attackers[0].netns.command("ping");
    steady.args(["-i", "0.01", "-q", &EDGE_V4.to_string()]);
    let steady = ChildGuard::spawn("ping", &mut steady, None).must("start a ping");
    wait_for("pings arrive", Duration::from_secs(3), || count() > 50);
    assert_eq!(ask(&["mode", "enforce"])["mode"], "enforce");
    let at = count();
    std::thread::sleep(Duration::from_millis(500));
    assert!(count() <= at + 1, "{} packets came after the mode was changed", count() - at);
    assert_eq!(scene.answered(), [0, PINGS]);
    assert_eq!(ask(&["verdicts", "show", &id(&verdict)])["done"], "drop");

    let gone = ask(&["verdicts", "remove", &id(&verdict)]);
    assert_eq!(gone.as_array().map(Vec::len), Some(1));
    let at = count();
    wait_for("the undo holds", Duration::from_secs(1), || count() > at + 10);
    assert_eq!(scene.answered(), [PINGS, PINGS]);

    // A flow alone, by its id.
    let flows = agent.flows().must("ask for the flows");
    let flow = flows
        .iter()
        .filter(|flow| flow["src"] == source.as_str())
        .max_by_key(|flow| flow["initiator_packets"].as_u64());
    let flow = flow.and_then(|flow| flow["id"].as_str()).expect("the steady flow");
    let verdict = ask(&["verdicts", "add", "drop", flow]);
    assert!(verdict["scope"].as_str().is_some_and(|scope| scope.starts_with("icmp,")), "{verdict}");
    let at = count();
    std::thread::sleep(Duration::from_millis(300));
    assert!(count() <= at + 1, "the flow is dropped");
    assert_eq!(answered(&scene.lab.attackers[0].netns, EDGE_V4.into()), PINGS, "its source's other flows are not");
    assert_eq!(ask(&["verdicts", "remove", "--all"]).as_array().map(Vec::len), Some(1));
    drop(steady);

    let events: Vec<String> =
        audit(&agent).iter().map(|line| line["event"].as_str().expect("a name").to_owned()).collect();
    let count = |event: &str| events.iter().filter(|name| *name == event).count();
    assert_eq!((count("start"), count("verdict"), count("removed"), count("mode")), (1, 2, 2, 1), "{events:?}");
    let metrics = agent.metrics().must("scrape");
    assert_eq!(metrics.sum("sensor_verdict_changes_total", &[("change", "added"), ("origin", "operator")]), 2.0);
    agent.stop().must("stop the agent");
    assert_clean(edge, UPLINK);
}

#[test]
fn the_never_drop_list_wins_and_all_survives_a_restart() {
    let scene = Scene::build();
    let agent = scene.agent(&["--mode", "enforce"]);
    let attacker = &scene.lab.attackers[0];
    let ask = |agent: &Agent, words: &[&str]| agent.ask_json(words).must("ask the agent");
    ask(&agent, &["verdicts", "add", "drop", "198.18.66.0/24", "--for", "10m"]);
    ask(&agent, &["verdicts", "add", "drop", "2001:db8::66:0/112", "--for", "10m"]);
    assert_eq!(scene.answered(), [0, PINGS]);
    assert_eq!(answered(&attacker.netns, EDGE_V6.into()), 0);

    let address = attacker.v4[0].to_string();
    ask(&agent, &["allow", "add", &address, "--note", "a test"]);
    assert_eq!(scene.answered(), [PINGS, PINGS], "allowed inside a dropped prefix");
    let refused = agent.ask_json(&["verdicts", "add", "drop", &address]).expect_err("forbidden");
    assert!(format!("{refused:#}").contains("never-drop list"), "{refused:#}");
    let refused = agent.ask_json(&["verdicts", "add", "drop", &EDGE_V4.to_string()]).expect_err("forbidden");
    assert!(format!("{refused:#}").contains("address of this host"), "{refused:#}");
    ask(&agent, &["allow", "remove", &address]);
    assert_eq!(scene.answered(), [0, PINGS]);
    ask(&agent, &["allow", "add", "2001:db8::66:0/112"]);
    assert_eq!(answered(&attacker.netns, EDGE_V6.into()), PINGS);
    ask(&agent, &["mode", "tag"]);
    assert_eq!(scene.answered(), [PINGS, PINGS]);
    ask(&agent, &["mode", "enforce"]);
    // What was answered is on disk a moment later, which these pings give it.
    assert_eq!(scene.answered(), [0, PINGS]);
    agent.kill(rustix::process::Signal::KILL).must("kill the agent");

    wait_for("the programs are gone with it", Duration::from_secs(3), || !agent.is_running());
    assert_eq!(scene.answered(), [PINGS, PINGS], "killed: open");
    let again = Agent::start_in(
        agent.into_directory().must("take the directory over"),
        &scene.lab.edge.netns,
        &["-i", UPLINK, "--model", "", "--mode", "enforce"],
    );
    let again = again.must("start the agent again");
    assert_eq!(scene.answered(), [0, PINGS], "the verdict holds again");
    assert_eq!(answered(&attacker.netns, EDGE_V6.into()), PINGS, "and so does the never-drop entry");
    let list = ask(&again, &["verdicts", "list"]);
    assert_eq!(list["total"], 1, "the one under the never-drop entry was taken back: {list}");
    ask(&again, &["verdicts", "remove", "--all"]);
    assert_eq!(scene.answered(), [PINGS, PINGS]);
    again.stop().must("stop the agent");
}

#[test]
fn a_list_of_ten_thousand_is_entered_and_ends() {
    let scene = Scene::build();
    let agent = scene.agent(&["--mode", "enforce"]);
    let mut list: String = (0..9_999u32).map(|n| format!("{}\n", std::net::Ipv4Addr::from(0xc613_0000 + n))).collect();
    list += &format!("{} # the attacker\n", scene.lab.attackers[0].v4[0]);
    let file = tempfile::NamedTempFile::new().map_err(Into::into).must("make a file");
    std::fs::write(file.path(), list).map_err(Into::into).must("write the list");
    let begun = std::time::Instant::now();
    let path = file.path().to_string_lossy().into_owned();
    let view = agent.ask_json(&["verdicts", "add", "drop", "--from-file", &path, "--for", "6s"]).must("add the list");
    let entered = begun.elapsed();
    assert_eq!((&view["added"], view["refused"].as_array().map(Vec::len)), (&10_000.into(), Some(0)), "{view}");
    assert_eq!(scene.answered(), [0, PINGS]);
    let held = || agent.metrics().must("scrape").sum("sensor_verdicts_held", &[("scope", "source")]);
    wait_for("all are counted", Duration::from_secs(3), || held() == 10_000.0);
    let gone = wait_for("all have ended", Duration::from_secs(15), || held() == 0.0);
    assert_eq!(scene.answered(), [PINGS, PINGS]);
    let metrics = agent.metrics().must("scrape");
    assert_eq!(metrics.sum("sensor_verdict_changes_total", &[("change", "expired")]), 10_000.0);
    assert_eq!(metrics.sum("sensor_verdict_errors_total", &[]), 0.0);
    assert_eq!(metrics.sum("sensor_audit_lost_lines_total", &[]), 0.0);
    eprintln!(
        "entered in {entered:?}, gone {gone:?} later; {} late polls",
        metrics.sum("sensor_poll_overruns_total", &[])
    );
    agent.stop().must("stop the agent");
}

#[test]
fn half_open_floods_are_limited_at_the_service_and_name_no_source() {
    let scene = Scene::build();
    let edge = &scene.lab.edge.netns;
    // Where there are SYN cookies, they are left to do it.
    edge.sysctl("net/ipv4/tcp_syncookies", "0").must("switch SYN cookies off");
    let _nginx = Nginx::start(edge).must("start nginx");
    let mut configuration = tempfile::NamedTempFile::new().map_err(Into::into).must("make a configuration");
    configuration.write_all(b"[policy]\nhalf_open_limit = 200\n").map_err(Into::into).must("write it");
    let agent = scene.agent(&["--mode", "enforce", "--config", &configuration.path().to_string_lossy()]);
    let client = &scene.lab.clients[0].netns;
    let fetch = || download(client, &format!("http://{EDGE_V4}"), 1_460, &[], &Stop::new());
    fetch().must("download before the flood");
    // The innocent one in whose name the flood comes: an address of the client's network that completed no handshake.
    let innocent = scene.lab.clients[0].v4[1].to_string();
    let mut flood = scene.lab.attackers[0].netns.command("hping3");
    flood.args(["-q", "-n", "-I", UPLINK, "-S", "-p", "80", "-i", "u500", "-a", &innocent, &EDGE_V4.to_string()]);
    let flood = ChildGuard::spawn("hping3", &mut flood, None).must("start the flood");
    wait_for("the service is limited", Duration::from_secs(15), || {
        let status = agent.status().must("ask for the status");
        status["enforcement"]["service_limits"] == 1
    });
    let list = agent.ask_json(&["verdicts", "list"]).must("list the verdicts");
    assert_eq!(list["total"], 1, "no source is blamed: {list}");
    assert_eq!(
        (&list["verdicts"][0]["scope"], &list["verdicts"][0]["action"]),
        (&"tcp,198.18.0.10:80".into(), &"limit".into())
    );
    wait_for("packets of the flood are dropped", Duration::from_secs(5), || {
        agent.metrics().must("scrape").sum("sensor_packets_total", &[("action", "drop")]) > 500.0
    });
    assert!(flood.is_running());
    for _ in 0..20 {
        fetch().must("download during the flood: this source is known");
    }
    assert_eq!(scene.answered(), [PINGS, PINGS], "nobody is blocked");
    agent.stop().must("stop the agent");
}

#[test]
fn members_of_the_group_read_and_change_nothing() {
    let scene = Scene::build();
    let mut configuration = tempfile::NamedTempFile::new().map_err(Into::into).must("make a configuration");
    configuration.write_all(b"[agent]\nsocket_group = \"65533\"\n").map_err(Into::into).must("write it");
    let agent = scene.agent(&["--config", &configuration.path().to_string_lossy()]);
    let (binary, socket) = (binary().must("find the binary"), agent.socket());
    // The directory of the socket is the test's own, for everybody to pass.
    let directory = socket.parent().expect("a directory");
    std::fs::set_permissions(directory, std::fs::Permissions::from_mode(0o755)).map_err(Into::into).must("open it");
    let run = |group: &str, words: &[&str]| {
        let mut command = std::process::Command::new("setpriv");
        command.args(["--reuid=65534", &format!("--regid={group}"), "--clear-groups"]);
        command.arg(&binary).args(words).arg("--socket").arg(&socket);
        let output = command.output().map_err(Into::into).must("run sensor as nobody");
        (output.status.success(), String::from_utf8_lossy(&output.stderr).into_owned())
    };
    assert!(run("65533", &["status"]).0 && run("65533", &["verdicts", "list"]).0, "a member reads");
    for words in [&["mode", "enforce"][..], &["verdicts", "add", "drop", "198.18.66.1"], &["breaker", "reset"]] {
        let (done, error) = run("65533", words);
        assert!(!done && error.contains("403") && error.contains("uid 65534"), "{words:?}: {error}");
    }
    let (done, error) = run("65534", &["status"]);
    assert!(!done && error.contains("not for this user"), "{error}");
    assert_eq!(agent.status().must("ask")["mode"], "observe");
    agent.stop().must("stop the agent");
}
