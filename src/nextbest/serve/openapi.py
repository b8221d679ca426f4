"""What the OpenAPI document says beyond the routes: bodies, examples, every error by its code."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from fastapi import FastAPI
from fastapi.openapi.utils import get_openapi
from pydantic import BaseModel
from pydantic.json_schema import models_json_schema

from nextbest.serve.problems import CODES, MEDIA_TYPE, Problem
from nextbest.serve.schemas import (
    BatchRequest,
    DecisionRequest,
    EventReport,
    OutcomeReport,
    ProblemAnswer,
)

__all__ = ["EXAMPLES", "answers", "install", "takes"]

_REF = "#/components/schemas/{model}"

_VERSIONS = {
    "models": {"churn": "3", "clv": "2", "hvc": "2", "propensity": "4"},
    "bundle": "5c1f0a9be2d34f77",
    "profiles_as_of": "2017-12-10T05:00:00Z",
    "catalogue": "0d5f1c7e" * 8,
    "policy": "b36e2a40" * 8,
}
_SCORES = {
    "churn_probability": 0.061,
    "p_alive": 0.98,
    "hvc_probability": 0.42,
    "clv": 1180.5,
    "clv_low": 702.1,
    "clv_high": 1721.9,
}
_DECISION = {
    "decision_id": "0193b0f2-7c4e-7d21-9a57-3f2f6f1f9d10",
    "customer_id": "1",
    "decided_at": "2017-12-10T05:00:00Z",
    "channel": "mail",
    "arm": "policy",
    "fallback": False,
    "profile_stale": False,
    "offers": [
        {
            "offer_id": "18",
            "name": "Campaign 18",
            "rank": 1,
            "propensity": 0.31,
            "expected_profit": 1.84,
            "priority": 1.84,
            "selection_probability": 1.0,
            "reasons": ["31.0% chance of a response within 63 days"],
        }
    ],
    "no_offer_reasons": [],
    "scores": _SCORES,
    "versions": _VERSIONS,
}
_NO_OFFER = {
    **_DECISION,
    "decision_id": "0193b0f2-7c4e-7d21-9a57-3f2f6f1f9d11",
    "customer_id": "2",
    "offers": [],
    "no_offer_reasons": ["offer 18: contact policy: 1 of 1 contacts in 30 days"],
}
_OUTCOME = {
    "outcome_id": "till-4711",
    "decision_id": "0193b0f2-7c4e-7d21-9a57-3f2f6f1f9d10",
    "outcome_type": "response",
    "occurred_at": "2017-12-12T17:05:00Z",
    "value": 23.9,
}
_STORED_OUTCOME = {**_OUTCOME, "customer_id": "1", "offer_id": "18"}
_LONE_OUTCOME = {
    "outcome_id": "till-4712",
    "customer_id": "7",
    "offer_id": "18",
    "outcome_type": "refusal",
    "occurred_at": "2017-12-13T09:00:00+01:00",
}
_EVENT = {
    "event_id": "web-90210",
    "customer_id": "1",
    "event_type": "cart_add",
    "event_at": "2017-12-10T05:20:00Z",
    "item": "olive-oil",
}
_FULL_EVENT = {
    "event_id": "web-90211",
    "customer_id": "7",
    "event_type": "visit",
    "event_at": "2017-12-10T06:21:30+01:00",
    "category": "wine",
    "channel": "web",
    "session_id": "s-4a1",
    "value": 12.0,
}
_STORED_LONE_OUTCOME = {
    **_LONE_OUTCOME,
    "decision_id": None,
    "occurred_at": "2017-12-13T08:00:00Z",
    "value": None,
    "received_at": "2017-12-13T08:00:01Z",
}
_QUESTION = {"customer_id": "1", "channel": "mail", "limit": 1, "idempotency_key": "letter-1"}
_TRACE = {"offers": [{"offer_id": "18", "fate": {"step": "chosen", "reason": "chosen"}}]}

EXAMPLES: dict[str, dict[str, Any]] = {
    "DecisionRequest": {
        "smallest": {"customer_id": "1", "channel": "mail"},
        "full": {
            **_QUESTION,
            "placement": "cover",
            "context": {"weather": "rain"},
            "explain": True,
        },
    },
    "DecisionAnswer": {"an offer": _DECISION, "no offer": _NO_OFFER},
    "BatchRequest": {"two customers": {"customer_ids": ["1", "2"], "channel": "mail"}},
    "BatchAnswer": {"two customers": {"decisions": [_DECISION, _NO_OFFER]}},
    "StoredDecisionAnswer": {
        "with an outcome": {
            "request": {
                "customer_id": "1",
                "channel": "mail",
                "placement": None,
                "context": {},
                "limit": 1,
                "explain": False,
            },
            "decision": _DECISION,
            "trace": _TRACE,
            "missing": None,
            "outcomes": [_STORED_OUTCOME],
        }
    },
    "OutcomeReport": {"after a decision": _OUTCOME, "without a decision": _LONE_OUTCOME},
    "OutcomesAnswer": {
        "kept": {
            "results": [
                {"outcome_id": "till-4711", "status": "stored"},
                {"outcome_id": "till-4712", "status": "duplicate"},
            ]
        }
    },
    "EventReport": {"something in the cart": _EVENT, "a visit": _FULL_EVENT},
    "EventsAnswer": {
        "kept": {
            "results": [
                {"event_id": "web-90210", "status": "stored"},
                {"event_id": "web-90211", "status": "duplicate"},
            ]
        }
    },
    "CustomerAnswer": {
        "known": {
            "customer_id": "1",
            "as_of": "2017-12-10T05:00:00Z",
            "profile_stale": False,
            "features": {"orders_91d": 21.0, "age_band": "65+", "contacts_28d": 2.0},
            "scores": _SCORES,
            "live": {
                "at": "2017-12-11T18:00:00Z",
                "heard": {"contacts": 1},
                "features": {"contacts_28d": [1.0, 2.0]},
                "scores": {"churn_probability": [0.064, 0.061]},
            },
            "bundle": "5c1f0a9be2d34f77",
        }
    },
    "ErasureAnswer": {
        "erased": {
            "removed": {"decisions": 2, "contacts": 1, "outcomes": 1, "events": 0},
            "overwritten": True,
            "audit": {"number": 12, "hash": "9c56cc51" * 8},
        }
    },
    "ExportAnswer": {
        "without a profile": {
            "customer_id": "7",
            "exported_at": "2017-12-14T09:00:00Z",
            "profile": None,
            "decisions": [],
            "contacts": [],
            "outcomes": [_STORED_LONE_OUTCOME],
            "events": [],
            "warehouse": {"contacts": [], "responses": []},
        }
    },
    "CatalogueAnswer": {
        "one offer": {
            "catalogue": _VERSIONS["catalogue"],
            "offers": [{"id": "18", "name": "Campaign 18", "goal": "sell", "channels": ["mail"]}],
        }
    },
    "ModelsAnswer": {
        "one model": {
            "bundle": "5c1f0a9be2d34f77",
            "created_at": "2017-12-10T05:10:00Z",
            "models": [
                {
                    "name": "propensity",
                    "kind": "probability",
                    "version": 4,
                    "run_id": "9f1c",
                    "aliases": ["champion"],
                    "digest": "e3b0c442" * 8,
                }
            ],
        }
    },
    "Health": {"alive": {"status": "ok"}},
    "Readiness": {
        "ready": {
            "ready": True,
            "parts": {"store": {"ready": True, "detail": "reads and writes"}},
        }
    },
}


def _named(model: str) -> dict[str, Any]:
    return {name: {"value": value} for name, value in EXAMPLES[model].items()}


def _ref(model: type[BaseModel]) -> dict[str, str]:
    return {"$ref": _REF.format(model=model.__name__)}


def takes(model: type[BaseModel], *, many: bool = False) -> dict[str, Any]:
    """Return ``openapi_extra`` for a route that reads this body itself (or a list of it)."""
    schema: dict[str, Any] = _ref(model)
    examples = _named(model.__name__)
    if many:
        listed = {"type": "array", "items": schema, "minItems": 1, "maxItems": 1_000}
        schema = {"oneOf": [schema, listed]}
        examples["several"] = {"value": [one["value"] for one in examples.values()]}
    content = {"application/json": {"schema": schema, "examples": examples}}
    return {"requestBody": {"required": True, "content": content}}


def answers(
    path: str, model: type[BaseModel], codes: Sequence[str], *, also: Sequence[int] = ()
) -> dict[int | str, dict[str, Any]]:
    """Return ``responses`` for a route: its answer with examples, and its errors by status.

    Parameters
    ----------
    path : the route, for the examples.
    model : what it answers.
    codes : error codes of its own, beside those that any call may meet.
    also : further statuses with the same answer.
    """
    good = {"application/json": {"examples": _named(model.__name__)}}
    responses: dict[int | str, dict[str, Any]] = {200: {"content": good}}
    for status in also:
        responses[status] = {"model": model, "content": good, "description": "See each result."}
    every = [*codes, "internal-error"]
    if path.startswith("/v1/"):
        every += ["unauthenticated", "forbidden", "rate-limited", "store-unavailable"]
    for status in sorted({status for code in every for status in CODES[code].statuses}):
        found = [code for code in every if status in CODES[code].statuses]
        examples = {
            code: {"value": Problem(code, CODES[code].remedy, status=status).document(path)}
            for code in found
        }
        responses[status] = {
            "description": "; ".join(f"`{code}`" for code in found),
            "content": {MEDIA_TYPE: {"schema": _ref(ProblemAnswer), "examples": examples}},
        }
    responses["default"] = {
        "description": "Any other refusal.",
        "content": {MEDIA_TYPE: {"schema": _ref(ProblemAnswer)}},
    }
    return responses


def description() -> str:
    """Return the text at the top of the documentation, with the table of error codes."""
    rows = "\n".join(
        f"| `{name}` | {', '.join(map(str, code.statuses))} | {code.title} | {code.remedy} |"
        for name, code in CODES.items()
    )
    return (
        "Ask which offer a customer should get next, and report what came of it.\n\n"
        "Times are UTC with a `Z`, money is in the shop's currency, probabilities are 0 to 1. "
        "Every refusal is an `application/problem+json` document (RFC 9457); match on its `code`."
        "\n\n| code | status | meaning | what to do |\n|---|---|---|---|\n" + rows
    )


def install(app: FastAPI) -> None:
    """Make the app serve the complete document."""

    def document() -> dict[str, Any]:
        if app.openapi_schema is None:
            schema = get_openapi(
                title=app.title,
                version=app.version,
                description=description(),
                routes=app.routes,
            )
            _, definitions = models_json_schema(
                [
                    (model, "validation")
                    for model in (
                        DecisionRequest,
                        BatchRequest,
                        OutcomeReport,
                        EventReport,
                        ProblemAnswer,
                    )
                ],
                ref_template=_REF,
            )
            schema.setdefault("components", {}).setdefault("schemas", {}).update(
                definitions["$defs"]
            )
            app.openapi_schema = schema
        return app.openapi_schema

    app.openapi = document  # type: ignore[method-assign]
