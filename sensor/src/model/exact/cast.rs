//! Floats that are made integers: by Cast, and by QuantizeLinear.
//!
//! What no integer can hold (NaN, infinities, what is too large) becomes the smallest integer of a Cast, as in numpy
//! and in onnxruntime on x86; tract would make 0 of NaN: a category, a count, or a label that exists. Quantised,
//! infinities and what is too large become the nearest number there is, and NaN the smallest.

use tract_onnx::Onnx;
use tract_onnx::model::ParsingContext;
use tract_onnx::pb::NodeProto;
use tract_onnx::prelude::*;
use tract_onnx::tract_core::ops::cast::{Cast, cast};
use tract_onnx::tract_core::ops::element_wise::ElementWiseOp;
use tract_onnx::tract_core::ops::quant::{QuantizeLinearI8, QuantizeLinearU8};
use tract_onnx::tract_hir::internal::*;

/// Registers Cast: 64-bit integers are numbers, and symbols, which tract takes them for, only if they were symbols.
pub(super) fn register(framework: &mut Onnx) {
    framework.op_register.insert("Cast", |_: &ParsingContext, node: &NodeProto| {
        Ok((expand(Unwired { to: node.get_attr::<DatumType>("to")? }), Vec::new()))
    });
}

/// A Cast before its input is known.
#[derive(Clone, Debug)]
struct Unwired {
    to: DatumType,
}

impl Unwired {
    fn target(&self, from: DatumType) -> DatumType {
        if from == DatumType::TDim && self.to == DatumType::I64 { DatumType::TDim } else { self.to }
    }
}

impl Expansion for Unwired {
    fn name(&self) -> StaticName {
        "Cast".into()
    }

    fn rules<'r, 'p: 'r, 's: 'r>(
        &'s self,
        s: &mut Solver<'r>,
        inputs: &'p [TensorProxy],
        outputs: &'p [TensorProxy],
    ) -> InferenceResult {
        check_input_arity(inputs, 1)?;
        check_output_arity(outputs, 1)?;
        s.equals(&outputs[0].shape, &inputs[0].shape)?;
        s.given(&inputs[0].datum_type, |s, from| s.equals(&outputs[0].datum_type, self.target(from)))
    }

    fn wire(&self, prefix: &str, model: &mut TypedModel, inputs: &[OutletId]) -> TractResult<TVec<OutletId>> {
        let from = model.outlet_fact(inputs[0])?.datum_type;
        model.wire_node(prefix, cast(self.target(from)), inputs)
    }
}

/// A Cast of floats to integers.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
struct Whole(Cast);

/// What stands in the place of `op`; `None` if it answers as ONNX says.
pub(super) fn of(op: &Cast, given: DatumType) -> Option<Box<dyn TypedOp>> {
    let whole = [DatumType::I64, DatumType::I32].contains(&op.to);
    (given.is_float() && whole).then(|| Box::new(Whole(op.clone())) as Box<dyn TypedOp>)
}

fn cut<T: Datum + Copy>(input: &Tensor, of: impl Fn(f64) -> T) -> TractResult<Tensor> {
    let wide = input.cast_to::<f64>()?;
    let plain = wide.try_as_plain_ram()?;
    let out: Vec<T> = plain.as_slice::<f64>()?.iter().map(|value| of(*value)).collect();
    Tensor::from_shape(input.shape(), &out)
}

/// The integer of a float, cut, if it lies in −2^bits .. 2^bits.
fn within(value: f64, bits: i32) -> Option<i64> {
    let end = 2f64.powi(bits);
    let cut = value.trunc();
    (cut >= -end && cut < end).then_some(cut as i64)
}

impl Op for Whole {
    fn name(&self) -> StaticName {
        "ExactCast".into()
    }

    op_as_typed_op!();
}

impl EvalOp for Whole {
    op_out_of_plan!();

    fn eval(&self, _: &EvalContext, inputs: TVec<TValue>) -> TractResult<TVec<TValue>> {
        let input = args_1!(inputs);
        let out = match self.0.to {
            DatumType::I32 => cut(&input, |value| within(value, 31).map_or(i32::MIN, |whole| whole as i32))?,
            _ => cut(&input, |value| within(value, 63).unwrap_or(i64::MIN))?,
        };
        Ok(tvec!(out.into_tvalue()))
    }
}

impl TypedOp for Whole {
    as_op!();

    fn output_facts(&self, inputs: &[&TypedFact]) -> TractResult<TVec<TypedFact>> {
        self.0.output_facts(inputs)
    }
}

/// round(x · scale) + zero, kept within 8 bits.
#[derive(Clone, Debug, PartialEq)]
struct Quantize {
    scale: f32,
    zero: i16,
    signed: bool,
}

// The scale is never NaN: `quantize` sees to it.
impl Eq for Quantize {}

/// What stands in the place of a quantising `op`.
pub(super) fn quantize(op: &ElementWiseOp) -> Option<Box<dyn TypedOp>> {
    let mini = &op.0;
    let quantize = match (mini.downcast_ref::<QuantizeLinearU8>(), mini.downcast_ref::<QuantizeLinearI8>()) {
        (Some(op), _) => Quantize { scale: op.scale, zero: op.zero_point.into(), signed: false },
        (_, Some(op)) => Quantize { scale: op.scale, zero: op.zero_point.into(), signed: true },
        _ => return None,
    };
    (!quantize.scale.is_nan()).then(|| Box::new(ElementWiseOp(Box::new(quantize), None)) as Box<dyn TypedOp>)
}

impl ElementWiseMiniOp for Quantize {
    fn name(&self) -> String {
        "ExactQuantizeLinear".to_owned()
    }

    fn output_type(&self, _: DatumType) -> Option<DatumType> {
        Some(if self.signed { DatumType::I8 } else { DatumType::U8 })
    }

    fn eval_out_of_place(&self, tensor: &Tensor, _: Option<DatumType>) -> TractResult<Tensor> {
        let of = |value: f64| {
            let rounded = (value as f32 * self.scale).round_ties_even();
            if rounded.is_nan() { f32::NEG_INFINITY } else { rounded + f32::from(self.zero) }
        };
        // Float to integer keeps within the integer's range.
        if self.signed { cut(tensor, |value| of(value) as i8) } else { cut(tensor, |value| of(value) as u8) }
    }
}
