"""Trains small models with the usual libraries, exports them, and writes what the libraries themselves answer.

    python3 models/conformance/make.py           # writes models/conformance/data
    python3 models/conformance/make.py --torch   # the same for PyTorch's models (requirements-torch.txt)

The Rust test `conformance` loads every export and compares. Expected values are those of the training library, never of
another runtime.
"""

import argparse
import json
import pathlib
import warnings

import numpy as np
import onnx

DATA = pathlib.Path(__file__).parent / "data"
FEATURES = 12
TRAIN, TEST = 600, 24
SEED = 7
OPSET = {"": 17, "ai.onnx.ml": 3}

warnings.filterwarnings("ignore")


def make_data():
    """Training rows with targets of all kinds, and test rows; `gaps` has a tenth of its values missing."""
    random = np.random.default_rng(SEED)
    rows = random.normal(size=(TRAIN + TEST, FEATURES)).astype(np.float32)
    # Some columns look like counts, as the columns of flows do.
    rows[:, 6:9] = np.floor(np.exp(rows[:, 6:9] * 1.5 + 2))
    rows[:, 9] = rows[:, 9] > 0
    noise = random.normal(scale=0.3, size=len(rows))
    value = rows[:, 0] + 2 * rows[:, 1] * rows[:, 2] + np.log1p(rows[:, 6]) - rows[:, 9] + noise
    targets = {
        "binary": (value > 2).astype(np.int64),
        "multi": np.digitize(value, [1.0, 2.5, 4.0]).astype(np.int64),
        "value": value.astype(np.float64),
        "words": np.array(["benign", "flood", "scan", "worm"])[np.digitize(value, [1.0, 2.5, 4.0])],
    }
    gaps = np.where(random.random(rows.shape) < 0.1, np.nan, rows).astype(np.float32)
    return rows, gaps, targets


ROWS, GAPS, TARGETS = make_data()


def split(rows):
    return rows[:TRAIN], rows[TRAIN:]


class Cases:
    """Collects exports and expected outputs."""

    def __init__(self, file):
        self.path, self.cases, self.refused = DATA / file, [], []

    def add(self, name, library, model, outputs, gaps=False, **expected):
        """`outputs` maps "probabilities", "labels" or "values" to names of outputs; `expected` the same to arrays."""
        data = model.SerializeToString()
        (DATA / f"{name}.onnx").write_bytes(data)
        case = {"name": name, "library": library, "inputs": "gaps" if gaps else "plain", "outputs": outputs}
        for key, value in expected.items():
            value = np.asarray(value)
            if key != "labels":
                value = rounded(value)
            case[key] = value if isinstance(value, list) else value.reshape(-1).tolist()
        other = self.exporter_differs(data, case)
        if other is not None:
            case["onnxruntime"] = rounded(other)
        self.cases.append(case)
        print(f"{name:<40} {len(data):>7} bytes")

    def exporter_differs(self, data, case):
        """What onnxruntime answers, if that is not what the library answers: then the exporter wrote another function."""
        try:
            import onnxruntime
        except ImportError:
            return None
        key = "probabilities" if "probabilities" in case else "values"
        options = onnxruntime.SessionOptions()
        options.log_severity_level = 4
        try:
            session = onnxruntime.InferenceSession(data, options)
            rows = split(GAPS if case["inputs"] == "gaps" else ROWS)[1]
            found = session.run([case["outputs"][key]], {"x": rows})[0]
        except Exception:  # Refused there: no opinion.
            return None
        if isinstance(found, list):
            found = np.array([list(row.values()) for row in found])
        expected = np.array(case[key])
        found = np.asarray(found).reshape(expected.shape)
        return found if (np.abs(found - expected) / np.maximum(1, np.abs(expected))).max() > 1e-5 else None

    def refuse(self, name, library, error):
        """An export that its own exporter refuses."""
        text = " ".join(str(error).split())[:160]
        self.refused.append({"name": name, "library": library, "error": text})
        print(f"{name:<40} exporter refuses: {text}")

    def write(self):
        listed = {"cases": self.cases, "not_exported": self.refused}
        self.path.write_text(json.dumps(listed, separators=(",", ":")).replace('{"name"', '\n{"name"') + "\n")


def rounded(value):
    """Rows of numbers; nine digits give back a 32-bit float."""
    return [[float(f"{item:.9g}") for item in row] for row in np.asarray(value, dtype=np.float64).reshape(TEST, -1)]


def write_inputs():
    def plain(rows):
        return [[None if np.isnan(value) else float(f"{value:.9g}") for value in row] for row in rows.tolist()]

    inputs = {"plain": plain(split(ROWS)[1]), "gaps": plain(split(GAPS)[1])}
    (DATA / "inputs.json").write_text(json.dumps(inputs, separators=(",", ":")) + "\n")


def main():
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--torch", action="store_true", help="PyTorch's models only")
    DATA.mkdir(exist_ok=True)
    write_inputs()
    if parser.parse_args().torch:
        import export_torch

        cases = Cases("torch.json")
        export_torch.run(cases)
    else:
        import export_boosters
        import export_sklearn

        cases = Cases("tables.json")
        export_sklearn.run(cases)
        export_boosters.run(cases)
    cases.write()
    size = sum(file.stat().st_size for file in DATA.iterdir())
    print(f"{len(cases.cases)} exports, {len(cases.refused)} refused by their exporter; {size >> 10} KiB in all")


if __name__ == "__main__":
    main()
