"""The OpenAPI document is true: whatever it allows, or just does not, is answered as it says."""

from __future__ import annotations

import copy
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import schemathesis
import shop
from fastapi.testclient import TestClient
from hypothesis import HealthCheck, given, settings
from schemathesis import GenerationMode
from schemathesis.checks import not_a_server_error
from schemathesis.specs.openapi.checks import (
    content_type_conformance,
    response_schema_conformance,
)

from nextbest.serve.api import create_app
from nextbest.serve.problems import MEDIA_TYPE

CHECKS = [not_a_server_error, content_type_conformance, response_schema_conformance]
# What the router says before any call is reached: an id may hold a slash.
ROUTER = {"not-found", "method-not-allowed"}


@pytest.fixture(scope="module")
def served(template: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[TestClient]:
    project = Path(shutil.copytree(template, tmp_path_factory.mktemp("any") / "shop"))
    app = create_app(project, insecure=True, clock=lambda: shop.NOW)
    with TestClient(app, raise_server_exceptions=False) as client:
        yield client


def in_this_shop(client: TestClient, document: dict[str, Any]) -> dict[str, Any]:
    """The document with names that this shop knows, or nearly everything would be unknown."""
    asked = {"customer_id": "c01", "channel": "mail", "limit": 2}
    made = client.post("/v1/decisions", json=asked).json()
    known = {
        "channel": ["mail", "email"],
        "customer_id": ["c01", "nobody"],
        "decision_id": [made["decision_id"], "none"],
        "offer_id": ["a", "b"],
        "occurred_at": ["2020-03-02T09:00:00Z"],
        "event_at": ["2020-03-02T09:00:00Z"],
    }
    found = copy.deepcopy(document)
    for model in ("DecisionRequest", "BatchRequest", "OutcomeReport", "EventReport"):
        properties = found["components"]["schemas"][model]["properties"]
        properties |= {name: {"enum": known[name]} for name in known.keys() & properties.keys()}
        if model == "OutcomeReport":  # about somebody else, it would be refused
            properties |= {"customer_id": {"enum": ["c01"]}, "decision_id": {"enum": [None]}}
    for methods in found["paths"].values():
        for method, operation in methods.items():
            for parameter in operation.get("parameters", []):
                # Who is erased is nobody that another call asks about.
                names = ["c59"] if method == "delete" else known[parameter["name"]]
                parameter["schema"] = {"enum": names}
    return found


@pytest.mark.parametrize("names", ["any", "of this shop"])
def test_what_the_document_allows_is_answered_as_documented(served: TestClient, names: str) -> None:
    document = served.get("/openapi.json").json()
    if names == "of this shop":
        document = in_this_shop(served, document)
    tried = every_call(served, document, GenerationMode.POSITIVE)
    assert len(tried) == sum(len(methods) for methods in document["paths"].values())
    if names == "of this shop":
        assert [label for label, seen in tried.items() if not seen & {200, 207}] == []


def test_what_the_document_forbids_is_refused_as_documented(served: TestClient) -> None:
    document = served.get("/openapi.json").json()
    tried = every_call(served, document, GenerationMode.NEGATIVE)
    assert {path for path, seen in tried.items() if 422 in seen} == {
        f"POST {path}" for path, methods in document["paths"].items() if "post" in methods
    }


def every_call(
    served: TestClient, document: dict[str, Any], mode: GenerationMode
) -> dict[str, set[int]]:
    """Ask every call, and return the statuses of its answers."""
    tried = {}
    for found in schemathesis.openapi.from_dict(document).get_all_operations():
        operation = found.ok()
        described = document["paths"][operation.path][operation.method]
        asks = "requestBody" in described or described.get("parameters")
        if asks or mode == GenerationMode.POSITIVE:  # nothing to get wrong otherwise
            tried[operation.label] = tries(served, operation, described["responses"], mode)
    return tried


def tries(served: TestClient, operation: Any, documented: Any, mode: GenerationMode) -> set[int]:
    """Ask one call what its schema allows, or does not, and return the statuses of the answers."""
    seen = set()

    @settings(max_examples=7, suppress_health_check=list(HealthCheck))
    @given(case=operation.as_strategy(generation_mode=mode))
    def answers(case: Any) -> None:
        response = served.request(**case.as_transport_kwargs(base_url="http://testserver"))
        seen.add(response.status_code)
        case.validate_response(response, checks=CHECKS)
        if str(response.status_code) not in documented:
            assert response.json()["code"] in ROUTER, response.text
        if response.status_code >= 400:
            assert response.headers["content-type"] == MEDIA_TYPE

    answers()
    return seen
