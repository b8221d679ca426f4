"""Feature groups of this shop, beside the built-in ones: what its coupons and aisles tell."""

import ibis
from ibis import _

from nextbest import Block, Past, feature_group, select, summarise, total


@feature_group("transactions", requires=("transactions.coupon_discount", "transactions.product_id"))
def coupons(past: Past) -> Block:
    """Coupons used at the till, of the shop's own campaigns or of manufacturers."""
    used = past.lines.filter(_.coupon_discount > 0)
    spec = {}
    for days in (28, 91, 182):
        inside = used.age_days <= days
        spec[f"coupon_orders_{days}d"] = (
            used.order_id.nunique(where=inside).cast("float64"),
            f"orders with a coupon in the last {days} days", "orders", 0.0,
        )  # fmt: skip
        spec[f"coupon_discount_{days}d"] = (
            total(used.coupon_discount, inside).fill_null(0.0),
            f"coupon discounts in the last {days} days", "currency", 0.0,
        )  # fmt: skip
    spec["coupon_products_182d"] = (
        used.product_id.nunique(where=used.age_days <= 182).cast("float64"),
        "different products bought with a coupon in the last 182 days", "products", 0.0,
    )  # fmt: skip
    spec["days_since_coupon"] = (
        used.age_days.min(), "days since a coupon was last used", "days", None,
    )  # fmt: skip
    block = summarise(used, "customer", spec)
    # Few lines used a coupon; what they are a share of is added up from orders, not from lines.
    lately = past.orders.age_days <= 182
    everybody = past.orders.group_by("customer_id", "as_of").aggregate(
        orders=lately.sum(), spend=total(_.amount, lately)
    )
    both = everybody.left_join(block.table, ["customer_id", "as_of"])
    spec = {name: (both[name], *rest) for name, (_expression, *rest) in spec.items()}
    spec["coupon_order_share_182d"] = (
        both.coupon_orders_182d.fill_null(0.0) / both.orders.nullif(0),
        "share of the last 182 days' orders that used a coupon", "share", None,
    )  # fmt: skip
    spec["coupon_spend_share_182d"] = (
        both.coupon_discount_182d.fill_null(0.0)
        / ibis.cases((both.spend > 0, both.spend), else_=None),
        "coupon discounts over spend, last 182 days", "share", None,
    )  # fmt: skip
    return select(both, "customer", spec)


@feature_group(
    "transactions",
    entity="pair",
    requires=("transactions.product_id", "transactions.discount", "transactions.coupon_discount",
              "offers.product_ids"),
)  # fmt: skip
def offer_coupons(past: Past) -> Block:
    """How the customer came by the offer's products so far: with coupons, on sale, again."""
    lines = past.offer_lines(182).filter((_.amount > 0) | (_.coupon_discount > 0))
    used = lines.coupon_discount > 0
    pair = ("customer_id", "offer_id", "as_of")
    bought = lines.group_by(*pair, "product_id", "order_id").aggregate(
        spend_28d=total(lines.amount, lines.age_days <= 28).fill_null(0.0),
        discount=total(lines.discount).fill_null(0.0),
        coupon_lines=used.sum(),
        coupon_discount=total(lines.coupon_discount, used).fill_null(0.0),
        coupon_age=lines.age_days.min(where=used),
    )
    rows = bought.group_by(*pair, "product_id").aggregate(
        orders=_.count(),
        spend_28d=total(_.spend_28d),
        discount=total(_.discount),
        coupon_lines=_.coupon_lines.sum(),
        coupon_discount=total(_.coupon_discount),
        coupon_age=_.coupon_age.min(),
    )
    what = "the offer's products in the last 182 days"
    return summarise(
        rows,
        "pair",
        {
            "offer_coupon_lines": (
                total(rows.coupon_lines), f"coupons used on {what}", "coupons", 0.0,
            ),
            "offer_coupon_discount": (
                total(rows.coupon_discount), f"coupon discounts on {what}", "currency", 0.0,
            ),
            "days_since_offer_coupon": (
                rows.coupon_age.min(),
                "days since a coupon was used on one of the offer's products", "days", None,
            ),
            "offer_product_discount": (
                total(rows.discount), f"discounts of any kind on {what}", "currency", 0.0,
            ),
            "offer_product_spend_28d": (
                total(rows.spend_28d),
                "spend on the offer's products in the last 28 days", "currency", 0.0,
            ),
            "offer_products_repeated": (
                (rows.orders >= 2).sum().cast("float64"),
                "the offer's products bought twice or more in the last 182 days", "products", 0.0,
            ),
            "offer_products_regular": (
                (rows.orders >= 4).sum().cast("float64"),
                "the offer's products bought four times or more in the last 182 days",
                "products", 0.0,
            ),
        },
    )  # fmt: skip
