//! Recurrent layers.
//!
//! tract joins the gates of an LSTM, and of one form of GRU, to one operator with kernels that lose NaN, and runs whole
//! sequences of the latter in another. The GRU is built of exact gates here, which tract then leaves as they are; for
//! the LSTM, which has no such choice, a row with NaN is made NaN afterwards.

use tract_onnx::Onnx;
use tract_onnx::model::ParsingContext;
use tract_onnx::ops::rec::common::CommonRec;
use tract_onnx::ops::rec::gru::GRU;
use tract_onnx::pb::NodeProto;
use tract_onnx::prelude::*;
use tract_onnx::tract_hir::internal::*;

use super::map::gates;

/// Registers the GRU.
pub(super) fn register(framework: &mut Onnx) {
    framework.op_register.insert("GRU", gru);
}

fn gru(_: &ParsingContext, node: &NodeProto) -> TractResult<(Box<dyn InferenceOp>, Vec<String>)> {
    let (f, g) = gates();
    let linear_before_reset = node.get_attr_opt("linear_before_reset")?.unwrap_or(false);
    let common = CommonRec::from_node_and_options(node, 3, 0, Box::new(GRU { f, g, linear_before_reset }))?;
    Ok((expand(common), Vec::new()))
}

/// A cell whose rows with NaN among their inputs give NaN.
#[derive(Clone, Debug, PartialEq, Eq)]
struct Cell(Box<dyn TypedOp>);

/// What stands in the place of the joined gates `op`.
pub(super) fn of(op: Box<dyn TypedOp>) -> Box<dyn TypedOp> {
    Box::new(Cell(op))
}

impl Op for Cell {
    fn name(&self) -> StaticName {
        format!("Exact{}", self.0.name()).into()
    }

    op_as_typed_op!();
}

impl EvalOp for Cell {
    op_out_of_plan!();

    fn eval(&self, context: &EvalContext, inputs: TVec<TValue>) -> TractResult<TVec<TValue>> {
        let mut missing: Vec<bool> = Vec::new();
        for input in &inputs {
            let width = input.shape().last().copied().unwrap_or(1).max(1);
            let wide = input.cast_to::<f32>()?;
            let plain = wide.try_as_plain_ram()?;
            let rows = plain.as_slice::<f32>()?.chunks_exact(width);
            missing.resize(missing.len().max(rows.len()), false);
            missing.iter_mut().zip(rows).for_each(|(missing, row)| *missing |= row.iter().any(|value| value.is_nan()));
        }
        let outputs = self.0.eval(context, inputs)?;
        if !missing.contains(&true) {
            return Ok(outputs);
        }
        outputs.into_iter().map(|output| without(output, &missing)).collect()
    }
}

/// `output` with NaN in the rows that are missing.
fn without(output: TValue, missing: &[bool]) -> TractResult<TValue> {
    let mut tensor = output.into_tensor().cast_to::<f32>()?.into_owned();
    let width = tensor.shape().last().copied().unwrap_or(1).max(1);
    {
        let mut plain = tensor.try_as_plain_ram_mut()?;
        let rows = plain.as_slice_mut::<f32>()?.chunks_exact_mut(width).zip(missing);
        rows.filter(|(_, missing)| **missing).for_each(|(row, _)| row.fill(f32::NAN));
    }
    Ok(tensor.into_tvalue())
}

impl TypedOp for Cell {
    as_op!();

    fn output_facts(&self, inputs: &[&TypedFact]) -> TractResult<TVec<TypedFact>> {
        self.0.output_facts(inputs)
    }
}
