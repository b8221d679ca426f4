"""A project on disk: what it loads to, and that every fault in it is named with its place."""

from __future__ import annotations

import sys
from collections.abc import Callable
from datetime import UTC, datetime
from itertools import pairwise
from pathlib import Path

import pytest

from nextbest import jobs
from nextbest.errors import ConfigError, DataError, NextbestError, NotFoundError
from nextbest.project import ROOMS, Project, init

ROOT = Path(__file__).resolve().parents[1]


def edit(root: Path, file: str, old: str, new: str) -> None:
    path = root / file
    text = path.read_text(encoding="utf-8")
    assert text.count(old) >= 1, f"{old!r} is not in {file}"
    path.write_text(text.replace(old, new), encoding="utf-8")


def faults(root: Path, *, data: bool = False) -> list[str]:
    return [str(f) for f in jobs.check_project(Project.open(root), data=data).faults]


def failure(do: Callable[[], object]) -> str:
    with pytest.raises(NextbestError) as caught:
        do()
    return str(caught.value)


# ------------------------------------------------------------------ a sound project


def test_a_sound_project_has_no_faults(fresh: Path) -> None:
    report = jobs.check_project(Project.open(fresh))
    assert report.faults == ()
    assert report.history is not None
    assert {r.table: r.rows_clean for r in report.history.reports}["customers"] == 300


def test_models_come_in_the_order_of_the_jobs(fresh: Path) -> None:
    edit(fresh, "training/training.toml", '["propensity", "churn", "hvc", "clv"]', '["hvc"]')
    project = Project.open(fresh)
    assert list(project.models) == ["hvc", "churn", "clv", "propensity"]
    assert project.model("churn").name == "churn"
    assert project.score_columns() == (
        "hvc_probability", "hvc_now", "churn_probability",
        "clv", "clv_low", "clv_high", "p_alive",
    )  # fmt: skip


def test_own_feature_groups_stand_beside_the_built_in_ones(fresh: Path) -> None:
    project = Project.open(fresh)
    names = [g.name for g in project.groups]
    assert names[-1] == "wine"
    assert {"rfm", "windows", "lifetime"} < set(names)
    found, missing = jobs.features(project)
    assert [f.meaning for f in found if f.name == "wine_lines"] == ["lines of wine"]
    assert "engagement: needs events" in missing  # the shop has no such table
    (fresh / "models" / "features.py").unlink()
    assert "wine" not in [g.name for g in Project.open(fresh).groups]


def test_files_of_a_room_may_import_each_other_and_helpers_are_no_models(fresh: Path) -> None:
    (fresh / "models" / "_helpers.py").write_text("HORIZON = 45\n")
    edit(fresh, "models/churn.py", "from nextbest", "from ._helpers import HORIZON\nfrom nextbest")
    edit(fresh, "models/churn.py", "horizon_days=30", "horizon_days=HORIZON")
    assert Project.open(fresh).model("churn").label.horizon_days == 45
    assert "_helpers" not in Project.open(fresh).models


def test_two_projects_in_one_process_do_not_share_definitions(fresh: Path, tmp_path: Path) -> None:
    import toyshop

    other = toyshop.write(tmp_path / "other")
    edit(other, "models/churn.py", "horizon_days=30", "horizon_days=31")
    horizons = [Project.open(r).model("churn").label.horizon_days for r in (fresh, other)]
    assert horizons == [30, 31]


def test_days_are_the_shops_own(fresh: Path) -> None:
    project = Project.open(fresh)
    assert project.settings.as_of == datetime(2023, 11, 30, 23)  # midnight in Paris, in UTC
    assert project.settings.observed_until == datetime(2024, 1, 1)  # given in UTC
    plan = project.plan(project.model("churn"))
    assert plan.cut == datetime(2023, 9, 30, 22)
    assert plan.test_as_of == (plan.cut,)
    # The last moment's label is closed at the cut, and the steps go back from there.
    assert (plan.cut - plan.train_as_of[-1]).days == 30
    assert {(b - a).days for a, b in pairwise(plan.train_as_of)} == {60}
    assert plan.train_as_of[0] >= datetime(2022, 8, 31, 22)


def test_without_dates_the_project_is_about_today(fresh: Path) -> None:
    edit(fresh, "training/training.toml", "observed_until = 2024-01-01T00:00:00Z", "")
    edit(fresh, "training/training.toml", "as_of = 2023-12-01", "")
    settings = Project.open(fresh).settings
    now = datetime.now(UTC).replace(tzinfo=None)
    assert abs((settings.as_of - now).total_seconds()) < 60
    assert settings.observed_until == settings.as_of


def test_a_models_own_gates_override_the_common_ones(fresh: Path) -> None:
    project = Project.open(fresh)
    assert project.plan(project.model("hvc")).gates.min_positives == 10_000
    assert project.plan(project.model("hvc")).gates.baseline_margin == 0.2
    assert project.plan(project.model("churn")).gates.min_positives == 20


# ------------------------------------------------------------------ rooms


def test_a_folder_that_is_no_project_is_named(tmp_path: Path) -> None:
    said = failure(lambda: Project.open(tmp_path))
    assert said.startswith(f"{tmp_path}: this folder is not a nextbest project.")
    assert "got no models/, no training/, no serving/" in said
    assert "nextbest init" in said
    assert "got no such folder" in failure(lambda: Project.open(tmp_path / "nowhere"))


@pytest.mark.parametrize("room", ROOMS)
def test_a_missing_room_is_named(fresh: Path, room: str) -> None:
    (fresh / room).rename(fresh / "elsewhere")
    assert f"got no {room}/." in failure(lambda: Project.open(fresh))


@pytest.mark.parametrize(
    ("file", "said"),
    [
        ("training/training.toml", "training/training.toml: the file cannot be read"),
        ("training/sources.py", "training/sources.py: the file is missing"),
        ("serving/offers.toml", "serving/offers.toml: the file cannot be read"),
        ("serving/policy.toml", "serving/policy.toml: the file cannot be read"),
    ],
)
def test_a_missing_file_is_named(fresh: Path, file: str, said: str) -> None:
    (fresh / file).unlink()
    assert [f for f in faults(fresh) if f.startswith(said)]


# ------------------------------------------------------------------ training.toml


@pytest.mark.parametrize("file", ["training/training.toml", "serving/offers.toml"])
def test_broken_toml_is_named_with_line_and_column(fresh: Path, file: str) -> None:
    path = fresh / file
    path.write_text("ok = 1\nbroken = = 2\n" + path.read_text())
    assert [f for f in faults(fresh) if f.startswith(f"{file}, line 2, column 10: ")]


SETTINGS = [
    ('name = "toy-shop"', "name = 5", "project.name is wrong. Must be a text; got 5."),
    ('timezone = "Europe/Paris"', 'timezone = "Mars"', "timezone is not known. Must be"),
    ('timezone = "Europe/Paris"', "timezone = 5", "timezone is not known. Must be"),
    ("as_of = 2023-12-01", 'as_of = "2023-12-01"', "project.as_of is not a day"),
    ("as_of = 2023-12-01", "as_of = 12:00:00", "project.as_of is not a day"),
    ("observed_until = 2024-01-01T00:00:00Z", "observed_until = 2024", "observed_until is not a"),
    ("seed = 7", "seed = -1", "project.seed is wrong. Must be a whole number from 0"),
    ("seed = 7", "seed = true", "project.seed is wrong. Must be a whole number from 0"),
    ("seed = 7", "seed = 7.5", "project.seed is wrong. Must be a whole number from 0"),
    ("seed = 7", "sed = 7", '[project] has no setting "sed". Must be one of name, timezone'),
    ("error_limit = 0.05", "error_limit = 5", "data.error_limit is wrong. Must be a share"),
    ("error_limit = 0.05", "error_limit = nan", "data.error_limit is wrong. Must be a share"),
    ("error_limit = 0.05", "error_limit = true", "data.error_limit is wrong. Must be a share"),
    ("error_limit = 0.05", "error_limit = {contacts = 2}", "data.error_limit.contacts is wrong"),
    ("error_limit = 0.05", "limit = 0.05", '[data] has no setting "limit"'),
    ('order = ["propensity", "churn", "hvc", "clv"]', 'order = "churn"', "jobs.order is wrong"),
    ('order = ["propensity", "churn", "hvc", "clv"]', "order = [1]", "jobs.order is wrong"),
    ('"hvc", "clv"]', '"hvc", "cvl"]', 'jobs.order names "cvl". Must be the name of a file'),
    ("[jobs]", "[job]", 'has no setting "job". Must be one of project, data, jobs, gates, leakage, '
     "drift, models"),
    ("[project]", "project = 1\n[x]", "project is wrong. Must be a table [project]; got 1."),
    ("min_positives = 20", 'min_positives = "20"', "gates.min_positives is wrong. Must be a"),
    ("min_positives = 20", "min_positives = true", "gates.min_positives is wrong. Must be a"),
    ("min_positives = 20", "min_positives = -1", "gates.min_positives is wrong. Must be a number"),
    ("champion_margin = 0.2", "champion_margin = nan", "gates.champion_margin is wrong"),
    ("baseline_margin", "base_margin", '[gates] has no setting "base_margin"'),
    ("[gates]", "[[gates]]", "gates is wrong. Must be a table [gates]; got [{'min_positives'"),
    ("min_positives = 10000", "min_positves = 1", '[models.hvc.gates] has no setting "min'),
    ("[models.clv]", "[models.cvl]", "[models.cvl] is the table of no model. Must be the name of"),
    ("[models.clv]", "[models.cvl]", 'model "clv" has no cut. Must be a table [models.clv]'),
    ("cut = 2023-10-01", "", 'model "churn" has no cut. Must be a table [models.churn] with a cut'),
    ("cut = 2023-10-01", "cut = 20231001", "models.churn.cut is not a day"),
    ("cut = 2023-10-01", "cut = 2023-10-01\ncuts = 1", '[models.churn] has no setting "cuts"'),
    ("cut = 2023-05-01\nfolds = 2", "cut = 2023-05-01\nfolds = 0", "models.propensity.folds is"),
    ("cut = 2023-05-01\nfolds = 2", "cut = 2023-05-01\nfolds = 2.0", "models.propensity.folds is"),
    ("every_days = 60", "every_days = 0", "models.churn.every_days is wrong. Must be a whole"),
    ("every_days = 60", "every_days = true", "models.churn.every_days is wrong. Must be a whole"),
    ("evaluation_days = 120", "evaluation_days = -5", "models.clv.evaluation_days is wrong"),
    ("train_from = 2022-09-01", "", "models.churn.train_from is missing. Must be the first day"),
    ("train_from = 2022-09-01", "train_from = 1", "models.churn.train_from is not a day"),
    ("train_from = 2022-09-01", "train_from = 2023-09-15", "train_from leaves nothing to train on"),
    ("train_from = 2022-09-01\nevery_days = 60", "train_from = 0001-01-01\nevery_days = 1",
     "models.churn.train_from is too far back. Must be at most 1,000 moments; got 7"),
    ("every_days = 60", "every_days = 60\ntest = 2023-11-01", "models.churn.test is wrong."),
    ("[gates]", "[leakage]\nseparate_auc = 0.9\n[gates]",
     '[leakage] has no setting "separate_auc". Must be one of separates_auc'),
    ("[gates]", "[leakage]\nlevel = 1.5\n[gates]",
     "leakage.level is wrong. Must be a number from 0 to 1; got 1.5"),
    ("[gates]", "[leakage]\napart_features = 0\n[gates]",
     "leakage.apart_features is wrong. Must be a whole number from 1 to 1000; got 0"),
    ("[gates]", '[leakage]\naccepted = ["spend_28d"]\n[gates]', "leakage.accepted is wrong."),
    ("[gates]", '[leakage.accepted]\nspend_28d = ""\n[gates]',
     "leakage.accepted.spend_28d is wrong. Must be the reason why it is no leak"),
    ("[gates]", "[drift]\npsi_alarms = 0.9\n[gates]", 'Did you mean "psi_alarm"?'),
    ("[gates]", '[drift]\ngate = "on"\n[gates]',
     'drift.gate is wrong. Must be "off", "watch" or "alarm"; got \'on\''),
    ("[gates]", "[drift]\nodds_watch = 0.5\n[gates]",
     "drift.odds_watch is wrong. Must be a number from 1 up; got 0.5"),
    ("[gates]", "[drift]\npsi_watch = 0.3\n[gates]",
     "drift.psi_watch is too large. Must be at most drift.psi_alarm; got 0.3 and 0.25"),
    ("every_days = 60", "every_days = 60\nsearch = 3", "models.churn.search is wrong."),
    ("cut = 2023-10-01", "cut = 2023-10-01\nsearch = {logistic__c={low=1,high=2}}",
     'models.churn.search.logistic__c: the estimator has no such setting. Did you mean'),
    ("evaluation_days = 120", "evaluation_days = 120\n[models.clv.search]\nx = {low=1,high=2}",
     "[models.clv.search] is not possible"),
    ("every_days = 60", "every_days = 60\ntest = []", "models.churn.test is wrong. Must be a list"),
    ("every_days = 60", 'every_days = 60\ntest = ["x"]', "models.churn.test is not a day"),
    ("every_days = 60", "every_days = 60\ntest = [2020-01-01]", "models.churn.test is before the"),
]  # fmt: skip


@pytest.mark.parametrize(("old", "new", "said"), SETTINGS)
def test_each_wrong_setting_is_named(fresh: Path, old: str, new: str, said: str) -> None:
    edit(fresh, "training/training.toml", old, new)
    found = [f for f in faults(fresh) if said in f]
    assert found and all(f.startswith("training/training.toml: ") for f in found)
    if "no model" not in said and "jobs.order names" not in said:  # only check looks for these
        assert said in failure(lambda: jobs.trainable(Project.open(fresh), []))


def test_an_accepted_feature_must_be_one(fresh: Path) -> None:
    edit(fresh, "training/training.toml", "[gates]",
         '[leakage.accepted]\nspend_28 = "known at the till"\n[gates]')  # fmt: skip
    (said,) = faults(fresh, data=True)
    assert 'leakage.accepted names "spend_28"' in said and 'Did you mean "spend_28d"?' in said


def test_a_baseline_over_another_span_is_named(fresh: Path) -> None:
    edit(fresh, "training/training.toml", "evaluation_days = 120", "evaluation_days = 121")
    (said,) = faults(fresh)
    assert said == (
        "models/clv.py: the baseline looks over another span than the model is tested on. Must be "
        "121, as models.clv.evaluation_days in training/training.toml; got horizon_days=120. "
        "Leave horizon_days of the baseline out: it then follows."
    )


def test_a_baseline_that_leaves_its_span_open_follows(fresh: Path) -> None:
    edit(fresh, "training/training.toml", "evaluation_days = 120", "evaluation_days = 121")
    edit(fresh, "models/clv.py", ", horizon_days=120, name", ", name")
    assert faults(fresh) == []


def test_a_models_table_that_is_no_table_is_named(fresh: Path) -> None:
    (fresh / "training" / "training.toml").write_text("models = 3\n")
    said = faults(fresh)
    assert "training/training.toml: models is wrong. Must be tables [models.NAME]; got 3." in said


# ------------------------------------------------------------------ models/*.py


CODE = [
    ("def f(:\n", "models/churn.py, line 1: SyntaxError: "),
    ("x = 1\ny = 1 / 0\n", "models/churn.py, line 2: ZeroDivisionError: division by zero."),
    ("import sys\nsys.exit(3)\n", "models/churn.py, line 2: SystemExit: 3."),
    ("import no_such_package\n", "models/churn.py, line 1: ModuleNotFoundError: No module named"),
    ("from nextbest import Modell\n", "models/churn.py, line 1: ImportError: cannot import name"),
    ("from nextbest import Model\nmodel = Model()\n", "models/churn.py, line 2: TypeError: "),
    ("raise ValueError\n", "models/churn.py, line 1: ValueError."),
    ("x = 1\n", "models/churn.py: it defines no model. Must be a line `model = Model(...)`"),
    ("model = 3\n", "models/churn.py: it defines no model. Must be a line `model = Model(...)`"),
    ("", "models/churn.py: it defines no model."),
]


@pytest.mark.parametrize(("code", "said"), CODE)
def test_code_that_fails_is_named_with_its_line(fresh: Path, code: str, said: str) -> None:
    (fresh / "models" / "churn.py").write_text(code)
    assert failure(lambda: Project.open(fresh).models).startswith(said)


def test_the_line_named_is_the_one_that_failed_in_the_room(fresh: Path) -> None:
    (fresh / "models" / "_helpers.py").write_text("def half(x):\n    return x / 0\n")
    (fresh / "models" / "churn.py").write_text("from ._helpers import half\n\nhalf(2)\n")
    said = failure(lambda: Project.open(fresh).models)
    assert said.startswith("models/_helpers.py, line 2: ZeroDivisionError")


def test_a_file_that_failed_can_be_mended_and_loaded_again(fresh: Path) -> None:
    path = fresh / "models" / "churn.py"
    sound = path.read_text()
    path.write_text("model = = 1\n")
    failure(lambda: Project.open(fresh).models)
    path.write_text(sound)
    assert "churn" in Project.open(fresh).models


def test_no_models_at_all_is_a_fault(fresh: Path) -> None:
    for path in (fresh / "models").glob("*.py"):
        path.unlink()
    assert failure(lambda: Project.open(fresh).models).startswith("models/: there is no model.")


def test_an_unknown_model_is_refused_with_the_closest_name(fresh: Path) -> None:
    with pytest.raises(NotFoundError, match=r'no model "chrun".*Did you mean "churn"'):
        Project.open(fresh).model("chrun")


DEFINITIONS = [
    ('features=("rfm", "windows", "wine")', 'features=("rfm", "window")',
     'models/churn.py: feature group "window" does not exist. Must be one of'),
    ('features=("rfm", "windows", "wine")', 'features="rfm"', "models/churn.py: features is wrong"),
    ('features=("rfm", "windows", "wine")', "exclude=(1,)", "models/churn.py: exclude is wrong"),
    ('features=("rfm", "windows", "wine")', 'calibration="plat"',
     "models/churn.py: unknown calibration"),
    ("linear(C=0.01)", "linear", "models/churn.py: estimator is wrong. Must be an estimator"),
    ("linear(C=0.01)", "None", "models/churn.py: estimator is wrong. Must be an estimator"),
    ("linear(C=0.01)", "LGBMClassifier(objective=len)",
     "models/churn.py: the estimator cannot be stored without executable code. Got"),
    ("linear(C=0.01)", "LinearRegression()",
     "models/churn.py: estimator is wrong. Must be a classifier"),
    ("NoPurchase(horizon_days=30, active_days=90)", "NoPurchase",
     "models/churn.py: label is wrong. Must be a label such as NoPurchase(...); got the class"),
    ("NoPurchase(horizon_days=30, active_days=90)", '"churn"', "models/churn.py: label is wrong"),
    ("NoPurchase(horizon_days=30, active_days=90)", "FutureValue(30)",
     "models/churn.py: estimator is wrong. Must be a CustomerLifetimeValue"),
    ('SingleFeature("days_since_last_purchase", name="recency")', "0.5",
     "models/churn.py: baseline is wrong. Must be a baseline such as"),
]  # fmt: skip


@pytest.mark.parametrize(("old", "new", "said"), DEFINITIONS)
def test_each_wrong_part_of_a_model_is_named(fresh: Path, old: str, new: str, said: str) -> None:
    imports = (
        "from sklearn.linear_model import LinearRegression\n"
        "from lightgbm import LGBMClassifier\n"
        "from nextbest import FutureValue\n"
    )
    edit(fresh, "models/churn.py", old, new)
    path = fresh / "models" / "churn.py"
    path.write_text(imports + path.read_text())
    assert [f for f in faults(fresh) if f.startswith(said)]
    with pytest.raises(ConfigError) as refused:
        jobs.trainable(Project.open(fresh), ["churn"])
    assert str(refused.value).startswith(said)


def test_what_the_data_cannot_feed_is_named_before_any_training(fresh: Path) -> None:
    edit(fresh, "models/churn.py", '"days_since_last_purchase"', '"days_since_last_purchse"')
    edit(fresh, "models/propensity.py", '("lifetime",)', '("lifetme",)')
    said = faults(fresh, data=True)
    assert [f for f in said if 'the baseline needs the feature "days_since_last_purchse"' in f]
    assert [f for f in said if f.startswith('models/propensity.py: exclude names "lifetme"')]
    assert all("Did you mean" in f for f in said)


# ------------------------------------------------------------------ models/features.py


def test_a_group_with_the_name_of_another_is_refused(fresh: Path) -> None:
    edit(fresh, "models/features.py", "def wine(", "def rfm(")
    said = failure(lambda: Project.open(fresh).groups)
    assert said.startswith('models/features.py: there is a second feature group "rfm"')


def test_two_own_groups_of_one_name_are_refused(fresh: Path) -> None:
    path = fresh / "models" / "features.py"
    path.write_text(path.read_text() + "\nfrom dataclasses import replace\nagain = replace(wine)\n")
    said = failure(lambda: Project.open(fresh).groups)
    assert said.startswith('models/features.py: there is a second feature group "wine"')


def test_a_group_with_two_names_in_the_file_is_one_group(fresh: Path) -> None:
    path = fresh / "models" / "features.py"
    path.write_text(path.read_text() + "\nred_wine = wine\n")
    assert [g.name for g in Project.open(fresh).groups].count("wine") == 1


def test_a_feature_that_another_group_defines_is_refused(fresh: Path) -> None:
    edit(fresh, "models/features.py", '"wine_lines"', '"spend_91d"')
    assert [f for f in faults(fresh, data=True) if "spend_91d is already defined by" in f]


def test_a_group_that_fails_is_named_with_its_line(fresh: Path) -> None:
    edit(fresh, "models/features.py", '_.category == "wine"', '_.colour == "red"')
    said = failure(lambda: jobs.features(Project.open(fresh)))
    assert said.startswith("models/features.py, line 11: ")
    assert "colour" in said


# ------------------------------------------------------------------ training/sources.py


SOURCES = [
    ('        "transactions":', '        "transaction":', 'table "transactions": missing'),
    ('        "transactions":', '        "transaction":', 'table "transaction": not a table of'),
    ('"transactions.parquet")', '"transactions.parquet").rename(amonut="amount")',
     'table "transactions": column "amount" is missing'),
    ('"transactions.parquet")', '"transactions.parquet").mutate(amount=ibis.literal("much"))',
     'table "transactions": column "amount" has the wrong type'),
    ('shop.read_parquet(DATA / "transactions.parquet")', "3", "not an Ibis table"),
    ('"transactions.parquet"', '"transaction.parquet"',
     "training/sources.py, line 14: IOException: IO Error: No files found"),
    ("    shop = ibis", "    shop = 1 / 0\n    shop = ibis", "line 11: ZeroDivisionError: "),
    ("def tables()", "def table()", "training/sources.py: it has no function tables()"),
    ("    return {", "    return 3\n    return {", "tables() returned the wrong thing"),
    ("import ibis\n", "import ibsi\n", "training/sources.py, line 5: ModuleNotFoundError"),
    ("import ibis\n", "import ibis ibis\n", "training/sources.py, line 5: SyntaxError"),
]  # fmt: skip


@pytest.mark.parametrize(("old", "new", "said"), SOURCES)
def test_each_fault_of_the_sources_is_named(fresh: Path, old: str, new: str, said: str) -> None:
    edit(fresh, "training/sources.py", old, new)
    assert [f for f in faults(fresh, data=True) if said in f and "sources.py" in f]
    with pytest.raises((ConfigError, DataError)):
        Project.open(fresh).history()


def test_a_misspelled_column_is_recognised(fresh: Path) -> None:
    edit(fresh, "training/sources.py", '"transactions.parquet")',
         '"transactions.parquet").rename(amonut="amount")')  # fmt: skip
    assert [f for f in faults(fresh, data=True) if 'Did you mean "amonut"?' in f]


def test_a_table_over_its_limit_does_not_hide_the_rules_that_are_wrong(fresh: Path) -> None:
    edit(fresh, "training/sources.py", '"contacts.parquet")',
         '"contacts.parquet").mutate(offer_id=ibis.literal("no such offer"))')  # fmt: skip
    edit(fresh, "serving/offers.toml", '"orders_182d >= 1"', '"orders_182dd >= 1"')
    said = faults(fresh, data=True)
    assert [f for f in said if "contacts" in f]
    assert [f for f in said if "orders_182dd" in f and 'Did you mean "orders_182d"?' in f]


def test_an_error_limit_for_no_table_is_named(fresh: Path) -> None:
    edit(fresh, "training/training.toml", "error_limit = 0.05", "error_limit = {contcts = 0.1}")
    assert [f for f in faults(fresh, data=True) if '"contcts" is not a table' in f]


# ------------------------------------------------------------------ all at once


def test_check_reports_the_faults_of_all_rooms_at_once(fresh: Path) -> None:
    (fresh / "models" / "churn.py").write_text("model = = 1\n")
    edit(fresh, "models/hvc.py", "linear(C=0.01)", "None")
    edit(fresh, "models/features.py", "from ibis", "from ibsi")
    edit(fresh, "training/sources.py", "def tables()", "def table()")
    edit(fresh, "training/training.toml", "seed = 7", "seed = -7")
    edit(fresh, "training/training.toml", "cut = 2023-08-01", "cut = true")
    edit(fresh, "serving/offers.toml", 'goal = "retain"', 'goal = "keep"')
    edit(fresh, "serving/policy.toml", "at_most = 1", "at_most = 0")
    said = faults(fresh, data=True)
    for place in (
        "models/churn.py, line 1: SyntaxError",
        "models/hvc.py: estimator is wrong",
        "models/features.py, line 3: ModuleNotFoundError",
        "training/sources.py: it has no function tables()",
        "training/training.toml: project.seed is wrong",
        "training/training.toml: models.clv.cut is not a day",
        'serving/offers.toml: offer "stay"',
        "serving/policy.toml: ",
    ):
        assert [f for f in said if f.startswith(place)], f"{place} is not among {said}"
    assert len(said) == len(set(said))


# ------------------------------------------------------------------ init


def tree(root: Path) -> dict[str, bytes]:
    return {
        p.relative_to(root).as_posix(): p.read_bytes()
        for room in ROOMS
        for p in sorted((root / room).rglob("*"))
        if p.is_file() and "__pycache__" not in p.parts
    }


def test_init_copies_the_rooms_that_ci_runs(tmp_path: Path) -> None:
    made = init(tmp_path / "new" / "shop")
    assert [p.name for p in made] == list(ROOMS)
    assert tree(tmp_path / "new" / "shop") == tree(ROOT)
    assert not list((tmp_path / "new").rglob("__pycache__"))


def test_init_takes_a_folder_with_hidden_files_only(tmp_path: Path) -> None:
    (tmp_path / ".git").mkdir()
    init(tmp_path)
    assert tree(tmp_path) == tree(ROOT)


def test_init_overwrites_nothing(tmp_path: Path) -> None:
    (tmp_path / "models").mkdir()
    said = failure(lambda: init(tmp_path))
    assert "there is something already. Must be a new or empty folder; got models." in said
    file = tmp_path / "file"
    file.write_text("")
    assert "got a file" in failure(lambda: init(file))


def test_init_where_nothing_can_be_written_says_so(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    said = failure(lambda: init(tmp_path / "file" / "shop"))
    assert "it cannot be written" in said


def test_definitions_leave_no_trace_on_the_import_path(fresh: Path) -> None:
    before = list(sys.path)
    Project.open(fresh).models  # noqa: B018 - loading is what is tested
    assert sys.path == before
    assert not {"churn", "features", "models"} & set(sys.modules)
