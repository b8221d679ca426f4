"""Leave part of the choice to chance, at known probabilities, to learn what else would have worked.

Every policy gives one explicit vector of probabilities for each customer: one number for each
offer in the running, and one for making no offer. The engine draws from that vector and logs it;
that is what lets another policy be judged on these decisions later (Horvitz & Thompson 1952).
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal

import numpy as np
import numpy.typing as npt
from scipy.special import betaincinv

from nextbest.decide.arbitrate import Ints, Values, greedy, weigh
from nextbest.decide.policy import Exploration
from nextbest.errors import DataError

__all__ = [
    "Earnings",
    "Explorer",
    "LossStatistics",
    "OfferCounts",
    "beliefs",
    "best_probability",
    "epsilon",
    "guard",
    "loss_bound",
    "over_budget",
    "reach",
    "smallest_budget",
    "softmax",
    "uniform",
]

Floats = npt.NDArray[np.float64]
Mask = npt.NDArray[np.bool_]

BELIEF_POINTS = 32
"""Equally likely values that stand for what a propensity may be."""


# --- policies: from what is in the running to probabilities, customers × (offers + 1) ------------


def uniform(running: Floats) -> Floats:
    """Make every offer in the running equally likely; no offer only where there is none.

    Parameters
    ----------
    running: customers × offers, -inf where an offer is out.
    """
    return _spread(np.isfinite(running), no_offer=False)


def epsilon(running: Floats, free: Mask, share: float, best: Floats | None = None) -> Floats:
    """Choose the best, but now and then any of the others, each as often.

    ``(1 − share) × best + share / (k + 1)`` over the k offers that may be explored and no offer
    (epsilon-greedy: Sutton & Barto 2018, section 2.2).

    Parameters
    ----------
    running: customers × offers in the order of their ids, -inf where an offer is out.
    free: where an offer may be explored.
    share: how much is left to chance, from 0 to 1.
    best: what `greedy` returns, where that is known.
    """
    vector = _spread(free, no_offer=True)
    best = greedy(running) if best is None else best
    vector *= share
    vector += (1.0 - share) * best
    return vector


def softmax(running: Floats, free: Mask, temperature: float) -> Floats:
    """Make an offer the likelier the better it is: proportional to ``exp(priority / temperature)``.

    No offer takes part with priority 0 (Boltzmann exploration: Sutton & Barto 2018, section 2.8).

    Parameters
    ----------
    temperature: in the unit of the priority. An offer that is one temperature better is e = 2.7
        times as likely.
    """
    values = _with_no_offer(np.where(free, running, -np.inf), 0.0)
    highest = values.max(axis=1, keepdims=True)
    return _normalised(np.exp((values - highest) / temperature))


def beliefs(
    propensity: Floats,
    strength: Floats,
    rate: Floats,
    per_response: Floats,
    regardless: Floats,
    multiplier: Floats,
) -> Floats:
    """Say what each offer's priority may be, given how well its propensity is known.

    The propensity p is taken as Beta with mean ``m = p × (κ + N × rate) / (κ + N)`` (at most 1)
    and sample size ``κ + N``: the model's word counts as κ = ``prior_strength`` contacts, and the N
    contacts of this offer since then speak of this customer in the ratio in which they did better
    or worse than foretold. The Beta is then represented by equally likely points, its quantiles at
    (i + ½) / 32, so that probabilities of being best are exact for it (`best_probability`).

    Parameters
    ----------
    propensity: customers × offers.
    strength: offers, κ + N.
    rate: offers, the factor (κ + N × rate) / (κ + N) on the propensity; 1 where the model is right.
    per_response, regardless: customers × offers, money that comes with a response, and anyway.
    multiplier: customers × offers, levers and context weights.

    Returns
    -------
    customers × offers × points.
    """
    mean = np.clip(propensity * rate, 1e-9, 1 - 1e-9)
    points = (np.arange(BELIEF_POINTS) + 0.5) / BELIEF_POINTS
    # Each element is worked out by itself, so that a customer alone gives the same bits.
    values = betaincinv(
        (strength * mean)[:, :, None], (strength * (1.0 - mean))[:, :, None], points
    )
    profit = values * per_response[:, :, None] + regardless[:, :, None]
    return weigh(profit, np.broadcast_to(multiplier, propensity.shape)[:, :, None])


def best_probability(possible: Floats, free: Mask) -> Floats:
    """Make an offer as likely as it is to be the best one (Thompson 1933; Russo et al. 2018).

    ``P(j is best) = Σ over the points v of j: 1/K × Π over the other offers k: P(value of k < v)``
    where each offer's value is one of its K points, equally likely and independent. Computed by
    sorting all points; ties go to the smaller id. Nothing is simulated, and the vector sums to 1.

    Parameters
    ----------
    possible: customers × offers × points, in the order of the offers' ids (`beliefs`).
    free: where an offer may be explored.
    """
    n, m, size = possible.shape
    values = np.where(free[:, :, None], possible, -np.inf).reshape(n, m * size)
    order = np.argsort(-values, axis=1, kind="stable")
    owner = order // size
    gains = np.take_along_axis(values, order, axis=1) > 0
    wins = np.full((n, m * size), 1.0 / size)
    none = np.ones(n)
    for offer in range(m):
        own = owner == offer
        behind = (size - np.cumsum(own, axis=1)) / size
        wins *= np.where(own | ~free[:, offer, None], 1.0, behind)
        losses = 1.0 - np.count_nonzero(own & gains, axis=1) / size
        none *= np.where(free[:, offer], losses, 1.0)
    chances = np.zeros((n, m + 1))
    for offer in range(m):
        chances[:, offer] = _total(np.where((owner == offer) & gains, wins, 0.0))
    chances[:, m] = none
    return _normalised(chances)


def guard(best: Floats, exploring: Floats, profit: Floats, share: float) -> Floats:
    """Mix the exploring vector with the greedy one until it costs at most a share of the profit.

    The largest weight w with ``E[profit | best] − E[profit | w × exploring + (1 − w) × best]`` at
    most ``share × E[profit | best]``; the loss is linear in w, so that
    ``w = min(1, share × E[profit | best] / (E[profit | best] − E[profit | exploring]))``. Where the
    best choice earns nothing, nothing may be lost.

    Parameters
    ----------
    best, exploring: customers × (offers + 1), probabilities.
    profit: customers × offers, expected profit.
    share: from 0 to 1.
    """
    earns = _earned(best, profit)
    loses = earns - _earned(exploring, profit)
    allowed = share * np.maximum(earns, 0.0)
    too_much = loses > allowed
    if not too_much.any():
        return exploring
    weight = np.ones(len(best))
    np.divide(allowed, loses, out=weight, where=too_much)
    return (1.0 - weight)[:, None] * best + weight[:, None] * exploring


# The numbers of `Values` that say what a contact earns.
EARNED_FROM = ("margin", "incentive_cost", "contact_cost", "baseline_rate", "retention_value")


@dataclass(frozen=True)
class Earnings:
    """What a contact earns over none, customers × offers, in the shop's currency.

    ``ignored`` is without a response (mostly minus the contact's cost), ``answered`` with one.
    """

    ignored: Floats
    answered: Floats

    @classmethod
    def of(cls, values: Values) -> Earnings:
        """Work out what offers earn; NaN where unknown."""
        return cls.from_amounts(*(getattr(values, name) for name in EARNED_FROM))

    @classmethod
    def from_amounts(
        cls,
        margin: Floats,
        incentive_cost: Floats,
        contact_cost: Floats,
        baseline_rate: Floats,
        retention_value: Floats,
    ) -> Earnings:
        """Work out what offers earn from the numbers behind their priority (`Values`)."""
        with np.errstate(invalid="ignore"):  # as in `expected_profit`
            anyway = baseline_rate * margin
        ignored = retention_value - contact_cost - anyway
        return cls(ignored, ignored + (margin - incentive_cost))


@dataclass(frozen=True)
class Explorer:
    """The exploration policy with what it needs to know of some customers.

    Parameters
    ----------
    settings: the policy's ``[exploration]``.
    profit: customers × offers in the order of their ids, expected profit; a number everywhere.
    stopped: (m,) offers that are no longer explored; they are made where they are best.
    possible: customers × offers × points (`beliefs`), for Thompson sampling only.
    earnings: of each offer, needed only with a ``loss_budget``.
    """

    settings: Exploration
    profit: Floats
    stopped: Mask
    possible: Floats | None = None
    earnings: Earnings | None = None

    def chances(self, running: Floats, leader: Ints | None = None) -> Floats:
        """Return the probabilities for one slot, customers × (offers + 1).

        ``leader`` is what `arbitrate.leaders` returns, where that is known.
        """
        best = greedy(running, leader)
        free = np.isfinite(running)
        if self.settings.loss_budget is not None or self.stopped.any():
            may_be_explored = ~self.stopped & self._within_limits(best)
            free &= may_be_explored | (best[:, :-1] > 0)
        vector = self._vector(running, free, best)
        share = self.settings.max_loss_share
        return vector if share is None else guard(best, vector, self.profit, share)

    def _vector(self, running: Floats, free: Mask, best: Floats) -> Floats:
        match self.settings.policy:
            case "greedy":
                return best
            case "epsilon":
                return epsilon(running, free, self.settings.epsilon, best)
            case "softmax":
                return softmax(running, free, self.settings.temperature)
            case "thompson":
                if self.possible is None:
                    raise DataError("exploration", "Thompson sampling was given no beliefs")
                return best_probability(self.possible, free)

    def _within_limits(self, best: Floats) -> Mask:
        """Where one contact can neither lose nor gain more than the budget's bound was told."""
        if self.settings.loss_budget is None:
            return np.ones((1, 1), dtype=bool)
        if self.earnings is None:
            raise DataError("exploration", "a loss budget was given no earnings")
        earns = _earned(best, self.profit)[:, None]
        ignored, answered = earns - self.earnings.ignored, earns - self.earnings.answered
        worst, gain = np.maximum(ignored, answered), -np.minimum(ignored, answered)
        limits = self.settings.loss_limits()
        within: Mask = (worst <= limits["largest_loss"]) & (gain <= limits["largest_gain"])
        return within


def _earned(chances: Floats, profit: Floats) -> Floats:
    """(n,) profit to expect from some probabilities; no offer earns nothing."""
    return _total(chances[:, :-1] * profit)


def _with_no_offer(values: Floats, worth: float) -> Floats:
    return np.concatenate([values, np.full((len(values), 1), worth)], axis=1)


def _total(values: Floats) -> Floats:
    """Add up each row from left to right, so that a zero in between changes no bit."""
    totals: Floats = values.cumsum(axis=1)[:, -1]
    return totals


def _normalised(weights: Floats) -> Floats:
    shares: Floats = weights / _total(weights)[:, None]
    return shares


def _spread(offers: Mask, *, no_offer: bool) -> Floats:
    """Share probability evenly among some offers, and no offer if asked or where none is."""
    n, m = offers.shape
    shares = np.empty((n, m + 1))
    shares[:, :m] = offers
    shares[:, m] = no_offer or ~offers.any(axis=1)
    shares /= shares.sum(axis=1, keepdims=True)
    return shares


# --- new offers: a few customers first -----------------------------------------------------------


@dataclass(frozen=True)
class OfferCounts:
    """What is known of an offer from the log.

    Parameters
    ----------
    contacts: how often it was made.
    responses: how many of these were answered.
    expected_responses: the sum of the propensities of the settled contacts; None where unknown,
        which counts as if the model had been right.
    settled: how many contacts had their whole response window, so that a response that is missing
        will not come any more; None stands for all.
    settled_responses: how many of these were answered within it; None stands for all responses.
    """

    contacts: int = 0
    responses: int = 0
    expected_responses: float | None = None
    settled: int | None = None
    settled_responses: int | None = None

    def __post_init__(self) -> None:
        expected = self.expected_responses
        sound = 0 <= self.responses <= self.contacts
        sound &= 0 <= self._answered <= self._tried <= self.contacts
        if not sound or (expected is not None and not expected >= 0):
            raise DataError(
                "offer counts",
                "the counts do not fit together",
                expected="0 or more responses, not more than there are contacts",
                got=f"{self.responses} responses to {self.contacts} contacts",
            )

    @property
    def _tried(self) -> int:
        return self.contacts if self.settled is None else self.settled

    @property
    def _answered(self) -> int:
        return self.responses if self.settled_responses is None else self.settled_responses

    def strength(self, prior_strength: float) -> float:
        """How many contacts the propensity is known as well as."""
        return prior_strength + self._tried

    def rate(self, prior_strength: float) -> float:
        """The factor on the propensity: above 1 where it did better than the model foretold."""
        if not self._tried or not self.expected_responses:
            return 1.0
        ratio = self._answered / self.expected_responses
        return (prior_strength + self._tried * ratio) / (prior_strength + self._tried)


def reach(counts: OfferCounts, settings: Exploration) -> float:
    """Return the share of customers who may get an offer: small at first, all once it is known.

    From ``new_offer_reach``, in proportion to the responses so far, to 1 at
    ``full_reach_responses``; an offer that few answer gets there by ``full_reach_contacts``.
    """
    start = settings.new_offer_reach
    if start is None:
        return 1.0
    known = max(
        counts.responses / settings.full_reach_responses,
        counts.contacts / settings.full_reach_contacts,
    )
    return start + (1.0 - start) * min(1.0, known)


# --- the running budget: stop exploring an offer before it costs too much ------------------------


@dataclass(frozen=True)
class LossStatistics:
    """What exploring an offer has cost so far, in the shop's currency; two of them add up.

    A contact's loss is what the best choice was expected to earn less what the explored offer
    did earn; a gain is a negative loss.
    """

    count: int = 0
    total: float = 0.0
    total_of_squares: float = 0.0

    @classmethod
    def of(cls, losses: npt.ArrayLike) -> LossStatistics:
        """Summarise losses, one for each contact."""
        values = np.asarray(losses, dtype=np.float64)
        return cls(values.size, float(values.sum()), float(np.square(values).sum()))

    def __add__(self, more: LossStatistics) -> LossStatistics:
        return LossStatistics(
            self.count + more.count,
            self.total + more.total,
            self.total_of_squares + more.total_of_squares,
        )


def loss_bound(
    total: npt.ArrayLike,
    total_of_squares: npt.ArrayLike,
    *,
    largest_loss: float,
    largest_gain: float,
    side: Literal["upper", "lower"] = "upper",
    alpha: float = 0.05,
) -> Floats:
    """Bound the loss to expect of all contacts so far, however often one looks.

    With probability 1 − alpha the sum of the expected losses is within the bound after every single
    contact, so that it may be looked at daily and acted upon. Empirical Bernstein with the loss
    predicted as 0 (Howard, Ramdas, McAuliffe & Sekhon 2021, theorem 4; Fan, Grama & Liu 2015): for
    every λ in (0, 1), Ville's inequality keeps ``Σ expected loss`` within a line in V = Σ loss²;
    the bound is the best of K = 12 lines, each at level alpha / K::

        total ± min over λ of c × (ψ(λ) × V / c² + log(K / alpha)) / λ
        ψ(λ) = −log(1 − λ) − λ,  c = largest loss + largest gain,  λ = 0.9 × 1.6^−k, k = 0 … 11

    Parameters
    ----------
    total, total_of_squares: of the losses; any shape.
    largest_loss, largest_gain: at one contact, in the shop's currency, 0 or more; losses beyond
        them void the bound.

    Raises
    ------
    DataError: a limit is negative, or both are 0.
    """
    scale = largest_loss + largest_gain
    if not (largest_loss >= 0 and largest_gain >= 0 and scale > 0):
        raise DataError(
            "exploration budget",
            "the losses of one contact need limits",
            expected="a largest loss and a largest gain, 0 or more, not both 0",
            got=f"{largest_loss:g} and {largest_gain:g}",
        )
    slope = 0.9 * 1.6 ** -np.arange(12.0)
    psi = -np.log1p(-slope) - slope
    v = np.asarray(total_of_squares, dtype=np.float64)[..., None] / scale**2
    width = scale * np.min((psi * v + np.log(len(slope) / alpha)) / slope, axis=-1)
    middle = np.asarray(total, dtype=np.float64)
    bound: Floats = middle + width if side == "upper" else middle - width
    return bound


def smallest_budget(*, largest_loss: float, largest_gain: float, alpha: float = 0.05) -> float:
    """Return the least budget with which exploring an offer can begin.

    It must leave room for what cannot be known at the start: ``log(12 / alpha) / 0.9`` = 6.1 times
    the largest loss and gain together, and one largest loss.
    """
    unknown = loss_bound(
        0.0, 0.0, largest_loss=largest_loss, largest_gain=largest_gain, alpha=alpha
    )
    return float(unknown) + largest_loss


def over_budget(
    losses: Mapping[str, LossStatistics],
    *,
    budget: float,
    largest_loss: float,
    largest_gain: float,
    alpha: float = 0.05,
) -> frozenset[str]:
    """Name the offers whose exploration must stop, for `engine.decide` to leave in peace.

    An offer stops once one more contact could take its expected loss over the budget, for all that
    can be excluded at level alpha. So the chance that an offer ever costs more than the budget is
    at most alpha, however often this is asked. See `smallest_budget` for what it must be at least.

    Parameters
    ----------
    losses: what exploring each offer has cost so far, by offer id.
    budget: for one offer, in the shop's currency.

    Raises
    ------
    DataError: as `loss_bound`.
    """
    stopped = set()
    for offer_id, so_far in losses.items():
        bound = loss_bound(
            so_far.total,
            so_far.total_of_squares,
            largest_loss=largest_loss,
            largest_gain=largest_gain,
            alpha=alpha,
        )
        if float(bound) + largest_loss > budget:
            stopped.add(offer_id)
    return frozenset(stopped)
