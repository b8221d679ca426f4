"""Say what became of every offer, and why: trace, funnel and the batch table."""

from __future__ import annotations

from collections import Counter
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

from nextbest.decide import bound as b
from nextbest.decide.case import Case, why
from nextbest.decide.frame import stamp
from nextbest.decide.words import written_time

if TYPE_CHECKING:
    from nextbest.decide.engine import Decisions

__all__ = ["funnel", "table", "trace"]


def trace(decisions: Decisions, row: int) -> dict[str, Any]:
    """Every offer's fate at every step for one customer, JSON-able.

    Each offer lists the steps that it passed and the one that removed it, with every rule's text,
    its clauses' outcomes and the values they saw, the numbers behind its priority, and for every
    amount that is an expression its text and the values that it read. ``live`` says what of the
    profile changed since ``profile_as_of``, from what to what.
    """
    case = Case(decisions, row)
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
                "why": why(steps[-1]),
                "steps": steps,
                "numbers": case.numbers(offer),
                "expressions": case.expressions(offer),
            }
        )
    answer = decisions.answer(row)
    return {
        **decisions.answers.head(row),
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
        "chosen": answer["offers"],
        "no_offer_reasons": answer["no_offer_reasons"],
        "selection": {**decisions.selection(row), **_learnt(decisions)},
        "offers": offers,
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
