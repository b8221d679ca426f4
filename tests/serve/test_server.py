"""Starting and stopping real server processes, and refusing to start unsafely."""

from __future__ import annotations

import json
import os
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any

import httpx
import pytest

from nextbest.errors import ArtifactError, ConfigError, UsageError
from nextbest.serve.auth import create_key, revoke_key
from nextbest.serve.runtime import open_store, serving_dir
from nextbest.serve.server import bind_socket, check_start

ROOT = Path(__file__).resolve().parents[2]
RUN = """
import sys
from pathlib import Path
from nextbest.serve.server import run_server
run_server(Path(sys.argv[1]), port=0, workers=int(sys.argv[2]), insecure=sys.argv[3] == "insecure",
           announce=lambda url: print(url, flush=True))
"""


@contextmanager
def server(project: Path, workers: int = 1, mode: str = "insecure") -> Iterator[tuple[Any, str]]:
    with ExitStack() as stack:
        process = subprocess.Popen(
            [sys.executable, "-c", RUN, str(project), str(workers), mode],
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            env={**os.environ, "PYTHONPATH": ":".join(sys.path)},
        )
        stack.callback(process.communicate)
        stack.callback(process.kill)
        assert process.stdout is not None
        url = process.stdout.readline().strip()
        assert url, process.communicate()[1]
        yield process, url


def ask(url: str, customer_id: str = "c01", **headers: str) -> httpx.Response:
    question = {"customer_id": customer_id, "channel": "mail"}
    return httpx.post(f"{url}/v1/decisions", json=question, headers=headers, timeout=60)


def test_a_server_starts_on_a_free_port_answers_logs_and_stops(project: Path) -> None:
    with server(project) as (process, url):
        answer = ask(url, "secret-person")
        assert answer.status_code == 200
        assert httpx.get(f"{url}/readyz").json()["ready"] is True
        httpx.get(f"{url}/v1/customers/secret-person")
        page = httpx.get(f"{url}/metrics").text
        process.send_signal(signal.SIGINT)
        _, err = process.communicate(timeout=60)
    assert process.returncode == 0, err
    store = open_store(project)
    assert store.decision(answer.json()["decision_id"]) is not None
    store.close()
    lines = [json.loads(line) for line in err.splitlines()]  # no traceback, no plain text
    assert {"serving", "request"} <= {line["event"] for line in lines}
    routes = {line.get("route") for line in lines}
    assert {"/v1/decisions", "/v1/customers/{customer_id}"} <= routes
    assert "secret-person" not in err
    assert "secret-person" not in page


def test_two_workers_share_port_store_and_keys_and_stop_together(project: Path) -> None:
    store = open_store(project)
    _, token = create_key(store, "web", ["decide", "read"])
    store.close()
    key = {"Authorization": f"Bearer {token}"}
    with server(project, workers=2, mode="keys") as (process, url):
        assert ask(url).status_code == 401
        ids = [ask(url, f"c{number:02d}", **key).json()["decision_id"] for number in range(20)]
        for decision_id in ids:
            read = httpx.get(f"{url}/v1/decisions/{decision_id}", headers=key)
            assert read.status_code == 200
        process.send_signal(signal.SIGTERM)
        _, err = process.communicate(timeout=60)
    events = [json.loads(line)["event"] for line in err.splitlines()]
    assert events.count("serving") == 2


def test_what_was_acknowledged_before_a_kill_is_there_after_it(project: Path) -> None:
    acknowledged: list[str] = []
    with server(project) as (process, url):
        assert ask(url).status_code == 200

        def load(worker: int) -> None:
            number = 0
            while True:
                number += 1
                try:
                    answer = ask(url, f"w{worker}-{number}")
                except httpx.HTTPError:
                    return
                acknowledged.append(answer.json()["decision_id"])

        threads = [threading.Thread(target=load, args=(worker,)) for worker in range(4)]
        for thread in threads:
            thread.start()
        while len(acknowledged) < 20 and any(thread.is_alive() for thread in threads):
            time.sleep(0.01)
        process.kill()
        for thread in threads:
            thread.join()
    assert len(acknowledged) >= 20
    store = open_store(project)
    assert all(store.decision(decision_id) is not None for decision_id in acknowledged)
    store.close()


def test_the_rooms_app_serves_the_project(project: Path) -> None:
    """``uvicorn serving.app:app`` from the project's folder, as its README says."""
    (project / "serving" / "app.py").write_text((ROOT / "serving" / "app.py").read_text())
    program = """
import os
os.environ["NEXTBEST_INSECURE"] = "1"
from fastapi.testclient import TestClient
from serving.app import app
with TestClient(app) as client:
    print(client.get("/readyz").json()["ready"])
"""
    done = subprocess.run(
        [sys.executable, "-W", "ignore", "-c", program],
        cwd=project,
        capture_output=True,
        text=True,
        env={**os.environ, "PYTHONPATH": ":".join([str(project), *sys.path])},
    )
    assert done.stdout.strip() == "True", done.stderr


@pytest.mark.parametrize("host", ["0.0.0.0", "192.168.1.5", "::", "shop.example.com"])
def test_insecure_beyond_loopback_is_refused(project: Path, host: str) -> None:
    with pytest.raises(UsageError, match="a loopback host"):
        check_start(project, host, 1, insecure=True)


@pytest.mark.parametrize("host", ["127.0.0.1", "localhost", "::1"])
def test_insecure_on_loopback_is_allowed(project: Path, host: str) -> None:
    check_start(project, host, 1, insecure=True)


@pytest.mark.parametrize(("mode", "fine"), [(0o700, True), (0o755, True), (0o775, False),
                                            (0o702, False), (0o777, False)])  # fmt: skip
def test_compiled_code_is_read_from_a_folder_that_only_we_can_write(
    project: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, mode: int, fine: bool
) -> None:
    folder = tmp_path / "cache"
    folder.mkdir()
    folder.chmod(mode)
    monkeypatch.setenv("NUMBA_CACHE_DIR", str(folder))
    if fine:
        check_start(project, "127.0.0.1", 1, insecure=True)
        return
    with pytest.raises(UsageError, match="NUMBA_CACHE_DIR: others could put code into"):
        check_start(project, "127.0.0.1", 1, insecure=True)


def test_a_folder_for_compiled_code_is_made_for_us_alone(
    project: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("NUMBA_CACHE_DIR", str(tmp_path / "new" / "cache"))
    check_start(project, "127.0.0.1", 1, insecure=True)
    assert (tmp_path / "new" / "cache").stat().st_mode & 0o777 == 0o700
    monkeypatch.setattr("os.geteuid", lambda: 12_345)
    with pytest.raises(UsageError, match="others could put code into"):
        check_start(project, "127.0.0.1", 1, insecure=True)
    (tmp_path / "file").touch()
    monkeypatch.setenv("NUMBA_CACHE_DIR", str(tmp_path / "file"))
    with pytest.raises(UsageError, match="the folder cannot be used"):
        check_start(project, "127.0.0.1", 1, insecure=True)


def test_without_a_valid_key_nobody_could_come_in(project: Path) -> None:
    with pytest.raises(UsageError, match="nextbest keys create"):
        check_start(project, "0.0.0.0", 1, insecure=False)
    store = open_store(project)
    key, _ = create_key(store, "web", ["decide"])
    check_start(project, "0.0.0.0", 1, insecure=False)
    revoke_key(store, key.key_id)
    store.close()
    with pytest.raises(UsageError, match="there is no API key"):
        check_start(project, "0.0.0.0", 1, insecure=False)


@pytest.mark.parametrize(
    ("spoil", "error"),
    [
        (lambda p: (serving_dir(p) / "current.json").unlink(), ArtifactError),
        (lambda p: (p / "serving" / "policy.toml").write_text("x = "), ConfigError),
    ],
)
def test_what_could_not_decide_is_not_started(
    project: Path, spoil: Callable[[Path], None], error: type[Exception]
) -> None:
    spoil(project)
    with pytest.raises(error):
        check_start(project, "127.0.0.1", 1, insecure=True)


def test_no_workers_is_a_misuse(project: Path) -> None:
    with pytest.raises(UsageError, match="1 or more; got 0"):
        check_start(project, "127.0.0.1", 0, insecure=True)


@pytest.mark.parametrize("port", [70_000, -1])
def test_an_impossible_port_is_refused(port: int) -> None:
    with pytest.raises(UsageError, match="cannot be used"):
        bind_socket("127.0.0.1", port)


def test_a_taken_port_is_refused() -> None:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        with pytest.raises(UsageError, match="free port"):
            bind_socket("127.0.0.1", taken.getsockname()[1])


def test_a_host_that_is_not_ours_is_refused() -> None:
    with pytest.raises(UsageError, match="cannot be used"):
        bind_socket("203.0.113.1", 0)


def test_serving_imports_no_more_than_it_needs() -> None:
    program = """
import sys
import nextbest.serve
print("fastapi" in sys.modules)
print(nextbest.serve.create_app.__module__)
import nextbest.serve.batch, nextbest.serve.server
heavy = ["mlflow", "matplotlib", "lifetimes", "nextbest.learn.train", "nextbest.project"]
print([name for name in heavy if name in sys.modules])
"""
    done = subprocess.run(
        [sys.executable, "-c", program],
        capture_output=True,
        text=True,
        check=True,
        env={**os.environ, "PYTHONPATH": ":".join(sys.path)},
    )
    assert done.stdout.splitlines() == ["False", "nextbest.serve.api", "[]"]
