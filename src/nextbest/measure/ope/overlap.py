"""Whether the log can answer at all: did it ever, and often enough, choose what the target wants?

Nothing here needs rewards, so it can be looked at before anybody knows how the answer comes out.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np

from nextbest.errors import Fault
from nextbest.learn.metrics import Metric
from nextbest.measure.ope.estimators import clip_level
from nextbest.measure.ope.intervals import interval
from nextbest.measure.ope.log import Array, LoggedPolicy

__all__ = ["Limits", "OfferSupport", "Overlap", "effective", "measure_overlap", "refusals"]

Support = Literal["good", "thin", "never tried"]
_WHERE = "off-policy evaluation"
_EXPLORE = "Let the live policy explore these offers first, or try the target in an experiment"


@dataclass(frozen=True)
class Limits:
    """How much overlap an answer needs; below it the evaluation is refused.

    Parameters
    ----------
    customers : fewest customers in the log.
    effective_sample_size : fewest equally weighted decisions that the weighted log is worth.
    effective_per_offer : the same for one offer; an offer below it is thin.
    unsupported_share : largest share of the target's choices that the log could never make.
    thin_share : largest share of the target's choices that fall on thin offers.
    weight_errors : how many standard errors the mean weight may lie from where it must.
    """

    customers: int = 50
    effective_sample_size: float = 100
    effective_per_offer: float = 20
    unsupported_share: float = 0.01
    thin_share: float = 0.10
    weight_errors: float = 4


@dataclass(frozen=True)
class OfferSupport:
    """How well the log knows one offer (or "no offer").

    Attributes
    ----------
    logged : decisions that chose it.
    target_share : share of the target's choices.
    unsupported : share of all the target's choices that are this offer where it could not be
        chosen.
    effective : equally weighted decisions that its rows are worth.
    """

    offer: str
    logged: int
    target_share: float
    unsupported: float
    effective: float
    support: Support


@dataclass(frozen=True)
class Overlap:
    """How far the logged choices cover those of the target policy.

    Attributes
    ----------
    decisions, customers : how many were logged.
    explored_share : share of decisions whose choice was not certain.
    effective_sample_size : (Σ w)² / Σ w² (Kong 1992), at most ``decisions``.
    mean_weight : must be near 1 less ``unsupported_share``, or the logged probabilities are not
        those with which the choices were made.
    max_weight : the most that one decision counts.
    clip_at, share_clipped : where clipped weights are cut, and the share of decisions cut.
    unsupported_share : share of the target's choices that the log could never make.
    thin_share : share of the target's choices on offers that were chosen too rarely.
    """

    decisions: int
    customers: int
    explored_share: float
    effective_sample_size: float
    mean_weight: Metric
    max_weight: float
    clip_at: float
    share_clipped: float
    unsupported_share: float
    thin_share: float
    offers: tuple[OfferSupport, ...]

    def to_dict(self) -> dict[str, Any]:
        """Return the figures as plain JSON types."""
        return {
            **vars(self),
            "mean_weight": self.mean_weight.to_dict(),
            "offers": [vars(o) for o in self.offers],
        }


def effective(weights: Array) -> float:
    """Return how many equally weighted rows these are worth: (Σ w)² / Σ w²."""
    squares = float(weights @ weights)
    return float(weights.sum()) ** 2 / squares if squares > 0 else 0.0


def measure_overlap(log: LoggedPolicy, target: Array, limits: Limits | None = None) -> Overlap:
    """Return how well a log covers a target policy, offer by offer.

    Parameters
    ----------
    target : (n, m + 1) probabilities of the target policy.
    limits : says which offers are thin.
    """
    limits = limits or Limits()
    w = log.weights(target)
    offers = tuple(_offers(log, target, w, limits))
    cut = clip_level(len(log))
    return Overlap(
        decisions=len(log),
        customers=int(log.clusters.max()) + 1,
        explored_share=float((log.selection_probability < 1).mean()),
        effective_sample_size=effective(w),
        mean_weight=interval(w, log.clusters),
        max_weight=float(w.max()),
        clip_at=cut,
        share_clipped=float((w > cut).mean()),
        unsupported_share=math.fsum(o.unsupported for o in offers),
        thin_share=math.fsum(o.target_share - o.unsupported for o in offers if o.support == "thin"),
        offers=offers,
    )


def _offers(log: LoggedPolicy, target: Array, w: Array, limits: Limits) -> Iterator[OfferSupport]:
    supported = log.supported
    for column, offer in enumerate(log.action_names):
        wanted = target[:, column]
        chosen = log.action == column
        logged = int(chosen.sum())
        if supported is not None:
            lost = float(np.where(supported[:, column], 0.0, wanted).mean())
        else:  # Nothing says what could be chosen: an offer never seen counts as impossible.
            lost = 0.0 if logged else float(wanted.mean())
        share = float(wanted.mean())
        worth = effective(w[chosen])
        support: Support = "good"
        if share > 0 and (logged == 0 or lost >= share):
            support = "never tried"
        elif share > 0 and worth < limits.effective_per_offer:
            support = "thin"
        if support == "never tried":
            lost = share
        yield OfferSupport(offer, logged, share, lost, worth, support)


def refusals(overlap: Overlap, limits: Limits) -> Iterator[Fault]:
    """Yield every reason why the log cannot answer, each with its numbers."""
    o = overlap
    if o.explored_share == 0:
        yield Fault(
            _WHERE, "the log holds no exploration: every choice was certain",
            "a selection_probability below 1 in some decisions",
            f"1 in all {o.decisions:,}", "Turn exploration on and let it run",
        )  # fmt: skip
        return
    if o.customers < limits.customers:
        yield Fault(_WHERE, "too few customers", f"{limits.customers:,} or more",
                    f"{o.customers:,}", "Let the log grow")  # fmt: skip
    if o.unsupported_share > limits.unsupported_share:
        yield Fault(
            _WHERE,
            "the target makes choices that the log never made: "
            + _worst(o, lambda s: s.unsupported),
            f"at most {limits.unsupported_share:.1%} of the target's choices",
            f"{o.unsupported_share:.1%}", _EXPLORE,
        )  # fmt: skip
    if o.thin_share > limits.thin_share:
        yield Fault(
            _WHERE,
            "the target leans on offers that the log rarely chose: "
            + _worst(o, lambda s: s.target_share if s.support == "thin" else 0.0),
            f"at most {limits.thin_share:.0%} of the target's choices on offers worth fewer than "
            f"{limits.effective_per_offer:g} decisions",
            f"{o.thin_share:.1%}", _EXPLORE,
        )  # fmt: skip
    if o.effective_sample_size < limits.effective_sample_size:
        yield Fault(
            _WHERE, "the effective sample is too small",
            f"{limits.effective_sample_size:g} or more equally weighted decisions",
            f"{o.effective_sample_size:.1f} of {o.decisions:,} (largest weight "
            f"{o.max_weight:.3g})", "Log more decisions, or explore more",
        )  # fmt: skip
    elif _off(o) > limits.weight_errors:
        m = o.mean_weight
        yield Fault(
            _WHERE, "the logged probabilities are not those with which the choices were made",
            f"a mean weight near {1 - o.unsupported_share:.3f}",
            f"{m.value:.3f} ({m.low:.3f} to {m.high:.3f})",
            "Log the probability that was in force at each decision, after every rule and budget",
        )  # fmt: skip


def _off(o: Overlap) -> float:
    """Standard errors between the mean weight and where it must be."""
    gap = abs(o.mean_weight.value - (1 - o.unsupported_share))
    reach = (o.mean_weight.high - o.mean_weight.low) / 2
    if gap < 1e-6:
        return 0.0
    return math.inf if reach == 0 else 1.96 * gap / reach


def _worst(o: Overlap, size: Any) -> str:
    named = sorted((s for s in o.offers if size(s) > 0), key=size, reverse=True)
    text = ", ".join(f"{s.offer} ({size(s):.1%}, logged {s.logged:,} times)" for s in named[:3])
    return text + (f" and {len(named) - 3} more" if len(named) > 3 else "")
