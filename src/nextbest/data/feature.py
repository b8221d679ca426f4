"""What a feature is, apart from how it is computed; serving reads this and needs no Ibis."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any, Literal

from nextbest.data.live import Live

__all__ = ["SCORE_GROUP", "Entity", "Feature"]

SCORE_GROUP = "scores"
"""Group of the columns that models add to profiles."""

Entity = Literal["customer", "offer", "pair"]


@dataclass(frozen=True)
class Feature:
    """One column that models and rules may use: its name, one-line meaning, unit and origin.

    ``live`` says how it follows what happens after a refresh; None where it waits for the next one.
    """

    name: str
    meaning: str
    unit: str
    source: str
    group: str
    entity: Entity
    dtype: str
    live: Live | None = None

    def to_dict(self) -> dict[str, Any]:
        """Return the feature as plain JSON types."""
        return asdict(self)

    @classmethod
    def from_dict(cls, d: Mapping[str, Any]) -> Feature:
        """Rebuild a feature from `to_dict`."""
        live = d["live"]
        return cls(**{**d, "live": None if live is None else Live(**live)})
