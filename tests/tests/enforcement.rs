//! Enforcement by hand with real traffic: verdicts, modes and the never-drop list by command, over a restart, and what the
//! audit says of it. No model: what is dropped here was asked for. Needs root.

use std::net::IpAddr;
use std::time::Duration;

use sensor_tests::agent::Agent;
use sensor_tests::checks::{Must as _, assert_clean, wait_for};
use sensor_tests::counters::Received;
use sensor_tests::netns::Ns;
use sensor_tests::process::ChildGuard;
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
