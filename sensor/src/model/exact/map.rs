//! Functions of one value.
//!
//! tract's kernels of 32-bit floats run where they are exact: on values up to a limit. Beyond it, and for NaN, which
//! lies beyond every limit, the function itself answers, in 64 bits; so it does for all values of other types.

use tract_onnx::Onnx;
use tract_onnx::model::ParsingContext;
use tract_onnx::pb::NodeProto;
use tract_onnx::prelude::*;
use tract_onnx::tract_core::ops::element_wise::ElementWiseOp;
use tract_onnx::tract_core::ops::math::{Acosh, Asinh, Erf, RoundHalfToEven, Sqrt, Tanh};
use tract_onnx::tract_core::ops::nn::gelu_approximate::GeluApproximate;
use tract_onnx::tract_core::ops::nn::silu::Silu;
use tract_onnx::tract_core::ops::nn::{HardSwish, LeakyRelu, Sigmoid};
use tract_onnx::tract_hir::internal::*;
use tract_onnx::tract_hir::ops;

use crate::model::ops::post::logistic;

/// A function, as ONNX defines it.
#[derive(Clone, Copy, Debug, PartialEq)]
enum Function {
    Acosh,
    Asinh,
    /// max(0, x) + min(0, α · (exp(x / α) − 1))
    Celu(f32),
    Erf,
    /// With tanh instead of erf.
    Gelu,
    HardSwish,
    LeakyRelu(f32),
    Round,
    Sigmoid,
    /// ln(1 + exp(x))
    Softplus,
    Sqrt,
    /// x · sigmoid(x)
    Swish,
    Tanh,
}

impl Function {
    fn of(self, x: f64) -> f64 {
        match self {
            Function::Acosh => x.acosh(),
            Function::Asinh => x.asinh(),
            Function::Celu(alpha) if x <= 0.0 => f64::from(alpha) * (x / f64::from(alpha)).exp_m1(),
            Function::Celu(_) => x,
            // Beyond the kernel's limit, where it is level.
            Function::Erf => {
                if x.is_nan() {
                    x
                } else {
                    x.signum()
                }
            }
            Function::Gelu => {
                let inner = (2.0 / std::f64::consts::PI).sqrt() * (x + 0.044715 * x.powi(3));
                0.5 * x * (1.0 + inner.tanh())
            }
            Function::HardSwish => x * (x / 6.0 + 0.5).clamp(0.0, 1.0),
            Function::LeakyRelu(alpha) => {
                if x < 0.0 {
                    x * f64::from(alpha)
                } else {
                    x
                }
            }
            Function::Round => x.round_ties_even(),
            Function::Sigmoid => logistic(x),
            // The maximum drops NaN, the rest keeps it.
            Function::Softplus => x.max(0.0) + (-x.abs()).exp().ln_1p(),
            Function::Sqrt => x.sqrt(),
            Function::Swish => x * logistic(x),
            Function::Tanh => x.tanh(),
        }
    }

    /// Up to which absolute value tract's kernel of 32-bit floats is exact.
    fn limit(self) -> f32 {
        match self {
            Function::Acosh | Function::Asinh => 1e15,
            Function::Celu(_) | Function::Softplus => 0.0,
            Function::Erf => 4.0,
            Function::Gelu => 4.5,
            Function::HardSwish => 1e30,
            Function::LeakyRelu(_) | Function::Round | Function::Sqrt => f32::INFINITY,
            Function::Sigmoid | Function::Swish => 17.0,
            Function::Tanh => 8.5,
        }
    }
}

/// A function, and tract's kernel for it if there is one.
#[derive(Clone, Debug, PartialEq)]
struct Map {
    function: Function,
    kernel: Option<Box<dyn ElementWiseMiniOp>>,
}

// Parameters are never NaN: `of` and `register` see to it.
impl Eq for Map {}

impl Map {
    fn singles(&self, tensor: &mut Tensor) -> TractResult<()> {
        let limit = self.function.limit();
        let beyond = |value: f32| value.is_nan() || value.abs() > limit;
        let saved: Vec<(usize, f32)> = {
            let plain = tensor.try_as_plain_ram()?;
            let values: &[f32] = plain.as_slice()?;
            // Without branches, so that it costs next to nothing where all is ordinary.
            match self.kernel.is_some() && !values.iter().fold(false, |found, value| found | beyond(*value)) {
                true => Vec::new(),
                false => values.iter().copied().enumerate().filter(|(_, value)| beyond(*value)).collect(),
            }
        };
        match &self.kernel {
            Some(kernel) => kernel.eval_in_place(tensor, None)?,
            None => return self.all::<f32>(tensor, f64::from, |value| value as f32),
        }
        if !saved.is_empty() {
            let mut plain = tensor.try_as_plain_ram_mut()?;
            let values: &mut [f32] = plain.as_slice_mut()?;
            for (place, value) in saved {
                values[place] = self.function.of(f64::from(value)) as f32;
            }
        }
        Ok(())
    }

    fn all<T: Datum + Copy>(
        &self,
        tensor: &mut Tensor,
        widen: impl Fn(T) -> f64,
        narrow: impl Fn(f64) -> T,
    ) -> TractResult<()> {
        let mut plain = tensor.try_as_plain_ram_mut()?;
        let values: &mut [T] = plain.as_slice_mut()?;
        values.iter_mut().for_each(|value| *value = narrow(self.function.of(widen(*value))));
        Ok(())
    }
}

impl ElementWiseMiniOp for Map {
    fn name(&self) -> String {
        format!("Exact{:?}", self.function)
    }

    fn eval_in_place(&self, tensor: &mut Tensor, _: Option<DatumType>) -> TractResult<()> {
        match tensor.datum_type() {
            DatumType::F32 => self.singles(tensor),
            // The error function has no other kernel than that of 32-bit floats.
            DatumType::F64 | DatumType::F16 if self.function == Function::Erf => {
                let mut narrow = tensor.cast_to::<f32>()?.into_owned();
                self.singles(&mut narrow)?;
                *tensor = narrow.cast_to_dt(tensor.datum_type())?.into_owned();
                Ok(())
            }
            DatumType::F64 => self.all::<f64>(tensor, |value| value, |value| value),
            DatumType::F16 => self.all::<f16>(tensor, f16::to_f64, f16::from_f64),
            other => bail!("{} of elements of type {other:?}", self.name()),
        }
    }
}

/// Whether values are NaN, or infinite: of floats of any size.
#[derive(Clone, Debug, PartialEq, Eq)]
struct Test {
    nan: bool,
    above: bool,
    below: bool,
}

impl Test {
    fn run<T: Datum + Copy>(&self, tensor: &Tensor, widen: impl Fn(T) -> f64) -> TractResult<Tensor> {
        let plain = tensor.try_as_plain_ram()?;
        let is = |value: &T| {
            let value = widen(*value);
            (self.nan && value.is_nan())
                || (self.above && value == f64::INFINITY)
                || (self.below && value == f64::NEG_INFINITY)
        };
        let out: Vec<bool> = plain.as_slice::<T>()?.iter().map(is).collect();
        Tensor::from_shape(tensor.shape(), &out)
    }
}

impl ElementWiseMiniOp for Test {
    fn name(&self) -> String {
        "ExactTest".to_owned()
    }

    fn output_type(&self, _: DatumType) -> Option<DatumType> {
        Some(DatumType::Bool)
    }

    fn eval_out_of_place(&self, tensor: &Tensor, _: Option<DatumType>) -> TractResult<Tensor> {
        match tensor.datum_type() {
            DatumType::F32 => self.run::<f32>(tensor, f64::from),
            DatumType::F64 => self.run::<f64>(tensor, |value| value),
            DatumType::F16 => self.run::<f16>(tensor, f16::to_f64),
            other => bail!("a test for NaN or infinities of elements of type {other:?}"),
        }
    }
}

/// What stands in the place of `op`; `None` if it answers as ONNX says.
pub(super) fn of(op: &ElementWiseOp) -> Option<Box<dyn TypedOp>> {
    let mini = &op.0;
    let function = if mini.is::<Sigmoid>() {
        Function::Sigmoid
    } else if mini.is::<Tanh>() {
        Function::Tanh
    } else if mini.is::<Silu>() {
        Function::Swish
    } else if mini.is::<HardSwish>() {
        Function::HardSwish
    } else if mini.is::<Erf>() {
        Function::Erf
    } else if mini.is::<RoundHalfToEven>() {
        Function::Round
    } else if mini.is::<Sqrt>() {
        // tract has a kernel for each type; but it takes a square of a root away, and with it the sign.
        Function::Sqrt
    } else if mini.is::<Acosh>() {
        Function::Acosh
    } else if mini.is::<Asinh>() {
        Function::Asinh
    } else if mini.downcast_ref::<GeluApproximate>().is_some_and(|op| !op.fast_impl) {
        Function::Gelu
    } else if let Some(op) = mini.downcast_ref::<LeakyRelu>().filter(|op| !op.alpha.is_nan()) {
        Function::LeakyRelu(op.alpha)
    } else {
        return None;
    };
    Some(element_wise(Map { function, kernel: Some(mini.clone()) }))
}

fn element_wise(map: Map) -> Box<dyn TypedOp> {
    Box::new(ElementWiseOp(Box::new(map), None))
}

/// Sigmoid and tanh for the gates of recurrent layers.
pub(super) fn gates() -> (Box<dyn TypedOp>, Box<dyn TypedOp>) {
    let exact = |function, op: ElementWiseOp| element_wise(Map { function, kernel: Some(op.0) });
    (exact(Function::Sigmoid, ops::nn::sigmoid()), exact(Function::Tanh, ops::math::tanh()))
}

/// Registers Celu, which tract does not scale by α, Softplus, which overflows there, and the tests for NaN and
/// infinities, which know 32-bit floats only.
pub(super) fn register(framework: &mut Onnx) {
    framework.op_register.insert("Celu", celu);
    framework
        .op_register
        .insert("Softplus", |_, _| Ok((inference(Map { function: Function::Softplus, kernel: None }), Vec::new())));
    framework
        .op_register
        .insert("IsNaN", |_, _| Ok((inference(Test { nan: true, above: false, below: false }), Vec::new())));
    framework.op_register.insert("IsInf", |_, node| {
        let detect = |name| Ok::<_, TractError>(node.get_attr_opt::<i64>(name)?.unwrap_or(1) != 0);
        let (above, below) = (detect("detect_positive")?, detect("detect_negative")?);
        Ok((inference(Test { nan: false, above, below }), Vec::new()))
    });
}

fn celu(_: &ParsingContext, node: &NodeProto) -> TractResult<(Box<dyn InferenceOp>, Vec<String>)> {
    let alpha: f32 = node.get_attr_opt("alpha")?.unwrap_or(1.0);
    ensure!(alpha.is_finite() && alpha != 0.0, "alpha is {alpha}");
    Ok((inference(Map { function: Function::Celu(alpha), kernel: None }), Vec::new()))
}

fn inference(op: impl ElementWiseMiniOp) -> Box<dyn InferenceOp> {
    ElementWiseOp(Box::new(op), None).into_hir()
}
