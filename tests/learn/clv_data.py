"""Customers whose truth is known, and the literature's data, for the tests of `learn.clv`."""

from __future__ import annotations

import warnings
from dataclasses import dataclass
from functools import lru_cache
from importlib.resources import files
from typing import Literal

import numpy as np
import numpy.typing as npt
import pandas as pd

with warnings.catch_warnings():
    # The oracle sets a pandas option that is on its way out.
    warnings.simplefilter("ignore")
    import lifetimes as lifetimes

Array = npt.NDArray[np.float64]
Exit = Literal["after repeat", "after any", "any time"]

#: Published estimates on the CDNOW sample: parameters and summed log-likelihood.
PUBLISHED = {
    # Fader, Hardie & Lee (2005), Marketing Science 24(2), table 2
    "BetaGeoNBD": ({"r": 0.2426, "alpha": 4.4136, "a": 0.7929, "b": 2.4259}, -9582.43),
    # Batislam et al. (2007) and BTYDplus
    "ModifiedBetaGeoNBD": ({"r": 0.5248, "alpha": 6.183, "a": 0.8914, "b": 1.614}, -9582.14),
    # Fader, Hardie & Lee (2005), Marketing Science 24(2), table 2
    "ParetoNBD": ({"r": 0.5533, "alpha": 10.578, "s": 0.6062, "beta": 11.669}, -9594.98),
}


@dataclass(frozen=True)
class Truth:
    """Simulated customers: what a model may see, and what happened afterwards."""

    rfm: pd.DataFrame
    purchases: Array
    spend: Array
    alive: npt.NDArray[np.bool_]


@lru_cache(maxsize=16)
def simulate(
    n: int,
    seed: int = 1,
    exit: Exit = "after repeat",
    purchase: tuple[float, float, float, float] = (0.8, 40.0, 0.8, 3.0),
    spend: tuple[float, float, float] = (6.0, 4.0, 60.0),
    days: int = 365,
    horizon: float = 365.0,
    whole_days: bool = True,
) -> Truth:
    """Play purchase after purchase from the models' own stories, not from their formulas.

    `purchase` is (r, alpha, a, b), or (r, alpha, s, beta) where customers leave at any time.
    """
    rng = np.random.default_rng(seed)
    r, alpha, first, second = purchase
    p, q, v = spend
    T = rng.integers(30, days, n).astype(float)
    rate = rng.gamma(r, 1.0 / alpha, n)
    nu = rng.gamma(q, 1.0 / v, n)
    end, chance = np.full(n, np.inf), np.zeros(n)
    if exit == "any time":
        end = rng.exponential(1.0 / rng.gamma(first, 1.0 / second, n))
    else:
        chance = rng.beta(first, second, n)
    gone = rng.random(n) < chance if exit == "after any" else np.zeros(n, dtype=bool)

    x, last, future, clock = np.zeros(n), np.zeros(n), np.zeros(n), np.zeros(n)
    alive_now = ~gone & (end > T)
    active = np.flatnonzero(~gone)
    while len(active):
        clock[active] += rng.exponential(1.0 / rate[active])
        active = active[(clock[active] < T[active] + horizon) & (clock[active] < end[active])]
        before = clock[active] < T[active]
        x[active[before]] += 1
        last[active[before]] = clock[active[before]]
        future[active[~before]] += 1
        leaves = rng.random(len(active)) < chance[active]
        alive_now[active[leaves & before]] = False
        active = active[~leaves]
    if whole_days:
        last = np.where(x > 0, np.ceil(last), 0.0)
    mean = np.where(x > 0, rng.gamma(np.maximum(p * x, 1e-9)) / np.maximum(x, 1) / nu, 0.0)
    rfm = pd.DataFrame(
        {
            "frequency": x,
            "recency": last,
            "T": T,
            "monetary_value": np.maximum(mean, 0.01 * (x > 0)),
        }
    )
    return Truth(rfm, future, rng.gamma(p * future) / nu, alive_now)


@lru_cache(maxsize=1)
def cdnow() -> pd.DataFrame:
    """The CDNOW sample as the papers use it (2,357 customers, 39 weeks), times in weeks."""
    frame = pd.read_csv(str(files("lifetimes.datasets") / _SUMMARY)).set_index("ID")
    frame.columns = pd.Index(["frequency", "recency", "T", "monetary_value"])
    return frame


_SUMMARY = "cdnow_customers_summary_with_transactions.csv"


@lru_cache(maxsize=1)
def cdnow_halves() -> tuple[pd.DataFrame, pd.DataFrame]:
    """RFM in weeks as of 1997-09-30 and as of 1998-06-30, from the sample's purchases."""
    log = pd.read_csv(
        str(files("lifetimes.datasets") / "CDNOW_sample.txt"),
        sep=r"\s+",
        header=None,
        names=["master", "id", "date", "quantity", "value"],
    )
    log["date"] = pd.to_datetime(log["date"].astype(str))
    days = log.groupby(["id", "date"])["value"].sum().reset_index()
    return rfm_table(days, "1997-09-30", 7.0), rfm_table(days, "1998-06-30", 7.0)


def rfm_table(days: pd.DataFrame, as_of: str, unit: float) -> pd.DataFrame:
    """RFM of the customers known by `as_of` from one row per (id, date), times in `unit` days."""
    until = pd.Timestamp(as_of)
    seen = days[days["date"] <= until]
    by_customer = seen.groupby("id")
    first, last = by_customer["date"].min(), by_customer["date"].max()
    repeat = seen[seen["date"] > seen["id"].map(first)]
    mean = repeat.groupby("id")["value"].mean().reindex(first.index, fill_value=0.0)
    return pd.DataFrame(
        {
            "frequency": by_customer.size() - 1,
            "recency": (last - first).dt.days / unit,
            "T": (until - first).dt.days / unit,
            "monetary_value": mean,
        }
    )
