import hashlib
import json
import subprocess
import sys
from functools import lru_cache

import numpy as np
import pandas as pd
import pytest
import small_models as small
from lightgbm import LGBMRegressor
from sklearn.discriminant_analysis import LinearDiscriminantAnalysis
from sklearn.impute import SimpleImputer
from sklearn.linear_model import LogisticRegression, SGDClassifier
from sklearn.model_selection import GridSearchCV, RandomizedSearchCV, TunedThresholdClassifierCV
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler

from nextbest.errors import ArtifactError
from nextbest.learn import artifact
from nextbest.learn.calibration import Platt
from nextbest.learn.clv import BetaGeoNBD, CustomerLifetimeValue, GammaGamma
from nextbest.learn.estimators import FeatureEncoder, SignedLog1p, blend, linear

ZOO = {
    "trees": lambda: small.trees(),
    "unbalanced trees": lambda: small.trees(class_weight="balanced", boosting_type="dart"),
    "linear": lambda: linear(),
    "linear with indicators": lambda: make_pipeline(
        SimpleImputer(strategy="mean", add_indicator=True),
        SignedLog1p(),
        StandardScaler(with_mean=False),
        LogisticRegression(C=0.3),
    ),
    "linear without scaling": lambda: make_pipeline(
        SignedLog1p(), SimpleImputer(strategy="most_frequent"), LogisticRegression()
    ),
    "trees after steps": lambda: make_pipeline(
        SimpleImputer(), StandardScaler(with_std=False), small.trees()
    ),
    "discriminant": lambda: make_pipeline(SimpleImputer(), LinearDiscriminantAnalysis()),
    "gradient steps": lambda: make_pipeline(
        SignedLog1p(), SimpleImputer(), SGDClassifier(loss="log_loss", random_state=0)
    ),
    "a search": lambda: GridSearchCV(linear(), {"logistic__C": [0.1, 1.0]}),
    "a search within a threshold": lambda: TunedThresholdClassifierCV(
        RandomizedSearchCV(small.trees(), {"num_leaves": [3, 7]}, n_iter=2, random_state=0)
    ),
    "nested blend": lambda: blend(
        {"x": blend({"t": small.trees(), "l": linear()}, [1, 3]), "y": linear(C=1.0)}, [0.3, 0.7]
    ),
}


def rehash(directory, file=None):
    """Make the manifest agree with tampered files again, as an attacker would."""
    path = directory / "manifest.json"
    manifest = json.loads(path.read_text())
    if file:
        manifest["files"][file] = hashlib.sha256((directory / file).read_bytes()).hexdigest()
    manifest["sha256"] = artifact._self_hash(manifest)
    path.write_text(json.dumps(manifest))


def change(directory, file, edit):
    content = json.loads((directory / file).read_text())
    edit(content)
    (directory / file).write_text(json.dumps(content))


@pytest.fixture
def stored(tmp_path):
    small.save_blend(tmp_path / "model")
    return tmp_path / "model"


@pytest.mark.parametrize("name", ZOO)
def test_what_is_loaded_scores_as_the_estimator_does(name, tmp_path):
    estimator = ZOO[name]().fit(small.encoded(), small.outcome())
    platt = Platt(1.3, -0.2)
    saved = artifact.save(
        tmp_path / "m", name="churn", kind="probability", estimator=estimator,
        encoder=small.encoder(), calibrator=platt, golden_rows=small.raw().head(9),
    )  # fmt: skip
    loaded = artifact.load(tmp_path / "m")
    scores = loaded.score(small.raw())
    expected = platt.apply(estimator.predict_proba(small.encoded())[:, 1])
    assert np.abs(scores - expected).max() < 1e-12
    assert scores.tobytes() == saved.score(small.raw()).tobytes()
    assert loaded.columns == tuple(small.raw().columns)


def test_a_column_never_known_in_training_is_handled_as_scikit_learn_does(tmp_path):
    raw = small.raw().assign(never=np.nan)
    encoder = FeatureEncoder().fit(raw)
    x = encoder.transform(raw)
    estimator = make_pipeline(SimpleImputer(), LogisticRegression(max_iter=500))
    with pytest.warns(UserWarning, match="without any observed values"):
        estimator.fit(x, small.outcome())
    loaded = artifact.save(
        tmp_path / "m", name="churn", kind="probability", estimator=estimator, encoder=encoder,
        golden_rows=raw.head(5),
    )  # fmt: skip
    with pytest.warns(UserWarning, match="without any observed values"):
        expected = estimator.predict_proba(x)[:, 1]
    assert np.abs(loaded.score(raw) - expected).max() < 1e-12


def test_a_value_model_gives_amounts(tmp_path):
    y = np.nan_to_num(small.raw()["spend"].to_numpy())
    estimator = LGBMRegressor(n_estimators=20, n_jobs=1, verbose=-1).fit(small.encoded(), y)
    loaded = artifact.save(
        tmp_path / "m", name="spend", kind="value", estimator=estimator,
        encoder=small.encoder(), golden_rows=small.raw().head(5),
    )  # fmt: skip
    assert np.abs(loaded.score(small.raw()) - estimator.predict(small.encoded())).max() < 1e-9


@lru_cache(maxsize=1)
def lifetime():
    rng = np.random.default_rng(0)
    n, frequency = 400, rng.poisson(2, 400)
    T = rng.uniform(200, 360, n)
    rfm = pd.DataFrame(
        {
            "frequency": frequency,
            "recency": np.where(frequency > 0, T * rng.uniform(0.2, 0.95, n), 0.0),
            "T": T,
            "monetary_value": np.where(frequency > 0, rng.gamma(6, 5, n), 0.0),
        }
    )
    return CustomerLifetimeValue(BetaGeoNBD(), GammaGamma(), horizon_days=90).fit(rfm), rfm


def test_a_lifetime_value_model_gives_value_interval_and_p_alive(tmp_path):
    model, rfm = lifetime()
    artifact.save(
        tmp_path / "m", name="clv", kind="clv", estimator=model,
        encoder=FeatureEncoder().fit(rfm), golden_rows=rfm.head(5),
        metadata={"interval_level": 0.8},
    )  # fmt: skip
    loaded = artifact.load(tmp_path / "m")
    found = loaded.scores(rfm)
    assert np.array_equal(found["clv"], model.predict(rfm)["clv"])
    assert np.array_equal(found["p_alive"], model.probability_alive(rfm))
    assert np.array_equal(found["clv_high"], model.predict_interval(rfm, 0.8)["clv_high"])
    assert np.array_equal(loaded.score(rfm), found["clv"])
    unknown = rfm.astype(float)
    unknown.loc[1, "T"] = np.nan
    assert list(np.flatnonzero(np.isnan(loaded.scores(unknown)["clv_low"]))) == [1]


def test_only_text_and_strict_json_are_written(stored):
    for path in stored.iterdir():
        assert path.suffix in (".json", ".txt")
        text = path.read_text(encoding="utf-8")
        if path.suffix == ".json":
            json.loads(text, parse_constant=pytest.fail)
    assert "silvér" in (stored / "manifest.json").read_text(encoding="utf-8")


def test_the_manifest_says_what_the_model_is(stored):
    manifest = json.loads((stored / "manifest.json").read_text())
    assert manifest["name"] == "churn"
    assert manifest["kind"] == "probability"
    assert {"name": "tier", "kind": "category"} in manifest["columns"]
    assert [c["weight"] for c in manifest["components"]] == pytest.approx([2 / 3, 1 / 3])
    assert manifest["calibrator"]["kind"] == "beta"
    assert manifest["libraries"]["lightgbm"]
    assert manifest["metadata"] == {"note": "test"}


def test_golden_rows_hold_unknown_values_and_one_row_of_nothing_else(stored):
    golden = json.loads((stored / "golden.json").read_text())
    assert len(golden["rows"]) == 31
    assert set(golden["rows"][-1].values()) == {None}
    assert any(row["spend"] is None and row["age"] is not None for row in golden["rows"])


def test_loading_runs_nothing_that_a_pickle_could_hold(stored):
    # The interpreter itself reports every class that any unpickler looks up. Libraries are loaded
    # before: Numba keeps what it compiled of our own code as it keeps it, beside that code.
    script = (
        "import sys\nimport lightgbm, sklearn, pandas\n"
        "from nextbest.learn import artifact, bitmask\n"
        "seen = []\n"
        "sys.addaudithook(lambda event, args: seen.append(args) if 'pickle' in event else None)\n"
        f"artifact.load({str(stored)!r})\n"
        "assert not seen, seen\n"
        "import pickle\npickle.loads(pickle.dumps(artifact.KINDS.__class__))\n"
        "assert seen, 'the hook sees nothing'\n"
    )
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr


@pytest.mark.parametrize("planted", ["model.pkl", "model.joblib", "python_model.pkl", "notes.txt"])
def test_a_planted_file_is_refused(stored, planted):
    (stored / planted).write_bytes(b"\x80\x04cposix\nsystem\n.")
    with pytest.raises(ArtifactError, match=f"{planted}: this file is not in the manifest"):
        artifact.load(stored)


def test_a_pickle_in_place_of_a_named_file_is_refused_even_with_its_hash(stored):
    for file in ("part-0.json", "part-0.txt", "golden.json"):
        keep = (stored / file).read_bytes()
        (stored / file).write_bytes(b"\x80\x04cposix\nsystem\n.")
        rehash(stored, file)
        with pytest.raises(ArtifactError):
            artifact.load(stored)
        (stored / file).write_bytes(keep)
        rehash(stored, file)
    artifact.load(stored)


@pytest.mark.parametrize("where", [10, -10])
@pytest.mark.parametrize("file", ["part-0.json", "part-0.txt", "part-1.json", "golden.json"])
def test_one_changed_byte_is_noticed(stored, file, where):
    content = bytearray((stored / file).read_bytes())
    content[where] ^= 1
    (stored / file).write_bytes(content)
    with pytest.raises(ArtifactError, match=f"{file}: it was changed"):
        artifact.load(stored)


def test_a_changed_weight_in_the_manifest_is_noticed(stored):
    change(stored, "manifest.json", lambda m: m["components"][0].update(weight=0.5))
    with pytest.raises(ArtifactError, match=r"manifest\.json: it was changed"):
        artifact.load(stored)


def test_a_model_that_no_longer_scores_the_same_is_refused_with_row_and_values(stored):
    change(stored, "manifest.json", lambda m: m["calibrator"].update(c=m["calibrator"]["c"] + 1e-6))
    rehash(stored)
    with pytest.raises(ArtifactError, match=r"golden scores: score in row 0\. Must be 0\.\d+; got"):
        artifact.load(stored)


@pytest.mark.parametrize("file", ["part-0.txt", "part-1.json", "golden.json", "manifest.json"])
def test_a_missing_file_is_named(stored, file):
    (stored / file).unlink()
    with pytest.raises(ArtifactError, match=f"{file}: it cannot be read"):
        artifact.load(stored)


@pytest.mark.parametrize(
    "name", ["../secret.json", "/etc/passwd", "a/b.json", "..", "model.pkl", "a\\b.json", ".json"]
)
def test_the_manifest_cannot_lead_elsewhere(stored, name):
    (stored.parent / "secret.json").write_text("{}")
    change(stored, "manifest.json", lambda m: m["files"].update({name: "0" * 64}))
    rehash(stored)
    with pytest.raises(ArtifactError, match="names a file that no model holds"):
        artifact.load(stored)


def test_a_link_is_not_followed(stored, tmp_path):
    (stored / "part-0.json").rename(tmp_path / "elsewhere.json")
    (stored / "part-0.json").symlink_to(tmp_path / "elsewhere.json")
    with pytest.raises(ArtifactError, match="not a plain file"):
        artifact.load(stored)


@pytest.mark.parametrize(
    ("edit", "words"),
    [
        (lambda m: m.update(format=2), "another format"),
        (lambda m: m.update(kind="pickle"), "cannot be read"),
        (lambda m: m.pop("encoder"), "cannot be read"),
        (lambda m: m["components"][0].update(file="gone.json"), "cannot be read"),
        (lambda m: m["encoder"].update(columns=["spend"]), "cannot be read"),
        (lambda m: m.update(components=3), "cannot be read"),
        (lambda m: m.update(files=[]), "cannot be read|not in the manifest"),
    ],
)
def test_a_senseless_manifest_is_refused(stored, edit, words):
    change(stored, "manifest.json", edit)
    rehash(stored)
    with pytest.raises(ArtifactError, match=words):
        artifact.load(stored)


@pytest.mark.parametrize(
    "text", ["", "{", "[NaN]", "\x80", '{"format": Infinity}', "[]", "[" * 9**5]
)
def test_a_manifest_that_is_not_strict_json_is_refused(stored, text):
    (stored / "manifest.json").write_text(text, encoding="latin-1")
    with pytest.raises(ArtifactError, match=r"manifest\.json"):
        artifact.load(stored)


@pytest.mark.parametrize("body", ["not trees", "tree\nversion=v4\n", ""])
def test_broken_trees_are_refused(stored, body):
    (stored / "part-0.txt").write_text(body)
    rehash(stored, "part-0.txt")
    with pytest.raises(ArtifactError):
        artifact.load(stored)


@pytest.mark.parametrize(
    ("file", "edit", "words"),
    [
        ("part-1.json", lambda b: b.update(type="neural"), "unknown component 'neural'"),
        ("part-1.json", lambda b: b["steps"][0].update(op="exec"), "unknown preprocessing step"),
        ("part-1.json", lambda b: b["coef"].pop(), "coefficients for"),
        ("part-0.json", lambda b: b.update(trees="../x.txt"), "cannot be read"),
        ("golden.json", lambda g: g["rows"].pop(), "Must be 31 rows; got 30"),
        ("golden.json", lambda g: g["scores"].update(extra=[]), "golden scores"),
    ],
)
def test_a_senseless_part_is_refused(stored, file, edit, words):
    change(stored, file, edit)
    rehash(stored, file)
    with pytest.raises(ArtifactError, match=words):
        artifact.load(stored)


def test_no_directory_at_all(tmp_path):
    with pytest.raises(ArtifactError, match=r"manifest\.json: it cannot be read"):
        artifact.load(tmp_path / "nowhere")


def arguments(**changes):
    given = {
        "name": "churn", "kind": "probability", "estimator": small.fitted_blend(),
        "encoder": small.encoder(), "golden_rows": small.raw().head(3),
    }  # fmt: skip
    return given | changes


def test_what_cannot_be_saved_is_refused(tmp_path):
    class Own(LogisticRegression):
        pass

    own = Own().fit(small.encoded()[:, 1:2], small.outcome())
    for changes, words in [
        ({"estimator": own}, "Own has no safe format"),
        ({"kind": "guess"}, "unknown kind"),
        ({"kind": "value"}, "does not fit the model's kind"),
        ({"golden_rows": small.raw().head(0)}, "no golden rows"),
    ]:
        with pytest.raises(ArtifactError, match=words):
            artifact.save(tmp_path / "m", **arguments(**changes))
        assert not (tmp_path / "m").exists()


def test_a_directory_in_use_is_left_alone(stored):
    before = {p.name: p.read_bytes() for p in stored.iterdir()}
    with pytest.raises(ArtifactError, match="in use"):
        artifact.save(stored, **arguments())
    assert {p.name: p.read_bytes() for p in stored.iterdir()} == before


def test_the_same_model_is_stored_as_the_same_bytes(tmp_path):
    one, two = (small.save_blend(tmp_path / k) for k in "ab")
    assert one.digest == two.digest


def test_mlflow_gets_the_same_numbers(stored):
    found = artifact._load_pyfunc(str(stored)).predict(small.raw())
    assert list(found.columns) == ["score"]
    assert np.array_equal(found["score"], artifact.load(stored).score(small.raw()))
