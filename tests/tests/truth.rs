//! Every packet that the programs saw is in a record, dropped by a verdict, or counted by its cause: at every instant, while the
//! table fills, a million tuples come, the agent polls, stands still, is killed and begins again, and the interface goes and
//! comes. Added up from outside of the agent by [`sensor::bpf::balance`], which says how exact a look at moving parts can be;
//! whenever traffic pauses, the sums are equal, and equal to what the device counts. Needs root.

#[path = "truth/checker.rs"]
mod checker;
#[path = "truth/lasting.rs"]
mod lasting;
#[path = "truth/scene.rs"]
mod scene;

use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use checker::{Checker, ingress, metrics_agree, unrecorded};
use rustix::process::Signal;
use scene::Scene;
use sensor::bpf::balance::{Balance, Sample, elsewhere, seen};
use sensor_common::counter::Cause;
use sensor_tests::agent::Agent;
use sensor_tests::checks::{Must as _, has_xdp, kill, wait_for};

/// Waits until the flood has sent so many tuples.
fn until(progress: &AtomicU64, tuples: u64) {
    while progress.load(Ordering::Relaxed) < tuples {
        std::thread::sleep(Duration::from_millis(1));
    }
}

/// The sums are equal, and what the programs received is what the device did since `before`.
fn exact(scene: &Scene, balance: &Balance, before: (u64, u64), what: &str) -> Sample {
    let sample = scene.settle(balance, what);
    assert_eq!(sample.at_most(), seen(&sample.counters[0]), "{what}");
    let (device, programs) = (scene.received().rx_packets - before.0, ingress(&sample) - before.1);
    assert_eq!(programs, device, "{what}: frames received, by programs and device");
    sample
}

/// The end: in the table, with the agent, or lost by a cause.
fn ends(scene: &Scene, balance: &Balance, agent: Agent) {
    let log = agent.stop().must("stop the agent");
    let end = scene.settle(balance, "the end");
    assert_eq!(end.ring, 0, "the last agent empties the ring");
    assert_eq!(unrecorded(&end, Cause::Internal), 0);
    // Nothing is lost without a cause: what is left of the sum is in records.
    let recorded = end.table[0] + end.books.released + end.books.evicted;
    assert_eq!(recorded, seen(&end.counters[0]) - elsewhere(&end.counters[0]));
    assert!(log.contains("programs detached"), "{log}");
    assert_eq!(scene.mount.pins(), None, "pins are left");
}

fn a_million_tuples(mode: &'static str) {
    let scene = Scene::build(mode);
    let agent = scene.agent();
    let balance = scene.balance();
    let begin = scene.settle(&balance, "the beginning");
    let base = (scene.received().rx_packets, ingress(&begin));

    let checker = Checker::start(&balance);
    // Twice as many flows as there are places, of some packets each, which nobody answers.
    scene.send(0..16_384, 4, |_| {});
    let full = exact(&scene, &balance, base, "the table is full");
    assert!(full.counters[0].evicted + full.counters[0].evicted_lost_flows > 1_000, "{full:#?}");

    let (handed_over, lasting) = (scene.handed_over(), scene.lasting.sent());
    let tally = scene.send_datagrams(20_000..1_020_000, 1, |progress| {
        until(progress, 500_000);
        agent.kill(Signal::STOP).must("stop the agent in its tracks");
        std::thread::sleep(Duration::from_secs(1));
        agent.kill(Signal::CONT).must("let the agent go on");
    });
    let flooded = exact(&scene, &balance, base, "a million tuples");
    let lasting = scene.lasting.sent() - lasting;
    let dropped = scene.handed_over().tx_dropped - handed_over.tx_dropped;
    assert_eq!(
        ingress(&flooded) - ingress(&full),
        tally.flood + lasting - dropped,
        "{tally:?}, {dropped} without room"
    );
    assert!(flooded.counters[0].evicted_lost_packets > 1_000 && flooded.books.evicted > 1_000, "{flooded:#?}");
    scene.lasting_are_whole(&balance);
    // The last of the flood stay until they are idle for long enough.
    wait_for("the agent releases flows", Duration::from_secs(20), || {
        scene.settle(&balance, "flows are released").books.released > 1_000
    });
    metrics_agree(&agent, &scene, &balance);
    checker.end("a full table, a million tuples, and an agent that stands still");
    ends(&scene, &balance, agent);
}

fn an_agent_that_is_killed(mode: &'static str) {
    let scene = Scene::build(mode);
    let first = scene.agent();
    let balance = scene.balance();
    let begin = scene.settle(&balance, "the beginning");
    let base = (scene.received().rx_packets, ingress(&begin));
    let checker = Checker::start(&balance);
    let mut second = None;
    let tally = scene.send(0..300_000, 1, |progress| {
        until(progress, 50_000);
        kill(&first);
        until(progress, 100_000);
        second = Some(scene.agent_after(&first, &["--takeover"]));
    });
    let second = second.expect("started");
    let killed = exact(&scene, &balance, base, "another agent took over");
    assert!(tally.transfers > 0 && killed.books.evicted > 1_000, "{tally:?}, {killed:#?}");
    scene.lasting_are_whole(&balance);
    metrics_agree(&second, &scene, &balance);

    let mut third = None;
    scene.send(300_000..500_000, 1, |progress| {
        until(progress, 20_000);
        third = Some(scene.agent_after(&second, &["--takeover"]));
    });
    second.wait_for_end(Duration::from_secs(5)).must("the second agent ends");
    let replaced = exact(&scene, &balance, base, "a living agent was replaced");
    assert!(replaced.books.evicted > killed.books.evicted, "{replaced:#?}");
    scene.lasting_are_whole(&balance);
    checker.end("an agent is killed, and others take over");
    ends(&scene, &balance, third.expect("started"));
}

fn an_interface_that_goes_and_comes(mode: &'static str) {
    let scene = Scene::build(mode);
    let first = scene.agent();
    let balance = scene.balance();
    let checker = Checker::start(&balance);
    scene.send(0..150_000, 1, |progress| {
        until(progress, 30_000);
        scene.set_down();
        std::thread::sleep(Duration::from_millis(200));
        scene.set_up();
    });
    let flapped = scene.settle(&balance, "the interface went down and up");
    assert!(ingress(&flapped) > 20_000, "{flapped:#?}");
    scene.send(200_000..250_000, 1, |progress| {
        until(progress, 10_000);
        scene.replace_link();
    });
    scene.settle(&balance, "the interface is another one");
    wait_for("the agent watches the new interface", Duration::from_secs(8), || {
        first.log().contains("is there again: attached")
    });
    let again = scene.settle(&balance, "the new interface is watched");
    let base = (scene.received().rx_packets, ingress(&again));
    let tally = scene.send(250_000..300_000, 1, |_| {});
    let seen_again = exact(&scene, &balance, base, "the new interface");
    let arrived = tally.flood - scene.handed_over().tx_dropped;
    assert!(arrived > 10_000 && ingress(&seen_again) >= ingress(&again) + arrived, "{arrived}, {seen_again:#?}");
    metrics_agree(&first, &scene, &balance);

    kill(&first);
    scene.replace_link();
    let removed = scene.settle(&balance, "the interface is another one, and no agent is there");
    // An agent that begins there watches the new one; what the old one counted stays.
    let second = scene.agent_after(&first, &["--takeover"]);
    let adopted = scene.settle(&balance, "another interface is watched");
    assert!(ingress(&adopted) >= ingress(&removed), "what an interface counted is lost with it");
    let base = (scene.received().rx_packets, ingress(&adopted));
    let tally = scene.send(300_000..350_000, 1, |_| {});
    let last = exact(&scene, &balance, base, "the new interface");
    let arrived = tally.flood - scene.handed_over().tx_dropped;
    assert!(arrived > 10_000 && ingress(&last) >= ingress(&adopted) + arrived, "{arrived}, {last:#?}");
    metrics_agree(&second, &scene, &balance);
    checker.end("the interface goes and comes");
    ends(&scene, &balance, second);
}

#[test]
fn a_million_tuples_with_native_xdp() {
    a_million_tuples("native");
}

#[test]
fn a_million_tuples_at_tc_ingress() {
    a_million_tuples("tc");
}

#[test]
fn an_agent_that_is_killed_with_native_xdp() {
    an_agent_that_is_killed("native");
}

#[test]
fn an_agent_that_is_killed_at_tc_ingress() {
    an_agent_that_is_killed("tc");
}

#[test]
fn an_interface_that_goes_and_comes_with_native_xdp() {
    an_interface_that_goes_and_comes("native");
}

#[test]
fn an_interface_that_goes_and_comes_at_tc_ingress() {
    an_interface_that_goes_and_comes("tc");
}

/// A plain start after a kill: with pins, the new agent removes the old maps, which balance to the end; without, they go
/// with the agent.
#[test]
fn a_new_beginning_loses_nothing_that_it_saw() {
    let scene = Scene::build("native");
    let first = scene.agent();
    let old = scene.balance();
    let checker = Checker::start(&old);
    let mut second = None;
    scene.send(0..300_000, 1, |progress| {
        until(progress, 30_000);
        kill(&first);
        second = Some(scene.agent_after(&first, &[]));
    });
    let second = second.expect("started");
    scene.settle(&old, "maps that are not used any more");
    checker.end("maps that another agent removes");
    let new = scene.balance();
    let checker = Checker::start(&new);
    let begin = scene.settle(&new, "new maps");
    let base = (scene.received().rx_packets, ingress(&begin));
    scene.send(400_000..500_000, 1, |_| {});
    exact(&scene, &new, base, "new maps");
    metrics_agree(&second, &scene, &new);
    checker.end("new maps");
    second.stop().must("stop the agent");

    let third = scene.agent_without_pins();
    scene.send(600_000..700_000, 1, |progress| {
        until(progress, 30_000);
        kill(&third);
        wait_for("the programs are gone", Duration::from_secs(3), || !has_xdp(&scene.edge, scene::DEVICE));
    });
    let fourth = scene.agent_without_pins();
    let begin = scene.received().rx_packets;
    let before = fourth.metrics().must("scrape").sum("sensor_packets_total", &[("direction", "ingress")]);
    scene.send(800_000..900_000, 1, |_| {});
    // From here by what the agent says of itself alone.
    let mut said = String::new();
    for _ in 0..8 {
        std::thread::sleep(Duration::from_millis(1_200));
        let (metrics, flows) = (fourth.metrics().must("scrape"), fourth.flows().must("ask for the flows"));
        let of = |key: &str| flows.iter().filter_map(|flow| flow[key].as_u64()).sum::<u64>() as f64;
        let [packets, received, loss, ended] = [
            metrics.sum("sensor_packets_total", &[]),
            metrics.sum("sensor_packets_total", &[("direction", "ingress")]),
            metrics.sum("sensor_loss_packets_total", &[]),
            metrics.sum("sensor_ended_packets_total", &[]),
        ];
        let dropped = metrics.sum("sensor_packets_total", &[("action", "drop")]);
        let device = (scene.received().rx_packets - begin) as f64 + before;
        said = format!(
            "{packets} seen, {received} received, {device} by the device, {loss} lost, {dropped} dropped, {ended} ended"
        );
        if flows.is_empty() && packets == loss + dropped + ended + of("initiator_packets") && received == device {
            fourth.stop().must("stop the agent");
            return;
        }
    }
    panic!("seen and accounted for never agree: {said}");
}
