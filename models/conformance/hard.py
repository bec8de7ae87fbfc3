"""Writes data/hard.json: what every export in data/ answers to rows with missing values and to outliers.

    python3 models/conformance/hard.py

The rows are far outside of what the models were trained on. The training libraries refuse most of them (NaN) or are not at
hand for each export, so the answers are those of the file, given by onnxruntime; but by the reference evaluator of the ONNX project
where onnxruntime turns NaN into a number (recurrent layers, bins). It does so for support vectors, too, whose kernel of NaN is NaN.
"""

import json
import pathlib

import numpy as np
import onnx
import onnxruntime
from onnx.reference import ReferenceEvaluator

from operators import to_float

DATA = pathlib.Path(__file__).parent / "data"


def rows():
    """Each column missing by itself, all missing, and each column far beyond the training's range, either way."""
    inputs = json.loads((DATA / "inputs.json").read_text())["plain"]
    base = np.array(inputs, dtype=np.float32)
    count = base.shape[1]
    hard = []
    for column in range(count):
        for value in (np.nan, 1e6, -1e6):
            row = base[column].copy()
            row[column] = value
            hard.append(row)
    hard.append(np.full(count, np.nan, dtype=np.float32))
    hard += [base[row] * scale for row, scale in ((0, 100), (1, -100), (2, 1e4))]
    return np.array(hard, dtype=np.float32)


def has(path, *kinds):
    return any(node.op_type in kinds for node in onnx.load(path).graph.node)


def answer(path, name, given):
    if has(path, "LSTM", "GRU", "RNN", "ArgMax"):
        evaluator = ReferenceEvaluator(str(path))
        found = [evaluator.run([name], {evaluator.input_names[0]: row[None]})[0] for row in given]
        return [[to_float(value) for value in np.asarray(output, dtype=np.float64).reshape(-1)] for output in found]
    answers = by_onnxruntime(path, name, given)
    if has(path, "SVMClassifier"):
        missing = np.isnan(given).any(axis=1)
        answers = [["nan"] * len(answer) if lost else answer for answer, lost in zip(answers, missing)]
    return answers


def by_onnxruntime(path, name, given):
    options = onnxruntime.SessionOptions()
    options.log_severity_level = 4
    options.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_DISABLE_ALL
    session = onnxruntime.InferenceSession(str(path), options)
    # One by one: the answers must not depend on the rows beside.
    found = []
    for row in given:
        output = session.run([name], {session.get_inputs()[0].name: row[None]})[0]
        if isinstance(output, list):
            output = np.array([list(item.values()) for item in output])
        found.append([to_float(value) for value in np.asarray(output, dtype=np.float64).reshape(-1)])
    return found


def main():
    np.seterr(all="ignore")
    given, answers = rows(), {}
    for file in ("tables.json", "torch.json"):
        for case in json.loads((DATA / file).read_text())["cases"]:
            name = case["outputs"].get("probabilities") or case["outputs"].get("values")
            path = DATA / f"{case['name']}.onnx"
            try:
                answers[case["name"]] = answer(path, name, given)
            except Exception as error:  # Refused there: no opinion.
                print(f"{case['name']}: {str(error)[:150]}")
    listed = {"rows": [[to_float(value) for value in row] for row in given], "answers": answers}
    text = json.dumps(listed, separators=(",", ":")).replace('],"', '],\n"')
    (DATA / "hard.json").write_text(text + "\n")
    print(f"{len(answers)} exports, {len(given)} rows, {len(text) >> 10} KiB")


if __name__ == "__main__":
    main()
