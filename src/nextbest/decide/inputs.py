"""What one decision was made from, as plain JSON, and the same decision made again from that.

A record that keeps the inputs needs to keep no trace: `redecide` gives the same decision, bit for
bit, and with it the trace. Floats are written with the digits that give them back exactly, unknown
numbers as null.
"""

from __future__ import annotations

import math
from collections.abc import Collection, Mapping, Sequence
from datetime import datetime
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

from nextbest.decide import contact
from nextbest.decide.binding import bind
from nextbest.decide.engine import Decisions, Ration, decide
from nextbest.decide.explore import LossStatistics, OfferCounts
from nextbest.decide.frame import Audience, Situation, stamp, utc
from nextbest.decide.offers import Catalogue
from nextbest.decide.policy import Policy
from nextbest.decide.rules import Column, ColumnType

if TYPE_CHECKING:
    from nextbest.decide.assign import Prices

__all__ = ["audience_of", "inputs_of", "profile_of", "redecide", "situation_of"]

_PARTS = ("columns", "pair_columns", "offer_columns")


def inputs_of(decisions: Decisions, row: int, keep: Collection[str] = ()) -> dict[str, Any]:
    """Return everything that one decision was made from, JSON-able.

    Parameters
    ----------
    row: which of the decisions.
    keep: customer columns to keep beside those that catalogue and policy read.
    """
    at, policy = decisions.situation_of(row), decisions.policy
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
        "profile": _profiles(decisions, keep).of(row),
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

    ``live`` is there only where something of it is newer than the profiles.

    Parameters
    ----------
    known: types of the columns by name.
    wanted: names of columns; those that the audience does not have are left out.
    """
    return _Profiles(audience, known, wanted).of(row)


def _profiles(decisions: Decisions, keep: Collection[str]) -> _Profiles:
    key = ("profiles", *keep)
    if key not in decisions.notes:
        wanted = {*decisions.policy.columns_read, *keep}
        columns = decisions.catalogue.columns
        decisions.notes[key] = _Profiles(decisions.audience, columns, wanted)
    found: _Profiles = decisions.notes[key]
    return found


class _Profiles:
    """What is known of some customers, written down for all of them at once."""

    def __init__(
        self, audience: Audience, known: Mapping[str, Column], wanted: Collection[str]
    ) -> None:
        self._types: dict[str, ColumnType] = {}

        def types_of(columns: Mapping[str, npt.NDArray[Any]]) -> dict[str, ColumnType]:
            found = {name: known[name].type for name in sorted(wanted & columns.keys())}
            self._types.update(found)
            return found

        columns, pairs, offers = audience.columns, audience.pair_columns, audience.offer_columns
        self._columns = {n: _written(columns[n], kind) for n, kind in types_of(columns).items()}
        self._pairs = {n: _rows(pairs[n], kind) for n, kind in types_of(pairs).items()}
        self._offers = {n: _written(offers[n], kind) for n, kind in types_of(offers).items()}
        self._propensity = _rows(audience.propensity, "number")
        self._known = audience.known.tolist()
        self._as_of = None if audience.as_of is None else utc(audience.as_of).isoformat()
        self._versions = dict(audience.versions)
        self._live = [audience.live.get(customer_id) for customer_id in audience.customer_ids]

    def of(self, row: int) -> dict[str, Any]:
        """What is known of one of them."""
        return {
            "known": self._known[row],
            "as_of": self._as_of,
            "propensity": self._propensity[row],
            "columns": {name: values[row] for name, values in self._columns.items()},
            "pair_columns": {name: rows[row] for name, rows in self._pairs.items()},
            "offer_columns": self._offers,
            "types": self._types,
            "versions": self._versions,
            **({"live": dict(live)} if (live := self._live[row]) else {}),
        }


def _contacts(decisions: Decisions, row: int) -> list[dict[str, Any]]:
    """The past events that some limit counted; no other can have changed the decision."""
    if "contacts" not in decisions.notes:
        at, past = decisions.situation, decisions.audience.contacts
        moment = stamp(at.decided_at)
        counted = contact.counted(
            decisions.policy.limits, past, channel=at.channel, decided_at=moment
        )
        offer_ids = decisions.catalogue.offer_ids
        by_customer: dict[int, list[dict[str, Any]]] = {}
        for i in counted.tolist():
            event = {
                "kind": contact.KINDS[past.kind[i]],
                "at": str(past.time[i]),
                "offer_id": offer_ids[past.offer[i]] if past.offer[i] >= 0 else None,
                "channel": past.channels[past.channel[i]] if past.channel[i] >= 0 else None,
            }
            by_customer.setdefault(int(past.customer[i]), []).append(event)
        decisions.notes["contacts"] = by_customer
    found: list[dict[str, Any]] = decisions.notes["contacts"].get(row, [])
    return found


def audience_of(inputs: Mapping[str, Any]) -> Audience:
    """Return the one customer that a decision was made for, as the engine read them.

    Parameters
    ----------
    inputs: as `inputs_of` gives them, also after a journey through JSON.
    """
    profile = inputs["profile"]
    types, offer_ids = profile["types"], inputs["offer_ids"]
    columns, pairs, offers = (
        {name: _read(values, types[name]) for name, values in profile[part].items()}
        for part in _PARTS
    )
    events = inputs["contacts"]
    past = contact.ContactHistory.build(
        [inputs["customer_id"]],
        offer_ids,
        customer_id=[inputs["customer_id"]] * len(events),
        offer_id=[event["offer_id"] for event in events],
        channel=[event["channel"] for event in events],
        time=np.array([event["at"] for event in events], dtype="datetime64[us]"),
        kind=[event["kind"] for event in events],
    )
    return Audience(
        customer_ids=[inputs["customer_id"]],
        known=np.array([profile["known"]]),
        columns={name: value[None] for name, value in columns.items()},
        pair_columns={name: values[None] for name, values in pairs.items()},
        propensity=_read(profile["propensity"], "number")[None],
        offer_columns=offers,
        contacts=past,
        as_of=None if profile["as_of"] is None else datetime.fromisoformat(profile["as_of"]),
        versions=profile["versions"],
        live={inputs["customer_id"]: profile["live"]} if "live" in profile else {},
    )


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
    profile, sources = inputs["profile"], ("customer", "pair", "offer")
    columns = {
        name: Column(profile["types"][name], source)  # type: ignore[arg-type]
        for part, source in zip(_PARTS, sources, strict=True)
        for name in profile[part]
    }
    bound, bound_policy = bind(catalogue, policy, columns)
    return decide(
        audience_of(inputs),
        bound,
        bound_policy,
        situation_of(inputs),
        [inputs["decision_id"]],
        offer_counts={name: OfferCounts(**c) for name, c in inputs["offer_counts"].items()},
        stopped={name: LossStatistics(**s) for name, s in inputs["stopped"].items()},
        prices=_prices_read(inputs["prices"]),
        ration=_ration_read(inputs["ration"], inputs["offer_ids"]),
    )


def _prices_read(stored: Mapping[str, Any] | None) -> Prices | None:
    if stored is None:
        return None
    # Only now: the solver's package takes long to load, and few decisions know a price.
    from nextbest.decide.assign import Prices

    return Prices.from_dict(stored)


def _ration_read(stored: Mapping[str, Any] | None, offer_ids: Sequence[str]) -> Ration | None:
    if stored is None:
        return None
    left = np.array([[name in stored["open"] for name in offer_ids]])
    return Ration(left, np.array([stored["settled"]]))


def _written(values: npt.NDArray[Any], kind: ColumnType) -> list[Any]:
    """Values of one type as JSON holds them: null is unknown, an infinity is a text."""
    if kind == "timestamp":
        texts = np.datetime_as_string(np.asarray(values, dtype="datetime64[us]"))
        return [None if text == "NaT" else text for text in texts.tolist()]
    if kind == "number":
        values = np.asarray(values, dtype=np.float64)
        if np.isfinite(values).all():
            finite: list[Any] = values.tolist()
            return finite
    return [_plain(v) for v in np.asarray(values, dtype=object).tolist()]


def _rows(values: npt.NDArray[Any], kind: ColumnType) -> list[list[Any]]:
    """The rows of a matrix as JSON holds them."""
    if kind == "number":
        values = np.asarray(values, dtype=np.float64)
        whole, rows = np.isfinite(values).all(axis=1).tolist(), values.tolist()
        return [
            row if fine else [_plain(v) for v in row] for fine, row in zip(whole, rows, strict=True)
        ]
    return [_written(row, kind) for row in values]


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
