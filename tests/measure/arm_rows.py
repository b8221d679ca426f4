"""An arm's customers as arrays, reduced to the sums that the estimators read."""

from __future__ import annotations

import numpy as np

from nextbest.measure.sums import Sums


def sums_of(y: np.ndarray, x: np.ndarray | None = None) -> Sums:
    x = np.zeros_like(y) if x is None else x
    return Sums(
        y.size, float(y.sum()), float((y * y).sum()), float(x.sum()), float((x * x).sum()),
        float((x * y).sum()), bool(np.isin(y, [0, 1]).all()),
    )  # fmt: skip
