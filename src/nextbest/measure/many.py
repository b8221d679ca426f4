"""Judging many segments at once without being fooled by the luckiest one."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Final, Literal

import numpy as np
from scipy.stats import false_discovery_control

__all__ = ["CORRECTIONS", "Correction", "adjusted", "level_of_each"]

Correction = Literal["holm", "bh"]
CORRECTIONS: Final[tuple[Correction, ...]] = ("holm", "bh")


def adjusted(p_values: Sequence[float], how: Correction) -> list[float]:
    """Return p-values that may be held against alpha although there are many.

    ``holm`` keeps the chance of any false finding to alpha (Holm 1979); ``bh`` keeps the expected
    share of false ones among the findings to alpha (Benjamini & Hochberg 1995).
    """
    p = np.asarray(p_values, dtype=np.float64)
    if p.size == 0:
        return []
    if how == "bh":
        return [float(v) for v in false_discovery_control(p, method="bh")]
    order = np.argsort(p, kind="stable")
    steps = np.maximum.accumulate((p.size - np.arange(p.size)) * p[order])
    found = np.empty_like(p)
    found[order] = np.minimum(1.0, steps)
    return [float(v) for v in found]


def level_of_each(adjusted_p: Sequence[float], how: Correction, alpha: float) -> float:
    """Return the alpha of each interval that makes all of them hold together.

    With ``holm`` all intervals hold at once (Bonferroni). With ``bh`` the expected share of
    intervals that miss, among those of findings, is at most alpha (Benjamini & Yekutieli 2005).
    """
    many = len(adjusted_p)
    if how == "bh":
        return alpha * max(1, sum(p <= alpha for p in adjusted_p)) / many
    return alpha / many
