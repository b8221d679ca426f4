"""A project's decision log, copied out of its store for as long as something is measured."""

from __future__ import annotations

import tempfile
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any

from nextbest.errors import DataError
from nextbest.project import Project

if TYPE_CHECKING:
    from collections.abc import Callable

    from nextbest.measure.log import DecisionLog
    from nextbest.serve.logged import Written
    from nextbest.serve.store import Store

__all__ = ["Logbook", "has_decisions", "opened", "store_of"]


@dataclass(frozen=True)
class Logbook:
    """The log as tables, and where they lie.

    Attributes
    ----------
    log : decisions and outcomes.
    written : how many, and what could not be worked out.
    folder : gone when the measuring is over, with all that was copied into it.
    """

    log: DecisionLog
    written: Written
    folder: Path

    def beside(self, name: str, table: Any) -> Any:
        """Copy a table of any backend beside the log, so that one query can read both."""
        path = self.folder / f"{name}.parquet"
        table.to_parquet(path)
        return self.log.decisions.get_backend().read_parquet(path, table_name=name)


def has_decisions(project: Project) -> bool:
    """Tell whether the project has a store with decisions; makes none where there is none."""
    import os

    if not os.environ.get("NEXTBEST_STORE"):
        file = project.root / ".nextbest" / "store.db"
        if not file.is_file():
            return False
    with store_of(project) as store:
        return store.log_span()[0] > 0


@contextmanager
def opened(
    project: Project,
    *,
    since: datetime | None = None,
    until: datetime | None = None,
    profile: Sequence[str] = (),
    amounts: bool = True,
    progress: Callable[[str], None] = lambda _: None,
) -> Iterator[Logbook]:
    """Copy the log into a folder of its own and open it; the folder is removed in the end.

    Parameters
    ----------
    since, until, profile, amounts : as in `nextbest.serve.logged.write_log`.
    progress : told how many decisions were read so far.

    Raises
    ------
    DataError : there are no decisions.
    StoreError : the store cannot be read.
    """
    from nextbest.measure.log import DecisionLog
    from nextbest.serve.logged import write_log

    with tempfile.TemporaryDirectory(prefix="nextbest-log-") as name:
        folder = Path(name)
        with store_of(project) as store:
            total = store.log_span()[0]
            if not total:
                raise DataError(
                    "decision log", "there are no decisions",
                    expected="decisions of the API, or of `nextbest decide --record`", got="none",
                )  # fmt: skip
            written = write_log(
                project.root, store, folder, since=since, until=until, profile=profile,
                amounts=amounts,
                progress=lambda done: progress(f"read the log: {done:,} of {total:,} decisions"),
            )  # fmt: skip
        log = DecisionLog.open(folder)
        try:
            yield Logbook(log, written, folder)
        finally:
            log.decisions.get_backend().disconnect()


@contextmanager
def store_of(project: Project) -> Iterator[Store]:
    """Open the project's store for as long as it is read."""
    from nextbest.serve.runtime import open_store

    store = open_store(project.root)
    try:
        yield store
    finally:
        store.close()
