"""Fixtures around the small shop of ``shop.py``: artefacts, a project, a running app."""

from __future__ import annotations

import shutil
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import databases
import pytest
import shop
import shop_project
from fastapi.testclient import TestClient
from nursery import Nursery, nursery

from nextbest.serve.api import create_app
from nextbest.serve.store import Store


@pytest.fixture(scope="session")
def artefacts(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Models and profiles, trained once: propensity, churn, and a second propensity."""
    return shop_project.make_artefacts(tmp_path_factory.mktemp("artefacts"))


@pytest.fixture(scope="session")
def template(artefacts: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return shop_project.make_project(tmp_path_factory.mktemp("template"), artefacts)


@pytest.fixture
def project(template: Path, tmp_path: Path) -> Path:
    """A project of its own for each test, ready to serve."""
    return Path(shutil.copytree(template, tmp_path / "shop"))


@pytest.fixture
def serve() -> Iterator[Callable[..., TestClient]]:
    """Start the app of a project (as often as asked); everything stops after the test."""
    with ExitStack() as running:

        def start(project: Path, *, insecure: bool = True) -> TestClient:
            app = create_app(project, insecure=insecure, clock=lambda: shop.NOW)
            client = TestClient(app, raise_server_exceptions=False)
            return running.enter_context(client)

        yield start


@pytest.fixture
def client(project: Path, serve: Callable[..., TestClient]) -> TestClient:
    """The app of a fresh project, open to everybody."""
    return serve(project)


@pytest.fixture
def path(tmp_path: Path) -> Path:
    """Where a store of its own is kept."""
    return tmp_path / "store.db"


@pytest.fixture
def store(path: Path) -> Iterator[Store]:
    """An empty store of its own for each test."""
    store = Store.at(path)
    yield store
    store.close()


@pytest.fixture(scope="session")
def postgres(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Any]:
    """A real PostgreSQL server, empty."""
    with databases.postgres_server(tmp_path_factory.mktemp("postgres") / "data") as server:
        yield server


@pytest.fixture(params=["sqlite", "postgresql"])
def url(request: pytest.FixtureRequest, tmp_path: Path) -> str:
    """The URL of an empty store, once in each kind of database."""
    if request.param == "sqlite":
        return databases.sqlite_url(tmp_path / "state" / "store.db")
    return databases.new_database(request.getfixturevalue("postgres"))


@pytest.fixture(scope="session")
def servers() -> Iterator[Nursery]:
    """Real server processes, as many as asked for."""
    with nursery() as running:
        yield running
