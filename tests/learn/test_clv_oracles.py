"""Formulas against code, integrals and simulations that do not share a line with ours."""

from __future__ import annotations

from functools import lru_cache
from typing import Any

import clv_data as data
import numpy as np
import pandas as pd
import pytest
from clv_data import lifetimes
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.integrate import quad
from scipy.special import beta as beta_function

from nextbest.learn.clv import (
    PURCHASE_MODELS,
    BetaGeoNBD,
    GammaGamma,
    ModifiedBetaGeoNBD,
    ParetoNBD,
    PurchaseModel,
)
from nextbest.learn.clv.gamma_gamma import _SpendProblem
from nextbest.learn.clv.histories import Cells, read_histories

NAMES = list(PURCHASE_MODELS)
FITTERS = {
    "BetaGeoNBD": lifetimes.BetaGeoFitter,
    "ModifiedBetaGeoNBD": lifetimes.ModifiedBetaGeoFitter,
    "ParetoNBD": lifetimes.ParetoNBDFitter,
}
shapes = st.floats(0.1, 8.0)
times = st.floats(0.5, 60.0)
histories = st.lists(
    st.tuples(st.integers(0, 40), st.floats(0.0, 1.0), st.floats(1.0, 80.0)),
    min_size=1,
    max_size=8,
)


def fitted(name: str, values: tuple[float, ...]) -> PurchaseModel:
    """A model with given parameters, as if it had been fitted."""
    kind = PURCHASE_MODELS[name]
    parameters = dict(zip(kind.parameter_names, values, strict=True))
    return kind.from_dict({**template(name), "parameters": parameters})


@lru_cache(maxsize=3)
def template(name: str) -> dict[str, Any]:
    return PURCHASE_MODELS[name]().fit(data.simulate(400).rfm).to_dict()


def oracle(name: str, values: tuple[float, ...]) -> Any:
    fitter = FITTERS[name]()
    fitter.params_ = pd.Series(values, index=list(PURCHASE_MODELS[name].parameter_names))
    return fitter


def table(rows: list[tuple[int, float, float]]) -> pd.DataFrame:
    """Histories where recency is given as a share of T."""
    x, share, age = (np.array(column, dtype=float) for column in zip(*rows, strict=True))
    return pd.DataFrame({"frequency": x, "recency": np.where(x > 0, share * age, 0.0), "T": age})


def parameters(name: str, first: float, second: float, third: float, fourth: float) -> Any:
    return (first, second, third, fourth * (10.0 if name == "ParetoNBD" else 1.0))


@pytest.mark.parametrize("name", NAMES)
@settings(max_examples=60, deadline=None)
@given(rows=histories, r=shapes, alpha=times, a=shapes, b=shapes, horizon=st.floats(0.5, 60.0))
def test_agrees_with_lifetimes(
    name: str, rows: Any, r: float, alpha: float, a: float, b: float, horizon: float
) -> None:
    if abs(a - 1.0) < 0.01:
        a += 0.05  # lifetimes divides by a - 1, and by s - 1
    values = parameters(name, r, alpha, a, b)
    rfm = table(rows)
    model, other = fitted(name, values), oracle(name, values)
    x, t_x, age = rfm["frequency"], rfm["recency"], rfm["T"]
    alive = other.conditional_probability_alive(x, t_x, age)
    assert model.probability_alive(rfm).to_numpy() == pytest.approx(np.asarray(alive), abs=1e-8)
    theirs = other.conditional_expected_number_of_purchases_up_to_time(horizon, x, t_x, age)
    ours = model.expected_purchases(rfm, horizon).to_numpy()
    usable = np.isfinite(theirs)  # its 2F1 overflows for some
    assert ours[usable] == pytest.approx(np.asarray(theirs)[usable], rel=1e-6, abs=1e-7)


@pytest.mark.parametrize("name", NAMES)
def test_log_likelihood_agrees_with_lifetimes(name: str) -> None:
    values = parameters(name, 0.7, 9.0, 0.6, 1.7)
    rfm = data.cdnow()
    x, t_x, age = (rfm[c].to_numpy() for c in ("frequency", "recency", "T"))
    other = FITTERS[name]
    inputs = np.array(values) if name == "ParetoNBD" else np.log(values)
    mean = other._negative_log_likelihood(inputs, x, t_x, age, np.ones(len(x)), 0.0)
    total = -mean * (1 if name == "ParetoNBD" else len(x))
    ours = fitted(name, values).log_likelihood(rfm)
    assert ours.index.equals(rfm.index)
    assert ours.sum() == pytest.approx(total, rel=1e-12)


@pytest.mark.parametrize("kind", [BetaGeoNBD, ModifiedBetaGeoNBD])
@pytest.mark.parametrize("penalizer", [0.0, 0.01])
def test_fit_ends_where_lifetimes_ends(kind: type[BetaGeoNBD], penalizer: float) -> None:
    rfm = data.simulate(800, seed=3).rfm
    other = FITTERS[kind.__name__](penalizer_coef=penalizer)
    other.fit(rfm["frequency"], rfm["recency"], rfm["T"])
    model = kind(penalizer=penalizer).fit(rfm)
    for name, value in model.parameters_.items():
        # lifetimes counts the penalty on times scaled to at most 1, and so do we.
        assert value == pytest.approx(other.params_[name], rel=2e-3)


@pytest.mark.parametrize("a", [0.3, 1.0, 1.0 + 1e-9, 2.5])
@pytest.mark.parametrize("x", [0.0, 3.0, 40.0])
def test_expected_purchases_are_the_integral_over_p(a: float, x: float) -> None:
    """From the story: purchases until leaving number (1 - e^(-l p h)) / p for rate l."""
    r, alpha, b, age, horizon = 0.9, 12.0, 1.4, 50.0, 80.0
    model = fitted("BetaGeoNBD", (r, alpha, a, b))
    if x == 0:
        rfm = pd.DataFrame({"frequency": [x], "recency": [0.0], "T": [age]})
    else:
        rfm = pd.DataFrame({"frequency": [x], "recency": [45.0], "T": [age]})

    def bought(p: float) -> float:
        z = horizon / (alpha + age)
        return float((1 - (1 + p * z) ** -(r + x)) / p) if p > 1e-12 else (r + x) * z

    # quad's rule for algebraic ends takes p^(a-1) (1-p)^(b+x-1) as the weight
    integral = quad(bought, 0, 1, weight="alg", wvar=(a - 1, b + x - 1), epsrel=1e-11, epsabs=0)[0]
    expected = integral / beta_function(a, b + x) * model.probability_alive(rfm).iloc[0]
    assert model.expected_purchases(rfm, horizon).iloc[0] == pytest.approx(expected, rel=1e-8)


@pytest.mark.parametrize(
    ("r", "alpha", "s", "beta"),
    [(0.5, 10.0, 0.6, 12.0), (0.05, 900.0, 3.0, 0.2), (2.0, 0.1, 40.0, 4000.0), (1.4, 9.4, 1, 9.4)],
)
@pytest.mark.parametrize(("x", "t_x"), [(0.0, 0.0), (2.0, 7.0), (150.0, 20.0)])
def test_pareto_likelihood_is_the_integral_over_leaving(
    r: float, alpha: float, s: float, beta: float, x: float, t_x: float
) -> None:
    """Fader & Hardie (2005), note 009: gone at u after t_x, or not before T."""
    age = 39.0
    rfm = pd.DataFrame({"frequency": [x], "recency": [t_x], "T": [age]})
    scale = -(r + x) * np.log(alpha + t_x) - s * np.log(beta + t_x)

    def density(u: float) -> float:
        log = np.log(s) - (r + x) * np.log(alpha + u) - (s + 1) * np.log(beta + u)
        return float(np.exp(log - scale))

    points = list(t_x + (age - t_x) * np.geomspace(1e-6, 0.9, 12))
    gone = quad(density, t_x, age, points=points, limit=500, epsrel=1e-11, epsabs=0)[0]
    alive = np.exp(-(r + x) * np.log(alpha + age) - s * np.log(beta + age) - scale)
    rate = np.log(r + np.arange(int(x))).sum()
    expected = rate + r * np.log(alpha) + s * np.log(beta) + scale + np.log(alive + gone)
    model = fitted("ParetoNBD", (r, alpha, s, beta))
    assert model.log_likelihood(rfm).iloc[0] == pytest.approx(expected, abs=1e-8)
    assert model.probability_alive(rfm).iloc[0] == pytest.approx(alive / (alive + gone), abs=1e-9)


@pytest.mark.parametrize("name", NAMES)
def test_gradient_is_that_of_the_likelihood(name: str) -> None:
    rfm = pd.concat([data.simulate(300, seed=5).rfm, table([(0, 0, 1e-3), (90, 0.4, 80.0)])])
    model = PURCHASE_MODELS[name]()
    problem = model._problem(Cells.collapse(read_histories(rfm, "test")).in_unit(30.0))
    for theta in np.random.default_rng(2).uniform(-2.5, 2.5, (12, 4)):
        check_gradient(problem, theta)


def test_spend_gradient_is_that_of_the_likelihood() -> None:
    rfm = data.cdnow().query("frequency > 0")
    problem = _SpendProblem.of(
        rfm["frequency"].to_numpy(float), rfm["monetary_value"].to_numpy(), np.ones(len(rfm))
    )
    for theta in np.random.default_rng(3).uniform(-2.0, 3.0, (12, 3)):
        check_gradient(problem, theta)


def check_gradient(problem: Any, theta: Any) -> None:
    value, gradient = problem.loss(theta)
    for i, step in enumerate(np.eye(len(theta)) * 1e-5):
        slope = (problem.loss(theta + step)[0] - problem.loss(theta - step)[0]) / 2e-5
        assert gradient[i] == pytest.approx(slope, rel=1e-6, abs=1e-8 * (1 + abs(value)))


@pytest.mark.parametrize(
    ("name", "exit", "purchase"),
    [
        ("BetaGeoNBD", "after repeat", (0.8, 40.0, 0.8, 3.0)),
        ("ModifiedBetaGeoNBD", "after any", (0.9, 30.0, 0.7, 2.0)),
        ("ParetoNBD", "any time", (0.8, 40.0, 0.9, 200.0)),
    ],
)
def test_forecast_on_simulated_truth(name: str, exit: data.Exit, purchase: Any) -> None:
    """With the true parameters, forecasts are right on average in every part of the base."""
    truth = data.simulate(40_000, 11, exit, purchase, whole_days=False)
    forecast = fitted(name, purchase).predict(truth.rfm, 365.0)
    for part in (truth.rfm["frequency"].clip(upper=5), forecast["p_alive"].mul(4).round()):
        frame = forecast.assign(bought=truth.purchases, alive=truth.alive).groupby(part)
        error: Any = frame["bought"].std() / np.sqrt(frame.size())
        gap = (frame["bought"].mean() - frame["expected_purchases"].mean()).abs()
        assert (gap < 4 * error + 1e-9).all()
        spread = np.sqrt(0.25 / frame.size())
        assert ((frame["alive"].mean() - frame["p_alive"].mean()).abs() < 4 * spread).all()


@pytest.mark.parametrize("name", NAMES)
def test_parameters_of_simulated_truth_are_found(name: str) -> None:
    exits: dict[str, data.Exit] = {
        "BetaGeoNBD": "after repeat",
        "ModifiedBetaGeoNBD": "after any",
        "ParetoNBD": "any time",
    }
    purchase = (0.8, 40.0, 0.9, 200.0 if name == "ParetoNBD" else 2.5)
    truth = data.simulate(20_000, 12, exits[name], purchase, whole_days=False)
    model = PURCHASE_MODELS[name]().fit(truth.rfm)
    distance = np.log(model._values()) - np.log(purchase)
    # Squared Mahalanobis distance is chi-squared with 4 degrees: 18.5 is its 99.9% quantile.
    assert distance @ np.linalg.solve(model.covariance_, distance) < 18.5


def test_discounting_is_the_integral_of_the_stream() -> None:
    model = BetaGeoNBD().fit(data.simulate(800).rfm)
    rfm = data.simulate(800).rfm.head(5)
    rate, horizon = 0.0008, 730.0
    _, discounted = model._expected(read_histories(rfm, "test"), horizon, rate)
    plain = model.expected_purchases(rfm, horizon) / model.probability_alive(rfm)
    for i in range(5):
        one = rfm.iloc[[i]]
        p_alive = model.probability_alive(one).iloc[0]

        def within(u: float, one: pd.DataFrame = one, p_alive: float = p_alive) -> float:
            return float(np.exp(-rate * u) * model.expected_purchases(one, u).iloc[0] / p_alive)

        integral = quad(within, 1e-9, horizon, epsrel=1e-7)[0]
        expected = np.exp(-rate * horizon) * plain.iloc[i] + rate * integral
        assert discounted[i] == pytest.approx(expected, rel=1e-6)
        assert discounted[i] < plain.iloc[i]


def test_spend_agrees_with_lifetimes() -> None:
    rfm = data.cdnow()
    repeat = rfm[rfm["frequency"] > 0]
    other = lifetimes.GammaGammaFitter().fit(repeat["frequency"], repeat["monetary_value"])
    model = GammaGamma().fit(rfm)
    theirs = other.conditional_expected_average_profit(rfm["frequency"], rfm["monetary_value"])
    np.testing.assert_allclose(model.expected_value(rfm), theirs, rtol=1e-4)
    assert model.log_likelihood_ >= -other._negative_log_likelihood_ * len(repeat) - 1e-6


def test_pareto_fit_is_no_worse_than_lifetimes() -> None:
    rfm = data.simulate(600, 13, "any time", (0.8, 40.0, 0.9, 200.0)).rfm
    other = lifetimes.ParetoNBDFitter().fit(
        rfm["frequency"], rfm["recency"], rfm["T"], initial_params=[1.0, 1.0, 1.0, 1.0]
    )
    theirs = fitted("ParetoNBD", tuple(other.params_)).log_likelihood(rfm).sum()
    assert ParetoNBD().fit(rfm).log_likelihood_ >= theirs - 1e-6
