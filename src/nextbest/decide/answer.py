"""What is said of each decision: its offers with numbers and reasons, or why there is none."""

from __future__ import annotations

from functools import cached_property
from itertools import compress
from typing import TYPE_CHECKING, Any

from nextbest.decide.made import OffersMade
from nextbest.decide.unmade import NoOfferReasons

if TYPE_CHECKING:
    from nextbest.decide.engine import Decisions

__all__ = ["Answers", "Selections"]


class Answers:
    """The answers to all customers of some decisions; what they share is looked up once."""

    def __init__(self, decisions: Decisions) -> None:
        self._decisions = decisions
        self._ids = decisions.decision_ids, decisions.audience.customer_ids
        self._arm: list[str] = decisions.arm.tolist()
        self._known: list[bool] = decisions.audience.known.tolist()
        self._decided_at, self._stale = decisions.decided_at, decisions.profile_stale

    def of(self, row: int) -> dict[str, Any]:
        """The answer to one customer, JSON-able; ``no_offer_reasons`` says why none is made."""
        answer = self.head(row)
        answer["offers"] = offers = self._offers.of(row)
        answer["no_offer_reasons"] = [] if offers else self._no_offer_reasons.of(row)
        return answer

    def head(self, row: int) -> dict[str, Any]:
        """Who was decided for, when and how."""
        decision_ids, customer_ids = self._ids
        return {
            "decision_id": decision_ids[row],
            "customer_id": customer_ids[row],
            "decided_at": self._decided_at,
            "arm": self._arm[row],
            "known_customer": self._known[row],
            "profile_stale": self._stale,
        }

    @cached_property
    def _offers(self) -> OffersMade:
        return OffersMade(self._decisions)

    @cached_property
    def _no_offer_reasons(self) -> NoOfferReasons:
        return NoOfferReasons(self._decisions)


class Selections:
    """What the choices of some decisions were drawn from."""

    def __init__(self, decisions: Decisions) -> None:
        self._ids = decisions.catalogue.offer_ids
        self._policy = decisions.policy.policy.tables.exploration.policy
        self._arm: list[str] = decisions.arm.tolist()
        self._eligible, self._chances = decisions.eligible, decisions.probabilities
        self._end: list[float] = decisions.end_probability.tolist()
        self._would_choose: list[list[int]] = decisions.would_choose.tolist()

    def of(self, row: int) -> dict[str, Any]:
        """What one choice was drawn from; offers with a probability of 0 are left out.

        ``probabilities`` and ``no_offer`` are those of the first slot; ``end`` is the probability
        with which the answer ended after its last offer, where slots were left. Offers that a
        customer would have got without the holdout are under ``would_choose``.
        """
        ids, chances = self._ids, self._chances[row].tolist()
        return {
            "arm": self._arm[row],
            "policy": self._policy,
            "eligible": list(compress(ids, self._eligible[row].tolist())),
            # The last one is no offer, and has no name.
            "probabilities": dict(zip(compress(ids, chances), filter(None, chances), strict=False)),
            "no_offer": chances[-1],
            "end": self._end[row],
            "would_choose": [ids[j] for j in self._would_choose[row] if j >= 0],
        }
