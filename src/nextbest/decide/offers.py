"""The offer catalogue: what we may offer, to whom, at what margin and cost."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from datetime import datetime
from functools import cached_property
from pathlib import Path
from typing import Annotated, Any, Literal, get_args

import numpy as np
import numpy.typing as npt
from pydantic import Field, PlainValidator
from pydantic_core import PydanticCustomError

from nextbest.decide.offertable import TABLE, OfferTable, column_place
from nextbest.decide.rules import (
    STEPS,
    Column,
    ColumnType,
    Formula,
    Lookup,
    NamedRule,
    Positions,
    Rule,
    Step,
    compile_formula,
    compile_rule,
    named_rules,
    rule_faults,
    rule_title,
    text_faults,
)
from nextbest.decide.tomlfile import (
    Table,
    check_table,
    content_hash,
    finite,
    instant,
    place,
    read_toml,
    time_zone,
    toml_of,
)
from nextbest.errors import ConfigError, Fault, RuleError, did_you_mean

__all__ = [
    "NOT_AT_HAND",
    "Amounts",
    "BoundCatalogue",
    "Catalogue",
    "Goal",
    "Offer",
    "Source",
    "concerns",
    "positions",
]

Goal = Literal["sell", "retain", "win_back", "cross_sell", "inform"]
AMOUNTS = ("margin", "incentive_cost", "incentive_shop_share", "contact_cost", "baseline_rate")
# Amounts that lie between 0 and 1.
SHARES = ("incentive_shop_share", "baseline_rate")
COSTS = ("incentive_cost", "contact_cost")
_SECTIONS = ("timezone", "source", "assumptions", "defaults", "offers")

NOT_AT_HAND = f'the offers of the table "{TABLE}" are not at hand'


OWN_COLUMNS: Mapping[str, Column] = {
    "offer_id": Column("string", "offer"),
    "offer_goal": Column("string", "offer"),
    "offer_category": Column("string", "offer"),
    "offer_response_window_days": Column("number", "offer"),
    "propensity": Column("number", "pair"),
}


def _type_of(value: float | str | bool) -> ColumnType:
    if isinstance(value, bool):
        return "boolean"
    return "string" if isinstance(value, str) else "number"


def _amount(value: Any) -> float | str:
    if isinstance(value, str):
        return value
    number = finite(value)
    if number is None:
        raise PydanticCustomError("amount", "a number, or an expression in quotes")
    return number


def _identifier(value: Any) -> str:
    if not isinstance(value, str) or not value.strip() or len(value) > 200:
        raise PydanticCustomError("identifier", 'a text of 1 to 200 characters, such as "18"')
    return value


Identifier = Annotated[str, PlainValidator(_identifier)]
AmountOf = Annotated[float | str, PlainValidator(_amount)]


class Offer(Table):
    """One thing we may offer. Money is in the shop's currency, per customer.

    ``incentive_shop_share`` is the part of ``incentive_cost`` that the shop bears; suppliers pay
    the rest. ``baseline_rate`` is the probability of the same response without any contact.
    ``max_contacts``, ``max_contacts_per_batch`` and ``budget`` (expected cost to the shop) bound
    what the offer may use up over all customers.
    """

    id: Identifier = Field(description="a text, unique in the file")
    name: str = Field(description="a text that people recognise the offer by")
    description: str = ""
    goal: Goal = Field(description="one of " + ", ".join(get_args(Goal)))
    category: Identifier | None = None
    channels: tuple[Identifier, ...] = Field(
        strict=False, min_length=1, description='a list of channels, such as ["mail"]'
    )
    placements: tuple[Identifier, ...] = Field(default=(), strict=False)
    starts_at: datetime | None = None
    ends_at: datetime | None = None
    margin: AmountOf = Field(description="a number, or an expression in quotes")
    incentive_cost: AmountOf = 0.0
    incentive_shop_share: AmountOf = 1.0
    contact_cost: AmountOf = 0.0
    baseline_rate: AmountOf = 0.0
    max_cost_share_of_clv: float | None = Field(default=None, gt=0, le=1)
    max_contacts: int | None = Field(default=None, ge=0)
    max_contacts_per_batch: int | None = Field(default=None, ge=0)
    budget: float | None = Field(default=None, ge=0)
    response_window_days: int | None = Field(default=None, gt=0, le=36_500)
    save_rate: float | None = Field(default=None, ge=0, le=1)
    exclusivity_group: Identifier | None = None
    eligibility: dict[str, str] = Field(default_factory=dict)
    applicability: dict[str, str] = Field(default_factory=dict)
    suitability: dict[str, str] = Field(default_factory=dict)
    active: bool = True


class Source(Table):
    """Where offers stand beside those in the file."""

    table: Literal["offers"]


def _sense_faults(raw: Mapping[str, Any], where: Callable[[str], str]) -> list[Fault]:
    """What no field shows by itself: dates in order, costs, what a goal needs, readable rules."""
    faults = rule_faults(raw, where)
    for name in AMOUNTS:
        faults += text_faults(raw.get(name), where(name), name)
    starts, ends = raw.get("starts_at"), raw.get("ends_at")
    if isinstance(starts, datetime) and isinstance(ends, datetime) and ends <= starts:
        after, got = f"after {starts:%Y-%m-%d %H:%M} UTC", f"{ends:%Y-%m-%d %H:%M} UTC"
        faults.append(Fault(where("ends_at"), "the offer ends before it starts", after, got))
    for name in ("incentive_cost", "contact_cost"):
        cost = raw.get(name)
        if isinstance(cost, int | float) and cost < 0:
            faults.append(Fault(where(name), f"{name} is negative", "zero or more", repr(cost)))
    for name in SHARES:
        share = raw.get(name)
        if isinstance(share, int | float) and not 0 <= share <= 1:
            faults.append(Fault(where(name), f"{name} is no share", "from 0 to 1", repr(share)))
    retain, given = raw.get("goal") == "retain", raw.get("save_rate") is not None
    if retain and not given:
        what = 'goal "retain" needs field "save_rate"'
        expected = "the share (0-1) of customers about to leave whom the offer keeps"
        action = "Take it from an experiment; without one, choose another goal."
        faults.append(Fault(where("goal"), what, expected, "none", action))
    if given and not retain and raw.get("goal") in get_args(Goal):
        what = 'field "save_rate" is only for goal "retain"'
        faults.append(Fault(where("save_rate"), what, "left out"))
    return faults


@dataclass(frozen=True)
class Catalogue:
    """All offers in file order, with the named constants that their expressions use.

    Offers that only the table has follow those of the file, by id. ``inherited`` says which fields
    of an offer came from ``[defaults]``, ``tabled`` which came from the table, for messages;
    ``table`` is what was taken from there, None without ``[source]``.
    """

    where: str
    assumptions: Mapping[str, float | str | bool]
    offers: tuple[Offer, ...]
    inherited: Mapping[str, frozenset[str]]
    content_hash: str
    tabled: Mapping[str, frozenset[str]] = field(default_factory=dict)
    table: OfferTable | None = None

    @classmethod
    def load(cls, path: Path, table: OfferTable | None = None) -> Catalogue:
        """Read and check ``offers.toml``.

        Parameters
        ----------
        table: the offers of the data's table, which ``[source]`` asks for; not used without it.

        Raises
        ------
        ConfigError: the file is missing or broken, or anything in it or in the table is wrong (all
            faults at once).
        """
        return cls.from_dict(read_toml(path), place(path), table)

    @classmethod
    def from_dict(
        cls, raw: Mapping[str, Any], where: str = "offers", table: OfferTable | None = None
    ) -> Catalogue:
        """Check a catalogue given as TOML would hold it; errors as in `load`."""
        reading = _Reading(where, table)
        catalogue = reading.read(raw)
        if reading.faults or catalogue is None:
            raise ConfigError(faults=list(dict.fromkeys(reading.faults)))
        return catalogue

    @property
    def offer_ids(self) -> tuple[str, ...]:
        """Ids in file order; the columns of every customer × offer array follow it."""
        return tuple(offer.id for offer in self.offers)

    def to_dict(self) -> list[dict[str, Any]]:
        """All offers as JSON-able dictionaries."""
        return [offer.model_dump(mode="json") for offer in self.offers]

    def to_toml(self) -> str:
        """Write the catalogue as a file of the same content hash; defaults are filled in."""
        offers = [o.model_dump(exclude_unset=True, exclude_none=True) for o in self.offers]
        return toml_of({"assumptions": dict(self.assumptions), "offers": offers})

    def place(self, offer: Offer, field: str) -> str:
        """Say where a field of an offer stands: with the offer, in the table or ``[defaults]``."""
        if field in self.tabled.get(offer.id, ()):
            return column_place(offer.id, field)
        own = field not in self.inherited[offer.id]
        return f"{self.where}: " + (f'offer "{offer.id}"' if own else "[defaults]")

    def own_columns(self) -> dict[str, Column]:
        """Columns that the catalogue itself adds to those of the data."""
        named = {name: Column(_type_of(v), "assumption", v) for name, v in self.assumptions.items()}
        return {**OWN_COLUMNS, **named}

    def bind(self, columns: Mapping[str, Column]) -> BoundCatalogue:
        """Check every rule and expression against the known columns and compile it.

        Parameters
        ----------
        columns: the columns of the data and of the context (`Audience.known_columns` and
            `Policy.context_columns`); the catalogue adds its own.

        Raises
        ------
        ConfigError: unknown columns, wrong types, names used twice (all faults at once).
        """
        return _Binding(self, columns).bind()


class _Reading:
    """One pass over a raw catalogue that collects faults instead of stopping at the first."""

    def __init__(self, where: str, table: OfferTable | None) -> None:
        self.where = where
        self.table = table
        self.faults: list[Fault] = []

    def read(self, raw: Mapping[str, Any]) -> Catalogue | None:
        for name in raw:
            if name not in _SECTIONS:
                self._fault(
                    f'unknown section "{name}"',
                    "one of " + ", ".join(_SECTIONS),
                    action=did_you_mean(name, _SECTIONS),
                )
        try:
            self.zone = time_zone(raw.get("timezone", "UTC"), self.where)
        except ConfigError as wrong:
            self.faults += wrong.faults
            self.zone = time_zone("UTC", self.where)
        assumptions = self._assumptions(raw.get("assumptions", {}))
        defaults = self._defaults(raw.get("defaults", {}))
        entries = raw.get("offers", [])
        named = [_id(entry) for entry in entries] if isinstance(entries, list) else []
        try:
            table = self._source(raw, named)
        except ConfigError as wrong:
            self.faults += wrong.faults
            return None
        rows = {row["id"]: row for row in table.entries} if table else {}
        if not isinstance(entries, list) or not (entries or rows):
            self._fault("there is no offer", "at least one [[offers]] table")
            return None
        nothing: Mapping[str, Any] = {}
        pairs = [(e, rows.get(name, nothing)) for e, name in zip(entries, named, strict=True)]
        pairs += [(nothing, row) for name, row in rows.items() if name not in named]
        offers = [self._offer(e, row, i, defaults) for i, (e, row) in enumerate(pairs, 1)]
        self._duplicates(entries)
        found = [(o, e, row) for o, (e, row) in zip(offers, pairs, strict=True) if o is not None]
        good = tuple(offer for offer, _, _ in found)
        inherited = {o.id: frozenset(defaults) - {*entry, *row} for o, entry, row in found}
        tabled = {o.id: frozenset(row) - {*entry} for o, entry, row in found}
        digest = content_hash(
            {"assumptions": assumptions, "offers": [o.model_dump(mode="json") for o in good]}
        )
        return Catalogue(self.where, assumptions, good, inherited, digest, tabled, table)

    def _source(self, raw: Mapping[str, Any], named: Sequence[str]) -> OfferTable | None:
        """The rows that ``[source]`` asks for; None without it."""
        if "source" not in raw:
            return None
        where = f"{self.where}: [source]"
        _, wrong = check_table(Source, raw["source"], lambda _: where)
        if not wrong and self.table is None:
            expected = "its rows, which `nextbest refresh` puts into the bundle"
            action = f'Return "{TABLE}" from training/sources.py, then run `nextbest refresh`.'
            wrong = [Fault(where, NOT_AT_HAND, expected, "none", action)]
        if wrong or self.table is None:
            raise ConfigError(faults=wrong)
        return self.table.kept(named)

    def _fault(self, problem: str, expected: str, got: str = "", action: str = "") -> None:
        self.faults.append(Fault(self.where, problem, expected, got, action))

    def _assumptions(self, raw: Any) -> dict[str, float | str | bool]:
        if not isinstance(raw, dict):
            self._fault("[assumptions] is wrong", "a table of named constants", repr(raw)[:80])
            return {}
        good: dict[str, float | str | bool] = {}
        for name, value in raw.items():
            constant = value if isinstance(value, bool | str) else finite(value)
            if constant is not None:
                good[name] = constant
            else:
                self.faults.append(
                    Fault(
                        f"{self.where}: [assumptions]",
                        f'"{name}" is wrong',
                        "a number, a text, true or false",
                        repr(value)[:80],
                    )
                )
        return good

    def _defaults(self, raw: Any) -> dict[str, Any]:
        known = [name for name in Offer.model_fields if name != "id"]
        if not isinstance(raw, dict):
            self._fault("[defaults] is wrong", "a table of offer fields", repr(raw)[:80])
            return {}
        for name in raw.keys() - set(known):
            self.faults.append(
                Fault(
                    f"{self.where}: [defaults]",
                    f'unknown field "{name}"',
                    "one of " + ", ".join(known),
                    action=did_you_mean(name, known),
                )
            )
        return {name: raw[name] for name in raw if name in known}

    def _offer(
        self, entry: Any, row: Mapping[str, Any], number: int, defaults: Mapping[str, Any]
    ) -> Offer | None:
        """Check one offer: what the file says of it, before its row, before the defaults."""
        if not isinstance(entry, dict):
            self._fault(f"offer number {number} is wrong", "a table", repr(entry)[:80])
            return None
        offer_id = entry.get("id")
        label = f'offer "{offer_id}"' if isinstance(offer_id, str) else f"offer number {number}"

        def where(field: str) -> str:
            if field not in entry and field in row:
                return column_place(row["id"], field)
            if field not in entry and field in defaults:
                return f"{self.where}: [defaults]"
            return f"{self.where}: {label}" if entry else column_place(row["id"])

        raw = {**defaults, **row, **entry}
        for name, end in (("starts_at", False), ("ends_at", True)):
            if name in raw:
                raw[name] = instant(raw[name], self.zone, end=end)
        for step in STEPS:
            if step in raw:
                raw[step] = named_rules(raw[step], step)
        offer, faults = check_table(Offer, raw, where)
        if self.table is not None and not row:
            hint = f'The table "{TABLE}" has no such offer as of the last `nextbest refresh`.'
            faults = [replace(f, action=hint) if "is missing" in f.problem else f for f in faults]
        self.faults += [*faults, *_sense_faults(raw, where)]
        return offer

    def _duplicates(self, entries: Sequence[Any]) -> None:
        ids = [_id(entry) for entry in entries]
        for offer_id in dict.fromkeys(i for i in ids if i):
            count = ids.count(offer_id)
            if count > 1:
                self.faults.append(
                    Fault(
                        f'{self.where}: offer "{offer_id}"',
                        "the id is used more than once",
                        "unique in the file",
                        f"{count} offers with it",
                    )
                )


def _id(entry: Any) -> str:
    """The id that an entry of the file states; empty where there is none to go by."""
    found = entry.get("id") if isinstance(entry, dict) else None
    return found if isinstance(found, str) else ""


@dataclass(frozen=True)
class Amounts:
    """One amount (margin or a cost) of all offers: constants, and formulas for some of them.

    Parameters
    ----------
    constants: (m,) amounts that are the same for everybody; NaN where a formula says it.
    formulas: each with the offers that it is for.
    varying: those of the formulas that read a column, and not only named constants.
    """

    constants: npt.NDArray[np.float64]
    formulas: tuple[tuple[Formula, Positions], ...]
    varying: tuple[tuple[Formula, Positions], ...]

    def evaluate(self, lookup: Callable[[Positions], Lookup]) -> npt.NDArray[np.float64]:
        """Amounts for customers × offers, or 1 × offers where no formula needs the customer.

        ``lookup`` gives, for some offers, the columns' values over customers × those offers.
        """
        with np.errstate(all="ignore"):
            return self.computed(lookup)

    def computed(self, lookup: Callable[[Positions], Lookup]) -> npt.NDArray[np.float64]:
        """Return the amounts of `evaluate`, for callers that have told NumPy not to warn."""
        if not self.varying:
            return self.constants[None, :]
        values = [(np.asarray(f.term.run(lookup(offers))), offers) for f, offers in self.varying]
        rows = max((value.shape[0] for value, _ in values if value.ndim == 2), default=1)
        result = self.constants[None, :].repeat(rows, axis=0)
        for value, offers in values:
            result[:, offers] = value
        return result

    def formula(self, offer: int) -> Formula | None:
        """The formula of one offer; None where its amount is a constant."""
        found = (f for f, offers in self.formulas if concerns(offers, offer))
        return next(found, None)


@dataclass(frozen=True)
class BoundCatalogue:
    """A catalogue whose rules and expressions are compiled against known columns."""

    catalogue: Catalogue
    columns: Mapping[str, Column]
    offer_ids: tuple[str, ...]
    amounts: Mapping[str, Amounts]
    rules: tuple[NamedRule, ...]
    own_values: Mapping[str, npt.NDArray[Any]]

    @cached_property
    def places(self) -> Mapping[str, int]:
        """Where each offer stands, by its id."""
        return {offer_id: at for at, offer_id in enumerate(self.offer_ids)}

    def sound(self, amounts: Mapping[str, npt.NDArray[np.float64]]) -> npt.NDArray[np.bool_]:
        """Where costs are not negative and shares are from 0 to 1; not where they are unknown.

        Parameters
        ----------
        amounts: as `Amounts.evaluate` gives them, by name.
        """
        return self._sound if self._sound is not None else _sound(amounts)

    @cached_property
    def _sound(self) -> npt.NDArray[np.bool_] | None:
        """The same once for all where they are constants."""
        if any(self.amounts[name].varying for name in (*COSTS, *SHARES)):
            return None
        return _sound({name: amount.constants[None, :] for name, amount in self.amounts.items()})


def _sound(amounts: Mapping[str, npt.NDArray[np.float64]]) -> npt.NDArray[np.bool_]:
    shop_costs = amounts["incentive_shop_share"] * amounts["incentive_cost"]
    sound: npt.NDArray[np.bool_] = (shop_costs >= 0) & (amounts["contact_cost"] >= 0)
    for name in SHARES:
        sound = sound & (amounts[name] >= 0) & (amounts[name] <= 1)
    return sound


def concerns(offers: Positions, offer: int) -> bool:
    """Whether an offer is among these positions."""
    return isinstance(offers, slice) or offer in offers


def positions(members: Sequence[int], n_offers: int) -> Positions:
    """Positions in the catalogue, as a slice where they are all of it."""
    return slice(None) if len(members) == n_offers else np.array(members, dtype=np.intp)


class _Binding:
    """Compiles every text of a catalogue once, however many offers share it."""

    def __init__(self, catalogue: Catalogue, columns: Mapping[str, Column]) -> None:
        self.catalogue = catalogue
        own = catalogue.own_columns()
        self.columns = {**columns, **own}
        self.faults = [
            Fault(
                f"{catalogue.where}: [assumptions]"
                if name in catalogue.assumptions
                else "the data",
                f'"{name}" is also a column',
                "a name of its own",
                f"a {columns[name].source} column",
            )
            for name in own.keys() & columns.keys()
        ]

    def bind(self) -> BoundCatalogue:
        offers = self.catalogue.offers
        amounts = {name: self._amounts(name) for name in AMOUNTS}
        rules = tuple(rule for step in STEPS for rule in self._rules(step))
        if self.faults:
            raise ConfigError(faults=list(dict.fromkeys(self.faults)))
        window = [offer.response_window_days for offer in offers]
        own_values = {
            "offer_id": np.array([offer.id for offer in offers], dtype=object),
            "offer_goal": np.array([offer.goal for offer in offers], dtype=object),
            "offer_category": np.array([offer.category for offer in offers], dtype=object),
            "offer_response_window_days": np.array(window, dtype=np.float64),
        }
        ids = self.catalogue.offer_ids
        return BoundCatalogue(self.catalogue, self.columns, ids, amounts, rules, own_values)

    def _amounts(self, name: str) -> Amounts:
        offers = self.catalogue.offers
        constants = np.full(len(offers), np.nan)
        formulas: dict[str, tuple[Formula, list[int]]] = {}
        for i, offer in enumerate(offers):
            amount = getattr(offer, name)
            if isinstance(amount, float):
                constants[i] = amount
            elif amount in formulas:
                formulas[amount][1].append(i)
            else:
                where = self.catalogue.place(offer, name)
                try:
                    formula = compile_formula(amount, self.columns, where=where, name=name)
                    formulas[amount] = (formula, [i])
                except RuleError as wrong:
                    self.faults += wrong.faults
        placed, varying = [], []
        for formula, at in formulas.values():
            pair = (formula, positions(at, len(offers)))
            placed.append(pair)
            if all(self.columns[column].value is not None for column in formula.columns):
                constants[at] = formula.evaluate(self.columns.__getitem__)
            else:
                varying.append(pair)
        return Amounts(constants, tuple(placed), tuple(varying))

    def _rules(self, step: Step) -> list[NamedRule]:
        offers = self.catalogue.offers
        rules: dict[tuple[str, str], tuple[Rule, list[int]]] = {}
        for i, offer in enumerate(offers):
            for name, text in getattr(offer, step).items():
                if (name, text) in rules:
                    rules[name, text][1].append(i)
                    continue
                where, title = self.catalogue.place(offer, step), rule_title(step, name)
                try:
                    rule = compile_rule(text, self.columns, where=where, name=title)
                    rules[name, text] = (rule, [i])
                except RuleError as wrong:
                    self.faults += wrong.faults
        return [
            NamedRule(step, name, rule, positions(at, len(offers)))
            for (name, _), (rule, at) in rules.items()
        ]
