"""What would shift if another policy decided: two policies' decisions for the same customers."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Any

import numpy as np
import numpy.typing as npt

from nextbest.decide.engine import Decisions
from nextbest.decide.trace import funnel
from nextbest.errors import DataError

__all__ = ["UNKNOWN", "Segments", "Side", "compare"]

Texts = npt.NDArray[np.object_]
_TIERS = 10
UNKNOWN = "unknown"


@dataclass(frozen=True)
class Segments:
    """A division of customers by one of their columns: by tenths where it is a number.

    Parameters
    ----------
    column: a column of customers.
    edges: upper ends of all tenths but the last; None where each value is a segment.
    """

    column: str
    edges: npt.NDArray[np.float64] | None = None

    @classmethod
    def of(cls, column: str, values: npt.NDArray[Any]) -> Segments:
        """Divide by these values of all customers; few different numbers are segments themselves.

        Tenths are equally many customers each, as far as equal values allow.
        """
        if values.dtype.kind != "f":
            return cls(column)
        known = values[np.isfinite(values)]
        if len(np.unique(known)) <= _TIERS:
            return cls(column)
        inner = np.quantile(known, np.arange(1, _TIERS) / _TIERS, method="inverted_cdf")
        return cls(column, np.unique(inner))

    @property
    def labels(self) -> list[str]:
        """Names of the tenths, lowest first; none where each value is a segment."""
        if self.edges is None:
            return []
        ends = [f"{edge:,.4g}" for edge in self.edges]
        middle = [f"over {a} to {b}" for a, b in pairwise(ends)]
        ranges = [f"up to {ends[0]}", *middle, f"over {ends[-1]}"]
        # Numbered, as ends that differ may look alike.
        return [f"{number}: {words}" for number, words in enumerate(ranges, 1)]

    def label(self, values: npt.NDArray[Any]) -> Texts:
        """Return the segment of each customer."""
        if self.edges is not None:
            names = np.array([*self.labels, UNKNOWN], dtype=object)
            place = np.searchsorted(self.edges, values, side="left")
            return np.asarray(names[np.where(np.isfinite(values), place, -1)])
        return np.array([_named(value) for value in values.tolist()], dtype=object)


def _named(value: Any) -> str:
    if value is None or value != value:
        return UNKNOWN
    return f"{value:g}" if isinstance(value, float) else str(value)


class Side:
    """What one policy decides, added up part by part.

    Parameters
    ----------
    offer_ids: of the catalogue.
    segments: how to divide the customers; none leaves segments out.
    """

    def __init__(self, offer_ids: Sequence[str], segments: Segments | None = None) -> None:
        self.total = _Sums()
        self.offers = {offer_id: _Sums() for offer_id in offer_ids}
        self.segments = segments
        labels = [] if segments is None else segments.labels
        self.by_segment: dict[str, _Sums] = {label: _Sums() for label in labels}
        self.funnel: dict[str, dict[tuple[str, str], int]] = {one: {} for one in offer_ids}

    def add(self, decisions: Decisions) -> None:
        """Add the decisions for some more customers."""
        made = decisions.chosen >= 0
        row, slot = np.nonzero(made)
        offer = decisions.chosen[row, slot]
        profit = np.broadcast_to(decisions.values.expected_profit, decisions.fates.shape)
        earned = np.zeros(made.shape)
        # Of strangers nobody knows what an offer earns.
        earned[row, slot] = np.nan_to_num(profit[row, offer])
        every = np.ones(len(decisions), dtype=bool)
        fates = funnel(decisions)["offers"]
        self.total.add(every, made, earned)
        for at, offer_id in enumerate(decisions.catalogue.offer_ids):
            own = made & (decisions.chosen == at)
            self.offers[offer_id].add(every, own, np.where(own, earned, 0.0))
            lost = fates[offer_id]["lost"]
            for step, reasons in lost.items():
                for reason, count in reasons.items():
                    told = self.funnel[offer_id]
                    told[step, reason] = told.get((step, reason), 0) + count
        if self.segments is not None:
            labels = self.segments.label(decisions.audience.columns[self.segments.column])
            for label in dict.fromkeys(labels.tolist()):
                sums = self.by_segment.setdefault(label, _Sums())
                sums.add(labels == label, made, earned)


@dataclass
class _Sums:
    """Customers, contacts and money of some decisions."""

    customers: int = 0
    contacts: int = 0
    reached: int = 0
    expected_profit: float = 0.0

    def add(
        self,
        rows: npt.NDArray[np.bool_],
        made: npt.NDArray[np.bool_],
        earned: npt.NDArray[np.float64],
    ) -> None:
        """Add some of the customers, whose offers are True in ``made``, one column per slot."""
        self.customers += int(rows.sum())
        self.contacts += int(made[rows].sum())
        self.reached += int(made[rows].any(axis=1).sum())
        self.expected_profit += float(earned[rows].sum())

    def facts(self) -> dict[str, float]:
        """Return the sums, and what they are per customer."""
        each = max(self.customers, 1)
        return {
            "contacts": self.contacts,
            "reached": self.reached,
            "share_reached": self.reached / each,
            "contacts_per_customer": self.contacts / each,
            "expected_profit": self.expected_profit,
            "expected_profit_per_customer": self.expected_profit / each,
        }


def compare(project: Side, other: Side) -> dict[str, Any]:
    """Return what the other policy would shift, as plain JSON types.

    Every figure has ``project``, ``other`` and ``difference`` (other less project): in all under
    ``total``, by offer under ``offers``, by segment under ``segments``; under ``funnel`` how many
    customers lose each offer at which step, to which rule.

    Raises
    ------
    DataError: the sides are about other customers, offers or segments.
    """
    if project.total.customers != other.total.customers:
        got = f"{project.total.customers:,} and {other.total.customers:,}"
        expected = "decisions for the same customers"
        raise DataError("what-if", "the sides do not fit together", expected=expected, got=got)
    if list(project.offers) != list(other.offers) or project.segments is not other.segments:
        expected = "the same offers, and one division into segments"
        raise DataError("what-if", "the sides do not fit together", expected=expected)
    named = project.segments
    return {
        "customers": project.total.customers,
        "total": _beside(project.total, other.total),
        "offers": {name: _beside(s, other.offers[name]) for name, s in project.offers.items()},
        "segments_by": None if named is None else named.column,
        "segments": {
            label: {"customers": sums.customers, **_beside(sums, other.by_segment[label])}
            for label, sums in project.by_segment.items()
        },
        "funnel": {
            offer: _lost(lost, other.funnel[offer]) for offer, lost in project.funnel.items()
        },
    }


def _beside(project: _Sums, other: _Sums) -> dict[str, dict[str, float]]:
    theirs = other.facts()
    return {
        name: {"project": value, "other": theirs[name], "difference": theirs[name] - value}
        for name, value in project.facts().items()
    }


def _lost(
    project: Mapping[tuple[str, str], int], other: Mapping[tuple[str, str], int]
) -> list[dict[str, Any]]:
    return [
        {
            "step": key[0],
            "reason": key[1],
            "project": project.get(key, 0),
            "other": other.get(key, 0),
            "difference": other.get(key, 0) - project.get(key, 0),
        }
        for key in dict.fromkeys([*project, *other])
    ]
