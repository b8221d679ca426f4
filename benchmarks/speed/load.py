"""A load generator: keep-alive connections on one event loop, as little work as Python allows.

    python benchmarks/speed/load.py URL --connections 16 --seconds 5 [--rate 500]

POSTs the lines of standard input, one after the other and again from the start, and prints what
came back as JSON. Without ``--rate`` each connection asks again as soon as it is answered (closed
loop). With it, requests are due at random moments at that rate, whatever became of those before
(open loop), and a latency counts from when the request was due.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import random
import sys
import time
from collections import Counter, deque
from collections.abc import Callable
from itertools import cycle
from urllib.parse import urlsplit

import uvloop


class Connection(asyncio.Protocol):
    """One keep-alive connection: a request out, an answer in."""

    def __init__(self, answered: Callable[[Connection, int], None]) -> None:
        self._answered = answered
        self._buffer = b""
        self._needed = 0
        self.since = 0.0

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self.transport = transport

    def ask(self, request: bytes, since: float) -> None:
        """Send a request; ``since`` is when its time begins."""
        self.since = since
        self.transport.write(request)  # type: ignore[attr-defined]

    def data_received(self, data: bytes) -> None:
        self._buffer = self._buffer + data if self._buffer else data
        if not self._needed:
            end = self._buffer.find(b"\r\n\r\n")
            if end < 0:
                return
            head = self._buffer[:end].lower()
            at = head.index(b"content-length:") + 15
            self._needed = end + 4 + int(head[at : (head + b"\r\n").index(b"\r\n", at)])
        if len(self._buffer) >= self._needed:
            status = int(self._buffer[9:12])
            self._buffer, self._needed = b"", 0
            self._answered(self, status)

    def connection_lost(self, error: Exception | None) -> None:
        self._answered(self, 0)


class Load:
    """Asks for a while, and keeps how long each answer took."""

    def __init__(self, requests: list[bytes], seconds: float, warm_up: float) -> None:
        self._next = cycle(requests).__next__
        self._from = time.perf_counter() + warm_up
        self._until = self._from + seconds
        self._idle: deque[Connection] = deque()
        self._due: deque[float] = deque()
        self._closed_loop = True
        self.latencies: list[float] = []
        self.late: list[float] = []
        self.statuses: Counter[int] = Counter()

    def answered(self, connection: Connection, status: int) -> None:
        """Take note of an answer, and ask again."""
        now = time.perf_counter()
        if connection.since and self._from <= now <= self._until:
            self.statuses[status] += 1
            self.latencies.append(now - connection.since)
        if not status:
            return
        if self._closed_loop:
            if now < self._until:
                connection.ask(self._next(), now)
        elif self._due:
            connection.ask(self._next(), self._due.popleft())
        else:
            connection.since = 0.0
            self._idle.append(connection)

    async def closed(self, connections: list[Connection]) -> None:
        """Every connection asks as often as it can."""
        for connection in connections:
            connection.ask(self._next(), time.perf_counter())
        await asyncio.sleep(self._until - time.perf_counter())

    async def open(self, connections: list[Connection], rate: float) -> None:
        """Requests are due at exponentially distributed distances."""
        self._closed_loop = False
        self._idle.extend(connections)
        draw = random.Random(1).expovariate
        due = time.perf_counter()
        while due < self._until:
            due += draw(rate)
            await asyncio.sleep(max(0.0, due - time.perf_counter()))
            self.late.append(time.perf_counter() - due)
            if self._idle:
                self._idle.popleft().ask(self._next(), due)
            else:
                self._due.append(due)
        await asyncio.sleep(0.2)


async def run(given: argparse.Namespace, bodies: list[bytes]) -> dict[str, object]:
    """Load the server and return what came back."""
    url = urlsplit(given.url)
    method = "POST" if bodies else "GET"
    requests = [
        (
            f"{method} {url.path} HTTP/1.1\r\nHost: {url.netloc}\r\n"
            f"Content-Type: application/json\r\nContent-Length: {len(body)}\r\n"
            + "".join(f"{header}\r\n" for header in given.header)
            + "\r\n"
        ).encode()
        + body
        for body in bodies or [b""]
    ]
    load = Load(requests, given.seconds, given.warm_up)
    loop = asyncio.get_running_loop()
    connections = []
    for _ in range(given.connections):
        make = lambda: Connection(load.answered)  # noqa: E731
        _, connection = await loop.create_connection(make, url.hostname, url.port)
        connections.append(connection)
    cpu = time.process_time()
    if given.rate:
        await load.open(connections, given.rate)
    else:
        await load.closed(connections)
    took, late = sorted(load.latencies), sorted(load.late)
    return {
        "per_second": len(took) / given.seconds,
        "statuses": dict(load.statuses),
        "p50_ms": 1e3 * took[len(took) // 2] if took else None,
        "p99_ms": 1e3 * took[int(len(took) * 0.99)] if took else None,
        # What of that is ours: requests are not sent when they are due, but when we come to it.
        "late_p99_ms": 1e3 * late[int(len(late) * 0.99)] if late else None,
        "client_cpu": (time.process_time() - cpu) / (given.seconds + given.warm_up),
    }


def main() -> None:
    options = argparse.ArgumentParser(description=__doc__)
    options.add_argument("url")
    options.add_argument("--connections", type=int, default=16)
    options.add_argument("--seconds", type=float, default=5.0)
    options.add_argument("--warm-up", type=float, default=1.0)
    options.add_argument("--rate", type=float, default=0.0)
    options.add_argument("--header", action="append", default=[])
    given = options.parse_args()
    bodies = [line.encode() for line in sys.stdin.read().splitlines()]
    print(json.dumps(uvloop.run(run(given, bodies))))


if __name__ == "__main__":
    main()
