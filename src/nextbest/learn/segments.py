"""How good a model is for whom: figures per segment, or why there are too few rows to say.

Segments come from columns that the test rows have anyway: tenure in thirds, recent spend in thirds,
and the type or channel of the offer.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import pairwise
from typing import Any, Final

import numpy as np
import pandas as pd

from nextbest.learn.metrics import Metric
from nextbest.learn.paired import RESAMPLES, Difference, Rows, figures
from nextbest.learn.statistics import Array

__all__ = [
    "DIMENSIONS",
    "PREFIX",
    "Dimension",
    "Segment",
    "assign",
    "each",
    "measure",
    "metric_names",
    "too_few",
]

#: Stored test rows carry their segments under this prefix: ``segment.tenure``.
PREFIX: Final = "segment."
MIN_POSITIVES: Final = 20
MIN_ROWS: Final = 30
_MOST_CATEGORIES: Final = 12
_UNKNOWN, _OTHER = "unknown", "other"
_NAMES: Final = {
    "probability": ("auc", "average_precision", "brier", "aggregate_ratio"),
    "clv": ("mae", "pearson_r", "aggregate_ratio"),
}


@dataclass(frozen=True)
class Dimension:
    """One way to part customers or rows into segments.

    Attributes
    ----------
    name : how the dimension is called.
    column : the feature it is read from.
    tiers : names of the three equal parts, lowest first; empty for a column of categories.
    unit : of the column, shown in the bounds.
    group : the built-in feature group that gives the column to rows without it, if any.
    """

    name: str
    column: str
    tiers: tuple[str, ...] = ()
    unit: str = ""
    group: str = ""


DIMENSIONS: Final = (
    Dimension("tenure", "tenure_days", ("shortest", "middle", "longest"), "days", "totals"),
    Dimension("value tier", "spend_91d", ("low", "middle", "high"), "in 91 days", "windows"),
    Dimension("offer type", "offer_type"),
    Dimension("channel", "channel"),
)


@dataclass(frozen=True)
class Segment:
    """The figures of one segment; ``too_few`` says why there are none.

    Attributes
    ----------
    n_positive : positive rows; None where outcomes are amounts.
    mean_outcome : share of positives, or mean amount.
    model, baseline : figures with intervals.
    difference : the model against the baseline, in the metric that decides.
    """

    dimension: str
    name: str
    n: int
    n_positive: int | None
    mean_outcome: float
    too_few: str = ""
    model: Mapping[str, Metric] = field(default_factory=dict)
    baseline: Mapping[str, Metric] = field(default_factory=dict)
    difference: Difference | None = None

    @property
    def label(self) -> str:
        """Dimension and name in words."""
        return f"{self.dimension} {self.name}"

    @property
    def key(self) -> str:
        """Name of its group of metrics in the tracking store: ``segment/tenure/shortest``."""
        plain = self.name.partition(" (")[0]
        return "segment/" + "/".join(
            re.sub(r"[^A-Za-z0-9_-]+", "_", part).strip("_") or "_"
            for part in (self.dimension, plain)
        )

    def to_dict(self) -> dict[str, Any]:
        """Return the facts as plain JSON types."""
        return {
            "dimension": self.dimension,
            "name": self.name,
            "n": self.n,
            "n_positive": self.n_positive,
            "mean_outcome": self.mean_outcome,
            "too_few": self.too_few,
            "model": {k: m.to_dict() for k, m in self.model.items()},
            "baseline": {k: m.to_dict() for k, m in self.baseline.items()},
            "difference": self.difference and self.difference.to_dict(),
        }


def assign(frame: pd.DataFrame) -> pd.DataFrame:
    """Return one ordered categorical column per dimension that the rows can be parted by.

    Equal values stay together, so thirds of a column with many equal values are unequal, or fewer
    than three. A dimension with one segment only says nothing and is left out.
    """
    columns = {}
    for dimension in DIMENSIONS:
        if dimension.column not in frame:
            continue
        values = frame[dimension.column]
        column = _tiers(values, dimension) if dimension.tiers else _categories(values)
        if column.nunique() > 1:
            columns[PREFIX + dimension.name] = column
    return pd.DataFrame(columns, index=frame.index)


def _tiers(values: pd.Series[Any], dimension: Dimension) -> pd.Series[Any]:
    numbers = values.to_numpy(dtype=np.float64)
    known = numbers[np.isfinite(numbers)]
    if known.size == 0:
        return _ordered(pd.Series(_UNKNOWN, index=values.index), [_UNKNOWN])
    parts = len(dimension.tiers)
    cuts = np.quantile(known, np.arange(1, parts) / parts, method="inverted_cdf")
    edges = np.unique(cuts[cuts < known.max()])
    # Of fewer than three parts the outer names are kept: there is no middle of two.
    names = dimension.tiers if len(edges) == parts - 1 else dimension.tiers[:: parts - 1]
    shown = [f"{edge:,.0f}" if edge == round(edge) or edge >= 100 else f"{edge:.3g}"
             for edge in edges]  # fmt: skip
    bounds = [f"up to {shown[0]}"] if shown else ["all"]
    bounds += [f"over {a} to {b}" for a, b in pairwise(shown)]
    bounds += [f"over {shown[-1]}"] if shown else []
    labels = [
        f"{name} ({bound}{' ' + dimension.unit if shown else ''})"
        for name, bound in zip(names, bounds, strict=False)
    ]
    place = np.searchsorted(edges, np.nan_to_num(numbers), side="left")
    text = np.where(np.isfinite(numbers), np.array(labels, dtype=object)[place], _UNKNOWN)
    return _ordered(pd.Series(text, index=values.index), [*labels, _UNKNOWN])


def _categories(values: pd.Series[Any]) -> pd.Series[Any]:
    text = values.astype(object).where(values.notna(), None)
    text = text.map(lambda v: _UNKNOWN if v is None else str(v))
    counts = text[text != _UNKNOWN].value_counts()
    common = sorted(counts.index, key=lambda v: (-int(counts[v]), v))
    if len(common) > _MOST_CATEGORIES:
        common = common[: _MOST_CATEGORIES - 1]
        text = text.where(text.isin([*common, _UNKNOWN]), _OTHER)
    return _ordered(text, [*common, _OTHER, _UNKNOWN])


def _ordered(text: pd.Series[Any], names: Sequence[str]) -> pd.Series[Any]:
    present = set(text)
    names = [n for n in dict.fromkeys(names) if n in present]
    return pd.Series(pd.Categorical(text, categories=names, ordered=True), index=text.index)


def each(frame: pd.DataFrame) -> Iterator[tuple[str, str, np.ndarray[Any, np.dtype[np.bool_]]]]:
    """Yield (dimension, segment, mask of its rows) of rows that carry ``segment.`` columns."""
    for column in frame.columns:
        if column.startswith(PREFIX):
            values = frame[column]
            names = list(values.cat.categories) if hasattr(values, "cat") else sorted(set(values))
            for name in names:
                mask = (values == name).to_numpy(dtype=bool)
                if mask.any():
                    yield column.removeprefix(PREFIX), str(name), mask


def metric_names(kind: str) -> tuple[str, ...]:
    """Figures that are shown per segment; the first one decides."""
    return _NAMES[kind]


def too_few(kind: str, y: Array, *, positive: str = "positives") -> str:
    """Say why rows are too few for a figure, or return an empty string."""
    if kind != "probability":
        return "" if y.size >= MIN_ROWS else f"only {y.size} rows; {MIN_ROWS} are needed"
    positives = int(y.sum())
    for count, name in ((positives, positive), (y.size - positives, "others")):
        if count < MIN_POSITIVES:
            return f"only {count} {name}; {MIN_POSITIVES} are needed"
    return ""


def measure(
    kind: str,
    frame: pd.DataFrame,
    *,
    seed: int = 0,
    resamples: int = RESAMPLES,
) -> tuple[Segment, ...]:
    """Return the figures of every segment, beside the baseline's.

    Parameters
    ----------
    kind : ``probability`` or ``clv``.
    frame : test rows with ``customer_id``, ``label``, ``score``, ``baseline`` and the columns of
        `assign`.
    seed, resamples : of the intervals. Better and worse are held to the level that keeps chance
        to 5% for all segments together.
    """
    found = []
    parts = [(dimension, name, frame[mask]) for dimension, name, mask in each(frame)]
    judged = [p for _d, _n, p in parts if not too_few(kind, p["label"].to_numpy(np.float64))]
    for dimension, name, part in parts:
        y = part["label"].to_numpy(dtype=np.float64)
        facts = (dimension, name, len(part), int(y.sum()) if kind == "probability" else None,
                 float(y.mean()))  # fmt: skip
        reason = too_few(kind, y)
        if reason:
            found.append(Segment(*facts, too_few=reason))
            continue
        rows = Rows(y, part["customer_id"].to_numpy(), resamples=resamples, seed=seed)
        ours, theirs = part["score"].to_numpy(), part["baseline"].to_numpy()
        names = metric_names(kind)
        found.append(
            Segment(
                *facts,
                model=figures(names, rows, ours),
                baseline=figures(names, rows, theirs),
                difference=rows.difference(names[0], ours, theirs, among=len(judged)),
            )
        )
    return tuple(found)
