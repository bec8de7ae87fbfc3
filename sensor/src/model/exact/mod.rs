//! Operators of tract's that answer otherwise than ONNX says, replaced by ones that answer as it says.
//!
//! tract's kernels are made for speed on ordinary values. Some lose NaN (the minimum, the maximum, sigmoid, the cells
//! of recurrent layers), some know 32-bit floats only, and its optimiser makes 0 of what is multiplied by 0. A model
//! without missing-value handling would then give a number for a flow with missing values, and nobody would notice.
//!
//! Invariant: no operator that loses NaN stays in a graph after [`rewrite`], and the optimiser does not know those that
//! stand in their place, so it cannot fold them. [`super::operators`] tests each operator against the reference. Called
//! by [`super::network`] between typing and optimising.

mod cast;
mod cell;
mod fold;
mod look;
mod map;
mod pair;
mod top;

use anyhow::Result;
use tract_onnx::Onnx;
use tract_onnx::tract_core::ops::array::{Gather, OneHot, Topk};
use tract_onnx::tract_core::ops::binary::TypedBinOp;
use tract_onnx::tract_core::ops::cast::Cast;
use tract_onnx::tract_core::ops::element_wise::ElementWiseOp;
use tract_onnx::tract_core::ops::gru_cell::GruEpilogue;
use tract_onnx::tract_core::ops::lstm_cell::LstmEpilogue;
use tract_onnx::tract_core::ops::nn::Reduce;
use tract_onnx::tract_core::ops::scan::Scan;
use tract_onnx::tract_hir::internal::*;

/// Replaces what is in the graph, bodies of loops included.
///
/// # Errors
/// If the graph is not consistent.
pub(super) fn rewrite(graph: &mut TypedModel) -> Result<()> {
    // Known constants first: what is added to or multiplied with them decides.
    graph.prop_consts()?;
    fold::fuse(graph)?;
    fold::fuse_log_softmax(graph)?;
    for number in 0..graph.nodes.len() {
        if let Some(op) = replacement(graph, number)? {
            graph.nodes[number].op = op;
        } else if let Some(scan) = graph.nodes[number].op_as_mut::<Scan>() {
            rewrite(&mut scan.body)?;
        }
    }
    Ok(())
}

/// Registers the operators of ONNX that tract builds of parts whose sum is not what ONNX says.
pub(super) fn extend(framework: &mut Onnx) {
    map::register(framework);
    cast::register(framework);
    cell::register(framework);
}

fn replacement(graph: &TypedModel, number: usize) -> TractResult<Option<Box<dyn TypedOp>>> {
    let node = &graph.nodes[number];
    let facts = graph.node_input_facts(number)?;
    if let Some(op) = node.op_as::<OneHot>() {
        return Ok(Some(look::hot(op)));
    }
    let Some(given) = facts.first().map(|fact| fact.datum_type).filter(DatumType::is_float) else { return Ok(None) };
    if let Some(op) = node.op_as::<ElementWiseOp>() {
        return Ok(map::of(op).or_else(|| cast::quantize(op)));
    }
    if let Some(op) = node.op_as::<TypedBinOp>() {
        return Ok(pair::of(op, &facts));
    }
    if let Some(op) = node.op_as::<Reduce>() {
        return Ok(fold::of(op, given));
    }
    if let Some(op) = node.op_as::<Topk>() {
        return Ok(top::of(op, given));
    }
    if let Some(op) = node.op_as::<Gather>() {
        return Ok(look::of(op, &facts));
    }
    if let Some(op) = node.op_as::<Cast>() {
        return Ok(cast::of(op, given));
    }
    if node.op_is::<LstmEpilogue>() || node.op_is::<GruEpilogue>() {
        return Ok(Some(cell::of(node.op.clone())));
    }
    Ok(None)
}
