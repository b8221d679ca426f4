"""Who gets the offers: how far groups of a sensitive attribute are treated alike by a policy."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Final, Literal

import numpy as np
import numpy.typing as npt
from scipy.special import stdtrit

from nextbest.decide.engine import Decisions
from nextbest.decide.sensitive import BiasLimits, Sensitive
from nextbest.decide.whatif import UNKNOWN, Segments
from nextbest.measure.intervals import Interval, wilson
from nextbest.measure.sums import Sums

__all__ = ["Tally", "judge", "ratio"]

ALPHA: Final = 0.05
Verdict = Literal["within", "below", "below, may be chance", "no limit", "no ratio"]
Booleans = npt.NDArray[np.bool_]
Floats = npt.NDArray[np.float64]


class Tally:
    """What a policy decides, added up by group of each sensitive attribute, part by part.

    Held-out customers count with what they would have got: chance alone chose them.

    Parameters
    ----------
    offer_ids : of the catalogue.
    divisions : how to divide customers, by attribute.
    """

    def __init__(self, offer_ids: Sequence[str], divisions: Mapping[str, Segments]) -> None:
        self._offer_ids = tuple(offer_ids)
        self._divisions = divisions
        self.groups: dict[str, dict[str, Figures]] = {
            name: {label: Figures.none(offer_ids) for label in division.labels}
            for name, division in divisions.items()
        }

    def add(self, decisions: Decisions) -> None:
        """Add the decisions for some more customers."""
        made = decisions.would_choose >= 0
        row, slot = np.nonzero(made)
        offer = decisions.would_choose[row, slot]
        got = np.zeros(decisions.fates.shape, dtype=bool)
        got[row, offer] = True
        profit = np.broadcast_to(decisions.values.expected_profit, got.shape)
        value = np.where(got, np.nan_to_num(profit), 0.0).sum(axis=1)
        propensity = _mean_propensity(decisions)
        for name, division in self._divisions.items():
            labels = division.label(decisions.audience.columns[name])
            for label in dict.fromkeys(labels.tolist()):
                rows = labels == label
                more = Figures.of(got[rows], propensity[rows], value[rows], self._offer_ids)
                groups = self.groups[name]
                groups[label] = groups[label] + more if label in groups else more

    def labels(self, attribute: str) -> list[str]:
        """Return the groups in order: a number's lowest first, others by name, unknown last."""
        inner = self._divisions[attribute].labels or sorted(self.groups[attribute])
        told = [label for label in inner if label != UNKNOWN]
        return [*told, *(label for label in self.groups[attribute] if label not in told)]


def _mean_propensity(decisions: Decisions) -> Floats:
    """Each customer's mean propensity over the offers that run here; NaN where none is known."""
    runs = np.array([step != "candidate" for step, _ in decisions.policy.fates.names])
    known = runs[decisions.fates] & np.isfinite(decisions.audience.propensity)
    many = known.sum(axis=1)
    total = np.where(known, decisions.audience.propensity, 0.0).sum(axis=1)
    return np.asarray(np.where(many > 0, total / np.maximum(many, 1), np.nan))


@dataclass(frozen=True)
class Figures:
    """The sums over one group's customers, which add up over any partition of them.

    Attributes
    ----------
    reach : whether a customer gets any offer.
    propensity : the customer's mean over the offers that run, where it is known.
    value : expected profit of what the customer gets, in the shop's currency.
    offers : the same as ``reach`` for each offer.
    """

    reach: Sums
    propensity: Sums
    value: Sums
    offers: Mapping[str, Sums]

    @classmethod
    def none(cls, offer_ids: Sequence[str]) -> Figures:
        """Return the figures of nobody."""
        empty = np.zeros((0, len(offer_ids)), dtype=bool)
        return cls.of(empty, np.zeros(0), np.zeros(0), offer_ids)

    @classmethod
    def of(
        cls, got: Booleans, propensity: Floats, value: Floats, offer_ids: Sequence[str]
    ) -> Figures:
        """Add up customers: ``got`` is (n, offers), the others (n,)."""
        return cls(
            _counted(np.asarray(got.any(axis=1))),
            _added(propensity[np.isfinite(propensity)]),
            _added(value),
            {name: _counted(got[:, at]) for at, name in enumerate(offer_ids)},
        )

    def __add__(self, other: Figures) -> Figures:
        """Return the figures of both groups' customers."""
        offers = {name: sums + other.offers[name] for name, sums in self.offers.items()}
        return Figures(
            self.reach + other.reach,
            self.propensity + other.propensity,
            self.value + other.value,
            offers,
        )


def _counted(yes: Booleans) -> Sums:
    count = float(np.count_nonzero(yes))
    return Sums(len(yes), count, count, binary=True)


def _added(values: Floats) -> Sums:
    return Sums(len(values), float(values.sum()), float((values**2).sum()))


def _mean(sums: Sums, alpha: float) -> Interval | None:
    """Return a mean with its interval: Wilson's for a share, Student's t otherwise."""
    if sums.n < 2:
        return None
    if sums.binary:
        return wilson(sums.y, sums.n, alpha)
    mean = sums.mean
    half = float(stdtrit(sums.n - 1, 1 - alpha / 2)) * math.sqrt(max(mean.of_mean, 0.0))
    return Interval(mean.value, mean.value - half, mean.value + half)


def ratio(over: Interval, under: Interval) -> Interval | None:
    """Return one mean over another with its interval; None where the lower one may be zero.

    MOVER-R: the ratio's limits follow from each mean's own (Donner & Zou 2012; Newcombe 2016). With
    a = over, b = under and A = a·b, the lower limit is a.low (2a − a.low) / (A + √(A² − a.low
    (2a − a.low) b.high (2b − b.high))), the upper one (A + √(A² − a.high (2a − a.high) b.low
    (2b − b.low))) / (b.low (2b − b.low)). Holds where ``over`` is zero, too.
    """
    if under.low <= 0 or over.value < 0:
        return None
    product = over.value * under.value
    low_over, high_over = (x * (2 * over.value - x) for x in (max(over.low, 0.0), over.high))
    low_under, high_under = (x * (2 * under.value - x) for x in (under.low, under.high))
    root = math.sqrt(max(product**2 - low_over * high_under, 0.0))
    low = low_over / (product + root) if product + root > 0 else 0.0
    high = (product + math.sqrt(max(product**2 - high_over * low_under, 0.0))) / low_under
    return Interval(over.value / under.value, low, high)


def judge(tally: Tally, rules: Sensitive) -> list[dict[str, Any]]:
    """Return for each attribute what its groups get, held against the best one or all the rest.

    A figure is *below* its limit where its ratio is, and chance alone does not explain that the
    ratio is below 1: the four-fifths rule with the test that goes with it (Uniform Guidelines on
    Employee Selection Procedures, 29 CFR 1607.4 D). The intervals of the ratios of one figure hold
    together (Bonferroni). Groups below ``smallest_group``, and customers of whom the attribute is
    unknown, are shown and not judged.
    """
    return [
        _attribute(name, {label: groups[label] for label in tally.labels(name)}, rules)
        for name, groups in tally.groups.items()
    ]


def _attribute(name: str, groups: Mapping[str, Figures], rules: Sensitive) -> dict[str, Any]:
    shown: dict[str, dict[str, Any]] = {}
    for label, figures in groups.items():
        if figures.reach.n == 0:
            continue
        why = _why_not(label, figures, rules.smallest_group)
        shown[label] = {"customers": figures.reach.n, "judged": not why, "why_not": why or None}
    judged = {label: groups[label] for label, one in shown.items() if one["judged"]}
    for figure, limit in _figures(rules.limits):
        own = {label: getattr(groups[label], figure) for label in shown}
        compared = _compare(own, list(judged), limit, rules.against)
        for label, found in compared.items():
            shown[label][figure] = found
    offers: dict[str, dict[str, Any]] = {label: {} for label in shown}
    for offer in next(iter(groups.values())).offers if groups else ():
        own = {label: groups[label].offers[offer] for label in shown}
        compared = _compare(own, list(judged), rules.limits.offer_reach_ratio, rules.against)
        for label, found in compared.items():
            offers[label][offer] = found
    for label, one in shown.items():
        one["offers"] = offers[label]
    below = [
        {"group": label, "figure": title, **found}
        for label, one in shown.items()
        for title, found in _judgements(one)
        if found["verdict"] == "below"
    ]
    return {
        "attribute": name,
        "verdict": "below" if below else "within" if len(judged) > 1 else "cannot say",
        "below": below,
        "groups": shown,
    }


def _figures(limits: BiasLimits) -> tuple[tuple[str, float | None], ...]:
    return (
        ("reach", limits.reach_ratio),
        ("propensity", limits.propensity_ratio),
        ("value", limits.value_ratio),
    )


def _judgements(group: Mapping[str, Any]) -> list[tuple[str, dict[str, Any]]]:
    figures = [(name, group[name]) for name in ("reach", "propensity", "value")]
    return [*figures, *((f'reach of offer "{n}"', f) for n, f in group["offers"].items())]


def _why_not(label: str, figures: Figures, smallest: int) -> str:
    if label == UNKNOWN:
        return "the attribute is unknown"
    if figures.reach.n < smallest:
        return f"too small to judge: {figures.reach.n:,} customers, of {smallest:,} needed"
    return ""


def _compare(
    own: Mapping[str, Sums], judged: Sequence[str], limit: float | None, against: str
) -> dict[str, dict[str, Any]]:
    """Hold the groups that are judged against the best of them, or each against all the others."""
    means = {label: _mean(sums, ALPHA) for label, sums in own.items()}
    able = [label for label in judged if means[label] is not None]
    best = max(able, key=lambda label: own[label].y / own[label].n, default="")
    # Which group is best is chosen by the same numbers, so every pair might have been compared.
    pairs = len(able) * (len(able) - 1) // 2 if against == "best" else len(able)
    found: dict[str, dict[str, Any]] = {}
    for label, mean in means.items():
        told: dict[str, Any] = (
            {"value": None, "low": None, "high": None} if mean is None else mean.to_dict()
        )
        other = None
        if label in able and len(able) > 1 and not (against == "best" and label == best):
            rest = [own[one] for one in able if one != label]
            other = own[best] if against == "best" else sum(rest[1:], start=rest[0])
        against_it = None if other is None else _ratio(own[label], other, ALPHA / max(pairs, 1))
        verdict = _verdict(against_it, limit, compared=other is not None)
        told |= {
            "ratio": None if against_it is None else against_it.to_dict(),
            "limit": limit,
            "verdict": verdict,
        }
        found[label] = told
    return found


def _ratio(own: Sums, other: Sums, alpha: float) -> Interval | None:
    over, under = _mean(own, alpha), _mean(other, alpha)
    return None if over is None or under is None else ratio(over, under)


def _verdict(found: Interval | None, limit: float | None, *, compared: bool) -> Verdict | None:
    if not compared:
        return None
    if found is None:
        return "no ratio"
    if limit is None:
        return "no limit"
    if found.value >= limit:
        return "within"
    return "below" if found.high < 1 else "below, may be chance"
