"""Which features give a sensitive attribute away: who cannot read it may still read these."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
import numpy.typing as npt

from nextbest.decide.whatif import UNKNOWN, Segments

__all__ = ["association", "proxies"]

Texts = npt.NDArray[np.object_]


def association(one: Texts, other: Texts) -> float:
    """Return how strongly two divisions of the same customers go together, from 0 to 1.

    Cramér's V, corrected for what chance alone gives (Bergsma 2013): φ̃² = max(0, χ²/n −
    (r−1)(c−1)/(n−1)); V = √(φ̃² / min(r̃−1, c̃−1)), r̃ = r − (r−1)²/(n−1), c̃ alike. 0 where either
    has one value only.
    """
    _, row = np.unique(one.astype(str), return_inverse=True)
    _, column = np.unique(other.astype(str), return_inverse=True)
    r, c, n = int(row.max(initial=-1)) + 1, int(column.max(initial=-1)) + 1, len(row)
    if min(r, c) < 2 or n < 3:
        return 0.0
    counts = np.bincount(row * c + column, minlength=r * c).reshape(r, c)
    expected = counts.sum(axis=1, keepdims=True) * counts.sum(axis=0, keepdims=True) / n
    phi = float(((counts - expected) ** 2 / expected).sum()) / n
    phi = max(0.0, phi - (r - 1) * (c - 1) / (n - 1))
    least = min(r - (r - 1) ** 2 / (n - 1), c - (c - 1) ** 2 / (n - 1)) - 1
    return float(np.sqrt(phi / least)) if least > 0 else 0.0


def proxies(
    groups: Texts, features: Mapping[str, npt.NDArray[Any]], *, at_most: int = 5, least: float = 0.1
) -> list[dict[str, Any]]:
    """Return the features that say most about a group, strongest first.

    Parameters
    ----------
    groups : (n,) group of each customer; those of unknown group are left out.
    features : (n,) values by name; numbers are divided into tenths.
    at_most : so many features at most.
    least : weaker associations are left out.
    """
    known = groups != UNKNOWN
    found: list[tuple[float, str]] = []
    for name, values in features.items():
        divided = Segments.of(name, values).label(values)
        strength = association(groups[known], divided[known])
        if strength >= least:
            found.append((-strength, name))
    return [{"feature": name, "association": -less} for less, name in sorted(found)[:at_most]]
