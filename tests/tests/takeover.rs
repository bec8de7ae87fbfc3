//! One agent after another on the same maps and links: nothing of the traffic, of the flows and of the verdicts may be lost
//! on the way. Every promise with real traffic, counted at its receiver. Needs root.

#[path = "takeover/clsact.rs"]
mod clsact;
#[path = "takeover/qdisc.rs"]
mod qdisc;
#[path = "takeover/scene.rs"]
mod scene;

use std::time::{Duration, Instant};

use rustix::process::Signal;
use scene::{LEASE, MARGIN, Scene, Stream};
use sensor_tests::agent::Agent;
use sensor_tests::checks::{Must as _, assert_clean, count, flow, has_xdp, kill, wait_for, wait_until_dropped};
use sensor_tests::topology::UPLINK;

#[test]
fn a_living_agent_is_replaced_under_load_without_a_packet_or_a_verdict_lost() {
    let scene = Scene::build("");
    let (received, first, flood) = scene.dropping();
    let stream = Stream::start(&scene.lab);
    wait_for("the stream runs", Duration::from_secs(5), || stream.received() > 5_000);
    let before = stream.flow(&first);
    let (let_through, begun) = (count(&received), Instant::now());

    let second = first.start_beside(&scene.args(&["--takeover"])).must("take over");
    let took = begun.elapsed();
    let log = first.wait_for_end(Duration::from_secs(5)).must("the first agent ends with success");
    assert!(log.contains(&format!("to pid {}", second.pid())), "{log}");
    assert!(second.log().contains("took over"), "{}", second.log());
    std::thread::sleep(2 * LEASE);
    assert_eq!(count(&received), let_through, "packets of a flow under a drop verdict came through");
    assert!(flood.is_running());

    let (sent, arrived) = stream.end();
    assert_eq!(arrived, sent, "datagrams sent and received");
    wait_for("every packet is in the flow's record", Duration::from_secs(2), || {
        scene.stream_flow(&second)["initiator_packets"] == sent
    });
    let after = scene.stream_flow(&second);
    assert_eq!(after["id"], before["id"], "the flow goes on in its record: {after}");
    eprintln!("{sent} datagrams sent, {arrived} received; ready {took:?} after the start");
    drop(flood);
    scene.end(second);
}

#[test]
fn what_a_killed_agent_left_passes_after_the_lease_and_is_taken_over() {
    let scene = Scene::build("");
    let edge = &scene.lab.edge.netns;
    let (received, first, flood) = scene.dropping();
    let before = count(&received);
    let id = scene.flood_flow(&first)["id"].clone();
    first.kill(Signal::KILL).must("kill the agent");
    let open = wait_for("the flood arrives again", LEASE + MARGIN, || count(&received) > before + 20);
    wait_for("the kernel has cleared the agent away", Duration::from_secs(3), || !first.is_running());
    assert!(has_xdp(edge, UPLINK), "pinned programs stay attached");
    assert!(scene.mount.pins().is_some_and(|pins| pins.iter().any(|pin| pin == "META")));

    let second = first.start_beside(&scene.args(&["--takeover"])).must("take over");
    wait_until_dropped(&received);
    let after = scene.flood_flow(&second);
    assert_eq!(after["id"], id, "the flow goes on in its record, and so does its verdict");
    eprintln!("killed: traffic flowed after {open:?}");
    drop(flood);
    scene.end(second);
}

/// Nobody else renews the lease while the next agent loads its programs.
#[test]
fn verdicts_of_a_killed_agent_hold_while_the_next_one_starts() {
    let scene = Scene::build("");
    let (received, first, flood) = scene.dropping();
    kill(&first);
    let (before, begun) = (count(&received), Instant::now());
    let second = first.start_beside(&scene.args(&["--takeover"])).must("take over");
    let took = begun.elapsed();
    assert_eq!(count(&received), before, "datagrams of a dropped flow arrived in the {took:?} of the takeover");
    drop(flood);
    scene.end(second);
}

#[test]
fn a_plain_start_removes_what_a_killed_agent_left() {
    let scene = Scene::build("");
    let edge = &scene.lab.edge.netns;
    let first = scene.agent(&[]);
    let stream = Stream::start(&scene.lab);
    let refused = first.start_beside(&scene.args(&[])).expect_err("two agents with the same pins");
    let (refused, owner) = (format!("{refused:#}"), format!("pid {}", first.pid()));
    assert!(refused.contains(&owner) && refused.contains("--takeover"), "{refused}");
    assert!(first.is_running() && first.status().is_ok());
    kill(&first);
    assert!(has_xdp(edge, UPLINK));
    let second = first.start_beside(&scene.args(&[])).must("start anew");
    assert!(second.log().contains("removed what an agent that was killed left"), "{}", second.log());
    wait_for("the stream's flow is new", Duration::from_secs(3), || {
        let flows = second.flows().must("ask for the flows");
        flows.iter().any(|flow| flow["dport"] == scene::STREAM_PORT)
    });
    let (sent, arrived) = stream.end();
    assert_eq!(arrived, sent);
    assert!(scene.stream_flow(&second)["initiator_packets"].as_u64().is_some_and(|packets| packets < sent));
    scene.end(second);
}

#[test]
fn an_agent_that_hangs_is_killed_and_replaced() {
    let scene = Scene::build("");
    let (received, first, flood) = scene.dropping();
    let before = count(&received);
    first.kill(Signal::STOP).must("stop the agent in its tracks");
    let open = wait_for("the flood arrives again", LEASE + MARGIN, || count(&received) > before + 20);
    let begun = Instant::now();
    let second = first.start_beside(&scene.args(&["--takeover"])).must("take over");
    let took = begun.elapsed();
    assert!(second.log().contains("because it hangs"), "{}", second.log());
    wait_for("the first agent is gone", Duration::from_secs(3), || !first.is_running());
    wait_until_dropped(&received);
    eprintln!("hung: traffic flowed after {open:?}; the next agent was ready {took:?} after its start");
    drop(flood);
    scene.end(second);
}

/// The next agent waits seconds for an answer before it takes the other for hung. Until then nothing else renews the
/// lease.
#[test]
fn verdicts_hold_while_an_agent_that_hangs_is_replaced() {
    let scene = Scene::with_lease(Duration::from_secs(5), "");
    let (received, first, flood) = scene.dropping();
    first.kill(Signal::STOP).must("stop the agent in its tracks");
    let (before, begun) = (count(&received), Instant::now());
    let second = first.start_beside(&scene.args(&["--takeover"])).must("take over");
    let took = begun.elapsed();
    assert!(took > Duration::from_secs(4), "it did not wait for the one that hangs: {took:?}");
    assert!(second.log().contains("because it hangs"), "{}", second.log());
    assert_eq!(count(&received), before, "datagrams of a dropped flow arrived in the {took:?} of the takeover");
    drop(flood);
    scene.end(second);
}

#[test]
fn what_does_not_fit_is_refused_and_the_agent_that_runs_goes_on() {
    let scene = Scene::build("");
    let first = scene.agent(&[]);
    let stream = Stream::start(&scene.lab);
    wait_for("the stream runs", Duration::from_secs(5), || stream.received() > 1_000);
    let before = stream.flow(&first);
    let larger = scene.configuration("[kernel]\nflows = 131072\n");
    let larger = larger.path().to_string_lossy();
    let refused = first.start_beside(&scene.args_with(&larger, &["--takeover"])).expect_err("another table size");
    let refused = format!("{refused:#}");
    for word in ["kernel.flows = 131072", "65536", "--takeover=always"] {
        assert!(refused.contains(word), "\"{word}\" is not in: {refused}");
    }
    assert!(first.is_running());
    assert_eq!(stream.flow(&first)["id"], before["id"]);

    scene.change_schema();
    let refused = first.start_beside(&scene.args(&["--takeover"])).expect_err("another schema");
    assert!(format!("{refused:#}").contains("schema"), "{refused:#}");
    assert!(first.is_running() && first.status().is_ok());

    let second = first.start_beside(&scene.args_with(&larger, &["--takeover=always"])).must("start anew");
    first.wait_for_end(Duration::from_secs(5)).must("the first agent ends with success");
    assert_eq!(second.status().must("ask for the status")["table"]["capacity"], 131_072);
    let (sent, arrived) = stream.end();
    assert_eq!(arrived, sent, "the traffic does not notice");
    scene.end(second);
}

#[test]
fn what_a_killed_agent_left_outlives_an_attempt_that_does_not_fit() {
    let scene = Scene::build("on_agent_loss = \"keep\"\n");
    let (received, first, flood) = scene.dropping();
    let (before, id) = (count(&received), scene.flood_flow(&first)["id"].clone());
    kill(&first);
    let pins = || scene.mount.pins().map(|pins| pins.into_iter().collect::<std::collections::BTreeSet<_>>());
    let left = pins();

    let larger = scene.configuration("[kernel]\nflows = 131072\n");
    let larger = larger.path().to_string_lossy();
    let refused = first.start_beside(&scene.args_with(&larger, &["--takeover"])).expect_err("another table size");
    assert!(format!("{refused:#}").contains("kernel.flows = 131072"), "{refused:#}");
    assert_eq!(pins(), left, "all pins are there still");

    let second = first.start_beside(&scene.args(&["--takeover"])).must("take over with the size that fits");
    assert_eq!(scene.flood_flow(&second)["id"], id, "the flow goes on in its record");
    assert_eq!(count(&received), before, "a packet came through");
    drop(flood);
    scene.end(second);
}

#[test]
fn a_directory_with_pins_of_others_is_not_touched() {
    let scene = Scene::build("on_agent_loss = \"keep\"\n");
    let others = scene.mount.path().join("tool");
    std::fs::create_dir_all(scene.mount.path()).map_err(Into::into).must("make the directory");
    // What kind of file it is does not matter: a pin of a map takes programs of somebody else's to make.
    std::os::unix::fs::symlink("elsewhere", &others).map_err(Into::into).must("put something of somebody else there");
    let refused = Agent::start(&scene.lab.edge.netns, &scene.args(&[])).expect_err("a directory of others");
    let refused = format!("{refused:#}");
    assert!(refused.contains("tool") && refused.contains("a directory of its own"), "{refused}");
    assert!(others.is_symlink(), "what is somebody else's is gone");
}

#[test]
fn verdicts_outlive_an_agent_that_is_to_be_kept() {
    let scene = Scene::build("on_agent_loss = \"keep\"\n");
    let (received, first, flood) = scene.dropping();
    let before = count(&received);
    first.kill(Signal::KILL).must("kill the agent");
    std::thread::sleep(3 * LEASE);
    assert_eq!(count(&received), before, "the verdict ended with the lease");
    assert!(flood.is_running());
    // What is not wanted any more is taken off by hand.
    std::fs::remove_dir_all(scene.mount.path()).map_err(Into::into).must("remove the pins");
    wait_for("the flood arrives again", Duration::from_secs(2), || count(&received) > before + 20);
    assert_clean(&scene.lab.edge.netns, UPLINK);
}

#[test]
fn an_agent_that_is_told_to_leaves_everything_to_the_next() {
    let scene = Scene::build("");
    let first = scene.agent(&[]);
    let stream = Stream::start(&scene.lab);
    wait_for("the stream runs", Duration::from_secs(5), || stream.received() > 1_000);
    let before = stream.flow(&first);
    first.kill(Signal::USR2).must("tell the agent");
    wait_for("it ends", Duration::from_secs(3), || !first.is_running());
    assert!(first.log().contains("left programs"), "{}", first.log());
    let second = first.start_beside(&scene.args(&["--takeover"])).must("take over");
    let (sent, arrived) = stream.end();
    assert_eq!(arrived, sent);
    wait_for("every packet is in the flow's record", Duration::from_secs(2), || {
        scene.stream_flow(&second)["initiator_packets"] == sent
    });
    assert_eq!(scene.stream_flow(&second)["id"], before["id"]);
    let flows = second.flows().must("ask for the flows");
    assert_eq!(flow(&flows, &scene.client(), "udp", Some(scene::STREAM_PORT))["interface"], UPLINK);
    scene.end(second);
}

#[test]
fn what_the_store_does_not_know_is_taken_over_from_the_kernel() {
    let scene = Scene::build("");
    let first = scene.agent(&[]);
    let ask = |agent: &Agent, words: &[&str]| agent.ask_json(words).must("ask the agent");
    for words in [
        &["drop", "198.18.77.7"][..],
        &["drop", "198.18.78.0/24"],
        &["limit", "198.18.79.9", "--pps", "33333"],
        &["limit", "tcp,198.18.0.10:80", "--pps", "10"],
        &["drop", "udp,198.18.80.1:1000,198.18.0.10:2000"],
    ] {
        ask(&first, &[&["verdicts", "add"], words, &["--for", "1h"]].concat());
    }
    ask(&first, &["allow", "add", "198.18.90.0/24", "--for", "1h"]);
    let verdicts = |agent: &Agent| {
        let list = ask(agent, &["verdicts", "list"]);
        let said = |verdict: &serde_json::Value| {
            let [scope, action, origin, id] = ["scope", "action", "origin", "id"].map(|name| verdict[name].to_string());
            format!("{id} {action} {scope} {} by {origin}", verdict["rate"])
        };
        let mut all: Vec<String> =
            list["verdicts"].as_array().unwrap_or_else(|| panic!("no list: {list}")).iter().map(said).collect();
        all.sort();
        all
    };
    let before = verdicts(&first);
    assert_eq!(before.len(), 5, "{before:#?}");
    kill(&first);

    let elsewhere = tempfile::tempdir().map_err(Into::into).must("make another state directory");
    let elsewhere = elsewhere.path().to_string_lossy();
    let second = first.start_beside(&scene.args(&["--takeover", "--state-dir", &elsewhere])).must("take over");
    assert_eq!(verdicts(&second), before);
    let allowed = ask(&second, &["allow", "list"]).to_string();
    assert!(allowed.contains("198.18.90.0/24") && allowed.contains("until_unix_ms"), "{allowed}");
    // What is known can be taken back.
    assert_eq!(ask(&second, &["verdicts", "remove", "--all"]).as_array().map(Vec::len), Some(5));
    ask(&second, &["allow", "remove", "198.18.90.0/24"]);
    scene.end(second);
}
