"""What the store keeps of a decision, and what is said of it: record, answer, explanation."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from datetime import timedelta
from typing import TYPE_CHECKING, Any

from nextbest.decide.engine import Decisions
from nextbest.decide.frame import utc
from nextbest.decide.inputs import inputs_of
from nextbest.decide.words import plain
from nextbest.serve.audience import Shaper
from nextbest.serve.live import News
from nextbest.serve.records import DecisionRecord, Stake

if TYPE_CHECKING:
    from nextbest.serve.runtime import State

__all__ = ["answer_of", "contributions_of", "explained", "record_of"]


def record_of(
    state: State,
    decisions: Decisions,
    row: int,
    request: Mapping[str, Any],
    request_hash: str,
    idempotency_key: str | None = None,
    batch: str | None = None,
) -> DecisionRecord:
    """Return what the store keeps of one decision: question, answer, and what it was made from.

    The trace is not kept: `nextbest.decide.inputs.redecide` makes it again from the inputs.

    Parameters
    ----------
    state : what was decided with.
    row : which of the decisions.
    batch : what all decisions of a batch have in common, so that it can leave out its own.
    """
    names = state.bundle.score_names
    answer = answer_of(decisions, row, names, state.ignored_prices(decisions))
    offer_ids = tuple(offer["offer_id"] for offer in answer["offers"])
    record = {
        "request": dict(request),
        "answer": answer,
        "selection": decisions.selection(row),
        "inputs": inputs_of(decisions, row, keep=names),
    }
    if request.get("explain"):
        live = decisions.audience.live.get(answer["customer_id"])
        record["contributions"] = contributions_of(state.shaper, answer, live)
    return DecisionRecord(
        decision_id=answer["decision_id"],
        customer_id=answer["customer_id"],
        decided_at=utc(decisions.situation.decided_at),
        channel=decisions.situation.channel,
        arm=answer["arm"],
        offer_ids=offer_ids,
        record=record,
        request_hash=request_hash,
        idempotency_key=idempotency_key,
        stakes=_stakes(decisions, row),
        batch=batch,
    )


def _stakes(decisions: Decisions, row: int) -> tuple[Stake, ...]:
    """What the contact log keeps of each offer made, to learn from it later."""
    stakes = []
    for slot, offer in enumerate(decisions.chosen[row]):
        if offer < 0:
            break
        days = decisions.catalogue.catalogue.offers[offer].response_window_days
        at = utc(decisions.situation.decided_at)
        stake = Stake(
            propensity=plain(decisions.audience.propensity[row, offer]),
            window_ends_at=None if days is None else at + timedelta(days=days),
            loss_if_ignored=plain(decisions.losses.ignored[row, slot]),
            loss_if_answered=plain(decisions.losses.answered[row, slot]),
        )
        stakes.append(stake)
    return tuple(stakes)


def answer_of(
    decisions: Decisions, row: int, scores: Sequence[str], prices_ignored: str | None = None
) -> dict[str, Any]:
    """Return the answer to one question, as callers get it and the store keeps it.

    Parameters
    ----------
    scores : names of the scores to tell.
    prices_ignored : why stored scarcity prices did not decide, where there were any.
    """
    said = decisions.answer(row)
    audience = decisions.audience
    columns = audience.columns
    told = {name: plain(columns[name][row]) if name in columns else None for name in scores}
    as_of = audience.as_of
    return {
        "decision_id": said["decision_id"],
        "customer_id": said["customer_id"],
        "decided_at": said["decided_at"],
        "channel": decisions.situation.channel,
        "arm": said["arm"],
        "fallback": not said["known_customer"],
        "profile_stale": said["profile_stale"],
        "offers": said["offers"],
        "no_offer_reasons": said["no_offer_reasons"],
        "scores": told,
        **({} if prices_ignored is None else {"prices_ignored": prices_ignored}),
        "versions": {
            "models": audience.versions["models"],
            "bundle": audience.versions["bundle"],
            "profiles_as_of": None if as_of is None else plain(as_of),
            "catalogue": decisions.catalogue.catalogue.content_hash,
            "policy": decisions.policy.policy.content_hash,
            **_prices_version(decisions),
        },
    }


def _prices_version(decisions: Decisions) -> dict[str, str]:
    """Name the scarcity prices that decided, where any did."""
    if decisions.prices is None:
        return {}
    return {"prices": decisions.prices.content_hash}


def contributions_of(
    shaper: Shaper, answer: Mapping[str, Any], live: Mapping[str, Any] | None
) -> dict[str, list[dict[str, Any]]]:
    """Return for each offer made what moved its propensity most; nothing for strangers.

    Shapley values take longer than the decision itself, so they are worked out on request. ``live``
    is what the decision's inputs say of features that are newer than the profiles.
    """
    if answer["fallback"]:
        return {}
    news = None if live is None else News.of_record(live)
    return {
        offer["offer_id"]: shaper.contributions(answer["customer_id"], offer["offer_id"], news=news)
        for offer in answer["offers"]
    }


def explained(
    decisions: Decisions, row: int, contributions: Mapping[str, Sequence[Mapping[str, Any]]]
) -> dict[str, Any]:
    """Return the trace of one decision with what moved the propensities, in numbers and words."""
    because = {offer_id: _because(found) for offer_id, found in contributions.items()}
    return {
        **decisions.trace(row),
        "contributions": {offer_id: list(found) for offer_id, found in contributions.items()},
        "because": because,
    }


def _because(contributions: Sequence[Mapping[str, Any]]) -> str:
    parts = [
        f"{one['feature']} {_value(one['value'])} ({one['effect']:+.2f})" for one in contributions
    ]
    return "because " + ", ".join(parts) if parts else "as for the average customer"


def _value(value: float | str | None) -> str:
    if value is None:
        return "unknown"
    return f"{value:.4g}" if isinstance(value, float) else value
