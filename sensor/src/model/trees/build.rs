//! From trees as a file gives them to the flat form. Everything that could go wrong in a walk is refused here.

use std::cmp::Ordering;

use anyhow::{Result, bail, ensure};

use super::{
    COLUMN_SHIFT, Combine, EQUAL, Ensemble, Leaves, MAX_COLUMNS, MAX_DEPTH, MAX_LEVELS, MAX_NODES, MAX_TARGETS,
    MAX_TREES, MEMBER, MISSING, Node, Real, STEP_SHIFT, Tree,
};

/// What a node of a file asks.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Mode {
    Leaf,
    LessOrEqual,
    Less,
    GreaterOrEqual,
    Greater,
    Equal,
    NotEqual,
    /// Of the set with this number.
    Member(u32),
}

/// A node as a file gives it. Children are indices into [`Given::nodes`], in range.
#[derive(Clone, Debug)]
pub(super) struct GivenNode {
    pub mode: Mode,
    pub column: i64,
    pub threshold: f64,
    pub on_true: usize,
    pub on_false: usize,
    /// NaN goes to `on_true`.
    pub missing: bool,
    /// A leaf's entries in [`Given::entries`].
    pub entries: std::ops::Range<usize>,
}

/// An ensemble as a file gives it.
#[derive(Clone, Debug)]
pub(super) struct Given {
    pub nodes: Vec<GivenNode>,
    pub roots: Vec<usize>,
    /// Target and value.
    pub entries: Vec<(i64, f64)>,
    pub sets: Vec<Vec<f64>>,
    pub targets: usize,
    pub combine: Combine,
}

impl Given {
    /// Lays the trees out for rows of `columns` values.
    ///
    /// # Errors
    /// If an index, a value or a size is out of range, or what should be trees are none.
    pub(super) fn flatten<T: Real>(&self, columns: usize) -> Result<Ensemble<T>> {
        self.check_sizes(columns)?;
        let inline = self.tree_targets();
        let mut flat = Flat {
            given: self,
            columns: columns as u32,
            inline: inline.is_some(),
            nodes: Vec::with_capacity(self.nodes.len()),
            starts: vec![0],
            entries: Vec::new(),
            flags: 0,
            visited: vec![false; self.nodes.len()],
        };
        let mut trees = Vec::with_capacity(self.roots.len());
        for (number, root) in self.roots.iter().enumerate() {
            let target = inline.as_ref().map_or(0, |targets| targets[number]);
            trees.push(flat.tree(number, *root, target)?);
        }
        // Nodes of a cycle have no root: nothing leads to them.
        if let Some(node) = flat.visited.iter().position(|visited| !visited) {
            bail!("node {node} cannot be reached from the root of its tree (a cycle, or a node nobody refers to)");
        }
        let leaves = match inline {
            Some(_) => Leaves::Inline,
            None => Leaves::Lists { starts: flat.starts, entries: flat.entries },
        };
        let levels: usize = trees.iter().map(|tree| tree.depth as usize).sum();
        ensure!(
            levels <= MAX_LEVELS,
            "a row walks up to {levels} levels over all trees; at most {MAX_LEVELS} are allowed"
        );
        let sets = self.sets.iter().map(|set| sorted(set)).collect();
        Ok(Ensemble {
            nodes: flat.nodes,
            trees,
            leaves,
            sets,
            combine: self.combine,
            columns,
            targets: self.targets,
            flags: flat.flags,
        })
    }

    fn check_sizes(&self, columns: usize) -> Result<()> {
        let bounds = [
            ("columns", columns, MAX_COLUMNS - 1),
            ("nodes", self.nodes.len(), MAX_NODES),
            ("trees", self.roots.len(), MAX_TREES),
            ("values of leaves", self.entries.len(), MAX_NODES),
            ("targets", self.targets, MAX_TARGETS),
        ];
        for (what, count, most) in bounds {
            ensure!((1..=most).contains(&count), "the tree ensemble has {count} {what}; it must have 1 to {most}");
        }
        for (target, value) in &self.entries {
            ensure!(
                (0..self.targets as i64).contains(target),
                "a leaf adds to target {target}, but there are {} targets",
                self.targets
            );
            ensure!(value.is_finite(), "a leaf has the value {value}");
        }
        Ok(())
    }

    /// The one target of each tree, `None` if a leaf has no value or several, or the leaves of a tree differ.
    fn tree_targets(&self) -> Option<Vec<u32>> {
        let mut targets = Vec::with_capacity(self.roots.len());
        let mut open = Vec::new();
        let mut seen = 0;
        for root in &self.roots {
            let mut target = None;
            open.push(*root);
            while let Some(number) = open.pop() {
                seen += 1;
                if seen > self.nodes.len() {
                    return None; // No tree: `tree` says so.
                }
                let node = &self.nodes[number];
                if node.mode == Mode::Leaf {
                    let [(found, _)] = self.entries[node.entries.clone()] else { return None };
                    if *target.get_or_insert(found) != found {
                        return None;
                    }
                } else {
                    open.extend([node.on_true, node.on_false]);
                }
            }
            targets.push(target? as u32);
        }
        Some(targets)
    }
}

/// The arrays while they grow.
struct Flat<'a, T> {
    given: &'a Given,
    columns: u32,
    inline: bool,
    nodes: Vec<Node<T>>,
    starts: Vec<u32>,
    entries: Vec<(u32, f64)>,
    flags: u32,
    visited: Vec<bool>,
}

impl<T: Real> Flat<'_, T> {
    /// Appends one tree, breadth first.
    fn tree(&mut self, number: usize, root: usize, target: u32) -> Result<Tree> {
        let first = self.nodes.len();
        // One level: its nodes in the order of their places, which start at `place`.
        let (mut level, mut place, mut depth) = (vec![root], first, 0);
        loop {
            let mut next = Vec::new();
            let below = place + level.len();
            for (offset, source) in level.iter().enumerate() {
                ensure!(
                    !std::mem::replace(&mut self.visited[*source], true),
                    "tree {number} reaches node {source} twice: it is no tree"
                );
                let node = &self.given.nodes[*source];
                if node.mode == Mode::Leaf {
                    let leaf = self.leaf(node);
                    self.nodes.push(leaf);
                    continue;
                }
                let displacement = below + next.len() - (place + offset);
                let (branch, exchanged) = self.branch(*source, node, displacement)?;
                self.nodes.push(branch);
                let children = [node.on_false, node.on_true];
                next.extend(if exchanged { [children[1], children[0]] } else { children });
                // Before a level of a graph that is no tree can double itself for ever.
                ensure!(next.len() <= self.given.nodes.len(), "tree {number} has more nodes than the file: a cycle");
            }
            if next.is_empty() {
                break;
            }
            (place, level, depth) = (below, next, depth + 1);
            ensure!(depth <= MAX_DEPTH, "tree {number} is deeper than {MAX_DEPTH}");
        }
        Ok(Tree { root: first as u32, depth: depth as u32, target })
    }

    fn leaf(&mut self, node: &GivenNode) -> Node<T> {
        let entries = &self.given.entries[node.entries.clone()];
        let threshold = match entries {
            [(_, value)] if self.inline => T::narrow(*value),
            _ => {
                self.entries.extend(entries.iter().map(|(target, value)| (*target as u32, *value)));
                self.starts.push(self.entries.len() as u32);
                T::from_number(self.starts.len() as u32 - 2)
            }
        };
        Node { threshold, word: self.columns << COLUMN_SHIFT }
    }

    /// The node of a test, and whether its children change places.
    fn branch(&mut self, number: usize, node: &GivenNode, displacement: usize) -> Result<(Node<T>, bool)> {
        ensure!(
            (0..i64::from(self.columns)).contains(&node.column),
            "node {number} looks at column {}, but the operator is given {}",
            node.column,
            self.columns
        );
        ensure!(!node.threshold.is_nan(), "node {number} compares with NaN");
        ensure!(displacement < 1 << (32 - STEP_SHIFT), "a tree has more than {} nodes", 1 << (32 - STEP_SHIFT));
        let given = T::narrow(node.threshold);
        let missing = if node.missing { MISSING } else { 0 };
        // Exchanged tests are the opposite of what is asked, so NaN, for which no test holds, must be sent back.
        let back = MISSING - missing;
        let (threshold, flags, exchanged) = match node.mode {
            Mode::Less => (given.below(), missing, false),
            Mode::Greater => (given, back, true),
            Mode::GreaterOrEqual => (given.below(), back, true),
            Mode::Equal => (given, EQUAL | missing, false),
            // NaN differs from everything, tracked or not.
            Mode::NotEqual => (given, EQUAL, true),
            Mode::Member(set) => (T::from_number(set), MEMBER | missing, false),
            Mode::LessOrEqual | Mode::Leaf => (given, missing, false),
        };
        self.flags |= flags;
        let word = (displacement as u32) << STEP_SHIFT | (node.column as u32) << COLUMN_SHIFT | flags;
        Ok((Node { threshold, word }, exchanged))
    }
}

/// A set for a binary search; nothing equals NaN.
fn sorted<T: Real>(set: &[f64]) -> Vec<T> {
    let mut values: Vec<T> = set.iter().filter(|value| !value.is_nan()).map(|value| T::narrow(*value)).collect();
    values.sort_unstable_by(|a, b| a.partial_cmp(b).unwrap_or(Ordering::Equal));
    values
}
