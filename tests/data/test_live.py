"""Live features are the batch expression, to the last bit, without the warehouse."""

from __future__ import annotations

import json
from datetime import datetime, timedelta
from functools import cache
from pathlib import Path
from typing import Any

import ibis
import numpy as np
import pyarrow as pa
import pytest
from histories import CUSTOMERS, OFFERS, SCHEMAS, TIME, Compiled, Row, World, unbound
from hypothesis import given, settings
from hypothesis import strategies as st

from nextbest.data.contract import TABLES, History
from nextbest.data.feature import Feature
from nextbest.data.features import Block, Past, attach, describe, feature_group, follow
from nextbest.data.groups import contacts, engagement, responses
from nextbest.data.live import KIND_COLUMNS, Live, RecentRows, updated, window
from nextbest.data.recent import before
from nextbest.errors import ArtifactError, ConfigError

AS_OF = datetime(2024, 6, 1)
# A decision comes at any microsecond; the last one comes when every row before the refresh is old.
NOWS = tuple(
    AS_OF + timedelta(days=days, microseconds=us)
    for days, us in ((0, 1), (0.4, 123_457), (6.9, 500_001), (29, 999_999), (120, 0))
)
ROW_OF = {c: i for i, c in enumerate(CUSTOMERS)}


@feature_group("events")
def baskets(past: Past) -> Block:
    """A shop's own group: measures that the built-in ones do not use."""
    return follow(
        past,
        "events",
        {
            "events_total": (Live("count"), "events so far", "events"),
            "kinds_40d": (Live("distinct", days=40), "kinds of events in 40 days", "kinds"),
            "clicks_total": (Live("count", of="click"), "clicks so far", "events"),
            "events_3d": (Live("count", days=3), "events in the last 3 days", "events"),
            "days_since_event": (Live("days_since"), "days since any event", "days"),
            "click_without_visit": (
                Live("left_behind", of="click", days=40, until="visit"), "1 or 0", "0 or 1",
            ),
        },
    )  # fmt: skip


GROUPS = (engagement, baskets, contacts, responses)
TIMES = {t: str(TABLES[t].event_time) for t in KIND_COLUMNS}


@pytest.fixture(scope="module")
def compiled() -> Compiled:
    keys = [(c, t) for c in CUSTOMERS for t in (AS_OF, *NOWS)]
    customers, times = zip(*keys, strict=True)
    spine = pa.table(
        {"customer_id": pa.array(customers), "offer_id": pa.array(["o1"] * len(keys)),
         "as_of": pa.array(times, TIME)}
    )  # fmt: skip
    return Compiled(GROUPS, spine)


@cache
def features() -> tuple[Feature, ...]:
    return describe(GROUPS, unbound())


def moments(since: datetime, until: datetime) -> st.SearchStrategy[datetime]:
    """Any microsecond, and those at which a row leaves a window at one of the decisions."""
    edges = [
        now - timedelta(days=days, microseconds=us)
        for now in NOWS for days in (3, 7, 28, 40, 91) for us in (-1, 0, 1)
    ]  # fmt: skip
    inside = [edge for edge in edges if since <= edge < until]
    return st.datetimes(since, until - timedelta(microseconds=1)) | st.sampled_from(inside)


@st.composite
def rows(draw: st.DrawFn, table: str, since: datetime, until: datetime) -> list[Row]:
    found = []
    for _ in range(draw(st.integers(0, 12))):
        # Two things at one moment are a case of their own.
        again = [at_of(table, r) for r in found] if found and draw(st.booleans()) else []
        at = draw(st.sampled_from(again) if again else moments(since, until))
        late = timedelta(seconds=draw(st.sampled_from((0, 0, 0, 90, 86_400))))
        row: Row = {"customer_id": draw(st.sampled_from(CUSTOMERS[:3])), "known_at": at + late}
        if table == "events":
            kinds = ("open", "click", "visit", "cart_add", "cart_add", "purchase", "wish")
            row |= {"event_type": draw(st.sampled_from(kinds))}
        else:
            row |= {"offer_id": draw(st.sampled_from(OFFERS))}
        row |= {"channel": "mail"} if table == "contacts" else {}
        row |= {"response_type": "redemption"} if table == "responses" else {}
        row[TIMES[table]] = at
        found.append(row)
    return found


def at_of(table: str, row: Row) -> datetime:
    at: datetime = row[TIMES[table]]
    return at


def live_values(
    table: str, lives: list[Live], before_now: np.ndarray, recent: RecentRows, news: list[Row],
    now: datetime,
) -> np.ndarray:  # fmt: skip
    at = np.array([at_of(table, r) for r in news], dtype="datetime64[us]")
    kinds = recent.window.codes([r[KIND_COLUMNS[table]] for r in news])
    who = np.array([ROW_OF[r["customer_id"]] for r in news], dtype=np.intp)
    everybody = np.arange(len(CUSTOMERS))
    return updated(lives, before_now, recent, everybody, (who, at, kinds), AS_OF, now)


@settings(max_examples=16)
@given(data=st.data())
def test_every_live_feature_is_its_batch_expression_to_the_last_bit(
    compiled: Compiled, data: Any
) -> None:
    past = {t: data.draw(rows(t, AS_OF - timedelta(days=150), AS_OF)) for t in KIND_COLUMNS}
    news = {t: data.draw(rows(t, AS_OF, NOWS[-1])) for t in KIND_COLUMNS}
    # What became known after the refresh without being sent here is not in anybody's hands.
    past = {t: [r for r in found if r["known_at"] < AS_OF] for t, found in past.items()}
    world: World = {n: past.get(n, []) + news.get(n, []) for n in SCHEMAS}
    frame = compiled.run(world)["customer"]
    tables = {t: compiled.connection.table(t) for t in KIND_COLUMNS}
    history = History(tables, {}, (), AS_OF, AS_OF, compiled.connection)
    for table in KIND_COLUMNS:
        mine = [f for f in features() if f.source == table and f.live]
        lives = [f.live for f in mine if f.live]
        names = [f.name for f in mine]
        recent = RecentRows.of(before(history, table, window(lives), AS_OF), window(lives), ROW_OF)
        base = frame.xs(AS_OF, level="as_of").loc[list(CUSTOMERS), names].to_numpy(dtype=float)
        for now in NOWS:
            # An event that was sent is known from its receipt.
            heard = [r for r in news[table] if at_of(table, r) < now and r["known_at"] < now]
            expected = frame.xs(now, level="as_of").loc[list(CUSTOMERS), names]
            found = live_values(table, lives, base, recent, heard, now)
            for j, name in enumerate(names):
                column = expected[name].to_numpy(dtype=float)
                assert found[:, j].tobytes() == column.tobytes(), (name, now, found[:, j], column)


def test_rows_of_the_window_are_those_that_the_refresh_had_counted(compiled: Compiled) -> None:
    def event(at: datetime, known: datetime | None = None) -> Row:
        return {"customer_id": "bob", "event_at": at, "event_type": "visit", "known_at": known}

    day = timedelta(days=1)
    inside = [event(AS_OF - 28 * day), event(AS_OF - day, AS_OF - day)]
    outside = [event(AS_OF - 29 * day), event(AS_OF), event(AS_OF - day, AS_OF + day)]
    compiled.load({"events": inside + outside})
    tables = {"events": compiled.connection.table("events")}
    history = History(tables, {}, (), AS_OF, AS_OF, compiled.connection)
    found = before(history, "events", window([Live("count", days=28)]), AS_OF)
    assert sorted(found["at"]) == [r["event_at"] for r in inside]


def test_rows_survive_the_disk_and_damage_is_found(tmp_path: Path) -> None:
    kept = window([Live("left_behind", of="cart_add", days=7, until="purchase")])
    table = {
        "customer_id": ["bob", "ann", "bob"],
        "at": np.array(["2024-05-31", "2024-05-30", "2024-05-29"], dtype="datetime64[us]"),
        "kind": ["purchase", "visit", "cart_add"],
    }
    rows = RecentRows.of(table, kept, {"ann": 0, "bob": 1, "cid": 2})
    digest = rows.save(tmp_path / "a")
    assert rows.save(tmp_path / "b") == digest
    again = RecentRows.open(tmp_path / "a")
    assert again.window == kept
    position, at, kind = again.take([1, 2, 0])
    assert position.tolist() == [0, 0, 2]
    assert [str(one)[:10] for one in at] == ["2024-05-29", "2024-05-31", "2024-05-30"]
    assert [kept.kinds[k] if k >= 0 else None for k in kind] == ["cart_add", "purchase", None]
    file = tmp_path / "a" / "kind.npy"
    file.write_bytes(file.read_bytes()[:-1] + b"\x07")
    with pytest.raises(ArtifactError, match="not the file that was written"):
        RecentRows.open(tmp_path / "a")


@pytest.mark.parametrize(
    ("parts", "expected"),
    [
        ({"measure": "sum"}, "one of count"),
        ({"measure": "left_behind", "of": "cart_add", "days": 7}, "until"),
        ({"measure": "left_behind", "until": "purchase", "days": 7}, "of and until"),
        ({"measure": "left_behind", "of": "cart_add", "until": "purchase"}, "days"),
        ({"measure": "days_since", "days": 7}, "none for days_since"),
        ({"measure": "count", "until": "purchase"}, "no until"),
        ({"measure": "distinct", "of": "visit"}, "no of for distinct"),
        ({"measure": "count", "days": 0}, "above 0"),
    ],
)
def test_a_measure_that_makes_no_sense_is_refused(parts: dict[str, Any], expected: str) -> None:
    with pytest.raises(ConfigError, match=expected):
        Live(**parts)


def test_only_rows_that_reach_a_server_can_be_followed() -> None:
    past = Past(unbound(), ibis.table({"customer_id": "string", "as_of": "timestamp"}, name="s"))
    with pytest.raises(ConfigError, match="do not reach a server"):
        follow(past, "transactions", {"n": (Live("count"), "orders", "orders")})


def test_a_feature_says_how_it_is_live_also_after_a_journey_through_json() -> None:
    for feature in features():
        assert Feature.from_dict(json.loads(json.dumps(feature.to_dict()))) == feature
        assert (feature.live is None) == (feature.name == "response_rate")
    assert {f.source for f in features() if f.group == "baskets"} == {"events"}

    @feature_group("transactions")
    def elsewhere(past: Past) -> Block:
        """Declared under another table than the one it follows."""
        return follow(past, "events", {"n": (Live("count"), "events", "events")})

    past = Past(unbound(), ibis.table({"customer_id": "string", "as_of": "timestamp"}, name="s"))
    assert attach(past, [elsewhere], "customer")[1][0].source == "events"
