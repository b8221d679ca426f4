"""Every error that nextbest raises on purpose, drawn as one tree.

A message reads *where: what is wrong. Must be ...; got .... What to do.* so that whoever caused it
can mend it without reading our code.
"""

from __future__ import annotations

import difflib
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import ClassVar

__all__ = [
    "ArtifactError",
    "ConfigError",
    "DataError",
    "Fault",
    "FitError",
    "GateRefusal",
    "InternalError",
    "NextbestError",
    "NotFoundError",
    "RegistryError",
    "RuleError",
    "StoreError",
    "UsageError",
    "did_you_mean",
]


def did_you_mean(name: str, known: Iterable[str]) -> str:
    """Return ``Did you mean "x"?`` for the closest known name, or an empty string."""
    close = difflib.get_close_matches(name, list(known), n=1, cutoff=0.5)
    return f'Did you mean "{close[0]}"?' if close else ""


@dataclass(frozen=True)
class Fault:
    """One thing that is wrong: where, what, what was expected, what was found, what to do."""

    where: str
    problem: str
    expected: str = ""
    got: str = ""
    action: str = ""

    def __str__(self) -> str:
        text = f"{self.where}: {self.problem.rstrip('.')}"
        if not text.endswith(("?", "!")):
            text += "."
        if self.expected:
            text += f" Must be {self.expected}"
            text += f"; got {self.got}." if self.got else "."
        elif self.got:
            text += f" Got {self.got}."
        if self.action:
            text += f" {self.action.rstrip()}"
            if not text.endswith((".", "?", "!")):
                text += "."
        return text


class NextbestError(Exception):
    """Base of all deliberate errors; ``code`` is stable and safe to match on."""

    code: ClassVar[str] = "error"
    exit_code: ClassVar[int] = 1

    def __init__(
        self,
        where: str = "",
        problem: str = "",
        *,
        expected: str = "",
        got: str = "",
        action: str = "",
        faults: Sequence[Fault] = (),
    ) -> None:
        if not faults:
            faults = (Fault(where, problem, expected, got, action),)
        self.faults: tuple[Fault, ...] = tuple(faults)
        super().__init__("\n".join(str(f) for f in self.faults))


class UsageError(NextbestError):
    """The command was called in a way that it does not understand (exit code 2)."""

    code = "usage"
    exit_code = 2


class ConfigError(NextbestError):
    """The project's own files (TOML, models, sources) are wrong."""

    code = "config-invalid"


class RuleError(ConfigError):
    """A rule or expression cannot be parsed, typed or allowed."""

    code = "rule-invalid"


class DataError(NextbestError, ValueError):
    """The data breaks the contract, or cannot answer the question."""

    code = "data-invalid"


class FitError(NextbestError):
    """A model could not be fitted to this data."""

    code = "fit-failed"


class ArtifactError(NextbestError):
    """A stored artefact is missing, damaged, or holds what it must not hold."""

    code = "artifact-invalid"


class RegistryError(NextbestError):
    """The model registry cannot be reached or does not hold what was asked for."""

    code = "registry"


class GateRefusal(NextbestError):
    """A promotion gate said no; the message names the gate and the numbers."""

    code = "gate-refused"


class NotFoundError(NextbestError):
    """What was asked for does not exist."""

    code = "not-found"


class StoreError(NextbestError):
    """The decision store cannot be read or written."""

    code = "store"


class InternalError(NextbestError):
    """A fault of nextbest itself, where an error came up that nobody foresaw."""

    code = "internal"
