"""A policy tied to one catalogue and its data: what decisions read, and all that an offer can meet.

What depends on the policy alone is worked out once, when a decision first asks for it.
"""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from functools import cached_property
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt

from nextbest.decide import holdout
from nextbest.decide.contact import Limit, QuietHours, Scope
from nextbest.decide.limits import ChannelLimits
from nextbest.decide.offers import BoundCatalogue, Offer, concerns
from nextbest.decide.policy import ContextWeight, Lever, Policy
from nextbest.decide.rules import STEPS, Column, Formula, NamedRule, Positions, Rule

__all__ = ["VALUE_COLUMNS", "BoundPolicy", "Ceiling", "Fates", "Removing", "Retention"]

# What the value step computes; an objective may name these beside the data's columns.
VALUE_COLUMNS: Mapping[str, Column] = {
    name: Column("number", "pair")
    for name in (
        "margin",
        "incentive_cost",
        "contact_cost",
        "baseline_rate",
        "retention_value",
        "expected_cost",
        "expected_profit",
    )
}

OPEN = ("", "")
CHOSEN = ("chosen", "chosen")
INACTIVE = ("candidate", "switched off")
OTHER_CHANNEL = ("candidate", "not on this channel")
OTHER_PLACEMENT = ("candidate", "not for this placement")
NOT_STARTED = ("candidate", "not started yet")
ENDED = ("candidate", "ended")
NOT_FALLBACK = ("fallback", "not in the fallback list")
NO_CONSENT = ("contact_policy", "consent")
UNKNOWN_VALUE = ("value", "unknown value")
OVER_CEILING = ("value", "investment ceiling")
HELD_OUT_OF_OFFER = ("holdout", "held out of this offer")
NOT_REACHED = ("reach", "not yet in its reach")
NOTHING_TO_GAIN = ("arbitration", "no offer is better")
OUTRANKED = ("arbitration", "lower priority")
LESS_LIKELY = ("arbitration", "lower propensity")
NOT_DRAWN = ("arbitration", "another choice was drawn")
SAME_GROUP = ("arbitration", "another offer of its exclusivity group")
NO_CONTACT_LEFT = ("arbitration", "no contact left in this answer")
CATEGORY_FULL = ("arbitration", "enough offers of its category")
SCARCE = ("limits", "scarcity: worth more to others")
USED_UP = ("limits", "capacity: nothing left of it")
HELD_OUT = ("arm", "holdout")
NO_CONTACT_ARM = ("arm", "no_contact")


@dataclass(frozen=True)
class Fates:
    """All that can become of an offer, as *(step, reason)*, numbered for compact arrays."""

    names: tuple[tuple[str, str], ...]
    codes: Mapping[tuple[str, str], int]

    @classmethod
    def of(cls, rules: Sequence[NamedRule], limits: Sequence[str]) -> Fates:
        """Number what a policy's rules and limits, and the steps themselves, can do to an offer."""
        names = [OPEN, INACTIVE, OTHER_CHANNEL, OTHER_PLACEMENT, NOT_STARTED, ENDED, NOT_FALLBACK]
        names += [(rule.step, rule.name) for step in STEPS for rule in rules if rule.step == step]
        names += [NO_CONSENT, *(("contact_policy", name) for name in limits)]
        names += [UNKNOWN_VALUE, OVER_CEILING, HELD_OUT_OF_OFFER, NOT_REACHED, NOTHING_TO_GAIN]
        names += [
            SCARCE,
            USED_UP,
            OUTRANKED,
            LESS_LIKELY,
            NOT_DRAWN,
            SAME_GROUP,
            NO_CONTACT_LEFT,
            CATEGORY_FULL,
        ]
        names += [HELD_OUT, NO_CONTACT_ARM, CHOSEN]
        unique = tuple(dict.fromkeys(names))
        return cls(unique, {name: code for code, name in enumerate(unique)})

    @cached_property
    def small(self) -> Mapping[tuple[str, str], np.int16]:
        """The codes as arrays of fates hold them."""
        return {fate: np.int16(code) for fate, code in self.codes.items()}

    @cached_property
    def by_arm(self) -> npt.NDArray[np.int16]:
        """What becomes of the offer that was chosen, by position in `holdout.ARMS`."""
        kept_back = {holdout.HELD_OUT: HELD_OUT, holdout.NO_CONTACT: NO_CONTACT_ARM}
        return np.array([self.small[kept_back.get(arm, CHOSEN)] for arm in holdout.ARMS])

    def _are(self, *fates: tuple[str, str]) -> npt.NDArray[np.bool_]:
        return np.array([fate in fates for fate in self.names])

    @cached_property
    def final(self) -> npt.NDArray[np.bool_]:
        """By code: whether the offer passed every step before arbitration."""
        last = ("arbitration", "arm", "chosen")
        return np.array([step in last for step, _ in self.names]) | self._are(SCARCE)

    @cached_property
    def lost(self) -> npt.NDArray[np.bool_]:
        """By code: whether the offer competed, and another was better or was drawn."""
        return self._are(OUTRANKED, LESS_LIKELY, NOT_DRAWN)

    @cached_property
    def limited(self) -> npt.NDArray[np.bool_]:
        """By code: whether there was not enough of the offer for all."""
        return self._are(SCARCE, USED_UP)


@dataclass(frozen=True)
class Retention:
    """What keeping a customer is worth: churn probability × save rate × CLV, for some offers."""

    offers: npt.NDArray[np.intp]
    save_rate: npt.NDArray[np.float64]
    churn_probability: Formula
    clv: Formula


@dataclass(frozen=True)
class Ceiling:
    """The share of a customer's clv that contacting may be expected to cost, for some offers."""

    offers: npt.NDArray[np.intp]
    share: npt.NDArray[np.float64]
    clv: Formula


class Removing(NamedTuple):
    """A rule as explanations read it.

    Parameters
    ----------
    offers: (m,) which offers it is for.
    each: it reads something of the offer, so that it can come out for each in another way.
    """

    named: NamedRule
    offers: npt.NDArray[np.bool_]
    each: bool


@dataclass(frozen=True)
class BoundPolicy:
    """A policy whose rules, targets and names are resolved against one catalogue and its data."""

    policy: Policy
    catalogue: BoundCatalogue
    rules: tuple[NamedRule, ...]
    limits: tuple[Limit, ...]
    quiet_hours: tuple[QuietHours, ...]
    groups: Mapping[Scope, npt.NDArray[np.int64]]
    objective: Formula
    retention: Retention | None
    ceiling: Ceiling | None
    levers: tuple[tuple[Lever, Positions], ...]
    context_weights: tuple[tuple[ContextWeight, Rule, Positions], ...]
    consent_columns: Mapping[str, str | None]
    fallback: npt.NDArray[np.intp]
    by_id: npt.NDArray[np.intp]
    fates: Fates

    @cached_property
    def levers_by_offer(self) -> list[list[Lever]]:
        """The levers of each offer, whatever the date."""
        offers = range(len(self.catalogue.offer_ids))
        return [[one for one, at in self.levers if concerns(at, i)] for i in offers]

    @cached_property
    def weights_by_offer(self) -> list[list[int]]:
        """Numbers of the context weights that each offer may have."""
        numbered = [(i, at) for i, (_, _, at) in enumerate(self.context_weights)]
        offers = range(len(self.catalogue.offer_ids))
        return [[i for i, at in numbered if concerns(at, offer)] for offer in offers]

    @cached_property
    def rules_by_fate(self) -> dict[tuple[str, str], list[Removing]]:
        """The rules of each step and name, in their order."""
        found: dict[tuple[str, str], list[Removing]] = {}
        for _, named, offers in self.rules_in_order:
            sources = {self.columns[name].source for name in named.rule.columns}
            each = not sources.isdisjoint(("pair", "offer"))
            found.setdefault((named.step, named.name), []).append(Removing(named, offers, each))
        return found

    @cached_property
    def notes(self) -> dict[Any, Any]:
        """What answers and records have worked out so far of the policy alone."""
        return {}

    @cached_property
    def columns_read(self) -> frozenset[str]:
        """Names of all columns that the catalogue or the policy reads, on any channel."""
        rules = [named.rule for named in (*self.rules, *self.catalogue.rules)]
        rules += [rule for _, rule, _ in self.context_weights]
        formulas = [self.objective]
        for amount in self.catalogue.amounts.values():
            formulas += [formula for formula, _ in amount.formulas]
        if self.retention is not None:
            formulas += [self.retention.churn_probability, self.retention.clv]
        if self.ceiling is not None:
            formulas.append(self.ceiling.clv)
        consent = [name for name in self.consent_columns.values() if name is not None]
        return frozenset(consent).union(
            *(rule.columns for rule in rules), *(formula.columns for formula in formulas)
        )

    # --- worked out once, when a decision first asks for it ---------------------------------------

    @cached_property
    def columns(self) -> Mapping[str, Column]:
        """All columns that a rule may name."""
        return {**self.catalogue.columns, **self.policy.context_columns}

    @cached_property
    def columns_with_values(self) -> Mapping[str, Column]:
        """All columns that an objective may name."""
        return {**self.columns, **VALUE_COLUMNS}

    @cached_property
    def order(self) -> npt.NDArray[np.intp] | None:
        """``by_id``; None where the offers stand in that order already."""
        return None if np.array_equal(self.by_id, np.arange(len(self.by_id))) else self.by_id

    @cached_property
    def rules_in_order(self) -> tuple[tuple[np.int16, NamedRule, npt.NDArray[np.bool_]], ...]:
        """Every rule with the code of its fate and the (m,) offers that it is for.

        Step by step, the policy's before the offers'.
        """
        every = (*self.rules, *self.catalogue.rules)
        return tuple(
            (self.fates.small[rule.step, rule.name], rule, self._among(rule.offers))
            for step in STEPS
            for rule in every
            if rule.step == step
        )

    @cached_property
    def listed(self) -> npt.NDArray[np.bool_]:
        """(m,) which offers stand in the fallback list."""
        return self._among(self.fallback)

    def _among(self, offers: Positions) -> npt.NDArray[np.bool_]:
        among = np.zeros(len(self.by_id), dtype=bool)
        among[offers] = True
        return among

    @cached_property
    def weighed(self) -> tuple[npt.NDArray[np.bool_], ...]:
        """For each context weight, (1, m) the offers that it is for."""
        return tuple(self._among(offers)[None] for _, _, offers in self.context_weights)

    @cached_property
    def ones(self) -> npt.NDArray[np.float64]:
        """(1, m) the weight of offers where no context weighs; not to be written to."""
        row = np.ones((1, len(self.by_id)))
        row.setflags(write=False)
        return row

    @cached_property
    def held_out_offers(self) -> tuple[tuple[str, int, float], ...]:
        """Offers that some customers are held out of, with their positions and shares."""
        ids, shares = self.catalogue.offer_ids, self.policy.tables.holdout.offers
        return tuple((name, ids.index(name), share) for name, share in shares.items() if share > 0)

    @cached_property
    def _on_channel(self) -> dict[str, ChannelLimits]:
        return {}

    def limits_on(self, channel: str) -> ChannelLimits:
        """The limits that decisions on a channel are subject to."""
        if channel not in self._on_channel:
            n_offers = len(self.by_id)
            self._on_channel[channel] = ChannelLimits(self.limits, self.groups, n_offers, channel)
        return self._on_channel[channel]

    @cached_property
    def _limit_fates(self) -> dict[str, npt.NDArray[np.int16]]:
        return {}

    def limit_fates(self, channel: str) -> npt.NDArray[np.int16]:
        """The codes of what these limits do to offers."""
        if channel not in self._limit_fates:
            codes = [
                self.fates.small["contact_policy", name] for name in self.limits_on(channel).names
            ]
            self._limit_fates[channel] = np.array(codes, dtype=np.int16)
        return self._limit_fates[channel]

    @cached_property
    def _changes(self) -> list[datetime]:
        """The moments at which an offer starts or ends, or a lever ends."""
        offers = self.catalogue.catalogue.offers
        found = {
            moment for offer in offers for moment in (offer.starts_at, offer.ends_at) if moment
        }
        return sorted(found | {lever.until for lever, _ in self.levers})

    @cached_property
    def _placements(self) -> frozenset[str]:
        return frozenset(
            name for offer in self.catalogue.catalogue.offers for name in offer.placements
        )

    @cached_property
    def _rows(self) -> dict[Any, tuple[int, npt.NDArray[Any]]]:
        """Rows for all offers, with the number of the stretch of time that they hold for."""
        return {}

    def candidates(
        self, channel: str, placement: str | None, moment: datetime
    ) -> npt.NDArray[np.int16]:
        """(m,) what becomes of offers that are not live here at an aware moment; 0 for the others.

        The row is kept until the next offer starts or ends.
        """
        stretch = bisect_right(self._changes, moment)
        # Any placement that no offer names is as good as any other.
        key = (channel, placement if not placement or placement in self._placements else True)
        kept = self._rows.get(key)
        if kept is None or kept[0] != stretch:
            offers = self.catalogue.catalogue.offers
            codes = [self.fates.codes[_live(one, channel, placement, moment)] for one in offers]
            kept = self._rows[key] = stretch, np.array(codes, dtype=np.int16)
        return kept[1]

    def lever(self, moment: datetime) -> npt.NDArray[np.float64]:
        """(1, m) the product of each offer's levers at an aware moment; not to be written to."""
        stretch = bisect_right(self._changes, moment)
        kept = self._rows.get("lever")
        if kept is None or kept[0] != stretch:
            row = np.ones((1, len(self.by_id)))
            for one, offers in self.levers:
                if moment < one.until:
                    row[:, offers] *= one.multiplier
            row.setflags(write=False)
            kept = self._rows["lever"] = stretch, row
        return kept[1]


def _live(offer: Offer, channel: str, placement: str | None, moment: datetime) -> tuple[str, str]:
    """Whether an offer is live on a channel, at a placement and a moment, and if not why."""
    if not offer.active:
        return INACTIVE
    if channel not in offer.channels:
        return OTHER_CHANNEL
    if placement and offer.placements and placement not in offer.placements:
        return OTHER_PLACEMENT
    if offer.starts_at is not None and moment < offer.starts_at:
        return NOT_STARTED
    return ENDED if offer.ends_at is not None and moment >= offer.ends_at else OPEN
