//! Functions of two values, with broadcasting.
//!
//! The optimiser of tract takes what is multiplied by 0 for 0, and adds nothing where the summand is small, so both
//! would lose NaN, or the 1e-9 that keeps a logarithm finite. These it does not know.

use tract_onnx::prelude::*;
use tract_onnx::tract_core::broadcast::multi_broadcast;
use tract_onnx::tract_core::ndarray::Zip;
use tract_onnx::tract_core::ops::binary::TypedBinOp;
use tract_onnx::tract_core::ops::math::{Add, Div, Max, Min, Mul, Pow, Sub};
use tract_onnx::tract_hir::internal::*;

/// Which function.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
enum Kind {
    Add,
    Div,
    Max,
    Min,
    Mul,
    Pow,
    Sub,
}

/// A function of two tensors of floats.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
struct Pair(Kind);

/// What stands in the place of `op`; `None` if it answers as ONNX says.
pub(super) fn of(op: &TypedBinOp, facts: &[&TypedFact]) -> Option<Box<dyn TypedOp>> {
    let [a, b] = facts else { return None };
    if op.1.is_some() || a.datum_type != b.datum_type || !a.datum_type.is_float() {
        return None;
    }
    let mini = &op.0;
    // A summand of one value that rounds to nothing; others are left to the optimiser, which joins them with products.
    let small = || facts.iter().any(|fact| fact.konst.as_ref().is_some_and(|tensor| is_small(tensor)));
    let kind = if mini.is::<Max>() {
        Kind::Max
    } else if mini.is::<Min>() {
        Kind::Min
    } else if mini.is::<Mul>() {
        Kind::Mul
    } else if mini.is::<Div>() {
        Kind::Div
    } else if mini.is::<Pow>() {
        Kind::Pow
    } else if mini.is::<Add>() && small() {
        Kind::Add
    } else if mini.is::<Sub>() && small() {
        Kind::Sub
    } else {
        return None;
    };
    Some(Box::new(Pair(kind)))
}

fn is_small(tensor: &Tensor) -> bool {
    let Ok(wide) = tensor.cast_to::<f64>() else { return true };
    let Ok(plain) = wide.try_as_plain_ram() else { return true };
    plain.as_slice::<f64>().is_ok_and(|values| values.iter().all(|value| value.abs() < 1e-3))
}

/// A float.
trait Real:
    Datum
    + Copy
    + Default
    + PartialOrd
    + std::ops::Add<Output = Self>
    + std::ops::Sub<Output = Self>
    + std::ops::Mul<Output = Self>
    + std::ops::Div<Output = Self>
{
    fn power(self, exponent: Self) -> Self;
}

macro_rules! real {
    ($($float:ty),*) => { $(impl Real for $float {
        #[inline(always)]
        fn power(self, exponent: Self) -> Self {
            // As numpy does it, which the reference is written in.
            match exponent {
                2.0 => self * self,
                0.5 => self.sqrt(),
                _ => self.powf(exponent),
            }
        }
    })* };
}
real!(f32, f64);

impl Pair {
    #[expect(clippy::eq_op, reason = "only NaN differs from itself")]
    fn run<T: Real>(&self, a: Tensor, b: Tensor) -> TractResult<Tensor> {
        // One loop for each function, so that each is vectorised.
        match self.0 {
            Kind::Add => apply(a, b, |a: T, b: T| a + b),
            Kind::Div => apply(a, b, |a: T, b: T| a / b),
            // What is not greater and not less is equal or NaN: of these, NaN wins.
            Kind::Max => apply(a, b, |a: T, b: T| if a > b || a != a { a } else { b }),
            Kind::Min => apply(a, b, |a: T, b: T| if a < b || a != a { a } else { b }),
            Kind::Mul => apply(a, b, |a: T, b: T| a * b),
            Kind::Pow => apply(a, b, |a: T, b: T| a.power(b)),
            Kind::Sub => apply(a, b, |a: T, b: T| a - b),
        }
    }
}

#[inline(always)]
fn apply<T: Real>(mut a: Tensor, mut b: Tensor, of: impl Fn(T, T) -> T + Copy) -> TractResult<Tensor> {
    let shape = multi_broadcast(&[a.shape(), b.shape()])?;
    if a.shape() == &*shape {
        if in_place(&mut a, &b, of)? {
            return Ok(a);
        }
    } else if b.shape() == &*shape && in_place(&mut b, &a, |b, a| of(a, b))? {
        return Ok(b);
    }
    let mut out = Tensor::zero_dt(T::datum_type(), &shape)?;
    {
        let mut plain = out.try_as_plain_ram_mut()?;
        let (a, b) = (a.to_plain_array_view::<T>()?, b.to_plain_array_view::<T>()?);
        Zip::from(plain.to_array_view_mut::<T>()?)
            .and_broadcast(a)
            .and_broadcast(b)
            .for_each(|out, a, b| *out = of(*a, *b));
    }
    Ok(out)
}

/// Writes the results over `all`, whose shape is that of the result. `false` if `other` is neither one value, nor a row
/// that repeats, nor of that shape.
#[inline(always)]
fn in_place<T: Real>(all: &mut Tensor, other: &Tensor, of: impl Fn(T, T) -> T) -> TractResult<bool> {
    let start = other.shape().iter().take_while(|dim| **dim == 1).count();
    let row = &other.shape()[start..];
    if !all.shape().ends_with(row) {
        return Ok(false);
    }
    let mut plain = all.try_as_plain_ram_mut()?;
    let other = other.try_as_plain_ram()?;
    let (all, other) = (plain.as_slice_mut::<T>()?, other.as_slice::<T>()?);
    if let [other] = other {
        all.iter_mut().for_each(|value| *value = of(*value, *other));
    } else {
        for all in all.chunks_exact_mut(other.len().max(1)) {
            all.iter_mut().zip(other).for_each(|(value, other)| *value = of(*value, *other));
        }
    }
    Ok(true)
}

impl Op for Pair {
    fn name(&self) -> StaticName {
        format!("Exact{:?}", self.0).into()
    }

    op_as_typed_op!();
}

impl EvalOp for Pair {
    op_out_of_plan!();

    fn eval(&self, _: &EvalContext, inputs: TVec<TValue>) -> TractResult<TVec<TValue>> {
        let (a, b) = args_2!(inputs);
        let (a, b) = (a.into_tensor(), b.into_tensor());
        let out = match a.datum_type() {
            DatumType::F32 => self.run::<f32>(a, b)?,
            DatumType::F64 => self.run::<f64>(a, b)?,
            other => {
                let wide = |tensor: Tensor| Ok::<_, TractError>(tensor.cast_to::<f32>()?.into_owned());
                self.run::<f32>(wide(a)?, wide(b)?)?.cast_to_dt(other)?.into_owned()
            }
        };
        Ok(tvec!(out.into_tvalue()))
    }
}

impl TypedOp for Pair {
    as_op!();

    fn output_facts(&self, inputs: &[&TypedFact]) -> TractResult<TVec<TypedFact>> {
        let shape = multi_broadcast(&[&*inputs[0].shape.to_tvec(), &*inputs[1].shape.to_tvec()])?;
        Ok(tvec!(inputs[0].datum_type.fact(shape)))
    }
}
