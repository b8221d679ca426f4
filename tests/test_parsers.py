"""Whatever stands in a file or a body, a reader gives its content or an error of nextbest's own."""

from __future__ import annotations

import copy
import json
import shutil
import tomllib
from collections.abc import Callable
from datetime import UTC, date, datetime, time
from functools import cache
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from nextbest.decide.binding import bind
from nextbest.decide.offers import Catalogue
from nextbest.decide.policy import Policy
from nextbest.decide.rules import Column
from nextbest.decide.tomlfile import read_toml
from nextbest.errors import ConfigError, NextbestError
from nextbest.project import Project
from nextbest.serve import schemas
from nextbest.serve.parsing import parse, parse_decision, parse_events, parse_outcomes
from nextbest.serve.problems import Problem

ROOT = Path(__file__).parents[1]

numbers = (
    st.integers()
    | st.floats()
    | st.sampled_from([0, -1, 10**400, -(10**30), 5e-324, 1e308, float("nan"), float("inf")])
)
texts = st.text(max_size=12) | st.sampled_from(
    ["", " ", "\x00", "\ud800", "' or 1=1", "__import__('os')", "a" * 5_000, "((((", "NaN", "\n"]
)
moments = (
    st.datetimes() | st.dates() | st.times() | st.sampled_from(
        [datetime.max, datetime.min, datetime(1, 1, 1, tzinfo=UTC), date.max, time.max]
    )
)  # fmt: skip
values = st.recursive(
    st.booleans() | numbers | texts | moments,
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(texts, inner, max_size=3),
    max_leaves=6,
)


@st.composite
def spoilt(draw: Callable[[Any], Any], whole: dict[str, Any]) -> dict[str, Any]:
    """A good file in which some things, at any depth, are replaced, removed or added."""
    found = copy.deepcopy(whole)
    for _ in range(draw(st.integers(1, 3))):
        node: Any = found
        while node:
            key = draw(st.sampled_from(list(node) if isinstance(node, dict) else range(len(node))))
            if isinstance(node[key], dict | list) and node[key] and draw(st.integers(0, 3)):
                node = node[key]
                continue
            how = draw(st.sampled_from(["replace", "replace", "remove", "add"]))
            if how == "replace":
                node[key] = draw(values)
            elif how == "remove":
                del node[key]
            elif isinstance(node, dict):
                node[draw(texts)] = draw(values)
            else:
                node.append(draw(values))
            break
    return found


@cache
def file(name: str) -> dict[str, Any]:
    return tomllib.loads((ROOT / name).read_text(encoding="utf-8"))


def columns() -> dict[str, Column]:
    """A few of the columns that the project's rules read; the others are then unknown."""
    return {"churn_probability": Column("number"), "offer_spend": Column("number", "pair")}


@settings(max_examples=60)
@given(st.data())
def test_a_spoilt_catalogue(data: Any) -> None:
    raw = data.draw(spoilt(file("serving/offers.toml")))
    only_our_errors(lambda: Catalogue.from_dict(raw))


@settings(max_examples=60)
@given(st.data())
def test_a_spoilt_policy(data: Any) -> None:
    raw = data.draw(spoilt(file("serving/policy.toml")))
    policy = only_our_errors(lambda: Policy.from_dict(raw))
    if policy is not None:
        catalogue = Catalogue.from_dict(file("serving/offers.toml"))
        only_our_errors(lambda: bind(catalogue, policy, columns()))


@pytest.fixture(scope="module")
def rooms(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("spoilt")
    for room in ("models", "training", "serving"):
        ignored = shutil.ignore_patterns("__pycache__")
        shutil.copytree(ROOT / room, root / room, ignore=ignored)
    return root


@settings(max_examples=40, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(st.data())
def test_a_spoilt_training_toml(rooms: Path, data: Any) -> None:
    raw = data.draw(spoilt(file("training/training.toml")))
    try:
        text = written(raw)
    except UnicodeEncodeError:  # no file can hold half a character
        return
    (rooms / "training" / "training.toml").write_bytes(text)
    project = Project.open(rooms)
    found = only_our_errors(lambda: list(project.faults()))
    if found == []:
        for model in project.models.values():
            only_our_errors(lambda model=model: project.plan(model))


def written(value: dict[str, Any]) -> bytes:
    """A dictionary as TOML, every table inline."""

    def said(one: Any) -> str:
        if isinstance(one, dict):
            return "{" + ", ".join(f"{json.dumps(k)} = {said(v)}" for k, v in one.items()) + "}"
        if isinstance(one, list):
            return "[" + ", ".join(said(item) for item in one) + "]"
        if isinstance(one, bool):
            return str(one).lower()
        if isinstance(one, str):
            return json.dumps(one, ensure_ascii=False).replace("\x7f", "\\u007f")
        return one.isoformat() if isinstance(one, date | time) else repr(one)

    return "\n".join(f"{json.dumps(k)} = {said(v)}" for k, v in value.items()).encode("utf-8")


TOML = ("= [[offers]]", '"a" = """', "[a]\n[a]", "a = 1\na = 2", "a.b = 1\na = 2", "x = 1979-13-45",
        "a = " + "[" * 5_000, "a" + ".a" * 5_000 + " = 1",
        "[a" + ".a" * 150 + "]", "a = " + "9" * 9_000, "\ufeffa = 1",
        "a = '\x00'", "a = nan", "a = 0x", "\r", "a = 1e9999", "[[a]]\n[a]")  # fmt: skip


@settings(suppress_health_check=[HealthCheck.function_scoped_fixture], max_examples=60)
@given(st.binary(max_size=60) | st.text(max_size=60).map(lambda t: t.encode("utf-8", "replace"))
       | st.sampled_from([t.encode() for t in TOML]))  # fmt: skip
def test_bytes_that_may_be_no_toml(tmp_path: Path, content: bytes) -> None:
    path = tmp_path / "policy.toml"
    path.write_bytes(content)
    raw = only_our_errors(lambda: read_toml(path))
    if raw is not None:
        assert only_our_errors(lambda: Policy.from_dict(raw)) is None or "channels" in raw


BODIES: dict[str, Callable[[bytes], Any]] = {
    "a decision": lambda body: parse(schemas.DecisionRequest, body),
    "a batch": lambda body: parse(schemas.BatchRequest, body),
    "a decision, the short way": parse_decision,
    "outcomes": parse_outcomes,
    "events": parse_events,
}
GOOD = [
    {"customer_id": "c", "channel": "mail", "context": {"a": 1}, "limit": 2, "explain": True},
    {"customer_ids": ["c", "d"], "channel": "mail", "idempotency_key": "k"},
    {"outcome_id": "o", "customer_id": "c", "offer_id": "a", "outcome_type": "click",
     "occurred_at": "2020-01-01T00:00:00Z", "value": 1.5},
    {"event_id": "e", "customer_id": "c", "event_type": "visit",
     "event_at": "2020-01-01T00:00:00Z", "value": 1.5, "item": "x"},
]  # fmt: skip


@settings(max_examples=80)
@given(st.data())
def test_a_spoilt_body(data: Any) -> None:
    raw = data.draw(spoilt(data.draw(st.sampled_from(GOOD))))
    body = json.dumps(raw, default=str, ensure_ascii=data.draw(st.booleans()))
    sent = body.encode("utf-8", errors="surrogatepass")
    cut = data.draw(st.integers(0, len(sent)))
    for content in (sent, sent[:cut], b"[" + sent + b"]"):
        for read in BODIES.values():
            try:
                read(content)
            except Problem as refused:
                assert 400 <= refused.status < 500
                json.loads(refused.body("/v1/x"))


def only_our_errors(act: Callable[[], Any]) -> Any:
    """What it gives, or None where nextbest refuses it; anything else is a failure."""
    try:
        return act()
    except NextbestError as error:
        assert isinstance(error, ConfigError) and error.faults
        assert all(str(fault) for fault in error.faults)
        return None
