//! Tree ensembles: read from any of ONNX's three operators, checked once, laid out flat, walked for many rows at a time.
//!
//! # The flat form
//!
//! All trees lie in one array of [`Node`]s: a `threshold` (32-bit float, or 64-bit for models in doubles) and one 32-bit `word`:
//!
//! ```text
//!   31            13 12         3  2      1      0
//!   +---------------+------------+------+-----+-------+
//!   | displacement  |   column   |member|equal|missing|
//!   +---------------+------------+------+-----+-------+
//! ```
//!
//! From the node at index `i` with `x = row[column]`, the next one is `i + displacement + taken`, where `taken` is 1 if the
//! test holds. The test is `x <= threshold`; with `equal` set `x == threshold`; with `member` set "x is in the set whose
//! number is in the threshold's bits"; and with `missing` set it holds for NaN too. So the two children of a node lie
//! side by side, the one for "false" first, after their parent, breadth first.
//!
//! A leaf has displacement 0 and looks at the column after the last, which is always NaN: its test never holds, and a walk
//! that has arrived stays where it is. So a walk needs no "is it a leaf?" and no jump that depends on data, and as many walks as
//! fit into registers run interleaved. Its `threshold` is its value if every leaf of the ensemble has one value and every
//! tree one target, else the number of its list (the threshold's bits) in [`Leaves::Lists`].
//!
//! ONNX's other modes are rewritten into these: `x < t` is `x <= t'` with the next smaller float, `x > t` is `x <= t` with the
//! children exchanged and NaN sent back, and so on; `build` does it in the type that the model compares in.
//!
//! Invariant: in an [`Ensemble`] that exists, every displacement leads to a node of the same tree, every column is less than
//! `columns` (leaves: equal to it), every list and set exists, and no tree is deeper than its `depth`. A walk therefore ends
//! after `depth` steps and every index is in range. `tables` and node counts are bounded by the constants below before
//! anything is allocated for them.
//!
//! Called by [`super::ops`], which makes operators of it.

mod build;
mod finish;
mod read;
#[cfg(test)]
mod tests;
mod walk;

use std::fmt::Debug;

use super::engine::Values;

pub(super) use read::{Kind, read};

/// Most columns that an ensemble looks at: what fits into a node.
pub(crate) const MAX_COLUMNS: usize = 1 << COLUMN_BITS;
/// Most nodes of one ensemble: 4 million, 32 MB.
pub(crate) const MAX_NODES: usize = 1 << 22;
/// Most trees of one ensemble.
pub(crate) const MAX_TREES: usize = 1 << 14;
/// Longest way from a root to a leaf.
pub(crate) const MAX_DEPTH: usize = 1 << 10;
/// Most levels that a row walks, summed over the trees: what it costs at worst, whatever its values are (a millisecond or so).
pub(crate) const MAX_LEVELS: usize = 1 << 18;
/// Most targets (classes, outputs) of one ensemble.
pub(crate) const MAX_TARGETS: usize = 1 << 10;

const COLUMN_BITS: u32 = 10;
const COLUMN_SHIFT: u32 = 3;
const STEP_SHIFT: u32 = COLUMN_SHIFT + COLUMN_BITS;
const MISSING: u32 = 1;
const EQUAL: u32 = 2;
const MEMBER: u32 = 4;

/// One node of the flat form; see the module's header.
#[derive(Clone, Copy, Debug, PartialEq)]
#[repr(C)]
pub(crate) struct Node<T> {
    /// What the column is compared with; a leaf's value, or the bits of a number.
    pub(crate) threshold: T,
    /// Displacement, column, flags.
    pub(crate) word: u32,
}

/// One tree of the flat form.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Tree {
    /// Index of its root.
    pub(crate) root: u32,
    /// Steps after which every walk has arrived.
    pub(crate) depth: u32,
    /// What its leaves add to, if the ensemble's leaves are [`Leaves::Inline`].
    pub(crate) target: u32,
}

/// Where the values of leaves are.
#[derive(Clone, Debug, PartialEq)]
pub(crate) enum Leaves {
    /// In the leaves' thresholds.
    Inline,
    /// In lists of targets and values.
    Lists {
        /// Where each list starts in `entries`, and one more.
        starts: Vec<u32>,
        /// Target and value.
        entries: Vec<(u32, f64)>,
    },
}

/// How the values of the leaves that a row arrives at become one.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Combine {
    /// Their sum.
    Sum,
    /// Their sum, divided by the number of trees.
    Average,
    /// The smallest.
    Min,
    /// The largest.
    Max,
}

/// Trees in flat form.
#[derive(Clone, Debug)]
pub(crate) struct Ensemble<T> {
    nodes: Vec<Node<T>>,
    trees: Vec<Tree>,
    leaves: Leaves,
    /// Ascending, without NaN.
    sets: Vec<Vec<T>>,
    combine: Combine,
    columns: usize,
    targets: usize,
    /// The flags that some node has.
    flags: u32,
}

/// A float that thresholds are made of.
pub(crate) trait Real: Copy + Debug + PartialOrd + Send + Sync + 'static {
    /// Not a number.
    const NAN: Self;
    /// The largest float that is smaller; NaN (no float is) for −∞.
    fn below(self) -> Self;
    /// Exact widening.
    fn widen(self) -> f64;
    /// Rounds.
    fn narrow(value: f64) -> Self;
    /// A small number as bits.
    fn from_number(number: u32) -> Self;
    /// The number whose bits these are.
    fn number(self) -> u32;
    /// Values of this type.
    fn of(values: Values<'_>) -> Option<&[Self]>;
    /// Buffers of this type.
    fn buffer(scratch: &mut walk::Scratch) -> (&mut Vec<Self>, &mut Vec<f64>);
}

impl Real for f32 {
    const NAN: f32 = f32::NAN;

    fn below(self) -> f32 {
        if self == f32::NEG_INFINITY { f32::NAN } else { self.next_down() }
    }

    fn widen(self) -> f64 {
        self as f64
    }

    fn narrow(value: f64) -> f32 {
        value as f32
    }

    fn from_number(number: u32) -> f32 {
        f32::from_bits(number)
    }

    fn number(self) -> u32 {
        self.to_bits()
    }

    fn of(values: Values<'_>) -> Option<&[f32]> {
        if let Values::F32(values) = values { Some(values) } else { None }
    }

    fn buffer(scratch: &mut walk::Scratch) -> (&mut Vec<f32>, &mut Vec<f64>) {
        (&mut scratch.singles, &mut scratch.sums)
    }
}

impl Real for f64 {
    const NAN: f64 = f64::NAN;

    fn below(self) -> f64 {
        if self == f64::NEG_INFINITY { f64::NAN } else { self.next_down() }
    }

    fn widen(self) -> f64 {
        self
    }

    fn narrow(value: f64) -> f64 {
        value
    }

    fn from_number(number: u32) -> f64 {
        f64::from_bits(u64::from(number))
    }

    fn number(self) -> u32 {
        self.to_bits() as u32
    }

    fn of(values: Values<'_>) -> Option<&[f64]> {
        if let Values::F64(values) = values { Some(values) } else { None }
    }

    fn buffer(scratch: &mut walk::Scratch) -> (&mut Vec<f64>, &mut Vec<f64>) {
        (&mut scratch.doubles, &mut scratch.sums)
    }
}
