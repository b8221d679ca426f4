"""A policy that has to pass an examination goes live once it has, and not before."""

from __future__ import annotations

import json
from collections.abc import Iterator
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pytest
from test_runtime import edit, running, value

from nextbest.decide.policy import Policy
from nextbest.errors import ConfigError, GateRefusal
from nextbest.serve import approvals
from nextbest.serve.approvals import Approval
from nextbest.serve.problems import Problem
from nextbest.serve.runtime import Runtime, State, load_state
from nextbest.serve.telemetry import Metrics

SENSITIVE = '[sensitive]\nattributes = ["age_band"]\nallow_in_rules = ["age_band"]\n'
SENSITIVE += 'allow_in_features = ["age_band"]\n'


def declare(project: Path) -> State:
    """Put the section into the policy, and return what would go live."""
    path = project / "serving" / "policy.toml"
    path.write_text(SENSITIVE + path.read_text())
    return load_state(project)


def verdict(state: State, passed: bool, **other: Any) -> Approval:
    about = {"policy": state.rules.content_hash, "catalogue": state.offers.content_hash, **other}
    said = "Reach is equal." if passed else "age_band = old has 61% of the reach of young."
    return Approval(
        "bias", **about, passed=passed, said=said, numbers={"lowest": 0.61},
        at=datetime(2020, 3, 2, tzinfo=UTC),
    )  # fmt: skip


@pytest.fixture
def server(project: Path) -> Iterator[tuple[Runtime, Metrics]]:
    with running(project) as started:
        yield started


def test_only_a_policy_with_sensitive_attributes_needs_a_bias_report(project: Path) -> None:
    assert approvals.required_of(load_state(project).rules) == ()
    state = declare(project)
    assert approvals.required_of(state.rules) == ("bias",)
    edit(project / "serving" / "policy.toml", "[sensitive]", "[sensitive]\nrequired = false")
    assert approvals.required_of(load_state(project).rules) == ()


def test_a_policy_goes_live_with_its_approval(
    project: Path, server: tuple[Runtime, Metrics]
) -> None:
    runtime, metrics = server
    before = runtime.state()
    new = declare(project)
    runtime.reload()
    assert runtime.state() is before
    ready, detail = runtime.parts()["configuration"]
    assert ready and "the last good one stays" in detail and "Run `nextbest bias`" in detail
    reason = {"part": "configuration", "reason": "gate-refused"}
    assert value(metrics, "nextbest_reload_failures_total", **reason) == 1

    approvals.keep(project, verdict(new, passed=False))
    runtime.reload()
    assert runtime.state() is before
    assert "61% of the reach" in runtime.parts()["configuration"][1]

    approvals.keep(project, verdict(new, passed=True))
    runtime.reload()
    assert runtime.state().rules.content_hash == new.rules.content_hash
    assert "stays" not in runtime.parts()["configuration"][1]


def test_an_approval_is_for_one_policy_with_one_catalogue(project: Path) -> None:
    state = declare(project)
    approvals.keep(project, verdict(state, passed=True))
    approvals.require_approved(project, state.offers, state.rules)
    edit(project / "serving" / "offers.toml", "contact_cost = 0.1", "contact_cost = 0.2")
    other = load_state(project)
    with pytest.raises(GateRefusal, match="has no approval of kind bias"):
        approvals.require_approved(project, other.offers, other.rules)


def test_a_record_is_read_back_as_it_was_written(project: Path) -> None:
    state = declare(project)
    assert approvals.find(project, "bias", state.offers, state.rules) is None
    first, second = verdict(state, passed=True), verdict(state, passed=False)
    for one in (first, second):  # the newest holds
        approvals.keep(project, one)
        assert approvals.find(project, "bias", state.offers, state.rules) == one


@pytest.mark.parametrize(
    "spoil",
    [
        lambda raw: "{",
        lambda raw: json.dumps([]),
        lambda raw: json.dumps({**raw, "passed": "yes"}),
        lambda raw: json.dumps({**raw, "policy": "0" * 64}),
        lambda raw: json.dumps({**raw, "kind": "evaluation"}),
        lambda raw: json.dumps({k: v for k, v in raw.items() if k != "at"}),
    ],
)
def test_a_damaged_record_approves_nothing(project: Path, spoil: Any) -> None:
    state = declare(project)
    path = approvals.keep(project, verdict(state, passed=True))
    path.write_text(spoil(json.loads(path.read_text())))
    with pytest.raises(GateRefusal, match=r"cannot be read.*Run `nextbest bias`"):
        approvals.require_approved(project, state.offers, state.rules)


def test_the_first_policy_of_all_waits_for_its_approval(project: Path) -> None:
    new = declare(project)
    with running(project) as (runtime, _):
        with pytest.raises(Problem):
            runtime.state()
        assert "Run `nextbest bias`" in runtime.parts()["configuration"][1]
        approvals.keep(project, verdict(new, passed=True))
        runtime.reload()
        assert runtime.state().rules.content_hash == new.rules.content_hash


@pytest.mark.parametrize(
    ("section", "says"),
    [
        ('attributes = ["age", "age"]', 'attributes names "age" twice'),
        ('attributes = ["age"]\nallow_in_rules = ["agee"]', 'Did you mean "age"?'),
        ('attributes = ["age"]\nbins = {income = [1.0]}', 'bins names "income"'),
        ('attributes = ["age"]\nbins = {age = [30, 20]}', "out of order"),
        ('attributes = ["age"]\nlimits = {reach_ratio = 1.5}', "reach_ratio"),
    ],
)
def test_what_makes_no_sense_is_said(tmp_path: Path, section: str, says: str) -> None:
    path = tmp_path / "policy.toml"
    path.write_text(f"[channels.mail]\n[sensitive]\n{section}\n")
    with pytest.raises(ConfigError, match=says.replace("?", r"\?")):
        Policy.load(path)
