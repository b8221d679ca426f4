"""What only PostgreSQL can do to us: locks, lost connections, settings that would lose commits."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from typing import Any

import databases
import pytest
import sqlalchemy as sa
from test_store import decision

from nextbest.errors import StoreError
from nextbest.serve.store import Store
from nextbest.serve.store.database import Database


@pytest.fixture
def url(postgres: Any) -> str:
    return databases.new_database(postgres)


@pytest.fixture
def store(url: str) -> Iterator[Store]:
    store = Store(url)
    yield store
    store.close()


def shown(url: str, setting: str) -> str:
    database = Database(url, 5_000)
    with database.read() as connection:
        found = connection.exec_driver_sql(f"SHOW {setting}").scalar()
    database.engine.dispose()
    return str(found)


def test_a_commit_waits_for_the_disk_whatever_the_url_says(url: str) -> None:
    careless = sa.make_url(url).update_query_dict(
        {"options": "-c synchronous_commit=off -c application_name=shop"}
    )
    text = careless.render_as_string(hide_password=False)
    assert shown(text, "synchronous_commit") == "on"
    assert shown(text, "application_name") == "shop"  # the rest of it holds
    assert shown(text, "lock_timeout") == "5s"


def test_a_lock_of_somebody_else_is_waited_for_and_then_refused(
    url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("nextbest.serve.store.BUSY_TIMEOUT_MS", 100)
    store, other = Store(url), Database(url, 5_000)
    with other.transaction() as connection:
        other.lock(connection, ["7"])
        with pytest.raises(StoreError, match=r"cannot be written.*lock timeout"):
            store.record_decisions([decision(1)])
        store.record_decisions([decision(2, customer_id="8")])  # another customer's is free
    store.record_decisions([decision(1)])
    assert store.decision("d1") is not None and store.decision("d2") is not None
    store.close()
    other.engine.dispose()


def test_lost_connections_are_made_again(store: Store, url: str) -> None:
    store.record_decisions([decision(1)])
    other = Database(url, 5_000)
    for number in (2, 3):
        with other.read() as connection:
            connection.exec_driver_sql(
                "SELECT pg_terminate_backend(pid) FROM pg_stat_activity "
                "WHERE datname = current_database() AND pid <> pg_backend_pid()"
            )
        store.record_decisions([decision(number)])
    assert len(store.history(["7"])[0].at) == 6
    other.engine.dispose()


def test_a_server_that_is_not_there_is_refused_in_words() -> None:
    with pytest.raises(StoreError, match="cannot be opened") as refused:
        Store("postgresql://shop:hidden@127.0.0.1:1/decisions")
    assert "hidden" not in str(refused.value)


def test_without_the_driver_the_error_says_what_to_install(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setitem(sys.modules, "psycopg", None)
    with pytest.raises(StoreError, match=r"nextbest\[postgres\]"):
        Store("postgresql://shop@db/decisions")
