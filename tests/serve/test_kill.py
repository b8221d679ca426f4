"""What was acknowledged survives the process; `make kill` does this a hundred times."""

from __future__ import annotations

import random
from functools import partial
from pathlib import Path

import databases
import killing
from nursery import Nursery

from nextbest.serve.store import Store


def test_nothing_acknowledged_is_lost_and_nothing_is_there_twice(
    project: Path, servers: Nursery, url: str
) -> None:
    log, chance = killing.Log(), random.Random(5)
    start = partial(servers.start, project, NEXTBEST_STORE=url)
    for number in range(3):
        killing.kill_once(start, log, f"r{number}", chance.uniform(0.0, 0.3))
    with servers.server(project, NEXTBEST_STORE=url) as (_, port):
        killing.wait_until_ready(port)
        caller = killing.Caller(port, log)
        caller.again()
        caller.close()
    assert len(log.answers) == len(log.asked) >= 3
    assert len(log.statuses) == len(log.reported) >= 3
    assert not log.refusals
    store = Store(url)
    assert not killing.losses(store, log)
    store.close()


def test_a_loss_would_be_seen(project: Path, servers: Nursery, tmp_path: Path) -> None:
    """The comparison above is worth something: it names what somebody takes out of the store."""
    url = databases.sqlite_url(tmp_path / "store.db")
    log = killing.Log()
    killing.kill_once(partial(servers.start, project, NEXTBEST_STORE=url), log, "r", 0.1)
    store = Store(url)
    assert not killing.losses(store, log)
    decision_id, outcome_id = (
        next(iter(log.answers.values()))["decision_id"],
        next(iter(log.statuses)),
    )
    with store._database.transaction() as connection:
        for table, column, lost in (
            ("contacts", "decision_id", decision_id),
            ("decisions", "decision_id", decision_id),
            ("outcomes", "outcome_id", outcome_id),
        ):
            connection.exec_driver_sql(f"DELETE FROM {table} WHERE {column} = ?", (lost,))
    found = killing.losses(store, log)
    store.close()
    assert found.decisions == found.contacts == [decision_id]
    assert found.outcomes == [outcome_id]
