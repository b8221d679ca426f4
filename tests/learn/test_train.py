"""Training on the toy shop: nothing after the cut reaches a model, and what a run keeps.

What the four models reach on real data stands in ``tests/test_complete_journey.py``.
"""

from __future__ import annotations

import json
import shutil
from dataclasses import dataclass, replace
from datetime import datetime
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
import toyshop
from kept import NAMES, Kept, run
from lightgbm import LGBMClassifier
from sklearn.linear_model import LogisticRegression
from sklearn.metrics import average_precision_score, brier_score_loss, roc_auc_score

from nextbest.data import snapshots
from nextbest.data.contract import TABLES, History
from nextbest.data.labels import NoPurchase
from nextbest.errors import DataError
from nextbest.learn import artifact
from nextbest.learn.baselines import SingleFeature
from nextbest.learn.clv import (
    BetaGeoNBD,
    CustomerLifetimeValue,
    GammaGamma,
    ModifiedBetaGeoNBD,
    ParetoNBD,
)
from nextbest.learn.drift import DriftLimits
from nextbest.learn.estimators import blend, linear, seeded
from nextbest.learn.leakage import LeakageLimits
from nextbest.learn.train import TrainResult
from nextbest.project import Project

ROOT = Path(__file__).parents[2]


# ------------------------------------------------------------------ on the toy shop


@dataclass(frozen=True)
class Toy:
    project: Project
    history: History
    kept: Kept
    results: dict[str, TrainResult]
    steps: list[str]


@pytest.fixture(scope="module")
def toy(tmp_path_factory: pytest.TempPathFactory) -> Toy:
    folder = tmp_path_factory.mktemp("toy")
    project = Project.open(toyshop.write(folder / "shop"))
    history, kept = project.history(), Kept(folder / "kept")
    steps: list[str] = []
    results = run(project, history, kept, *NAMES, progress=steps.append)
    return Toy(project, history, kept, results, steps)


def after(history: History, cut: datetime) -> History:
    """The same past with another future: from the cut on, half of the customers do nothing."""
    changed = {}
    for name, table in history.tables.items():
        if name in ("transactions", "responses"):
            at = str(TABLES[name].event_time)
            number = table.customer_id.substr(1).cast("int64")
            table = table.filter((table[at] < cut) | (number % 2 == 0))
        changed[name] = table
    return replace(history, tables=changed)


@pytest.mark.parametrize("name", ["propensity", "churn", "clv"])
def test_nothing_that_happens_after_the_cut_reaches_a_model(
    toy: Toy, name: str, tmp_path: Path
) -> None:
    other = Kept(tmp_path)
    cut = toy.results[name].plan.cut
    run(toy.project, after(toy.history, cut), other, name)
    assert other.model_bytes(name) == toy.kept.model_bytes(name)
    # The future did change: the same model is now held against other outcomes.
    before, now = toy.kept.scores(name), other.scores(name)
    keys = [k for k in ("customer_id", "offer_id", "as_of") if k in now]
    both = before.merge(now, on=keys, suffixes=("", "_now"))
    assert len(both) > 100
    assert (both.label != both.label_now).any()
    if name != "propensity":  # whose test rows lie after the cut, with features of their own
        assert (both.score == both.score_now).all()


@pytest.mark.parametrize("name", NAMES[:3])
def test_figures_are_those_of_the_rows_that_the_run_keeps(toy: Toy, name: str) -> None:
    result, rows = toy.results[name], toy.kept.scores(name)
    assert len(rows) == result.counts["n_test"]
    assert rows.label.sum() == result.counts["n_positive"]
    assert (rows.as_of >= result.plan.cut).all()
    for column, metrics in (("score", result.metrics), ("baseline", result.baseline_metrics)):
        for metric, recount in (("auc", roc_auc_score), ("brier", brier_score_loss),
                                ("average_precision", average_precision_score)):  # fmt: skip
            found = metrics[metric]
            assert found.value == pytest.approx(recount(rows.label, rows[column]), rel=1e-9)
            assert found.low < found.value < found.high
    gain = result.metrics["auc"].value - result.baseline_metrics["auc"].value
    assert result.difference.value == pytest.approx(gain, rel=1e-9)


def test_the_value_models_figures_are_those_of_its_rows(toy: Toy) -> None:
    result, rows = toy.results["clv"], toy.kept.scores("clv")
    assert set(rows.as_of) == {result.plan.cut}
    error = (rows.score - rows.label).abs().mean()
    assert result.metrics["mae"].value == pytest.approx(error, rel=1e-9)
    ratio = rows.score.sum() / rows.label.sum()
    assert result.metrics["aggregate_ratio"].value == pytest.approx(ratio, rel=1e-9)
    inside = ((rows.label >= rows.low) & (rows.label <= rows.high)).mean()
    assert result.metrics["interval_coverage"].value == pytest.approx(inside, rel=1e-9)
    line = (rows.baseline - rows.label).abs().mean()
    assert result.baseline_metrics["mae"].value == pytest.approx(line, rel=1e-9)
    assert result.difference.value == pytest.approx(error - line, rel=1e-9)


@pytest.mark.parametrize("name", NAMES)
def test_what_is_stored_scores_the_test_rows_as_the_run_did(toy: Toy, name: str) -> None:
    result, project = toy.results[name], toy.project
    model = artifact.load(toy.kept.folder / name / "artifact")
    label, groups = result.model.label, result.model.groups(project.groups)
    moments = (*result.plan.train_as_of, *result.plan.test_as_of)
    if name == "clv":
        label, groups, moments = (
            type(label)(result.plan.evaluation_days),
            groups,
            (result.plan.cut,),
        )
    snapshot = snapshots.build(toy.history, label, groups, moments)
    split = snapshots.time_split(snapshot.frame, result.plan.cut)
    rows = toy.kept.scores(name)
    assert snapshot.frame[split.test].customer_id.tolist() == rows.customer_id.tolist()
    found = model.scores(snapshot.frame.loc[split.test, list(model.columns)])
    if name == "clv":  # served over another horizon, discounted: the order is that of the test
        assert (found["clv"] > 0).all()
        assert set(found) == {"clv", "clv_low", "clv_high", "p_alive"}
    else:
        np.testing.assert_allclose(found["score"], rows.score, atol=1e-12)
        counts = result.counts
        assert counts["n_train"] == split.train.sum()
        assert counts["n_in_gap"] == split.in_gap
        assert counts["n_train"] + counts["n_in_gap"] + counts["n_test"] == len(snapshot.frame)
        assert counts["n_train_positive"] == snapshot.frame.label[split.train].sum()
        assert counts["n_features"] == len(model.columns)


def test_a_run_keeps_what_a_reader_needs(toy: Toy) -> None:
    for name, result in toy.results.items():
        folder = toy.kept.folder / name
        assert json.loads((folder / "result.json").read_text()) == json.loads(
            json.dumps(result.to_dict() | {"run_id": "", "version": 0})
        )
        assert (folder / "model_card.md").read_text().startswith(f"# {name}\n")
        assert (result.run_id, result.version) == (f"run of {name}", 3)
        logged = toy.kept.logged[name]
        assert logged["params"]["seed"] == toy.project.settings.seed
        assert logged["params"]["cut"] == result.plan.cut.isoformat()
        assert logged["metrics"]["test"] == result.metrics
        assert logged["baseline"].name == result.model.baseline.name
        assert logged["counts"] == result.counts
        assert logged["dataset"].name == "shop"
        assert logged["dataset"].digest == toy.history.snapshot_hash()
        assert json.loads(logged["tags"]["nextbest.gates"]) == [g.to_dict() for g in result.gates]
        assert result.verdict


def test_the_steps_are_told_as_they_begin(toy: Toy) -> None:
    starts = [i for i, step in enumerate(toy.steps) if step == "features and labels"]
    ends = [i for i, step in enumerate(toy.steps) if step == "log and register"]
    assert (len(starts), starts[0], ends[-1]) == (4, 0, len(toy.steps) - 1)
    for start, end in zip(starts, ends, strict=True):
        told = toy.steps[start : end + 1]
        assert len(told) == len(set(told)) >= 5


# ------------------------------------------------------------------ leaks


def gate(result: TrainResult, name: str) -> Any:
    (found,) = [g for g in result.gates if g.gate == name]
    return found


def test_what_the_shop_reads_every_day_is_no_leak(toy: Toy) -> None:
    for name in ("propensity", "churn", "hvc"):
        found = gate(toy.results[name], "leakage")
        assert found.passed and found.message.endswith("features knows more than it should")
    assert "leakage" not in [g.gate for g in toy.results["clv"].gates]


MOMENTS = (datetime(2023, 7, 31), datetime(2023, 8, 1))


@pytest.fixture(scope="module")
def leaking(toy: Toy, tmp_path_factory: pytest.TempPathFactory) -> tuple[Project, History]:
    """The toy shop whose customer table says when each comes back: what no moment before knew."""
    root = tmp_path_factory.mktemp("leaking") / "shop"
    shutil.copytree(toy.project.root, root)
    bought = pd.read_parquet(root / "data" / "transactions.parquet")
    later = bought[bought["ordered_at"] > MOMENTS[1]]
    back = later.groupby("customer_id")["ordered_at"].min()
    people = pd.read_csv(root / "data" / "customers.csv")
    days = (people["customer_id"].map(back) - MOMENTS[1]).dt.days.fillna(999)
    people.assign(account_age_days=days).to_csv(root / "data" / "customers.csv", index=False)
    project = Project.open(root)
    return project, project.history()


def test_a_column_written_after_the_outcome_is_refused_by_name_until_accepted(
    leaking: tuple[Project, History], tmp_path: Path
) -> None:
    project, history = leaking
    model = {"features": ("rfm", "windows", "demographics")}
    kept = Kept(tmp_path / "first")
    once = {"train_as_of": MOMENTS}
    result = run(project, history, kept, "churn", model=model, plan=once)["churn"]
    refused = gate(result, "leakage")
    assert not refused.passed
    assert refused.message.startswith("account_age_days: ") and "AUC" in refused.message
    card = (tmp_path / "first" / "churn" / "model_card.md").read_text()
    assert f"- FAILED leakage: {refused.message}" in card
    assert not {g["gate"]: g for g in json.loads(kept.logged["churn"]["tags"]["nextbest.gates"])}[
        "leakage"
    ]["passed"]
    plan = {
        **once,
        "leakage": LeakageLimits(accepted=("account_age_days",)),
        "accepted": {"account_age_days": "the account's age at the visit, says the shop"},
    }
    again = run(project, history, Kept(tmp_path / "second"), "churn", model=model, plan=plan)
    passed = gate(again["churn"], "leakage")
    assert passed.passed
    assert "accepted as they are: account_age_days (the account's age at the visit" in (
        passed.message
    )


def test_rows_that_cannot_show_a_leak_fail_the_gate_and_say_why(toy: Toy, tmp_path: Path) -> None:
    plan = {"train_as_of": (datetime(2022, 3, 1),)}
    label = NoPurchase(30, 7)
    result = run(toy.project, toy.history, Kept(tmp_path), "churn",
                 plan=plan, model={"label": label})["churn"]  # fmt: skip
    assert 0 < result.counts["n_train_positive"] < 20
    found = gate(result, "leakage")
    assert not found.passed
    assert found.message.startswith("leakage: too few rows of one outcome to judge by")


def test_what_moved_by_the_test_refuses_where_the_owner_wants_it(toy: Toy, tmp_path: Path) -> None:
    assert "drift" not in [g.gate for g in toy.results["churn"].gates]
    strict = {"drift": DriftLimits(psi_watch=0.0, psi_alarm=0.0, alpha=1.0), "drift_gate": "alarm"}
    result = run(toy.project, toy.history, Kept(tmp_path), "churn", plan=strict)["churn"]
    found = gate(result, "drift")
    assert not found.passed and "PSI" in found.message
    lax = {"drift": DriftLimits(psi_watch=9.0, psi_alarm=9.0), "drift_gate": "watch"}
    result = run(toy.project, toy.history, Kept(tmp_path / "2"), "churn", plan=lax)["churn"]
    assert gate(result, "drift").passed


# ------------------------------------------------------------------ tuning and choosing

SPACE = {"logistic__C": {"low": 0.0001, "high": 10.0, "log": True}}


def test_the_search_sees_nothing_after_the_cut_and_its_choice_is_trained(
    toy: Toy, tmp_path: Path
) -> None:
    pytest.importorskip("optuna", reason='pip install "nextbest[tune]"')
    cut = toy.results["churn"].plan.cut
    steps: list[str] = []
    first, other = Kept(tmp_path / "first"), Kept(tmp_path / "other")
    # As defined it is far too strict, so that there is something to find.
    changes = {"plan": {"search": SPACE}, "trials": 4, "model": {"estimator": linear(C=1e-6)}}
    result = run(toy.project, toy.history, first, "churn", progress=steps.append, **changes)
    scrambled = run(toy.project, after(toy.history, cut), other, "churn", **changes)
    found, same = result["churn"].tuning, scrambled["churn"].tuning
    assert found is not None and same is not None
    assert found.to_dict() == same.to_dict()
    assert (first.scores("churn").label.to_numpy() != other.scores("churn").label.to_numpy()).any()
    assert first.model_bytes("churn") == other.model_bytes("churn")
    # The choice is better on the folds, is what was fitted, and is written down.
    assert found.best_params and found.best_value < found.defined_value
    assert first.model_bytes("churn") != toy.kept.model_bytes("churn")
    logged = first.logged["churn"]
    chosen = found.best_params["logistic__C"]
    assert logged["params"]["tune.logistic__C"] == chosen
    assert float(logged["params"]["estimator.logistic__C"]) == chosen
    assert logged["params"]["tune.as_defined"] == found.defined_value
    assert [t.number for t in logged["trials"]] == [0, 1, 2, 3, 4]
    assert "- 4 trials: log loss" in (first.folder / "churn" / "model_card.md").read_text()
    told = [s for s in steps if s.startswith("tune, ")]
    assert len(told) == 5 and told[-1].startswith("tune, trial 4 of 4: log loss")
    assert told[-1].endswith(f"best {found.best_value:.5f}")


def test_among_several_purchase_models_the_past_decides(toy: Toy, tmp_path: Path) -> None:
    model = toy.project.model("clv")
    several = [BetaGeoNBD(), ModifiedBetaGeoNBD(), ParetoNBD()]
    estimator = CustomerLifetimeValue(several, GammaGamma(), 180, 0.1)
    cut = toy.results["clv"].plan.cut
    first, other = Kept(tmp_path / "first"), Kept(tmp_path / "other")
    changes = {"model": {"estimator": estimator}}
    result = run(toy.project, toy.history, first, "clv", **changes)["clv"]
    scrambled = run(toy.project, after(toy.history, cut), other, "clv", **changes)["clv"]
    assert result.choice is not None and scrambled.choice is not None
    assert result.choice.to_dict() == scrambled.choice.to_dict()
    assert first.model_bytes("clv") == other.model_bytes("clv")
    params, scores = first.logged["clv"]["params"], result.choice.scores
    best = scores.index[0]
    assert params["purchase_model"] == best
    assert set(scores.index) == {type(m).__name__ for m in several}
    for name in scores.index:
        assert params[f"holdout_log_likelihood.{name}"] == scores.log_likelihood[name]
        assert scores.log_likelihood[name] <= scores.log_likelihood[best]
    card = (first.folder / "clv" / "model_card.md").read_text()
    assert "## Which purchase model" in card and f"| {best} |" in card
    table = json.loads((first.folder / "clv" / "purchase_models.json").read_text())
    assert table["winner"] == best
    # The winner is fitted on the whole past: it is the model that one would have named.
    alone = CustomerLifetimeValue(
        next(m for m in several if type(m).__name__ == best), GammaGamma(), 180, 0.1
    )
    named = run(toy.project, toy.history, Kept(tmp_path / "named"), "clv",
                model={"estimator": alone})["clv"]  # fmt: skip
    assert named.metrics == result.metrics and named.choice is None
    assert model.faults(()) == [] and several[0].get_params() == BetaGeoNBD().get_params()


# ------------------------------------------------------------------ refusals


@pytest.mark.parametrize(
    ("name", "changes", "words"),
    [
        ("churn", {"model": {"exclude": ("rfmm",)}},
         r'models/churn\.py: exclude names "rfmm".*Did you mean "rfm"'),
        ("churn", {"model": {"exclude": ("spend_28",)}}, r'"spend_28".*Did you mean "spend_28d"'),
        ("churn", {"model": {"baseline": SingleFeature("recency_days", name="x")}},
         r'models/churn\.py: the baseline needs the feature "recency_days"'),
        ("churn", {"model": {"label": NoPurchase(30, 9_000)}, "plan": {"cut": toyshop.START}},
         "the training side has only one outcome.*got 0 positives in 0 rows"),
        ("churn", {"plan": {"cut": toyshop.UNTIL}},
         "the test side has only one outcome.*got 0 positives in 0 rows.*training.toml"),
        ("churn", {"plan": {"train_as_of": (), "test_as_of": (toyshop.UNTIL,)}},
         "no labelled rows.*immature"),
        ("clv", {"plan": {"cut": toyshop.UNTIL}}, "no labelled rows.*immature"),
    ],
)  # fmt: skip
def test_what_cannot_be_trained_is_refused_and_nothing_is_logged(
    toy: Toy, tmp_path: Path, name: str, changes: dict[str, Any], words: str
) -> None:
    kept = Kept(tmp_path)
    with pytest.raises(DataError, match=words):
        run(toy.project, toy.history, kept, name, **changes)
    assert kept.logged == {}


def test_a_model_file_may_leave_out_what_a_smaller_shop_never_had(toy: Toy, tmp_path: Path) -> None:
    """The models of the reference project name features that not every shop's data can feed."""
    published = Project.open(ROOT).model("churn")
    assert {"categories_total", "contacts_total"} <= set(published.exclude)
    small = replace(
        toy.history,
        tables={n: t for n, t in toy.history.tables.items() if n in ("customers", "transactions")},
    )
    changes = {"features": ("rfm", "windows", "categories", "contacts"),
               "exclude": (*published.exclude, "margin_total")}  # fmt: skip
    result = run(toy.project, small, Kept(tmp_path), "churn", model=changes)["churn"]
    assert {u.group for u in result.unavailable} == {"contacts"}
    names = {f.name for f in result.features}
    assert "categories_total" in names
    assert result.counts["n_features"] == len(names - set(published.exclude))


def test_the_seed_goes_wherever_none_was_set() -> None:
    estimator = blend({"trees": LGBMClassifier(), "set": LGBMClassifier(random_state=5),
                       "linear": linear()})  # fmt: skip
    copy = seeded(estimator, 11)
    members = dict(copy.estimators)
    assert members["trees"].random_state == 11
    assert members["set"].random_state == 5
    assert members["linear"].named_steps["logistic"].random_state == 11
    assert dict(estimator.estimators)["trees"].random_state is None
    assert seeded(LogisticRegression(C=3), 2).get_params()["C"] == 3
