"""Small scikit-learn pieces that models are made of, each exportable without executable code."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import pandas as pd
from numpy.typing import NDArray
from sklearn.base import BaseEstimator, TransformerMixin, clone
from sklearn.ensemble import VotingClassifier
from sklearn.impute import SimpleImputer
from sklearn.linear_model import LogisticRegression
from sklearn.pipeline import Pipeline
from sklearn.preprocessing import StandardScaler

from nextbest.errors import DataError

Array = NDArray[np.float64]
# More categories than this say more about single customers than about groups of them.
MAX_CATEGORIES = 20


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


class FeatureEncoder(BaseEstimator):  # type: ignore[misc]
    """Turn a frame of features into the numeric matrix that estimators read.

    Numbers pass through, booleans become 0 or 1, and a text column becomes one 0/1 column for each
    value seen in training (the 20 commonest). Unknown is NaN for numbers; a text value that is
    unknown, or was not seen in training, is 0 in all of its columns.

    Attributes
    ----------
    columns_ : raw input columns, in order.
    kinds_ : ``number`` or ``category`` for each raw column.
    vocabulary_ : for each category column its values, in the order of the encoded columns.
    feature_names_ : names of the encoded columns, ``column`` or ``column=value``.
    """

    def fit(self, frame: pd.DataFrame, y: Any = None) -> FeatureEncoder:
        """Learn the columns and the vocabulary of a training frame (n rows)."""
        self.columns_ = [str(c) for c in frame.columns]
        self.vocabulary_: dict[str, list[str]] = {}
        for name in self.columns_:
            if _is_text(frame[name]):
                counts = Counter(text for text in _texts(frame[name]) if text is not None)
                common = sorted(counts, key=lambda v: (-counts[v], v))[:MAX_CATEGORIES]
                self.vocabulary_[name] = sorted(common)
        self._derive()
        return self

    def _derive(self) -> None:
        self.kinds_ = {c: "category" if c in self.vocabulary_ else "number" for c in self.columns_}
        self.feature_names_ = [
            encoded
            for c in self.columns_
            for encoded in (
                [f"{c}={v}" for v in self.vocabulary_[c]] if c in self.vocabulary_ else [c]
            )
        ]

    def transform(self, frame: pd.DataFrame | Mapping[str, Any]) -> Array:
        """Return the (n, len(feature_names_)) float64 matrix.

        Raises
        ------
        DataError : a column that the model was trained on is missing, or is not a number.
        """
        missing = [c for c in self.columns_ if c not in frame]
        if missing:
            raise DataError(
                "scoring",
                f"the input lacks {len(missing)} of the model's columns",
                expected="a row with every column the model was trained on",
                got="no " + ", ".join(missing[:5]),
            )
        parts: list[Array] = []
        for name in self.columns_:
            values = frame[name]
            if name in self.vocabulary_:
                text = np.array(_texts(values), dtype=object)
                parts.extend((text == v).astype(np.float64) for v in self.vocabulary_[name])
                continue
            try:
                parts.append(np.asarray(pd.to_numeric(pd.Series(values)), dtype=np.float64))
            except (TypeError, ValueError) as error:
                raise DataError(
                    "scoring", f'column "{name}" is not numeric', expected="numbers", got=str(error)
                ) from None
        return np.column_stack(parts) if parts else np.empty((len(frame), 0))

    def to_dict(self) -> dict[str, Any]:
        """Return what was learned as plain JSON types."""
        return {"columns": list(self.columns_), "vocabulary": dict(self.vocabulary_)}

    @classmethod
    def from_dict(cls, d: Mapping[str, Any]) -> FeatureEncoder:
        """Rebuild an encoder from `to_dict`."""
        self = cls()
        self.columns_ = [str(c) for c in d["columns"]]
        self.vocabulary_ = {str(k): [str(v) for v in vs] for k, vs in d["vocabulary"].items()}
        self._derive()
        return self


def _is_text(column: pd.Series[Any]) -> bool:
    if pd.api.types.is_numeric_dtype(column) or pd.api.types.is_bool_dtype(column):
        return False
    # Numbers and booleans with unknown values among them come as objects.
    inferred = pd.api.types.infer_dtype(column, skipna=True)
    return inferred not in ("boolean", "integer", "floating", "mixed-integer-float", "decimal")


def _texts(values: Any) -> list[str | None]:
    """Each value as text, the same in training and in scoring; unknown is None."""
    return [None if v is None or v is pd.NA or v != v else str(v) for v in values]


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
