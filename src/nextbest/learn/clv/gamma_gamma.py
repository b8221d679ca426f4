"""Gamma-Gamma: what a customer spends per purchase, and whether that is tied to how often."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any, Final, Literal, Self

import numpy as np
import pandas as pd
from scipy.special import digamma, gammaln

from nextbest.errors import DataError, FitError
from nextbest.learn.clv.estimator import ParametricModel
from nextbest.learn.clv.histories import (
    Array,
    Histories,
    Index,
    distinct,
    label,
    read_histories,
    require_between,
)
from nextbest.learn.clv.newton import Start, fit_log_parameters

_SPEND_STREAM: Final = 2
_VALUE_STREAM: Final = 4
#: Correlations up to this are harmless (Fader, Hardie & Lee 2005 accept .06 on CDNOW).
_HARMLESS: Final = 0.1
_SERIOUS: Final = 0.3
#: Above this, Stirling's series with three terms is exact to rounding.
_LARGE: Final = 1e3

Verdict = Literal["holds", "weak", "violated", "unclear"]


@dataclass(frozen=True)
class Independence:
    """Whether frequent buyers also spend more or less per purchase, which the model rules out.

    `correlation` of frequency and mean spend among repeat customers, with a 95% interval that
    assumes no distribution. `verdict`: `holds` (below .1, or not told from 0), `weak` (told from
    0, below .3: values of the most frequent buyers are off by some per cent), `violated` (.3 or
    more) or `unclear` (too few customers: the interval is wider than .6).
    """

    correlation: float
    low: float
    high: float
    customers: float
    verdict: Verdict

    def to_dict(self) -> dict[str, Any]:
        return asdict(self)


class GammaGamma(ParametricModel):
    """What a customer spends per purchase on average, pulled towards the crowd where there are few
    purchases to go by.

    Spend per purchase is Gamma(p, nu), nu spread as Gamma(q, v) between customers and unrelated to
    frequency. Learned: `p_`, `q_` (no unit), `v_` (currency), `independence_`.

    Tables need `frequency` and `monetary_value` (mean value of repeat purchases, 0 where there is
    none). Only customers with repeat purchases teach the model.

    Likelihood and conditional expectation: Fader & Hardie (2013), note 025, eq. 1a and 5; Fader,
    Hardie & Lee (2005), JMR 42(4).

    Parameters: `penalizer`, L2 penalty, 0 or more (v counted in mean spend).
    """

    parameter_names = ("p", "q", "v")

    p_: float
    q_: float
    v_: float
    independence_: Independence

    def fit(self, rfm: pd.DataFrame) -> Self:
        """Learn how spend per purchase differs within and between customers.

        Raises `DataError` where a repeat customer's `monetary_value` is not above 0, and `FitError`
        without repeat customers, without a maximum, or where mean spend is infinite (q <= 1).
        """
        where = "GammaGamma.fit"
        self._require_penalizer(where)
        histories = read_histories(rfm, where, times=False, spend=True)
        repeat = (histories.x > 0) & (histories.weight > 0)
        bad = repeat & (histories.monetary_value <= 0)
        if bad.any():
            raise DataError(
                where,
                f'"monetary_value" is 0 for {int(bad.sum())} repeat customers',
                expected="above 0 where frequency is above 0",
                got=f"0 first at index {label(histories.index, int(np.argmax(bad)))}",
                action="Leave these customers out of the fit, or floor their spend",
            )
        if not repeat.any():
            raise FitError(
                where,
                "no customer has a repeat purchase",
                expected="customers with frequency above 0",
                action="Use a longer history",
            )
        x, m, weight = (
            a[repeat] for a in (histories.x, histories.monetary_value, histories.weight)
        )
        customers = float(weight.sum())
        mean = float((weight * m).sum()) / customers
        fit = fit_log_parameters(
            _SpendProblem.of(x, m / mean, weight),
            [
                Start(np.log([p, q, (q - 1.0) / p]), f"{mean:.6g} (mean spend)")
                for p, q in ((1.0, 2.0), (6.0, 4.0), (1.0, 10.0))
            ],
            names=self.parameter_names,
            customers=customers,
            penalizer=float(self.penalizer),
            where=where,
        )
        if (q := float(np.exp(fit.theta[1]))) <= 1.0:
            raise FitError(
                where,
                "expected spend is infinite under the fitted model",
                expected="q above 1",
                got=f"q {q:.3g}: a few customers spend very much more than all others",
                action="Cap monetary_value, for example at its 99.9th percentile",
            )
        self._learn_fit(fit, np.array([1.0, 1.0, mean]), customers)
        # The density is of m, not of m / mean.
        self.log_likelihood_ -= customers * float(np.log(mean))
        self.independence_ = _independence(x, m, weight)
        return self

    def expected_value(self, rfm: pd.DataFrame) -> pd.Series:
        """Expected spend per future purchase of each customer, (customers,) in currency."""
        histories = self._read(rfm, "expected_value")
        return pd.Series(self._expected(histories), histories.index, name="expected_value")

    def predict(self, rfm: pd.DataFrame) -> pd.DataFrame:
        """`expected_value` as a table of one column."""
        return self.expected_value(rfm).to_frame()

    def predict_interval(self, rfm: pd.DataFrame, level: float = 0.9) -> pd.DataFrame:
        """Between which bounds a customer's true mean spend per purchase lies, with probability
        `level`: columns `value_low` and `value_high`."""
        histories = self._read(rfm, "predict_interval", level=level)
        draws = self._draws(_SPEND_STREAM)
        frequencies, inverse = distinct(histories.x)
        tails = [(1.0 - level) / 2.0, (1.0 + level) / 2.0]
        bounds = np.empty((2, len(frequencies)))
        for i, x in enumerate(frequencies):
            rng = np.random.default_rng((_VALUE_STREAM, int(x)))
            bounds[:, i] = np.quantile(draws[:, 0] * self._per_scale(draws, float(x), rng), tails)
        low, high = bounds[:, inverse] * self._scale(histories)
        return pd.DataFrame({"value_low": low, "value_high": high}, index=histories.index)

    def to_dict(self) -> dict[str, Any]:
        """The fitted model as plain strings, numbers and lists; JSON keeps every bit."""
        return {**super().to_dict(), "independence": self.independence_.to_dict()}

    @classmethod
    def from_dict(cls, d: Mapping[str, Any]) -> Self:
        """Rebuild a fitted model from `to_dict`; raises `DataError` if it is not one."""
        model = super().from_dict(d)
        try:
            model.independence_ = Independence(**d["independence"])
        except (KeyError, TypeError) as error:
            raise DataError(
                "GammaGamma.from_dict",
                "damaged model",
                expected="what to_dict wrote",
                got=f"{type(error).__name__}: {error}",
            ) from error
        return model

    def _read(self, rfm: pd.DataFrame, what: str, level: float = 0.5) -> Histories:
        where = f"GammaGamma.{what}"
        self._require_fitted(what)
        require_between(where, 0.0, 1.0, level=level)
        return read_histories(rfm, where, times=False, spend=True)

    def _expected(self, histories: Histories) -> Array:
        return self.p_ * self._scale(histories) / (self.p_ * histories.x + self.q_ - 1.0)

    def _scale(self, histories: Histories) -> Array:
        """v + x m: a customer's spend is this times a draw that depends on x alone."""
        return self.v_ + histories.x * histories.monetary_value

    def _per_scale(self, draws: Array, x: float, rng: np.random.Generator) -> Array:
        """Draws of 1 / nu in units of the scale.

        The scale holds the fitted v; draws of v enter for a customer of average spend, which is
        exact at x = 0 and fades as x grows.
        """
        p, q, v = draws.T
        crowd = x * self.p_ * self.v_ / (self.q_ - 1.0)
        moved = (v + crowd) / (self.v_ + crowd)
        out: Array = moved / np.maximum(rng.gamma(q + p * x), 1e-300)
        return out


class SpendWorth:
    """The sum of a number of purchases, in units of the customer's spend scale."""

    def __init__(self, model: GammaGamma) -> None:
        self._model = model
        self._draws = model._draws(_SPEND_STREAM)

    def __call__(self, counts: Array, x: float, rng: np.random.Generator) -> Array:
        per_scale = self._model._per_scale(self._draws, x, rng)
        out: Array = rng.gamma(self._draws[:, 0] * counts) * per_scale
        return out


@dataclass(frozen=True)
class _SpendProblem:
    """Repeat customers: `x` is a table that `ix` points into, `total` is x m, both (customers,)."""

    x: Array
    ix: Index
    total: Array
    log_m: Array
    weight: Array

    @classmethod
    def of(cls, x: Array, m: Array, weight: Array) -> _SpendProblem:
        table, ix = distinct(x)
        return cls(table, ix, x * m, np.log(m), weight)

    @property
    def size(self) -> int:
        return len(self.weight)

    def take(self, rows: Index, weight: Array) -> _SpendProblem:
        return _SpendProblem(self.x, self.ix[rows], self.total[rows], self.log_m[rows], weight)

    def loss(self, theta: Array) -> tuple[float, Array]:
        p, q, v = np.exp(theta)
        w, n = self.weight, len(self.x)
        # log(v / (v + x m)) and log(x m / (v + x m)) stay exact at large p and q.
        ratio = self.total / v
        log_rest, log_share = -np.log1p(ratio), -np.log1p(1.0 / ratio)
        per_x = np.bincount(self.ix, weights=w, minlength=n)
        share_of_x = np.bincount(self.ix, weights=w * log_share, minlength=n)
        below = np.bincount(self.ix, weights=w / (v + self.total), minlength=n)
        px = p * self.x
        total = float(per_x.sum())
        rest = float((w * log_rest).sum())
        log_rise, slope = _rise(px, q)
        likelihood = (
            per_x @ (log_rise - gammaln(q))
            + q * rest
            + px @ share_of_x
            - float((w * self.log_m).sum())
        )
        gradient = np.array(
            [
                self.x @ (per_x * slope + share_of_x),
                per_x @ (digamma(px + q) - digamma(q)) + rest,
                total * q / v - (px + q) @ below,
            ]
        )
        return -float(likelihood) / total, -gradient * np.array([p, q, v]) / total


def _rise(z: Array, q: float) -> tuple[Array, Array]:
    """log of Gamma(z + q) / Gamma(z) and its slope in z.

    At large z by the difference of two Stirling series: the difference of two log-gammas would lose
    the digits that decide whether p has a maximum at all.
    """
    large = np.fmax(z, _LARGE)
    a, b = 1.0 / large, 1.0 / (large + q)
    stretch = np.log1p(q / large)
    tail = (b - a) / 12.0 - (b**3 - a**3) / 360.0
    series = (large + q - 0.5) * stretch + q * (np.log(large) - 1.0) + tail
    slopes = stretch - (b - a) / 2.0 - (b**2 - a**2) / 12.0 + (b**4 - a**4) / 120.0
    return (
        np.where(z >= _LARGE, series, gammaln(z + q) - gammaln(z)),
        np.where(z >= _LARGE, slopes, digamma(z + q) - digamma(z)),
    )


def _independence(x: Array, m: Array, weight: Array) -> Independence:
    """Correlation with an interval from its influence function, on Fisher's z scale.

    The usual interval supposes a normal distribution, and spend is far from it.
    """
    n = float(weight.sum())
    zx, zm = (_standardised(a, weight) for a in (x, m))
    if zx is None or zm is None or n < 4:
        return Independence(0.0, -1.0, 1.0, n, "unclear")
    r = float((weight * zx * zm).sum()) / n
    influence = zx * zm - r / 2.0 * (zx * zx + zm * zm)
    spread = float(np.sqrt((weight * influence**2).sum())) / n
    r_inside = float(np.clip(r, -0.999999, 0.999999))
    z, half = np.arctanh(r_inside), 1.96 * spread / (1.0 - r_inside**2)
    low, high = float(np.tanh(z - half)), float(np.tanh(z + half))
    verdict: Verdict
    if high - low > 0.6:
        verdict = "unclear"
    elif low <= 0.0 <= high or abs(r) < _HARMLESS:
        verdict = "holds"
    else:
        verdict = "weak" if abs(r) < _SERIOUS else "violated"
    return Independence(r, low, high, n, verdict)


def _standardised(values: Array, weight: Array) -> Array | None:
    total = float(weight.sum())
    centred = values - float((weight * values).sum()) / total
    spread = float(np.sqrt((weight * centred**2).sum() / total))
    # Values that differ by rounding only have no correlation with anything.
    return centred / spread if spread > 1e-9 * float(np.abs(values).max()) else None
