"""Small scikit-learn pieces that models are made of, each exportable without executable code."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray
from sklearn.base import BaseEstimator, TransformerMixin, clone
from sklearn.ensemble import VotingClassifier
from sklearn.impute import SimpleImputer
from sklearn.linear_model import LogisticRegression
from sklearn.pipeline import Pipeline
from sklearn.preprocessing import StandardScaler

from nextbest.learn.encoding import MAX_CATEGORIES, FeatureEncoder

__all__ = ["MAX_CATEGORIES", "FeatureEncoder", "SignedLog1p", "blend", "linear"]

Array = NDArray[np.float64]


def seeded(estimator: Any, seed: int) -> Any:
    """Return a fresh copy with every random_state that was left open set to the seed."""
    fresh = clone(estimator)
    params = fresh.get_params(deep=True)
    names = [n for n in params if n.split("__")[-1] == "random_state" and params[n] is None]
    return fresh.set_params(**dict.fromkeys(names, seed))


class SignedLog1p(TransformerMixin, BaseEstimator):  # type: ignore[misc]
    """Compress long-tailed amounts: ``sign(x) * log(1 + |x|)``; unknown stays unknown."""

    def fit(self, X: Any, y: Any = None) -> SignedLog1p:
        """Learn nothing but the number of columns."""
        self.n_features_in_ = np.asarray(X).shape[1]
        return self

    def transform(self, X: Any) -> Array:
        """Return the transformed (n, k) matrix."""
        X = np.asarray(X, dtype=np.float64)
        out: Array = np.sign(X) * np.log1p(np.abs(X))
        return out


def linear(C: float = 0.1) -> Pipeline:
    """Return a regularised logistic regression on compressed, standardised features.

    Parameters
    ----------
    C : inverse strength of the L2 penalty; smaller means simpler.
    """
    return Pipeline(
        [
            ("log", SignedLog1p()),
            ("impute", SimpleImputer(strategy="median", keep_empty_features=True)),
            ("scale", StandardScaler()),
            ("logistic", LogisticRegression(C=C, max_iter=2_000)),
        ]
    )


def blend(
    estimators: Mapping[str, Any], weights: Sequence[float] | None = None
) -> VotingClassifier:
    """Return a classifier whose probability is the (weighted) mean of several classifiers'."""
    return VotingClassifier(list(estimators.items()), voting="soft", weights=weights)
