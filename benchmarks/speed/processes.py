"""Servers to measure, as processes of their own, and the load on them."""

from __future__ import annotations

import json
import os
import random
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any
from urllib.error import URLError
from urllib.request import urlopen

from speed import shop

HERE = Path(__file__).resolve().parent
START_SECONDS = 180.0

_OURS = """
import sys
from pathlib import Path
from nextbest.serve.server import run_server
run_server(Path(sys.argv[1]), port=int(sys.argv[2]), workers=int(sys.argv[3]), insecure=True)
"""


def free_port() -> int:
    """Return a port that nobody uses."""
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        return int(taken.getsockname()[1])


@contextmanager
def running(command: Sequence[str], url: str, log: Path) -> Iterator[subprocess.Popen[bytes]]:
    """Run a server until the block ends; begin when it answers."""
    with log.open("wb") as sink:
        # In a group of its own: some servers start others, and all are to stop.
        process = subprocess.Popen(
            command, stdout=sink, stderr=sink, env=environment(), start_new_session=True
        )
        try:
            until = time.monotonic() + START_SECONDS
            while not answers(url):
                if process.poll() is not None or time.monotonic() > until:
                    raise SystemExit(f"{command[0]} did not start:\n{log.read_text()[-2000:]}")
                time.sleep(0.2)
            yield process
        finally:
            with suppress(ProcessLookupError):
                os.killpg(process.pid, signal.SIGTERM)
            process.wait()


def answers(url: str) -> bool:
    try:
        with urlopen(url, timeout=2):
            return True
    except (URLError, OSError):
        return False


def environment() -> dict[str, str]:
    """One thread for each server, and the programs that are installed beside this Python."""
    programs = f"{Path(sys.executable).parent}{os.pathsep}{os.environ.get('PATH', '')}"
    return {**os.environ, "PATH": programs, "OMP_NUM_THREADS": "1", "OPENBLAS_NUM_THREADS": "1"}


@contextmanager
def hello(folder: Path) -> Iterator[str]:
    """Run the yardstick; gives its address."""
    port = free_port()
    url = f"http://127.0.0.1:{port}/"
    command = [
        sys.executable, "-m", "uvicorn", "speed.hello:app", "--app-dir", str(HERE.parent),
        "--port", str(port), "--loop", "uvloop", "--http", "httptools", "--no-access-log",
        "--log-level", "warning",
    ]  # fmt: skip
    with running(command, url, folder / "hello.log"):
        yield url


@contextmanager
def ours(project: Path, workers: int = 1) -> Iterator[tuple[str, int]]:
    """Run our server with an empty decision log; gives its address and process id."""
    for old in (project / ".nextbest").glob("store.db*"):
        old.unlink()
    port = free_port()
    root = f"http://127.0.0.1:{port}"
    command = [sys.executable, "-c", _OURS, str(project), str(port), str(workers)]
    with running(command, f"{root}/readyz", project / "server.log") as process:
        yield f"{root}/v1/decisions", process.pid


@contextmanager
def mlflow(model: Path) -> Iterator[str]:
    """Run `mlflow models serve` with one worker; gives the address that scores."""
    port = free_port()
    root = f"http://127.0.0.1:{port}"
    command = [
        sys.executable, "-m", "mlflow", "models", "serve", "--model-uri", str(model),
        "--port", str(port), "--workers", "1", "--env-manager", "local",
    ]  # fmt: skip
    with running(command, f"{root}/health", model.parent / "mlflow.log"):
        yield f"{root}/invocations"


def load(
    url: str,
    connections: int,
    seconds: float,
    bodies: Sequence[str] = (),
    rate: float = 0.0,
) -> dict[str, Any]:
    """Load a server from another process, and return what came back."""
    command = [
        sys.executable, str(HERE / "load.py"), url, "--connections", str(connections),
        "--seconds", str(seconds), "--rate", str(rate),
    ]  # fmt: skip
    done = subprocess.run(
        command, input="\n".join(bodies), stdout=subprocess.PIPE, text=True, check=True
    )
    found: dict[str, Any] = json.loads(done.stdout)
    if set(found["statuses"]) != {"200"}:
        raise SystemExit(f"{url} answered {found['statuses']}")
    return found


def questions(customers: int, number: int = 20_000) -> list[str]:
    """Questions about customers at random, each with a context of its own."""
    draw = random.Random(3)
    asked = []
    for _ in range(number):
        context = {"device": draw.choice(["phone", "desk"]), "basket_value": draw.uniform(0, 100)}
        customer_id = f"c{draw.randrange(customers):07d}"
        asked.append(
            json.dumps({"customer_id": customer_id, "channel": shop.CHANNEL, "context": context})
        )
    return asked
