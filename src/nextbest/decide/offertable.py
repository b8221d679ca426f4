"""Offers that stand in a table of the data: each row becomes what an ``[[offers]]`` entry is."""

from __future__ import annotations

import math
from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from decimal import Decimal
from typing import Any

from nextbest.decide.tomlfile import finite

__all__ = ["TABLE", "OfferTable", "column_place"]

TABLE = "offers"
_LISTS = ("channels", "placements")
_TIMES = ("starts_at", "ends_at")
_WHOLE = ("max_contacts", "max_contacts_per_batch", "response_window_days")


def column_place(offer_id: str, column: str = "") -> str:
    """Say where an offer of the table stands, for messages."""
    place = f'training/sources.py: table "{TABLE}", offer "{offer_id}"'
    return f'{place}, column "{column}"' if column else place


@dataclass(frozen=True)
class OfferTable:
    """The offers of a table as catalogue entries, by id.

    Parameters
    ----------
    entries: for each offer its ``id`` and the fields that its row states; a null or an empty text
        states nothing.
    ended: ids of offers that had ended when the table was read. They become part of a catalogue
        only if its file names them: every offer has a profile for every customer, and past
        campaigns are many.
    notes: what was left aside, in words.
    """

    entries: tuple[Mapping[str, Any], ...]
    ended: frozenset[str] = frozenset()
    notes: tuple[str, ...] = ()

    @classmethod
    def of(
        cls,
        rows: Iterable[Mapping[str, Any]],
        fields: Collection[str],
        amounts: Collection[str],
        as_of: datetime,
        read_elsewhere: Collection[str] = (),
    ) -> OfferTable:
        """Take up the rows of a table.

        Parameters
        ----------
        rows: values by column, with ``offer_id``; times are UTC.
        fields: names of an offer's fields; ``amounts``: those of them that may be expressions.
        as_of: offers that had ended by then are past (naive UTC).
        read_elsewhere: columns that something else reads, so that no note counts them.
        """
        rows = sorted(rows, key=lambda row: str(row["offer_id"]))
        entries, ended = [], set()
        for row in rows:
            entry = {"id": row["offer_id"], **_stated(row, fields, amounts)}
            entries.append(entry)
            ends = entry.get("ends_at")
            if isinstance(ends, datetime) and ends <= as_of.replace(tzinfo=UTC):
                ended.add(entry["id"])
        unread = [
            name
            for name in dict.fromkeys(name for row in rows for name in row)
            if name not in fields and name not in read_elsewhere and name != "offer_id"
        ]
        notes = []
        if ended:
            notes.append(
                f'table "{TABLE}": {len(ended):,} of {len(rows):,} offers had ended; they are in'
                " the catalogue only where serving/offers.toml names them"
            )
        if unread:
            notes.append(
                f'table "{TABLE}": {len(unread)} column{"s" if len(unread) > 1 else ""} ignored by'
                f" the catalogue, being no field of an offer: {', '.join(unread)}"
            )
        return cls(tuple(entries), frozenset(ended), tuple(notes))

    def kept(self, named: Collection[str]) -> OfferTable:
        """Return what a catalogue takes up whose file names these offers."""
        past = self.ended - set(named)
        return OfferTable(tuple(e for e in self.entries if e["id"] not in past))

    def to_json(self) -> list[dict[str, Any]]:
        """Return the entries as JSON types; `from_json` reads them back."""
        return [
            {k: v.isoformat() if isinstance(v, datetime) else v for k, v in entry.items()}
            for entry in self.entries
        ]

    @classmethod
    def from_json(cls, entries: Sequence[Mapping[str, Any]]) -> OfferTable:
        """Read what `to_json` gave."""
        return cls(
            tuple(
                {k: datetime.fromisoformat(v) if k in _TIMES else v for k, v in entry.items()}
                for entry in entries
            )
        )


def _stated(
    row: Mapping[str, Any], fields: Collection[str], amounts: Collection[str]
) -> dict[str, Any]:
    """The fields that a row states, as a TOML file would hold them."""
    values = {name: row[name] for name in fields if name in row and name != "id"}
    return {
        name: _number(value) if name in amounts and isinstance(value, str) else _value(name, value)
        for name, value in values.items()
        if not _blank(value)
    }


def _blank(value: Any) -> bool:
    if isinstance(value, str):
        return not value.strip()
    return value is None or (isinstance(value, float) and math.isnan(value))


def _value(name: str, value: Any) -> Any:
    """One cell; what does not fit its field is left for the catalogue's checks to name."""
    if isinstance(value, Decimal):
        value = float(value)
    if isinstance(value, datetime) and value.tzinfo is None:
        return value.replace(tzinfo=UTC)
    if name in _LISTS and isinstance(value, str):
        return [part.strip() for part in value.split(",") if part.strip()]
    if name in _WHOLE and isinstance(value, float) and value.is_integer():
        return int(value)  # a column of whole numbers with nulls in it often comes as floats
    return value


def _number(text: str) -> float | str:
    """An amount in a column of text, which may hold numbers beside expressions."""
    try:
        number = finite(float(text))
    except ValueError:
        return text
    return text if number is None else number
