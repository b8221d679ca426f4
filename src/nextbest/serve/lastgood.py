"""What a server last decided with, so that one that starts again can go on with it.

Without it, a policy that was refused while a server ran would keep the next start from deciding.
"""

from __future__ import annotations

import json
import logging
from dataclasses import asdict, dataclass
from pathlib import Path
from uuid import uuid4

from nextbest.serve.telemetry import log

__all__ = ["LastGood", "recall", "remember"]

FILE = "last_good.json"


@dataclass(frozen=True)
class LastGood:
    """The id of a bundle, and the content hashes of the catalogue and policy used with it."""

    bundle: str
    catalogue: str
    policy: str


def remember(serving_dir: Path, used: LastGood) -> None:
    """Note what is in use; where that fails decisions go on, and the log says so."""
    path = serving_dir / FILE
    if recall(serving_dir) == used:
        return
    draft = path.with_name(f".{FILE}-{uuid4().hex}")
    try:
        draft.write_text(json.dumps(asdict(used)), encoding="utf-8")
        draft.replace(path)
    except OSError as error:
        draft.unlink(missing_ok=True)
        log("last good not noted", level=logging.WARNING, where=str(path), error=str(error))


def recall(serving_dir: Path) -> LastGood | None:
    """Return what was last in use; None where nothing was, or the note cannot be read."""
    try:
        found = LastGood(**json.loads((serving_dir / FILE).read_text(encoding="utf-8")))
    except (OSError, ValueError, TypeError):
        return None
    sound = all(isinstance(name, str) and name.isalnum() for name in vars(found).values())
    return found if sound else None
