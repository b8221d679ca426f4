"""Start the API as a process, refusing what would let strangers in or could not decide."""

from __future__ import annotations

import logging
import os
import socket
import stat
import sys
import tempfile
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING, Any

from nextbest.errors import NextbestError, UsageError
from nextbest.serve.access import is_loopback
from nextbest.serve.cores import cores
from nextbest.serve.options import options_of
from nextbest.serve.runtime import load_approved, load_last_good, open_store
from nextbest.serve.telemetry import SHARED, configure_logging, log

if TYPE_CHECKING:
    import uvicorn

__all__ = ["bind_socket", "check_start", "config_of", "require_private_cache", "run_server"]


def run_server(
    project_dir: Path,
    host: str = "127.0.0.1",
    port: int = 8000,
    workers: int | None = None,
    insecure: bool = False,
    announce: Callable[[str], None] = print,
) -> None:
    """Serve a project until interrupted.

    Parameters
    ----------
    project_dir : the folder with ``serving/`` and ``.nextbest/``.
    host, port : where to listen; port 0 takes a free one.
    workers : number of processes; they share the port and the store. None for one on each core.
    insecure : no API keys. Only on the loopback interface.
    announce : told the address once the server listens.

    Raises
    ------
    UsageError: not allowed to start like this, or the address cannot be used.
    NextbestError: bundle, catalogue, policy or store are missing or broken, and nothing was in use
        before; or the store is broken.
    """
    import uvicorn
    from uvicorn.supervisors import Multiprocess

    configure_logging()
    workers = cores() if workers is None else workers
    check_start(project_dir, host, workers, insecure)
    listening = bind_socket(host, port)
    real_port = listening.getsockname()[1]
    shown = f"[{host}]" if ":" in host else host
    os.environ["NEXTBEST_PROJECT"] = str(project_dir.resolve())
    os.environ["NEXTBEST_INSECURE"] = "1" if insecure else "0"
    os.environ["NEXTBEST_WORKERS"] = str(workers)
    config = config_of("nextbest.serve.server:app", factory=True, workers=workers)
    announce(f"http://{shown}:{real_port}")
    with suppress(KeyboardInterrupt), listening:
        if workers == 1:
            uvicorn.Server(config).run(sockets=[listening])
            return
        with tempfile.TemporaryDirectory(prefix="nextbest-metrics-") as shared:
            os.environ.setdefault(SHARED, shared)
            Multiprocess(config, sockets=[listening]).run()


def config_of(app: object, **more: Any) -> uvicorn.Config:
    """Return how uvicorn runs our app, or the one that a name leads to."""
    import uvicorn

    from nextbest.serve.wire import DecisionProtocol

    return uvicorn.Config(
        app,  # type: ignore[arg-type]
        loop="auto" if sys.platform == "win32" else "uvloop",
        http=DecisionProtocol,
        # The log of uvicorn names paths, and a path may name a customer; ours does not.
        access_log=False,
        log_level="warning",
        server_header=False,
        timeout_graceful_shutdown=10,
        timeout_worker_healthcheck=30,  # a busy machine is no reason to kill a worker
        **more,
    )


def app() -> object:
    """Return the app of the project that the environment names; each worker calls this."""
    from nextbest.serve.api import create_app

    insecure = os.environ.get("NEXTBEST_INSECURE") == "1"
    workers = int(os.environ.get("NEXTBEST_WORKERS", "1"))
    return create_app(Path(os.environ["NEXTBEST_PROJECT"]), insecure=insecure, workers=workers)


def check_start(project_dir: Path, host: str, workers: int, insecure: bool) -> None:
    """Refuse to start where strangers could come in, or nothing could be decided.

    Raises
    ------
    UsageError: insecure beyond the loopback interface, no API key to come in with, or a folder for
        compiled code in which others can write.
    NextbestError: bundle, catalogue, policy or store are missing or broken, and nothing was in use
        before; or the store is broken, or a setting is wrong.
    """
    if workers < 1:
        raise UsageError(
            "--workers", "there is nobody to work", expected="1 or more", got=str(workers)
        )
    if insecure and not is_loopback(host):
        raise UsageError(
            "--insecure",
            "without API keys everybody who reaches the server may use it",
            expected="a loopback host such as 127.0.0.1",
            got=host,
            action="Leave out --insecure, or leave out --host",
        )
    options_of()
    require_private_cache()
    _require_something_to_serve(project_dir)
    store = open_store(project_dir)
    try:
        valid = [key for key in store.api_keys() if key.revoked_at is None]
    finally:
        store.close()
    if not insecure and not valid:
        raise UsageError(
            "serve",
            "there is no API key, so nobody could use the server",
            expected="at least one valid key",
            action="Make one: `nextbest keys create --scope decide --name web`; "
            "or, on your own machine, use --insecure",
        )


def _require_something_to_serve(project_dir: Path) -> None:
    """Refuse to start where neither the project's files nor what was last in use can decide."""
    try:
        load_approved(project_dir)
    except NextbestError as error:
        # A start again, of a machine or a container, is not the moment to stop deciding.
        if load_last_good(project_dir) is None:
            raise
        what = "start with what was last in use"
        log(what, level=logging.ERROR, reason=error.code, error=str(error))


def require_private_cache() -> None:
    """Refuse a folder for compiled code in which somebody else could put theirs.

    Numba runs what it finds there. Without ``NUMBA_CACHE_DIR`` it uses a folder as well guarded as
    the package itself, or the user's own.

    Raises
    ------
    UsageError: the folder belongs to somebody else, or others may write to it.
    """
    folder = os.environ.get("NUMBA_CACHE_DIR")
    if not folder:
        return
    path = Path(folder)
    try:
        path.mkdir(mode=0o700, parents=True, exist_ok=True)
        status = path.stat()
    except OSError as error:
        raise UsageError(
            "NUMBA_CACHE_DIR", "the folder cannot be used", got=error.strerror or str(error)
        ) from None
    if status.st_uid != os.geteuid() or status.st_mode & 0o022:
        raise UsageError(
            "NUMBA_CACHE_DIR",
            f"others could put code into {path}, which the server would run",
            expected="a folder of the server's own user that nobody else can write to",
            got=f"owner {status.st_uid}, mode {stat.filemode(status.st_mode)}",
            action="chmod 700 it, name another, or unset the variable",
        )


def bind_socket(host: str, port: int) -> socket.socket:
    """Return a socket that is bound to the address; port 0 takes a free one.

    Raises
    ------
    UsageError: the address is taken or not ours.
    """
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    # The protocol is named, or asyncio would leave Nagle's algorithm on.
    listening = socket.socket(family, socket.SOCK_STREAM, socket.IPPROTO_TCP)
    listening.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    try:
        listening.bind((host, port))
        listening.listen(2_048)
    except (OSError, OverflowError) as error:
        listening.close()
        raise UsageError(
            "--host, --port",
            f"{host}:{port} cannot be used",
            expected="an address of this machine and a free port (0 takes any)",
            got=getattr(error, "strerror", None) or str(error),
        ) from None
    listening.set_inheritable(True)
    return listening
