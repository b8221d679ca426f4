"""Profiles: what is saved comes back bit for bit, everybody is found, and damage is refused."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from nextbest.data.features import Feature
from nextbest.data.profiles import Profiles, from_frames
from nextbest.data.snapshots import ProfileFrames
from nextbest.errors import ArtifactError, DataError

AS_OF = datetime(2024, 5, 1, 5)
PEOPLE = ("ann", "zoë", "李", "ann b", "10", "9", "👩‍🚀")
OFFERS = ("late", "early")
ARRAYS = ("customer_ids", "matrix", "offer_matrix", "pairs")


def feature(name: str, entity: Any, dtype: str = "number") -> Feature:
    return Feature(name, f"meaning of {name}", "unit", "transactions", "group", entity, dtype)


FEATURES = (
    feature("spend", "customer"), feature("region", "customer", "string"),
    feature("offer_days_left", "offer"), feature("offer_type", "offer", "string"),
    feature("share", "pair"), feature("rank", "pair"),
)  # fmt: skip


def frames(people: Sequence[str] = PEOPLE, offers: Sequence[str] = OFFERS) -> ProfileFrames:
    """Frames whose every number says where it belongs."""
    n, m = len(people), len(offers)
    regions = np.array(["sud", "nörd", None], dtype=object)
    return ProfileFrames(
        AS_OF,
        pd.DataFrame(
            {"customer_id": list(people), "spend": np.arange(n) / 3,
             "region": regions[np.arange(n) % 3]}
        ),
        pd.DataFrame(
            {"offer_id": list(offers), "offer_days_left": [np.nan, *np.arange(1.0, m)][:m],
             "offer_type": ["B", "A", None][:m]}
        ),
        pd.DataFrame(
            {"customer_id": np.repeat(list(people), m), "offer_id": list(offers) * n,
             "share": np.arange(n * m) / 7, "rank": -np.arange(n * m, dtype=float)}
        ),
        FEATURES if offers else FEATURES[:2],
    )  # fmt: skip


@pytest.fixture
def made() -> Profiles:
    scores = {"churn": np.arange(len(PEOPLE)) / 8}
    return from_frames(frames(), scores, "2024-05-01-a", [feature("churn", "customer")])


@pytest.fixture
def stored(made: Profiles, tmp_path: Path) -> Path:
    made.save(tmp_path / "profiles")
    return tmp_path / "profiles"


# --- there and back -------------------------------------------------------------------------------


def test_what_is_saved_comes_back_bit_for_bit(made: Profiles, stored: Path) -> None:
    back = Profiles.open(stored)
    for name in ARRAYS:
        ours, theirs = getattr(made, name), getattr(back, name)
        assert (theirs.dtype, theirs.shape) == (ours.dtype, ours.shape)
        assert theirs.tobytes() == np.ascontiguousarray(ours).tobytes()
    for name in ("version", "columns", "offer_ids", "offer_columns", "pair_columns", "features"):
        assert getattr(back, name) == getattr(made, name)
    assert dict(back.categories) == dict(made.categories)
    assert back.as_of == AS_OF.replace(tzinfo=UTC)
    back.save(stored.parent / "again")
    for file in stored.iterdir():
        assert (stored.parent / "again" / file.name).read_bytes() == file.read_bytes()


def test_arrays_are_mapped_and_read_only(stored: Path) -> None:
    back = Profiles.open(stored)
    for name in ARRAYS:
        array = getattr(back, name)
        assert isinstance(array.base, np.memmap)
        with pytest.raises(ValueError, match="read-only"):
            array[...] = array


def test_every_number_lies_where_it_belongs(made: Profiles) -> None:
    assert made.columns == ("spend", "region", "churn")
    assert made.kinds == {
        "spend": "number", "region": "string", "churn": "number", "offer_days_left": "number",
        "offer_type": "string", "share": "number", "rank": "number",
    }  # fmt: skip
    assert made.categories == {"region": ("nörd", "sud"), "offer_type": ("A", "B")}
    for i, person in enumerate(PEOPLE):
        row = made.index(person)
        assert row is not None
        assert made.ids([row]) == [person]
        spend, region, churn = made.matrix[row]
        assert (spend, churn) == (i / 3, i / 8)
        found = None if np.isnan(region) else made.categories["region"][int(region)]
        assert found == ("sud", "nörd", None)[i % 3]
        for j in range(len(OFFERS)):
            at = i * len(OFFERS) + j
            assert made.pairs[row, j].tolist() == [at / 7, -float(at)]
    np.testing.assert_array_equal(made.offer_matrix, [[np.nan, 1.0], [1.0, 0.0]])


def test_customers_are_sorted_and_the_order_they_came_in_does_not_matter(made: Profiles) -> None:
    assert made.ids() == sorted(PEOPLE, key=str.encode)
    rng = np.random.default_rng(0)
    given = frames()
    order = rng.permutation(len(PEOPLE))
    pairs = np.concatenate([np.arange(2) + 2 * i for i in order])
    shuffled = ProfileFrames(
        AS_OF, given.customers.iloc[order], given.offers, given.pairs.iloc[pairs], FEATURES
    )
    churn = np.arange(len(PEOPLE))[order] / 8
    again = from_frames(shuffled, {"churn": churn}, "x", [])
    for name in ARRAYS:
        np.testing.assert_array_equal(getattr(again, name), getattr(made, name))


def test_without_offers_or_scores(tmp_path: Path) -> None:
    made = from_frames(frames(offers=()), {}, "v", [])
    made.save(tmp_path)
    back = Profiles.open(tmp_path)
    assert (back.offer_ids, back.pairs.shape) == ((), (len(PEOPLE), 0, 0))
    assert back.columns == ("spend", "region")


def test_without_anybody(tmp_path: Path) -> None:
    made = from_frames(frames(people=()), {}, "v", [])
    made.save(tmp_path)
    back = Profiles.open(tmp_path)
    assert len(back) == 0
    assert back.index("ann") is None
    assert back.ids() == []


def test_a_customer_twice_is_refused() -> None:
    with pytest.raises(DataError, match="a customer appears twice"):
        from_frames(frames(people=("ann", "bob", "ann")), {}, "v", [])


# --- finding people -------------------------------------------------------------------------------

# An id may hold anything but NUL, which ends NumPy's bytes, and halves of characters.
IDS = st.text(st.characters(exclude_categories=["Cs"], exclude_characters="\0"), min_size=1)


@settings(max_examples=100, deadline=None, suppress_health_check=list(HealthCheck))
@given(known=st.lists(IDS, unique=True, min_size=1, max_size=12), others=st.lists(st.text()))
def test_everybody_is_found_and_nobody_else(known: list[str], others: list[str]) -> None:
    made = from_frames(frames(people=known, offers=()), {}, "v", [])
    assert made.ids() == sorted(known, key=str.encode)
    for i, person in enumerate(known):
        row = made.index(person)
        assert row is not None
        assert made.matrix[row, 0] == i / 3
    near = [p + "x" for p in known] + [p[:-1] for p in known] + [p + "\0" for p in known]
    for stranger in {*others, *near, "", "\ud800", "x" * 10_000} - set(known):
        assert made.index(stranger) is None


# --- damage ---------------------------------------------------------------------------------------


def rehash(folder: Path, name: str) -> None:
    """Make the manifest agree with a changed file, as a careful attacker would."""
    change(folder, lambda m: m["sha256"].update(
        {f"{name}.npy": hashlib.sha256((folder / f"{name}.npy").read_bytes()).hexdigest()}
    ))  # fmt: skip


def change(folder: Path, edit: Callable[[dict[str, Any]], Any]) -> None:
    manifest = json.loads((folder / "manifest.json").read_text())
    edit(manifest)
    (folder / "manifest.json").write_text(json.dumps(manifest))


@pytest.mark.parametrize("name", ARRAYS)
@pytest.mark.parametrize("at", [0, 9, -1])
def test_one_changed_byte_is_noticed(stored: Path, name: str, at: int) -> None:
    content = bytearray((stored / f"{name}.npy").read_bytes())
    content[at] ^= 1
    (stored / f"{name}.npy").write_bytes(content)
    with pytest.raises(ArtifactError, match=rf"{name}\.npy is not the file.*nextbest refresh"):
        Profiles.open(stored)


@pytest.mark.parametrize("name", ARRAYS)
def test_a_cut_off_file_is_refused_even_with_its_hash(stored: Path, name: str) -> None:
    file = stored / f"{name}.npy"
    file.write_bytes(file.read_bytes()[:-8])
    rehash(stored, name)
    with pytest.raises(ArtifactError, match="cannot be read"):
        Profiles.open(stored)


@pytest.mark.parametrize("file", ["manifest.json", *(f"{name}.npy" for name in ARRAYS)])
def test_a_missing_file_is_named(stored: Path, file: str) -> None:
    (stored / file).unlink()
    with pytest.raises(ArtifactError, match=f"cannot be read.*{file}"):
        Profiles.open(stored)


class Bomb:
    """Leaves a mark where a pickle is loaded."""

    mark: Path

    def __reduce__(self) -> tuple[Any, ...]:
        return Path.touch, (self.mark,)


@pytest.mark.parametrize("name", ARRAYS)
def test_a_planted_pickle_is_refused_and_never_run(stored: Path, name: str) -> None:
    Bomb.mark = stored / "it ran"
    planted = np.empty(len(PEOPLE), dtype=object)
    planted[:] = [Bomb() for _ in PEOPLE]
    np.save(stored / f"{name}.npy", planted, allow_pickle=True)
    rehash(stored, name)
    with pytest.raises(ArtifactError, match="cannot be read"):
        Profiles.open(stored)
    assert not Bomb.mark.exists()
    np.load(stored / f"{name}.npy", allow_pickle=True)
    assert Bomb.mark.exists()


@pytest.mark.parametrize("name", ARRAYS)
@pytest.mark.parametrize(
    ("reshape", "words"),
    [
        (lambda a: a[:-1], "wrong shape"),
        (lambda a: a[None], "wrong shape"),
        (lambda a: a.ravel()[0], "wrong shape"),
        (lambda a: np.zeros(a.shape, dtype=int), "wrong type"),
        (lambda a: np.zeros(a.shape, dtype="U3"), "wrong type"),
    ],
)
def test_another_array_is_refused(
    stored: Path, name: str, reshape: Callable[[Any], Any], words: str
) -> None:
    np.save(stored / f"{name}.npy", reshape(np.load(stored / f"{name}.npy")))
    rehash(stored, name)
    with pytest.raises(ArtifactError, match=words):
        Profiles.open(stored)


@pytest.mark.parametrize(
    "text", ["", "{", "[]", "null", "3", '{"format": 1}', "[" * 100_000, "\x80\x04csys\nexit\n."]
)
def test_a_broken_manifest_is_refused(stored: Path, text: str) -> None:
    (stored / "manifest.json").write_text(text, encoding="latin-1")
    with pytest.raises(ArtifactError, match="nextbest refresh"):
        Profiles.open(stored)


@pytest.mark.parametrize(
    "edit",
    [
        lambda m: m.update(format=1),
        lambda m: m.pop("as_of"),
        lambda m: m.update(as_of="yesterday"),
        lambda m: m.update(categories=["region"]),
        lambda m: m.update(features=[{"name": "spend"}]),
        lambda m: m.update(sha256={}),
        lambda m: m["columns"].append("more"),
        lambda m: m["offer_ids"].pop(),
        lambda m: m["pair_columns"].pop(),
    ],
)
def test_a_manifest_that_does_not_fit_is_refused(
    stored: Path, edit: Callable[[dict[str, Any]], Any]
) -> None:
    Profiles.open(stored)
    change(stored, edit)
    with pytest.raises(ArtifactError):
        Profiles.open(stored)


def test_no_directory_at_all(tmp_path: Path) -> None:
    with pytest.raises(ArtifactError, match="profiles nowhere: the profiles cannot be read"):
        Profiles.open(tmp_path / "nowhere")
