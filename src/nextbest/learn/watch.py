"""Is the world still the one that a model was tested in? What training remembers, and what moved.

`drift` says how far rows lie from the training rows. That alone is not news: tenure grows with
every day, the days since the last campaign jump with every campaign, and what is measured over a
long window changes while the data are younger than the window. So a feature is named only where

- it does not go one way by nature (a total, a tenure: it never falls for the same customer),
- its index exceeds, by the limit, that of every moment of the training rows and of the test slice,
- it has moved against the test slice too, the latest rows on which the model is known to hold.

The size and the test of each comparison are those of `nextbest.learn.drift`.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, Final

import numpy.typing as npt
import pandas as pd

from nextbest.errors import ArtifactError
from nextbest.learn import drift
from nextbest.learn.drift import DriftLimits, DriftReport, FeatureDrift, RateDrift

__all__ = ["FILE", "Watch", "against_test", "one_way", "remember", "watch"]

#: Where a run keeps what `remember` returns.
FILE: Final = "drift_reference.json"
_MIN_ROWS: Final = 200
_MIN_STEPS: Final = 20
_AGAINST_THE_WAY: Final = 0.01


@dataclass(frozen=True)
class Watch:
    """What moved since a model was trained and tested.

    Attributes
    ----------
    report : today's rows against the training rows; a move that is no news has the status ``ok``.
    one_way : features that only grow, or only fall, by nature; they are not judged.
    known : features away from the training rows, but no further than these rows' own moments or
        the test slice were, or no further than they had already moved by the test.
    rates : how often the label came true since, where it is known by now.
    """

    report: DriftReport
    one_way: tuple[str, ...]
    known: tuple[str, ...]
    rates: tuple[RateDrift, ...] = ()

    @property
    def status(self) -> drift.Status:
        """The worst of scores, features and base rate."""
        found = {self.report.status, *(r.status for r in self.rates)}
        return "alarm" if "alarm" in found else "watch" if "watch" in found else "ok"

    def to_dict(self) -> dict[str, Any]:
        """Return the facts as plain JSON types."""
        return {
            **self.report.to_dict(),
            "status": self.status,
            "one_way": list(self.one_way),
            "known": list(self.known),
            "rates": [r.to_dict() for r in self.rates],
        }

    def lines(self) -> list[str]:
        """Say in plain words what moved; one line where nothing did."""
        moved = [d for d in self.report.all if d.status != "ok"]
        moved_rates = [r for r in self.rates if r.status != "ok"]
        judged = f"{len(self.report.features):,} features"
        judged += " and the score" if self.report.score else ""
        judged += " and the base rate" if self.rates else ""
        rows = f"{self.report.rows:,} rows"
        if not moved and not moved_rates:
            return [f"nothing has moved since training ({judged}, {rows})"]
        out = [f"{len(moved) + len(moved_rates)} of {judged} moved since training ({rows})"]
        return out + [str(d) for d in (*moved_rates, *moved)]


# ------------------------------------------------------------------ what training keeps


def remember(
    train: pd.DataFrame,
    test: pd.DataFrame,
    columns: Sequence[str],
    scores: npt.ArrayLike | None = None,
) -> dict[str, Any]:
    """Summarise the rows that a model was trained and tested on, as plain JSON, for later `watch`.

    Parameters
    ----------
    train, test : (n, ...) and (m, ...) rows with ``customer_id``, ``as_of`` and the features.
    columns : the features to watch.
    scores : (m,) the model's scores on the test rows.

    Raises
    ------
    DataError : there are no rows, or a column is missing.
    """
    fixed = one_way(train, columns)
    judged = [c for c in columns if c not in fixed]
    units = train["customer_id"].nunique()
    training = drift.reference(train, judged, scores, units=units)
    tested = drift.reference(test, judged, units=test["customer_id"].nunique())
    blocks = [rows for _moment, rows in train.groupby("as_of") if len(rows) >= _MIN_ROWS]
    usual = dict.fromkeys(judged, 0.0)
    for rows in (*blocks, test):
        for found in drift.drift(training, rows).features:
            usual[found.name] = max(usual[found.name], found.psi)
    return {"training": training, "tested": tested, "usual": usual, "one_way": list(fixed)}


def one_way(frame: pd.DataFrame, columns: Sequence[str]) -> tuple[str, ...]:
    """Return the number columns that, for the same customer, only grow or only fall with time.

    Parameters: ``frame`` (n, ...) rows with ``customer_id`` and ``as_of``. At least 20 steps of a
    customer from one moment to the next must change the value, and at most 1% of them may go
    against the others (goods that come back lower a total).
    """
    rows = frame.sort_values(["customer_id", "as_of"], kind="stable")
    again = (rows["customer_id"] == rows["customer_id"].shift()).to_numpy()
    found = []
    for name in columns:
        if not pd.api.types.is_numeric_dtype(rows[name]) or not again.any():
            continue
        step = rows[name].astype("float64").diff().to_numpy()[again]
        up, down = int((step > 0).sum()), int((step < 0).sum())
        if up + down >= _MIN_STEPS and min(up, down) <= _AGAINST_THE_WAY * (up + down):
            found.append(name)
    return tuple(found)


# ------------------------------------------------------------------ what moved


def watch(
    memory: Mapping[str, Any],
    frame: pd.DataFrame,
    scores: npt.ArrayLike | None = None,
    limits: DriftLimits | None = None,
    *,
    positives: drift.Counts | None = None,
    later: Mapping[str, drift.Counts] | None = None,
) -> Watch:
    """Hold today's rows against what a model was trained and tested on.

    Parameters
    ----------
    memory : from `remember`.
    frame : (k, ...) rows of today with every feature of the memory.
    scores : (k,) today's scores.
    limits : from where on a change is to watch, and from where on an alarm.
    positives : (positives, rows) of the training side.
    later : name -> (positives, rows) of rows whose label has become known since.

    Raises
    ------
    DataError : there are no rows, or a feature is missing.
    ArtifactError : the memory cannot be read.
    """
    limits = limits or DriftLimits()
    try:
        training, tested = memory["training"], memory["tested"]
        usual, fixed = memory["usual"], tuple(memory["one_way"])
        report = drift.drift(training, frame, scores, limits)
        since_test = {d.name: d for d in drift.drift(tested, frame, None, limits).features}
        news = [_news(d, since_test[d.name], float(usual[d.name]), limits) for d in report.features]
        share = float(training["independent_share"])
    except (KeyError, TypeError, AttributeError) as error:
        raise ArtifactError(
            FILE,
            "it cannot be read",
            expected="what training kept",
            got=f"{type(error).__name__}: {error}",
            action="Train the model again.",
        ) from None
    known = tuple(a.name for a, b in zip(report.features, news, strict=True) if a != b)
    severity = ("alarm", "watch", "ok")
    news.sort(key=lambda d: (severity.index(d.status), -d.psi, d.name))
    rates: tuple[RateDrift, ...] = ()
    if positives is not None and later:
        # Rows of one customer are not independent: no more of them count than there are customers.
        scaled = (round(share * positives[0]), max(1, round(share * positives[1])))
        rates = drift.base_rate_drift(scaled, later, limits)
    return Watch(replace(report, features=tuple(news)), fixed, known, rates)


def _news(
    since_training: FeatureDrift, since_test: FeatureDrift, usual: float, limits: DriftLimits
) -> FeatureDrift:
    """A move counts as far as both comparisons say so, and by how far it exceeds the usual."""
    excess = since_training.psi - usual
    beyond = "ok" if excess < limits.psi_watch else "watch"
    beyond = "alarm" if excess >= limits.psi_alarm else beyond
    statuses = {since_training.status, since_test.status, beyond}
    status: drift.Status = "watch" if "watch" in statuses else "alarm"
    return replace(since_training, status="ok" if "ok" in statuses else status)


def against_test(
    memory: Mapping[str, Any], test: pd.DataFrame, limits: DriftLimits
) -> tuple[FeatureDrift, ...]:
    """Return the features that moved between the training rows and the test slice, worst first."""
    found = drift.drift(memory["training"], test, None, limits)
    return tuple(d for d in found.features if d.status != "ok")
