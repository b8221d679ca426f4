"""Reading an experiment: every arm against the full policy, for everybody and per segment.

The holdout says what personalised offers earn at all; each ablation arm says what one part of the
policy adds. Customers were drawn into arms, so differences between arms are effects, and nothing
else is.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import reduce
from operator import add
from types import MappingProxyType
from typing import Any, Final

from nextbest.errors import DataError, Fault, UsageError, did_you_mean
from nextbest.measure.balance import Balance, check_balance
from nextbest.measure.collect import Cell, Outcome
from nextbest.measure.comparison import Comparison, Finding, Kind, Question, compare
from nextbest.measure.intervals import Interval
from nextbest.measure.many import CORRECTIONS, Correction, adjusted, level_of_each
from nextbest.measure.plan import Looks
from nextbest.measure.sums import Sums
from nextbest.measure.words import verdict

__all__ = ["ABLATIONS", "DEFAULT_PLANNED", "NOT_DRAWN", "Design", "Reading", "read"]

#: Arms that the full policy is held against, the holdout first.
ABLATIONS: Final = ("no_contact", "random_eligible", "propensity_only", "no_levers")
DEFAULT_PLANNED: Final = 10_000
#: Who was unknown when asked for was not drawn into an arm, so nothing can be concluded from them.
NOT_DRAWN: Final = "fallback"


@dataclass(frozen=True)
class Design:
    """How an experiment is read; all of it is decided before anybody sees a result.

    Parameters
    ----------
    arm : the arm in question, held against every other arm.
    control : where it is given, every other arm is held against this one instead.
    shares : planned share of every arm; None leaves the assignment untested.
    alpha : chance of a false finding, 0-1, in all segments of an outcome together.
    looks : ``daily`` decides by intervals that hold at every look; ``once`` by ordinary ones,
        which are true only if this is the one look that was planned.
    planned : customers planned in all arms together, where the daily intervals are narrowest.
    correction : for many segments: ``holm`` or ``bh``.

    Raises
    ------
    UsageError : a setting is impossible; every one is named at once.
    """

    arm: str = "policy"
    control: str | None = None
    shares: Mapping[str, float] | None = None
    alpha: float = 0.05
    looks: Looks = "daily"
    planned: int = DEFAULT_PLANNED
    correction: Correction = "holm"

    def __post_init__(self) -> None:
        faults = []
        if not 0 < self.alpha < 1:
            faults.append(Fault("experiment: alpha", "not a share", "above 0 and below 1",
                                f"{self.alpha:g}"))  # fmt: skip
        if self.looks not in ("daily", "once"):
            faults.append(Fault("experiment: looks", "unknown", "daily or once", str(self.looks)))
        if self.planned < 1:
            faults.append(Fault("experiment: planned", "nobody is planned", "1 or more",
                                f"{self.planned}"))  # fmt: skip
        if self.correction not in CORRECTIONS:
            faults.append(Fault("experiment: correction", "unknown", " or ".join(CORRECTIONS),
                                str(self.correction)))  # fmt: skip
        if faults:
            raise UsageError(faults=faults)


@dataclass(frozen=True)
class Reading:
    """What an experiment says now.

    Attributes
    ----------
    design : how it was read.
    balance : whether customers reached the arms as planned. Where it is broken no comparison has
        a verdict.
    overall : every other arm against the arm in question, outcome by outcome.
    segments : the same per segment.
    left_out : customers whom the fallback list answered, because nobody knew them yet.
    """

    design: Design
    balance: Balance
    overall: tuple[Comparison, ...]
    segments: tuple[Comparison, ...]
    left_out: int = 0

    @property
    def blocked(self) -> bool:
        """Whether the assignment forbids any verdict."""
        return self.balance.broken

    def to_dict(self) -> dict[str, Any]:
        """Return everything as plain JSON types."""
        d = self.design
        return {
            "arm": None if d.control else d.arm, "control": d.control,
            "alpha": d.alpha, "looks": d.looks, "planned": d.planned, "correction": d.correction,
            "customers": sum(self.balance.counts.values()), "left_out": self.left_out,
            "balance": self.balance.to_dict(),
            "blocked": self.blocked,
            "overall": [c.to_dict() for c in self.overall],
            "segments": [c.to_dict() for c in self.segments],
        }  # fmt: skip


def read(
    cells: Iterable[Cell],
    outcomes: Sequence[Outcome],
    design: Design,
    by: Sequence[str] = (),
    *,
    only: Mapping[str, Sequence[str]] = MappingProxyType({}),
) -> Reading:
    """Return every arm's difference to the arm in question, with what may be concluded.

    Parameters
    ----------
    cells, outcomes, by : what `collect` returned, and what it was asked for.
    only : for some of ``by``, the arms whose customers its segments divide alike; no other arm is
        compared there.

    Raises
    ------
    DataError : there are not two arms, or the arm in question is not among them, or the planned
        shares do not fit the arms.
    """
    given = tuple(cells)
    cells = tuple(c for c in given if c.arm != NOT_DRAWN)
    left_out = sum(c.n for c in given if c.arm == NOT_DRAWN)
    counts = _customers_by_arm(cells)
    centre = design.control or design.arm
    if centre not in counts or len(counts) < 2:
        problem = f'arm "{centre}" has nothing to be compared with'
        if centre not in counts:
            problem = f'no customer is in arm "{centre}"'
        raise DataError(
            "experiment", problem, expected="two arms or more, that one among them",
            got=", ".join(f"{a} ({n:,})" for a, n in counts.items()),
            action=did_you_mean(centre, counts) or "Name the right one with --arm or --control.",
        )  # fmt: skip
    balance = check_balance(counts, design.shares)
    overall: list[Comparison] = []
    segments: list[Comparison] = []
    for outcome in outcomes:
        for found, dimensions in ((overall, [None]), (segments, list(range(len(by))))):
            family = [
                pair
                for at in dimensions
                for pair in _pairs(cells, outcome, design, _arms(counts, only, by, at), by, at)
            ]
            found += _judge(family, design, balance, sum(counts.values()))
    return Reading(design, balance, tuple(overall), tuple(segments), left_out)


def _customers_by_arm(cells: Sequence[Cell]) -> dict[str, int]:
    found: dict[str, int] = {}
    for cell in cells:
        found[cell.arm] = found.get(cell.arm, 0) + cell.n
    order = {arm: i for i, arm in enumerate(ABLATIONS)}
    return dict(sorted(found.items(), key=lambda item: (order.get(item[0], -1), item[0])))


def _arms(
    counts: Mapping[str, int], only: Mapping[str, Sequence[str]], by: Sequence[str], at: int | None
) -> list[str]:
    allowed = counts if at is None else only.get(by[at], counts)
    return [arm for arm in counts if arm in allowed]


_Pair = tuple[Question, Sums | None, Sums | None]


def _pairs(
    cells: Sequence[Cell], outcome: Outcome, design: Design, arms: Sequence[str],
    by: Sequence[str], at: int | None,
) -> Iterator[_Pair]:  # fmt: skip
    """Yield the arms to compare, for all customers or for each segment of a dimension."""
    sums: dict[tuple[str, str], list[Sums]] = {}
    for cell in cells:
        segment = "" if at is None else cell.segments[at]
        sums.setdefault((segment, cell.arm), []).append(dict(cell.sums)[outcome.label])
    total = {key: reduce(add, parts) for key, parts in sums.items()}
    kind: Kind = "ratio" if outcome.per else "before" if outcome.before else "plain"
    dimension = "" if at is None else by[at]
    centre = design.control or design.arm
    if centre not in arms:
        return
    named = {segment for segment, arm in total if arm in arms}
    for segment in sorted(named):
        for other in (a for a in arms if a != centre):
            arm, against = (other, centre) if design.control else (centre, other)
            question = Question(outcome.label, arm, against, kind, dimension, segment)
            yield question, total.get((segment, arm)), total.get((segment, against))


def _judge(
    family: Sequence[_Pair], design: Design, balance: Balance, customers: int
) -> Iterator[Comparison]:
    """Compare a family of pairs and decide each at the level that all of them ask for together."""
    progress = customers / design.planned

    def compared(pair: _Pair, alpha: float) -> Comparison:
        question, first, second = pair
        planned = [balance.shares.get(a) for a in (question.arm, question.against)]
        share = None
        if planned[0] and planned[1]:
            share = planned[0] / (planned[0] + planned[1])
        return compare(question, first, second, alpha=alpha, progress=progress, share=share)

    found = [compared(pair, design.alpha) for pair in family]
    sayable = [i for i, c in enumerate(found) if c.measured]
    p = adjusted([_p_value(found[i], design) for i in sayable], design.correction)
    each = level_of_each(p, design.correction, design.alpha) if p else design.alpha
    p_of = dict(zip(sayable, p, strict=True))
    for i, comparison in enumerate(found):
        strict = compared(family[i], each)
        decided = _decide(comparison, _interval(strict, design), p_of.get(i), design, balance)
        sure = _sure(design, len(sayable))
        yield replace(decided, verdict=verdict(decided, decided.together, sure))


def _sure(design: Design, many: int) -> str:
    level = f"{1 - design.alpha:.0%} interval"
    if many == 1:
        return level
    return f"{level}, " + (f"all {many} together" if design.correction == "holm" else "of findings")


def _p_value(found: Comparison, design: Design) -> float:
    if found.measured is None:
        return math.nan
    return found.measured.p_at_any_look if design.looks == "daily" else found.measured.p_value


def _interval(found: Comparison, design: Design) -> Interval | None:
    if found.measured is None:
        return None
    return found.measured.at_any_look if design.looks == "daily" else found.measured.difference


def _decide(
    found: Comparison, together: Interval | None, p: float | None,
    design: Design, balance: Balance,
) -> Comparison:  # fmt: skip
    if balance.broken:
        reason = f"the arms are {balance.message}. Find out why before reading any result"
        return replace(found, cannot_say=reason)
    if together is not None and p is not None:
        finding: Finding = "unclear"
        if p <= design.alpha:
            finding = "higher" if together.value > 0 else "lower"
        return replace(found, p_adjusted=p, together=together, finding=finding)
    return found
