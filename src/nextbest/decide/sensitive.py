"""Attributes of people that decisions may not rest on, and how unequal their effect may be."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import replace
from itertools import pairwise
from typing import Annotated, Literal

from pydantic import Field

from nextbest.decide.rules import Column
from nextbest.decide.tomlfile import Table
from nextbest.errors import Fault, did_you_mean

__all__ = ["BiasLimits", "Sensitive"]

Ratio = Annotated[float, Field(gt=0, le=1)]
Columns = Annotated[tuple[str, ...], Field(strict=False)]
Edges = Annotated[tuple[float, ...], Field(strict=False, min_length=1)]


class BiasLimits(Table):
    """How low a group's figure may be, as a share of that of the group it is held against.

    ``reach_ratio`` is about getting any offer, ``offer_reach_ratio`` about each offer by itself,
    ``propensity_ratio`` about the mean propensity, ``value_ratio`` about the mean expected profit.
    """

    reach_ratio: Ratio | None = 0.8
    offer_reach_ratio: Ratio | None = None
    propensity_ratio: Ratio | None = None
    value_ratio: Ratio | None = None


class Sensitive(Table):
    """Sensitive attributes: who may read them, how they are divided, and what is too unequal.

    ``bins`` are the upper ends of a number's groups; ``against`` is the group that others are held
    against: the best-treated one, or all the rest; ``required`` keeps a policy from going live
    before its bias report has passed.
    """

    attributes: Columns = ()
    allow_in_rules: Columns = ()
    allow_in_features: Columns = ()
    bins: dict[str, Edges] = Field(default_factory=dict)
    smallest_group: int = Field(default=100, ge=2, le=1_000_000_000)
    against: Literal["best", "rest"] = "best"
    limits: BiasLimits = BiasLimits()
    required: bool = True

    def must_pass(self) -> bool:
        """Whether a policy has to pass a bias report before it goes live."""
        return self.required and bool(self.attributes)

    def faults(self, where: str) -> list[Fault]:
        """Return what no single field shows: names that are not declared, ends out of order."""
        spot, found = f"{where}: [sensitive]", []
        for name in sorted({name for name in self.attributes if self.attributes.count(name) > 1}):
            found.append(Fault(spot, f'attributes names "{name}" twice', "each name once"))
        for field in ("allow_in_rules", "allow_in_features", "bins"):
            for name in getattr(self, field):
                if name not in self.attributes:
                    hint = did_you_mean(name, self.attributes)
                    problem = f'{field} names "{name}"'
                    found.append(Fault(spot, problem, "one of attributes", action=hint))
        for name, edges in self.bins.items():
            if any(low >= high for low, high in pairwise(edges)):
                got = ", ".join(f"{edge:g}" for edge in edges)
                problem = f'bins of "{name}" are out of order'
                found.append(Fault(spot, problem, "upper ends, each above the one before", got))
        return found

    def keep_back(self, columns: Mapping[str, Column]) -> dict[str, Column]:
        """Return the columns, those forbidden to rules that are sensitive and not allowed there."""
        kept = set(self.attributes) - set(self.allow_in_rules)
        return {n: replace(c, forbidden=True) if n in kept else c for n, c in columns.items()}

    def unknown(self, columns: Mapping[str, Column], where: str) -> list[Fault]:
        """Return the attributes that no column has: nobody could watch over them."""
        found = []
        for name in self.attributes:
            if name not in columns:
                problem = f'attributes names "{name}"'
                hint = did_you_mean(name, columns)
                found.append(Fault(f"{where}: [sensitive]", problem, "a known column", action=hint))
            elif name in self.bins and columns[name].type != "number":
                problem = f'bins divide "{name}"'
                got = f"a {columns[name].type}"
                found.append(Fault(f"{where}: [sensitive]", problem, "about a number", got))
        return found

    def read_by_model(self, where: str, model: str, columns: Iterable[str]) -> list[Fault]:
        """Return a fault for each attribute that a model reads and that no model may read.

        Parameters: ``where`` the fault is, and the ``columns`` that the model reads.
        """
        kept = set(self.attributes) - set(self.allow_in_features)
        action = (
            f"Put it into exclude of models/{model}.py, train, promote and refresh; or name it"
            " under allow_in_features of the policy's [sensitive]."
        )
        return [
            Fault(
                where, f'model "{model}" reads the sensitive attribute "{name}"',
                "a model without it", action=action,
            )
            for name in columns if name in kept
        ]  # fmt: skip
