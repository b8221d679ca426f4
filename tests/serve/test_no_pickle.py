"""No pickle is ever read: one is planted in every file that a server or a job loads."""

from __future__ import annotations

import hashlib
import json
import pickle
import shutil
from collections.abc import Callable
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import shop

from nextbest.data.profiles import Profiles
from nextbest.errors import ArtifactError, NextbestError, NotFoundError
from nextbest.learn import artifact
from nextbest.serve.archive import archived_catalogue, archived_policy, folder
from nextbest.serve.bundle import current_id, load_bundle, write_bundle
from nextbest.serve.runtime import load_state, serving_dir
from nextbest.serve.scarcity import FILE, read_prices
from nextbest.serve.warehouse import PastContacts


class Bomb:
    """Leaves a mark where it is unpickled."""

    def __init__(self, mark: Path) -> None:
        self.mark = mark

    def __reduce__(self) -> tuple[Any, ...]:
        return Path.touch, (self.mark,)


@pytest.fixture
def mark(tmp_path: Path) -> Path:
    return tmp_path / "it ran"


def bombs(mark: Path) -> list[bytes]:
    """The same in every pickle protocol, the oldest of which is plain text."""
    return [pickle.dumps(Bomb(mark), protocol) for protocol in range(pickle.HIGHEST_PROTOCOL + 1)]


def planted_array(mark: Path, like: np.ndarray[Any, Any]) -> np.ndarray[Any, Any]:
    found = np.empty(max(like.size, 1), dtype=object)
    found[:] = [Bomb(mark)] * len(found)
    return found


def test_the_bomb_would_leave_a_mark(mark: Path, tmp_path: Path) -> None:
    for content in bombs(mark):
        pickle.loads(content)
        assert mark.exists()
        mark.unlink()
    file = tmp_path / "a.npy"
    np.save(file, planted_array(mark, np.zeros(1)), allow_pickle=True)
    np.load(file, allow_pickle=True)
    assert mark.exists()


def files_of(project: Path) -> list[Path]:
    return sorted(p for p in serving_dir(project).rglob("*") if p.is_file())


def test_a_pickle_in_place_of_any_file_that_is_served(project: Path, mark: Path) -> None:
    files = files_of(project)
    assert len(files) > 10
    for file in files:
        kept = file.read_bytes()
        for content in bombs(mark):
            file.write_bytes(content)
            with pytest.raises(NextbestError):
                load_state(project)
        file.write_bytes(kept)
    load_state(project)
    assert not mark.exists()


@pytest.mark.parametrize("name", ["model.pkl", "python_model.pkl", "model.joblib", "x.skops"])
def test_a_pickle_beside_the_files_that_are_served(project: Path, mark: Path, name: str) -> None:
    bundle = serving_dir(project) / current_id(serving_dir(project))
    for place in (*bundle.glob("models/*"), bundle, bundle / "profiles"):
        (place / name).write_bytes(bombs(mark)[-1])
        if place.parent.name == "models":
            with pytest.raises(ArtifactError, match="not in the manifest"):
                load_state(project)
        else:
            load_state(project)  # nothing looks for it
        (place / name).unlink()
    assert not mark.exists()


def sha256(path: Path) -> str:
    return hashlib.sha256(path.read_bytes()).hexdigest()


def sign(project: Path) -> None:
    """Do what an attacker would do who can write everything: make every hash right again."""
    old = serving_dir(project) / current_id(serving_dir(project))
    profiles = json.loads((old / "profiles" / "manifest.json").read_text())
    profiles["sha256"] = {name: sha256(old / "profiles" / name) for name in profiles["sha256"]}
    (old / "profiles" / "manifest.json").write_text(json.dumps(profiles))
    content = json.loads((old / "manifest.json").read_text())
    created = content.pop("created_at")
    content["profiles"]["manifest_sha256"] = sha256(old / "profiles" / "manifest.json")
    if "contacts" in content:
        content["contacts"]["sha256"] = sha256(old / "contacts.npz")
    name = hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()[:16]
    (old / "manifest.json").write_text(json.dumps({**content, "created_at": created}))
    old.rename(old.parent / name)
    (old.parent / "current.json").write_text(json.dumps({"format": 1, "bundle": name}))


@pytest.mark.parametrize("name", ["customer_ids", "matrix", "offer_matrix", "pairs"])
def test_arrays_of_objects_are_refused_though_every_hash_is_right(
    project: Path, mark: Path, name: str
) -> None:
    sign(project)
    load_state(project)  # the forger's tools work
    file = serving_dir(project) / current_id(serving_dir(project)) / "profiles" / f"{name}.npy"
    np.save(file, planted_array(mark, np.load(file)), allow_pickle=True)
    sign(project)
    with pytest.raises(ArtifactError, match="cannot be read"):
        load_state(project)
    assert not mark.exists()


def test_contacts_of_the_warehouse(project: Path, artefacts: Path, mark: Path) -> None:
    profiles = Profiles.open(artefacts / "profiles")
    table = {"customer_id": ["c01"], "offer_id": ["a"], "channel": ["mail"], "type": ["contact"],
             "at": [datetime(2020, 2, 1)], "decision_id": ["d"]}  # fmt: skip
    contacts = PastContacts.of(profiles, table, 60)
    bundle_id = write_bundle(
        serving_dir(project), shop.sources(artefacts), profiles, contacts=contacts,
        created_at=datetime(2020, 3, 1, tzinfo=UTC),
    )  # fmt: skip
    file = serving_dir(project) / bundle_id / "contacts.npz"
    for name in vars(contacts):
        arrays = {**vars(contacts), name: planted_array(mark, np.zeros(1))}
        np.savez_compressed(file, allow_pickle=True, **arrays)
        sign(project)
        with pytest.raises(ArtifactError, match="cannot be read"):
            load_bundle(serving_dir(project))
        file = serving_dir(project) / current_id(serving_dir(project)) / "contacts.npz"
    assert not mark.exists()


def test_the_archive_of_policies_and_catalogues(project: Path, mark: Path) -> None:
    state = load_state(project)
    for name, content_hash, read in (
        ("policy", state.rules.content_hash, archived_policy),
        ("offers", state.offers.content_hash, archived_catalogue),
    ):
        for content in bombs(mark):
            (folder(project) / f"{name}-{content_hash}.toml").write_bytes(content)
            with pytest.raises(NotFoundError):
                read(project, content_hash)
    assert not mark.exists()


def test_the_marketers_files_and_the_prices(project: Path, mark: Path) -> None:
    for name in ("offers.toml", "policy.toml"):
        file = project / "serving" / name
        kept = file.read_bytes()
        for content in bombs(mark):
            file.write_bytes(content)
            with pytest.raises(NextbestError):
                load_state(project)
        file.write_bytes(kept)
    for content in bombs(mark):
        (serving_dir(project) / FILE).write_bytes(content)
        with pytest.raises(NextbestError):
            read_prices(serving_dir(project))
        assert load_state(project).prices == {}  # said, and not needed to decide
    assert not mark.exists()


def test_what_comes_from_a_registry_is_an_artefact_like_any_other(
    artefacts: Path, tmp_path: Path, mark: Path
) -> None:
    """`Registry.fetch` and MLflow's `load_model` both end in `artifact.load`; with each file."""
    model = Path(shutil.copytree(artefacts / "propensity", tmp_path / "model"))
    for file in sorted(p for p in model.rglob("*") if p.is_file()):
        kept = file.read_bytes()
        for content in bombs(mark):
            file.write_bytes(content)
            with pytest.raises(ArtifactError):
                artifact.load(model)
        file.write_bytes(kept)
    artifact.load(model)
    assert not mark.exists()


def test_nobody_asks_for_a_pickle() -> None:
    """No module of nextbest names what could load one; NumPy is always told not to."""
    root = Path(artifact.__file__).parents[1]
    names = ("pickle", "joblib", "cloudpickle", "dill", "shelve", "marshal", "skops", "torch")
    calls: list[Callable[[str], bool]] = [
        lambda line: any(line.lstrip().startswith((f"import {n}", f"from {n}")) for n in names),
        lambda line: "allow_pickle=True" in line,
        lambda line: "np.load(" in line and "allow_pickle=False" not in line,
        lambda line: "read_pickle" in line or "yaml.load(" in line or "eval(" in line,
    ]
    found = [
        f"{path.relative_to(root)}: {line.strip()}"
        for path in root.rglob("*.py")
        for line in path.read_text(encoding="utf-8").splitlines()
        if any(call(line) for call in calls)
    ]
    assert found == []
