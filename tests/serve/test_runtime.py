"""New bundles, catalogues and policies go live by themselves; broken ones never do."""

from __future__ import annotations

import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pytest
from prometheus_client.parser import text_string_to_metric_families
from shop import NOW, sources

from nextbest.data.profiles import Profiles
from nextbest.errors import ArtifactError, ConfigError
from nextbest.serve.bundle import write_bundle
from nextbest.serve.problems import Problem
from nextbest.serve.runtime import Runtime, load_state, open_store, serving_dir
from nextbest.serve.telemetry import Metrics


@contextmanager
def running(project: Path) -> Iterator[tuple[Runtime, Metrics]]:
    metrics = Metrics()
    runtime = Runtime(project, metrics, lambda: NOW)
    runtime.open()
    yield runtime, metrics
    runtime.close()


def value(metrics: Metrics, name: str, **labels: str) -> float | None:
    for family in text_string_to_metric_families(metrics.page().decode()):
        for sample in family.samples:
            if sample.name == name and labels.items() <= sample.labels.items():
                return sample.value
    return None


def edit(path: Path, old: str, new: str) -> None:
    text = path.read_text()
    assert old in text
    path.write_text(text.replace(old, new))


def test_a_new_policy_goes_live(project: Path) -> None:
    with running(project) as (runtime, metrics):
        before = runtime.state()
        edit(project / "serving" / "policy.toml", "at_most = 2", "at_most = 3")
        runtime.reload()
        after = runtime.state()
        assert after.rules.content_hash != before.rules.content_hash
        assert after.bundle is before.bundle
        labels = {"policy": after.rules.content_hash}
        assert value(metrics, "nextbest_bundle_info", **labels) == 1
        kind = after.bundle.models["propensity"].scorer_kind
        assert value(metrics, "nextbest_scorer_info", model="propensity", kind=kind) == 1
        assert value(metrics, "nextbest_bundle_info", policy=before.rules.content_hash) is None


@pytest.mark.parametrize(
    ("file", "old", "new", "says"),
    [
        ("policy.toml", "[clock]", "[clock", "not TOML"),
        ("policy.toml", 'after = "refusal"', 'after = "refusl"', "after"),
        ("offers.toml", "likes_mail", "liks_mail", 'Did you mean "likes_mail"?'),
    ],
)
def test_a_broken_file_leaves_the_last_good_ones_in_use(
    project: Path, file: str, old: str, new: str, says: str
) -> None:
    with running(project) as (runtime, metrics):
        before = runtime.state()
        edit(project / "serving" / file, old, new)
        runtime.reload()
        assert runtime.state() is before
        ready, detail = runtime.parts()["configuration"]
        assert ready and "the last good one stays" in detail and says in detail
        assert value(metrics, "nextbest_reload_failures_total") == 1
        runtime.reload()  # the same broken file is not tried, nor counted, again
        assert value(metrics, "nextbest_reload_failures_total") == 1
        edit(project / "serving" / file, new, old)
        runtime.reload()
        assert "stays" not in runtime.parts()["configuration"][1]


def test_a_new_bundle_goes_live_and_changes_the_scores(project: Path, artefacts: Path) -> None:
    with running(project) as (runtime, _):
        before = runtime.state()
        profiles = Profiles.open(artefacts / "profiles")
        write_bundle(serving_dir(project), sources(artefacts, "propensity-2"), profiles)
        runtime.reload()
        after = runtime.state()
        assert after.bundle.id != before.bundle.id
        digests = {state.bundle.models["propensity"].digest for state in (before, after)}
        assert len(digests) == 2


def test_a_damaged_new_bundle_leaves_the_last_good_one_in_use(
    project: Path, artefacts: Path
) -> None:
    with running(project) as (runtime, metrics):
        before = runtime.state()
        profiles = Profiles.open(artefacts / "profiles")
        new = write_bundle(serving_dir(project), sources(artefacts, "propensity-2"), profiles)
        with (serving_dir(project) / new / "profiles" / "matrix.npy").open("r+b") as file:
            file.seek(-8, os.SEEK_END)
            file.write(b"\x00" * 8)
        runtime.reload()
        assert runtime.state() is before
        ready, detail = runtime.parts()["bundle"]
        assert ready and "matrix.npy is not the file that was written" in detail
        assert value(metrics, "nextbest_reload_failures_total") == 1


def test_a_server_that_started_too_early_becomes_ready(project: Path) -> None:
    hidden = project / "hidden"
    serving_dir(project).rename(hidden)
    with running(project) as (runtime, metrics):
        with pytest.raises(Problem) as refused:
            runtime.state()
        assert refused.value.code == "not-ready"
        assert [fine for fine, _ in runtime.parts().values()] == [False, False, True]
        assert value(metrics, "nextbest_ready", part="bundle") == 0
        hidden.rename(serving_dir(project))
        runtime.reload()
        assert runtime.state().bundle.id
        runtime.parts()
        assert value(metrics, "nextbest_ready", part="bundle") == 1


def test_the_moment_is_the_policys_or_else_the_clocks(project: Path) -> None:
    state = load_state(project)
    assert state.moment(lambda: datetime(2031, 1, 1, tzinfo=UTC)) == NOW
    edit(project / "serving" / "policy.toml", "decide_as_of = 2020-03-02T09:00:00Z", "")
    free = load_state(project)
    assert free.moment(lambda: datetime(2031, 1, 1, tzinfo=UTC)).year == 2031


def test_profiles_older_than_their_limit_are_stale(project: Path) -> None:
    """The profiles are as of 1 March 2020, 00:00; the limit is two days."""
    state = load_state(project)
    assert not state.is_stale(datetime(2020, 3, 3, tzinfo=UTC))
    assert state.is_stale(datetime(2020, 3, 3, 0, 0, 1, tzinfo=UTC))


def test_ages_are_measured(project: Path) -> None:
    with running(project) as (runtime, metrics):
        runtime.measure()
        assert value(metrics, "nextbest_profile_age_seconds") == (24 + 9) * 3_600


@pytest.mark.parametrize(
    ("spoil", "error", "says"),
    [
        (lambda p: shutil.rmtree(p / ".nextbest"), ArtifactError, "nothing to serve yet"),
        (lambda p: (p / "serving" / "policy.toml").unlink(), ConfigError, "cannot be read"),
        (
            lambda p: edit(
                p / "serving" / "policy.toml", "[fallback]\noffers = ", "[fallback]\nx = "
            ),
            ConfigError,
            'unknown field "x"',
        ),
    ],
)
def test_what_is_missing_is_named(
    project: Path, spoil: Any, error: type[Exception], says: str
) -> None:
    spoil(project)
    with pytest.raises(error, match=says):
        load_state(project)


def test_the_store_is_where_the_environment_says(
    project: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("NEXTBEST_STORE", f"sqlite:///{tmp_path}/other.db")
    open_store(project).close()
    assert (tmp_path / "other.db").exists()
    assert not (project / ".nextbest" / "store.db").exists()


def test_another_policy_can_be_tried_without_touching_the_projects_own(
    project: Path, tmp_path: Path
) -> None:
    other = tmp_path / "other.toml"
    other.write_text(
        (project / "serving" / "policy.toml").read_text().replace("at_most = 2", "at_most = 9")
    )
    tried, own = load_state(project, policy_file=other), load_state(project)
    assert tried.rules.content_hash != own.rules.content_hash
    assert tried.offers.content_hash == own.offers.content_hash
