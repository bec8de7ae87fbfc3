//! A model to which everything is an attack cuts off nobody for long: the breaker opens, says why, and closes by command.
//!
//! Measured as transfers: each job of the crowd is a whole download or look-up by a program of its own, compared byte by
//! byte; one that stands still for six seconds has failed.

use std::time::Duration;

use sensor_tests::checks::{Must as _, wait_for};
use sensor_tests::clients::{download, ping};
use sensor_tests::crowd::Crowd;
use sensor_tests::onnx::model;
use sensor_tests::rng::Rng;
use sensor_tests::servers::Nginx;
use sensor_tests::topology::{EDGE_V4, EDGE_V6};

use super::scene::{EVERYTHING, Files, PATIENCE, lab, metric};

/// Transfers to be counted: enough for a hundredth of them to be several.
const TRANSFERS: u64 = 400;

#[test]
fn a_model_that_is_wrong_about_everything_cuts_off_nobody() {
    let lab = lab(3, 0);
    // All as it comes, but for the mode and the model.
    let files = Files::new("mode = \"enforce\"\n", Some(&model("all", EVERYTHING, &[])));
    let _nginx = Nginx::start(&lab.edge.netns).must("start nginx");
    let agent = files.agent(&lab, &[]);
    let mut crowd = Crowd::new();
    for number in 0..9 {
        let netns = lab.clients[number % 3].netns.clone();
        crowd.join(Rng::new(number as u64), 5..40, move |rng, stop| {
            let base = if rng.one_in(2) { format!("http://{EDGE_V4}") } else { format!("http://[{EDGE_V6}]") };
            match rng.range(0..8) {
                0 => ping(&netns, &["-c", "3", "-i", "0.1", "-W", "6", &EDGE_V4.to_string()], stop),
                1 => download(&netns, &base, 700_000, &[], stop),
                _ => download(&netns, &base, rng.pick(&[1_460, 9_000, 48_000, 130_000]), &[], stop),
            }
        });
    }
    let tally = crowd.tally.clone();
    wait_for("the transfers", Duration::from_secs(60), || tally.count().ok + tally.count().failed >= TRANSFERS);
    let count = crowd.disperse();
    let share = count.ok as f64 / (count.ok + count.failed) as f64;
    let status = agent.status().must("ask for the status");
    let breaker = &status["enforcement"]["breaker"];
    let reason = breaker["reason"].as_str().unwrap_or_default().to_owned();
    println!(
        "breaker: {} transfers, {} failed ({:.2} % succeeded), {:.1} MB; \"{reason}\"",
        count.ok + count.failed,
        count.failed,
        share * 100.0,
        count.bytes as f64 / 1e6
    );
    assert!(share >= 0.99, "{count:?}: {:?}", tally.errors());
    assert_eq!(breaker["open"], true, "{breaker}");
    assert!(reason.contains("would be dropped") || reason.contains("new verdicts"), "{reason}");
    assert_eq!(metric(&agent, "sensor_breaker_open", &[], 1), 1);
    let trips = metric(&agent, "sensor_breaker_trips_total", &[], 1);
    assert_eq!(trips, 1);
    let tripped = files.events("breaker_tripped");
    assert_eq!((tripped.len(), tripped[0]["text"].as_str()), (1, Some(reason.as_str())));
    assert!(agent.log().contains("the breaker is open"), "the log says so");

    // What the breaker looked at has to be over, or it opens again at once.
    wait_for("the connections are over", PATIENCE, || {
        agent.flows().must("ask for the flows").iter().all(|flow| flow["protocol"] != "tcp")
    });
    let closed = agent.ask_json(&["breaker", "reset"]).must("close the breaker");
    assert_eq!(closed["open"], false, "{closed}");
    assert_eq!(agent.metrics().must("scrape").sum("sensor_breaker_open", &[]), 0.0);
    let held = agent.metrics().must("scrape").sum("sensor_verdicts_held", &[("action", "drop")]);
    assert_eq!(held, 0.0, "what was decided meanwhile is not obeyed now");
    // Lines are written by a thread of their own, here behind those of all that was withdrawn.
    wait_for("the line of the reset", PATIENCE, || !files.events("breaker_reset").is_empty());
    let reset = files.events("breaker_reset");
    assert_eq!(reset.len(), 1, "{reset:?}");
    assert!(reset[0]["by"].as_str().is_some_and(|by| by.contains("uid 0")), "{reset:?}");
    agent.stop().must("stop the agent");
}
