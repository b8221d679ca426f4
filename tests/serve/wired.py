"""An app behind a real socket, in this process, as `nextbest serve` has it."""

from __future__ import annotations

import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import uvicorn

from nextbest.serve.server import bind_socket, config_of


class _Server(uvicorn.Server):
    def install_signal_handlers(self) -> None:
        """Signals are for the main thread."""


@contextmanager
def listening(app: Any, **more: Any) -> Iterator[tuple[str, int]]:
    """Run an app, and yield where it listens; ``more`` are settings of uvicorn."""
    config = config_of(app, **more)
    server = _Server(config)
    with bind_socket("127.0.0.1", 0) as sock:
        address: tuple[str, int] = sock.getsockname()
        thread = threading.Thread(target=server.run, kwargs={"sockets": [sock]}, daemon=True)
        thread.start()
        try:
            while not server.started:
                assert thread.is_alive(), "the server has not started"
                time.sleep(0.01)
            yield address
        finally:
            server.should_exit = True
            thread.join(30)
    assert not thread.is_alive()
