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
    "as_it_is",
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


def as_it_is(value: Any) -> Any:
    """Return what many records share as a part of each."""
    return value


class Inputs:
    """What some decisions were made from, written down for all of them at once.

    Parameters
    ----------
    keep: as in `inputs_of`.
    common: writes what many decisions share, once for all; JSON-able as it is unless told
        otherwise.
    """

    def __init__(
        self,
        decisions: Decisions,
        keep: Collection[str] = (),
        common: Callable[[Any], Any] = as_it_is,
    ) -> None:
        self._decisions = decisions
        policy, catalogue = decisions.policy, decisions.catalogue
        self._profiles = _Profiles(decisions.audience, _layout(decisions, keep, common))
        self._contacts = _contacts(decisions)
        self._decided_at = utc(decisions.situation.decided_at).isoformat()
        self._hashes = catalogue.catalogue.content_hash, policy.policy.content_hash
        key = ("offer ids", common)
        if key not in policy.notes:
            policy.notes[key] = common(list(catalogue.offer_ids))
        self._offer_ids = policy.notes[key]
        counts, stopped = sorted(decisions.offer_counts.items()), sorted(decisions.stopped.items())
        prices = decisions.prices
        self._counts = common({name: dict(vars(told)) for name, told in counts})
        self._stopped = common({name: dict(vars(told)) for name, told in stopped})
        self._prices = None if prices is None else common(prices.to_dict())

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
            "catalogue_hash": self._hashes[0],
            "policy_hash": self._hashes[1],
            "offer_ids": self._offer_ids,
            "profile": self._profiles.of(row),
            "contacts": self._contacts.get(row, []),
            "offer_counts": self._counts,
            "stopped": self._stopped,
            "prices": self._prices,
            "ration": None if of.ration is None else _ration(of.ration, of, row),
        }


def _ration(ration: Ration, decisions: Decisions, row: int) -> dict[str, Any]:
    """What limits over all customers of a batch left to this one."""
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
    return _Profiles(audience, _Layout(audience, known, wanted, as_it_is)).of(row)


class _Layout:
    """Which columns are written down, and what the profiles of one bundle have in common."""

    def __init__(
        self,
        audience: Audience,
        known: Mapping[str, Column],
        wanted: Collection[str],
        common: Callable[[Any], Any],
    ) -> None:
        self._audience = frozenset(audience.columns), audience.offer_columns, audience.versions
        # Columns of numbers come first: they are written in one go.
        kinds = {n: known[n].type for n in sorted(wanted & audience.columns.keys())}
        self.numbers = [name for name, kind in kinds.items() if kind == "number"]
        self.others = {name: kind for name, kind in kinds.items() if kind != "number"}
        self.names = (*self.numbers, *self.others)
        self.pairs = {n: known[n].type for n in sorted(wanted & audience.pair_columns.keys())}
        offers = {n: known[n].type for n in sorted(wanted & audience.offer_columns.keys())}
        written = {name: _written(audience.offer_columns[name], offers[name]) for name in offers}
        self.offer_columns = common(written)
        self.types = common({**kinds, **self.pairs, **offers})
        self.versions = common(dict(audience.versions))

    def is_of(self, audience: Audience) -> bool:
        """Whether an audience was read from the same profiles."""
        names, offers, versions = self._audience
        return (
            audience.offer_columns is offers
            and audience.versions is versions
            and audience.columns.keys() == names
        )


def _layout(decisions: Decisions, keep: Collection[str], common: Callable[[Any], Any]) -> _Layout:
    """The layout of these decisions' profiles, which is mostly that of the last ones."""
    policy, audience = decisions.policy, decisions.audience
    key = ("layout", *keep, common)
    layout: _Layout | None = policy.notes.get(key)
    if layout is None or not layout.is_of(audience):
        wanted = {*policy.columns_read, *keep}
        layout = _Layout(audience, decisions.catalogue.columns, wanted, common)
        policy.notes[key] = layout
    return layout


class _Profiles:
    """What is known of some customers, written down for all of them at once."""

    def __init__(self, audience: Audience, layout: _Layout) -> None:
        self._layout = layout
        columns, pairs = audience.columns, audience.pair_columns
        self._columns = _customers(columns, layout) if layout.names else None
        self._pairs = {name: _rows(pairs[name], kind) for name, kind in layout.pairs.items()}
        self._propensity = audience.propensity
        self._known: list[bool] = audience.known.tolist()
        self._as_of = None if audience.as_of is None else utc(audience.as_of).isoformat()
        self._ids, self._live = audience.customer_ids, audience.live

    def of(self, row: int) -> dict[str, Any]:
        """What is known of one of them."""
        shared, columns = self._layout, self._columns
        profile = {
            "known": self._known[row],
            "as_of": self._as_of,
            # Row by row: numbers of one customer are forgotten before those of the next are read.
            "propensity": _numbers(self._propensity[row]),
            "columns": {}
            if columns is None
            else dict(zip(shared.names, columns[row], strict=True)),
            "pair_columns": {name: rows[row] for name, rows in self._pairs.items()},
            "offer_columns": shared.offer_columns,
            "types": shared.types,
            "versions": shared.versions,
        }
        live = self._live.get(self._ids[row]) if self._live else None
        if live:
            profile["live"] = dict(live)
        return profile


def _customers(columns: Mapping[str, npt.NDArray[Any]], layout: _Layout) -> list[tuple[Any, ...]]:
    """The columns' values, one row for each customer."""
    matrix = np.array([columns[name] for name in layout.numbers], dtype=np.float64)
    numbers = _numbers(matrix)
    others = [_written(columns[name], kind) for name, kind in layout.others.items()]
    return list(zip(*numbers, *others, strict=True))


def _contacts(decisions: Decisions) -> dict[int, list[dict[str, Any]]]:
    """The past events that some limit counted, by row; no other can have changed the decision."""
    at, past = decisions.situation, decisions.audience.contacts
    if not len(past.customer):
        return {}
    rows = decisions.policy.limits_on(at.channel).counted(past, stamp(at.decided_at))
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
        return _numbers(np.asarray(values, dtype=np.float64))
    items: list[Any] = np.asarray(values, dtype=object).tolist()
    return items if _PLAIN.issuperset(map(type, items)) else [_plain(item) for item in items]


# Types of values that JSON holds as they are.
_PLAIN = frozenset((str, bool, type(None)))


def _rows(values: npt.NDArray[Any], kind: ColumnType) -> list[list[Any]]:
    """The rows of a matrix as JSON holds them."""
    if kind == "number":
        return _numbers(np.asarray(values, dtype=np.float64))
    return [_written(row, kind) for row in values]


def _numbers(values: npt.NDArray[np.float64]) -> list[Any]:
    """Numbers as JSON holds them, in lists as deep as the array."""
    written: npt.NDArray[Any] = values
    finite = np.isfinite(values)
    if not finite.all():
        written = values.astype(object)
        written[~finite] = [_plain(value) for value in values[~finite].tolist()]
    items: list[Any] = written.tolist()
    return items


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
