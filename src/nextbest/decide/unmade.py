"""Why customers get no offer: one line for each offer, in the words of its trace's last step.

Most lines are the same for many customers, and put together once.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import cached_property
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

from nextbest.decide import bound as b
from nextbest.decide import contact
from nextbest.decide.case import Case, consent_in_words, failure
from nextbest.decide.frame import utc
from nextbest.decide.limits import Counts
from nextbest.decide.words import WORDS, plain, plain_list

if TYPE_CHECKING:
    from nextbest.decide.bound import BoundPolicy
    from nextbest.decide.engine import Decisions
    from nextbest.decide.rules import NamedRule

__all__ = ["NoOfferReasons"]

# A line for each offer.
Lines = npt.NDArray[np.object_]
Mask = npt.NDArray[np.bool_]

# Reasons of which the lines of all offers are kept.
_KEPT = 64


class NoOfferReasons:
    """Why those customers of some decisions who get no offer get none."""

    def __init__(self, decisions: Decisions) -> None:
        self._of = decisions
        self._shared = _Shared.of(decisions.policy)

    def of(self, row: int) -> list[str]:
        """One line for each offer on why it is not made; only for a decision that makes none."""
        codes = self._of.fates[row]
        case = Case(self._of, row)
        lines: Lines = np.empty(len(codes), dtype=object)
        for code in np.bincount(codes).nonzero()[0].tolist():
            self._write(lines, self._of.policy.fates.names[code], codes == code, case)
        found: list[str] = lines.tolist()
        return found

    def _write(self, lines: Lines, fate: tuple[str, str], lost: Mask, case: Case) -> None:
        """Write the lines of the offers that met one fate."""
        step, why = fate[0], self._same_for_all(fate, case.row)
        if why is not None:
            np.copyto(lines, self._shared.lines(step, why), where=lost)
        elif step == "contact_policy":
            counts, counted = self._counted(fate[1], case.row)
            for number in set(counted[lost].tolist()):
                reason = contact.reason(counts.limit, number, self._of.situation.channel)
                same = lost & (counted == number)
                np.copyto(lines, self._shared.lines(step, reason), where=same)
        else:
            heads = self._shared.heads(step)[lost].tolist()
            said = _because(case, fate, lost)
            lines[lost] = [head + one for head, one in zip(heads, said, strict=True)]

    def _same_for_all(self, fate: tuple[str, str], row: int) -> str | None:
        """What befell all offers of a fate alike; None where each has a reason of its own."""
        if fate in WORDS:
            return WORDS[fate]
        if fate == b.NO_CONSENT:
            name = self._of.policy.consent_columns[self._of.situation.channel]
            return consent_in_words(
                name, None if name is None else self._of.audience.columns[name][row]
            )
        if fate[0] == "contact_policy" and fate[1] not in self._counts:
            return self._quiet
        return None

    @cached_property
    def _quiet(self) -> str:
        """Why the channel keeps silent now: the first of its quiet hours that says so."""
        channel, moment = self._of.situation.channel, utc(self._of.situation.decided_at)
        hours = (one for one in self._of.policy.quiet_hours if one.applies_to(channel))
        return next(one.reason(moment) for one in hours if one.quiet(moment))

    @cached_property
    def _counts(self) -> dict[str, Counts]:
        """What each limit counted."""
        return {one.limit.name: one for one in self._of.counts}

    def _counted(self, name: str, row: int) -> tuple[Counts, npt.NDArray[np.int64]]:
        """What a limit counted, and (m,) how much of it counts for a customer, by offer."""
        counts = self._counts[name]
        events = counts.counted[row][counts.pool]
        return counts, events if counts.own is None else events - counts.own[row]


def _because(case: Case, fate: tuple[str, str], lost: Mask) -> list[str]:
    """What arbitration, the value step or the rules say of each offer that met one fate."""
    if fate[0] == "arbitration":
        return case.lost_to_others(fate, lost.nonzero()[0].tolist())
    if fate[0] == "value":
        return [str(case.value(offer)["reason"]) for offer in lost.nonzero()[0].tolist()]
    said = np.empty(len(lost), dtype=object)
    left = lost.copy()
    # Policy and offer may call a rule by the same name: the first that failed counts.
    for rule in case.of.policy.rules_by_fate[fate]:
        here = left & rule.offers
        offers: list[int] = here.nonzero()[0].tolist()
        if offers and rule.each:
            failed = _failed(case, rule.named, offers)
            said[[*failed]] = [*failed.values()]
            left[[*failed]] = False
        elif offers and (failed := _failed(case, rule.named, offers[:1])):
            # What depends on the customer alone comes out alike for all of them.
            said[here] = failed[offers[0]]
            left &= ~here
    found: list[str] = said[lost].tolist()
    return found


def _failed(case: Case, named: NamedRule, offers: list[int]) -> dict[int, str]:
    """What of a rule was not true, by offer, for those of some offers where that is so.

    The trace says the same of each offer by itself (`Case.rules`).
    """
    get, n = case.lookup(offers), len(offers)
    with np.errstate(all="ignore"):
        masks = [clause.term.run(get) for clause in named.rule.clauses]
    outcomes = [(_each(true, n), _each(false, n)) for true, false in masks]
    values: dict[str, list[Any]] = {}
    failed: dict[int, str] = {}
    for at, offer in enumerate(offers):
        for clause, (true, false) in zip(named.rule.clauses, outcomes, strict=True):
            if not true[at]:
                values |= {c: _each_plain(get(c), n) for c in clause.columns if c not in values}
                seen = {name: values[name][at] for name in clause.columns}
                outcome = "false" if false[at] else "unknown"
                failed[offer] = failure(named.step, named.name, clause.text, outcome, seen)
                break
    return failed


def _each(values: Any, n: int) -> list[Any]:
    """One value for each of n offers."""
    listed: list[Any] = np.asarray(values).ravel().tolist()
    return listed if len(listed) == n else listed * n


def _each_plain(values: Any, n: int) -> list[Any]:
    """The same as `plain` writes them."""
    if isinstance(values, np.ndarray) and values.size > 1:
        return plain_list(values.ravel())
    return [plain(values)] * n


class _Shared:
    """Lines that the answers of a policy share, put together once.

    Of reasons that are one customer's own there is no end: only the last ones are kept.
    """

    def __init__(self, offer_ids: Sequence[str]) -> None:
        self._offer_ids = offer_ids
        self._heads: dict[str, Lines] = {}
        self._lines: dict[tuple[str, str], Lines] = {}

    @classmethod
    def of(cls, policy: BoundPolicy) -> _Shared:
        """The lines of a policy."""
        shared: _Shared = policy.notes.setdefault("no offer", cls(policy.catalogue.offer_ids))
        return shared

    def heads(self, step: str) -> Lines:
        """How each offer's line begins where that step removed it."""
        if step not in self._heads:
            words = step.replace("_", " ")
            heads = [f"offer {one}: {words}: " for one in self._offer_ids]
            self._heads[step] = np.array(heads, dtype=object)
        return self._heads[step]

    def lines(self, step: str, why: str) -> Lines:
        """The line of each offer where that step removed it for a reason that is no offer's own."""
        lines = self._lines.get((step, why))
        if lines is None:
            if len(self._lines) >= _KEPT:
                self._lines.clear()
            lines = np.array([head + why for head in self.heads(step).tolist()], dtype=object)
            self._lines[step, why] = lines
        return lines
