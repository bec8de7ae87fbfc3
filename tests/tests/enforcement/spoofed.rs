//! Our weapon cannot be aimed: a flood that names an innocent source leads to no verdict on that source, which stays
//! reachable; a flood of half-open connections is answered at the service, where known sources are exempt.

use std::time::Duration;

use sensor_tests::agent::Agent;
use sensor_tests::attacks::{Attack, Label};
use sensor_tests::checks::{Must as _, wait_for};
use sensor_tests::clients::download;
use sensor_tests::netns::Ns;
use sensor_tests::onnx::model;
use sensor_tests::servers::Nginx;
use sensor_tests::stop::Stop;
use sensor_tests::topology::EDGE_V4;

use super::scene::{Files, PATIENCE, UNBOUNDED, lab, number};

const LIMIT: u64 = 100;

fn settings() -> String {
    // One proven flow would be enough for a verdict on its source.
    let policy = format!("[policy]\nescalate_flows = 1\nhalf_open_limit = {LIMIT}\n");
    format!("mode = \"enforce\"\n{}", UNBOUNDED.replace("[policy]\n", &policy))
}

/// Downloads one after the other, each over a connection of its own; how many.
fn transfers(netns: &Ns, count: usize) -> usize {
    let stop = Stop::new();
    for size in [1_460, 9_000, 130_000, 700_000].into_iter().cycle().take(count) {
        download(netns, &format!("http://{EDGE_V4}"), size, &["--max-time", "10"], &stop).must("download");
    }
    count
}

/// Verdicts that are not about a flow: scope kinds in the list.
fn beyond_flows(agent: &Agent) -> Vec<String> {
    let list = agent.ask_json(&["verdicts", "list"]).must("list the verdicts");
    let verdicts = list["verdicts"].as_array().expect("a list").iter();
    let scopes =
        verdicts.filter_map(|verdict| verdict["scope"].as_str()).filter(|scope| scope.matches(',').count() < 2);
    scopes.map(str::to_owned).collect()
}

#[test]
fn a_forged_source_stays_reachable() {
    let lab = lab(1, 1);
    // What carries more than 200 bytes a packet is an attack: the forged packets, not the downloads.
    let files = Files::new(&settings(), Some(&model("sizes", 200.0, &[])));
    let _nginx = Nginx::start(&lab.edge.netns).must("start nginx");
    let agent = files.agent(&lab, &[]);
    let (innocent, attacker) = (&lab.clients[0], &lab.attackers[0]);
    let mut floods = Vec::new();
    // From changing ports, each a flow, and in one flow each over UDP and TCP, all in the name of the innocent.
    for kind in ["-S -p 80 -d 512", "-2 -p 53 -d 512", "-A -k -s 7777 -p 80 -d 512", "-2 -k -s 7778 -p 80 -d 512"] {
        let typed = format!("-q -n -I eth0 -a {} -i u2000 {kind} {{edge}}", innocent.v4[0]);
        let flood = Attack::new(Label::Flood, "hping3", &typed);
        floods.push(flood.start(&attacker.netns, attacker.v4[0], Duration::from_secs(60), None).must("start a flood"));
    }
    wait_for("forged flows are dropped", PATIENCE, || {
        number(&agent.status().must("ask for the status"), "/enforcement/flow_verdicts") >= 50
    });
    let done = transfers(&innocent.netns, 12);
    assert!(floods.iter().all(|flood| flood.is_running()));
    assert_eq!(beyond_flows(&agent), Vec::<String>::new(), "no verdict on a source");
    let status = agent.status().must("ask for the status");
    println!(
        "forged source: {} flows of the floods dropped, 0 verdicts on the source, {done} of {done} downloads of the innocent",
        number(&status, "/enforcement/flow_verdicts"),
    );
    drop(floods);

    // The rule itself works: whoever completes handshakes is blamed. The request is long, whatever is acknowledged beside it.
    let attack = format!("http://{EDGE_V4}/{}", "x".repeat(6_000));
    let source = attacker.v4[0].to_string();
    wait_for("a proven source is blamed", PATIENCE, || {
        let mut curl = attacker.netns.command("curl");
        let _dropped = curl.args(["-s", "--max-time", "1", &attack]).output();
        beyond_flows(&agent) == [source.clone()]
    });
    agent.stop().must("stop the agent");
}

#[test]
fn half_open_floods_are_limited_at_the_service() {
    let lab = lab(2, 1);
    let files = Files::new(&settings(), Some(&model("sizes", 200.0, &[])));
    // Where there are SYN cookies, they are left to do it.
    lab.edge.netns.sysctl("net/ipv4/tcp_syncookies", "0").must("switch SYN cookies off");
    let _nginx = Nginx::start(&lab.edge.netns).must("start nginx");
    let agent = files.agent(&lab, &[]);
    let (known, attacker) = (&lab.clients[0], &lab.attackers[0]);
    transfers(&known.netns, 1);
    let flood = Attack::new(Label::Flood, "hping3", "-q -n -I eth0 --rand-source -i u500 -S -p 80 {edge}");
    let flood = flood.start(&attacker.netns, attacker.v4[0], Duration::from_secs(90), None).must("start the flood");
    let service = format!("tcp,{EDGE_V4}:80");
    wait_for("the service is limited", Duration::from_secs(30), || beyond_flows(&agent) == [service.clone()]);
    let of = || {
        let list = agent.ask_json(&["verdicts", "list"]).must("list the verdicts");
        list["verdicts"].as_array().expect("a list").iter().find(|one| one["scope"] == service.as_str()).cloned()
    };
    let before = of().expect("the limit");
    assert_eq!((&before["rate"]["packets"], &before["action"]), (&LIMIT.into(), &"limit".into()), "{before}");
    let done = transfers(&known.netns, 12);
    assert!(flood.is_running());
    let after = of().expect("it holds while the flood goes on");
    let stopped = after["packets"].as_u64().unwrap_or(0) - before["packets"].as_u64().unwrap_or(0);
    assert!(stopped > 100, "{after}");
    assert_eq!(beyond_flows(&agent), [service], "and nothing else than the service");
    // Whoever comes for the first time has to repeat its SYN, and is served.
    let newcomers = transfers(&lab.clients[1].netns, 4);
    println!(
        "half-open flood: limited to {LIMIT} a second ({}); {stopped} attempts dropped while a known source had {done} of {done} \
         downloads, and one that came for the first time {newcomers} of {newcomers}",
        before["note"].as_str().unwrap_or_default(),
    );
    drop(flood);
    agent.stop().must("stop the agent");
}
