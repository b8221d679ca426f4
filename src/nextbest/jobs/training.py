"""Train the models of a project."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from typing import TYPE_CHECKING

from nextbest.errors import ConfigError, DataError, Fault, FitError, NextbestError
from nextbest.jobs.given import features, unfed
from nextbest.project import Project, form_faults

if TYPE_CHECKING:
    from nextbest.data.contract import History
    from nextbest.learn.model import Model
    from nextbest.learn.registry import Registry
    from nextbest.learn.train import TrainResult

__all__ = ["Progress", "train", "trainable"]

Progress = Callable[[str], None]


def train(
    project: Project,
    names: Sequence[str],
    history: History,
    registry: Registry,
    progress: Progress = lambda _step: None,
    *,
    tune: int = 0,
) -> list[TrainResult]:
    """Train models by name (all, in the order of the jobs, if none is named).

    Parameters
    ----------
    tune : candidates to try in each model's search space before its fit; 0 for none.
    """
    from nextbest.learn.train import train as train_one

    models = trainable(project, names)
    found = features(project)[0]
    faults = [f for m in models for f in unfed(project, m, found)]
    if faults:
        raise ConfigError(faults=faults)
    if tune:
        _tunable(project, models)
    results = []
    for model in models:
        with _naming_the_cause(model):
            results.append(
                train_one(
                    model, project.plan(model), history, project.groups, registry,
                    dataset=project.settings.name, seed=project.settings.seed, trials=tune,
                    progress=_named(model.name, progress),
                )
            )  # fmt: skip
    return results


def _tunable(project: Project, models: Iterable[Model]) -> None:
    """Say what keeps models from being tuned before any of them is trained."""
    from nextbest.learn.tune import require_tunable

    for model in models:
        require_tunable(model, project.plan(model).search)


def trainable(project: Project, names: Sequence[str]) -> list[Model]:
    """Return models by name (all, if none is named); every fault in them shows before any work.

    Raises
    ------
    NotFoundError : there is no such model.
    ConfigError : models/ or training.toml are wrong; all faults at once.
    """
    models = [project.model(n) for n in dict.fromkeys(names)] or list(project.models.values())
    faults: list[Fault] = []
    for model in models:
        ill_formed = list(form_faults(model))
        faults += ill_formed or model.faults(project.groups)
        try:
            if not ill_formed:
                project.plan(model)
        except ConfigError as error:
            faults += error.faults
    if faults:
        raise ConfigError(faults=list(dict.fromkeys(faults)))
    return models


@contextmanager
def _naming_the_cause(model: Model) -> Iterator[None]:
    """Turn what the estimator's library or the database raises into a fault of model or data."""
    try:
        yield
    except NextbestError:
        raise
    except Exception as error:
        said = f"{type(error).__name__}: {str(error).strip().partition(chr(10))[0]}"
        passed = _packages(error)
        where = f"models/{model.name}.py"
        if passed & {"duckdb", "ibis", "sqlglot"}:
            raise DataError(
                where,
                "its features cannot be computed from the data",
                got=said,
                action="Look at models/features.py and training/sources.py.",
            ) from error
        if passed & {"sklearn", "lightgbm"}:
            raise FitError(
                where, "the estimator cannot be fitted", got=said, action="Look at its settings."
            ) from error
        raise


def _packages(error: BaseException) -> set[str]:
    """Packages that an error came from or passed through."""
    found = {type(error).__module__.partition(".")[0]}
    trace = error.__traceback__
    while trace is not None:
        found.add(str(trace.tb_frame.f_globals.get("__name__", "")).partition(".")[0])
        trace = trace.tb_next
    return found


def _named(name: str, progress: Progress) -> Progress:
    return lambda step: progress(f"{name}: {step}")
