//! The walk: rows through trees, interleaved, so that the loads of one hide behind those of others.
//!
//! Rows are copied, with their column of NaN, to a block that stays in the first-level cache. Eight rows walk one tree in step (with
//! more, all wait for the one with the longest way);
//! what is left over walks row by row, eight trees in step. Nothing is allocated after the first call of a thread.

use std::cell::RefCell;
use std::cmp::Ordering;

use super::{COLUMN_BITS, COLUMN_SHIFT, Combine, EQUAL, Ensemble, Leaves, MEMBER, MISSING, Node, Real, STEP_SHIFT};

/// Rows of one block: a tree stays in the cache while they all walk it.
const BLOCK: usize = 64;
/// Rows that walk a tree in step.
const ROWS: usize = 8;
/// Trees that one row walks in step.
const TREES: usize = 8;

/// Buffers that are kept from call to call.
#[derive(Debug, Default)]
pub(crate) struct Scratch {
    pub(super) singles: Vec<f32>,
    pub(super) doubles: Vec<f64>,
    pub(super) sums: Vec<f64>,
}

thread_local! {
    static SCRATCH: RefCell<Scratch> = RefCell::default();
}

impl<T: Real> Ensemble<T> {
    /// Targets of a row.
    pub(crate) fn targets(&self) -> usize {
        self.targets
    }

    /// Walks all rows of `input`; `take` gets each row's number and its sums, one per target (for minimum and maximum, NaN where
    /// no leaf added anything).
    pub(crate) fn run(&self, input: &[T], mut take: impl FnMut(usize, &mut [f64])) {
        SCRATCH.with_borrow_mut(|scratch| {
            let (block, sums) = T::buffer(scratch);
            for (number, rows) in input.chunks(BLOCK * self.columns).enumerate() {
                self.load(rows, block);
                let count = rows.len() / self.columns;
                sums.clear();
                let start = if matches!(self.combine, Combine::Min | Combine::Max) { f64::NAN } else { 0.0 };
                sums.resize(count * self.targets, start);
                // One walk for each set of flags that the ensemble needs.
                match self.flags {
                    0 => self.walk::<0>(block, count, sums),
                    MISSING => self.walk::<MISSING>(block, count, sums),
                    _ => self.walk::<{ MISSING | EQUAL | MEMBER }>(block, count, sums),
                }
                if self.combine == Combine::Average {
                    sums.iter_mut().for_each(|sum| *sum /= self.trees.len() as f64);
                }
                for (row, sums) in sums.chunks_exact_mut(self.targets).enumerate() {
                    take(number * BLOCK + row, sums);
                }
            }
        });
    }

    /// Copies rows and gives each its column of NaN.
    fn load(&self, rows: &[T], block: &mut Vec<T>) {
        block.clear();
        for row in rows.chunks_exact(self.columns) {
            block.extend_from_slice(row);
            block.push(T::NAN);
        }
    }

    fn walk<const FLAGS: u32>(&self, block: &[T], count: usize, sums: &mut [f64]) {
        let stride = self.columns + 1;
        let even = count - count % ROWS;
        for tree in &self.trees {
            for first in (0..even).step_by(ROWS) {
                let rows = &block[first * stride..(first + ROWS) * stride];
                let mut at = [tree.root; ROWS];
                self.descend::<FLAGS, ROWS>(rows, std::array::from_fn(|row| row * stride), tree.depth, &mut at);
                for (row, at) in at.iter().enumerate() {
                    self.add(&self.nodes[*at as usize], tree.target, &mut sums[(first + row) * self.targets..]);
                }
            }
        }
        for row in even..count {
            let values = &block[row * stride..][..stride];
            let sums = &mut sums[row * self.targets..][..self.targets];
            let groups = self.trees.chunks_exact(TREES);
            let rest = groups.remainder();
            for trees in groups {
                let mut at = std::array::from_fn(|tree| trees[tree].root);
                let depth = trees.iter().map(|tree| tree.depth).max().unwrap_or(0);
                self.descend::<FLAGS, TREES>(values, [0; TREES], depth, &mut at);
                for (tree, at) in trees.iter().zip(at) {
                    self.add(&self.nodes[at as usize], tree.target, sums);
                }
            }
            for tree in rest {
                let mut at = [tree.root];
                self.descend::<FLAGS, 1>(values, [0], tree.depth, &mut at);
                self.add(&self.nodes[at[0] as usize], tree.target, sums);
            }
        }
    }

    /// Takes `LANES` walks to their leaves. Walk `n` reads its row at `rows[starts[n]..]`.
    #[inline(always)]
    fn descend<const FLAGS: u32, const LANES: usize>(
        &self,
        rows: &[T],
        starts: [usize; LANES],
        depth: u32,
        at: &mut [u32; LANES],
    ) {
        let nodes = &self.nodes[..];
        for _ in 0..depth {
            let mut moved = 0;
            for lane in 0..LANES {
                let node = nodes[at[lane] as usize];
                let column = node.word >> COLUMN_SHIFT & ((1 << COLUMN_BITS) - 1);
                let value = rows[starts[lane] + column as usize];
                let step = (node.word >> STEP_SHIFT) + u32::from(self.taken::<FLAGS>(&node, value));
                at[lane] += step;
                moved |= step;
            }
            if moved == 0 {
                break;
            }
        }
    }

    #[inline(always)]
    #[expect(clippy::eq_op, reason = "only NaN differs from itself")]
    fn taken<const FLAGS: u32>(&self, node: &Node<T>, value: T) -> bool {
        let mut taken = value <= node.threshold;
        if FLAGS & EQUAL != 0 {
            if node.word & MEMBER != 0 {
                // A binary search: NaN, which compares with nothing, is never found.
                let order = |member: &T| member.partial_cmp(&value).unwrap_or(Ordering::Less);
                let set = self.sets.get(node.threshold.number() as usize);
                taken = set.is_some_and(|set| set.binary_search_by(order).is_ok());
            }
            taken &= node.word & EQUAL == 0 || value == node.threshold;
        }
        if FLAGS & MISSING != 0 {
            taken |= (value != value) & (node.word & MISSING != 0);
        }
        taken
    }

    /// Adds the value of a leaf, or its list.
    #[inline(always)]
    fn add(&self, leaf: &Node<T>, target: u32, sums: &mut [f64]) {
        match &self.leaves {
            Leaves::Inline => self.combine(&mut sums[target as usize], leaf.threshold.widen()),
            Leaves::Lists { starts, entries } => {
                let list = leaf.threshold.number() as usize;
                for (target, value) in &entries[starts[list] as usize..starts[list + 1] as usize] {
                    self.combine(&mut sums[*target as usize], *value);
                }
            }
        }
    }

    #[inline(always)]
    fn combine(&self, sum: &mut f64, value: f64) {
        match self.combine {
            Combine::Sum | Combine::Average => *sum += value,
            // The minimum of NaN and a number is the number.
            Combine::Min => *sum = sum.min(value),
            Combine::Max => *sum = sum.max(value),
        }
    }
}
