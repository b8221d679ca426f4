"""Real server processes that start in a moment: each is forked from one that has loaded it all.

As a program: reads ``{"project": …, "env": …}`` from standard input, a line for each server, and
answers with its process id and port.
"""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path


class Nursery:
    """Starts servers; ``pid`` is of the process that they are forked from."""

    def __init__(self, process: subprocess.Popen[str]) -> None:
        self._process = process
        self.pid = process.pid

    def start(self, project: Path, **env: str) -> tuple[int, int]:
        """Start a server and return its process id and port; it may not answer yet."""
        assert self._process.stdin is not None and self._process.stdout is not None
        self._process.stdin.write(json.dumps({"project": str(project), "env": env}) + "\n")
        self._process.stdin.flush()
        pid, port = self._process.stdout.readline().split()
        return int(pid), int(port)

    @contextmanager
    def server(self, project: Path, **env: str) -> Iterator[tuple[int, int]]:
        """Start a server, and kill it in the end if it still runs."""
        pid, port = self.start(project, **env)
        try:
            yield pid, port
        finally:
            with suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)
            wait_until_gone(pid)


def wait_until_gone(pid: int) -> None:
    """Return when a process has ended and closed its files, whether it was waited for or not."""
    with suppress(OSError):
        while Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] not in "ZX":
            time.sleep(0.005)


@contextmanager
def nursery(within: Sequence[str] = ()) -> Iterator[Nursery]:
    """Have servers at hand; those that are left are killed at the end.

    ``within`` is a command that becomes the one that it is given.
    """
    with subprocess.Popen(
        [*within, sys.executable, __file__],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
        text=True,
        start_new_session=True,
        env={**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": ":".join(sys.path)},
    ) as process:
        try:
            yield Nursery(process)
        finally:
            os.killpg(process.pid, signal.SIGKILL)


def main() -> None:
    import uvicorn

    from nextbest.serve.api import create_app
    from nextbest.serve.server import bind_socket, config_of

    for line in sys.stdin:
        wanted = json.loads(line)
        listening = bind_socket("127.0.0.1", 0)
        port = listening.getsockname()[1]
        pid = os.fork()
        if pid == 0:
            os.environ.update(wanted["env"])
            app = create_app(Path(wanted["project"]), insecure=True)
            uvicorn.Server(config_of(app)).run(sockets=[listening])
            os._exit(0)
        listening.close()
        print(pid, port, flush=True)


if __name__ == "__main__":
    main()
