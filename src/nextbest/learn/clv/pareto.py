"""Pareto/NBD: customers may stop at any moment."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from scipy.special import exprel

from nextbest.learn.clv.histories import Array, Cells, Index, chunks, pairs
from nextbest.learn.clv.purchase import PurchaseModel
from nextbest.learn.clv.quadrature import exponential_rule


class ParetoNBD(PurchaseModel):
    """How often customers will buy and whether they are still active, if they may leave at any
    moment.

    Buying is Poisson with rates spread as Gamma(r, alpha); lifetimes are exponential with rates
    spread as Gamma(s, beta). Learned: `r_`, `s_` (no unit), `alpha_`, `beta_` (time).

    Likelihood: Schmittlein, Morrison & Colombo (1987), Management Science 33(1), in the form of
    Fader & Hardie (2005), note 009, eq. 18; their A_0 (eq. 19, 20) is here a difference of two
    integrals over the moment of leaving, done by quadrature, which gives exact gradients.
    Probability alive: eq. 36. Expected purchases: eq. 41.

    Parameters: `penalizer`, L2 penalty, 0 or more.
    """

    parameter_names = ("r", "alpha", "s", "beta")

    r_: float
    alpha_: float
    s_: float
    beta_: float

    @staticmethod
    def _guess(unit: float, shape: float = 1.0) -> Array:
        return np.array([shape, shape * unit, 1.0, 2.0 * unit / shape])

    @classmethod
    def _is_time(cls) -> list[bool]:
        return [False, True, False, True]

    def _problem(self, cells: Cells) -> _ParetoProblem:
        return _ParetoProblem.of(cells)

    def _log_likelihood(self, cells: Cells, values: Array) -> Array:
        return _Terms(_ParetoProblem.of(cells), values).log_likelihood

    def _alive(self, cells: Cells, values: Array) -> Array:
        return _Terms(_ParetoProblem.of(cells), values).p_alive

    def _mean_if_alive(self, x: Array, T: Array, horizons: Array) -> Array:
        r, alpha, s, beta = self._values()
        stretch = np.log1p(horizons[:, None] / (beta + T))
        # (1 - e^(-(s-1) L)) / (s - 1) = L exprel(-(s-1) L): no pole at s = 1.
        lifetime = (beta + T) * stretch * exprel(-(s - 1.0) * stretch)
        out: Array = (r + x) / (alpha + T) * lifetime
        return out

    def _sample_if_alive(
        self, draws: Array, x: float, T: float, horizon: float, rng: np.random.Generator
    ) -> Array:
        r, alpha, s, beta = draws.T
        rate = rng.gamma(r + x) / (alpha + T)
        leaving = np.maximum(rng.gamma(s) / (beta + T), 1e-300)
        active = np.minimum(rng.standard_exponential(len(leaving)) / leaving, horizon)
        bought: Array = rng.poisson(np.minimum(rate * active, 1e9)).astype(np.float64)
        return bought


@dataclass(frozen=True)
class _ParetoProblem:
    """Cells, and the distinct (frequency, time) at which the integral over leaving is needed."""

    cells: Cells
    ix: Index
    it: Index
    last: Index
    now: Index

    @classmethod
    def of(cls, cells: Cells) -> _ParetoProblem:
        shape = (len(cells.x), len(cells.t))
        both, inverse = pairs(
            np.concatenate([cells.ix, cells.ix]), np.concatenate([cells.it, cells.iT]), shape
        )
        return cls(cells, both.ix, both.it, inverse[: cells.size], inverse[cells.size :])

    @property
    def size(self) -> int:
        return self.cells.size

    @property
    def weight(self) -> Array:
        return self.cells.weight

    def take(self, rows: Index, weight: Array) -> _ParetoProblem:
        return _ParetoProblem.of(self.cells.take(rows, weight))

    def loss(self, theta: Array) -> tuple[float, Array]:
        cells, values = self.cells, np.exp(theta)
        r, alpha, s, beta = values
        terms = _Terms(self, values, gradient=True)
        weight, total = cells.weight, float(cells.weight.sum())
        n_x, n_pairs = len(cells.x), len(self.ix)
        n = cells.x.astype(np.intp)

        per_x = np.bincount(cells.ix, weights=weight, minlength=n_x)
        alive = np.bincount(self.now, weights=weight * terms.p_alive, minlength=n_pairs)
        gone = np.bincount(
            self.last, weights=weight * terms.after_last, minlength=n_pairs
        ) - np.bincount(self.now, weights=weight * terms.after_now, minlength=n_pairs)
        rx, t = (r + cells.x)[self.ix], cells.t[self.it]
        harmonic = np.concatenate([[0.0], np.cumsum(1.0 / (r + np.arange(n[-1])))])[n]
        in_r = (per_x * harmonic).sum()
        gradient = np.array(
            [
                in_r + total * np.log(alpha) - (alive * np.log(alpha + t)).sum(),
                total * r / alpha - (alive * (rx / (alpha + t))).sum(),
                total * np.log(beta) - (alive * np.log(beta + t)).sum(),
                total * s / beta - (alive * (s / (beta + t))).sum(),
            ]
        )
        gradient += (terms.gradient * gone).sum(axis=1)
        return -float((weight * terms.log_likelihood).sum()) / total, -gradient * values / total


class _Terms:
    """Parts of the likelihood of each cell.

    L = K [alive(T) + F(t_x) - F(T)] with alive(t) = (alpha + t)^-(r + x) (beta + t)^-s and F(t) the
    integral over u > t of s (alpha + u)^-(r + x) (beta + u)^-(s + 1), the moment of leaving. As
    F(T) <= alive(T), the difference loses no digits.
    """

    def __init__(self, problem: _ParetoProblem, values: Array, gradient: bool = False) -> None:
        r, alpha, s, _ = values
        cells = problem.cells
        n = cells.x.astype(np.intp)
        log_alive, log_ratio, self.gradient = _leaving(
            cells.x[problem.ix], problem.ix, cells.x, cells.t[problem.it], values, gradient
        )
        now = log_alive[problem.now]
        last = log_alive[problem.last] + log_ratio[problem.last] - now
        shift = np.fmax(last, 0.0)
        scaled_alive = np.exp(-shift)
        gone, later = np.exp(last - shift), np.exp(log_ratio[problem.now] - shift)
        together = scaled_alive + np.fmax(gone - later, 0.0)
        self.p_alive: Array = scaled_alive / together
        self.after_last, self.after_now = gone / together, later / together
        rate = np.concatenate([[0.0], np.cumsum(np.log(r + np.arange(n[-1])))])[n]
        constant = rate + r * np.log(alpha) + s * np.log(values[3])
        self.log_likelihood: Array = constant[cells.ix] + now + shift + np.log(together)


def _leaving(
    x: Array, ix: Index, xs: Array, t: Array, values: Array, gradient: bool
) -> tuple[Array, Array, Array]:
    """log alive(t), log(F(t) / alive(t)) and the gradient of log F, (4, pairs), for each pair.

    With M the larger and m the smaller of alpha and beta, M + u = (M + t) e^y and k = r + s + x,
    F(t) / alive(t) = s (M + t) / ((beta + t) k) * integral of e^-Y g(Y) dY, Y = k y, with
    g = ((1 - c e^-y) / (1 - c))^-p, c = (M - m) / (M + t) and p the exponent of (m + u).
    """
    r, alpha, s, beta = values
    high, low = max(alpha, beta), min(alpha, beta)
    # Where g turns first: 1 / Y is at most p c / (1 - c) / k, for any x and t.
    nodes, weights = exponential_rule(1.0 / (1.0 + high / low * max(1.0, (s + 1.0) / (r + s))))
    y_of_x = nodes / (r + s + xs)[:, None]
    shrink_of_x = -np.expm1(-y_of_x)
    log_ratio = np.empty(len(t))
    slopes = np.empty((4, len(t))) if gradient else np.empty((4, 0))
    log_alpha, log_beta = np.log(alpha + t), np.log(beta + t)
    for part in chunks(len(t), len(nodes), 1 << 16):
        rows, rx = ix[part], (r + x[part])[:, None]
        shrink = shrink_of_x[rows]
        log_low = np.log1p((high - low) / (low + t[part, None]) * shrink)
        mass = weights * np.exp(-(rx if alpha < beta else s + 1.0) * log_low)
        integral = mass.sum(axis=1)
        log_ratio[part] = np.log(
            s * (high + t[part]) / ((beta + t[part]) * (rx[:, 0] + s)) * integral
        )
        if not gradient:
            continue
        mass /= integral[:, None]
        y = y_of_x[rows]
        # Means of log(./. + u) and 1/(. + u) over the moment of leaving u.
        log_high = (mass * y).sum(axis=1)
        log_m = log_high + (mass * log_low).sum(axis=1)
        mass *= 1.0 - shrink
        over_high = mass.sum(axis=1) / (high + t[part])
        over_low = (mass * np.exp(-log_low)).sum(axis=1) / (low + t[part])
        in_alpha, in_beta = (log_m, over_low), (log_high, over_high)
        if alpha >= beta:
            in_alpha, in_beta = in_beta, in_alpha
        slopes[0, part] = -(log_alpha[part] + in_alpha[0])
        slopes[1, part] = -rx[:, 0] * in_alpha[1]
        slopes[2, part] = 1.0 / s - (log_beta[part] + in_beta[0])
        slopes[3, part] = -(s + 1.0) * in_beta[1]
    return -(r + x) * log_alpha - s * log_beta, log_ratio, slopes
