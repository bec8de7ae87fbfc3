//! Modes tag and observe on real traffic: marks as nftables on the protected host sees them, and nothing dropped, which
//! is told by the number of packets that the attacker was asked to send. Needs root.

use std::io::Write as _;
use std::time::Duration;

use sensor_tests::agent::Agent;
use sensor_tests::attacks::{Attack, Label};
use sensor_tests::checks::{Must as _, shipped_model, wait_for};
use sensor_tests::clients::{download, ping};
use sensor_tests::counters::Received;
use sensor_tests::servers::Nginx;
use sensor_tests::stop::Stop;
use sensor_tests::streams::Media;
use sensor_tests::topology::{CLIENT_PREFIXES, EDGE_V4, HostSpec, Lab, LabSpec, UPLINK};

/// Packets of each flow of the attack.
const FLOOD: u64 = 4_000;

/// What was counted, and what ran.
struct Outcome {
    /// Packets at the edge, in the order of the expressions.
    counted: Vec<u64>,
    /// Packets that the attacker sent.
    sent: u64,
    agent: Agent,
    _lab: Lab,
}

/// Runs the agent with `configuration` against floods and benign transfers, and counts at the edge what matches
/// `expressions`, in which `{attacker}` is the attacker's address. A model may miss a flood, so up to six flows are sent,
/// one after the other, until one was reported.
fn run(configuration: &str, expressions: &[(&str, &str)]) -> Outcome {
    let host = HostSpec::default();
    let lab = Lab::build(&LabSpec { clients: vec![host.clone()], attackers: vec![host], ..LabSpec::default() })
        .must("build the hosts");
    let edge = &lab.edge.netns;
    let _nginx = Nginx::start(edge).must("start nginx");
    let _media = Media::start(edge).must("bind the UDP ports");
    let mut file = tempfile::NamedTempFile::new().map_err(Into::into).must("make a configuration");
    file.write_all(configuration.as_bytes()).map_err(Into::into).must("write the configuration");
    let (path, model) = (file.path().to_string_lossy(), shipped_model());
    let agent = Agent::start(edge, &["-i", UPLINK, "--config", &path, "--model", &model]).must("start the agent");

    let attacker = &lab.attackers[0];
    let source = attacker.v4[0].to_string();
    let rules: Vec<_> = expressions.iter().map(|(name, rule)| (*name, rule.replace("{attacker}", &source))).collect();
    let rules: Vec<_> = rules.iter().map(|(name, rule)| (*name, rule.as_str())).collect();
    let received = Received::matching(edge, &rules).must("count what is received");
    let (client, stop) = (&lab.clients[0].netns, Stop::new());
    for size in [1_460, 130_000, 2_000_000] {
        download(client, &format!("http://{EDGE_V4}"), size, &[], &stop).must("download");
    }
    ping(client, &["-c", "20", "-i", "0.05", &EDGE_V4.to_string()], &stop).must("ping");
    let mut sent = 0;
    for sport in 4444..4450 {
        let typed = format!("-q -n -I eth0 -a {{source}} -i u100 -c {FLOOD} -2 -k -s {sport} -p 5514 -d 512 {{edge}}");
        let flood = Attack::new(Label::Flood, "hping3", &typed)
            .start(&attacker.netns, attacker.v4[0], Duration::from_secs(60), None)
            .must("start the flood");
        wait_for("the flood is sent", Duration::from_secs(40), || !flood.is_running());
        sent += FLOOD;
        let metrics = agent.metrics().must("scrape");
        if metrics.sum("sensor_verdicts_total", &[]) + metrics.sum("sensor_would_verdicts_total", &[]) > 0.0 {
            break;
        }
    }
    std::thread::sleep(Duration::from_millis(100));
    let counted = received.packets().must("read the counters");
    Outcome { counted, sent, agent, _lab: lab }
}

#[test]
fn tag_marks_the_attack_for_nftables_and_drops_nothing() {
    let clients = format!("ip saddr {}", CLIENT_PREFIXES[0]);
    let Outcome { counted, sent, agent, _lab } = run(
        "mode = \"tag\"\n[tag]\ndscp = 8\n",
        &[
            ("attack", "ip saddr {attacker} udp dport 5514"),
            ("attack_marked", "ip saddr {attacker} meta mark & 0xff == 0x53"),
            ("attack_dscp", "ip saddr {attacker} ip dscp 8"),
            ("attack_mark_elsewhere", "ip saddr {attacker} meta mark & 0xffffff00 != 0"),
            ("benign", &clients),
            ("benign_marked", &format!("{clients} meta mark != 0")),
            ("benign_dscp", &format!("{clients} ip dscp 8")),
        ],
    );
    let [attack, marked, dscp, elsewhere, benign, benign_marked, benign_dscp] = counted[..] else {
        panic!("counters: {counted:?}")
    };
    assert_eq!(attack, sent, "every packet of the attack arrives");
    // Later packets may clear a flow again, so how many depends on the model.
    assert!(marked >= 50, "{marked} of {sent} packets of the attack are marked");
    assert!(marked < sent, "the first packets come before any verdict");
    assert_eq!((dscp, elsewhere), (marked, 0), "mark and DSCP go together, in the bits of the mask");
    assert!(benign > 40, "{benign} benign packets");
    assert_eq!((benign_marked, benign_dscp), (0, 0), "benign packets that were marked, of {benign}");

    wait_for("the agent counts the same", Duration::from_secs(3), || {
        agent.metrics().must("scrape").sum("sensor_tagged_packets_total", &[]) >= marked as f64
    });
    let metrics = agent.metrics().must("scrape");
    assert_eq!(metrics.sum("sensor_tagged_packets_total", &[]), marked as f64);
    assert_eq!(metrics.sum("sensor_packets_total", &[("action", "drop")]), 0.0);
    assert!(metrics.sum("sensor_verdicts_total", &[("action", "tag")]) > 0.0);
    agent.stop().must("stop the agent");
}

#[test]
fn observe_touches_nothing_and_says_what_it_would_do() {
    let Outcome { counted, sent, agent, _lab } = run(
        "mode = \"observe\"\n",
        &[("attack", "ip saddr {attacker} udp dport 5514"), ("marked", "meta mark != 0"), ("dscp", "ip dscp != 0")],
    );
    assert_eq!(counted, [sent, 0, 0], "attack packets, marked packets, packets with a DSCP");
    let metrics = agent.metrics().must("scrape");
    assert!(metrics.sum("sensor_would_verdicts_total", &[("action", "drop")]) > 0.0);
    assert_eq!(metrics.sum("sensor_verdicts_total", &[]), 0.0);
    wait_for("the agent counts the flood", Duration::from_secs(3), || {
        agent.metrics().must("scrape").sum("sensor_packets_total", &[("direction", "ingress")]) >= sent as f64
    });
    let metrics = agent.metrics().must("scrape");
    for action in ["tag", "drop"] {
        assert_eq!(metrics.sum("sensor_packets_total", &[("action", action)]), 0.0, "packets, action {action}");
    }
    agent.stop().must("stop the agent");
}
