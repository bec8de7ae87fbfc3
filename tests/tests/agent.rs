//! The whole agent in mode enforce with the shipped model: real attacks are dropped, as the protected host's netfilter
//! sees it, while benign transfers complete byte for byte. Needs root.

use std::io::{Read as _, Write as _};
use std::net::{TcpListener, TcpStream};
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::{Duration, Instant};

use sensor_tests::agent::Agent;
use sensor_tests::attacks::Attack;
use sensor_tests::checks::{Must as _, dropped_flood, flow, shipped_model, wait_for};
use sensor_tests::clients::{download, look_up, ping, upload, web_bases};
use sensor_tests::content;
use sensor_tests::counters::{Received, interface};
use sensor_tests::netns::Ns;
use sensor_tests::servers::{Dns, Nginx};
use sensor_tests::stop::Stop;
use sensor_tests::streams::Media;
use sensor_tests::topology::{EDGE_V4, HostSpec, Lab, LabSpec, UPLINK};
use serde_json::Value;

fn lab(clients: usize, attackers: usize) -> Lab {
    let host = HostSpec::default();
    Lab::build(&LabSpec {
        clients: vec![host.clone(); clients],
        attackers: vec![host; attackers],
        ..LabSpec::default()
    })
    .must("build the hosts")
}

/// Flows are judged one by one here: their source gets no verdict of its own.
fn enforce(lab: &Lab) -> Agent {
    let mut configuration = tempfile::NamedTempFile::new().map_err(Into::into).must("make a configuration");
    let text = b"mode = \"enforce\"\n[policy]\nescalate_flows = 0\n[breaker]\nsource_share = 1.0\n";
    configuration.write_all(text).map_err(Into::into).must("write the configuration");
    let (path, model) = (configuration.path().to_string_lossy(), shipped_model());
    Agent::start(&lab.edge.netns, &["-i", UPLINK, "--config", &path, "--model", &model]).must("start the agent")
}

/// Flows that `source` began: (all of at least four packets, those dropped).
fn flows_of(agent: &Agent, source: &str) -> (usize, usize) {
    let flows = agent.flows().must("ask for the flows");
    let own: Vec<&Value> = flows.iter().filter(|flow| flow["src"] == source).collect();
    let long = |flow: &&&Value| {
        let side = |key: &str| flow[key].as_u64().unwrap_or_default();
        side("initiator_packets") + side("responder_packets") >= 4 || flow["verdict"] == "drop"
    };
    (own.iter().filter(long).count(), own.iter().filter(|flow| flow["verdict"] == "drop").count())
}

/// Downloads of all sizes on all four ways to the web server, look-ups, pings and uploads, until `until`; returns how
/// many were done. Every byte of a download is compared; any failure panics.
fn benign_transfers(netns: &Ns, until: &Stop) -> usize {
    let (stop, mut done) = (Stop::new(), 0);
    let file = tempfile::NamedTempFile::new().map_err(Into::into).must("make a file to upload");
    std::fs::write(file.path(), content::bytes(700_000)).map_err(Into::into).must("fill it");
    loop {
        for base in web_bases() {
            for size in [0, 1_460, 48_000, 700_000, 8_000_000] {
                if until.is_raised() {
                    return done;
                }
                download(netns, &base, size, &[], &stop).must("download");
                done += 1;
            }
            upload(netns, &base, file.path(), &[], &stop).must("upload");
            look_up(netns, "www", &[], &stop).must("look a name up");
            done += 2;
        }
        ping(netns, &["-c", "5", "-i", "0.1", &EDGE_V4.to_string()], &stop).must("ping");
    }
}

#[test]
fn attacks_are_dropped_and_benign_transfers_are_whole() {
    let lab = lab(2, 2);
    let edge = &lab.edge.netns;
    let (_nginx, _dns) = (Nginx::start(edge).must("start nginx"), Dns::start(edge).must("start the name server"));
    let _media = Media::start(edge).must("bind the UDP ports");
    let agent = enforce(&lab);
    let sources: Vec<String> = lab.attackers.iter().map(|host| host.v4[0].to_string()).collect();
    let received =
        Received::count(edge, &[("flood", &sources[0]), ("slow", &sources[1])]).must("count what is received");
    let passed = || received.packets().must("read the counters");
    let sent = |attacker: usize| {
        let counters = interface(&lab.attackers[attacker].netns, UPLINK);
        counters.must("read the attacker's counters").tx_packets
    };

    let until = Stop::new();
    std::thread::scope(|scope| {
        let raise = RaiseOnDrop(&until);
        let _flood = dropped_flood(&agent, &lab.attackers[0], 4444);
        let clients: Vec<_> =
            lab.clients.iter().map(|host| scope.spawn(|| benign_transfers(&host.netns, &until))).collect();
        let slow = &lab.attackers[1];
        let _slow = Attack::slow_http("-H", 200, 40, "-i 3 -x 24")
            .start(&slow.netns, slow.v4[0], Duration::from_secs(60), None)
            .must("start the slow attack");
        wait_for("nine of ten slow connections are dropped", Duration::from_secs(30), || {
            let (long, dropped) = flows_of(&agent, &sources[1]);
            long >= 190 && dropped * 10 >= long * 9
        });
        // From here on the receiver must see nothing of the flood, and next to nothing of the slow connections, which
        // send a header line every three seconds, and again and again when there is no answer.
        let (before, sent_before, slow_before) = (passed(), sent(0), sent(1));
        std::thread::sleep(Duration::from_secs(4));
        let (after, sent_after, slow_after) = (passed(), sent(0), sent(1));
        assert!(sent_after > sent_before + 1_000, "the flood goes on: {sent_before} to {sent_after}");
        assert_eq!(after[0] - before[0], 0, "packets of the flood that were let through");
        let (slow_sent, slow_passed) = (slow_after - slow_before, after[1] - before[1]);
        assert!(slow_sent > 100, "the slow attack goes on: {slow_sent} packets");
        assert!(
            slow_passed * 5 < slow_sent,
            "{slow_passed} of {slow_sent} packets of slow connections were let through"
        );

        drop(raise);
        for client in clients {
            let done = client.join().unwrap_or_else(|panic| std::panic::resume_unwind(panic));
            assert!(done >= 8, "only {done} benign transfers");
        }
    });
    let metrics = agent.metrics().must("scrape");
    assert!(metrics.sum("sensor_packets_total", &[("action", "drop"), ("direction", "ingress")]) > 5_000.0);
    assert!(metrics.sum("sensor_verdicts_total", &[("action", "drop")]) > 50.0);
    for host in &lab.clients {
        let source = host.v4[0].to_string();
        assert_eq!(flows_of(&agent, &source).1, 0, "benign flows of {source} that were dropped");
    }
    agent.stop().must("stop the agent");
}

/// A panic in the middle must not leave the clients running for ever.
struct RaiseOnDrop<'a>(&'a Stop);

impl Drop for RaiseOnDrop<'_> {
    fn drop(&mut self) {
        self.0.raise();
    }
}

#[test]
fn a_transfer_in_both_directions_at_once_is_whole() {
    const SIZE: usize = 4_000_000;
    let lab = lab(1, 0);
    let agent = enforce(&lab);
    let address = (EDGE_V4, 7007);
    let listener = lab.edge.netns.within(|| TcpListener::bind(address)).must("enter the edge");
    let listener = listener.map_err(Into::into).must("listen");
    let client = lab.clients[0].netns.within(|| TcpStream::connect(address)).must("enter the client");
    let client = client.map_err(Into::into).must("connect");
    let (server, _) = listener.accept().map_err(Into::into).must("accept");
    let (up, down) = (content::bytes(SIZE as u64), content::bytes(SIZE as u64 + 1));
    let received = AtomicUsize::new(0);
    let limit = Some(Duration::from_secs(10));
    let begun = Instant::now();
    std::thread::scope(|scope| {
        for (stream, out, expected) in [(&client, &up, &down), (&server, &down, &up)] {
            stream.set_read_timeout(limit).map_err(Into::into).must("set a timeout");
            scope.spawn(move || {
                let mut stream = stream;
                stream.write_all(out).map_err(Into::into).must("send");
            });
            let received = &received;
            scope.spawn(move || {
                let (mut stream, mut bytes) = (stream, vec![0; expected.len()]);
                stream.read_exact(&mut bytes).map_err(Into::into).must("receive");
                assert!(&bytes == expected, "bytes differ");
                received.fetch_add(bytes.len(), Ordering::Relaxed);
            });
        }
    });
    assert_eq!(received.load(Ordering::Relaxed), 2 * SIZE + 1, "in {:?}", begun.elapsed());
    let flows = agent.flows().must("ask for the flows");
    let transfer = flow(&flows, &lab.clients[0].v4[0].to_string(), "tcp", Some(7007));
    for side in ["initiator_bytes", "responder_bytes"] {
        assert!(transfer[side].as_u64().is_some_and(|bytes| bytes > SIZE as u64), "{side} of {transfer}");
    }
    agent.stop().must("stop the agent");
}
