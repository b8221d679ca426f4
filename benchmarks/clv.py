"""Lifetime value side by side with `lifetimes`: time, optimum, forecasts and memory in one run.

    python benchmarks/clv.py [--customers 1000000] [--pareto]

Customers are simulated in days from a BG/NBD base with Gamma-Gamma spend. Both sides get the same
table and do the same work: fit, then expected purchases and probability alive of everybody. The
MAP fit of pymc-marketing joins in where that package is installed.
"""

from __future__ import annotations

import argparse
import contextlib
import importlib
import io
import resource
import time
import warnings
from collections.abc import Callable
from typing import Any

import numpy as np
import pandas as pd

from nextbest.learn.clv import (
    PURCHASE_MODELS,
    BetaGeoNBD,
    CustomerLifetimeValue,
    GammaGamma,
    PurchaseModel,
)

HORIZON_DAYS = 360.0
MONTHLY_RATE = 0.01


def main() -> None:
    options = argparse.ArgumentParser(description="Lifetime value against lifetimes.")
    options.add_argument("--customers", type=int, default=1_000_000)
    options.add_argument("--seed", type=int, default=1)
    options.add_argument(
        "--pareto", action="store_true", help="Pareto/NBD of lifetimes too (minutes)"
    )
    given = options.parse_args()
    rfm = simulate(given.customers, given.seed)
    print(f"{given.customers:,} customers in days, {rfm['frequency'].sum():,.0f} repeat purchases")
    print(f"{'':34}{'ours':>9}{'lifetimes':>11}{'ratio':>8}   same optimum, forecasts")

    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        own_memory = _own_memory(rfm)
        import lifetimes

        fitters = {
            "BetaGeoNBD": lifetimes.BetaGeoFitter,
            "ModifiedBetaGeoNBD": lifetimes.ModifiedBetaGeoFitter,
            "ParetoNBD": lifetimes.ParetoNBDFitter if given.pareto else None,
        }
        for name, fitter in fitters.items():
            compare_purchases(name, fitter, rfm)
        compare_value(lifetimes, rfm)
        compare_pymc(rfm)
    print(f"peak memory of our fit, forecast and intervals: {own_memory:.2f} GB")


def simulate(n: int, seed: int) -> pd.DataFrame:
    """Purchase by purchase, in whole days, first purchases spread over a year."""
    rng = np.random.default_rng(seed)
    T = rng.integers(30, 365, n).astype(float)
    rate, leave = rng.gamma(0.8, 1 / 40.0, n), rng.beta(0.8, 3.0, n)
    x, last, clock = np.zeros(n), np.zeros(n), np.zeros(n)
    active = np.arange(n)
    while len(active):
        clock[active] += rng.exponential(1.0 / rate[active])
        active = active[clock[active] < T[active]]
        x[active] += 1
        last[active] = np.ceil(clock[active])
        active = active[rng.random(len(active)) >= leave[active]]
    repeats = np.maximum(x, 1)
    mean = rng.gamma(6.0 * repeats) / repeats / rng.gamma(4.0, 1 / 60.0, n)
    spend = np.where(x > 0, np.maximum(mean.round(2), 0.01), 0.0)
    return pd.DataFrame({"frequency": x, "recency": last, "T": T, "monetary_value": spend})


def compare_purchases(name: str, fitter: Any, rfm: pd.DataFrame) -> None:
    x, t_x, age = rfm["frequency"], rfm["recency"], rfm["T"]
    model = PURCHASE_MODELS[name]()
    fit = timed(lambda: model.fit(rfm))[0]
    predict, ours = timed(lambda: model.predict(rfm, HORIZON_DAYS))
    if fitter is None:
        print(f"{name + ' fit + predict':34}{fit + predict:8.2f}s{'-':>11}")
        return

    def forecast() -> tuple[Any, Any]:
        return (
            other.conditional_expected_number_of_purchases_up_to_time(HORIZON_DAYS, x, t_x, age),
            other.conditional_probability_alive(x, t_x, age),
        )

    other = fitter()
    try:
        their_fit, _ = timed(lambda: other.fit(x, t_x, age))
    except Exception as error:  # a baseline that fails is a result, not a fault of this script
        print(f"{name + ' fit':34}{fit:8.2f}s   {type(error).__name__}: {error}")
        return
    their_predict, theirs = timed(forecast)
    here, there = model.log_likelihood_, _log_likelihood(model, other, rfm)
    gap = float(np.nanmax(np.abs(ours["expected_purchases"] - np.asarray(theirs[0]))))
    line(
        f"{name} fit + predict",
        fit + predict,
        their_fit + their_predict,
        f"log-likelihood {here:.2f} against {there:.2f} (relative {here / there - 1:+.1e}), "
        f"purchases within {gap:.1e}",
    )
    line("  fit", fit, their_fit)
    line("  predict", predict, their_predict)


def compare_value(lifetimes: Any, rfm: pd.DataFrame) -> None:
    """The whole road from table to discounted value, in 12 months at 1% a month."""
    repeat = rfm[rfm["frequency"] > 0]
    yearly = (1.0 + MONTHLY_RATE) ** (365.25 / 30.0) - 1.0
    model = CustomerLifetimeValue(BetaGeoNBD(), GammaGamma(), HORIZON_DAYS, yearly)
    mine, clv = timed(lambda: model.fit(rfm).predict(rfm)["clv"])

    def road() -> Any:
        purchases = lifetimes.BetaGeoFitter().fit(rfm["frequency"], rfm["recency"], rfm["T"])
        spend = lifetimes.GammaGammaFitter().fit(repeat["frequency"], repeat["monetary_value"])
        return spend.customer_lifetime_value(
            purchases,
            rfm["frequency"],
            rfm["recency"],
            rfm["T"],
            rfm["monetary_value"],
            time=12,
            discount_rate=MONTHLY_RATE,
            freq="D",
        )

    theirs, value = timed(road)
    line(
        "value: fit both + predict", mine, theirs, f"total {clv.sum() / value.sum():.4f} of theirs"
    )
    took, _ = timed(lambda: model.predict_interval(rfm))
    print(f"{'  interval for every customer':34}{took:8.2f}s{'none':>11}")


def compare_pymc(rfm: pd.DataFrame) -> None:
    try:
        theirs_clv = importlib.import_module("pymc_marketing.clv")
    except ImportError:
        print("pymc-marketing is not installed: left out")
        return
    table = rfm[["frequency", "recency", "T"]].assign(customer_id=np.arange(len(rfm)))
    sink = io.StringIO()
    with contextlib.redirect_stdout(sink), contextlib.redirect_stderr(sink):
        theirs, _ = timed(lambda: theirs_clv.BetaGeoModel(data=table).fit(method="map"))
    mine, _ = timed(lambda: BetaGeoNBD().fit(rfm))
    line(
        "BetaGeoNBD fit, pymc-marketing MAP", mine, theirs, "compiling included; its priors differ"
    )


def _log_likelihood(model: PurchaseModel, other: Any, rfm: pd.DataFrame) -> float:
    """Their parameters in our likelihood, which tests hold equal to theirs."""
    parameters = {name: float(other.params_[name]) for name in model.parameters_}
    theirs = type(model).from_dict({**model.to_dict(), "parameters": parameters})
    return float(theirs.log_likelihood(rfm).sum())


def _own_memory(rfm: pd.DataFrame) -> float:
    """Peak resident size in GB after all our work, before lifetimes is loaded."""
    model = CustomerLifetimeValue(BetaGeoNBD(), GammaGamma(), HORIZON_DAYS).fit(rfm)
    model.predict(rfm)
    model.predict_interval(rfm)
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1e6


def timed(work: Callable[[], Any]) -> tuple[float, Any]:
    start = time.perf_counter()
    result = work()
    return time.perf_counter() - start, result


def line(what: str, ours: float, theirs: float, note: str = "") -> None:
    print(f"{what:34}{ours:8.2f}s{theirs:10.2f}s{theirs / ours:7.1f}x   {note}", flush=True)


if __name__ == "__main__":
    main()
