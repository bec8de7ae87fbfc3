//! The life of a model in the real agent, with real packets: replaced under traffic, compared with a shadow, and held
//! back when the traffic drifts away from its training. Needs root.

use std::collections::HashMap;
use std::net::{SocketAddr, UdpSocket};
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::{Duration, Instant};

use rustix::process::Signal;
use sensor_tests::agent::{Agent, binary};
use sensor_tests::checks::{Must as _, text, wait_for};
use sensor_tests::netns::Ns;
use sensor_tests::onnx::model;
use sensor_tests::topology::{EDGE_V4, HostSpec, Lab, LabSpec, UPLINK};
use serde_json::Value;
use tempfile::TempDir;

const PORT: u16 = 7_900;
const SMALL: [u8; 50] = [1; 50];
const LARGE: [u8; 600] = [2; 600];

fn lab() -> Lab {
    let host = HostSpec::default();
    Lab::build(&LabSpec { clients: vec![host.clone()], attackers: vec![host], ..LabSpec::default() })
        .must("build the hosts")
}

/// A socket of its own port for each flow.
fn sockets(netns: &Ns, count: usize) -> Vec<UdpSocket> {
    let make = || -> std::io::Result<Vec<UdpSocket>> {
        (0..count)
            .map(|_| {
                let socket = UdpSocket::bind("0.0.0.0:0")?;
                socket.connect((EDGE_V4, PORT))?;
                Ok(socket)
            })
            .collect()
    };
    netns.within(make).must("enter the namespace").map_err(Into::into).must("make sockets")
}

fn send(sockets: &[UdpSocket], payload: &[u8]) {
    for socket in sockets {
        // Nobody answers; what the network refuses is not what is tested.
        let _ = socket.send(payload);
    }
}

/// Puts a file in place as one should: beside it first, then by renaming.
fn put(path: &Path, bytes: &[u8]) {
    let beside = path.with_extension("new");
    std::fs::write(&beside, bytes).map_err(Into::into).must("write a model");
    std::fs::rename(&beside, path).map_err(Into::into).must("rename it into place");
}

struct Files {
    directory: TempDir,
}

impl Files {
    fn new() -> Files {
        Files { directory: TempDir::new().map_err(Into::into).must("make a directory") }
    }

    fn path(&self, name: &str) -> PathBuf {
        self.directory.path().join(name)
    }

    /// The agent with `settings` in its configuration file and a model in `active.onnx`.
    fn agent(&self, lab: &Lab, settings: &str, bytes: &[u8]) -> Agent {
        put(&self.path("active.onnx"), bytes);
        let config = self.path("sensor.toml");
        // As many floods as here would open the breaker.
        let settings = format!("{settings}\n[breaker]\nsource_share = 1.0\n");
        std::fs::write(&config, settings).map_err(Into::into).must("write the configuration");
        let (config, active) = (config.to_string_lossy().into_owned(), self.path("active.onnx"));
        let active = active.to_string_lossy();
        Agent::start(&lab.edge.netns, &["--config", &config, "-i", UPLINK, "--mode", "enforce", "--model", &active])
            .must("start the agent")
    }
}

/// `sensor model <words>`, with the agent's socket: whether it succeeded, and what it said.
fn sensor_model(lab: &Lab, agent: &Agent, words: &[&str]) -> (bool, String) {
    let mut command = lab.edge.netns.command(binary().must("find the binary"));
    let output = command.arg("model").args(words).arg("--socket").arg(agent.socket()).output();
    let output = output.map_err(Into::into).must("run sensor model");
    (output.status.success(), text(&output.stdout) + &text(&output.stderr))
}

fn loads(agent: &Agent, result: &str) -> f64 {
    agent.metrics().must("scrape").sum("sensor_model_loads_total", &[("result", result), ("role", "active")])
}

/// Flows in the table from `host`, by their verdict.
fn verdicts(agent: &Agent, source: &str) -> HashMap<String, usize> {
    let mut counts = HashMap::new();
    for flow in agent.flows().must("ask for the flows").iter().filter(|flow| flow["src"] == source) {
        *counts.entry(flow["verdict"].as_str().unwrap_or_default().to_owned()).or_default() += 1;
    }
    counts
}

#[test]
fn models_are_swapped_under_traffic() {
    let (lab, files) = (lab(), Files::new());
    let active = files.path("active.onnx");
    let agent = files.agent(&lab, "[agent]\nrescore_interval = \"1s\"\n", &model("first", 200.0, &[]));
    let sink = lab.edge.netns.within(|| UdpSocket::bind(SocketAddr::from((EDGE_V4, PORT)))).must("enter the edge");
    let sink = sink.map_err(Into::into).must("bind the sink");
    sink.set_read_timeout(Some(Duration::from_millis(50))).map_err(Into::into).must("set a timeout");
    let attacker = lab.attackers[0].v4[0].to_string();
    let (client, attackers) = (&lab.clients[0].netns, &lab.attackers[0].netns);
    let (benign, floods) = (sockets(client, 200), sockets(attackers, 40));

    // From when on no packet of the first floods may arrive, and how many did nevertheless.
    let (stop, held, arrived, sent) =
        (AtomicBool::new(false), AtomicBool::new(false), AtomicU64::new(0), AtomicU64::new(0));
    let ports: Vec<u16> = floods.iter().filter_map(|socket| Some(socket.local_addr().ok()?.port())).collect();
    let (mut loaded, mut refused) = (1.0, 0.0);
    let mut new_flows = 0u64;
    std::thread::scope(|scope| {
        let _end = Raise(&stop);
        scope.spawn(|| {
            let mut room = [0; 2048];
            while !stop.load(Ordering::Relaxed) {
                let Ok((_, from)) = sink.recv_from(&mut room) else { continue };
                let flood = from.ip().to_string() == attacker && ports.contains(&from.port());
                arrived.fetch_add(u64::from(flood && held.load(Ordering::Relaxed)), Ordering::Relaxed);
            }
        });
        scope.spawn(|| {
            while !stop.load(Ordering::Relaxed) {
                send(&benign, &SMALL);
                send(&floods, &LARGE);
                sent.fetch_add((benign.len() + floods.len()) as u64, Ordering::Relaxed);
                std::thread::sleep(Duration::from_millis(20));
            }
        });
        // New flows all the time, so that some of them begin in every swap.
        let newcomers = scope.spawn(|| {
            let mut kept = Vec::new();
            while !stop.load(Ordering::Relaxed) {
                let (small, large) = (sockets(client, 5), sockets(attackers, 1));
                for _ in 0..8 {
                    send(&small, &SMALL);
                    send(&large, &LARGE);
                }
                kept.extend([small, large]);
                std::thread::sleep(Duration::from_millis(50));
            }
            kept.iter().map(Vec::len).sum::<usize>() as u64
        });

        wait_for("all floods are dropped", Duration::from_secs(20), || {
            let flows = agent.flows().must("ask for the flows");
            let dropped = |port: &u16| flows.iter().any(|flow| flow["sport"] == *port && flow["verdict"] == "drop");
            ports.iter().all(dropped)
        });
        // What was in the sink's queue before is no evidence.
        std::thread::sleep(Duration::from_millis(300));
        held.store(true, Ordering::Relaxed);
        let before = sent.load(Ordering::Relaxed);
        for round in 0..4 {
            let name = format!("round-{round}");
            put(&active, &model(&name, 200.0, &[]));
            loaded += 1.0;
            wait_for("the renamed file is in use", Duration::from_secs(20), || {
                let status = agent.status().must("ask for the status");
                status["model"]["name"] == *name
            });
            agent.kill(Signal::HUP).must("send SIGHUP");
            loaded += 1.0;
            wait_for("it is loaded again", Duration::from_secs(20), || loads(&agent, "loaded") == loaded);
            let other = files.path("other.onnx");
            put(&other, &model("other", 200.0, &[]));
            let (done, said) = sensor_model(&lab, &agent, &["load", &other.to_string_lossy()]);
            assert!(done && said.contains("other"), "{said}");
            loaded += 1.0;
            // A bad one is refused, and the one in use goes on.
            put(&other, &model("other", 200.0, &[("golden_outputs", "[[1,0],[1,0],[1,0],[1,0]]")]));
            let (done, said) = sensor_model(&lab, &agent, &["load", &other.to_string_lossy()]);
            assert!(!done && said.contains("golden row"), "{said}");
            refused += 1.0;
            assert_eq!(agent.status().must("ask for the status")["model"]["name"], "other");
            put(&other, b"no model");
            wait_for("what was renamed into place is refused", Duration::from_secs(20), || {
                loads(&agent, "refused") > refused
            });
            refused += 1.0;
            assert_eq!(agent.status().must("ask for the status")["model"]["name"], "other");
            // Back to the file that is watched at the start of a round.
            put(&active, &model("between", 200.0, &[]));
            let (done, said) = sensor_model(&lab, &agent, &["load", &active.to_string_lossy()]);
            assert!(done, "{said}");
            loaded += 1.0;
        }
        assert!(sent.load(Ordering::Relaxed) > before + 1_000, "the traffic went on");
        stop.store(true, Ordering::Relaxed);
        new_flows = newcomers.join().unwrap_or_else(|panic| std::panic::resume_unwind(panic));
    });
    assert_eq!(arrived.load(Ordering::Relaxed), 0, "packets of dropped flows that arrived while models were swapped");
    assert_eq!((loads(&agent, "loaded"), loads(&agent, "refused")), (loaded, refused));
    let metrics = agent.metrics().must("scrape");
    assert_eq!(metrics.sum("sensor_inference_errors_total", &[]), 0.0);
    assert_eq!(metrics.sum("sensor_lease_expired_packets_total", &[]), 0.0);
    let mut flows = Vec::new();
    wait_for("every flow of four packets is scored", Duration::from_secs(5), || {
        flows = agent.flows().must("ask for the flows");
        flows.retain(|flow| {
            flow["protocol"] == "udp" && flow["dport"] == PORT && flow["initiator_packets"].as_u64() >= Some(4)
        });
        flows.iter().all(|flow| !flow["score"].is_null())
    });
    let wrong: Vec<&Value> =
        flows.iter().filter(|flow| (flow["verdict"] == "drop") != (flow["src"] == *attacker)).collect();
    assert!(wrong.is_empty(), "flows with another verdict than their kind: {wrong:#?}");
    assert!(new_flows > 50 && flows.len() as u64 >= new_flows, "{} flows, {new_flows} new ones", flows.len());
    println!(
        "{loaded} loads and {refused} refusals under traffic: {} flows, all scored; {} packets sent, none of a dropped flow arrived; \
         {} polls late; longest poll bucket: {:?}",
        flows.len(),
        sent.load(Ordering::Relaxed),
        metrics.sum("sensor_poll_overruns_total", &[]),
        metrics.text().lines().rfind(|line| line.starts_with("sensor_poll_seconds_sum"))
    );
    let log = agent.stop().must("stop the agent");
    for line in ["(file)", "(signal)", "(command)", "goes on: load the model"] {
        assert!(log.contains(line), "{line} is not in the log:\n{log}");
    }
}

/// Ends the senders when a check fails, too.
struct Raise<'a>(&'a AtomicBool);

impl Drop for Raise<'_> {
    fn drop(&mut self) {
        self.0.store(true, Ordering::Relaxed);
    }
}

#[test]
fn a_shadow_is_compared_and_has_no_effect() {
    let (lab, files) = (lab(), Files::new());
    let agent = files.agent(&lab, "", &model("active", 200.0, &[]));
    let shadow = files.path("shadow.onnx");
    // Floods to the active model are benign to this one.
    put(&shadow, &model("shadow", 1_000.0, &[]));
    let (done, said) = sensor_model(&lab, &agent, &["load", "--shadow", &shadow.to_string_lossy()]);
    assert!(done, "{said}");
    let (benign, floods) = (sockets(&lab.clients[0].netns, 20), sockets(&lab.attackers[0].netns, 10));
    for _ in 0..8 {
        send(&benign, &SMALL);
        send(&floods, &LARGE);
    }
    let decisions = |ours: &str, theirs: &str| {
        let metrics = agent.metrics().must("scrape");
        metrics.sum("sensor_shadow_decisions_total", &[("active", ours), ("shadow", theirs)])
    };
    wait_for("both have scored all", Duration::from_secs(10), || {
        decisions("pass", "pass") >= 20.0 && decisions("drop", "pass") >= 10.0
    });
    assert_eq!((decisions("pass", "drop"), decisions("drop", "drop")), (0.0, 0.0));
    let attacker = lab.attackers[0].v4[0].to_string();
    assert_eq!(verdicts(&agent, &attacker).get("drop"), Some(&10), "the active model decides");
    let metrics = agent.metrics().must("scrape");
    assert!(metrics.sum("sensor_shadow_labels_total", &[("agreement", "different")]) >= 10.0);
    assert!(metrics.sum("sensor_shadow_score_difference_count", &[]) >= 30.0);
    assert_eq!(metrics.sum("sensor_model_info", &[("role", "shadow"), ("name", "shadow")]), 1.0);
    assert_eq!(metrics.sum("sensor_shadow_errors_total", &[]), 0.0);
    let status = agent.status().must("ask for the status");
    assert_eq!((&status["model"]["name"], &status["shadow"]["name"]), (&"active".into(), &"shadow".into()));
    // A flow explained by a file, from the agent's own numbers.
    let flows = agent.flows().must("ask for the flows");
    let flood = flows.iter().find(|flow| flow["src"] == *attacker).map(|flow| flow["id"].as_str().unwrap_or_default());
    let (done, said) =
        sensor_model(&lab, &agent, &["explain", &shadow.to_string_lossy(), "--flow", flood.unwrap_or_default()]);
    assert!(done && said.contains("label benign") && said.contains("fwd_payload_bytes"), "{said}");
    agent.stop().must("stop the agent");
}

#[test]
fn drift_is_seen_and_turns_drops_into_tags() {
    let (lab, files) = (lab(), Files::new());
    // Trained, as it says, on flows that were never floods.
    let quantiles = [
        (
            "quantiles",
            r#"[{"edges":[1000000],"shares":[1,0],"median":8},{"edges":[2000],"shares":[0.9999,0.0001],"median":400}]"#,
        ),
        ("score_quantiles", r#"{"edges":[0.5],"shares":[0.9999,0.0001]}"#),
    ];
    let settings = "[model]\ndrift_window = 200\ndrift_fallback = true\n";
    let agent = files.agent(&lab, settings, &model("trained", 200.0, &quantiles));
    let attacker = lab.attackers[0].v4[0].to_string();
    let metric = |name: &str| agent.metrics().must("scrape").sum(name, &[]);
    let burst = |sockets: &[UdpSocket], payload: &[u8]| {
        for _ in 0..8 {
            send(sockets, payload);
        }
    };
    let floods = sockets(&lab.attackers[0].netns, 4);
    burst(&floods, &LARGE);
    let benign = sockets(&lab.clients[0].netns, 400);
    burst(&benign, &SMALL);
    wait_for("a window of normal traffic", Duration::from_secs(20), || metric("sensor_drift_windows_total") >= 1.0);
    assert!(metric("sensor_drift_level") < 2.0, "{}", agent.metrics().must("scrape").text());
    assert_eq!(metric("sensor_drift_fallback_active"), 0.0);
    assert_eq!(verdicts(&agent, &attacker).get("drop"), Some(&4));
    // The traffic becomes what the model was not made for.
    let shifted = sockets(&lab.attackers[0].netns, 400);
    burst(&shifted, &LARGE);
    wait_for("drift is high", Duration::from_secs(20), || metric("sensor_drift_level") == 2.0);
    let metrics = agent.metrics().must("scrape");
    assert!(metrics.sum("sensor_drift_feature_psi", &[("feature", "fwd_payload_bytes")]) > 0.25);
    assert!(metrics.sum("sensor_drift_feature_psi", &[("feature", "fwd_packets")]).abs() < 0.1);
    assert!(metrics.sum("sensor_drift_score_psi", &[]) > 0.25);
    assert_eq!(metrics.sum("sensor_drift_fallback_active", &[]), 1.0);
    let later = sockets(&lab.attackers[0].netns, 10);
    burst(&later, &LARGE);
    wait_for("nothing is dropped any more, new floods are tagged", Duration::from_secs(10), || {
        let counts = verdicts(&agent, &attacker);
        !counts.contains_key("drop") && counts.get("tag").copied().unwrap_or_default() >= 14
    });
    let status = agent.status().must("ask for the status");
    assert_eq!((&status["drift"]["level"], &status["drift"]["fallback"]), (&"high".into(), &true.into()));
    // Loading the same bytes again does not end it, a model that was made for this traffic does.
    agent.kill(Signal::HUP).must("send SIGHUP");
    wait_for("it is loaded again", Duration::from_secs(20), || loads(&agent, "loaded") == 2.0);
    assert_eq!(metric("sensor_drift_fallback_active"), 1.0);
    let path = files.path("active.onnx");
    put(&path, &model("retrained", 200.0, &[]));
    let (done, said) = sensor_model(&lab, &agent, &["load", &path.to_string_lossy()]);
    assert!(done, "{said}");
    assert_eq!(metric("sensor_drift_fallback_active"), 0.0);
    let log = agent.stop().must("stop the agent");
    assert!(log.contains("drift is high"), "{log}");
}

#[test]
fn the_agent_outlives_any_model_file() {
    let (lab, files) = (lab(), Files::new());
    let limits = "[model]\nload_memory_mib = 512\nload_timeout = \"3s\"\n";
    let agent = files.agent(&lab, limits, &model("good", 200.0, &[]));
    let begun = Instant::now();
    let mut refused = 0.0;
    for (name, bytes) in sensor_tests::hostile::files() {
        let path = files.path("hostile.onnx");
        put(&path, &bytes);
        let asked = Instant::now();
        let (done, said) = sensor_model(&lab, &agent, &["load", &path.to_string_lossy()]);
        assert!(!done, "{name} was taken: {said}");
        assert!(asked.elapsed() < Duration::from_secs(8), "{name} took {:?}: {said}", asked.elapsed());
        refused += 1.0;
        println!("{name}: {:.0?}: {}", asked.elapsed(), said.trim());
        assert_eq!(loads(&agent, "refused"), refused, "{name}");
    }
    let metrics = agent.metrics().must("scrape");
    assert_eq!(metrics.sum("sensor_lease_active", &[]), 1.0);
    let memory = metrics.sum("process_resident_memory_bytes", &[]);
    assert!(memory < 400e6, "the agent has grown to {memory} bytes");
    assert_eq!(agent.status().must("ask for the status")["model"]["name"], "good");
    println!("{refused} files in {:?}, resident memory {:.0} MB", begun.elapsed(), memory / 1e6);
    agent.stop().must("stop the agent");
}
