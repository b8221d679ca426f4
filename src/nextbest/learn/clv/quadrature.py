"""Three quadrature rules with fixed nodes, so that a customer's figure never depends on the others.

All integrands are positive: nothing cancels, at any parameter value.
"""

from __future__ import annotations

from functools import lru_cache
from typing import Final

import numpy as np

from nextbest.learn.clv.histories import Array

_STEP: Final = 0.28
_LEFT, _RIGHT = -3.4, 3.65


def exponential_rule(scale: float) -> tuple[Array, Array]:
    """Nodes and weights for the integral of e^-y g(y) over y > 0.

    g is bounded and may turn at any y from `scale` (at most 1) up, with singularities to the left
    of 0 only. Trapezoidal in u with y = exp(u - scale e^-u), Takahasi & Mori's (1974) substitution:
    even in log y as far down as g turns, then doubly exponential.
    """
    low = np.log(scale) + _LEFT
    u = low + _STEP * np.arange(np.ceil((_RIGHT - low) / _STEP) + 1.0)
    squeeze = scale * np.exp(-u)
    y = np.exp(u - squeeze)
    return y, _STEP * np.exp(-y) * y * (1.0 + squeeze)


@lru_cache(maxsize=8)
def legendre_rule(n: int) -> tuple[Array, Array]:
    """Nodes and weights of Gauss-Legendre on (0, 1)."""
    z, weight = np.polynomial.legendre.leggauss(n)
    return (z + 1.0) / 2.0, weight / 2.0


@lru_cache(maxsize=4096)
def beta_rule(a: float, b: float, n: int) -> tuple[Array, Array]:
    """Nodes and weights, (n,) each, for the mean of g(P) where P ~ Beta(a, b).

    Gauss-Jacobi by Golub & Welsch (1969): the density is the weight, so that a mass piled up at 0
    or 1 costs no accuracy.
    """
    # Takes longer to import than everything else here, and fitting does without.
    from scipy.linalg import eigh_tridiagonal

    lo, hi = a - 1.0, b - 1.0
    total = lo + hi
    i = np.arange(1, n)
    s = 2.0 * i + total
    # (1 + (lo^2 - hi^2) / (s (s + 2))) / 2, expanded so that nothing cancels at large b
    diagonal = (2.0 * i * (i + total) + lo * total + s) / (s * (s + 2.0))
    squared = i * (i + hi) * (i + lo) / (s * s * (s + 1.0))
    # At i = 1 the factor (i + total) / (s - 1) is 1, also where both are 0.
    squared[1:] *= (i[1:] + total) / (s[1:] - 1.0)
    nodes, vectors = eigh_tridiagonal(np.append(a / (a + b), diagonal), np.sqrt(squared))
    return np.clip(nodes, 1e-300, 1.0), vectors[0] ** 2
