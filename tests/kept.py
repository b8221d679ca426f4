"""Training without a registry: what a run would have logged goes to a folder."""

from __future__ import annotations

import shutil
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import pandas as pd

from nextbest.data.contract import History
from nextbest.learn.train import TrainResult, train
from nextbest.project import Project

NAMES = ("propensity", "churn", "hvc", "clv")


class Kept:
    """Stands in for a registry: keeps in a folder what a run would have logged."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.logged: dict[str, dict[str, Any]] = {}

    def log_run(
        self, name: str, *, artifact_dir: Path, files: Mapping[str, Any], **rest: Any
    ) -> str:
        shutil.copytree(artifact_dir, self.folder / name / "artifact")
        for file, content in files.items():
            path = self.folder / name / file
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_bytes(content.encode() if isinstance(content, str) else content)
        self.logged[name] = rest
        return f"run of {name}"

    def register(self, name: str, run_id: str) -> int:
        assert run_id == f"run of {name}"
        return 3

    def scores(self, name: str) -> pd.DataFrame:
        return pd.read_parquet(self.folder / name / "test_scores.parquet")

    def model_bytes(self, name: str) -> dict[str, bytes]:
        return {p.name: p.read_bytes() for p in (self.folder / name / "artifact").iterdir()}


def run(
    project: Project, history: History, kept: Any, *names: str, **changes: Any
) -> dict[str, TrainResult]:
    found = {}
    for name in names:
        model = replace(project.model(name), **changes.get("model", {}))
        plan = replace(project.plan(project.model(name)), **changes.get("plan", {}))
        found[name] = train(
            model, plan, history, project.groups, kept,
            dataset="shop", seed=project.settings.seed, trials=changes.get("trials", 0),
            progress=changes.get("progress", lambda step: None),
        )  # fmt: skip
    return found
