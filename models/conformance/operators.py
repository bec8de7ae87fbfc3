"""Writes data/operators.json: single operators on rows with missing, infinite, huge and tiny values, and their right answers.

    python3 models/conformance/operators.py

The answers are those of the reference evaluator of the ONNX project, and of onnxruntime where the evaluator has no such
operator or overflows on the way to a finite answer. Where both give an answer and differ, the case says so.
"""

import json
import pathlib
import warnings

import numpy as np
import onnx
import onnxruntime
import scipy.special
from onnx import TensorProto, helper, numpy_helper
from onnx.reference import ReferenceEvaluator

DATA = pathlib.Path(__file__).parent / "data"
NAN, INF = np.nan, np.inf
# One axis of four features. Each special value meets ordinary ones, and others of its kind.
ROWS = np.array(
    [
        [0.5, -0.5, 1.5, -2.0],
        [0.0, -0.0, 2.5, 1.0],
        [NAN, 0.5, -1.0, 2.0],
        [1.0, NAN, 0.0, -3.0],
        [0.25, 1.0, 2.0, NAN],
        [NAN, NAN, NAN, NAN],
        [INF, 1.0, -1.0, 0.0],
        [-INF, 1.0, 0.5, 0.0],
        [INF, -INF, 0.0, 1.0],
        [INF, INF, INF, INF],
        [-INF, -INF, -INF, -INF],
        [NAN, INF, -INF, 0.0],
        [100.0, -100.0, 90.0, -90.0],
        [-200.0, -201.0, -202.0, -200.5],
        [1e4, 1e5, -1e4, -1e5],
        [3e38, -3e38, 1e30, -1e30],
        [1e-30, -1e-30, 1e-38, 1e-7],
        [3.0, 3.0, 3.0, 3.0],
        [8.0, -8.0, 12.0, -12.0],
        [0.3, 0.6, 0.9, -0.9],
    ],
    dtype=np.float32,
)
OPSET, ML = 22, 3
MATRIX = [[1.0, 0.0, -1.0], [0.5, 0.0, 2.0], [0.0, 0.0, 1.0], [0.25, 0.0, -0.5]]


def const(name, value, dtype=np.float32):
    return numpy_helper.from_array(np.asarray(value, dtype=dtype), name)


class Case:
    """One graph: nodes from x to y."""

    def __init__(self, name, nodes, width, constants=(), opset=OPSET, ml=ML, contrib=False):
        domains = [helper.make_opsetid("", opset), helper.make_opsetid("ai.onnx.ml", ml)]
        if contrib:
            domains.append(helper.make_opsetid("com.microsoft", 1))
        graph = helper.make_graph(
            nodes,
            "g",
            [helper.make_tensor_value_info("x", TensorProto.FLOAT, ["n", ROWS.shape[1]])],
            [helper.make_tensor_value_info("y", TensorProto.FLOAT, ["n", width])],
            list(constants),
        )
        self.model = helper.make_model(graph, opset_imports=domains, ir_version=10)
        self.name, self.width, self.contrib = name, width, contrib

    def answers(self):
        options = onnxruntime.SessionOptions()
        options.log_severity_level = 4
        # As the file says, not as an optimiser of graphs makes it.
        options.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_DISABLE_ALL
        found = {}
        try:
            found["reference"] = ReferenceEvaluator(self.model).run(["y"], {"x": ROWS})[0]
        except Exception as error:  # It lacks the operator.
            found["reference error"] = str(error)[:200]
        try:
            session = onnxruntime.InferenceSession(self.model.SerializeToString(), options)
            found["onnxruntime"] = session.run(["y"], {"x": ROWS})[0]
        except Exception as error:
            found["onnxruntime error"] = str(error)[:200]
        if source_of(self.name) == "definition":
            found["definition"] = definition(self.name).astype(np.float32)
        return found


def source_of(name):
    """Whose answer is taken, where it is not the reference evaluator's, and why not."""
    if "LogSoftmax" in name or "ReduceLogSumExp" in name or name in ("Softplus", "Normalizer MAX", "Gemm, Softplus", "LRN"):
        # The evaluator takes the logarithm of what has overflowed or vanished, gives NaN for the sum of infinities, and
        # divides by the largest absolute value where the text of the operator says the largest; both keep NaN in a running sum.
        return "definition"
    if name in ("AveragePool", "InstanceNormalization", "QuantizeLinear, DequantizeLinear", "LabelEncoder of floats") or "BRANCH_NEQ" in name:
        # The evaluator leaves NaN out of the mean, overflows, does not keep within 8 bits, finds no NaN among keys, and says that
        # NaN equals thresholds.
        return "onnxruntime"
    return None


def definition(name):
    """The operator as its text defines it, without overflow on the way."""
    rows = ROWS.astype(np.float64)
    if "ReduceLogSumExp" in name:
        return scipy.special.logsumexp(rows.reshape(-1, 2, 2) if "middle" in name else rows, axis=1)
    if "LogSoftmax" in name:
        off = rows - rows.max(axis=1, keepdims=True)
        return off - np.log(np.exp(off).sum(axis=1, keepdims=True))
    if "Softplus" in name:
        return np.logaddexp(0, rows if name.startswith("Softplus") else rows @ np.array(MATRIX) + [0.1, 0.2, 0.3])
    if name == "LRN":
        around = [np.sum(rows[:, max(0, at - 1) : at + 2] ** 2, axis=1) for at in range(4)]
        return rows / (1 + 1e-4 / 3 * np.stack(around, axis=1)) ** 0.75
    largest = rows.max(axis=1, keepdims=True)
    return rows / np.where(largest == 0, 1, largest)


def same(a, b):
    a, b = (np.asarray(value, dtype=np.float64).reshape(len(ROWS), -1) for value in (a, b))
    equal = (np.isnan(a) & np.isnan(b)) | (a == b)
    with np.errstate(invalid="ignore", over="ignore"):
        close = np.abs(a - b) <= 1e-5 * np.maximum(1, np.abs(b))
    return bool((equal | close).all())


def to_float(value):
    """JSON has no numbers for these."""
    value = float(value)
    if np.isnan(value):
        return "nan"
    if np.isinf(value):
        return "inf" if value > 0 else "-inf"
    return float(f"{value:.9g}")


def unary(name, kind=None, **attributes):
    contrib = attributes.pop("contrib", False)
    opset = attributes.pop("opset", OPSET)
    node = helper.make_node(kind or name, ["x"], ["y"], domain="com.microsoft" if contrib else "", **attributes)
    return Case(name, [node], 4, opset=opset, contrib=contrib)


def wide(name, kind=None, **attributes):
    """A unary operator in 64-bit floats."""
    nodes = [
        helper.make_node("Cast", ["x"], ["wide"], to=TensorProto.DOUBLE),
        helper.make_node(kind or name, ["wide"], ["result"], **attributes),
        helper.make_node("Cast", ["result"], ["y"], to=TensorProto.FLOAT),
    ]
    return Case(f"{name} in 64 bits", nodes, 4)


def binary(name, other, kind=None, swap=False, opset=OPSET, **attributes):
    inputs = ["c", "x"] if swap else ["x", "c"]
    node = helper.make_node(kind or name, inputs, ["y"], **attributes)
    return Case(name, [node], 4, [const("c", other)], opset=opset)


def with_itself(name, kind):
    """With the columns in another order."""
    nodes = [
        helper.make_node("Gather", ["x", "order"], ["turned"], axis=1),
        helper.make_node(kind, ["x", "turned"], ["y"]),
    ]
    return Case(name, nodes, 4, [const("order", [1, 2, 3, 0], np.int64)])


def test(name, kind, swap=False):
    """A comparison, as a number."""
    nodes = [
        helper.make_node(kind, ["c", "x"] if swap else ["x", "c"], ["b"]),
        helper.make_node("Cast", ["b"], ["y"], to=TensorProto.FLOAT),
    ]
    return Case(name, nodes, 4, [const("c", [0.0, 1.0, 0.5, 0.0])])


def flag(kind, **attributes):
    nodes = [helper.make_node(kind, ["x"], ["b"], **attributes), helper.make_node("Cast", ["b"], ["y"], to=TensorProto.FLOAT)]
    return Case(kind, nodes, 4)


def logic(kind):
    nodes = [
        helper.make_node("Greater", ["x", "c"], ["a"]),
        helper.make_node("Less", ["x", "d"], ["b"]),
        helper.make_node(kind, ["a", "b"] if kind != "Not" else ["a"], ["r"]),
        helper.make_node("Cast", ["r"], ["y"], to=TensorProto.FLOAT),
    ]
    return Case(kind, nodes, 4, [const("c", [0.0]), const("d", [1.0])])


def reduce(kind, keep=1, **attributes):
    node = helper.make_node(kind, ["x", "axes"], ["y"], keepdims=keep, **attributes)
    return Case(kind, [node], 1, [const("axes", [1], np.int64)])


def reduce_wide(kind):
    nodes = [
        helper.make_node("Cast", ["x"], ["wide"], to=TensorProto.DOUBLE),
        helper.make_node(kind, ["wide", "axes"], ["result"], keepdims=1),
        helper.make_node("Cast", ["result"], ["y"], to=TensorProto.FLOAT),
    ]
    return Case(f"{kind} in 64 bits", nodes, 1, [const("axes", [1], np.int64)])


def arg(kind, last=0):
    nodes = [
        helper.make_node(kind, ["x"], ["i"], axis=1, keepdims=1, select_last_index=last),
        helper.make_node("Cast", ["i"], ["y"], to=TensorProto.FLOAT),
    ]
    return Case(f"{kind}{' last' if last else ''}", nodes, 1)


def moved(kind, constants=(), width=4, inputs=("x",), **attributes):
    return Case(kind, [helper.make_node(kind, list(inputs), ["y"], **attributes)], width, constants)


def folded(name, nodes, shape, width, constants=()):
    """An operator on images or sequences: the row as [1, 4] or [4, 1], and back."""
    around = [helper.make_node("Reshape", ["x", "in.shape"], ["image"]), *nodes,
              helper.make_node("Reshape", ["result", "out.shape"], ["y"])]
    shapes = [const("in.shape", shape, np.int64), const("out.shape", [-1, width], np.int64)]
    return Case(name, around, width, [*constants, *shapes])


def ml(name, kind, width, outputs=("y",), **attributes):
    return Case(name, [helper.make_node(kind, ["x"], list(outputs), domain="ai.onnx.ml", **attributes)], width)


def tree_ensemble():
    """TreeEnsemble of set 5: x0 <= 0.5, then whether x1 is one of 1 and 2, or missing."""
    tensor = lambda name, values, kind=TensorProto.FLOAT: helper.make_tensor(name, kind, [len(values)], values)
    node = helper.make_node(
        "TreeEnsemble", ["x"], ["y"], domain="ai.onnx.ml", n_targets=1, tree_roots=[0], nodes_featureids=[0, 1],
        nodes_modes=tensor("m", [0, 6], TensorProto.UINT8), nodes_splits=tensor("s", [0.5, 0.0]), nodes_truenodeids=[1, 0],
        nodes_trueleafs=[0, 1], nodes_falsenodeids=[1, 2], nodes_falseleafs=[1, 1], nodes_missing_value_tracks_true=[0, 1],
        leaf_targetids=[0, 0, 0], leaf_weights=tensor("w", [1.0, 2.0, 3.0]), membership_values=tensor("v", [1.0, 2.0, NAN]))
    return Case("TreeEnsemble", [node], 1, ml=5)


def learned():
    """ai.onnx.ml."""
    yield ml("Binarizer", "Binarizer", 4, threshold=0.5)
    yield ml("Scaler", "Scaler", 4, offset=[0.5, 0.0, 1.0, 2.0], scale=[2.0, 0.0, 0.5, 1.0])
    yield ml("Imputer of NaN", "Imputer", 4, imputed_value_floats=[1.0, 2.0, 3.0, 4.0], replaced_value_float=NAN)
    yield ml("Imputer of 0", "Imputer", 4, imputed_value_floats=[1.0, 2.0, 3.0, 4.0], replaced_value_float=0.0)
    for norm in ("MAX", "L1", "L2"):
        yield ml(f"Normalizer {norm}", "Normalizer", 4, norm=norm)
    for transform in ("NONE", "SOFTMAX", "LOGISTIC", "SOFTMAX_ZERO"):
        yield ml(f"LinearRegressor {transform}", "LinearRegressor", 2, targets=2, post_transform=transform,
                 coefficients=[1.0, 0.0, -1.0, 0.5, 0.5, 0.25, 0.0, -1.0], intercepts=[0.1, -0.2])
        yield ml(f"LinearClassifier {transform}", "LinearClassifier", 3, ("label", "y"), post_transform=transform,
                 classlabels_ints=[0, 1, 2], coefficients=[1.0, 0.0, -1.0, 0.5] + [0.5, 0.25, 0.0, -1.0] + [0.0, -0.5, 2.0, 0.0],
                 intercepts=[0.1, -0.2, 0.0])
    for kernel in ("LINEAR", "POLY", "RBF", "SIGMOID"):
        yield ml(f"SVMRegressor {kernel}", "SVMRegressor", 1, kernel_type=kernel, kernel_params=[0.5, 0.1, 3.0], n_supports=2,
                 coefficients=[1.0, -0.5], rho=[0.25], support_vectors=[0.0, 1.0, 0.5, -1.0, 1.0, 0.0, 0.0, 0.5])
    for mode in ("BRANCH_LEQ", "BRANCH_LT", "BRANCH_GTE", "BRANCH_GT", "BRANCH_EQ", "BRANCH_NEQ"):
        for track in (0, 1):
            yield ml(f"TreeEnsembleRegressor {mode} {track}", "TreeEnsembleRegressor", 1, n_targets=1,
                     nodes_treeids=[0] * 5, nodes_nodeids=[0, 1, 2, 3, 4], nodes_featureids=[0, 1, 0, 0, 0],
                     nodes_modes=[mode, mode, "LEAF", "LEAF", "LEAF"], nodes_values=[0.5, 1.0, 0.0, 0.0, 0.0],
                     nodes_truenodeids=[1, 2, 0, 0, 0], nodes_falsenodeids=[4, 3, 0, 0, 0],
                     nodes_missing_value_tracks_true=[track] * 5, target_treeids=[0, 0, 0], target_nodeids=[2, 3, 4],
                     target_ids=[0, 0, 0], target_weights=[1.0, 2.0, 3.0])
    for transform in ("NONE", "SOFTMAX", "LOGISTIC", "SOFTMAX_ZERO"):
        yield ml(f"TreeEnsembleClassifier {transform}", "TreeEnsembleClassifier", 3, ("label", "y"), post_transform=transform,
                 classlabels_int64s=[0, 1, 2], nodes_treeids=[0] * 3, nodes_nodeids=[0, 1, 2], nodes_featureids=[0, 0, 0],
                 nodes_modes=["BRANCH_LEQ", "LEAF", "LEAF"], nodes_values=[0.5, 0.0, 0.0], nodes_truenodeids=[1, 0, 0],
                 nodes_falsenodeids=[2, 0, 0], class_treeids=[0] * 6, class_nodeids=[1, 1, 1, 2, 2, 2],
                 class_ids=[0, 1, 2] * 2, class_weights=[300.0, -200.0, 0.0, -1000.0, 2000.0, 1.0])


def cases():
    for kind in ("Abs", "Acos", "Acosh", "Asin", "Asinh", "Atan", "Atanh", "Ceil", "Cos", "Cosh", "Erf", "Exp", "Floor",
                 "Log", "Mish", "Neg", "Reciprocal", "Relu", "Round", "Sigmoid", "Sign", "Sin", "Sinh", "Softplus", "Softsign",
                 "Sqrt", "Tan", "Tanh", "HardSwish", "Identity"):
        yield unary(kind)
    for kind in ("Relu", "Sigmoid", "Tanh", "Exp", "Log", "Abs", "Erf", "Softplus", "Sqrt", "Sign", "Floor", "Ceil", "Round",
                 "Neg", "Reciprocal", "Softsign", "LeakyRelu", "Elu", "Selu", "HardSigmoid", "ThresholdedRelu", "Gelu", "HardSwish",
                 "Softmax", "LogSoftmax", "Sin", "Cos", "Atan", "Mish", "Celu", "Shrink", "Hardmax"):
        yield wide(kind)
    yield unary("Celu", alpha=2.0)
    yield unary("Elu", alpha=0.5)
    yield unary("Selu")
    yield unary("LeakyRelu", alpha=0.1)
    yield unary("ThresholdedRelu", alpha=0.4)
    yield unary("HardSigmoid", alpha=0.3, beta=0.4)
    yield unary("Shrink", lambd=0.4, bias=0.1)
    yield unary("Gelu")
    yield unary("Gelu tanh", "Gelu", approximate="tanh")
    yield unary("QuickGelu", contrib=True)
    yield unary("FastGelu", contrib=True)
    yield unary("Dropout")
    yield Case("BiasGelu", [helper.make_node("BiasGelu", ["x", "c"], ["y"], domain="com.microsoft")], 4,
               [const("c", [0.1, -0.1, 0.0, 0.2])], contrib=True)
    yield Case("Swish", [helper.make_node("Sigmoid", ["x"], ["s"]), helper.make_node("Mul", ["x", "s"], ["y"])], 4)
    yield Case("PRelu", [helper.make_node("PRelu", ["x", "c"], ["y"])], 4, [const("c", [0.1, 0.0, -0.5, 1.0])])
    for low, high in ((-0.5, 1.0), (None, 0.5), (0.0, None), (0.0, 6.0)):
        constants = [const(name, value) for name, value in (("low", low), ("high", high)) if value is not None]
        inputs = ["x", "low" if low is not None else "", "high" if high is not None else ""]
        yield Case(f"Clip {low} {high}", [helper.make_node("Clip", inputs, ["y"])], 4, constants)
    yield unary("Clip of set 6", "Clip", opset=6, min=-0.5, max=1.0)
    for kind in ("Max", "Min", "Add", "Sub", "Mul", "Div", "Sum", "Mean"):
        yield binary(f"{kind} with a row", [0.0, 1.0, -1.0, 0.5], kind)
        yield binary(f"{kind} with 0", [0.0], kind)
        yield binary(f"{kind} with 1", [1.0], kind)
        if kind != "Mean":
            # tract refuses a mean whose first operand has fewer axes.
            yield binary(f"0 {kind}", [0.0], kind, swap=True)
        yield binary(f"{kind} with infinity", [INF], kind)
        yield binary(f"{kind} with NaN", [NAN], kind)
        yield with_itself(f"{kind} of two", kind)
    yield binary("Mul with 1e-9", [1e-9], "Mul")
    yield binary("Mul with almost 1", [1.0000002], "Mul")
    yield Case("Mul with 1e-6, twice", [helper.make_node("Mul", ["x", "c"], ["a"]), helper.make_node("Mul", ["a", "c"], ["y"])], 4,
               [const("c", [1e-6])])
    yield Case("Mul with itself", [helper.make_node("Mul", ["x", "x"], ["y"])], 4)
    yield Case("Sub of itself", [helper.make_node("Sub", ["x", "x"], ["y"])], 4)
    yield Case("Div by itself", [helper.make_node("Div", ["x", "x"], ["y"])], 4)
    yield Case("Max of three", [helper.make_node("Max", ["x", "c", "d"], ["y"])], 4, [const("c", [0.0]), const("d", [1.0, NAN, 0.0, 2.0])])
    for one, two in (("Sqrt", "Reciprocal"), ("Exp", "Log"), ("Log", "Exp"), ("Neg", "Neg"), ("Reciprocal", "Reciprocal"), ("Sqrt", "Mul"), ("Abs", "Sqrt")):
        second = helper.make_node(two, ["a", "a"] if two == "Mul" else ["a"], ["y"])
        yield Case(f"{one}, {two}", [helper.make_node(one, ["x"], ["a"]), second], 4)
    for power in (2.0, 0.5, 3.0, 0.0, 1.0, -1.0, 1.5):
        yield binary(f"Pow {power}", [power], "Pow")
    for kind, small in (("Add", 1e-9), ("Sub", 1e-9), ("Add", 1e-6), ("Add", -0.0)):
        nodes = [helper.make_node("Abs", ["x"], ["a"]), helper.make_node(kind, ["a", "c"], ["b"]), helper.make_node("Log", ["b"], ["y"])]
        yield Case(f"{kind} {small}, Log", nodes, 4, [const("c", small)])
        nodes = [helper.make_node(kind, ["x", "c"], ["b"]), helper.make_node("Div", ["x", "b"], ["y"])]
        yield Case(f"{kind} {small}, Div", nodes, 4, [const("c", [small])])
    nodes = [helper.make_node("Pow", ["x", "half"], ["a"]), helper.make_node("Pow", ["a", "two"], ["y"])]
    yield Case("Pow 0.5, Pow 2", nodes, 4, [const("half", 0.5), const("two", 2.0)])
    for to in ("INT64", "INT32", "BOOL"):
        nodes = [helper.make_node("Cast", ["x"], ["i"], to=getattr(TensorProto, to)), helper.make_node("Cast", ["i"], ["y"], to=TensorProto.FLOAT)]
        yield Case(f"Cast to {to}", nodes, 4)
    nodes = [helper.make_node("Cast", ["x"], ["h"], to=TensorProto.FLOAT16), helper.make_node("Relu", ["h"], ["r"]), helper.make_node("Cast", ["r"], ["y"], to=TensorProto.FLOAT)]
    yield Case("Relu in 16 bits", nodes, 4)
    for kind in ("IsNaN", "IsInf"):
        nodes = [helper.make_node("Cast", ["x"], ["w"], to=TensorProto.DOUBLE), helper.make_node(kind, ["w"], ["b"]), helper.make_node("Cast", ["b"], ["y"], to=TensorProto.FLOAT)]
        yield Case(f"{kind} in 64 bits", nodes, 4)
    yield binary("Mod", [0.7], "Mod", fmod=1)
    for kind in ("Less", "LessOrEqual", "Greater", "GreaterOrEqual", "Equal"):
        yield test(kind, kind)
        yield test(f"{kind} turned", kind, swap=True)
    yield flag("IsNaN")
    yield flag("IsInf")
    for kind in ("And", "Or", "Xor", "Not"):
        yield logic(kind)
    yield Case("Where", [helper.make_node("Greater", ["x", "c"], ["b"]), helper.make_node("Where", ["b", "x", "c"], ["y"])], 4, [const("c", [0.0])])
    yield Case("Where of IsNaN", [helper.make_node("IsNaN", ["x"], ["b"]), helper.make_node("Where", ["b", "c", "x"], ["y"])], 4,
               [const("c", [1.0, 2.0, 3.0, 4.0])])
    for kind in ("ReduceMax", "ReduceMin", "ReduceSum", "ReduceMean", "ReduceProd", "ReduceL1", "ReduceL2", "ReduceLogSum",
                 "ReduceLogSumExp", "ReduceSumSquare"):
        yield reduce(kind)
        yield reduce_wide(kind)
    for kind in ("ReduceMax", "ReduceMin", "ReduceSum", "ReduceLogSumExp"):
        nodes = [
            helper.make_node("Reshape", ["x", "in"], ["a"]),
            helper.make_node(kind, ["a", "axes"], ["b"], keepdims=0),
            helper.make_node("Reshape", ["b", "out"], ["y"]),
        ]
        yield Case(f"{kind} of the middle axis", nodes, 2, [const("in", [-1, 2, 2], np.int64), const("axes", [1], np.int64), const("out", [-1, 2], np.int64)])
        yield Case(f"{kind} of set 11", [helper.make_node(kind, ["x"], ["y"], axes=[1], keepdims=1)], 1, opset=11)
    for kind in ("ArgMax", "ArgMin"):
        yield arg(kind)
        yield arg(kind, 1)
    for kind in ("Softmax", "LogSoftmax", "Hardmax"):
        yield moved(kind, axis=1)
        nodes = [helper.make_node("Transpose", ["x"], ["a"]), helper.make_node(kind, ["a"], ["b"], axis=0), helper.make_node("Transpose", ["b"], ["y"])]
        yield Case(f"{kind} of the first axis", nodes, 4)
        yield Case(f"{kind} of set 11", [helper.make_node(kind, ["x"], ["y"], axis=1)], 4, opset=11)
    for k, largest in ((2, 1), (4, 0)):
        yield Case(f"TopK {k} {largest}", [helper.make_node("TopK", ["x", "k"], ["y", "i"], axis=1, largest=largest)], k, [const("k", [k], np.int64)])
    yield moved("CumSum", [const("axis", 1, np.int64)], inputs=("x", "axis"))
    yield moved("LpNormalization", p=2, axis=1)
    yield Case("MatMul with zeros", [helper.make_node("MatMul", ["x", "w"], ["y"])], 3, [const("w", MATRIX)])
    yield Case("Gemm", [helper.make_node("Gemm", ["x", "w", "b"], ["y"])], 3, [const("w", MATRIX), const("b", [0.1, 0.2, 0.3])])
    yield Case("Gemm alpha beta", [helper.make_node("Gemm", ["x", "w", "b"], ["y"], alpha=0.5, beta=0.0)], 3, [const("w", MATRIX), const("b", [0.1, 0.2, 0.3])])
    for after in ("Relu", "Tanh", "Sigmoid", "LeakyRelu", "Softmax", "HardSwish", "Elu", "Gelu", "Softplus"):
        yield Case(f"Gemm, {after}", [helper.make_node("Gemm", ["x", "w", "b"], ["a"]), helper.make_node(after, ["a"], ["y"])], 3,
                   [const("w", MATRIX), const("b", [0.1, 0.2, 0.3])])
    yield Case("Gemm, Relu, Gemm", [helper.make_node("Gemm", ["x", "w", "b"], ["a"]), helper.make_node("Relu", ["a"], ["r"]),
               helper.make_node("Gemm", ["r", "v"], ["y"])], 2, [const("w", MATRIX), const("b", [0.1, 0.2, 0.3]), const("v", [[1, -1], [0, 0], [0.5, 1]])])
    yield Case("Gemm, Clip", [helper.make_node("Gemm", ["x", "w", "b"], ["a"]), helper.make_node("Clip", ["a", "low", "high"], ["y"])], 3,
               [const("w", MATRIX), const("b", [0.1, 0.2, 0.3]), const("low", 0.0), const("high", 6.0)])
    yield Case("Gemm, Mul with 0", [helper.make_node("Gemm", ["x", "w", "b"], ["a"]), helper.make_node("Mul", ["a", "c"], ["y"])], 3,
               [const("w", MATRIX), const("b", [0.1, 0.2, 0.3]), const("c", [0.0])])
    yield Case("Einsum", [helper.make_node("Einsum", ["x", "w"], ["y"], equation="nk,km->nm")], 3, [const("w", MATRIX)])
    scales = [const("scale", [1.0, 0.0, 0.5, 2.0]), const("bias", [0.0, 0.1, 0.2, 0.3]), const("mean", [0.5, 0.0, 1.0, 0.0]), const("var", [1.0, 2.0, 0.5, 1.0])]
    yield Case("BatchNormalization", [helper.make_node("BatchNormalization", ["x", "scale", "bias", "mean", "var"], ["y"])], 4, scales)
    yield Case("LayerNormalization", [helper.make_node("LayerNormalization", ["x", "scale", "bias"], ["y"], axis=1)], 4, scales[:2])
    yield Case("RMSNormalization", [helper.make_node("RMSNormalization", ["x", "scale"], ["y"], axis=1)], 4, scales[:1], opset=23)
    yield Case("SimplifiedLayerNormalization", [helper.make_node("SimplifiedLayerNormalization", ["x", "scale"], ["y"], axis=1)], 4, scales[:1])
    yield Case("SkipLayerNormalization", [helper.make_node("SkipLayerNormalization", ["x", "x", "scale", "bias"], ["y"], domain="com.microsoft", epsilon=1e-5)], 4, scales[:2], contrib=True)
    yield folded("InstanceNormalization", [helper.make_node("InstanceNormalization", ["image", "s", "b"], ["result"])], [-1, 1, 4], 4, [const("s", [2.0]), const("b", [0.5])])
    yield folded("GroupNormalization", [helper.make_node("GroupNormalization", ["image", "s", "b"], ["result"], num_groups=2)], [-1, 2, 2], 4, [const("s", [2.0, 1.0]), const("b", [0.5, 0.0])])
    yield folded("MeanVarianceNormalization", [helper.make_node("MeanVarianceNormalization", ["image"], ["result"], axes=[2])], [-1, 1, 4], 4)
    yield folded("LRN", [helper.make_node("LRN", ["image"], ["result"], size=3)], [-1, 4, 1, 1], 4)
    kernel = [const("k", [[[1.0, 0.0]]])]
    yield folded("Conv", [helper.make_node("Conv", ["image", "k"], ["result"])], [-1, 1, 4], 3, kernel)
    yield folded("Conv, Relu", [helper.make_node("Conv", ["image", "k"], ["c"]), helper.make_node("Relu", ["c"], ["result"])], [-1, 1, 4], 3, kernel)
    yield folded("ConvTranspose", [helper.make_node("ConvTranspose", ["image", "k"], ["result"])], [-1, 1, 4], 5, kernel)
    for kind in ("MaxPool", "AveragePool"):
        yield folded(kind, [helper.make_node(kind, ["image"], ["result"], kernel_shape=[2])], [-1, 1, 4], 3)
    for kind in ("GlobalMaxPool", "GlobalAveragePool"):
        yield folded(kind, [helper.make_node(kind, ["image"], ["result"])], [-1, 1, 4], 1)
    # Recurrent layers, the row as four steps of one value.
    for kind, gates, more in (("LSTM", 4, {}), ("GRU", 3, {}), ("GRU", 3, {"linear_before_reset": 1}), ("RNN", 1, {})):
        random = np.random.default_rng(1)
        weights = [const("W", random.normal(size=(1, gates * 2, 1))), const("R", random.normal(size=(1, gates * 2, 2))), const("B", random.normal(size=(1, gates * 4)))]
        nodes = [
            helper.make_node("Transpose", ["x"], ["t"]),
            helper.make_node("Unsqueeze", ["t", "last"], ["s"]),
            helper.make_node(kind, ["s", "W", "R", "B"], ["", "h"], hidden_size=2, **more),
            helper.make_node("Squeeze", ["h", "first"], ["y"]),
        ]
        yield Case(f"{kind}{' linear' if more else ''}", nodes, 2, [*weights, const("last", [2], np.int64), const("first", [0], np.int64)])
    # What moves values, and leaves them as they are.
    yield moved("Flatten", axis=1)
    yield moved("Reshape", [const("s", [-1, 4], np.int64)], inputs=("x", "s"))
    yield moved("Gather", [const("i", [3, 1], np.int64)], 2, ("x", "i"), axis=1)
    yield moved("Slice", [const("a", [1], np.int64), const("b", [3], np.int64), const("c", [1], np.int64)], 2, ("x", "a", "b", "c"))
    yield moved("Concat", [], 8, ("x", "x"), axis=1)
    yield moved("Tile", [const("r", [1, 2], np.int64)], 8, ("x", "r"))
    yield moved("Expand", [const("s", [1, 4], np.int64)], 4, ("x", "s"))
    yield moved("Pad", [const("p", [0, 1, 0, 1], np.int64)], 6, ("x", "p"))
    yield Case("Split", [helper.make_node("Split", ["x"], ["a", "y"], axis=1, num_outputs=2)], 2)
    yield Case("Transpose", [helper.make_node("Transpose", ["x"], ["t"]), helper.make_node("Transpose", ["t"], ["y"])], 4)
    yield Case("Squeeze", [helper.make_node("Unsqueeze", ["x", "a"], ["t"]), helper.make_node("Squeeze", ["t", "a"], ["y"])], 4, [const("a", [1], np.int64)])
    yield Case("CastLike", [helper.make_node("CastLike", ["x", "x"], ["y"])], 4)
    yield Case("ArrayFeatureExtractor", [helper.make_node("ArrayFeatureExtractor", ["x", "i"], ["y"], domain="ai.onnx.ml")], 2, [const("i", [2, 0], np.int64)])
    nodes = [
        helper.make_node("ArgMax", ["x"], ["i"], axis=1, keepdims=1),
        helper.make_node("ArrayFeatureExtractor", ["table", "i"], ["t"], domain="ai.onnx.ml"),
        helper.make_node("Transpose", ["t"], ["y"]),
    ]
    yield Case("ArrayFeatureExtractor of what is computed", nodes, 2, [const("table", [[1.0, 2.0, 3.0, 4.0], [5.0, 6.0, 7.0, NAN]])])
    nodes = [helper.make_node("TopK", ["x", "k"], ["v", "i"], axis=1), helper.make_node("GatherElements", ["x", "i"], ["y"], axis=1)]
    yield Case("GatherElements", nodes, 2, [const("k", [2], np.int64)])
    nodes = [helper.make_node("Shape", ["x"], ["s"]), helper.make_node("ConstantOfShape", ["s"], ["zeros"]), helper.make_node("Constant", [], ["one"], value_float=1.0),
             helper.make_node("Add", ["zeros", "one"], ["ones"]), helper.make_node("Mul", ["x", "ones"], ["y"])]
    yield Case("Constant, ConstantOfShape", nodes, 4)
    nodes = [helper.make_node("Cast", ["x"], ["i"], to=TensorProto.INT64), helper.make_node("Gather", ["i", "zero"], ["c"], axis=1),
             helper.make_node("OneHot", ["c", "depth", "values"], ["y"])]
    yield Case("OneHot", nodes, 3, [const("zero", 0, np.int64), const("depth", 3, np.int64), const("values", [0.0, 1.0])])
    for keys in ("int64s", "floats"):
        before = [helper.make_node("Cast", ["x"], ["i"], to=TensorProto.INT64)] if keys == "int64s" else []
        nodes = [*before, helper.make_node("LabelEncoder", ["i" if before else "x"], ["y"], domain="ai.onnx.ml", default_float=-1.0, values_floats=[10.0, 20.0],
                                           **{f"keys_{keys}": [0, 1] if before else [1.0, NAN]})]
        # From set 4 on NaN is a key like others.
        yield Case(f"LabelEncoder of {keys}", nodes, 4, ml=4)
    nodes = [helper.make_node("Cast", ["x"], ["i"], to=TensorProto.INT64), helper.make_node("Gather", ["i", "zero"], ["c"], axis=1),
             helper.make_node("OneHotEncoder", ["c"], ["y"], domain="ai.onnx.ml", cats_int64s=[0, 1, 3], zeros=1)]
    yield Case("OneHotEncoder", nodes, 3, [const("zero", 0, np.int64)])
    yield ml(
        "SVMClassifier", "SVMClassifier", 2, ("label", "y"), classlabels_ints=[0, 1], kernel_type="RBF", kernel_params=[0.5, 0.1, 3.0],
        coefficients=[1.0, -0.5], rho=[0.25], support_vectors=[0.0, 1.0, 0.5, -1.0, 1.0, 0.0, 0.0, 0.5], vectors_per_class=[1, 1],
        prob_a=[-1.0], prob_b=[0.1], post_transform="NONE")
    yield tree_ensemble()
    # Numbers that are made integers: what is not finite has no integer; the others are cut.
    yield Case("QuantizeLinear, DequantizeLinear", [helper.make_node("QuantizeLinear", ["x", "s", "z"], ["q"]), helper.make_node("DequantizeLinear", ["q", "s", "z"], ["y"])], 4,
               [const("s", 0.5), const("z", 3, np.uint8)])
    yield from learned()


def main():
    warnings.filterwarnings("ignore")
    np.seterr(all="ignore")
    listed = []
    for case in cases():
        found = case.answers()
        source = next((name for name in (source_of(case.name), "reference", "onnxruntime") if name in found), None)
        if source is None:
            print(f"{case.name}: no answer: {found}")
            continue
        expected = found[source]
        entry = {"name": case.name, "width": case.width, "from": source}
        other = found.get("onnxruntime")
        if source != "onnxruntime" and other is not None and not same(expected, other):
            entry["differs"] = "onnxruntime"
        entry["onnx"] = case.model.SerializeToString().hex()
        entry["answers"] = [[to_float(value) for value in row] for row in np.asarray(expected).reshape(len(ROWS), -1)]
        listed.append(entry)
    rows = [[to_float(value) for value in row] for row in ROWS]
    text = json.dumps({"rows": rows, "cases": listed}, separators=(",", ":")).replace('{"name"', '\n{"name"')
    (DATA / "operators.json").write_text(text + "\n")
    print(f"{len(listed)} operators, {len(text) >> 10} KiB")


if __name__ == "__main__":
    main()
