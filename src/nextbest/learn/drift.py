"""Has the world moved since training? Each feature, the score and the base rate, then and now.

The size of a change is the population stability index (Siddiqi 2006, "Credit Risk Scorecards",
chapter 6); whether it could be chance is a two-sample test, corrected over the features (Benjamini
& Hochberg 1995). A change is named only where both speak: the test alone finds trifles in a million
rows, and the index alone is above its limits by chance in a hundred (its mean without any change is
about ``(bins - 1) * (1/n + 1/m)``; Yurdakul 2018, "Statistical Properties of Population Stability
Index").
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Any, Final, Literal

import numpy as np
import numpy.typing as npt
import pandas as pd
from scipy import stats

from nextbest.errors import ArtifactError, DataError, UsageError, did_you_mean

__all__ = [
    "DriftLimits",
    "DriftReport",
    "FeatureDrift",
    "RateDrift",
    "base_rate_drift",
    "drift",
    "rates_over_time",
    "reference",
]

Array = npt.NDArray[np.float64]
Status = Literal["ok", "watch", "alarm"]
Counts = tuple[int, int]

SCORE: Final = "score"
_SEVERITY: Final[Mapping[str, int]] = {"ok": 0, "watch": 1, "alarm": 2}
#: A column with no more values than this is compared value by value, not in intervals.
_FEW_VALUES: Final = 20
_POINTS: Final = 200
#: Added to every bin's count on both sides, so that an empty bin gives a finite index.
_SMOOTHING: Final = 0.5
_MIN_EXPECTED: Final = 5.0
_LEVEL: Final = 0.95


@dataclass(frozen=True)
class DriftLimits:
    """From where on a change is worth a look, and from where on it is an alarm.

    Attributes
    ----------
    psi_watch, psi_alarm : population stability index; the customary limits are 0.1 and 0.25.
    alpha : a change counts only where its corrected p-value is at most this.
    odds_watch, odds_alarm : factor by which the odds of the label moved, up or down.
    """

    psi_watch: float = 0.1
    psi_alarm: float = 0.25
    alpha: float = 0.01
    odds_watch: float = 1.25
    odds_alarm: float = 1.5


# ------------------------------------------------------------------ what training keeps


def reference(
    frame: pd.DataFrame,
    columns: Sequence[str],
    scores: npt.ArrayLike | None = None,
    *,
    bins: int = 10,
    units: int | None = None,
) -> dict[str, Any]:
    """Summarise the training rows, as plain JSON, so that later rows can be held against them.

    Parameters
    ----------
    frame : (n, ...) training rows.
    columns : the features to summarise.
    scores : the model's scores on rows that it was not fitted to; their number need not be n.
    bins : intervals of about equal counts for a number. A value that alone fills one of them gets
        a bin of its own; a column with at most 20 values has one bin for each. Of a text column
        the 20 commonest values have a bin each, the others share one. Unknown is a bin.
    units : number of different customers, where rows repeat customers: the tests then count no more
        independent rows than that.

    Raises
    ------
    DataError : there are no rows, or a column is missing.
    UsageError : fewer than two bins.
    """
    if bins < 2:
        raise UsageError("drift", "bins is too small", expected="at least 2", got=str(bins))
    _require(frame, columns)
    share = 1.0 if units is None else min(1.0, units / len(frame))
    return {
        "rows": len(frame),
        "independent_share": share,
        "features": {name: _summary(frame[name], bins) for name in columns},
        SCORE: None if scores is None else _summary(_scores(scores), bins),
    }


def _require(frame: pd.DataFrame, columns: Sequence[str]) -> None:
    if frame.empty:
        raise DataError("drift", "there are no rows", expected="at least 1", got="0")
    for name in columns:
        if name not in frame:
            raise DataError(
                "drift",
                f'the rows lack the column "{name}"',
                expected="every feature that training summarised",
                action=did_you_mean(name, [str(c) for c in frame.columns]),
            )


def _scores(scores: npt.ArrayLike) -> pd.Series[Any]:
    array = np.asarray(scores, dtype=np.float64)
    if array.ndim != 1 or not array.size:
        raise DataError(
            "drift: score", "wrong shape", expected="a column of numbers", got=str(array.shape)
        )
    return pd.Series(array)


def _is_number(column: pd.Series[Any]) -> bool:
    return pd.api.types.is_numeric_dtype(column) or pd.api.types.is_bool_dtype(column)


def _numbers(column: pd.Series[Any]) -> Array:
    """The known values, sorted; what is no finite number is unknown."""
    values = pd.to_numeric(column, errors="coerce").to_numpy(dtype=np.float64, na_value=np.nan)
    return np.sort(values[np.isfinite(values)])


def _summary(column: pd.Series[Any], bins: int) -> dict[str, Any]:
    if not _is_number(column):
        counts = column.dropna().astype(str).value_counts()
        common = sorted(counts.index, key=lambda v: (-int(counts[v]), v))[:_FEW_VALUES]
        kept: dict[str, Any] = {"kind": "category", "values": [str(v) for v in common]}
        return {**kept, **_counts(kept, column, np.empty(0))}
    known = _numbers(column)
    values = np.unique(known)
    if values.size <= _FEW_VALUES:
        kept = {"kind": "discrete", "values": values.tolist()}
        return {**kept, **_counts(kept, column, known)}
    unknown = len(column) - known.size
    grid = values
    if grid.size > _POINTS:
        grid = np.unique(np.quantile(known, np.linspace(0, 1, _POINTS), method="inverted_cdf"))
    kept = {
        "kind": "number",
        "edges": _edges(known, bins).tolist(),
        "grid": grid.tolist(),
        # Rows below and up to each point of the grid; unknown stands below every number.
        "below": (unknown + np.searchsorted(known, grid, side="left")).tolist(),
        "up_to": (unknown + np.searchsorted(known, grid, side="right")).tolist(),
        "median": float(np.median(known)),
    }
    return {**kept, **_counts(kept, column, known)}


def _edges(known: Array, bins: int) -> Array:
    """Upper edges of all bins but the last, each bin closed above."""
    values, counts = np.unique(known, return_counts=True)
    heavy = values[counts >= known.size / bins]
    rest = known[~np.isin(known, heavy)]
    parts = max(1, round(bins * rest.size / known.size))
    inner = np.arange(1, parts) / parts
    cuts = np.quantile(rest, inner, method="inverted_cdf") if rest.size else np.empty(0)
    edges = np.unique(np.concatenate([cuts, heavy, np.nextafter(heavy, -np.inf)]))
    return np.asarray(edges, dtype=np.float64)


def _counts(summary: Mapping[str, Any], column: pd.Series[Any], known: Array) -> dict[str, Any]:
    return {"rows": len(column), "counts": _count(summary, column, known).astype(int).tolist()}


def _count(summary: Mapping[str, Any], column: pd.Series[Any], known: Array) -> Array:
    """Rows in each bin of a summary; the last is unknown, before it any other value.

    ``known`` are the column's numbers, sorted; a category does not read them.
    """
    if summary["kind"] == "category":
        texts = column.dropna().astype(str)
        each = texts.value_counts()
        listed = np.asarray([each.get(v, 0) for v in summary["values"]], dtype=np.float64)
        inside = np.append(listed, len(texts) - listed.sum())
    elif summary["kind"] == "discrete":
        values = np.asarray(summary["values"], dtype=np.float64)
        up_to, below = (np.searchsorted(known, values, side) for side in ("right", "left"))
        listed = np.asarray(up_to - below, dtype=np.float64)
        inside = np.append(listed, known.size - listed.sum())
    else:
        edges = np.asarray(summary["edges"], dtype=np.float64)
        up_to = np.searchsorted(known, edges, side="right")
        inside = np.diff(up_to.astype(np.float64), prepend=0, append=known.size)
    return np.append(inside, len(column) - inside.sum())


# ------------------------------------------------------------------ then and now


@dataclass(frozen=True)
class FeatureDrift:
    """How one feature, or the score, moved.

    Attributes
    ----------
    psi : population stability index over the bins, unknown among them.
    test, statistic, p_value : ``ks`` for numbers, ``chi2`` where values are counted one by one.
    q_value : the p-value after correction over all features (the score stands alone).
    unknown_reference, unknown : share of unknown values, 0-1.
    median_reference, median : of known numbers; None where values are counted one by one.
    moved : the bin that moved most, and its share before and now.
    """

    name: str
    psi: float
    test: str
    statistic: float
    p_value: float
    q_value: float
    status: Status
    unknown_reference: float
    unknown: float
    median_reference: float | None
    median: float | None
    moved: str

    def to_dict(self) -> dict[str, Any]:
        """Return the facts as plain JSON types."""
        return dict(vars(self))

    def __str__(self) -> str:
        change = self.moved
        if self.median_reference is not None and self.median is not None:
            change += f"; median {self.median_reference:.4g} before, {self.median:.4g} now"
        return (
            f"{self.name}: {self.status}; {change} "
            f"(PSI {self.psi:.3f}, {self.test} {self.statistic:.3g}, p {_p(self.q_value)})"
        )


def _p(value: float) -> str:
    return "< 0.0001" if value < 1e-4 else f"{value:.2g}"


@dataclass(frozen=True)
class DriftReport:
    """What moved between training and now, the worst first."""

    features: tuple[FeatureDrift, ...]
    score: FeatureDrift | None
    rows_reference: int
    rows: int
    limits: DriftLimits

    @property
    def all(self) -> tuple[FeatureDrift, ...]:
        """The score, where there is one, and then the features."""
        return (*([self.score] if self.score else []), *self.features)

    @property
    def status(self) -> Status:
        """The worst of all."""
        return max((d.status for d in self.all), key=_SEVERITY.__getitem__, default="ok")

    def named(self, status: Status) -> tuple[str, ...]:
        """Names of what has a status, the score first, then features with the worst first."""
        return tuple(d.name for d in self.all if d.status == status)

    def to_dict(self) -> dict[str, Any]:
        """Return the facts as plain JSON types."""
        return {
            "status": self.status,
            "rows_reference": self.rows_reference,
            "rows": self.rows,
            "limits": dict(vars(self.limits)),
            "score": self.score.to_dict() if self.score else None,
            "features": [d.to_dict() for d in self.features],
        }

    def lines(self, most: int = 10) -> list[str]:
        """Say in plain words what moved; at most so many features, and how many more."""
        alarm, watch = (sum(d.status == s for d in self.features) for s in ("alarm", "watch"))
        out = [
            f"{self.rows:,} rows now against {self.rows_reference:,} at training: "
            f"{alarm} of {len(self.features)} features in alarm, {watch} to watch"
        ]
        moved = [d for d in self.features if d.status != "ok"]
        out += [str(d) for d in ((self.score,) if self.score else ())]
        out += [str(d) for d in moved[:most]]
        return out + ([f"and {len(moved) - most} more"] if len(moved) > most else [])


def drift(
    reference: Mapping[str, Any],
    frame: pd.DataFrame,
    scores: npt.ArrayLike | None = None,
    limits: DriftLimits | None = None,
) -> DriftReport:
    """Hold today's rows against what training saw.

    ``PSI = sum (p - q) ln(p / q)`` over the bins, where p and q are the shares then and now, each
    bin's count raised by 0.5 so that one that is empty on one side counts, but not without bound
    (one that is empty on both sides counts nothing). The test is Kolmogorov-Smirnov's for numbers,
    with unknown as the lowest value, and a chi-square test of equal shares where values are counted
    one by one (bins that expect fewer than 5 rows are joined). The training side's distribution is
    known at 200 points: the statistic is exact where it has no more values, and otherwise at most
    0.006 short. With ties the p-value errs on the safe side (Noether 1963).

    Parameters
    ----------
    reference : from `reference`.
    frame : (m, ...) rows of today with every feature of the reference.
    scores : (k,) today's scores; left out where None, or where the reference has none.
    limits : when a change is to watch or an alarm: index at or over its limit **and** significant.

    Raises
    ------
    DataError : there are no rows, or a feature is missing.
    ArtifactError : the reference cannot be read.
    """
    limits = limits or DriftLimits()
    try:
        summaries: Mapping[str, Any] = reference["features"]
        share, rows = float(reference["independent_share"]), int(reference["rows"])
        of_score = reference[SCORE]
        _require(frame, list(summaries))
        found = [_compare(n, s, frame[n], share) for n, s in summaries.items()]
        score = (
            None
            if of_score is None or scores is None
            else _compare(SCORE, of_score, _scores(scores), share)
        )
    except DataError:
        raise
    except (KeyError, TypeError, ValueError, IndexError) as error:
        raise ArtifactError(
            "drift: reference",
            "it cannot be read",
            expected="what `reference` returned",
            got=f"{type(error).__name__}: {error}",
            action="Train the model again.",
        ) from None
    q_values = _corrected([d.p_value for d in found])
    judged = [_judged(d, q, limits) for d, q in zip(found, q_values, strict=True)]
    judged.sort(key=lambda d: (-_SEVERITY[d.status], -d.psi, d.name))
    return DriftReport(
        tuple(judged),
        score and _judged(score, score.p_value, limits),
        rows,
        len(frame),
        limits,
    )


def _corrected(p_values: Sequence[float]) -> list[float]:
    if not p_values:
        return []
    return [float(q) for q in stats.false_discovery_control(p_values, method="bh")]


def _judged(found: FeatureDrift, q_value: float, limits: DriftLimits) -> FeatureDrift:
    status = _status(found.psi, limits.psi_watch, limits.psi_alarm, q_value <= limits.alpha)
    return FeatureDrift(**{**vars(found), "q_value": q_value, "status": status})


def _status(size: float, watch: float, alarm: float, significant: bool) -> Status:
    if not significant or size < watch:
        return "ok"
    return "alarm" if size >= alarm else "watch"


def _compare(
    name: str, summary: Mapping[str, Any], column: pd.Series[Any], independent_share: float
) -> FeatureDrift:
    known = np.empty(0) if summary["kind"] == "category" else _numbers(column)
    before = np.asarray(summary["counts"], dtype=np.float64)
    now = _count(summary, column, known)
    parts = _psi_parts(before, now)
    rows = independent_share * float(summary["rows"])
    median_before = median = None
    if summary["kind"] == "number":
        test, (statistic, p_value) = "ks", _kolmogorov_smirnov(summary, known, len(column), rows)
        median_before = float(summary["median"])
        median = float(np.median(known)) if known.size else None
    else:
        test, (statistic, p_value) = "chi2", _chi_square(independent_share * before, now)
    shares = before / before.sum(), now / now.sum()
    most = int(np.argmax(parts))
    return FeatureDrift(
        name=name, psi=float(parts.sum()), test=test, statistic=statistic, p_value=p_value,
        q_value=p_value, status="ok",
        unknown_reference=float(shares[0][-1]), unknown=float(shares[1][-1]),
        median_reference=median_before, median=median,
        moved=f"{_bin(summary, most)}: {shares[0][most]:.1%} before, {shares[1][most]:.1%} now",
    )  # fmt: skip


def _psi_parts(before: Array, now: Array) -> Array:
    """What each bin adds to the index; a bin that was and is empty adds nothing."""
    used = (before + now) > 0
    p, q = (np.where(used, counts + _SMOOTHING, 0.0) for counts in (before, now))
    p, q = p / p.sum(), q / q.sum()
    out: Array = (p - q) * np.log(np.where(used, p, 1.0) / np.where(used, q, 1.0))
    return out


def _kolmogorov_smirnov(
    summary: Mapping[str, Any], known: Array, rows: int, rows_before: float
) -> tuple[float, float]:
    grid, unknown = np.asarray(summary["grid"], dtype=np.float64), rows - known.size
    all_before = float(summary["rows"])
    now_below = (unknown + np.searchsorted(known, grid, side="left")) / rows
    now_up_to = (unknown + np.searchsorted(known, grid, side="right")) / rows
    gaps = [
        np.abs(np.asarray(summary["below"]) / all_before - now_below).max(),
        np.abs(np.asarray(summary["up_to"]) / all_before - now_up_to).max(),
        abs(summary["counts"][-1] / all_before - unknown / rows),
    ]
    statistic = float(max(gaps))
    pairs = round(rows_before * rows / (rows_before + rows))
    return statistic, float(stats.kstwo.sf(statistic, max(pairs, 1)))


def _chi_square(before: Array, now: Array) -> tuple[float, float]:
    table = np.vstack([before, now])
    table = table[:, table.sum(axis=0) > 0]
    expected = table.sum(axis=0) * table.sum(axis=1).min() / table.sum()
    rare = expected < _MIN_EXPECTED
    if rare.any():
        table = np.column_stack([table[:, ~rare], table[:, rare].sum(axis=1)])
    if table.shape[1] < 2:
        return 0.0, 1.0
    found = stats.chi2_contingency(table, correction=False)
    return float(found.statistic), float(found.pvalue)


def _bin(summary: Mapping[str, Any], at: int) -> str:
    if at == len(summary["counts"]) - 1:
        return "unknown"
    if summary["kind"] != "number":
        values = summary["values"]
        if at == len(values):
            return "a value not among those listed at training"
        return f'"{values[at]}"' if summary["kind"] == "category" else f"{values[at]:g}"
    edges = summary["edges"]
    if at == 0:
        return f"up to {edges[0]:.4g}"
    if at == len(edges):
        return f"above {edges[-1]:.4g}"
    low, high = edges[at - 1], edges[at]
    return f"{high:.4g}" if np.nextafter(high, -np.inf) == low else f"{low:.4g} to {high:.4g}"


# ------------------------------------------------------------------ the base rate


@dataclass(frozen=True)
class RateDrift:
    """How the rate of the label moved in one block of rows.

    Attributes
    ----------
    rate_reference, rate : share of positives before and in the block.
    odds_ratio, low, high : factor by which the odds moved, with its 95% interval (each count raised
        by 0.5; Haldane 1956).
    p_value, q_value : Fisher's exact test, and the same after correction over the blocks.
    """

    block: str
    rate_reference: float
    rate: float
    rows_reference: int
    rows: int
    odds_ratio: float
    low: float
    high: float
    p_value: float
    q_value: float
    status: Status

    def to_dict(self) -> dict[str, Any]:
        """Return the facts as plain JSON types."""
        return dict(vars(self))

    def __str__(self) -> str:
        return (
            f"{self.block}: {self.status}; base rate {self.rate_reference:.1%} before, "
            f"{self.rate:.1%} now in {self.rows:,} rows "
            f"(odds ×{self.odds_ratio:.2f}, interval {self.low:.2f} to {self.high:.2f}, "
            f"p {_p(self.q_value)})"
        )


def base_rate_drift(
    reference: Counts, blocks: Mapping[str, Counts], limits: DriftLimits | None = None
) -> tuple[RateDrift, ...]:
    """Say in which blocks of newly labelled rows the share of positives differs from training's.

    Parameters
    ----------
    reference : (positives, rows) of the training side.
    blocks : name -> (positives, rows), for example one for each month; kept in their order.
    limits : alarm where the odds moved by ``odds_alarm`` or more **and** it is no chance.

    Raises
    ------
    DataError : a block has no rows, or more positives than rows.
    """
    against = dict.fromkeys(blocks, reference)
    return _rates(against, blocks, limits or DriftLimits())


def rates_over_time(
    y: npt.ArrayLike, block: Sequence[str], limits: DriftLimits | None = None
) -> tuple[RateDrift, ...]:
    """Hold the base rate of each block of consecutive rows against all rows before it.

    Parameters
    ----------
    y : (n,) 0 or 1, in time order.
    block : (n,) the name of each row's block; a name that comes again later is a block of its own.
    limits : as in `base_rate_drift`.

    Raises
    ------
    DataError : no rows, labels other than 0 and 1, or as many names as there are not rows.
    """
    outcome, names = np.asarray(y, dtype=np.float64), np.asarray(block, dtype=object)
    if not outcome.size or outcome.shape != names.shape or not np.isin(outcome, (0, 1)).all():
        raise DataError(
            "drift: base rate",
            "the labels cannot be used",
            expected="one 0 or 1 and one block name for each row",
            got=f"{outcome.size} labels and {names.size} names",
        )
    starts = [0, *(np.flatnonzero(names[1:] != names[:-1]) + 1).tolist(), outcome.size]
    against: dict[str, Counts] = {}
    blocks: dict[str, Counts] = {}
    for start, end in pairwise(starts[1:]):
        name, again = str(names[start]), 2
        while name in blocks:
            name, again = f"{names[start]} ({again})", again + 1
        against[name] = (int(outcome[:start].sum()), start)
        blocks[name] = (int(outcome[start:end].sum()), end - start)
    return _rates(against, blocks, limits or DriftLimits())


def _rates(
    against: Mapping[str, Counts], blocks: Mapping[str, Counts], limits: DriftLimits
) -> tuple[RateDrift, ...]:
    for name, (positives, rows) in [*blocks.items(), *against.items()]:
        if not 0 <= positives <= rows or not rows:
            raise DataError(
                f"drift: base rate of {name}",
                "the counts cannot be used",
                expected="positives from 0 to the number of rows, and at least one row",
                got=f"{positives} of {rows}",
            )
    tables = {
        name: np.array(
            [[positives, rows - positives], [against[name][0], against[name][1] - against[name][0]]]
        )
        for name, (positives, rows) in blocks.items()
    }
    p_values = [float(stats.fisher_exact(t).pvalue) for t in tables.values()]
    out = []
    for (name, table), p, q in zip(tables.items(), p_values, _corrected(p_values), strict=True):
        raised = table + _SMOOTHING
        log_odds = float(np.log(raised[0, 0] * raised[1, 1] / (raised[0, 1] * raised[1, 0])))
        half = float(stats.norm.ppf((1 + _LEVEL) / 2) * np.sqrt((1 / raised).sum()))
        size = float(np.exp(abs(log_odds)))
        out.append(
            RateDrift(
                block=name,
                rate_reference=float(table[1, 0] / table[1].sum()),
                rate=float(table[0, 0] / table[0].sum()),
                rows_reference=int(table[1].sum()),
                rows=int(table[0].sum()),
                odds_ratio=float(np.exp(log_odds)),
                low=float(np.exp(log_odds - half)),
                high=float(np.exp(log_odds + half)),
                p_value=p,
                q_value=q,
                status=_status(size, limits.odds_watch, limits.odds_alarm, q <= limits.alpha),
            )
        )
    return tuple(out)
