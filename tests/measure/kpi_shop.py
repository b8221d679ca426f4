"""A shop small enough to work out by hand: a few kinds of customers, many copies of each."""

from collections.abc import Mapping, Sequence
from datetime import UTC, datetime, timedelta
from typing import Any

import ibis
import pandas as pd

from nextbest.data.contract import History, check_and_clean
from nextbest.measure.kpi.calendar import Calendar, calendar
from nextbest.measure.kpi.rows import Shop
from nextbest.measure.kpi.settings import (
    CustomerSettings,
    PeriodSettings,
    Rates,
    ReportSettings,
)

#: The period is day 140 to 168 after this day, the baseline day 112 to 140.
DAY_0 = datetime(2024, 1, 1)
DAYS = 28
UNTIL = DAY_0 + timedelta(days=168)
SETTINGS = ReportSettings(
    period=PeriodSettings(days=DAYS, response_days=7),
    customers=CustomerSettings(
        lookback_days=42,
        hvc_share=0.4,
        churn_days=20,
        at_risk_days=20,
        lapsed_days=40,
        by=("region",),
    ),
)
RATES = Rates(margin_rate=0.5, contact=1.0)


def at(day: float) -> datetime:
    """Return noon of a day, so that days and periods do not meet at midnight."""
    return DAY_0 + timedelta(days=day, hours=12)


def history(
    people: Mapping[str, Mapping[str, Any]],
    orders: Sequence[tuple[str, float, float]],
    contacts: Sequence[tuple[str, str, float]] = (),
    responses: Sequence[tuple[str, str, float, str, float]] = (),
    events: Sequence[tuple[str, float, str]] = (),
    arms: Mapping[str, str] | None = None,
) -> History:
    """Return a clean history: orders (who, day, amount), contacts (who, offer, day), ...

    responses are (who, offer, day, type, value) with an incentive of a tenth of the value; events
    (who, day, type).
    """
    connection = ibis.duckdb.connect()
    who = pd.DataFrame([{"customer_id": c, **about} for c, about in people.items()])
    if arms:
        who["arm"] = who["customer_id"].map(arms)
    frames = {
        "customers": who,
        "transactions": pd.DataFrame(
            [(c, f"o{i}", at(d), float(a)) for i, (c, d, a) in enumerate(orders)],
            columns=["customer_id", "order_id", "ordered_at", "amount"],
        ),
    }
    if contacts:
        frames["contacts"] = pd.DataFrame(
            [(c, o, at(d), "mail" if o < "n" else "email") for c, o, d in contacts],
            columns=["customer_id", "offer_id", "contacted_at", "channel"],
        )
        offers = sorted({o for _, o, _ in contacts})
        frames["offers"] = pd.DataFrame({"offer_id": offers, "name": [f"The {o}" for o in offers]})
    if responses:
        frames["responses"] = pd.DataFrame(
            [(c, o, at(d), kind, float(v), v / 10) for c, o, d, kind, v in responses],
            columns=["customer_id", "offer_id", "responded_at", "response_type", "value",
                     "incentive_cost"],
        )  # fmt: skip
    if events:
        frames["events"] = pd.DataFrame(
            [(c, at(d), kind) for c, d, kind in events],
            columns=["customer_id", "event_at", "event_type"],
        )
    tables = {name: connection.create_table(name, frame) for name, frame in frames.items()}
    return check_and_clean(tables, observed_until=UNTIL, error_limit=0.5)


def days(found: History, settings: ReportSettings = SETTINGS) -> Calendar:
    """Return the toy shop's calendar."""
    return calendar(settings.period, found, UTC)


def shop(found: History, settings: ReportSettings = SETTINGS, rates: Rates = RATES) -> Shop:
    """Return the prepared shop."""
    return Shop(found, settings, rates)


COPIES = 40


def kinds() -> History:
    """Return six kinds of customers, forty of each.

    ``often`` orders 10 on days 60, 80, 100 and 120, then 20 on 145 and 155; ``once`` orders 30 on
    110, 115 and 150; ``gone`` orders 40 on 118 and never again; ``new`` orders 50 on 160;
    ``never`` was contacted on 130 and has not bought, was contacted again on 142 and bought for 60
    on 144, and answered the offer. ``big`` orders 100 on 75 and on 150.
    """
    people, orders, contacts, responses, events = {}, [], [], [], []
    bought = {
        "often": [(60, 10), (80, 10), (100, 10), (120, 10), (145, 20), (155, 20)],
        "once": [(110, 30), (115, 30), (150, 30)],
        "gone": [(118, 40)],
        "new": [(160, 50)],
        "never": [(144, 60)],
        "big": [(75, 100), (150, 100)],
    }
    for kind, lines in bought.items():
        for i in range(COPIES):
            name = f"{kind}-{i:02}"
            people[name] = {"region": "north" if kind in ("often", "once") else "south"}
            orders += [(name, d, a) for d, a in lines]
            if kind == "often":
                contacts += [(name, "book", 114.0), (name, "book", 141.0), (name, "note", 150.0)]
                if i < 30:
                    responses.append((name, "book", 145.0, "redemption", 20.0))
                if i < 20:
                    responses.append((name, "book", 116.0, "redemption", 10.0))
                responses.append((name, "note", 151.0, "click", 0.0))
                events += [(name, 143.0, "visit"), (name, 144.0, "cart_add"), (name, 115.0, "open")]
            if kind == "never":
                contacts += [(name, "book", 130.0), (name, "book", 142.0)]
                responses.append((name, "book", 144.0, "redemption", 60.0))
    return history(people, orders, contacts, responses, events)
