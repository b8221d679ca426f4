"""Customers, offers and models as the server has them in use."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import shop
from fastapi.testclient import TestClient

from nextbest.data.feature import SCORE_GROUP
from nextbest.data.profiles import Profiles
from nextbest.serve.bundle import write_bundle
from nextbest.serve.runtime import load_state
from nextbest.serve.schemas import CatalogueAnswer, CustomerAnswer, DecisionAnswer, ModelsAnswer


def test_a_customer_is_shown_with_features_scores_and_their_age(
    client: TestClient, artefacts: Path
) -> None:
    answer = client.get("/v1/customers/c03").json()
    CustomerAnswer.model_validate(answer)
    profiles = Profiles.open(artefacts / "profiles")
    row = profiles.matrix[3]
    assert answer["as_of"] == "2020-03-01T00:00:00Z"
    assert answer["profile_stale"] is False
    assert answer["features"] == {"spend_91d": None, "age_band": "young", "likes_mail": True}
    assert answer["scores"]["clv"] == row[profiles.columns.index("clv")]
    assert answer["scores"]["clv_low"] is None
    assert list(answer["scores"]) == [
        "churn_probability",
        "p_alive",
        "hvc_probability",
        "clv",
        "clv_low",
        "clv_high",
    ]


def test_the_score_of_a_model_of_ones_own_is_shown_with_the_others(
    project: Path, artefacts: Path, serve: Callable[..., TestClient]
) -> None:
    profiles = Profiles.open(artefacts / "profiles")
    own = [replace(f, group=SCORE_GROUP) if f.name == "spend_91d" else f for f in profiles.features]
    folder = project / ".nextbest" / "serving"
    write_bundle(folder, shop.sources(artefacts), replace(profiles, features=tuple(own)))
    client = serve(project)
    answer = client.get("/v1/customers/c05").json()
    CustomerAnswer.model_validate(answer)
    assert answer["scores"]["spend_91d"] == profiles.matrix[5, profiles.columns.index("spend_91d")]
    assert "spend_91d" not in answer["features"]
    decided = client.post("/v1/decisions", json={"customer_id": "c05", "channel": "mail"}).json()
    DecisionAnswer.model_validate(decided)
    assert decided["scores"] == answer["scores"]
    documented = client.get("/openapi.json").json()["components"]["schemas"]["ScoresAnswer"]
    assert {"type": "number"} in documented["additionalProperties"]["anyOf"]


def test_a_decision_uses_the_scores_that_are_shown(client: TestClient) -> None:
    shown = client.get("/v1/customers/c05").json()["scores"]
    question = {"customer_id": "c05", "channel": "mail"}
    assert client.post("/v1/decisions", json=question).json()["scores"] == shown


def test_the_catalogue_is_shown_as_it_is_in_use(client: TestClient, project: Path) -> None:
    answer = client.get("/v1/offers").json()
    CatalogueAnswer.model_validate(answer)
    assert [offer["id"] for offer in answer["offers"]] == ["a", "b", "c", "new"]
    assert answer["offers"][1]["incentive_cost"] == 0.5
    assert answer["catalogue"] == load_state(project).offers.content_hash


def test_models_are_shown_with_version_alias_and_run(client: TestClient, project: Path) -> None:
    answer = client.get("/v1/models").json()
    ModelsAnswer.model_validate(answer)
    bundle = load_state(project).bundle
    assert answer["bundle"] == bundle.id
    shown = {model["name"]: model for model in answer["models"]}
    assert shown["propensity"] == {
        "name": "propensity",
        "kind": "probability",
        "version": 4,
        "run_id": "run-4",
        "aliases": ["champion"],
        "digest": bundle.models["propensity"].digest,
    }
