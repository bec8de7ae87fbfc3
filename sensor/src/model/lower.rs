//! What is rewritten in a file's graph before tract parses it.
//!
//! * Strings become numbers: each different one gets the next number, wherever it stands (labels, keys, categories, tensors), so
//!   that no string exists at run time. [`Lowered::strings`] leads back. Which values hold such numbers is followed through the
//!   graph: a number that is made text, or text that is made a number, would be another number than the file means, and is refused.
//! * ZipMap makes maps of probabilities; it is left out, so what was its input is the output.
//! * FeatureVectorizer joins columns: it becomes Concat.
//! * ArrayFeatureExtractor's indices become a list.
//! * Weights in other files are refused, and what tract reads over: other functions in the gates of recurrent layers.
//!
//! Called by [`super::network`].

use std::collections::{HashMap, HashSet};

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

/// Operators whose output holds elements of their first input.
const MOVES: [&str; 15] = [
    "ArrayFeatureExtractor",
    "Concat",
    "Expand",
    "Flatten",
    "Gather",
    "GatherElements",
    "GatherND",
    "Identity",
    "Reshape",
    "Slice",
    "Split",
    "Squeeze",
    "Tile",
    "Transpose",
    "Unsqueeze",
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
    /// Names of values that hold numbers of strings.
    values: HashSet<String>,
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
        if is_text(tensor) {
            strings.values.insert(tensor.name.clone());
        }
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
    let mut computed = Vec::new();
    for (place, node) in nodes.iter_mut().enumerate().filter(|(_, node)| node.op_type == "ArrayFeatureExtractor") {
        let Some(name) = node.input.get_mut(1) else { continue };
        let Some(found) = tensors.iter().find(|tensor| tensor.name == *name) else {
            let flat = format!("{name}.flat.{place}");
            computed.push((place, std::mem::replace(name, flat.clone()), flat));
            continue;
        };
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
    // From the last on, so that places stay.
    for (place, name, flat) in computed.into_iter().rev() {
        let shape = format!("{flat}.shape");
        let data_type = DataType::Int64 as i32;
        tensors.push(TensorProto {
            name: shape.clone(),
            dims: vec![1],
            data_type,
            int64_data: vec![-1],
            ..Default::default()
        });
        let (input, output) = (vec![name, shape], vec![flat]);
        nodes.insert(place, NodeProto { op_type: "Reshape".to_owned(), input, output, ..NodeProto::default() });
    }
}

fn node(node: &mut NodeProto, strings: &mut Strings, depth: usize) -> Result<()> {
    if gives_text(node, strings)? {
        strings.values.extend(node.output.first().cloned());
    }
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
        "GRU" | "LSTM" | "RNN" => gates(node)?,
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

/// Whether the first output holds numbers of strings.
///
/// # Errors
/// If it is a Cast between strings and numbers.
fn gives_text(node: &NodeProto, strings: &Strings) -> Result<bool> {
    let filled = |name: &str| {
        let is = |attribute: &&AttributeProto| attribute.name == name;
        node.attribute.iter().find(is).is_some_and(|attribute| match &attribute.t {
            Some(tensor) => is_text(tensor),
            None => !attribute.strings.is_empty() || !attribute.s.is_empty(),
        })
    };
    let given = |input: usize| node.input.get(input).is_some_and(|name| strings.values.contains(name));
    Ok(match node.op_type.as_str() {
        "LinearClassifier" | "SVMClassifier" | "TreeEnsembleClassifier" => filled("classlabels_strings"),
        "LabelEncoder" => filled("values_strings") || filled("values_tensor"),
        "Constant" => ["value", "value_string", "value_strings"].into_iter().any(filled),
        "Cast" => {
            let to = casts_to_string(node);
            ensure!(to == given(0), "it casts between numbers and strings, which is not supported");
            to
        }
        "Where" => given(1) || given(2),
        kind => MOVES.contains(&kind) && given(0),
    })
}

/// tract takes sigmoid and tanh for the functions of the gates, without a limit, whatever the file says.
///
/// # Errors
/// If the file says otherwise.
fn gates(node: &NodeProto) -> Result<()> {
    let usual: &[&str] = match node.op_type.as_str() {
        "LSTM" => &["Sigmoid", "Tanh", "Tanh"],
        "GRU" => &["Sigmoid", "Tanh"],
        _ => &["Tanh"],
    };
    for attribute in &node.attribute {
        let told = || attribute.strings.iter().map(|name| String::from_utf8_lossy(name)).collect::<Vec<_>>();
        let names = told().iter().zip(usual.iter().cycle()).all(|(name, usual)| name.eq_ignore_ascii_case(usual));
        ensure!(
            attribute.name != "activations" || names,
            "its activations are {}; only {} are supported",
            told().join(", "),
            usual.join(", ")
        );
        let other = ["clip", "activation_alpha", "activation_beta"].contains(&attribute.name.as_str());
        ensure!(!other, "its attribute {} is not supported", attribute.name);
        let forget = attribute.name == "input_forget" && attribute.i != 0;
        ensure!(!forget, "its attribute input_forget is not supported");
    }
    Ok(())
}

fn is_text(tensor: &TensorProto) -> bool {
    tensor.data_type == DataType::String as i32
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
    if is_text(tensor) {
        tensor.int64_data = tensor.string_data.iter().map(|text| strings.number(text)).collect();
        tensor.string_data.clear();
        tensor.data_type = DataType::Int64 as i32;
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn node(kind: &str, input: &str, output: &str, attribute: Vec<AttributeProto>) -> NodeProto {
        let (input, output) = (vec![input.to_owned()], vec![output.to_owned()]);
        NodeProto { op_type: kind.to_owned(), input, output, attribute, ..NodeProto::default() }
    }

    fn lowered(nodes: Vec<NodeProto>) -> Result<Vec<String>> {
        let names = TensorProto {
            name: "names".to_owned(),
            data_type: DataType::String as i32,
            string_data: vec!["benign".into(), "7".into()],
            dims: vec![2],
            ..TensorProto::default()
        };
        let graph = GraphProto { node: nodes, initializer: vec![names], ..GraphProto::default() };
        let graph = lower(&ModelProto { graph: Some(graph), ..ModelProto::default() })?.model.graph;
        Ok(graph.map(|graph| graph.node.into_iter().map(|node| node.op_type).collect()).unwrap_or_default())
    }

    #[test]
    fn what_casts_between_text_and_numbers_is_refused() {
        let to = |kind: DataType| vec![int("to", kind as i64)];
        let moved = || node("Gather", "names", "label", vec![]);
        let kept = lowered(vec![moved(), node("Cast", "label", "y", to(DataType::String))]).expect("text stays text");
        assert_eq!(kept, ["Gather", "Identity"]);
        assert!(lowered(vec![node("Cast", "x", "y", to(DataType::Int64))]).is_ok(), "numbers stay numbers");
        for nodes in [
            vec![moved(), node("Cast", "label", "y", to(DataType::Float))],
            vec![node("Cast", "x", "y", to(DataType::String))],
        ] {
            let text = format!("{:#}", lowered(nodes).expect_err("other numbers"));
            assert!(text.contains("between numbers and strings"), "{text}");
        }
    }

    #[test]
    fn gates_with_other_functions_are_refused() {
        let named = |names: &[&str]| {
            let strings = names.iter().map(|name| name.as_bytes().to_vec()).collect();
            vec![AttributeProto { name: "activations".to_owned(), strings, ..AttributeProto::default() }]
        };
        let both = named(&["sigmoid", "Tanh", "Sigmoid", "Tanh"]);
        assert!(lowered(vec![node("GRU", "x", "y", both)]).is_ok(), "those that are run, of both directions");
        for attributes in [named(&["Relu"]), vec![int("clip", 1)]] {
            let text = format!("{:#}", lowered(vec![node("RNN", "x", "y", attributes)]).expect_err("other functions"));
            assert!(text.contains("supported"), "{text}");
        }
        assert!(lowered(vec![node("LSTM", "x", "y", vec![int("input_forget", 1)])]).is_err());
    }
}
