"""Recorded decisions as another policy would have made them, with the chances of either.

Each decision is made again from what its record keeps: the customer's profile, scores, contacts
and everything else that was known, by the offers of that day. Only the policy is another.
"""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from datetime import datetime, timedelta
from pathlib import Path
from typing import Any, Final

import numpy as np
import numpy.typing as npt

from nextbest.decide.binding import BoundPolicy, bind
from nextbest.decide.contact import Limit
from nextbest.decide.engine import Decisions
from nextbest.decide.hashing import uniforms
from nextbest.decide.holdout import FALLBACK, HELD_OUT, NO_CONTACT, POLICY
from nextbest.decide.inputs import alike, columns_of, redecide_all
from nextbest.decide.offers import BoundCatalogue, Catalogue
from nextbest.decide.policy import Arms, Policy
from nextbest.errors import ConfigError, DataError, Fault, NotFoundError
from nextbest.serve.archive import archived_catalogue, archived_policy
from nextbest.serve.records import LoggedDecision
from nextbest.serve.store import Store

__all__ = ["LEFT_OUT", "Otherwise", "Reconsidered", "reconsider"]

Array = npt.NDArray[np.float64]

#: Why a decision is left out, and what that means, in the order in which it is asked.
LEFT_OUT: Final[Mapping[str, str]] = {
    "no record": "nothing is left of the record, or an older nextbest wrote it",
    "held out": "kept without offers to measure what offers earn",
    "fallback": "nothing was known of the customer",
    "earlier policy": "another policy than the last one decided",
    "other arm": "an arm of the experiment in which another rule chose",
    "shared out": "limits over all customers of a batch decided with the policy",
    "several offers": "several offers were asked for, and what one earns depends on the others",
    "open window": "the time to answer was not over",
    "not sampled": "left out at random by customer, to be done in time",
}
AMOUNTS: Final = ("margin", "incentive_cost", "contact_cost", "baseline_rate")
_SAMPLE: Final = "a sample of the log for evaluation"
PART: Final = 2_000


@dataclass(frozen=True)
class Otherwise:
    """Which decisions to make again, and how.

    Parameters
    ----------
    policy : the other policy; its holdout of everybody and its arms are left aside.
    since, until : decisions from one moment to before another; what happened before ``until`` is
        known (naive UTC).
    window_days : response window of offers that have none of their own.
    first_slot : whether answers with several slots count, by their first slot alone.
    logged_by : only decisions of the policy with this content hash; None for those of every one.
    at_most : about so many decisions, by a sample of customers.
    """

    policy: Policy
    until: datetime
    since: datetime | None = None
    window_days: float | None = None
    first_slot: bool = False
    logged_by: str | None = None
    at_most: int = 100_000


@dataclass(frozen=True)
class Reconsidered:
    """n decisions with the chances that either policy gave each of m offers, and no offer.

    Attributes
    ----------
    action : (n,) column of what was chosen; m for no offer.
    logged, other : (n, m + 1) probabilities in force, and those of the other policy.
    amounts : ``margin``, ``incentive_cost``, ``contact_cost`` and ``baseline_rate`` of the offer
        made, (n,) each; 0 where there is none.
    context : numbers known of the customer when deciding by name, (n,) each, NaN where unknown.
    left_out : how many decisions are not among them, by reason (`LEFT_OUT`).
    policies, catalogues : how many were decided by each policy, and from each catalogue, by
        content hash.
    retaining : offers that are made to keep customers, whatever they bring at once.
    windows : days until the answers to a decision were complete, for any offer of its catalogue.
    """

    decision_ids: tuple[str, ...]
    customer_ids: tuple[str, ...]
    offer_ids: tuple[str, ...]
    action: npt.NDArray[np.int64]
    logged: Array
    other: Array
    amounts: Mapping[str, Array]
    context: Mapping[str, Array]
    left_out: Mapping[str, int]
    policies: Mapping[str, int]
    catalogues: Mapping[str, int]
    retaining: tuple[str, ...]
    windows: tuple[float, float]

    def __len__(self) -> int:
        return len(self.decision_ids)


def reconsider(
    project_dir: Path,
    store: Store,
    asked: Otherwise,
    progress: Callable[[int], None] = lambda _: None,
) -> Reconsidered:
    """Make logged decisions again by another policy.

    Raises
    ------
    DataError: the log does not hold what the other policy asks for, or no decision is left.
    ConfigError: the other policy reads columns that were not recorded.
    """
    again = _Again(project_dir, store, asked)
    for part in store.decision_parts(PART, asked.since, asked.until):
        again.add(part)
        progress(again.seen)
    return again.result()


@dataclass(frozen=True)
class _Row:
    """One decision made again, as plain values by offer."""

    decision_id: str
    customer_id: str
    offer_id: str | None
    logged: Mapping[str, float]
    other: Mapping[str, float]
    amounts: tuple[float, ...]
    context: Mapping[str, float]


class _Again:
    """One pass over the log."""

    def __init__(self, project_dir: Path, store: Store, asked: Otherwise) -> None:
        self._project_dir, self._asked = project_dir, asked
        self._target = _for_everybody(asked.policy)
        self._catalogues: dict[str, Catalogue] = {}
        self._windows: dict[str, float] = {}
        self._checked: set[str] = set()
        self._bound: dict[str, tuple[BoundCatalogue, BoundPolicy]] = {}
        self._rows: list[_Row] = []
        self._left: Counter[str] = Counter()
        self._policies: Counter[str] = Counter()
        self._decided_from: Counter[str] = Counter()
        self._share = min(1.0, asked.at_most / max(store.log_span()[0], 1))
        self.seen = 0

    def add(self, part: Sequence[LoggedDecision]) -> None:
        """Make again what can be of some decisions; count what cannot."""
        self.seen += len(part)
        ids = [one.customer_id for one in part]
        sampled = uniforms(_SAMPLE, "sample", ids) < self._share
        groups: dict[str, list[LoggedDecision]] = {}
        for one, is_in in zip(part, sampled, strict=True):
            reason = self._why_not(one) or ("" if is_in else "not sampled")
            if reason:
                self._left[reason] += 1
                continue
            inputs = one.record["inputs"]
            self._check(inputs)
            groups.setdefault(alike(inputs), []).append(one)
        for members in groups.values():
            self._rows += self._decide(members)

    def _why_not(self, one: LoggedDecision) -> str:
        """The reason to leave a decision out; empty where there is none."""
        record = one.record
        inputs, selection = record.get("inputs"), record.get("selection")
        if not inputs or not selection or not record.get("answer"):
            return "no record"
        if one.arm in (HELD_OUT, NO_CONTACT):
            return "held out"
        if one.arm == FALLBACK or not inputs["profile"]["known"]:
            return "fallback"
        if one.arm != POLICY:
            return "other arm"
        if self._asked.logged_by not in (None, inputs["policy_hash"]):
            return "earlier policy"
        if inputs["ration"] is not None:
            return "shared out"
        if inputs["situation"]["limit"] > 1 and not self._asked.first_slot:
            return "several offers"
        # By the longest window of all offers: what is left out must not depend on the choice.
        days = self._window(inputs["catalogue_hash"])
        if one.decided_at + timedelta(days=days) > self._asked.until:
            return "open window"
        return ""

    def _catalogue(self, content_hash: str) -> Catalogue:
        if content_hash not in self._catalogues:
            try:
                found = archived_catalogue(self._project_dir, content_hash)
            except NotFoundError as error:
                raise DataError(faults=error.faults) from None
            self._catalogues[content_hash] = found
        return self._catalogues[content_hash]

    def _window(self, content_hash: str) -> float:
        """Days until the answers to any offer of a catalogue are complete."""
        if content_hash not in self._windows:
            offers = self._catalogue(content_hash).offers
            days = [o.response_window_days or self._asked.window_days for o in offers]
            without = [o.id for o, found in zip(offers, days, strict=True) if found is None]
            if without:
                raise DataError(
                    "evaluation", "nobody knows when the answers to some offers are complete",
                    expected="response_window_days for every offer", got="none for "
                    + ", ".join(without[:5]) + (" and others" if len(without) > 5 else ""),
                    action="Say how long to wait with --window-days",
                )  # fmt: skip
            self._windows[content_hash] = max(float(found) for found in days if found is not None)
        return self._windows[content_hash]

    def _check(self, inputs: Mapping[str, Any]) -> None:
        """Refuse what the records of one policy's decisions cannot tell about the other."""
        channel = inputs["situation"]["channel"]
        key = f"{inputs['policy_hash']} {channel}"
        if key in self._checked:
            return
        try:
            logged = archived_policy(self._project_dir, inputs["policy_hash"])
        except NotFoundError as error:
            raise DataError(faults=error.faults) from None
        faults = list(_unanswerable(self._target, logged, channel))
        if faults:
            raise DataError(faults=faults)
        self._checked.add(key)

    def _bind(self, inputs: Mapping[str, Any]) -> tuple[BoundCatalogue, BoundPolicy]:
        columns = columns_of(inputs)
        told = sorted((name, column.type, column.source) for name, column in columns.items())
        key = json.dumps([inputs["catalogue_hash"], told])
        if key not in self._bound:
            try:
                bound = bind(self._catalogue(inputs["catalogue_hash"]), self._target, columns)
            except ConfigError as error:
                action = (
                    "Records hold the columns that catalogue and policy read when they decided, "
                    "and scores. Let the live policy read it, and evaluate what it decides then."
                )
                faults = [replace(f, action=f"{f.action} {action}".strip()) for f in error.faults]
                raise ConfigError(faults=faults) from None
            self._bound[key] = bound
        return self._bound[key]

    def _decide(self, members: Sequence[LoggedDecision]) -> Iterator[_Row]:
        many = [one.record["inputs"] for one in members]
        decisions = redecide_all(many, *self._bind(many[0]))
        offers = decisions.catalogue.offer_ids
        amounts = [np.broadcast_to(getattr(decisions.values, name), decisions.fates.shape)
                   for name in AMOUNTS]  # fmt: skip
        context = dict(_context(decisions))
        for row, one in enumerate(members):
            record = one.record
            chosen = one.contacts[0].offer_id if one.contacts else None
            column = offers.index(chosen) if chosen is not None else -1
            chances = decisions.probabilities[row]
            self._policies[record["inputs"]["policy_hash"]] += 1
            self._decided_from[record["inputs"]["catalogue_hash"]] += 1
            yield _Row(
                one.decision_id,
                one.customer_id,
                chosen,
                record["selection"]["probabilities"],
                {offers[j]: float(chances[j]) for j in np.flatnonzero(chances[:-1])},
                tuple(0.0 if column < 0 else float(a[row, column]) for a in amounts),
                {name: float(values[row]) for name, values in context.items()},
            )

    def result(self) -> Reconsidered:
        """Return what was found as arrays."""
        left = {reason: self._left[reason] for reason in LEFT_OUT if self._left[reason]}
        rows = self._rows
        if not rows:
            told = ", ".join(f"{n:,} {reason}" for reason, n in left.items()) or "0 decisions"
            raise DataError("evaluation", "no decision is left that could be evaluated",
                            expected="decisions of the policy whose time to answer is over",
                            got=told)  # fmt: skip
        ids = tuple(sorted({o for c in self._catalogues.values() for o in c.offer_ids}))
        place = {offer: i for i, offer in enumerate(ids)}
        names = sorted({name for row in rows for name in row.context})
        return Reconsidered(
            tuple(row.decision_id for row in rows),
            tuple(row.customer_id for row in rows),
            ids,
            np.array([place.get(row.offer_id or "", len(ids)) for row in rows], dtype=np.int64),
            _matrix([row.logged for row in rows], place),
            _matrix([row.other for row in rows], place),
            {name: np.array([row.amounts[i] for row in rows]) for i, name in enumerate(AMOUNTS)},
            {n: np.array([row.context.get(n, np.nan) for row in rows]) for n in names},
            left,
            dict(self._policies),
            dict(self._decided_from),
            tuple(
                sorted(
                    {
                        o.id
                        for c in self._catalogues.values()
                        for o in c.offers
                        if o.goal == "retain"
                    }
                )
            ),
            (min(self._windows.values()), max(self._windows.values())),
        )


def _for_everybody(policy: Policy) -> Policy:
    """The policy as it treats those whom it does not hold out or take into an arm."""
    tables = policy.tables
    holdout = tables.holdout.model_copy(update={"share": 0.0})
    return replace(policy, tables=tables.model_copy(update={"holdout": holdout, "arms": Arms()}))


def _unanswerable(target: Policy, logged: Policy, channel: str) -> Iterator[Fault]:
    if channel not in target.tables.channels:
        yield Fault(target.where, f'it has no channel "{channel}", on which was decided',
                    "the channels of the log", ", ".join(target.tables.channels))  # fmt: skip
    known = logged.tables.limits()
    for limit in target.tables.limits():
        counts = limit.applies_to(channel)
        if counts and not any(_covers(one, limit, channel) for one in known):
            yield Fault(
                f'{target.where}: [contact] "{limit.name}"',
                "it counts what the records do not hold",
                f"{limit.kind}s within {limit.at_most_days:g} days, counted by a limit of the "
                "policy that decided",
                "records keep the contacts that its own limits counted",
                "Give the live policy such a limit, however high; evaluate what it decides then",
            )  # fmt: skip
    if target.tables.contact.count_history and not logged.tables.contact.count_history:
        yield Fault(f"{target.where}: [contact]", "count_history counts what the records do not "
                    "hold", "as in the policy that decided")  # fmt: skip
    learns, learnt = target.tables.exploration.learns(), logged.tables.exploration.learns()
    if learns and not learnt:
        yield Fault(
            f"{target.where}: [exploration]",
            "it learns from what offers did before, which the records do not hold",
            "a policy that does not learn, or a log of one that does",
            target.tables.exploration.policy,
        )  # fmt: skip


def _covers(one: Limit, other: Limit, channel: str) -> bool:
    """Whether all events that the other limit counts on a channel were kept for this one."""
    if not one.applies_to(channel) or one.kind != other.kind:
        return False
    if one.period is None:
        longer = (one.days or 0.0) >= other.at_most_days
    else:
        longer = (one.period, one.zone) == (other.period, other.zone)
    kept, wanted = (_channels(limit, channel) for limit in (one, other))
    return longer and (not kept or (bool(wanted) and wanted <= kept))


def _channels(limit: Limit, channel: str) -> frozenset[str]:
    """On which channels the limit counts what happened; empty for all."""
    return frozenset({channel}) if limit.scope == "channel" else limit.channels


def _context(decisions: Decisions) -> Iterator[tuple[str, Array]]:
    """Numbers of the customers, and how likely each was to answer each offer."""
    for name, values in decisions.audience.columns.items():
        if values.dtype.kind == "f":
            yield name, np.where(np.isfinite(values), values, np.nan)
    for at, offer in enumerate(decisions.catalogue.offer_ids):
        yield f"propensity of {offer}", decisions.audience.propensity[:, at]


def _matrix(vectors: Sequence[Mapping[str, float]], place: Mapping[str, int]) -> Array:
    matrix = np.zeros((len(vectors), len(place) + 1))
    for row, vector in enumerate(vectors):
        for offer, chance in vector.items():
            matrix[row, place[offer]] = chance
    matrix[:, -1] = np.maximum(1 - matrix.sum(axis=1), 0.0)
    return matrix
