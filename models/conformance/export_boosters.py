"""LightGBM's and XGBoost's models, exported by onnxmltools."""

import lightgbm
import numpy as np
import xgboost
from onnxmltools import convert_lightgbm, convert_xgboost
from onnxmltools.convert.common.data_types import FloatTensorType

from make import FEATURES, GAPS, ROWS, SEED, TARGETS, TRAIN, split

LIGHTGBM = f"LightGBM {lightgbm.__version__}"
XGBOOST = f"XGBoost {xgboost.__version__}"
TYPES = [("x", FloatTensorType([None, FEATURES]))]


def add(cases, name, library, convert, model, rows, target, **options):
    known, unknown = split(rows)
    model.fit(known, TARGETS[target][:TRAIN])
    try:
        exported = convert(model, initial_types=TYPES, target_opset=15, **options)
    except Exception as error:  # Exporters raise all kinds.
        return cases.refuse(name, library, error)
    names = [output.name for output in exported.graph.output]
    if target == "value":
        return cases.add(name, library, exported, {"values": names[0]}, rows is GAPS, values=model.predict(unknown))
    cases.add(
        name, library, exported, {"labels": names[0], "probabilities": names[1]}, rows is GAPS,
        labels=model.predict(unknown), probabilities=model.predict_proba(unknown),
    )


def run(cases):
    light = {"n_estimators": 8, "num_leaves": 15, "random_state": SEED, "verbose": -1, "n_jobs": 1}
    for target in ("binary", "multi", "words"):
        model = lightgbm.LGBMClassifier(**light)
        add(cases, f"lightgbm_{target}", LIGHTGBM, convert_lightgbm, model, ROWS, target, zipmap=False)
    add(cases, "lightgbm_zipmap", LIGHTGBM, convert_lightgbm, lightgbm.LGBMClassifier(**light), ROWS, "multi")
    for rows, gaps in ((ROWS, ""), (GAPS, "gaps_")):
        add(cases, f"lightgbm_{gaps}value", LIGHTGBM, convert_lightgbm, lightgbm.LGBMRegressor(**light), rows, "value")
    for target in ("binary", "multi"):
        model = lightgbm.LGBMClassifier(**light)
        add(cases, f"lightgbm_gaps_{target}", LIGHTGBM, convert_lightgbm, model, GAPS, target, zipmap=False)
    forest = lightgbm.LGBMClassifier(**light, boosting_type="rf", bagging_freq=1, bagging_fraction=0.5)
    add(cases, "lightgbm_rf_binary", LIGHTGBM, convert_lightgbm, forest, ROWS, "binary", zipmap=False)
    dart = lightgbm.LGBMClassifier(**light, boosting_type="dart")
    add(cases, "lightgbm_dart_binary", LIGHTGBM, convert_lightgbm, dart, ROWS, "binary", zipmap=False)

    extreme = {"n_estimators": 12, "max_depth": 4, "random_state": SEED, "n_jobs": 1, "tree_method": "hist"}
    for rows, gaps in ((ROWS, ""), (GAPS, "gaps_")):
        for target in ("binary", "multi"):
            add(cases, f"xgboost_{gaps}{target}", XGBOOST, convert_xgboost, xgboost.XGBClassifier(**extreme), rows, target)
        add(cases, f"xgboost_{gaps}value", XGBOOST, convert_xgboost, xgboost.XGBRegressor(**extreme), rows, "value")
    # Every leaf is positive: the sum of the leaves is no probability, though it looks like one.
    base = xgboost.XGBClassifier(**extreme, base_score=0.01, learning_rate=0.02)
    add(cases, "xgboost_small_base_binary", XGBOOST, convert_xgboost, base, ROWS, "binary")
    forest = xgboost.XGBRFClassifier(n_estimators=8, max_depth=4, random_state=SEED, n_jobs=1)
    add(cases, "xgboost_rf_binary", XGBOOST, convert_xgboost, forest, ROWS, "binary")
    assert np.isfinite(ROWS).all()
