"""A project that is moved, copied or restored keeps its models; MLflow alone would lose them."""

import shutil
import sqlite3
from pathlib import Path

import numpy as np
import pytest
import small_models as small

from nextbest.errors import RegistryError
from nextbest.learn import artifact, moved
from nextbest.learn.registry import Registry


@pytest.fixture(scope="module")
def stored(tmp_path_factory):
    folder = tmp_path_factory.mktemp("stored") / "blend"
    small.save_blend(folder)
    return folder


def log(registry, stored, name="churn"):
    run = registry.log_run(
        name, artifact_dir=stored, params={}, metrics={}, files={"card.md": "a card"}
    )
    registry.register(name, run)
    return run


@pytest.fixture(scope="module")
def state(tmp_path_factory, stored, empty_registry):
    """A registry with a champion, in a folder whose name an address must quote."""
    root = tmp_path_factory.mktemp("a first") / "shop & sons" / ".nextbest"
    root.mkdir(parents=True)
    shutil.copy(empty_registry, root)
    registry = Registry(None, root)
    run = log(registry, stored)
    log(registry, stored, "churn_2")
    registry.promote("churn", 1)
    return root, run


def addresses(root: Path) -> list[str]:
    with sqlite3.connect(root / "mlflow.db") as store:
        return [
            address
            for table, column in moved._ADDRESSES
            for (address,) in store.execute(f"SELECT {column} FROM {table}")
            if address and moved.FOLDER in address
        ]


def test_a_moved_project_keeps_its_models(state, stored, tmp_path):
    root, run = state
    there = tmp_path / "second place" / ".nextbest"
    shutil.copytree(root, there)
    for file in (there / "mlartifacts").rglob("card.md"):
        file.write_text("the card of the copy")
    registry = Registry(None, there)
    assert registry.champion("churn").version == 1
    assert registry.read_file(run, "card.md") == b"the card of the copy"
    found = registry.fetch("churn", "champion", tmp_path / "model")
    assert np.array_equal(
        artifact.load(found).score(small.raw()), artifact.load(stored).score(small.raw())
    )
    assert len(addresses(there)) >= 10  # of two experiments, runs, models and versions
    assert {a.startswith((there / "mlartifacts").as_uri() + "/") for a in addresses(there)} == {
        True
    }
    # The first one still reads its own.
    assert Registry(None, root).read_file(run, "card.md") == b"a card"


def test_a_copied_project_writes_into_its_own_folder(state, stored, tmp_path):
    root, _ = state
    before = sorted(root.rglob("*"))
    there = tmp_path / "copy" / ".nextbest"
    shutil.copytree(root, there)
    registry = Registry(None, there)
    run = log(registry, stored)
    assert registry.versions("churn")[-1].run_id == run
    assert sorted(root.rglob("*")) == before
    assert list((there / "mlartifacts" / "churn" / run).rglob("card.md"))


def test_files_that_were_not_brought_along_are_named(state, tmp_path):
    root, _ = state
    there = tmp_path / "alone" / ".nextbest"
    gone = tmp_path / "gone"
    shutil.copytree(root, gone)
    Registry(None, gone).models()
    there.mkdir(parents=True)
    shutil.copy(gone / "mlflow.db", there)
    shutil.rmtree(gone)
    with pytest.raises(RegistryError) as caught:
        Registry(None, there).champion("churn")
    said = str(caught.value)
    assert f"were in {gone}/mlartifacts/churn, which is not there" in said
    assert f"Put that folder into {there}/mlartifacts; if it is lost, remove {there}/ml" in said
    # What the message says is what helps.
    shutil.copytree(root / "mlartifacts", there / "mlartifacts")
    assert Registry(None, there).champion("churn").version == 1


def test_only_addresses_of_folders_that_came_along_change(tmp_path):
    """The rule, on a table written by hand."""
    here = tmp_path / "new"
    (here / "mlartifacts" / "churn").mkdir(parents=True)
    database = tmp_path / "mlflow.db"
    with sqlite3.connect(database) as store:
        store.execute("CREATE TABLE experiments (artifact_location TEXT)")
        store.execute("CREATE TABLE runs (artifact_uri TEXT)")
        store.executemany(
            "INSERT INTO experiments VALUES (?)",
            [("file:///old/mlartifacts/churn",), ("file:///old/mlartifacts/hvc",),
             ("s3://bucket/mlartifacts/churn",), ("file:///elsewhere/churn",), (None,)],
        )  # fmt: skip
        store.executemany(
            "INSERT INTO runs VALUES (?)",
            [("file:///old/mlartifacts/churn/1",), ("file:///old/mlartifacts/churn2/1",)],
        )
    moved.follow(database, here)
    new = (here / "mlartifacts" / "churn").as_uri()
    with sqlite3.connect(database) as store:
        assert [a for (a,) in store.execute("SELECT * FROM experiments ORDER BY rowid")] == [
            new, "file:///old/mlartifacts/hvc", "s3://bucket/mlartifacts/churn",
            "file:///elsewhere/churn", None,
        ]  # fmt: skip
        assert [a for (a,) in store.execute("SELECT * FROM runs ORDER BY rowid")] == [
            f"{new}/1", "file:///old/mlartifacts/churn2/1",
        ]  # fmt: skip
