//! The ONNX graph as tract runs it: parsed once, optimised for a few fixed batch sizes, run without a copy of the input.
//!
//! tract panics on some hostile files; every call into it is guarded, so a bad file is an error and never the end of
//! the agent. (A build with `panic = "abort"` would lose that.) Called by [`super::Model`].

use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::Arc;

use anyhow::{Context, Result, anyhow, bail, ensure};
use tract_onnx::pb::{GraphProto, ModelProto, ValueInfoProto, tensor_proto::DataType, type_proto};
use tract_onnx::prelude::*;
use tract_onnx::tract_hir::internal::TypedRunnableModel;

/// Batch sizes that are compiled. A constant batch with padding beats a symbolic one in tract from a few rows on.
pub const BATCHES: [usize; 3] = [1, 64, 512];

/// One batch size.
struct Plan {
    batch: usize,
    plan: Arc<TypedRunnableModel>,
    /// The input, reused from run to run.
    input: Arc<Tensor>,
}

/// A graph that can be run.
pub struct Network {
    plans: Vec<Plan>,
    features: usize,
    labels: usize,
    /// Name of the input.
    pub input: String,
    /// Name of the output that holds the probabilities.
    pub output: String,
}

/// Decodes the file.
///
/// # Errors
/// If it is no ONNX file, or cut short.
pub fn decode(bytes: &[u8]) -> Result<ModelProto> {
    let model = guarded("decode", || onnx().proto_model_for_read(&mut &bytes[..]))
        .context("this is not an ONNX file, or it was cut short")?;
    ensure!(model.graph.is_some(), "this is not an ONNX model: it holds no graph (is the file empty or cut short?)");
    Ok(model)
}

impl Network {
    /// Builds the graph of `model` for every batch size.
    ///
    /// # Errors
    /// If the input is not `[batch, features]` of 32-bit floats, no output is `[batch, labels]`, or tract does not know
    /// an operator.
    pub fn build(model: &ModelProto, features: usize, labels: usize) -> Result<Network> {
        let graph = model.graph.as_ref().context("the model holds no graph")?;
        let input = check_input(graph, features)?;
        let output = choose_output(graph)?;
        let mut plans = Vec::new();
        for batch in BATCHES {
            let plan = guarded("build", || plan(model, &output, batch, features, labels))
                .with_context(|| format!("the graph cannot be run in batches of {batch}"))?;
            let input = Arc::new(Tensor::zero::<f32>(&[batch, features])?);
            plans.push(Plan { batch, plan, input });
        }
        Ok(Network { plans, features, labels, input, output })
    }

    /// Runs `rows` rows. `fill` writes row `n` of the input; `take` gets row `n` of the output.
    ///
    /// # Errors
    /// If the run itself fails; rows before were given to `take`.
    pub fn run(
        &mut self,
        rows: usize,
        mut fill: impl FnMut(usize, &mut [f32]),
        mut take: impl FnMut(usize, &[f32]),
    ) -> Result<()> {
        let (features, labels) = (self.features, self.labels);
        let mut done = 0;
        while done < rows {
            let plan = &mut self.plans[plan_for(rows - done)];
            let count = plan.batch.min(rows - done);
            let output = guarded("run", || {
                // Nobody else holds the input between runs; if a graph kept it, a copy is made here.
                let input = Arc::make_mut(&mut plan.input);
                let mut view = input.try_as_plain_ram_mut()?;
                let values = view.as_slice_mut::<f32>()?;
                let (used, padding) = values.split_at_mut(count * features);
                for (row, values) in used.chunks_exact_mut(features).enumerate() {
                    fill(done + row, values);
                }
                padding.fill(0.0);
                let mut outputs = plan.plan.run(tvec!(TValue::from_const(plan.input.clone())))?;
                Ok(outputs.remove(0))
            })?;
            let view = output.try_as_plain_ram()?;
            let values = view.as_slice::<f32>()?;
            ensure!(
                values.len() == plan.batch * labels,
                "the model gave {} values for {} rows",
                values.len(),
                plan.batch
            );
            for (row, values) in values.chunks_exact(labels).take(count).enumerate() {
                take(done + row, values);
            }
            done += count;
        }
        Ok(())
    }
}

/// The plan for what is left. Padding a few rows to 64 costs more than running them one by one, and a half-empty batch
/// of 512 more than batches of 64.
fn plan_for(left: usize) -> usize {
    match left {
        0..=4 => 0,
        5..=384 => 1,
        _ => 2,
    }
}

fn plan(
    model: &ModelProto,
    output: &str,
    batch: usize,
    features: usize,
    labels: usize,
) -> Result<Arc<TypedRunnableModel>> {
    let mut graph = onnx().model_for_proto_model(model)?;
    // A model's own sources are its inputs; the shape of the only one is ours to say.
    graph.set_input_fact(0, f32::fact([batch, features]).into())?;
    graph.select_outputs_by_name([output])?;
    let graph = graph.into_optimized()?;
    let fact = graph.output_fact(0)?;
    let shape =
        fact.shape.as_concrete().with_context(|| format!("the shape of the output {output:?} depends on its input"))?;
    ensure!(
        fact.datum_type == f32::datum_type() && shape == [batch, labels],
        "the output {output:?} is {:?} of shape {shape:?}; it must be 32-bit floats of shape [batch, {labels}], \
         one probability per label",
        fact.datum_type
    );
    graph.into_runnable()
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
