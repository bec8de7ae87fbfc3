//! Reductions: many values become one.

use tract_onnx::prelude::*;
use tract_onnx::tract_core::ops::element_wise::ElementWiseOp;
use tract_onnx::tract_core::ops::math::{Exp, Ln};
use tract_onnx::tract_core::ops::nn::{Reduce, Reducer, Softmax, SoftmaxKind};
use tract_onnx::tract_hir::internal::*;

/// Which reduction.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
enum Kind {
    Max,
    Min,
    /// The place of the largest value; the last one if so said.
    ArgMax(bool),
    ArgMin(bool),
    /// ln Σ exp(x), with the largest value taken off first, so that no exponential overflows and not all vanish.
    LogSumExp,
}

/// A reduction in which NaN wins, as in numpy.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
struct Fold {
    kind: Kind,
    axes: TVec<usize>,
}

/// What stands in the place of `op`; `None` if it answers as ONNX says.
pub(super) fn of(op: &Reduce, given: DatumType) -> Option<Box<dyn TypedOp>> {
    let kind = match op.reducer {
        Reducer::Max => Kind::Max,
        Reducer::Min => Kind::Min,
        Reducer::ArgMax(last) => Kind::ArgMax(last),
        Reducer::ArgMin(last) => Kind::ArgMin(last),
        _ => return None,
    };
    given.is_float().then(|| Box::new(Fold { kind, axes: op.axes.clone() }) as Box<dyn TypedOp>)
}

/// Makes one node of ReduceLogSumExp, which tract wires as exponential, sum and logarithm.
pub(super) fn fuse(graph: &mut TypedModel) -> TractResult<()> {
    for number in 0..graph.nodes.len() {
        let is = |node: &TypedNode, what: fn(&ElementWiseOp) -> bool| node.op_as::<ElementWiseOp>().is_some_and(what);
        let node = &graph.nodes[number];
        let (Some(name), true) = (node.name.strip_suffix(".ln"), is(node, |op| op.0.is::<Ln>())) else { continue };
        let sum = &graph.nodes[node.inputs[0].node];
        let Some(reduce) = sum.op_as::<Reduce>() else { continue };
        if reduce.reducer != Reducer::Sum || sum.name != format!("{name}.sum") {
            continue;
        }
        let exp = &graph.nodes[sum.inputs[0].node];
        if exp.name != format!("{name}.exp") || !is(exp, |op| op.0.is::<Exp>()) {
            continue;
        }
        let fold = Fold { kind: Kind::LogSumExp, axes: reduce.axes.clone() };
        let input = exp.inputs[0];
        if !graph.outlet_fact(input)?.datum_type.is_float() {
            continue;
        }
        let mut patch = TypedModelPatch::default();
        let tap = patch.tap_model(graph, input)?;
        let wire = patch.wire_node(format!("{name}.logsumexp"), fold, &[tap])?;
        patch.shunt_outside(graph, number.into(), wire[0])?;
        patch.apply(graph)?;
    }
    Ok(())
}

/// Makes one node of LogSoftmax, which tract wires as Softmax and logarithm: that of what has vanished is −∞.
pub(super) fn fuse_log_softmax(graph: &mut TypedModel) -> TractResult<()> {
    for number in 0..graph.nodes.len() {
        let node = &graph.nodes[number];
        if !node.name.ends_with(".logsoftmax") || !node.op_as::<ElementWiseOp>().is_some_and(|op| op.0.is::<Ln>()) {
            continue;
        }
        let softmax = node.inputs[0].node;
        let alone = graph.nodes[softmax].outputs[0].successors.len() == 1;
        let Some(op) = graph.nodes[softmax].op_as_mut::<Softmax>().filter(|_| alone) else { continue };
        op.kind = SoftmaxKind::LogSoftmax;
        TypedModelPatch::shunt_one_op(graph, &graph.nodes[number])?.context("no patch")?.apply(graph)?;
    }
    Ok(())
}

/// A float.
trait Real: Datum + Copy + Default + PartialOrd {
    fn log_sum_exp(values: &[Self]) -> Self;
}

macro_rules! real {
    ($($float:ty),*) => { $(impl Real for $float {
        fn log_sum_exp(values: &[Self]) -> Self {
            let top = values[place(values, false, |a, b| a > b)];
            // Nothing is taken off an infinity: the sum is infinite, or 0, or NaN, by itself.
            let off = if top.is_finite() { f64::from(top) } else { 0.0 };
            let sum: f64 = values.iter().map(|value| (f64::from(*value) - off).exp()).sum();
            (sum.ln() + off) as Self
        }
    })* };
}
real!(f32, f64);

/// The place of the value that beats all others, of several the first or the last. The first or last NaN beats all.
#[inline(always)]
#[expect(clippy::eq_op, reason = "only NaN differs from itself")]
fn place<T: Copy + PartialOrd>(values: &[T], last: bool, beats: impl Fn(T, T) -> bool) -> usize {
    let mut best = 0;
    for (number, value) in values.iter().copied().enumerate().skip(1) {
        let top = values[best];
        let wins = if top != top {
            last && value != value
        } else {
            value != value || beats(value, top) || (last && value == top)
        };
        if wins {
            best = number;
        }
    }
    best
}

impl Fold {
    /// Applies `of` to the values that become one, for each of the others.
    fn run<T: Real, O: Datum + Copy>(&self, input: &Tensor, of: impl Fn(&[T]) -> O) -> TractResult<Tensor> {
        let rank = input.rank();
        let kept = (0..rank).filter(|axis| !self.axes.contains(axis));
        let order: Vec<usize> = kept.chain(self.axes.iter().copied()).collect();
        let count: usize = self.axes.iter().map(|axis| input.shape()[*axis]).product();
        ensure!(count > 0, "{} of nothing", self.name());
        let shape: TVec<usize> = input
            .shape()
            .iter()
            .enumerate()
            .map(|(axis, dim)| if self.axes.contains(&axis) { 1 } else { *dim })
            .collect();
        let view = input.to_plain_array_view::<T>()?.permuted_axes(order);
        let rows = view.as_standard_layout();
        let values = rows.as_slice().context("rows in order")?;
        let out: Vec<O> = values.chunks_exact(count).map(of).collect();
        Tensor::from_shape(&shape, &out)
    }

    fn of<T: Real>(&self, input: &Tensor) -> TractResult<Tensor> {
        match self.kind {
            Kind::Max => self.run(input, |values: &[T]| values[place(values, false, |a, b| a > b)]),
            Kind::Min => self.run(input, |values: &[T]| values[place(values, false, |a, b| a < b)]),
            Kind::ArgMax(last) => self.run(input, |values: &[T]| place(values, last, |a, b| a > b) as i64),
            Kind::ArgMin(last) => self.run(input, |values: &[T]| place(values, last, |a, b| a < b) as i64),
            Kind::LogSumExp => self.run(input, T::log_sum_exp),
        }
    }
}

impl Op for Fold {
    fn name(&self) -> StaticName {
        format!("Exact{:?}", self.kind).into()
    }

    op_as_typed_op!();
}

impl EvalOp for Fold {
    op_out_of_plan!();

    fn eval(&self, _: &EvalContext, inputs: TVec<TValue>) -> TractResult<TVec<TValue>> {
        let input = args_1!(inputs);
        let out = match input.datum_type() {
            DatumType::F32 => self.of::<f32>(&input)?,
            DatumType::F64 => self.of::<f64>(&input)?,
            other => {
                let out = self.of::<f32>(&*input.cast_to::<f32>()?)?;
                // Places stay integers.
                if out.datum_type().is_float() { out.cast_to_dt(other)?.into_owned() } else { out }
            }
        };
        Ok(tvec!(out.into_tvalue()))
    }
}

impl TypedOp for Fold {
    as_op!();

    fn output_facts(&self, inputs: &[&TypedFact]) -> TractResult<TVec<TypedFact>> {
        let mut shape = inputs[0].shape.to_tvec();
        self.axes.iter().for_each(|axis| shape[*axis] = 1.to_dim());
        let place = matches!(self.kind, Kind::ArgMax(_) | Kind::ArgMin(_));
        let datum_type = if place { DatumType::I64 } else { inputs[0].datum_type };
        Ok(tvec!(datum_type.fact(shape)))
    }
}
