"""Why customers get no offer: one line for each offer, in the words of its trace's last step.

Most lines are the same for many customers, and put together once.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import cached_property
from typing import TYPE_CHECKING

import numpy as np
import numpy.typing as npt

from nextbest.decide import bound as b
from nextbest.decide import contact
from nextbest.decide.case import Case, consent_in_words
from nextbest.decide.frame import utc
from nextbest.decide.words import WORDS

if TYPE_CHECKING:
    from nextbest.decide.bound import BoundPolicy
    from nextbest.decide.engine import Decisions

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
            said = case.because(fate, lost)
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
    def _counts(self) -> dict[str, contact.Counts]:
        """What each limit counted."""
        return {one.limit.name: one for one in self._of.counts}

    def _counted(self, name: str, row: int) -> tuple[contact.Counts, npt.NDArray[np.int64]]:
        """What a limit counted, and (m,) how much of it counts against each of a customer's offers."""
        counts = self._counts[name]
        events = counts.counted[row][counts.pool]
        return counts, events if counts.own is None else events - counts.own[row]


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
            if len(self._lines) == _KEPT:
                self._lines.clear()
            lines = np.array([head + why for head in self.heads(step).tolist()], dtype=object)
            self._lines[step, why] = lines
        return lines
