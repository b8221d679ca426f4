"""Tuning: the search finds a known best, looks at nothing after the cut, and survives Ctrl-C."""

from __future__ import annotations

import json
import sys
from datetime import datetime, timedelta
from typing import ClassVar

import numpy as np
import pandas as pd
import pytest
from lightgbm import LGBMClassifier
from sklearn.base import BaseEstimator, ClassifierMixin
from sklearn.linear_model import LogisticRegression
from sklearn.metrics import log_loss

from nextbest import FutureValue, Model, NoPurchase, RunRate, SingleFeature, blend, linear
from nextbest.data.snapshots import rolling_folds, time_split
from nextbest.errors import ConfigError, DataError, FitError, UsageError
from nextbest.learn.tune import Trial, space_faults, tune, tuned

optuna = pytest.importorskip(
    "optuna", reason='Optuna is not installed: pip install "nextbest[tune]"'
)

START, CUT = datetime(2023, 1, 1), datetime(2023, 9, 1)
COLUMNS = ["signal", "noise", "tier"]


def snapshot(seed=0, per_moment=150):
    """Rows of 12 moments, labels closed 30 days later; the last moments lie after the cut."""
    rng = np.random.default_rng(seed)
    n = 12 * per_moment
    signal = rng.normal(size=n)
    moments = [START + timedelta(days=28 * i) for i in range(12)]
    as_of = pd.to_datetime(np.repeat(moments, per_moment)).astype("datetime64[us]")
    return pd.DataFrame(
        {
            "row": np.arange(n, dtype=float),
            "as_of": as_of,
            "label_end": as_of + timedelta(days=30),
            "label": (rng.random(n) < 1 / (1 + np.exp(1 - 1.5 * signal))).astype(float),
            "signal": signal,
            "noise": rng.normal(size=n),
            "tier": rng.choice(np.array(["gold", "basic"], dtype=object), n),
        }
    )


def training_side(frame):
    return frame[time_split(frame, CUT).train].reset_index(drop=True)


def model_of(estimator):
    return Model(
        label=NoPurchase(30, 30),
        estimator=estimator,
        baseline=SingleFeature("signal", "s"),
        name="m",
    )


def search(estimator, space, n_trials=8, seed=0, frame=None, **options):
    rows = training_side(snapshot()) if frame is None else frame
    settings = {"columns": COLUMNS, "folds": 3, "cut": CUT, **options}
    return tune(
        model_of(estimator), rows, settings.pop("columns"), settings.pop("folds"),
        space, n_trials, seed, **settings,
    )  # fmt: skip


# ------------------------------------------------------------------ what it finds


def test_it_finds_a_better_setting_and_the_value_is_the_folds_mean():
    frame = training_side(snapshot())
    space = {"C": {"low": 1e-3, "high": 1e2, "log": True}}
    found = search(LogisticRegression(C=1e-4), space, 12, columns=["signal", "noise"])
    assert found.best_value < found.defined_value - 0.05
    assert found.better_folds == 3
    assert set(found.best_params) == {"C"}
    by_hand = []
    y, X = frame["label"].to_numpy(), frame[["signal", "noise"]].to_numpy()
    for fit, validate in rolling_folds(frame, 3):
        fitted = LogisticRegression(C=found.best_params["C"]).fit(X[fit], y[fit])
        by_hand.append(log_loss(y[validate], fitted.predict_proba(X[validate])[:, 1]))
    assert found.best_value == pytest.approx(np.mean(by_hand), rel=1e-9)
    best = next(t for t in found.trials if t.value == found.best_value)
    assert best.folds == pytest.approx(by_hand, rel=1e-9)
    assert "as defined" in str(found)
    assert "better in 3 of 3 folds): C = " in str(found)


def test_where_nothing_beats_the_definition_it_stays():
    found = search(LogisticRegression(C=1.0), {"C": {"low": 1e-6, "high": 1e-5}}, 4)
    assert found.best_params == {}
    assert found.best_value == found.defined_value
    assert found.better_folds == 0
    assert "nothing beats the model as defined" in str(found)


def test_a_metric_of_which_more_is_better_is_maximised():
    found = search(
        linear(), {"logistic__C": {"low": 1e-4, "high": 10.0, "log": True}}, 6, metric="auc"
    )
    values = [t.value for t in found.trials]
    assert found.best_value == max(values)
    assert 0.5 < found.best_value < 1


def test_every_kind_of_range_reaches_the_estimator():
    estimator = blend(
        {"trees": LGBMClassifier(n_estimators=5, n_jobs=1, verbose=-1), "linear": linear()}
    )
    space = {
        "trees__num_leaves": {"low": 4, "high": 12, "step": 4},
        "trees__reg_lambda": {"low": 0.1, "high": 10, "log": True},
        "linear__logistic__C": {"low": 0.5, "high": 1.0},
        "weights": {"choices": [[1.0, 1.0], [2.0, 1.0]]},
        "trees__boosting_type": {"choices": ["gbdt", "dart"]},
    }
    found = search(estimator, space, 5)
    assert [t.error for t in found.trials] == [""] * 6
    for trial in found.trials[1:]:
        p = trial.params
        assert p["trees__num_leaves"] in (4, 8, 12)
        assert isinstance(p["trees__num_leaves"], int)
        assert 0.1 <= p["trees__reg_lambda"] <= 10
        assert p["weights"] in ([1.0, 1.0], [2.0, 1.0])
        changed = tuned(model_of(estimator), p).estimator.get_params()
        assert {name: changed[name] for name in p} == p
    assert json.loads(json.dumps(found.to_dict(), allow_nan=False))["trials"][0]["params"] == {}


def test_the_same_seed_gives_the_same_trials_and_the_model_is_untouched():
    estimator = LGBMClassifier(
        n_estimators=5, subsample=0.5, subsample_freq=1, verbose=-1, n_jobs=1
    )
    space = {"num_leaves": {"low": 3, "high": 30}}
    one, two = (search(estimator, space, 5, seed=3) for _ in range(2))
    other = search(estimator, space, 5, seed=4)
    assert one == two
    assert [t.params for t in one.trials] != [t.params for t in other.trials]
    assert estimator.get_params()["num_leaves"] == 31
    assert not hasattr(estimator, "classes_")


def test_the_same_settings_are_fitted_once(monkeypatch):
    fits = []
    plain = LogisticRegression.fit

    def counted(self, X, y):
        fits.append(self.C)
        return plain(self, X, y)

    monkeypatch.setattr(LogisticRegression, "fit", counted)
    found = search(LogisticRegression(), {"C": {"choices": [0.1, 0.2]}}, 9)
    assert len(found.trials) == 10
    assert len(fits) == 3 * 3  # as defined, and two choices, on three folds


# ------------------------------------------------------------------ what it may see


class Watcher(ClassifierMixin, BaseEstimator):
    """Notes which rows it is fitted to and asked about; the first column is the row's number."""

    seen: ClassVar[list] = []

    def __init__(self, weight=1.0):
        self.weight = weight

    def fit(self, X, y):
        self.classes_ = np.array([0.0, 1.0])
        self.rows_ = X[:, 0].astype(int)
        return self

    def predict_proba(self, X):
        Watcher.seen.append((self.rows_, X[:, 0].astype(int)))
        p = np.full(len(X), 0.3)
        return np.column_stack([1 - p, p])


def test_no_fold_sees_a_label_that_was_open_or_a_row_of_the_test():
    frame = snapshot()
    split = time_split(frame, CUT)
    assert split.test.any() and split.in_gap
    Watcher.seen.clear()
    search(
        Watcher(), {"weight": {"low": 1.0, "high": 2.0}}, 3,
        frame=frame[split.train], columns=["row", *COLUMNS],
    )  # fmt: skip
    assert len(Watcher.seen) == 4 * 3
    training = set(frame.index[split.train])
    for fit, validate in Watcher.seen:
        assert set(fit) | set(validate) <= training
        assert frame["label_end"][fit].max() <= frame["as_of"][validate].min()
        assert not set(fit) & set(validate)


def test_what_happens_after_the_cut_changes_no_trial():
    frame = snapshot()
    spoiled = frame.copy()
    later = ~time_split(frame, CUT).train
    spoiled.loc[later, "label"] = 1 - spoiled.loc[later, "label"]
    spoiled.loc[later, "signal"] = 99.0
    space = {"C": {"low": 1e-3, "high": 1e2, "log": True}}
    one, two = (
        search(LogisticRegression(), space, 4, frame=training_side(f), columns=["signal", "noise"])
        for f in (frame, spoiled)
    )
    assert one == two


@pytest.mark.parametrize("side", ["test", "gap"])
def test_rows_of_the_test_or_the_gap_are_refused(side):
    frame = snapshot()
    split = time_split(frame, CUT)
    extra = split.test if side == "test" else ~split.test & ~split.train
    with pytest.raises(DataError, match=r"only the test may see.*closed by 2023-09-01; got 1[05]0"):
        first = np.flatnonzero(extra)[:150]
        search(
            LogisticRegression(), {"C": {"low": 0.1, "high": 1.0}},
            frame=frame.iloc[[*np.flatnonzero(split.train), *first]],
        )  # fmt: skip


# ------------------------------------------------------------------ what may go wrong


def test_each_trial_is_told_as_it_ends():
    told = []
    found = search(
        LogisticRegression(), {"C": {"low": 0.1, "high": 1.0}}, 4,
        on_trial=lambda number, params, value: told.append((number, dict(params), value)),
    )  # fmt: skip
    assert told == [(t.number, dict(t.params), t.value) for t in found.trials]
    assert [number for number, _params, _value in told] == [0, 1, 2, 3, 4]


class Stops(LogisticRegression):
    """Ctrl-C while the n-th fit runs."""

    fits = 0
    stop_at = 0

    def fit(self, X, y, sample_weight=None):
        Stops.fits += 1
        if Stops.fits == Stops.stop_at:
            raise KeyboardInterrupt
        return super().fit(X, y)


def test_ctrl_c_keeps_the_best_so_far():
    before = optuna.logging.get_verbosity()
    Stops.fits, Stops.stop_at = 0, 3 * 4 + 2  # in the second fold of the fourth candidate
    found = search(Stops(C=1e-4), {"C": {"low": 1e-2, "high": 1e2, "log": True}}, 50)
    assert found.interrupted
    assert len(found.trials) == 4
    assert found.best_params["C"] > 1e-2
    assert "3 trials, stopped early: log loss" in str(found)
    assert optuna.logging.get_verbosity() == before


def test_ctrl_c_before_anything_is_known_goes_on_up():
    Stops.fits, Stops.stop_at = 0, 2
    with pytest.raises(KeyboardInterrupt):
        search(Stops(), {"C": {"low": 0.1, "high": 1.0}}, 5)


def test_a_candidate_that_fails_is_told_and_passed_over():
    found = search(LogisticRegression(), {"solver": {"choices": ["lbfgs", "nonsense"]}}, 6)
    failed = [t for t in found.trials if t.value is None]
    assert failed
    assert all(t.params == {"solver": "nonsense"} and "solver" in t.error for t in failed)
    assert f"{len(failed)} failed" in str(found)


def test_where_all_candidates_fail_it_says_why():
    with pytest.raises(FitError, match=r"none of 3 candidates.*InvalidParameter.*'C'"):
        search(LogisticRegression(), {"C": {"low": -2.0, "high": -1.0}}, 3)


def test_a_model_that_fails_as_defined_is_no_search():
    with pytest.raises(FitError, match="the model as defined fails"):
        search(LogisticRegression(C=-1), {"C": {"low": 0.1, "high": 1.0}}, 3)


def test_all_faults_of_a_space_are_named_at_once():
    estimator = blend({"trees": LGBMClassifier(), "linear": linear()})
    space = {
        "trees__num_leafs": {"low": 4, "high": 32},
        "trees__num_leaves": {"low": 32, "high": 4},
        "linear__logistic__C": {"low": 0, "high": 1.0, "log": True},
        "linear": {"choices": [1, 2]},
        "trees__max_depth": {"low": 1, "hihg": 5},
        "trees__reg_lambda": {"low": True, "high": float("inf")},
        "trees__reg_alpha": {"low": 0.1, "high": 1, "step": 0.1, "log": True},
        "trees__subsample": {"choices": [0.5], "low": 1},
        "trees__min_child_samples": {"low": 5, "high": 9, "step": 0.5},
        "weights": 3,
    }
    with pytest.raises(ConfigError) as caught:
        search(estimator, space, 1)
    text = str(caught.value)
    for words in (
        'search.trees__num_leafs: the estimator has no such setting. Did you mean "trees__num_lea',
        "search.trees__num_leaves: the range is empty. Must be low below high; got 32 to 4",
        "search.linear__logistic__C: low is wrong. Must be above 0 where log = true; got 0",
        "search.linear: this is a part of the estimator, not a setting. Must be a setting such as "
        "linear__",
        'search.trees__max_depth: a range has no "hihg"',
        "search.trees__max_depth: high is wrong. Must be a finite number; got nothing",
        "search.trees__reg_lambda: low is wrong. Must be a finite number; got True",
        "search.trees__reg_lambda: high is wrong. Must be a finite number; got inf",
        "search.trees__reg_alpha: step and log exclude each other",
        "search.trees__subsample: choices stand beside a range",
        "search.trees__subsample: choices is wrong. Must be a list of at least two; got [0.5]",
        "search.trees__min_child_samples: step is wrong. Must be a whole number",
        "search.weights: this is no range. Must be { low = ..., high = ... } or { choices",
    ):
        assert words in text
    assert len(caught.value.faults) == 13
    assert all("training/training.toml: models.m.search" in f.where for f in caught.value.faults)
    assert space_faults({"trees__num_leaves": {"low": 2, "high": 3}}, estimator, "here") == []


@pytest.mark.parametrize(
    ("options", "error", "words"),
    [
        ({"n_trials": 0}, UsageError, "at least 1; got 0"),
        ({"metric": "aux"}, UsageError, 'metric "aux".*Did you mean "auc"'),
        ({"space": {}}, ConfigError, r"nothing to search.*\[models.m.search\]"),
        ({"frame": training_side(snapshot()).iloc[:300]}, DataError, "too short to try"),
    ],
)
def test_misuse_is_named(options, error, words):
    settings = {"space": {"C": {"low": 0.1, "high": 1.0}}, "n_trials": 2, **options}
    with pytest.raises(error, match=words):
        search(LogisticRegression(), **settings)


def test_a_model_of_amounts_is_not_tuned():
    amounts = Model(label=FutureValue(30), estimator=None, baseline=RunRate("s", 1, 1), name="clv")
    with pytest.raises(UsageError, match="gives no probability"):
        tune(amounts, snapshot(), COLUMNS, 3, {"a": {"low": 1, "high": 2}}, 2, cut=CUT)


def test_without_optuna_it_says_what_to_install(monkeypatch):
    monkeypatch.setitem(sys.modules, "optuna", None)
    with pytest.raises(UsageError, match=r"not installed.*nextbest\[tune\]"):
        search(LogisticRegression(), {"C": {"low": 0.1, "high": 1.0}})


def test_a_trial_is_plain_json():
    trial = Trial(3, {"C": 0.5}, None, error="ValueError: no")
    assert json.loads(json.dumps(trial.to_dict())) == {
        "number": 3, "params": {"C": 0.5}, "value": None, "folds": [], "error": "ValueError: no",
    }  # fmt: skip
