"""The CDNOW results that the literature has published."""

from __future__ import annotations

import clv_data as data
import numpy as np
import pandas as pd
import pytest
from clv_data import lifetimes

from nextbest.learn.clv import (
    PURCHASE_MODELS,
    BetaGeoNBD,
    CustomerLifetimeValue,
    GammaGamma,
    ParetoNBD,
)

WEEKS = 39.0


@pytest.mark.parametrize("name", data.PUBLISHED)
def test_purchase_model_close_to_the_papers(name: str) -> None:
    parameters, log_likelihood = data.PUBLISHED[name]
    model = PURCHASE_MODELS[name]().fit(data.cdnow())
    for parameter, value in parameters.items():
        assert getattr(model, f"{parameter}_") == pytest.approx(value, rel=5e-4)
    assert model.log_likelihood_ == pytest.approx(log_likelihood, abs=0.01)
    assert model.diagnostics_.converged
    assert model.diagnostics_.identified
    assert model.diagnostics_.gradient_norm < 1e-8
    assert model.customers_ == 2357


def test_standard_errors_close_to_those_of_lifetimes() -> None:
    rfm = data.cdnow()
    other = lifetimes.BetaGeoFitter().fit(rfm["frequency"], rfm["recency"], rfm["T"])
    for name, error in BetaGeoNBD().fit(rfm).standard_errors_.items():
        assert error == pytest.approx(other.standard_errors_[name], rel=0.01)


def test_gamma_gamma_close_to_the_paper() -> None:
    """Fader & Hardie (2013), note 025: 946 repeaters."""
    model = GammaGamma().fit(data.cdnow())
    assert model.customers_ == 946
    assert model.p_ == pytest.approx(6.25, abs=0.005)
    assert model.q_ == pytest.approx(3.744, abs=0.002)
    assert model.v_ == pytest.approx(15.44, abs=0.015)
    assert model.log_likelihood_ == pytest.approx(-4055.92, abs=0.01)


def test_expected_value_close_to_hardie() -> None:
    """The first ten customers of the spreadsheet to note 025."""
    sheet = [24.65, 18.91, 35.17, 35.17, 35.17, 71.46, 18.91, 35.17, 27.28, 35.17]
    value = GammaGamma().fit(data.cdnow()).expected_value(data.cdnow().head(10))
    np.testing.assert_allclose(value, sheet, atol=0.1)


def test_independence_holds_on_cdnow() -> None:
    """Fader, Hardie & Lee (2005): correlation .11 with the extreme spender, .06 without."""
    tie = GammaGamma().fit(data.cdnow()).independence_
    assert tie.correlation == pytest.approx(0.11, abs=0.005)
    assert tie.verdict == "holds"
    rest = data.cdnow().sort_values("monetary_value").iloc[:-1]
    assert GammaGamma().fit(rest).independence_.correlation == pytest.approx(0.06, abs=0.01)


def test_summary_is_what_the_purchases_say() -> None:
    calibration, _ = data.cdnow_halves()
    assert (calibration["frequency"].to_numpy() == data.cdnow()["frequency"].to_numpy()).all()
    for time in ("recency", "T"):
        np.testing.assert_allclose(calibration[time], data.cdnow()[time], atol=0.005)


def holdout(model: BetaGeoNBD | ParetoNBD) -> pd.DataFrame:
    calibration, later = data.cdnow_halves()
    expected = model.fit(calibration).expected_purchases(calibration, WEEKS)
    actual = later["frequency"] - calibration["frequency"]
    return pd.DataFrame(
        {"expected": expected, "actual": actual, "bin": calibration["frequency"].clip(upper=7)}
    )


def test_holdout_of_bg_nbd() -> None:
    table = holdout(BetaGeoNBD())
    assert (table["expected"] - table["actual"]).abs().mean() == pytest.approx(0.786, abs=0.001)
    assert table["expected"].corr(table["actual"]) == pytest.approx(0.626, abs=0.001)
    ratio = table["expected"].sum() / table["actual"].sum()
    assert ratio == pytest.approx(0.879, abs=0.001)


def test_conditional_expectations_by_frequency_on_the_holdout() -> None:
    """The comparison matrix of the BTYD walkthrough, Pareto/NBD (McCarthy & Wadsworth)."""
    table = holdout(ParetoNBD()).groupby("bin").mean()
    expected = [0.1385, 0.5996, 1.196, 1.714, 2.399, 2.907, 3.819, 6.403]
    actual = [0.2367, 0.6970, 1.393, 1.560, 2.532, 2.947, 3.862, 6.359]
    np.testing.assert_allclose(table["expected"], expected, atol=1e-3)
    np.testing.assert_allclose(table["actual"], actual, atol=1e-3)


def test_one_customer_of_the_walkthrough() -> None:
    """Customer 1516 of the BTYD walkthrough: 25.46 purchases in 52 weeks, alive at .998."""
    one = pd.DataFrame({"frequency": [26], "recency": [30.86], "T": [31.0]})
    model = ParetoNBD().fit(data.cdnow())
    assert model.expected_purchases(one, 52.0).iloc[0] == pytest.approx(25.46, abs=0.01)
    assert model.probability_alive(one).iloc[0] == pytest.approx(0.9979, abs=1e-4)


def test_clv_of_a_customer_without_purchases_is_that_of_the_crowd() -> None:
    model = CustomerLifetimeValue(BetaGeoNBD(), GammaGamma(), 273, 0.0, days_per_unit=7)
    frame = model.fit(data.cdnow()).predict(data.cdnow())
    silent = data.cdnow()["frequency"] == 0
    crowd = model.spend_model_.p_ * model.spend_model_.v_ / (model.spend_model_.q_ - 1.0)
    assert frame.loc[silent, "expected_value"].to_numpy() == pytest.approx(crowd)
    assert (frame.loc[silent, "p_alive"] == 1.0).all()
