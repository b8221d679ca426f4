"""The demo on the toy shop, as a person sees it; on real data: ``test_complete_journey.py``."""

from __future__ import annotations

import json
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from commands import Run
from test_project import edit

from nextbest import demo, jobs
from nextbest.errors import Fault, GateRefusal, StoreError
from nextbest.project import Project


def test_a_person_sees_steps_tables_one_exchange_and_a_summary(cli: Run, trainable: Path) -> None:
    ran = cli("demo", "--project", trainable)
    assert ran.code == 0, ran.err
    steps = [line for line in ran.err.splitlines() if line.startswith("… ")]
    for step in ("check project and data", "propensity: fit", "churn: log and register",
                 "profiles of all customers", "serve one decision over HTTP"):  # fmt: skip
        assert f"… {step}" in steps
    assert steps == ran.err.splitlines()
    places = [
        ran.out.index(text)
        for text in (
            "\n transactions ", "propensity version 1 on ", "clv version 1 on ",
            "Decisions for 300 customers", "\nPOST http://127.0.0.1:", '"customer_id": "c',
            "\n200 after ", '"offers": [', "\nDone in ", "\n  rows  ", "\n  offers  ",
            "\nNext:",
        )
    ]  # fmt: skip
    assert places == sorted(places)
    # The toy shop's gate for hvc always refuses: the demo says so, and goes on.
    assert 'hvc version 1: gate "min_positives" refuses promotion: ' in ran.out
    assert "hvc has no champion, so its score stays unknown." in ran.out
    assert "churn version 1 passed its gates and is champion." in ran.out
    assert max(len(line) for line in ran.out.splitlines() if "│" in line) <= 80
    # Again: versions are added, and the decision served is the same, though it was made before.
    first = ran.out.partition("\n200 after ")[2].partition("\n")[2].partition("\nDone in")[0]
    project = Project.open(trainable)
    exchange = demo._serve_one(project, trainable / ".nextbest/decisions/decisions.parquet", "mail")
    assert exchange["answer"]["offers"] == json.loads(first)["offers"]


def refusing(*_: object, **__: object) -> None:
    raise GateRefusal(faults=[Fault("version 2", "a gate refuses")])


def trained(name: str) -> Any:
    return SimpleNamespace(model=SimpleNamespace(name=name), version=2)


def registry(champion: int | None) -> Any:
    return SimpleNamespace(champion=lambda _: champion and SimpleNamespace(version=champion))


def test_where_a_gate_refuses_the_last_champion_stays(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(jobs, "promote", refusing)
    results = [trained("propensity"), trained("churn")]
    found = demo._promote(None, registry(1), results)  # type: ignore[arg-type]
    assert found["propensity"] == {"champion": 1, "refused": ["version 2: a gate refuses."]}
    assert list(demo._promoted(found)) == [
        "version 2: a gate refuses.", "propensity goes on with its last champion, version 1.",
        "version 2: a gate refuses.", "churn goes on with its last champion, version 1.",
    ]  # fmt: skip


def test_without_a_champion_for_propensity_the_demo_stops(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(jobs, "promote", refusing)
    assert demo._promote(None, registry(None), [trained("churn")])  # type: ignore[arg-type]
    with pytest.raises(GateRefusal, match="without a champion for propensity") as stopped:
        demo._promote(None, registry(None), [trained("propensity")])  # type: ignore[arg-type]
    assert str(stopped.value).startswith("version 2: a gate refuses.")


def test_faults_stop_the_demo_before_any_work(cli: Run, fresh: Path) -> None:
    edit(fresh, "serving/offers.toml", 'goal = "retain"', 'goal = "keep"')
    edit(fresh, "training/training.toml", "seed = 7", "seed = -7")
    ran = cli("demo", "--project", fresh, "--json")
    assert ran.code == 1
    assert len(ran.json["error"]["faults"]) == 2
    assert not (fresh / ".nextbest" / "mlflow.db").exists()


def test_a_server_that_does_not_start_is_reported_with_what_it_said(fresh: Path) -> None:
    (fresh / ".nextbest").mkdir()
    with (
        pytest.raises(StoreError, match=r"the API did not start\. Got .*nothing to serve yet"),
        demo._server(Project.open(fresh)),
    ):
        pass
