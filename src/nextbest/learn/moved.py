"""A registry that was moved or copied with its project: MLflow's absolute addresses follow it.

MLflow writes the full address of a folder with every experiment, run, model and version, and has no
way to change it. In the SQLite file that a project owns it is changed here: otherwise a moved
project loses its models, and a copied one would go on writing into the first one's folder.
"""

from __future__ import annotations

import sqlite3
from contextlib import closing
from pathlib import Path
from typing import Final
from urllib.parse import unquote, urlsplit

__all__ = ["FOLDER", "follow", "lost"]

FOLDER: Final = "mlartifacts"
#: Every column of MLflow's tables that holds an address of files.
_ADDRESSES: Final = (
    ("experiments", "artifact_location"),
    ("runs", "artifact_uri"),
    ("logged_models", "artifact_location"),
    ("model_versions", "source"),
    ("model_versions", "storage_location"),
)


def follow(database: Path, root: Path) -> None:
    """Let addresses below another ``mlartifacts`` lead to the same place below ``root``.

    Only those of experiments whose folder is there are changed: what was not brought along is not
    found either way, and an experiment with files elsewhere keeps them. All or nothing.

    Raises
    ------
    sqlite3.Error : the file cannot be read or written.
    """
    here = (root / FOLDER).as_uri()
    with closing(sqlite3.connect(database)) as store, store:
        for location in _locations(store):
            before, _, name = location.rpartition("/")
            if before != here and (root / FOLDER / name).is_dir():
                _rewrite(store, location, f"{here}/{name}")


def lost(database: Path) -> Path | None:
    """Return an experiment's folder that is no longer there, if there is one."""
    try:
        with closing(sqlite3.connect(database)) as store:
            folders = [Path(unquote(urlsplit(one).path)) for one in _locations(store)]
    except sqlite3.Error:
        return None  # there is more wrong than a folder
    return next((folder for folder in folders if not folder.is_dir()), None)


def _locations(store: sqlite3.Connection) -> list[str]:
    """Addresses of the experiments' folders, as the registry makes them."""
    if not _has(store, "experiments", "artifact_location"):
        return []  # MLflow has not made its tables yet
    rows = store.execute(
        "SELECT DISTINCT artifact_location FROM experiments"
        " WHERE artifact_location LIKE ? ORDER BY 1",
        (f"file:%/{FOLDER}/%",),
    )
    return [place for (place,) in rows if place.rpartition("/")[0].endswith(f"/{FOLDER}")]


def _rewrite(store: sqlite3.Connection, old: str, new: str) -> None:
    for table, column in _ADDRESSES:
        if _has(store, table, column):
            # The folder itself, and what is in it; not a folder whose name begins alike.
            store.execute(
                f"UPDATE {table} SET {column} = ? || substr({column}, ?)"
                f" WHERE {column} = ? OR substr({column}, 1, ?) = ?",
                (new, len(old) + 1, old, len(old) + 1, f"{old}/"),
            )


def _has(store: sqlite3.Connection, table: str, column: str) -> bool:
    query = "SELECT 1 FROM pragma_table_info(?) WHERE name = ?"
    return store.execute(query, (table, column)).fetchone() is not None
