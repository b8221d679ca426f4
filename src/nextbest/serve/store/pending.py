"""What was answered before it is on disk: who reads about it waits for it, so that caps hold."""

from __future__ import annotations

import threading
from collections.abc import Iterable, Sequence
from concurrent.futures import Future, wait
from typing import Any

__all__ = ["Pending"]


class Pending:
    """Writes on their way to disk, by the names of what they are about.

    ``lost`` counts the decisions that were answered and not kept; whoever holds ``changing`` is
    alone.
    """

    def __init__(self) -> None:
        self.changing = threading.RLock()
        self._writes: dict[str, Future[Any]] = {}
        self._sound = True
        self.lost = 0

    def takes(self, keys: Sequence[str]) -> bool:
        """Tell whether decisions with these idempotency keys may be answered at once.

        Not where the last write failed, nor where another decision may get the same key.
        """
        with self.changing:
            known = any(key in self._writes for key in keys)
            return self._sound and not known and len(set(keys)) == len(keys)

    def add(self, names: Iterable[str], write: Future[Any]) -> None:
        """Remember a write until it has ended."""
        named = set(names)
        with self.changing:
            self._writes.update(dict.fromkeys(named, write))
        write.add_done_callback(lambda ended: self._forget(named, ended))

    def ended(self, *, lost: int, sound: bool) -> None:
        """Take note of how a write has ended."""
        with self.changing:
            self.lost += lost
            self._sound = sound

    def wait(self, names: Iterable[str] | None) -> None:
        """Wait for the writes about these names (None: for all); their faults are not ours."""
        with self.changing:
            if names is None:
                found = set(self._writes.values())
            else:
                found = {self._writes[name] for name in names if name in self._writes}
        if found:
            wait(found)

    def _forget(self, names: Iterable[str], ended: Future[Any]) -> None:
        with self.changing:
            for name in names:
                if self._writes.get(name) is ended:
                    del self._writes[name]
