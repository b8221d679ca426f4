import io
import json
from datetime import UTC, datetime

import pytest
import small_models as small
from rich.console import Console

from nextbest.errors import RegistryError
from nextbest.learn.compare import compare, table, verdict
from nextbest.learn.metrics import Metric
from nextbest.learn.registry import Baseline, Registry, Version


def version(number, *, auc=None, baseline=None, aliases=(), **metrics):
    if auc:
        metrics["auc"] = Metric(*auc)
    return Version(
        model="churn", version=number, run_id=f"r{number}", aliases=aliases,
        created_at=datetime(2026, 1, number, tzinfo=UTC), tags={}, params={},
        metrics={"test": metrics},
        baseline=Baseline("recency", {"test": {"auc": Metric(*baseline)}}) if baseline else None,
        counts={"n_test": 100, "n_positive": 10},
    )  # fmt: skip


class Shelf:
    """Versions in memory, behind the two calls that compare makes."""

    def __init__(self, *versions):
        self.kept = versions

    def versions(self, name):
        return self.kept

    def version(self, name, wanted):
        for kept in self.kept:
            if wanted in (kept.version, *kept.aliases):
                return kept
        raise RegistryError(f'model "{name}"', f'no version or alias "{wanted}"')


TWO = (
    version(1, auc=(0.80, 0.76, 0.84), baseline=(0.70, 0.66, 0.74), aliases=("champion",)),
    version(2, auc=(0.82, 0.78, 0.86), baseline=(0.79, 0.75, 0.83), brier=Metric(0.1, 0.08, 0.12)),
)


def test_every_figure_has_its_interval_and_the_baseline_too():
    found = json.loads(json.dumps(compare(Shelf(*TWO), "churn"), allow_nan=False))
    assert found["model"] == "churn"
    assert [v["version"] for v in found["versions"]] == [1, 2]
    assert found["versions"][0]["aliases"] == ["champion"]
    assert found["versions"][0]["created_at"] == "2026-01-01T00:00:00+00:00"
    assert found["versions"][1]["metrics"]["test"]["brier"] == {
        "value": 0.1, "low": 0.08, "high": 0.12,
    }  # fmt: skip
    assert found["baseline"]["name"] == "recency"
    assert found["baseline"]["metrics"]["test"]["auc"]["value"] == 0.79
    assert (found["n_test"], found["n_positive"]) == (100, 10)


def test_some_versions_by_number_or_alias():
    found = compare(Shelf(*TWO), "churn", ["champion"])
    assert [v["version"] for v in found["versions"]] == [1]
    assert found["baseline"]["metrics"]["test"]["auc"]["value"] == 0.70
    with pytest.raises(RegistryError, match='no version or alias "7"'):
        compare(Shelf(*TWO), "churn", [7])
    with pytest.raises(RegistryError, match="no version was named"):
        compare(Shelf(*TWO), "churn", [])


def test_a_model_without_versions_is_an_error_and_no_empty_comparison():
    with pytest.raises(RegistryError, match='model "chern"'):
        compare(Shelf(), "chern")


@pytest.mark.parametrize(
    ("versions", "words"),
    [
        (TWO, "Version 2 is the best of these by auc.*ahead of, but its interval overlaps"),
        (
            TWO[:1],
            r"Version 1 \(the champion\) has auc 0.8 .*clearly beats the baseline \"recency\"",
        ),
        (
            [version(1, auc=(0.7, 0.6, 0.8), baseline=(0.8, 0.7, 0.9))],
            "does not beat the baseline",
        ),
        (
            [version(1, mae=Metric(9, 8, 10)), version(2, mae=Metric(7, 6, 8))],
            "Version 2 is the best of these by mae",
        ),
        ([version(1, auc=(0.7, 0.6, 0.8)), version(2, mae=Metric(7, 6, 8))], "share no figure"),
        ([version(1)], "share no figure"),
    ],
)
def test_the_verdict_in_words(versions, words):
    import re

    assert re.search(words, verdict(versions)), verdict(versions)


def test_the_table_shows_versions_baseline_and_verdict():
    out = io.StringIO()
    result = compare(Shelf(*TWO), "churn")
    Console(file=out, width=160).print(table(result))
    text = " ".join(out.getvalue().split())
    for words in ("v1 champion", "v2", "baseline: recency", "0.82 (0.78 to 0.86)", "brier", "-"):
        assert words in text
    assert "best of these" in text


def test_a_real_registry(tmp_path, monkeypatch):
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)
    registry = Registry(None, tmp_path / "state")
    small.save_blend(tmp_path / "m")
    run_id = registry.log_run(
        "churn",
        artifact_dir=tmp_path / "m",
        params={"a": 1},
        metrics={"test": {"auc": Metric(0.8, 0.7, 0.9)}},
        baseline=Baseline("recency", {"test": {"auc": Metric(0.7, 0.6, 0.8)}}),
        counts={"n_test": 10, "n_positive": 4},
    )
    registry.register("churn", run_id)
    found = json.loads(json.dumps(compare(registry, "churn"), allow_nan=False))
    assert found["versions"][0]["metrics"]["test"]["auc"] == {"value": 0.8, "low": 0.7, "high": 0.9}
    assert found["versions"][0]["params"] == {"a": "1"}
    assert found["versions"][0]["run_id"] == run_id
