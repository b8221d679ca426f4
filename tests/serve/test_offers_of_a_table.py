"""A server whose offers come from a table: it has them in its bundle and needs no table."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from datetime import datetime
from pathlib import Path
from typing import Any

import pytest
import shop
from fastapi.testclient import TestClient

from nextbest.data.profiles import Profiles
from nextbest.decide.offers import AMOUNTS, Offer
from nextbest.decide.offertable import OfferTable
from nextbest.errors import ArtifactError, ConfigError
from nextbest.serve.bundle import load_bundle, write_bundle
from nextbest.serve.runtime import load_state

Serve = Callable[..., TestClient]
# In the file "c" ends with the day of 1 February; in a table with the first instant after it.
ROWS: list[dict[str, Any]] = [
    {"offer_id": "a", "name": "Apples", "response_window_days": 14.0},
    {"offer_id": "b", "name": "Bread", "incentive_cost": 0.5,
     "eligibility": "age_band = 'old' or likes_mail"},
    {"offer_id": "c", "name": "Cheese", "ends_at": datetime(2020, 2, 2)},
    {"offer_id": "new", "name": "Added since the last refresh"},
]  # fmt: skip


def publish(project: Path, artefacts: Path, rows: list[dict[str, Any]] | None) -> str:
    as_of = datetime(2020, 1, 1)  # before "c" ends, so that it stays part of the catalogue
    table = rows and OfferTable.of(rows, Offer.model_fields, AMOUNTS, as_of)
    profiles = Profiles.open(artefacts / "profiles")
    folder = project / ".nextbest" / "serving"
    return write_bundle(folder, shop.sources(artefacts), profiles, offers=table or None)


@pytest.fixture
def tabled(project: Path, artefacts: Path) -> Path:
    """The shop whose catalogue lies in a table, all but what its offers share."""
    shared = shop.OFFERS.partition("[[offers]]")[0]
    (project / "serving" / "offers.toml").write_text(f'[source]\ntable = "offers"\n{shared}')
    publish(project, artefacts, ROWS)
    return project


def test_everything_is_as_if_the_file_held_them(
    tabled: Path, template: Path, tmp_path: Path, serve: Serve
) -> None:
    filed = Path(shutil.copytree(template, tmp_path / "filed"))
    in_file, in_table = load_state(filed), load_state(tabled)
    assert in_table.offers.content_hash == in_file.offers.content_hash
    answers = []
    for project in (filed, tabled):
        client = serve(project)
        shown = client.get("/v1/offers").json()
        question = {"customer_id": "c02", "channel": "mail", "limit": 3}
        decided = client.post("/v1/decisions", json=question).json()
        answers.append((shown, decided["offers"], decided["versions"]["catalogue"]))
    assert answers[0] == answers[1]
    assert answers[0][1]


def test_the_rows_are_part_of_the_bundle(tabled: Path, artefacts: Path) -> None:
    folder = tabled / ".nextbest" / "serving"
    bundle = load_bundle(folder)
    assert publish(tabled, artefacts, ROWS) == bundle.id
    changed = publish(tabled, artefacts, [{**ROWS[0], "name": "Pears"}, *ROWS[1:]])
    assert changed != bundle.id
    rows = json.loads((folder / changed / "offers.json").read_text())
    (folder / changed / "offers.json").write_text(json.dumps(rows[:1]))
    with pytest.raises(ArtifactError, match=r"offers\.json is not the file that was written.*refr"):
        load_bundle(folder)


def test_a_bundle_from_before_is_refused_with_the_way_out(
    tabled: Path, artefacts: Path, serve: Serve
) -> None:
    publish(tabled, artefacts, None)
    with pytest.raises(
        ConfigError, match=r"\[source\]: the offers of the table .* are not at hand"
    ):
        load_state(tabled)
    answer = serve(tabled).get("/readyz")
    assert answer.status_code == 503
    assert "nextbest refresh" in answer.json()["parts"]["configuration"]["detail"]


def test_the_file_may_change_what_the_table_says_between_refreshes(
    tabled: Path, serve: Serve
) -> None:
    file = tabled / "serving" / "offers.toml"
    file.write_text(file.read_text() + '\n[[offers]]\nid = "b"\nactive = false\n')
    client = serve(tabled)
    shown = {o["id"]: o for o in client.get("/v1/offers").json()["offers"]}
    assert list(shown) == ["b", "a", "c", "new"]
    assert shown["b"]["active"] is False and shown["b"]["name"] == "Bread"
