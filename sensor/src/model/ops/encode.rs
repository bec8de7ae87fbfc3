//! Operators that look values up: LabelEncoder, OneHotEncoder. Strings are numbers by now (see [`crate::model::lower`]).

use std::collections::HashMap;
use std::sync::Arc;

use anyhow::{Result, bail, ensure};
use tract_onnx::pb::tensor_proto::DataType;

use super::attributes::{Attributes, numbers};
use super::kernel;
use crate::model::engine::{Element, Kernel, Maker, Output, Shape, Values, ValuesMut};

/// Most categories of one encoder.
const MAX_CATEGORIES: usize = 1 << 12;

/// Integers or floats, as an encoder's attributes give them.
#[derive(Clone, Debug)]
enum List {
    Ints(Vec<i64>),
    Floats(Vec<f32>),
}

impl List {
    fn len(&self) -> usize {
        match self {
            List::Ints(list) => list.len(),
            List::Floats(list) => list.len(),
        }
    }

    fn element(&self) -> Element {
        match self {
            List::Ints(_) => Element::I64,
            List::Floats(_) => Element::F32,
        }
    }
}

/// `keys_*` or `values_*`.
fn list(attributes: &Attributes, which: &str) -> Result<List> {
    let ints = attributes.ints(&format!("{which}_int64s"))?;
    if !ints.is_empty() {
        return Ok(List::Ints(ints.to_vec()));
    }
    let floats = attributes.floats(&format!("{which}_floats"))?;
    if !floats.is_empty() {
        return Ok(List::Floats(floats.to_vec()));
    }
    let Some(tensor) = attributes.tensor(&format!("{which}_tensor"))? else {
        bail!(
            "it has no {which}_* (version 1, with classes_strings, is not supported: export with ai.onnx.ml 2 or later)"
        );
    };
    let values = numbers(tensor)?.values;
    // Doubles are looked up, and given, as 32-bit floats.
    let float = [DataType::Float, DataType::Double].contains(&tensor.data_type());
    Ok(if float {
        List::Floats(values.iter().map(|value| *value as f32).collect())
    } else {
        List::Ints(values.iter().map(|value| *value as i64).collect())
    })
}

/// A table from values to values.
#[derive(Debug)]
struct LabelEncoder {
    table: HashMap<u64, usize>,
    values: List,
    default_int: i64,
    default_float: f32,
    input: Element,
    output: [Output; 1],
}

/// What a float is looked up by: one zero, one NaN.
fn float_key(value: f32) -> u64 {
    u64::from(if value.is_nan() { f32::NAN.to_bits() } else { (value + 0.0).to_bits() })
}

pub(super) fn label_encoder(attributes: &Attributes) -> Result<Maker> {
    let (keys, values) = (list(attributes, "keys")?, list(attributes, "values")?);
    ensure!(keys.len() == values.len(), "{} keys, but {} values", keys.len(), values.len());
    let default = attributes.tensor("default_tensor")?.map(numbers).transpose()?;
    let default = default.and_then(|default| default.values.first().copied());
    let default_int = attributes.int("default_int64")?.or(default.map(|default| default as i64)).unwrap_or(-1);
    let default_float = attributes.float("default_float")?.or(default.map(|default| default as f32)).unwrap_or(-0.0);
    Ok(Arc::new(move |_| {
        let mut table = HashMap::with_capacity(keys.len());
        for number in 0..keys.len() {
            let key = match &keys {
                List::Ints(keys) => keys[number] as u64,
                List::Floats(keys) => float_key(keys[number]),
            };
            table.entry(key).or_insert(number);
        }
        kernel(LabelEncoder {
            table,
            input: keys.element(),
            output: [Output(values.element(), Shape::Same)],
            values: values.clone(),
            default_int,
            default_float,
        })
    }))
}

impl Kernel for LabelEncoder {
    fn name(&self) -> &'static str {
        "LabelEncoder"
    }

    fn input(&self) -> Element {
        self.input
    }

    fn outputs(&self) -> &[Output] {
        &self.output
    }

    fn run(&self, input: Values, outputs: &mut [ValuesMut]) {
        let find = |number: usize| {
            let key = match input {
                Values::I64(values) => values[number] as u64,
                Values::F32(values) => float_key(values[number]),
                Values::F64(_) => return None,
            };
            self.table.get(&key).copied()
        };
        match (&self.values, outputs) {
            (List::Ints(values), [ValuesMut::I64(out)]) => {
                for (number, out) in out.iter_mut().enumerate() {
                    *out = find(number).map_or(self.default_int, |found| values[found]);
                }
            }
            (List::Floats(values), [ValuesMut::F32(out)]) => {
                for (number, out) in out.iter_mut().enumerate() {
                    *out = find(number).map_or(self.default_float, |found| values[found]);
                }
            }
            _ => {}
        }
    }
}

/// One column per category, 1 where the value is that category. An unknown value is a row of zeros, whatever `zeros` says: a run
/// cannot fail.
#[derive(Debug)]
struct OneHotEncoder {
    categories: Vec<i64>,
    output: [Output; 1],
}

pub(super) fn one_hot(attributes: &Attributes) -> Result<Maker> {
    let categories = attributes.ints("cats_int64s")?.to_vec();
    let count = categories.len();
    ensure!((1..=MAX_CATEGORIES).contains(&count), "it has {count} categories; it must have 1 to {MAX_CATEGORIES}");
    Ok(Arc::new(move |_| {
        let output = [Output(Element::F32, Shape::Append(count))];
        kernel(OneHotEncoder { categories: categories.clone(), output })
    }))
}

impl Kernel for OneHotEncoder {
    fn name(&self) -> &'static str {
        "OneHotEncoder"
    }

    fn input(&self) -> Element {
        // Floats are cut to integers first, as the operator says.
        Element::I64
    }

    fn outputs(&self) -> &[Output] {
        &self.output
    }

    fn run(&self, input: Values, outputs: &mut [ValuesMut]) {
        let (Values::I64(input), [ValuesMut::F32(out)]) = (input, outputs) else { return };
        for (out, value) in out.chunks_exact_mut(self.categories.len()).zip(input) {
            for (out, category) in out.iter_mut().zip(&self.categories) {
                *out = f32::from(u8::from(category == value));
            }
        }
    }
}
