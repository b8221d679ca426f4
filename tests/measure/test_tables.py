"""Customers of an experiment from the project's tables, worked by hand, and what is refused."""

from __future__ import annotations

from datetime import datetime, timedelta
from typing import Any

import ibis
import numpy as np
import pandas as pd
import pytest

from nextbest.data.contract import History, check_and_clean
from nextbest.errors import DataError, UsageError
from nextbest.measure.collect import Outcome, collect
from nextbest.measure.experiment import Design, read
from nextbest.measure.tables import BEFORE, OUTCOMES, Watch, customers

START, END = datetime(2024, 3, 1), datetime(2024, 5, 1)
WATCH = Watch(START, END, contact_cost=0.5, retained_days=20)


def rows(names: str, *values: tuple[Any, ...]) -> ibis.Table:
    return ibis.memtable(pd.DataFrame(list(values), columns=names.split()))


def shop(**changed: ibis.Table | None) -> History:
    """Ann and Cy are treated, Bob is held out; Dee is in no arm and counts nowhere."""
    day = datetime.fromisoformat
    tables = {
        "customers": rows(
            "customer_id arm region clv_remainder",
            ("ann", "policy", "north", 100.0), ("bob", "no_contact", "north", 50.0),
            ("cy", "policy", "south", 10.0), ("dee", None, "south", 1.0),
        ),
        "transactions": rows(
            "customer_id order_id ordered_at amount margin is_return",
            ("ann", "1", day("2024-01-10"), 30.0, 9.0, False),  # in the time before
            ("ann", "2", day("2024-03-01"), 20.0, 6.0, False),  # the first instant counts
            ("ann", "3", day("2024-04-20"), 10.0, 3.0, False),
            ("ann", "4", day("2024-05-01"), 99.0, 9.0, False),  # the first one after does not
            ("bob", "5", day("2023-12-01"), 70.0, 7.0, False),  # long before
            ("bob", "6", day("2024-03-15"), 40.0, 12.0, False),
            ("bob", "7", day("2024-04-25"), -40.0, -12.0, True),
            ("dee", "8", day("2024-04-01"), 5.0, 1.0, False),
        ),
        "contacts": rows(
            "customer_id offer_id contacted_at channel",
            ("ann", "a", day("2024-03-02"), "mail"), ("ann", "b", day("2024-04-02"), "mail"),
            ("ann", "a", day("2024-02-02"), "mail"), ("cy", "a", day("2024-03-02"), "mail"),
        ),
        "responses": rows(
            "customer_id offer_id responded_at response_type incentive_cost",
            ("ann", "a", day("2024-03-05"), "redemption", 1.5),
            ("ann", "b", day("2024-04-05"), "redemption", None),
        ),
    }  # fmt: skip
    given = {k: v for k, v in {**tables, **changed}.items() if v is not None}
    return check_and_clean(given, observed_until=datetime(2024, 6, 1))


def frame(history: History, *names: str, by: tuple[str, ...] = ()) -> pd.DataFrame:
    found = customers(history, WATCH, names or tuple(OUTCOMES), by)
    return found.to_pandas().set_index("customer_id").sort_index()


def test_every_outcome_by_hand() -> None:
    found = frame(shop(), by=("region",))
    expected = pd.DataFrame(
        {
            "arm": ["policy", "no_contact", "policy"], "region": ["north", "north", "south"],
            "response": [True, False, False], "conversion": [True, True, False],
            "revenue": [30.0, 0.0, 0.0],
            # Ann: 6 + 3, less 1.5 of incentives, less two contacts of 0.5; Cy: one contact.
            "margin": [6.5, 0.0, -0.5],
            # Bob's only purchase is more than 20 days old, and a return is no purchase.
            "retention": [True, False, False],
            "clv": [106.5, 50.0, 9.5],
            BEFORE: [30.0, 0.0, 0.0],
        },
        index=pd.Index(["ann", "bob", "cy"], name="customer_id"),
    )  # fmt: skip
    pd.testing.assert_frame_equal(found, expected, check_dtype=False)


def test_an_unknown_margin_is_not_taken_for_nothing() -> None:
    lines = shop().tables["transactions"].to_pandas()
    lines.loc[lines.order_id == "2", "margin"] = None
    history = shop(transactions=ibis.memtable(lines))
    assert frame(history, "margin")["margin"].isna().to_dict() == {
        "ann": True, "bob": False, "cy": False,
    }  # fmt: skip
    with pytest.raises(DataError, match='outcome "margin" is empty'):
        collect(customers(history, WATCH, ["margin"]), [Outcome("margin")])


def test_without_a_ledger_the_contact_log_says_who_was_in_which_arm() -> None:
    people = shop().tables["customers"].drop("arm", "known_at")
    at = START + timedelta(days=1)
    log = rows(
        "customer_id offer_id contacted_at channel arm",
        ("ann", "a", at, "mail", "policy"), ("bob", "a", at, "mail", "no_contact"),
        ("cy", "a", at, "mail", "policy"), ("cy", "b", at, "mail", "no_contact"),
    )  # fmt: skip
    history = shop(customers=ibis.memtable(people.to_pandas()), contacts=log, responses=None)
    found = customers(history, WATCH, ["revenue"])
    assert sorted(found.arm.to_pandas()) == ["no_contact", "no_contact", "policy", "policy"]
    with pytest.raises(DataError, match="customers are in two arms"):
        collect(found, [Outcome("revenue")])


def test_shops_without_contacts_or_responses() -> None:
    found = frame(shop(contacts=None, responses=None), "conversion", "margin")
    assert found["margin"].tolist() == [9.0, 0.0, 0.0]


@pytest.mark.parametrize(
    ("changed", "outcomes", "watch", "says"),
    [
        ({"responses": None}, ["response"], WATCH, 'outcome "response" needs responses'),
        ({}, ["sales"], WATCH, 'unknown outcome "sales"'),
        ({}, ["margin"], Watch(START, END), "net of contact cost"),
        ({}, ["revenue"], Watch(START, datetime(2025, 1, 1)), "runs past the data"),
        ({"customers": rows("customer_id region", ("ann", "n"), ("bob", "n"), ("cy", "n"),
                            ("dee", "n"))}, ["revenue"], WATCH, "nobody has an arm"),
        ({"customers": rows("customer_id region", ("ann", "n"), ("bob", "n"), ("cy", "n"),
                            ("dee", "n"))}, ["clv"], WATCH, "needs customers.clv_remainder"),
    ],
)  # fmt: skip
def test_what_the_tables_cannot_answer(
    changed: dict[str, Any], outcomes: list[str], watch: Watch, says: str
) -> None:
    with pytest.raises(DataError) as refused:
        customers(shop(**changed), watch, outcomes)
    assert says in str(refused.value)


def test_a_segment_that_customers_do_not_have() -> None:
    with pytest.raises(DataError, match='no column "tier" in customers'):
        customers(shop(), WATCH, ["revenue"], ["tier"])


def test_impossible_windows_are_named_all_at_once() -> None:
    with pytest.raises(UsageError) as refused:
        Watch(END, START, contact_cost=-1, retained_days=0)
    assert len(refused.value.faults) == 3


def test_a_known_effect_is_found_from_the_tables() -> None:
    """3,000 customers who buy once in the window; offers add 2 to what they spend."""
    rng = np.random.default_rng(1)
    n, at = 3_000, START + timedelta(days=10)
    ids = [str(i) for i in range(n)]
    treated = rng.random(n) < 0.7
    usual = rng.gamma(4, 5, n)
    spent = usual + 2 * treated + rng.normal(0, 2, n)
    lines = pd.DataFrame({
        "customer_id": ids * 2, "order_id": [str(i) for i in range(2 * n)],
        "ordered_at": [at - timedelta(days=30)] * n + [at] * n,
        "amount": np.maximum(0.01, np.concatenate([usual, spent])),
    })  # fmt: skip
    people = pd.DataFrame({"customer_id": ids, "arm": np.where(treated, "policy", "no_contact")})
    history = check_and_clean(
        {"customers": ibis.memtable(people), "transactions": ibis.memtable(lines)},
        observed_until=datetime(2024, 6, 1),
    )
    outcomes = [Outcome("revenue", before=BEFORE)]
    cells = collect(customers(history, WATCH, ["revenue"]), outcomes)
    (found,) = read(cells, outcomes, Design(planned=n)).overall
    assert found.measured is not None and found.finding == "higher"
    assert found.measured.at_any_look.low < 2 < found.measured.at_any_look.high
    assert found.measured.variance_reduction == pytest.approx(100 / 104, abs=0.01)
