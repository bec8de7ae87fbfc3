//! Reads the attributes of TreeEnsembleClassifier and TreeEnsembleRegressor (ai.onnx.ml 1 and 3) and of TreeEnsemble (5).

use std::collections::HashMap;

use anyhow::{Context, Result, bail, ensure};
use tract_onnx::pb::NodeProto;

use super::build::{Given, GivenNode, Mode};
use super::finish::{Classifier, Regressor};
use super::{Combine, Ensemble, MAX_DEPTH, MAX_NODES, MAX_TARGETS, MAX_TREES, Real};
use crate::model::ops::attributes::{Attributes, Numbers};
use crate::model::ops::post::Transform;

/// What is made of the sums.
#[derive(Clone, Debug)]
pub(in crate::model) enum Kind {
    /// Label and scores.
    Classifier(Classifier),
    /// Values.
    Regressor(Regressor),
}

/// An operator as the file gives it.
#[derive(Clone, Debug)]
pub(in crate::model) struct Read {
    pub(super) given: Given,
    /// What is made of the sums.
    pub kind: Kind,
    /// Thresholds are 64-bit floats.
    pub double: bool,
    /// The result has the type of the thresholds (TreeEnsemble); else it is 32-bit.
    pub typed: bool,
}

impl Read {
    /// Lays the trees out for rows of `columns` values.
    pub(in crate::model) fn flatten<T: Real>(&self, columns: usize) -> Result<Ensemble<T>> {
        self.given.flatten(columns)
    }

    /// Outputs per row.
    pub(in crate::model) fn targets(&self) -> usize {
        self.given.targets
    }
}

/// Reads `node`.
///
/// # Errors
/// If attributes are missing, differ in length, or name what does not exist.
pub(in crate::model) fn read(node: &NodeProto) -> Result<Read> {
    match node.op_type.as_str() {
        "TreeEnsembleClassifier" => classifier(&Attributes(node)),
        "TreeEnsembleRegressor" => regressor(&Attributes(node)),
        _ => ensemble(&Attributes(node)),
    }
}

fn classifier(attributes: &Attributes) -> Result<Read> {
    let labels = attributes.ints("classlabels_int64s")?.to_vec();
    ensure!(
        (2..=MAX_TARGETS).contains(&labels.len()),
        "the classifier has {} labels; it must have 2 to {MAX_TARGETS}",
        labels.len()
    );
    let (given, double) = tables(attributes, "class", labels.len(), Combine::Sum)?;
    let base = attributes.numbers("base_values")?.values;
    let first = given.entries.first().map(|entry| entry.0);
    let one_column = labels.len() == 2 && given.entries.iter().all(|entry| Some(entry.0) == first);
    let fits = base.is_empty() || base.len() == labels.len() || (one_column && base.len() == 1);
    ensure!(fits, "{} base values for {} labels", base.len(), labels.len());
    let positive = given.entries.iter().all(|entry| entry.1 >= 0.0);
    let column = match first {
        Some(column) if one_column => usize::try_from(column).ok().filter(|column| *column < 2),
        _ => None,
    };
    let transform = Transform::parse(&attributes.text("post_transform")?)?;
    let kind = Kind::Classifier(Classifier { labels, base, transform, column, positive });
    Ok(Read { given, kind, double, typed: false })
}

fn regressor(attributes: &Attributes) -> Result<Read> {
    let targets = attributes.int("n_targets")?.unwrap_or(1);
    ensure!((1..=MAX_TARGETS as i64).contains(&targets), "n_targets is {targets}; it must be 1 to {MAX_TARGETS}");
    let combine = match attributes.text("aggregate_function")?.as_str() {
        "" | "SUM" => Combine::Sum,
        "AVERAGE" => Combine::Average,
        "MIN" => Combine::Min,
        "MAX" => Combine::Max,
        other => bail!("aggregate_function is {other:?}; it must be SUM, AVERAGE, MIN or MAX"),
    };
    let (given, double) = tables(attributes, "target", targets as usize, combine)?;
    let base = attributes.numbers("base_values")?.values;
    ensure!(base.is_empty() || base.len() == targets as usize, "{} base values for {targets} targets", base.len());
    let transform = Transform::parse(&attributes.text("post_transform")?)?;
    Ok(Read { given, kind: Kind::Regressor(Regressor { base, transform }), double, typed: false })
}

/// The tables that versions 1 and 3 have in common. `leaf` is what the leaves' attributes start with.
fn tables(attributes: &Attributes, leaf: &str, targets: usize, combine: Combine) -> Result<(Given, bool)> {
    let ids = attributes.ints("nodes_nodeids")?;
    let count = ids.len();
    ensure!((1..=MAX_NODES).contains(&count), "the tree ensemble has {count} nodes; it must have 1 to {MAX_NODES}");
    let same = |name: &str, found: usize| {
        ensure!(found == count, "{name} has {found} entries, but nodes_nodeids has {count}");
        Ok(())
    };
    let column = |name| -> Result<&[i64]> {
        let values = attributes.ints(name)?;
        same(name, values.len())?;
        Ok(values)
    };
    let trees = column("nodes_treeids")?;
    let columns = column("nodes_featureids")?;
    let (on_true, on_false) = (column("nodes_truenodeids")?, column("nodes_falsenodeids")?);
    let modes = attributes.strings("nodes_modes")?;
    same("nodes_modes", modes.len())?;
    let Numbers { values: thresholds, double } = attributes.numbers("nodes_values")?;
    same("nodes_values", thresholds.len())?;
    let missing = attributes.ints("nodes_missing_value_tracks_true")?;
    ensure!(
        missing.is_empty() || missing.len() == count,
        "nodes_missing_value_tracks_true has {} entries",
        missing.len()
    );

    let mut index = HashMap::with_capacity(count);
    for (number, (tree, id)) in trees.iter().zip(ids).enumerate() {
        ensure!(index.insert((*tree, *id), number).is_none(), "tree {tree} has two nodes with the number {id}");
    }
    let mut nodes = Vec::with_capacity(count);
    let mut child = vec![false; count];
    for number in 0..count {
        let mode = mode(&modes[number])?;
        let mut find = |id: i64| {
            let found = index.get(&(trees[number], id)).copied();
            let found = found.with_context(|| format!("tree {} has no node {id}", trees[number]))?;
            child[found] = true;
            Ok::<_, anyhow::Error>(found)
        };
        let leaf = mode == Mode::Leaf;
        let (on_true, on_false) = if leaf { (0, 0) } else { (find(on_true[number])?, find(on_false[number])?) };
        nodes.push(GivenNode {
            mode,
            column: columns[number],
            threshold: thresholds[number],
            on_true,
            on_false,
            missing: missing.get(number).is_some_and(|track| *track != 0),
            entries: 0..0,
        });
    }
    let (entries, double_leaves) = entries(attributes, leaf, &index, &mut nodes)?;
    let roots = roots(trees, &child)?;
    let given = Given { nodes, roots, entries, sets: Vec::new(), targets, combine };
    Ok((given, double || double_leaves))
}

/// The values of the leaves, sorted by leaf.
fn entries(
    attributes: &Attributes,
    leaf: &str,
    index: &HashMap<(i64, i64), usize>,
    nodes: &mut [GivenNode],
) -> Result<(Vec<(i64, f64)>, bool)> {
    let trees = attributes.ints(&format!("{leaf}_treeids"))?;
    let ids = attributes.ints(&format!("{leaf}_nodeids"))?;
    let targets = attributes.ints(&format!("{leaf}_ids"))?;
    let Numbers { values, double } = attributes.numbers(&format!("{leaf}_weights"))?;
    let count = ids.len();
    ensure!(
        trees.len() == count && targets.len() == count && values.len() == count,
        "the attributes {leaf}_* differ in length: {}, {count}, {} and {}",
        trees.len(),
        targets.len(),
        values.len()
    );
    ensure!(count <= MAX_NODES, "the leaves have {count} values; at most {MAX_NODES} are allowed");
    let mut order = Vec::with_capacity(count);
    for number in 0..count {
        let found = index.get(&(trees[number], ids[number])).copied();
        let node = found.with_context(|| format!("{leaf}_* name node {} of tree {}", ids[number], trees[number]))?;
        // Some exporters give inner nodes values too; no walk ends there.
        if nodes[node].mode == Mode::Leaf {
            order.push((node, number));
        }
    }
    order.sort_by_key(|(node, _)| *node);
    for (place, (node, _)) in order.iter().enumerate() {
        let range = &mut nodes[*node].entries;
        *range = if range.start == range.end { place..place + 1 } else { range.start..place + 1 };
    }
    Ok((order.iter().map(|(_, number)| (targets[*number], values[*number])).collect(), double))
}

/// The node of each tree that is nobody's child.
fn roots(trees: &[i64], child: &[bool]) -> Result<Vec<usize>> {
    let mut roots = Vec::new();
    let mut of = HashMap::new();
    for (number, tree) in trees.iter().enumerate() {
        let rooted = of.entry(*tree).or_insert(false);
        if child[number] {
            continue;
        }
        ensure!(!std::mem::replace(rooted, true), "tree {tree} has two nodes that are nobody's child");
        roots.push(number);
        ensure!(roots.len() <= MAX_TREES, "the ensemble has more than {MAX_TREES} trees");
    }
    if let Some((tree, _)) = of.iter().find(|(_, rooted)| !**rooted) {
        bail!("tree {tree} has no root: its nodes form a cycle");
    }
    Ok(roots)
}

fn mode(text: &[u8]) -> Result<Mode> {
    Ok(match text {
        b"LEAF" => Mode::Leaf,
        b"BRANCH_LEQ" => Mode::LessOrEqual,
        b"BRANCH_LT" => Mode::Less,
        b"BRANCH_GTE" => Mode::GreaterOrEqual,
        b"BRANCH_GT" => Mode::Greater,
        b"BRANCH_EQ" => Mode::Equal,
        b"BRANCH_NEQ" => Mode::NotEqual,
        other => bail!("a node has the unknown mode {:?}", String::from_utf8_lossy(other)),
    })
}

/// TreeEnsemble of version 5: leaves have an array of their own, and children are indices.
fn ensemble(attributes: &Attributes) -> Result<Read> {
    let Numbers { values: splits, double } = attributes.numbers("nodes_splits")?;
    let count = splits.len();
    let Numbers { values: weights, .. } = attributes.numbers("leaf_weights")?;
    let leaves = attributes.ints("leaf_targetids")?;
    ensure!(
        (1..=MAX_NODES).contains(&(count + leaves.len())),
        "the tree ensemble has {count} nodes and {} leaves; it must have 1 to {MAX_NODES}",
        leaves.len()
    );
    ensure!(weights.len() == leaves.len(), "{} leaf_weights for {} leaf_targetids", weights.len(), leaves.len());
    let column = |name| -> Result<&[i64]> {
        let values = attributes.ints(name)?;
        ensure!(values.len() == count, "{name} has {} entries, but nodes_splits has {count}", values.len());
        Ok(values)
    };
    let columns = column("nodes_featureids")?;
    let true_leaves = column("nodes_trueleafs")?;
    let false_leaves = column("nodes_falseleafs")?;
    let (on_true, on_false) = (column("nodes_truenodeids")?, column("nodes_falsenodeids")?);
    let modes = attributes.numbers("nodes_modes")?.values;
    ensure!(modes.len() == count, "nodes_modes has {} entries, but nodes_splits has {count}", modes.len());
    let missing = attributes.ints("nodes_missing_value_tracks_true")?;
    ensure!(
        missing.is_empty() || missing.len() == count,
        "nodes_missing_value_tracks_true has {} entries",
        missing.len()
    );
    let mut sets = Sets::new(attributes.numbers("membership_values")?.values);

    // Leaves become nodes behind the others.
    let child = |id: i64, leaf: bool| {
        let (what, end) = if leaf { ("leaf", leaves.len()) } else { ("node", count) };
        let found = usize::try_from(id).ok().filter(|id| *id < end);
        let found = found.with_context(|| format!("a node refers to {what} {id}, but there are {end}"))?;
        Ok::<_, anyhow::Error>(if leaf { count + found } else { found })
    };
    let mut nodes = Vec::with_capacity(count + leaves.len());
    for number in 0..count {
        let mode = match modes[number] as i64 {
            0 => Mode::LessOrEqual,
            1 => Mode::Less,
            2 => Mode::GreaterOrEqual,
            3 => Mode::Greater,
            4 => Mode::Equal,
            5 => Mode::NotEqual,
            6 => Mode::Member(sets.next()?),
            other => bail!("node {number} has the unknown mode {other}"),
        };
        let member = matches!(mode, Mode::Member(_));
        nodes.push(GivenNode {
            mode,
            column: columns[number],
            // A set has no threshold.
            threshold: if member { 0.0 } else { splits[number] },
            on_true: child(on_true[number], true_leaves[number] != 0)?,
            on_false: child(on_false[number], false_leaves[number] != 0)?,
            missing: missing.get(number).is_some_and(|track| *track != 0),
            entries: 0..0,
        });
    }
    nodes.extend((0..leaves.len()).map(|number| GivenNode {
        mode: Mode::Leaf,
        column: 0,
        threshold: 0.0,
        on_true: 0,
        on_false: 0,
        missing: false,
        entries: number..number + 1,
    }));
    let entries = leaves.iter().copied().zip(weights).collect();
    let mut roots = Vec::new();
    for root in attributes.ints("tree_roots")? {
        ensure!(roots.len() < MAX_TREES, "the ensemble has more than {MAX_TREES} trees");
        let root = child(*root, false)?;
        // A tree of one leaf is a node with this leaf on both sides.
        let alone = nodes[root].on_true == nodes[root].on_false && nodes[root].on_true >= count;
        roots.push(if alone { nodes[root].on_true } else { root });
    }
    let (nodes, roots) = reachable(nodes, &roots)?;
    let targets = attributes.int("n_targets")?.unwrap_or(1);
    ensure!((1..=MAX_TARGETS as i64).contains(&targets), "n_targets is {targets}; it must be 1 to {MAX_TARGETS}");
    let combine = match attributes.int("aggregate_function")?.unwrap_or(1) {
        0 => Combine::Average,
        1 => Combine::Sum,
        2 => Combine::Min,
        3 => Combine::Max,
        other => bail!("aggregate_function is {other}; it must be 0 to 3"),
    };
    let transform = Transform::numbered(attributes.int("post_transform")?.unwrap_or(0))?;
    let given = Given { nodes, roots, entries, sets: sets.done()?, targets: targets as usize, combine };
    let kind = Kind::Regressor(Regressor { base: Vec::new(), transform });
    Ok(Read { given, kind, double, typed: true })
}

/// Each tree gets leaves of its own: this operator's trees may share leaves, which a flat tree cannot.
fn reachable(nodes: Vec<GivenNode>, roots: &[usize]) -> Result<(Vec<GivenNode>, Vec<usize>)> {
    let mut own: Vec<GivenNode> = Vec::with_capacity(nodes.len());
    let mut new_roots = Vec::with_capacity(roots.len());
    for root in roots {
        let mut open = vec![(*root, own.len(), 0)];
        new_roots.push(own.len());
        own.push(nodes[*root].clone());
        while let Some((source, place, depth)) = open.pop() {
            ensure!(depth <= MAX_DEPTH, "a tree is deeper than {MAX_DEPTH}, or has a cycle");
            if nodes[source].mode == Mode::Leaf {
                continue;
            }
            let (on_true, on_false) = (nodes[source].on_true, nodes[source].on_false);
            (own[place].on_true, own[place].on_false) = (own.len(), own.len() + 1);
            for child in [on_true, on_false] {
                open.push((child, own.len(), depth + 1));
                own.push(nodes[child].clone());
                ensure!(own.len() <= MAX_NODES, "the trees have more than {MAX_NODES} nodes, or a cycle");
            }
        }
    }
    Ok((own, new_roots))
}

/// The sets of mode "member", in the order of their nodes; NaN ends each.
struct Sets {
    given: std::vec::IntoIter<f64>,
    found: Vec<Vec<f64>>,
}

impl Sets {
    fn new(given: Vec<f64>) -> Sets {
        Sets { given: given.into_iter(), found: Vec::new() }
    }

    fn next(&mut self) -> Result<u32> {
        ensure!(!self.given.as_slice().is_empty(), "membership_values has fewer sets than there are nodes of mode 6");
        self.found.push(self.given.by_ref().take_while(|value| !value.is_nan()).collect());
        Ok(self.found.len() as u32 - 1)
    }

    fn done(self) -> Result<Vec<Vec<f64>>> {
        ensure!(self.given.as_slice().is_empty(), "membership_values has more sets than there are nodes of mode 6");
        Ok(self.found)
    }
}
