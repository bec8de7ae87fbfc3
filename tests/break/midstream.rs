//! Connections that are older than the agent go on, whatever a model says of the rest that it sees of them.

use sensor_tests::checks::{Must as _, wait_for};
use sensor_tests::onnx::model;
use sensor_tests::topology::EDGE_V4;

use super::guard_scene::{Home, PATIENCE, Talkers, echo, lab, service};

const PORT: u16 = 7_914;
/// Messages that the model takes for an attack.
const SIZE: usize = 1_200;
const CONNECTIONS: usize = 5;

#[test]
fn a_connection_that_was_picked_up_midway_goes_on() {
    let lab = lab(1, 0);
    service(&lab, PORT, echo);
    let netns = &lab.clients[0].netns;
    let mut old = Talkers::connect(netns, PORT, CONNECTIONS, SIZE);
    old.talk();
    let home = Home::new("mode = \"enforce\"\n", &model("sizes", 200.0, &[]));
    let agent = home.agent(&lab);
    let spared = || {
        let metrics = agent.metrics().must("scrape");
        metrics.sum("sensor_spared_flows_total", &[("reason", "midstream")]) as usize
    };
    wait_for("the model accuses all of them", PATIENCE, || {
        old.talk();
        spared() >= CONNECTIONS
    });
    (0..20).for_each(|_| old.talk());
    let served = old.answered();
    println!("midstream: {served} of {CONNECTIONS} connections that are older than the agent go on");
    assert_eq!(served, CONNECTIONS);
    let mut new = Talkers::connect(netns, PORT, CONNECTIONS, SIZE);
    wait_for("a new one of the same kind is cut", PATIENCE, || {
        new.talk();
        new.answered() == 0
    });
    assert_eq!(old.answered(), CONNECTIONS);
    // What a person decides holds for them, too.
    agent.ask_json(&["verdicts", "add", "drop", &lab.clients[0].v4[0].to_string()]).must("block by hand");
    assert_eq!(old.answered(), 0, "of {EDGE_V4}:{PORT}");
    agent.stop().must("stop the agent");
}
