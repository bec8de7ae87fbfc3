//! The agent's numbers: scraped by a real Prometheus, checked by promtool, and the identity that nothing is lost without
//! being counted. Needs root.

use std::io::Write as _;
use std::net::{Ipv4Addr, SocketAddr};
use std::process::Stdio;
use std::time::Duration;

use sensor_tests::agent::Agent;
use sensor_tests::checks::{Must as _, dropped_flood, shipped_model, wait_for};
use sensor_tests::clients::ping;
use sensor_tests::netns::Ns;
use sensor_tests::process::ChildGuard;
use sensor_tests::stop::Stop;
use sensor_tests::streams::{ECHO_PORT, Media, Stream};
use sensor_tests::topology::{EDGE_V4, EDGE_V6, HostSpec, Lab, LabSpec, UPLINK};
use serde_json::Value;

fn lab() -> Lab {
    let host = HostSpec::default();
    Lab::build(&LabSpec { clients: vec![host.clone()], attackers: vec![host], ..LabSpec::default() })
        .must("build the hosts")
}

fn agent(lab: &Lab, mode: &str) -> Agent {
    let model = shipped_model();
    Agent::start(&lab.edge.netns, &["-i", UPLINK, "--mode", mode, "--model", &model]).must("start the agent")
}

/// The values of an instant query, by the HTTP API of the Prometheus in `netns`; empty while it starts.
fn query(netns: &Ns, expression: &str) -> Vec<f64> {
    let address = SocketAddr::from((Ipv4Addr::LOCALHOST, 9090));
    let Ok(answer) = netns.http_get(address, &format!("/api/v1/query?query={expression}")) else { return Vec::new() };
    let body = answer.split_once("\r\n\r\n").map_or("", |(_head, body)| body);
    let Ok(answer) = serde_json::from_str::<Value>(body) else { return Vec::new() };
    let samples = answer["data"]["result"].as_array().cloned().unwrap_or_default();
    samples.iter().filter_map(|sample| sample["value"][1].as_str()?.parse().ok()).collect()
}

#[test]
fn prometheus_scrapes_the_agent() {
    let lab = lab();
    let edge = &lab.edge.netns;
    let _agent = agent(&lab, "observe");
    let directory = tempfile::TempDir::new().map_err(Into::into).must("make a directory");
    let configuration = directory.path().join("prometheus.yml");
    let text = "global: {scrape_interval: 1s}\nscrape_configs:\n- job_name: sensor\n  static_configs:\n  - targets: ['127.0.0.1:9469']\n";
    std::fs::write(&configuration, text).map_err(Into::into).must("write the configuration");
    let mut command = edge.command("prometheus");
    command.arg(format!("--config.file={}", configuration.display()));
    command.arg(format!("--storage.tsdb.path={}", directory.path().join("data").display()));
    command.arg("--web.listen-address=127.0.0.1:9090");
    let log = directory.path().join("prometheus.log");
    let prometheus = ChildGuard::spawn("prometheus", &mut command, Some(&log)).must("start Prometheus");
    ping(&lab.clients[0].netns, &["-c", "10", "-i", "0.05", &EDGE_V4.to_string()], &Stop::new()).must("ping");
    wait_for("Prometheus has samples of the agent", Duration::from_secs(30), || {
        assert!(prometheus.is_running(), "Prometheus ended: {}", prometheus.log());
        query(edge, "up") == [1.0] && query(edge, "sum(sensor_packets_total)").first().is_some_and(|sum| *sum >= 20.0)
    });
    assert_eq!(query(edge, "sensor_table_capacity"), [65_536.0]);
    // The histogram arrives as one that Prometheus can compute with.
    wait_for("a quantile of the poll times", Duration::from_secs(15), || {
        let median = query(edge, "histogram_quantile(0.5,rate(sensor_poll_seconds_bucket[10s]))");
        median.first().is_some_and(|seconds| (0.000_001..1.0).contains(seconds))
    });
    assert_eq!(query(edge, "count({__name__=~\"sensor_.*\"})").len(), 1);
    let refused = prometheus.log();
    assert!(!refused.contains("level=error") && !refused.contains("Error on ingesting"), "{refused}");
}

#[test]
fn the_exposition_is_clean_and_healthz_answers() {
    let lab = lab();
    let agent = agent(&lab, "enforce");
    ping(&lab.clients[0].netns, &["-c", "20", "-i", "0.05", &EDGE_V4.to_string()], &Stop::new()).must("ping");
    // Once with every family that counts by the second.
    std::thread::sleep(Duration::from_millis(1_200));
    let metrics = agent.metrics().must("scrape");
    let mut command = lab.edge.netns.command("promtool");
    command.args(["check", "metrics"]).stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped());
    let mut promtool = command.spawn().map_err(Into::into).must("start promtool");
    let mut input = promtool.stdin.take().unwrap_or_else(|| panic!("promtool has no standard input"));
    input.write_all(metrics.text().as_bytes()).map_err(Into::into).must("feed promtool");
    drop(input);
    let output = promtool.wait_with_output().map_err(Into::into).must("wait for promtool");
    let said = String::from_utf8_lossy(&output.stdout).into_owned() + &String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success() && said.trim().is_empty(), "promtool: {said}");

    for name in ["sensor_packets_total", "sensor_bytes_total", "sensor_lease_active", "sensor_build_info"] {
        assert!(metrics.sum(name, &[]) >= 1.0, "{name} in\n{}", metrics.text());
    }
    assert!(!metrics.text().contains("198.18.") && !metrics.text().contains("2001:db8"), "an address as a label");
    let health = agent.http_get("/healthz").must("ask for the health");
    assert!(health.starts_with("HTTP/1.0 200") || health.starts_with("HTTP/1.1 200"), "{health}");
    let status = agent.status().must("ask for the status");
    assert_eq!(status["lease"]["state"], "active");
}

#[test]
fn every_packet_is_in_a_record_dropped_or_counted_as_loss() {
    let lab = lab();
    let edge = &lab.edge.netns;
    let _media = Media::start(edge).must("bind the UDP ports");
    let agent = agent(&lab, "enforce");
    let (client, attacker) = (&lab.clients[0], &lab.attackers[0]);
    let flood = dropped_flood(&agent, attacker, 4444);
    let stop = Stop::new();
    for target in [EDGE_V4.to_string(), EDGE_V6.to_string()] {
        ping(&client.netns, &["-c", "20", "-i", "0.05", &target], &stop).must("ping");
    }
    // Fragments: the first is recorded, and the others in its flow.
    ping(&client.netns, &["-c", "5", "-i", "0.05", "-s", "4000", &EDGE_V4.to_string()], &stop).must("ping");
    // Look-ups of neighbours are no IP.
    client.netns.ip("neigh flush dev eth0").must("forget the neighbours");
    let (interval, length) = (Duration::from_millis(5), Duration::from_secs(1));
    let call = Stream { port: ECHO_PORT, payload_bytes: 300, interval, length };
    call.send(&client.netns, &stop).must("send a call");
    drop(flood);

    let (mut tries, mut sums);
    tries = 0;
    loop {
        // The agent reads the programs' counters once a second.
        std::thread::sleep(Duration::from_millis(1_300));
        let (metrics, flows) = (agent.metrics().must("scrape"), agent.flows().must("ask for the flows"));
        let of = |key: &str| flows.iter().filter_map(|flow| flow[key].as_u64()).sum::<u64>() as f64;
        let seen = metrics.sum("sensor_packets_total", &[]);
        let dropped = metrics.sum("sensor_packets_total", &[("action", "drop")]);
        let loss = metrics.sum("sensor_loss_packets_total", &[]);
        let recorded = of("initiator_packets") + of("responder_packets");
        sums = (seen, recorded, dropped, loss);
        assert_eq!(of("dropped_packets"), dropped, "frames that records say were dropped");
        // A packet of the network's own (a router solicitation) may come between the two readings; not four times.
        tries += 1;
        if seen == recorded + dropped + loss || tries == 4 {
            break;
        }
    }
    let (seen, recorded, dropped, loss) = sums;
    assert_eq!(seen, recorded + dropped + loss, "{recorded} in records + {dropped} dropped + {loss} lost");
    assert!(dropped > 1_000.0 && recorded > 400.0, "{sums:?}");
    let metrics = agent.metrics().must("scrape");
    // 4,000 bytes are three fragments, two of them without ports, in both directions: all find their flow.
    assert_eq!(metrics.sum("sensor_loss_packets_total", &[("cause", "fragment")]), 0.0);
    let whole = |flow: &&serde_json::Value| flow["initiator_packets"] == 15 && flow["responder_packets"] == 15;
    assert!(agent.flows().must("ask for the flows").iter().any(|flow| whole(&flow)), "the fragments' flow");
    assert!(metrics.sum("sensor_loss_packets_total", &[("cause", "not_ip")]) >= 2.0);
    let status = agent.status().must("ask for the status");
    let packets = |key: &str| status["packets"][key].as_u64().unwrap_or_else(|| panic!("{key} in {status}"));
    assert_eq!(packets("seen"), packets("recorded") + packets("unrecorded") + packets("dropped"));
    assert_eq!(packets("seen"), packets("passed") + packets("tagged") + packets("dropped"));
    agent.stop().must("stop the agent");
}
