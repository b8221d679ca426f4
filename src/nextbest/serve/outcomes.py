"""What became of decisions: check each report against what was decided, and keep it once."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta

from nextbest.errors import did_you_mean
from nextbest.serve.records import Outcome, ReportStatus
from nextbest.serve.schemas import OutcomeReport, OutcomeResult
from nextbest.serve.store import Store

__all__ = ["MAX_CLOCK_SKEW", "record"]

MAX_CLOCK_SKEW = timedelta(minutes=5)
# Other systems' clocks and time zones are wrong by hours; more than that is another event.
MAX_BEFORE_DECISION = timedelta(days=1)


@dataclass(frozen=True)
class _Refusal:
    """Why a report was not kept; ``field`` is what to look at."""

    code: str
    detail: str
    field: str


def record(
    store: Store, reports: Sequence[OutcomeReport], offer_ids: Collection[str], now: datetime
) -> list[OutcomeResult]:
    """Keep every report that makes sense, and say of each what became of it.

    Parameters
    ----------
    store : where outcomes are kept; what comes back ``stored`` or ``duplicate`` is durable.
    reports : in any order; late, repeated and mixed ones are fine.
    offer_ids : the catalogue's offers. An offer that has left it may still be reported with the
        decision that chose it.
    now : the latest moment that counts as past (aware UTC), give or take five minutes.
    """
    named = [report.decision_id for report in reports if report.decision_id is not None]
    decisions = list(dict.fromkeys(named))
    chosen = store.chosen(decisions) if named else {}
    decided_at = store.decided_at(decisions) if named else {}
    checked = [_check(report, chosen, decided_at, offer_ids, now) for report in reports]
    sound = [found for found in checked if isinstance(found, Outcome)]
    statuses = iter(store.record_outcomes(sound))
    return [
        _result(report, found if isinstance(found, _Refusal) else next(statuses))
        for report, found in zip(reports, checked, strict=True)
    ]


def _result(report: OutcomeReport, found: _Refusal | ReportStatus) -> OutcomeResult:
    if found == "conflict":
        detail = f'outcome "{report.outcome_id}" was reported before with other content'
        found = _Refusal("outcome-conflict", detail, "outcome_id")
    if isinstance(found, _Refusal):
        return OutcomeResult(
            outcome_id=report.outcome_id,
            status="refused",
            code=found.code,
            detail=found.detail,
            field=found.field,
        )
    return OutcomeResult(outcome_id=report.outcome_id, status=found)


def _check(
    report: OutcomeReport,
    chosen: Mapping[str, tuple[str, tuple[str, ...]]],
    decided_at: Mapping[str, datetime],
    offer_ids: Collection[str],
    now: datetime,
) -> Outcome | _Refusal:
    customer_id, offer_id = report.customer_id, report.offer_id
    if report.occurred_at > now + MAX_CLOCK_SKEW:
        detail = f"occurred_at is {report.occurred_at.isoformat()}, now is {now.isoformat()}"
        return _Refusal("outcome-in-future", detail, "occurred_at")
    if report.decision_id is None:
        if offer_id not in offer_ids:
            return _unknown_offer(str(offer_id), offer_ids)
    else:
        if report.decision_id not in chosen:
            detail = f'there is no decision "{report.decision_id}"'
            return _Refusal("unknown-decision", detail, "decision_id")
        made = decided_at[report.decision_id]
        if report.occurred_at < made - MAX_BEFORE_DECISION:
            said = report.occurred_at.isoformat()
            detail = f"occurred_at is {said}, the decision was made at {made.isoformat()}"
            return _Refusal("outcome-before-decision", detail, "occurred_at")
        owner, offers = chosen[report.decision_id]
        if customer_id is not None and customer_id != owner:
            detail = f'decision "{report.decision_id}" is not about customer "{customer_id}"'
            return _Refusal("customer-mismatch", detail, "customer_id")
        customer_id = owner
        if offer_id is None and len(offers) > 1:
            detail = "the decision chose several offers; offer_id must be " + _one_of(offers)
            return _Refusal("offer-not-in-decision", detail, "offer_id")
        if offer_id is not None and offer_id not in offers:
            if offer_id not in offer_ids:
                return _unknown_offer(offer_id, offer_ids)
            detail = f'the decision did not choose offer "{offer_id}" but {_one_of(offers)}'
            return _Refusal("offer-not-in-decision", detail, "offer_id")
        # An outcome after a decision without an offer (a holdout, say) is about no offer.
        if offer_id is None and offers:
            offer_id = offers[0]
    return Outcome(
        outcome_id=report.outcome_id,
        customer_id=str(customer_id),
        offer_id=offer_id,
        outcome_type=report.outcome_type,
        occurred_at=report.occurred_at,
        value=report.value,
        decision_id=report.decision_id,
    )


def _unknown_offer(offer_id: str, offer_ids: Collection[str]) -> _Refusal:
    hint = did_you_mean(offer_id, offer_ids)
    detail = f'the catalogue has no offer "{offer_id}". {hint}'.rstrip()
    return _Refusal("unknown-offer", detail, "offer_id")


def _one_of(offers: Sequence[str]) -> str:
    if not offers:
        return "no offer"
    return " or ".join(f'"{offer}"' for offer in offers)
