"""How each offer has done, over all customers: counted by the database, not by us."""

from __future__ import annotations

from collections.abc import Sequence
from datetime import datetime
from typing import Any

import sqlalchemy as sa

from nextbest.serve.records import Tally, naive_utc
from nextbest.serve.store.tables import CONTACTS, OUTCOMES

__all__ = ["contacts_by_offer", "tallies", "tallies_query"]


def tallies(
    connection: sa.Connection,
    answers: Sequence[str],
    at: datetime,
    without_batch: str | None,
    since: datetime | None = None,
) -> dict[str, Tally]:
    """Return how each offer has done; see `Store.tallies`."""
    after = None if since is None else naive_utc(since)
    query = tallies_query(answers, naive_utc(at), without_batch, after)
    return {
        row.offer_id: Tally(
            contacts=int(row.contacts),
            responses=int(row.responses),
            settled=int(row.settled),
            settled_responses=int(row.settled_responses),
            expected_responses=float(row.expected_responses),
            explored=int(row.explored),
            loss=float(row.loss),
            loss_squared=float(row.loss_squared),
        )
        for row in connection.execute(query)
    }


def contacts_by_offer(connection: sa.Connection, until: datetime) -> dict[str, int]:
    """Return how often each offer was made up to a moment."""
    made = CONTACTS.c
    query = sa.select(made.offer_id, sa.func.count()).group_by(made.offer_id)
    rows = connection.execute(query.where(made.contacted_at <= naive_utc(until)))
    return {offer: count for offer, count in rows}


def tallies_query(
    answers: Sequence[str], at: datetime, without: str | None, after: datetime | None = None
) -> sa.Select[Any]:
    """One statement, so that contacts and answers are those of one moment, in every database.

    All contacts are counted as if nobody had answered, from an index alone; then come the few that
    somebody did answer, with the difference that this makes.
    """
    made = CONTACTS.c
    counts = made.contacted_at <= at
    if without is not None:
        counts &= made.batch.is_(None) | (made.batch != without)
    if after is not None:
        counts &= made.contacted_at > after
    settled = made.window_ends_at <= at
    tried = settled & made.loss_if_ignored.is_not(None)
    lost, earned = made.loss_if_ignored, made.loss_if_answered
    answered = _answered(answers, at)
    inside, credited = settled & (answered.c.inside == 1), tried & (answered.c.credited == 1)
    zero = sa.literal(0)
    of_contacts = (
        sa.select(
            made.offer_id.label("offer_id"),
            sa.func.count().label("contacts"),
            zero.label("responses"),
            _sum_where(settled, 1).label("settled"),
            zero.label("settled_responses"),
            _sum_where(settled, sa.func.coalesce(made.propensity, 0.0)).label("expected_responses"),
            _sum_where(tried, 1).label("explored"),
            _sum_where(tried, lost).label("loss"),
            _sum_where(tried, lost * lost).label("loss_squared"),
        )
        .where(counts)
        .group_by(made.offer_id)
    )
    same = (made.decision_id == answered.c.decision_id) & (made.rank == answered.c.rank)
    of_answers = (
        sa.select(
            made.offer_id,
            zero,
            sa.func.count(),
            zero,
            _sum_where(inside, 1),
            _sum_where(inside & made.propensity.is_(None), 1.0),
            zero,
            _sum_where(credited, earned - lost),
            _sum_where(credited, earned * earned - lost * lost),
        )
        .select_from(sa.join(answered, CONTACTS, same))
        .where(counts)
        .group_by(made.offer_id)
    )
    parts = sa.union_all(of_contacts, of_answers).subquery()
    totals = [sa.func.sum(column).label(column.name) for column in list(parts.c)[1:]]
    query = sa.select(parts.c.offer_id, *totals).group_by(parts.c.offer_id)
    return query.order_by(parts.c.offer_id)


def _sum_where(condition: sa.ColumnElement[bool], value: Any) -> sa.ColumnElement[Any]:
    return sa.func.sum(sa.case((condition, value), else_=0))


def _alike(one: sa.ColumnElement[Any], other: sa.ColumnElement[Any]) -> sa.ColumnElement[bool]:
    """Equality that no index is used for: contacts of one offer are nearly all there are."""
    return sa.case((one == other, 1), else_=0) == 1


def _answered(answers: Sequence[str], at: datetime) -> sa.Subquery:
    """Contacts with an answer, once each: whether in time, and whether its money is theirs."""
    seen, made, later = OUTCOMES.c, CONTACTS.c, CONTACTS.alias("later").c
    in_time = sa.case((seen.occurred_at <= made.window_ends_at, 1), else_=0)
    replaced = (
        sa.select(sa.literal(1))
        .where(later.customer_id == made.customer_id, _alike(later.offer_id, made.offer_id))
        .where(later.contacted_at <= seen.occurred_at)
        .where(
            (later.contacted_at > made.contacted_at)
            | ((later.contacted_at == made.contacted_at) & (later.decision_id > made.decision_id))
        )
        .exists()
    )
    about = (seen.customer_id == made.customer_id) & _alike(seen.offer_id, made.offer_id)
    of_decision = about & (seen.decision_id == made.decision_id)
    of_nothing = about & seen.decision_id.is_(None) & (seen.occurred_at >= made.contacted_at)
    found = [
        sa.select(
            made.decision_id.label("decision_id"),
            made.rank.label("rank"),
            in_time.label("inside"),
            credited.label("credited"),
        )
        .select_from(sa.outerjoin(OUTCOMES, CONTACTS, told))
        .where(seen.outcome_type.in_(answers), seen.occurred_at <= at)
        for told, credited in (
            (of_decision, in_time),
            (of_nothing, sa.case((replaced, 0), else_=in_time)),
        )
    ]
    # Joined from the left, or a database without statistics reads all contacts to find the answers;
    # what answers no contact drops out where the contact is looked up again.
    each = sa.union_all(*found).subquery()
    return (
        sa.select(
            each.c.decision_id,
            each.c.rank,
            sa.func.max(each.c.inside).label("inside"),
            sa.func.max(each.c.credited).label("credited"),
        )
        .group_by(each.c.decision_id, each.c.rank)
        .subquery()
    )
