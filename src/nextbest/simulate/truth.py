"""What contacts really change: known exactly, so that policies are valued without chance."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property

import numpy as np
import numpy.typing as npt

from nextbest.errors import DataError

__all__ = ["Truth"]

Array = npt.NDArray[np.float64]


@dataclass(frozen=True)
class Truth:
    """Every customer's probabilities and every offer's economics, as they really are.

    Parameters
    ----------
    customer_ids, offer_ids : n customers and m offers, in the order of rows and columns.
    contacted : (n, m) P(buys what is offered within the window | contacted with the offer).
    left_alone : (n, m) P(the same | not contacted).
    margin, incentive_cost, contact_cost : (m,) or (n, m) currency.
    """

    customer_ids: tuple[str, ...]
    offer_ids: tuple[str, ...]
    contacted: Array
    left_alone: Array
    margin: Array
    incentive_cost: Array
    contact_cost: Array

    @cached_property
    def profit(self) -> Array:
        """(n, m) what contacting earns beyond leaving alone, in expectation, in currency.

        ``p1 × (margin − incentive) − contact_cost − p0 × margin``: worked out here from the two
        cases, with and without contact, and not by the engine's own function.
        """
        with_contact = self.contacted * (self.margin - self.incentive_cost) - self.contact_cost
        without = self.left_alone * self.margin
        found: Array = with_contact - without
        return found

    def value(self, probabilities: npt.ArrayLike) -> float:
        """Return the expected profit of a policy, beyond contacting nobody, in currency.

        Parameters
        ----------
        probabilities : (n, m + 1) with which each offer is made, or none (last column).

        Raises
        ------
        DataError : the shape is wrong, or a row is no distribution.
        """
        return float(self.each(probabilities).sum())

    def each(self, probabilities: npt.ArrayLike) -> Array:
        """Return (n,) the expected profit of a policy customer by customer; errors as `value`."""
        chances = np.asarray(probabilities, dtype=np.float64)
        n, m = self.profit.shape
        if chances.shape != (n, m + 1):
            raise DataError(
                "policy",
                "its probabilities have the wrong shape",
                expected=f"({n}, {m + 1}): customers × offers and no offer",
                got=str(chances.shape),
            )
        wrong = (chances < 0).any(axis=1) | (np.abs(chances.sum(axis=1) - 1) > 1e-9)
        if wrong.any() or np.isnan(chances).any():
            raise DataError(
                "policy",
                "the probabilities of a customer are no distribution",
                expected="0 or more, with sum 1",
                got=f"{int(wrong.sum())} rows that are not",
            )
        found: Array = (chances[:, :m] * self.profit).sum(axis=1)
        return found

    def oracle(self, eligible: npt.NDArray[np.bool_] | None = None) -> Array:
        """Return (n, m + 1) the best possible choice: the offer of most true profit, or none.

        Parameters
        ----------
        eligible : (n, m) which offers may be made; None for all.
        """
        profit = self.profit if eligible is None else np.where(eligible, self.profit, -np.inf)
        return self.choose(np.where(profit.max(axis=1) > 0, profit.argmax(axis=1), -1))

    def choose(self, offer: npt.ArrayLike) -> Array:
        """Return (n, m + 1) the certain choice of one offer for each customer; -1 is none."""
        chosen = np.broadcast_to(np.asarray(offer), len(self.customer_ids))
        found: Array = np.eye(len(self.offer_ids) + 1)[chosen]
        return found
