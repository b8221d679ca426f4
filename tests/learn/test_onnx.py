"""Classifiers that go to ONNX: they score as scikit-learn does, and a graph can do no harm."""

import inspect
import json
import re
import subprocess
import sys

import numpy as np
import pandas as pd
import pytest
import small_models as small
from scipy.special import logit
from sklearn.base import clone
from sklearn.calibration import CalibratedClassifierCV
from sklearn.compose import ColumnTransformer
from sklearn.decomposition import PCA
from sklearn.ensemble import (
    AdaBoostClassifier,
    BaggingClassifier,
    ExtraTreesClassifier,
    GradientBoostingClassifier,
    HistGradientBoostingClassifier,
    RandomForestClassifier,
    StackingClassifier,
)
from sklearn.impute import SimpleImputer
from sklearn.linear_model import LogisticRegression
from sklearn.naive_bayes import GaussianNB
from sklearn.neighbors import KNeighborsClassifier
from sklearn.neural_network import MLPClassifier
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import OrdinalEncoder, StandardScaler
from sklearn.svm import SVC, LinearSVC
from sklearn.tree import DecisionTreeClassifier
from sklearn.utils import all_estimators
from test_artifact import rehash

from nextbest import jobs
from nextbest.data.labels import NoPurchase
from nextbest.errors import ArtifactError, DataError
from nextbest.learn import artifact, onnx, onnx_convert
from nextbest.learn.baselines import SingleFeature
from nextbest.learn.calibration import Isotonic, Platt
from nextbest.learn.components import TOLERANCE, Logistic, Steps
from nextbest.learn.estimators import FeatureEncoder, SignedLog1p, blend, linear
from nextbest.learn.export import export, exportable
from nextbest.learn.model import Model
from nextbest.learn.onnx import SINGLE_TOLERANCE, Graph
from nextbest.learn.scorer import OfferScorer
from nextbest.project import Project

absent = onnx.missing()
needs_onnx = pytest.mark.skipif(absent is not None, reason=str(absent))
pytestmark = [
    pytest.mark.filterwarnings("ignore::FutureWarning:sklearn"),
    pytest.mark.filterwarnings("ignore::sklearn.exceptions.ConvergenceWarning"),
]


def imputed(*steps):
    return make_pipeline(SimpleImputer(strategy="median"), *steps)


#: What is exported, and the tolerance to which it must repeat scikit-learn.
ZOO = {
    "forest": (RandomForestClassifier(20, random_state=0), TOLERANCE),
    "extra trees": (ExtraTreesClassifier(20, random_state=0), TOLERANCE),
    "tree": (DecisionTreeClassifier(random_state=0), TOLERANCE),
    "forest with trees of one leaf": (
        RandomForestClassifier(9, max_depth=2, min_samples_leaf=90, max_features=1,
                               random_state=0), TOLERANCE),
    "histogram boosting": (HistGradientBoostingClassifier(max_iter=20, random_state=0), TOLERANCE),
    "boosting": (imputed(GradientBoostingClassifier(n_estimators=20)), TOLERANCE),
    "boosting on exponential loss": (
        imputed(GradientBoostingClassifier(n_estimators=9, loss="exponential")), TOLERANCE),
    "boosting from zero": (
        imputed(GradientBoostingClassifier(n_estimators=9, init="zero")), TOLERANCE),
    "adaptive boosting": (imputed(AdaBoostClassifier(n_estimators=5)), SINGLE_TOLERANCE),
    "bagged trees": (BaggingClassifier(n_estimators=5, random_state=0), TOLERANCE),
    "naive Bayes": (imputed(GaussianNB()), TOLERANCE),
    "neural network": (
        imputed(StandardScaler(), MLPClassifier((8,), max_iter=50, random_state=0)), TOLERANCE),
    "support vectors": (
        imputed(StandardScaler(), SVC(probability=True, random_state=0)), SINGLE_TOLERANCE),
    "calibrated support vectors": (
        imputed(StandardScaler(), CalibratedClassifierCV(LinearSVC(), cv=2)), TOLERANCE),
    "calibrated forest": (
        CalibratedClassifierCV(RandomForestClassifier(5, random_state=0), cv=2), TOLERANCE),
    "principal components": (
        imputed(SignedLog1p(), StandardScaler(), PCA(3), LogisticRegression()), TOLERANCE),
    "columns apart": (
        imputed(
            ColumnTransformer(
                [("log", SignedLog1p(), [0]), ("scaled", StandardScaler(), [1, 2])],
                remainder="passthrough",
            ),
            LogisticRegression(max_iter=500),
        ),
        TOLERANCE,
    ),
    "stack": (
        StackingClassifier(
            [("forest", RandomForestClassifier(5, random_state=0)), ("line", linear())], cv=2
        ),
        TOLERANCE,
    ),
    "blend with LightGBM": (
        blend({"own": small.trees(), "line": linear(),
               "forest": RandomForestClassifier(9, random_state=0)}, [1, 1, 2]), TOLERANCE),
}  # fmt: skip


def store(tmp_path, estimator, calibrator=None, **changes):
    given = {
        "name": "churn", "kind": "probability", "estimator": estimator,
        "encoder": small.encoder(), "calibrator": calibrator, "golden_rows": small.raw().head(30),
    }  # fmt: skip
    return artifact.save(tmp_path / "m", **(given | changes))


def fitted(estimator):
    return estimator.fit(small.encoded(), small.outcome())


def strangers(n=500):
    """Rows that training has not seen: rounded as in training, so that some lie on thresholds."""
    rng = np.random.default_rng(3)
    raw = small.raw()
    return pd.DataFrame({c: rng.choice(raw[c].to_numpy(dtype=object), n) for c in raw})


@needs_onnx
@pytest.mark.parametrize("name", ZOO)
def test_what_is_stored_scores_as_scikit_learn_does(name, tmp_path):
    estimator, tolerance = ZOO[name]
    assert exportable(estimator) is None
    platt = Platt(1.2, 0.1)
    store(tmp_path, fitted(estimator), platt)
    loaded = artifact.load(tmp_path / "m")
    assert loaded.tolerance == tolerance
    x = loaded.encode(strangers())
    own = estimator.predict_proba(x)[:, 1]
    assert own.std() > 0.005
    assert np.abs(loaded.uncalibrated(x) - own).max() <= tolerance
    assert np.array_equal(loaded.score_matrix(x), platt.apply(loaded.uncalibrated(x)))
    alone = np.array([loaded.score_matrix(x[i : i + 1])[0] for i in range(60)])
    some = np.concatenate([loaded.score_matrix(x[i : i + 7]) for i in range(0, 60, 7)])[:60]
    assert alone.tobytes() == some.tobytes() == loaded.score_matrix(x)[:60].tobytes()


#: Every other classifier of scikit-learn, and why it is refused.
NO_CONVERTER = "there is no ONNX converter for sklearn."
NO_PROBABILITY = "gives no probability"
REFUSED = {
    "ClassifierChain": "predicts several outcomes at once",
    "DummyClassifier": NO_CONVERTER + "DummyClassifier",
    "GaussianProcessClassifier": "uses operators of com.microsoft",
    "LabelPropagation": NO_CONVERTER + "LabelPropagation",
    "LabelSpreading": NO_CONVERTER + "LabelSpreading",
    "LinearSVC": NO_PROBABILITY,
    "MultiOutputClassifier": "predicts several outcomes at once",
    "NearestCentroid": NO_CONVERTER + "NearestCentroid",
    "OneVsOneClassifier": NO_PROBABILITY,
    "OutputCodeClassifier": NO_PROBABILITY,
    "PassiveAggressiveClassifier": NO_PROBABILITY,
    "Perceptron": NO_PROBABILITY,
    "RadiusNeighborsClassifier": "fails on a customer without near neighbours",
    "RidgeClassifier": NO_PROBABILITY,
    "RidgeClassifierCV": NO_PROBABILITY,
    "SelfTrainingClassifier": NO_CONVERTER + "SelfTrainingClassifier",
}


def every_classifier():
    for name, kind in all_estimators(type_filter="classifier"):
        needed = [
            p.name for p in inspect.signature(kind).parameters.values() if p.default is p.empty
        ]
        if "estimators" in needed:
            yield name, kind([("a", LogisticRegression())])
        elif "estimator" in needed or name == "SelfTrainingClassifier":
            yield name, kind(LogisticRegression())
        else:
            yield name, kind()


@needs_onnx
@pytest.mark.parametrize(
    ("name", "estimator"), [pytest.param(n, e, id=n) for n, e in every_classifier()]
)
def test_every_classifier_of_scikit_learn_is_stored_or_refused_with_the_reason(name, estimator):
    settings = estimator.get_params(deep=False)
    wanted = {"random_state": 0, "voting": "soft", "probability": True, "n_estimators": 10}
    wanted |= {"loss": "log_loss"} if name == "SGDClassifier" else {}
    estimator.set_params(**{k: v for k, v in wanted.items() if k in settings})
    reason = exportable(estimator)
    if name in REFUSED:
        assert reason is not None
        assert REFUSED[name] in reason
        return
    assert reason is None
    x = np.random.default_rng(0).lognormal(1, 1, (200, 3))
    if name == "CategoricalNB":
        x = np.floor(x) % 4  # it reads numbers of categories
    parts = export(estimator.fit(x, (x[:, 0] > 2).astype(int)), x)
    assert sum(part.weight for part in parts) == pytest.approx(1.0)


@needs_onnx
@pytest.mark.parametrize(
    ("estimator", "words"),
    [
        (LinearSVC(), "wrap it in CalibratedClassifierCV"),
        (make_pipeline(OrdinalEncoder(handle_unknown="use_encoded_value", unknown_value=-1),
                       HistGradientBoostingClassifier(max_iter=3)),
         "unknown values otherwise; put a SimpleImputer before it"),
        (KNeighborsClassifier(metric=lambda a, b: 0.0), "parameter metric .* is Python code"),
        (CalibratedClassifierCV(HistGradientBoostingClassifier(max_iter=3), method="isotonic"),
         "gives other probabilities, by up to 0"),
    ],
)  # fmt: skip
def test_what_the_converter_does_wrongly_is_refused_before_training(estimator, words):
    reason = exportable(estimator)
    assert re.search(words, str(reason)), reason


@needs_onnx
def test_neighbours_are_stored_where_no_two_are_equally_near():
    x = np.random.default_rng(0).lognormal(1, 1, (300, 3))
    y = (x[:, 0] > 2).astype(int)
    near = KNeighborsClassifier(5).fit(x, y)
    made = onnx_convert.convert(near, x[:30])
    graph = bare(made, 3)
    others = np.random.default_rng(1).lognormal(1, 1, (200, 3))
    assert np.array_equal(graph.predict(others), near.predict_proba(others)[:, 1])
    x = np.floor(x)
    with pytest.raises(onnx_convert.CannotConvert, match="of equally near neighbours it takes"):
        onnx_convert.convert(KNeighborsClassifier(5).fit(x, y), x[:30])


def bare(made, width, background=None):
    return Graph(
        made.graph, Steps((), width), 1.0, np.arange(width), tolerance=made.tolerance,
        takes_unknown=made.takes_unknown,
        background=np.zeros((0, width)) if background is None else background,
    )  # fmt: skip


@needs_onnx
def test_a_mistaken_graph_is_not_stored(monkeypatch):
    made = onnx_convert._converted
    other = RandomForestClassifier(9, random_state=1).fit(*some_rows(seed=1))
    monkeypatch.setattr(onnx_convert, "_converted", lambda _e, *rest: made(other, *rest))
    x, y = some_rows()
    with pytest.raises(ArtifactError, match=r"gives other probabilities, by up to [\d.]+"):
        export(RandomForestClassifier(9, random_state=0).fit(x, y), x)


@needs_onnx
def test_a_graph_that_is_mistaken_beside_the_given_rows_is_not_stored(monkeypatch):
    # "Either" and "both" agree on nothing and on everything; dealing the values anew parts them.
    x = np.array([[a, b] for a in (0.0, 1.0) for b in (0.0, 1.0)])
    either, both = (
        DecisionTreeClassifier(random_state=0).fit(x, (x.sum(axis=1) > limit).astype(int))
        for limit in (0.5, 1.5)
    )
    rows = np.array([[0.0, 0.0], [1.0, 1.0]] * 15)
    assert np.array_equal(either.predict(rows), both.predict(rows))
    made = onnx_convert._converted
    monkeypatch.setattr(onnx_convert, "_converted", lambda _e, *rest: made(both, *rest))
    with pytest.raises(onnx_convert.CannotConvert, match="by up to 1"):
        onnx_convert.convert(either, rows)


def some_rows(n=200, seed=0):
    x = np.random.default_rng(seed).normal(size=(n, 3))
    return x, (x.sum(axis=1) > 0).astype(int)


@needs_onnx
def test_a_graph_that_fits_no_golden_row_is_refused_at_load(tmp_path):
    store(tmp_path, fitted(RandomForestClassifier(5, random_state=0)))
    store(tmp_path / "o", fitted(RandomForestClassifier(5, random_state=1)))
    (tmp_path / "m/part-0.onnx").write_bytes((tmp_path / "o/m/part-0.onnx").read_bytes())
    with pytest.raises(ArtifactError, match=r"part-0\.onnx: it was changed after"):
        artifact.load(tmp_path / "m")
    rehash(tmp_path / "m", "part-0.onnx")
    with pytest.raises(ArtifactError, match="golden scores: score in row"):
        artifact.load(tmp_path / "m")


@needs_onnx
def test_single_precision_is_allowed_before_calibration_and_a_changed_calibrator_is_not(tmp_path):
    # A steep calibrator turns the seventh digit of a score into a step.
    steep = Isotonic((0.0, 0.5, 0.5 + 1e-12, 1.0), (0.1, 0.2, 0.8, 0.9))
    machine = ZOO["support vectors"][0]
    saved = store(tmp_path, fitted(machine), steep)
    golden = json.loads((tmp_path / "m/golden.json").read_text())
    nudged = [v + 5e-6 for v in golden["scores"]["uncalibrated"]]
    golden["scores"]["uncalibrated"] = nudged
    golden["scores"]["score"] = steep.apply(nudged).tolist()
    (tmp_path / "m/golden.json").write_text(json.dumps(golden))
    rehash(tmp_path / "m", "golden.json")
    assert artifact.load(tmp_path / "m").tolerance == saved.tolerance == SINGLE_TOLERANCE
    for far in (1e-4, -1e-4):
        moved = [v + far for v in nudged]
        golden["scores"] |= {"uncalibrated": moved, "score": steep.apply(moved).tolist()}
        (tmp_path / "m/golden.json").write_text(json.dumps(golden))
        rehash(tmp_path / "m", "golden.json")
        with pytest.raises(ArtifactError, match="golden scores: score in row 0"):
            artifact.load(tmp_path / "m")
    golden["scores"] = {"uncalibrated": nudged, "score": steep.apply(nudged).tolist()}
    golden["scores"]["score"][0] += 1e-6
    (tmp_path / "m/golden.json").write_text(json.dumps(golden))
    rehash(tmp_path / "m", "golden.json")
    with pytest.raises(ArtifactError, match="golden scores: score in row 0"):
        artifact.load(tmp_path / "m")


@needs_onnx
def test_the_same_model_is_stored_as_the_same_bytes(tmp_path):
    for name in ("forest", "stack", "support vectors"):
        first, second = (store(tmp_path / name / k, fitted(clone(ZOO[name][0]))) for k in "ab")
        assert first.digest == second.digest


@needs_onnx
def test_the_manifest_names_what_serving_needs(tmp_path):
    store(tmp_path, fitted(ZOO["blend with LightGBM"][0]))
    manifest = json.loads((tmp_path / "m/manifest.json").read_text())
    assert [c["type"] for c in manifest["components"]] == ["lightgbm", "logistic", "onnx"]
    assert set(manifest["files"]) >= {"part-0.txt", "part-2.onnx"}
    assert {"onnx", "onnxruntime", "skl2onnx"} <= set(manifest["libraries"])


@needs_onnx
def test_unknown_values_that_the_estimator_refuses_have_no_score(tmp_path):
    # The graph itself would score them: its trees send an unknown value one way or the other.
    raw = small.raw()[["age"]]
    encoder = FeatureEncoder().fit(raw)
    boosting = GradientBoostingClassifier(n_estimators=3)
    boosting.fit(encoder.transform(raw), small.outcome())
    loaded = store(tmp_path, boosting, encoder=encoder, golden_rows=raw.head(30))
    with pytest.raises(DataError, match="1 of 2 rows have no score, the first is row 1"):
        loaded.score({"age": [30.0, np.nan]})


@needs_onnx
def test_one_customer_times_offers_has_the_bits_of_the_joined_rows(tmp_path):
    loaded = store(tmp_path, fitted(ZOO["stack"][0]))
    offers = OfferScorer(
        loaded, ["age", "tier"], ["spend"], ["member"], {"tier": ("gold", "basic")}
    )
    customers, spend = (
        np.array([[40.0, 1.0], [np.nan, np.nan]]),
        np.array([[5.0], [np.nan], [90.0]]),
    )
    member = np.ones((2, 3, 1))
    found = offers.propensity(customers, spend, member)
    joined = pd.DataFrame(
        {
            "age": np.repeat([40.0, np.nan], 3),
            "tier": np.repeat(np.array(["basic", None], dtype=object), 3),
            "spend": np.tile([5.0, np.nan, 90.0], 2),
            "member": 1.0,
        }
    )
    assert found.tobytes() == loaded.score(joined).reshape(2, 3).tobytes()
    assert found[1].tobytes() == offers.propensity(customers[1:], spend, member[1:])[0].tobytes()


@needs_onnx
def test_a_forest_is_trained_registered_and_served_like_any_model(trainable, tmp_path):
    # Through the whole job, MLflow included, in a shop whose churn model is scikit-learn's own.
    import mlflow

    churn = trainable / "models" / "churn.py"
    code = churn.read_text().replace("estimator=linear(C=0.01)", "estimator=FOREST")
    churn.write_text(
        "from sklearn.ensemble import RandomForestClassifier\n\n"
        "FOREST = RandomForestClassifier(20, min_samples_leaf=9)\n" + code
    )
    project = Project.open(trainable)
    registry = project.registry()
    history = project.history()
    (result,) = jobs.train(project, ["churn"], history, registry)
    assert result.importance  # measured by swapping values, as there is no exact way
    place = registry.fetch("churn", result.version, tmp_path / "churn")
    assert (place / "part-0.onnx").exists()
    loaded = artifact.load(place)
    rows = pd.DataFrame(
        [{c: float(i) for c in loaded.columns} for i in range(5)]
        + [dict.fromkeys(loaded.columns, np.nan)]
    )
    source = mlflow.MlflowClient(registry.uri).get_model_version("churn", "1").source
    found = mlflow.pyfunc.load_model(source).predict(rows)["score"]
    assert np.array_equal(found, loaded.score(rows))


# ------------------------------------------------------------------ contributions


@needs_onnx
def test_effects_are_those_of_a_linear_model_where_columns_add_up():
    x, y = some_rows(300)
    line = LogisticRegression(C=0.1).fit(x, y)
    background = x[:8]
    graph = bare(onnx_convert.convert(line, x[:30]), 3, background)
    body = {"coef": line.coef_[0], "intercept": line.intercept_[0],
            "reference": background.mean(axis=0)}  # fmt: skip
    expected = Logistic(body, Steps((), 3), 1.0, 3).contributions(x[:50])
    assert np.abs(graph.contributions(x[:50]) - expected).max() < 1e-7


@needs_onnx
def test_effects_of_a_forest_are_as_defined_and_no_more_is_claimed(tmp_path, monkeypatch):
    forest = RandomForestClassifier(9, min_samples_leaf=9, random_state=0)
    loaded = store(tmp_path, fitted(forest))
    x = loaded.encode(strangers(9))
    background = small.encoded()[:5]
    columns = {0: [0], 1: [1], 2: [2, 3, 4], 3: [5]}  # spend, age, tier (3 values), member

    def log_odds(rows):
        return logit(np.clip(forest.predict_proba(rows)[:, 1], 1e-3, 1 - 1e-3))

    for raw, encoded in columns.items():
        swapped = []
        for other in background:
            rows = x.copy()
            rows[:, encoded] = other[encoded]
            swapped.append(log_odds(rows))
        expected = log_odds(x) - np.mean(swapped, axis=0)
        assert np.abs(loaded.effects(x)[:, raw] - expected).max() < 1e-9
    together = loaded.effects(x)
    monkeypatch.setattr(onnx, "_CELLS_PER_CHUNK", 1)
    assert loaded.effects(x).tobytes() == together.tobytes()


@needs_onnx
def test_the_true_driver_comes_first_with_the_right_sign(tmp_path):
    loaded = store(tmp_path, fitted(ZOO["blend with LightGBM"][0]))
    row = small.raw().iloc[0].to_dict()
    rich, poor = (loaded.contributions({**row, "spend": s}, top=1)[0] for s in (900.0, 1.0))
    assert rich.feature == poor.feature == "spend"
    assert poor.effect < 0 < rich.effect


# ------------------------------------------------------------------ what a file may hold


@pytest.fixture
def stored(tmp_path):
    store(tmp_path, fitted(RandomForestClassifier(3, max_depth=3, random_state=0)))
    return tmp_path / "m"


def edited(change):
    import onnx as library

    def edit(content):
        model = library.load_model_from_string(content)
        change(model, library)
        return model.SerializeToString()

    return edit


def lead_to_another_file(model, library):
    tensor = library.numpy_helper.from_array(np.zeros(3), "w")
    library.external_data_helper.set_external_data(tensor, location="../../etc/passwd")
    tensor.ClearField("raw_data")
    model.graph.initializer.append(tensor)


def add(op, domain="", **attributes):
    def change(model, library):
        node = library.helper.make_node(op, ["x"], ["extra"], domain=domain, **attributes)
        model.graph.node.append(node)
        if domain:
            model.opset_import.append(library.helper.make_opsetid(domain, 1))

    return change


def hide_a_loop(model, library):
    make = library.helper
    loop = make.make_node("Loop", ["n", "c"], ["y"], body=model.graph)
    inner = make.make_graph([loop], "g", [], [])
    outer = make.make_node("If", ["c"], ["z"], then_branch=inner, else_branch=inner)
    model.graph.node.append(outer)


def bring_a_function(model, library):
    make = library.helper
    body = [make.make_node("Abs", ["a"], ["b"])]
    imports = [make.make_opsetid("", 17)]
    model.functions.append(make.make_function("own", "F", ["a"], ["b"], body, imports))


def read_another_width(model, library):
    model.graph.input[0].type.tensor_type.shape.dim[1].dim_value = 2


def rename_the_input(model, library):
    model.graph.input[0].name = "z"


def read_text(model, library):
    model.graph.input[0].type.tensor_type.elem_type = library.TensorProto.STRING


def give_twice(model, library):
    model.graph.output.append(model.graph.output[0])


@needs_onnx
@pytest.mark.parametrize(
    ("change", "words"),
    [
        (lead_to_another_file, "tensor 'w' lies in another file"),
        (add("Solve", "com.microsoft"), "uses operators of com.microsoft"),
        (add("PyOp", "ai.onnx.contrib"), "uses operators of ai.onnx.contrib"),
        (add("RandomNormalLike"), "holds the operator RandomNormalLike"),
        (hide_a_loop, "holds the operator Loop"),
        (bring_a_function, "functions of its own"),
        (read_another_width, r"reads a matrix \[0, 2\], not 6 columns"),
        (rename_the_input, "not a valid ONNX graph|does not map one matrix"),
        (read_text, "does not read numbers"),
        (give_twice, "not a valid ONNX graph|does not map one matrix"),
        (add("NoSuchOperator"), "not a valid ONNX graph"),
    ],
)
def test_a_graph_that_is_more_than_arithmetic_is_refused(stored, change, words):
    file = stored / "part-0.onnx"
    file.write_bytes(edited(change)(file.read_bytes()))
    rehash(stored, "part-0.onnx")
    with pytest.raises(ArtifactError, match=words):
        artifact.load(stored)


@needs_onnx
@pytest.mark.parametrize("content", [b"", b"\x80\x04cposix\nsystem\n.", b"\x08" * 50, b"{}"])
def test_what_is_no_graph_is_refused(stored, content):
    (stored / "part-0.onnx").write_bytes(content)
    rehash(stored, "part-0.onnx")
    with pytest.raises(ArtifactError, match="cannot be read"):
        artifact.load(stored)


@needs_onnx
def test_a_graph_too_large_is_refused_on_the_way_in_and_out(stored, monkeypatch):
    monkeypatch.setattr(onnx, "MAX_BYTES", 100)
    with pytest.raises(ArtifactError, match="above 100"):
        artifact.load(stored)
    x, y = some_rows()
    with pytest.raises(ArtifactError, match="above 100"):
        export(RandomForestClassifier(3).fit(x, y), x)


@needs_onnx
@pytest.mark.parametrize("tolerance", [1.0, 1e-4, None])
def test_a_part_cannot_allow_itself_more(stored, tolerance):
    body = json.loads((stored / "part-0.json").read_text())
    body["tolerance"] = tolerance
    (stored / "part-0.json").write_text(json.dumps(body))
    rehash(stored, "part-0.json")
    with pytest.raises(ArtifactError, match="cannot be read"):
        artifact.load(stored)


# ------------------------------------------------------------------ without the extra


def test_without_the_packages_check_says_what_to_install(monkeypatch):
    monkeypatch.setattr(onnx, "find_spec", lambda name: None if name == "skl2onnx" else name)
    words = 'skl2onnx is not installed; run pip install "nextbest[onnx]"'
    forest = RandomForestClassifier(3)
    assert exportable(forest) == f"sklearn.RandomForestClassifier goes to ONNX, and {words}"
    assert words in str(exportable(blend({"own": small.trees(), "forest": forest})))
    model = Model(label=NoPurchase(), estimator=forest, baseline=SingleFeature("a", name="a"))
    assert [words in str(f) for f in model.named("churn").faults([])] == [True]
    x, y = some_rows()
    with pytest.raises(ArtifactError, match="skl2onnx is not installed"):
        export(forest.fit(x, y), x)
    # What has a form of its own needs none of it, and Python code is refused for what it is.
    assert exportable(blend({"own": small.trees(), "line": linear()})) is None
    assert "has no safe format" in str(exportable(object()))


@needs_onnx
def test_a_server_without_the_packages_says_what_to_install(stored, monkeypatch):
    monkeypatch.setattr(onnx, "find_spec", lambda name: None)
    with pytest.raises(ArtifactError, match=r"stored as ONNX, and onnx, onnxruntime are not inst"):
        artifact.load(stored)


def test_who_does_not_use_onnx_does_not_load_it():
    script = (
        "import sys\nimport nextbest.serve.bundle, nextbest.learn.train\n"
        "assert not {'onnx', 'onnxruntime', 'skl2onnx'} & set(sys.modules)\n"
    )
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
