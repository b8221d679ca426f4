"""Take a fitted scikit-learn estimator apart into numbers and text that anyone may load.

What has a form of its own here (``EXPORTERS``, by the estimator's type) goes to LightGBM's text or
to JSON; every other scikit-learn classifier goes to ONNX. What cannot is refused, with the reason,
before any training.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from typing import Any, Final, Literal

import numpy as np
import numpy.typing as npt
from sklearn.exceptions import NotFittedError

from nextbest.errors import ArtifactError
from nextbest.learn import onnx_convert
from nextbest.learn.onnx_convert import CannotConvert, type_name

__all__ = ["EXPORTERS", "Exporter", "Part", "export", "exportable"]

Array = npt.NDArray[np.float64]
Output = Literal["probability", "value"]


@dataclass(frozen=True)
class Part:
    """One exported piece: preprocessing steps, then a function, with its weight.

    Attributes
    ----------
    type : of the function.
    body : what is stored of it as JSON: ``coef`` and ``intercept`` of a ``logistic``,
        ``tolerance`` and ``takes_unknown`` of an ``onnx`` graph.
    output : whether it gives a probability or a value.
    content : what is stored of it as a file of its own: LightGBM's text, the ONNX graph.
    """

    type: Literal["lightgbm", "logistic", "onnx"]
    body: Mapping[str, Any]
    output: Output
    content: bytes = b""
    steps: tuple[Mapping[str, Any], ...] = ()
    weight: float = 1.0


@dataclass(frozen=True)
class Exporter:
    """How one type of estimator is exported.

    ``refusal`` looks at the parameters (fitted or not) and returns why it cannot be exported, or
    None; ``parts`` takes a fitted estimator apart, given (n, k) rows as it reads them.
    """

    refusal: Callable[[Any], str | None]
    parts: Callable[[Any, Array], list[Part]]


def exportable(estimator: Any) -> str | None:
    """Return why this estimator, fitted or not, cannot be stored without executable code.

    None means that it can. The reason is one plain sentence that says what to do instead.
    """
    exporter = EXPORTERS.get(type_name(estimator))
    return exporter.refusal(estimator) if exporter else onnx_convert.refusal(estimator)


def export(estimator: Any, rows: Array) -> list[Part]:
    """Take a fitted estimator apart; the weights of the parts add up to 1.

    Parameters: ``rows`` (n, k) rows as the estimator reads them, some with unknown values, on
    which an ONNX graph must repeat it. Raises ``ArtifactError`` with the reason if it cannot be
    exported safely.
    """
    exporter = EXPORTERS.get(type_name(estimator))
    if exporter and (reason := exporter.refusal(estimator)):
        raise _refused(reason)
    try:
        return exporter.parts(estimator, rows) if exporter else _graph(estimator, rows)
    except CannotConvert as error:
        raise _refused(str(error)) from None
    except (AttributeError, NotFittedError) as error:
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


def _never(estimator: Any) -> None:
    return None


# ------------------------------------------------------------------ ONNX


def _graph(estimator: Any, rows: Array) -> list[Part]:
    made = onnx_convert.convert(estimator, rows)
    body = {"tolerance": made.tolerance, "takes_unknown": made.takes_unknown}
    return [Part("onnx", body, "probability", made.graph)]


# ------------------------------------------------------------------ LightGBM


def _refuse_lightgbm(estimator: Any) -> str | None:
    if callable(estimator.objective):
        return "its objective is a Python function, which LightGBM's text format cannot hold"
    if str(estimator.objective).startswith("multiclass"):
        return "it predicts more than two classes"
    return None


def _lightgbm_text(estimator: Any) -> bytes:
    if estimator.booster_.pandas_categorical:
        raise _refused("it was fitted on pandas categories; let FeatureEncoder encode them")
    return str(estimator.booster_.model_to_string()).encode()


def _classifier_trees(estimator: Any, rows: Array) -> list[Part]:
    _binary_classes(estimator.classes_)
    return [Part("lightgbm", {}, "probability", _lightgbm_text(estimator))]


def _regressor_trees(estimator: Any, rows: Array) -> list[Part]:
    return [Part("lightgbm", {}, "value", _lightgbm_text(estimator))]


# ------------------------------------------------------------------ linear


def _logistic(estimator: Any, rows: Array) -> list[Part]:
    _binary_classes(estimator.classes_)
    coef = np.ravel(estimator.coef_).tolist()
    body = {"coef": coef, "intercept": float(np.ravel(estimator.intercept_)[0])}
    return [Part("logistic", body, "probability")]


def _refuse_sgd(estimator: Any) -> str | None:
    if estimator.loss == "log_loss":
        return None
    return f'its SGDClassifier has the loss {estimator.loss!r}; only "log_loss" is a probability'


# ------------------------------------------------------------------ preprocessing


def _refuse_imputer(step: Any) -> str | None:
    missing_value = step.missing_values
    if not (isinstance(missing_value, float) and np.isnan(missing_value)):
        return f"its SimpleImputer fills {missing_value!r}; only NaN means unknown here"
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


def _own_steps(pipeline: Any) -> int:
    """How many of the first steps have a form of their own here; the others go to ONNX."""
    for n, (_, step) in enumerate(pipeline.steps[:-1]):
        if _is_passthrough(step):
            continue
        if type_name(step) not in _STEPS or _STEPS[type_name(step)][0](step):
            return n
    return len(pipeline.steps) - 1


def _refuse_pipeline(pipeline: Any) -> str | None:
    own = _own_steps(pipeline)
    if own == len(pipeline.steps) - 1:
        return exportable(pipeline.steps[-1][1])
    reason = onnx_convert.refusal(pipeline[own:])
    if reason is None:
        return None
    name, step = pipeline.steps[own]
    return f'its step "{name}" is a {type_name(step)}, so from there it goes to ONNX: {reason}'


def _pipeline(pipeline: Any, rows: Array) -> list[Part]:
    own = _own_steps(pipeline)
    done: list[dict[str, Any]] = []
    for _, step in pipeline.steps[:own]:
        if not _is_passthrough(step):
            done.append(_STEPS[type_name(step)][1](step))
            rows = np.asarray(step.transform(rows), dtype=np.float64)
    if own == len(pipeline.steps) - 1:
        parts = export(pipeline.steps[-1][1], rows)
    else:
        parts = _graph(pipeline[own:], rows)
    return [replace(part, steps=(*done, *part.steps)) for part in parts]


# ------------------------------------------------------------------ blends and wrappers


def _refuse_voting(voting: Any) -> str | None:
    if voting.voting != "soft":
        return 'its VotingClassifier votes "hard"; only voting="soft" gives a probability'
    for name, member in voting.estimators:
        reason = None if isinstance(member, str) else exportable(member)
        if reason is not None:
            return f'its member "{name}": {reason}'
    return None


def _voting(voting: Any, rows: Array) -> list[Part]:
    _binary_classes(voting.classes_)
    given = voting.weights or [1.0] * len(voting.estimators)
    used = [w for (_, m), w in zip(voting.estimators, given, strict=True) if not isinstance(m, str)]
    return [
        replace(part, weight=float(weight / np.sum(used)) * part.weight)
        for member, weight in zip(voting.estimators_, used, strict=True)
        for part in export(member, rows)
    ]


def _around(fitted: str) -> Exporter:
    """A wrapper that chooses or holds an estimator, and gives its probabilities as they are."""
    return Exporter(
        lambda wrapper: exportable(wrapper.estimator),
        lambda wrapper, rows: export(getattr(wrapper, fitted), rows),
    )


#: ``package.Class`` of an estimator -> how it is exported. Exact types only: a subclass may
#: predict otherwise than its parent.
EXPORTERS: Final[dict[str, Exporter]] = {
    "lightgbm.LGBMClassifier": Exporter(_refuse_lightgbm, _classifier_trees),
    "lightgbm.LGBMRegressor": Exporter(_refuse_lightgbm, _regressor_trees),
    "sklearn.FixedThresholdClassifier": _around("estimator_"),
    "sklearn.FrozenEstimator": _around("estimator"),
    "sklearn.GridSearchCV": _around("best_estimator_"),
    "sklearn.LinearDiscriminantAnalysis": Exporter(_never, _logistic),
    "sklearn.LogisticRegression": Exporter(_never, _logistic),
    "sklearn.LogisticRegressionCV": Exporter(_never, _logistic),
    "sklearn.Pipeline": Exporter(_refuse_pipeline, _pipeline),
    "sklearn.RandomizedSearchCV": _around("best_estimator_"),
    "sklearn.SGDClassifier": Exporter(_refuse_sgd, _logistic),
    "sklearn.TunedThresholdClassifierCV": _around("estimator_"),
    "sklearn.VotingClassifier": Exporter(_refuse_voting, _voting),
}
