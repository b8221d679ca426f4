"""Lifetime value: what it is made of, intervals that hold, choice of model, plain-dict form."""

from __future__ import annotations

import json
from functools import lru_cache
from typing import Any

import clv_data as data
import numpy as np
import pandas as pd
import pytest

from nextbest.errors import DataError, FitError
from nextbest.learn.clv import (
    BetaGeoNBD,
    CustomerLifetimeValue,
    GammaGamma,
    ModifiedBetaGeoNBD,
    ParetoNBD,
    choose_purchase_model,
    clv_from_dict,
)


@lru_cache(maxsize=8)
def fitted(rate: float = 0.1) -> CustomerLifetimeValue:
    model = CustomerLifetimeValue(BetaGeoNBD(), GammaGamma(), 365.0, rate)
    return model.fit(data.simulate(4000).rfm)


def test_predict_is_purchases_times_spend() -> None:
    rfm = data.simulate(4000).rfm
    out = fitted(0.0).predict(rfm)
    assert list(out.columns) == ["clv", "expected_purchases", "p_alive", "expected_value"]
    assert out.index.equals(rfm.index)
    np.testing.assert_allclose(out["clv"], out["expected_purchases"] * out["expected_value"])
    model = fitted(0.0)
    for name in ("expected_value",):
        pd.testing.assert_series_equal(out[name], getattr(model, name)(rfm))
    pd.testing.assert_series_equal(out["p_alive"], model.probability_alive(rfm))
    pd.testing.assert_series_equal(out["expected_purchases"], model.expected_purchases(rfm))
    assert (model.expected_purchases(rfm, 30.0) < out["expected_purchases"]).all()


def test_discounting_agrees_with_the_monthly_sum_of_lifetimes() -> None:
    """lifetimes discounts in 30-day steps, each at its end: slightly below ours."""
    rfm = data.simulate(4000).rfm
    model = CustomerLifetimeValue(BetaGeoNBD(), GammaGamma(), 360.0, 1.01 ** (365.25 / 30) - 1)
    ours = model.fit(rfm).predict(rfm)["clv"]
    repeat = rfm[rfm["frequency"] > 0]
    spend = data.lifetimes.GammaGammaFitter().fit(repeat["frequency"], repeat["monetary_value"])
    other = data.lifetimes.BetaGeoFitter().fit(rfm["frequency"], rfm["recency"], rfm["T"])
    theirs = spend.customer_lifetime_value(
        other, rfm["frequency"], rfm["recency"], rfm["T"], rfm["monetary_value"], 12, 0.01, "D"
    )
    ratio = (theirs / ours).to_numpy()
    assert (ratio < 1.0).all()
    assert (ratio > 1.01**-0.75).all()


def test_a_higher_discount_rate_is_worth_less() -> None:
    rfm = data.simulate(4000).rfm
    values = [fitted(rate).predict(rfm)["clv"] for rate in (0.0, 0.1, 0.5)]
    assert (values[0] > values[1]).all()
    assert (values[1] > values[2]).all()
    # All of a year's value is within that year.
    assert (values[2] > values[0] / 1.5).all()


def test_weeks_give_what_days_give() -> None:
    rfm = data.simulate(4000).rfm
    weeks = rfm.assign(recency=rfm["recency"] / 7, T=rfm["T"] / 7)
    model = CustomerLifetimeValue(BetaGeoNBD(), GammaGamma(), 365.0, 0.1, days_per_unit=7.0)
    np.testing.assert_allclose(
        model.fit(weeks).predict(weeks)["clv"], fitted().predict(rfm)["clv"], rtol=1e-5
    )


# Intervals.


@pytest.mark.parametrize(
    ("kind", "exit", "purchase"),
    [
        (BetaGeoNBD, "after repeat", (0.8, 40.0, 0.8, 3.0)),
        (BetaGeoNBD, "after repeat", (0.243, 31.0, 0.793, 2.426)),
        (ModifiedBetaGeoNBD, "after any", (0.9, 30.0, 0.7, 2.0)),
        (ParetoNBD, "any time", (0.8, 40.0, 0.9, 200.0)),
    ],
)
def test_intervals_cover_simulated_truth(kind: Any, exit: data.Exit, purchase: Any) -> None:
    truth = data.simulate(6000, 21, exit, purchase)
    model = CustomerLifetimeValue(kind(), GammaGamma(), 365.0, 0.0).fit(truth.rfm)
    held = model.predict_interval(truth.rfm, level=0.9)
    inside = (truth.spend >= held["clv_low"]) & (truth.spend <= held["clv_high"])
    assert 0.88 < inside.mean() < 0.92
    # Not only on average: also for those who buy often, seldom, lately and long ago.
    for part in (truth.rfm["frequency"] > 3, truth.rfm["recency"] > 200, truth.rfm["T"] > 200):
        for group in (part, ~part):
            assert 0.85 < inside[group].mean() < 0.95
    bought = model.purchase_model_.predict_interval(truth.rfm, 365.0, 0.9)
    inside = truth.purchases >= bought["purchases_low"]
    inside &= truth.purchases <= bought["purchases_high"]
    assert 0.88 < inside.mean() < 0.97  # whole counts cover a little more


@pytest.mark.parametrize("level", [0.8, 0.95])
def test_other_levels_hold_too(level: float) -> None:
    truth = data.simulate(6000, 22)
    held = fitted(0.0).predict_interval(truth.rfm, level)
    inside = (truth.spend >= held["clv_low"]) & (truth.spend <= held["clv_high"])
    assert inside.mean() == pytest.approx(level, abs=0.025)


def test_intervals_carry_the_uncertainty_of_parameters() -> None:
    """Fitted to 150 customers, intervals still cover; with the covariance removed they shrink."""
    covered = []
    for seed in range(12):
        truth = data.simulate(150, 100 + seed)
        model = CustomerLifetimeValue(BetaGeoNBD(), GammaGamma(), 365.0, 0.0).fit(truth.rfm)
        held = model.predict_interval(truth.rfm)
        covered.append(
            ((truth.spend >= held["clv_low"]) & (truth.spend <= held["clv_high"])).mean()
        )
    assert 0.86 < np.mean(covered) < 0.94

    written = model.to_dict()
    for part in ("purchase_model", "spend_model"):
        size = len(written[part]["log_covariance"])
        written[part]["log_covariance"] = np.zeros((size, size)).tolist()
    certain = clv_from_dict(written).predict_interval(truth.rfm)
    wide = held["clv_high"] - held["clv_low"]
    assert (certain["clv_high"] - certain["clv_low"]).sum() < 0.97 * wide.sum()


def test_intervals_include_clv_and_are_the_same_alone_and_in_a_batch() -> None:
    rfm = data.simulate(4000).rfm.head(300)
    model = fitted()
    held, clv = model.predict_interval(rfm), model.predict(rfm)
    assert (held["clv_low"] <= clv["clv"]).all()
    assert (clv["clv"] <= held["clv_high"]).all()
    assert (held["clv_low"] >= 0).all()
    for i in range(0, 300, 37):
        alone = rfm.iloc[[i]]
        pd.testing.assert_frame_equal(
            model.predict_interval(alone), held.iloc[[i]], check_exact=True
        )
        pd.testing.assert_frame_equal(model.predict(alone), clv.iloc[[i]], check_exact=True)


def test_spend_intervals_hold_the_true_mean() -> None:
    rng = np.random.default_rng(6)
    p, q, v, n = 3.0, 4.0, 60.0, 5000
    nu = rng.gamma(q, 1 / v, n)
    x = rng.integers(1, 9, n)
    rfm = pd.DataFrame({"frequency": x, "monetary_value": rng.gamma(p * x) / nu / x})
    held = GammaGamma().fit(rfm).predict_interval(rfm, 0.9)
    inside = (p / nu >= held["value_low"]) & (p / nu <= held["value_high"])
    assert 0.88 < inside.mean() < 0.92


# Independence of frequency and spend.


def tied(strength: float, n: int = 4000) -> pd.DataFrame:
    rng = np.random.default_rng(7)
    x = rng.geometric(0.3, n)
    mean = 30.0 * (x / x.mean()) ** strength * rng.gamma(8.0, 1 / 8.0, n)
    return pd.DataFrame({"frequency": x, "monetary_value": mean})


@pytest.mark.parametrize(("strength", "verdict"), [(0.0, "holds"), (0.1, "weak"), (1, "violated")])
def test_independence_verdicts(strength: float, verdict: str) -> None:
    tie = GammaGamma().fit(tied(strength)).independence_
    assert tie.verdict == verdict
    assert tie.low < tie.correlation < tie.high


def test_independence_is_unclear_with_few_customers() -> None:
    assert GammaGamma().fit(tied(0.0, 12)).independence_.verdict == "unclear"


def test_independence_interval_covers_zero_where_the_model_is_true() -> None:
    covered = 0
    for seed in range(40):
        rng = np.random.default_rng(seed)
        x = rng.geometric(0.3, 500)
        mean = rng.gamma(2.0 * x) / x / rng.gamma(4.0, 1.0, 500)
        tie = GammaGamma().fit(pd.DataFrame({"frequency": x, "monetary_value": mean}))
        covered += tie.independence_.low <= 0.0 <= tie.independence_.high
    assert covered >= 34


def test_dependence_is_noted_on_the_value() -> None:
    rfm = data.simulate(4000).rfm
    bent = rfm.assign(monetary_value=rfm["monetary_value"] * (1 + rfm["frequency"]))
    model = CustomerLifetimeValue(BetaGeoNBD(), GammaGamma()).fit(bent)
    assert "independence of frequency and spend is violated" in model.notes_[-1]
    assert fitted().notes_ == ()
    assert fitted().independence_.verdict == "holds"


# Form.


def test_json_keeps_every_bit_of_every_forecast() -> None:
    rfm = data.simulate(4000).rfm
    for kind in (BetaGeoNBD, ModifiedBetaGeoNBD, ParetoNBD):
        model = CustomerLifetimeValue(kind(0.001), GammaGamma(), 180.0, 0.15).fit(rfm)
        text = json.dumps(model.to_dict(), allow_nan=False)
        back = clv_from_dict(json.loads(text))
        assert json.dumps(back.to_dict(), allow_nan=False) == text
        some = rfm.head(400)
        for ask in ("predict", "predict_interval"):
            pd.testing.assert_frame_equal(
                getattr(model, ask)(some), getattr(back, ask)(some), check_exact=True
            )
        assert back.get_params()["discount_rate_per_year"] == 0.15


@pytest.mark.parametrize(
    "damage",
    [
        {"format": "nextbest.clv/9"},
        {"purchase_model": {"model": "os.system"}},
        {"purchase_model": "BetaGeoNBD"},
        {"spend_model": None},
        {"horizon_days": "soon"},
        {"horizon_days": -1},
        {"discount_rate_per_year": -0.1},
    ],
)
def test_damaged_values_are_refused(damage: dict[str, Any]) -> None:
    with pytest.raises(DataError):
        clv_from_dict({**fitted().to_dict(), **damage})


def test_fit_leaves_the_given_models_alone() -> None:
    purchase, spend = BetaGeoNBD(), GammaGamma()
    CustomerLifetimeValue(purchase, spend).fit(data.cdnow())
    assert vars(purchase) == vars(spend) == {"penalizer": 0.0}


def test_fitted_models_can_be_joined_without_fitting() -> None:
    rfm = data.simulate(4000).rfm
    joined = CustomerLifetimeValue(BetaGeoNBD().fit(rfm), GammaGamma().fit(rfm), 365.0, 0.1)
    pd.testing.assert_frame_equal(joined.predict(rfm), fitted().predict(rfm))


def test_settings_out_of_range_are_refused() -> None:
    rfm = data.cdnow()
    good: dict[str, Any] = {"purchase_model": BetaGeoNBD(), "spend_model": GammaGamma()}
    for wrong in (
        {"horizon_days": 0},
        {"discount_rate_per_year": -0.1},
        {"days_per_unit": float("inf")},
        {"purchase_model": GammaGamma()},
        {"spend_model": BetaGeoNBD()},
    ):
        with pytest.raises(DataError, match=f'"{next(iter(wrong))}" is'):
            CustomerLifetimeValue(**{**good, **wrong}).fit(rfm)


def test_customers_without_a_purchase_after_the_first() -> None:
    new = pd.DataFrame({"frequency": [0], "recency": [0], "T": [0], "monetary_value": [0.0]})
    out = fitted().predict(new).join(fitted().predict_interval(new)).iloc[0]
    assert out["p_alive"] == 1.0
    assert 0.0 <= out["clv_low"] < out["clv"] < out["clv_high"]
    with pytest.raises(DataError, match=r'"monetary_value" is not finite.*Use 0 where frequency'):
        fitted().predict(new.assign(monetary_value=np.nan))


# Choice.


@pytest.mark.parametrize(
    ("name", "exit", "purchase"),
    [
        ("BetaGeoNBD", "after repeat", (1.2, 12.0, 1.5, 3.0)),
        ("ModifiedBetaGeoNBD", "after any", (1.2, 12.0, 1.5, 1.5)),
        ("ParetoNBD", "any time", (1.2, 12.0, 0.9, 60.0)),
    ],
)
def test_the_true_model_is_chosen(name: str, exit: data.Exit, purchase: Any) -> None:
    early, late = two_dates(exit, purchase)
    choice = choose_purchase_model(early, late)
    assert type(choice.model).__name__ == name == choice.scores.index[0]
    assert choice.clear
    assert choice.scores["behind"].iloc[0] == 0.0
    assert (choice.scores["behind"].iloc[1:] > 0).all()
    best = choice.scores.iloc[0]
    assert best["expected"] == pytest.approx(best["actual"], rel=0.1)
    assert choice.model.customers_ == len(late)
    json.dumps(choice.to_dict(), allow_nan=False)


def two_dates(exit: data.Exit, purchase: Any) -> tuple[pd.DataFrame, pd.DataFrame]:
    """The same customers' histories after 200 and after 400 days, purchase by purchase."""
    rng = np.random.default_rng(8)
    r, alpha, first, second = purchase
    rows = []
    for _ in range(4000):
        rate = rng.gamma(r, 1 / alpha)
        chance = 0.0 if exit == "any time" else rng.beta(first, second)
        end = rng.exponential(1 / rng.gamma(first, 1 / second)) if exit == "any time" else np.inf
        times = np.cumsum(rng.exponential(1 / rate, 1 + int(rng.poisson(rate * 400) * 1.5 + 30)))
        last = rng.geometric(chance) if chance > 0 else len(times)
        times = times[: last - 1 if exit == "after any" else last]
        rows.append(times[times < min(end, 400.0)])
    return tuple(  # type: ignore[return-value]
        pd.DataFrame(
            {
                "frequency": [float((t < until).sum()) for t in rows],
                "recency": [float(t[t < until].max(initial=0.0)) for t in rows],
                "T": until,
            }
        )
        for until in (200.0, 400.0)
    )


def test_choice_on_cdnow_is_told_with_its_uncertainty() -> None:
    early, late = data.cdnow_halves()
    choice = choose_purchase_model(early, late)
    assert set(choice.scores.index) == {"BetaGeoNBD", "ModifiedBetaGeoNBD", "ParetoNBD"}
    assert choice.scores["actual"].nunique() == 1
    runner_up = choice.scores.iloc[1]
    assert choice.clear == bool(
        (choice.scores["behind"] > 2 * choice.scores["behind_se"])[1:].all()
    )
    assert runner_up["behind_se"] > 0


def test_choice_scores_by_conditional_likelihood() -> None:
    """log L(later) - log L(calibration), summed from the models' own likelihoods."""
    early, late = data.cdnow_halves()
    choice = choose_purchase_model(early, late, [BetaGeoNBD()])
    model = BetaGeoNBD().fit(early)
    expected = model.log_likelihood(late).sum() - model.log_likelihood(early).sum()
    assert choice.scores.loc["BetaGeoNBD", "log_likelihood"] == pytest.approx(expected, rel=1e-12)
    assert choice.model.parameters_ == BetaGeoNBD().fit(late).parameters_


def test_a_candidate_that_cannot_be_fitted_is_listed_with_the_reason(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    def refuse(self: Any, rfm: pd.DataFrame) -> Any:
        raise FitError("ParetoNBD.fit", "no maximum")

    monkeypatch.setattr(ParetoNBD, "fit", refuse)
    early, late = data.cdnow_halves()
    choice = choose_purchase_model(early, late)
    assert choice.scores.index[-1] == "ParetoNBD"
    assert choice.scores["refusal"].iloc[-1] == "ParetoNBD.fit: no maximum."
    json.dumps(choice.to_dict(), allow_nan=False)
    with pytest.raises(FitError, match="no candidate could be fitted"):
        choose_purchase_model(early, late, [ParetoNBD()])


def test_a_later_table_that_does_not_follow_is_refused() -> None:
    early, late = data.cdnow_halves()
    wrong = [
        (late.iloc[1:], "1 customers of calibration are not in later"),
        (early, "T does not grow in 2357 of 2357 rows"),
        (late.assign(T=late["T"] + np.arange(len(late))), "T grows unequally"),
        (late.assign(frequency=0.0, recency=0.0), "frequency falls"),
        (late.assign(recency=late["recency"] * 0.5), "recency does not follow"),
        (pd.concat([late, late]), "customers occur twice"),
    ]
    for table, message in wrong:
        with pytest.raises(DataError, match=message):
            choose_purchase_model(early, table)
    with pytest.raises(DataError, match="no candidates"):
        choose_purchase_model(early, late, [])
