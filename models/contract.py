#!/usr/bin/env python3
"""Attaches the contract that Sensor wants to an ONNX file, or writes it beside it (docs/models.md, contract.schema.json).

As a module:

    import contract
    keys = contract.build(features, labels=["benign", "scan"], threshold=0.9, rows=training_rows, scores=training_scores,
                          golden_inputs=some_rows, golden_outputs=outputs, sensor="sensor")
    contract.attach(model, keys)                    # an onnx.ModelProto; or contract.side_car(keys, "model.onnx.toml")

As a command: the rows are a CSV or Parquet file of `sensor extract` (its columns are found by name), the golden outputs come
from onnxruntime unless a file gives the training library's own.

    contract.py model.onnx --features fwd_packets,duration --labels benign,scan --threshold 0.9 --rows rows.csv -o out.onnx
"""

import argparse
import csv
import json
import subprocess
import tomllib
from pathlib import Path

import numpy as np

PREFIX = "sensor."
# Keys whose value is text as it stands; the others hold JSON.
PLAIN = ("kind", "name", "trained_on", "output")
GOLDEN = 16
# Of the scores that a training flow reaches: (share of flows below, score). The rest is linear.
CURVE = ((0.5, 0.0), (0.9, 0.5), (0.99, 0.9), (0.999, 0.99))


def agent(sensor, features):
    """Version of the contract and the hash of each feature, from the agent that will serve the model."""
    command = [str(sensor), "features", "--format", "json"]
    try:
        document = json.loads(subprocess.run(command, capture_output=True, text=True, check=True).stdout)
    except OSError as error:
        raise SystemExit(f"cannot run {sensor} ({error.strerror}): name the agent that will serve the model with --sensor PATH") from None
    except subprocess.CalledProcessError as error:
        raise SystemExit(f"`{' '.join(command)}` failed: {' '.join(error.stderr.split())}") from None
    known = {feature["name"]: feature for feature in document["features"]}
    unknown = [name for name in features if name not in known]
    if unknown:
        raise SystemExit(f"this agent does not compute {', '.join(unknown)}; `sensor features` lists what it does")
    if document["version"] < 3:
        raise SystemExit(f"{sensor} is of an earlier release than this contract.py: take that of its release, or a newer agent")
    return document["version"], [known[name]["hash"] for name in features]


def distribution(values):
    """Deciles of a column and the share of rows in each bin: (..e1], (e1..e2], …, (en..), and without a value."""
    values = np.asarray(values, dtype=np.float64)
    there = values[~np.isnan(values)].astype(np.float32)
    if len(there) == 0:
        return {"edges": [], "shares": [0.0], "missing": 1.0, "median": None}
    edges = np.unique(np.quantile(there, np.arange(1, 10) / 10, method="inverted_cdf"))
    edges = edges[np.isfinite(edges) & (edges < there.max())]
    counts = np.bincount(np.searchsorted(edges, there, side="left"), minlength=len(edges) + 1)
    return {
        "edges": edges.tolist(),
        "shares": (counts / len(values)).tolist(),
        "missing": float(1 - len(there) / len(values)),
        "median": float(np.quantile(there, 0.5, method="inverted_cdf")),
    }


def curve(raw):
    """The points of an anomaly model's score from the raw numbers of training flows: the score says which share of
    them is less unusual, and reaches 1 as far above the 99.9th percentile as that is above the median."""
    raw = np.asarray(raw, dtype=np.float64)
    points = [(float(np.quantile(raw, share)), score) for share, score in CURVE]
    top = points[-1][0]
    # At least a step that 32-bit floats have there.
    points.append((top + max(top - points[0][0], 1e-5 * abs(top), 1e-6), 1.0))
    ascending = points[:1]
    for point in points[1:]:
        if np.float32(point[0]) > np.float32(ascending[-1][0]):
            ascending.append(point)
        else:
            ascending[-1] = (ascending[-1][0], point[1])
    return [list(point) for point in ascending]


def build(features, *, labels=None, threshold, golden_inputs, golden_outputs, kind="classifier", name="", thresholds=None,
          min_packets=1, rows=None, scores=None, score=None, output=None, trained_on="", training=None, sensor="sensor",
          version=None, feature_hashes=None):
    """The keys of a contract, without their prefix.

    `rows` (training rows that resemble the traffic to come: benign ones, mostly) and `scores` (of the model, on them)
    give the quantiles that drift is measured by. `score` of an anomaly model: {"from": "error" | "normality" |
    "reconstruction", "points": curve(raw)}. `thresholds`: {"tag": …, "drop": …}, where these differ from `threshold`.
    """
    if version is None or feature_hashes is None:
        version, feature_hashes = agent(sensor, features)
    keys = {
        "kind": kind,
        "name": name,
        "contract_version": int(version),
        "feature_hashes": list(feature_hashes),
        "features": list(features),
        "labels": None if labels is None else list(labels),
        "threshold": float(threshold),
        "thresholds": thresholds,
        "min_packets": int(min_packets),
        "golden_inputs": np.asarray(golden_inputs, dtype=np.float32),
        "golden_outputs": np.asarray(golden_outputs, dtype=np.float64).reshape(len(golden_inputs), -1),
        "quantiles": None if rows is None else [distribution(column) for column in np.asarray(rows).T],
        "score_quantiles": None if scores is None else distribution(scores),
        "score": score,
        "output": output,
        "trained_on": trained_on,
        "training": training,
    }
    absent = lambda value: value is None or (isinstance(value, str) and value == "")
    return {key: plain(value) for key, value in keys.items() if not absent(value)}


def plain(value):
    """Lists and numbers that JSON knows; NaN becomes None."""
    if isinstance(value, dict):
        return {key: plain(item) for key, item in value.items()}
    if isinstance(value, (list, tuple, np.ndarray)):
        return [plain(item) for item in value]
    if isinstance(value, (float, np.floating)):
        return None if np.isnan(value) else float(value)
    return int(value) if isinstance(value, np.integer) else value


def attach(model, keys):
    """Writes the keys into an onnx.ModelProto; keys of an earlier contract are replaced, others stay."""
    kept = [(entry.key, entry.value) for entry in model.metadata_props if not entry.key.startswith(PREFIX)]
    del model.metadata_props[:]
    own = [(PREFIX + key, value if key in PLAIN else json.dumps(value, separators=(",", ":"))) for key, value in keys.items()]
    for key, value in kept + own:
        entry = model.metadata_props.add()
        entry.key, entry.value = key, value


def side_car(keys, path):
    """Writes the keys as TOML, for a model that is not to be touched: model.onnx.toml beside model.onnx. What is there must
    be a contract."""
    path = Path(path)
    if path.exists() and not is_contract(path):
        raise SystemExit(f"{path} is there and is no contract: move it away")
    path.write_text("".join(f"{key} = {toml(value)}\n" for key, value in keys.items()), encoding="utf-8")


def is_contract(path):
    try:
        return "contract_version" in tomllib.loads(path.read_text(encoding="utf-8"))
    except ValueError:
        return False


def toml(value):
    if value is None:
        return "nan"
    if isinstance(value, dict):
        return "{ " + ", ".join(f"{quoted(key)} = {toml(item)}" for key, item in value.items() if item is not None) + " }"
    if isinstance(value, list):
        return "[" + ", ".join(toml(item) for item in value) + "]"
    if isinstance(value, str):
        return quoted(value)
    return json.dumps(value) if isinstance(value, bool) else repr(value)


def quoted(text):
    """A basic string: JSON's, but TOML knows no surrogates, and wants DEL escaped."""
    return json.dumps(text, ensure_ascii=False).replace("\x7f", "\\u007f")


def read_rows(path, features):
    """Columns of the rows of `sensor extract`, what is empty as NaN, and the labels, None if there are none."""
    columns = parquet(path) if path.suffix == ".parquet" else comma_separated(path)
    absent = [name for name in features if name not in columns]
    if absent:
        raise SystemExit(f"{path} has no column {', '.join(absent)}; its columns are {', '.join(columns) or 'none'}")
    try:
        rows = np.array([numbers(columns[name]) for name in features], dtype=np.float32).T
    except (TypeError, ValueError) as error:
        raise SystemExit(f"{path} has a value that is no number: {error}") from None
    if len(rows) == 0:
        raise SystemExit(f"{path} has no rows")
    return rows, columns.get("label")


def numbers(column):
    return [float("nan") if value is None or value == "" else float(value) for value in column]


def comma_separated(path):
    try:
        with open(path, newline="", encoding="utf-8") as file:
            header, *lines = csv.reader(file)
    except (OSError, UnicodeDecodeError, ValueError, csv.Error) as error:
        raise SystemExit(f"{path} cannot be read as a CSV file with a header ({error}); Parquet files end in .parquet") from None
    if any(len(line) != len(header) for line in lines):
        raise SystemExit(f"{path} has a line with more or fewer values than its header has names")
    return dict(zip(header, zip(*lines))) if lines else {name: () for name in header}


def parquet(path):
    try:
        import pyarrow.parquet
    except ImportError:
        raise SystemExit(f"{path} is read by pyarrow: pip install pyarrow, or write the rows as CSV") from None
    try:
        return pyarrow.parquet.read_table(path).to_pydict()
    except (OSError, pyarrow.ArrowException) as error:
        raise SystemExit(f"{path} cannot be read as a Parquet file: {str(error).splitlines()[0]}") from None


def run(path, output, rows):
    """What onnxruntime gives for the rows: one line per row."""
    import onnxruntime

    try:
        session = onnxruntime.InferenceSession(str(path), providers=["CPUExecutionProvider"])
        names = [item.name for item in session.get_outputs()]
        if output and output not in names:
            raise SystemExit(f"{path} has no output {output}; its outputs are {', '.join(names)}")
        name = output or next((name for name in names if "prob" in name.lower()), names[0])
        found = session.run([name], {session.get_inputs()[0].name: rows})[0]
    except Exception as error:  # onnxruntime has no class of its own for its errors.
        raise SystemExit(f"onnxruntime cannot run {path}: {str(error).splitlines()[0]}") from None
    if isinstance(found, list):
        # A ZipMap of scikit-learn's exporter: one map from label to probability per row, in the order of the labels.
        found = [list(row.values()) for row in found]
    found = np.asarray(found)
    if found.size % len(rows) or found.dtype.kind not in "fiu" or len(found) != len(rows):
        raise SystemExit(f"the output {name} of {path} is {found.dtype} {list(found.shape)}: name that with a number per label with "
                         f"--output-name, of {', '.join(names)}")
    return found.reshape(len(rows), -1)


def check_labels(outputs, labels, threshold, given):
    """Refuses a classifier that finds most benign rows to be attacks: its first label is then not the benign one.

    `given` is the label of each row, None if the rows have none; they are taken for benign, then, as most traffic is."""
    if labels is not None and outputs.shape[1] != len(labels):
        raise SystemExit(f"the model gives {outputs.shape[1]} numbers per row, but --labels names {len(labels)} labels; an export with "
                         "zipmap=\"columns\" has an output for each: use zipmap=False")
    benign = np.ones(len(outputs), dtype=bool)
    if labels and given is not None and any(label == labels[0] for label in given):
        benign = np.array([label == labels[0] for label in given])
    scores = (1.0 - outputs[:, 0])[benign]
    scores = scores[np.isfinite(scores)]
    if len(scores) == 0:
        raise SystemExit("the model has no finite score for any of the benign rows: its graph must replace missing values (an imputer)")
    middle = float(np.median(scores))
    # Whatever the threshold is, an ordinary row is more probably benign than not.
    if middle >= min(threshold, 0.5):
        raise SystemExit(f"half of the benign rows have a score of {middle:.3g} or more (1 - P of the first label): is "
                         f"{labels[0] if labels else 'the first label'} the benign label, and the first of the model's?")


def mend_exporters():
    """Lets skl2onnx export histogram gradient boosting with protobuf 7 and newer, which takes no booleans for the integers of
    nodes_missing_value_tracks_true. Call it before convert_sklearn."""
    import onnx.helper

    make_attribute = onnx.helper.make_attribute

    def with_integers(key, value, *rest, **options):
        if isinstance(value, (list, tuple)) and any(isinstance(item, (bool, np.bool_)) for item in value):
            value = [int(item) for item in value]
        return make_attribute(key, value, *rest, **options)

    onnx.helper.make_attribute = with_integers


def own_keys(path):
    """Sensor's keys in a model file."""
    import onnx

    model = onnx.load(path, load_external_data=False)
    return [entry.key for entry in model.metadata_props if entry.key.startswith(PREFIX)]


def raw_of(score_from, outputs, rows):
    """The raw number of an anomaly model's output, as the agent computes it."""
    if score_from == "reconstruction":
        return np.nanmean((rows - outputs) ** 2, axis=1)
    return outputs[:, 0] if score_from == "error" else -outputs[:, 0]


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model", type=Path)
    parser.add_argument("--features", required=True, help="names, in the order of the input's columns, separated by commas; or @FILE with one a line")
    parser.add_argument("--labels", help="names, the benign one first, separated by commas (a classifier needs them)")
    parser.add_argument("--threshold", type=float, required=True, help="flows are reported from this score on")
    parser.add_argument("--tag", type=float, help="… tagged from this one on [the same]")
    parser.add_argument("--drop", type=float, help="… dropped from this one on [as tag]")
    parser.add_argument("--min-packets", type=int, default=1)
    parser.add_argument("--name", default="")
    parser.add_argument("--rows", type=Path, required=True, help="CSV or Parquet of `sensor extract`: rows that resemble the traffic to come")
    parser.add_argument("--anomaly", choices=("error", "normality", "reconstruction"), help="the model is no classifier: what its output is")
    parser.add_argument("--output-name", help="the output to take, if there are several")
    parser.add_argument("--trained-on", default="", help="a sentence about the data")
    parser.add_argument("--golden-outputs", type=Path, help="outputs of the training library for the first 16 rows, as JSON [what onnxruntime gives]")
    parser.add_argument("--sensor", default="sensor", help="the agent that will serve the model")
    parser.add_argument("--side-car", action="store_true", help="write model.onnx.toml beside the model, and leave the model alone")
    parser.add_argument("-o", "--output", type=Path, help="the file to write [the model itself]")
    arguments = parser.parse_args()

    if arguments.side_car and own_keys(arguments.model):
        raise SystemExit(f"{arguments.model} carries keys of its own, so a side-car would not be read: leave out --side-car")
    names = arguments.features
    features = Path(names[1:]).read_text().split() if names.startswith("@") else names.split(",")
    labels = arguments.labels.split(",") if arguments.labels else None
    rows, given = read_rows(arguments.rows, features)
    outputs = run(arguments.model, arguments.output_name, rows)
    score = None
    if arguments.anomaly:
        raw = raw_of(arguments.anomaly, outputs, rows)
        score = {"from": arguments.anomaly, "points": curve(raw)}
        scores = np.interp(raw, *np.array(score["points"]).T)
    else:
        check_labels(outputs, labels, arguments.threshold, given)
        scores = 1.0 - outputs[:, 0]
    golden = slice(0, GOLDEN)
    keys = build(
        features,
        kind="anomaly" if arguments.anomaly else "classifier",
        labels=labels,
        threshold=arguments.threshold,
        thresholds={key: value for key, value in (("tag", arguments.tag), ("drop", arguments.drop)) if value is not None} or None,
        golden_inputs=rows[golden],
        golden_outputs=json.loads(arguments.golden_outputs.read_text()) if arguments.golden_outputs else outputs[golden],
        name=arguments.name,
        min_packets=arguments.min_packets,
        rows=rows,
        scores=scores,
        score=score,
        output=arguments.output_name,
        trained_on=arguments.trained_on,
        training={"rows": len(rows)},
        sensor=arguments.sensor,
    )
    if arguments.side_car:
        side_car(keys, Path(f"{arguments.model}.toml"))
        return
    import onnx

    model = onnx.load(arguments.model)
    attach(model, keys)
    onnx.save(model, arguments.output or arguments.model)


if __name__ == "__main__":
    main()
