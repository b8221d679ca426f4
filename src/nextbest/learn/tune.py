"""Search for better settings of a model's estimator, looking at nothing after the cut.

Every candidate is judged on the folds that roll forward inside the training side, as the model
itself is calibrated; the test slice cannot be passed in. Candidates come from Optuna's
tree-structured Parzen estimator (Bergstra et al. 2011; Akiba et al. 2019).
"""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from datetime import datetime
from typing import Any, Final

import numpy as np
import numpy.typing as npt
import pandas as pd
from sklearn.base import clone

from nextbest.data.snapshots import rolling_folds
from nextbest.errors import ConfigError, DataError, Fault, FitError, UsageError, did_you_mean
from nextbest.learn.estimators import FeatureEncoder, seeded
from nextbest.learn.metrics import point
from nextbest.learn.model import Model

__all__ = ["METRICS", "Trial", "TuneResult", "require_tunable", "space_faults", "tune", "tuned"]

Array = npt.NDArray[np.float64]
#: Called after each trial with its number, its settings and its value (None where it failed).
OnTrial = Callable[[int, Mapping[str, Any], float | None], None]

#: What may be optimised, and whether more of it is better.
METRICS: Final[Mapping[str, bool]] = {
    "log_loss": False,
    "brier": False,
    "auc": True,
    "average_precision": True,
}
_KEYS: Final = ("low", "high", "log", "step", "choices")


# ------------------------------------------------------------------ the search space


def space_faults(space: Mapping[str, Any], estimator: Any, where: str) -> list[Fault]:
    """Return everything that is wrong with a search space, at once.

    Parameters
    ----------
    space : a setting of the estimator, as in ``get_params(deep=True)``, -> ``{low, high}`` with an
        optional ``log = true`` or ``step``, or ``{choices = [...]}``. Whole-number ends make a
        search over whole numbers.
    estimator : the model's estimator, unfitted.
    where : how messages call the place: ``training/training.toml: models.churn.search``.
    """
    known = estimator.get_params(deep=True)
    parts = ("steps", "estimators")
    open_to_search = [
        n for n, v in known.items() if not hasattr(v, "fit") and n.split("__")[-1] not in parts
    ]
    faults: list[Fault] = []
    for name, spec in space.items():
        at = f"{where}.{name}"
        if name not in known:
            faults.append(
                Fault(
                    at,
                    "the estimator has no such setting",
                    action=did_you_mean(name, open_to_search),
                )
            )
        elif name not in open_to_search:
            faults.append(
                Fault(
                    at,
                    "this is a part of the estimator, not a setting",
                    expected="a setting such as " + ", ".join(_inside(name, open_to_search)[:3]),
                )
            )
        faults.extend(_spec_faults(at, spec))
    return faults


def _inside(part: str, names: Sequence[str]) -> list[str]:
    return [n for n in names if n.startswith(f"{part}__")] or list(names)


def _spec_faults(at: str, spec: Any) -> list[Fault]:
    shape = "{ low = ..., high = ... } or { choices = [...] }"
    if not isinstance(spec, Mapping):
        return [Fault(at, "this is no range", shape, repr(spec))]
    faults = [
        Fault(
            at,
            f'a range has no "{key}"',
            "one of " + ", ".join(_KEYS),
            action=did_you_mean(str(key), _KEYS),
        )
        for key in spec
        if key not in _KEYS
    ]
    if "choices" in spec:
        choices = spec["choices"]
        if set(spec) & {"low", "high", "log", "step"}:
            faults.append(Fault(at, "choices stand beside a range", shape))
        if not isinstance(choices, Sequence) or isinstance(choices, str) or len(choices) < 2:
            faults.append(Fault(at, "choices is wrong", "a list of at least two", repr(choices)))
        return faults
    low, high = spec.get("low"), spec.get("high")
    ends_known = True
    for key, value in (("low", low), ("high", high)):
        if not _is_number(value):
            ends_known = False
            got = "nothing" if value is None else repr(value)
            faults.append(Fault(at, f"{key} is wrong", "a finite number", got))
    log, step = spec.get("log", False), spec.get("step")
    if not isinstance(log, bool):
        faults.append(Fault(at, "log is wrong", "true or false", repr(log)))
    if step is not None and (not _is_number(step) or step <= 0):
        faults.append(Fault(at, "step is wrong", "a number above 0", repr(step)))
    if step is not None and log is True:
        faults.append(Fault(at, "step and log exclude each other", "one of the two"))
    if not ends_known:
        return faults
    assert low is not None and high is not None
    if low >= high:
        faults.append(Fault(at, "the range is empty", "low below high", f"{low} to {high}"))
    if log is True and low <= 0:
        faults.append(Fault(at, "low is wrong", "above 0 where log = true", str(low)))
    if _whole(low, high) and isinstance(step, float):
        faults.append(Fault(at, "step is wrong", "a whole number, as low and high are", repr(step)))
    return faults


def _is_number(value: Any) -> bool:
    return isinstance(value, (int, float)) and not isinstance(value, bool) and math.isfinite(value)


def _whole(*values: Any) -> bool:
    return all(isinstance(v, int) for v in values)


# ------------------------------------------------------------------ the search


@dataclass(frozen=True)
class Trial:
    """One candidate: its settings, its mean over the folds, and each fold's figure.

    ``value`` is None where it could not be fitted; ``error`` then says why. Trial 0 is the model as
    its file defines it, with no settings changed.
    """

    number: int
    params: Mapping[str, Any]
    value: float | None
    folds: tuple[float, ...] = ()
    error: str = ""

    def to_dict(self) -> dict[str, Any]:
        """Return the facts as plain JSON types."""
        return {**vars(self), "params": dict(self.params), "folds": list(self.folds)}


@dataclass(frozen=True)
class TuneResult:
    """What a search found.

    Attributes
    ----------
    best_params : the settings to change; empty where nothing beat the model as defined.
    best_value, defined_value : the metric's mean over the folds, at the best and as defined.
    better_folds : in how many folds the best beats the model as defined.
    interrupted : the search was stopped before its last trial; the best so far stands.
    """

    best_params: Mapping[str, Any]
    best_value: float
    defined_value: float
    better_folds: int
    metric: str
    trials: tuple[Trial, ...]
    interrupted: bool = False

    def to_dict(self) -> dict[str, Any]:
        """Return the facts as plain JSON types."""
        return {
            **vars(self),
            "best_params": dict(self.best_params),
            "trials": [t.to_dict() for t in self.trials],
        }

    def __str__(self) -> str:
        name, searched = self.metric.replace("_", " "), len(self.trials) - 1
        failed = sum(t.value is None for t in self.trials)
        text = f"{searched} trials" + (f", {failed} failed" if failed else "")
        text += ", stopped early: " if self.interrupted else ": "
        if not self.best_params:
            return f"{text}nothing beats the model as defined ({name} {self.defined_value:.5f})"
        settings = ", ".join(f"{k} = {_short(v)}" for k, v in self.best_params.items())
        folds = len(self.trials[0].folds)
        return (
            f"{text}{name} {self.defined_value:.5f} as defined, {self.best_value:.5f} at the best "
            f"(better in {self.better_folds} of {folds} folds): {settings}"
        )


def _short(value: Any) -> str:
    return f"{value:.4g}" if isinstance(value, float) else str(value)


@dataclass(frozen=True)
class _Fold:
    fit_X: Array
    fit_y: Array
    X: Array
    y: Array


def tune(
    model: Model,
    frame_train: pd.DataFrame,
    columns: Sequence[str],
    folds: int,
    space: Mapping[str, Any],
    n_trials: int,
    seed: int = 0,
    on_trial: OnTrial = lambda _number, _params, _value: None,
    *,
    cut: datetime,
    metric: str = "log_loss",
) -> TuneResult:
    """Search the space for settings that foretell later rows better than the model as defined.

    The objective is the mean of the metric over the rolling folds of the training side, each fitted
    on what was closed before its block begins, uncalibrated. Ctrl-C ends the search and keeps the
    best so far. The same seed and rows give the same trials.

    Parameters
    ----------
    model : a model that gives a probability; its estimator is cloned, never fitted.
    frame_train : the training side of the snapshot: ``as_of``, ``label_end``, ``label``, features.
    columns : the features.
    folds : number of rolling folds, as in the plan.
    space : as in `space_faults`.
    n_trials : candidates to try beside the model as defined.
    seed : of the search and of every estimator.
    on_trial : told each trial's number, settings and value, to log it as a nested run.
    cut : the plan's cut; a row whose label was open then is refused.
    metric : one of ``METRICS``.

    Raises
    ------
    ConfigError : the search space is wrong; all faults at once.
    DataError : rows of the test side or of the gap are among those given, or no fold can be made.
    FitError : the model as defined, or every candidate, cannot be fitted.
    UsageError : Optuna is not installed, or the model, metric or number of trials cannot be tuned.
    """
    optuna = require_tunable(model, space)
    _check(model, n_trials, metric)
    _refuse_later_rows(frame_train, cut)
    parts = _folds(frame_train, columns, folds)
    more_is_better = METRICS[metric]

    def judge(number: int, params: Mapping[str, Any]) -> Trial:
        try:
            values = tuple(_judge(model.estimator, params, fold, metric, seed) for fold in parts)
        except Exception as error:  # An estimator may raise anything for settings it dislikes.
            return Trial(number, params, None, error=f"{type(error).__name__}: {error}")
        return Trial(number, params, float(np.mean(values)), values)

    defined = judge(0, {})
    if defined.value is None:
        raise FitError(f"tune {model.name}", "the model as defined fails", got=defined.error)
    on_trial(0, {}, defined.value)
    trials, interrupted = [defined], False
    known: dict[str, Trial] = {}
    quiet = optuna.logging.get_verbosity()
    optuna.logging.set_verbosity(optuna.logging.WARNING)
    try:
        study = optuna.create_study(
            direction="maximize" if more_is_better else "minimize",
            sampler=optuna.samplers.TPESampler(seed=seed),
        )
        distributions = {n: _distribution(optuna, spec) for n, spec in space.items()}
        for number in range(1, n_trials + 1):
            asked = study.ask(distributions)
            params = {n: _value(space[n], v) for n, v in asked.params.items()}
            key = json.dumps(params, sort_keys=True, default=str)
            again = known.get(key)
            trial = replace(again, number=number) if again else judge(number, params)
            known[key] = trial
            if trial.value is None:
                study.tell(asked, state=optuna.trial.TrialState.FAIL)
            else:
                study.tell(asked, trial.value)
            trials.append(trial)
            on_trial(number, params, trial.value)
    except KeyboardInterrupt:
        interrupted = True
    finally:
        optuna.logging.set_verbosity(quiet)
    return _result(model, trials, metric, interrupted)


def tuned(model: Model, params: Mapping[str, Any]) -> Model:
    """Return the model with settings of its estimator changed."""
    return replace(model, estimator=clone(model.estimator).set_params(**params))


def require_tunable(model: Model, space: Mapping[str, Any]) -> Any:
    """Return Optuna, where it is there and the model has something to search.

    Raises
    ------
    ConfigError : there is no search space, or it is wrong; all faults at once.
    UsageError : Optuna is not installed, or the model cannot be tuned.
    """
    where = f"tune {model.name}"
    if model.kind != "probability":
        raise UsageError(
            where, "it gives no probability", expected="a propensity, churn or other rate model"
        )
    optuna = _optuna()
    if not space:
        raise ConfigError(
            f"training/training.toml: models.{model.name}",
            "there is nothing to search",
            expected=f"a table [models.{model.name}.search] with a range for each setting",
        )
    faults = space_faults(
        space, model.estimator, f"training/training.toml: models.{model.name}.search"
    )
    if faults:
        raise ConfigError(faults=faults)
    return optuna


def _optuna() -> Any:
    try:
        import optuna
    except ImportError:
        raise UsageError(
            "tune",
            "Optuna is not installed",
            action='Run `pip install "nextbest[tune]"`.',
        ) from None
    return optuna


def _check(model: Model, n_trials: int, metric: str) -> None:
    where = f"tune {model.name}"
    if n_trials < 1:
        raise UsageError(where, "too few trials", expected="at least 1", got=str(n_trials))
    if metric not in METRICS:
        raise UsageError(
            where,
            f'the metric "{metric}" cannot be tuned for',
            expected="one of " + ", ".join(METRICS),
            action=did_you_mean(metric, METRICS),
        )


def _refuse_later_rows(frame: pd.DataFrame, cut: datetime) -> None:
    moment = np.datetime64(cut.replace(tzinfo=None), "us")
    later = int((frame["label_end"].to_numpy() > moment).sum())
    if later:
        raise DataError(
            "tune",
            "rows that only the test may see are among those to tune on",
            expected=f"rows whose label was closed by {cut:%Y-%m-%d}",
            got=f"{later:,} of {len(frame):,} later ones",
        )


def _folds(frame: pd.DataFrame, columns: Sequence[str], folds: int) -> list[_Fold]:
    y = frame["label"].to_numpy(dtype=np.float64)
    out = []
    for fit, validate in rolling_folds(frame, folds):
        if not 0 < y[validate].sum() < validate.sum():
            continue
        encoder = FeatureEncoder().fit(frame.loc[fit, list(columns)])
        X = encoder.transform(frame[list(columns)])
        out.append(_Fold(X[fit], y[fit], X[validate], y[validate]))
    if not out:
        raise DataError(
            "tune",
            "the training side is too short to try settings on later rows",
            expected="moments with both outcomes before and after them",
            action="Begin earlier with train_from, or tune nothing.",
        )
    return out


def _judge(estimator: Any, params: Mapping[str, Any], fold: _Fold, metric: str, seed: int) -> float:
    fitted = seeded(clone(estimator).set_params(**params), seed).fit(fold.fit_X, fold.fit_y)
    return point(metric, fold.y, fitted.predict_proba(fold.X)[:, 1])


def _distribution(optuna: Any, spec: Mapping[str, Any]) -> Any:
    if "choices" in spec:
        # By position, so that a choice may be anything TOML can hold, a list of weights too.
        return optuna.distributions.CategoricalDistribution(list(range(len(spec["choices"]))))
    low, high, log, step = spec["low"], spec["high"], spec.get("log", False), spec.get("step")
    if _whole(low, high):
        return optuna.distributions.IntDistribution(low, high, log=log, step=step or 1)
    return optuna.distributions.FloatDistribution(float(low), float(high), log=log, step=step)


def _value(spec: Mapping[str, Any], drawn: Any) -> Any:
    return spec["choices"][drawn] if "choices" in spec else drawn


def _result(model: Model, trials: Sequence[Trial], metric: str, interrupted: bool) -> TuneResult:
    sign = -1.0 if METRICS[metric] else 1.0
    defined = trials[0]
    done = [t for t in trials if t.value is not None]
    if len(trials) > 1 and len(done) == 1:
        raise FitError(
            f"tune {model.name}",
            f"none of {len(trials) - 1} candidates could be fitted",
            got=trials[1].error,
            action=f"Mend [models.{model.name}.search] in training/training.toml.",
        )
    best = min(done, key=lambda t: (sign * (t.value or 0.0), t.number))
    assert best.value is not None and defined.value is not None
    return TuneResult(
        best_params=best.params,
        best_value=best.value,
        defined_value=defined.value,
        better_folds=sum(
            sign * a < sign * b for a, b in zip(best.folds, defined.folds, strict=True)
        ),
        metric=metric,
        trials=tuple(trials),
        interrupted=interrupted,
    )
