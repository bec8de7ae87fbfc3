//! SVMClassifier and SVMRegressor: libsvm's models, in doubles.
//!
//! Probabilities are those of Wu, Lin and Weng, "Probability estimates for multi-class classification by pairwise coupling",
//! JMLR 5 (2004), second method, with libsvm's stopping rule.

use std::sync::Arc;

use anyhow::{Result, bail, ensure};

use super::attributes::Attributes;
use super::kernel;
use super::post::{Transform, logistic};
use crate::model::engine::{Element, Kernel, Maker, Output, Shape, Values, ValuesMut};

/// Most classes of one classifier; pairs of them are compared.
const MAX_CLASSES: usize = 256;

#[derive(Clone, Copy, Debug)]
enum Form {
    Linear,
    Poly,
    Rbf,
    Sigmoid,
}

/// The kernel function and the vectors.
#[derive(Clone, Debug)]
struct Vectors {
    form: Form,
    gamma: f64,
    constant: f64,
    degree: f64,
    vectors: Vec<f64>,
    count: usize,
}

fn widened(values: &[f32]) -> Vec<f64> {
    values.iter().map(|value| f64::from(*value)).collect()
}

impl Vectors {
    fn read(attributes: &Attributes, count: usize) -> Result<Vectors> {
        let form = match attributes.text("kernel_type")?.as_str() {
            "" | "LINEAR" => Form::Linear,
            "POLY" => Form::Poly,
            "RBF" => Form::Rbf,
            "SIGMOID" => Form::Sigmoid,
            other => bail!("kernel_type is {other:?}; it must be LINEAR, POLY, RBF or SIGMOID"),
        };
        let parameters = widened(attributes.floats("kernel_params")?);
        let [gamma, constant, degree] = match parameters[..] {
            [gamma, constant, degree] => [gamma, constant, degree],
            [] => [0.0, 0.0, 0.0],
            _ => bail!("kernel_params has {} values, not 3", parameters.len()),
        };
        let vectors = widened(attributes.floats("support_vectors")?);
        Ok(Vectors { form, gamma, constant, degree, vectors, count })
    }

    fn check(&self, columns: usize) -> Result<()> {
        ensure!(
            self.count.checked_mul(columns) == Some(self.vectors.len()),
            "{} values of support_vectors; {} vectors of {columns} columns are wanted",
            self.vectors.len(),
            self.count
        );
        Ok(())
    }

    fn apply(&self, row: &[f32], out: &mut [f64]) {
        for (out, vector) in out.iter_mut().zip(self.vectors.chunks_exact(row.len())) {
            let pairs = || row.iter().map(|value| f64::from(*value)).zip(vector);
            let dot = || pairs().map(|(a, b)| a * b).sum::<f64>();
            *out = match self.form {
                Form::Linear => dot(),
                Form::Poly => (self.gamma * dot() + self.constant).powf(self.degree),
                Form::Rbf => (-self.gamma * pairs().map(|(a, b)| (a - b) * (a - b)).sum::<f64>()).exp(),
                Form::Sigmoid => (self.gamma * dot() + self.constant).tanh(),
            };
        }
    }
}

/// One classifier per pair of classes, and their probabilities.
#[derive(Clone, Debug)]
struct Classifier {
    vectors: Vectors,
    /// Where the vectors of each class start, and one more.
    starts: Vec<usize>,
    /// One row of `vectors.count` per class but one.
    coefficients: Vec<f64>,
    rho: Vec<f64>,
    /// One pair of numbers per pair of classes.
    slopes: Vec<(f64, f64)>,
    labels: Vec<i64>,
    columns: usize,
    outputs: Vec<Output>,
}

/// Label and probabilities.
pub(super) fn classifier(attributes: &Attributes) -> Result<Maker> {
    let labels = attributes.ints("classlabels_ints")?.to_vec();
    let classes = labels.len();
    ensure!((2..=MAX_CLASSES).contains(&classes), "it has {classes} labels; it must have 2 to {MAX_CLASSES}");
    ensure!(
        !attributes.floats("support_vectors")?.is_empty(),
        "it has no support_vectors: the linear form is not supported, export it as LinearClassifier"
    );
    let mut starts = vec![0usize];
    for count in attributes.ints("vectors_per_class")? {
        let last = starts.last().copied().unwrap_or(0);
        let next = usize::try_from(*count).ok().and_then(|count| last.checked_add(count));
        let Some(next) = next else { bail!("vectors_per_class holds {count}") };
        starts.push(next);
    }
    ensure!(starts.len() == classes + 1, "vectors_per_class has {} values for {classes} labels", starts.len() - 1);
    let count = starts.last().copied().unwrap_or(0);
    let pairs = classes * (classes - 1) / 2;
    let (a, b) = (widened(attributes.floats("prob_a")?), widened(attributes.floats("prob_b")?));
    ensure!(
        !a.is_empty(),
        "it gives no probabilities (prob_a is absent): train it with probabilities, or calibrate it"
    );
    let rho = widened(attributes.floats("rho")?);
    ensure!(
        a.len() == pairs && b.len() == pairs && rho.len() == pairs,
        "{} prob_a, {} prob_b and {} rho for {pairs} pairs of labels",
        a.len(),
        b.len(),
        rho.len()
    );
    let coefficients = widened(attributes.floats("coefficients")?);
    ensure!(
        count.checked_mul(classes - 1) == Some(coefficients.len()),
        "{} coefficients for {count} vectors and {classes} labels",
        coefficients.len()
    );
    ensure!(
        Transform::parse(&attributes.text("post_transform")?)? == Transform::None,
        "its post_transform must be NONE"
    );
    let template = Classifier {
        vectors: Vectors::read(attributes, count)?,
        starts,
        coefficients,
        rho,
        slopes: a.into_iter().zip(b).collect(),
        columns: 0,
        outputs: vec![Output(Element::I64, Shape::Rows), Output(Element::F32, Shape::Columns(classes))],
        labels,
    };
    Ok(Arc::new(move |given| {
        template.vectors.check(given.columns)?;
        kernel(Classifier { columns: given.columns, ..template.clone() })
    }))
}

impl Kernel for Classifier {
    fn name(&self) -> &'static str {
        "SVMClassifier"
    }

    fn input(&self) -> Element {
        Element::F32
    }

    fn outputs(&self) -> &[Output] {
        &self.outputs
    }

    fn run(&self, input: Values, outputs: &mut [ValuesMut]) {
        let (Values::F32(input), [ValuesMut::I64(labels), ValuesMut::F32(out)]) = (input, outputs) else { return };
        let classes = self.labels.len();
        let mut products = vec![0.0; self.vectors.count];
        let mut pairwise = vec![0.0; classes * classes];
        for (number, row) in input.chunks_exact(self.columns).enumerate() {
            self.vectors.apply(row, &mut products);
            let mut votes = vec![0u32; classes];
            let pairs = (0..classes).flat_map(|i| (i + 1..classes).map(move |j| (i, j)));
            for (pair, (i, j)) in pairs.enumerate() {
                let part = |class: usize, line: usize| -> f64 {
                    let range = self.starts[class]..self.starts[class + 1];
                    let line = &self.coefficients[line * self.vectors.count..];
                    range.map(|vector| line[vector] * products[vector]).sum()
                };
                let score = self.rho[pair] + part(i, j - 1) + part(j, i);
                votes[if score > 0.0 { i } else { j }] += 1;
                let (a, b) = self.slopes[pair];
                let probability = logistic(-(score * a + b)).clamp(1e-7, 1.0 - 1e-7);
                pairwise[i * classes + j] = probability;
                pairwise[j * classes + i] = 1.0 - probability;
            }
            // The first of those with the most votes.
            let best = (0..classes).rev().max_by_key(|class| votes[*class]).unwrap_or(0);
            labels[number] = self.labels[best];
            let probabilities = couple(classes, &pairwise);
            for (out, probability) in out[number * classes..].iter_mut().zip(probabilities) {
                *out = probability as f32;
            }
        }
    }
}

/// Pairwise probabilities to probabilities.
fn couple(classes: usize, r: &[f64]) -> Vec<f64> {
    let at = |i: usize, j: usize| i * classes + j;
    let mut q = vec![0.0; classes * classes];
    for t in 0..classes {
        for j in (0..classes).filter(|j| *j != t) {
            q[at(t, t)] += r[at(j, t)] * r[at(j, t)];
            q[at(t, j)] = -r[at(j, t)] * r[at(t, j)];
        }
    }
    let mut p = vec![1.0 / classes as f64; classes];
    let mut qp = vec![0.0; classes];
    for _ in 0..classes.max(100) {
        for t in 0..classes {
            qp[t] = (0..classes).map(|j| q[at(t, j)] * p[j]).sum();
        }
        let mut pqp: f64 = p.iter().zip(&qp).map(|(p, qp)| p * qp).sum();
        if qp.iter().all(|qp| (qp - pqp).abs() < 0.005 / classes as f64) {
            break;
        }
        for t in 0..classes {
            let step = (pqp - qp[t]) / q[at(t, t)];
            p[t] += step;
            let scale = 1.0 + step;
            pqp = (pqp + step * (step * q[at(t, t)] + 2.0 * qp[t])) / scale / scale;
            for j in 0..classes {
                qp[j] = (qp[j] + step * q[at(t, j)]) / scale;
                p[j] /= scale;
            }
        }
    }
    p
}

/// A value, or with `one_class` 1 inside and −1 outside.
#[derive(Clone, Debug)]
struct Regressor {
    vectors: Vectors,
    coefficients: Vec<f64>,
    rho: f64,
    one_class: bool,
    transform: Transform,
    columns: usize,
}

/// One value.
pub(super) fn regressor(attributes: &Attributes) -> Result<Maker> {
    let count = attributes.int("n_supports")?.unwrap_or(0);
    let coefficients = widened(attributes.floats("coefficients")?);
    let Some(count) = usize::try_from(count).ok().filter(|count| *count > 0 && *count == coefficients.len()) else {
        bail!("n_supports is {count}, and there are {} coefficients", coefficients.len());
    };
    let [rho] = attributes.floats("rho")?[..] else { bail!("rho must be one number") };
    let template = Regressor {
        vectors: Vectors::read(attributes, count)?,
        coefficients,
        rho: f64::from(rho),
        one_class: attributes.int("one_class")?.unwrap_or(0) != 0,
        transform: Transform::parse(&attributes.text("post_transform")?)?,
        columns: 0,
    };
    Ok(Arc::new(move |given| {
        template.vectors.check(given.columns)?;
        kernel(Regressor { columns: given.columns, ..template.clone() })
    }))
}

impl Kernel for Regressor {
    fn name(&self) -> &'static str {
        "SVMRegressor"
    }

    fn input(&self) -> Element {
        Element::F32
    }

    fn outputs(&self) -> &[Output] {
        &[Output(Element::F32, Shape::Columns(1))]
    }

    fn run(&self, input: Values, outputs: &mut [ValuesMut]) {
        let (Values::F32(input), [ValuesMut::F32(out)]) = (input, outputs) else { return };
        let mut products = vec![0.0; self.vectors.count];
        for (row, out) in input.chunks_exact(self.columns).zip(out.iter_mut()) {
            self.vectors.apply(row, &mut products);
            let sum: f64 = self.coefficients.iter().zip(&products).map(|(factor, product)| factor * product).sum();
            let mut value = [sum + self.rho];
            if self.one_class {
                value[0] = if value[0] > 0.0 { 1.0 } else { -1.0 };
            } else {
                self.transform.apply(&mut value);
            }
            *out = value[0] as f32;
        }
    }
}
