//! Operators of our own inside a graph of tract's: the seam between [`Kernel`], which knows rows of plain slices, and tract.
//!
//! Invariant: a kernel is made for the type and width of its input when the graph is typed, and checks everything then;
//! a run cannot fail. Called by [`super::network`], which parses every graph with [`framework`].

use std::fmt::Debug;
use std::hash::{Hash, Hasher};
use std::sync::{Arc, Mutex, PoisonError};

use anyhow::{Context, Result, bail, ensure};
use tract_onnx::Onnx;
use tract_onnx::model::ParsingContext;
use tract_onnx::pb::NodeProto;
use tract_onnx::prelude::*;
use tract_onnx::tract_hir::internal::*;

use super::ops;

/// Elements of a tensor.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Element {
    F32,
    F64,
    I64,
}

impl Element {
    fn datum_type(self) -> DatumType {
        match self {
            Element::F32 => DatumType::F32,
            Element::F64 => DatumType::F64,
            Element::I64 => DatumType::I64,
        }
    }
}

/// Shape of an output, from that of the input.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Shape {
    /// The input's.
    Same,
    /// The input's without its last axis: one value per row.
    Rows,
    /// The input's with another last axis.
    Columns(usize),
    /// The input's with one more axis.
    Append(usize),
}

/// A type and a shape.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Output(pub Element, pub Shape);

/// What a kernel is made for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Given {
    /// The input's type. Integers of any size come as `I64`.
    pub element: Element,
    /// The length of the input's last axis; 1 if it has only one axis.
    pub columns: usize,
}

/// Elements, row by row.
#[derive(Clone, Copy, Debug)]
pub(super) enum Values<'a> {
    F32(&'a [f32]),
    F64(&'a [f64]),
    I64(&'a [i64]),
}

/// Elements to write.
#[derive(Debug)]
pub(super) enum ValuesMut<'a> {
    F32(&'a mut [f32]),
    F64(&'a mut [f64]),
    I64(&'a mut [i64]),
}

/// An operator on rows.
pub(super) trait Kernel: Debug + Send + Sync {
    /// The ONNX operator.
    fn name(&self) -> &'static str;
    /// What the input is converted to.
    fn input(&self) -> Element;
    /// The outputs, in order.
    fn outputs(&self) -> &[Output];
    /// Writes every element of every output. Slices have the types and sizes that were declared.
    fn run(&self, input: Values, outputs: &mut [ValuesMut]);
}

/// Makes a kernel for an input.
pub(super) type Maker = Arc<dyn Fn(Given) -> Result<Arc<dyn Kernel>> + Send + Sync>;

/// Operators that tract knows and that no model of flows needs: their answers are drawn at random, depend on the flows
/// beside (DynamicQuantizeLinear takes its scale from the whole batch), or were never compared with the reference.
const WITHOUT: [&str; 30] = [
    "BlackmanWindow",
    "CategoryMapper",
    "ConstantLike",
    "DFT",
    "DynamicQuantizeLinear",
    "EyeLike",
    "GatherBlockQuantized",
    "GlobalLpPool",
    "GridSample",
    "HammingWindow",
    "HannWindow",
    "MatMulNBits",
    "MelWeightMatrix",
    "Multinomial",
    "NonMaxSuppression",
    "ParametricSoftplus",
    "RandomNormal",
    "RandomNormalLike",
    "RandomUniform",
    "RandomUniformLike",
    "Resize",
    "RotaryEmbedding",
    "Rsqrt",
    "STFT",
    "ScaledTanh",
    "Scatter",
    "ScatterElements",
    "ScatterND",
    "SkipSimplifiedLayerNormalization",
    "Swish",
];

/// tract's operators, without those that nobody needs, and ours.
pub(super) fn framework() -> Onnx {
    let mut framework = tract_onnx::onnx();
    for name in WITHOUT {
        framework.op_register.0.remove(name);
    }
    for name in ops::NAMES {
        framework.op_register.insert(name, operator);
    }
    super::exact::extend(&mut framework);
    framework.ignore_value_info = true;
    framework
}

fn operator(_: &ParsingContext, node: &NodeProto) -> TractResult<(Box<dyn InferenceOp>, Vec<String>)> {
    let maker = ops::maker(node).with_context(|| format!("the operator {} ({:?})", node.op_type, node.name))?;
    // Trailing outputs may be absent or unnamed; graphs that name a later one only are not written by anyone.
    let named = node.output.iter().filter(|name| !name.is_empty()).count();
    let operator = Unwired { kind: node.op_type.clone(), outputs: named, maker: Lazy(maker), made: Arc::default() };
    Ok((expand(operator), Vec::new()))
}

/// A maker, which cannot be printed.
#[derive(Clone)]
struct Lazy(Maker);

impl Debug for Lazy {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("maker")
    }
}

/// A kernel and what it was made for.
type Made = (Given, Arc<dyn Kernel>);

/// An operator before its input is known.
#[derive(Clone, Debug)]
struct Unwired {
    kind: String,
    outputs: usize,
    maker: Lazy,
    /// The last kernel: the same input asks again for every batch size.
    made: Arc<Mutex<Option<Made>>>,
}

impl Unwired {
    fn kernel(&self, datum_type: DatumType, columns: usize) -> TractResult<Arc<dyn Kernel>> {
        let element = match datum_type {
            DatumType::F32 | DatumType::F16 => Element::F32,
            DatumType::F64 => Element::F64,
            found if found.is_integer() || found == DatumType::TDim || found == DatumType::Bool => Element::I64,
            found => bail!("{} is given elements of type {found:?}", self.kind),
        };
        let given = Given { element, columns };
        let mut made = self.made.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some((key, kernel)) = &*made
            && *key == given
        {
            return Ok(kernel.clone());
        }
        let kernel = (self.maker.0)(given).with_context(|| format!("the operator {}", self.kind))?;
        ensure!(
            self.outputs <= kernel.outputs().len(),
            "{} has {} outputs, not {}",
            self.kind,
            kernel.outputs().len(),
            self.outputs
        );
        *made = Some((given, kernel.clone()));
        Ok(kernel)
    }
}

fn columns(shape: &[TDim]) -> TractResult<usize> {
    match shape {
        [] => bail!("the input is a single value"),
        [_] => Ok(1),
        [.., last] => last.to_usize().context("the width of the input is not known"),
    }
}

fn output_shape(shape: &[TDim], output: Shape) -> TVec<TDim> {
    let mut shape: TVec<TDim> = shape.into();
    match output {
        Shape::Same => {}
        // With one axis each value is a row.
        Shape::Rows if shape.len() == 1 => {}
        Shape::Columns(width) if shape.len() == 1 => shape.push(width.to_dim()),
        Shape::Rows => {
            shape.pop();
        }
        Shape::Columns(width) => {
            shape.pop();
            shape.push(width.to_dim());
        }
        Shape::Append(width) => shape.push(width.to_dim()),
    }
    shape
}

impl Expansion for Unwired {
    fn name(&self) -> StaticName {
        self.kind.clone().into()
    }

    fn nboutputs(&self) -> TractResult<usize> {
        Ok(self.outputs)
    }

    fn rules<'r, 'p: 'r, 's: 'r>(
        &'s self,
        s: &mut Solver<'r>,
        inputs: &'p [TensorProxy],
        outputs: &'p [TensorProxy],
    ) -> InferenceResult {
        check_input_arity(inputs, 1)?;
        check_output_arity(outputs, self.outputs)?;
        s.given_2(&inputs[0].datum_type, &inputs[0].shape, move |s, datum_type, shape| {
            let kernel = self.kernel(datum_type, columns(&shape)?)?;
            for (proxy, Output(element, form)) in outputs.iter().zip(kernel.outputs()) {
                s.equals(&proxy.datum_type, element.datum_type())?;
                s.equals(&proxy.shape, output_shape(&shape, *form))?;
            }
            Ok(())
        })
    }

    fn wire(&self, prefix: &str, model: &mut TypedModel, inputs: &[OutletId]) -> TractResult<TVec<OutletId>> {
        let fact = model.outlet_fact(inputs[0])?.clone();
        let kernel = self.kernel(fact.datum_type, columns(&fact.shape.to_tvec())?)?;
        let mut input = inputs[0];
        if fact.datum_type != kernel.input().datum_type() {
            let cast = tract_core::ops::cast::cast(kernel.input().datum_type());
            input = model.wire_node(format!("{prefix}.cast"), cast, &[input])?[0];
        }
        model.wire_node(prefix, Wired { kernel, outputs: self.outputs }, &[input])
    }
}

/// An operator in a typed graph.
#[derive(Clone, Debug)]
struct Wired {
    kernel: Arc<dyn Kernel>,
    outputs: usize,
}

impl PartialEq for Wired {
    fn eq(&self, other: &Wired) -> bool {
        Arc::ptr_eq(&self.kernel, &other.kernel) && self.outputs == other.outputs
    }
}

impl Eq for Wired {}

impl Hash for Wired {
    fn hash<H: Hasher>(&self, state: &mut H) {
        Arc::as_ptr(&self.kernel).cast::<()>().hash(state);
    }
}

impl Op for Wired {
    fn name(&self) -> StaticName {
        self.kernel.name().into()
    }

    op_as_typed_op!();
}

impl EvalOp for Wired {
    op_out_of_plan!();

    fn eval(&self, _: &EvalContext, inputs: TVec<TValue>) -> TractResult<TVec<TValue>> {
        let input = args_1!(inputs);
        let shape: TVec<TDim> = input.shape().iter().map(|dim| dim.to_dim()).collect();
        let mut tensors: TVec<Tensor> = TVec::new();
        for Output(element, form) in self.kernel.outputs() {
            let shape: TVec<usize> =
                output_shape(&shape, *form).iter().map(|dim| Ok(dim.to_usize()?)).collect::<TractResult<_>>()?;
            tensors.push(Tensor::zero_dt(element.datum_type(), &shape)?);
        }
        let plain = input.try_as_plain_ram()?;
        let values = match self.kernel.input() {
            Element::F32 => Values::F32(plain.as_slice()?),
            Element::F64 => Values::F64(plain.as_slice()?),
            Element::I64 => Values::I64(plain.as_slice()?),
        };
        {
            let mut plains =
                tensors.iter_mut().map(|tensor| tensor.try_as_plain_ram_mut()).collect::<TractResult<TVec<_>>>()?;
            let mut slices: TVec<ValuesMut> = TVec::new();
            for (plain, Output(element, _)) in plains.iter_mut().zip(self.kernel.outputs()) {
                slices.push(match element {
                    Element::F32 => ValuesMut::F32(plain.as_slice_mut()?),
                    Element::F64 => ValuesMut::F64(plain.as_slice_mut()?),
                    Element::I64 => ValuesMut::I64(plain.as_slice_mut()?),
                });
            }
            self.kernel.run(values, &mut slices);
        }
        tensors.truncate(self.outputs);
        Ok(tensors.into_iter().map(|tensor| tensor.into_tvalue()).collect())
    }
}

impl TypedOp for Wired {
    as_op!();

    fn output_facts(&self, inputs: &[&TypedFact]) -> TractResult<TVec<TypedFact>> {
        let shape = inputs[0].shape.to_tvec();
        let outputs = self.kernel.outputs().iter().take(self.outputs);
        Ok(outputs.map(|Output(element, form)| element.datum_type().fact(output_shape(&shape, *form))).collect())
    }
}
