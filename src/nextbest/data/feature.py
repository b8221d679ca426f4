"""What a feature is, apart from how it is computed; serving reads this and needs no Ibis."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

__all__ = ["SCORE_GROUP", "Entity", "Feature"]

SCORE_GROUP = "scores"
"""Group of the columns that models add to profiles."""

Entity = Literal["customer", "offer", "pair"]


@dataclass(frozen=True)
class Feature:
    """One column that models and rules may use: its name, one-line meaning, unit and origin."""

    name: str
    meaning: str
    unit: str
    source: str
    group: str
    entity: Entity
    dtype: str
    live: bool = False
