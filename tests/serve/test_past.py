"""What the store knows of customers, as the contact policy reads it and as a record counts it."""

from __future__ import annotations

from datetime import datetime
from typing import Any

import numpy as np
from hypothesis import given, settings
from hypothesis import strategies as st

from nextbest.decide.contact import KINDS
from nextbest.serve.audience import Past
from nextbest.serve.records import Contacts, Outcomes

CUSTOMERS, OFFERS = ["c1", "c2", "c3"], ("x", "y")
MEANS = {"response": "acceptance", "complaint": "refusal", "purchase": "purchase"}

who = st.sampled_from([*CUSTOMERS, "stranger"])
moments = st.datetimes(datetime(1905, 1, 1), datetime(2105, 1, 1))
contacts = st.lists(
    st.tuples(who, st.sampled_from(["x", "y", "gone"]), st.sampled_from(["mail", "web"]), moments)
)
outcomes = st.lists(
    st.tuples(
        who,
        st.sampled_from(["x", "gone", None]),
        st.sampled_from(["app", None]),
        st.sampled_from([*MEANS, "open"]),
        moments,
    )
)


def columns(rows: list[Any], width: int) -> list[tuple[Any, ...]]:
    return list(zip(*rows, strict=True)) or [()] * width


@settings(max_examples=80, deadline=None)
@given(contacts, outcomes)
def test_every_event_of_the_customers_asked_about_is_there_in_its_order(
    made: list[Any], said: list[Any]
) -> None:
    ids = tuple(f"d{i}" for i in range(len(made)))
    past = Past(
        Contacts(*columns(made, 4), ids),
        Outcomes(*columns(said, 5), (None,) * len(said)),
    )
    told = [(c, o, ch, at, "contact") for c, o, ch, at in made]
    told += [(c, o, ch, at, MEANS[kind]) for c, o, ch, kind, at in said if kind in MEANS]
    history = past.history(CUSTOMERS, OFFERS)
    names = (*history.channels, None)
    found = [
        (CUSTOMERS[c], (*OFFERS, None)[o], names[ch], at, KINDS[kind])
        for c, o, ch, at, kind in zip(
            history.customer, history.offer, history.channel, history.time, history.kind,
            strict=True,
        )
    ]  # fmt: skip
    assert found == [
        (c, o if o in OFFERS else None, ch, np.datetime64(at, "us"), kind)
        for customer_id in CUSTOMERS
        for c, o, ch, at, kind in told
        if c == customer_id
    ]
    assert past.rows(CUSTOMERS).rows == {
        c: sum(row[0] == c for row in (*made, *said)) for c in CUSTOMERS
    }
