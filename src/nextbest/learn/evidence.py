"""What a run keeps beside its model, as data: rows, segments, curves, effects, versions."""

from __future__ import annotations

import io
import json
import platform
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from importlib.metadata import PackageNotFoundError, version
from typing import Any, Final

import numpy as np
import pandas as pd

from nextbest.data.features import Feature
from nextbest.learn import segments
from nextbest.learn.metrics import Metric
from nextbest.learn.metrics import curves as probability_curves
from nextbest.learn.scorer import LoadedModel
from nextbest.learn.statistics import Array

__all__ = [
    "Effect",
    "Evidence",
    "curves",
    "effects",
    "environment",
    "feature_list",
    "gather",
    "test_rows",
    "value_curves",
]

_LIBRARIES: Final = (
    "nextbest", "duckdb", "ibis-framework", "lightgbm", "mlflow", "numpy", "pandas", "pyarrow",
    "scikit-learn", "scipy",
)  # fmt: skip
_EXPLAINED_ROWS: Final = 500
_CURVE_POINTS: Final = 100
_COLUMNS: Final = {"model": "score", "baseline": "baseline"}
#: Rank correlation of a feature with its effect from which on it has one direction.
_ONE_WAY: Final = 0.5


@dataclass(frozen=True)
class Effect:
    """What one feature does to the score, on up to 500 test rows.

    Attributes
    ----------
    mean : mean absolute effect, in log-odds against the average row.
    direction : in words.
    effects : (n,) the effect in each row.
    values : (n,) the feature in each row; None for text.
    """

    feature: str
    meaning: str
    mean: float
    direction: str
    effects: Array
    values: Array | None = None

    def to_dict(self) -> dict[str, Any]:
        """Return the summary, without the rows, as plain JSON types."""
        low, high = np.quantile(self.effects, [0.05, 0.95])
        return {
            "feature": self.feature,
            "meaning": self.meaning,
            "mean_effect": self.mean,
            "direction": self.direction,
            "low": float(low),
            "high": float(high),
        }


@dataclass(frozen=True)
class Evidence:
    """What a run keeps beside its model, its figures and its settings.

    Attributes
    ----------
    kind : ``probability`` or ``clv``.
    rows : the scored test rows with their segments.
    segments : figures for whom.
    curves : of ``model`` and ``baseline``.
    effects : what the features do, strongest first; empty for a value model.
    learned : a value model's fitted parameters; empty for any other.
    features : what the model reads.
    """

    kind: str
    rows: pd.DataFrame
    segments: tuple[segments.Segment, ...]
    curves: Mapping[str, Mapping[str, Any]]
    effects: tuple[Effect, ...]
    learned: Mapping[str, float]
    features: Sequence[Mapping[str, str]]

    @property
    def metrics(self) -> dict[str, Mapping[str, Metric]]:
        """The figures of every segment, named for the tracking store."""
        return {s.key: s.model for s in self.segments if s.model}

    def files(self) -> dict[str, bytes | str]:
        """Return the files of the run, by name."""
        scores = io.BytesIO()
        self.rows.to_parquet(scores, index=False)
        return {
            "test_scores.parquet": scores.getvalue(),
            "segments.json": _json([s.to_dict() for s in self.segments]),
            "curves.json": _json(self.curves),
            "effects.json": _json([e.to_dict() for e in self.effects]),
            "features.json": _json(self.features),
            "environment.json": _json(environment()),
        }


def gather(
    model: LoadedModel,
    test: pd.DataFrame,
    scores: pd.DataFrame,
    features: Iterable[Feature],
    *,
    seed: int = 0,
) -> Evidence:
    """Collect what a run keeps.

    Parameters
    ----------
    model : as it was stored.
    test : the test rows with all their columns.
    scores : keys, ``label``, ``score`` and ``baseline`` of the same rows in the same order.
    features : what is known of the features.
    seed : of intervals, and of the rows that effects are shown on.
    """
    known = tuple(features)
    rows = test_rows(scores, test)
    y = rows["label"].to_numpy(dtype=np.float64)
    kind = "clv" if model.kind == "clv" else "probability"
    return Evidence(
        kind=kind,
        rows=rows,
        segments=segments.measure(kind, rows, seed=seed),
        curves=curves(kind, y, {n: rows[c].to_numpy() for n, c in _COLUMNS.items()}),
        effects=effects(model, test, {f.name: f.meaning for f in known}, seed=seed),
        learned=learned(model),
        features=feature_list(model.columns, known),
    )


def _json(value: Any) -> str:
    return json.dumps(value, indent=1, allow_nan=False)


def test_rows(scores: pd.DataFrame, test: pd.DataFrame) -> pd.DataFrame:
    """Return scored test rows with their segments and, where it is known, their future value.

    Parameters: ``scores`` keys, label, score and baseline; ``test`` the same rows in the same
    order with all their columns.
    """
    rows = scores.reset_index(drop=True)
    if "future_value" in test:
        value = test["future_value"].to_numpy(dtype=np.float64)
        if not np.array_equal(value, rows["label"]):
            rows = rows.assign(future_value=value)
    return pd.concat([rows, segments.assign(test.reset_index(drop=True))], axis=1)


# ------------------------------------------------------------------ curves


def curves(kind: str, y: Array, scores: Mapping[str, Array]) -> dict[str, dict[str, Any]]:
    """Return the curves of every score on the same rows, by the score's name.

    A probability has ``roc``, ``pr``, ``gain``, ``lift`` and ``reliability``; a value has
    ``gain`` (share of all value held by the best share of rows) and ``tenths``.
    """
    draw = probability_curves if kind == "probability" else value_curves
    return {name: draw(y, score) for name, score in scores.items()}


def value_curves(actual: Array, predicted: Array) -> dict[str, dict[str, list[float]]]:
    """Return how well predicted amounts rank customers, and how close they come by tenth."""
    y, score = np.asarray(actual, np.float64), np.asarray(predicted, np.float64)
    order = np.argsort(-score, kind="stable")
    held = np.cumsum(y[order])
    ends = np.unique(np.linspace(0, y.size - 1, min(_CURVE_POINTS, y.size)).round().astype(int))
    total = held[-1] if held[-1] > 0 else np.nan
    tenths = [t for t in np.array_split(order[::-1], 10) if len(t)]
    return {
        "gain": {
            "share": [0.0, *((ends + 1) / y.size).tolist()],
            "captured": [0.0, *np.nan_to_num(held[ends] / total).tolist()],
        },
        "tenths": {
            "predicted": [float(score[t].mean()) for t in tenths],
            "actual": [float(y[t].mean()) for t in tenths],
            "rows": [float(len(t)) for t in tenths],
        },
    }


# ------------------------------------------------------------------ effects


def effects(
    model: LoadedModel, test: pd.DataFrame, meanings: Mapping[str, str], *, seed: int = 0
) -> tuple[Effect, ...]:
    """Return what each feature does to the score, strongest first.

    Empty for a value model, whose few parameters say what it does.
    """
    if model.kind != "probability" or test.empty:
        return ()
    rows = test.sample(min(_EXPLAINED_ROWS, len(test)), random_state=seed)
    rows = rows[list(model.columns)]
    matrix = model.effects(model.encode(rows))
    mean = np.abs(matrix).mean(axis=0)
    found = []
    for i in np.argsort(-mean, kind="stable"):
        if mean[i] <= 0:
            break
        name, effect = model.columns[i], matrix[:, i]
        values = None
        if name in model.encoder.vocabulary_:
            direction = _by_category(rows[name], effect)
        else:
            values = pd.to_numeric(rows[name]).to_numpy(dtype=np.float64)
            direction = _direction(values, effect)
        found.append(
            Effect(name, meanings.get(name, ""), float(mean[i]), direction, effect, values)
        )
    return tuple(found)


def _direction(values: Array, effect: Array) -> str:
    from scipy.stats import spearmanr

    known = np.isfinite(values)
    if known.sum() < 3 or np.ptp(values[known]) == 0 or np.ptp(effect[known]) == 0:
        return "one value only"
    rank = float(spearmanr(values[known], effect[known]).statistic)
    if abs(rank) < _ONE_WAY:
        return "either way"
    return "more raises the score" if rank > 0 else "more lowers the score"


def _by_category(values: pd.Series[Any], effect: Array) -> str:
    text = values.astype(object).where(values.notna(), "unknown").astype(str).to_numpy()
    means = pd.Series(effect).groupby(text).mean().sort_values()
    if len(means) < 2:
        return "one value only"
    return f"{means.index[-1]} raises it most, {means.index[0]} lowers it most"


# ------------------------------------------------------------------ what it was made of and with


def learned(model: LoadedModel) -> dict[str, float]:
    """Return the few fitted parameters of a value model, for example ``BetaGeoNBD.r``."""
    if model.kind != "clv":
        return {}
    parts = (model.value_model.purchase_model_, model.value_model.spend_model_)
    return {
        f"{type(part).__name__}.{name}": float(value)
        for part in parts
        for name, value in part.parameters_.items()
    }


def feature_list(columns: Sequence[str], known: Iterable[Feature]) -> list[dict[str, str]]:
    """Return the features that the model reads, in order, with what is known of each."""
    by_name = {f.name: f for f in known}
    return [
        {
            "name": name,
            **(
                {
                    "meaning": by_name[name].meaning,
                    "unit": by_name[name].unit,
                    "source": by_name[name].source,
                    "group": by_name[name].group,
                }
                if name in by_name
                else {}
            ),
        }
        for name in columns
    ]


def environment() -> dict[str, Any]:
    """Return versions of Python and libraries and the kind of machine, without names or paths."""
    return {
        "python": platform.python_version(),
        "implementation": platform.python_implementation(),
        "system": platform.system(),
        "machine": platform.machine(),
        "libraries": dict(_installed()),
    }


@cache
def _installed() -> Mapping[str, str]:
    # A version is read from files, and the process goes on with those it has loaded.
    found = {}
    for name in _LIBRARIES:
        try:
            found[name] = version(name)
        except PackageNotFoundError:
            continue
    return found
