//! LinearClassifier and LinearRegressor.

use std::sync::Arc;

use anyhow::{Result, ensure};

use super::attributes::Attributes;
use super::kernel;
use super::post::Transform;
use crate::model::engine::{Element, Kernel, Maker, Output, Shape, Values, ValuesMut};

/// Most scores of one row.
const MAX_SCORES: usize = 1 << 10;

/// `coefficients · x + intercepts`, and what comes after.
#[derive(Debug)]
struct Linear {
    /// One row of `columns` per score.
    coefficients: Vec<f64>,
    intercepts: Vec<f64>,
    columns: usize,
    transform: Transform,
    /// Empty for a regressor.
    labels: Vec<i64>,
    outputs: Vec<Output>,
}

fn widened(values: &[f32]) -> Vec<f64> {
    values.iter().map(|value| f64::from(*value)).collect()
}

fn read(attributes: &Attributes, scores: usize) -> Result<(Vec<f64>, Vec<f64>, Transform)> {
    let coefficients = widened(attributes.floats("coefficients")?);
    let mut intercepts = widened(attributes.floats("intercepts")?);
    if intercepts.is_empty() {
        intercepts = vec![0.0; scores];
    }
    ensure!(intercepts.len() == scores, "{} intercepts for {scores} scores", intercepts.len());
    Ok((coefficients, intercepts, Transform::parse(&attributes.text("post_transform")?)?))
}

fn check(coefficients: &[f64], scores: usize, columns: usize) -> Result<()> {
    let wanted = scores * columns;
    ensure!(
        coefficients.len() == wanted,
        "{} coefficients; {scores} scores of {columns} columns need {wanted}",
        coefficients.len()
    );
    Ok(())
}

/// Labels and scores.
pub(super) fn classifier(attributes: &Attributes) -> Result<Maker> {
    let labels = attributes.ints("classlabels_ints")?.to_vec();
    ensure!(
        (2..=MAX_SCORES).contains(&labels.len()),
        "the classifier has {} labels; it must have 2 to {MAX_SCORES}",
        labels.len()
    );
    let one = attributes.floats("intercepts")?.len() == 1 && labels.len() == 2;
    let scores = if one { 1 } else { labels.len() };
    let (coefficients, intercepts, transform) = read(attributes, scores)?;
    Ok(Arc::new(move |given| {
        check(&coefficients, scores, given.columns)?;
        kernel(Linear {
            coefficients: coefficients.clone(),
            intercepts: intercepts.clone(),
            columns: given.columns,
            transform,
            outputs: vec![Output(Element::I64, Shape::Rows), Output(Element::F32, Shape::Columns(labels.len()))],
            labels: labels.clone(),
        })
    }))
}

/// Values.
pub(super) fn regressor(attributes: &Attributes) -> Result<Maker> {
    let targets = attributes.int("targets")?.unwrap_or(1);
    ensure!((1..=MAX_SCORES as i64).contains(&targets), "targets is {targets}; it must be 1 to {MAX_SCORES}");
    let targets = targets as usize;
    let (coefficients, intercepts, transform) = read(attributes, targets)?;
    Ok(Arc::new(move |given| {
        check(&coefficients, targets, given.columns)?;
        kernel(Linear {
            coefficients: coefficients.clone(),
            intercepts: intercepts.clone(),
            columns: given.columns,
            transform,
            outputs: vec![Output(Element::F32, Shape::Columns(targets))],
            labels: Vec::new(),
        })
    }))
}

impl Linear {
    /// Scores of a row, before the transform.
    fn scores(&self, row: &[f32], scores: &mut [f64]) {
        let lines = self.coefficients.chunks_exact(self.columns).zip(&self.intercepts);
        for (score, (line, intercept)) in scores.iter_mut().zip(lines) {
            *score = intercept + line.iter().zip(row).map(|(factor, value)| factor * f64::from(*value)).sum::<f64>();
        }
    }

    fn label(&self, scores: &mut [f64]) -> i64 {
        let mut best = 0;
        if self.intercepts.len() == 1 {
            // One score for two labels: that of the second.
            scores[1] = scores[0];
            scores[0] = -scores[0];
            best = usize::from(scores[1] > 0.0);
        } else {
            for (number, score) in scores.iter().enumerate() {
                if *score > scores[best] {
                    best = number;
                }
            }
        }
        self.labels[best]
    }
}

impl Kernel for Linear {
    fn name(&self) -> &'static str {
        if self.labels.is_empty() { "LinearRegressor" } else { "LinearClassifier" }
    }

    fn input(&self) -> Element {
        Element::F32
    }

    fn outputs(&self) -> &[Output] {
        &self.outputs
    }

    fn run(&self, input: Values, outputs: &mut [ValuesMut]) {
        let Values::F32(input) = input else { return };
        let mut scores = vec![0.0; self.intercepts.len().max(self.labels.len())];
        let (mut labels, out) = match outputs {
            [ValuesMut::I64(labels), ValuesMut::F32(out)] => (Some(labels), out),
            [ValuesMut::F32(out)] => (None, out),
            _ => return,
        };
        let rows = input.chunks_exact(self.columns).zip(out.chunks_exact_mut(scores.len()));
        for (number, (row, out)) in rows.enumerate() {
            self.scores(row, &mut scores);
            if let Some(labels) = &mut labels {
                labels[number] = self.label(&mut scores);
            }
            self.transform.apply(&mut scores);
            out.iter_mut().zip(&scores).for_each(|(out, score)| *out = *score as f32);
        }
    }
}
