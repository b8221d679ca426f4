"""Where the data is: UCI Online Retail II, a British gift wholesaler, mapped onto the contract.

The file's path stands in the environment variable ONLINE_RETAIL. Its clock is London's; everything
that leaves this file is UTC.
"""

import os

import ibis


def tables() -> dict[str, ibis.Table]:
    """Return the contract's tables: all lines, also those that the contract will set aside."""
    lines = transactions(ibis.duckdb.connect().read_parquet(os.environ["ONLINE_RETAIL"]))
    known = lines.filter(lines.customer_id.notnull())
    customers = known.group_by("customer_id").aggregate(
        country=known.country.argmax(known.ordered_at)
    )
    return {"customers": customers, "transactions": lines}


def transactions(raw: ibis.Table) -> ibis.Table:
    """One row per line of an invoice; a cancelled invoice takes its goods back."""
    return raw.select(
        customer_id=raw["Customer ID"].cast("int64").cast("string"),
        order_id=raw.Invoice,
        ordered_at=to_utc("UTC", from_local("Europe/London", raw.InvoiceDate.cast("timestamp"))),
        amount=(raw.Quantity * raw.Price).round(2),
        quantity=raw.Quantity.cast("float64"),
        product_id=raw.StockCode,
        is_return=raw.Invoice.startswith("C"),
        unit_price=raw.Price,
        description=raw.Description,
        country=raw.Country,
    )


@ibis.udf.scalar.builtin(name="timezone", signature=(("string", "timestamp"), "timestamp('UTC')"))
def from_local(zone, local):
    """Read a wall clock in its zone (DuckDB's own function)."""


@ibis.udf.scalar.builtin(name="timezone", signature=(("string", "timestamp('UTC')"), "timestamp"))
def to_utc(zone, moment):
    """Return what the clock of a zone shows at a moment (DuckDB's own function)."""
