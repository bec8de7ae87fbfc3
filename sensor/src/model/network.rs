//! The ONNX graph as it is run: rewritten where needed, parsed once, optimised for a few fixed batch sizes, run without a copy
//! of the input; large batches in several threads if that was asked for.
//!
//! tract panics on some hostile files; every call into it is guarded, so a bad file is an error and never the end of
//! the agent. (A build with `panic = "abort"` would lose that.) Called by [`super::Model`].

use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::Arc;

use anyhow::{Context, Result, anyhow, bail, ensure};
use tract_onnx::pb::{GraphProto, ModelProto, ValueInfoProto, tensor_proto::DataType, type_proto};
use tract_onnx::prelude::*;
use tract_onnx::tract_core::ops::cast::cast;
use tract_onnx::tract_core::ops::scan::{OptScan, Scan};
use tract_onnx::tract_hir::internal::{Framework, TypedRunnableModel, TypedSimpleState};

use super::engine::framework;
use super::exact;
use super::isolate::STACK;
use super::lower::{Lowered, lower};

/// Batch sizes that are compiled. A constant batch with padding beats a symbolic one in tract from a few rows on.
pub const BATCHES: [usize; 4] = [1, 8, 64, 512];
/// Most threads that share a large batch.
pub const MAX_THREADS: usize = 16;

/// One batch size.
struct Plan {
    batch: usize,
    plan: Arc<TypedRunnableModel>,
    lanes: Vec<Lane>,
}

/// What one thread needs to run a plan: kept from run to run.
struct Lane {
    state: TypedSimpleState,
    /// The graph has loops (Scan, recurrent layers).
    stateful: bool,
    input: Arc<Tensor>,
}

/// A graph that can be run.
pub struct Network {
    plans: Vec<Plan>,
    features: usize,
    width: usize,
    /// Name of the input.
    pub input: String,
    /// Name of the output that holds the probabilities.
    pub output: String,
    /// The strings of the file: where the graph computes with strings, it computes with indices into this list.
    pub strings: Vec<String>,
}

/// Decodes the file.
///
/// # Errors
/// If it is no ONNX file, or cut short.
pub fn decode(bytes: &[u8]) -> Result<ModelProto> {
    let model = guarded("decode", || tract_onnx::onnx().proto_model_for_read(&mut &bytes[..]))
        .context("this is not an ONNX file, or it was cut short")?;
    ensure!(model.graph.is_some(), "this is not an ONNX model: it holds no graph (is the file empty or cut short?)");
    Ok(model)
}

impl Network {
    /// Builds the graph of `model` for every batch size, for its output of probabilities, one per label.
    ///
    /// # Errors
    /// If the input is not `[batch, features]` of 32-bit floats, no output is `[batch, labels]`, or an operator is unknown or
    /// makes no sense.
    pub fn build(model: &ModelProto, features: usize, labels: usize) -> Result<Network> {
        let graph = model.graph.as_ref().context("the model holds no graph")?;
        Network::build_output(model, features, &choose_output(graph)?, labels)
    }

    /// As [`Network::build`], for the output called `output`, which has `width` values per row. Values of another type than
    /// 32-bit floats are converted.
    ///
    /// # Errors
    /// Those of [`Network::build`].
    pub fn build_output(model: &ModelProto, features: usize, output: &str, width: usize) -> Result<Network> {
        let graph = model.graph.as_ref().context("the model holds no graph")?;
        let input = check_input(graph, features)?;
        let Lowered { model, strings } = lower(model)?;
        if let Some(graph) = &model.graph {
            supported(graph)?;
        }
        let parsed = guarded("parse", || {
            let mut parsed = framework().model_for_proto_model(&model)?;
            parsed.select_outputs_by_name([output])?;
            Ok(parsed)
        })
        .context("the graph cannot be run")?;
        let mut plans = Vec::new();
        for batch in BATCHES {
            let plan = guarded("build", || plan(parsed.clone(), output, batch, features, width))
                .with_context(|| format!("the graph cannot be run in batches of {batch}"))?;
            let lanes = vec![lane(&plan, batch, features)?];
            plans.push(Plan { batch, plan, lanes });
        }
        Ok(Network { plans, features, width, input, output: output.to_owned(), strings })
    }

    /// Lets `threads` threads share batches of at least two times the largest batch size; 1, which is what a new network has,
    /// runs all on the caller's. At most [`MAX_THREADS`].
    ///
    /// # Errors
    /// If memory for their states cannot be had.
    pub fn set_threads(&mut self, threads: usize) -> Result<()> {
        let (threads, features) = (threads.clamp(1, MAX_THREADS), self.features);
        if let Some(Plan { batch, plan, lanes }) = self.plans.last_mut() {
            lanes.truncate(threads);
            while lanes.len() < threads {
                lanes.push(lane(plan, *batch, features)?);
            }
        }
        Ok(())
    }

    /// Runs `rows` rows. `fill` writes row `n` of the input; `take` gets row `n` of the output. Both run on the caller's thread.
    ///
    /// # Errors
    /// If the run itself fails; rows before were given to `take`.
    pub fn run(
        &mut self,
        rows: usize,
        mut fill: impl FnMut(usize, &mut [f32]),
        mut take: impl FnMut(usize, &[f32]),
    ) -> Result<()> {
        let (features, width) = (self.features, self.width);
        let mut done = 0;
        while done < rows {
            let Plan { batch, plan, lanes } = &mut self.plans[plan_for(rows - done)];
            let used = lanes.len().min((rows - done) / *batch).max(1);
            let lanes = &mut lanes[..used];
            let count = (*batch * used).min(rows - done);
            for (number, lane) in lanes.iter_mut().enumerate() {
                let first = number * *batch;
                lane.fill(features, (count - first).min(*batch), |row, values| fill(done + first + row, values))?;
            }
            let outputs = run_lanes(plan, lanes)?;
            for (number, output) in outputs.iter().enumerate() {
                let view = output.try_as_plain_ram()?;
                let values = view.as_slice::<f32>()?;
                ensure!(values.len() == *batch * width, "the model gave {} values for {batch} rows", values.len());
                let first = number * *batch;
                for (row, values) in values.chunks_exact(width).take(count - first).enumerate() {
                    take(done + first + row, values);
                }
            }
            done += count;
        }
        Ok(())
    }
}

impl Lane {
    /// Writes `count` rows of the input, and zeros behind them.
    fn fill(&mut self, features: usize, count: usize, mut fill: impl FnMut(usize, &mut [f32])) -> Result<()> {
        // Nobody else holds the input between runs; if a graph kept it, a copy is made here.
        let input = Arc::make_mut(&mut self.input);
        let mut view = input.try_as_plain_ram_mut()?;
        let (used, padding) = view.as_slice_mut::<f32>()?.split_at_mut(count * features);
        for (row, values) in used.chunks_exact_mut(features).enumerate() {
            fill(row, values);
        }
        padding.fill(0.0);
        Ok(())
    }

    fn run(&mut self, plan: &Arc<TypedRunnableModel>) -> Result<TValue> {
        if self.stateful {
            // Loops keep their state from run to run, as for a stream; rows are no stream.
            self.state = plan.spawn()?;
        }
        let input = TValue::from_const(self.input.clone());
        let result = guarded("run", || Ok(self.state.run(tvec!(input))?.remove(0)));
        if result.is_err() {
            // What a failure leaves behind in the state is not to be trusted.
            self.state = plan.spawn()?;
        }
        result
    }
}

fn lane(plan: &Arc<TypedRunnableModel>, batch: usize, features: usize) -> Result<Lane> {
    let state = guarded("start", || plan.spawn())?;
    let stateful = state.op_states.iter().any(Option::is_some);
    Ok(Lane { state, stateful, input: Arc::new(Tensor::zero::<f32>(&[batch, features])?) })
}

/// Runs every lane, the first on this thread.
fn run_lanes(plan: &Arc<TypedRunnableModel>, lanes: &mut [Lane]) -> Result<Vec<TValue>> {
    let [first, others @ ..] = lanes else { return Ok(Vec::new()) };
    if others.is_empty() {
        return Ok(vec![first.run(plan)?]);
    }
    std::thread::scope(|scope| {
        let mut threads = Vec::with_capacity(others.len());
        for lane in others {
            // Nested graphs take stack: as much as any thread has that runs a model.
            let thread = std::thread::Builder::new().stack_size(2 * STACK);
            threads.push(thread.spawn_scoped(scope, || lane.run(plan)).context("cannot start a thread")?);
        }
        let mut outputs = vec![first.run(plan)?];
        for thread in threads {
            outputs.push(thread.join().unwrap_or_else(|_| bail!("a thread ended early"))?);
        }
        Ok(outputs)
    })
}

/// The plan for what is left. Padding a few rows to the next size costs more than running them in smaller batches.
fn plan_for(left: usize) -> usize {
    match left {
        0..=2 => 0,
        3..=32 => 1,
        33..=384 => 2,
        _ => 3,
    }
}

/// The batches that `rows` rows are run in, on one thread.
pub fn batches(rows: usize) -> impl Iterator<Item = usize> {
    let mut left = rows;
    std::iter::from_fn(move || {
        let batch = (left > 0).then(|| BATCHES[plan_for(left)])?;
        left = left.saturating_sub(batch);
        Some(batch)
    })
}

fn plan(
    mut graph: InferenceModel,
    output: &str,
    batch: usize,
    features: usize,
    width: usize,
) -> Result<Arc<TypedRunnableModel>> {
    // A model's own sources are its inputs; the shape of the only one is ours to say.
    graph.set_input_fact(0, f32::fact([batch, features]).into())?;
    let mut graph = graph.into_typed()?;
    let fact = graph.output_fact(0)?.clone();
    let shape =
        fact.shape.as_concrete().with_context(|| format!("the shape of the output {output:?} depends on its input"))?;
    ensure!(
        shape == [batch, width] || (width == 1 && shape == [batch]),
        "the output {output:?} is {:?} of shape {shape:?}; it must be numbers of shape [batch, {width}], one probability \
         per label",
        fact.datum_type
    );
    if fact.datum_type != f32::datum_type() {
        let outlet = graph.output_outlets()?[0];
        let outlet = graph.wire_node("sensor.output", cast(f32::datum_type()), &[outlet])?;
        graph.select_output_outlets(&outlet)?;
    }
    exact::rewrite(&mut graph)?;
    let graph = graph.into_optimized()?;
    check_cost(&graph)?;
    graph.into_runnable()
}

/// Refuses what may cost more on other values than it did on those of the check: branches, loops that end when a value says so,
/// tensors whose size a value says. What is left costs the same for every input, recurrent layers included.
fn check_cost(graph: &TypedModel) -> Result<()> {
    for node in &graph.nodes {
        let kind = node.op.name();
        ensure!(!["IfThenElse", "If", "Loop"].contains(&&*kind), "{:?} is a branch that depends on values", node.name);
        for output in &node.outputs {
            ensure!(
                output.fact.shape.as_concrete().is_some(),
                "the size of {:?} ({kind}) depends on values",
                node.name
            );
        }
        if let Some(scan) = node.op_as::<OptScan>() {
            check_cost(scan.plan.model())?;
        } else if let Some(scan) = node.op_as::<Scan>() {
            check_cost(&scan.body)?;
        }
    }
    Ok(())
}

/// Every operator is known.
///
/// # Errors
/// If one is not, with what to export instead.
fn supported(graph: &GraphProto) -> Result<()> {
    let known = framework().op_register;
    for node in &graph.node {
        let kind = node.op_type.as_str();
        if !known.0.contains_key(kind) {
            let instead = match kind {
                _ if kind.starts_with("QLinear") || kind.starts_with("QAttention") || kind.starts_with("QGemm") => {
                    "export the quantised model in the QDQ format (QuantizeLinear and DequantizeLinear around ordinary \
                     operators), or the model before it was quantised"
                }
                _ if kind.starts_with("Fused") => "export the model as it was before onnxruntime optimised it",
                "DynamicQuantizeLinear" => {
                    "its scale comes from the whole batch, so a flow's score would depend on the flows beside it; quantise the \
                     model statically, or not"
                }
                "CastMap" | "DictVectorizer" => "export the model with a tensor as its input, not a map",
                "StringNormalizer" | "StringConcat" | "StringSplit" | "TfIdfVectorizer" | "Tokenizer"
                | "RegexFullMatch" => "flows have no text: leave the step that makes text out of the pipeline",
                _ => "export the model with other operators; docs/models.md lists those that are supported",
            };
            bail!("the operator {kind} ({:?}) is not supported: {instead}", node.name);
        }
        node.attribute.iter().filter_map(|attribute| attribute.g.as_ref()).try_for_each(supported)?;
    }
    Ok(())
}

fn check_input(graph: &GraphProto, features: usize) -> Result<String> {
    // Old exporters list weights among the inputs.
    let weights: Vec<_> = graph.initializer.iter().map(|tensor| tensor.name.as_str()).collect();
    let inputs: Vec<_> = graph.input.iter().filter(|input| !weights.contains(&input.name.as_str())).collect();
    let [input] = inputs[..] else {
        let names: Vec<_> = inputs.iter().map(|input| input.name.as_str()).collect();
        bail!("the model has {} inputs {names:?}; it must have one, of shape [batch, {features}]", inputs.len());
    };
    let name = &input.name;
    let (element, dims) = tensor(input).with_context(|| format!("the input {name:?} has no tensor type"))?;
    ensure!(
        element == DataType::Float as i32,
        "the input {name:?} holds elements of ONNX type {element}; it must hold 32-bit floats (type 1)"
    );
    let [batch, width] = dims[..] else {
        bail!("the input {name:?} has shape {}; it must be [batch, {features}]", shape(&dims));
    };
    ensure!(
        batch.is_none(),
        "the input {name:?} has the fixed batch size {}; export the model with a dynamic first axis",
        batch.unwrap_or_default()
    );
    ensure!(
        width.is_none_or(|width| width == features as i64),
        "the input {name:?} has shape {}, but sensor.features names {features} features",
        shape(&dims)
    );
    Ok(name.clone())
}

/// The output with the probabilities: the only one, or the one that is called so (scikit-learn's exporter has another
/// for the label).
fn choose_output(graph: &GraphProto) -> Result<String> {
    let names: Vec<_> = graph.output.iter().map(|output| output.name.as_str()).collect();
    match names[..] {
        [] => bail!("the model has no output"),
        [only] => Ok(only.to_owned()),
        _ => {
            let named = names.iter().find(|name| name.to_ascii_lowercase().contains("prob"));
            let name = named.with_context(|| {
                format!(
                    "the model has several outputs {names:?}; call the one with the probabilities \"probabilities\""
                )
            })?;
            Ok((*name).to_owned())
        }
    }
}

/// Element type and dimensions of a tensor, `None` for a dimension without a number.
fn tensor(info: &ValueInfoProto) -> Option<(i32, Vec<Option<i64>>)> {
    use tract_onnx::pb::tensor_shape_proto::dimension::Value as Dimension;
    let type_proto::Value::TensorType(tensor) = info.r#type.as_ref()?.value.as_ref()?;
    let dims = tensor.shape.as_ref()?.dim.iter();
    let dims = dims.map(|dim| match dim.value {
        // Zero and negative sizes are how some exporters say "any".
        Some(Dimension::DimValue(size)) if size > 0 => Some(size),
        _ => None,
    });
    Some((tensor.elem_type, dims.collect()))
}

fn shape(dims: &[Option<i64>]) -> String {
    let words: Vec<_> = dims.iter().map(|dim| dim.map_or("?".to_owned(), |size| size.to_string())).collect();
    format!("[{}]", words.join(", "))
}

/// Runs `work`, and makes an error of a panic.
fn guarded<T>(what: &str, work: impl FnOnce() -> Result<T>) -> Result<T> {
    // Nothing that `work` touches outlives a failure: a plan is dropped, an input is written anew before each run.
    catch_unwind(AssertUnwindSafe(work)).unwrap_or_else(|panic| {
        let text = panic
            .downcast_ref::<&str>()
            .map(|text| (*text).to_owned())
            .or_else(|| panic.downcast_ref::<String>().cloned())
            .unwrap_or_default();
        Err(anyhow!("tract panicked ({what}): {text}"))
    })
}
