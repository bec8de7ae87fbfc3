//! The largest or smallest values of an axis.

use std::cmp::Ordering;

use tract_onnx::prelude::*;
use tract_onnx::tract_core::ops::array::Topk;
use tract_onnx::tract_hir::internal::*;

/// As tract's, but with a place for NaN, which has none among numbers: above all, as in numpy.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
struct Top(Topk);

/// What stands in the place of `op`.
pub(super) fn of(op: &Topk, given: DatumType) -> Option<Box<dyn TypedOp>> {
    let known = [DatumType::F32, DatumType::F64].contains(&given);
    known.then(|| Box::new(Top(op.clone())) as Box<dyn TypedOp>)
}

fn order<T: PartialOrd>(a: &T, b: &T) -> Ordering {
    let nan = |value: &T| value.partial_cmp(value).is_none();
    a.partial_cmp(b).unwrap_or_else(|| nan(a).cmp(&nan(b)))
}

impl Top {
    fn run<T: Datum + Copy + Default + PartialOrd>(&self, input: &Tensor, count: usize) -> TractResult<TVec<TValue>> {
        let Topk { axis, largest, .. } = self.0;
        ensure!(count <= input.shape()[axis], "TopK of {count} values, but there are {}", input.shape()[axis]);
        let mut shape: TVec<usize> = input.shape().into();
        shape[axis] = count;
        let (mut values, mut places) = (Tensor::zero_dt(T::datum_type(), &shape)?, Tensor::zero::<i64>(&shape)?);
        {
            let view = input.to_plain_array_view::<T>()?;
            let (mut values, mut places) = (values.try_as_plain_ram_mut()?, places.try_as_plain_ram_mut()?);
            let (mut values, mut places) = (values.to_array_view_mut::<T>()?, places.to_array_view_mut::<i64>()?);
            let axis = tract_ndarray::Axis(axis);
            let rows = view.lanes(axis).into_iter().zip(values.lanes_mut(axis)).zip(places.lanes_mut(axis));
            for ((row, mut values), mut places) in rows {
                let mut sorted: Vec<(usize, T)> = row.iter().copied().enumerate().collect();
                // Stable: of equal values the first comes first.
                sorted.sort_by(|a, b| if largest { order(&b.1, &a.1) } else { order(&a.1, &b.1) });
                for (number, (place, value)) in sorted.into_iter().take(count).enumerate() {
                    values[number] = value;
                    places[number] = place as i64;
                }
            }
        }
        Ok(tvec!(values.into_tvalue(), places.into_tvalue()))
    }
}

impl Op for Top {
    fn name(&self) -> StaticName {
        "ExactTopK".into()
    }

    op_as_typed_op!();
}

impl EvalOp for Top {
    op_out_of_plan!();

    fn eval(&self, _: &EvalContext, inputs: TVec<TValue>) -> TractResult<TVec<TValue>> {
        let (input, count) = args_2!(inputs);
        let count = count.cast_to_scalar::<i64>()?.try_into().context("TopK of a negative number")?;
        if input.datum_type() == DatumType::F64 {
            self.run::<f64>(&input, count)
        } else {
            self.run::<f32>(&input, count)
        }
    }
}

impl TypedOp for Top {
    as_op!();

    fn output_facts(&self, inputs: &[&TypedFact]) -> TractResult<TVec<TypedFact>> {
        self.0.output_facts(inputs)
    }
}
