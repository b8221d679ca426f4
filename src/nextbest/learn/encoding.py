"""From a frame of features to the matrix that estimators read, the same in training and serving.

Serving reads this module, so it loads neither scikit-learn nor, for plain values, pandas.
"""

from __future__ import annotations

import sys
from collections import Counter
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any, Final

import numpy as np
from numpy.typing import NDArray

from nextbest.errors import DataError

if TYPE_CHECKING:
    import pandas as pd

__all__ = ["MAX_CATEGORIES", "FeatureEncoder"]

Array = NDArray[np.float64]
# More categories than this say more about single customers than about groups of them.
MAX_CATEGORIES: Final = 20
_PLAIN: Final = (bool, int, float, np.number, np.bool_, type(None))


class FeatureEncoder:
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

    def get_params(self, deep: bool = True) -> dict[str, Any]:
        """Return its parameters, as scikit-learn asks of estimators: there are none."""
        return {}

    def set_params(self, **parameters: Any) -> FeatureEncoder:
        """Set parameters, as scikit-learn asks of estimators: there are none to set."""
        if parameters:
            raise ValueError(f"FeatureEncoder has no parameters; got {', '.join(parameters)}")
        return self

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
                parts.append(_numbers(values))
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


def _numbers(values: Any) -> Array:
    """Read a column as numbers, unknown as NaN; what plain Python does not know pandas may."""
    if isinstance(values, np.ndarray) and values.dtype.kind in "biuf":
        return values.astype(np.float64)
    if isinstance(values, list | tuple) and all(isinstance(v, _PLAIN) for v in values):
        return np.array([np.nan if v is None else float(v) for v in values], dtype=np.float64)
    import pandas as pd

    return np.asarray(pd.to_numeric(pd.Series(values)), dtype=np.float64)


def _is_text(column: pd.Series[Any]) -> bool:
    import pandas as pd

    if pd.api.types.is_numeric_dtype(column) or pd.api.types.is_bool_dtype(column):
        return False
    # Numbers and booleans with unknown values among them come as objects.
    inferred = pd.api.types.infer_dtype(column, skipna=True)
    return inferred not in ("boolean", "integer", "floating", "mixed-integer-float", "decimal")


def _texts(values: Any) -> list[str | None]:
    """Each value as text, the same in training and in scoring; unknown is None."""
    # Where pandas was never loaded nothing can be its NA.
    na = getattr(sys.modules.get("pandas"), "NA", None)
    return [None if v is None or v is na or v != v else str(v) for v in values]
