"""What one decision was made and drawn from, packed as small as it gets, and unpacked again.

A record that keeps the inputs needs to keep no trace: `nextbest.decide.inputs.redecide` gives the
same decision, bit for bit, and with it the trace. Most of the inputs are numbers, which are kept as
the bytes that they are, or are alike in many records, which is kept once. Unpacked they are plain
JSON: floats keep every bit, unknown numbers are null, an infinity is a text.
"""

from __future__ import annotations

import hashlib
import json
import math
from collections.abc import Collection, Mapping, Sequence
from functools import lru_cache
from typing import TYPE_CHECKING, Any, NamedTuple

import msgspec
import numpy as np
import numpy.typing as npt

from nextbest.decide import contact
from nextbest.decide.frame import Audience, stamp, utc
from nextbest.decide.rules import Column, ColumnType
from nextbest.errors import DataError

if TYPE_CHECKING:
    from nextbest.decide.engine import Decisions

__all__ = ["Packing", "Shared", "Unpacked", "profile_of", "unpacked"]

# Bytes are read alike on every machine: eight of a float, four of a position, little end first.
_FLOAT, _POSITION = np.dtype("<f8"), np.dtype("<i4")
_ENCODER = msgspec.json.Encoder()


class Shared(NamedTuple):
    """What many records have in common, as JSON, and the hash that they know it by.

    Nothing in it is about one customer.
    """

    hash: str
    content: str

    @classmethod
    def of(cls, content: Mapping[str, Any]) -> Shared:
        """Write down what is shared."""
        said = _ENCODER.encode(content)
        return cls(_hash(said), said.decode())


class Unpacked(NamedTuple):
    """What a decision was made from (``inputs``), and what its choice was drawn from."""

    inputs: dict[str, Any]
    selection: dict[str, Any]


class Packing:
    """Packs what some decisions were made from, for all of them at once.

    Parameters
    ----------
    keep: customer columns to keep beside those that catalogue and policy read.
    """

    def __init__(self, decisions: Decisions, keep: Collection[str] = ()) -> None:
        layout = _layout(decisions, keep)
        self.shared = _shared(decisions, layout, keep)
        self._decisions = decisions
        self._profiles = _Profiles(decisions.audience, layout)
        self._contacts = _contacts(decisions)
        at = decisions.situation
        self._situation = {
            "channel": at.channel,
            "placement": at.placement,
            "decided_at": utc(at.decided_at).isoformat(),
            "context": dict(at.context),
            "limit": at.limit,
        }
        floats = [*self._profiles.numbers, decisions.end_probability[:, None]]
        # By their bits, which tell a zero from a zero with a sign.
        chances = np.ascontiguousarray(decisions.probabilities, dtype=_FLOAT)
        drawn = chances.view(np.int64) != 0
        flags = [decisions.audience.known[:, None], decisions.eligible, drawn]
        if decisions.ration is not None:
            flags += [decisions.ration.open, decisions.ration.settled[:, None]]
        positions = np.ascontiguousarray(decisions.would_choose, dtype=_POSITION)
        parts = [
            np.concatenate(floats, axis=1, dtype=_FLOAT).view(np.uint8),
            positions.view(np.uint8),
            np.packbits(np.concatenate(flags, axis=1), axis=1),
        ]
        fixed = np.concatenate(parts, axis=1)
        self._width = fixed.shape[1]
        self._fixed: bytes = fixed.tobytes()
        self._drawn: bytes = chances[drawn].tobytes()
        ends = np.cumsum(np.count_nonzero(drawn, axis=1)) * _FLOAT.itemsize
        self._ends: list[int] = [0, *ends.tolist()]

    def text(self, row: int) -> dict[str, Any]:
        """What is kept of one decision as JSON: what is no number, and most have none of."""
        contexts = self._decisions.contexts
        situation = self._situation
        if contexts is not None:
            situation = {**situation, "context": dict(contexts[row])}
        said = {"situation": situation, **self._profiles.text(row)}
        if row in self._contacts:
            said["contacts"] = self._contacts[row]
        return said

    def numbers(self, row: int) -> bytes:
        """What is kept of one decision as bytes."""
        fixed = self._fixed[row * self._width : (row + 1) * self._width]
        return fixed + self._drawn[self._ends[row] : self._ends[row + 1]]


def unpacked(
    text: Mapping[str, Any], numbers: bytes, shared: Shared, answer: Mapping[str, Any]
) -> Unpacked:
    """Return what one decision was made from and drawn from, as plain JSON types.

    Parameters
    ----------
    text, numbers, shared: as `Packing` wrote them.
    answer: that of the decision, which says who was decided for, under which id, in which arm.

    Raises
    ------
    DataError: something of it is damaged.
    """
    try:
        return _unpacked(text, numbers, _read_shared(shared), answer)
    except (KeyError, TypeError, ValueError, AttributeError, IndexError) as error:
        got = f"{type(error).__name__}: {error}"
        raise DataError("the record", "what is packed in it is damaged", got=got) from None


def _unpacked(
    text: Mapping[str, Any],
    numbers: bytes,
    shared: Mapping[str, Any],
    answer: Mapping[str, Any],
) -> Unpacked:
    ids, situation, rationed = shared["offer_ids"], text["situation"], shared["rationed"]
    n_offers = len(ids)
    reader = _Reader(numbers)
    floats = reader.take(_FLOAT, _n_floats(shared) + 1)
    # There are no more slots than offers to fill them.
    would_choose = reader.take(_POSITION, min(situation["limit"], n_offers)).tolist()
    flags = reader.flags(2 * n_offers + 2 + (n_offers + 1 if rationed else 0))
    known, eligible = flags[0], flags[1 : n_offers + 1]
    drawn, rationing = flags[n_offers + 1 : 2 * n_offers + 2], flags[2 * n_offers + 2 :]
    chances = np.zeros(n_offers + 1)
    chances[drawn] = reader.take(_FLOAT, int(np.count_nonzero(drawn)))
    reader.end()
    *offers, no_offer = chances.tolist()
    selection = {
        "arm": answer["arm"],
        "policy": shared["exploration"],
        "eligible": _named(ids, eligible),
        "probabilities": {name: chance for name, chance in zip(ids, offers, strict=True) if chance},
        "no_offer": no_offer,
        "end": floats[-1].item(),
        "would_choose": [ids[j] for j in would_choose if j >= 0],
    }
    ration = None
    if rationed:
        ration = {"open": _named(ids, rationing[:-1]), "settled": bool(rationing[-1])}
    inputs = {
        "decision_id": answer["decision_id"],
        "customer_id": answer["customer_id"],
        "situation": situation,
        "catalogue_hash": shared["catalogue_hash"],
        "policy_hash": shared["policy_hash"],
        "offer_ids": ids,
        "profile": _profile(bool(known), floats[:-1], text, shared),
        "contacts": text.get("contacts", []),
        "offer_counts": shared["offer_counts"],
        "stopped": shared["stopped"],
        "prices": shared["prices"],
        "ration": ration,
    }
    return Unpacked(inputs, selection)


def _named(ids: Sequence[str], flags: npt.NDArray[np.bool_]) -> list[str]:
    return [ids[j] for j in np.flatnonzero(flags).tolist()]


class _Reader:
    """Reads the bytes of one decision from the first to the last."""

    def __init__(self, numbers: bytes) -> None:
        self._numbers, self._at = numbers, 0

    def take(self, dtype: np.dtype[Any], n: int) -> npt.NDArray[Any]:
        """The next n numbers."""
        found = np.frombuffer(self._numbers, dtype, n, self._at) if n else np.empty(0, dtype)
        self._at += found.nbytes
        return found

    def flags(self, n: int) -> npt.NDArray[np.bool_]:
        """The next n bits, which fill bytes."""
        return np.unpackbits(self.take(np.dtype(np.uint8), (n + 7) // 8), count=n).astype(bool)

    def end(self) -> None:
        """Make sure that nothing is left."""
        if self._at != len(self._numbers):
            raise ValueError(f"{len(self._numbers)} bytes instead of {self._at}")


# --- what many records share ----------------------------------------------------------------------


def _shared(decisions: Decisions, layout: _Layout, keep: Collection[str]) -> Shared:
    """What these decisions share, which is mostly what the last ones shared."""
    policy, prices = decisions.policy, decisions.prices
    rationed = decisions.ration is not None
    parts = (layout, decisions.offer_counts, decisions.stopped, prices, rationed)
    key = ("shared", *keep)
    kept = policy.notes.get(key)
    if kept is None or any(one is not other for one, other in zip(kept[0], parts, strict=True)):
        counts, stopped = sorted(decisions.offer_counts.items()), sorted(decisions.stopped.items())
        content = {
            "catalogue_hash": decisions.catalogue.catalogue.content_hash,
            "policy_hash": policy.policy.content_hash,
            "offer_ids": list(decisions.catalogue.offer_ids),
            "exploration": policy.policy.tables.exploration.policy,
            **layout.shared,
            "offer_counts": {name: dict(vars(told)) for name, told in counts},
            "stopped": {name: dict(vars(told)) for name, told in stopped},
            "prices": None if prices is None else prices.to_dict(),
            "rationed": rationed,
        }
        kept = policy.notes[key] = parts, Shared.of(content)
    shared: Shared = kept[1]
    return shared


@lru_cache(maxsize=256)  # a log has few of them, each for thousands of records
def _read_shared(shared: Shared) -> Mapping[str, Any]:
    """What is shared, read and held against its hash; not to be written to."""
    found = _hash(shared.content.encode())
    if found != shared.hash:
        raise ValueError(f"what it shares with other records has the hash {found}")
    read: Mapping[str, Any] = json.loads(shared.content)
    return read


def _hash(content: bytes) -> str:
    return hashlib.blake2b(content, digest_size=16).hexdigest()


# --- profiles -------------------------------------------------------------------------------------


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
    layout = _Layout(audience, known, wanted)
    packed = _Profiles(audience, layout)
    numbers = np.concatenate([part[row] for part in packed.numbers])
    return _profile(bool(audience.known[row]), numbers, packed.text(row), layout.shared)


class _Layout:
    """Which columns are kept, and what the profiles of one bundle have in common."""

    def __init__(
        self, audience: Audience, known: Mapping[str, Column], wanted: Collection[str]
    ) -> None:
        as_of, versions = audience.as_of, audience.versions
        self._audience = frozenset(audience.columns), audience.offer_columns, versions, as_of
        kinds = {n: known[n].type for n in sorted(wanted & audience.columns.keys())}
        self.numbers = [name for name, kind in kinds.items() if kind == "number"]
        self.texts = {name: kind for name, kind in kinds.items() if kind != "number"}
        pairs = {n: known[n].type for n in sorted(wanted & audience.pair_columns.keys())}
        self.pair_numbers = [name for name, kind in pairs.items() if kind == "number"]
        self.pair_texts = {name: kind for name, kind in pairs.items() if kind != "number"}
        offers = {n: known[n].type for n in sorted(wanted & audience.offer_columns.keys())}
        self.shared = {
            "as_of": None if as_of is None else utc(as_of).isoformat(),
            # Columns of numbers come first: they are bytes that follow each other.
            "columns": [*self.numbers, *self.texts],
            "pair_columns": [*self.pair_numbers, *self.pair_texts],
            "offer_columns": {n: _written(audience.offer_columns[n], offers[n]) for n in offers},
            "types": {**kinds, **pairs, **offers},
            "versions": dict(versions),
        }

    def is_of(self, audience: Audience) -> bool:
        """Whether an audience was read from the same profiles."""
        names, offers, versions, as_of = self._audience
        return (
            audience.offer_columns is offers
            and audience.versions is versions
            and audience.as_of == as_of
            and audience.columns.keys() == names
        )


def _layout(decisions: Decisions, keep: Collection[str]) -> _Layout:
    """The layout of these decisions' profiles, which is mostly that of the last ones."""
    policy, audience = decisions.policy, decisions.audience
    key = ("layout", *keep)
    layout: _Layout | None = policy.notes.get(key)
    if layout is None or not layout.is_of(audience):
        wanted = {*policy.columns_read, *keep}
        layout = policy.notes[key] = _Layout(audience, decisions.catalogue.columns, wanted)
    return layout


class _Profiles:
    """What is known of some customers.

    ``numbers`` are parts of (n, any number of) floats: propensities, columns, pair columns.
    """

    def __init__(self, audience: Audience, layout: _Layout) -> None:
        columns, pairs = audience.columns, audience.pair_columns
        self.numbers = [audience.propensity, *(pairs[name] for name in layout.pair_numbers)]
        if layout.numbers:
            kept = [columns[name] for name in layout.numbers]
            self.numbers.insert(1, np.stack(kept, axis=1, dtype=np.float64))
        self._texts = {name: _written(columns[name], kind) for name, kind in layout.texts.items()}
        self._pair_texts = {
            name: [_written(row, kind) for row in pairs[name]]
            for name, kind in layout.pair_texts.items()
        }
        self._ids, self._live = audience.customer_ids, audience.live

    def text(self, row: int) -> dict[str, Any]:
        """What of one of them is no number."""
        said: dict[str, Any] = {}
        if self._texts:
            said["columns"] = [values[row] for values in self._texts.values()]
        if self._pair_texts:
            said["pair_columns"] = [rows[row] for rows in self._pair_texts.values()]
        live = self._live.get(self._ids[row]) if self._live else None
        if live:
            said["live"] = dict(live)
        return said


def _n_floats(shared: Mapping[str, Any]) -> int:
    """How many floats a profile has."""
    rows = 1 + _numbers_among(shared, "pair_columns")
    return rows * len(shared["offer_ids"]) + _numbers_among(shared, "columns")


def _numbers_among(shared: Mapping[str, Any], part: str) -> int:
    return sum(shared["types"][name] == "number" for name in shared[part])


def _profile(
    known: bool,
    numbers: npt.NDArray[np.float64],
    text: Mapping[str, Any],
    shared: Mapping[str, Any],
) -> dict[str, Any]:
    """What is known of one customer, from the numbers and the text of `_Profiles`."""
    said, n_columns = _numbers(numbers), _numbers_among(shared, "columns")
    n_pairs = _numbers_among(shared, "pair_columns")
    n_offers = (len(said) - n_columns) // (1 + n_pairs)
    after = n_offers + n_columns
    values = [*said[n_offers:after], *text.get("columns", ())]
    rows = [said[after + i * n_offers :][:n_offers] for i in range(n_pairs)]
    rows += text.get("pair_columns", ())
    profile = {
        "known": known,
        "as_of": shared["as_of"],
        "propensity": said[:n_offers],
        "columns": dict(zip(shared["columns"], values, strict=True)),
        "pair_columns": dict(zip(shared["pair_columns"], rows, strict=True)),
        "offer_columns": shared["offer_columns"],
        "types": shared["types"],
        "versions": shared["versions"],
    }
    return {**profile, "live": text["live"]} if "live" in text else profile


# --- contacts and values --------------------------------------------------------------------------


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


def _numbers(values: npt.NDArray[np.float64]) -> list[Any]:
    """Numbers as JSON holds them."""
    items: list[Any] = values.tolist()
    if not np.isfinite(values).all():
        items = [_plain(item) for item in items]
    return items


def _plain(value: Any) -> Any:
    value = value.item() if isinstance(value, np.generic) else value
    if isinstance(value, float) and not math.isfinite(value):
        return None if math.isnan(value) else str(value)
    return value
