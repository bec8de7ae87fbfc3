"""Rows a second of onnxruntime and of Sensor on one thread, for the kinds of model that suit flows; in turns, best of each.

Time is the thread's processor time, so that other work on the machine disturbs less. Called by bench.sh.
"""

import argparse
import json
import pathlib
import subprocess
import time
import warnings

import lightgbm
import numpy as np
import onnxruntime
import xgboost
from onnxmltools import convert_lightgbm, convert_xgboost
from onnxmltools.convert.common.data_types import FloatTensorType as BoosterFloat
from skl2onnx import convert_sklearn
from skl2onnx.common.data_types import FloatTensorType
from sklearn.ensemble import RandomForestClassifier
from sklearn.impute import SimpleImputer
from sklearn.neural_network import MLPClassifier
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler

FEATURES, BATCHES, ROUNDS, SECONDS = 64, (1, 64, 1024), 3, 0.3
warnings.filterwarnings("ignore")


def sklearn(model):
    types = [("x", FloatTensorType([None, FEATURES]))]
    return convert_sklearn(model, initial_types=types, target_opset={"": 17, "ai.onnx.ml": 3}, options={"zipmap": False})


def booster(convert):
    return lambda model: convert(model, initial_types=[("x", BoosterFloat([None, FEATURES]))], target_opset=15)


def forest():
    return RandomForestClassifier(100, max_depth=10, random_state=1)


MODELS = {
    "random forest 100 x depth 10": (forest(), sklearn),
    "imputer, scaler, forest 100 x depth 10": (make_pipeline(SimpleImputer(), StandardScaler(), forest()), sklearn),
    "XGBoost 100 x depth 6": (xgboost.XGBClassifier(n_estimators=100, max_depth=6, n_jobs=1), booster(convert_xgboost)),
    "XGBoost 100 x depth 8": (xgboost.XGBClassifier(n_estimators=100, max_depth=8, n_jobs=1), booster(convert_xgboost)),
    "LightGBM 200 x 31 leaves": (
        lightgbm.LGBMClassifier(n_estimators=200, num_leaves=31, n_jobs=1, verbose=-1),
        lambda model: convert_lightgbm(model, initial_types=[("x", BoosterFloat([None, FEATURES]))], target_opset=15, zipmap=False),
    ),
    "scaler, network 64-64-32-2": (make_pipeline(StandardScaler(), MLPClassifier((64, 32), max_iter=10)), sklearn),
}


def speed(session, rows, batch):
    output = [next(output.name for output in session.get_outputs() if "prob" in output.name)]
    done, begun, start = 0, time.monotonic(), time.thread_time()
    while time.monotonic() - begun < SECONDS:
        first = done % (len(rows) - batch)
        session.run(output, {"x": rows[first : first + batch]})
        done += batch
    return done / (time.thread_time() - start)


def main():
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--bench", required=True, help="the program sensor-model-bench")
    parser.add_argument("--folder", required=True, type=pathlib.Path, help="where models are kept from run to run")
    arguments = parser.parse_args()
    arguments.folder.mkdir(parents=True, exist_ok=True)
    random = np.random.default_rng(1)
    rows = random.normal(size=(20_000, FEATURES)).astype(np.float32)
    labels = ((rows[:, :10] ** 2).sum(axis=1) + random.normal(size=len(rows)) * 3 > 10).astype(int)
    data = arguments.folder / "rows.f32"
    data.write_bytes(rows.tobytes())

    print(f"onnxruntime {onnxruntime.__version__} / Sensor, rows a second of one thread (ratio)\n")
    print("| model | " + " | ".join(f"batch {batch}" for batch in BATCHES) + " | load, onnxruntime / Sensor |")
    print("|---" * (len(BATCHES) + 2) + "|")
    for name, (model, convert) in MODELS.items():
        path = arguments.folder / (name.replace(" ", "_").replace(",", "") + ".onnx")
        if not path.exists():
            path.write_bytes(convert(model.fit(rows, labels)).SerializeToString())
        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads = options.inter_op_num_threads = 1
        options.log_severity_level = 4
        begun = time.monotonic()
        session = onnxruntime.InferenceSession(path, options)
        theirs_load = (time.monotonic() - begun) * 1e3
        theirs, ours, ours_load = dict.fromkeys(BATCHES, 0.0), dict.fromkeys(BATCHES, 0.0), float("inf")
        for _ in range(ROUNDS):
            for batch in BATCHES:
                theirs[batch] = max(theirs[batch], speed(session, rows, batch))
            command = [arguments.bench, path, data, str(FEATURES), "2"]
            found = json.loads(subprocess.run(command, check=True, capture_output=True).stdout)
            ours_load = min(ours_load, found["load_ms"])
            for batch in BATCHES:
                ours[batch] = max(ours[batch], found["rows_per_second"][str(batch)])
        cells = [f"{theirs[batch]:,.0f} / {ours[batch]:,.0f} ({ours[batch] / theirs[batch]:.2f})" for batch in BATCHES]
        print(f"| {name} | " + " | ".join(cells) + f" | {theirs_load:.0f} / {ours_load:.0f} ms |", flush=True)


if __name__ == "__main__":
    main()
