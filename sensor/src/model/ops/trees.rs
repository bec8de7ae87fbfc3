//! Tree ensembles as kernels.

use std::sync::Arc;

use anyhow::Result;
use tract_onnx::pb::NodeProto;

use super::kernel;
use crate::model::engine::{Element, Given, Kernel, Maker, Output, Shape, Values, ValuesMut};
use crate::model::trees::{Ensemble, Kind, Real, read};

/// One of the three operators.
pub(super) fn maker(node: &NodeProto) -> Result<Maker> {
    let read = read(node)?;
    Ok(Arc::new(move |given: Given| {
        // Compared in the wider of both types, as it is written: narrowing would move thresholds.
        let element = if read.double || given.element == Element::F64 { Element::F64 } else { Element::F32 };
        let outputs = match &read.kind {
            Kind::Classifier(classifier) => {
                vec![Output(Element::I64, Shape::Rows), Output(Element::F32, Shape::Columns(classifier.labels.len()))]
            }
            Kind::Regressor(_) => {
                let result = if read.typed { element } else { Element::F32 };
                vec![Output(result, Shape::Columns(read.targets()))]
            }
        };
        let kind = read.kind.clone();
        if element == Element::F64 {
            kernel(Trees { ensemble: read.flatten::<f64>(given.columns)?, kind, element, outputs })
        } else {
            kernel(Trees { ensemble: read.flatten::<f32>(given.columns)?, kind, element, outputs })
        }
    }))
}

/// An ensemble and how it ends.
#[derive(Debug)]
struct Trees<T> {
    ensemble: Ensemble<T>,
    kind: Kind,
    element: Element,
    outputs: Vec<Output>,
}

impl<T: Real> Kernel for Trees<T> {
    fn name(&self) -> &'static str {
        match self.kind {
            Kind::Classifier(_) => "TreeEnsembleClassifier",
            Kind::Regressor(_) => "TreeEnsembleRegressor",
        }
    }

    fn input(&self) -> Element {
        self.element
    }

    fn outputs(&self) -> &[Output] {
        &self.outputs
    }

    fn run(&self, input: Values, outputs: &mut [ValuesMut]) {
        let Some(input) = T::of(input) else { return };
        let targets = self.ensemble.targets();
        match (&self.kind, outputs) {
            (Kind::Classifier(end), [ValuesMut::I64(labels), ValuesMut::F32(scores)]) => {
                self.ensemble.run(input, |row, sums| {
                    labels[row] = end.finish(sums);
                    write(&mut scores[row * targets..], sums);
                });
            }
            (Kind::Regressor(end), [ValuesMut::F32(values)]) => self.ensemble.run(input, |row, sums| {
                end.finish(sums);
                write(&mut values[row * targets..], sums);
            }),
            (Kind::Regressor(end), [ValuesMut::F64(values)]) => self.ensemble.run(input, |row, sums| {
                end.finish(sums);
                values[row * targets..][..targets].copy_from_slice(sums);
            }),
            // No other outputs are declared.
            _ => {}
        }
    }
}

fn write(out: &mut [f32], sums: &[f64]) {
    for (out, sum) in out.iter_mut().zip(sums) {
        *out = *sum as f32;
    }
}
