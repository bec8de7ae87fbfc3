//! What a decoded graph may hold before anything of it is built.
//!
//! Cheap and certain refusals: what passes here may still cost memory and time, which the isolated check bounds
//! ([`super::isolate`]). Called by [`super::load`].

use tract_onnx::pb::{AttributeProto, GraphProto, ModelProto, NodeProto, TensorProto, tensor_proto::DataLocation};

use super::problem::{Problem, Problems};

/// Nodes of a graph, those of nested graphs included.
const MAX_NODES: usize = 20_000;
/// Depth of graphs inside of nodes (If, Loop, Scan).
const MAX_DEPTH: usize = 8;
/// Elements of one tensor: 256 Mi of 32-bit floats would be 1 GiB.
const MAX_ELEMENTS: u64 = 64 << 20;

/// Adds a problem for each limit that the graph breaks.
pub(super) fn check(model: &ModelProto, problems: &mut Problems) {
    let mut walk = Walk { nodes: 0, problems };
    if let Some(graph) = &model.graph {
        walk.graph(graph, 0);
    }
    if !model.functions.is_empty() {
        let fix = "inline them when exporting (onnx.inliner.inline_local_functions)";
        problems.add(Problem::new("graph", format!("it defines {} functions", model.functions.len()), fix));
    }
}

struct Walk<'a> {
    nodes: usize,
    problems: &'a mut Problems,
}

impl Walk<'_> {
    fn graph(&mut self, graph: &GraphProto, depth: usize) {
        if depth > MAX_DEPTH {
            self.refuse(format!("graphs are nested more than {MAX_DEPTH} deep"), "flatten the control flow");
            return;
        }
        let before = self.nodes;
        self.nodes = before.saturating_add(graph.node.len());
        if before <= MAX_NODES && self.nodes > MAX_NODES {
            self.refuse(format!("it has more than {MAX_NODES} nodes"), "export a smaller model");
        }
        if self.nodes > MAX_NODES {
            return;
        }
        for tensor in &graph.initializer {
            self.tensor(tensor);
        }
        for node in &graph.node {
            self.node(node, depth);
        }
    }

    fn node(&mut self, node: &NodeProto, depth: usize) {
        for AttributeProto { g, graphs, t, tensors, .. } in &node.attribute {
            t.iter().chain(tensors).for_each(|tensor| self.tensor(tensor));
            g.iter().chain(graphs).for_each(|graph| self.graph(graph, depth + 1));
        }
    }

    fn tensor(&mut self, tensor: &TensorProto) {
        let name = &tensor.name;
        // A location is a path of any file, which the loader would read.
        if !tensor.external_data.is_empty() || tensor.data_location == Some(DataLocation::External as i32) {
            self.refuse(
                format!("the weights {name:?} are in another file"),
                "save the model as one file (onnx.save with save_as_external_data=False)",
            );
        }
        let elements = tensor.dims.iter().try_fold(1u64, |product, dim| {
            product.checked_mul(u64::try_from(*dim).ok()?).filter(|product| *product <= MAX_ELEMENTS)
        });
        if elements.is_none() {
            self.refuse(
                format!("the tensor {name:?} has the shape {:?}", tensor.dims),
                format!("a tensor may have at most {MAX_ELEMENTS} elements"),
            );
        }
    }

    fn refuse(&mut self, problem: impl Into<String>, fix: impl Into<String>) {
        self.problems.add(Problem::new("graph", problem, fix));
    }
}
