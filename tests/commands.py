"""Running the command line inside a test, and the toy shop after the whole job.

A module of its own, and not part of ``conftest.py``: several folders have a ``conftest``, and an
import by that name gets whichever was loaded first.
"""

from __future__ import annotations

import contextlib
import io
import json
import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any


@dataclass(frozen=True)
class Ran:
    """What a command gave: exit code, standard output, standard error."""

    code: int
    out: str
    err: str

    @property
    def json(self) -> Any:
        """Standard output, which must be one JSON value and nothing else."""
        return json.loads(self.out)


Run = Callable[..., Ran]


def run_cli(*arguments: str | Path) -> Ran:
    """Run the command line in this process, as the console script would."""
    from nextbest.cli import main

    out, err = io.StringIO(), io.StringIO()
    given, code = sys.argv, 0
    sys.argv = ["nextbest", *map(str, arguments)]
    try:
        with contextlib.redirect_stdout(out), contextlib.redirect_stderr(err):
            main()
    except SystemExit as stopped:
        code = stopped.code if isinstance(stopped.code, int) else int(stopped.code is not None)
    finally:
        sys.argv = given
    return Ran(code, out.getvalue(), err.getvalue())


@dataclass(frozen=True)
class Toy:
    """The toy shop after the whole job, and what each command of it said."""

    root: Path
    said: dict[str, Ran]
