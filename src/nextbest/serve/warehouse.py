"""Contacts and responses that the warehouse knows of, kept in the bundle for the contact policy.

One compressed file of plain arrays: customers are rows of the profiles, texts are codes.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, fields
from datetime import datetime
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from nextbest.data.profiles import Profiles
from nextbest.serve.records import Contacts, Outcomes
from nextbest.serve.schemas import OUTCOME_TYPES

__all__ = ["PastContacts"]

CONTACT = "contact"
Codes = NDArray[np.int32]
Names = NDArray[np.str_]


@dataclass(frozen=True)
class PastContacts:
    """What happened in the last ``days``, n events sorted by customer and then by time.

    Attributes
    ----------
    customer : (n,) row of the customer in the bundle's profiles.
    offer, channel, type, decision : (n,) codes into the names of the same attribute; -1 for none.
        ``type`` is "contact" or an outcome type.
    at : (n,) datetime64[us], UTC.
    """

    days: NDArray[np.float64]
    customer: Codes
    at: NDArray[np.datetime64]
    offer: Codes
    offer_names: Names
    channel: Codes
    channel_names: Names
    type: Codes
    type_names: Names
    decision: Codes
    decision_names: Names

    @classmethod
    def of(cls, profiles: Profiles, table: Any, days: float) -> PastContacts:
        """Take up a table of `nextbest.data.recent.recent`.

        A response of a type that outcomes do not know, such as a redemption, is a response.
        """
        rows = {one: row for row, one in enumerate(profiles.ids())}
        customer = np.array([rows[one] for one in table["customer_id"]], dtype=np.int32)
        order = np.argsort(customer, kind="stable")
        types = [t if t in (CONTACT, *OUTCOME_TYPES) else "response" for t in table["type"]]
        coded: dict[str, Any] = {}
        for name, values in (
            ("offer", table["offer_id"]),
            ("channel", table["channel"]),
            ("type", types),
            ("decision", table["decision_id"]),
        ):
            names = sorted({v for v in values if isinstance(v, str)})
            code = {v: i for i, v in enumerate(names)}
            codes = np.array([code.get(v, -1) for v in values], dtype=np.int32)
            coded |= {name: codes[order], f"{name}_names": np.array(names, dtype=np.str_)}
        at = np.asarray(table["at"], dtype="datetime64[us]")[order]
        return cls(days=np.array(days), customer=customer[order], at=at, **coded)

    def save(self, file: Path) -> None:
        """Write the arrays; the same events give the same bytes."""
        np.savez_compressed(file, allow_pickle=False, **vars(self))

    @classmethod
    def open(cls, file: Path) -> PastContacts:
        """Read what `save` wrote; nothing in it can be executed."""
        with np.load(file, allow_pickle=False) as arrays:
            return cls(**{f.name: arrays[f.name] for f in fields(cls)})

    def told(
        self, customer_ids: Sequence[str], rows: NDArray[np.intp]
    ) -> tuple[Contacts, Outcomes]:
        """Return contacts and outcomes of some customers, as the store tells them.

        ``rows`` are the customers' rows in the profiles, -1 for strangers. A contact without a
        decision has the empty text for it.
        """
        starts = np.searchsorted(self.customer, rows, side="left")
        ends = np.searchsorted(self.customer, rows, side="right")
        events = [
            (customer_id, self._name("offer", i), self._name("channel", i),
             str(self._name("type", i)), self.at[i].astype(datetime), self._name("decision", i))
            for customer_id, start, end in zip(customer_ids, starts, ends, strict=True)
            for i in range(start, end)
        ]  # fmt: skip
        made = [(c, o, ch or "", at, d or "") for c, o, ch, t, at, d in events if t == CONTACT]
        said = [event for event in events if event[3] != CONTACT]
        contacts: list[Any] = [tuple(column) for column in zip(*made, strict=True)]
        outcomes: list[Any] = [tuple(column) for column in zip(*said, strict=True)]
        return Contacts(*contacts), Outcomes(*outcomes)

    def _name(self, column: str, event: int) -> str | None:
        code = int(getattr(self, column)[event])
        return None if code < 0 else str(getattr(self, f"{column}_names")[code])
