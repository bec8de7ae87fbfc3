//! The flat walk against a plain one on random trees of all modes, and what must be refused.

use anyhow::Result;
use tract_onnx::pb::attribute_proto::AttributeType;
use tract_onnx::pb::{AttributeProto, NodeProto, TensorProto};

use super::build::{Given, GivenNode, Mode};
use super::*;

/// Numbers that look random (xorshift).
struct Random(u64);

impl Random {
    fn below(&mut self, end: usize) -> usize {
        self.0 ^= self.0 << 13;
        self.0 ^= self.0 >> 7;
        self.0 ^= self.0 << 17;
        (self.0 >> 11) as usize % end
    }

    /// From few values, so that equal ones meet; also NaN and the infinities.
    fn value(&mut self) -> f32 {
        match self.below(14) {
            0 => f32::NAN,
            1 => f32::INFINITY,
            2 => f32::NEG_INFINITY,
            3 => -0.0,
            other => (other as f32 - 8.0) / 4.0,
        }
    }
}

const COLUMNS: usize = 5;

fn leaf(entries: std::ops::Range<usize>) -> GivenNode {
    GivenNode { mode: Mode::Leaf, column: 0, threshold: 0.0, on_true: 0, on_false: 0, missing: false, entries }
}

/// Random trees; `plain` uses only the commonest mode.
fn random(random: &mut Random, trees: usize, targets: usize, plain: bool, combine: Combine) -> Given {
    let mut given =
        Given { nodes: vec![], roots: vec![], entries: vec![], sets: vec![vec![0.25, 1.0]], targets, combine };
    for tree in 0..trees {
        given.roots.push(given.nodes.len());
        given.nodes.push(leaf(0..0));
        let mut open = vec![given.nodes.len() - 1];
        while let Some(number) = open.pop() {
            if given.nodes.len() < 200 * (tree + 1) && random.below(10) < 6 {
                let child = given.nodes.len();
                given.nodes.extend([leaf(0..0), leaf(0..0)]);
                open.extend([child, child + 1]);
                let modes = [
                    Mode::LessOrEqual,
                    Mode::Less,
                    Mode::GreaterOrEqual,
                    Mode::Greater,
                    Mode::Equal,
                    Mode::NotEqual,
                    Mode::Member(0),
                ];
                let threshold = random.value();
                given.nodes[number] = GivenNode {
                    mode: modes[if plain { 0 } else { random.below(modes.len()) }],
                    column: random.below(COLUMNS) as i64,
                    threshold: if threshold.is_nan() { 0.5 } else { f64::from(threshold) },
                    on_true: child,
                    on_false: child + 1,
                    missing: !plain && random.below(2) == 0,
                    entries: 0..0,
                };
            } else {
                // One value, or with several targets none to two.
                let count = if targets == 1 { 1 } else { random.below(3) };
                let start = given.entries.len();
                for _ in 0..count {
                    let target = random.below(targets) as i64;
                    given.entries.push((target, random.below(1000) as f64 / 8.0 - 50.0));
                }
                given.nodes[number].entries = start..given.entries.len();
            }
        }
    }
    given
}

/// ONNX's words, one row at a time.
fn plain_walk(given: &Given, row: &[f64]) -> Vec<f64> {
    let mut sums = vec![f64::NAN; given.targets];
    for root in &given.roots {
        let mut node = &given.nodes[*root];
        while node.mode != Mode::Leaf {
            let (x, threshold) = (row[node.column as usize], node.threshold);
            let holds = match node.mode {
                Mode::LessOrEqual => x <= threshold,
                Mode::Less => x < threshold,
                Mode::GreaterOrEqual => x >= threshold,
                Mode::Greater => x > threshold,
                Mode::Equal => x == threshold,
                Mode::NotEqual => x != threshold,
                Mode::Member(set) => given.sets[set as usize].contains(&x),
                Mode::Leaf => unreachable!("no test"),
            };
            let taken = holds || (node.missing && x.is_nan());
            node = &given.nodes[if taken { node.on_true } else { node.on_false }];
        }
        for (target, value) in &given.entries[node.entries.clone()] {
            let sum = &mut sums[*target as usize];
            *sum = match given.combine {
                _ if sum.is_nan() => *value,
                Combine::Sum | Combine::Average => *sum + value,
                Combine::Min => sum.min(*value),
                Combine::Max => sum.max(*value),
            };
        }
    }
    match given.combine {
        Combine::Min | Combine::Max => sums,
        Combine::Sum => sums.iter().map(|sum| if sum.is_nan() { 0.0 } else { *sum }).collect(),
        Combine::Average => {
            sums.iter().map(|sum| if sum.is_nan() { 0.0 } else { *sum / given.roots.len() as f64 }).collect()
        }
    }
}

fn compare<T: Real>(given: &Given, rows: &[f32]) {
    let ensemble: Ensemble<T> = given.flatten(COLUMNS).expect("good trees");
    let input: Vec<T> = rows.iter().map(|value| T::narrow(f64::from(*value))).collect();
    let mut seen = 0;
    ensemble.run(&input, |row, sums| {
        let row: Vec<f64> = rows[row * COLUMNS..][..COLUMNS].iter().map(|value| f64::from(*value)).collect();
        for (found, expected) in sums.iter().zip(plain_walk(given, &row)) {
            let same = (*found - expected).abs() < 1e-9 || (found.is_nan() && expected.is_nan());
            assert!(same, "{found}, not {expected}, for {row:?}");
        }
        seen += 1;
    });
    assert_eq!(seen, rows.len() / COLUMNS);
}

#[test]
fn the_flat_walk_is_the_plain_walk() {
    let mut numbers = Random(0x9e37_79b9_7f4a_7c15);
    for (plain, targets) in [(true, 1), (true, 3), (false, 1), (false, 3)] {
        for combine in [Combine::Sum, Combine::Average, Combine::Min, Combine::Max] {
            // Fewer and more trees than walk in step; rows that fill no block.
            for (trees, count) in [(1, 1), (9, 7), (21, 75)] {
                let given = random(&mut numbers, trees, targets, plain, combine);
                let rows: Vec<f32> = (0..count * COLUMNS).map(|_| numbers.value()).collect();
                compare::<f32>(&given, &rows);
                compare::<f64>(&given, &rows);
            }
        }
    }
}

fn ints(name: &str, ints: &[i64]) -> AttributeProto {
    let (name, ints) = (name.to_owned(), ints.to_vec());
    AttributeProto { name, r#type: AttributeType::Ints as i32, ints, ..AttributeProto::default() }
}

fn int(name: &str, i: i64) -> AttributeProto {
    AttributeProto { name: name.to_owned(), r#type: AttributeType::Int as i32, i, ..AttributeProto::default() }
}

fn floats(name: &str, floats: &[f32]) -> AttributeProto {
    let (name, floats) = (name.to_owned(), floats.to_vec());
    AttributeProto { name, r#type: AttributeType::Floats as i32, floats, ..AttributeProto::default() }
}

fn modes(modes: &[&str]) -> AttributeProto {
    let strings = modes.iter().map(|mode| mode.as_bytes().to_vec()).collect();
    let name = "nodes_modes".to_owned();
    AttributeProto { name, r#type: AttributeType::Strings as i32, strings, ..AttributeProto::default() }
}

fn tensor(name: &str, values: &[f64]) -> AttributeProto {
    let dims = vec![values.len() as i64];
    let t = Some(TensorProto { dims, data_type: 11, double_data: values.to_vec(), ..TensorProto::default() });
    AttributeProto { name: name.to_owned(), r#type: AttributeType::Tensor as i32, t, ..AttributeProto::default() }
}

fn bytes(name: &str, values: &[u8]) -> AttributeProto {
    let dims = vec![values.len() as i64];
    let t = Some(TensorProto { dims, data_type: 2, raw_data: values.to_vec(), ..TensorProto::default() });
    AttributeProto { name: name.to_owned(), r#type: AttributeType::Tensor as i32, t, ..AttributeProto::default() }
}

/// A binary classifier of one tree: `x0 <= 0.5 ? 0.25 : (x1 <= 2 ? -1 : 3)`, all on label 0, as exporters write it.
fn binary() -> NodeProto {
    NodeProto {
        op_type: "TreeEnsembleClassifier".to_owned(),
        attribute: vec![
            ints("nodes_treeids", &[0; 5]),
            ints("nodes_nodeids", &[0, 1, 2, 3, 4]),
            ints("nodes_featureids", &[0, 0, 1, 0, 0]),
            ints("nodes_truenodeids", &[1, 0, 3, 0, 0]),
            ints("nodes_falsenodeids", &[2, 0, 4, 0, 0]),
            modes(&["BRANCH_LEQ", "LEAF", "BRANCH_LEQ", "LEAF", "LEAF"]),
            floats("nodes_values", &[0.5, 0.0, 2.0, 0.0, 0.0]),
            ints("class_treeids", &[0; 3]),
            ints("class_nodeids", &[1, 3, 4]),
            ints("class_ids", &[0; 3]),
            floats("class_weights", &[0.25, -1.0, 3.0]),
            ints("classlabels_int64s", &[10, 20]),
        ],
        ..NodeProto::default()
    }
}

fn with(mut node: NodeProto, attribute: AttributeProto) -> NodeProto {
    node.attribute.retain(|old| old.name != attribute.name);
    node.attribute.push(attribute);
    node
}

fn load(node: &NodeProto, columns: usize) -> Result<(Ensemble<f32>, Kind)> {
    let read = read(node)?;
    Ok((read.flatten(columns)?, read.kind))
}

/// Labels and scores of rows of two columns.
fn classify(node: &NodeProto, rows: &[f32]) -> Vec<(i64, Vec<f64>)> {
    let (ensemble, kind) = load(node, 2).expect("good");
    let Kind::Classifier(end) = kind else { panic!("no classifier") };
    let mut out = Vec::new();
    ensemble.run(rows, |_, sums| {
        let label = end.finish(sums);
        out.push((label, sums.to_vec()));
    });
    out
}

#[test]
fn one_column_of_two_labels_means_the_second() {
    let rows = [0.5, 0.0, 1.0, 2.0, 1.0, 9.0];
    let raw = classify(&binary(), &rows);
    assert_eq!(raw, [(20, vec![-0.25, 0.25]), (10, vec![1.0, -1.0]), (20, vec![-3.0, 3.0])]);
    let logistic = |x: f64| 1.0 / (1.0 + (-x).exp());
    let transform = AttributeProto {
        name: "post_transform".to_owned(),
        r#type: AttributeType::String as i32,
        s: b"LOGISTIC".to_vec(),
        ..AttributeProto::default()
    };
    let node = with(with(binary(), transform), floats("base_values", &[-0.5]));
    let found = classify(&node, &rows);
    for ((label, scores), (wanted, sum)) in found.iter().zip([(10, -0.25), (10, -1.5), (20, 2.5)]) {
        assert_eq!(*label, wanted);
        assert!((scores[1] - logistic(sum)).abs() < 1e-12 && (scores[0] + scores[1] - 1.0).abs() < 1e-12);
    }
    // No leaf is negative: the sum is a probability.
    let node = with(binary(), floats("class_weights", &[0.25, 0.75, 0.5]));
    assert_eq!(classify(&node, &rows), [(10, vec![0.75, 0.25]), (20, vec![0.25, 0.75]), (10, vec![0.5, 0.5])]);
    // Both columns: the larger one.
    let node = with(with(binary(), ints("class_ids", &[0, 1, 0])), floats("class_weights", &[0.3, 0.2, 0.1]));
    assert_eq!(
        classify(&node, &rows),
        [(10, vec![0.3, 0.0]), (20, vec![0.0, 0.2]), (10, vec![0.1, 0.0])]
            .map(|(label, scores)| { (label, scores.iter().map(|score: &f64| f64::from(*score as f32)).collect()) })
    );
}

#[track_caller]
fn refused(node: NodeProto, expected: &str) {
    let text = format!("{:#}", load(&node, 2).expect_err("it must be refused"));
    assert!(text.contains(expected), "{expected:?} is not in: {text}");
}

#[test]
fn what_is_no_tree_is_refused() {
    refused(with(binary(), ints("nodes_truenodeids", &[7, 0, 3, 0, 0])), "no node 7");
    refused(with(binary(), ints("nodes_truenodeids", &[-1, 0, 3, 0, 0])), "no node -1");
    refused(with(binary(), ints("nodes_truenodeids", &[0, 0, 3, 0, 0])), "cannot be reached");
    refused(with(binary(), ints("nodes_truenodeids", &[1, 0, 2, 0, 0])), "two nodes that are nobody's child");
    refused(with(binary(), ints("nodes_truenodeids", &[2, 0, 3, 0, 0])), "two nodes that are nobody's child");
    refused(with(binary(), ints("nodes_falsenodeids", &[2, 0, 3, 0, 0])), "two nodes that are nobody's child");
    refused(with(binary(), ints("nodes_nodeids", &[0, 1, 2, 3, 3])), "two nodes with the number 3");
    refused(with(binary(), ints("nodes_featureids", &[0, 0, 2, 0, 0])), "column 2");
    refused(with(binary(), ints("nodes_featureids", &[0, 0, i64::MIN, 0, 0])), "column -9223372036854775808");
    refused(with(binary(), ints("nodes_featureids", &[0, 0])), "2 entries");
    refused(with(binary(), floats("nodes_values", &[f32::NAN, 0.0, 2.0, 0.0, 0.0])), "compares with NaN");
    refused(with(binary(), floats("class_weights", &[0.25, f32::INFINITY, 3.0])), "has the value inf");
    refused(with(binary(), ints("class_ids", &[0, 2, 0])), "target 2");
    refused(with(binary(), ints("class_ids", &[0, -1, 0])), "target -1");
    refused(with(binary(), ints("class_nodeids", &[1, 3, 9])), "node 9");
    refused(with(binary(), ints("class_nodeids", &[1, 3])), "differ in length");
    refused(with(binary(), ints("classlabels_int64s", &[1])), "1 labels");
    refused(with(binary(), floats("base_values", &[1.0, 2.0, 3.0])), "3 base values");
    refused(with(binary(), modes(&["BRANCH_LEQ", "LEAF", "BRANCH_XOR", "LEAF", "LEAF"])), "BRANCH_XOR");
    refused(NodeProto { op_type: "TreeEnsembleClassifier".to_owned(), ..NodeProto::default() }, "0 labels");
    refused(with(binary(), floats("nodes_treeids", &[0.0])), "nodes_treeids has type");
    // Shared by two parents, with a part that only refers to itself.
    let cycle =
        with(with(binary(), ints("nodes_truenodeids", &[1, 0, 3, 4, 3])), ints("nodes_falsenodeids", &[2, 0, 4, 4, 3]));
    refused(with(cycle, modes(&["BRANCH_LEQ", "LEAF", "BRANCH_LEQ", "BRANCH_LEQ", "BRANCH_LEQ"])), "");
}

/// Trees that are chains of `depth` levels.
fn chains(trees: i64, depth: i64) -> NodeProto {
    let count = 2 * depth + 1;
    let inner = |id: i64| id % 2 == 0 && id + 2 < count;
    let each = |value: &dyn Fn(i64, i64) -> i64| -> Vec<i64> {
        (0..trees).flat_map(|tree| (0..count).map(move |id| (tree, id))).map(|(tree, id)| value(tree, id)).collect()
    };
    let all = each(&|_, id| id);
    let names: Vec<&str> = all.iter().map(|id| if inner(*id) { "BRANCH_LEQ" } else { "LEAF" }).collect();
    let zeros = vec![0; all.len()];
    NodeProto {
        attribute: vec![
            ints("nodes_treeids", &each(&|tree, _| tree)),
            ints("nodes_nodeids", &all),
            ints("nodes_featureids", &zeros),
            ints("nodes_truenodeids", &all.iter().map(|id| id + 1).collect::<Vec<_>>()),
            ints("nodes_falsenodeids", &all.iter().map(|id| id + 2).collect::<Vec<_>>()),
            modes(&names),
            floats("nodes_values", &vec![0.0; all.len()]),
            ints("target_treeids", &[0]),
            ints("target_nodeids", &[count - 1]),
            ints("target_ids", &[0]),
            floats("target_weights", &[1.0]),
        ],
        op_type: "TreeEnsembleRegressor".to_owned(),
        ..NodeProto::default()
    }
}

#[test]
fn deep_trees_are_refused() {
    let node = chains(1, MAX_DEPTH as i64 + 1);
    refused(node.clone(), "deeper than 1024");
    refused(with(node, int("n_targets", 1 << 40)), "n_targets");
    // Each is allowed, all together are not.
    assert!(load(&chains(10, 1_000), 2).is_ok());
    refused(chains(263, 1_000), "a row walks up to 263000 levels over all trees; at most 262144 are allowed");
}

/// Version 5: `x0 in {1, 3} ? (x1 > 2 ? 10 : 20) : 20`, whose leaf of 20 is shared; and a tree of one leaf.
fn ensemble() -> NodeProto {
    NodeProto {
        op_type: "TreeEnsemble".to_owned(),
        attribute: vec![
            ints("tree_roots", &[0, 2]),
            ints("nodes_featureids", &[0, 1, 0]),
            tensor("nodes_splits", &[0.0, 2.0, 0.0]),
            bytes("nodes_modes", &[6, 3, 0]),
            ints("nodes_truenodeids", &[1, 0, 2]),
            ints("nodes_falsenodeids", &[1, 1, 2]),
            ints("nodes_trueleafs", &[0, 1, 1]),
            ints("nodes_falseleafs", &[1, 1, 1]),
            tensor("membership_values", &[1.0, 3.0, f64::NAN]),
            ints("leaf_targetids", &[0, 0, 0]),
            tensor("leaf_weights", &[10.0, 20.0, 0.5]),
        ],
        ..NodeProto::default()
    }
}

#[test]
fn version_5_has_sets_shared_leaves_and_lone_leaves() {
    let rows = [1.0, 3.0, 3.0, 2.0, 2.0, 9.0, f32::NAN, 9.0];
    let (trees, _) = load(&ensemble(), 2).expect("good");
    let mut found = Vec::new();
    trees.run(&rows, |_, sums| found.push(sums[0]));
    assert_eq!(found, [10.5, 20.5, 20.5, 20.5]);
    refused(with(ensemble(), ints("tree_roots", &[3])), "node 3");
    refused(with(ensemble(), ints("nodes_truenodeids", &[0, 0, 2])), "cycle");
    refused(with(ensemble(), ints("nodes_falsenodeids", &[9, 1, 2])), "leaf 9");
    refused(with(ensemble(), bytes("nodes_modes", &[6, 6, 0])), "fewer sets");
    refused(with(ensemble(), bytes("nodes_modes", &[3, 3, 0])), "more sets");
    refused(with(ensemble(), bytes("nodes_modes", &[7, 3, 0])), "mode 7");
    refused(with(ensemble(), tensor("leaf_weights", &[1.0])), "1 leaf_weights");
    refused(with(ensemble(), int("aggregate_function", 9)), "aggregate_function is 9");
}
