#!/usr/bin/env python3
"""Trains the shipped model: captures -> sensor extract -> network -> models/sensor.onnx and its card.

Run it through models/make.sh, which also makes the traffic; models/README.md says what it needs.
"""

import os

# One thread: sums are then made in the same order on every machine. Before numpy is imported.
for variable in ("OPENBLAS_NUM_THREADS", "OMP_NUM_THREADS", "MKL_NUM_THREADS"):
    os.environ[variable] = "1"

import argparse
import hashlib
import warnings
from pathlib import Path

import numpy as np
import onnxruntime

import card
import contract
import dataset
import evaluate
import inputs
import network

HERE = Path(__file__).resolve().parent
SEED = 7
EPOCHS = 24
GOLDEN_PER_LABEL = 2


def options():
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--sensor", type=Path, default=HERE.parent / "target/release/sensor", help="the agent's binary")
    parser.add_argument("--traffic", type=Path, nargs="*", default=[], metavar="DIR", 
                        help="outputs of sensor-traffic: the last tests, of three or more the one before sets the threshold")
    parser.add_argument("--captures", type=Path, default=Path(os.environ.get("SENSOR_CAPTURES", HERE.parent.parent / "shared/captures")), help="folder of public captures")
    parser.add_argument("--work", type=Path, default=HERE.parent / "target/models", help="folder for exports")
    parser.add_argument("--out", type=Path, default=HERE / "sensor.onnx")
    parser.add_argument("--note", default="", help="a sentence about this run's data, for the card")
    parser.add_argument("--reuse", action="store_true", help="take the exports in the work folder as they are")
    return parser.parse_args()


def traffic_part(position, count):
    """With one run its captures are dealt by name; with two the last tests; with more the one before it calibrates."""
    if count == 1:
        return None
    if position == count - 1:
        return "test"
    return "calibrate" if count > 2 and position == count - 2 else "train"


def load(arguments, rng):
    arguments.work.mkdir(parents=True, exist_ok=True)
    loaded = []
    for position, folder in enumerate(arguments.traffic):
        output = arguments.work / f"traffic-{position}.csv"
        if not (arguments.reuse and output.exists()):
            dataset.extract(arguments.sensor, sorted(folder.glob("*.pcap")), folder / "labels.csv", output)
        fixed = traffic_part(position, len(arguments.traffic))
        part = lambda path: fixed or dataset.part_of(Path(path).name)
        loaded.append(dataset.read(output, part, lambda path: f"traffic-{position}/{Path(path).name}", rng))
    if arguments.captures.is_dir():
        output = arguments.work / "public.csv"
        captures, labels, parts = dataset.public_captures(arguments.captures, arguments.work, HERE / "captures.csv")
        if not (arguments.reuse and output.exists()):
            dataset.extract(arguments.sensor, captures, labels, output)
        loaded.append(dataset.read(output, parts.__getitem__, lambda path: f"{Path(path).parent.name}/{Path(path).name}", rng))
    else:
        print(f"{arguments.captures} is missing: training without public captures")
    return dataset.join(loaded)


def golden_rows(rows, rng):
    picked = []
    for label in range(len(dataset.LABELS)):
        of_label = np.flatnonzero(rows.label == label)
        picked.extend(rng.choice(of_label, size=min(GOLDEN_PER_LABEL, len(of_label)), replace=False))
    picked.append(int(np.isnan(rows.values).sum(axis=1).argmax()))
    return rows.values[np.array(picked)]


def main():
    arguments = options()
    rng = np.random.default_rng(SEED)
    rows = load(arguments, rng)
    print(f"{len(rows.label)} rows of {len(np.unique(rows.flow))} flows, {len(inputs.NAMES)} features")
    train = rows.of(rows.part == "train")
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="Stochastic Optimizer: Maximum iterations")
        trained = network.train(train.values, train.label, train.capture, len(dataset.LABELS), SEED, EPOCHS)
    model = network.export(trained, dataset.LABELS)

    session = onnxruntime.InferenceSession(model.SerializeToString(), providers=["CPUExecutionProvider"])
    probabilities = session.run(["probabilities"], {"features": rows.values})[0]
    difference = np.abs(probabilities - network.reference(rows.values, trained)).max()
    print(f"onnxruntime against the float64 reference, all rows: {difference:.1e}")
    assert difference < 1e-4, "the exported graph is not what was trained"

    scores = 1.0 - probabilities[:, 0]
    calibration = rows.part == "calibrate"
    threshold = evaluate.calibrate(rows.of(calibration), scores[calibration])
    reports = {part: evaluate.report(rows.of(rows.part == part), probabilities[rows.part == part], threshold) for part in dataset.PARTS}

    golden = golden_rows(train, rng)
    # Drift is measured against benign rows: that is what most traffic is.
    benign = (rows.part == "train") & (rows.label == 0)
    contract.attach(model, contract.build(
        inputs.NAMES,
        name="sensor-baseline",
        labels=dataset.LABELS,
        threshold=threshold,
        min_packets=dataset.MIN_PACKETS,
        golden_inputs=golden,
        golden_outputs=network.reference(golden, trained),
        rows=rows.values[benign],
        scores=scores[benign],
        trained_on=f"{len(np.unique(train.flow))} flows of {len(np.unique(train.capture))} captures: sensor-traffic and public captures",
        training={"rows": len(train.label), "benign rows": int(benign.sum()), "epochs": EPOCHS, "seed": SEED},
        sensor=arguments.sensor,
    ))
    data = model.SerializeToString(deterministic=True)
    arguments.out.write_bytes(data)
    digest = hashlib.sha256(data).hexdigest()
    text = card.write(rows, reports, threshold, digest, len(data), difference, [len(inputs.NAMES), *network.HIDDEN, len(dataset.LABELS)], arguments.note)
    arguments.out.with_suffix(".md").write_text(text)
    print(text)


if __name__ == "__main__":
    main()
