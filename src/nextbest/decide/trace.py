"""Say what became of every offer, and why: answer, trace, funnel and the batch table."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Iterator, Mapping
from datetime import datetime
from functools import cached_property
from itertools import compress
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

from nextbest.decide import bound as b
from nextbest.decide import contact
from nextbest.decide.arbitrate import weigh
from nextbest.decide.explore import loss_bound
from nextbest.decide.frame import Frame, Situation, stamp, utc
from nextbest.decide.holdout import NO_LEVERS, POLICY, PROPENSITY_ONLY, RANDOM_ELIGIBLE
from nextbest.decide.offers import SHARES, concerns
from nextbest.decide.rules import STEPS, NamedRule

if TYPE_CHECKING:
    from nextbest.decide.engine import Decisions
    from nextbest.decide.offers import Offer

__all__ = ["answer", "funnel", "selection", "table", "trace", "written_time"]

_WORDS = {
    b.INACTIVE: "it is switched off",
    b.OTHER_CHANNEL: "it is not offered on this channel",
    b.OTHER_PLACEMENT: "it is not offered at this placement",
    b.NOT_STARTED: "it has not started yet",
    b.ENDED: "it has ended",
    b.NOT_FALLBACK: "nothing is known about the customer, and it is not in the fallback list",
    b.SAME_GROUP: "another offer of its exclusivity group is in the answer",
    b.CATEGORY_FULL: "the offers of its category before it fill the slots that a category has",
    b.HELD_OUT_OF_OFFER: "the customer is held out of this offer, to measure its effect",
    b.NOT_REACHED: "it is new, and its reach does not include the customer yet",
    b.HELD_OUT: "the customer is held out: no offer is made, to measure the effect of offers",
    b.NO_CONTACT_ARM: "the customer is in the arm no_contact: no offer is made",
    b.SCARCE: "it is worth more to other customers, and there is not enough for all",
    b.USED_UP: "its limit over all customers is used up",
    b.NO_CONTACT_LEFT: "the offers before it use up the contacts that a cap leaves",
}

# Fates whose reason is the same for every offer of a customer.
_SAME_FOR_ALL = frozenset(_WORDS.keys() - {b.SCARCE}) | {b.NO_CONSENT}


def written_time(moment: datetime) -> str:
    """A moment as answers and traces write it: ISO 8601 in UTC."""
    return utc(moment).isoformat().replace("+00:00", "Z")


def plain(value: Any) -> Any:
    """One value as JSON can hold it: unknown becomes None, times ISO 8601 in UTC."""
    if value is None or isinstance(value, str):
        return value
    item = float(value) if isinstance(value, float) else np.asarray(value).item()
    if isinstance(item, datetime):
        return written_time(item)
    if isinstance(item, float) and not math.isfinite(item):
        return None
    return item


class _Case:
    """One customer of a batch, looked at again with all explanations."""

    def __init__(self, decisions: Decisions, row: int) -> None:
        self.of = decisions
        self.row = row
        self.known = bool(decisions.audience.known[row])
        self._told: dict[tuple[str, str], dict[str, Any]] = {}
        self._why_not: dict[tuple[str, str], str] = {}

    @cached_property
    def at(self) -> Situation:
        return self.of.situation_of(self.row)

    @cached_property
    def frame(self) -> Frame:
        one = self.of.audience.take([self.row])
        return Frame(one, self.of.catalogue, self.of.policy, self.at)

    def fate(self, offer: int) -> tuple[str, str]:
        return self.of.policy.fates.names[self.of.fates[self.row, offer]]

    def number(self, name: str, offer: int) -> Any:
        """One of the numbers behind the priority, or None where it is unknown."""
        return plain(self._numbers(name)[offer])

    def _numbers(self, name: str) -> npt.NDArray[np.float64]:
        """(m,) one of the numbers behind the priority."""
        values: npt.NDArray[np.float64] = getattr(self.of.values, name)
        own = values[self.row if len(values) > 1 else 0]
        return own if len(own) > 1 else np.broadcast_to(own, self.of.fates.shape[1:])

    def candidate(self, offer: int) -> dict[str, Any]:
        step, reason = self.fate(offer)
        if step == "candidate":
            return {"step": step, "passed": False, "reason": _WORDS[step, reason]}
        return {"step": "candidate", "passed": True, "reason": "live on this channel"}

    def rules(self, step: str, offer: int) -> dict[str, Any]:
        sources = {"policy": self.of.policy.rules, "offer": self.of.catalogue.rules}
        found = [
            self._rule(source, named, offer)
            for source, rules in sources.items()
            for named in rules
            if named.step == step and concerns(named.offers, offer)
        ]
        return {"step": step, "passed": all(rule["passed"] for rule in found), "rules": found}

    def _rule(self, source: str, named: NamedRule, offer: int) -> dict[str, Any]:
        get = self.frame.lookup(slice(offer, offer + 1))
        clauses = named.rule.explain(get, lambda name: plain(get(name)))
        return {
            "rule": named.name,
            "of": source,
            "text": named.rule.text,
            "passed": all(clause["outcome"] == "true" for clause in clauses),
            "clauses": clauses,
        }

    def _failed_rule(self, offer: int) -> dict[str, Any]:
        """The step of an offer that a rule removed, with that rule alone."""
        step, name = self.fate(offer)
        named = next(
            rule
            for rule in (*self.of.policy.rules, *self.of.catalogue.rules)
            if (rule.step, rule.name) == (step, name) and concerns(rule.offers, offer)
        )
        columns = self.of.catalogue.columns
        if any(columns[c].source in ("pair", "offer") for c in named.rule.columns if c in columns):
            return {"step": step, "passed": False, "rules": [self._rule("", named, offer)]}
        # What depends on the customer alone comes out alike for all offers of the rule.
        key = (step, named.rule.text)
        if key not in self._told:
            rules = [self._rule("", named, offer)]
            self._told[key] = {"step": step, "passed": False, "rules": rules}
        return self._told[key]

    def contact_policy(self, offer: int) -> dict[str, Any]:
        checks = list(self._contact_checks(offer))
        passed = all(check["passed"] for check in checks)
        return {"step": "contact_policy", "passed": passed, "rules": checks}

    def _contact_checks(self, offer: int) -> Iterator[dict[str, Any]]:
        """Consent, quiet hours and limits, in the order in which they remove offers."""
        channel = self.of.situation.channel
        policy = self.of.policy.policy.tables.channels[channel]
        if policy.consent_required:
            name = self.of.policy.consent_columns[channel]
            own = slice(self.row, self.row + 1)
            column = None if name is None else self.of.audience.columns[name][own]
            allowed = contact.consent(column, policy.unknown_consent == "allow", 1)
            seen = "the data have no consent column"
            given = seen if name is None else f"{name} is {_shown(plain(column))}"
            yield {"rule": "consent", "passed": bool(allowed[0]), "reason": given}
        moment = utc(self.of.situation.decided_at)
        for hours in self.of.policy.quiet_hours:
            if hours.applies_to(channel):
                quiet = hours.quiet(moment)
                yield {"rule": hours.name, "passed": not quiet, "reason": hours.reason(moment)}
        for counted in self.of.counts:
            yield {
                "rule": counted.limit.name,
                "passed": not bool(counted.reached[self.row, offer]),
                "reason": contact.reason(counted, self.row, offer, channel),
            }

    def _failed_contact(self, offer: int) -> dict[str, Any]:
        """The step of an offer that the contact policy removed, with what removed it alone."""
        failed = next(check for check in self._contact_checks(offer) if not check["passed"])
        return {"step": "contact_policy", "passed": False, "rules": [failed]}

    def numbers(self, offer: int) -> dict[str, Any]:
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

    @property
    def pays(self) -> bool:
        """Whether scarcity prices decided: an assignment has allotted its offers, without them."""
        ration = self.of.ration
        own = self.of.arm[self.row] in (RANDOM_ELIGIBLE, PROPENSITY_ONLY)
        settled = ration is not None and bool(ration.settled[self.row])
        return self.of.prices is not None and self.known and not own and not settled

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
        get = self.frame.lookup(slice(offer, offer + 1))
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
        said = self.expressions(offer)
        for name in SHARES:
            share = said.get(name, {}).get("value")
            if share is not None and not 0 <= share <= 1:
                return f"{name} is {_shown(share)}, which is not between 0 and 1"
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
        if self.fate(offer) == b.HELD_OUT_OF_OFFER:
            return _lost(b.HELD_OUT_OF_OFFER)
        return {"step": "holdout", "passed": True, "reason": "not held out of this offer"}

    def reach(self, offer: int) -> dict[str, Any]:
        if self.fate(offer) == b.NOT_REACHED:
            return _lost(b.NOT_REACHED)
        return {"step": "reach", "passed": True, "reason": "within its reach"}

    def limits(self, offer: int) -> dict[str, Any]:
        fate = self.fate(offer)
        if fate == b.USED_UP or (fate == b.SCARCE and not self.pays):
            return _lost(fate)
        if fate == b.SCARCE:
            price = f"scarcity price {self.scarcity_prices[offer]:.2f} of priority"
            reason = f"{price} {self.of.worth[self.row, offer]:.2f}: {_WORDS[fate]}"
            return {"step": "limits", "passed": False, "reason": reason}
        return {"step": "limits", "passed": True, "reason": "there is enough of it"}

    def arbitration(self, offer: int) -> dict[str, Any]:
        passed = offer in self.picked
        return {"step": "arbitration", "passed": passed, "reason": self.outcome(offer)}

    def outcome(self, offer: int) -> str:
        """Why an offer that reached arbitration won or lost."""
        fate = self.fate(offer)
        if offer in self.picked:
            return f"rank {self.picked.index(offer) + 1}"
        if fate in _WORDS:
            return _WORDS[fate]
        if not self.known:
            return "the offers before it in the fallback list fill the slots"
        if fate == b.NOT_DRAWN:
            drawn = [self.of.catalogue.offer_ids[j] for j in self.picked]
            what = " and ".join(f"offer {name}" for name in drawn) or "no offer"
            return f"{what} was drawn{self._stopped(offer)}"
        name = "propensity" if fate == b.LESS_LIKELY else "priority"
        own = self.competes(name, offer)
        if fate == b.NOTHING_TO_GAIN:
            return f"priority {own:.2f}: making no offer is better{self._stopped(offer)}"
        last = self.picked[-1]
        ahead = f"{self.competes(name, last):.2f} of offer {self.of.catalogue.offer_ids[last]}"
        return f"{name} {own:.2f} against {ahead}{self._stopped(offer)}"

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
        return [int(j) for j in self.of.would_choose[self.row] if j >= 0]

    def competes(self, name: str, offer: int) -> Any:
        """What the offer competed on in the customer's arm."""
        return float(self.competing(name)[offer])

    def competing(self, name: str) -> npt.NDArray[np.float64]:
        """(m,) what each offer competed on in the customer's arm."""
        if name == "propensity":
            own: npt.NDArray[np.float64] = self.of.audience.propensity[self.row]
            return own
        if self.of.arm[self.row] == NO_LEVERS:
            priority = weigh(self._numbers("objective"), self._numbers("context_weight"))
        else:
            priority = self._numbers("priority")
        return priority - self.scarcity_prices if self.pays else priority

    def steps(self, offer: int) -> list[dict[str, Any]]:
        """The steps that the offer passed, and the one that removed it."""
        steps = [self.candidate(offer)]
        if steps[-1]["passed"] and not self.known:
            listed = self.fate(offer) != b.NOT_FALLBACK
            reason = "in the fallback list" if listed else _WORDS[b.NOT_FALLBACK]
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

    def why_not(self, offer: int) -> str:
        """One line on why the offer is not made."""
        step, _ = fate = self.fate(offer)
        why = self._why_not.get(fate)
        if why is None:
            why = f"{step.replace('_', ' ')}: {_why(self._last(offer))}"
            if fate in _SAME_FOR_ALL:
                self._why_not[fate] = why
        return f"offer {self.of.catalogue.offer_ids[offer]}: {why}"

    def _last(self, offer: int) -> dict[str, Any]:
        """The last of the offer's steps; a decision that makes no offer asks for nothing more."""
        step, _ = fate = self.fate(offer)
        if step in STEPS:
            return self._failed_rule(offer)
        ways = {
            "candidate": self.candidate,
            "contact_policy": self._failed_contact,
            "value": self.value,
            "arbitration": self.arbitration,
        }
        return ways[step](offer) if step in ways else _lost(fate)

    def _within(self, details: Offer) -> str:
        """How long the customer can respond: the offer's window, or less where it ends before."""
        days = [details.response_window_days] if details.response_window_days else []
        if details.ends_at is not None:
            left = (utc(details.ends_at) - utc(self.of.situation.decided_at)).total_seconds()
            days.append(math.ceil(left / 86_400))
        return f" within {min(days)} days" if days else ""

    def why(self, offer: int) -> list[str]:
        """In plain words, why the offer is made."""
        if not self.known:
            return ["nothing is known about this customer: the fallback list decides"]
        margin, incentive, contact_cost, kept, profit = (
            self.number(name, offer)
            for name in (
                "margin", "incentive_cost", "contact_cost", "retention_value", "expected_profit"
            )
        )  # fmt: skip
        details = self.of.catalogue.catalogue.offers[offer]
        money = (
            f"expected profit {profit:.2f}: margin {margin:.2f} less incentive {incentive:.2f}"
            f" per response, less {contact_cost:.2f} to contact"
        )
        if details.baseline_rate != 0:
            rate = self.number("baseline_rate", offer)
            money += f", less {rate * margin:.2f} of margin that would come anyway" if rate else ""
        money += f", plus {kept:.2f} for keeping the customer" if kept else ""
        propensity = self.of.audience.propensity[self.row, offer]
        reasons = [f"{propensity:.1%} chance of a response{self._within(details)}", money]
        reasons += [
            f"lever × {lever.multiplier:g} until {written_time(lever.until)}: {lever.reason}"
            for lever in self.of.policy.levers_by_offer[offer]
            if utc(self.of.situation.decided_at) < lever.until
        ]
        if self.pays and self.scarcity_prices[offer] > 0:
            price = f"scarcity price {self.scarcity_prices[offer]:.2f}"
            reasons.append(f"{price}: what others would gain from it; priority is less that")
        reasons += [
            f'context weight "{weight.name}" × {weight.multiplier:g}'
            for number in self.of.policy.weights_by_offer[offer]
            if self.of.context_holds[number][self.row, offer]
            for weight, _, _ in [self.of.policy.context_weights[number]]
        ]
        return [*reasons, *self._choice(offer)]

    def _choice(self, offer: int) -> list[str]:
        """How the offer was chosen: against which others, in which arm, with which probability."""
        arm = self.of.arm[self.row]
        slot = self.picked.index(offer)
        probability = self.of.selection_probability[self.row, slot]
        drawn = f"drawn with a probability of {probability:.1%}"
        if arm == RANDOM_ELIGIBLE:
            return [f"arm {arm}: {drawn}, whatever it is worth"]
        reasons = [self._against_the_next(offer)]
        if arm != POLICY:
            reasons = [f"arm {arm}", *reasons]
        if self.of.policy.policy.tables.exploration.policy != "greedy" and arm != PROPENSITY_ONLY:
            reasons.append(f"{drawn} ({self.of.policy.policy.tables.exploration.policy})")
        return reasons

    def _against_the_next(self, offer: int) -> str:
        values, positions = _runners_up(self.of)
        worth, position = values[self.row], positions[self.row]
        if position < 0:
            if self.of.policy.fates.limited[self.of.fates[self.row]].any():
                return "no other offer would earn anything of which there is enough for all"
            return "no other offer that may be made would earn anything"
        name = "propensity" if self.of.arm[self.row] == PROPENSITY_ONLY else "priority"
        own = self.competes(name, offer)
        other = "next" if worth <= own else "better, but not drawn,"
        offer_id = self.of.catalogue.offer_ids[position]
        return f"{name} {own:.2f}; {other} is offer {offer_id} at {worth:.2f}"


def _runners_up(decisions: Decisions) -> tuple[list[float], list[int]]:
    """For each customer what the best of the offers that lost competed on; -1 where none did."""
    if "runners up" not in decisions.notes:
        fates, by_id = decisions.policy.fates, decisions.policy.by_id
        propensity_only = decisions.arm == PROPENSITY_ONLY
        worth = np.array(np.broadcast_to(decisions.values.priority, decisions.fates.shape))
        worth[propensity_only] = decisions.audience.propensity[propensity_only]
        of_their_own = (decisions.arm == NO_LEVERS) | (decisions.prices is not None)
        for row in np.flatnonzero(of_their_own & ~propensity_only).tolist():
            worth[row] = _Case(decisions, row).competing("priority")
        behind = np.where(fates.lost[decisions.fates], worth, -np.inf)[:, by_id]
        first = np.argmax(behind, axis=1)
        best = behind[np.arange(len(first)), first]
        position = np.where(np.isfinite(best), by_id[first], -1)
        decisions.notes["runners up"] = (best.tolist(), position.tolist())
    found: tuple[list[float], list[int]] = decisions.notes["runners up"]
    return found


def _lost(fate: tuple[str, str]) -> dict[str, Any]:
    """The step that removed an offer for a reason that is always the same."""
    return {"step": fate[0], "passed": False, "reason": _WORDS[fate]}


def _why(step: Mapping[str, Any]) -> str:
    """One line on how a step came out; of several rules the first that failed."""
    if step["step"] == "contact_policy":
        return str(next(rule["reason"] for rule in step["rules"] if not rule["passed"]))
    if step["step"] not in STEPS:
        return str(step["reason"])
    rule = next(rule for rule in step["rules"] if not rule["passed"])
    clause = next(c for c in rule["clauses"] if c["outcome"] != "true")
    seen = ", ".join(f"{name} = {_shown(v)}" for name, v in clause["values"].items())
    title = f'"{rule["rule"]}", ' if rule["rule"] != step["step"] else ""
    said = f"{title}{clause['clause']} is {clause['outcome']}"
    return f"{said} ({seen})" if seen else said


def _shown(value: Any) -> str:
    if value is None:
        return "unknown"
    return f"{value:.4g}" if isinstance(value, float) else str(value)


def _offers(case: _Case) -> list[dict[str, Any]]:
    decisions, row = case.of, case.row
    made = []
    for slot, at in enumerate(decisions.chosen[row].tolist()):
        if at < 0:
            break
        made.append(
            {
                "offer_id": decisions.catalogue.offer_ids[at],
                "name": decisions.catalogue.catalogue.offers[at].name,
                "rank": slot + 1,
                "propensity": plain(decisions.audience.propensity[row, at]),
                "expected_profit": case.number("expected_profit", at),
                "priority": case.number("priority", at),
                "selection_probability": float(decisions.selection_probability[row, slot]),
                "reasons": case.why(at),
            }
        )
    return made


def _head(decisions: Decisions, row: int) -> dict[str, Any]:
    return {
        "decision_id": decisions.decision_ids[row],
        "customer_id": decisions.audience.customer_ids[row],
        "decided_at": decisions.decided_at,
        "arm": decisions.arm[row],
        "known_customer": bool(decisions.audience.known[row]),
        "profile_stale": decisions.profile_stale,
    }


def answer(decisions: Decisions, row: int) -> dict[str, Any]:
    """The answer for one customer, JSON-able; ``no_offer_reasons`` says why there is no offer."""
    case = _Case(decisions, row)
    offers = _offers(case)
    every = range(len(decisions.catalogue.offer_ids))
    reasons = [] if offers else [case.why_not(offer) for offer in every]
    return {**_head(decisions, row), "offers": offers, "no_offer_reasons": reasons}


def trace(decisions: Decisions, row: int) -> dict[str, Any]:
    """Every offer's fate at every step for one customer, JSON-able.

    Each offer lists the steps that it passed and the one that removed it, with every rule's text,
    its clauses' outcomes and the values they saw, the numbers behind its priority, and for every
    amount that is an expression its text and the values that it read. ``live`` says what of the
    profile changed since ``profile_as_of``, from what to what.
    """
    case = _Case(decisions, row)
    at = case.at
    declared = decisions.policy.policy.tables.context
    as_of = decisions.audience.as_of
    live = decisions.audience.live.get(decisions.audience.customer_ids[row])
    offers = []
    for offer, details in enumerate(decisions.catalogue.catalogue.offers):
        step, reason = case.fate(offer)
        steps = case.steps(offer)
        offers.append(
            {
                "offer_id": details.id,
                "name": details.name,
                "fate": {"step": step, "reason": reason},
                "why": _why(steps[-1]),
                "steps": steps,
                "numbers": case.numbers(offer),
                "expressions": case.expressions(offer),
            }
        )
    made = _offers(case)
    every = range(len(offers))
    return {
        **_head(decisions, row),
        "situation": {
            "channel": at.channel,
            "placement": at.placement,
            "limit": at.limit,
            "context": {name: at.context.get(name) for name in declared},
            "context_ignored": sorted(at.context.keys() - declared.keys()),
        },
        "profile_as_of": None if as_of is None else written_time(as_of),
        **({"live": dict(live)} if live else {}),
        "versions": dict(decisions.audience.versions),
        **({} if decisions.prices is None else {"prices": decisions.prices.to_dict()}),
        "catalogue_hash": decisions.catalogue.catalogue.content_hash,
        "policy_hash": decisions.policy.policy.content_hash,
        "objective": decisions.policy.objective.text,
        "chosen": made,
        "no_offer_reasons": [] if made else [case.why_not(offer) for offer in every],
        "selection": {**selection(decisions, row), **_learnt(decisions)},
        "offers": offers,
    }


def selection(decisions: Decisions, row: int) -> dict[str, Any]:
    """What the choice was drawn from; offers with a probability of 0 are left out.

    ``probabilities`` and ``no_offer`` are those of the first slot; ``end`` is the probability with
    which the answer ended after its last offer, where slots were left. Offers that a customer
    would have got without the holdout are under ``would_choose``.
    """
    ids = decisions.catalogue.offer_ids
    chances = decisions.probabilities[row].tolist()
    return {
        "arm": decisions.arm[row],
        "policy": decisions.policy.policy.tables.exploration.policy,
        "eligible": list(compress(ids, decisions.eligible[row].tolist())),
        # The last one is no offer.
        "probabilities": {name: p for name, p in zip(ids, chances, strict=False) if p},
        "no_offer": chances[-1],
        "end": float(decisions.end_probability[row]),
        "would_choose": [ids[j] for j in decisions.would_choose[row].tolist() if j >= 0],
    }


def _learnt(decisions: Decisions) -> dict[str, Any]:
    """What was known of all customers' answers when the choice was made."""
    told: dict[str, Any] = {}
    if decisions.offer_counts:
        told["offer_counts"] = {
            name: dict(vars(counts)) for name, counts in sorted(decisions.offer_counts.items())
        }
    if decisions.stopped:
        told["stopped"] = {
            name: dict(vars(losses)) for name, losses in sorted(decisions.stopped.items())
        }
    return told


def funnel(decisions: Decisions) -> dict[str, Any]:
    """How many customers lose each offer at which step and to which rule, JSON-able."""
    names = decisions.policy.fates.names
    known = decisions.audience.known
    offers: dict[str, Any] = {}
    for offer, offer_id in enumerate(decisions.catalogue.offer_ids):
        codes = np.bincount(decisions.fates[:, offer], minlength=len(names))
        lost: dict[str, dict[str, int]] = {}
        for (step, reason), count in zip(names, codes.tolist(), strict=True):
            if count and (step, reason) != b.CHOSEN:
                lost.setdefault(step, {})[reason] = count
        chosen = int(codes[decisions.policy.fates.codes[b.CHOSEN]])
        offers[offer_id] = {"customers": len(decisions), "lost": lost, "chosen": chosen}
    return {
        "customers": len(decisions),
        "unknown_customers": int(np.count_nonzero(~known)),
        "with_an_offer": int(np.count_nonzero(decisions.chosen[:, 0] >= 0)),
        "with_no_offer": int(np.count_nonzero(decisions.chosen[:, 0] < 0)),
        "arms": dict(Counter(decisions.arm.tolist())),
        "offers": offers,
    }


def table(decisions: Decisions) -> dict[str, npt.NDArray[Any]]:
    """All decisions as columns of equal length, for a batch file.

    One row per offer made, best first; a decision that makes none has one row with rank 0, no
    offer, and the last step that any offer reached.
    """
    shown = decisions.chosen >= 0
    shown[:, 0] = True
    rows, slots = np.nonzero(shown)
    offers = decisions.chosen[rows, slots]
    made = offers >= 0
    ids = np.array([*decisions.catalogue.offer_ids, None], dtype=object)
    # Codes are numbered in the order of the steps, so the largest is the furthest.
    because = np.array([f"{s}: {r}" for s, r in decisions.policy.fates.names], dtype=object)
    furthest = because[decisions.fates.max(axis=1)[rows]]
    at = decisions.situation

    def number(values: npt.NDArray[np.float64]) -> npt.NDArray[np.float64]:
        whole = np.broadcast_to(values, decisions.fates.shape)
        return np.where(made, whole[rows, offers], np.nan)

    def same(value: Any, dtype: Any = object) -> npt.NDArray[Any]:
        return np.full(len(rows), value, dtype=dtype)

    return {
        "decision_id": np.array(decisions.decision_ids, dtype=object)[rows],
        "customer_id": np.array(decisions.audience.customer_ids, dtype=object)[rows],
        "decided_at": same(stamp(at.decided_at), "datetime64[us]"),
        "channel": same(at.channel),
        "placement": same(at.placement),
        "arm": decisions.arm[rows],
        "rank": np.where(made, slots + 1, 0),
        "offer_id": ids[offers],
        "propensity": number(decisions.audience.propensity),
        "expected_profit": number(decisions.values.expected_profit),
        "priority": number(decisions.values.priority),
        "selection_probability": decisions.selection_probability[rows, slots],
        "no_offer_because": np.where(made, np.array(None, dtype=object), furthest),
        "profile_stale": same(decisions.profile_stale, bool),
        "policy_hash": same(decisions.policy.policy.content_hash),
        "catalogue_hash": same(decisions.catalogue.catalogue.content_hash),
    }
