//! Model files that are broken or made to hurt. Each must be refused, in bounded time and memory.

use crate::onnx::{Message, contract, file, floats, integers, model, node};
use crate::rng::Rng;

/// Name and bytes of each file.
#[must_use]
pub fn files() -> Vec<(&'static str, Vec<u8>)> {
    let good = model("good", 200.0, &[]);
    let mut flipped = good.clone();
    if let Some(byte) = flipped.get_mut(20) {
        *byte ^= 0x7f;
    }
    vec![
        ("empty", Vec::new()),
        ("random bytes", noise(100_000)),
        ("a script", b"#!/bin/sh\nexit 0\n".to_vec()),
        ("cut in half", good[..good.len() / 2].to_vec()),
        ("a flipped byte in the graph", flipped),
        ("lengths beyond the end", b"\x3a\xff\xff\xff\x0f".repeat(1_000)),
        ("nested a thousand deep", nested(1_000)),
        ("a cycle", graph(&[node("Add", &["b", "x"], "a"), node("Relu", &["a"], "b"), last("a")], &[])),
        ("a node that eats itself", graph(&[node("Add", &["a", "x"], "a"), last("a")], &[])),
        ("an input that nobody gives", graph(&[node("Add", &["x", "nowhere"], "a"), last("a")], &[])),
        ("an operator that nobody knows", graph(&[node("Nonsense", &["x"], "a"), last("a")], &[])),
        ("NaN weights", weights(f32::NAN)),
        ("infinite weights", weights(f32::INFINITY)),
        ("weights of a petabyte", graph(&linear(), &[claimed(&[1 << 48, 2])])),
        ("weights of overflowing size", graph(&linear(), &[claimed(&[1 << 40, 1 << 40])])),
        ("weights of negative size", graph(&linear(), &[claimed(&[u64::MAX, 2])])),
        ("weights that are cut short", graph(&linear(), &[claimed(&[2, 4_000_000])])),
        ("weights in another file", graph(&linear(), &[external("/etc/passwd")])),
        ("2 GiB of zeros from four bytes", constants(1 << 29)),
        ("256 GiB of zeros from eight bytes", constants(1 << 36)),
        ("zeros of a negative shape", constants(-5)),
        ("16 GiB by broadcasting", expand()),
        ("a range of 10^12 numbers", range()),
        ("a billion columns by tiling", tile()),
        ("a range whose length is a value", range_of_values()),
        ("a branch that a value takes", branch()),
        ("a first axis of 100,000 parentheses", symbolic(&"(".repeat(100_000))),
        ("a first axis of 20,000 products", symbolic(&vec!["N"; 20_000].join("*"))),
        ("a network that is too slow", slow()),
        ("more nodes than allowed", chain(30_000)),
        ("golden rows of another graph", model("m", 200.0, &[("golden_outputs", "[[1,0],[1,0],[1,0],[1,0]]")])),
        ("a contract of 5 MB", model("m", 200.0, &[("trained_on", &"x".repeat(5_000_000))])),
        ("features nested 100,000 deep", model("m", 200.0, &[("features", &"[".repeat(100_000))])),
        ("a million features", model("m", 200.0, &[("features", &many(1_000_000 / 8))])),
        ("a name that is a metric of its own", model("x\"} 1\nsensor_fake 1", 200.0, &[])),
    ]
}

fn graph(nodes: &[Message], tensors: &[Message]) -> Vec<u8> {
    file(nodes, tensors, &contract("hostile", 200.0, &[]), "N")
}

fn last(input: &str) -> Message {
    node("Softmax", &[input], "probabilities")
}

fn linear() -> [Message; 2] {
    [node("MatMul", &["x", "w"], "logits"), last("logits")]
}

fn weights(value: f32) -> Vec<u8> {
    graph(&linear(), &[floats("w", &[2, 2], &[value; 4])])
}

/// Weights of a size that the file does not hold.
fn claimed(dims: &[u64]) -> Message {
    floats("w", dims, &[1.0; 4])
}

fn external(path: &str) -> Message {
    let location = Message::default().text(1, "location").text(2, path);
    let shape = Message::default().varint(2).varint(2);
    Message::default().bytes(1, &shape.0).number(2, 1).text(8, "w").message(13, &location).number(14, 1)
}

/// Zeros of a shape that is computed when the graph is optimised, reduced to one number.
fn constants(size: i64) -> Vec<u8> {
    let nodes = [
        zeros("shape", "zeros"),
        node("Exp", &["zeros"], "ones"),
        node("ReduceMax", &["ones"], "one"),
        node("Add", &["x", "one"], "a"),
        last("a"),
    ];
    graph(&nodes, &[integers("shape", &[size])])
}

/// A constant of a shape that another tensor holds.
fn zeros(shape: &str, output: &str) -> Message {
    let value = Message::default().text(1, "value").message(5, &floats("zero", &[1], &[0.0])).number(20, 4);
    node("ConstantOfShape", &[shape], output).message(5, &value)
}

fn expand() -> Vec<u8> {
    let nodes = [
        node("Expand", &["one", "shape"], "ones"),
        node("Exp", &["ones"], "e"),
        node("ReduceMax", &["e"], "max"),
        node("Add", &["x", "max"], "a"),
        last("a"),
    ];
    graph(&nodes, &[floats("one", &[1, 1], &[1.0]), integers("shape", &[65_536, 65_536])])
}

fn range() -> Vec<u8> {
    let nodes = [
        node("Range", &["from", "to", "step"], "range"),
        node("ReduceMax", &["range"], "max"),
        node("Add", &["x", "max"], "a"),
        last("a"),
    ];
    graph(&nodes, &[floats("from", &[], &[0.0]), floats("to", &[], &[1e12]), floats("step", &[], &[1.0])])
}

/// The linear model plus next to nothing (zero would be optimised away): a tiny part of what `nodes` make of `m`, the largest value of the input, in `n`.
fn with_nothing(nodes: Vec<Message>) -> Vec<u8> {
    let keep = Message::default().text(1, "keepdims").number(3, 0).number(20, 2);
    let mut all = vec![
        node("MatMul", &["x", "w"], "linear"),
        node("ReduceMax", &["x"], "m").message(5, &keep),
        node("Mul", &["n", "tiny"], "nothing"),
        node("Add", &["linear", "nothing"], "logits"),
        last("logits"),
    ];
    all.splice(2..2, nodes);
    let scalars =
        [("zero", 0.0), ("tiny", 1e-30), ("one", 1.0), ("many", 1e6)].map(|(name, value)| floats(name, &[], &[value]));
    let mut tensors = vec![floats("w", &[2, 2], &[40.0, 0.0, -0.2, 0.0])];
    tensors.extend(scalars);
    graph(&all, &tensors)
}

/// Cheap in the golden rows; as long as the largest flow has bytes later.
fn range_of_values() -> Vec<u8> {
    let keep = Message::default().text(1, "keepdims").number(3, 0).number(20, 2);
    with_nothing(vec![
        node("Add", &["m", "one"], "end"),
        node("Range", &["zero", "end", "one"], "range"),
        node("ReduceMax", &["range"], "n").message(5, &keep),
    ])
}

/// No golden row takes the branch, so nobody has seen what it costs.
fn branch() -> Vec<u8> {
    let side = |name: &str, source: &str, output: &str| {
        let graph = Message::default().message(1, &node("Identity", &[source], output)).text(2, output);
        let graph = graph.message(12, &Message::default().text(1, output));
        Message::default().text(1, name).message(6, &graph).number(20, 5)
    };
    let branch = node("If", &["large"], "n");
    let branch = branch.message(5, &side("then_branch", "m", "then")).message(5, &side("else_branch", "one", "else"));
    with_nothing(vec![node("Greater", &["m", "many"], "large"), branch])
}

fn tile() -> Vec<u8> {
    let nodes = [
        node("Tile", &["x", "times"], "wide"),
        node("ReduceMax", &["wide"], "max"),
        node("Add", &["x", "max"], "a"),
        last("a"),
    ];
    graph(&nodes, &[integers("times", &[1, 500_000_000])])
}

fn symbolic(axis: &str) -> Vec<u8> {
    file(&linear(), &[floats("w", &[2, 2], &[1.0; 4])], &contract("hostile", 200.0, &[]), axis)
}

/// A hundred layers of 3,000 × 3,000 zeros: no bytes in the file, minutes to run.
fn slow() -> Vec<u8> {
    let mut nodes =
        vec![zeros("first", "f"), zeros("square", "s"), zeros("back", "b"), node("MatMul", &["x", "f"], "l0")];
    for layer in 0..100 {
        nodes.push(node("MatMul", &[&format!("l{layer}"), "s"], &format!("l{}", layer + 1)));
    }
    nodes.extend([node("MatMul", &["l100", "b"], "logits"), last("logits")]);
    let shapes = [("first", [2, 3_000]), ("square", [3_000, 3_000]), ("back", [3_000, 2])];
    graph(&nodes, &shapes.map(|(name, shape)| integers(name, &shape)))
}

fn chain(length: usize) -> Vec<u8> {
    let mut nodes = vec![node("Relu", &["x"], "n0")];
    nodes.extend((0..length).map(|number| node("Relu", &[&format!("n{number}")], &format!("n{}", number + 1))));
    nodes.push(last(&format!("n{length}")));
    graph(&nodes, &[])
}

/// Graphs inside of attributes of nodes inside of graphs.
fn nested(depth: usize) -> Vec<u8> {
    let mut graph = Message::default().text(2, "inner");
    for _ in 0..depth {
        let attribute = Message::default().text(1, "then_branch").message(6, &graph);
        let node = Message::default().text(4, "If").message(5, &attribute);
        graph = Message::default().message(1, &node);
    }
    Message::default().message(7, &graph).0
}

fn many(count: usize) -> String {
    let names: Vec<String> = (0..count).map(|number| format!("\"f{number}\"")).collect();
    format!("[{}]", names.join(","))
}

fn noise(length: usize) -> Vec<u8> {
    let mut rng = Rng::new(7);
    (0..length).map(|_| rng.range(0..256) as u8).collect()
}
