//! Values looked up by an index that the input decides, and categories made columns.
//!
//! A categorical model has an entry for each category of its training, and a flow may have another. tract's operators
//! then fail the whole call, with every other flow in it. Here that flow gets NaN, and no score, or a row in which no
//! category is on.

use tract_onnx::prelude::*;
use tract_onnx::tract_core::ops::array::{Gather, OneHot};
use tract_onnx::tract_hir::internal::*;

/// As Gather, with NaN where there is no such entry.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
struct Look(Gather);

/// What stands in the place of `op`; `None` if its indices are known, or its values have no NaN.
pub(super) fn of(op: &Gather, facts: &[&TypedFact]) -> Option<Box<dyn TypedOp>> {
    let [values, indices] = facts else { return None };
    let known = [DatumType::F32, DatumType::F64].contains(&values.datum_type);
    (known && indices.konst.is_none()).then(|| Box::new(Look(op.clone())) as Box<dyn TypedOp>)
}

impl Look {
    fn run<T: Datum + Copy>(&self, values: &Tensor, indices: &Tensor, missing: T) -> TractResult<Tensor> {
        let axis = self.0.axis;
        let shape = self.0.compute_output_shape(values.shape(), indices.shape())?;
        let (outer, length): (usize, usize) = (values.shape()[..axis].iter().product(), values.shape()[axis]);
        let inner: usize = values.shape()[axis + 1..].iter().product();
        let places = indices.cast_to::<i64>()?;
        let (values, places) = (values.try_as_plain_ram()?, places.try_as_plain_ram()?);
        let (values, places) = (values.as_slice::<T>()?, places.as_slice::<i64>()?);
        let mut out = Vec::with_capacity(outer * places.len() * inner);
        for block in 0..outer {
            for place in places {
                // Negative ones count from the end.
                let place = if *place < 0 { place.checked_add(length as i64) } else { Some(*place) };
                match place.and_then(|place| usize::try_from(place).ok()).filter(|place| *place < length) {
                    Some(place) => out.extend_from_slice(&values[(block * length + place) * inner..][..inner]),
                    None => out.resize(out.len() + inner, missing),
                }
            }
        }
        Tensor::from_shape(&shape, &out)
    }
}

impl Op for Look {
    fn name(&self) -> StaticName {
        "ExactGather".into()
    }

    op_as_typed_op!();
}

impl EvalOp for Look {
    op_out_of_plan!();

    fn eval(&self, _: &EvalContext, inputs: TVec<TValue>) -> TractResult<TVec<TValue>> {
        let (values, indices) = args_2!(inputs);
        let out = match values.datum_type() {
            DatumType::F64 => self.run(&values, &indices, f64::NAN)?,
            _ => self.run(&values, &indices, f32::NAN)?,
        };
        Ok(tvec!(out.into_tvalue()))
    }
}

impl TypedOp for Look {
    as_op!();

    fn output_facts(&self, inputs: &[&TypedFact]) -> TractResult<TVec<TypedFact>> {
        self.0.output_facts(inputs)
    }
}

/// As OneHot, with nothing on where there is no such category.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
struct Hot(OneHot);

/// What stands in the place of `op`.
pub(super) fn hot(op: &OneHot) -> Box<dyn TypedOp> {
    Box::new(Hot(op.clone()))
}

impl Op for Hot {
    fn name(&self) -> StaticName {
        "ExactOneHot".into()
    }

    op_as_typed_op!();
}

impl EvalOp for Hot {
    op_out_of_plan!();

    fn eval(&self, context: &EvalContext, inputs: TVec<TValue>) -> TractResult<TVec<TValue>> {
        let input = args_1!(inputs);
        let OneHot { axis, dim, .. } = self.0;
        // What is no category turns on a column behind the others, which is cut off.
        let category = |given: &i64| {
            let category = if *given < 0 { given.saturating_add(dim as i64) } else { *given };
            if (0..dim as i64).contains(&category) { category } else { dim as i64 }
        };
        let given = input.cast_to::<i64>()?;
        let categories: Vec<i64> = given.try_as_plain_ram()?.as_slice::<i64>()?.iter().map(category).collect();
        let categories = Tensor::from_shape(input.shape(), &categories)?;
        let wider = OneHot { dim: dim + 1, ..self.0.clone() };
        let output = args_1!(wider.eval(context, tvec!(categories.into_tvalue()))?);
        Ok(tvec!(output.slice(axis, 0, dim)?.into_tvalue()))
    }
}

impl TypedOp for Hot {
    as_op!();

    fn output_facts(&self, inputs: &[&TypedFact]) -> TractResult<TVec<TypedFact>> {
        self.0.output_facts(inputs)
    }
}
