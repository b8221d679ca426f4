"""What one decision was made from, as plain JSON, and the same decision made again from that.

A record that keeps the inputs needs to keep no trace: `redecide` gives the same decision, bit for
bit, and with it the trace. Floats are written with the digits that give them back exactly, unknown
numbers as null.
"""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Collection, Mapping, Sequence
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
    "Inputs",
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
    key = ("inputs", *keep)
    if key not in decisions.notes:
        decisions.notes[key] = Inputs(decisions, keep)
    found: Inputs = decisions.notes[key]
    return found.of(row)


def _as_it_is(value: Any) -> Any:
    return value


class Inputs:
    """What some decisions were made from, written down for all of them at once.

    Parameters
    ----------
    keep: as in `inputs_of`.
    common: writes what all of them share, once for all; JSON-able as it is unless told otherwise.
    """

    def __init__(
        self,
        decisions: Decisions,
        keep: Collection[str] = (),
        common: Callable[[Any], Any] = _as_it_is,
    ) -> None:
        self._decisions = decisions
        policy, catalogue = decisions.policy, decisions.catalogue
        self._profiles = _Profiles(
            decisions.audience, catalogue.columns, {*policy.columns_read, *keep}, common
        )
        self._contacts = _contacts(decisions)
        self._decided_at = utc(decisions.situation.decided_at).isoformat()
        self._asked = {
            "catalogue_hash": catalogue.catalogue.content_hash,
            "policy_hash": policy.policy.content_hash,
            "offer_ids": common(list(catalogue.offer_ids)),
        }
        counts, stopped = sorted(decisions.offer_counts.items()), sorted(decisions.stopped.items())
        prices = decisions.prices
        self._learnt = {
            "offer_counts": common({name: dict(vars(told)) for name, told in counts}),
            "stopped": common({name: dict(vars(told)) for name, told in stopped}),
            "prices": common(None if prices is None else prices.to_dict()),
        }

    def of(self, row: int) -> dict[str, Any]:
        """What one of the decisions was made from."""
        of = self._decisions
        at = of.situation
        return {
            "decision_id": of.decision_ids[row],
            "customer_id": of.audience.customer_ids[row],
            "situation": {
                "channel": at.channel,
                "placement": at.placement,
                "decided_at": self._decided_at,
                "context": dict(at.context if of.contexts is None else of.contexts[row]),
                "limit": at.limit,
            },
            **self._asked,
            "profile": self._profiles.of(row),
            "contacts": self._contacts.get(row, []),
            **self._learnt,
            "ration": _ration(of, row),
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
    return _Profiles(audience, known, wanted, _as_it_is).of(row)


class _Profiles:
    """What is known of some customers, written down for all of them at once."""

    def __init__(
        self,
        audience: Audience,
        known: Mapping[str, Column],
        wanted: Collection[str],
        common: Callable[[Any], Any],
    ) -> None:
        types: dict[str, ColumnType] = {}

        def types_of(columns: Mapping[str, npt.NDArray[Any]]) -> dict[str, ColumnType]:
            found = {name: known[name].type for name in sorted(wanted & columns.keys())}
            types.update(found)
            return found

        columns, pairs, offers = audience.columns, audience.pair_columns, audience.offer_columns
        self._columns = _all_written(columns, types_of(columns))
        self._pairs = {n: _rows(pairs[n], kind) for n, kind in types_of(pairs).items()}
        written = {n: _written(offers[n], kind) for n, kind in types_of(offers).items()}
        self._shared = {
            "offer_columns": common(written),
            "types": common(types),
            "versions": common(dict(audience.versions)),
        }
        self._propensity = _rows(audience.propensity, "number")
        self._known = audience.known.tolist()
        self._as_of = None if audience.as_of is None else utc(audience.as_of).isoformat()
        self._live = [audience.live.get(customer_id) for customer_id in audience.customer_ids]

    def of(self, row: int) -> dict[str, Any]:
        """What is known of one of them."""
        return {
            "known": self._known[row],
            "as_of": self._as_of,
            "propensity": self._propensity[row],
            "columns": {name: values[row] for name, values in self._columns.items()},
            "pair_columns": {name: rows[row] for name, rows in self._pairs.items()},
            **self._shared,
            **({"live": dict(live)} if (live := self._live[row]) else {}),
        }


def _contacts(decisions: Decisions) -> dict[int, list[dict[str, Any]]]:
    """The past events that some limit counted, by row; no other can have changed the decision."""
    at, past = decisions.situation, decisions.audience.contacts
    moment = stamp(at.decided_at)
    rows = contact.counted(decisions.policy.limits, past, channel=at.channel, decided_at=moment)
    # A position of -1, for none, takes the last.
    offer_ids, channels = (*decisions.catalogue.offer_ids, None), (*past.channels, None)
    by_customer: dict[int, list[dict[str, Any]]] = {}
    for customer, kind, time, offer, channel in zip(
        past.customer[rows].tolist(),
        past.kind[rows].tolist(),
        np.datetime_as_string(past.time[rows]).tolist(),
        past.offer[rows].tolist(),
        past.channel[rows].tolist(),
        strict=True,
    ):
        event = {
            "kind": contact.KINDS[kind],
            "at": time,
            "offer_id": offer_ids[offer],
            "channel": channels[channel],
        }
        by_customer.setdefault(customer, []).append(event)
    return by_customer


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


def _written(values: npt.NDArray[Any], kind: ColumnType) -> list[Any]:
    """Values of one type as JSON holds them: null is unknown, an infinity is a text."""
    if kind == "timestamp":
        texts = np.datetime_as_string(np.asarray(values, dtype="datetime64[us]"))
        return [None if text == "NaT" else text for text in texts.tolist()]
    if kind == "number":
        values = np.asarray(values, dtype=np.float64)
        return _numbers(values.tolist(), finite=bool(np.isfinite(values).all()))
    return [_plain(v) for v in np.asarray(values, dtype=object).tolist()]


def _rows(values: npt.NDArray[Any], kind: ColumnType) -> list[list[Any]]:
    """The rows of a matrix as JSON holds them."""
    if kind == "number":
        values = np.asarray(values, dtype=np.float64)
        whole, rows = np.isfinite(values).all(axis=1).tolist(), values.tolist()
        return [_numbers(row, finite=fine) for fine, row in zip(whole, rows, strict=True)]
    return [_written(row, kind) for row in values]


def _numbers(values: list[Any], *, finite: bool) -> list[Any]:
    return values if finite else [v if math.isfinite(v) else _plain(v) for v in values]


def _all_written(
    columns: Mapping[str, npt.NDArray[Any]], types: Mapping[str, ColumnType]
) -> dict[str, list[Any]]:
    """Columns of equal length as JSON holds them, in the order of ``types``."""
    numbers = [name for name, kind in types.items() if kind == "number"]
    # One matrix is looked through faster than many short columns.
    matrix = np.array([columns[name] for name in numbers], dtype=np.float64)
    found = dict(zip(numbers, _rows(matrix, "number"), strict=True)) if numbers else {}
    return {n: found[n] if n in found else _written(columns[n], types[n]) for n in types}


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
