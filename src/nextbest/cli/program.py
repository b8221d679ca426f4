"""The program: every command, and how an error leaves it."""

from __future__ import annotations

import _thread
import os
import signal
import sys
import threading
from collections.abc import Callable
from importlib.machinery import ExtensionFileLoader
from pathlib import Path
from types import FrameType
from typing import Annotated, Any

import typer

from nextbest import __version__
from nextbest.cli.bias import bias
from nextbest.cli.decide import decide, replay
from nextbest.cli.evaluate import evaluate
from nextbest.cli.keys import keys_app
from nextbest.cli.measure import experiment_app
from nextbest.cli.models import check, compare, features, promote, refresh, rollback, train
from nextbest.cli.options import HERE, Json, ProjectDir, show_json
from nextbest.cli.report import report
from nextbest.cli.simulate import simulate
from nextbest.cli.store import audit_app, customers_app
from nextbest.errors import InternalError, NextbestError, UsageError

app = typer.Typer(
    name="nextbest",
    help="The next best offer for each customer, and proof of what it was worth.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    rich_markup_mode=None,
)
app.add_typer(keys_app, name="keys")
app.add_typer(audit_app, name="audit")
app.add_typer(customers_app, name="customers")
app.add_typer(experiment_app, name="experiment")

# What typer raises for a misuse: it exports only the children of this class.
_Misuse: type[Exception] = typer.BadParameter.__mro__[1]
_INTERRUPTED = 130
# When to try again to interrupt what could not be interrupted.
_LATER_SECONDS = 0.05


def main() -> None:
    """Run the command line; exit code 0 done, 1 refused or failed, 2 misuse, 130 interrupted."""
    # One thread for linear algebra: the jobs are many small fits, and idle threads that spin for
    # work make them several times slower on few cores.
    for name in ("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS"):
        os.environ.setdefault(name, "1")
    try:
        code = _run()
        sys.stdout.flush()
    except BrokenPipeError:
        # Whoever read us has seen enough, as `| head` does.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        code = 1
    sys.exit(code)


def _run() -> int:
    stopped = False
    again: threading.Timer | None = None

    def interrupt(_signal: int, frame: FrameType | None) -> None:
        # DuckDB turns the interrupt into an error of its own, so what is raised does not tell.
        nonlocal stopped, again
        stopped = True
        if _loads_a_compiled_library(frame):
            again = threading.Timer(_LATER_SECONDS, _thread.interrupt_main)
            again.start()
            return
        raise KeyboardInterrupt

    before = signal.signal(signal.SIGINT, interrupt)
    try:
        code = app(standalone_mode=False)
    except BrokenPipeError:
        raise
    except (Exception, KeyboardInterrupt) as error:
        if isinstance(error, Exception) and not stopped and not isinstance(error, typer.Abort):
            return _failed(error)
        code = _INTERRUPTED
    finally:
        if again is not None:
            again.cancel()
        signal.signal(signal.SIGINT, before)
    if code == _INTERRUPTED:
        said = "interrupted; what was finished is kept, and nothing half done is used."
        print(f"nextbest: {said}", file=sys.stderr)
    return code if isinstance(code, int) else 0


def _loads_a_compiled_library(frame: FrameType | None) -> bool:
    """Whether one is being started: DuckDB's ends the process where an error comes out of it."""
    while frame is not None:
        if isinstance(frame.f_locals.get("self"), ExtensionFileLoader):
            return True
        frame = frame.f_back
    return False


def _failed(error: BaseException) -> int:
    """Say what went wrong, on standard error and, with --json, as an object; return exit code."""
    if type(error).__name__ == "NoArgsIsHelpError":
        print(error)
        return 2
    ours = error if isinstance(error, NextbestError) else _as_ours(error)
    if "--json" in sys.argv:
        faults = [{**vars(f), "message": str(f)} for f in ours.faults]
        show_json({"error": {"code": ours.code, "faults": faults}})
    for fault in ours.faults:
        print(f"nextbest: {fault}", file=sys.stderr)
    return ours.exit_code


def _as_ours(error: Any) -> NextbestError:
    if isinstance(error, _Misuse):
        command = error.ctx.command_path if error.ctx else "nextbest"  # type: ignore[attr-defined]
        where = command.removeprefix("nextbest").strip() or "command"
        problem = error.format_message()  # type: ignore[attr-defined]
        return UsageError(where, problem, action=f"See `{command} --help`.")
    if os.environ.get("NEXTBEST_DEBUG"):
        raise error
    return InternalError(
        f"unexpected {type(error).__name__}",
        str(error) or "it says no more",
        action="This is a fault of nextbest; NEXTBEST_DEBUG=1 shows the details to report.",
    )


def _version(value: bool) -> None:
    if value:
        print(f"nextbest {__version__}")
        raise typer.Exit


@app.callback()
def _main(
    version: Annotated[
        bool, typer.Option("--version", callback=_version, is_eager=True, help="Print the version.")
    ] = False,
) -> None:
    """The next best offer for each customer, and proof of what it was worth."""


@app.command()
def init(directory: Annotated[Path, typer.Argument(help="New or empty folder.")]) -> None:
    """Copy the three rooms of the reference project into a folder."""
    from nextbest.project import init as copy

    made = copy(directory)
    print(f"Made {', '.join(str(m) for m in made)}.")
    print(f"Next: map your data in {directory / 'training' / 'sources.py'},")
    print(f"then run `nextbest check --project {directory}`.")


def _add(*commands: Callable[..., None]) -> None:
    """Add commands, in the order in which the help lists them."""
    for command in commands:
        app.command()(command)


_add(check, features, train, compare, promote, rollback, refresh, decide, replay)


@app.command()
def serve(
    project: ProjectDir = HERE,
    host: Annotated[str, typer.Option(help="Address to listen on.")] = "127.0.0.1",
    port: Annotated[int, typer.Option(min=0, max=65535, help="Port; 0 takes a free one.")] = 8000,
    workers: Annotated[
        int | None, typer.Option(min=1, help="Processes; one on each core by default.")
    ] = None,
    insecure: Annotated[
        bool, typer.Option("--insecure", help="No API keys; loopback only.")
    ] = False,
) -> None:
    """Start the API (documentation at /docs)."""
    from nextbest.project import Project
    from nextbest.serve.server import run_server

    run_server(
        Project.open(project).root, host, port, workers, insecure,
        announce=lambda url: print(f"Serving at {url} (documentation: {url}/docs)", flush=True),
    )  # fmt: skip


@app.command()
def demo(
    project: ProjectDir = HERE,
    loop: Annotated[
        bool, typer.Option("--loop", help="Then measure what it earns, in a simulated quarter.")
    ] = False,
    json_: Json = False,
) -> None:
    """Run the whole job, from raw history to one served decision."""
    from nextbest.demo import run
    from nextbest.project import Project

    run(Project.open(project), as_json=json_, loop=loop)


_add(bias, evaluate, report, simulate)
