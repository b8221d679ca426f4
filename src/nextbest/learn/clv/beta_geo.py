"""BG/NBD and its modification: customers may stop only right after a purchase."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar, Final, NamedTuple

import numpy as np
from scipy.special import expit

from nextbest.learn.clv.histories import Array, Cells, Index, chunks, distinct
from nextbest.learn.clv.purchase import PurchaseModel
from nextbest.learn.clv.quadrature import beta_rule

#: Nodes of the mean over p. Their number depends on the model and the horizon only.
_FEWEST: Final = 24
_MOST: Final = 96
_BLOCK: Final = 1 << 14


class BetaGeoNBD(PurchaseModel):
    """How often customers will buy and whether they are still active, if they may leave after
    any repeat purchase.

    Buying is Poisson with rates spread as Gamma(r, alpha); after each repeat purchase a customer
    leaves with a probability spread as Beta(a, b). Learned: `r_`, `a_`, `b_` (no unit) and `alpha_`
    (time).

    Likelihood: Fader, Hardie & Lee (2005), "Counting your customers the easy way", Marketing
    Science 24(2), summed in logarithms as in their section 7. Probability alive: Fader, Hardie &
    Lee (2008), note 021. Expected purchases: the same quantity as eq. 10 of the former, written as
    the mean over a customer's own leaving probability p of (1 - (1 + p h / (alpha + T))^-(r + x)) /
    p, which has no 2F1 and no pole at a = 1.

    Parameters: `penalizer`, L2 penalty, 0 or more.
    """

    parameter_names = ("r", "alpha", "a", "b")
    #: 1 where customers may also leave before the first repeat purchase.
    _early_exit: ClassVar[int] = 0

    r_: float
    alpha_: float
    a_: float
    b_: float

    @staticmethod
    def _guess(unit: float, shape: float = 1.0) -> Array:
        return np.array([shape, shape * unit, 1.0, 2.0 / shape])

    @classmethod
    def _is_time(cls) -> list[bool]:
        return [False, True, False, False]

    def _problem(self, cells: Cells) -> _BetaGeoProblem:
        return _BetaGeoProblem(cells, self._early_exit)

    def _log_likelihood(self, cells: Cells, values: Array) -> Array:
        terms, out = _Terms(cells, values, self._early_exit), np.empty(cells.size)
        for part in chunks(cells.size, 1, _BLOCK):
            out[part] = terms.of(part).log_likelihood
        return out

    def _alive(self, cells: Cells, values: Array) -> Array:
        terms, out = _Terms(cells, values, self._early_exit), np.empty(cells.size)
        for part in chunks(cells.size, 1, _BLOCK):
            out[part] = expit(-terms.of(part).log_odds)
        return out

    def _mean_if_alive(self, x: Array, T: Array, horizons: Array) -> Array:
        r, alpha, a, b = self._values()
        n = _beta_nodes(float(horizons[-1]) / alpha)
        xs, ix = distinct(x)
        rules = [beta_rule(float(a), float(b + x + self._early_exit), n) for x in xs]
        p = np.array([nodes for nodes, _ in rules])
        weight = np.array([weights for _, weights in rules]) / p
        out = np.empty((len(horizons), len(x)))
        for part in chunks(len(x), n):
            at = ix[part]
            for i, horizon in enumerate(horizons):
                z = horizon / (alpha + T[part])
                bought = -np.expm1(-(r + x[part, None]) * np.log1p(p[at] * z[:, None]))
                out[i, part] = (weight[at] * bought).sum(axis=1)
        return out

    def _sample_if_alive(
        self, draws: Array, x: float, T: float, horizon: float, rng: np.random.Generator
    ) -> Array:
        r, alpha, a, b = draws.T
        rate = rng.gamma(r + x) / (alpha + T)
        p = np.clip(rng.beta(a, b + x + self._early_exit), 1e-300, 1.0)
        with np.errstate(divide="ignore"):
            last = np.floor(np.log(1.0 - rng.random(len(p))) / np.log1p(-p)) + 1.0
        bought = rng.poisson(np.minimum(rate * horizon, 1e9))
        out: Array = np.minimum(bought, last).astype(np.float64)
        return out


class ModifiedBetaGeoNBD(BetaGeoNBD):
    """How often customers will buy and whether they are still active, if they may leave after
    any purchase, the first included.

    As `BetaGeoNBD`, but one-time buyers can have left too. Learned: `r_`, `alpha_`, `a_`, `b_`.

    Likelihood: Batislam, Denizel & Filiztekin (2007), IJRM 24(3), appendix A, with the erratum by
    Wagner & Hoppe (2008), IJRM 25(3). Also known as the central variant of BG/NBD (Hoppe & Wagner
    2007).

    Parameters: `penalizer`, L2 penalty, 0 or more.
    """

    _early_exit = 1


def _beta_nodes(z: float) -> int:
    """Nodes for the mean over p of a function that bends at p = 1 / (r + x) z, z = horizon / alpha.

    Measured error: below 1e-9 up to 300 purchases within the horizon, below 1e-6 up to 1,000.
    """
    return int(min(np.ceil(_FEWEST + 4.0 * z), _MOST))


class _Terms:
    """The likelihood at given parameters, from tables over the distinct frequencies and times.

    log L = log of G(r + x) / G(r) * alpha^r * B(a, b + x) / B(a, b) (with x + 1 for the modified
    model), less (r + x) log(alpha + T), plus log(1 + odds), where `odds` is that of having left.
    """

    def __init__(self, cells: Cells, values: Array, early_exit: int) -> None:
        r, alpha, a, b = values
        self.cells = cells
        n = cells.x.astype(np.intp)
        i = np.arange(int(cells.x[-1]) + early_exit)
        self.repeats, self.exits = n, n + early_exit
        # x is whole, so that ratios of gamma functions are sums: exact also at a + b of a million.
        stay = _cumulative(-np.log1p(a / (b + i)))[self.exits]
        self.constant = _cumulative(np.log(r + i))[n] + r * np.log(alpha) + stay
        self.log_t = np.log(alpha + cells.t)
        self.rx = r + cells.x
        self.chances = b + cells.x - 1.0 + early_exit
        with np.errstate(divide="ignore", invalid="ignore"):
            self.log_exit = np.log(a) - np.log(self.chances)
        if not early_exit:
            self.log_exit[cells.x == 0] = -np.inf

    def of(self, part: slice) -> _CellTerms:
        ix = self.cells.ix[part]
        log_T, log_last = self.log_t[self.cells.iT[part]], self.log_t[self.cells.it[part]]
        rx = self.rx[ix]
        log_odds = self.log_exit[ix] + rx * (log_T - log_last)
        # One exponential gives the probability and log(1 + odds), at a quarter of logaddexp's time.
        small = np.exp(-np.abs(log_odds))
        left = np.where(log_odds > 0, 1.0, small) / (1.0 + small)
        likelihood = self.constant[ix] - rx * log_T + np.fmax(log_odds, 0.0) + np.log1p(small)
        return _CellTerms(likelihood, log_odds, left, rx, log_T, log_last)


class _CellTerms(NamedTuple):
    """Parts of the likelihood of some cells, (cells,) each."""

    log_likelihood: Array
    log_odds: Array
    p_left: Array
    rx: Array
    log_T: Array
    log_last: Array


@dataclass(frozen=True)
class _BetaGeoProblem:
    cells: Cells
    early_exit: int

    @property
    def size(self) -> int:
        return self.cells.size

    @property
    def weight(self) -> Array:
        return self.cells.weight

    def take(self, rows: Index, weight: Array) -> _BetaGeoProblem:
        return _BetaGeoProblem(self.cells.take(rows, weight), self.early_exit)

    def loss(self, theta: Array) -> tuple[float, Array]:
        cells, values = self.cells, np.exp(theta)
        r, alpha, a, b = values
        terms = _Terms(cells, values, self.early_exit)
        n_t, in_alpha = len(cells.t), np.zeros(len(cells.t))
        likelihood = in_r = gone = blamed = 0.0
        per_chance = np.divide(
            1.0, terms.chances, out=np.zeros(len(cells.x)), where=terms.log_exit > -np.inf
        )
        # Small blocks stay inside the cache; sums, not BLAS, whose threads cost more than they do.
        for part in chunks(self.size, 1, _BLOCK):
            weight, cell = cells.weight[part], terms.of(part)
            left = weight * cell.p_left
            stayed = weight - left
            likelihood += float((weight * cell.log_likelihood).sum())
            in_r += float((stayed * cell.log_T + left * cell.log_last).sum())
            gone += float(left.sum())
            blamed += float((left * per_chance[cells.ix[part]]).sum())
            in_alpha += np.bincount(cells.iT[part], weights=stayed * cell.rx, minlength=n_t)
            in_alpha += np.bincount(cells.it[part], weights=left * cell.rx, minlength=n_t)

        total = float(cells.weight.sum())
        per_x = np.bincount(cells.ix, weights=cells.weight, minlength=len(cells.x))
        i = np.arange(int(cells.x[-1]) + self.early_exit)
        in_r -= (per_x * _cumulative(1.0 / (r + i))[terms.repeats]).sum()
        in_a = (per_x * _cumulative(1.0 / (a + b + i))[terms.exits]).sum()
        in_b = (per_x * _cumulative(a / ((b + i) * (a + b + i)))[terms.exits]).sum()
        gradient = np.array(
            [
                total * np.log(alpha) - in_r,
                total * r / alpha - (in_alpha / (alpha + cells.t)).sum(),
                gone / a - in_a,
                in_b - blamed,
            ]
        )
        return -likelihood / total, -gradient * values / total


def _cumulative(steps: Array) -> Array:
    """Sums of the first 0, 1, 2, ... steps."""
    return np.concatenate([[0.0], np.cumsum(steps)])
