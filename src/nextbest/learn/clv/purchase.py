"""What the purchase models share: fitting on cells, forecasts, and intervals for each customer.

All three models have a hidden buying rate and a hidden end of the relationship. Given that a
customer is still active at T, the future depends on (frequency, T) alone. Hence every forecast is
`p_alive` (one number per customer) times a mean over active customers (one number per distinct
(frequency, T)).
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from typing import Final, Self

import numpy as np
import pandas as pd

from nextbest.errors import FitError
from nextbest.learn.clv.estimator import ParametricModel
from nextbest.learn.clv.histories import (
    Array,
    Cells,
    Histories,
    distinct,
    pairs,
    read_histories,
    require_between,
    require_positive,
)
from nextbest.learn.clv.intervals import FutureTables, zero_inflated_interval
from nextbest.learn.clv.newton import Problem, Start, fit_log_parameters
from nextbest.learn.clv.quadrature import legendre_rule

_DISCOUNT_NODES: Final = 8


class PurchaseModel(ParametricModel, ABC):
    """Base of `BetaGeoNBD`, `ModifiedBetaGeoNBD` and `ParetoNBD`.

    Tables given to any method have one row per customer: `frequency` (repeat-purchase periods),
    `recency` (age at the last purchase) and `T` (age now), the last two in one time unit of your
    choice; horizons are in that unit too. Every method raises `DataError` on NaN, infinite or
    negative values and on `recency > T`, and `FitError` before `fit`.
    """

    def fit(self, rfm: pd.DataFrame) -> Self:
        """Learn from the customer base how fast people buy and how soon they stop.

        `rfm` may hold `weight`, the number of customers that a row stands for. With `penalizer`
        above 0, that times the sum of squared parameters (times counted in the largest T, as in
        `lifetimes`) is taken from the mean log-likelihood. Raises `FitError`, with advice, where
        there is no maximum; a flat one is recorded in `diagnostics_.identified` and `.notes`.
        """
        where = f"{type(self).__name__}.fit"
        self._require_penalizer(where)
        cells = Cells.collapse(read_histories(rfm, where))
        longest = float(cells.t[cells.iT].max())
        repeats = float((cells.weight * cells.x[cells.ix]).sum())
        if repeats == 0 or longest == 0:
            raise FitError(
                where,
                "nothing to learn from",
                expected="some customers with repeat purchases and T above 0",
                got=f"{repeats:g} repeat purchases, largest T {longest:g}",
                action="Use an earlier start of history or a finer purchase period",
            )
        customers = float(cells.weight.sum())
        gap = float((cells.weight * cells.t[cells.iT]).sum()) / repeats
        fit = fit_log_parameters(
            self._problem(cells.in_unit(longest)),
            [
                Start(np.log(self._guess(unit / longest)), f"{unit:.6g} ({name})")
                for name, unit in (("gap between purchases", gap), ("largest T", longest))
            ]
            + [Start(np.log(self._guess(0.1 * gap / longest, 0.3)), f"{0.1 * gap:.6g} (gap/10)")],
            names=self.parameter_names,
            customers=customers,
            penalizer=float(self.penalizer),
            where=where,
        )
        self._learn_fit(fit, np.where(self._is_time(), longest, 1.0), customers)
        # The density of purchase times has the unit 1 / time for each repeat purchase.
        self.log_likelihood_ -= repeats * float(np.log(longest))
        return self

    def log_likelihood(self, rfm: pd.DataFrame) -> pd.Series:
        """How well the model explains each customer's history: log-likelihoods, (customers,)."""
        histories = self._read(rfm, "log_likelihood")
        cells = Cells.rows(histories)
        return pd.Series(
            self._log_likelihood(cells, self._values()), histories.index, name="log_likelihood"
        )

    def probability_alive(self, rfm: pd.DataFrame) -> pd.Series:
        """Probability that each customer will still buy at all, (customers,) in 0-1."""
        histories = self._read(rfm, "probability_alive")
        return pd.Series(self._p_alive(histories), histories.index, name="p_alive")

    def expected_purchases(self, rfm: pd.DataFrame, horizon: float) -> pd.Series:
        """How many purchases to expect from each customer in the next `horizon` time units."""
        histories = self._read(rfm, "expected_purchases", horizon=horizon)
        expected, _ = self._expected(histories, horizon, 0.0)
        return pd.Series(
            self._p_alive(histories) * expected, histories.index, name="expected_purchases"
        )

    def predict(self, rfm: pd.DataFrame, horizon: float) -> pd.DataFrame:
        """Expected purchases over `horizon` and probability alive, one row per customer."""
        histories = self._read(rfm, "predict", horizon=horizon)
        p_alive = self._p_alive(histories)
        expected, _ = self._expected(histories, horizon, 0.0)
        return pd.DataFrame(
            {"expected_purchases": p_alive * expected, "p_alive": p_alive}, index=histories.index
        )

    def predict_interval(
        self, rfm: pd.DataFrame, horizon: float, level: float = 0.9
    ) -> pd.DataFrame:
        """Between which counts each customer's purchases over `horizon` will fall, with
        probability `level` (or a little more, as counts are whole).

        Columns `purchases_low` and `purchases_high`. Both the uncertainty of the parameters and
        each customer's own chance are in it. Customers who may well buy nothing get an interval
        from 0, see `zero_inflated_interval`.
        """
        histories = self._read(rfm, "predict_interval", horizon=horizon, level=level)
        tables = FutureTables(self, horizon)
        low, high = zero_inflated_interval(tables, histories, self._mean_p_alive(histories), level)
        return pd.DataFrame(
            {"purchases_low": np.floor(low), "purchases_high": np.ceil(high)},
            index=histories.index,
        )

    # What a model must say of itself. `values` are its parameters in `parameter_names` order.

    @staticmethod
    @abstractmethod
    def _guess(unit: float, shape: float = 1.0) -> Array:
        """A start: parameters where `unit` is the natural time unit."""

    @classmethod
    @abstractmethod
    def _is_time(cls) -> list[bool]:
        """Which parameters are times."""

    @abstractmethod
    def _problem(self, cells: Cells) -> Problem:
        """The likelihood to maximise."""

    @abstractmethod
    def _log_likelihood(self, cells: Cells, values: Array) -> Array:
        """(cells,)"""

    @abstractmethod
    def _alive(self, cells: Cells, values: Array) -> Array:
        """Probability of being active at T, (cells,)."""

    @abstractmethod
    def _mean_if_alive(self, x: Array, T: Array, horizons: Array) -> Array:
        """Expected purchases within each of `horizons` if active at T, (horizons, len(T))."""

    @abstractmethod
    def _sample_if_alive(
        self, draws: Array, x: float, T: float, horizon: float, rng: np.random.Generator
    ) -> Array:
        """One future purchase count for each row of parameter draws, if active at T."""

    def _values(self) -> Array:
        return np.array(list(self.parameters_.values()))

    def _read(
        self, rfm: pd.DataFrame, what: str, *, horizon: float = 1.0, level: float = 0.5
    ) -> Histories:
        where = f"{type(self).__name__}.{what}"
        self._require_fitted(what)
        require_positive(where, horizon=horizon)
        require_between(where, 0.0, 1.0, level=level)
        return read_histories(rfm, where)

    def _p_alive(self, histories: Histories) -> Array:
        return self._alive(Cells.rows(histories), self._values())

    def _mean_p_alive(self, histories: Histories) -> Array:
        """Probability alive averaged over the parameters' uncertainty, by 2k sigma points
        (Julier & Uhlmann 2004): exact to third order in the uncertainty."""
        cells = Cells.rows(histories)
        theta = np.log(self._values())
        eigenvalues, vectors = np.linalg.eigh(self.covariance_)
        k = len(theta)
        moves = (vectors * np.sqrt(k * np.fmax(eigenvalues, 0.0))).T
        total = np.zeros(cells.size)
        for move in np.concatenate([moves, -moves]):
            total += self._alive(cells, np.exp(theta + move))
        return total / (2 * k)

    def _expected(
        self, histories: Histories, horizon: float, discount_rate: float
    ) -> tuple[Array, Array]:
        """Expected purchases within `horizon` if active, plain and discounted, (customers,) each.

        The discounted stream is the integral of e^(-d u) dE(u) over the horizon (the discounted
        expected transactions of Fader, Hardie & Lee 2005, JMR 42(4), cut at the horizon), by parts
        e^(-d h) E(h) + d * integral of e^(-d u) E(u) du, with Gauss-Legendre in u.
        """
        x, ix = distinct(histories.x)
        t, it = distinct(histories.T)
        both, inverse = pairs(ix, it, (len(x), len(t)))
        nodes, weights = legendre_rule(_DISCOUNT_NODES)
        horizons = horizon * np.append(nodes, 1.0) if discount_rate > 0 else np.array([horizon])
        expected = self._mean_if_alive(x[both.ix], t[both.it], horizons)
        plain = expected[-1]
        if discount_rate == 0:
            return plain[inverse], plain[inverse]
        fade = np.exp(-discount_rate * horizons)
        inner = weights * fade[:-1] * horizon
        discounted = fade[-1] * plain
        for w, values in zip(inner, expected[:-1], strict=True):
            discounted = discounted + discount_rate * w * values
        return plain[inverse], discounted[inverse]
