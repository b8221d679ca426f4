"""Every declared figure on a shop worked out by hand; segments, steps and refusals."""

from dataclasses import replace
from functools import lru_cache

import ibis
import kpi_shop as toy
import pytest
from kpi_shop import COPIES, DAY_0, RATES, SETTINGS, UNTIL

from nextbest.errors import ConfigError, DataError
from nextbest.measure import segments
from nextbest.measure.kpi.calendar import steps
from nextbest.measure.kpi.definitions import BUILT_IN, declared
from nextbest.measure.kpi.read import Wide, overall, per_segment, series
from nextbest.measure.kpi.settings import OwnKpi, PeriodSettings, Rates

# Numerator and denominator per kind of customer, now and in the baseline; see `kpi_shop.kinds`.
WORKED = {
    "revenue_per_customer": ((40 + 30 + 50 + 60 + 100) / 6, (10 + 30 + 40) / 5),
    "conversion_rate": (5 / 6, 3 / 5),
    "average_order_value": (280 / 6, 80 / 3),
    "purchase_frequency": (6 / 5, 1.0),
    "repeat_rate": (1 / 5, 0.0),
    "retention_rate": (2 / 3, 1.0),
    "churn_rate": (0.0, 1 / 2),
    "new_customer_share": (2 / 5, 1 / 3),
    "hvc_value_share": (15 / 140, 0.0),
    "response_rate": (70 / 120, 20 / 80),
    "click_through_rate": (40 / 120, 0.0),
    "engagement_score": (4 / 6, 1 / 5),
    "campaign_roi": ((1500 - 420) / 420, 0.0),
}


def wide(found, settings=SETTINGS, rates=RATES, scores=None):
    shop = toy.shop(found, settings, rates)
    shop.scores = scores
    days = toy.days(found, settings)
    cuts = segments.cut_offs(shop, days.baseline.starts_at)
    moments = (days.baseline.starts_at, days.current.starts_at, days.current.ends_at)
    assigned = segments.assign(shop, cuts, moments)
    weeks = [*steps(days, days.baseline, "week"), *steps(days, days.current, "week")]
    spans = [days.baseline, days.current, *weeks]
    parted = {
        p.name: moments[0] if p.ends_at <= days.baseline.ends_at else moments[1] for p in spans
    }
    dimensions = segments.dimensions(shop)
    return Wide(shop, declared(settings), spans, parted, assigned, dimensions), days


@lru_cache(maxsize=1)
def kinds():
    return toy.kinds()


@lru_cache(maxsize=1)
def whole():
    return wide(kinds())


@lru_cache(maxsize=1)
def read():
    return {r.kpi.name: r for r in overall(whole()[0], "current", "baseline", [])}


@pytest.mark.parametrize("name", WORKED)
def test_every_figure_worked_by_hand(name):
    now, before = WORKED[name]
    assert read()[name].value.value == pytest.approx(now)
    assert read()[name].before == pytest.approx(before)


def test_what_an_acquisition_cost():
    found = read()["cost_per_acquisition"]
    assert found.value.value == pytest.approx((40 + 240) / 40)
    assert found.flag == "not enough" and "adds up to 0 in the baseline" in found.why


def test_every_declared_figure_is_worked_out_somewhere():
    assert {k.name for k in BUILT_IN} == {*WORKED, "cost_per_acquisition", "clv"}
    assert all(k.meaning and k.title and k.timing in ("leading", "lagging") for k in BUILT_IN)


def test_flags_and_what_they_mean():
    assert read()["response_rate"].flag == "up" and read()["response_rate"].news == "good"
    assert read()["churn_rate"].flag == "down" and read()["churn_rate"].news == "good"
    assert read()["retention_rate"].flag == "down" and read()["retention_rate"].news == "bad"
    assert read()["new_customer_share"].news in ("", "neutral")


def test_a_figure_whose_input_is_absent_says_so():
    found = kinds()
    bare = replace(found, tables={n: found.tables[n] for n in ("customers", "transactions")})
    table, _ = wide(bare, rates=Rates())
    said = {r.kpi.name: r.why for r in overall(table, "current", "baseline", [])
            if r.flag == "absent"}  # fmt: skip
    assert said == {
        "clv": "no lifetime-value model is in use; nextbest promote clv, then refresh",
        "response_rate": "the data hold no contacts",
        "click_through_rate": "the data hold no contacts",
        "engagement_score": "the data hold no events, such as opens, visits and clicks",
        "campaign_roi": "the data hold no contacts",
        "cost_per_acquisition": "the data hold no contacts",
    }


@pytest.mark.parametrize(
    ("rates", "absent"),
    [
        (Rates(), {"campaign_roi": "costs.contact", "cost_per_acquisition": "costs.contact"}),
        (Rates(contact=1.0), {"campaign_roi": "costs.margin_rate"}),
    ],
)
def test_costs_that_nobody_stated_are_no_zero(rates, absent):
    shop = toy.shop(kinds(), rates=rates)
    said = {k.name: k.needs(shop) for k in BUILT_IN if k.needs(shop) and k.name != "clv"}
    assert said.keys() == absent.keys()
    assert all(absent[n] in said[n] and "serving/report.toml" in said[n] for n in absent)


def test_own_figures_are_sums_over_rows_and_models_see_customers_of_today():
    own = {
        "large": OwnKpi(title="Large orders", numerator="CASE WHEN amount >= 50 THEN 1 ELSE 0 END",
                        denominator="1"),
        "visits": OwnKpi(title="Visits", table="events", unit="count",
                         numerator="CASE WHEN event_type = 'visit' THEN 1 ELSE 0 END"),
    }  # fmt: skip
    ids = [f"often-{i:02}" for i in range(COPIES)]
    scores = ibis.memtable({"customer_id": ids, "clv": [float(i) for i in range(COPIES)]})
    table, _ = wide(kinds(), SETTINGS.model_copy(update={"kpis": own}), scores=scores)
    found = {r.kpi.name: r for r in overall(table, "current", "baseline", [])}
    assert found["large"].value.value == pytest.approx(3 / 6) and found["large"].before == 0
    assert found["visits"].value.value == pytest.approx(1 / 6)
    clv = found["clv"]
    assert clv.value.value == pytest.approx(19.5) and clv.customers == COPIES
    assert clv.before is None and "as they are now" in clv.why


def test_an_own_figure_that_names_no_column_is_refused():
    own = {"x": OwnKpi(title="X", numerator="amonut"), "y": OwnKpi(title="Y", numerator="order_id")}
    with pytest.raises(ConfigError) as refused:
        wide(kinds(), SETTINGS.model_copy(update={"kpis": own}))
    said = str(refused.value)
    assert '"amonut"' in said and 'Did you mean "amount"' in said and "[kpis.y]" in said


def test_segments_add_up_and_are_those_of_the_start():
    found = [r for r in per_segment(whole()[0], "current", "baseline")
             if r.kpi.name == "conversion_rate"]  # fmt: skip
    by = {(r.dimension, r.segment): r for r in found}
    south = by["region", "south"]
    # gone, never, big and new: it was not known at the start, but its region is.
    assert south.value.value == pytest.approx(3 / 4) and south.before == pytest.approx(1 / 3)
    tiers = {s: r.value.value for (d, s), r in by.items() if d == "value_tier" and r.value}
    assert tiers["high"] == pytest.approx(1 / 2)  # once bought again, gone did not
    assert tiers["low"] == 1.0 and ("value_tier", "not yet known") not in by


def test_weeks_add_up_to_the_period():
    table, days = whole()
    weeks = [p for p in series(table, days, "week") if p.kpi == "revenue_per_customer"]
    assert [p.in_baseline for p in weeks] == [True] * 4 + [False] * 4
    known = [4, 4, 5, 5, 5, 5, 6, 6]  # never came with the contact, new with the order
    shown = [(p.value.value if p.value else 0.0) * n for p, n in zip(weeks, known, strict=True)]
    assert sum(shown[4:]) == pytest.approx(280) and sum(shown[:4]) == pytest.approx(80)


# ------------------------------------------------------------------ days


def test_the_days_of_the_period_and_their_baseline():
    days = toy.days(kinds())
    assert (days.current.ends_at, days.current.length.days) == (UNTIL, 28)
    assert days.baseline.ends_at == days.current.starts_at
    assert [p.name for p in steps(days, days.current, "month")] == []
    names = [p.name for p in steps(days, days.current, "day")]
    assert len(names) == 28 and names[0] == "day 2024-05-20"


def test_a_baseline_that_the_data_do_not_cover_is_refused():
    for baseline, said in (("year before", "do not cover the baseline"),
                           (UNTIL.date(), "runs into the period"),
                           (DAY_0.date().replace(year=2020), "do not cover")):  # fmt: skip
        period = PeriodSettings(days=28, baseline=baseline)
        with pytest.raises(DataError, match=said):
            toy.days(kinds(), SETTINGS.model_copy(update={"period": period}))


def test_one_customer_is_not_enough():
    lonely = toy.history({"a": {"region": "x"}}, [("a", 20.0, 5.0), ("a", 150.0, 5.0)])
    shop = toy.shop(lonely)
    with pytest.raises(DataError, match="too few customers"):
        segments.cut_offs(shop, toy.days(lonely).baseline.starts_at)
