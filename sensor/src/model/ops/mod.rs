//! The operators of ai.onnx.ml, as kernels on rows: everything that the exporters of scikit-learn, LightGBM and XGBoost use.
//!
//! Invariant: a kernel checks its attributes against the width of its input when it is made; see [`super::engine`], which
//! registers what is here.

pub(super) mod attributes;
mod encode;
mod linear;
pub(super) mod post;
mod scale;
mod svm;
#[cfg(test)]
mod tests;
mod trees;

use std::sync::Arc;

use anyhow::{Result, bail};
use tract_onnx::pb::NodeProto;

use super::engine::{Kernel, Maker};
use attributes::Attributes;

/// The operators that [`maker`] knows.
pub(super) const NAMES: [&str; 14] = [
    "Binarizer",
    "Imputer",
    "LabelEncoder",
    "LinearClassifier",
    "LinearRegressor",
    "Normalizer",
    "OneHotEncoder",
    "SVMClassifier",
    "SVMRegressor",
    "Scaler",
    "TreeEnsemble",
    "TreeEnsembleClassifier",
    "TreeEnsembleRegressor",
    "ZipMap",
];

/// What makes the kernel of a node.
///
/// # Errors
/// If the attributes do not fit together, whatever the input.
pub(super) fn maker(node: &NodeProto) -> Result<Maker> {
    let attributes = Attributes(node);
    match node.op_type.as_str() {
        "Binarizer" => scale::binarizer(&attributes),
        "Imputer" => scale::imputer(&attributes),
        "LabelEncoder" => encode::label_encoder(&attributes),
        "LinearClassifier" => linear::classifier(&attributes),
        "LinearRegressor" => linear::regressor(&attributes),
        "Normalizer" => scale::normalizer(&attributes),
        "OneHotEncoder" => encode::one_hot(&attributes),
        "SVMClassifier" => svm::classifier(&attributes),
        "SVMRegressor" => svm::regressor(&attributes),
        "Scaler" => scale::scaler(&attributes),
        "TreeEnsemble" | "TreeEnsembleClassifier" | "TreeEnsembleRegressor" => trees::maker(node),
        // `lower` takes those out.
        other => bail!("{other} stands where it cannot be left out"),
    }
}

fn kernel(kernel: impl Kernel + 'static) -> Result<Arc<dyn Kernel>> {
    Ok(Arc::new(kernel))
}
