"""Sensitive attributes: refused where rules or models read them; what groups get is reported."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet
import pytest
from fastapi.testclient import TestClient
from shop import CUSTOMERS, NOW, frames
from test_runtime import edit
from typer.testing import CliRunner

from nextbest.cli import app
from nextbest.cli.bias import approval_of, examine
from nextbest.decide.contact import ContactHistory
from nextbest.errors import ConfigError
from nextbest.serve import approvals
from nextbest.serve.api import create_app
from nextbest.serve.batch import decide_batch, situation_for
from nextbest.serve.replay import replay
from nextbest.serve.runtime import load_state, open_store

ALLOWED = {"allow_in_rules": ["age_band"], "allow_in_features": ["age_band"]}


def declare(project: Path, **fields: Any) -> None:
    """Declare age_band sensitive."""
    path = project / "serving" / "policy.toml"
    lines = {"attributes": ["age_band"], **fields}
    section = "".join(f"{name} = {json.dumps(value)}\n" for name, value in lines.items())
    path.write_text(f"{path.read_text()}\n[sensitive]\n{section}")


def test_models_may_not_read_one_unless_allowed(project: Path) -> None:
    declare(project, allow_in_rules=["age_band"])
    with pytest.raises(ConfigError) as refused:
        load_state(project)
    said = [str(fault) for fault in refused.value.faults]
    assert len(said) == 2
    for line, model in zip(sorted(said), ("churn", "propensity"), strict=True):
        assert f'model "{model}" reads the sensitive attribute "age_band"' in line
        assert f"exclude of models/{model}.py" in line


@pytest.mark.parametrize(
    ("file", "old", "new", "where"),
    [
        ("offers.toml", "", "", 'offers.toml: offer "b": eligibility'),
        (
            "policy.toml",
            "when = \"weather = 'rain'\"",
            "when = \"age_band = 'old'\"",
            "[context_weights]",
        ),
        (
            "policy.toml",
            "[fallback]",
            '[suitability]\n"for the young" = "age_band = \'young\'"\n[fallback]',
            'policy.toml: [suitability]: suitability rule "for the young"',
        ),
        (
            "policy.toml",
            "[fallback]",
            "[arbitration]\nobjective = \"case when age_band = 'old' then 1 else 2 end\"\n"
            "[fallback]",
            "policy.toml: [arbitration]: objective",
        ),
        (
            "offers.toml",
            "margin_rate * offer_spend",
            "case when age_band = 'old' then 1 else 2 end",
            "offers.toml: [defaults]: margin",
        ),
    ],
)
def test_rules_may_not_read_one_unless_allowed(
    project: Path, file: str, old: str, new: str, where: str
) -> None:
    edit(project / "serving" / file, old, new)
    load_state(project)  # it is the declaration alone that forbids it
    declare(project, allow_in_features=["age_band"])
    with pytest.raises(ConfigError) as refused:
        load_state(project)
    (line,) = [str(f) for f in refused.value.faults if where in str(f)]
    assert 'reads the sensitive attribute "age_band"' in line and "allow_in_rules" in line
    edit(
        project / "serving" / "policy.toml",
        "[sensitive]",
        '[sensitive]\nallow_in_rules = ["age_band"]',
    )
    load_state(project)


def test_an_attribute_is_a_column(project: Path) -> None:
    declare(project, attributes=["age_bond"])
    with pytest.raises(ConfigError, match='Did you mean "age_band"'):
        load_state(project)


def test_bins_are_for_numbers(project: Path) -> None:
    path = project / "serving" / "policy.toml"
    declare(project, **ALLOWED)
    path.write_text(path.read_text() + "bins = {age_band = [1.0]}\n")
    with pytest.raises(ConfigError, match="about a number; got a string"):
        load_state(project)


def test_the_report_counts_what_a_batch_decides(project: Path, tmp_path: Path) -> None:
    """Every figure, counted again from the batch's own file and the shop's own table."""
    declare(project, **ALLOWED, smallest_group=10)
    state, store = load_state(project), open_store(project)
    facts = examine(state, store, "email")
    file = tmp_path / "decisions.parquet"
    decide_batch(state, situation_for(state, "email", now=NOW), file, store=store)
    store.close()
    rows = pyarrow.parquet.read_table(file).to_pandas()
    ages = dict(zip(CUSTOMERS, frames().customers["age_band"], strict=True))
    rows["age"] = rows["customer_id"].map(ages).fillna("unknown")
    (report,) = facts["channels"]["email"]["attributes"]
    assert report["attribute"] == "age_band"
    assert set(report["groups"]) == {"young", "old", "unknown"}
    for group, told in report["groups"].items():
        own = rows[rows["age"] == group]
        assert told["customers"] == len(own) == 20
        assert told["reach"]["value"] == pytest.approx((own["rank"] > 0).mean())
        profit = own["expected_profit"].fillna(0).sum() / len(own)
        assert told["value"]["value"] == pytest.approx(profit)
        for offer, figures in told["offers"].items():
            assert figures["value"] == pytest.approx((own["offer_id"] == offer).mean())
    # E-mail needs consent, which only the young gave: nobody else is reached.
    assert report["groups"]["old"]["reach"]["verdict"] == "below"
    assert report["groups"]["old"]["reach"]["ratio"]["value"] == 0
    approval = approval_of(state, facts)
    assert not approval.passed
    assert "Reach of age_band = old on email is 0%" in approval.said
    named = [one["feature"] for one in facts["proxies"]["age_band"]]
    assert "likes_mail" in named  # consent goes with age in this shop, by construction


def test_the_mean_propensity_is_over_the_offers_that_run(project: Path) -> None:
    declare(project, **ALLOWED, smallest_group=10)
    state = load_state(project)
    facts = examine(state, None, "mail")
    (report,) = facts["channels"]["mail"]["attributes"]
    audience = state.shaper.audience(CUSTOMERS, ContactHistory.empty())
    live = [state.offers.offer_ids.index(name) for name in ("a", "b")]  # c has ended
    young = audience.columns["age_band"] == "young"
    expected = float(np.mean(audience.propensity[np.ix_(young, live)]))
    assert report["groups"]["young"]["propensity"]["value"] == pytest.approx(expected)


def run(*args: str) -> tuple[int, dict[str, Any]]:
    found = CliRunner().invoke(app, [*args, "--json"])
    return found.exit_code, json.loads(found.stdout) if found.stdout else {}


def test_the_command_refuses_then_approves(project: Path) -> None:
    for room in ("models", "training"):
        (project / room).mkdir()
    declare(project, **ALLOWED, smallest_group=10)
    root = ["bias", "--project", str(project)]
    code, facts = run(*root)
    assert (code, facts["passed"], facts["kept"]) == (1, False, True)
    assert set(facts["channels"]) == {"mail", "email"}
    # Consent is nobody's to change; what the policy can do is offer to both by mail alone.
    edit(project / "serving" / "offers.toml", '["mail", "email"]', '["mail"]')
    edit(
        project / "serving" / "policy.toml", '[channels.email]\nconsent_column = "likes_mail"\n', ""
    )
    edit(
        project / "serving" / "offers.toml", "eligibility = \"age_band = 'old' or likes_mail\"", ""
    )
    code, facts = run(*root, "--channel", "mail")
    assert (code, facts["passed"], facts["kept"]) == (0, True, False)
    state = load_state(project)
    assert approvals.find(project, "bias", state.offers, state.rules) is None
    code, facts = run(*root)
    assert (code, facts["passed"], facts["kept"]) == (0, True, True)
    approvals.require_approved(project, state.offers, state.rules)


def test_without_attributes_there_is_nothing_to_examine(project: Path) -> None:
    with pytest.raises(ConfigError, match=r"\[sensitive\] attributes = \[\.\.\.\]"):
        examine(load_state(project), None)


def test_a_policy_with_attributes_is_replayed(project: Path) -> None:
    """A record holds no more of a person than the decision read; the archive knows the rest."""
    edit(
        project / "serving" / "offers.toml", "eligibility = \"age_band = 'old' or likes_mail\"", ""
    )
    declare(project, allow_in_features=["age_band"], required=False)
    state = load_state(project)
    assert state.rules.tables.sensitive.attributes == ("age_band",)
    with TestClient(create_app(project, insecure=True, clock=lambda: NOW)) as fresh:
        made = fresh.post("/v1/decisions", json={"customer_id": "c01", "channel": "mail"}).json()
    store = open_store(project)
    assert replay(project, store, made["decision_id"]).verdict == "identical"
    store.close()
