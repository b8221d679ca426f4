"""Tie catalogue, policy and the data's columns together; whatever can be wrong, is wrong here.

After binding, a decision only computes; no name has to be looked up or checked again.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any, get_args

import numpy as np
import numpy.typing as npt

from nextbest.decide.bound import VALUE_COLUMNS, BoundPolicy, Ceiling, Fates, Retention
from nextbest.decide.contact import Scope
from nextbest.decide.explore import smallest_budget
from nextbest.decide.offers import BoundCatalogue, Catalogue, Goal, positions
from nextbest.decide.policy import ContextWeight, Policy, Target
from nextbest.decide.rules import (
    STEPS,
    Column,
    Formula,
    NamedRule,
    Positions,
    Rule,
    compile_formula,
    compile_rule,
    rule_title,
)
from nextbest.errors import ConfigError, Fault, RuleError, did_you_mean

__all__ = ["BoundPolicy", "bind"]


def bind(
    catalogue: Catalogue, policy: Policy, columns: Mapping[str, Column]
) -> tuple[BoundCatalogue, BoundPolicy]:
    """Check catalogue and policy against each other and the data's columns, and compile them.

    Parameters
    ----------
    columns: the data's columns by name, as `Audience.known_columns` gives them.

    Raises
    ------
    ConfigError: unknown columns, wrong types, names of offers or channels that do not exist (all
        faults of both files at once).
    """
    faults = [
        Fault(f"{policy.where}: [context]", f'"{name}" is also a column', "a name of its own")
        for name in columns.keys() & policy.context_columns.keys()
    ]
    known = policy.tables.sensitive.keep_back({**columns, **policy.context_columns})
    bound = None
    try:
        bound = catalogue.bind(known)
    except ConfigError as wrong:
        faults += wrong.faults
    binding = _Binding(catalogue, policy, {**known, **catalogue.own_columns()})
    parts = binding.parts()
    faults += binding.faults
    if faults or bound is None:
        raise ConfigError(faults=list(dict.fromkeys(faults)))
    limits = [limit.name for limit in (*parts["quiet_hours"], *parts["limits"])]
    fates = Fates.of([*parts["rules"], *bound.rules], limits)
    return bound, BoundPolicy(policy=policy, catalogue=bound, fates=fates, **parts)


def _groups(values: Sequence[str | None]) -> npt.NDArray[np.int64]:
    """Number the groups; offers in no group get -1."""
    codes = {name: i for i, name in enumerate(dict.fromkeys(v for v in values if v is not None))}
    return np.array([-1 if v is None else codes[v] for v in values], dtype=np.int64)


class _Binding:
    """Resolves one policy, collecting faults instead of stopping at the first."""

    def __init__(self, catalogue: Catalogue, policy: Policy, columns: Mapping[str, Column]) -> None:
        self.catalogue = catalogue
        self.policy = policy
        self.columns = columns
        self.tables = policy.tables
        self.faults: list[Fault] = []

    def parts(self) -> dict[str, Any]:
        offers = self.catalogue.offers
        self._offer_channels()
        self._exploration()
        self._budgets()
        groups: dict[Scope, npt.NDArray[np.int64]] = {
            "category": _groups([offer.category for offer in offers]),
            "exclusivity_group": _groups([offer.exclusivity_group for offer in offers]),
        }
        return {
            "rules": self._rules(),
            "limits": self.tables.limits(),
            "quiet_hours": self.tables.quiet_hours(),
            "groups": groups,
            "objective": self._formula("objective", {**self.columns, **VALUE_COLUMNS}),
            "retention": self._retention(),
            "ceiling": self._ceiling(),
            "levers": tuple(
                (lever, self._target(lever, f"[levers] number {i}"))
                for i, lever in enumerate(self.tables.levers, 1)
            ),
            "context_weights": self._context_weights(),
            "consent_columns": {name: self._consent_column(name) for name in self.tables.channels},
            "fallback": self._fallback(),
            "by_id": np.argsort(np.array(self.catalogue.offer_ids, dtype=object), kind="stable"),
        }

    def _fault(self, section: str, problem: str, expected: str, hint: str = "") -> None:
        self.faults.append(Fault(f"{self.policy.where}: {section}", problem, expected, action=hint))

    def _offer_channels(self) -> None:
        channels = self.tables.channels
        for offer in self.catalogue.offers:
            for name in offer.channels:
                if name not in channels:
                    where = self.catalogue.place(offer, "channels")
                    hint = did_you_mean(name, channels)
                    expected = f"one under [channels] in {self.policy.where}"
                    self.faults.append(Fault(where, f'names channel "{name}"', expected, "", hint))

    def _exploration(self) -> None:
        ids = self.catalogue.offer_ids
        for name in self.tables.holdout.offers:
            if name not in ids:
                expected = f"the id of an offer in {self.catalogue.where}"
                hint = did_you_mean(name, ids)
                self._fault("[holdout.offers]", f'names offer "{name}"', expected, hint)
        objective = self.tables.arbitration.objective
        if self.tables.exploration.policy == "thompson" and objective.strip() != "expected_profit":
            self._fault(
                "[exploration]",
                f'policy = "thompson" does not know how uncertain "{objective}" is',
                'objective = "expected_profit", or another policy',
            )

        if self.tables.exploration.loss_budget is not None:
            self._loss_budget(self.tables.exploration.loss_budget)

    def _loss_budget(self, budget: float) -> None:
        """A budget needs limits for one contact, room to begin, and contacts that end."""
        section, rules = "[exploration]", self.tables.exploration
        said = {"largest_loss": "lose", "largest_gain": "gain"}
        missing = [name for name in said if getattr(rules, name) is None]
        for name in missing:
            expected = f"the most that one explored contact may {said[name]}, in your currency"
            hint = "A loss_budget needs it, and offers are explored only where it holds."
            self._fault(section, f'field "{name}" is missing', expected, hint)
        least = 0.0 if missing else smallest_budget(**rules.loss_limits())
        if budget < least:
            self._fault(
                section,
                f"loss_budget {budget:g} leaves no room to begin exploring",
                f"at least {math.ceil(100 * least) / 100:.2f}, which is 6.1 × (largest_loss +"
                " largest_gain) + largest_loss",
                "After so little, luck cannot be told from loss. Raise it, or lower largest_loss"
                " or largest_gain.",
            )
        for offer in self.catalogue.offers:
            if offer.response_window_days is None:
                where = self.catalogue.place(offer, "response_window_days")
                hint = "Only then does a contact that nobody answers count as a loss."
                what = 'field "response_window_days" is missing'
                expected = f"given, as {self.policy.where} has a loss_budget"
                self.faults.append(Fault(where, what, expected, "none", hint))

    def _budgets(self) -> None:
        budgets = self.tables.budgets
        for section, field, volumes in (
            ("categories", "category", budgets.categories),
            ("groups", "exclusivity_group", budgets.groups),
        ):
            known = {str(getattr(offer, field)) for offer in self.catalogue.offers}
            for name in sorted(volumes.keys() - known):
                expected = f"the {field} of an offer in {self.catalogue.where}"
                hint = did_you_mean(name, sorted(known - {"None"}))
                self._fault(f"[budgets.{section}]", f'names {field} "{name}"', expected, hint)

    def _rules(self) -> tuple[NamedRule, ...]:
        rules = []
        for step in STEPS:
            for name, text in getattr(self.tables, step).items():
                where = f"{self.policy.where}: [{step}]"
                rule = self._rule(text, where, rule_title(step, name))
                if rule is not None:
                    rules.append(NamedRule(step, name, rule, slice(None)))
        return tuple(rules)

    def _rule(self, text: str, where: str, name: str) -> Rule | None:
        try:
            return compile_rule(text, self.columns, where=where, name=name)
        except RuleError as wrong:
            self.faults += wrong.faults
            return None

    def _formula(self, name: str, columns: Mapping[str, Column]) -> Formula | None:
        text = getattr(self.tables.arbitration, name)
        try:
            where = f"{self.policy.where}: [arbitration]"
            return compile_formula(text, columns, where=where, name=name)
        except RuleError as wrong:
            self.faults += wrong.faults
            return None

    def _retention(self) -> Retention | None:
        rates = {
            i: offer.save_rate
            for i, offer in enumerate(self.catalogue.offers)
            if offer.goal == "retain" and offer.save_rate is not None
        }
        if not rates:
            return None
        churn = self._formula("churn_probability", self.columns)
        clv = self._formula("clv", self.columns)
        if churn is None or clv is None:
            return None
        save_rate = np.array(list(rates.values()), dtype=np.float64)
        return Retention(np.array(list(rates), dtype=np.intp), save_rate, churn, clv)

    def _ceiling(self) -> Ceiling | None:
        """Policy and offer may both set a ceiling; the lower one holds."""
        general = self.tables.arbitration.max_cost_share_of_clv
        shares = {}
        for i, offer in enumerate(self.catalogue.offers):
            stated = [s for s in (general, offer.max_cost_share_of_clv) if s is not None]
            if stated:
                shares[i] = min(stated)
        clv = self._formula("clv", self.columns) if shares else None
        if clv is None:
            return None
        share = np.array(list(shares.values()), dtype=np.float64)
        return Ceiling(np.array(list(shares), dtype=np.intp), share, clv)

    def _target(self, target: Target, section: str) -> Positions:
        given = target.targets()
        offers = self.catalogue.offers
        if not given:
            return slice(None)
        ((field, value),) = given
        attribute = "id" if field == "offer" else field
        members = [i for i, offer in enumerate(offers) if getattr(offer, attribute) == value]
        if not members:
            known = [str(getattr(offer, attribute)) for offer in offers]
            known += get_args(Goal) if field == "goal" else ()
            expected = f"the {attribute} of an offer in {self.catalogue.where}"
            self._fault(section, f'names {field} "{value}"', expected, did_you_mean(value, known))
        return positions(members, len(offers))

    def _context_weights(self) -> tuple[tuple[ContextWeight, Rule, Positions], ...]:
        weights = []
        for number, weight in enumerate(self.tables.context_weights, 1):
            section = f"[context_weights] number {number}"
            target = self._target(weight, section)
            rule = self._rule(weight.when, f"{self.policy.where}: {section}", "when")
            if rule is not None:
                weights.append((weight, rule, target))
        return tuple(weights)

    def _consent_column(self, channel: str) -> str | None:
        """The column that holds consent; None where none is needed, or the data have none."""
        rule = self.tables.channels[channel]
        if not rule.consent_required:
            return None
        name = rule.consent_column or f"consent_{channel}"
        column = self.columns.get(name)
        if column is None and rule.consent_column is None:
            return None
        fits = column is not None and column.source == "customer"
        if column is None or not fits or column.type not in ("boolean", "number"):
            usable = [
                other
                for other, its in self.columns.items()
                if its.source == "customer" and its.type in ("boolean", "number")
            ]
            self._fault(
                f"[channels.{channel}]",
                f'names consent column "{name}"',
                "a known boolean column of customers",
                did_you_mean(name, usable),
            )
            return None
        return name

    def _fallback(self) -> npt.NDArray[np.intp]:
        ids = self.catalogue.offer_ids
        members = []
        for name in dict.fromkeys(self.tables.fallback.offers):
            if name in ids:
                members.append(ids.index(name))
            else:
                expected = f"the id of an offer in {self.catalogue.where}"
                self._fault(
                    "[fallback]", f'names offer "{name}"', expected, did_you_mean(name, ids)
                )
        return np.array(members, dtype=np.intp)
