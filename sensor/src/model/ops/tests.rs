//! Kernels without tract: what the exports of `conformance` do not reach.

use tract_onnx::pb::attribute_proto::AttributeType;
use tract_onnx::pb::{AttributeProto, NodeProto};

use super::post::Transform;
use super::*;
use crate::model::engine::{Element, Given, Values, ValuesMut};

fn node(kind: &str, attribute: Vec<AttributeProto>) -> NodeProto {
    NodeProto { op_type: kind.to_owned(), attribute, ..NodeProto::default() }
}

fn ints(name: &str, ints: &[i64]) -> AttributeProto {
    let (name, ints) = (name.to_owned(), ints.to_vec());
    AttributeProto { name, r#type: AttributeType::Ints as i32, ints, ..AttributeProto::default() }
}

fn floats(name: &str, floats: &[f32]) -> AttributeProto {
    let (name, floats) = (name.to_owned(), floats.to_vec());
    AttributeProto { name, r#type: AttributeType::Floats as i32, floats, ..AttributeProto::default() }
}

fn float(name: &str, f: f32) -> AttributeProto {
    AttributeProto { name: name.to_owned(), r#type: AttributeType::Float as i32, f, ..AttributeProto::default() }
}

fn make(node: &NodeProto, element: Element, columns: usize) -> Result<Arc<dyn Kernel>> {
    maker(node)?(Given { element, columns })
}

#[track_caller]
fn floats_of(node: &NodeProto, columns: usize, input: &[f32], outputs: usize) -> Vec<f32> {
    let mut out = vec![f32::NAN; outputs];
    make(node, Element::F32, columns).expect("good").run(Values::F32(input), &mut [ValuesMut::F32(&mut out)]);
    out
}

#[test]
fn missing_values_are_imputed_by_column() {
    let nan = f32::NAN;
    let imputer =
        node("Imputer", vec![floats("imputed_value_floats", &[7.0, 8.0]), float("replaced_value_float", nan)]);
    assert_eq!(floats_of(&imputer, 2, &[nan, 1.0, 2.0, nan], 4), [7.0, 1.0, 2.0, 8.0]);
    let zero = node("Imputer", vec![floats("imputed_value_floats", &[5.0])]);
    assert_eq!(floats_of(&zero, 2, &[0.0, 1.0], 2), [5.0, 1.0], "the value that is replaced is 0 if it is not given");
    let error = make(&imputer, Element::F32, 3).expect_err("three columns");
    assert!(error.to_string().contains("given 3 columns"), "{error}");
}

#[test]
fn labels_are_looked_up() {
    let encoder = node("LabelEncoder", vec![ints("keys_int64s", &[4, 9]), floats("values_floats", &[0.5, 1.5])]);
    let mut out = [f32::NAN; 3];
    let kernel = make(&encoder, Element::I64, 1).expect("good");
    kernel.run(Values::I64(&[9, 4, 1]), &mut [ValuesMut::F32(&mut out)]);
    assert_eq!(out, [1.5, 0.5, -0.0]);
    let encoder = node("LabelEncoder", vec![floats("keys_floats", &[f32::NAN, 0.0]), ints("values_int64s", &[1, 2])]);
    let mut out = [0; 3];
    let kernel = make(&encoder, Element::F32, 1).expect("good");
    kernel.run(Values::F32(&[-0.0, f32::NAN, 3.0]), &mut [ValuesMut::I64(&mut out)]);
    assert_eq!(out, [2, 1, -1]);
    assert!(maker(&node("LabelEncoder", vec![ints("keys_int64s", &[4]), ints("values_int64s", &[1, 2])])).is_err());
}

#[test]
fn categories_become_columns() {
    let encoder = node("OneHotEncoder", vec![ints("cats_int64s", &[3, 5])]);
    let mut out = [f32::NAN; 6];
    let kernel = make(&encoder, Element::I64, 1).expect("good");
    kernel.run(Values::I64(&[5, 3, 4]), &mut [ValuesMut::F32(&mut out)]);
    assert_eq!(out, [0.0, 1.0, 1.0, 0.0, 0.0, 0.0]);
}

#[test]
fn attributes_that_do_not_fit_are_refused() {
    let linear = |coefficients: &[f32]| {
        node("LinearClassifier", vec![ints("classlabels_ints", &[0, 1]), floats("coefficients", coefficients)])
    };
    assert!(make(&linear(&[1.0; 4]), Element::F32, 2).is_ok());
    assert!(make(&linear(&[1.0; 5]), Element::F32, 2).is_err());
    assert!(maker(&node("SVMRegressor", vec![ints("n_supports", &[1])])).is_err());
    assert!(
        maker(&node(
            "SVMClassifier",
            vec![ints("classlabels_ints", &[0, 1]), ints("vectors_per_class", &[i64::MAX, 1])]
        ))
        .is_err()
    );
    assert!(maker(&node("OneHotEncoder", vec![])).is_err());
    assert!(maker(&node("Imputer", vec![])).is_err());
    assert!(make(&node("Scaler", vec![]), Element::F32, 2).is_err());
}

#[test]
fn transforms_are_onnxs() {
    let apply = |transform: Transform, row: [f64; 3]| {
        let mut row = row;
        transform.apply(&mut row);
        row
    };
    let [a, b, c] = apply(Transform::Softmax, [1000.0, 1000.0, 0.0]);
    assert!((a - 0.5).abs() < 1e-12 && (b - 0.5).abs() < 1e-12 && c == 0.0);
    assert_eq!(apply(Transform::SoftmaxZero, [0.0, 2.0, 0.0]), [0.0, 1.0, 0.0]);
    assert_eq!(apply(Transform::SoftmaxZero, [0.0; 3]), [0.0; 3]);
    let [low, middle, high] = apply(Transform::Probit, [0.025, 0.5, 0.975]);
    // 1.95996… is what the exact inverse gives.
    assert!((high - 1.959964).abs() < 5e-3 && (low + high).abs() < 1e-9 && middle == 0.0, "{low} {middle} {high}");
}

#[test]
fn doubles_are_looked_up_as_floats() {
    let tensor = |name: &str, values: &[f64]| {
        let tensor = tract_onnx::pb::TensorProto {
            data_type: tract_onnx::pb::tensor_proto::DataType::Double as i32,
            dims: vec![values.len() as i64],
            double_data: values.to_vec(),
            ..Default::default()
        };
        let r#type = AttributeType::Tensor as i32;
        AttributeProto { name: name.to_owned(), r#type, t: Some(tensor), ..AttributeProto::default() }
    };
    let encoder =
        node("LabelEncoder", vec![tensor("keys_tensor", &[0.5, 1.5]), tensor("values_tensor", &[0.25, 0.75])]);
    assert_eq!(floats_of(&encoder, 1, &[1.5, 0.5], 2), [0.75, 0.25]);
}

#[test]
fn a_linear_classifier_of_libsvm_is_named() {
    let linear = node("SVMClassifier", vec![ints("classlabels_ints", &[0, 1]), floats("coefficients", &[1.0, 2.0])]);
    let error = make(&linear, Element::F32, 2).expect_err("no vectors");
    assert!(error.to_string().contains("export it as LinearClassifier"), "{error}");
}
