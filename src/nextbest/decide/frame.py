"""The arguments of a decision, and how its expressions read them."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from copy import copy
from dataclasses import dataclass, field
from datetime import UTC, datetime
from typing import Any

import numpy as np
import numpy.typing as npt

from nextbest.decide.bound import BoundPolicy
from nextbest.decide.contact import ContactHistory
from nextbest.decide.offers import BoundCatalogue
from nextbest.decide.rules import Column, ColumnType, Lookup, Positions
from nextbest.errors import DataError, UsageError

__all__ = ["Audience", "Columns", "Contexts", "Frame", "Situation", "stamp", "utc"]


def utc(moment: datetime) -> datetime:
    """Return the moment as aware UTC; a naive time is taken to be UTC already."""
    if moment.tzinfo is UTC:
        return moment
    return moment.replace(tzinfo=UTC) if moment.tzinfo is None else moment.astimezone(UTC)


def stamp(moment: datetime) -> np.datetime64:
    """Return the moment as numpy holds times: datetime64[us] in UTC."""
    return np.datetime64(utc(moment).replace(tzinfo=None), "us")


def _type_of(values: Any) -> ColumnType:
    array = np.asarray(values)
    kind = array.dtype.kind
    if kind in "fiu":
        return "number"
    if kind == "b":
        return "boolean"
    if kind == "M":
        return "timestamp"
    # Booleans with gaps arrive as objects; the first value that is there tells them from texts.
    first = next((v for v in array.flat if v is not None), None) if kind == "O" else None
    return "boolean" if isinstance(first, bool) else "string"


class Columns(Mapping[str, npt.NDArray[Any]]):
    """Columns by name of one matrix, each decoded when it is first asked for.

    A decision reads few of the columns that there are.

    Parameters
    ----------
    names: of the k columns, in their order.
    matrix: (..., k).
    decoded: from a column's name and its numbers to its values.
    """

    def __init__(
        self,
        names: Sequence[str],
        matrix: npt.NDArray[np.float64],
        decoded: Callable[[str, npt.NDArray[np.float64]], npt.NDArray[Any]],
    ) -> None:
        self._names = names
        self._matrix = matrix
        self._decoded = decoded
        self._found: dict[str, npt.NDArray[Any]] = {}

    @property
    def shape(self) -> tuple[int, ...]:
        """The shape of every column."""
        return self._matrix.shape[:-1]

    def __getitem__(self, name: str) -> npt.NDArray[Any]:
        found = self._found.get(name)
        if found is None:
            if name not in self._names:
                raise KeyError(name)
            values = self._matrix[..., self._names.index(name)]
            found = self._found[name] = self._decoded(name, values)
        return found

    def __contains__(self, name: object) -> bool:
        return name in self._names

    def __iter__(self) -> Iterator[str]:
        return iter(self._names)

    def __len__(self) -> int:
        return len(self._names)


@dataclass(frozen=True)
class Audience:
    """The customers to decide for, and all that is known about them.

    Parameters
    ----------
    customer_ids: n ids.
    known: (n,) booleans; False for customers without a profile, who get the fallback policy.
    columns: features and scores by name, each (n,): float64 (NaN unknown), or objects for texts
        (None unknown), booleans, or datetime64 in UTC.
    pair_columns: customer × offer features by name, each (n, m) float64.
    propensity: (n, m) calibrated probabilities of response, offers in catalogue order.
    offer_columns: offer features from the data by name, each (m,).
    contacts: what happened between us and these customers so far.
    as_of: when the profiles were computed (UTC); None if unknown.
    versions: versions of models, profiles and bundle, passed through to the trace.
    live: by customer, what of the columns is newer than the profiles and why, passed through.
    """

    customer_ids: Sequence[str]
    known: npt.NDArray[np.bool_]
    columns: Mapping[str, npt.NDArray[Any]]
    pair_columns: Mapping[str, npt.NDArray[np.float64]]
    propensity: npt.NDArray[np.float64]
    offer_columns: Mapping[str, npt.NDArray[Any]]
    contacts: ContactHistory
    as_of: datetime | None = None
    versions: Mapping[str, Any] = field(default_factory=dict)
    live: Mapping[str, Mapping[str, Any]] = field(default_factory=dict)

    def take(self, rows: Sequence[int] | npt.NDArray[np.intp]) -> Audience:
        """Keep some customers, in the order given."""
        at = np.asarray(rows, dtype=np.intp)
        return Audience(
            [self.customer_ids[i] for i in at],
            self.known[at],
            {name: values[at] for name, values in self.columns.items()},
            {name: values[at] for name, values in self.pair_columns.items()},
            self.propensity[at],
            self.offer_columns,
            self.contacts.take(at),
            self.as_of,
            self.versions,
            self.live,
        )

    def known_columns(self) -> dict[str, Column]:
        """Columns that rules may name, for `binding.bind`."""
        return {
            **{name: Column(_type_of(v), "customer") for name, v in self.columns.items()},
            **{name: Column(_type_of(v), "pair") for name, v in self.pair_columns.items()},
            **{name: Column(_type_of(v), "offer") for name, v in self.offer_columns.items()},
        }


Contexts = Sequence[Mapping[str, str | float | bool | None]]
"""What the caller tells about the moment of each of several decisions."""


@dataclass(frozen=True)
class Situation:
    """Where and when the offers will be shown.

    ``decided_at`` is aware UTC (a naive time is taken as UTC); ``context`` is what the caller tells
    about the moment, by the names that the policy declares; ``limit`` is the number of slots.
    """

    channel: str
    decided_at: datetime
    placement: str | None = None
    context: Mapping[str, str | float | bool | None] = field(default_factory=dict)
    limit: int = 1


class Frame:
    """The values of every column, shaped to broadcast over customers × offers."""

    def __init__(
        self,
        audience: Audience,
        catalogue: BoundCatalogue,
        policy: BoundPolicy,
        at: Situation,
        contexts: Contexts | None = None,
    ) -> None:
        self._with_values = policy.columns_with_values
        self._columns = policy.columns
        self._customers = audience.columns
        self._given_pairs = audience.pair_columns
        # What goes by the same name goes before it.
        self._pairs: dict[str, Any] = {"propensity": audience.propensity}
        self._offers = {**audience.offer_columns, **catalogue.own_values}
        self.moment = stamp(at.decided_at)
        # What is the same for all offers, as it was first read: customers' columns and the context.
        self._shared = _context(policy, at, contexts, self.moment)

    def with_pairs(self, columns: Mapping[str, npt.NDArray[np.float64]]) -> Frame:
        """The same with values that have been computed, as an objective reads them by name."""
        more = copy(self)
        more._pairs = {**self._pairs, **columns}
        more._shared = {name: self._shared[name] for name in self._shared.keys() - columns.keys()}
        more._columns = self._with_values
        return more

    def lookup(self, offers: Positions) -> Lookup:
        """Return a function from column name to values for some offers."""

        shared = self._shared

        def get(name: str) -> Any:
            if name in shared:
                return shared[name]
            column = self._columns[name]
            try:
                if column.source == "customer":
                    found = shared[name] = self._customers[name][:, None]
                    return found
                if column.source == "pair":
                    pairs = self._pairs[name] if name in self._pairs else self._given_pairs[name]
                    return pairs[:, offers] if isinstance(offers, slice) else pairs.take(offers, 1)
                if column.source == "offer":
                    return self._offers[name][None, offers]
            except KeyError:
                raise DataError(
                    "audience", f'column "{name}" is missing', action="A rule names it."
                ) from None
            return column.value

        return get


def _context(
    policy: BoundPolicy, at: Situation, contexts: Contexts | None, moment: np.datetime64
) -> dict[str, Any]:
    """Context values by name, for all or (n, 1); what the caller does not tell is unknown."""
    values: dict[str, Any] = {
        "channel": at.channel,
        "placement": at.placement,
        "decided_at": moment,
    }
    for name, kind in policy.policy.tables.context.items():
        if contexts is None:
            values[name] = _context_value(name, kind, at.context.get(name))
        else:
            told = [one.get(name) for one in contexts]
            if not _PLAIN[kind].issuperset(map(type, told)):
                told = [_context_value(name, kind, value) for value in told]
            values[name] = np.array(told, dtype=_CONTEXT_TYPES[kind])[:, None]
    return values


_CONTEXT_TYPES: Mapping[ColumnType, str] = {
    "number": "float64",
    "timestamp": "datetime64[us]",
    "string": "object",
    "boolean": "object",
}

# Types of values that need no conversion but NumPy's own; it takes None for an unknown number.
_PLAIN: Mapping[ColumnType, frozenset[type]] = {
    "number": frozenset((float, int, type(None))),
    "timestamp": frozenset(),
    "string": frozenset((str, type(None))),
    "boolean": frozenset((bool, type(None))),
}


def _context_value(name: str, kind: ColumnType, value: Any) -> Any:
    if kind == "timestamp" and isinstance(value, str):
        return _timestamp(name, value)
    if value is not None and not _fits(value, kind):
        raise UsageError(
            f'context "{name}"', "the value does not fit", expected=f"a {kind}", got=repr(value)
        )
    if value is None and kind in ("number", "timestamp"):
        return np.nan if kind == "number" else np.datetime64("NaT", "us")
    return value


def _fits(value: Any, kind: ColumnType) -> bool:
    if isinstance(value, bool):
        return kind == "boolean"
    return isinstance(value, int | float if kind == "number" else str) and kind != "boolean"


def _timestamp(name: str, text: str) -> np.datetime64:
    try:
        return stamp(datetime.fromisoformat(text))
    except (ValueError, OverflowError):
        expected = "a time such as 2017-12-24T05:00:00Z"
        raise UsageError(
            f'context "{name}"', "the value does not fit", expected=expected, got=repr(text)
        ) from None
