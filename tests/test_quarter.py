"""`nextbest demo --loop` on the toy shop: everything simulated says so, and the truth is found."""

from __future__ import annotations

import json
import os
import shutil
import tomllib
from contextlib import closing
from datetime import timedelta
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pyarrow.parquet as pq
import pytest
from commands import Ran, Toy, run_cli

from nextbest import demo, quarter, show
from nextbest.errors import UsageError
from nextbest.project import Project
from nextbest.serve.runtime import load_state
from nextbest.serve.store import Store
from nextbest.simulate.answers import MARGIN_SHARE, MARK, WINDOW_DAYS, Answers, truth_of


@pytest.fixture(scope="module")
def root(toy: Toy, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A trained toy shop of our own, with a decision in its store."""
    home = tmp_path_factory.mktemp("quarter") / "shop"
    shutil.copytree(toy.root, home)
    ran = run_cli("decide", "--record", "--channel", "mail", "--project", home, "--json")
    assert ran.code == 0, ran.err
    return home


def stored(root: Path) -> tuple[Any, ...]:
    with closing(Store.at(root / ".nextbest" / "store.db")) as store:
        decided = [d.decision_id for part in store.decision_parts(5_000) for d in part]
        return sorted(decided), [o for part in store.outcome_parts(5_000) for o in part]


@pytest.fixture(scope="module")
def before(root: Path) -> dict[str, Any]:
    rooms = {str(p): p.read_bytes() for p in sorted((root / "serving").glob("*"))}
    return {"store": stored(root), "rooms": rooms}


@pytest.fixture(scope="module")
def ran(root: Path, before: dict[str, Any]) -> Ran:
    return run_cli("demo", "--loop", "--json", "--project", root)


@pytest.fixture(scope="module")
def found(ran: Ran) -> dict[str, Any]:
    assert ran.code == 0, ran.err
    assert ran.json.keys() == {"simulated_quarter"}  # what is served already is not trained again
    return dict(ran.json["simulated_quarter"])


def figure(found: dict[str, Any], name: str) -> dict[str, Any]:
    (row,) = [f for f in found["figures"] if f["name"] == name]
    return dict(row)


def test_the_intervals_hold_the_truth(found: dict[str, Any]) -> None:
    assert [f["name"] for f in found["figures"]] == ["revenue", "margin", "changed policy"]
    for row in found["figures"]:
        assert row["inside"] is (row["low"] <= row["truth"] <= row["high"]) is True
        assert row["low"] < row["value"] < row["high"]
    assert figure(found, "revenue")["truth"] > 0


def test_the_verdict_on_the_changed_policy_is_right(found: dict[str, Any]) -> None:
    gain = figure(found, "changed policy")
    assert gain["truth"] > 0  # chance costs money here, so less of it earns more
    assert found["call"] in ("ship", "test further"), found["verdict"]
    assert (found["call"] == "ship") is (gain["low"] > 0)
    changed, own = (tomllib.loads(Path(found["files"][name]).read_text())["exploration"]
                    for name in ("changed_policy", "policy"))  # fmt: skip
    assert changed["epsilon"] < own["epsilon"]


def test_what_was_measured_is_what_the_store_holds(found: dict[str, Any]) -> None:
    """The difference of the arms, added up by hand from outcomes, contacts and their costs."""
    with closing(Store.at(Path(found["files"]["store"]))) as store:
        decisions = [d for part in store.decision_parts(5_000) for d in part]
        told = [o for part in store.outcome_parts(5_000) for o in part]
    arm = {d.customer_id: d.arm for d in decisions}
    sizes = {name: sum(a == name for a in arm.values()) for name in found["arms"]}
    assert sizes == found["arms"] and len(decisions) == found["decisions"] == 9 * len(arm)
    spent = {name: sum(o.value for o in told if arm[o.customer_id] == name) for name in sizes}
    mean = {name: spent[name] / n for name, n in sizes.items()}
    revenue = figure(found, "revenue")["value"]
    assert revenue == pytest.approx(mean["policy"] - mean["holdout"])
    assert not any(d.contacts for d in decisions if d.arm == "holdout")


def test_all_of_it_says_that_it_is_simulated(
    found: dict[str, Any], capsys: pytest.CaptureFixture[str]
) -> None:
    assert found["simulated"] is True
    files = {name: Path(path) for name, path in found["files"].items()}
    for name in ("policy", "changed_policy"):
        assert files[name].read_text().startswith("# SIMULATED QUARTER")
    assert (files["folder"] / "serving/offers.toml").read_text().startswith("# SIMULATED QUARTER")
    assert "Simulated outcomes: responses and purchases" in files["report"].read_text()
    facts = json.loads((files["report"].parent / "report.json").read_text())
    assert facts["simulated"] is True and facts["contacts_from"] == "log"
    _, outcomes = stored(files["folder"])
    assert outcomes and all(o.outcome_id.startswith(MARK) for o in outcomes)
    lines = pq.read_table(files["folder"] / ".nextbest" / "simulated-purchases.parquet")
    assert {name[: len(MARK)] for name in lines["order_id"].to_pylist()} == {MARK}
    assert json.loads((files["folder"] / "simulated.json").read_text())["simulated"] is True
    show.out(*show.quarter(found))
    said = capsys.readouterr().out
    assert "A SIMULATED QUARTER from 2023-11-30" in said
    assert "the truth that only a simulation knows" in said and str(files["report"]) in said
    assert max(len(line) for line in said.splitlines() if "│" in line) <= 80


def test_nothing_of_the_project_is_touched(
    found: dict[str, Any], root: Path, before: dict[str, Any]
) -> None:
    assert before["store"][0]  # there was something to spoil
    assert stored(root) == before["store"]
    assert {str(p): p.read_bytes() for p in sorted((root / "serving").glob("*"))} == before["rooms"]


def test_the_same_seed_gives_the_same_quarter_whatever_store_is_set(
    found: dict[str, Any], root: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    url = f"sqlite:///{tmp_path / 'live.db'}"
    monkeypatch.setenv("NEXTBEST_STORE", url)
    monkeypatch.setattr(quarter, "_report", lambda *_: Path(found["files"]["report"]))
    project = Project.open(root)
    again = quarter.play(project, None, lambda _: None).to_dict()  # type: ignore[arg-type]
    # Sums of floats come in the order of the database's threads.
    for one, other in zip(again["figures"], found["figures"], strict=True):
        assert one == pytest.approx(other)
    for name in found.keys() - {"seconds", "figures", "verdict"}:
        assert again[name] == found[name], name
    assert not (tmp_path / "live.db").exists()
    assert os.environ["NEXTBEST_STORE"] == url


def test_what_customers_do_is_on_average_the_truth(root: Path) -> None:
    """Thirty quarters of one week's contacts: bought in all, less what theory says, in its σ."""
    start = quarter._first(Project.open(root))
    first = quarter._decisions(load_state(root), start, None, None)
    truth = truth_of(first, 5)
    assert ((truth.left_alone <= truth.contacted) & (truth.contacted < 1)).all()
    unasked = -np.log(1 - truth.left_alone) * 91 / WINDOW_DAYS
    surprises = []
    for seed in range(30):
        answers = Answers(truth, start, 91, seed)
        made = answers.contact(first, 0)
        told = answers.until(start + timedelta(days=91), truth.customer_ids)
        expected = unasked + made * (truth.contacted - truth.left_alone)
        price = truth.margin / MARGIN_SHARE
        sigma = np.sqrt((expected * price**2).sum())
        surprises.append((sum(o.value for o in told) - (expected * price).sum()) / sigma)
        effects = dict(answers.effects(made))
        assert effects["revenue"] * len(truth.customer_ids) == pytest.approx(
            (made * (truth.contacted - truth.left_alone) * price).sum()
        )
        assert effects["margin"] * len(truth.customer_ids) == pytest.approx(
            (made * truth.profit).sum()
        )
        assert not answers.until(start + timedelta(days=500), truth.customer_ids)
    assert abs(np.mean(surprises)) < 3 / np.sqrt(30) and 0.6 < np.std(surprises) < 1.4


def test_a_policy_with_a_holdout_of_its_own_is_refused() -> None:
    own = '[holdout]\nsalt = "sixteen letters at least"\nshare = 0.1\n'
    with pytest.raises(UsageError, match=r"a holdout or exploration of its own.*\[holdout\]"):
        quarter._policies(own, 1)
    text = quarter._policies("[clock]\ndecide_as_of = 2023-12-01\n", 1)["policy.toml"]
    assert tomllib.loads(text)["clock"] == {}
    assert tomllib.loads(text)["holdout"]["share"] == quarter.HOLDOUT


def test_where_nothing_is_served_the_demo_comes_first(
    fresh: Path, found: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    told: list[Any] = []

    def play(_: Project, history: Any, __: Any) -> Any:
        told.append(history)
        return SimpleNamespace(to_dict=lambda: found)

    monkeypatch.setattr(demo, "_job", lambda *_: ({"seconds": 1}, "its history"))
    monkeypatch.setattr(quarter, "play", play)
    ran = run_cli("demo", "--loop", "--json", "--project", fresh)
    assert ran.json == {"seconds": 1, "simulated_quarter": found}
    assert told == ["its history"]  # checked once, not twice
