"""What the four parametric models share: stored settings, learned attributes, plain-dict form."""

from __future__ import annotations

import inspect
from collections.abc import Mapping
from functools import lru_cache
from typing import Any, ClassVar, Final, Self

import numpy as np

from nextbest.errors import DataError, FitError
from nextbest.learn.clv.histories import Array
from nextbest.learn.clv.newton import Fit, FitDiagnostics

#: Draws behind every interval. The error of a 95% quantile is then about 0.3 percentage points.
DRAWS: Final = 4096


class Estimator:
    """scikit-learn's conventions (`get_params`, `set_params`, `clone`) without importing it."""

    def get_params(self, deep: bool = True) -> dict[str, Any]:
        """The settings given to the constructor, by name."""
        return {name: getattr(self, name) for name in inspect.signature(type(self)).parameters}

    def set_params(self, **params: Any) -> Self:
        """Change settings by name; the next `fit` uses them."""
        known = list(self.get_params())
        for name, value in params.items():
            if name not in known:
                raise DataError(
                    type(self).__name__,
                    f"unknown setting {name!r}",
                    expected=f"one of {', '.join(known)}",
                    got=repr(name),
                )
            setattr(self, name, value)
        return self

    def __repr__(self) -> str:
        shown = ", ".join(f"{name}={value!r}" for name, value in self.get_params().items())
        return f"{type(self).__name__}({shown})"


class ParametricModel(Estimator):
    """A model whose knowledge is a few positive numbers with the covariance of their logarithms.

    Learned: `parameters_` (by name), `covariance_` of log-parameters, `log_likelihood_` (sum over
    customers, without penalty), `customers_` (sum of weights), `diagnostics_`.
    """

    parameter_names: ClassVar[tuple[str, ...]]

    parameters_: dict[str, float]
    covariance_: Array
    log_likelihood_: float
    customers_: float
    diagnostics_: FitDiagnostics

    def __init__(self, penalizer: float = 0.0) -> None:
        self.penalizer = penalizer

    @property
    def standard_errors_(self) -> dict[str, float]:
        """Standard error of each parameter, by the delta method."""
        self._require_fitted("standard_errors_")
        spread = np.sqrt(np.diag(self.covariance_))
        return {
            name: value * float(s)
            for (name, value), s in zip(self.parameters_.items(), spread, strict=True)
        }

    def to_dict(self) -> dict[str, Any]:
        """The fitted model as plain strings, numbers and lists; JSON keeps every bit."""
        self._require_fitted("to_dict")
        return {
            "model": type(self).__name__,
            "penalizer": float(self.penalizer),
            "parameters": dict(self.parameters_),
            "log_covariance": self.covariance_.tolist(),
            "log_likelihood": self.log_likelihood_,
            "customers": self.customers_,
            "diagnostics": self.diagnostics_.to_dict(),
        }

    @classmethod
    def from_dict(cls, d: Mapping[str, Any]) -> Self:
        """Rebuild a fitted model from `to_dict`; raises `DataError` if it is not one."""
        where = f"{cls.__name__}.from_dict"
        kind = d.get("model") if isinstance(d, Mapping) else type(d).__name__
        if kind != cls.__name__:
            raise DataError(where, "not this model", expected=repr(cls.__name__), got=repr(kind))
        try:
            parameters = {name: float(d["parameters"][name]) for name in cls.parameter_names}
            covariance = np.array(d["log_covariance"], dtype=np.float64)
            model = cls(penalizer=float(d["penalizer"]))
            figures = float(d["log_likelihood"]), float(d["customers"])
            diagnostics = FitDiagnostics.from_dict(dict(d["diagnostics"]))
        except (KeyError, TypeError, ValueError, AttributeError) as error:
            raise DataError(
                where,
                "damaged model",
                expected="what to_dict wrote",
                got=f"{type(error).__name__}: {error}",
                action="Restore or retrain the model",
            ) from error
        k = len(cls.parameter_names)
        numbers = np.array([*parameters.values(), *figures])
        if (
            not np.isfinite(numbers).all()
            or min(parameters.values()) <= 0
            or covariance.shape != (k, k)
            or not np.isfinite(covariance).all()
            or not np.array_equal(covariance, covariance.T)
        ):
            raise DataError(
                where,
                "damaged model",
                expected=f"{k} positive parameters and a symmetric {k}x{k} covariance",
                got=f"{parameters}, covariance of shape {covariance.shape}",
                action="Restore or retrain the model",
            )
        model._learn(parameters, covariance, figures[0], figures[1], diagnostics)
        return model

    def _learn(
        self,
        parameters: dict[str, float],
        covariance: Array,
        log_likelihood: float,
        customers: float,
        diagnostics: FitDiagnostics,
    ) -> None:
        self.parameters_ = parameters
        self.covariance_ = covariance
        self.log_likelihood_ = log_likelihood
        self.customers_ = customers
        self.diagnostics_ = diagnostics
        for name, value in parameters.items():
            setattr(self, f"{name}_", value)

    def _learn_fit(self, fit: Fit, units: Array, customers: float) -> None:
        """Take over a fit whose parameters are counted in `units`."""
        values = np.exp(fit.theta) * units
        self._learn(
            {n: float(v) for n, v in zip(self.parameter_names, values, strict=True)},
            fit.covariance,
            -fit.loss * customers,
            customers,
            fit.diagnostics,
        )

    def _require_fitted(self, what: str) -> None:
        if not hasattr(self, "parameters_"):
            raise FitError(
                f"{type(self).__name__}.{what}",
                "the model is not fitted",
                action="Call fit(rfm) first",
            )

    def _require_penalizer(self, where: str) -> None:
        value = self.penalizer
        if not isinstance(value, int | float) or not 0 <= value < np.inf:
            raise DataError(
                where, '"penalizer" is out of range', expected="0 or more", got=repr(value)
            )

    def _draws(self, stream: int) -> Array:
        """Parameter values, (DRAWS, k), from the normal approximation of their logarithms."""
        theta = np.log(list(self.parameters_.values()))
        eigenvalues, vectors = np.linalg.eigh(self.covariance_)
        root = vectors * np.sqrt(np.fmax(eigenvalues, 0.0))
        # Within 20 of the estimate: beyond it, products of draws overflow and nothing changes.
        moved = np.clip(_normals(stream, len(theta)) @ root.T, -20.0, 20.0)
        out: Array = np.exp(theta + moved)
        return out


@lru_cache(maxsize=8)
def _normals(stream: int, k: int) -> Array:
    return np.random.default_rng((stream, k)).standard_normal((DRAWS, k))
