"""Take a fitted scikit-learn estimator apart into numbers and text that anyone may load.

``EXPORTERS`` is keyed by the estimator's type; a new kind of estimator (or a general fallback such
as ONNX) is one more entry. What is not in it is refused, with the reason, before any training.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from typing import Any, Final, Literal

import numpy as np

from nextbest.errors import ArtifactError

__all__ = ["EXPORTERS", "Exporter", "Part", "export", "exportable"]

Output = Literal["probability", "value"]


@dataclass(frozen=True)
class Part:
    """One exported piece: preprocessing steps, then trees or a linear function, with its weight.

    ``body`` is LightGBM's model text, or ``{"coef": [...], "intercept": x}`` for ``logistic``.
    """

    type: Literal["lightgbm", "logistic"]
    body: str | Mapping[str, Any]
    output: Output
    steps: tuple[Mapping[str, Any], ...] = ()
    weight: float = 1.0


@dataclass(frozen=True)
class Exporter:
    """How one type of estimator is exported.

    ``refusal`` looks at the parameters (fitted or not) and returns why it cannot be exported, or
    None; ``parts`` takes a fitted estimator apart.
    """

    refusal: Callable[[Any], str | None]
    parts: Callable[[Any], list[Part]]


def _type_name(estimator: Any) -> str:
    """``package.Class``: stable where a library moves its private modules about."""
    kind = type(estimator)
    package = kind.__module__.partition(".")[0]
    return f"{package}.{kind.__qualname__}"


def exportable(estimator: Any) -> str | None:
    """Return why this estimator, fitted or not, cannot be stored without executable code.

    None means that it can. The reason is one plain sentence that says what to use instead.
    """
    exporter = EXPORTERS.get(_type_name(estimator))
    if exporter is None:
        known = ", ".join(sorted(name.partition(".")[2] for name in EXPORTERS))
        return f"{_type_name(estimator)} has no safe format here; use one of {known}"
    return exporter.refusal(estimator)


def export(estimator: Any) -> list[Part]:
    """Take a fitted estimator apart; the weights of the parts add up to 1.

    Raises ``ArtifactError`` with the reason if it cannot be exported safely.
    """
    reason = exportable(estimator)
    if reason is not None:
        raise _refused(reason)
    try:
        return EXPORTERS[_type_name(estimator)].parts(estimator)
    except AttributeError as error:
        raise _refused(f"it does not look fitted ({error})") from None


def _refused(reason: str) -> ArtifactError:
    return ArtifactError(
        "estimator",
        "it cannot be stored without executable code",
        got=reason,
        action="No pickle is ever written; choose an estimator that has a safe format.",
    )


def _binary_classes(classes: Any) -> None:
    if len(classes) != 2 or not (classes[0] == 0 and classes[1] == 1):
        raise _refused(f"its classes are {list(classes)}, not 0 and 1")


# ------------------------------------------------------------------ LightGBM


def _refuse_lightgbm(estimator: Any) -> str | None:
    if callable(estimator.objective):
        return "its objective is a Python function, which LightGBM's text format cannot hold"
    if str(estimator.objective).startswith("multiclass"):
        return "it predicts more than two classes"
    return None


def _lightgbm_text(estimator: Any) -> str:
    if estimator.booster_.pandas_categorical:
        raise _refused("it was fitted on pandas categories; let FeatureEncoder encode them")
    return str(estimator.booster_.model_to_string())


def _classifier_trees(estimator: Any) -> list[Part]:
    _binary_classes(estimator.classes_)
    return [Part("lightgbm", _lightgbm_text(estimator), "probability")]


def _regressor_trees(estimator: Any) -> list[Part]:
    return [Part("lightgbm", _lightgbm_text(estimator), "value")]


# ------------------------------------------------------------------ linear


def _logistic(estimator: Any) -> list[Part]:
    _binary_classes(estimator.classes_)
    body = {"coef": estimator.coef_[0].tolist(), "intercept": float(estimator.intercept_[0])}
    return [Part("logistic", body, "probability")]


def _never(estimator: Any) -> None:
    return None


# ------------------------------------------------------------------ preprocessing


def _refuse_imputer(step: Any) -> str | None:
    missing = step.missing_values
    if not (isinstance(missing, float) and np.isnan(missing)):
        return f"its SimpleImputer fills {missing!r}; only NaN means unknown here"
    if step.strategy not in ("mean", "median", "most_frequent", "constant"):
        return f"its SimpleImputer has the strategy {step.strategy!r}"
    return None


def _imputer(step: Any) -> dict[str, Any]:
    statistics = np.asarray(step.statistics_, dtype=np.float64)
    # A column that was never known in training is dropped by scikit-learn unless told to keep it.
    kept = np.flatnonzero(~np.isnan(statistics))
    indicators = step.indicator_.features_ if step.add_indicator else []
    return {
        "op": "impute",
        "kept": kept.tolist(),
        "statistics": statistics[kept].tolist(),
        "indicators": [int(i) for i in indicators],
    }


def _scaler(step: Any) -> dict[str, Any]:
    def listed(values: Any) -> list[float] | None:
        return None if values is None else [float(v) for v in values]

    return {
        "op": "standardize",
        "mean": listed(step.mean_ if step.with_mean else None),
        "scale": listed(step.scale_),
    }


_STEPS: Final[Mapping[str, tuple[Callable[[Any], str | None], Callable[[Any], dict[str, Any]]]]] = {
    "sklearn.SimpleImputer": (_refuse_imputer, _imputer),
    "sklearn.StandardScaler": (_never, _scaler),
    "nextbest.SignedLog1p": (_never, lambda step: {"op": "signed_log1p"}),
}


def _is_passthrough(step: Any) -> bool:
    return step is None or (isinstance(step, str) and step == "passthrough")


def _refuse_pipeline(pipeline: Any) -> str | None:
    *steps, (_, last) = pipeline.steps
    for name, step in steps:
        if _is_passthrough(step):
            continue
        if _type_name(step) not in _STEPS:
            known = ", ".join(sorted(n.partition(".")[2] for n in _STEPS))
            return f'its step "{name}" is a {_type_name(step)}; only {known} can be stored'
        reason = _STEPS[_type_name(step)][0](step)
        if reason is not None:
            return reason
    return exportable(last)


def _pipeline(pipeline: Any) -> list[Part]:
    *steps, (_, last) = pipeline.steps
    done = tuple(_STEPS[_type_name(s)][1](s) for _, s in steps if not _is_passthrough(s))
    return [replace(part, steps=done + part.steps) for part in export(last)]


# ------------------------------------------------------------------ blends


def _refuse_voting(voting: Any) -> str | None:
    if voting.voting != "soft":
        return 'its VotingClassifier votes "hard"; only voting="soft" gives a probability'
    for name, member in voting.estimators:
        reason = None if isinstance(member, str) else exportable(member)
        if reason is not None:
            return f'its member "{name}": {reason}'
    return None


def _voting(voting: Any) -> list[Part]:
    _binary_classes(voting.classes_)
    given = voting.weights or [1.0] * len(voting.estimators)
    used = [w for (_, m), w in zip(voting.estimators, given, strict=True) if not isinstance(m, str)]
    return [
        replace(part, weight=float(weight / np.sum(used)) * part.weight)
        for member, weight in zip(voting.estimators_, used, strict=True)
        for part in export(member)
    ]


#: ``package.Class`` of an estimator -> how it is exported. Exact types only: a subclass may
#: predict otherwise than its parent.
EXPORTERS: Final[dict[str, Exporter]] = {
    "lightgbm.LGBMClassifier": Exporter(_refuse_lightgbm, _classifier_trees),
    "lightgbm.LGBMRegressor": Exporter(_refuse_lightgbm, _regressor_trees),
    "sklearn.LogisticRegression": Exporter(_never, _logistic),
    "sklearn.Pipeline": Exporter(_refuse_pipeline, _pipeline),
    "sklearn.VotingClassifier": Exporter(_refuse_voting, _voting),
}
