import json
import subprocess

from nextbest.learn import records
from nextbest.learn.metrics import Metric

METRICS = {"test": {"auc": Metric(0.8, 0.7, 0.9)}, "validation": {"brier": Metric(0.1, 0.05, 0.2)}}


def test_flat_names_carry_the_interval():
    assert records.flat("baseline.", {"test": METRICS["test"]}) == {
        "baseline.test.auc": 0.8,
        "baseline.test.auc_low": 0.7,
        "baseline.test.auc_high": 0.9,
    }


def test_nested_figures_survive_json():
    assert records.figures(json.loads(json.dumps(records.nested(METRICS)))) == METRICS


def test_the_commit_is_that_of_the_folder(tmp_path):
    assert records.git_tags(tmp_path) == {}

    def git(*words):
        identity = ["-c", "user.name=t", "-c", "user.email=t@example.com"]
        done = subprocess.run(
            ["git", *identity, "-C", str(tmp_path), *words],
            check=True, capture_output=True, text=True,
        )  # fmt: skip
        return done.stdout.strip()

    git("init")
    assert records.git_tags(tmp_path) == {}
    git("commit", "--allow-empty", "-m", "first")
    commit = {"mlflow.source.git.commit": git("rev-parse", "HEAD")}
    expected = {**commit, "nextbest.git_dirty": "false"}
    assert records.git_tags(tmp_path) == expected
    assert records.git_tags(tmp_path / "not" / "there" / "yet") == expected
    state = tmp_path / "shop" / ".nextbest"
    state.mkdir(parents=True)
    (state / "mlflow.db").write_text("what the engine writes itself")
    assert records.git_tags(state) == expected
    (tmp_path / "shop" / "model.py").write_text("new")
    changed = {**commit, "nextbest.git_dirty": "true"}
    assert records.git_tags(state) == records.git_tags(tmp_path) == changed
    git("add", "shop/model.py")
    assert records.git_tags(state) == changed
    git("commit", "-m", "second")
    assert records.git_tags(state)["nextbest.git_dirty"] == "false"
    (tmp_path / "shop" / "model.py").write_text("changed")
    assert records.git_tags(state)["nextbest.git_dirty"] == "true"


def test_files_text_and_bytes_are_laid_out_by_path(tmp_path):
    (tmp_path / "given.png").write_bytes(b"\x89PNG")
    files = {"a/b.txt": "né", "c.bin": b"\x00\x01", "d.png": tmp_path / "given.png"}
    records.stage(files, tmp_path / "out")
    out = tmp_path / "out"
    assert (out / "a/b.txt").read_text(encoding="utf-8") == "né"
    assert (out / "c.bin").read_bytes() == b"\x00\x01"
    assert (out / "d.png").read_bytes() == b"\x89PNG"
