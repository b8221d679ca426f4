"""Where the data is: the Starbucks rewards app, simulated, mapped onto the contract.

The folder stands in the environment variable STARBUCKS. Its clock counts hours; here they begin on
1 August 2018 UTC. A quarter of the people are read, so that the test is quick.

A response is a purchase within 72 hours of the contact, whether or not the offer was completed:
what an offer is worth is what people spend because of it. It is known when the 72 hours are over.
"""

import os
from pathlib import Path

import ibis

QUARTER = "4"  # ids are hexadecimal
WAVES = (0, 168, 336, 408)
WINDOW_HOURS = 72


def tables() -> dict[str, ibis.Table]:
    """Return the contract's tables."""
    folder = Path(os.environ["STARBUCKS"])
    shop = ibis.duckdb.connect()
    people = shop.read_parquet(folder / "profile.parquet")
    events = shop.read_parquet(folder / "transcript_to_t503.parquet")
    portfolio = named(shop.read_json(folder / "portfolio.json"))
    events = events.filter(events.person < QUARTER)
    sent = received(events, portfolio)
    return {
        "customers": customers(people.filter(people.id < QUARTER)),
        "transactions": transactions(events),
        "contacts": contacts(sent),
        "responses": responses(events, sent),
        "offers": offers(portfolio),
    }


def moment(hours: ibis.Value) -> ibis.Value:
    """Hours of the data's clock as UTC."""
    return ibis.timestamp("2018-08-01") + hours.as_interval("h")


def named(portfolio: ibis.Table) -> ibis.Table:
    """Offers by what they are: type, to spend, to get, days; such as discount-10-2-7."""
    p = portfolio
    parts = (p.difficulty.cast("int64"), p.reward.cast("int64"), p.duration.cast("int64"))
    name = p.offer_type
    for part in parts:
        name = name + "-" + part.cast("string")
    return p.select(offer=p.id, name=name)


def customers(people: ibis.Table) -> ibis.Table:
    """One row per person; 118 years mean that nobody said."""
    joined = people.became_member_on.cast("string").as_timestamp("%Y%m%d")
    return people.select(
        customer_id=people.id,
        gender=people.gender,
        age_years=people.age.nullif(118),
        income=people.income,
        member_since=joined,
    )


def transactions(events: ibis.Table) -> ibis.Table:
    """One row per purchase."""
    bought = events.filter(events.event == "transaction")
    order = [bought.person, bought.time, bought.amount]
    return bought.select(
        customer_id=bought.person,
        order_id=ibis.row_number().over(order_by=order).cast("string"),
        ordered_at=moment(bought.time),
        amount=bought.amount,
    )


def received(events: ibis.Table, portfolio: ibis.Table) -> ibis.Table:
    """One row per offer sent; each wave's offers have names of their own."""
    got = events.filter(events.event == "offer received").inner_join(portfolio, "offer")
    return got.select(
        customer_id=got.person,
        offer_id=got.name + "-h" + got.time.cast("string"),
        contacted_at=moment(got.time),
        wave=got.time,
    )


def contacts(sent: ibis.Table) -> ibis.Table:
    """One row per offer sent; each was dealt with the same chance."""
    return sent.select(
        "customer_id",
        "offer_id",
        "contacted_at",
        channel=ibis.literal("app"),
        selection_probability=ibis.literal(0.075),
    )


def responses(events: ibis.Table, sent: ibis.Table) -> ibis.Table:
    """What each contacted person who bought spent in 72 hours, and the rewards paid in them."""
    both = sent.inner_join(events, sent.customer_id == events.person)
    both = both.filter((both.time >= both.wave) & (both.time < both.wave + WINDOW_HOURS))
    bought = both.event == "transaction"
    each = both.group_by("customer_id", "offer_id", "wave").aggregate(
        first=both.time.min(where=bought),
        value=both.amount.sum(where=bought),
        incentive_cost=both.reward.sum(where=both.event == "offer completed").fill_null(0.0),
    )
    each = each.filter(each["first"].notnull())
    return each.select(
        "customer_id",
        "offer_id",
        "incentive_cost",
        value=each.value.round(2),
        responded_at=moment(each["first"]),
        response_type=ibis.literal("purchase"),
        known_at=moment(each.wave + WINDOW_HOURS),
    )


def offers(portfolio: ibis.Table) -> ibis.Table:
    """One row per offer and wave, and one by its own name for the decision that is to be made."""
    p = portfolio
    suffixes = ["", *(f"-h{wave}" for wave in WAVES)]
    every = p.cross_join(ibis.memtable({"suffix": suffixes}))
    return every.select(
        offer_id=every.name + every.suffix,
        name=every.name,
        offer_type=every.name,
        known_at=ibis.timestamp("2018-07-01"),
    )
