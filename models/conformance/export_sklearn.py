"""scikit-learn's models, exported by skl2onnx."""

import pathlib
import sys

import numpy as np
import onnx.helper
import sklearn
from onnx import TensorProto, helper
from skl2onnx import convert_sklearn
from skl2onnx.common.data_types import DoubleTensorType, FloatTensorType
from sklearn.calibration import CalibratedClassifierCV
from sklearn.compose import ColumnTransformer
from sklearn.decomposition import PCA
from sklearn.discriminant_analysis import LinearDiscriminantAnalysis
from sklearn.ensemble import (
    AdaBoostClassifier,
    BaggingClassifier,
    ExtraTreesClassifier,
    ExtraTreesRegressor,
    GradientBoostingClassifier,
    GradientBoostingRegressor,
    HistGradientBoostingClassifier,
    HistGradientBoostingRegressor,
    IsolationForest,
    RandomForestClassifier,
    RandomForestRegressor,
    StackingClassifier,
    VotingClassifier,
)
from sklearn.feature_selection import SelectKBest
from sklearn.impute import SimpleImputer
from sklearn.linear_model import LinearRegression, LogisticRegression, Ridge, SGDClassifier
from sklearn.naive_bayes import BernoulliNB, GaussianNB
from sklearn.neighbors import KNeighborsClassifier, KNeighborsRegressor
from sklearn.neural_network import MLPClassifier, MLPRegressor
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import Binarizer, KBinsDiscretizer, MinMaxScaler, Normalizer, OneHotEncoder, RobustScaler, StandardScaler
from sklearn.svm import SVC, SVR, LinearSVC, OneClassSVM
from sklearn.tree import DecisionTreeClassifier, DecisionTreeRegressor

sys.path.insert(0, str(pathlib.Path(__file__).parents[1]))
import contract
from make import FEATURES, GAPS, OPSET, ROWS, SEED, TARGETS, TRAIN, split

# Before anything is exported.
contract.mend_exporters()

LIBRARY = f"scikit-learn {sklearn.__version__}"

CLASSIFIERS = {
    "decision_tree": DecisionTreeClassifier(max_depth=6, random_state=SEED),
    "random_forest": RandomForestClassifier(12, max_depth=5, random_state=SEED),
    "extra_trees": ExtraTreesClassifier(12, max_depth=5, random_state=SEED),
    "gradient_boosting": GradientBoostingClassifier(n_estimators=12, random_state=SEED),
    "hist_gradient_boosting": HistGradientBoostingClassifier(max_iter=8, max_leaf_nodes=15, random_state=SEED),
    "adaboost": AdaBoostClassifier(n_estimators=8, random_state=SEED),
    "bagging": BaggingClassifier(n_estimators=5, random_state=SEED, max_samples=0.3),
    "logistic_regression": make_pipeline(StandardScaler(), LogisticRegression()),
    "sgd": make_pipeline(StandardScaler(), SGDClassifier(loss="log_loss", random_state=SEED)),
    "svc_rbf": make_pipeline(StandardScaler(), SVC(probability=True, C=5, random_state=SEED)),
    "svc_poly": make_pipeline(StandardScaler(), SVC(probability=True, kernel="poly", coef0=1, random_state=SEED)),
    "svc_calibrated": make_pipeline(StandardScaler(), CalibratedClassifierCV(LinearSVC(random_state=SEED), ensemble=False)),
    "mlp": make_pipeline(StandardScaler(), MLPClassifier((16, 8), max_iter=60, random_state=SEED)),
    "gaussian_nb": GaussianNB(),
    "bernoulli_nb": BernoulliNB(binarize=0.5),
    "knn": make_pipeline(StandardScaler(), KNeighborsClassifier(5)),
    "lda": LinearDiscriminantAnalysis(),
    "voting": VotingClassifier([("a", LogisticRegression(max_iter=500)), ("b", DecisionTreeClassifier(max_depth=4))], voting="soft", flatten_transform=False),
    "stacking": StackingClassifier([("a", GaussianNB()), ("b", DecisionTreeClassifier(max_depth=4))], cv=3),
}

PIPELINES = {
    "standard_scaler_forest": make_pipeline(StandardScaler(), RandomForestClassifier(8, max_depth=4, random_state=SEED)),
    "min_max_scaler_mlp": make_pipeline(MinMaxScaler(), MLPClassifier((8,), max_iter=60, random_state=SEED)),
    "robust_scaler_tree": make_pipeline(RobustScaler(), DecisionTreeClassifier(max_depth=4)),
    "normalizer_l2_logistic": make_pipeline(Normalizer("l2"), LogisticRegression(max_iter=500)),
    "normalizer_l1_logistic": make_pipeline(Normalizer("l1"), LogisticRegression(max_iter=500)),
    "binarizer_logistic": make_pipeline(Binarizer(threshold=0.3), LogisticRegression(max_iter=500)),
    "pca_logistic": make_pipeline(StandardScaler(), PCA(5), LogisticRegression()),
    "select_forest": make_pipeline(SelectKBest(k=6), RandomForestClassifier(8, max_depth=4, random_state=SEED)),
    "bins_logistic": make_pipeline(KBinsDiscretizer(4, encode="onehot-dense", quantile_method="averaged_inverted_cdf"), LogisticRegression(max_iter=500)),
    "columns_logistic": make_pipeline(
        ColumnTransformer([("a", StandardScaler(), list(range(6))), ("b", MinMaxScaler(), list(range(6, FEATURES)))]),
        LogisticRegression(max_iter=500),
    ),
    "one_hot_logistic": make_pipeline(
        ColumnTransformer([("a", OneHotEncoder(handle_unknown="ignore"), [9]), ("b", StandardScaler(), list(range(9)))]),
        LogisticRegression(max_iter=500),
    ),
}

WITH_GAPS = {
    "imputer_scaler_logistic": make_pipeline(SimpleImputer(), StandardScaler(), LogisticRegression()),
    "imputer_forest": make_pipeline(SimpleImputer(strategy="median"), RandomForestClassifier(8, max_depth=4, random_state=SEED)),
    "imputer_indicator_tree": make_pipeline(SimpleImputer(add_indicator=True), DecisionTreeClassifier(max_depth=4)),
    "imputer_min_max_mlp": make_pipeline(SimpleImputer(), MinMaxScaler(), MLPClassifier((8,), max_iter=60, random_state=SEED)),
    "hist_gradient_boosting_gaps": HistGradientBoostingClassifier(max_iter=8, max_leaf_nodes=15, random_state=SEED),
    "decision_tree_gaps": DecisionTreeClassifier(max_depth=6, random_state=SEED),
    "random_forest_gaps": RandomForestClassifier(12, max_depth=5, random_state=SEED),
}

REGRESSORS = {
    "linear": LinearRegression(),
    "ridge_scaled": make_pipeline(StandardScaler(), Ridge()),
    "decision_tree": DecisionTreeRegressor(max_depth=6, random_state=SEED),
    "random_forest": RandomForestRegressor(12, max_depth=5, random_state=SEED),
    "extra_trees": ExtraTreesRegressor(12, max_depth=5, random_state=SEED),
    "gradient_boosting": GradientBoostingRegressor(n_estimators=12, random_state=SEED),
    "hist_gradient_boosting": HistGradientBoostingRegressor(max_iter=8, max_leaf_nodes=15, random_state=SEED),
    "mlp": make_pipeline(StandardScaler(), MLPRegressor(hidden_layer_sizes=(16,), max_iter=60, random_state=SEED)),
    "svr": make_pipeline(StandardScaler(), SVR()),
    "knn": make_pipeline(StandardScaler(), KNeighborsRegressor(5)),
}


def export(model, zipmap=False, kind=FloatTensorType):
    options = {"zipmap": zipmap} if hasattr(model, "predict_proba") else None
    return convert_sklearn(model, initial_types=[("x", kind([None, FEATURES]))], target_opset=OPSET, options=options)


def outputs(exported):
    """Label and probabilities are the first two outputs."""
    names = [output.name for output in exported.graph.output]
    return {"labels": names[0], "probabilities": names[1]}


def classify(cases, name, model, rows, target, zipmap=False, change=lambda exported: exported, kind=FloatTensorType):
    known, unknown = split(rows)
    model.fit(known, TARGETS[target][:TRAIN])
    try:
        exported = change(export(model, zipmap, kind))
    except Exception as error:  # Exporters raise all kinds.
        return cases.refuse(name, LIBRARY, error)
    cases.add(
        name, LIBRARY, exported, outputs(exported), rows is GAPS,
        labels=model.predict(unknown), probabilities=model.predict_proba(unknown),
    )


def regress(cases, name, model, rows, expected=None):
    known, unknown = split(rows)
    model.fit(known, TARGETS["value"][:TRAIN])
    try:
        exported = export(model)
    except Exception as error:
        return cases.refuse(name, LIBRARY, error)
    values = expected(model, unknown) if expected else model.predict(unknown)
    cases.add(name, LIBRARY, exported, {"values": exported.graph.output[-1].name}, rows is GAPS, values=values)


def cast_in_front(model):
    """A model for doubles behind a Cast: its tree tables are tensors of doubles."""
    graph = model.graph
    for node in graph.node:
        node.input[:] = ["x_double" if name == "x" else name for name in node.input]
    graph.node.insert(0, helper.make_node("Cast", ["x"], ["x_double"], to=TensorProto.DOUBLE))
    graph.input[0].type.tensor_type.elem_type = TensorProto.FLOAT
    return model


def run(cases):
    for name, model in CLASSIFIERS.items():
        for target in ("binary", "multi"):
            classify(cases, f"sklearn_{name}_{target}", model, ROWS, target)
    for name, model in PIPELINES.items():
        classify(cases, f"sklearn_{name}", model, ROWS, "multi")
    for name, model in WITH_GAPS.items():
        classify(cases, f"sklearn_{name}", model, GAPS, "multi")
    forest = CLASSIFIERS["random_forest"]
    classify(cases, "sklearn_random_forest_words_zipmap", forest, ROWS, "words", zipmap=True)
    classify(cases, "sklearn_random_forest_zipmap", forest, ROWS, "binary", zipmap=True)
    classify(cases, "sklearn_logistic_words", CLASSIFIERS["logistic_regression"], ROWS, "words")
    classify(cases, "sklearn_mlp_words", CLASSIFIERS["mlp"], ROWS, "words")
    classify(cases, "sklearn_svc_words", CLASSIFIERS["svc_rbf"], ROWS, "words")
    for target in ("binary", "multi"):
        name = f"sklearn_random_forest_double_{target}"
        classify(cases, name, forest, ROWS, target, change=cast_in_front, kind=DoubleTensorType)
    classify(cases, "sklearn_double_input", CLASSIFIERS["logistic_regression"], ROWS, "binary", kind=DoubleTensorType)
    for name, model in REGRESSORS.items():
        regress(cases, f"sklearn_{name}_value", model, ROWS)
    regress(cases, "sklearn_hist_gradient_boosting_gaps_value", REGRESSORS["hist_gradient_boosting"], GAPS)
    isolation = IsolationForest(n_estimators=12, max_samples=64, random_state=SEED)
    regress(cases, "sklearn_isolation_forest", isolation, ROWS, lambda model, rows: model.decision_function(rows))
    one_class = make_pipeline(StandardScaler(), OneClassSVM(nu=0.1))
    regress(cases, "sklearn_one_class_svm", one_class, ROWS, lambda model, rows: model.decision_function(rows))
    svc = make_pipeline(StandardScaler(), SVC())
    known, unknown = split(ROWS)
    svc.fit(known, TARGETS["binary"][:TRAIN])
    exported = convert_sklearn(svc, initial_types=[("x", FloatTensorType([None, FEATURES]))], target_opset=OPSET)
    scores = np.stack([-svc.decision_function(unknown), svc.decision_function(unknown)], axis=1)
    cases.add("sklearn_svc_no_probabilities", LIBRARY, exported, outputs(exported), labels=svc.predict(unknown), probabilities=scores)
