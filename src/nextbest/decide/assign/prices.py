"""What one more of each scarce thing is worth, and how decisions elsewhere respect it."""

from __future__ import annotations

import hashlib
import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, fields
from functools import cached_property
from typing import Any

import numpy as np
import numpy.typing as npt

from nextbest.decide.assign.problem import Constraint, Unit
from nextbest.errors import DataError

__all__ = ["Price", "Prices", "price_adjusted"]

Floats = npt.NDArray[np.float64]
_ONE_MORE: Mapping[Unit, str] = {
    "contacts": "one more contact",
    "currency": "one more unit of currency",
}


@dataclass(frozen=True)
class Price:
    """What one more contact, or one more unit of currency, under a constraint would be worth.

    Parameters
    ----------
    constraint, unit, offer_ids, limit: as in `Constraint`.
    used: contacts or money that the assignment uses up.
    price: value gained per contact or per unit of currency if the limit were a little higher;
        zero where the limit keeps nobody from anything.
    """

    constraint: str
    unit: Unit
    offer_ids: tuple[str, ...]
    limit: float
    used: float
    price: float

    @property
    def binds(self) -> bool:
        """Whether a higher limit would be worth something."""
        return self.price > 0

    def __str__(self) -> str:
        digits = 0 if self.unit == "contacts" else 2
        used = f"{self.constraint}: {self.used:,.{digits}f} of {self.limit:,.{digits}f} used"
        if not self.binds:
            return f"{used}; more of it is worth nothing."
        return f"{used}; {_ONE_MORE[self.unit]} is worth {self.price:.4g}."


@dataclass(frozen=True)
class Prices:
    """The prices of everything scarce, to be stored by a batch run and used by later decisions.

    Parameters
    ----------
    offer_ids: (m,) the offers whose values the prices adjust, in the order of the columns.
    each: one price for each constraint.
    """

    offer_ids: tuple[str, ...]
    each: tuple[Price, ...]

    @cached_property
    def per_contact(self) -> Floats:
        """(m,) what making each offer once uses up of limits in contacts, as value."""
        return self._total("contacts")

    @cached_property
    def per_currency(self) -> Floats:
        """(m,) what each unit of an offer's cost uses up of limits in currency, as value."""
        return self._total("currency")

    def _total(self, unit: Unit) -> Floats:
        total = dict.fromkeys(self.offer_ids, 0.0)
        for one in self.each:
            for offer_id in one.offer_ids:
                if one.unit == unit and offer_id in total:
                    total[offer_id] += one.price
        return np.array(list(total.values()))

    def charge(self, cost: npt.NDArray[Any]) -> npt.NDArray[Any]:
        """Return what making each offer uses up of everything scarce, as value.

        ``per_contact + cost × per_currency``; an unknown cost matters only where money is scarce.

        Parameters
        ----------
        cost: expected cost, customers × offers or one for each offer, in the shop's currency.
        """
        money = np.where(self.per_currency > 0, cost, 0.0) * self.per_currency
        charged: npt.NDArray[Any] = self.per_contact + money
        return charged

    def for_offers(self, offer_ids: Sequence[str]) -> Prices:
        """Return the same prices for other columns; an offer that no constraint names is free."""
        return Prices(tuple(offer_ids), self.each)

    def to_dict(self) -> dict[str, Any]:
        """Return the prices as plain JSON types."""
        each = [{**asdict(one), "offer_ids": list(one.offer_ids)} for one in self.each]
        return {"offer_ids": list(self.offer_ids), "prices": each}

    @cached_property
    def content_hash(self) -> str:
        """The version that decisions name."""
        said = json.dumps(self.to_dict(), sort_keys=True)
        return hashlib.sha256(said.encode()).hexdigest()

    @classmethod
    def from_dict(cls, raw: Mapping[str, Any]) -> Prices:
        """Read what `to_dict` gave.

        Raises
        ------
        DataError: fields are missing or unknown, a number is negative or not finite.
        """
        _check_fields(raw, {"offer_ids", "prices"})
        if not isinstance(raw["prices"], list):
            raise DataError("prices", "the list of prices is wrong", expected="a list")
        return cls(_texts(raw["offer_ids"]), tuple(_price(one) for one in raw["prices"]))


def price_adjusted(
    value: npt.NDArray[Any], cost: npt.NDArray[Any], prices: Prices
) -> npt.NDArray[Any]:
    """Return what each offer is worth after paying for the scarce things that it uses up.

    A decision that takes the best offer above zero by these numbers respects the limits that the
    prices come from: ``value − per_contact − cost × per_currency``.

    Parameters
    ----------
    value: customers × offers, in the shop's currency; columns as ``prices.offer_ids``.
    cost: expected cost, customers × offers or one for each offer, in the shop's currency.
    """
    if value.shape[-1] != len(prices.offer_ids):
        raise DataError(
            "value",
            "the number of offers is not that of the prices",
            expected=f"{len(prices.offer_ids)} columns",
            got=str(value.shape[-1]),
            action="Use prices.for_offers",
        )
    adjusted: npt.NDArray[Any] = value - prices.charge(cost)
    return adjusted


def priced(
    constraints: Sequence[Constraint], offer_ids: tuple[str, ...], used: Floats, prices: Floats
) -> Prices:
    """Return the solver's numbers, one for each constraint, as prices with names."""
    each = (
        Price(c.name, c.unit, c.offer_ids, float(c.limit), float(u), float(p))
        for c, u, p in zip(constraints, used, prices, strict=True)
    )
    return Prices(offer_ids, tuple(each))


def _check_fields(raw: Any, names: set[str]) -> None:
    if not isinstance(raw, Mapping) or set(raw) != names:
        got = ", ".join(sorted(map(str, raw))) if isinstance(raw, Mapping) else repr(raw)[:80]
        expected = "a table with exactly " + ", ".join(sorted(names))
        raise DataError("prices", "the fields are wrong", expected=expected, got=got or "none")


def _texts(raw: Any) -> tuple[str, ...]:
    if not isinstance(raw, list) or not all(isinstance(one, str) for one in raw):
        got = repr(raw)[:80]
        raise DataError("prices", "offer_ids are wrong", expected="a list of texts", got=got)
    return tuple(raw)


def _price(raw: Any) -> Price:
    _check_fields(raw, {field.name for field in fields(Price)})
    if raw["unit"] not in _ONE_MORE or not isinstance(raw["constraint"], str):
        expected = "a name, and contacts or currency"
        raise DataError("prices", "name or unit is wrong", expected=expected)
    for name in ("limit", "used", "price"):
        number = raw[name]
        good = isinstance(number, int | float) and not isinstance(number, bool)
        if not good or not math.isfinite(number) or number < 0:
            got = repr(number)[:80]
            raise DataError("prices", f"{name} is wrong", expected="zero or more", got=got)
    amounts = {name: float(raw[name]) for name in ("limit", "used", "price")}
    return Price(raw["constraint"], raw["unit"], _texts(raw["offer_ids"]), **amounts)
