"""How a server is run, as its environment says: what operators decide, not marketers."""

from __future__ import annotations

import math
import os
from collections.abc import Mapping
from dataclasses import dataclass

from nextbest.errors import ConfigError, Fault

__all__ = ["Options", "options_of"]

DURABILITIES = ("durable", "queued")


@dataclass(frozen=True)
class Options:
    """What `NEXTBEST_DURABILITY`, `NEXTBEST_DEADLINE` and `NEXTBEST_BACKLOG` say.

    Parameters
    ----------
    queued : answer a decision when it is queued to be written, not when it is on disk.
    deadline_seconds : what has not been decided by then is refused.
    backlog : requests that may be inside one process at once; more are refused.
    """

    queued: bool = False
    deadline_seconds: float = 10.0
    backlog: int = 1_024


def options_of(environment: Mapping[str, str] = os.environ) -> Options:
    """Read the options of a server.

    Raises
    ------
    ConfigError : a value that cannot be one (all of them at once).
    """
    faults: list[Fault] = []
    usual = Options()
    durability = environment.get("NEXTBEST_DURABILITY", "durable")
    if durability not in DURABILITIES:
        expected = " or ".join(f'"{one}"' for one in DURABILITIES)
        faults.append(_fault("NEXTBEST_DURABILITY", expected, durability))
    seconds = _number(environment, "NEXTBEST_DEADLINE", usual.deadline_seconds)
    if not 0 < seconds <= 3_600:
        expected = "a number of seconds above 0, up to 3600"
        faults.append(_fault("NEXTBEST_DEADLINE", expected, environment["NEXTBEST_DEADLINE"]))
    backlog = _number(environment, "NEXTBEST_BACKLOG", usual.backlog)
    if not (1 <= backlog <= 1_000_000 and backlog == int(backlog)):
        expected = "a whole number of requests, 1 to 1000000"
        faults.append(_fault("NEXTBEST_BACKLOG", expected, environment["NEXTBEST_BACKLOG"]))
    if faults:
        raise ConfigError(faults=faults)
    return Options(durability == "queued", seconds, int(backlog))


def _number(environment: Mapping[str, str], name: str, usual: float) -> float:
    """Return a number; -1, which none of them may be, where it is none."""
    try:
        value = float(environment.get(name, usual))
    except ValueError:
        return -1.0
    return value if math.isfinite(value) else -1.0


def _fault(name: str, expected: str, got: str) -> Fault:
    return Fault(name, "the setting cannot be used", expected, f'"{got}"', "Mend it, or unset it")
