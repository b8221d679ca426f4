import json
import os
import shutil
import socket
import sqlite3
import subprocess
import sys
from datetime import UTC, datetime, timedelta
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import small_models as small

from nextbest.errors import ArtifactError, RegistryError
from nextbest.learn import artifact
from nextbest.learn.clv import BetaGeoNBD, CustomerLifetimeValue, GammaGamma
from nextbest.learn.estimators import FeatureEncoder
from nextbest.learn.metrics import Metric
from nextbest.learn.records import Trial
from nextbest.learn.registry import Baseline, Dataset, Registry

SRC = Path(artifact.__file__).parents[2]
METRICS = {"test": {"auc": Metric(0.8, 0.7, 0.9), "brier": Metric(0.1, 0.05, 0.2)}}
BASELINE = Baseline("past spend", {"test": {"auc": Metric(0.75, 0.6, 0.85)}})


@pytest.fixture(scope="module")
def root(tmp_path_factory, empty_registry):
    """One store for this file: MLflow takes seconds to make its tables."""
    root = tmp_path_factory.mktemp("project") / ".nextbest"
    root.mkdir()
    shutil.copy(empty_registry, root)
    return root


@pytest.fixture(scope="module")
def registry(root):
    return Registry(None, root)


@pytest.fixture(scope="module", autouse=True)
def no_address_from_outside():
    with pytest.MonkeyPatch.context() as patch:
        patch.delenv("MLFLOW_TRACKING_URI", raising=False)
        yield


@pytest.fixture(scope="module")
def stored(tmp_path_factory):
    folder = tmp_path_factory.mktemp("stored") / "blend"
    small.save_blend(folder)
    return folder


def log(registry, stored, name, **changes):
    given = {
        "artifact_dir": stored, "params": {"cut": "2017-10-01", "depth": 3}, "metrics": METRICS,
        "baseline": BASELINE, "counts": {"n_test": 1653, "n_positive": 266},
    }  # fmt: skip
    return registry.log_run(name, **(given | changes))


@pytest.fixture
def three(registry, stored, request):
    """A model of its own for the test, with three versions; returns its name."""
    name = request.node.name.split("[")[0]
    for _ in range(3):
        registry.register(name, log(registry, stored, name))
    return name


def alias_of(registry, name):
    champion = registry.champion(name)
    return champion and champion.version


# ------------------------------------------------------------------ being interrupted


class Interrupted:
    """The client of MLflow, in which Ctrl-C is pressed as one call begins, or as it ends."""

    def __init__(self, client, at, late):
        self.client, self.at, self.late, self.calls = client, at, late, 0

    def __getattr__(self, name):
        real = getattr(self.client, name)

        def call(*arguments, **named):
            self.calls += 1
            now = self.calls == self.at
            if now and not self.late:
                raise KeyboardInterrupt
            out = real(*arguments, **named)
            # What create_run made is not known to anybody until it returns: MLflow's own gap.
            if now and name != "create_run":
                raise KeyboardInterrupt
            return out

        return call


def states(root):
    with sqlite3.connect(root / "mlflow.db") as database:
        return dict(database.execute("select run_uuid, status from runs"))


@pytest.mark.parametrize("late", [False, True])
def test_ctrl_c_at_any_step_leaves_no_version_without_a_finished_run(
    registry, root, stored, monkeypatch, late
):
    registry.models()
    real = registry._client
    trials = [Trial(0, {}, "log_loss", 0.5), Trial(1, {"C": 2.0}, "log_loss", None, "Boom: no")]
    name, at, finished = f"stopped_{late}", 0, False
    while not finished:
        at += 1
        client = Interrupted(real, at, late)
        monkeypatch.setattr(registry, "_client", client)
        before = states(root)
        try:
            run_id = log(registry, stored, name, files={"x.txt": "x"}, trials=trials)
            registry.register(name, run_id)
        except KeyboardInterrupt:
            pass
        else:
            finished = client.calls < at
        monkeypatch.setattr(registry, "_client", real)
        new = {run: state for run, state in states(root).items() if run not in before}
        assert "RUNNING" not in new.values(), (at, new)
        for version in registry.versions(name):
            assert real.get_run(version.run_id).info.status == "FINISHED"
    assert at > 15
    assert registry.versions(name)


def test_the_trials_of_a_search_are_runs_nested_in_theirs(registry, root, stored):
    trials = [Trial(0, {}, "log_loss", 0.5), Trial(1, {"C": 2.0}, "log_loss", 0.4),
              Trial(2, {"C": -1.0}, "log_loss", None, "ValueError: C")]  # fmt: skip
    run_id = log(registry, stored, "searched", trials=trials)
    import mlflow

    client = mlflow.MlflowClient(f"sqlite:///{root}/mlflow.db")
    experiment = client.get_run(run_id).info.experiment_id
    nested = client.search_runs([experiment], f"tags.mlflow.parentRunId = '{run_id}'")
    found = {run.info.run_name: run for run in nested}
    assert set(found) == {"as defined", "trial 1", "trial 2"}
    assert found["trial 1"].data.params == {"C": "2.0"}
    assert found["trial 1"].data.metrics == {"validation.log_loss": 0.4}
    assert found["trial 2"].info.status == "FAILED"
    assert found["trial 2"].data.tags["nextbest.error"] == "ValueError: C"
    assert registry.register("searched", run_id) == 1


# ------------------------------------------------------------------ runs and versions


def test_what_was_logged_comes_back(registry, stored, tmp_path):
    before = datetime.now(UTC) - timedelta(seconds=1)
    (tmp_path / "plot.png").write_bytes(b"\x89PNG")
    run_id = log(
        registry, stored, "known",
        files={"model_card.md": "# né", "plots/roc.png": tmp_path / "plot.png", "x.bin": b"\0"},
        tags={"team": "crm"}, dataset=Dataset("retail", "ab" * 32, 400),
        input_example=small.raw().head(3),
    )  # fmt: skip
    assert registry.register("known", run_id, {"why": "first"}) == 1
    (version,) = registry.versions("known")
    assert version.metrics == METRICS
    assert version.baseline == BASELINE
    assert version.counts == {"n_test": 1653, "n_positive": 266}
    assert version.params == {"cut": "2017-10-01", "depth": "3"}
    assert version.tags["team"] == "crm"
    assert version.tags["why"] == "first"
    assert version.tags["nextbest.data_snapshot"] == "ab" * 32
    assert version.tags["nextbest.model_digest"] == artifact.load(stored).digest
    assert (version.model, version.run_id, version.aliases) == ("known", run_id, ())
    assert before <= version.created_at <= datetime.now(UTC)
    assert registry.read_file(run_id, "model_card.md").decode() == "# né"
    assert registry.read_file(run_id, "plots/roc.png") == b"\x89PNG"
    assert "known" in registry.models()


def test_mlflow_itself_shows_flat_figures_dataset_signature_and_example(registry, stored, root):
    run_id = log(
        registry, stored, "shown", dataset=Dataset("retail", "cd" * 32, 400),
        input_example=small.raw().head(3),
    )  # fmt: skip
    registry.register("shown", run_id)
    import mlflow

    client = mlflow.MlflowClient(f"sqlite:///{root}/mlflow.db")
    run = client.get_run(run_id)
    assert run.info.status == "FINISHED"
    assert run.data.metrics["test.auc"] == 0.8
    assert run.data.metrics["test.auc_low"] == 0.7
    assert run.data.metrics["baseline.test.auc_high"] == 0.85
    assert run.data.metrics["n_test"] == 1653
    assert run.inputs.dataset_inputs[0].dataset.name == "retail"
    assert json.loads(run.inputs.dataset_inputs[0].dataset.profile) == {"num_rows": 400}
    place = client.get_model_version("shown", "1").source
    folder = Path(place.removeprefix("file://"))
    model = mlflow.models.Model.load(str(folder / "MLmodel"))
    assert model.flavors["python_function"]["loader_module"] == "nextbest.learn.artifact"
    assert model.signature.inputs.input_names() == list(small.raw().columns)
    assert model.signature.outputs.input_names() == ["score"]
    example = model.load_input_example(str(folder))
    assert list(example.columns) == list(small.raw().columns)
    assert root in folder.parents
    names = {path.name for path in folder.rglob("*")}
    assert not [n for n in names if n.endswith((".pkl", ".joblib", ".cloudpickle", ".skops"))]


def test_many_parameters_and_figures_go_in_batches(registry, stored):
    figures = {f"m{i}": Metric(float(i), 0.0, 1.0) for i in range(400)}
    params = {f"p{i}": i for i in range(230)}
    run_id = log(registry, stored, "many", metrics={"test": figures}, params=params)
    registry.register("many", run_id)
    (version,) = registry.versions("many")
    assert version.metrics["test"] == figures
    assert version.params == {k: str(v) for k, v in params.items()}


def test_a_damaged_model_is_never_logged(registry, stored, tmp_path):
    import shutil

    shutil.copytree(stored, tmp_path / "bad")
    (tmp_path / "bad" / "model.pkl").write_bytes(b"\x80")
    with pytest.raises(ArtifactError, match=r"model\.pkl"):
        log(registry, tmp_path / "bad", "damaged")


def test_an_interrupted_run_cannot_be_registered(registry, stored, monkeypatch):
    import mlflow.pyfunc

    def interrupt(**_):
        raise KeyboardInterrupt

    monkeypatch.setattr(mlflow.pyfunc, "save_model", interrupt)
    with pytest.raises(KeyboardInterrupt):
        log(registry, stored, "interrupted")
    import mlflow

    client = mlflow.MlflowClient(registry.uri)
    experiment = client.get_experiment_by_name("interrupted")
    (run,) = client.search_runs([experiment.experiment_id])
    assert run.info.status == "KILLED"
    with pytest.raises(RegistryError, match=r"no complete model.*status KILLED"):
        registry.register("interrupted", run.info.run_id)
    assert registry.versions("interrupted") == ()


def test_a_run_started_by_mlflow_run_is_used(registry, stored, monkeypatch):
    import mlflow

    client = mlflow.MlflowClient(registry.uri)
    place = (registry.root / "mlartifacts" / "given").as_uri()
    started = client.create_run(client.create_experiment("given", place)).info.run_id
    monkeypatch.setenv("MLFLOW_RUN_ID", started)
    assert log(registry, stored, "given") == started
    assert log(registry, stored, "given") != started


# ------------------------------------------------------------------ champion


def test_promote_and_roll_back(registry, three):
    assert alias_of(registry, three) is None
    with pytest.raises(RegistryError, match=r"nothing to roll back to.*no champion"):
        registry.rollback(three)
    registry.promote(three, 1)
    with pytest.raises(RegistryError, match="no earlier champion"):
        registry.rollback(three)
    registry.promote(three, 3, reason="wins by .02", forced=True)
    registry.promote(three, 2)
    assert alias_of(registry, three) == 2
    assert registry.rollback(three, reason="drifted").version == 3
    assert registry.rollback(three).version == 1
    with pytest.raises(RegistryError, match="no earlier champion"):
        registry.rollback(three)
    assert alias_of(registry, three) == 1
    tags = {v.version: v.tags for v in registry.versions(three)}
    assert tags[3]["nextbest.forced"] == "true"
    assert tags[3]["nextbest.promotion_reason"] == "wins by .02"
    assert tags[2]["nextbest.forced"] == "false"
    assert tags[2]["nextbest.rolled_back_at"].endswith(": drifted")
    assert "nextbest.rolled_back_at" not in tags[1]


def test_promoting_the_champion_again_leaves_nothing_to_roll_back_to(registry, three):
    registry.promote(three, 2)
    registry.promote(three, 2)
    with pytest.raises(RegistryError, match="nothing to roll back to"):
        registry.rollback(three)


def test_a_promoted_challenger_is_no_longer_one(registry, three):
    registry.set_alias(three, "challenger", 3)
    assert registry.version(three, "challenger").version == 3
    assert registry.promote(three, 3).aliases == ("champion",)
    with pytest.raises(RegistryError, match="only promote and rollback"):
        registry.set_alias(three, "champion", 1)


@pytest.mark.parametrize("step", ["promote", "rollback"])
def test_an_interrupted_move_leaves_one_champion_and_a_way_back(registry, three, step, monkeypatch):
    registry.promote(three, 1)
    registry.promote(three, 2)
    client = registry._client
    # Promoting writes the history before the alias, rolling back after it.
    broken = "set_registered_model_alias" if step == "promote" else "set_registered_model_tag"

    def interrupt(*_, **__):
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(client, broken, interrupt)
        with pytest.raises(KeyboardInterrupt):
            registry.promote(three, 3) if step == "promote" else registry.rollback(three)
    if step == "promote":
        assert alias_of(registry, three) == 2
        assert registry.rollback(three).version == 1
    else:
        assert alias_of(registry, three) == 1
        registry.promote(three, 3)
        assert registry.rollback(three).version == 1


# ------------------------------------------------------------------ getting models out


def test_fetch_gives_the_very_files(registry, stored, three, tmp_path):
    registry.promote(three, 2)
    found = registry.fetch(three, "champion", tmp_path / "deep" / "model")
    assert {p.name: p.read_bytes() for p in found.iterdir()} == {
        p.name: p.read_bytes() for p in stored.iterdir()
    }
    assert np.array_equal(
        artifact.load(found).score(small.raw()), artifact.load(stored).score(small.raw())
    )
    with pytest.raises(RegistryError, match="in use"):
        registry.fetch(three, 2, found)


def test_a_version_damaged_in_the_store_is_not_handed_out(registry, stored, tmp_path):
    registry.register("rotten", log(registry, stored, "rotten"))
    (kept,) = (registry.root / "mlartifacts" / "rotten").rglob("part-0.txt")
    kept.write_text(kept.read_text() + " ")
    with pytest.raises(ArtifactError, match=r"part-0\.txt: it was changed"):
        registry.fetch("rotten", 1, tmp_path / "m")
    assert not (tmp_path / "m").exists()


def in_a_new_process(script, cwd, **env):
    return subprocess.run(
        [sys.executable, "-c", script], cwd=cwd, capture_output=True, text=True, timeout=240,
        env={**os.environ, "PYTHONPATH": f"{SRC}{os.pathsep}{Path(__file__).parent}", **env},
    )  # fmt: skip


def test_mlflow_in_a_new_process_gives_the_engines_scores(registry, stored, root, tmp_path):
    registry.register("fresh", log(registry, stored, "fresh", input_example=small.raw().head(3)))
    registry.promote("fresh", 1)
    small.raw().to_parquet(tmp_path / "raw.parquet")
    script = f"""
import sys
from nextbest.learn import bitmask  # numba keeps our own compiled code in a cache of pickles
pickled = []
sys.addaudithook(lambda e, a: pickled.append(a) if e == "pickle.find_class" else None)
import mlflow, numpy as np, pandas as pd
mlflow.set_tracking_uri("sqlite:///{root}/mlflow.db")
model = mlflow.pyfunc.load_model("models:/fresh@champion")
raw = pd.read_parquet("raw.parquet")
np.save("scores.npy", model.predict(raw)["score"])
# Whole numbers without unknown values become int64, the rest float64 or object.
np.save("ages.npy", model.predict(raw.assign(spend=5, age=raw.age.astype(float)))["score"])
assert not pickled, pickled
"""
    done = in_a_new_process(script, tmp_path)
    assert done.returncode == 0, done.stderr
    engine = artifact.load(stored)
    assert np.abs(np.load(tmp_path / "scores.npy") - engine.score(small.raw())).max() <= 1e-9
    ages = engine.score(small.raw().assign(spend=5))
    assert np.abs(np.load(tmp_path / "ages.npy") - ages).max() <= 1e-9


def test_a_lifetime_value_model_goes_through_mlflow_too(registry, tmp_path):
    import mlflow

    rng = np.random.default_rng(0)
    frequency, T = rng.poisson(2, 300), rng.uniform(200, 360, 300)
    rfm = pd.DataFrame(
        {
            "frequency": frequency,
            "recency": np.where(frequency > 0, T * 0.7, 0.0),
            "T": T,
            "monetary_value": np.where(frequency > 0, rng.gamma(6, 5, 300), 0.0),
        }
    )
    model = CustomerLifetimeValue(BetaGeoNBD(), GammaGamma()).fit(rfm)
    engine = artifact.save(
        tmp_path / "m", name="clv", kind="clv", estimator=model,
        encoder=FeatureEncoder().fit(rfm), golden_rows=rfm.head(5),
    )  # fmt: skip
    registry.register("clv", log(registry, tmp_path / "m", "clv", input_example=rfm.head(2)))
    place = mlflow.MlflowClient(registry.uri).get_model_version("clv", "1").source
    found = mlflow.pyfunc.load_model(place).predict(rfm)
    for column, expected in engine.scores(rfm).items():
        assert np.abs(found[column] - expected).max() <= 1e-9


def test_nothing_is_printed_and_nothing_left_in_the_current_folder(stored, tmp_path):
    (tmp_path / "here").mkdir()
    script = f"""
import small_models as small
from nextbest.learn.registry import Registry
registry = Registry(None, {str(tmp_path / "state")!r})
run = registry.log_run("quiet", artifact_dir={str(stored)!r}, params={{}}, metrics={{}},
                       files={{"a.md": "a"}}, input_example=small.raw().head(2))
registry.register("quiet", run)
registry.promote("quiet", 1)
registry.fetch("quiet", 1, {str(tmp_path / "fetched")!r})
"""
    done = in_a_new_process(script, tmp_path / "here")
    assert (done.returncode, done.stdout, done.stderr) == (0, "", "")
    assert list((tmp_path / "here").iterdir()) == []
    assert {p.name for p in (tmp_path / "state").iterdir()} == {"mlflow.db", "mlartifacts"}


# ------------------------------------------------------------------ what goes wrong


def test_an_unknown_model_or_version_is_named(registry, three, tmp_path):
    assert registry.versions("nobody") == ()
    assert registry.champion("nobody") is None
    with pytest.raises(RegistryError, match=f'no model "{three}x".*Did you mean "{three}"'):
        registry.version(three + "x", 1)
    for act in (
        lambda: registry.version(three, 9),
        lambda: registry.promote(three, 9),
        lambda: registry.set_alias(three, "challenger", 9),
        lambda: registry.fetch(three, 9, tmp_path / "m"),
    ):
        with pytest.raises(
            RegistryError, match=r'no version or alias "9"\. Must be one of 1, 2, 3'
        ):
            act()
    with pytest.raises(RegistryError, match="could not register"):
        registry.register(three, "no-such-run")


def test_a_server_that_does_not_answer_is_named_without_its_password(stored, tmp_path):
    with socket.socket() as held:
        held.bind(("127.0.0.1", 0))
        uri = f"http://me:secret@127.0.0.1:{held.getsockname()[1]}"
        registry = Registry(uri, tmp_path)
        for act in (lambda: registry.versions("churn"), lambda: log(registry, stored, "churn")):
            with pytest.raises(RegistryError, match="MLFLOW_TRACKING_URI") as caught:
                act()
            assert "secret" not in str(caught.value)


def test_a_damaged_store_is_named(tmp_path):
    (tmp_path / "mlflow.db").write_text("this is not a database" * 99)
    with pytest.raises(RegistryError, match=r"could not list versions.*not a database"):
        Registry(None, tmp_path).versions("churn")


def test_an_address_of_no_known_kind_is_named(tmp_path):
    with pytest.raises(RegistryError, match="ftp"):
        Registry("ftp://store", tmp_path).versions("churn")


def test_the_address_comes_from_the_environment_unless_given(monkeypatch, tmp_path):
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "http://mlflow.example")
    assert Registry(None, tmp_path).uri == "http://mlflow.example"
    assert Registry("sqlite:///x.db", tmp_path).uri == "sqlite:///x.db"
