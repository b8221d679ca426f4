"""What customers do as it happens: keep each event once, and refuse those of tomorrow."""

from __future__ import annotations

from collections.abc import Sequence
from datetime import datetime

from nextbest.serve.outcomes import MAX_CLOCK_SKEW
from nextbest.serve.records import CustomerEvent
from nextbest.serve.schemas import EventReport, EventResult
from nextbest.serve.store import Store

__all__ = ["record"]


def record(store: Store, reports: Sequence[EventReport], now: datetime) -> list[EventResult]:
    """Keep every event that has happened, and say of each what became of it.

    Late events are kept, too, and so are those of customers that nobody knows yet.

    Parameters
    ----------
    store : where events are kept; what comes back ``stored`` or ``duplicate`` is durable.
    reports : in any order.
    now : the latest moment that counts as past (aware UTC), give or take five minutes. An event
        within these five minutes counts as having happened now: the caller's clock is ahead.
    """
    past = [report for report in reports if report.event_at <= now + MAX_CLOCK_SKEW]
    kept = [CustomerEvent(**report.model_dump(), received_at=now) for report in past]
    statuses = iter(store.record_events(kept))
    return [
        _result(report, next(statuses))
        if report.event_at <= now + MAX_CLOCK_SKEW
        else _refused(
            report,
            "event-in-future",
            f"event_at is {report.event_at.isoformat()}, now is {now.isoformat()}",
            "event_at",
        )
        for report in reports
    ]


def _result(report: EventReport, status: str) -> EventResult:
    if status == "conflict":
        detail = f'event "{report.event_id}" was reported before with other content'
        return _refused(report, "event-conflict", detail, "event_id")
    return EventResult.model_validate({"event_id": report.event_id, "status": status})


def _refused(report: EventReport, code: str, detail: str, field: str) -> EventResult:
    return EventResult(
        event_id=report.event_id, status="refused", code=code, detail=detail, field=field
    )
