//! Operators that change each value by itself or by its row: Scaler, Imputer, Binarizer, Normalizer.

use std::sync::Arc;

use anyhow::{Result, bail, ensure};

use super::attributes::Attributes;
use super::kernel;
use crate::model::engine::{Element, Given, Kernel, Maker, Output, Shape, Values, ValuesMut};

/// Repeats a list of one value for every column.
///
/// # Errors
/// If the list has another length than 1 or `columns`.
pub(super) fn per_column<T: Copy>(name: &str, values: &[T], columns: usize) -> Result<Vec<T>> {
    match values {
        [value] => Ok(vec![*value; columns]),
        _ if values.len() == columns => Ok(values.to_vec()),
        _ => bail!("{name} has {} values; the operator is given {columns} columns", values.len()),
    }
}

/// The type that floats are computed in: integers become 32-bit floats, as elsewhere in ai.onnx.ml.
fn float(given: Given) -> Element {
    if given.element == Element::F64 { Element::F64 } else { Element::F32 }
}

/// `(x − offset) · scale`, as 32-bit floats.
#[derive(Debug)]
struct Scaler {
    offset: Vec<f32>,
    scale: Vec<f32>,
    input: Element,
}

pub(super) fn scaler(attributes: &Attributes) -> Result<Maker> {
    let (offset, scale) = (attributes.floats("offset")?.to_vec(), attributes.floats("scale")?.to_vec());
    Ok(Arc::new(move |given| {
        let offset = per_column("offset", &offset, given.columns)?;
        let scale = per_column("scale", &scale, given.columns)?;
        kernel(Scaler { offset, scale, input: float(given) })
    }))
}

impl Kernel for Scaler {
    fn name(&self) -> &'static str {
        "Scaler"
    }

    fn input(&self) -> Element {
        self.input
    }

    fn outputs(&self) -> &[Output] {
        &[Output(Element::F32, Shape::Same)]
    }

    fn run(&self, input: Values, outputs: &mut [ValuesMut]) {
        let [ValuesMut::F32(out)] = outputs else { return };
        let columns = self.offset.len();
        let parameters = || self.offset.iter().zip(&self.scale);
        match input {
            Values::F32(input) => {
                for (out, row) in out.chunks_exact_mut(columns).zip(input.chunks_exact(columns)) {
                    for ((out, value), (offset, scale)) in out.iter_mut().zip(row).zip(parameters()) {
                        *out = (value - offset) * scale;
                    }
                }
            }
            Values::F64(input) => {
                for (out, row) in out.chunks_exact_mut(columns).zip(input.chunks_exact(columns)) {
                    for ((out, value), (offset, scale)) in out.iter_mut().zip(row).zip(parameters()) {
                        *out = ((value - f64::from(*offset)) * f64::from(*scale)) as f32;
                    }
                }
            }
            Values::I64(_) => {}
        }
    }
}

/// A function of each value and its column.
struct Map<F32, F64> {
    name: &'static str,
    output: [Output; 1],
    columns: usize,
    single: F32,
    double: F64,
}

impl<F32, F64> std::fmt::Debug for Map<F32, F64> {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(self.name)
    }
}

impl<F32, F64> Kernel for Map<F32, F64>
where
    F32: Fn(usize, f32) -> f32 + Send + Sync,
    F64: Fn(usize, f64) -> f64 + Send + Sync,
{
    fn name(&self) -> &'static str {
        self.name
    }

    fn input(&self) -> Element {
        self.output[0].0
    }

    fn outputs(&self) -> &[Output] {
        &self.output
    }

    fn run(&self, input: Values, outputs: &mut [ValuesMut]) {
        fn each<T: Copy>(columns: usize, input: &[T], out: &mut [T], of: impl Fn(usize, T) -> T) {
            for (out, row) in out.chunks_exact_mut(columns).zip(input.chunks_exact(columns)) {
                for (column, (out, value)) in out.iter_mut().zip(row).enumerate() {
                    *out = of(column, *value);
                }
            }
        }
        match (input, outputs) {
            (Values::F32(input), [ValuesMut::F32(out)]) => each(self.columns, input, out, &self.single),
            (Values::F64(input), [ValuesMut::F64(out)]) => each(self.columns, input, out, &self.double),
            _ => {}
        }
    }
}

fn map(
    name: &'static str,
    given: Given,
    single: impl Fn(usize, f32) -> f32 + Send + Sync + 'static,
    double: impl Fn(usize, f64) -> f64 + Send + Sync + 'static,
) -> Result<Arc<dyn Kernel>> {
    let output = [Output(float(given), Shape::Same)];
    kernel(Map { name, output, columns: given.columns, single, double })
}

/// Another value where there is a certain one (usually NaN).
pub(super) fn imputer(attributes: &Attributes) -> Result<Maker> {
    let mut values = attributes.floats("imputed_value_floats")?.to_vec();
    let mut replaced = attributes.float("replaced_value_float")?.unwrap_or(0.0);
    if values.is_empty() {
        values = attributes.ints("imputed_value_int64s")?.iter().map(|value| *value as f32).collect();
        replaced = attributes.int("replaced_value_int64")?.unwrap_or(0) as f32;
    }
    ensure!(!values.is_empty(), "it has neither imputed_value_floats nor imputed_value_int64s");
    Ok(Arc::new(move |given| {
        let values = per_column("imputed_value_floats", &values, given.columns)?;
        let wide = values.clone();
        map(
            "Imputer",
            given,
            move |column, value| {
                if value == replaced || (value.is_nan() && replaced.is_nan()) { values[column] } else { value }
            },
            move |column, value| {
                let missing = value == f64::from(replaced) || (value.is_nan() && replaced.is_nan());
                if missing { f64::from(wide[column]) } else { value }
            },
        )
    }))
}

/// 1 above the threshold, else 0.
pub(super) fn binarizer(attributes: &Attributes) -> Result<Maker> {
    let threshold = attributes.float("threshold")?.unwrap_or(0.0);
    Ok(Arc::new(move |given| {
        map(
            "Binarizer",
            given,
            move |_, value| f32::from(u8::from(value > threshold)),
            move |_, value| f64::from(u8::from(value > f64::from(threshold))),
        )
    }))
}

#[derive(Clone, Copy, Debug)]
enum Norm {
    Max,
    L1,
    L2,
}

/// Each row divided by its norm; a row of zeros stays.
#[derive(Debug)]
struct Normalizer {
    norm: Norm,
    columns: usize,
}

pub(super) fn normalizer(attributes: &Attributes) -> Result<Maker> {
    let norm = match attributes.text("norm")?.as_str() {
        "" | "MAX" => Norm::Max,
        "L1" => Norm::L1,
        "L2" => Norm::L2,
        other => bail!("norm is {other:?}; it must be MAX, L1 or L2"),
    };
    Ok(Arc::new(move |given| kernel(Normalizer { norm, columns: given.columns })))
}

impl Kernel for Normalizer {
    fn name(&self) -> &'static str {
        "Normalizer"
    }

    fn input(&self) -> Element {
        Element::F32
    }

    fn outputs(&self) -> &[Output] {
        &[Output(Element::F32, Shape::Same)]
    }

    fn run(&self, input: Values, outputs: &mut [ValuesMut]) {
        let (Values::F32(input), [ValuesMut::F32(out)]) = (input, outputs) else { return };
        for (out, row) in out.chunks_exact_mut(self.columns).zip(input.chunks_exact(self.columns)) {
            let norm = match self.norm {
                // NaN beats every number.
                Norm::Max => row
                    .iter()
                    .copied()
                    .fold(f32::NEG_INFINITY, |top, value| if value > top || value.is_nan() { value } else { top }),
                Norm::L1 => row.iter().map(|value| value.abs()).sum(),
                Norm::L2 => row.iter().map(|value| value * value).sum::<f32>().sqrt(),
            };
            let norm = if norm == 0.0 { 1.0 } else { norm };
            for (out, value) in out.iter_mut().zip(row) {
                *out = value / norm;
            }
        }
    }
}
