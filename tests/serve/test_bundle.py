"""A bundle is whole, verified, named by its content, and swapped in one step."""

from __future__ import annotations

import json
import os
import pickle
import subprocess
import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from shop import sources

from nextbest.data.profiles import Profiles
from nextbest.decide.contact import ContactHistory
from nextbest.errors import ArtifactError, StoreError
from nextbest.learn import bitmask
from nextbest.serve.audience import Shaper
from nextbest.serve.bundle import current_id, load_bundle, write_bundle


@pytest.fixture
def profiles(artefacts: Path) -> Profiles:
    return Profiles.open(artefacts / "profiles")


@pytest.fixture
def folder(tmp_path: Path, artefacts: Path, profiles: Profiles) -> Path:
    folder = tmp_path / "serving"
    write_bundle(folder, sources(artefacts), profiles)
    return folder


def test_what_was_written_is_read(folder: Path, profiles: Profiles) -> None:
    bundle = load_bundle(folder)
    assert bundle.id == current_id(folder)
    assert bundle.model_versions == {"churn": "2", "propensity": "4"}
    assert bundle.sources["propensity"]["run_id"] == "run-4"
    assert bundle.sources["propensity"]["aliases"] == ["champion"]
    assert np.array_equal(bundle.profiles.matrix, profiles.matrix, equal_nan=True)
    assert bundle.as_of.isoformat() == "2020-03-01T00:00:00+00:00"
    assert isinstance(bundle.profiles.matrix.base, np.memmap)


def test_the_same_content_has_the_same_id_and_other_content_another(
    folder: Path, artefacts: Path, profiles: Profiles
) -> None:
    first = current_id(folder)
    assert write_bundle(folder, sources(artefacts), profiles) == first
    assert load_bundle(folder).id == first
    second = write_bundle(folder, sources(artefacts, "propensity-2"), profiles)
    assert second != first
    assert current_id(folder) == second


def test_the_bundle_before_stays_and_older_ones_go(
    folder: Path, artefacts: Path, profiles: Profiles
) -> None:
    made = [current_id(folder)]
    for version in ("v2", "v3"):
        made.append(write_bundle(folder, sources(artefacts), replace(profiles, version=version)))
    assert sorted(p.name for p in folder.iterdir()) == sorted([*made[1:], "current.json"])


def test_a_damaged_bundle_is_mended_by_writing_it_again(
    folder: Path, artefacts: Path, profiles: Profiles
) -> None:
    target = folder / current_id(folder) / "profiles" / "pairs.npy"
    target.write_bytes(b"damaged")
    write_bundle(folder, sources(artefacts), profiles)
    assert load_bundle(folder).id == current_id(folder)


def flip(path: Path) -> None:
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 1
    path.write_bytes(bytes(content))


@pytest.mark.parametrize(
    ("spoil", "says"),
    [
        (lambda b: (b / "manifest.json").unlink(), "cannot be read"),
        (lambda b: (b / "manifest.json").write_text("{"), "cannot be read"),
        (lambda b: flip(b / "profiles" / "pairs.npy"), "pairs.npy is not the file"),
        (lambda b: os.truncate(b / "profiles" / "matrix.npy", 100), "matrix.npy is not the file"),
        (lambda b: flip(b / "profiles" / "manifest.json"), "manifest.json is not the file"),
        (lambda b: flip(b / "models" / "churn" / "manifest.json"), "manifest.json is not the file"),
        (lambda b: flip(b / "models" / "churn" / "golden.json"), "golden.json"),
        (lambda b: (b / "models" / "churn" / "golden.json").unlink(), "golden.json"),
        (
            lambda b: (b / "models" / "churn" / "model.pkl").write_bytes(pickle.dumps(1)),
            "not in the manifest",
        ),
    ],
)
def test_damage_is_found_and_named(folder: Path, spoil: Callable[[Path], None], says: str) -> None:
    spoil(folder / current_id(folder))
    with pytest.raises(ArtifactError, match=says):
        load_bundle(folder)


def test_a_manifest_that_was_edited_is_refused(folder: Path) -> None:
    path = folder / current_id(folder) / "manifest.json"
    manifest = json.loads(path.read_text())
    manifest["models"]["churn"]["version"] = 99
    path.write_text(json.dumps(manifest))
    with pytest.raises(ArtifactError, match="not the one that was written"):
        load_bundle(folder)


@pytest.mark.parametrize(
    "current", ["", "{}", '{"format": 1, "bundle": "../../etc"}', '{"format": 2, "bundle": "a"}']
)
def test_a_damaged_pointer_is_refused(folder: Path, current: str) -> None:
    (folder / "current.json").write_text(current)
    with pytest.raises(ArtifactError, match=r"current\.json: it cannot be read"):
        load_bundle(folder)


def test_an_empty_folder_says_what_to_do(tmp_path: Path) -> None:
    with pytest.raises(ArtifactError, match="Run `nextbest refresh`"):
        load_bundle(tmp_path)


def test_a_damaged_model_is_not_taken_in_and_the_bundle_in_use_stays(
    folder: Path, artefacts: Path, profiles: Profiles, tmp_path: Path
) -> None:
    before = current_id(folder)
    with pytest.raises(ArtifactError, match="cannot be read"):
        write_bundle(folder, sources(tmp_path), profiles)
    assert current_id(folder) == before
    assert not [entry for entry in folder.iterdir() if entry.name.startswith(".")]


def test_a_folder_that_cannot_be_written_is_refused(artefacts: Path, profiles: Profiles) -> None:
    with pytest.raises(StoreError, match="cannot be written"):
        write_bundle(Path("/proc/nowhere"), sources(artefacts), profiles)


def test_without_a_propensity_model_there_is_nothing_to_offer_by(
    tmp_path: Path, artefacts: Path, profiles: Profiles
) -> None:
    write_bundle(tmp_path, {"churn": sources(artefacts)["churn"]}, profiles)
    with pytest.raises(ArtifactError, match='no model "propensity"'):
        _ = load_bundle(tmp_path).offer_scorer


def test_rows_are_found_alone_as_in_company(folder: Path) -> None:
    shaper = Shaper(load_bundle(folder), ("a", "b", "c"))
    ids = ["c59", "c00", "c000", "C00", "", "zzz", "a", "c07", "é" * 40]
    expected = [59, 0, -1, -1, -1, -1, -1, 7, -1]
    assert shaper.rows(ids).tolist() == expected
    assert [shaper.rows([one])[0] for one in ids] == expected


def test_offers_come_in_the_catalogues_order_and_unknown_ones_are_unknown(folder: Path) -> None:
    bundle = load_bundle(folder)
    nothing = ContactHistory.empty()
    plain = Shaper(bundle, ("a", "b", "c")).audience(["c00", "c01", "?"], nothing)
    mixed = Shaper(bundle, ("c", "new", "a")).audience(["c00", "c01", "?"], nothing)
    assert np.array_equal(mixed.propensity[:2, [2, 0]], plain.propensity[:2, [0, 2]])
    assert np.isnan(mixed.propensity[:, 1]).all() and np.isnan(mixed.propensity[2]).all()
    assert mixed.offer_columns["offer_type"].tolist() == [None, None, "A"]
    spend = mixed.pair_columns["offer_spend"]
    assert np.array_equal(spend[:2, 2], plain.pair_columns["offer_spend"][:2, 0])
    assert np.isnan(spend[:, 1]).all()
    assert mixed.known.tolist() == [True, True, False]


def test_codes_become_words_and_unknown_stays_unknown(folder: Path) -> None:
    shaper = Shaper(load_bundle(folder), ("a",))
    columns = shaper.audience(["c00", "c01", "c02", "?"], ContactHistory.empty()).columns
    assert columns["age_band"].tolist() == ["young", "old", None, None]
    assert columns["likes_mail"].tolist() == [True, False, None, None]


def test_without_any_profile_everybody_is_a_stranger(folder: Path) -> None:
    bundle = load_bundle(folder)
    full = bundle.profiles
    none = replace(
        full, customer_ids=full.customer_ids[:0], matrix=full.matrix[:0], pairs=full.pairs[:0]
    )
    shaper = Shaper(replace(bundle, profiles=none), ("a", "b"))
    assert shaper.rows(["c00", "c01"]).tolist() == [-1, -1]
    assert shaper.rows(["c00"]).tolist() == [-1]
    audience = shaper.audience(["c00", "c01"], ContactHistory.empty())
    assert not audience.known.any() and np.isnan(audience.propensity).all()


def test_a_server_starts_without_what_only_training_needs(folder: Path) -> None:
    """In a fresh interpreter, since this one has loaded everything."""
    code = (
        "import sys; from pathlib import Path\n"
        "import nextbest.serve.api\n"
        "from nextbest.serve.bundle import load_bundle\n"
        "bundle = load_bundle(Path(sys.argv[1]))\n"
        "print(bundle.models['propensity'].scorer_kind, bundle.offer_scorer.model.name)\n"
        "print(*sys.modules)"
    )
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)}
    done = subprocess.run(
        [sys.executable, "-c", code, str(folder)],
        capture_output=True, text=True, env=environment, timeout=120,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    kind, modules = done.stdout.splitlines()
    training_only = {"sklearn", "ibis", "matplotlib", "mlflow", "pandas", "pyarrow", "duckdb"}
    compiled = kind.startswith("bitmask")
    assert sorted(set(modules.split()) & training_only) == [] or not compiled
    assert compiled == bitmask.available()
