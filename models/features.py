"""Feature groups of this shop, beside the built-in ones: what its coupons and aisles tell."""

from ibis import _

from nextbest import Block, Past, feature_group, summarise, total


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
    return summarise(used, "customer", spec)
