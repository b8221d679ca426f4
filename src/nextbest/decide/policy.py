"""The policy: who may be contacted how often, and how offers compete."""

from __future__ import annotations

import copy
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from datetime import datetime, time
from pathlib import Path
from typing import Annotated, Any, ClassVar, Literal, TypedDict

from pydantic import Field

from nextbest.decide.contact import (
    WEEKDAYS,
    Kind,
    Limit,
    Period,
    QuietHours,
    Scope,
    Weekday,
)
from nextbest.decide.offers import Catalogue, Goal, Identifier
from nextbest.decide.offertable import OfferTable
from nextbest.decide.rules import (
    STEPS,
    Column,
    ColumnType,
    named_rules,
    rule_faults,
    text_faults,
)
from nextbest.decide.sensitive import Sensitive
from nextbest.decide.tomlfile import (
    Table,
    check_table,
    content_hash,
    instant,
    place,
    read_toml,
    time_zone,
    toml_of,
)
from nextbest.errors import ConfigError, Fault, did_you_mean

__all__ = [
    "Arms",
    "Budgets",
    "ContextWeight",
    "Exploration",
    "Gates",
    "Holdout",
    "Lever",
    "Policy",
    "load_serving",
]

# Columns that every decision has, whatever the policy declares.
SITUATION_COLUMNS: Mapping[str, Column] = {
    "channel": Column("string", "context"),
    "placement": Column("string", "context"),
    "decided_at": Column("timestamp", "context"),
}

Days = Annotated[float, Field(gt=0, le=36_500)]
Multiplier = Annotated[float, Field(gt=0, le=1000)]
Names = Annotated[tuple[Identifier, ...], Field(strict=False)]
Share = Annotated[float, Field(ge=0, le=1)]
Money = Annotated[float, Field(gt=0, le=1e12)]
ArmShare = Annotated[float, Field(ge=0, le=0.25)]
Salt = Annotated[str, Field(min_length=16, max_length=256)]


class Clock(Table):
    """Which moment decisions are made for, when it is not now."""

    decide_as_of: datetime | None = None


class ProfilePolicy(Table):
    """How old a customer's profile may be before decisions that use it are flagged."""

    freshness_limit_days: Days | None = None


class Channel(Table):
    """A channel, and the consent that it needs."""

    consent_required: bool = True
    consent_column: str | None = None
    unknown_consent: Literal["refuse", "allow"] = "refuse"


class Cap(Table):
    """At most so many events within so many days, or within a calendar day, week or month."""

    name: Identifier
    at_most: int = Field(ge=1, le=1_000_000)
    days: Days | None = None
    period: Period | None = None
    per: Scope = "customer"
    counts: Kind = "contact"
    channels: Names = ()


class CoolOff(Table):
    """A pause after something happened."""

    name: Identifier
    after: Kind
    days: Days
    per: Scope = "customer"
    channels: Names = ()


class Exclusion(Table):
    """While one offer of an exclusivity group is fresh, the others of the group wait."""

    name: Identifier
    days: Days
    after: Literal["contact", "acceptance"] = "contact"
    channels: Names = ()


class Quiet(Table):
    """Hours in which channels keep silent."""

    name: Identifier
    starts_at: time
    ends_at: time
    weekdays: Annotated[tuple[Weekday, ...], Field(strict=False, min_length=1)] = WEEKDAYS
    channels: Names = ()


class ContactPolicy(Table):
    """All limits on contacts, and whether those of the warehouse count beside the decision log."""

    count_history: bool = False
    caps: tuple[Cap, ...] = Field(default=(), strict=False)
    cool_offs: tuple[CoolOff, ...] = Field(default=(), strict=False)
    exclusions: tuple[Exclusion, ...] = Field(default=(), strict=False)
    quiet_hours: tuple[Quiet, ...] = Field(default=(), strict=False)


class Arbitration(Table):
    """What offers compete on, the scores behind retention and ceiling, and how slots are shared."""

    objective: str = "expected_profit"
    churn_probability: str = "churn_probability"
    clv: str = "clv"
    max_cost_share_of_clv: float | None = Field(default=None, gt=0, le=1)
    at_most_per_category: int | None = Field(default=None, ge=1)


class Target(Table):
    """Which offers something is for: one offer, one category, one goal, or all."""

    offer: Identifier | None = None
    category: Identifier | None = None
    goal: Goal | None = None

    def targets(self) -> list[tuple[str, str]]:
        """Pairs of field and value that are given."""
        pairs = (("offer", self.offer), ("category", self.category), ("goal", self.goal))
        return [(field, value) for field, value in pairs if value is not None]


class Lever(Target):
    """A marketer's multiplier on some offers' priority, for a limited time, with its reason."""

    multiplier: Multiplier
    until: datetime
    reason: str = Field(min_length=1)


class ContextWeight(Target):
    """A multiplier on priority where a condition holds."""

    name: Identifier
    when: str
    multiplier: Multiplier


class Fallback(Table):
    """What customers get of whom we know nothing, best first."""

    offers: Names = ()


class Holdout(Table):
    """Who never gets an offer, or never a certain one, so that the effect of offers can be known.

    ``share`` is of all customers; ``offers`` has a share for each campaign, by offer id.
    """

    salt: Salt | None = None
    share: Share = 0.0
    offers: dict[Identifier, Share] = Field(default_factory=dict)

    def uses_chance(self) -> bool:
        """Whether anybody is held out of anything, which needs a salt."""
        return self.share > 0 or any(self.offers.values())


class Arms(Table):
    """Shares of customers for whom one part of the policy is taken away, to see what it is worth.

    At most a quarter each: every arm owns a quarter of the line that customers are spread on, so
    that changing one share moves nobody between the others.
    """

    QUARTERS: ClassVar[tuple[str, ...]] = (
        "no_contact", "random_eligible", "propensity_only", "no_levers",
    )  # fmt: skip

    salt: Salt | None = None
    no_contact: ArmShare = 0.0
    random_eligible: ArmShare = 0.0
    propensity_only: ArmShare = 0.0
    no_levers: ArmShare = 0.0

    def shares(self) -> dict[str, float]:
        """Arms that are in use, with their shares."""
        return {name: getattr(self, name) for name in self.QUARTERS if getattr(self, name) > 0}

    def uses_chance(self) -> bool:
        """Whether any arm is in use, which needs a salt."""
        return bool(self.shares())


class LossLimits(TypedDict):
    """What one contact can lose and gain at most, in the shop's currency."""

    largest_loss: float
    largest_gain: float


class Exploration(Table):
    """How much is left to chance, in order to learn what other offers would have done.

    ``temperature`` is in the unit of the objective; ``prior_strength`` is the number of contacts
    that a propensity is trusted for; ``max_loss_share`` is the share of a decision's expected
    profit that exploring may cost; ``loss_budget`` is what exploring one offer may lose in all, in
    the shop's currency, with contacts that can lose and gain at most ``largest_loss`` and
    ``largest_gain`` each; ``new_offer_reach`` is the share of customers that an offer
    starts with, until it has had ``full_reach_responses`` or ``full_reach_contacts``.
    """

    salt: Salt | None = None
    policy: Literal["greedy", "epsilon", "softmax", "thompson"] = "greedy"
    epsilon: Share = 0.05
    temperature: float = Field(default=1.0, ge=1e-6, le=1e9)
    prior_strength: float = Field(default=100.0, gt=0, le=1e9)
    max_loss_share: Share | None = None
    loss_budget: Money | None = None
    largest_loss: Money | None = None
    largest_gain: Money | None = None
    new_offer_reach: Annotated[float, Field(gt=0, le=1)] | None = None
    full_reach_responses: int = Field(default=30, ge=1, le=1_000_000_000)
    full_reach_contacts: int = Field(default=1_000, ge=1, le=1_000_000_000)

    def uses_chance(self) -> bool:
        """Whether anything is left to chance, which needs a salt."""
        return self.policy != "greedy" or self.new_offer_reach is not None

    def learns(self) -> bool:
        """Whether decisions depend on how often each offer was made and answered so far."""
        return self.policy == "thompson" or self.new_offer_reach is not None

    def has_budget(self) -> bool:
        """Whether exploring an offer stops once it has lost too much."""
        return self.policy != "greedy" and self.loss_budget is not None

    def loss_limits(self) -> LossLimits:
        """What one explored contact can lose and gain at most."""
        return LossLimits(
            largest_loss=self.largest_loss or 0.0, largest_gain=self.largest_gain or 0.0
        )


Volumes = dict[Identifier, Annotated[int, Field(ge=0)]]


class Budgets(Table):
    """What one batch may use up over all its customers, beside each offer's own limits.

    ``total`` is expected cost, in the shop's currency; ``channels``, ``categories`` and ``groups``
    (exclusivity groups) are contacts by name. ``online`` charges single decisions the prices that
    the last batch found, for ``prices_valid_days``.
    """

    total: float | None = Field(default=None, ge=0)
    channels: Volumes = Field(default_factory=dict)
    categories: Volumes = Field(default_factory=dict)
    groups: Volumes = Field(default_factory=dict)
    online: bool = True
    prices_valid_days: Days = 7


class Gates(Table):
    """What a policy must show before it goes live.

    ``max_loss_per_1000_decisions`` is in the shop's currency: on the log of the policy before it,
    the interval of what it earns more may nowhere be under minus so much; without it nothing has to
    be shown.
    """

    max_loss_per_1000_decisions: float | None = Field(default=None, ge=0, le=1e12)

    def must_pass(self) -> bool:
        """Whether a policy has to pass an evaluation on the log before it goes live."""
        return self.max_loss_per_1000_decisions is not None


class PolicyTables(Table):
    """The whole file."""

    timezone: str = "UTC"
    clock: Clock = Clock()
    profiles: ProfilePolicy = ProfilePolicy()
    context: dict[str, ColumnType] = Field(default_factory=dict)
    channels: dict[str, Channel] = Field(min_length=1, description="at least one [channels.NAME]")
    eligibility: dict[str, str] = Field(default_factory=dict)
    applicability: dict[str, str] = Field(default_factory=dict)
    suitability: dict[str, str] = Field(default_factory=dict)
    contact: ContactPolicy = ContactPolicy()
    arbitration: Arbitration = Arbitration()
    levers: tuple[Lever, ...] = Field(default=(), strict=False)
    context_weights: tuple[ContextWeight, ...] = Field(default=(), strict=False)
    fallback: Fallback = Fallback()
    holdout: Holdout = Holdout()
    arms: Arms = Arms()
    exploration: Exploration = Exploration()
    budgets: Budgets = Budgets()
    sensitive: Sensitive = Sensitive()
    gates: Gates = Gates()

    def limits(self) -> tuple[Limit, ...]:
        """Caps, cool-offs and exclusions as the limits that the engine counts, in file order."""
        zone = time_zone(self.timezone, "policy")
        caps = (
            Limit(
                c.name, "cap", c.counts, c.days, c.at_most, c.per, frozenset(c.channels),
                c.period, zone,
            )
            for c in self.contact.caps
        )  # fmt: skip
        cool_offs = (
            Limit(c.name, "cool_off", c.after, c.days, 0, c.per, frozenset(c.channels))
            for c in self.contact.cool_offs
        )
        exclusions = (
            Limit(
                e.name, "exclusion", e.after, e.days, 0, "exclusivity_group", frozenset(e.channels)
            )
            for e in self.contact.exclusions
        )
        return (*caps, *cool_offs, *exclusions)

    def history_days(self) -> float:
        """So many days back the longest limit looks; 0 where there is none."""
        return max((limit.at_most_days for limit in self.limits()), default=0.0)

    def quiet_hours(self) -> tuple[QuietHours, ...]:
        """Quiet hours by the policy's clock, in file order."""
        zone = time_zone(self.timezone, "policy")
        return tuple(
            QuietHours(
                q.name,
                q.starts_at,
                q.ends_at,
                frozenset(WEEKDAYS.index(day) for day in q.weekdays),
                frozenset(q.channels),
                zone,
            )
            for q in self.contact.quiet_hours
        )


@dataclass(frozen=True)
class Policy:
    """The checked policy file."""

    where: str
    tables: PolicyTables
    content_hash: str

    @classmethod
    def load(cls, path: Path) -> Policy:
        """Read and check ``policy.toml``.

        Raises
        ------
        ConfigError: the file is missing or broken, or anything in it is wrong (all faults at once).
        """
        return cls.from_dict(read_toml(path), place(path))

    @classmethod
    def from_dict(cls, raw: Mapping[str, Any], where: str = "policy") -> Policy:
        """Check a policy given as TOML would hold it; errors as in `load`."""
        faults: list[Fault] = []
        prepared = _prepare(raw, where, faults)
        wrong_sections: set[str] = set()

        def place_of(section: str) -> str:
            wrong_sections.add(section)
            return where

        tables, wrong = check_table(PolicyTables, prepared, place_of)
        faults += [*wrong, *_form_faults(prepared, lambda step: f"{where}: [{step}]")]
        # What is wrong in one section does not hide what makes no sense in another.
        sound = {k: v for k, v in prepared.items() if k not in wrong_sections}
        rest = tables or check_table(PolicyTables, sound, place_of)[0]
        if rest is not None:
            faults += _sense_faults(rest, where)
        if tables is None or faults:
            raise ConfigError(faults=list(dict.fromkeys(faults)))
        return cls(where, tables, content_hash(tables.model_dump(mode="json")))

    def to_toml(self) -> str:
        """Write the policy as a file of the same content hash; comments and layout are lost."""
        return toml_of(self.tables.model_dump(exclude_unset=True, exclude_none=True))

    @property
    def decide_as_of(self) -> datetime | None:
        """The moment that decisions are made for (UTC); None means now."""
        return self.tables.clock.decide_as_of

    @property
    def context_columns(self) -> dict[str, Column]:
        """Columns that the caller of a decision may give, and those that every decision has."""
        declared = {name: Column(t, "context") for name, t in self.tables.context.items()}
        return {**declared, **SITUATION_COLUMNS}


def _table(value: Any) -> dict[str, Any]:
    return value if isinstance(value, dict) else {}


def _list(value: Any) -> list[Any]:
    return value if isinstance(value, list) else []


def _prepare(raw: Mapping[str, Any], where: str, faults: list[Fault]) -> dict[str, Any]:
    """Give dates their instants and single rules their names, before types are checked."""
    prepared = copy.deepcopy(dict(raw))
    try:
        zone = time_zone(prepared.get("timezone", "UTC"), where)
    except ConfigError as wrong:
        faults += wrong.faults
        prepared["timezone"] = "UTC"
        zone = time_zone("UTC", where)
    clock = _table(prepared.get("clock"))
    if "decide_as_of" in clock:
        clock["decide_as_of"] = instant(clock["decide_as_of"], zone)
    for lever in _list(prepared.get("levers")):
        if "until" in _table(lever):
            lever["until"] = instant(lever["until"], zone, end=True)
    for step in STEPS:
        if step in prepared:
            prepared[step] = named_rules(prepared[step], step)
    return prepared


def _form_faults(raw: Mapping[str, Any], where: Callable[[str], str]) -> list[Fault]:
    faults = rule_faults(raw, where)
    for name, text in _table(raw.get("arbitration")).items():
        faults += text_faults(text, where("arbitration"), name)
    for number, weight in enumerate(_list(raw.get("context_weights")), 1):
        spot = f"{where('context_weights')} number {number}"
        faults += text_faults(_table(weight).get("when"), spot, "when")
    return faults


def _sense_faults(tables: PolicyTables, where: str) -> list[Fault]:
    """What no single field shows: names used once, channels that exist, targets that are clear."""
    faults = []
    names = ["consent"]
    for cap in tables.contact.caps:
        given = [f for f in ("days", "period") if getattr(cap, f) is not None]
        if len(given) != 1:
            spot = f'{where}: [contact] "{cap.name}"'
            got = " and ".join(given) or "none"
            faults.append(
                Fault(spot, "what the cap counts is not clear", "one of days, period", got)
            )
    every: tuple[QuietHours | Limit, ...] = (*tables.quiet_hours(), *tables.limits())
    for limit in every:
        spot = f'{where}: [contact] "{limit.name}"'
        if limit.name in names:
            got = "the engine's own" if limit.name == "consent" else "used before"
            faults.append(Fault(spot, "the name is taken", "a name of its own", got))
        names.append(limit.name)
        for channel in sorted(limit.channels - tables.channels.keys()):
            hint = did_you_mean(channel, tables.channels)
            faults.append(
                Fault(spot, f'names channel "{channel}"', "one under [channels]", "", hint)
            )
        if isinstance(limit, Limit) and limit.kind == "purchase" and limit.scope != "customer":
            expected = 'per = "customer"'
            faults.append(
                Fault(spot, "a purchase belongs to no offer or channel", expected, limit.scope)
            )
    for kind, targets in (("levers", tables.levers), ("context_weights", tables.context_weights)):
        for number, target in enumerate(targets, 1):
            given = [field for field, _ in target.targets()]
            if len(given) > 1 or (kind == "levers" and not given):
                expected = "exactly one of offer, category, goal"
                spot = f"{where}: [{kind}] number {number}"
                got = " and ".join(given) or "none"
                faults.append(Fault(spot, "the target is not clear", expected, got))
    for channel in tables.budgets.channels.keys() - tables.channels.keys():
        spot, hint = f"{where}: [budgets.channels]", did_you_mean(channel, tables.channels)
        faults.append(Fault(spot, f'names channel "{channel}"', "one under [channels]", "", hint))
    for name in tables.context.keys() & SITUATION_COLUMNS.keys():
        what = f'"{name}" is always there'
        faults.append(Fault(f"{where}: [context]", what, "left out"))
    return [*faults, *tables.sensitive.faults(where), *_salt_faults(tables, where)]


def _salt_faults(tables: PolicyTables, where: str) -> list[Fault]:
    """Sections that leave something to chance without a salt of their own.

    There is no default on purpose. Any that we could make up (the project's name, its folder) may
    change and reshuffle everybody, or is known to others and the same in every copy of the project.
    """
    action = (
        "It decides who is held out and what is drawn. A default could change by itself, which"
        " would move customers between groups, or be the same in two projects, which would hold"
        " out the same people twice. Make one with `python -c 'import secrets;"
        " print(secrets.token_hex(16))'`, and never change it."
    )
    return [
        Fault(
            f"{where}: [{name}]",
            'field "salt" is missing',
            "a text of your own, 16 characters or longer",
            action=action,
        )
        for name in ("holdout", "arms", "exploration")
        if getattr(tables, name).uses_chance() and getattr(tables, name).salt is None
    ]


def load_serving(
    directory: Path, policy_file: Path | None = None, table: OfferTable | None = None
) -> tuple[Catalogue, Policy]:
    """Load ``offers.toml`` and ``policy.toml``; the faults of both files are reported together.

    Parameters
    ----------
    policy_file : read in place of the directory's own ``policy.toml``.
    table : the offers of the data's table, which ``[source]`` of ``offers.toml`` asks for.

    Raises
    ------
    ConfigError: anything in either file is wrong.
    """
    faults: list[Fault] = []
    loaded: list[Any] = []
    policy_path = policy_file or directory / "policy.toml"
    for load in (
        lambda: Catalogue.load(directory / "offers.toml", table),
        lambda: Policy.load(policy_path),
    ):
        try:
            loaded.append(load())
        except ConfigError as wrong:
            faults += wrong.faults
    if faults:
        raise ConfigError(faults=faults)
    catalogue, policy = loaded
    return catalogue, policy
