"""What there is to hand out, to whom, and how much of it: the question, checked once."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any, Literal

import numpy as np
import numpy.typing as npt

from nextbest.errors import DataError, UsageError, did_you_mean

__all__ = ["CHUNK", "Constraint", "Problem", "Unit", "offer_limits"]

Unit = Literal["contacts", "currency"]

# Customers looked at together: their numbers for 50 offers stay in the processor's cache.
CHUNK = 4_096


@dataclass(frozen=True)
class Constraint:
    """At most so many contacts, or so much money, for some offers together.

    Parameters
    ----------
    name: what reports call it, unique in the problem.
    unit: "contacts" counts offers made; "currency" adds up their expected cost.
    offer_ids: the offers that share the limit; one for a capacity, all for a total budget.
    limit: contacts (a whole number) or money in the shop's currency; zero or more.
    """

    name: str
    unit: Unit
    offer_ids: tuple[str, ...]
    limit: float


def offer_limits(
    capacity: Mapping[str, int | None], budget: Mapping[str, float | None]
) -> tuple[Constraint, ...]:
    """Return each offer's own limits as constraints: how often, and for how much money.

    Parameters
    ----------
    capacity: most contacts by offer id; None for no limit.
    budget: most expected cost by offer id, in the shop's currency; None for no limit.
    """
    counts = [
        Constraint(f'capacity of offer "{offer_id}"', "contacts", (offer_id,), limit)
        for offer_id, limit in capacity.items()
        if limit is not None
    ]
    money = [
        Constraint(f'budget of offer "{offer_id}"', "currency", (offer_id,), limit)
        for offer_id, limit in budget.items()
        if limit is not None
    ]
    return (*counts, *money)


@dataclass(frozen=True, eq=False)
class Problem:
    """Who could get which offer, what that is worth and costs, and what is scarce.

    Parameters
    ----------
    offer_ids: (m,) ids of the columns. A column may also stand for an offer on one channel.
    value: (n, m) what each offer is worth for each customer (expected profit or priority, in the
        shop's currency); NaN or -inf where it may not be made. Making none is worth zero, so that
        an offer at or below zero is never made. Stored as given: float32 halves the memory, sums
        are always float64.
    constraints: what is scarce; none means that every customer gets the best.
    cost: (n, m) or (m,) expected cost of making the offer, in the shop's currency; needed where a
        constraint is in currency.
    slots: offers that one customer may get, at least 1.
    group: (m,) exclusivity group of each offer, of which a customer gets at most one; negative
        for offers outside any.

    Raises
    ------
    UsageError: slots below 1, a constraint with an unknown unit or offer, names used twice.
    DataError: shapes that do not fit, an infinite value, a limit that is negative or not a number,
        a cost that is unknown or negative where the offer may be made.
    """

    offer_ids: tuple[str, ...]
    value: npt.NDArray[np.floating[Any]]
    constraints: tuple[Constraint, ...] = ()
    cost: npt.NDArray[np.floating[Any]] | None = None
    slots: int = 1
    group: npt.NDArray[np.int64] | None = field(default=None)

    def __post_init__(self) -> None:
        _check_shapes(self)
        for constraint in self.constraints:
            _check_constraint(constraint, self.offer_ids)
        _check_unique("a constraint's name", [one.name for one in self.constraints])
        _check_amounts(self)

    def __len__(self) -> int:
        return len(self.value)


def chunks(n: int) -> Iterator[slice]:
    """Give the rows of n customers in parts that fit the processor's cache."""
    for start in range(0, n, CHUNK):
        yield slice(start, min(start + CHUNK, n))


def _check_shapes(problem: Problem) -> None:
    m = len(problem.offer_ids)
    _check_unique("an offer's id", problem.offer_ids)
    if problem.slots < 1:
        got = str(problem.slots)
        raise UsageError("slots", "there is no slot to fill", expected="1 or more", got=got)
    shape = problem.value.shape
    if len(shape) != 2 or shape[1] != m:
        _refuse("value", "the shape is wrong", f"customers × {m} offers", str(shape))
    allowed = (shape, (m,))
    if problem.cost is not None and problem.cost.shape not in allowed:
        _refuse("cost", "the shape is wrong", f"{shape} or {(m,)}", str(problem.cost.shape))
    if problem.group is not None and problem.group.shape != (m,):
        _refuse("group", "the shape is wrong", str((m,)), str(problem.group.shape))
    for name, array in (("value", problem.value), ("cost", problem.cost)):
        if array is not None and array.dtype.kind != "f":
            _refuse(name, "the kind of number is wrong", "float32 or float64", str(array.dtype))


def _check_unique(what: str, names: Any) -> None:
    twice = [name for name in dict.fromkeys(names) if list(names).count(name) > 1]
    if twice:
        raise UsageError("assignment", f'{what} is used twice: "{twice[0]}"', expected="unique")


def _check_constraint(one: Constraint, offer_ids: tuple[str, ...]) -> None:
    where = f"constraint {one.name!r}"
    if one.unit not in ("contacts", "currency"):
        raise UsageError(where, "the unit is not known", expected="contacts or currency")
    for offer_id in one.offer_ids:
        if offer_id not in offer_ids:
            raise UsageError(
                where,
                f'there is no offer "{offer_id}"',
                expected="one of the problem's offers",
                action=did_you_mean(offer_id, offer_ids),
            )
    _check_unique(f"{where}: an offer", one.offer_ids)
    if not math.isfinite(one.limit) or one.limit < 0:
        expected = "a number, zero or more"
        action = "Leave the constraint out where there is no limit"
        raise DataError(where, "the limit is wrong", expected=expected, got=str(one.limit),
                        action=action)  # fmt: skip
    if one.unit == "contacts" and one.limit != int(one.limit):
        _refuse(where, "contacts are counted", "a whole number", str(one.limit))


def _check_amounts(problem: Problem) -> None:
    money = [one.name for one in problem.constraints if one.unit == "currency"]
    if money and problem.cost is None:
        _refuse("cost", f"{money[0]} needs to know it", "an expected cost for every offer", "none")
    for rows in chunks(len(problem)):
        value = problem.value[rows]
        if np.any(value == np.inf):
            _refuse("value", "an offer is worth infinitely much", "a finite number", "inf")
        if problem.cost is None:
            continue
        cost = problem.cost if problem.cost.ndim == 1 else problem.cost[rows]
        wrong = np.isfinite(value) & ~(np.isfinite(cost) & (cost >= 0))
        if wrong.any():
            row, column = np.argwhere(wrong)[0]
            got = np.broadcast_to(cost, value.shape)[row, column]
            _refuse(
                f'cost of offer "{problem.offer_ids[column]}"',
                f"it is not an amount for customer number {rows.start + row}",
                "zero or more wherever the offer has a value",
                str(got),
            )


def _refuse(where: str, problem: str, expected: str, got: str) -> None:
    raise DataError(where, problem, expected=expected, got=got)
