"""The answer in words: ship, do not ship, test further, or cannot say."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal

from nextbest.learn.compare_words import number, signed
from nextbest.learn.metrics import Metric
from nextbest.measure.ope.estimators import PRIMARY, Estimate

__all__ = ["HEAVY", "Call", "Verdict", "judge", "span"]

Call = Literal["ship", "do not ship", "test further", "cannot say"]
#: With more of the variance on one customer, the interval hangs on whether they turned up.
HEAVY = 0.2


@dataclass(frozen=True)
class Verdict:
    """What to do about the target policy, and why."""

    call: Call
    because: str

    def __str__(self) -> str:
        return f"{self.call.capitalize()}: {self.because}"


def span(m: Metric) -> str:
    """A difference with its interval in words."""
    return f"{signed(m.value)} (95% interval {signed(m.low)} to {signed(m.high)})"


def judge(estimates: Mapping[str, Estimate], logged: Metric, largest: float) -> Verdict:
    """Say what the estimates come to, by the doubly robust difference on the same rows.

    Parameters
    ----------
    logged : mean reward of the log itself.
    largest : share of that difference's variance that is due to one customer.
    """
    ours, plain = estimates[PRIMARY].difference, estimates["snips"].difference
    said = f"per decision the target earns {span(ours)} against {number(logged.value)} logged"
    if largest > HEAVY:
        return Verdict(
            "cannot say",
            f"one customer alone makes up {largest:.0%} of the uncertainty, so the interval may "
            f"be far too narrow; {said}. Log more decisions, or explore more.",
        )
    if ours.high < plain.low or plain.high < ours.low:
        return Verdict(
            "cannot say",
            f"the estimators contradict each other: doubly robust {span(ours)}, weights alone "
            f"{span(plain)}. The logged probabilities or the reward model are suspect.",
        )
    if ours.low > 0:
        return Verdict("ship", f"{said}.")
    if ours.high < 0:
        return Verdict("do not ship", f"{said}.")
    return Verdict("test further", f"{said}; that may be chance.")
