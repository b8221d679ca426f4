"""Which feature knows too much? A leak is named before it is promoted.

Every feature is tried alone: its values are cut into bins, each bin's rate is learned on other
rows, and the AUC of that rate says how far the feature separates the outcomes by itself, whatever
the direction or shape, unknown included. How strong that is does not make a leak: past spend ranks
future spenders at .93, honestly. What sets a leak apart is that it has no relatives: honest
features come in families (91 days, 182 days, orders, products) whose strengths fall off smoothly.

AUCs and their differences carry DeLong intervals (DeLong, DeLong & Clarke-Pearson 1988), summed
over customers where rows repeat customers (Obuchowski 1997), at a level that holds for all features
at once (Bonferroni). Strengths are compared as ``d' = sqrt(2) * probit(AUC)``, the distance between
the outcomes in standard deviations (Green & Swets 1966), because .98 is much further from .93 than
.58 from .53.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Final, Literal

import numpy as np
import numpy.typing as npt
import pandas as pd
from scipy import stats

from nextbest.errors import DataError, did_you_mean
from nextbest.learn.metrics import Metric

__all__ = ["Alarm", "LeakageLimits", "Separation", "alarms", "in_words", "separations"]

Array = npt.NDArray[np.float64]
Index = npt.NDArray[np.intp]
Kind = Literal["separates", "stands apart", "decides", "dominates", "comes late"]

_FOLDS: Final = 5
_CUTS: Final = 16
_PRIOR_ROWS: Final = 2.0
_MIN_CLASS: Final = 20
#: With fewer features there is no field from which one could stand apart.
_FIELD: Final = 5


@dataclass(frozen=True)
class LeakageLimits:
    """What is too good to be true.

    Attributes
    ----------
    separates_auc : a feature that alone surely exceeds this AUC.
    apart_auc, apart_distance, apart_features : one feature, or at most so many together, surely
        above this AUC and surely more than this distance ``d'`` above the best of the rest.
    decides_rate, decides_share : a single value, or unknown, or known, among whose rows the rarer
        outcome surely has this rate, with this share of that outcome's rows.
    never_rate, never_share : the same, where it surely has at most this part of its overall rate,
        with this share of all rows.
    dominates_share, dominates_auc : share of the model's effects that one feature carries, while
        alone surely above this AUC.
    late_drop, late_share : AUC surely lost, and share of the separation lost, when the feature is
        taken as it was known earlier.
    level : confidence of "surely", for all features at once.
    accepted : features that somebody has looked into and answers for; they raise no alarm.
    """

    separates_auc: float = 0.95
    apart_auc: float = 0.8
    apart_distance: float = 1.0
    apart_features: int = 3
    decides_rate: float = 0.9
    decides_share: float = 0.05
    never_rate: float = 0.05
    never_share: float = 0.25
    dominates_share: float = 0.5
    dominates_auc: float = 0.75
    late_drop: float = 0.05
    late_share: float = 0.5
    level: float = 0.95
    accepted: tuple[str, ...] = ()


@dataclass(frozen=True)
class Alarm:
    """A feature that knows too much, and the figure that gives it away.

    Attributes
    ----------
    kind : ``separates`` (nearly perfect alone), ``stands apart`` (far above all others),
        ``decides`` (one of its values settles the outcome), ``dominates`` (the model is this
        feature), ``comes late`` (its strength is gone when it is taken as known earlier).
    figure : what was measured, with its interval (an importance has none: its ends are its value).
    limit : what the figure should surely not pass.
    """

    feature: str
    kind: Kind
    figure: Metric
    limit: float
    message: str

    def to_dict(self) -> dict[str, Any]:
        """Return the facts as plain JSON types."""
        return {**vars(self), "figure": self.figure.to_dict()}

    def __str__(self) -> str:
        return f"{self.feature}: {self.message}"


@dataclass(frozen=True)
class Separation:
    """How far one feature alone separates the outcomes: its AUC, and ``influence`` of each row."""

    feature: str
    auc: Metric
    influence: Array

    @property
    def distance(self) -> float:
        """``d'``: the outcomes' distance in standard deviations; 0 where there is none."""
        return _distance(self.auc.value)


# ------------------------------------------------------------------ one feature alone


def separations(
    frame: pd.DataFrame,
    y: npt.ArrayLike,
    columns: Sequence[str],
    *,
    clusters: npt.ArrayLike | None = None,
    level: float = 0.95,
    seed: int = 0,
) -> tuple[Separation, ...]:
    """Return how far each feature alone separates the outcomes, the strongest first.

    Parameters
    ----------
    frame : (n, ...) labelled rows of the training side.
    y : (n,) 0 or 1; of any other amounts, whether they lie above the median.
    columns : the features.
    clusters : (n,) the customer of each row, where rows repeat customers.
    level : confidence of the intervals, for all features at once.
    seed : of the parting into folds.

    Raises
    ------
    DataError : a column is missing, or one outcome has fewer than 20 rows.
    """
    outcome, groups = _outcome(frame, y, columns), _groups(frame, clusters)
    part, z = _parts(groups, seed), _z(level, len(columns))
    found = [
        _separation(name, outcome, _rates(_bins(frame[name], outcome), outcome, part), groups, z)
        for name in columns
    ]
    return tuple(sorted(found, key=lambda s: (-s.auc.value, s.feature)))


def _outcome(frame: pd.DataFrame, y: npt.ArrayLike, columns: Sequence[str]) -> Array:
    for name in columns:
        if name not in frame:
            raise DataError(
                "leakage",
                f'the rows lack the column "{name}"',
                expected="every feature of the model",
                action=did_you_mean(name, [str(c) for c in frame.columns]),
            )
    outcome = np.asarray(y, dtype=np.float64)
    if outcome.shape != (len(frame),) or not np.isfinite(outcome).all():
        raise DataError(
            "leakage",
            "the labels cannot be used",
            expected=f"{len(frame):,} finite numbers, one for each row",
            got=f"shape {outcome.shape}",
        )
    if not np.isin(outcome, (0, 1)).all():
        outcome = (outcome > np.median(outcome)).astype(np.float64)
    fewer = int(min(outcome.sum(), outcome.size - outcome.sum()))
    if fewer < _MIN_CLASS:
        raise DataError(
            "leakage",
            "too few rows of one outcome to judge by",
            expected=f"at least {_MIN_CLASS} of each",
            got=str(fewer),
        )
    return outcome


def _groups(frame: pd.DataFrame, clusters: npt.ArrayLike | None) -> Index:
    if clusters is None:
        return np.arange(len(frame))
    return np.asarray(pd.factorize(np.asarray(clusters), use_na_sentinel=False)[0], dtype=np.intp)


def _parts(groups: Index, seed: int) -> Index:
    """Fold of each row; a customer's rows share one."""
    return np.random.default_rng(seed).integers(0, _FOLDS, int(groups.max()) + 1)[groups]


def _z(level: float, features: int) -> float:
    return float(stats.norm.ppf(1 - (1 - level) / (2 * max(1, features))))


def _is_number(column: pd.Series[Any]) -> bool:
    return pd.api.types.is_numeric_dtype(column) or pd.api.types.is_bool_dtype(column)


def _numbers(column: pd.Series[Any]) -> Array:
    values = pd.to_numeric(column, errors="coerce").to_numpy(dtype=np.float64, na_value=np.nan)
    return np.where(np.isfinite(values), values, np.nan)


def _bins(column: pd.Series[Any], y: Array) -> Index:
    """Bin of each row: 0 is unknown; a text's values, or intervals of a number.

    Intervals have about equal counts, of all rows and of the rarer outcome's, so that the end of
    the scale where that one gathers is not one wide bin.
    """
    if not _is_number(column):
        text = column.astype(object).where(column.notna(), None)
        return np.asarray(pd.factorize(text)[0], dtype=np.intp) + 1
    values = _numbers(column)
    known = ~np.isnan(values)
    rarer = known & (y == (1.0 if y.mean() <= 0.5 else 0.0))
    inner = np.arange(1, _CUTS) / _CUTS
    cuts = [np.quantile(values[m], inner, method="inverted_cdf") for m in (known, rarer) if m.any()]
    edges = np.unique(np.concatenate(cuts)) if cuts else np.empty(0)
    return np.where(known, np.searchsorted(edges, values, side="left") + 1, 0)


def _rates(bins: Index, y: Array, part: Index) -> Array:
    """Each row's outcome rate by bin, learned on the other folds and drawn to the overall rate."""
    size, out = int(bins.max()) + 1, np.empty(y.size)
    for k in range(_FOLDS):
        there, here = part != k, part == k
        if not there.any():
            out[here] = y.mean()
            continue
        rows = np.bincount(bins[there], minlength=size)
        hits = np.bincount(bins[there], y[there], minlength=size)
        rate = (hits + _PRIOR_ROWS * y[there].mean()) / (rows + _PRIOR_ROWS)
        out[here] = rate[bins[here]]
    return out


def _separation(name: str, y: Array, score: Array, groups: Index, z: float) -> Separation:
    positive = y == 1
    m, n = int(positive.sum()), int(y.size - positive.sum())
    _levels, at = np.unique(score, return_inverse=True)
    ones = np.bincount(at, y)
    zeros = np.bincount(at) - ones
    # Share of the other outcome's rows that a positive beats, and that beat a negative.
    beats = (np.cumsum(zeros) - 0.5 * zeros) / n
    beaten = (m - np.cumsum(ones) + 0.5 * ones) / m
    placement = np.where(positive, beats[at], beaten[at])
    auc = float(placement[positive].mean())
    influence = (placement - auc) / np.where(positive, m, n)
    half = z * _error(influence, groups)
    return Separation(name, Metric(auc, max(0.0, auc - half), min(1.0, auc + half)), influence)


def _error(influence: Array, groups: Index) -> float:
    sums = np.bincount(groups, influence)
    count = sums.size
    return float(np.sqrt((sums @ sums) * count / max(1, count - 1)))


def _distance(auc: float) -> float:
    return float(np.sqrt(2) * stats.norm.ppf(min(max(auc, 0.5), 1 - 1e-6)))


def _slope(auc: float) -> float:
    """Change of the distance with the AUC."""
    at = stats.norm.ppf(min(max(auc, 0.5), 1 - 1e-6))
    return float(np.sqrt(2) / stats.norm.pdf(at))


# ------------------------------------------------------------------ the alarms


def alarms(
    frame: pd.DataFrame,
    y: npt.ArrayLike,
    columns: Sequence[str],
    *,
    clusters: npt.ArrayLike | None = None,
    model_importance: Mapping[str, float] | None = None,
    shifted: pd.DataFrame | None = None,
    limits: LeakageLimits | None = None,
    seed: int = 0,
) -> tuple[Alarm, ...]:
    """Name the features that know too much about the outcome; none is the usual answer.

    Parameters
    ----------
    frame : (n, ...) labelled rows of the training side.
    y : (n,) 0 or 1; of any other amounts, whether they lie above the median.
    columns : the model's features.
    clusters : (n,) the customer of each row, where rows repeat customers.
    model_importance : feature -> its mean absolute effect in the fitted model (any unit).
    shifted : (n, ...) the same rows in the same order, with features as they were known some time
        before each row's moment; columns that it lacks are not compared. What is known only after
        the moment loses its strength at once, what truly foretells keeps most of it.
    limits : what is too good to be true, and which features are accepted as they are.
    seed : of the parting into folds.

    Raises
    ------
    DataError : the rows cannot answer: a column is missing, one outcome has fewer than 20 rows, or
        ``shifted`` has other rows.
    """
    limits = limits or LeakageLimits()
    names = [c for c in columns if c not in limits.accepted]
    if not names:
        return ()
    outcome, groups = _outcome(frame, y, names), _groups(frame, clusters)
    found = separations(frame, outcome, names, clusters=groups, level=limits.level, seed=seed)
    z = _z(limits.level, len(names))
    all_alarms = [
        *_separates(found, limits),
        *_stands_apart(found, groups, z, limits),
        *_decides(frame, outcome, names, limits),
        *_dominates(found, model_importance or {}, limits),
    ]
    if shifted is not None:
        all_alarms += _comes_late(found, shifted, outcome, groups, z, limits, seed)
    order = {s.feature: i for i, s in enumerate(found)}
    return tuple(sorted(all_alarms, key=lambda a: order[a.feature]))


def in_words(found: Sequence[Alarm], looked_at: int) -> str:
    """Say in one line what was found among so many features, for a gate or a model card."""
    return "; ".join(map(str, found)) or f"none of {looked_at} features knows more than it should"


def _auc(metric: Metric) -> str:
    return f"AUC {metric.value:.3f} (interval {metric.low:.3f} to {metric.high:.3f})"


def _separates(found: Sequence[Separation], limits: LeakageLimits) -> list[Alarm]:
    return [
        Alarm(
            s.feature,
            "separates",
            s.auc,
            limits.separates_auc,
            f"alone it tells the outcomes nearly apart, {_auc(s.auc)}; it may be a copy of the "
            "label, or be known only after it",
        )
        for s in found
        if s.auc.low > limits.separates_auc
    ]


def _stands_apart(
    found: Sequence[Separation], groups: Index, z: float, limits: LeakageLimits
) -> list[Alarm]:
    """Look for a gap below the first, second, ... feature; all above the lowest gap stand apart."""
    if len(found) < _FIELD:
        return []
    together, figures = 0, []
    for at in range(min(limits.apart_features, len(found) // _FIELD or 1, len(found) - 1)):
        s, rest = found[at], found[at + 1]
        gap = s.distance - rest.distance
        influence = _slope(s.auc.value) * s.influence
        if rest.distance > 0:
            influence = influence - _slope(rest.auc.value) * rest.influence
        half = z * _error(influence, groups)
        figures.append(Metric(gap, gap - half, gap + half))
        if s.auc.low > limits.apart_auc and gap - half > limits.apart_distance:
            together = at + 1
    if not together:
        return []
    lead, best = figures[together - 1], found[together]
    return [
        Alarm(
            s.feature,
            "stands apart",
            lead,
            limits.apart_distance,
            f"alone it reaches {_auc(s.auc)} while the best of the others, {best.feature}, reaches "
            f"{best.auc.value:.3f}; a lead of {lead.value:.2f} standard deviations (interval "
            f"{lead.low:.2f} to {lead.high:.2f}) is seldom honest: find out when it becomes known",
        )
        for s in found[:together]
    ]


def _decides(
    frame: pd.DataFrame, y: Array, names: Sequence[str], limits: LeakageLimits
) -> list[Alarm]:
    """Look for a single value, or unknown, or known, that settles the outcome."""
    common = float(y.mean() > 0.5)
    rarer = np.abs(y - common)
    total, base = float(rarer.sum()), float(rarer.mean())
    out: list[Alarm] = []
    for name in names:
        codes, values = _values(frame[name])
        rows, hits = np.bincount(codes, minlength=1), np.bincount(codes, rarer, minlength=1)
        rows, hits = np.append(rows, y.size - rows[0]), np.append(hits, total - hits[0])
        usable = np.flatnonzero(rows >= _MIN_CLASS)
        low, high = _wilson(hits[usable], rows[usable], _z(limits.level, len(names) * usable.size))
        settled = (low > limits.decides_rate) & (hits[usable] >= limits.decides_share * total)
        never = (high < limits.never_rate * base) & (rows[usable] >= limits.never_share * y.size)
        for hit, limit in ((settled, limits.decides_rate), (never, limits.never_rate * base)):
            if not hit.any():
                continue
            at = int(np.argmax(np.where(hit, rows[usable], -1)))
            code = int(usable[at])
            figures = hits[code] / rows[code], low[at], high[at], limit
            rate, one, other, bound = (float(abs(v - common)) for v in figures)
            what = {0: "unknown", rows.size - 1: "known"}.get(code) or str(values[code - 1])
            out.append(
                Alarm(
                    name,
                    "decides",
                    Metric(rate, min(one, other), max(one, other)),
                    bound,
                    f"where it is {what} ({rows[code]:,} of {y.size:,} rows) the outcome's rate is "
                    f"{rate:.4f} (interval {min(one, other):.4f} to {max(one, other):.4f}) against "
                    f"{y.mean():.4f} overall; it may be written after the outcome",
                )
            )
    return out


def _values(column: pd.Series[Any]) -> tuple[Index, Sequence[Any]]:
    """Code of each row's value, 0 where unknown, and the value of each code from 1 on."""
    given: Any = _numbers(column) if _is_number(column) else column.astype(object)
    codes, values = pd.factorize(given)
    return np.asarray(codes, dtype=np.intp) + 1, list(values)


def _wilson(hits: npt.ArrayLike, rows: npt.ArrayLike, z: float) -> tuple[Array, Array]:
    """Wilson's interval of a rate (Wilson 1927)."""
    hits, rows = np.asarray(hits, dtype=np.float64), np.asarray(rows, dtype=np.float64)
    rate = hits / rows
    centre = (rate + z * z / (2 * rows)) / (1 + z * z / rows)
    half = z * np.sqrt(rate * (1 - rate) / rows + z * z / (4 * rows * rows)) / (1 + z * z / rows)
    return np.clip(centre - half, 0, rate), np.clip(centre + half, rate, 1)


def _dominates(
    found: Sequence[Separation], importance: Mapping[str, float], limits: LeakageLimits
) -> list[Alarm]:
    total = sum(importance.values())
    if len(found) < _FIELD or total <= 0:
        return []
    out = []
    for s in found:
        share = importance.get(s.feature, 0.0) / total
        if share > limits.dominates_share and s.auc.low > limits.dominates_auc:
            out.append(
                Alarm(
                    s.feature,
                    "dominates",
                    Metric(share, share, share),
                    limits.dominates_share,
                    f"it alone carries {share:.0%} of what the model's {len(found)} features do, "
                    f"and alone reaches {_auc(s.auc)}",
                )
            )
    return out


def _comes_late(
    found: Sequence[Separation],
    shifted: pd.DataFrame,
    y: Array,
    groups: Index,
    z: float,
    limits: LeakageLimits,
    seed: int,
) -> list[Alarm]:
    if len(shifted) != y.size:
        raise DataError(
            "leakage",
            "the shifted rows are other rows",
            expected=f"the same {y.size:,} rows in the same order",
            got=f"{len(shifted):,} rows",
        )
    part = _parts(groups, seed)
    out = []
    for s in found:
        if s.feature not in shifted:
            continue
        column = shifted[s.feature]
        earlier = _separation(s.feature, y, _rates(_bins(column, y), y, part), groups, z)
        drop = s.auc.value - earlier.auc.value
        half = z * _error(s.influence - earlier.influence, groups)
        if drop - half > limits.late_drop and drop > limits.late_share * (s.auc.value - 0.5):
            out.append(
                Alarm(
                    s.feature,
                    "comes late",
                    Metric(drop, drop - half, drop + half),
                    limits.late_drop,
                    f"alone it reaches AUC {s.auc.value:.3f}, but {earlier.auc.value:.3f} as it "
                    f"was known earlier; it loses {drop:.3f} (interval {drop - half:.3f} to "
                    f"{drop + half:.3f}): it may be known only after the moment",
                )
            )
    return out
