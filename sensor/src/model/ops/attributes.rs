//! Typed access to the attributes of a node. An attribute that is absent is empty; one of another type is an error.

use anyhow::{Context, Result, bail, ensure};
use tract_onnx::pb::attribute_proto::AttributeType;
use tract_onnx::pb::tensor_proto::{DataLocation, DataType};
use tract_onnx::pb::{AttributeProto, NodeProto, TensorProto};

/// The attributes of a node.
pub(in crate::model) struct Attributes<'a>(pub &'a NodeProto);

/// A list of numbers, widened.
#[derive(Clone, Debug, Default)]
pub(in crate::model) struct Numbers {
    pub values: Vec<f64>,
    /// They were 64-bit floats.
    pub double: bool,
}

impl<'a> Attributes<'a> {
    fn find(&self, name: &str, wanted: AttributeType) -> Result<Option<&'a AttributeProto>> {
        let Some(found) = self.0.attribute.iter().find(|attribute| attribute.name == name) else { return Ok(None) };
        // Type 0: files from before types were written.
        ensure!(
            found.r#type == wanted as i32 || found.r#type == 0,
            "the attribute {name} has type {}, not {} ({wanted:?})",
            found.r#type,
            wanted as i32
        );
        Ok(Some(found))
    }

    pub(in crate::model) fn int(&self, name: &str) -> Result<Option<i64>> {
        Ok(self.find(name, AttributeType::Int)?.map(|found| found.i))
    }

    pub(in crate::model) fn float(&self, name: &str) -> Result<Option<f32>> {
        Ok(self.find(name, AttributeType::Float)?.map(|found| found.f))
    }

    /// A text, "" if absent.
    pub(in crate::model) fn text(&self, name: &str) -> Result<String> {
        let found = self.find(name, AttributeType::String)?;
        Ok(found.map(|found| String::from_utf8_lossy(&found.s).into_owned()).unwrap_or_default())
    }

    pub(in crate::model) fn ints(&self, name: &str) -> Result<&'a [i64]> {
        Ok(self.find(name, AttributeType::Ints)?.map_or(&[], |found| &found.ints))
    }

    pub(in crate::model) fn floats(&self, name: &str) -> Result<&'a [f32]> {
        Ok(self.find(name, AttributeType::Floats)?.map_or(&[], |found| &found.floats))
    }

    pub(in crate::model) fn strings(&self, name: &str) -> Result<&'a [Vec<u8>]> {
        Ok(self.find(name, AttributeType::Strings)?.map_or(&[], |found| &found.strings))
    }

    pub(in crate::model) fn tensor(&self, name: &str) -> Result<Option<&'a TensorProto>> {
        Ok(self.find(name, AttributeType::Tensor)?.and_then(|found| found.t.as_ref()))
    }

    /// A list of numbers: floats called `name`, or a tensor called `name` or `name_as_tensor`.
    pub(in crate::model) fn numbers(&self, name: &str) -> Result<Numbers> {
        let as_tensor = format!("{name}_as_tensor");
        for tensor in [name, &as_tensor] {
            let found = self.0.attribute.iter().find(|attribute| attribute.name == tensor);
            if let Some(tensor) = found.and_then(|attribute| attribute.t.as_ref()) {
                return numbers(tensor).with_context(|| format!("the attribute {name}"));
            }
        }
        let values = self.floats(name)?.iter().map(|value| f64::from(*value)).collect();
        Ok(Numbers { values, double: false })
    }
}

/// The elements of a tensor of numbers.
pub(in crate::model) fn numbers(tensor: &TensorProto) -> Result<Numbers> {
    ensure!(tensor.data_location != Some(DataLocation::External as i32), "its data is in another file");
    let raw = &tensor.raw_data;
    fn words<const N: usize>(raw: &[u8], make: impl Fn([u8; N]) -> f64) -> Vec<f64> {
        raw.as_chunks::<N>().0.iter().map(|word| make(*word)).collect()
    }
    let (values, double) = match DataType::try_from(tensor.data_type) {
        Ok(DataType::Float) if raw.is_empty() => {
            (tensor.float_data.iter().map(|value| f64::from(*value)).collect(), false)
        }
        Ok(DataType::Float) => (words(raw, |word| f64::from(f32::from_le_bytes(word))), false),
        Ok(DataType::Double) if raw.is_empty() => (tensor.double_data.clone(), true),
        Ok(DataType::Double) => (words(raw, f64::from_le_bytes), true),
        Ok(DataType::Int64) if raw.is_empty() => (tensor.int64_data.iter().map(|value| *value as f64).collect(), false),
        Ok(DataType::Int64) => (words(raw, |word| i64::from_le_bytes(word) as f64), false),
        Ok(DataType::Int32 | DataType::Uint8 | DataType::Int8) if raw.is_empty() => {
            (tensor.int32_data.iter().map(|value| f64::from(*value)).collect(), false)
        }
        Ok(DataType::Int32) => (words(raw, |word| f64::from(i32::from_le_bytes(word))), false),
        Ok(DataType::Uint8) => (raw.iter().map(|byte| f64::from(*byte)).collect(), false),
        _ => bail!("a tensor of ONNX type {} is not supported here", tensor.data_type),
    };
    let size = tensor.dims.iter().try_fold(1i64, |size, dim| size.checked_mul(*dim));
    ensure!(size == Some(values.len() as i64), "a tensor of shape {:?} holds {} values", tensor.dims, values.len());
    Ok(Numbers { values, double })
}
