//! What is rewritten in a file's graph before tract parses it.
//!
//! * Strings become numbers: each different one gets the next number, wherever it stands (labels, keys, categories, tensors), so
//!   that no string exists at run time. [`Lowered::strings`] leads back.
//! * ZipMap makes maps of probabilities; it is left out, so what was its input is the output.
//! * FeatureVectorizer joins columns: it becomes Concat.
//! * ArrayFeatureExtractor's constant indices become a list.
//! * Weights in other files are refused.
//!
//! Called by [`super::network`].

use std::collections::HashMap;

use anyhow::{Context, Result, ensure};
use tract_onnx::pb::attribute_proto::AttributeType;
use tract_onnx::pb::tensor_proto::{DataLocation, DataType};
use tract_onnx::pb::{AttributeProto, GraphProto, ModelProto, NodeProto, TensorProto};

/// Deepest nesting of graphs (bodies of loops and branches).
const MAX_NESTING: usize = 8;
/// Attributes that hold labels or categories, and what they are called when they hold integers.
const STRINGS: [(&str, &str, &str); 6] = [
    ("LinearClassifier", "classlabels_strings", "classlabels_ints"),
    ("SVMClassifier", "classlabels_strings", "classlabels_ints"),
    ("TreeEnsembleClassifier", "classlabels_strings", "classlabels_int64s"),
    ("LabelEncoder", "keys_strings", "keys_int64s"),
    ("LabelEncoder", "values_strings", "values_int64s"),
    ("OneHotEncoder", "cats_strings", "cats_int64s"),
];

/// A graph that is ready for tract.
pub(super) struct Lowered {
    /// The model.
    pub model: ModelProto,
    /// The strings whose numbers the graph computes with.
    pub strings: Vec<String>,
}

/// Rewrites `model`.
///
/// # Errors
/// If weights are in other files, or graphs are nested too deeply.
pub(super) fn lower(model: &ModelProto) -> Result<Lowered> {
    let mut model = model.clone();
    let mut strings = Strings::default();
    let graph = model.graph.as_mut().context("the model holds no graph")?;
    self::graph(graph, &mut strings, 0)?;
    // Only needed above, and can be large.
    model.metadata_props.clear();
    Ok(Lowered { model, strings: strings.list })
}

#[derive(Default)]
struct Strings {
    list: Vec<String>,
    numbers: HashMap<Vec<u8>, i64>,
}

impl Strings {
    fn number(&mut self, text: &[u8]) -> i64 {
        if let Some(number) = self.numbers.get(text) {
            return *number;
        }
        let number = self.list.len() as i64;
        self.list.push(String::from_utf8_lossy(text).into_owned());
        self.numbers.insert(text.to_vec(), number);
        number
    }
}

fn graph(graph: &mut GraphProto, strings: &mut Strings, depth: usize) -> Result<()> {
    ensure!(depth <= MAX_NESTING, "graphs are nested more than {MAX_NESTING} deep");
    graph.value_info.clear();
    for tensor in &mut graph.initializer {
        self::tensor(tensor, strings)?;
    }
    flatten_indices(graph);
    for node in &mut graph.node {
        self::node(node, strings, depth).with_context(|| format!("the operator {} ({:?})", node.op_type, node.name))?;
    }
    Ok(())
}

/// ArrayFeatureExtractor takes indices of any shape and always gives a last axis; tract drops it when the shape is empty.
fn flatten_indices(graph: &mut GraphProto) {
    let GraphProto { node: nodes, initializer: tensors, .. } = graph;
    for node in nodes.iter_mut().filter(|node| node.op_type == "ArrayFeatureExtractor") {
        let Some(name) = node.input.get_mut(1) else { continue };
        let Some(found) = tensors.iter().find(|tensor| tensor.name == *name) else { continue };
        if found.dims.len() == 1 {
            continue;
        }
        let count = found.dims.iter().fold(1i64, |count, dim| count.saturating_mul(*dim));
        // A copy: others may want the shape as it is.
        let flat = TensorProto { name: format!("{name}.flat"), dims: vec![count], ..found.clone() };
        name.clone_from(&flat.name);
        if !tensors.iter().any(|tensor| tensor.name == flat.name) {
            tensors.push(flat);
        }
    }
}

fn node(node: &mut NodeProto, strings: &mut Strings, depth: usize) -> Result<()> {
    for (kind, texts, numbers) in STRINGS {
        if node.op_type == kind {
            rename(node, texts, numbers, strings);
        }
    }
    for attribute in &mut node.attribute {
        if let Some(body) = &mut attribute.g {
            graph(body, strings, depth + 1)?;
        }
        ensure!(attribute.graphs.is_empty(), "it holds a list of graphs");
        for tensor in attribute.t.iter_mut().chain(&mut attribute.tensors) {
            self::tensor(tensor, strings)?;
        }
    }
    match node.op_type.as_str() {
        "ZipMap" => identity(node),
        // Strings are numbers already, on both sides.
        "Cast" if casts_to_string(node) => identity(node),
        "LabelEncoder" => default_string(node, strings),
        "FeatureVectorizer" => {
            node.op_type = "Concat".to_owned();
            node.domain.clear();
            node.attribute = vec![int("axis", 1)];
        }
        "Constant" => constant(node, strings),
        _ => {}
    }
    Ok(())
}

fn identity(node: &mut NodeProto) {
    node.op_type = "Identity".to_owned();
    node.domain.clear();
    node.attribute.clear();
}

fn casts_to_string(node: &NodeProto) -> bool {
    node.attribute.iter().any(|attribute| attribute.name == "to" && attribute.i == DataType::String as i64)
}

/// A list of strings becomes a list of numbers.
fn rename(node: &mut NodeProto, texts: &str, numbers: &str, strings: &mut Strings) {
    let Some(place) = node.attribute.iter().position(|attribute| attribute.name == texts) else { return };
    let list = std::mem::take(&mut node.attribute[place].strings);
    if list.is_empty() {
        node.attribute.remove(place);
        return;
    }
    let ints = list.iter().map(|text| strings.number(text)).collect();
    node.attribute[place] = AttributeProto {
        name: numbers.to_owned(),
        r#type: AttributeType::Ints as i32,
        ints,
        ..AttributeProto::default()
    };
}

/// The default of a LabelEncoder that gives strings.
fn default_string(node: &mut NodeProto, strings: &mut Strings) {
    for attribute in &mut node.attribute {
        if attribute.name == "default_string" {
            *attribute = int("default_int64", strings.number(&attribute.s));
        }
    }
}

/// A constant given as strings becomes a tensor of numbers.
fn constant(node: &mut NodeProto, strings: &mut Strings) {
    for attribute in &mut node.attribute {
        match attribute.name.as_str() {
            "value_strings" => {
                let list = std::mem::take(&mut attribute.strings);
                attribute.ints = list.iter().map(|text| strings.number(text)).collect();
                attribute.name = "value_ints".to_owned();
                attribute.r#type = AttributeType::Ints as i32;
            }
            "value_string" => *attribute = int("value_int", strings.number(&attribute.s)),
            _ => {}
        }
    }
}

fn int(name: &str, value: i64) -> AttributeProto {
    AttributeProto { name: name.to_owned(), r#type: AttributeType::Int as i32, i: value, ..AttributeProto::default() }
}

fn tensor(tensor: &mut TensorProto, strings: &mut Strings) -> Result<()> {
    ensure!(
        tensor.data_location != Some(DataLocation::External as i32) && tensor.external_data.is_empty(),
        "the weights {:?} are in another file; save the model as one file (onnx.save_model without external data)",
        tensor.name
    );
    if tensor.data_type == DataType::String as i32 {
        tensor.int64_data = tensor.string_data.iter().map(|text| strings.number(text)).collect();
        tensor.string_data.clear();
        tensor.data_type = DataType::Int64 as i32;
    }
    Ok(())
}
