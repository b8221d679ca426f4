"""Why customers get no offer: one line for each offer, worked out for many customers at once.

What is said is what the last step of each offer's trace says (`nextbest.decide.case`).
"""

from __future__ import annotations

from functools import cached_property
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

from nextbest.decide import contact
from nextbest.decide.case import Case, clause_in_words, consent_in_words
from nextbest.decide.frame import utc
from nextbest.decide.rules import STEPS, NamedRule
from nextbest.decide.words import WORDS, plain

if TYPE_CHECKING:
    from nextbest.decide.bound import BoundPolicy
    from nextbest.decide.engine import Decisions

__all__ = ["NoOfferReasons"]

# So many customers are looked at together: enough to share the work, few enough to hold the lines.
_TOGETHER = 256

Ints = npt.NDArray[np.intp]
Texts = npt.NDArray[np.object_]


class NoOfferReasons:
    """Why those customers who get no offer get none."""

    def __init__(self, decisions: Decisions) -> None:
        self._decisions = decisions
        self._rows: Ints = np.flatnonzero(decisions.chosen[:, 0] < 0)
        self._places = {row: place for place, row in enumerate(self._rows.tolist())}
        self._part = -1
        self._lines: list[list[str]] = []

    def of(self, row: int) -> list[str]:
        """One line for each offer on why a customer does not get it; none if there is an offer."""
        place = self._places.get(row)
        if place is None:
            return []
        part, within = divmod(place, _TOGETHER)
        if part != self._part:
            rows = self._rows[part * _TOGETHER : (part + 1) * _TOGETHER]
            self._part, self._lines = part, _Refusals(self._decisions, rows).lines()
        return self._lines[within]


class _Refusals:
    """Some customers of whom each gets no offer at all.

    Below, ``at`` are positions among these customers, and ``offers`` as many positions of offers.
    """

    def __init__(self, decisions: Decisions, rows: Ints) -> None:
        self._of = decisions
        self._rows = rows
        self._cases: dict[int, Case] = {}

    def lines(self) -> list[list[str]]:
        """One line for each customer and offer."""
        codes = self._of.fates[self._rows]
        said = np.empty(codes.shape, dtype=object)
        for code in np.unique(codes).tolist():
            fate = self._of.policy.fates.names[code]
            at, offers = np.nonzero(codes == code)
            heads = _heads(self._of.policy, fate[0])
            said[at, offers] = heads[offers] + self._because(fate, at, offers)
        lines: list[list[str]] = said.tolist()
        return lines

    def _because(self, fate: tuple[str, str], at: Ints, offers: Ints) -> str | Texts:
        """What befell offers of one fate."""
        if fate in WORDS:
            return WORDS[fate]
        if fate[0] == "contact_policy":
            return self._kept_back(at, offers)
        if fate[0] in STEPS:
            return self._ruled_out(fate, at, offers)
        cells = zip(at.tolist(), offers.tolist(), strict=True)
        return _texts([self._case(one).because(offer) for one, offer in cells])

    def _case(self, at: int) -> Case:
        if at not in self._cases:
            self._cases[at] = Case(self._of, int(self._rows[at]))
        return self._cases[at]

    # --- the contact policy: consent, then quiet hours, then limits ------------------------------

    def _kept_back(self, at: Ints, offers: Ints) -> Texts:
        refused, texts = self._consent
        said, others = texts[at], ~refused[at]
        if others.any():
            quiet = self._quiet
            said[others] = self._limited(at[others], offers[others]) if quiet is None else quiet
        return said

    @cached_property
    def _consent(self) -> tuple[npt.NDArray[np.bool_], Texts]:
        """Who has not consented to the channel, and what is known of everybody's consent."""
        of, channel = self._of.policy, self._of.situation.channel
        rule, name = of.policy.tables.channels[channel], of.consent_columns[channel]
        if not rule.consent_required:
            return np.zeros(len(self._rows), dtype=bool), _texts([None] * len(self._rows))
        column = None if name is None else self._of.audience.columns[name][self._rows]
        allowed = contact.consent(column, rule.unknown_consent == "allow", len(self._rows))
        values = [None] * len(self._rows) if column is None else column
        return ~allowed, _texts([consent_in_words(name, value) for value in values])

    @cached_property
    def _quiet(self) -> str | None:
        """Why the channel keeps silent now; None where it does not."""
        channel, moment = self._of.situation.channel, utc(self._of.situation.decided_at)
        hours = (one for one in self._of.policy.quiet_hours if one.applies_to(channel))
        return next((one.reason(moment) for one in hours if one.quiet(moment)), None)

    def _limited(self, at: Ints, offers: Ints) -> Texts:
        """How the first limit that each offer has reached stands."""
        counts, rows = self._of.counts, self._rows[at]
        reached = np.array([one.reached[rows, offers] for one in counts])
        events = np.array([one.per_offer[rows, offers] for one in counts])
        first = reached.argmax(axis=0)
        # Few numbers of events of few limits: each pair is put into words once.
        pairs = events[first, np.arange(len(first))] * len(counts) + first
        different, which = np.unique(pairs, return_inverse=True)
        found = [divmod(pair, len(counts)) for pair in different.tolist()]
        channel = self._of.situation.channel
        return _texts([contact.reason(counts[i].limit, n, channel) for n, i in found])[which]

    # --- rules -----------------------------------------------------------------------------------

    def _ruled_out(self, fate: tuple[str, str], at: Ints, offers: Ints) -> Texts:
        """How the rules that removed offers came out."""
        rules, numbers = _rules(self._of.policy, fate)
        said, which = _texts([None] * len(at)), numbers[offers]
        for number in np.unique(which).tolist():
            named, reads_offer = rules[number]
            mine = which == number
            if reads_offer:
                said[mine] = self._rule(named, at[mine], offers[mine])
            else:
                # It comes out alike for all its offers.
                customers, places = np.unique(at[mine], return_inverse=True)
                said[mine] = self._rule(named, customers, offers[mine][:1])[places]
        return said

    def _rule(self, named: NamedRule, at: Ints, offers: Ints) -> Texts:
        """What the first clause that failed saw."""
        get = self._of.frame.cells(self._rows[at], offers)
        said, passed = _texts([None] * len(at)), np.ones(len(at), dtype=bool)
        for clause in named.rule.clauses:
            with np.errstate(all="ignore"):
                true, false = (np.broadcast_to(mask, len(at)) for mask in clause.term.run(get))
            failed = np.flatnonzero(passed & ~true).tolist()
            if failed:
                seen = {name: np.broadcast_to(get(name), len(at)) for name in clause.columns}
            for i in failed:
                outcome = "false" if false[i] else "unknown"
                values = {name: plain(column[i]) for name, column in seen.items()}
                said[i] = clause_in_words(named.step, named.name, clause.text, outcome, values)
            passed = passed & true
        return said


def _texts(values: list[Any]) -> Texts:
    texts = np.empty(len(values), dtype=object)
    texts[:] = values
    return texts


def _heads(policy: BoundPolicy, step: str) -> Texts:
    """(m,) how each offer's line begins where that step removed it."""
    key = ("how lines begin", step)
    if key not in policy.notes:
        words = step.replace("_", " ")
        policy.notes[key] = _texts(
            [f"offer {one}: {words}: " for one in policy.catalogue.offer_ids]
        )
    heads: Texts = policy.notes[key]
    return heads


def _rules(policy: BoundPolicy, fate: tuple[str, str]) -> tuple[list[tuple[NamedRule, bool]], Ints]:
    """The rules behind one fate, each with whether it reads the offer, and each offer's number."""
    key = ("rules behind", fate)
    if key not in policy.notes:
        by_text: dict[str, int] = {}
        rules: list[tuple[NamedRule, bool]] = []
        numbers = np.full(len(policy.catalogue.offer_ids), -1, dtype=np.intp)
        for (step, name, offer), named in policy.rules_by_fate.items():
            if (step, name) != fate:
                continue
            if named.rule.text not in by_text:
                by_text[named.rule.text] = len(rules)
                sources = {policy.columns[column].source for column in named.rule.columns}
                rules.append((named, not sources.isdisjoint(("pair", "offer"))))
            numbers[offer] = by_text[named.rule.text]
        policy.notes[key] = rules, numbers
    found: tuple[list[tuple[NamedRule, bool]], Ints] = policy.notes[key]
    return found
