"""What the store keeps of a decision, and what is said of it: record, answer, explanation."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from datetime import datetime, timedelta
from typing import TYPE_CHECKING, Any, NamedTuple

import msgspec
import numpy as np
import numpy.typing as npt

from nextbest.decide.answer import Answers
from nextbest.decide.engine import Decisions
from nextbest.decide.frame import Audience
from nextbest.decide.packed import Packing
from nextbest.decide.words import written_time
from nextbest.serve.audience import Shaper
from nextbest.serve.live import News
from nextbest.serve.records import DecisionRecord, Kept, Stake, naive_utc

if TYPE_CHECKING:
    from nextbest.serve.runtime import State

__all__ = ["Filed", "answer_of", "contributions_of", "explained", "records_of"]


class Filed(NamedTuple):
    """What the store keeps of a question, and under which key."""

    request: Mapping[str, Any]
    request_hash: str
    idempotency_key: str | None = None


def records_of(
    state: State,
    decisions: Decisions,
    asked: Sequence[Filed],
    rows: Sequence[int] | None = None,
    batch: str | None = None,
) -> list[DecisionRecord]:
    """Return what the store keeps of decisions: question, answer, and what each was made from.

    The trace is not kept: `nextbest.decide.inputs.redecide` makes it again from what it was made
    from.

    Parameters
    ----------
    state : what was decided with.
    asked : the question of each of these decisions.
    rows : which of the decisions; None for all.
    batch : what all decisions of a batch have in common, so that it can leave out its own.
    """
    names = state.bundle.score_names
    answers = _Answers(decisions, names, state.ignored_prices(decisions))
    packing = Packing(decisions, names)
    stakes = _Stakes(decisions)
    decided_at, channel = naive_utc(decisions.situation.decided_at), decisions.situation.channel
    records = []
    for row, filed in zip(range(len(decisions)) if rows is None else rows, asked, strict=True):
        answer = answers.of(row)
        answer_json = _ENCODER.encode(answer)
        text = {
            "request": filed.request,
            "answer": msgspec.Raw(answer_json),
            "made_from": packing.text(row),
        }
        if filed.request.get("explain"):
            live = decisions.audience.live.get(answer["customer_id"])
            text["contributions"] = contributions_of(state.shaper, answer, live)
        made = answer["offers"]
        records.append(
            DecisionRecord(
                answer["decision_id"],
                answer["customer_id"],
                decided_at,
                channel,
                answer["arm"],
                tuple([offer["offer_id"] for offer in made]),
                Kept(_ENCODER.encode(text).decode(), packing.numbers(row), packing.shared),
                filed.request_hash,
                filed.idempotency_key,
                stakes.of(row, made),
                batch,
                answer_json,
            )
        )
    return records


_ENCODER = msgspec.json.Encoder()


class _Stakes:
    """What the contact log keeps of each offer made, to learn from it later."""

    def __init__(self, decisions: Decisions) -> None:
        self._offers = decisions.catalogue.catalogue.offers
        self._at = naive_utc(decisions.situation.decided_at)
        self._ends: dict[int, datetime] = {}
        self._chosen: list[list[int]] = decisions.chosen.tolist()
        losses = decisions.losses
        self._losses = _as_known(losses.ignored), _as_known(losses.answered)

    def of(self, row: int, made: Sequence[Mapping[str, Any]]) -> tuple[Stake, ...]:
        """What is kept of the offers made to one customer."""
        ignored, answered = self._losses
        stakes = []
        for slot, offer in enumerate(made):
            ends_at = self._end(self._chosen[row][slot])
            losses = ignored[row][slot], answered[row][slot]
            stakes.append(Stake(offer["propensity"], ends_at, *losses))
        return tuple(stakes)

    def _end(self, offer: int) -> datetime | None:
        """Until when a response to an offer counts."""
        days = self._offers[offer].response_window_days
        if days is None:
            return None
        if days not in self._ends:
            self._ends[days] = self._at + timedelta(days=days)
        return self._ends[days]


def answer_of(
    decisions: Decisions, row: int, scores: Sequence[str], prices_ignored: str | None = None
) -> dict[str, Any]:
    """Return the answer to one question, as callers get it and the store keeps it.

    Parameters
    ----------
    scores : names of the scores to tell.
    prices_ignored : why stored scarcity prices did not decide, where there were any.
    """
    return _Answers(decisions, scores, prices_ignored).of(row)


class _Answers:
    """The answers to all customers of some decisions; what they share is looked up once."""

    def __init__(
        self, decisions: Decisions, scores: Sequence[str], prices_ignored: str | None
    ) -> None:
        audience, as_of = decisions.audience, decisions.audience.as_of
        self._said = Answers(decisions)
        self._channel = decisions.situation.channel
        self._ignored = prices_ignored
        self._scores = _scores(audience, scores)
        self._versions = {
            "models": audience.versions["models"],
            "bundle": audience.versions["bundle"],
            "profiles_as_of": None if as_of is None else written_time(as_of),
            "catalogue": decisions.catalogue.catalogue.content_hash,
            "policy": decisions.policy.policy.content_hash,
            **_prices_version(decisions),
        }

    def of(self, row: int) -> dict[str, Any]:
        """The answer to one of them."""
        said = self._said.of(row)
        answer = {
            "decision_id": said["decision_id"],
            "customer_id": said["customer_id"],
            "decided_at": said["decided_at"],
            "channel": self._channel,
            "arm": said["arm"],
            "fallback": not said["known_customer"],
            "profile_stale": said["profile_stale"],
            "offers": said["offers"],
            "no_offer_reasons": said["no_offer_reasons"],
            "scores": self._scores[row],
            "versions": self._versions,
        }
        if self._ignored is not None:
            answer["prices_ignored"] = self._ignored
        return answer


def _scores(audience: Audience, names: Sequence[str]) -> list[dict[str, float | None]]:
    """The scores of each customer; None where unknown, and where the audience has none."""
    known = [name for name in names if name in audience.columns]
    values = [_as_known(np.asarray(audience.columns[name], dtype=np.float64)) for name in known]
    none = dict.fromkeys(names)
    if not known:
        return [none] * len(audience.customer_ids)
    return [{**none, **dict(zip(known, row, strict=True))} for row in zip(*values, strict=True)]


def _as_known(numbers: npt.NDArray[np.float64]) -> list[Any]:
    """Numbers, however deep the array, with None in the place of those that are none."""
    finite = np.isfinite(numbers)
    found = numbers
    if not finite.all():
        found = numbers.astype(object)
        found[~finite] = None
    items: list[Any] = found.tolist()
    return items


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
