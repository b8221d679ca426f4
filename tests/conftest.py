"""Fixtures for the tests of the whole: the command line in this process, and a shop that ran."""

from __future__ import annotations

import fcntl
import json
import os
import shutil
from collections.abc import Callable, Iterator
from dataclasses import asdict
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import toyshop
from commands import Ran, Run, Toy, run_cli
from hypothesis import HealthCheck, settings

# No test is timed: a busy machine may not fail one. The same examples every time, so that a
# failure here is a failure everywhere.
settings.register_profile(
    "nextbest",
    deadline=None,
    derandomize=True,
    max_examples=50,
    suppress_health_check=[HealthCheck.too_slow],
)
settings.load_profile("nextbest")

# Files that train, simulate or serve whole shops, or ask much of the database: those that take
# longest first.
_WHOLE = (
    "test_complete_journey.py",
    "test_jobs.py",
    "test_train.py",
    "test_registry.py",
    "test_other_shops.py",
    "test_contract.py",
    "test_cli.py",  # not beside test_jobs.py: one of the two would wait for the toy shop
    "test_features.py",
    "test_cli_store.py",
    "test_demo.py",
    "test_quarter.py",
    "test_guide.py",
    "test_starbucks.py",
    "test_simulate.py",
    "test_server.py",
    "test_caps.py",
    "test_onnx.py",
    "test_cli_report.py",
    "test_ope.py",
    "test_ope_real.py",
    "test_leakage.py",
    "test_package.py",
    "test_readme.py",
)


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Begin with the slow files: else the last worker is left alone with one of them."""
    rank = {name: i for i, name in enumerate(_WHOLE)}
    items.sort(key=lambda item: rank.get(item.path.name, len(_WHOLE)))


@pytest.fixture(scope="session", autouse=True)
def _no_settings_from_outside() -> Any:
    """Nobody's registry or store is touched, whatever the shell that runs the tests has set."""
    with pytest.MonkeyPatch.context() as patch:
        for name in ("MLFLOW_TRACKING_URI", "MLFLOW_RUN_ID", "NEXTBEST_STORE", "NEXTBEST_DEBUG"):
            patch.delenv(name, raising=False)
        patch.setenv("COLUMNS", "80")
        yield


@pytest.fixture(scope="session", autouse=True)
def _nobody_looks_at_pictures() -> Any:
    """Toy shops are trained dozens of times; drawing would take a quarter of that.

    ``tests/learn/test_report.py`` and ``tests/test_complete_journey.py`` draw them.
    """
    from nextbest.learn import report, train

    undrawn = SimpleNamespace(pictures=lambda _: {}, model_card=report.model_card)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(train, "report", undrawn)
        yield


@pytest.fixture(scope="session")
def toy_rooms(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The toy shop as its author left it: rooms and data, nothing trained."""
    return toyshop.write(tmp_path_factory.mktemp("rooms"))


@pytest.fixture
def fresh(toy_rooms: Path, tmp_path: Path) -> Path:
    """A toy shop of its own for a test to spoil; nothing is trained."""
    return Path(shutil.copytree(toy_rooms, tmp_path / "shop"))


def _once(factory: pytest.TempPathFactory, name: str, make: Callable[[Path], None]) -> Path:
    """A folder that the workers of one run share: who comes first makes it while others wait."""
    base = factory.getbasetemp()
    home = (base.parent if "PYTEST_XDIST_WORKER" in os.environ else base) / name
    home.mkdir(exist_ok=True)
    with (home / "lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        if not (home / "made").exists():
            make(home)
            (home / "made").touch()
    return home


@pytest.fixture(scope="session")
def empty_registry(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An MLflow store without a run in it; making one takes MLflow seconds."""

    def make(home: Path) -> None:
        from nextbest.learn.registry import Registry

        assert Registry(None, home).models() == ()

    return _once(tmp_path_factory, "registry", make) / "mlflow.db"


@pytest.fixture
def trainable(fresh: Path, empty_registry: Path) -> Path:
    """A toy shop of its own with an empty registry, for a test that trains."""
    (fresh / ".nextbest").mkdir()
    shutil.copy(empty_registry, fresh / ".nextbest" / "mlflow.db")
    return fresh


@pytest.fixture(scope="session")
def toy(toy_rooms: Path, empty_registry: Path, tmp_path_factory: pytest.TempPathFactory) -> Toy:
    """The toy shop after train, promote, train again, refresh and decide. Read it only."""

    def make(home: Path) -> None:
        root = home / "shop"
        shutil.rmtree(root, ignore_errors=True)
        shutil.copytree(toy_rooms, root)
        (root / ".nextbest").mkdir()
        shutil.copy(empty_registry, root / ".nextbest" / "mlflow.db")
        said = {name: run_cli(*words, "--project", root, "--json") for name, words in _jobs(root)}
        for name, ran in said.items():
            assert ran.code == (1 if name == "promote hvc" else 0), f"{name}: {ran.err}"
        (home / "said.json").write_text(json.dumps({n: asdict(ran) for n, ran in said.items()}))

    home = _once(tmp_path_factory, "toy", make)
    said = json.loads((home / "said.json").read_text())
    return Toy(home / "shop", {name: Ran(**ran) for name, ran in said.items()})


def _jobs(root: Path) -> Iterator[tuple[str, tuple[str | Path, ...]]]:
    yield "train", ("train",)
    for model in ("propensity", "churn", "clv", "hvc"):
        yield f"promote {model}", ("promote", model)
    yield "train churn again", ("train", "churn")
    yield "promote churn again", ("promote", "churn", "--reason", "the second of two")
    yield "refresh", ("refresh",)
    out = root / "out" / "decisions.parquet"
    yield "decide", ("decide", "--channel", "mail", "--out", out)


@pytest.fixture
def shop(toy: Toy, tmp_path: Path) -> Path:
    """A trained toy shop of its own; its registry has followed it."""
    return Path(shutil.copytree(toy.root, tmp_path / "shop"))


@pytest.fixture
def cli() -> Run:
    """Run a command and get its exit code, standard output and standard error."""
    return run_cli
