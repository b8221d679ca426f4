"""Why customers get no offer: one line for each offer, in the words of its trace's last step.

Most lines are the same for many customers, and put together once.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import cached_property
from typing import TYPE_CHECKING

from nextbest.decide import bound as b
from nextbest.decide import contact
from nextbest.decide.case import Case, consent_in_words
from nextbest.decide.frame import utc
from nextbest.decide.words import WORDS

if TYPE_CHECKING:
    from nextbest.decide.engine import Decisions

__all__ = ["NoOfferReasons"]


class NoOfferReasons:
    """Why those customers of some decisions who get no offer get none."""

    def __init__(self, decisions: Decisions) -> None:
        self._of = decisions
        self._lines: dict[tuple[str, str], list[str]] = {}
        self._reasons: dict[tuple[str, int], str] = {}

    def of(self, row: int) -> list[str]:
        """One line for each offer on why it is not made; only for a decision that makes none."""
        codes: list[int] = self._of.fates[row].tolist()
        case = Case(self._of, row)
        lines = {code: self._lines_of(code, codes, case) for code in set(codes)}
        return [lines[code][offer] for offer, code in enumerate(codes)]

    def _lines_of(
        self, code: int, codes: Sequence[int], case: Case
    ) -> Sequence[str] | Mapping[int, str]:
        """The lines of the offers that met one fate, by position."""
        fate = self._of.policy.fates.names[code]
        heads, why = self._heads(fate[0]), self._same_for_all(fate, case.row)
        if why is not None:
            if (fate[0], why) not in self._lines:
                self._lines[fate[0], why] = [head + why for head in heads]
            return self._lines[fate[0], why]
        offers = [offer for offer, one in enumerate(codes) if one == code]
        if fate[0] == "contact_policy":
            said = self._limited(fate[1], case.row, offers)
        else:
            said = [case.because(offer) for offer in offers]
        return {offer: heads[offer] + one for offer, one in zip(offers, said, strict=True)}

    def _heads(self, step: str) -> list[str]:
        """How each offer's line begins where that step removed it."""
        kept: dict[str, list[str]] = self._of.policy.notes.setdefault("no offer", {})
        if step not in kept:
            ids, words = self._of.catalogue.offer_ids, step.replace("_", " ")
            kept[step] = [f"offer {offer_id}: {words}: " for offer_id in ids]
        return kept[step]

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
    def _counts(self) -> dict[str, tuple[contact.Counts, list[int]]]:
        """What each limit counted, and which pool each offer falls in."""
        return {one.limit.name: (one, one.pool.tolist()) for one in self._of.counts}

    def _limited(self, name: str, row: int, offers: Sequence[int]) -> list[str]:
        """How a limit that removed offers stands for each of them."""
        counts, pools = self._counts[name]
        events: list[int] = counts.counted[row].tolist()
        own = None if counts.own is None else counts.own[row].tolist()
        said = []
        for offer in offers:
            key = name, events[pools[offer]] - (0 if own is None else own[offer])
            if key not in self._reasons:
                channel = self._of.situation.channel
                self._reasons[key] = contact.reason(counts.limit, key[1], channel)
            said.append(self._reasons[key])
        return said
