"""Everything that a decision reads (models, profiles), verified and swapped together.

A bundle is a directory named after its content under ``.nextbest/serving``; ``current.json`` names
the one in use. It is written aside and moved into place, so that a reader sees the old one or the
new one, never a mixture. Nothing in it can be executed, and reading it needs no registry.
"""

from __future__ import annotations

import hashlib
import json
import os
import shutil
import time
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime
from functools import cached_property
from pathlib import Path
from typing import Any
from uuid import uuid4

import numpy as np
from numpy.typing import NDArray

from nextbest.data.feature import SCORE_GROUP
from nextbest.data.live import RecentRows
from nextbest.data.profiles import Profiles
from nextbest.decide.offertable import OfferTable
from nextbest.errors import ArtifactError, StoreError
from nextbest.learn import artifact
from nextbest.learn.scorer import LoadedModel, OfferScorer
from nextbest.serve.lastgood import recall
from nextbest.serve.warehouse import PastContacts

__all__ = [
    "SCORES",
    "Bundle",
    "ModelSource",
    "current_id",
    "load_bundle",
    "write_bundle",
]

FORMAT = 1
PROPENSITY = "propensity"
SCORES = ("churn_probability", "p_alive", "hvc_probability", "clv", "clv_low", "clv_high")
CURRENT = "current.json"
OFFERS = "offers.json"
CONTACTS = "contacts.npz"
RECENT = "recent"
KEPT_BUNDLES = 2
ABANDONED_S = 3_600
_REFRESH = "Run `nextbest refresh`"

Array = NDArray[np.float64]


@dataclass(frozen=True)
class ModelSource:
    """A model to put into a bundle: its artefact directory, and where it comes from."""

    path: Path
    version: int | None = None
    run_id: str | None = None
    aliases: tuple[str, ...] = ()


@dataclass(frozen=True)
class Bundle:
    """A verified set of models and profiles.

    Attributes
    ----------
    id : names the content; two bundles of one id give the same decisions.
    created_at : when it was made (aware UTC).
    models : by name, ready to score.
    sources : by name, the ``version``, ``run_id`` and ``aliases`` that the registry gave them.
    profiles : of every customer, offer and customer × offer pair.
    offers : those that the catalogue takes from the data's table; None where it takes none.
    contacts : what the warehouse knows of recent contacts; None where the policy counts none.
    recent : by table, the rows before the refresh that live features count; without tables whose
        features are not live.
    """

    id: str
    created_at: datetime
    models: Mapping[str, LoadedModel]
    sources: Mapping[str, Mapping[str, Any]]
    profiles: Profiles
    offers: OfferTable | None = None
    contacts: PastContacts | None = None
    recent: Mapping[str, RecentRows] = field(default_factory=dict)

    @property
    def as_of(self) -> datetime:
        """The moment that the profiles describe (aware UTC)."""
        return self.profiles.as_of.replace(tzinfo=UTC)

    @property
    def model_versions(self) -> dict[str, str]:
        """Version of each model, as decisions state it."""
        return {
            name: str(model.version) if model.version is not None else model.digest[:12]
            for name, model in self.models.items()
        }

    @cached_property
    def score_names(self) -> tuple[str, ...]:
        """The scores that every answer states, and those of the project's own models."""
        own = (f.name for f in self.profiles.features if f.group == SCORE_GROUP)
        return tuple(dict.fromkeys((*SCORES, *own)))

    @cached_property
    def offer_scorer(self) -> OfferScorer:
        """What gives the propensity of customers for offers."""
        if PROPENSITY not in self.models:
            raise ArtifactError(
                f"bundle {self.id}",
                f'it has no model "{PROPENSITY}"',
                expected="a bundle with a champion for propensity",
                got=", ".join(self.models) or "no models",
                action=f"Train and promote one, then: {_REFRESH}",
            )
        profiles = self.profiles
        return OfferScorer(
            self.models[PROPENSITY],
            profiles.columns,
            profiles.offer_columns,
            profiles.pair_columns,
            profiles.categories,
        )


def write_bundle(
    serving_dir: Path,
    models: Mapping[str, ModelSource],
    profiles: Profiles,
    *,
    offers: OfferTable | None = None,
    contacts: PastContacts | None = None,
    recent: Mapping[str, RecentRows] | None = None,
    created_at: datetime | None = None,
) -> str:
    """Write a bundle, make it the current one, and return its id.

    The same models and profiles give the same id. The bundle before stays on disk; older ones go.

    Parameters
    ----------
    serving_dir : ``<project>/.nextbest/serving``; made where absent.
    models : by name; each artefact is copied and verified.
    profiles : of every customer.
    offers : those that the catalogue takes from the data's table.
    contacts : what the contact policy counts beside the decision log.
    recent : by table, the rows that live features count beside what comes after the refresh.
    created_at : recorded, not part of the id; now by default.

    Raises
    ------
    ArtifactError : a model is damaged, or the bundle would not load.
    StoreError : the directory cannot be written.
    """
    draft = serving_dir / f".draft-{uuid4().hex}"
    try:
        serving_dir.mkdir(parents=True, exist_ok=True)
        made = created_at or datetime.now(UTC)
        bundle_id = _fill(draft, models, profiles, offers, contacts, recent or {}, made)
        _load(draft, bundle_id)  # before anything points at it
        _flush(draft)
        _move_into_place(draft, serving_dir / bundle_id)
        _replace_file(serving_dir / CURRENT, {"format": FORMAT, "bundle": bundle_id})
        _remove_old(serving_dir, keep=bundle_id)
    except OSError as error:
        raise StoreError(
            str(serving_dir),
            "the bundle cannot be written",
            got=f"{type(error).__name__}: {error}",
            action="Check disk space and permissions; the bundle in use is as before",
        ) from error
    finally:
        shutil.rmtree(draft, ignore_errors=True)
    return bundle_id


def current_id(serving_dir: Path) -> str:
    """Return the id of the bundle in use.

    Raises
    ------
    ArtifactError : there is none, or the file that names it is damaged.
    """
    path = serving_dir / CURRENT
    try:
        current = json.loads(path.read_text(encoding="utf-8"))
        if current["format"] != FORMAT or not str(current["bundle"]).isalnum():
            raise ValueError(f"got {current}")
        return str(current["bundle"])
    except FileNotFoundError:
        raise ArtifactError(
            str(path),
            "there is nothing to serve yet",
            expected="a bundle of models and profiles",
            got="no file",
            action=f"{_REFRESH} (after `nextbest train`)",
        ) from None
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise ArtifactError(
            str(path), "it cannot be read", got=f"{type(error).__name__}: {error}", action=_REFRESH
        ) from None


def load_bundle(serving_dir: Path, bundle_id: str | None = None) -> Bundle:
    """Read a bundle and check every file, hash and golden prediction in it.

    Parameters
    ----------
    bundle_id : which one; None for the one in use.

    Raises
    ------
    ArtifactError : what is missing, damaged, unexpected or scores otherwise than when it was made.
    """
    bundle_id = bundle_id or current_id(serving_dir)
    return _load(serving_dir / bundle_id, bundle_id)


def _fill(
    draft: Path,
    models: Mapping[str, ModelSource],
    profiles: Profiles,
    offers: OfferTable | None,
    contacts: PastContacts | None,
    recent: Mapping[str, RecentRows],
    created_at: datetime,
) -> str:
    for name, source in models.items():
        artifact.load(source.path)  # a damaged source is named as such, not as a failed copy
        shutil.copytree(source.path, draft / "models" / name)
    profiles.save(draft / "profiles")
    content: dict[str, Any] = {
        "format": FORMAT,
        "models": {
            name: {
                "version": source.version,
                "run_id": source.run_id,
                "aliases": list(source.aliases),
                "manifest_sha256": _sha256(draft / "models" / name / "manifest.json"),
            }
            for name, source in sorted(models.items())
        },
        "profiles": {"manifest_sha256": _sha256(draft / "profiles" / "manifest.json")},
    }
    if offers is not None:
        (draft / OFFERS).write_text(json.dumps(offers.to_json(), indent=1), encoding="utf-8")
        content["offers"] = {"sha256": _sha256(draft / OFFERS)}
    if contacts is not None:
        contacts.save(draft / CONTACTS)
        content["contacts"] = {"sha256": _sha256(draft / CONTACTS)}
    if recent:
        content["recent"] = {
            table: {"manifest_sha256": rows.save(draft / RECENT / table)}
            for table, rows in sorted(recent.items())
        }
    bundle_id = _id(content)
    manifest = {**content, "created_at": created_at.astimezone(UTC).isoformat()}
    (draft / "manifest.json").write_text(json.dumps(manifest, indent=1, sort_keys=True))
    return bundle_id


def _load(directory: Path, bundle_id: str) -> Bundle:
    where = f"bundle {bundle_id}"
    try:
        manifest = json.loads((directory / "manifest.json").read_text(encoding="utf-8"))
        created_at = datetime.fromisoformat(manifest.pop("created_at"))
        if manifest["format"] != FORMAT or _id(manifest) != bundle_id:
            raise ArtifactError(
                where,
                "its manifest is not the one that was written",
                expected=f"format {FORMAT} and the content that its name is the hash of",
                action=_REFRESH,
            )
        _check(where, directory / "profiles", manifest["profiles"]["manifest_sha256"])
        models = {}
        for name, source in manifest["models"].items():
            path = directory / "models" / name
            _check(where, path, source["manifest_sha256"])
            models[name] = replace(artifact.load(path), version=source["version"])
        profiles = Profiles.open(directory / "profiles")
        offers = contacts = None
        if "offers" in manifest:
            _match(where, directory / OFFERS, manifest["offers"]["sha256"])
            text = (directory / OFFERS).read_text(encoding="utf-8")
            offers = OfferTable.from_json(json.loads(text))
        if "contacts" in manifest:
            _match(where, directory / CONTACTS, manifest["contacts"]["sha256"])
            contacts = PastContacts.open(directory / CONTACTS)
        recent = {}
        for table, rows in manifest.get("recent", {}).items():
            _check(where, directory / RECENT / table, rows["manifest_sha256"])
            recent[table] = RecentRows.open(directory / RECENT / table)
    except ArtifactError:
        raise
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        raise ArtifactError(
            where, "it cannot be read", got=f"{type(error).__name__}: {error}", action=_REFRESH
        ) from None
    return Bundle(
        bundle_id, created_at, models, manifest["models"], profiles, offers, contacts, recent
    )


def _check(where: str, directory: Path, sha256: str) -> None:
    _match(where, directory / "manifest.json", sha256)


def _match(where: str, file: Path, sha256: str) -> None:
    if _sha256(file) != sha256:
        raise ArtifactError(
            where,
            f"{file.parent.name}/{file.name} is not the file that was written",
            expected="the SHA-256 that the bundle's manifest names",
            action=_REFRESH,
        )


def _id(content: Mapping[str, Any]) -> str:
    return hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()[:16]


def _sha256(path: Path) -> str:
    return hashlib.sha256(path.read_bytes()).hexdigest()


def _flush(directory: Path) -> None:
    """Bring a directory's files, and the directories that name them, to the disk."""
    for folder, _, files in os.walk(directory, topdown=False):
        for name in [*files, "."]:
            _fsync(Path(folder) / name)


def _fsync(path: Path) -> None:
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


def _move_into_place(draft: Path, target: Path) -> None:
    if target.exists():  # The same content, written before: perhaps damaged since.
        aside = target.with_name(f".draft-{uuid4().hex}")
        target.rename(aside)
        draft.rename(target)
        shutil.rmtree(aside, ignore_errors=True)
    else:
        draft.rename(target)
    _fsync(target.parent)


def _replace_file(path: Path, content: Mapping[str, Any]) -> None:
    draft = path.with_name(f".{path.name}-{uuid4().hex}")
    draft.write_text(json.dumps(content))
    _fsync(draft)
    draft.replace(path)
    _fsync(path.parent)


def _remove_old(serving_dir: Path, keep: str) -> None:
    # A server that still maps a removed file keeps it until it lets go.
    folders = sorted(
        (entry for entry in serving_dir.iterdir() if entry.is_dir() and entry.name != keep),
        key=lambda entry: entry.stat().st_mtime,
        reverse=True,
    )
    # A server that starts while the newest is refused goes on with what was last in use.
    used = recall(serving_dir)
    folders = [entry for entry in folders if used is None or entry.name != used.bundle]
    # A draft belongs to a refresh that runs now, unless that was killed long ago.
    drafts = [entry for entry in folders if entry.name.startswith(".")]
    bundles = [entry for entry in folders if entry not in drafts]
    abandoned = [entry for entry in drafts if time.time() - entry.stat().st_mtime > ABANDONED_S]
    for entry in [*bundles[KEPT_BUNDLES - 1 :], *abandoned]:
        shutil.rmtree(entry, ignore_errors=True)
