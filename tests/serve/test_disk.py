"""A disk that is full or read-only: a clear refusal, nothing acknowledged, no restart needed."""

from __future__ import annotations

import resource
import shutil
import subprocess
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from functools import partial
from http.client import HTTPConnection
from pathlib import Path
from typing import Any

import killing
import pytest
from databases import sqlite_url
from nursery import Nursery, nursery
from test_store import decision

from nextbest.errors import StoreError
from nextbest.serve.store import Store

# A disk of its own for the command that follows; needs no rights where namespaces are allowed.
OWN_DISK = (
    "unshare", "--user", "--map-root-user", "--mount", "sh", "-c",
    'mount -t tmpfs -o size=2m tmpfs "$0" && exec "$@"',
)  # fmt: skip


class Limited:
    """A folder where a server may not let files grow from some moment on."""

    def __init__(self, servers: Nursery, folder: Path) -> None:
        self.servers, self.folder, self.seen = servers, folder, folder
        self._before = resource.getrlimit(resource.RLIMIT_FSIZE)

    def fill(self, pid: int) -> None:
        size = (self.seen / "store.db-wal").stat().st_size
        resource.prlimit(pid, resource.RLIMIT_FSIZE, (size, self._before[1]))

    def free(self, pid: int) -> None:
        resource.prlimit(pid, resource.RLIMIT_FSIZE, self._before)


class OwnDisk:
    """A disk of two megabytes that only the servers see.

    ``seen`` is how we see its files. SQLite does not: it follows the link to our own root.
    """

    def __init__(self, servers: Nursery, folder: Path) -> None:
        self.servers, self.folder = servers, folder
        self.seen = Path(f"/proc/{servers.pid}/root{folder}")
        self._ballast = self.seen / "ballast"

    def fill(self, pid: int) -> None:
        with self._ballast.open("wb", buffering=0) as file:
            for size in (65_536, 1_024, 1):
                with suppress(OSError):
                    while True:
                        file.write(b"x" * size)

    def free(self, pid: int) -> None:
        self._ballast.unlink()

    def remount(self, mode: str) -> None:
        enter = ["nsenter", "-t", str(self.servers.pid), "--user", "--mount"]
        command = [*enter, "mount", "-o", f"remount,{mode}", str(self.folder)]
        while subprocess.run(command, capture_output=True).returncode:
            time.sleep(0.01)  # a server that was killed has not closed its files yet


@pytest.fixture
def limited(servers: Nursery, tmp_path: Path) -> Limited:
    folder = tmp_path / "disk"
    folder.mkdir()
    return Limited(servers, folder)


@pytest.fixture(scope="module")
def own_disk(tmp_path_factory: pytest.TempPathFactory) -> Iterator[OwnDisk]:
    folder = tmp_path_factory.mktemp("disk")
    within = (*OWN_DISK, str(folder))
    tools = all(shutil.which(tool) for tool in ("unshare", "nsenter"))
    if not tools or subprocess.run([*within, "true"], capture_output=True).returncode:
        pytest.skip("needs user and mount namespaces (unshare)")
    with nursery(within) as servers:
        yield OwnDisk(servers, folder)


def get(port: int, path: str) -> tuple[int, str]:
    connection = HTTPConnection("127.0.0.1", port, timeout=30)
    connection.request("GET", path)
    response = connection.getresponse()
    status, text = response.status, response.read().decode()
    connection.close()
    return status, text


@contextmanager
def copy_of(disk: Any, folder: Path, file: str = "store.db") -> Iterator[Store]:
    """Open a copy of the store on a disk, while nobody writes to it."""
    shutil.copytree(disk.seen, folder, ignore=shutil.ignore_patterns("ballast", "*-shm"))
    store = Store.at(folder / file)
    yield store
    store.close()


class Asker:
    """Asks one question after the other, of a customer each."""

    def __init__(self, port: int, name: str) -> None:
        self.log, self._name, self._number = killing.Log(), name, 0
        self.caller = killing.Caller(port, self.log)
        self.port = port

    def ask(self) -> dict[str, Any] | None:
        self._number += 1
        key = f"{self._name}-{self._number}"
        self.log.asked[key] = {"customer_id": key, "idempotency_key": key, **killing.MAIL}
        return self.caller.ask(key)

    def report(self, outcome_id: str, answer: dict[str, Any]) -> None:
        self.log.reported[outcome_id] = {
            "outcome_id": outcome_id,
            "decision_id": answer["decision_id"],
            "outcome_type": "click",
            "occurred_at": answer["decided_at"],
            "value": 1.0,
        }
        self.caller.report([outcome_id])


@pytest.mark.parametrize("kind", ["own_disk", "limited"])
def test_a_full_disk_refuses_clearly_and_recovers_without_a_restart(
    project: Path, kind: str, tmp_path: Path, request: pytest.FixtureRequest
) -> None:
    disk = request.getfixturevalue(kind)
    url = sqlite_url(disk.folder / "store.db")
    with disk.servers.server(project, NEXTBEST_STORE=url) as (pid, port):
        killing.wait_until_ready(port)
        asker = Asker(port, kind)
        log = asker.log
        answer = asker.ask()
        assert answer is not None
        disk.fill(pid)
        for _ in range(200):  # what the file has room for still gets in
            if asker.ask() is None:
                break
        for number in range(200):
            asker.report(f"{kind}-{number}", answer)
            if len(log.statuses) < len(log.reported):
                break
        assert log.refusals == {"503 store-unavailable": 2}
        assert asker.caller.headers["retry-after"].isdigit()
        unready = (get(port, "/readyz") for _ in range(200))  # its own small writes may fit a while
        text = next(text for status, text in unready if status == 503)
        assert "full" in text or "disk I/O error" in text
        assert get(port, "/healthz")[0] == 200
        refused = [key for key in log.asked if key not in log.answers]
        assert len(refused) == 1
        with copy_of(disk, tmp_path / "full") as store:
            assert store.decisions_by_keys(refused) == {}
            assert not killing.losses(store, log)
        disk.free(pid)
        asker.caller.again()
        assert asker.ask() is not None
        assert get(port, "/readyz")[0] == 200
        assert len(log.answers) == len(log.asked) and len(log.statuses) == len(log.reported)
        with copy_of(disk, tmp_path / "free") as store:
            assert not killing.losses(store, log)


def test_a_read_only_disk_refuses_clearly_and_recovers_without_a_restart(
    project: Path, own_disk: OwnDisk, tmp_path: Path
) -> None:
    start = partial(
        own_disk.servers.server, project, NEXTBEST_STORE=sqlite_url(own_disk.folder / "other.db")
    )
    with start() as (_, port):
        killing.wait_until_ready(port)
        asker = Asker(port, "read-only")
        assert asker.ask() is not None
    own_disk.remount("ro")
    with start() as (_, port):
        killing.wait_until_ready(port)
        asker.caller = killing.Caller(port, asker.log)
        assert asker.ask() is None
        assert asker.log.refusals == {"503 store-unavailable": 1}
        assert asker.caller.headers["retry-after"].isdigit()
        status, text = get(port, "/readyz")
        assert status == 503 and "Check disk space, permissions" in text
        own_disk.remount("rw")
        for _ in range(2):  # the first may still meet a file that was opened before
            asker.caller.again()
        assert get(port, "/readyz")[0] == 200
        with copy_of(own_disk, tmp_path / "copy", "other.db") as store:
            assert len(asker.log.answers) == 2 and not killing.losses(store, asker.log)


def test_a_disk_that_turns_read_only_is_refused_until_it_is_not(tmp_path: Path) -> None:
    """What SQLite says then, said by a setting of its own; it is kept per connection."""
    store = Store.at(tmp_path / "store.db")
    for mode in ("ON", "OFF"):
        with store._database.transaction() as connection:
            connection.exec_driver_sql(f"PRAGMA query_only={mode}")
        if mode == "ON":
            with pytest.raises(StoreError, match=r"cannot be written.*readonly"):
                store.record_decisions([decision()])
    assert store.decision("d1") is None
    store.record_decisions([decision()])
    assert store.decision("d1") is not None
    store.close()
