//! An attacker fills the book of verdicts with connections of his own; what an operator decides finds its place all the
//! same.

use sensor_tests::checks::{Must as _, wait_for};
use sensor_tests::onnx::model;
use serde_json::Value;

use super::guard_scene::{Home, PATIENCE, Talkers, echo, lab, service};

const PORT: u16 = 7_911;
/// The smallest book, and more connections than it holds.
const ROOM: u64 = 64;
const CONNECTIONS: usize = 150;
/// Blocks by hand: more than the places that are kept for them.
const BLOCKS: u64 = 24;

#[test]
fn an_operators_verdict_finds_its_place_in_a_full_book() {
    let lab = lab(1, 1);
    service(&lab, PORT, echo);
    let settings = format!("mode = \"observe\"\n[policy]\nmax_verdicts = {ROOM}\n");
    let home = Home::new(&settings, &model("sizes", 200.0, &[]));
    let agent = home.agent(&lab);
    let mut attackers = Talkers::connect(&lab.attackers[0].netns, PORT, CONNECTIONS, 1_200);
    let held = |origin: &str| {
        agent.metrics().must("scrape").sum("sensor_verdicts_held", &[("origin", origin), ("scope", "flow")]) as u64
    };
    let refused = || agent.metrics().must("scrape").sum("sensor_verdicts_refused_total", &[]) as u64;
    wait_for("the book is full of the model's", PATIENCE, || {
        attackers.talk();
        held("model") >= ROOM * 3 / 4 && refused() > 0
    });
    for number in 0..BLOCKS {
        let scope = format!("tcp,198.19.0.{}:4000,198.18.0.10:80", number + 1);
        let answer: Value = agent.ask_json(&["verdicts", "add", "drop", &scope]).must("block by hand");
        assert_eq!(answer["origin"], "operator", "{answer}");
    }
    wait_for("all blocks are held", PATIENCE, || held("operator") == BLOCKS);
    let (model, refused) = (held("model"), refused());
    println!(
        "full book: {BLOCKS} of {BLOCKS} blocks by hand held beside {model} of the model's, {refused} of these refused"
    );
    assert!(model + BLOCKS <= ROOM && model >= ROOM / 2, "{model} of the model's go on");
    agent.stop().must("stop the agent");
}
