"""One arm against the other in one outcome: how far apart, how sure, or why nobody can say."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Final, Literal

from nextbest.measure import cuped, intervals, sequences
from nextbest.measure.intervals import Interval
from nextbest.measure.sums import Mean, Sums

__all__ = ["FEWEST", "Comparison", "Finding", "Kind", "Measured", "Question", "compare"]

#: Customers per arm below which no interval for a mean is to be trusted.
FEWEST: Final = 30
#: Successes and failures per arm above which an adjusted rate is close to normal.
_FEWEST_EVENTS: Final = 20

Finding = Literal["higher", "lower", "unclear", "cannot say"]
Kind = Literal["plain", "ratio", "before"]


@dataclass(frozen=True)
class Question:
    """What is compared: the outcome, the arm in question, the arm it is held against, for whom.

    Attributes
    ----------
    kind : ``plain``, ``ratio`` (x is the denominator) or ``before`` (x is the value before).
    dimension, segment : which customers; empty for all.
    """

    outcome: str
    arm: str
    against: str
    kind: Kind = "plain"
    dimension: str = ""
    segment: str = ""


@dataclass(frozen=True)
class Measured:
    """The numbers of a comparison that could be made.

    Attributes
    ----------
    difference, ratio : arm less, and over, the other, read once at the planned end; the ratio is
        None where it means nothing, and ``no_ratio`` says why.
    at_any_look, ratio_at_any_look : the same, valid at every look; the exact ratio is there for
        rates only.
    p_value, p_at_any_look : smallest alpha at which either excludes no difference.
    unadjusted : the difference without the value before, where that was used.
    variance_reduction : share of variance that the value before took away, 0-1.
    """

    difference: Interval
    ratio: Interval | None
    no_ratio: str
    at_any_look: Interval
    ratio_at_any_look: Interval | None
    p_value: float
    p_at_any_look: float
    unadjusted: Interval | None
    variance_reduction: float | None

    def to_dict(self) -> dict[str, Any]:
        """Return the numbers as plain JSON types."""
        return {k: v.to_dict() if isinstance(v, Interval) else v for k, v in vars(self).items()}


@dataclass(frozen=True)
class Comparison:
    """A question with its answer.

    Attributes
    ----------
    n, n_against : customers in either arm.
    mean, mean_against : the outcome per customer (None without customers).
    is_rate : every customer's outcome is 0 or 1.
    measured : the numbers, or None where ``cannot_say`` tells why there are none.
    p_adjusted : the p-value that decides, after correction for the segments beside it.
    together : the interval that decides, wide enough to hold in all those segments at once.
    finding : what may be concluded.
    verdict : the same in words.
    """

    question: Question
    n: int
    n_against: int
    mean: float | None
    mean_against: float | None
    is_rate: bool
    measured: Measured | None = None
    cannot_say: str = ""
    p_adjusted: float | None = None
    together: Interval | None = None
    finding: Finding = "cannot say"
    verdict: str = ""

    def to_dict(self) -> dict[str, Any]:
        """Return the comparison as plain JSON types."""
        q: Mapping[str, Any] = vars(self.question)
        return {
            **q,
            "n": self.n, "n_against": self.n_against,
            "mean": self.mean, "mean_against": self.mean_against, "is_rate": self.is_rate,
            "measured": self.measured and self.measured.to_dict(),
            "cannot_say": self.cannot_say, "p_adjusted": self.p_adjusted,
            "together": self.together and self.together.to_dict(),
            "finding": self.finding, "verdict": self.verdict,
        }  # fmt: skip


def compare(
    question: Question,
    first: Sums | None,
    second: Sums | None,
    *,
    alpha: float,
    progress: float,
    share: float | None = None,
) -> Comparison:
    """Return how far two arms are apart, or why that cannot be said; never a number that is none.

    Parameters
    ----------
    first, second : sums of the arm and of the one it is held against; None without customers.
    alpha : of every interval, 0-1.
    progress : customers so far over customers planned (`sequences.critical`).
    share : planned share of the arm among the customers of both; None takes the share seen.
    """
    n, n_against = (s.n if s else 0 for s in (first, second))
    is_rate = bool(first and second and first.binary and second.binary)
    is_rate = is_rate and question.kind != "ratio"
    mean, mean_against = _value(first, question), _value(second, question)
    facts = (question, n, n_against, mean, mean_against, is_rate)
    reason = _cannot(question, first, second)
    if reason or first is None or second is None:
        return Comparison(*facts, cannot_say=reason)
    return Comparison(*facts, measured=_measure(
        question, first, second, alpha, progress, share or first.n / (first.n + second.n), is_rate,
    ))  # fmt: skip


def _value(sums: Sums | None, question: Question) -> float | None:
    if sums is None or sums.n == 0:
        return None
    if question.kind == "ratio":
        return sums.y / sums.x if sums.x else None
    return sums.y / sums.n


def _cannot(question: Question, first: Sums | None, second: Sums | None) -> str:
    for sums, arm in ((first, question.arm), (second, question.against)):
        n = sums.n if sums else 0
        if n < FEWEST:
            return f"only {n} customers in {arm}; {FEWEST} are needed"
        if question.kind == "ratio" and sums and sums.x <= 0:
            return f"the denominator adds up to {sums.x:g} in {arm}; it must be above 0"
    a, b = (_mean(s, question) for s in (first, second) if s)
    if a.variance == 0 and b.variance == 0:
        return (
            f"the outcome does not vary: it is {a.value:g} for all {a.n:,} customers of "
            f"{question.arm} and {b.value:g} for all {b.n:,} of {question.against}"
        )
    return ""


def _mean(sums: Sums, question: Question) -> Mean:
    return sums.ratio if question.kind == "ratio" else sums.mean


def _measure(
    question: Question, first: Sums, second: Sums,
    alpha: float, progress: float, share: float, is_rate: bool,
) -> Measured:  # fmt: skip
    a, b = _mean(first, question), _mean(second, question)
    counts = (first.y, first.n, second.y, second.n)
    plain = intervals.newcombe(*counts, alpha) if is_rate else intervals.welch(a, b, alpha)
    adjusted = _adjusted(question, first, second, is_rate)
    exact = None
    if adjusted is not None:
        a, b = adjusted.first, adjusted.second
    difference = plain if adjusted is None else intervals.welch(a, b, alpha)
    p_once, p_always = intervals.welch_p(a, b), sequences.means_p(a, b, progress)
    if is_rate and adjusted is None:
        p_once = intervals.newcombe_p(*counts)
        exact = sequences.rates(*counts, alpha, share)
        # The sequence of the difference is asymptotic; at small counts the exact bet must agree.
        p_always = max(p_always, sequences.rates_p(first.y, second.y, share))
    ratio = intervals.relative(a, b, alpha)
    return Measured(
        difference=difference,
        ratio=None if isinstance(ratio, str) else ratio,
        no_ratio=ratio if isinstance(ratio, str) else "",
        at_any_look=sequences.means(a, b, alpha, progress),
        ratio_at_any_look=exact,
        p_value=p_once,
        p_at_any_look=p_always,
        unadjusted=plain if adjusted else None,
        variance_reduction=adjusted.variance_reduction if adjusted else None,
    )


def _adjusted(question: Question, first: Sums, second: Sums, is_rate: bool) -> cuped.Cuped | None:
    if question.kind != "before":
        return None
    if is_rate:
        fewest = min(min(s.y, s.n - s.y) for s in (first, second))
        if fewest < _FEWEST_EVENTS:
            return None
    found = cuped.adjust(first, second)
    if found is None or math.isclose(found.first.variance + found.second.variance, 0.0):
        return None
    return found
