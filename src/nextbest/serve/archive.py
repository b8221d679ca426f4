"""Every catalogue and policy that decisions were made with, by content hash, so that a decision
can be made again after they were edited.
"""

from __future__ import annotations

import logging
import os
from pathlib import Path
from typing import TypeVar
from uuid import uuid4

from nextbest.decide.offers import Catalogue
from nextbest.decide.policy import Policy
from nextbest.errors import ConfigError, NotFoundError
from nextbest.serve.telemetry import log

__all__ = ["archived_catalogue", "archived_policy", "folder", "keep"]

Kept = TypeVar("Kept", Catalogue, Policy)


def folder(project_dir: Path) -> Path:
    """Return where a project keeps them; not among the bundles, of which old ones are removed."""
    return project_dir / ".nextbest" / "archive"


def keep(project_dir: Path, catalogue: Catalogue, policy: Policy) -> None:
    """Put both into the archive if they are not there yet.

    Where that fails decisions go on; the log says so, and a replay will name what is missing.
    """
    archive = folder(project_dir)
    try:
        for name, kept in (("offers", catalogue), ("policy", policy)):
            _write_once(archive / f"{name}-{kept.content_hash}.toml", kept.to_toml())
    except OSError as error:
        log("archive not written", level=logging.WARNING, where=str(archive), error=str(error))


def archived_catalogue(project_dir: Path, content_hash: str) -> Catalogue:
    """Return the catalogue of this hash.

    Raises
    ------
    NotFoundError: it is not in the archive, or no longer what its name says.
    """
    return _load(Catalogue, "catalogue", folder(project_dir), "offers", content_hash)


def archived_policy(project_dir: Path, content_hash: str) -> Policy:
    """Return the policy of this hash; errors as in `archived_catalogue`."""
    return _load(Policy, "policy", folder(project_dir), "policy", content_hash)


def _load(kind: type[Kept], title: str, archive: Path, name: str, content_hash: str) -> Kept:
    where = f"{title} {content_hash[:16]}"
    path = archive / f"{name}-{content_hash}.toml"
    if not content_hash.isalnum() or not path.is_file():
        raise NotFoundError(where, "it is not in the archive", action=f"Looked in {archive}")
    try:
        found = kind.load(path)
    except ConfigError as error:
        raise NotFoundError(where, "its archived file cannot be read", got=str(error)) from None
    if found.content_hash != content_hash:
        raise NotFoundError(
            where,
            "its archived file was changed",
            expected="content of the hash in its name",
            got=found.content_hash[:16],
        )
    return found


def _write_once(path: Path, text: str) -> None:
    if path.is_file() and path.read_text(encoding="utf-8") == text:
        return
    path.parent.mkdir(parents=True, exist_ok=True)
    draft = path.with_name(f".{path.name}-{uuid4().hex}")
    try:
        with draft.open("w", encoding="utf-8") as file:
            file.write(text)
            file.flush()
            os.fsync(file.fileno())  # as durable as the decisions that name it
        draft.replace(path)
    finally:
        draft.unlink(missing_ok=True)
