"""The built-in feature groups: what any retailer's history says about a customer.

Each group names its source table and the optional columns it needs, and is left out (and reported)
where the data lack them. Windows are in days before the moment asked about.
"""

from __future__ import annotations

from typing import Any

import ibis
import ibis.expr.types as ir
from ibis import _

from nextbest.data.features import (
    KEYS,
    Block,
    FeatureGroup,
    Past,
    average,
    days_between,
    deviation,
    feature_group,
    follow,
    known_before,
    select,
    summarise,
    total,
)
from nextbest.data.live import Live
from nextbest.errors import DataError

WINDOWS_DAYS = (28, 91, 182)
# A customer asks for about this many contacts before a rate of their own means anything; the prior
# pulls rates of customers with few contacts towards none.
PRIOR_CONTACTS = 4.0
_IDENTITY = ("customer_id", "known_at")

Spec = dict[str, tuple[Any, str, str, float | None]]


def _ratio(top: ir.Value, bottom: ir.Value) -> ir.Value:
    """Divide, giving unknown where the bottom is not above zero."""
    return top.cast("float64") / ibis.cases((bottom > 0, bottom.cast("float64")), else_=None)


@feature_group("transactions")
def rfm(past: Past) -> Block:
    """Recency and the usual value of an order."""
    o = past.purchases
    spec: Spec = {
        "days_since_last_purchase": (
            o.age_days.min(),
            "days since the last purchase",
            "days",
            None,
        ),
        "mean_order_value": (average(o.amount), "mean value of an order", "currency", None),
        "median_order_value": (o.amount.median(), "median value of an order", "currency", None),
        "lines_per_order": (o.n_lines.mean(), "mean order lines per order", "lines", None),
    }
    return summarise(o, "customer", spec)


@feature_group("transactions")
def totals(past: Past) -> Block:
    """Tenure and totals over the whole known history, which grow as it gets longer."""
    o = past.purchases
    spec: Spec = {
        "tenure_days": (o.age_days.max(), "days since the first known purchase", "days", None),
        "orders_total": (o.count().cast("float64"), "orders so far", "orders", 0.0),
        "spend_total": (total(o.amount), "money spent so far", "currency", 0.0),
        "purchase_days_total": (
            o.ordered_at.truncate("D").nunique().cast("float64"),
            "different days with a purchase",
            "days",
            0.0,
        ),
    }
    return summarise(o, "customer", spec)


@feature_group("transactions")
def windows(past: Past) -> Block:
    """Orders and spend in the last 28, 91 and 182 days, and how they are changing."""
    o = past.purchases
    spec: Spec = {}
    for days in WINDOWS_DAYS:
        inside = o.age_days <= days
        spec[f"orders_{days}d"] = (
            inside.sum().cast("float64"),
            f"orders in the last {days} days",
            "orders",
            0.0,
        )
        spec[f"spend_{days}d"] = (
            total(o.amount, inside).fill_null(0.0),
            f"money spent in the last {days} days",
            "currency",
            0.0,
        )
    spec["order_value_91d"] = (
        average(o.amount, o.age_days <= 91),
        "mean value of an order in the last 91 days",
        "currency",
        None,
    )
    block = summarise(o, "customer", spec)
    short, middle, long = WINDOWS_DAYS
    table = block.table.mutate(
        spend_trend=_ratio(_[f"spend_{short}d"] * (middle / short), _[f"spend_{middle}d"]),
        orders_trend=_ratio(_[f"orders_{short}d"] * (middle / short), _[f"orders_{middle}d"]),
        spend_trend_long=_ratio(_[f"spend_{middle}d"] * (long / middle), _[f"spend_{long}d"]),
        orders_trend_long=_ratio(_[f"orders_{middle}d"] * (long / middle), _[f"orders_{long}d"]),
    )
    trend = "1 = steady, 2 = doubled"
    more = {
        "spend_trend": (
            f"last 28 days' spend rate over the last 91 days' ({trend})",
            "ratio",
            None,
        ),
        "orders_trend": (
            f"last 28 days' order rate over the last 91 days' ({trend})",
            "ratio",
            None,
        ),
        "spend_trend_long": (
            f"last 91 days' spend rate over the last 182 days' ({trend})",
            "ratio",
            None,
        ),
        "orders_trend_long": (
            f"last 91 days' order rate over the last 182 days' ({trend})",
            "ratio",
            None,
        ),
    }
    return Block(table, {**block.columns, **more})


@feature_group("transactions")
def timing(past: Past) -> Block:
    """Time between purchases, and how overdue the next one is."""
    days = past.purchases.group_by(*KEYS["customer"], day=_.ordered_at.truncate("D")).aggregate(
        age_days=_.age_days.min()
    )
    order = ibis.window(group_by=KEYS["customer"], order_by=days.day)
    gaps = days.mutate(gap=days.age_days.lag().over(order) - days.age_days)
    block = summarise(
        gaps,
        "customer",
        {
            "purchase_days_91d": (
                (gaps.age_days <= 91).sum().cast("float64"),
                "different days with a purchase in the last 91 days",
                "days",
                0.0,
            ),
            "mean_gap_days": (average(gaps.gap), "mean days between purchase days", "days", None),
            "max_gap_days": (gaps.gap.max(), "longest pause between purchase days", "days", None),
            "gap_deviation_days": (
                deviation(gaps.gap),
                "spread of the days between purchases",
                "days",
                None,
            ),
            "since_last_days": (gaps.age_days.min(), "", "days", None),
        },
    )
    table = block.table.mutate(overdue_ratio=_ratio(_.since_last_days, _.mean_gap_days)).drop(
        "since_last_days"
    )
    columns = {k: v for k, v in block.columns.items() if k != "since_last_days"}
    columns["overdue_ratio"] = (
        "days since the last purchase over the usual gap (above 1 = overdue)",
        "ratio",
        None,
    )
    return Block(table, columns)


@feature_group("transactions")
def lifetime(past: Past) -> Block:
    """Frequency, recency, T and monetary value as the lifetime-value literature defines them.

    Periods are days; the first purchase day is not a repeat (Fader & Hardie 2005).
    """
    worth = _.margin if "margin" in past.orders.columns else _.amount
    days = past.purchases.group_by(*KEYS["customer"], day=_.ordered_at.truncate("D")).aggregate(
        worth=total(worth), age=_.age_days.max()
    )
    nth = ibis.row_number().over(ibis.window(group_by=KEYS["customer"], order_by=days.day))
    days = days.mutate(repeat=nth > 0)
    spec: Spec = {
        "frequency": (
            days["repeat"].sum().cast("float64"),
            "repeat purchase days",
            "days",
            None,
        ),
        "recency": (
            days.age.max() - days.age.min(),
            "age of the customer at the last purchase",
            "days",
            None,
        ),
        "T": (days.age.max(), "days from the first purchase", "days", None),
        "monetary_value": (
            average(days.worth, days["repeat"]).fill_null(0.0),
            "mean value of a repeat purchase day (margin where known)",
            "currency",
            None,
        ),
    }
    return summarise(days, "customer", spec)


@feature_group("transactions", requires=("transactions.category",))
def categories(past: Past) -> Block:
    """Breadth of the basket, its concentration, and categories new in the last window."""
    bought = past.lines.filter(_.category.notnull() & (_.amount > 0))
    each = bought.group_by(*KEYS["customer"], "category").aggregate(
        spend_91d=total(_.amount, _.age_days <= 91).fill_null(0.0),
        spend=total(_.amount),
        first_age=_.age_days.max(),
        last_age=_.age_days.min(),
    )
    everything = ibis.window(group_by=KEYS["customer"])
    each = each.mutate(
        share=_ratio(each.spend_91d, total(each.spend_91d).over(everything)),
        # Only a customer seen for longer than the window can show a *new* category in it.
        seen_longer=each.first_age.max().over(everything) > 56,
    )
    new = each.seen_longer & (each.first_age <= 28)
    spec: Spec = {
        "categories_total": (
            each.count().cast("float64"),
            "categories ever bought",
            "categories",
            0.0,
        ),
        "categories_91d": (
            (each.last_age <= 91).sum().cast("float64"),
            "categories bought in the last 91 days",
            "categories",
            0.0,
        ),
        "categories_28d": (
            (each.last_age <= 28).sum().cast("float64"),
            "categories bought in the last 28 days",
            "categories",
            0.0,
        ),
        "new_categories_28d": (
            new.sum().cast("float64"),
            "categories bought for the first time in the last 28 days",
            "categories",
            0.0,
        ),
        "new_category_spend_28d": (
            total(each.spend, new).fill_null(0.0),
            "spend in categories first bought in the last 28 days",
            "currency",
            0.0,
        ),
        "category_top_share_91d": (
            each.share.max(),
            "share of 91-day spend in the largest category",
            "share",
            None,
        ),
        "category_entropy_91d": (
            -total(each.share * each.share.ln(), each.share > 0),
            "evenness of 91-day spend over categories (0 = one category)",
            "nats",
            None,
        ),
    }
    return summarise(each, "customer", spec)


@feature_group("transactions", requires=("transactions.product_id",))
def products(past: Past) -> Block:
    """Breadth of products bought and how far purchases repeat."""
    each = (
        past.lines.filter(_.product_id.notnull() & (_.amount > 0))
        .group_by(*KEYS["customer"], "product_id")
        .aggregate(n=_.count(), last_age=_.age_days.min())
    )
    return summarise(
        each,
        "customer",
        {
            "products_total": (
                each.count().cast("float64"),
                "different products ever bought",
                "products",
                0.0,
            ),
            "products_91d": (
                (each.last_age <= 91).sum().cast("float64"),
                "different products bought in the last 91 days",
                "products",
                0.0,
            ),
            "repeat_product_share": (
                (each.n > 1).mean(),
                "share of products bought more than once",
                "share",
                None,
            ),
        },
    )


@feature_group("transactions", requires=("transactions.discount",))
def discounts(past: Past) -> Block:
    """How much of the spend comes at a discount."""
    o = past.purchases.mutate(listed=_.amount + _.discount)
    recent = o.age_days <= 91
    return summarise(
        o,
        "customer",
        {
            "discount_share": (
                _ratio(total(o.discount), total(o.listed)),
                "discount as a share of list price, whole history",
                "share",
                None,
            ),
            "discount_share_91d": (
                _ratio(total(o.discount, recent), total(o.listed, recent)),
                "discount as a share of list price, last 91 days",
                "share",
                None,
            ),
            "discounted_order_share": (
                (o.discount > 0).mean(),
                "share of orders with any discount",
                "share",
                None,
            ),
        },
    )


@feature_group("transactions", requires=("transactions.margin",))
def margins(past: Past) -> Block:
    """Margin earned from the customer."""
    o = past.purchases
    return summarise(
        o,
        "customer",
        {
            "margin_total": (total(o.margin), "margin earned so far", "currency", 0.0),
            "margin_91d": (
                total(o.margin, o.age_days <= 91).fill_null(0.0),
                "margin earned in the last 91 days",
                "currency",
                0.0,
            ),
        },
    )


@feature_group("events")
def engagement(past: Past) -> Block:
    """Opens, clicks, visits, cart adds and carts left behind."""
    spec = {
        f"{noun}_{days}d": (
            Live("count", of=kind, days=days),
            f"{noun.replace('_', ' ')} in the last {days} days",
            "events",
        )
        for kind, noun in (
            ("open", "opens"),
            ("click", "clicks"),
            ("visit", "visits"),
            ("cart_add", "cart_adds"),
        )
        for days in (7, 28)
    }
    spec["days_since_last_visit"] = (
        Live("days_since", of="visit"),
        "days since the last visit",
        "days",
    )
    spec["days_since_last_cart_add"] = (
        Live("days_since", of="cart_add"),
        "days since something was last put in the cart",
        "days",
    )
    spec["abandoned_cart"] = (
        Live("left_behind", of="cart_add", days=7, until="purchase"),
        "1 if something was put in the cart in the last 7 days and not bought since",
        "0 or 1",
    )
    return follow(past, "events", spec)


@feature_group("contacts")
def contacts(past: Past) -> Block:
    """How often, and how lately, the customer was contacted."""
    return follow(
        past,
        "contacts",
        {
            "contacts_total": (Live("count"), "contacts so far", "contacts"),
            "contacts_28d": (Live("count", days=28), "contacts in the last 28 days", "contacts"),
            "contacts_91d": (Live("count", days=91), "contacts in the last 91 days", "contacts"),
            "days_since_last_contact": (
                Live("days_since"),
                "days since the last contact",
                "days",
            ),
        },
    )


@feature_group("responses", requires=("contacts",))
def responses(past: Past) -> Block:
    """Past responses to any offer, and their rate per contact."""
    answered = follow(
        past,
        "responses",
        {
            "responses_total": (Live("distinct"), "offers responded to so far", "offers"),
            "responses_91d": (
                Live("distinct", days=91),
                "offers last responded to in the last 91 days",
                "offers",
            ),
            "response_actions": (
                Live("count"),
                "single responses so far (several per offer count)",
                "responses",
            ),
            "days_since_last_response": (
                Live("days_since"),
                "days since the last response",
                "days",
            ),
        },
    )
    keys = list(KEYS["customer"])
    contacted = (
        past.rows("contacts").group_by(*keys).aggregate(offers=_.offer_id.nunique().cast("float64"))
    )
    both = past.moments("customer").left_join(contacted, keys).left_join(answered.table, keys)
    rate = both.responses_total.fill_null(0.0) / (both.offers + PRIOR_CONTACTS)
    words = f"offers responded to over offers received + {PRIOR_CONTACTS:g}"
    return Block(
        both.select(*keys, *answered.columns, response_rate=rate),
        {**answered.columns, "response_rate": (words, "share", 0.0)},
        answered.live,
        answered.source,
    )


@feature_group("customers")
def demographics(past: Past) -> Block:
    """The attributes the customer table holds: demographics, region, anything else."""
    people = past.tables["customers"]
    attributes = [c for c in people.columns if c not in _IDENTITY and not c.startswith("consent_")]
    known = known_before(people, past.moments("customer"), None)
    spec: Spec = {}
    for name in attributes:
        value, words = known[name], name.replace("_", " ")
        meaning, unit = f"customer attribute {words}", "as given"
        dtype = value.type()
        if dtype.is_timestamp() or dtype.is_date():
            value = days_between(value.cast("timestamp"), known.as_of)
            meaning, unit = f"days since customer attribute {words}", "days"
        elif dtype.is_numeric():
            value = value.cast("float64")
        elif not (dtype.is_string() or dtype.is_boolean()):
            raise DataError(
                'training/sources.py: table "customers"',
                f'column "{name}" cannot be a feature',
                expected="text, a number, a boolean or a time",
                got=str(dtype),
                action="Turn it into one of these, or leave it out.",
            )
        spec[name] = (value, meaning, unit, None)
    return select(known, "customer", spec)


@feature_group("offers", entity="offer")
def offer(past: Past) -> Block:
    """What the offer is: type, length, size."""
    o = past.offers
    spec: Spec = {}
    if "offer_type" in o.columns:
        spec["offer_type"] = (o.offer_type, "type of the offer", "type", None)
    if "ends_at" in o.columns:
        spec["offer_days_left"] = (
            days_between(o.as_of, o.ends_at),
            "days until the offer ends",
            "days",
            None,
        )
    for name, meaning in (
        ("n_coupons", "coupons in the offer"),
        ("n_products", "products it covers"),
    ):
        if name in o.columns:
            spec[f"offer_{name}"] = (o[name].cast("float64"), meaning, name[2:], None)
    if "categories" in o.columns:
        spec["offer_n_categories"] = (
            o.categories.length().cast("float64"),
            "categories it covers",
            "categories",
            None,
        )
    return select(o, "offer", spec)


@feature_group(
    "responses",
    entity="offer",
    requires=("offers.offer_type", "responses.incentive_cost", "responses.value"),
)
def offer_economics(past: Past) -> Block:
    """What responses to offers of this type have cost and brought so far."""
    asked = past.offers.select("offer_id", "as_of", "offer_type")
    r = _with_type(past, "responses").rename(past_offer="offer_id")
    known = asked.inner_join(r, "offer_type")
    known = known.filter(_type_known(known) & (known.responded_at < known.as_of))
    each = known.group_by(*KEYS["offer"], "customer_id", "past_offer").aggregate(
        cost=total(_.incentive_cost), value=total(_.value)
    )
    return summarise(
        each,
        "offer",
        {
            "incentive_per_response": (
                average(each.cost),
                "mean incentive cost per responding customer, offers of this type so far",
                "currency",
                None,
            ),
            "value_per_response": (
                average(each.value),
                "mean value per responding customer, offers of this type so far",
                "currency",
                None,
            ),
        },
    )


def _with_type(past: Past, table: str) -> ir.Table:
    """A contact or response table with the type of each row's offer, and when that was known."""
    offers = past.tables["offers"]
    offers = offers.select("offer_id", "offer_type", type_known_at=offers.known_at)
    return past.tables[table].inner_join(offers, "offer_id")


def _type_known(rows: ir.Table) -> ir.BooleanValue:
    """True where a contact or response, and the type of its offer, were known before ``as_of``."""
    known = rows.type_known_at.isnull() | (rows.type_known_at < rows.as_of)
    return known & (rows.known_at < rows.as_of)


def _pairs_with_type(past: Past) -> ir.Table:
    offers = past.offers.select("offer_id", "as_of", "offer_type")
    return past.moments("pair").inner_join(offers, ["offer_id", "as_of"])


@feature_group("responses", entity="pair", requires=("contacts", "offers.offer_type"))
def offer_type_history(past: Past) -> Block:
    """Past contacts with, and responses to, offers of this type."""
    asked = _pairs_with_type(past)
    keys = KEYS["pair"]

    def seen(table: str, at: str) -> ir.Table:
        t = _with_type(past, table)
        keep = ("customer_id", "offer_type", "type_known_at", "known_at")
        t = t.select(*keep, past_offer=t.offer_id, at=t[at])
        rows = asked.inner_join(t, ["customer_id", "offer_type"])
        rows = rows.filter((rows.at < rows.as_of) & _type_known(rows))
        return (
            rows.mutate(age=days_between(rows.at, rows.as_of))
            .group_by(*keys)
            .aggregate(n=_.past_offer.nunique().cast("float64"), age=_.age.min())
        )

    c = seen("contacts", "contacted_at")
    r = seen("responses", "responded_at").rename(n_responses="n", response_age="age")
    both = c.left_join(r, list(keys))
    got = both.n_responses.fill_null(0.0)
    return select(
        both,
        "pair",
        {
            "type_contacts": (both.n, "offers of this type received so far", "offers", 0.0),
            "type_responses": (got, "offers of this type responded to so far", "offers", 0.0),
            "type_response_rate": (
                got / (both.n + PRIOR_CONTACTS),
                f"responses to this type over contacts + {PRIOR_CONTACTS:g}",
                "share",
                0.0,
            ),
            "days_since_type_contact": (
                both.age,
                "days since the last contact with this type",
                "days",
                None,
            ),
            "days_since_type_response": (
                both.response_age,
                "days since the last response to this type",
                "days",
                None,
            ),
        },
    )


@feature_group(
    "transactions",
    entity="pair",
    requires=(
        "transactions.product_id",
        "offers.product_ids",
        "offers.ends_at",
    ),
)
def offer_products(past: Past) -> Block:
    """How much of the customer's past shopping is in the offer's products."""
    lines = past.offer_lines(182).filter(_.amount > 0)
    # Counting what is different is slow where it is done beside sums: one level for each count.
    bought = lines.group_by(*KEYS["pair"], "product_id", "order_id").aggregate(
        spend=total(_.amount),
        spend_91d=total(_.amount, _.age_days <= 91).fill_null(0.0),
        last_age=_.age_days.min(),
    )
    each = bought.group_by(*KEYS["pair"], "product_id").aggregate(
        spend=total(_.spend),
        spend_91d=total(_.spend_91d),
        orders=_.count(),
        last_age=_.last_age.min(),
    )
    spent = (
        past.lines.filter((_.amount > 0) & (_.age_days <= 182))
        .group_by(*KEYS["customer"])
        .aggregate(spend_all=total(_.amount), depth_days=_.age_days.max())
    )
    asked = past.moments("pair")
    matched = each.group_by(*KEYS["pair"]).aggregate(
        spend=total(_.spend),
        spend_91d=total(_.spend_91d),
        items=_.count().cast("float64"),
        lines=_.orders.sum().cast("float64"),
        last_age=_.last_age.min(),
    )
    ends = past.offers.select("offer_id", "as_of", "ends_at")
    base = asked.inner_join(spent, ["customer_id", "as_of"]).inner_join(ends, ["offer_id", "as_of"])
    both = base.left_join(matched, list(KEYS["pair"]))
    # A customer seen for less than the window is scaled by the days seen, four weeks at least.
    seen_days = ibis.greatest(both.depth_days, 28.0)
    spend = both.spend.fill_null(0.0)
    return select(
        both,
        "pair",
        {
            "offer_product_spend_share": (
                _ratio(spend, both.spend_all),
                "share of the last 182 days' spend that is on the offer's products",
                "share",
                0.0,
            ),
            "offer_product_spend_per_window": (
                spend / seen_days * ibis.greatest(days_between(both.as_of, both.ends_at), 0.0),
                "usual spend on the offer's products over the days the offer has left",
                "currency",
                0.0,
            ),
            "offer_product_spend_91d": (
                both.spend_91d.fill_null(0.0),
                "spend on the offer's products in the last 91 days",
                "currency",
                0.0,
            ),
            "offer_products_bought": (
                both["items"].fill_null(0.0),
                "the offer's products bought in the last 182 days",
                "products",
                0.0,
            ),
            "offer_product_lines": (
                both["lines"].fill_null(0.0),
                "times the offer's products were bought in the last 182 days",
                "lines",
                0.0,
            ),
            "days_since_offer_product": (
                both.last_age,
                "days since one of the offer's products was bought",
                "days",
                None,
            ),
        },
    )


@feature_group(
    "transactions", entity="pair", requires=("transactions.category", "offers.categories")
)
def offer_categories(past: Past) -> Block:
    """How much of the customer's past shopping is in the offer's categories."""
    each = (
        past.lines.filter((_.amount > 0) & (_.age_days <= 182) & _.category.notnull())
        .group_by(*KEYS["customer"], "category")
        .aggregate(spend=total(_.amount))
    )
    spent = each.group_by(*KEYS["customer"]).aggregate(spend_all=total(_.spend))
    asked = past.moments("pair")
    matched = (
        asked.inner_join(past.offer_categories(), ["offer_id", "as_of"])
        .inner_join(each, ["customer_id", "as_of", "category"])
        .group_by(*KEYS["pair"])
        .aggregate(spend=total(_.spend))
    )
    both = asked.inner_join(spent, ["customer_id", "as_of"]).left_join(matched, list(KEYS["pair"]))
    return select(
        both,
        "pair",
        {
            "offer_category_spend_share": (
                _ratio(both.spend.fill_null(0.0), both.spend_all),
                "share of the last 182 days' spend that is in the offer's categories",
                "share",
                0.0,
            ),
        },
    )


BUILT_IN: tuple[FeatureGroup, ...] = (
    rfm,
    totals,
    windows,
    timing,
    lifetime,
    categories,
    products,
    discounts,
    margins,
    engagement,
    contacts,
    responses,
    demographics,
    offer,
    offer_economics,
    offer_type_history,
    offer_products,
    offer_categories,
)
