"""What one decision was made from, as plain JSON, and the same decision made again from that.

A record that keeps the inputs needs to keep no trace: `redecide` gives the same decision, bit for
bit, and with it the trace. Floats are written with the digits that give them back exactly, unknown
numbers as null.
"""

from __future__ import annotations

import json
import math
from collections.abc import Collection, Mapping, Sequence
from datetime import datetime
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

from nextbest.decide import contact
from nextbest.decide.binding import BoundPolicy, bind
from nextbest.decide.engine import Decisions, Ration, decide
from nextbest.decide.explore import LossStatistics, OfferCounts
from nextbest.decide.frame import Audience, Frame, Situation, stamp, utc
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
    "inputs_of",
    "profile_of",
    "redecide",
    "redecide_all",
    "situation_of",
]

_PARTS = ("columns", "pair_columns", "offer_columns")


def inputs_of(decisions: Decisions, row: int, keep: Collection[str] = ()) -> dict[str, Any]:
    """Return everything that one decision was made from, JSON-able.

    Parameters
    ----------
    row: which of the decisions.
    keep: customer columns to keep beside those that catalogue and policy read.
    """
    at, policy = decisions.situation, decisions.policy
    return {
        "decision_id": decisions.decision_ids[row],
        "customer_id": decisions.audience.customer_ids[row],
        "situation": {
            "channel": at.channel,
            "placement": at.placement,
            "decided_at": utc(at.decided_at).isoformat(),
            "context": dict(at.context),
            "limit": at.limit,
        },
        "catalogue_hash": decisions.catalogue.catalogue.content_hash,
        "policy_hash": policy.policy.content_hash,
        "offer_ids": list(decisions.catalogue.offer_ids),
        "profile": profile_of(
            decisions.audience, row, decisions.catalogue.columns, {*policy.columns_read, *keep}
        ),
        "contacts": _contacts(decisions, row),
        "offer_counts": {name: dict(vars(c)) for name, c in sorted(decisions.offer_counts.items())},
        "stopped": {name: dict(vars(s)) for name, s in sorted(decisions.stopped.items())},
        "prices": None if decisions.prices is None else decisions.prices.to_dict(),
        "ration": _ration(decisions, row),
    }


def _ration(decisions: Decisions, row: int) -> dict[str, Any] | None:
    """What limits over all customers of a batch left to this one."""
    ration = decisions.ration
    if ration is None:
        return None
    ids = decisions.catalogue.offer_ids
    left = [ids[i] for i in np.flatnonzero(ration.open[row]).tolist()]
    return {"open": left, "settled": bool(ration.settled[row])}


def profile_of(
    audience: Audience, row: int, known: Mapping[str, Column], wanted: Collection[str]
) -> dict[str, Any]:
    """Return what is known of one customer, JSON-able: wanted columns, propensities, versions.

    Parameters
    ----------
    known: types of the columns by name.
    wanted: names of columns; those that the audience does not have are left out.
    """
    types: dict[str, ColumnType] = {}

    def part(columns: Mapping[str, npt.NDArray[Any]], *at: int) -> dict[str, Any]:
        found = sorted(wanted & columns.keys())
        types.update({name: known[name].type for name in found})
        return {name: _written(columns[name][at], types[name]) for name in found}

    return {
        "known": bool(audience.known[row]),
        "as_of": None if audience.as_of is None else utc(audience.as_of).isoformat(),
        "propensity": _written(audience.propensity[row], "number"),
        "columns": part(audience.columns, row),
        "pair_columns": part(audience.pair_columns, row),
        "offer_columns": part(audience.offer_columns),
        "types": types,
        "versions": dict(audience.versions),
    }


def _contacts(decisions: Decisions, row: int) -> list[dict[str, Any]]:
    """The past events that some limit counted; no other can have changed the decision."""
    at, offer_ids = decisions.situation, decisions.catalogue.offer_ids
    past = decisions.audience.contacts.take([row])
    events = contact.counted(
        decisions.policy.limits, past, channel=at.channel, decided_at=stamp(at.decided_at)
    )
    return [
        {
            "kind": contact.KINDS[past.kind[i]],
            "at": str(past.time[i]),
            "offer_id": offer_ids[past.offer[i]] if past.offer[i] >= 0 else None,
            "channel": past.channels[past.channel[i]] if past.channel[i] >= 0 else None,
        }
        for i in events.tolist()
    ]


def audience_of(inputs: Mapping[str, Any]) -> Audience:
    """Return the one customer that a decision was made for, as the engine read them.

    Parameters
    ----------
    inputs: as `inputs_of` gives them, also after a journey through JSON.
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
    inputs: as `inputs_of` gives them.
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


def _written(values: Any, kind: ColumnType) -> Any:
    """Values of one type as JSON holds them: null is unknown, an infinity is a text."""
    if kind == "timestamp":
        values = np.datetime_as_string(np.asarray(values, dtype="datetime64[us]"))
        values = np.where(values == "NaT", None, values.astype(object))
    if kind == "number":
        values = np.asarray(values, dtype=np.float64)
        if np.isfinite(values).all():
            return values.tolist()
    listed = np.asarray(values, dtype=object).tolist()
    return [_plain(v) for v in listed] if isinstance(listed, list) else _plain(listed)


def _plain(value: Any) -> Any:
    value = value.item() if isinstance(value, np.generic) else value
    if isinstance(value, float) and not math.isfinite(value):
        return None if math.isnan(value) else str(value)
    return value


def _read(values: Any, kind: ColumnType) -> npt.NDArray[Any]:
    """What `_written` wrote, as the engine reads it."""
    if kind == "timestamp":
        return np.array(values, dtype="datetime64[us]")
    return np.array(values, dtype=np.float64 if kind == "number" else object)
