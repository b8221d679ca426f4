"""One customer of a decision, looked at again: every offer's way through the steps, in words."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from functools import cached_property
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

from nextbest.decide import bound as b
from nextbest.decide import contact
from nextbest.decide.arbitrate import weigh
from nextbest.decide.explore import loss_bound
from nextbest.decide.frame import Situation, utc
from nextbest.decide.holdout import NO_LEVERS
from nextbest.decide.offers import SHARES, concerns
from nextbest.decide.rules import STEPS, Lookup, NamedRule
from nextbest.decide.words import WORDS, plain, plain_list, shown

if TYPE_CHECKING:
    from nextbest.decide.engine import Decisions

__all__ = ["Case", "consent_in_words", "failure", "why"]


class Case:
    """One customer of some decisions, with all explanations."""

    def __init__(self, decisions: Decisions, row: int) -> None:
        self.of = decisions
        self.row = row
        self.known = bool(decisions.audience.known[row])
        self._said: dict[Any, str] = {}
        self._listed: dict[str, list[Any]] = {}

    @cached_property
    def _codes(self) -> list[int]:
        codes: list[int] = self.of.fates[self.row].tolist()
        return codes

    @cached_property
    def at(self) -> Situation:
        """Where and when the offers will be shown."""
        return self.of.situation_of(self.row)

    def lookup(self, offers: list[int]) -> Lookup:
        """What rules and formulas read of this customer and some offers."""
        get = self.of.frame.lookup(slice(None))
        own = slice(self.row, self.row + 1)

        def of_these(name: str) -> Any:
            values = get(name)
            if not isinstance(values, np.ndarray):
                return values
            values = values[own] if len(values) > 1 else values
            return values[:, offers] if values.shape[1] > 1 else values

        return of_these

    def fate(self, offer: int) -> tuple[str, str]:
        """What became of an offer: step and reason."""
        return self.of.policy.fates.names[self._codes[offer]]

    def number(self, name: str, offer: int) -> Any:
        """One of the numbers behind the priority, or None where it is unknown."""
        if name not in self._listed:
            self._listed[name] = plain_list(self._numbers(name))
        return self._listed[name][offer]

    def _numbers(self, name: str) -> npt.NDArray[np.float64]:
        """(m,) one of the numbers behind the priority."""
        values: npt.NDArray[np.float64] = getattr(self.of.values, name)
        own = values[self.row if len(values) > 1 else 0]
        return own if len(own) > 1 else np.broadcast_to(own, self.of.fates.shape[1:])

    def candidate(self, offer: int) -> dict[str, Any]:
        """Whether the offer is live on this channel."""
        step, reason = self.fate(offer)
        if step == "candidate":
            return _lost((step, reason))
        return {"step": "candidate", "passed": True, "reason": "live on this channel"}

    def rules(self, step: str, offer: int) -> dict[str, Any]:
        """How every rule of a step came out."""
        sources = {"policy": self.of.policy.rules, "offer": self.of.catalogue.rules}
        found = [
            self._rule(source, named, offer)
            for source, rules in sources.items()
            for named in rules
            if named.step == step and concerns(named.offers, offer)
        ]
        return {"step": step, "passed": all(rule["passed"] for rule in found), "rules": found}

    def _rule(self, source: str, named: NamedRule, offer: int) -> dict[str, Any]:
        get = self.lookup([offer])
        clauses = named.rule.explain(get, lambda name: plain(get(name)))
        return {
            "rule": named.name,
            "of": source,
            "text": named.rule.text,
            "passed": all(clause["outcome"] == "true" for clause in clauses),
            "clauses": clauses,
        }

    def contact_policy(self, offer: int) -> dict[str, Any]:
        """How consent, quiet hours and limits stand for an offer."""
        checks = [*self._checks_of_all, *(self._limit(i, offer) for i in range(len(self._counts)))]
        passed = all(check["passed"] for check in checks)
        return {"step": "contact_policy", "passed": passed, "rules": checks}

    @cached_property
    def _checks_of_all(self) -> list[dict[str, Any]]:
        """Consent and quiet hours, which are the same for all offers, in the order of removal."""
        return list(self._consent_and_hours())

    def _consent_and_hours(self) -> Iterator[dict[str, Any]]:
        channel = self.of.situation.channel
        policy = self.of.policy.policy.tables.channels[channel]
        if policy.consent_required:
            name = self.of.policy.consent_columns[channel]
            own = slice(self.row, self.row + 1)
            column = None if name is None else self.of.audience.columns[name][own]
            allowed = contact.consent(column, policy.unknown_consent == "allow", 1)
            given = consent_in_words(name, column)
            yield {"rule": "consent", "passed": bool(allowed[0]), "reason": given}
        moment = utc(self.of.situation.decided_at)
        for hours in self.of.policy.quiet_hours:
            if hours.applies_to(channel):
                quiet = hours.quiet(moment)
                yield {"rule": hours.name, "passed": not quiet, "reason": hours.reason(moment)}

    @cached_property
    def _counts(self) -> list[tuple[contact.Limit, list[bool], list[int]]]:
        """Each limit, for each offer whether it is reached, and how many events count."""
        return [
            (one.limit, one.reached[self.row].tolist(), one.per_offer[self.row].tolist())
            for one in self.of.counts
        ]

    def _limit(self, number: int, offer: int) -> dict[str, Any]:
        """How one limit stands for an offer."""
        limit, reached, events = self._counts[number]
        key = ("limit", number, events[offer])
        if key not in self._said:
            channel = self.of.situation.channel
            self._said[key] = contact.reason(limit, events[offer], channel)
        return {"rule": limit.name, "passed": not reached[offer], "reason": self._said[key]}

    def numbers(self, offer: int) -> dict[str, Any]:
        """The numbers behind an offer's priority."""
        names = (
            "margin", "incentive_cost", "contact_cost", "retention_value", "expected_profit",
            "objective", "lever", "context_weight", "priority",
        )  # fmt: skip
        propensity = plain(self.of.audience.propensity[self.row, offer])
        numbers = {"propensity": propensity, **{name: self.number(name, offer) for name in names}}
        if self.of.catalogue.catalogue.offers[offer].baseline_rate != 0:
            rate = self.number("baseline_rate", offer)
            cost = numbers["incentive_cost"]
            leak = None if rate is None or cost is None else rate * cost
            numbers |= {"baseline_rate": rate, "subsidy_leak": leak}
        ceiling = self.of.policy.ceiling
        if ceiling is not None and offer in ceiling.offers:
            numbers |= {n: self.number(n, offer) for n in ("expected_cost", "cost_ceiling")}
        if self.of.prices is not None:
            numbers["scarcity_price"] = plain(self.scarcity_prices[offer])
        return numbers

    @cached_property
    def scarcity_prices(self) -> npt.NDArray[np.float64]:
        """(m,) what making each offer takes from other customers; 0 without limits."""
        m = len(self.of.catalogue.offer_ids)
        if self.of.prices is None:
            return np.zeros(m)
        costs = np.broadcast_to(self.of.values.expected_cost, self.of.fates.shape)[self.row]
        charged: npt.NDArray[np.float64] = self.of.prices.charge(costs)
        return charged

    def expressions(self, offer: int) -> dict[str, Any]:
        """The amounts that are expressions, each with its text, its value and what it read."""
        if not self.known:
            return {}
        policy = self.of.policy
        found = {n: amount.formula(offer) for n, amount in self.of.catalogue.amounts.items()}
        if policy.retention is not None and offer in policy.retention.offers:
            found["churn_probability"] = policy.retention.churn_probability
            found["clv"] = policy.retention.clv
        if policy.ceiling is not None and offer in policy.ceiling.offers:
            found["clv"] = policy.ceiling.clv
        get = self.lookup([offer])
        said = {
            name: {
                "text": formula.text,
                "value": plain(formula.evaluate(get)),
                "inputs": {column: plain(get(column)) for column in sorted(formula.columns)},
            }
            for name, formula in found.items()
            if formula is not None
        }
        said["objective"] = {
            "text": policy.objective.text,
            "value": self.number("objective", offer),
            "inputs": {
                name: self.number(name, offer) if name in b.VALUE_COLUMNS else plain(get(name))
                for name in sorted(policy.objective.columns)
            },
        }
        return said

    def value(self, offer: int) -> dict[str, Any]:
        """Whether every amount is known, and the cost within its ceiling."""
        fate = self.fate(offer)
        if fate == b.UNKNOWN_VALUE:
            reason = self._unknown_value(offer)
        elif fate == b.OVER_CEILING:
            cost, ceiling = self.number("expected_cost", offer), self.number("cost_ceiling", offer)
            reason = "clv is unknown, and contacting may cost no more than a share of it"
            if ceiling is not None:
                reason = f"expected cost {cost:.2f} is over {ceiling:.2f}, "
                reason += "the share of clv that it may cost"
        else:
            reason = "every amount is known"
        passed = fate not in (b.UNKNOWN_VALUE, b.OVER_CEILING)
        return {"step": "value", "passed": passed, "reason": reason}

    def _unknown_value(self, offer: int) -> str:
        numbers = self.numbers(offer)
        for name in SHARES:
            formula = self.of.catalogue.amounts[name].formula(offer)
            share = None if formula is None else plain(formula.evaluate(self.lookup([offer])))
            if share is not None and not 0 <= share <= 1:
                return f"{name} is {shown(share)}, which is not between 0 and 1"
        costs = ("incentive_cost", "contact_cost")
        # What is computed is unknown because something before it is: name the cause alone.
        computed = ("expected_profit", "objective")
        later = (*computed, "priority", "subsidy_leak", "expected_cost", "cost_ceiling")
        odd = [name for name in numbers if numbers[name] is None and name not in later]
        odd += [name for name in costs if (numbers[name] or 0) < 0]
        return "; ".join(
            f"{name} is unknown" if numbers[name] is None else f"{name} is negative"
            for name in odd or [name for name in computed if numbers[name] is None]
        )

    def holdout(self, offer: int) -> dict[str, Any]:
        """Whether the customer is held out of the offer."""
        if self.fate(offer) == b.HELD_OUT_OF_OFFER:
            return _lost(b.HELD_OUT_OF_OFFER)
        return {"step": "holdout", "passed": True, "reason": "not held out of this offer"}

    def reach(self, offer: int) -> dict[str, Any]:
        """Whether a new offer reaches the customer already."""
        if self.fate(offer) == b.NOT_REACHED:
            return _lost(b.NOT_REACHED)
        return {"step": "reach", "passed": True, "reason": "within its reach"}

    def limits(self, offer: int) -> dict[str, Any]:
        """Whether there is enough of the offer for all."""
        fate = self.fate(offer)
        if fate == b.USED_UP or (fate == b.SCARCE and not self.of.pays[self.row]):
            return _lost(fate)
        if fate == b.SCARCE:
            price = f"scarcity price {self.scarcity_prices[offer]:.2f} of priority"
            reason = f"{price} {self.of.worth[self.row, offer]:.2f}: {WORDS[fate]}"
            return {"step": "limits", "passed": False, "reason": reason}
        return {"step": "limits", "passed": True, "reason": "there is enough of it"}

    def arbitration(self, offer: int) -> dict[str, Any]:
        """Whether the offer won."""
        passed = offer in self.picked
        return {"step": "arbitration", "passed": passed, "reason": self.outcome(offer)}

    def outcome(self, offer: int) -> str:
        """Why an offer that reached arbitration won or lost."""
        if offer in self.picked:
            return f"rank {self.picked.index(offer) + 1}"
        return self.lost_to_others(self.fate(offer), [offer])[0]

    def lost_to_others(self, fate: tuple[str, str], offers: Sequence[int]) -> list[str]:
        """Why some offers of one fate lost in arbitration."""
        if fate in WORDS:
            return [WORDS[fate]] * len(offers)
        if not self.known:
            return ["the offers before it in the fallback list fill the slots"] * len(offers)
        if fate == b.NOT_DRAWN:
            drawn = [self.of.catalogue.offer_ids[j] for j in self.picked]
            what = " and ".join(f"offer {name}" for name in drawn) or "no offer"
            said = [f"{what} was drawn"] * len(offers)
        elif fate == b.NOTHING_TO_GAIN:
            own = self._competing("priority")
            said = [f"priority {own[j]:.2f}: making no offer is better" for j in offers]
        else:
            name, last = "propensity" if fate == b.LESS_LIKELY else "priority", self.picked[-1]
            own = self._competing(name)
            ahead = f"{own[last]:.2f} of offer {self.of.catalogue.offer_ids[last]}"
            said = [f"{name} {own[j]:.2f} against {ahead}" for j in offers]
        if not self.of.stopped:
            return said
        return [one + self._stopped(j) for one, j in zip(said, offers, strict=True)]

    def _stopped(self, offer: int) -> str:
        """Why chance no longer makes an offer that is not the best one."""
        losses = self.of.stopped.get(self.of.catalogue.offer_ids[offer])
        if losses is None or offer == self.of.best[self.row, 0]:
            return ""
        rules = self.of.policy.policy.tables.exploration
        said = f"; exploration of it has stopped: it lost {losses.total:.2f}"
        if rules.loss_budget is None:
            return said
        bound = loss_bound(losses.total, losses.total_of_squares, **rules.loss_limits())
        return f"{said} and may have lost {float(bound):.2f} of {rules.loss_budget:.2f}"

    @cached_property
    def picked(self) -> list[int]:
        """Positions of the offers that arbitration picked, also if they are then held back."""
        return [j for j in self.of.would_choose[self.row].tolist() if j >= 0]

    def _competing(self, name: str) -> list[float]:
        """What each offer competed on in the customer's arm."""
        key = f"{name} in the arm"
        if key not in self._listed:
            self._listed[key] = self._worth(name).tolist()
        return self._listed[key]

    def _worth(self, name: str) -> npt.NDArray[np.float64]:
        """(m,) what each offer competed on in the customer's arm."""
        if name == "propensity":
            own: npt.NDArray[np.float64] = self.of.audience.propensity[self.row]
            return own
        if self.of.arm[self.row] == NO_LEVERS:
            priority = weigh(self._numbers("objective"), self._numbers("context_weight"))
        else:
            priority = self._numbers("priority")
        return priority - self.scarcity_prices if self.of.pays[self.row] else priority

    def steps(self, offer: int) -> list[dict[str, Any]]:
        """The steps that the offer passed, and the one that removed it."""
        steps = [self.candidate(offer)]
        if steps[-1]["passed"] and not self.known:
            listed = self.fate(offer) != b.NOT_FALLBACK
            reason = "in the fallback list" if listed else WORDS[b.NOT_FALLBACK]
            steps.append({"step": "fallback", "passed": listed, "reason": reason})
        if self.known:
            for step in STEPS:
                if steps[-1]["passed"]:
                    steps.append(self.rules(step, offer))
        if steps[-1]["passed"]:
            steps.append(self.contact_policy(offer))
        if steps[-1]["passed"] and self.known:
            steps.append(self.value(offer))
        tables = self.of.policy.policy.tables
        if steps[-1]["passed"] and tables.holdout.offers:
            steps.append(self.holdout(offer))
        if steps[-1]["passed"] and tables.exploration.new_offer_reach is not None:
            steps.append(self.reach(offer))
        if steps[-1]["passed"] and (self.of.prices is not None or self.of.ration is not None):
            steps.append(self.limits(offer))
        if steps[-1]["passed"]:
            steps.append(self.arbitration(offer))
        if steps[-1]["passed"] and self.fate(offer) != b.CHOSEN:
            steps.append(_lost(self.fate(offer)))
        return steps


def _lost(fate: tuple[str, str]) -> dict[str, Any]:
    """The step that removed an offer for a reason that is always the same."""
    return {"step": fate[0], "passed": False, "reason": WORDS[fate]}


def why(step: Mapping[str, Any]) -> str:
    """One line on how a step came out; of several rules the first that failed."""
    if step["step"] == "contact_policy":
        return str(next(rule["reason"] for rule in step["rules"] if not rule["passed"]))
    if step["step"] not in STEPS:
        return str(step["reason"])
    rule = next(rule for rule in step["rules"] if not rule["passed"])
    clause = next(c for c in rule["clauses"] if c["outcome"] != "true")
    return failure(
        step["step"], rule["rule"], clause["clause"], clause["outcome"], clause["values"]
    )


def failure(step: str, rule: str, clause: str, outcome: str, values: Mapping[str, Any]) -> str:
    """How the clause of a rule came out that was not true, and what it saw."""
    seen = ", ".join(f"{name} = {shown(v)}" for name, v in values.items())
    title = f'"{rule}", ' if rule != step else ""
    said = f"{title}{clause} is {outcome}"
    return f"{said} ({seen})" if seen else said


def consent_in_words(name: str | None, value: Any) -> str:
    """What is known of one customer's consent."""
    if name is None:
        return "the data have no consent column"
    return f"{name} is {shown(plain(value))}"
