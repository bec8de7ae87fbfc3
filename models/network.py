"""The network: trained by scikit-learn, written as an ONNX graph that takes raw features, NaN included.

Every operator is one that tract runs (checked by `sensor model check` and by the agent at each load).
"""


import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper
from sklearn.neural_network import MLPClassifier

import inputs

HIDDEN = (64, 32)
OPSET = 17
# How much more the benign label weighs than each attack: a false alarm costs more than a late one.
BENIGN_WEIGHT = 25.0


def scale(rows):
    """Raw features to what is standardised: the first half of the graph, in float64."""
    fill = np.array([inputs.FILL[name] for name in inputs.NAMES])
    values = np.where(np.isnan(rows), fill, rows.astype(np.float64))
    return np.sign(values) * np.log1p(np.abs(values))


def weigh(labels, captures, count):
    """One weight per row: labels weigh alike (benign more), and a capture no more than the root of its rows."""
    weights = np.zeros(len(labels))
    for label in range(count):
        of_label = labels == label
        for capture in np.unique(captures[of_label]):
            rows = of_label & (captures == capture)
            weights[rows] = 1.0 / np.sqrt(rows.sum())
        total = weights[of_label].sum()
        if total > 0:
            weights[of_label] *= (BENIGN_WEIGHT if label == 0 else 1.0) / total
    return weights * len(labels) / weights.sum()


def train(rows, labels, captures, count, seed, epochs):
    """Returns mean, deviation and the layers' weights."""
    scaled = scale(rows)
    mean = scaled.mean(axis=0)
    deviation = np.maximum(scaled.std(axis=0), 0.05)
    standard = np.clip((scaled - mean) / deviation, -inputs.LIMIT, inputs.LIMIT)
    classifier = MLPClassifier(
        # Strong regularisation: with less, single benign flows of unseen applications score above 0.9999.
        HIDDEN, alpha=0.03, batch_size=512, learning_rate_init=2e-3, max_iter=epochs, n_iter_no_change=epochs, random_state=seed
    )
    weights = weigh(labels, captures, count)
    # Every label must be there, or the output would have fewer columns.
    assert set(labels) == set(range(count)), f"labels without rows: {set(range(count)) - set(labels)}"
    classifier.fit(standard, labels, sample_weight=weights)
    layers = [(w.astype(np.float32), b.astype(np.float32)) for w, b in zip(classifier.coefs_, classifier.intercepts_)]
    return mean.astype(np.float32), (1.0 / deviation).astype(np.float32), layers


def reference(rows, network):
    """The graph in float64 numpy: what the golden rows promise."""
    mean, inverse, layers = network
    values = np.clip((scale(rows) - mean) * inverse.astype(np.float64), -inputs.LIMIT, inputs.LIMIT)
    for number, (weights, bias) in enumerate(layers):
        values = values @ weights.astype(np.float64) + bias
        if number + 1 < len(layers):
            values = np.maximum(values, 0.0)
    values = np.exp(values - values.max(axis=1, keepdims=True))
    return values / values.sum(axis=1, keepdims=True)


def export(network, labels):
    """The ONNX model, without its contract."""
    mean, inverse, layers = network
    width = len(inputs.NAMES)
    constants, nodes = [], []

    def constant(name, value):
        constants.append(numpy_helper.from_array(np.asarray(value, dtype=np.float32), name))
        return name

    def node(kind, sources, output, **attributes):
        nodes.append(helper.make_node(kind, sources, [output], name=output, **attributes))
        return output

    fill = constant("fill", [[inputs.FILL[name] for name in inputs.NAMES]])
    filled = node("Where", [node("IsNaN", ["features"], "missing"), fill, "features"], "filled")
    magnitude = node("Log", [node("Add", [node("Abs", [filled], "absolute"), constant("one", [[1.0]])], "above_one")], "log")
    scaled = node("Mul", [node("Sign", [filled], "sign"), magnitude], "scaled")
    centred = node("Sub", [scaled, constant("mean", [mean])], "centred")
    standard = node("Mul", [centred, constant("inverse_deviation", [inverse])], "standard")
    values = node("Clip", [standard, constant("low", -inputs.LIMIT), constant("high", inputs.LIMIT)], "limited")
    for number, (weights, bias) in enumerate(layers):
        sources = [values, constant(f"weights_{number}", weights), constant(f"bias_{number}", bias)]
        values = node("Gemm", sources, f"layer_{number}")
        if number + 1 < len(layers):
            values = node("Relu", [values], f"active_{number}")
    node("Softmax", [values], "probabilities", axis=1)
    graph = helper.make_graph(
        nodes,
        "sensor",
        [helper.make_tensor_value_info("features", TensorProto.FLOAT, ["N", width])],
        [helper.make_tensor_value_info("probabilities", TensorProto.FLOAT, ["N", len(labels)])],
        constants,
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", OPSET)], producer_name="sensor-models")
    model.ir_version = 8
    onnx.checker.check_model(model, full_check=True)
    return model
