"""The contract: shape faults all at once, one reason for each bad row, nothing lost."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Iterator
from datetime import UTC, date, datetime, timedelta
from functools import cache
from pathlib import Path
from typing import Any

import ibis
import ibis.config
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import sqlglot
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from nextbest.data.contract import TABLES, History, TableReport, check_and_clean, mark
from nextbest.data.sources import conform
from nextbest.errors import ConfigError, DataError

UNTIL = datetime(2024, 6, 1)
DAY = datetime(2024, 3, 1, 12)
LATER = DAY + timedelta(days=3)

SCHEMAS = {
    "customers": {
        "customer_id": pa.string(), "region": pa.string(), "known_at": pa.timestamp("us"),
    },
    "transactions": {
        "customer_id": pa.string(), "order_id": pa.string(), "ordered_at": pa.timestamp("us"),
        "amount": pa.float64(), "quantity": pa.float64(), "discount": pa.float64(),
        "product_id": pa.string(), "known_at": pa.timestamp("us"),
    },
    "events": {
        "customer_id": pa.string(), "event_at": pa.timestamp("us"), "event_type": pa.string(),
        "value": pa.float64(),
    },
    "contacts": {
        "customer_id": pa.string(), "offer_id": pa.string(), "contacted_at": pa.timestamp("us"),
        "channel": pa.string(), "selection_probability": pa.float64(),
    },
    "responses": {
        "customer_id": pa.string(), "offer_id": pa.string(), "responded_at": pa.timestamp("us"),
        "response_type": pa.string(), "value": pa.float64(),
    },
    "offers": {
        "offer_id": pa.string(), "starts_at": pa.timestamp("us"), "ends_at": pa.timestamp("us"),
        "product_ids": pa.list_(pa.string()),
    },
}  # fmt: skip

ROWS: dict[str, list[dict[str, Any]]] = {
    "customers": [{"customer_id": c, "region": "north"} for c in ("ann", "bob", "cid")],
    "transactions": [
        {"customer_id": "ann", "order_id": "o1", "ordered_at": DAY, "amount": 10.0, "quantity": 2.0,
         "discount": 1.0, "product_id": "p1"},
        {"customer_id": "bob", "order_id": "o2", "ordered_at": DAY, "amount": 5.5, "quantity": 1.0,
         "discount": 0.0, "product_id": "p2"},
        {"customer_id": "bob", "order_id": "o3", "ordered_at": LATER, "amount": -5.5,
         "quantity": -1.0, "discount": 0.0, "product_id": "p2"},
    ],
    "events": [{"customer_id": "ann", "event_at": DAY, "event_type": "visit", "value": 1.0}],
    "contacts": [
        {"customer_id": "ann", "offer_id": "x", "contacted_at": DAY, "channel": "mail",
         "selection_probability": 0.5},
        {"customer_id": "bob", "offer_id": "x", "contacted_at": DAY, "channel": "mail",
         "selection_probability": 1.0},
    ],
    "responses": [{"customer_id": "ann", "offer_id": "x", "responded_at": LATER,
                   "response_type": "click", "value": 2.0}],
    "offers": [{"offer_id": "x", "starts_at": DAY, "ends_at": LATER, "product_ids": ["p1"]}],
}  # fmt: skip


def table(name: str, rows: list[dict[str, Any]], **types: pa.DataType) -> ibis.Table:
    fields = SCHEMAS[name] | types
    columns = {c: pa.array([row.get(c) for row in rows], kind) for c, kind in fields.items()}
    return ibis.memtable(pa.table(columns))


def sources(**extra: list[dict[str, Any]]) -> dict[str, ibis.Table]:
    """The good rows of every table, with more rows appended where named."""
    return {name: table(name, rows + extra.get(name, [])) for name, rows in ROWS.items()}


def around(name: str, rows: list[dict[str, Any]]) -> dict[str, ibis.Table]:
    """These rows of one table, with the good rows of those that must stand beside it."""
    beside = {"customers", "transactions"}
    if name in ("contacts", "responses"):
        beside |= {"offers", "contacts"}
    return {n: table(n, ROWS[n]) for n in beside} | {name: table(name, rows)}


def clean(given: dict[str, ibis.Table], **options: Any) -> History:
    return check_and_clean(given, observed_until=UNTIL, **({"error_limit": 1.0} | options))


def report(history: History, name: str) -> TableReport:
    return next(r for r in history.reports if r.table == name)


def rows(expression: ibis.Table) -> list[dict[str, Any]]:
    found: list[dict[str, Any]] = expression.to_pyarrow().to_pylist()
    return found


def like(name: str, **changes: Any) -> dict[str, Any]:
    return ROWS[name][0] | changes


# --- good data -----------------------------------------------------------------------------------


def test_good_rows_all_pass_and_are_unchanged() -> None:
    history = clean(sources(), error_limit=0.0)
    for name, good in ROWS.items():
        assert report(history, name).quarantined == {}
        kept = rows(history.tables[name])
        assert sorted(map(repr, kept)) == sorted(
            repr({c: row.get(c) for c in SCHEMAS[name]} | {"known_at": known(name, row)})
            for row in good
        )
    assert history.quarantine == {}
    assert history.data_start == DAY
    assert history.observed_until == UNTIL


def known(name: str, row: dict[str, Any]) -> datetime | None:
    event_time = TABLES[name].event_time
    return row[event_time] if event_time else None


def test_only_given_tables_come_back() -> None:
    given = {name: t for name, t in sources().items() if name in ("customers", "transactions")}
    assert set(clean(given).tables) == {"customers", "transactions"}


def test_absent_references_are_said_not_checked() -> None:
    given = {n: t for n, t in sources().items() if n in ("customers", "transactions", "responses")}
    notes = report(clean(given), "responses").notes
    assert any("no offers table" in note for note in notes)
    assert any("no contacts table" in note for note in notes)


# --- bad rows ------------------------------------------------------------------------------------

SOON = UNTIL + timedelta(seconds=1)
FAULTS = [
    ("customers", {"customer_id": None}, "null customer_id"),
    ("customers", {"customer_id": "  "}, "null customer_id"),
    ("customers", {"customer_id": "NaN"}, "null customer_id"),
    ("customers", {"region": "south"}, "duplicate customer_id"),
    ("customers", {"customer_id": "dee", "known_at": SOON}, "future known_at"),
    ("transactions", {"customer_id": None}, "null customer_id"),
    ("transactions", {"order_id": ""}, "null order_id"),
    ("transactions", {"ordered_at": None}, "null ordered_at"),
    ("transactions", {"ordered_at": SOON}, "future ordered_at"),
    ("transactions", {"ordered_at": datetime(1970, 1, 1)}, "ordered_at before 1971"),
    ("transactions", {"known_at": DAY - timedelta(seconds=1)}, "known before it happened"),
    ("transactions", {"known_at": SOON}, "future known_at"),
    ("transactions", {"amount": None}, "null amount"),
    ("transactions", {"amount": math.nan}, "amount is not finite"),
    ("transactions", {"amount": math.inf}, "amount is not finite"),
    ("transactions", {"amount": -math.inf, "quantity": -1.0}, "amount is not finite"),
    ("transactions", {"amount": -1.0}, "negative amount, not a return"),
    ("transactions", {"amount": -1.0, "quantity": None}, "negative amount, not a return"),
    ("transactions", {"amount": 1.0, "quantity": -1.0}, "positive amount on a return"),
    ("transactions", {"customer_id": "zoe"}, "unknown customer"),
    ("transactions", {}, "duplicate row"),
    ("transactions", {"known_at": LATER}, "duplicate row"),
    ("events", {"event_type": None}, "null event_type"),
    ("events", {"event_at": SOON}, "future event_at"),
    ("events", {"customer_id": "zoe"}, "unknown customer"),
    ("events", {}, "duplicate row"),
    ("contacts", {"offer_id": None}, "null offer_id"),
    ("contacts", {"channel": None}, "null channel"),
    ("contacts", {"contacted_at": SOON}, "future contacted_at"),
    ("contacts", {"contacted_at": LATER, "selection_probability": 0.0},
     "selection_probability outside (0, 1]"),
    ("contacts", {"contacted_at": LATER, "selection_probability": 1.1},
     "selection_probability outside (0, 1]"),
    ("contacts", {"contacted_at": LATER, "selection_probability": math.nan},
     "selection_probability outside (0, 1]"),
    ("contacts", {"customer_id": "zoe"}, "unknown customer"),
    ("contacts", {"offer_id": "y"}, "unknown offer"),
    ("contacts", {"selection_probability": 0.25},
     "duplicate customer_id, offer_id, contacted_at, channel"),
    ("responses", {"response_type": None}, "null response_type"),
    ("responses", {"responded_at": SOON}, "future responded_at"),
    ("responses", {"customer_id": "zoe"}, "unknown customer"),
    ("responses", {"offer_id": "y"}, "unknown offer"),
    ("responses", {"customer_id": "cid"}, "response without contact"),
    ("responses", {"responded_at": DAY - timedelta(seconds=1)}, "response before contact"),
    ("responses", {}, "duplicate row"),
    ("offers", {"offer_id": None}, "null offer_id"),
    ("offers", {"ends_at": LATER + timedelta(days=1)}, "duplicate offer_id"),
    ("offers", {"offer_id": "y", "ends_at": DAY}, "ends before it starts"),
]  # fmt: skip


@pytest.mark.parametrize(
    ("name", "changes", "reason"), FAULTS, ids=[f"{n}: {r}" for n, _, r in FAULTS]
)
def test_each_fault_is_set_aside_with_its_reason(
    name: str, changes: dict[str, Any], reason: str
) -> None:
    bad = like(name, **changes)
    history = clean(around(name, [*ROWS[name], bad]))
    found = report(history, name)
    assert found.quarantined == {reason: 1}
    assert (found.rows_in, found.rows_clean) == (len(ROWS[name]) + 1, len(ROWS[name]))
    [aside] = rows(history.quarantine[name])
    assert aside["_reason"] == reason
    if not reason.startswith(("null", "duplicate")):  # kept as it came, so that it can be mended
        assert {c: repr(aside[c]) for c in changes} == {c: repr(bad[c]) for c in changes}
    for other in history.reports:
        assert other.table == name or other.quarantined == {}


def test_bounds_are_inclusive_where_they_must_be() -> None:
    edge = [
        like("transactions", order_id="a", ordered_at=UNTIL),
        like("transactions", order_id="b", known_at=UNTIL),
        like("transactions", order_id="c", amount=0.0),
        like("transactions", order_id="d", amount=0.0, quantity=-1.0),
    ]
    history = clean(sources(transactions=edge, responses=[like("responses", responded_at=DAY)]))
    assert report(history, "transactions").quarantined == {}
    assert report(history, "responses").quarantined == {}


def test_bad_row_does_not_push_out_its_good_twin() -> None:
    bad_first = like("contacts", contacted_at=LATER, selection_probability=7.0)
    good = like("contacts", contacted_at=LATER, selection_probability=0.5)
    history = clean(sources(contacts=[bad_first, good]))
    assert report(history, "contacts").quarantined == {"selection_probability outside (0, 1]": 1}


def test_of_two_rows_with_one_key_the_first_known_stays() -> None:
    given = sources()
    early, late = datetime(2023, 1, 1), datetime(2023, 2, 1)
    given["customers"] = table(
        "customers",
        [
            *ROWS["customers"],
            {"customer_id": "dee", "region": "late", "known_at": late},
            {"customer_id": "dee", "region": "early", "known_at": early},
        ],
    )
    kept = {r["customer_id"]: r["region"] for r in rows(clean(given).tables["customers"])}
    assert kept["dee"] == "early"


def test_rows_that_lean_on_a_quarantined_row_go_too() -> None:
    given = sources(customers=[like("customers", customer_id="dee", known_at=SOON)])
    given["transactions"] = table(
        "transactions", [*ROWS["transactions"], like("transactions", customer_id="dee")]
    )
    assert report(clean(given), "transactions").quarantined == {"unknown customer": 1}


@pytest.mark.parametrize("flag", [True, False, None])
def test_returns_by_flag(flag: bool | None) -> None:
    rows_in = [like("transactions", amount=-3.0, quantity=None) | {"is_return": flag}]
    given = sources() | {"transactions": table("transactions", rows_in, is_return=pa.bool_())}
    if flag:
        assert report(clean(given), "transactions").quarantined == {}
    else:
        with pytest.raises(DataError, match="negative amount, not a return"):
            clean(given)


# --- property: nothing is lost, and reasons are those of a plain reading of the rules ------------

LINES = st.lists(
    st.fixed_dictionaries(
        {
            "customer_id": st.sampled_from(["ann", "bob", "zoe", None, ""]),
            "order_id": st.sampled_from(["o1", "o2", None]),
            "ordered_at": st.sampled_from([DAY, LATER, SOON, datetime(1970, 1, 1), None]),
            "amount": st.sampled_from([1.0, 0.0, -1.0, math.nan, math.inf, -math.inf, None]),
            "quantity": st.sampled_from([1.0, 0.0, -1.0, math.nan, None]),
            "discount": st.sampled_from([0.0, math.nan, None]),
            "known_at": st.sampled_from([None, DAY, LATER, SOON]),
        }
    ),
    max_size=12,
)


def expected_reason(line: dict[str, Any]) -> str | None:
    """The rules for one transaction in plain Python, but for duplicates."""
    amount, quantity, at = line["amount"], line["quantity"], line["ordered_at"]
    known_at = line.get("known_at") or at
    returned = quantity is not None and quantity < 0
    checks = [
        (not line["customer_id"], "null customer_id"),
        (not line["order_id"], "null order_id"),
        (at is None, "null ordered_at"),
        (amount is None, "null amount"),
        (at is not None and at < datetime(1971, 1, 1), "ordered_at before 1971"),
        (at is not None and at > UNTIL, "future ordered_at"),
        (at is not None and known_at < at, "known before it happened"),
        (known_at is not None and known_at > UNTIL, "future known_at"),
        (amount is not None and not math.isfinite(amount), "amount is not finite"),
        (amount is not None and amount < 0 and not returned, "negative amount, not a return"),
        (amount is not None and amount > 0 and returned, "positive amount on a return"),
        (line["customer_id"] == "zoe", "unknown customer"),
    ]
    return next((reason for broken, reason in checks if broken), None)


@settings(max_examples=40, deadline=None, suppress_health_check=list(HealthCheck))
@given(LINES)
def test_arbitrary_lines_are_kept_or_counted(lines: list[dict[str, Any]]) -> None:
    lines = [*lines, like("transactions", order_id="always good")]
    history = clean(around("transactions", lines))
    found = report(history, "transactions")

    expected = Counter(expected_reason(line) for line in lines)
    good = [line for line in lines if expected_reason(line) is None]
    distinct = {repr([(c, line.get(c)) for c in sorted(SCHEMAS["transactions"]) if c != "known_at"])
                for line in good}  # fmt: skip
    expected["duplicate row"] = len(good) - len(distinct)
    del expected[None]
    assert found.quarantined == {reason: n for reason, n in expected.items() if n}
    assert found.rows_in == len(lines) == found.rows_clean + sum(found.quarantined.values())
    kept = rows(history.tables["transactions"])
    assert len(kept) == found.rows_clean == len(distinct)
    assert all(r["quantity"] is None or math.isfinite(r["quantity"]) for r in kept)
    assert all(r["quantity"] != 0 and not math.isnan(r["discount"] or 0) for r in kept)
    assert all(r["known_at"] >= r["ordered_at"] for r in kept)


# --- types and notes -----------------------------------------------------------------------------


def test_ids_may_be_integers_and_times_may_be_text_dates_or_aware() -> None:
    aware = datetime(2024, 3, 1, 12, 30, 15, 250_000, tzinfo=UTC)
    base = {"order_id": 7, "amount": 3, "customer_id": 1}
    for kind, value, expected in [
        (pa.string(), "2024-03-01 12:30:15.25", datetime(2024, 3, 1, 12, 30, 15, 250_000)),
        (pa.date32(), date(2024, 3, 1), datetime(2024, 3, 1)),
        (pa.timestamp("us", "America/New_York"), aware, aware.replace(tzinfo=None)),
        (pa.timestamp("ns"), DAY, DAY),
        (pa.timestamp("s"), DAY, DAY),
    ]:
        lines = pa.table(
            {
                "customer_id": pa.array([base["customer_id"]], pa.int64()),
                "order_id": pa.array([base["order_id"]], pa.int32()),
                "ordered_at": pa.array([value], kind),
                "amount": pa.array([base["amount"]], pa.decimal128(10, 2)),
            }
        )
        history = clean(
            {
                "customers": ibis.memtable(pa.table({"customer_id": pa.array([1], pa.int16())})),
                "transactions": ibis.memtable(lines),
            }
        )
        assert rows(history.tables["transactions"]) == [
            {"customer_id": "1", "order_id": "7", "ordered_at": expected, "amount": 3.0,
             "known_at": expected}
        ]  # fmt: skip


def test_time_that_cannot_be_read_is_kept_as_text_in_the_quarantine() -> None:
    lines = [
        like("transactions", ordered_at="2024-03-01T12:00:00", known_at=None),
        like("transactions", ordered_at="first of March"),
        like("transactions", ordered_at="2024-03-01T12:00:00", known_at="soon", order_id="o9"),
        like("transactions", ordered_at=None, order_id="o10"),
    ]
    text = pa.string()
    given = sources() | {
        "transactions": table("transactions", lines, ordered_at=text, known_at=text)
    }
    history = clean(given)
    assert report(history, "transactions").quarantined == {
        "null ordered_at": 1, "unreadable known_at": 1, "unreadable ordered_at": 1,
    }  # fmt: skip
    aside = {r["_reason"]: r for r in rows(history.quarantine["transactions"])}
    assert aside["unreadable ordered_at"]["_nb_ordered_at_text"] == "first of March"
    assert aside["unreadable known_at"]["_nb_known_at_text"] == "soon"
    assert set(history.tables["transactions"].columns) == set(SCHEMAS["transactions"])


def test_notes_say_what_was_changed_without_setting_rows_aside() -> None:
    more = [
        like("transactions", order_id="n1", quantity=0.0, amount=0.0),
        like("transactions", order_id="n2", discount=math.inf),
        like("transactions", order_id="n3", product_id=None),
    ]
    history = clean(sources(transactions=more))
    assert report(history, "transactions").notes == (
        "discount not finite, taken as unknown, on 1 rows",
        "quantity zero or not finite, taken as unknown, on 1 rows",
        "neither amount nor quantity on 1 rows: kept, they show a visit",
        "discount unknown on 1 of 6 rows",
        "quantity unknown on 1 of 6 rows",
        "product_id unknown on 1 of 6 rows",
    )
    kept = {r["order_id"]: r for r in rows(history.tables["transactions"])}
    assert kept["n1"]["quantity"] is None
    assert kept["n2"]["discount"] is None


def test_a_likely_misspelling_of_an_optional_column_is_noted() -> None:
    given = sources()
    given["transactions"] = (
        given["transactions"].rename(quantitty="quantity").filter(ibis._.amount > 0)
    )
    [note] = [n for n in report(clean(given), "transactions").notes if "Did you mean" in n]
    assert note == 'column "quantitty" is not in the contract. Did you mean "quantity"?'


# --- shape ---------------------------------------------------------------------------------------


def faults(given: Any) -> list[str]:
    with pytest.raises(DataError) as caught:
        clean(given)
    return [str(f) for f in caught.value.faults]


def test_missing_table() -> None:
    given = sources()
    given["transaction"] = given.pop("transactions")
    assert faults(given) == [
        'training/sources.py: table "transactions": missing. Must be a table returned by tables() '
        'as "transactions"; got customers, events, contacts, responses, offers, transaction. '
        'Did you mean "transaction"?',
        'training/sources.py: table "transaction": not a table of the contract. Must be customers, '
        "transactions, events, contacts, responses, offers; got transaction. "
        'Did you mean "transactions"?',
    ]


def test_misspelled_column() -> None:
    given = sources()
    given["transactions"] = given["transactions"].rename(ammount="amount")
    [fault] = faults(given)
    assert fault.startswith(
        'training/sources.py: table "transactions": column "amount" is missing. Must be a number: '
        "what was paid for the line; negative for a return; got columns "
    )
    assert fault.endswith('Did you mean "ammount"?')


def test_wrong_types_each_have_their_message() -> None:
    given = sources()
    given["customers"] = given["customers"].mutate(consent_mail=ibis.literal("yes"))
    given["transactions"] = given["transactions"].mutate(
        customer_id=ibis.literal(13085.0), amount=ibis.literal("1.5"), ordered_at=ibis.literal(1.5)
    )
    given["offers"] = given["offers"].mutate(product_ids=ibis.literal("p1"))
    where = 'training/sources.py: table "{}": column "{}" has the wrong type. Must be {}; got {}. '
    cast = "Cast it in training/sources.py."
    found = faults(given)
    assert sorted(found) == sorted(
        [
            where.format("customers", "consent_mail", "a boolean", "string") + cast,
            where.format("transactions", "amount", "a number", "string") + cast,
            where.format("transactions", "ordered_at", "a timestamp, a date or ISO text", "float64")
            + cast,
            where.format("transactions", "customer_id", "text (or an integer)", "float64")
            + 'Write t.customer_id.cast("int64").cast("string") in training/sources.py.',
            where.format("offers", "product_ids", "an array of text", "string") + cast,
        ]
    )


def test_all_faults_of_shape_come_at_once() -> None:
    given: dict[str, Any] = sources()
    del given["customers"]
    given["transactions"] = given["transactions"].drop("order_id", "amount")
    given["events"] = [{"customer_id": "ann"}]
    given["contacts"] = ibis.table({"customer_id": "string"}, name="nowhere")
    given["offers"] = given["offers"].mutate(_reason=ibis.literal("because"))
    found = "\n".join(faults(given))
    for part in ('"customers": missing', 'column "order_id" is missing',
                 'column "amount" is missing', '"events": not an Ibis table',
                 '"contacts": not bound to a connection',
                 'column "_reason" has a name that checking needs'):  # fmt: skip
        assert part in found
    assert len(found.splitlines()) == 6


def test_tables_of_two_connections_are_refused() -> None:
    given = {}
    for name in ("customers", "transactions"):
        connection = ibis.duckdb.connect()
        given[name] = connection.create_table(name, table(name, ROWS[name]).to_pyarrow())
    [fault] = faults(given)
    assert "different connections" in fault


def test_memtables_may_stand_beside_a_connection() -> None:
    connection = ibis.duckdb.connect()
    given = sources()
    given["customers"] = connection.create_table("people", given["customers"].to_pyarrow())
    history = clean(given, error_limit=0.0)
    assert history.backend is connection
    assert report(history, "transactions").rows_clean == len(ROWS["transactions"])


def test_a_table_that_cannot_be_computed_names_itself() -> None:
    given = sources()
    given["transactions"] = given["transactions"].mutate(
        amount=ibis._.product_id.cast("float64")  # "p1" is no number
    )
    [fault] = faults(given)
    assert fault.startswith('training/sources.py: table "transactions": cannot be read. Got ')


def test_no_rows_and_no_clean_rows_are_refused() -> None:
    [fault] = faults(sources() | {"customers": table("customers", []), "transactions": table(
        "transactions", ROWS["transactions"])})[:1]  # fmt: skip
    assert fault == (
        'training/sources.py: table "customers": has no rows. Must be at least one row; got 0 rows.'
    )
    [fault] = faults(sources() | {"transactions": table("transactions", [{"order_id": "o1"}])})
    assert 'table "transactions": has no clean row' in fault


# --- limits and the quarantine file --------------------------------------------------------------


def test_table_over_its_limit_stops_and_says_where_the_rows_are(tmp_path: Path) -> None:
    given = sources(transactions=[like("transactions", amount=None)] * 2)
    with pytest.raises(DataError) as caught:
        clean(given, error_limit={"transactions": 0.3}, quarantine_dir=tmp_path / "q")
    file = tmp_path / "q" / "transactions.parquet"
    assert str(caught.value) == (
        'training/sources.py: table "transactions": 40.0% of 5 rows were quarantined. Must be at '
        f"most 30.0% (error_limit); got null amount (2). The rows are in {file}. "
        "Mend the source, or raise its error_limit."
    )
    assert pq.read_table(file).column("_reason").to_pylist() == ["null amount"] * 2
    assert clean(given, error_limit={"transactions": 0.4}).tables


def test_quarantine_file_of_an_earlier_run_does_not_stay(tmp_path: Path) -> None:
    clean(sources(events=[like("events", event_type=None)]), quarantine_dir=tmp_path)
    assert [p.name for p in tmp_path.iterdir()] == ["events.parquet"]
    clean(sources(), quarantine_dir=tmp_path)
    assert list(tmp_path.iterdir()) == []


def test_quarantine_folder_that_cannot_be_written(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("in the way")
    with pytest.raises(DataError, match="quarantine cannot be written"):
        clean(sources(events=[like("events", event_type=None)]), quarantine_dir=tmp_path / "file")


def test_limits_are_checked_all_at_once() -> None:
    with pytest.raises(ConfigError) as caught:
        clean(sources(), error_limit={"transaction": 0.1, "events": 5, "offers": True})
    assert len(caught.value.faults) == 3
    assert 'Did you mean "transactions"?' in str(caught.value)


def test_report_as_plain_values() -> None:
    history = clean(sources(events=[like("events", event_type=None)]))
    assert report(history, "events").to_dict() == {
        "table": "events", "rows_in": 2, "rows_clean": 1,
        "quarantined": {"null event_type": 1}, "notes": [],
    }  # fmt: skip


# --- snapshot hash -------------------------------------------------------------------------------


def test_snapshot_hash_ignores_order_and_backend_names() -> None:
    shuffled = {name: table(name, rows_in[::-1]) for name, rows_in in ROWS.items()}
    assert clean(sources()).snapshot_hash() == clean(shuffled).snapshot_hash()


CHANGES = [
    (name, i, column)
    for name, rows_in in ROWS.items()
    for i, row in enumerate(rows_in)
    for column in row
    if column not in ("customer_id", "offer_id")  # changing those takes other rows along
]


@cache
def unchanged(name: str) -> str:
    """The hash before any change."""
    return clean(around(name, ROWS[name])).snapshot_hash()


@pytest.mark.parametrize(("name", "i", "column"), CHANGES)
def test_snapshot_hash_changes_with_any_value(name: str, i: int, column: str) -> None:
    old = ROWS[name][i][column]
    new = {
        str: lambda: old + "!",
        float: lambda: old * 0.75 + 0.01,
        datetime: lambda: old + timedelta(microseconds=1),
        list: lambda: [*old, "p9"],
    }[type(old)]()
    changed = [dict(row) for row in ROWS[name]]
    changed[i][column] = new
    after = clean(around(name, changed))
    assert report(after, name).quarantined == {}
    assert after.snapshot_hash() != unchanged(name)


def test_snapshot_hash_tells_null_from_value_and_sees_a_repeated_row_and_the_cut() -> None:
    base = clean(sources())
    blank = [row | {"discount": None} for row in ROWS["transactions"]]
    twice = [*ROWS["customers"], {"customer_id": "dee", "region": "north"}]
    seen = {
        base.snapshot_hash(),
        clean(sources() | {"transactions": table("transactions", blank)}).snapshot_hash(),
        clean(sources() | {"customers": table("customers", twice)}).snapshot_hash(),
        check_and_clean(sources(), observed_until=UNTIL - timedelta(days=1)).snapshot_hash(),
        clean({n: t for n, t in sources().items() if n != "events"}).snapshot_hash(),
    }
    assert len(seen) == 5


# --- portability ---------------------------------------------------------------------------------


@pytest.fixture
def spark_options() -> Iterator[None]:
    """Give Ibis the options that its Spark backend registers where pyspark is installed."""

    class Options(ibis.config.Config):
        treat_nan_as_null: bool = False

    before = ibis.options.pyspark
    ibis.options.pyspark = Options()
    yield
    ibis.options.pyspark = before


@pytest.mark.usefixtures("spark_options")
@pytest.mark.parametrize("name", list(TABLES))
def test_cleaning_compiles_to_spark_sql(name: str) -> None:
    spec = TABLES[name]
    unbound = {
        n: ibis.table({c.name: c.dtype for c in t.columns}, name=n) for n, t in TABLES.items()
    }
    if spec.event_time:  # text times take the longest way
        unbound[name] = unbound[name].mutate(**{spec.event_time: ibis.literal("2024-01-01")})
    others = {n: t for n, t in unbound.items() if n in ("customers", "offers", "contacts")}
    marked = mark(conform(unbound[name], spec), spec, others, UNTIL)
    sql = ibis.to_sql(marked, dialect="pyspark")
    reasons = sqlglot.parse_one(sql, read="spark").find_all(sqlglot.exp.Literal)
    assert f"null {spec.columns[0].name}" in {literal.name for literal in reasons}
    # Ibis 12 writes isinf() as FALSE for Spark without a word; nothing of ours may rest on it.
    assert "FALSE OR FALSE" not in sql
    assert ("ISNAN" in sql) == (name in ("transactions", "contacts"))
