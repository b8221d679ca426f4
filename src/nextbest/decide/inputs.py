"""The same decision made again from what it was made from, as `nextbest.decide.packed` keeps it.

Plain JSON: floats are written with the digits that give them back exactly, unknown numbers as null.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from datetime import datetime
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

from nextbest.decide import contact
from nextbest.decide.binding import BoundPolicy, bind
from nextbest.decide.engine import Decisions, Ration, decide
from nextbest.decide.explore import LossStatistics, OfferCounts
from nextbest.decide.frame import Audience, Frame, Situation
from nextbest.decide.offers import BoundCatalogue, Catalogue
from nextbest.decide.policy import Policy
from nextbest.decide.rules import Column, ColumnType

if TYPE_CHECKING:
    from nextbest.decide.assign import Prices

__all__ = [
    "alike",
    "audience_of",
    "audience_of_all",
    "columns_of",
    "economics_of_all",
    "redecide",
    "redecide_all",
    "situation_of",
]

_PARTS = ("columns", "pair_columns", "offer_columns")


def audience_of(inputs: Mapping[str, Any]) -> Audience:
    """Return the one customer that a decision was made for, as the engine read them.

    Parameters
    ----------
    inputs: as `packed.unpacked` gives them, also after a journey through JSON.
    """
    return audience_of_all([inputs])


def audience_of_all(many: Sequence[Mapping[str, Any]]) -> Audience:
    """Return the customers of decisions that are `alike`, one row for each decision."""
    profiles = [inputs["profile"] for inputs in many]
    first, types = profiles[0], profiles[0]["types"]

    def stacked(part: str) -> dict[str, npt.NDArray[Any]]:
        return {
            name: _read([profile[part][name] for profile in profiles], types[name])
            for name in first[part]
        }

    return Audience(
        customer_ids=[inputs["customer_id"] for inputs in many],
        known=np.array([profile["known"] for profile in profiles]),
        columns=stacked("columns"),
        pair_columns=stacked("pair_columns"),
        propensity=_read([profile["propensity"] for profile in profiles], "number"),
        offer_columns={n: _read(v, types[n]) for n, v in first["offer_columns"].items()},
        contacts=_past_of_all(many),
        as_of=None if first["as_of"] is None else datetime.fromisoformat(first["as_of"]),
        versions=first["versions"],
        live={
            one["customer_id"]: one["profile"]["live"] for one in many if "live" in one["profile"]
        },
    )


def _past_of_all(many: Sequence[Mapping[str, Any]]) -> contact.ContactHistory:
    # A customer may be there twice, each time with the past of that decision.
    rows = [str(row) for row in range(len(many))]
    told = [(row, event) for row, inputs in zip(rows, many, strict=True)
            for event in inputs["contacts"]]  # fmt: skip
    return contact.ContactHistory.build(
        rows,
        many[0]["offer_ids"],
        customer_id=[row for row, _ in told],
        offer_id=[event["offer_id"] for _, event in told],
        channel=[event["channel"] for _, event in told],
        time=np.array([event["at"] for _, event in told], dtype="datetime64[us]"),
        kind=[event["kind"] for _, event in told],
    )


def alike(inputs: Mapping[str, Any], *, moment: bool = True) -> str:
    """Return a key that decisions share which can be made again in one go.

    Parameters
    ----------
    moment: whether those made at different moments differ.
    """
    profile, at = inputs["profile"], inputs["situation"]
    if not moment:
        at = {name: value for name, value in at.items() if name != "decided_at"}
    parts = [
        at,
        inputs["catalogue_hash"],
        inputs["offer_ids"],
        inputs["offer_counts"],
        inputs["stopped"],
        inputs["prices"],
        inputs["ration"] is None,
        profile["types"],
        profile["offer_columns"],
        profile["as_of"],
        *(list(profile[part]) for part in _PARTS),
    ]
    return json.dumps(parts, sort_keys=True)


def columns_of(inputs: Mapping[str, Any]) -> dict[str, Column]:
    """Return the columns that a decision's inputs hold, for `binding.bind`."""
    profile, sources = inputs["profile"], ("customer", "pair", "offer")
    return {
        name: Column(profile["types"][name], source)  # type: ignore[arg-type]
        for part, source in zip(_PARTS, sources, strict=True)
        for name in profile[part]
    }


def situation_of(inputs: Mapping[str, Any]) -> Situation:
    """Return where and when the decision was made."""
    said = inputs["situation"]
    return Situation(**{**said, "decided_at": datetime.fromisoformat(said["decided_at"])})


def redecide(inputs: Mapping[str, Any], catalogue: Catalogue, policy: Policy) -> Decisions:
    """Make the decision again: the same answer, probabilities and trace, bit for bit.

    Parameters
    ----------
    inputs: as `packed.unpacked` gives them.
    catalogue, policy: those that the inputs name by hash.

    Raises
    ------
    ConfigError: catalogue or policy name columns that the inputs do not hold.
    """
    return redecide_all([inputs], *bind(catalogue, policy, columns_of(inputs)))


def redecide_all(
    many: Sequence[Mapping[str, Any]], catalogue: BoundCatalogue, policy: BoundPolicy
) -> Decisions:
    """Make decisions that are `alike` again in one go, also by another policy than was in use.

    Parameters
    ----------
    many: inputs of one or more decisions.
    catalogue, policy: bound to the inputs' columns (`columns_of`).
    """
    first = many[0]
    return decide(
        audience_of_all(many),
        catalogue,
        policy,
        situation_of(first),
        [inputs["decision_id"] for inputs in many],
        offer_counts={name: OfferCounts(**c) for name, c in first["offer_counts"].items()},
        stopped={name: LossStatistics(**s) for name, s in first["stopped"].items()},
        prices=_prices_read(first["prices"]),
        ration=_ration_read(many),
    )


def economics_of_all(
    many: Sequence[Mapping[str, Any]], catalogue: BoundCatalogue, policy: BoundPolicy
) -> dict[str, npt.NDArray[np.float64]]:
    """Return what each offer earned and cost the shop in decisions that are `alike`, (n, m) each.

    ``margin`` and ``incentive_cost`` (the shop's part) are per response, ``contact_cost`` is per
    contact, ``baseline_rate`` the probability of the response without a contact.
    """
    audience = audience_of_all(many)
    get = Frame(audience, catalogue, policy, situation_of(many[0])).lookup
    amounts = {
        name: np.broadcast_to(amount.evaluate(get), audience.propensity.shape)
        for name, amount in catalogue.amounts.items()
    }
    share = amounts.pop("incentive_shop_share")
    return {**amounts, "incentive_cost": share * amounts["incentive_cost"]}


def _prices_read(stored: Mapping[str, Any] | None) -> Prices | None:
    if stored is None:
        return None
    # Only now: the solver's package takes long to load, and few decisions know a price.
    from nextbest.decide.assign import Prices

    return Prices.from_dict(stored)


def _ration_read(many: Sequence[Mapping[str, Any]]) -> Ration | None:
    if many[0]["ration"] is None:
        return None
    left = [[name in one["ration"]["open"] for name in one["offer_ids"]] for one in many]
    return Ration(np.array(left), np.array([one["ration"]["settled"] for one in many]))


def _read(values: Any, kind: ColumnType) -> npt.NDArray[Any]:
    """Values as JSON holds them, as the engine reads them."""
    if kind == "timestamp":
        return np.array(values, dtype="datetime64[us]")
    return np.array(values, dtype=np.float64 if kind == "number" else object)
