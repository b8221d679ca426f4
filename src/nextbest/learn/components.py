"""The parts that a model's score is made of, each a plain function of the encoded matrix.

Nothing here depends on how many rows are scored together: sums run along one row at a time,
logarithms and exponentials element by element, and trees in their order.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import cached_property
from typing import TYPE_CHECKING, Any, Final, Protocol

import numpy as np
import numpy.typing as npt
from scipy.special import expit, log1p

from nextbest.learn.forest import Forest, Unsupported, read_forest

if TYPE_CHECKING:
    import lightgbm

__all__ = ["TOLERANCE", "Component", "Logistic", "OverOffers", "Steps", "Trees", "gather"]

Array = npt.NDArray[np.float64]
#: Scores in double precision may differ by this much: another processor rounds otherwise.
TOLERANCE: Final = 1e-9
#: Encoded columns that come from the customer, from the offer, and from the two together.
Origins = tuple[npt.NDArray[np.intp], npt.NDArray[np.intp], npt.NDArray[np.intp]]


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

    def only(self, columns: npt.NDArray[np.intp]) -> tuple[Steps, npt.NDArray[np.intp]]:
        """Return the same steps for some columns alone, and where what they give stands in all."""
        specs: list[Mapping[str, Any]] = []
        width = len(columns)
        for spec in self._specs:
            match spec["op"]:
                case "impute":
                    at = {int(column): i for i, column in enumerate(columns)}
                    kept, flagged = (
                        [i for i, column in enumerate(spec[name]) if int(column) in at]
                        for name in ("kept", "indicators")
                    )
                    specs.append(
                        {
                            "op": "impute",
                            "kept": [at[int(spec["kept"][i])] for i in kept],
                            "indicators": [at[int(spec["indicators"][i])] for i in flagged],
                            "statistics": spec["statistics"][kept],
                        }
                    )
                    columns = np.array([*kept, *(len(spec["kept"]) + i for i in flagged)], np.intp)
                case "standardize":
                    parts = {
                        name: None if spec[name] is None else spec[name][columns]
                        for name in ("mean", "scale")
                    }
                    specs.append({"op": "standardize", **parts})
                case _:
                    specs.append(spec)
        return Steps(specs, width), columns


class OverOffers(Protocol):
    """One part of a model, for every customer and every offer of a catalogue."""

    def fold(self, offers: Array) -> Any:
        """Do once what depends on the (m, k_o) encoded offers alone."""

    def predict(self, customers: Array, folded: Any, pairs: Array) -> Array:
        """Return the (n, m) numbers of (n, k) customers and (n, m, k_p) pairs, encoded."""


class Component(Protocol):
    """One weighted part of a model, on the encoded matrix.

    ``tolerance``: how far its numbers may lie from the estimator's, or from another machine's.
    ``scorer_kind``: what computes it: bitmask, lightgbm, linear or onnx.
    """

    weight: float
    tolerance: float

    @property
    def scorer_kind(self) -> str: ...

    def over_offers(self, origins: Origins) -> OverOffers | None:
        """Return the same part for customers x offers, the same bits; None where it needs rows."""

    def predict(self, x: Array) -> Array:
        """Return the (n,) probabilities or values."""

    def contributions(self, x: Array) -> Array:
        """Return (n, k): what each encoded column adds to the log-odds, against the average row."""


class Trees:
    """Gradient-boosted trees from LightGBM's own text format.

    Compiled where they can be (`nextbest.learn.bitmask`), by LightGBM on one thread where not: the
    same bits either way. Raises ``ValueError`` where the text is not LightGBM's, or reads other
    columns.
    """

    tolerance = TOLERANCE

    def __init__(self, text: str, steps: Steps, weight: float, n_columns: int) -> None:
        self.weight = weight
        self._text = text
        self._steps = steps
        self._n_columns = n_columns
        self._forest: Forest | None = None
        try:
            forest = read_forest(text)
            width = forest.n_columns
        except Unsupported:
            width = self._booster.num_feature()
        else:
            self._compile(forest)
        if width != len(steps.origin):
            raise ValueError(f"the trees read {width} columns, not {len(steps.origin)}")

    def _compile(self, forest: Forest) -> None:
        from nextbest.learn import bitmask  # compiles, or reads what was compiled before

        if bitmask.available():
            self._forest = forest
            self._rows = bitmask.RowScorer(forest)

    def fall_back(self) -> bool:
        """Let LightGBM score from now on; false where it does so already."""
        was_compiled = self._forest is not None
        self._forest = None
        return was_compiled

    @property
    def scorer_kind(self) -> str:
        """``bitmask``, or ``lightgbm`` where only that can score these trees here."""
        return "lightgbm" if self._forest is None else "bitmask"

    @cached_property
    def _booster(self) -> lightgbm.Booster:
        # Takes seconds to import: only where it must score, and for Shapley values.
        import lightgbm

        try:
            return lightgbm.Booster(model_str=self._text)
        except lightgbm.basic.LightGBMError as error:
            raise ValueError(f"LightGBM: {error}") from None

    def predict(self, x: Array) -> Array:
        """Return the (n,) probabilities or values."""
        z = np.ascontiguousarray(self._steps(x))
        if self._forest is not None:
            return self._rows.predict(z)
        return np.asarray(self._booster.predict(z, num_threads=1), dtype=np.float64)

    def over_offers(self, origins: Origins) -> OverOffers | None:
        """Return the same trees for customers x offers; None where LightGBM scores them."""
        return (
            None if self._forest is None else _TreesOverOffers(self._forest, self._steps, origins)
        )

    def contributions(self, x: Array) -> Array:
        """Return (n, k) exact Shapley values of the raw score (Lundberg et al. 2020)."""
        z = np.ascontiguousarray(self._steps(x))
        shap = np.asarray(self._booster.predict(z, num_threads=1, pred_contrib=True))
        return gather(shap[:, :-1], self._steps.origin, self._n_columns)


class _Split:
    """Preprocessing of customers, offers and pairs, each on its own columns."""

    def __init__(self, steps: Steps, origins: Origins) -> None:
        customers, offers, pairs = (steps.only(columns) for columns in origins)
        self.customers, self.offers = customers[0], offers[0]
        self._pairs = pairs[0]
        #: Where the columns that come out stand among all that come out of ``steps``.
        self.places = (
            customers[1].astype(np.int32),
            offers[1].astype(np.int32),
            pairs[1].astype(np.int32),
        )

    def pairs(self, x: Array) -> Array:
        n, m, width = x.shape
        return self._pairs(x.reshape(n * m, width)).reshape(n, m, -1)


class _TreesOverOffers:
    def __init__(self, forest: Forest, steps: Steps, origins: Origins) -> None:
        from nextbest.learn.bitmask import TreeScorer

        self._steps = _Split(steps, origins)
        positions = [np.full(forest.n_columns, -1, np.int32) for _ in origins]
        for position, places in zip(positions, self._steps.places, strict=True):
            position[places] = np.arange(len(places))
        self._scorer = TreeScorer(forest, *positions)

    def fold(self, offers: Array) -> Any:
        return self._scorer.fold(self._steps.offers(offers))

    def predict(self, customers: Array, folded: Any, pairs: Array) -> Array:
        return self._scorer.predict(
            self._steps.customers(customers), folded, self._steps.pairs(pairs)
        )


class Logistic:
    """A logistic regression; ``reference`` is the average row after preprocessing."""

    tolerance = TOLERANCE
    scorer_kind = "linear"

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

    def over_offers(self, origins: Origins) -> OverOffers | None:
        """Return the same regression for customers x offers; None where nothing is compiled."""
        from nextbest.learn import bitmask

        if not bitmask.available():
            return None
        return _LogisticOverOffers(self._coef, self._intercept, self._steps, origins)

    def contributions(self, x: Array) -> Array:
        """Return (n, k): coefficient x (value - average value)."""
        terms = self._coef * (self._steps(x) - self._reference)
        return gather(terms, self._steps.origin, self._n_columns)


class _LogisticOverOffers:
    def __init__(self, coef: Array, intercept: float, steps: Steps, origins: Origins) -> None:
        self._steps = _Split(steps, origins)
        self._coef = [coef[places] for places in self._steps.places]
        self._intercept = intercept

    def fold(self, offers: Array) -> Any:
        return np.asarray(self._steps.offers(offers) * self._coef[1])

    def predict(self, customers: Array, folded: Any, pairs: Array) -> Array:
        from nextbest.learn.bitmask import sum_terms

        of_customers = self._steps.customers(customers) * self._coef[0]
        of_pairs = self._steps.pairs(pairs) * self._coef[2]
        sums = sum_terms(of_customers, folded, of_pairs, self._steps.places)
        return np.asarray(expit(sums + self._intercept))


def gather(terms: Array, origin: npt.NDArray[np.intp], n_columns: int) -> Array:
    """Add up (n, k') terms by the column that each came from: (n, ``n_columns``)."""
    out = np.zeros((len(terms), n_columns))
    for j, column in enumerate(origin):
        out[:, column] += terms[:, j]
    return out
