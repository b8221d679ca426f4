"""Real server processes that start in a moment: each is forked from one that has loaded it all.

As a program: reads the words ``start`` from standard input, forks a server for each, and answers
with its process id and address.
"""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path


class Nursery:
    """Starts servers of one project, one after the other."""

    def __init__(self, process: subprocess.Popen[str]) -> None:
        self._process = process

    def start(self) -> tuple[int, int]:
        """Start a server and return its process id and port; it may not be listening yet."""
        assert self._process.stdin is not None and self._process.stdout is not None
        self._process.stdin.write("start\n")
        self._process.stdin.flush()
        pid, port = self._process.stdout.readline().split()
        return int(pid), int(port)


@contextmanager
def nursery(project: Path, env: Mapping[str, str] | None = None) -> Iterator[Nursery]:
    """Have servers of a project at hand; those that are left are killed at the end."""
    with subprocess.Popen(
        [sys.executable, __file__, str(project)],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
        text=True,
        start_new_session=True,
        env={**os.environ, **(env or {}), "PYTHONPATH": ":".join(sys.path)},
    ) as process:
        try:
            yield Nursery(process)
        finally:
            os.killpg(process.pid, signal.SIGKILL)


def main(project: Path) -> None:
    import uvicorn

    from nextbest.serve.api import create_app
    from nextbest.serve.server import bind_socket

    signal.signal(signal.SIGCHLD, signal.SIG_IGN)
    for _ in sys.stdin:
        listening = bind_socket("127.0.0.1", 0)
        port = listening.getsockname()[1]
        pid = os.fork()
        if pid == 0:
            signal.signal(signal.SIGCHLD, signal.SIG_DFL)
            app = create_app(project, insecure=True)
            settings = uvicorn.Config(
                app, access_log=False, log_level="critical", timeout_graceful_shutdown=10
            )
            uvicorn.Server(settings).run(sockets=[listening])
            os._exit(0)
        listening.close()
        print(pid, port, flush=True)


if __name__ == "__main__":
    main(Path(sys.argv[1]))
