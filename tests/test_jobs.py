"""The jobs behind the commands, on the toy shop."""

from __future__ import annotations

import json
import sys
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import toyshop
from commands import Run, Toy
from test_project import edit

from nextbest import jobs, show
from nextbest.data.contract import History
from nextbest.data.profiles import Profiles
from nextbest.errors import (
    ConfigError,
    DataError,
    FitError,
    GateRefusal,
    NextbestError,
    NotFoundError,
    RegistryError,
)
from nextbest.jobs import promotion
from nextbest.learn.registry import Registry
from nextbest.project import Project
from nextbest.serve.batch import decide_batch, situation_for
from nextbest.serve.runtime import load_state


@pytest.fixture
def project(shop: Path) -> Project:
    return Project.open(shop)


def profiles(root: Path) -> Profiles:
    from nextbest.serve.bundle import load_bundle

    return load_bundle(root / ".nextbest" / "serving").profiles


def column(found: Profiles, name: str) -> np.ndarray:
    return np.asarray(found.matrix)[:, found.columns.index(name)]


# ------------------------------------------------------------------ train


class NoRegistry(Registry):
    """Fails a test that reaches for the registry: what is wrong must show before."""

    def __init__(self) -> None:
        super().__init__("sqlite:////nowhere/mlflow.db", "/nowhere")


def train(root: Path, *names: str) -> Callable[[], object]:
    project = Project.open(root)
    return lambda: jobs.train(project, names, project.history(), NoRegistry())


def test_training_an_unknown_model_offers_the_closest(fresh: Path) -> None:
    with pytest.raises(NotFoundError, match=r'Did you mean "hvc"\?'):
        jobs.trainable(Project.open(fresh), ["churn", "hcv"])


def test_a_model_named_twice_is_trained_once(fresh: Path) -> None:
    names = [m.name for m in jobs.trainable(Project.open(fresh), ["hvc", "churn", "hvc"])]
    assert names == ["hvc", "churn"]
    everything = [m.name for m in jobs.trainable(Project.open(fresh), [])]
    assert everything == ["propensity", "churn", "hvc", "clv"]


def test_a_fault_in_one_model_does_not_keep_the_others_from_training(fresh: Path) -> None:
    edit(fresh, "models/hvc.py", '("rfm", "windows")', '("rfm", "window")')
    assert jobs.trainable(Project.open(fresh), ["churn"])
    with pytest.raises(ConfigError, match=r"models/hvc\.py: feature group"):
        jobs.trainable(Project.open(fresh), [])


FAILURES = [
    ("models/churn.py", "linear(C=0.01)", "linear(C=-1.0)", FitError,
     "models/churn.py: the estimator cannot be fitted. Got InvalidParameterError: "),
    ("models/churn.py", "linear(C=0.01)", "LGBMClassifier(num_leaves=1, verbose=-1)", FitError,
     "models/churn.py: the estimator cannot be fitted. Got LightGBMError: "),
    ("models/features.py", 'count = _.count().cast("float64")',
     'count = _.order_id.cast("int64").max().cast("float64")', DataError,
     "models/churn.py: its features cannot be computed from the data. Got ConversionException: "),
    ("training/training.toml", "cut = 2023-10-01", "cut = 2023-10-01\ntest = [2023-12-20]",
     DataError, "the test side has only one outcome"),
    ("training/training.toml", "cut = 2023-05-01", "cut = 2021-05-01", DataError,
     "the training side has only one outcome"),
    ("training/sources.py", '        "responses":', '        # "responses":', ConfigError,
     'models/propensity.py: its label needs the table "responses"'),
]  # fmt: skip


@pytest.mark.parametrize(("file", "old", "new", "error", "said"), FAILURES)
def test_what_only_training_finds_out_is_said_in_our_words(
    fresh: Path, file: str, old: str, new: str, error: type[NextbestError], said: str
) -> None:
    edit(fresh, file, old, new)
    churn = fresh / "models" / "churn.py"
    churn.write_text("from lightgbm import LGBMClassifier\n" + churn.read_text())
    propensity = "2021" in new or "responses" in new
    with pytest.raises(error) as caught:
        train(fresh, "propensity" if propensity else "churn")()
    assert said in str(caught.value)


def test_a_fault_of_our_own_is_not_dressed_up_as_the_users(
    fresh: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def broken(*_: object, **__: object) -> None:
        raise AttributeError("ours")

    monkeypatch.setattr("nextbest.learn.train.train", broken)
    with pytest.raises(AttributeError, match="ours"):
        train(fresh, "churn")()


def test_training_twice_gives_the_same_numbers(toy: Toy) -> None:
    first = {m["model"]: m for m in toy.said["train"].json["trained"]}["churn"]
    (again,) = toy.said["train churn again"].json["trained"]
    assert (first["version"], again["version"]) == (1, 2)
    for part in ("metrics", "baseline", "difference", "gates", "verdict", "n_test", "left_out"):
        assert again[part] == first[part]


# ------------------------------------------------------------------ promote


def test_a_gate_refuses_with_its_name_and_numbers(project: Project) -> None:
    registry = project.registry()
    with pytest.raises(GateRefusal) as refused:
        jobs.promote(project, "hvc", registry)
    said = str(refused.value)
    assert said.startswith('hvc version 1: gate "min_positives" refuses promotion: ')
    assert "10,000" in said and "--force" in said
    assert len(refused.value.faults) == 1  # the gates that passed are not faults
    assert registry.champion("hvc") is None


def test_force_promotes_and_is_recorded(project: Project) -> None:
    registry = project.registry()
    promoted, gates = jobs.promote(project, "hvc", registry, force=True, reason="board decision")
    assert [g.gate for g in gates if not g.passed] == ["min_positives"]
    assert promoted.aliases == ("champion",)
    assert promoted.tags["nextbest.forced"] == "true"
    assert promoted.tags["nextbest.promotion_reason"] == "board decision"


def test_force_that_was_not_needed_is_not_recorded_as_one(project: Project) -> None:
    promoted, _ = jobs.promote(project, "clv", project.registry(), 1, force=True, reason="hurry")
    assert promoted.tags["nextbest.forced"] == "false"


def test_a_challenger_is_held_against_the_champion_on_the_same_rows(project: Project) -> None:
    _, gates = jobs.promote(project, "churn", project.registry(), 1)
    (against,) = [g for g in gates if g.gate == "champion"]
    assert against.passed and "+0 (95% interval +0 to +0)" in against.message


def test_a_challenger_tested_on_other_rows_is_refused(
    project: Project, monkeypatch: pytest.MonkeyPatch
) -> None:
    registry = project.registry()
    real = promotion.test_scores_of
    mine = registry.version("churn", 1).run_id
    monkeypatch.setattr(
        promotion, "test_scores_of", lambda r, v: real(r, v)[5 if v.run_id == mine else 0 :]
    )
    with pytest.raises(GateRefusal, match=r'gate "champion" .* tested on other rows'):
        jobs.promote(project, "churn", registry, 1)
    assert registry.champion("churn").version == 2  # type: ignore[union-attr]


def test_promoting_what_does_not_exist_says_what_does(project: Project) -> None:
    registry = project.registry()
    with pytest.raises(NotFoundError, match='Did you mean "clv"'):
        jobs.promote(project, "cvl", registry)
    with pytest.raises(RegistryError, match=r'no version or alias "7". Must be one of 1, 2'):
        jobs.promote(project, "churn", registry, 7)


# ------------------------------------------------------------------ refresh


def test_profiles_hold_everyone_with_the_scores_of_the_champions(toy: Toy) -> None:
    said, found = toy.said["refresh"].json, profiles(toy.root)
    assert said["customers"] == len(found) == toyshop.CUSTOMERS
    assert said["models"] == {"propensity": 1, "churn": 2, "clv": 1}
    assert said["without_champion"] == ["hvc"]
    # Without a champion the score is there and unknown, so that a rule on it can still be read.
    assert np.isnan(column(found, "hvc_probability")).all()
    churn, clv = column(found, "churn_probability"), column(found, "clv")
    # Churn asks about those who bought in the last 90 days; of the others it says nothing.
    active = column(found, "days_since_last_purchase") <= 90
    assert np.array_equal(np.isfinite(churn), active)
    assert 0 < active.sum() < len(active)
    assert ((churn[active] >= 0) & (churn[active] <= 1)).all()
    assert (clv[np.isfinite(clv)] >= 0).all()
    bounds = [column(found, name) for name in ("clv_low", "clv_high")]
    known = np.isfinite(clv)
    assert (bounds[0][known] <= clv[known]).all() and (clv[known] <= bounds[1][known]).all()


def test_who_is_of_high_value_today_stands_beside_who_will_be(shop: Path) -> None:
    project = Project.open(shop)
    registry = project.registry()
    jobs.promote(project, "hvc", registry, force=True, reason="a test")
    jobs.refresh(project, project.history(), registry)
    found = profiles(shop)
    score, now = column(found, "hvc_probability"), column(found, "hvc_now")
    past = column(found, "spend_28d")
    # The label asks about those who bought in the last 90 days; its share is the top fifth.
    asked = column(found, "days_since_last_purchase") <= 90
    assert np.array_equal(np.isfinite(now), asked) and np.array_equal(np.isfinite(score), asked)
    assert set(now[asked]) == {0.0, 1.0} and now[asked].sum() == asked.sum() // 5
    assert past[now == 1].min() >= past[now == 0].max()
    # The rule of the manual finds those who are ahead by the score alone.
    edit(shop, "serving/offers.toml", '"orders_182d >= 1"',
         '"hvc_probability > 0.3 and hvc_now = 0"')  # fmt: skip
    state, out = load_state(shop), shop / "rising.parquet"
    decide_batch(state, situation_for(state, "mail"), out)
    decided = pd.read_parquet(out).query("offer_id == 'coupons-now'")["customer_id"]
    rising = {c for c, s, n in zip(found.ids(), score, now, strict=True) if s > 0.3 and n == 0}
    assert decided.size and set(decided) <= rising
    assert state.bundle.score_names[-1] == "hvc_now"


def test_offers_of_the_table_are_offers(shop: Path, cli: Run) -> None:
    """The toy shop's own table, with what a catalogue needs in further columns."""
    file = shop / "data" / "offers.parquet"
    rows = pd.read_parquet(file)
    rows["margin"] = np.where(rows["offer_id"] == "catalogue-now", "2.5", None)
    rows["buyer"] = "Ann"
    rows.to_parquet(file, index=False)
    first = toyshop.OFFERS.index("[[offers]]")
    stay = toyshop.OFFERS[toyshop.OFFERS.index('[[offers]]\nid = "stay"') :]
    catalogue = f'[source]\ntable = "offers"\n\n{toyshop.OFFERS[:first]}{stay}'
    (shop / "serving" / "offers.toml").write_text(catalogue.replace("timezone", "# timezone"))
    project = Project.open(shop)
    notes = [
        'table "offers": 24 of 27 offers had ended; they are in the catalogue only where'
        " serving/offers.toml names them",
        'table "offers": 1 column ignored by the catalogue, being no field of an offer: buyer',
    ]
    checked = cli("check", "--project", shop, "--json").json
    assert (checked["ok"], checked["notes"]) == (True, notes)
    said = cli("refresh", "--project", shop)
    assert said.code == 0 and all(note in said.out for note in notes)

    # Serving reads no table: it is gone, and the offers are there.
    file.unlink()
    state = load_state(shop)
    assert state.offers.offer_ids == (
        "stay", "over", "catalogue-now", "coupons-24", "coupons-now",
    )  # fmt: skip
    assert state.bundle.profiles.offer_ids == state.offers.offer_ids
    batch = cli("decide", "--project", shop, "--channel", "mail", "--json").json
    assert batch["offers"]["coupons-now"] > 0
    with pytest.raises(NextbestError, match=r"offers\.parquet"):
        project.history()


def test_check_holds_the_table_against_the_catalogue(fresh: Path) -> None:
    file = fresh / "data" / "offers.parquet"
    rows = pd.read_parquet(file).assign(goal="sell", margin="0.4 * value_per_respons")
    rows.loc[rows["offer_id"] == "coupons-now", "goal"] = "sel"
    rows.to_parquet(file, index=False)
    offers = '[source]\ntable = "offers"\n[defaults]\nchannels = ["mail"]\n'
    (fresh / "serving" / "offers.toml").write_text(offers)
    edit(fresh, "serving/policy.toml", 'offers = ["coupons-now"]', "")
    (said,) = map(str, jobs.check_project(Project.open(fresh)).faults)
    assert said.startswith(
        'training/sources.py: table "offers", offer "coupons-now", column "goal"'
    )
    rows["goal"] = "sell"
    rows.to_parquet(file, index=False)
    said = [str(f) for f in jobs.check_project(Project.open(fresh)).faults]
    assert len(said) == 3 and 'Did you mean "value_per_response"?' in said[0]
    assert 'offer "catalogue-now", column "margin"' in said[0]
    # Without data nobody looks, and nobody complains of what was not read.
    assert jobs.check_project(Project.open(fresh), data=False).faults == ()


def test_a_source_without_its_table_and_contacts_that_are_not_there(fresh: Path) -> None:
    lines = (fresh / "training" / "sources.py").read_text().splitlines()
    kept = [li for li in lines if '"offers":' not in li and '"contacts":' not in li]
    (fresh / "training" / "sources.py").write_text("\n".join(kept))
    first = toyshop.OFFERS.index("[[offers]]")
    source = '\n[source]\ntable = "offers"\n'
    (fresh / "serving" / "offers.toml").write_text(
        source + toyshop.OFFERS[:first].partition("\n")[2]
    )
    said = [str(f) for f in jobs.check_project(Project.open(fresh)).faults]
    assert [s for s in said if 'Return "offers" from training/sources.py' in s], said
    (fresh / "serving" / "offers.toml").write_text(toyshop.OFFERS)
    edit(fresh, "serving/policy.toml", "[fallback]", "[contact]\ncount_history = true\n[fallback]")
    edit(fresh, "serving/policy.toml", CAP, "")
    said = [str(f) for f in jobs.check_project(Project.open(fresh)).faults]
    assert [s for s in said if 'count_history needs the table "contacts"' in s], said


CAP = """[[contact.caps]]
name = "the same offer once in 60 days"
at_most = 1
days = 60
per = "offer"
"""


def test_past_contacts_of_the_data_hold_offers_back(shop: Path) -> None:
    """Whom the shop mailed in the last 60 days by its own tables gets that offer no more."""
    contacts = pd.read_parquet(shop / "data" / "contacts.parquet")
    mailed = [f"c{n:03d}" for n in range(0, 300, 2)]
    new = pd.DataFrame({"customer_id": mailed, "offer_id": "coupons-now", "channel": "mail"})
    contacts = pd.concat([contacts, new.assign(contacted_at=pd.Timestamp("2023-11-25"))])
    contacts.to_parquet(shop / "data" / "contacts.parquet", index=False)
    edit(shop, "serving/policy.toml", CAP, f"[contact]\ncount_history = true\n\n{CAP}")
    project = Project.open(shop)
    jobs.refresh(project, project.history(), project.registry())
    state = load_state(shop)
    held = state.bundle.contacts
    assert held is not None and held.days == 60
    # Brute force over the files: all contacts and responses of 60 days before the moment asked.
    since = pd.Timestamp("2023-12-01") - pd.Timedelta(days=60)
    responses = pd.read_parquet(shop / "data" / "responses.parquet")
    recent = (contacts["contacted_at"] > since).sum() + (responses["responded_at"] > since).sum()
    assert len(held.at) == recent
    out = shop / "out.parquet"
    decide_batch(state, situation_for(state, "mail"), out)
    got = set(pd.read_parquet(out).query("offer_id == 'coupons-now'")["customer_id"])
    assert got and not got & set(mailed)
    edit(shop, "serving/policy.toml", "count_history = true", "count_history = false")
    state = load_state(shop)
    decide_batch(state, situation_for(state, "mail"), out)
    assert set(pd.read_parquet(out).query("offer_id == 'coupons-now'")["customer_id"]) > got


def test_what_live_features_count_travels_with_the_profiles(toy: Toy) -> None:
    """Brute force over the files: contacts of the longest window, and every response."""
    recent = load_state(toy.root).bundle.recent
    assert set(recent) == {"contacts", "responses"}
    as_of = pd.Timestamp("2023-12-01")
    contacts = pd.read_parquet(toy.root / "data" / "contacts.parquet")["contacted_at"]
    inside = contacts[(contacts < as_of) & (contacts >= as_of - pd.Timedelta(days=91))]
    assert sorted(recent["contacts"].at.tolist()) == sorted(inside.dt.to_pydatetime())
    responses = pd.read_parquet(toy.root / "data" / "responses.parquet")
    responses = responses[responses["responded_at"] < as_of]
    assert len(recent["responses"].at) == len(responses) > 0
    assert recent["responses"].window.kinds == tuple(sorted(set(responses["offer_id"])))


def test_refresh_again_gives_the_same_bundle(project: Project, toy: Toy) -> None:
    again = jobs.refresh(project, project.history(), project.registry())
    assert again.bundle == toy.said["refresh"].json["bundle"]


def test_refresh_without_a_champion_for_propensity_stops_before_any_work(
    trainable: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    project = Project.open(trainable)
    monkeypatch.setattr("nextbest.data.snapshots.profile", None)
    with pytest.raises(RegistryError, match=r'"propensity": it has no champion.*nextbest train'):
        jobs.refresh(project, project.history(), project.registry())
    assert not project.serving_state.exists()


def test_data_that_no_longer_feed_a_model_are_named(shop: Path) -> None:
    edit(shop, "models/features.py", '"wine_lines"', '"bottles_of_wine"')
    project = Project.open(shop)
    before = (project.serving_state / "current.json").read_bytes()
    with pytest.raises(DataError, match=r'model "churn": the data no longer feed 1 .* wine_lines'):
        jobs.refresh(project, project.history(), project.registry())
    assert (project.serving_state / "current.json").read_bytes() == before


def test_refresh_says_that_nothing_moved_in_a_shop_that_goes_on(toy: Toy) -> None:
    drift = toy.said["refresh"].json["drift"]
    assert set(drift) == {"propensity", "churn", "clv"}
    for name, found in drift.items():
        assert found["status"] == "ok", (name, found)
        (line,) = found["lines"]
        assert line.startswith("nothing has moved since training (")
    (file,) = (toy.root / ".nextbest" / "drift").iterdir()
    kept = json.loads(file.read_text())
    assert kept["churn"]["version"] == 2 and kept["churn"]["score"]["name"] == "score"
    assert {f["name"] for f in kept["churn"]["features"]} >= {"spend_28d", "orders_28d"}
    # An offer model is watched by whom it was asked about, not by what was sent.
    assert "offer_type" not in {f["name"] for f in kept["propensity"]["features"]}
    assert kept["propensity"]["score"] is None
    assert [f["name"] for f in kept["clv"]["features"]] == ["monetary_value"]


def test_refresh_names_what_moved(shop: Path) -> None:
    edit(shop, "training/sources.py", 'shop.read_parquet(DATA / "transactions.parquet")',
         'shop.read_parquet(DATA / "transactions.parquet").mutate(amount=lambda t: '
         't.amount * (t.ordered_at > ibis.timestamp("2023-10-20")).ifelse(8.0, 1.0))')  # fmt: skip
    project = Project.open(shop)
    found = jobs.refresh(project, project.history(), project.registry())
    watched = found.drift["churn"]
    assert not isinstance(watched, str)
    assert watched.status == "alarm"
    assert "spend_28d" in watched.report.named("alarm")
    assert "orders_28d" in watched.report.named("ok")
    said = list(show.drift(found.drift))
    assert any(s.startswith("   - spend_28d: alarm; ") and "PSI" in s for s in said)


def test_a_champion_from_before_is_served_and_said_to_be_unwatched(
    shop: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("nextbest.learn.watch.FILE", "no_such_file.json")
    project = Project.open(shop)
    found = jobs.refresh(project, project.history(), project.registry())
    said = list(show.drift(found.drift))
    assert said[0] == (
        "propensity: drift is unknown, as its run keeps no reference; "
        "train it again to have it watched."
    )
    assert found.to_dict()["drift"]["churn"]["status"] == "unknown"


# ------------------------------------------------------------------ tune


def test_tuning_without_optuna_or_a_search_space_says_so_before_any_work(
    fresh: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    project = Project.open(fresh)
    history = project.history()

    def tune(name: str) -> str:
        with pytest.raises(NextbestError) as caught:
            jobs.train(project, [name], history, NoRegistry(), tune=3)
        return str(caught.value)

    assert "tune clv: it gives no probability" in tune("clv")
    monkeypatch.setitem(sys.modules, "optuna", None)
    assert tune("churn") == ('tune: Optuna is not installed. Run `pip install "nextbest[tune]"`.')
    monkeypatch.undo()
    pytest.importorskip("optuna", reason='pip install "nextbest[tune]"')
    assert "there is nothing to search" in tune("churn")


def test_the_command_tunes_and_shows_both_figures(cli: Run, trainable: Path) -> None:
    pytest.importorskip("optuna", reason='pip install "nextbest[tune]"')
    edit(trainable, "training/training.toml", "[models.hvc]",
         "[models.churn.search]\nlogistic__C = {low=0.001, high=1, log=true}\n"
         "[models.hvc]")  # fmt: skip
    ran = cli("train", "churn", "--tune", "2", "--project", trainable)
    assert ran.code == 0, ran.err
    assert "churn was tuned on its training side. 2 trials: " in ran.out
    assert "… churn: tune, trial 2 of 2: log loss" in ran.err
    refused = cli("train", "--tune", "2", "--project", trainable)
    assert refused.code == 2 and "--tune" in refused.err


# ------------------------------------------------------------------ check


def test_check_without_data_reads_none(fresh: Path) -> None:
    for file in (fresh / "data").iterdir():
        file.unlink()
    report = jobs.check_project(Project.open(fresh), data=False)
    assert report.faults == () and report.history is None
    assert report.to_dict() == {"ok": True, "faults": [], "tables": [], "notes": []}


def test_check_counts_what_it_set_aside(fresh: Path) -> None:
    edit(fresh, "training/sources.py", '"contacts.parquet")',
         '"contacts.parquet").mutate(offer_id=lambda t: (t.customer_id < "c005")'
         '.ifelse("none such", t.offer_id))')  # fmt: skip
    report = jobs.check_project(Project.open(fresh))
    assert report.faults == ()
    assert isinstance(report.history, History)
    (contacts,) = [t for t in report.to_dict()["tables"] if t["table"] == "contacts"]
    assert contacts["quarantined"].keys() == {"unknown offer"}
    assert contacts["rows_in"] == contacts["rows_clean"] + contacts["quarantined"]["unknown offer"]
    assert (fresh / ".nextbest" / "quarantine" / "contacts.parquet").exists()
