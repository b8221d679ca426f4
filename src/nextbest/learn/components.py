"""The parts that a model's score is made of, each a plain function of the encoded matrix.

Nothing here depends on how many rows are scored together: sums run along one row at a time,
logarithms and exponentials element by element, and LightGBM on one thread.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any, Final, Protocol

import numpy as np
import numpy.typing as npt
from scipy.special import expit, log1p

if TYPE_CHECKING:
    import lightgbm

__all__ = ["TOLERANCE", "Component", "Logistic", "Steps", "Trees", "gather"]

Array = npt.NDArray[np.float64]
#: Scores in double precision may differ by this much: another processor rounds otherwise.
TOLERANCE: Final = 1e-9


class Steps:
    """Preprocessing in plain numpy: impute, signed_log1p, standardize.

    ``origin`` holds, for each column that comes out, the number of the column it came from.
    """

    def __init__(self, specs: Sequence[Mapping[str, Any]], n_columns: int) -> None:
        self._specs: list[dict[str, Any]] = []
        self.origin = np.arange(n_columns)
        for given in specs:
            spec = dict(given)
            match spec["op"]:
                case "impute":
                    for name in ("kept", "indicators"):
                        spec[name] = np.asarray(spec[name], dtype=np.intp)
                    spec["statistics"] = np.asarray(spec["statistics"], dtype=np.float64)
                    self.origin = np.concatenate(
                        [self.origin[spec["kept"]], self.origin[spec["indicators"]]]
                    )
                case "standardize":
                    for name in ("mean", "scale"):
                        if spec[name] is not None:
                            spec[name] = np.asarray(spec[name], dtype=np.float64)
                case "signed_log1p":
                    pass
                case other:
                    raise ValueError(f"unknown preprocessing step {other!r}")
            self._specs.append(spec)

    def __call__(self, x: Array) -> Array:
        """Return the transformed (n, k') matrix of the (n, k) matrix."""
        for spec in self._specs:
            match spec["op"]:
                case "impute":
                    unknown = np.isnan(x)
                    filled = np.where(
                        unknown[:, spec["kept"]], spec["statistics"], x[:, spec["kept"]]
                    )
                    x = np.concatenate([filled, unknown[:, spec["indicators"]]], axis=1)
                case "standardize":
                    x = x if spec["mean"] is None else x - spec["mean"]
                    x = x if spec["scale"] is None else x / spec["scale"]
                case _:
                    x = np.sign(x) * log1p(np.abs(x))
        return x


class Component(Protocol):
    """One weighted part of a model, on the encoded matrix.

    ``tolerance``: how far its numbers may lie from the estimator's, or from another machine's.
    """

    weight: float
    tolerance: float

    def predict(self, x: Array) -> Array:
        """Return the (n,) probabilities or values."""

    def contributions(self, x: Array) -> Array:
        """Return (n, k): what each encoded column adds to the log-odds, against the average row."""


class Trees:
    """Gradient-boosted trees from LightGBM's own text format, always on one thread.

    Raises ``ValueError`` where the text is not LightGBM's, or reads other columns.
    """

    tolerance = TOLERANCE

    def __init__(self, text: str, steps: Steps, weight: float, n_columns: int) -> None:
        import lightgbm

        self.weight = weight
        self._steps = steps
        self._n_columns = n_columns
        try:
            self._booster: lightgbm.Booster = lightgbm.Booster(model_str=text)
        except lightgbm.basic.LightGBMError as error:
            raise ValueError(f"LightGBM: {error}") from None
        if self._booster.num_feature() != len(steps.origin):
            raise ValueError(
                f"the trees read {self._booster.num_feature()} columns, not {len(steps.origin)}"
            )

    def predict(self, x: Array) -> Array:
        """Return the (n,) probabilities or values."""
        z = np.ascontiguousarray(self._steps(x))
        return np.asarray(self._booster.predict(z, num_threads=1), dtype=np.float64)

    def contributions(self, x: Array) -> Array:
        """Return (n, k) exact Shapley values of the raw score (Lundberg et al. 2020)."""
        z = np.ascontiguousarray(self._steps(x))
        shap = np.asarray(self._booster.predict(z, num_threads=1, pred_contrib=True))
        return gather(shap[:, :-1], self._steps.origin, self._n_columns)


class Logistic:
    """A logistic regression; ``reference`` is the average row after preprocessing."""

    tolerance = TOLERANCE

    def __init__(
        self, body: Mapping[str, Any], steps: Steps, weight: float, n_columns: int
    ) -> None:
        self.weight = weight
        self._steps = steps
        self._n_columns = n_columns
        self._coef = np.asarray(body["coef"], dtype=np.float64)
        self._intercept = float(body["intercept"])
        self._reference = np.asarray(body["reference"], dtype=np.float64)
        if not len(self._coef) == len(self._reference) == len(steps.origin):
            raise ValueError(f"{len(self._coef)} coefficients for {len(steps.origin)} columns")

    def predict(self, x: Array) -> Array:
        """Return the (n,) probabilities."""
        # Not a matrix product: BLAS sums in another order for one row than for many.
        terms = np.ascontiguousarray(self._steps(x) * self._coef)
        return np.asarray(expit(terms.sum(axis=1) + self._intercept))

    def contributions(self, x: Array) -> Array:
        """Return (n, k): coefficient x (value - average value)."""
        terms = self._coef * (self._steps(x) - self._reference)
        return gather(terms, self._steps.origin, self._n_columns)


def gather(terms: Array, origin: npt.NDArray[np.intp], n_columns: int) -> Array:
    """Add up (n, k') terms by the column that each came from: (n, ``n_columns``)."""
    out = np.zeros((len(terms), n_columns))
    for j, column in enumerate(origin):
        out[:, column] += terms[:, j]
    return out
