"""A store that an earlier nextbest made becomes one of today's, with everything that was in it."""

from __future__ import annotations

import sqlite3
import subprocess
import sys
import textwrap
import threading
from datetime import UTC, datetime
from pathlib import Path

import pytest
import sqlalchemy as sa
from alembic.autogenerate import compare_metadata
from alembic.runtime.migration import MigrationContext
from alembic.script import ScriptDirectory

from nextbest.errors import StoreError
from nextbest.serve.audit import Change
from nextbest.serve.records import ApiKey, Contacts, DecisionRecord
from nextbest.serve.store import Store
from nextbest.serve.store.database import Database
from nextbest.serve.store.migrations import config, upgrade
from nextbest.serve.store.tables import METADATA, SCHEMA_VERSION, revision

EARLIER = {number: Path(__file__).with_name(f"version_{number}.sql") for number in (2, 3, 4)}
AT = datetime(2017, 12, 10, 9, 30)


def left_by(version: int, path: Path) -> Path:
    """A store with data, as a nextbest of this version left it."""
    with sqlite3.connect(path) as connection:
        connection.executescript(EARLIER[version].read_text())
    connection.close()
    return path


@pytest.fixture
def old(tmp_path: Path) -> Path:
    return left_by(2, tmp_path / "store.db")


def difference(connection: sa.Connection) -> list[object]:
    """What Alembic would have to change to make the database what the metadata says."""
    context = MigrationContext.configure(connection, opts={"compare_type": True})
    return list(compare_metadata(context, METADATA))


def assert_everything_is_there(path: Path) -> None:
    store = Store.at(path)
    found = store.decision("d1")
    assert found is not None and found.record == {"answer": {"n": 1}}
    assert store.decisions_by_keys(["k1"])["k1"].decision_id == "d1"
    assert store.chosen(["d1"]) == {"d1": ("7", ("a", "b"))}
    assert store.history(["7"])[0] == Contacts(
        ("7", "7"), ("a", "b"), ("email", "email"), (AT, AT), ("d1", "d1")
    )
    assert [(one.outcome_id, one.value) for one in store.outcomes(customer_id="7")] == [("o1", 2.5)]
    tally = store.tallies(["click"], datetime(2018, 1, 1))["a"]
    assert (tally.contacts, tally.settled_responses, tally.loss) == (1, 1, -2.5)
    made = datetime(2017, 12, 1, tzinfo=UTC)
    assert store.api_keys() == [ApiKey("0123456789ab", "web", ("decide",), "abc", made)]
    store.close()


@pytest.mark.parametrize("version", EARLIER)
def test_an_earlier_store_is_upgraded_with_its_data(version: int, tmp_path: Path) -> None:
    old = left_by(version, tmp_path / "store.db")
    assert_everything_is_there(old)
    assert_everything_is_there(old)  # and is then simply opened
    with sqlite3.connect(old) as connection:
        assert connection.execute("SELECT version FROM schema_version").fetchall() == [
            (SCHEMA_VERSION,)
        ]


@pytest.mark.parametrize("version", EARLIER)
def test_an_upgraded_store_is_what_a_new_one_is(version: int, tmp_path: Path) -> None:
    columns = []
    for path in (left_by(version, tmp_path / "store.db"), tmp_path / "new.db"):
        store = Store.at(path)
        with store._engine.connect() as connection:
            assert difference(connection) == []
            look = sa.inspect(connection)
            columns.append(
                {
                    table: (
                        {
                            c["name"]: (str(c["type"]), c["nullable"])
                            for c in look.get_columns(table)
                        },
                        sorted(str(i["column_names"]) for i in look.get_indexes(table)),
                        look.get_pk_constraint(table)["constrained_columns"],
                        sorted(str(u["column_names"]) for u in look.get_unique_constraints(table)),
                    )
                    for table in look.get_table_names()
                }
            )
        store.close()
    assert columns[0] == columns[1]


def test_a_person_is_found_in_rows_of_an_earlier_version(tmp_path: Path) -> None:
    """Also in those that a process which still runs writes after the upgrade; and nobody else."""
    path = left_by(3, tmp_path / "store.db")
    store = Store.at(path)
    names = "decision_id, customer_id, decided_at, channel, arm, request_hash, record"
    with sqlite3.connect(path) as running:
        for number, customer in ((4, "7"), (5, "8")):
            running.execute(
                f"INSERT INTO decisions ({names}) VALUES (?, ?, ?, 'email', 'a', 'h', '{{}}')",
                (f"d{number}", customer, f"{AT}.000000"),
            )
    running.close()
    for number, offers in ((6, ()), (7, ("a",))):
        made = DecisionRecord(f"d{number}", "7", AT, "email", "policy", offers, {}, "h")
        store.record_decisions([made])
    found = store.person("7")
    assert sorted(one.decision_id for one in found.decisions) == ["d1", "d2", "d4", "d6", "d7"]
    removed, *_ = store.erase("7", Change("user test", "erase", "one customer", {}))
    assert removed == {"decisions": 5, "contacts": 3, "outcomes": 1, "events": 0}
    assert not store.person("7")
    assert [one.decision_id for one in store.person("8").decisions] == ["d5", "d3"]
    store.close()


def test_the_migrations_alone_make_what_the_metadata_says(url: str) -> None:
    database = Database(url, 5_000)
    with database.transaction() as connection:
        upgrade(connection, 0)
    with database.read() as connection:
        assert difference(connection) == []
    database.engine.dispose()
    store = Store(url)  # which finds nothing to do
    store.ping()
    store.close()


def test_a_difference_would_be_seen(url: str) -> None:
    """The comparison above is worth something: without a table and a column it complains."""
    store = Store(url)
    store.close()
    database = Database(url, 5_000)
    with database.transaction() as connection:
        connection.exec_driver_sql("DROP TABLE erasures")
        connection.exec_driver_sql("ALTER TABLE api_keys DROP COLUMN last_used_at")
        assert {change[0] for change in difference(connection)} == {"add_table", "add_column"}
    database.engine.dispose()


def test_the_newest_revision_is_the_schema_version(tmp_path: Path) -> None:
    engine = sa.create_engine("sqlite://")
    with engine.connect() as connection:
        assert ScriptDirectory.from_config(config(connection)).get_heads() == [
            revision(SCHEMA_VERSION)
        ]


def test_an_upgrade_that_breaks_off_leaves_the_store_as_it_was(
    old: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with sqlite3.connect(old) as connection:  # in the way of the last thing that the upgrade does
        connection.execute("ALTER TABLE api_keys ADD COLUMN requests_per_minute INTEGER")
        before = connection.execute("SELECT sql FROM sqlite_master ORDER BY name").fetchall()
    with pytest.raises(StoreError, match=r"cannot be opened.*duplicate column"):
        Store.at(old)
    with sqlite3.connect(old) as connection:
        assert (
            connection.execute("SELECT sql FROM sqlite_master ORDER BY name").fetchall() == before
        )
        connection.execute("ALTER TABLE api_keys DROP COLUMN requests_per_minute")
    connection.close()
    assert_everything_is_there(old)


def open_at_once(url: str, processes: int) -> list[str]:
    """Open a store from several processes in the same moment; return what each complained of."""
    program = """
        import sys
        from nextbest.serve.store import Store
        print("ready", flush=True)
        sys.stdin.readline()
        Store(sys.argv[1]).close()
    """
    workers = [
        subprocess.Popen(
            [sys.executable, "-c", textwrap.dedent(program), url],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            env={"PYTHONPATH": ":".join(sys.path)},
        )
        for _ in range(processes)
    ]
    for worker in workers:
        assert worker.stdout is not None and worker.stdout.readline() == "ready\n"
    for worker in workers:
        assert worker.stdin is not None
        worker.stdin.write("go\n")
        worker.stdin.flush()
    said = [worker.communicate(timeout=60)[1] for worker in workers]
    return [text for worker, text in zip(workers, said, strict=True) if worker.returncode]


def test_processes_that_start_at_once_upgrade_it_once(old: Path) -> None:
    assert open_at_once(f"sqlite:///{old}", 3) == []
    assert_everything_is_there(old)


def test_processes_that_start_at_once_make_one_store(url: str) -> None:
    assert open_at_once(url, 2) == []
    database = Database(url, 5_000)
    with database.read() as connection:
        assert connection.exec_driver_sql("SELECT version FROM schema_version").fetchall() == [
            (SCHEMA_VERSION,)
        ]
    database.engine.dispose()


def test_opening_a_store_waits_for_whoever_writes_before_there_is_a_write_ahead_log(
    tmp_path: Path,
) -> None:
    path = tmp_path / "store.db"
    other = sqlite3.connect(path, isolation_level=None, check_same_thread=False)
    other.execute("CREATE TABLE other (x)")
    assert path.read_bytes()[18:20] == b"\1\1"
    # SQLite says "locked" here at once, however patient it was told to be.
    other.execute("BEGIN IMMEDIATE")
    done = threading.Timer(0.3, other.rollback)
    done.start()
    Database(f"sqlite:///{path}", 5_000).engine.connect().close()
    done.join()
    other.close()
    assert path.read_bytes()[18:20] == b"\2\2"  # the file's format: a write-ahead log is kept


def test_opening_a_store_of_today_does_not_load_alembic(tmp_path: Path) -> None:
    program = (
        "import sys; from pathlib import Path; from nextbest.serve.store import Store; "
        "Store.at(Path(sys.argv[1])).close(); Store.at(Path(sys.argv[1])).close(); "
        "assert 'alembic' not in sys.modules, 'loaded'"
    )
    subprocess.run(
        [sys.executable, "-c", program, str(tmp_path / "store.db")],
        check=True,
        env={"PYTHONPATH": ":".join(sys.path)},
    )
