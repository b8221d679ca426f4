"""Which purchase model forecasts this customer base best: decided on data that it has not seen."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import pandas as pd

from nextbest.errors import DataError, Fault, FitError
from nextbest.learn.clv.beta_geo import BetaGeoNBD, ModifiedBetaGeoNBD
from nextbest.learn.clv.histories import Array, Histories, label, read_histories
from nextbest.learn.clv.pareto import ParetoNBD
from nextbest.learn.clv.purchase import PurchaseModel


@dataclass(frozen=True)
class PurchaseModelChoice:
    """The winner, fitted on everything up to the later date, and how each candidate did.

    `scores`, best first, one row per candidate: `log_likelihood` of the holdout (sum over
    customers), `behind` (how much lower than the best) with `behind_se` (its standard error over
    customers), `expected` and `actual` purchases in the holdout, `identified`, and `refusal` (why
    it could not be fitted, else empty). `clear` is true if the runner-up is behind by more than
    two standard errors.
    """

    model: PurchaseModel
    scores: pd.DataFrame
    clear: bool

    def to_dict(self) -> dict[str, Any]:
        """Name of the winner and the scores, for a run's log."""
        return {
            "winner": type(self.model).__name__,
            "clear": self.clear,
            "scores": self.scores.astype(object)
            .where(self.scores.notna(), None)
            .reset_index()
            .to_dict(orient="records"),
        }


def choose_purchase_model(
    calibration: pd.DataFrame,
    later: pd.DataFrame,
    candidates: Sequence[PurchaseModel] | None = None,
) -> PurchaseModelChoice:
    """Pick the purchase model that best foretold what customers did after the calibration date.

    Parameters: `calibration` and `later`, the same customers' RFM tables as of two dates, matched
    by index (`later` may have more customers: they only help the final fit). `candidates` default
    to all three models without penalty.

    Every candidate is fitted on `calibration` and scored by the log-density that it gave to the
    purchases, and their times, between the dates: log L(later) - log L(calibration) for each
    customer, which the definition of conditional probability makes exact and comparable between
    models. The winner is then refitted on `later`.

    Raises `DataError` where `later` is no continuation of `calibration`, and `FitError` if no
    candidate can be fitted.
    """
    where = "choose_purchase_model"
    before = read_histories(calibration, where)
    after = _continuation(before, later, where)
    horizon = float((after.T - before.T).mean())
    if candidates is None:
        candidates = (BetaGeoNBD(), ModifiedBetaGeoNBD(), ParetoNBD())
    if not candidates:
        raise DataError(where, "no candidates", expected="at least one purchase model")

    known = later.loc[calibration.index]
    actual = float(before.weight @ (after.x - before.x))
    gains: dict[int, Array] = {}
    rows: list[dict[str, Any]] = []
    for i, candidate in enumerate(candidates):
        name = type(candidate).__name__
        model = type(candidate)(**candidate.get_params())
        try:
            model.fit(calibration)
        except FitError as refusal:
            rows.append({"model": name, "actual": actual, "refusal": str(refusal)})
            continue
        gained = (model.log_likelihood(known) - model.log_likelihood(calibration)).to_numpy()
        gains[i] = gained
        rows.append(
            {
                "model": name,
                "log_likelihood": float(before.weight @ gained),
                "expected": float(
                    before.weight @ model.expected_purchases(calibration, horizon).to_numpy()
                ),
                "actual": actual,
                "identified": model.diagnostics_.identified,
                "refusal": "",
            }
        )
    if not gains:
        raise FitError(
            where,
            "no candidate could be fitted",
            got="; ".join(f"{row['model']}: {row['refusal']}" for row in rows),
            action="Give candidates with a penalizer, or longer histories",
        )
    best = max(gains, key=lambda i: rows[i]["log_likelihood"])
    for i, gained in gains.items():
        rows[i]["behind"], rows[i]["behind_se"] = _behind(gains[best], gained, before.weight)
    columns = ["log_likelihood", "behind", "behind_se", "expected", "actual", "identified"]
    scores = (
        pd.DataFrame(rows)
        .set_index("model")
        .reindex(columns=[*columns, "refusal"])
        .sort_values("log_likelihood", ascending=False, na_position="last")
    )
    others = scores.iloc[1:].dropna(subset=["behind"])
    winner = type(candidates[best])(**candidates[best].get_params()).fit(later)
    clear = bool((others["behind"] > 2.0 * others["behind_se"]).all())
    return PurchaseModelChoice(winner, scores, clear)


def _behind(best: Array, gained: Array, weight: Array) -> tuple[float, float]:
    difference = best - gained
    total = float(weight @ difference)
    centred = difference - total / float(weight.sum())
    return total, float(np.sqrt(weight @ centred**2))


def _continuation(before: Histories, later: pd.DataFrame, where: str) -> Histories:
    """The later histories of the calibration's customers, checked to follow from the earlier."""
    if not before.index.is_unique or not later.index.is_unique:
        raise DataError(
            where, "customers occur twice", expected="a unique index", got="repeated labels"
        )
    missing = before.index.difference(later.index)
    if len(missing):
        raise DataError(
            where,
            f"{len(missing)} customers of calibration are not in later",
            expected="all of them, matched by index",
            got=f"no {label(missing, 0)}, for one",
        )
    after = read_histories(later.loc[before.index], where)
    step = after.T - before.T
    no_news = after.x == before.x
    # The same moment counted back from two dates differs in the last digits.
    rounding = 1e-6 * np.abs(after.T) + 1e-9
    faults = [
        Fault(
            where, f"{problem} in {int(bad.sum())} of {len(bad)} rows", expected, f"{first} first"
        )
        for problem, expected, bad in (
            ("T does not grow", "a later date in `later`", step <= 0),
            (
                "T grows unequally",
                "two as-of dates, the same for all customers",
                np.abs(step - np.median(step)) > rounding,
            ),
            ("frequency falls", "at least that of calibration", after.x < before.x),
            (
                "recency does not follow from calibration",
                "unchanged without a purchase, after the calibration date with one",
                np.where(
                    no_news,
                    np.abs(after.t_x - before.t_x) > rounding,
                    after.t_x < before.T - rounding,
                ),
            ),
        )
        if bad.any()
        for first in [label(before.index, int(np.argmax(bad)))]
    ]
    if faults:
        raise DataError(faults=faults)
    return after
