"""Simulated answers on top of real customers: what each would do with and without a contact.

The customers, their scores and the offers are those of a project; only what they do is made up.
Each buys what an offer is about by a Poisson process, contacted or not. A contact persuades some of
those who would not have bought within the window, so that, as in `nextbest.simulate.shop`,
P(response | contact) = 1 - (1 - p0) (1 - u). The truth follows from the engine's own propensity,
but not exactly: the engine is wrong about offers and about customers, as any engine is.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from datetime import datetime, timedelta
from functools import cached_property
from typing import Final

import numpy as np
import numpy.typing as npt

from nextbest.decide.engine import Decisions
from nextbest.serve.schemas import OutcomeReport
from nextbest.simulate.truth import Truth

__all__ = ["MARGIN_SHARE", "MARK", "WINDOW_DAYS", "Answers", "truth_of"]

#: Every simulated outcome's id begins with this.
MARK: Final = "simulated-"
#: Margin as a share of what a simulated purchase brings in.
MARGIN_SHARE: Final = 0.3
#: An answer counts for so many days after the contact.
WINDOW_DAYS: Final = 28
# Log-odds by which the engine is wrong about an offer, and about a customer and an offer.
_WRONG_ABOUT_OFFER: Final = 0.25
_WRONG_ABOUT_PAIR: Final = 0.5
# Of all who would respond, the share that would have bought without a contact: Beta(2, 6).
_UNASKED: Final = (2.0, 6.0)

Array = npt.NDArray[np.float64]


def truth_of(decisions: Sequence[Decisions], seed: int) -> Truth:
    """Return what contacts really change, near to what the engine believes but not equal to it.

    Parameters
    ----------
    decisions : one decision for every customer, in parts; chances and amounts are taken from it. An
        offer of which something is unknown is one that nobody answers.
    """
    believed = np.vstack([part.audience.propensity for part in decisions])
    margin, incentive, contact = (
        np.vstack([np.broadcast_to(getattr(d.values, what), d.fates.shape) for d in decisions])
        for what in ("margin", "incentive_cost", "contact_cost")
    )
    n, m = believed.shape
    random = np.random.default_rng([seed, 0])
    known = np.isfinite(believed) & np.isfinite(margin) & (margin > 0)
    p = np.clip(np.where(known, believed, 0.5), 1e-6, 1 - 1e-6)
    wrong = random.normal(0, _WRONG_ABOUT_OFFER, m) + random.normal(0, _WRONG_ABOUT_PAIR, (n, m))
    contacted = np.where(known, 1 / (1 + np.exp(-np.log(p / (1 - p)) - wrong)), 0.0)
    customers = [customer for part in decisions for customer in part.audience.customer_ids]
    return Truth(
        tuple(customers), decisions[0].catalogue.catalogue.offer_ids, contacted,
        contacted * random.beta(*_UNASKED, (n, 1)),
        np.nan_to_num(margin), np.nan_to_num(incentive), np.nan_to_num(contact),
    )  # fmt: skip


@dataclass
class Answers:
    """What customers do over some weeks; the same seed gives the same, whoever is contacted.

    Parameters
    ----------
    start : the first instant (aware UTC). days : how long customers are watched.
    """

    truth: Truth
    start: datetime
    days: int
    seed: int
    _told: list[OutcomeReport] = field(default_factory=list, init=False)

    @cached_property
    def price(self) -> Array:
        """(n, m) what a purchase brings in, in currency."""
        return np.maximum(self.truth.margin, 0) / MARGIN_SHARE

    @cached_property
    def _place(self) -> dict[str, int]:
        return {customer: i for i, customer in enumerate(self.truth.customer_ids)}

    @cached_property
    def _unasked(self) -> dict[tuple[int, int], list[float]]:
        """Days at which each customer buys unasked, by customer and offer; taken out once told."""
        rate = -np.log1p(-self.truth.left_alone) / WINDOW_DAYS
        random = np.random.default_rng([self.seed, 1])
        counts = random.poisson(rate * self.days)
        return {
            (int(i), int(j)): sorted(random.uniform(0, self.days, counts[i, j]).tolist())
            for i, j in np.argwhere(counts)
        }

    def contact(self, decisions: Sequence[Decisions], week: int) -> npt.NDArray[np.int64]:
        """Let customers answer the offers of one week, and return (n, m) who got which.

        Chance is drawn for everybody and every offer, by the week, whoever gets one.
        """
        t = self.truth
        random = np.random.default_rng([self.seed, 2, week])
        lots = random.random(t.contacted.shape)
        after = random.uniform(0, WINDOW_DAYS, t.contacted.shape)
        persuades = (t.contacted - t.left_alone) / (1 - t.left_alone)
        made = np.zeros(t.contacted.shape, dtype=np.int64)
        for part in decisions:
            day = (part.situation.decided_at - self.start) / timedelta(days=1)
            for row in np.flatnonzero(part.chosen[:, 0] >= 0).tolist():
                i, j = self._place[part.audience.customer_ids[row]], int(part.chosen[row, 0])
                made[i, j] = 1
                own = self._unasked.get((i, j), [])
                at = next((d for d in own if day < d <= day + WINDOW_DAYS), None)
                if at is not None:
                    own.remove(at)  # would have come anyway, and now answers the offer
                elif lots[i, j] < persuades[i, j]:
                    at = day + float(after[i, j])
                if at is not None:
                    told = self._report("conversion", i, j, at, part.decision_ids[row])
                    self._told.append(told)
        return made

    def until(self, moment: datetime, customer_ids: Sequence[str]) -> list[OutcomeReport]:
        """Return what these customers did before a moment and was not told yet, oldest first."""
        last = (moment - self.start) / timedelta(days=1)
        wanted = {self._place[customer] for customer in customer_ids}
        news = [one for one in self._told if one.occurred_at < moment]
        self._told = [one for one in self._told if one.occurred_at >= moment]
        for (i, j), own in self._unasked.items():
            if i in wanted:
                news += [self._report("purchase", i, j, t) for t in own if t < last]
                own[:] = [t for t in own if t >= last]
        return sorted(news, key=lambda one: (one.occurred_at, one.outcome_id))

    def _report(
        self, kind: str, i: int, j: int, day: float, decision_id: str | None = None
    ) -> OutcomeReport:
        customer, offer = self.truth.customer_ids[i], self.truth.offer_ids[j]
        return OutcomeReport(
            outcome_id=f"{MARK}{customer}-{offer}-{day:.6f}", decision_id=decision_id,
            customer_id=customer, offer_id=offer, outcome_type=kind,
            occurred_at=self.start + timedelta(days=day), value=float(self.price[i, j]),
        )  # fmt: skip

    def effects(self, contacts: npt.NDArray[np.int64]) -> Iterator[tuple[str, float]]:
        """Yield the true effect of some contacts, beyond contacting nobody, per customer.

        Parameters
        ----------
        contacts : (n, m) how often each customer got each offer, in windows that do not overlap.
        """
        t = self.truth
        revenue = contacts * (t.contacted - t.left_alone) * self.price
        spent = contacts * (t.contacted * t.incentive_cost + t.contact_cost)
        n = len(t.customer_ids)
        yield "revenue", float(revenue.sum() / n)
        yield "margin", float((MARGIN_SHARE * revenue - spent).sum() / n)
