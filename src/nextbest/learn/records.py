"""What is remembered of a run and its version, as plain values without MLflow."""

from __future__ import annotations

import shutil
import subprocess
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path
from typing import Any

from nextbest.errors import RegistryError, did_you_mean
from nextbest.learn.metrics import Metric

__all__ = [
    "Baseline",
    "Dataset",
    "Metrics",
    "Trial",
    "Version",
    "figures",
    "flat",
    "git_tags",
    "nested",
    "no_such_version",
    "stage",
]

#: split -> metric -> figure with interval, for example ``metrics["test"]["auc"].low``.
Metrics = Mapping[str, Mapping[str, Metric]]


@dataclass(frozen=True)
class Baseline:
    """The simple rule that a model must beat, measured on the same rows."""

    name: str
    metrics: Metrics


@dataclass(frozen=True)
class Dataset:
    """What a run learned from: its name, a content hash, and how many rows."""

    name: str
    digest: str
    rows: int


@dataclass(frozen=True)
class Trial:
    """One candidate of a search; ``value`` is None where it failed, and ``error`` says why."""

    number: int
    params: Mapping[str, Any]
    metric: str
    value: float | None
    error: str = ""


@dataclass(frozen=True)
class Version:
    """One registered version of a model, with the figures of its run."""

    model: str
    version: int
    run_id: str
    aliases: tuple[str, ...]
    created_at: datetime
    tags: Mapping[str, str]
    params: Mapping[str, str]
    metrics: Metrics
    baseline: Baseline | None
    counts: Mapping[str, int]


def flat(prefix: str, metrics: Metrics) -> dict[str, float]:
    """``test.auc``, ``test.auc_low``, ``test.auc_high``: the names that MLflow can sort by."""
    return {
        f"{prefix}{split}.{name}{suffix}": value
        for split, figures_of in metrics.items()
        for name, m in figures_of.items()
        for suffix, value in (("", m.value), ("_low", m.low), ("_high", m.high))
    }


def nested(metrics: Metrics) -> dict[str, dict[str, dict[str, float]]]:
    """Split -> metric -> ``{"value", "low", "high"}``, ready for JSON."""
    return {
        split: {name: m.to_dict() for name, m in figures_of.items()}
        for split, figures_of in metrics.items()
    }


def figures(d: Mapping[str, Any]) -> dict[str, dict[str, Metric]]:
    """Rebuild metrics from ``nested``."""
    return {
        split: {name: Metric.from_dict(m) for name, m in figures_of.items()}
        for split, figures_of in d.items()
    }


def git_tags(folder: Path) -> dict[str, str]:
    """The commit of the project, if it lies in a git repository, and whether files differ from it.

    ``nextbest.git_dirty`` is ``true`` where anything in the repository was changed or added since
    the commit, what git ignores and the engine's own state aside: the commit alone then does not
    say what was run.
    """
    while not folder.exists():
        folder = folder.parent
    commit = _git(folder, "rev-parse", "HEAD")
    if commit is None:
        return {}
    everything = (":/", ":(exclude,top,glob)**/.nextbest/**")
    changed = _git(folder, "status", "--porcelain", "--untracked-files=all", "--", *everything)
    dirty = {} if changed is None else {"nextbest.git_dirty": str(bool(changed)).lower()}
    return {"mlflow.source.git.commit": commit, **dirty}


def _git(folder: Path, *arguments: str) -> str | None:
    """What git answers, or None where there is no git, no repository, or no answer in time."""
    command = ["git", "-C", str(folder), *arguments]
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=10, check=True)
    except (OSError, subprocess.SubprocessError):
        return None
    return done.stdout.strip()


def stage(files: Mapping[str, Path | bytes | str], folder: Path) -> None:
    """Lay out files, text and bytes under ``folder`` by their path."""
    for name, content in files.items():
        target = folder / name
        target.parent.mkdir(parents=True, exist_ok=True)
        if isinstance(content, Path):
            shutil.copyfile(content, target)
        else:
            target.write_bytes(content.encode() if isinstance(content, str) else content)


def no_such_version(
    name: str, wanted: str, names: Sequence[str], models: Sequence[str]
) -> RegistryError:
    """The error for a version that is not there: ``names`` those that are, ``models`` if none."""
    if names:
        problem, expected = f'no version or alias "{wanted}"', f"one of {', '.join(names)}"
        return RegistryError(f'model "{name}"', problem, expected=expected, got=wanted)
    return RegistryError(
        "registry",
        f'no model "{name}" is registered',
        got=f"registered: {', '.join(models) or 'nothing yet'}",
        action=did_you_mean(name, models) or f"Run: nextbest train {name}",
    )
