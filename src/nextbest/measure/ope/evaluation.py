"""One policy evaluated on another's log: overlap, estimates and verdict together."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from nextbest.errors import DataError, Fault
from nextbest.learn.metrics import Metric
from nextbest.measure.ope import reward
from nextbest.measure.ope.estimators import (
    PRIMARY,
    Estimate,
    estimate,
    row_values,
    switch_threshold,
)
from nextbest.measure.ope.intervals import interval, largest_share
from nextbest.measure.ope.log import LoggedPolicy, check_target
from nextbest.measure.ope.overlap import Limits, Overlap, measure_overlap, refusals
from nextbest.measure.ope.verdict import Verdict, judge

__all__ = ["Evaluation", "evaluate"]


@dataclass(frozen=True)
class Evaluation:
    """What a target policy would have earned per decision, and whether to believe it.

    Attributes
    ----------
    logged : mean reward of the logged decisions, with its 95% interval.
    estimates : by estimator; ``dr`` is the one that the verdict goes by.
    largest_share : share of the uncertainty of that difference due to one customer.
    switch_at : weight above which ``switch_dr`` trusts the reward model alone.
    """

    overlap: Overlap
    logged: Metric
    estimates: Mapping[str, Estimate]
    largest_share: float
    switch_at: float
    verdict: Verdict

    @property
    def primary(self) -> Estimate:
        """The doubly robust estimate."""
        return self.estimates[PRIMARY]

    def to_dict(self) -> dict[str, Any]:
        """Return everything as plain JSON types."""
        return {
            "verdict": {"call": self.verdict.call, "because": self.verdict.because},
            "logged": self.logged.to_dict(),
            "estimates": {name: e.to_dict() for name, e in self.estimates.items()},
            "primary": PRIMARY,
            "largest_share": self.largest_share,
            "switch_at": self.switch_at,
            "overlap": self.overlap.to_dict(),
        }


def _constant(log: LoggedPolicy) -> Iterator[Fault]:
    """A reward that never varies tells nothing apart, and mostly means that none was reported."""
    if np.ptp(log.reward) == 0:
        yield Fault(
            "off-policy evaluation", "the reward does not vary", "some decisions that earned more",
            f"{log.reward[0]:g} in all {len(log):,}", "Report what came of the decisions",
        )  # fmt: skip


def evaluate(
    log: LoggedPolicy,
    target: npt.ArrayLike,
    *,
    model: Any = None,
    folds: int = reward.FOLDS,
    limits: Limits | None = None,
) -> Evaluation:
    """Say what another policy would have earned on the logged decisions, or refuse with reasons.

    Parameters
    ----------
    log : n decisions of a policy that explored.
    target : (n, m + 1) probabilities with which the other policy would have chosen each offer, or
        none (last column).
    model : scikit-learn estimator for the rewards (see `reward.predict`); None for the default.
    folds : folds of customers for the reward model.
    limits : the overlap that an answer needs.

    Raises
    ------
    DataError: the log cannot answer; one fault for each reason, with its numbers.
    FitError: the reward model cannot be fitted.
    """
    limits = limits or Limits()
    policy = check_target(log, target)
    overlap = measure_overlap(log, policy, limits)
    faults = [*_constant(log), *refusals(overlap, limits)]
    if faults:
        raise DataError(faults=faults)
    q = reward.predict(log, model, folds)
    estimates = estimate(log, policy, q)
    logged = interval(log.reward, log.clusters)
    paired = row_values(log, policy, q)[PRIMARY] - log.reward
    largest = largest_share(paired, log.clusters)
    return Evaluation(
        overlap=overlap,
        logged=logged,
        estimates=estimates,
        largest_share=largest,
        switch_at=switch_threshold(log, policy, q),
        verdict=judge(estimates, logged, largest),
    )
