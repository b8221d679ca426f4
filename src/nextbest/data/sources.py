"""What `training/sources.py` hands over: the tables that the contract knows, and their shape.

Shape is tables, columns and types. It is checked before a row is read, and every fault is reported
at once; `contract` then looks at the rows.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from types import MappingProxyType
from typing import Any

import ibis
import ibis.expr.operations as ops

from nextbest.errors import DataError, Fault, did_you_mean

__all__ = ["REASON", "TABLES", "Column", "TableSpec", "check_shape", "conform", "text_of", "where"]

# What pandas and spreadsheets write for a missing id. One customer called "nan" with a fifth of
# all purchases is worse than losing a person who is really called that.
_BLANK = ("", "nan", "none", "null", "<na>", "nat")

REASON = "_reason"
"""Column of a quarantine table that says why the row is there."""

_OURS = "_nb_"  # prefix of the columns that checking adds and takes away again


@dataclass(frozen=True)
class Column:
    """One column of the contract: its name, Ibis type, whether it must be there, its meaning."""

    name: str
    dtype: str
    required: bool
    meaning: str


@dataclass(frozen=True)
class TableSpec:
    """One table of the contract; `key` names the columns that may not repeat, if any."""

    name: str
    columns: tuple[Column, ...]
    event_time: str | None
    key: tuple[str, ...]
    meaning: str
    required: bool = False

    def column(self, name: str) -> Column | None:
        """Return the column of that name, or None where the contract has none."""
        return next((c for c in self.columns if c.name == name), None)


def _must(name: str, dtype: str, meaning: str) -> Column:
    return Column(name, dtype, True, meaning)


def _may(name: str, dtype: str, meaning: str) -> Column:
    return Column(name, dtype, False, meaning)


_CUSTOMER = _must("customer_id", "string", "who")
_OFFER = _must("offer_id", "string", "which offer")
_DECISION = _may("decision_id", "string", "the decision that led to it")
_KNOWN = _may("known_at", "timestamp", "when the row reached us (default: its event time)")

_SPECS = (
    TableSpec(
        "customers",
        (_must("customer_id", "string", "who: one row per customer"), _KNOWN),
        None,
        ("customer_id",),
        "Everyone we may decide for; further columns are attributes, consent_<channel> booleans",
        required=True,
    ),
    TableSpec(
        "transactions",
        (
            _CUSTOMER,
            _must("order_id", "string", "the order or basket that the line belongs to"),
            _must("ordered_at", "timestamp", "when it was bought, UTC"),
            _must("amount", "float64", "what was paid for the line; negative for a return"),
            _may("margin", "float64", "what the line earned us"),
            _may("discount", "float64", "what was taken off the price"),
            _may("quantity", "float64", "how many units; null where that has no meaning"),
            _may("product_id", "string", "which product"),
            _may("category", "string", "which department or category"),
            _may("channel", "string", "where it was bought"),
            _may("is_return", "boolean", "true where the line takes goods back"),
            _KNOWN,
        ),
        "ordered_at",
        (),
        "One row per line of an order",
        required=True,
    ),
    TableSpec(
        "events",
        (
            _CUSTOMER,
            _must("event_at", "timestamp", "when it happened, UTC"),
            _must("event_type", "string", "open, click, visit, cart_add, ..."),
            _may("item", "string", "what it was about"),
            _may("category", "string", "which category it was about"),
            _may("channel", "string", "where it happened"),
            _may("session_id", "string", "the visit that it belongs to"),
            _may("value", "float64", "a number that goes with it"),
            _KNOWN,
        ),
        "event_at",
        (),
        "One row per thing that a customer did beside buying",
    ),
    TableSpec(
        "contacts",
        (
            _CUSTOMER,
            _OFFER,
            _must("contacted_at", "timestamp", "when the offer reached the customer, UTC"),
            _must("channel", "string", "through which channel"),
            _DECISION,
            _may("selection_probability", "float64", "chance that the policy chose it, (0, 1]"),
            _may("arm", "string", "treated, holdout or another arm"),
            _KNOWN,
        ),
        "contacted_at",
        ("customer_id", "offer_id", "contacted_at", "channel"),
        "One row per offer that was put before a customer",
    ),
    TableSpec(
        "responses",
        (
            _CUSTOMER,
            _OFFER,
            _must("responded_at", "timestamp", "when the customer responded, UTC"),
            _must("response_type", "string", "redemption, click, refusal, ..."),
            _DECISION,
            _may("value", "float64", "what the response brought in"),
            _may("incentive_cost", "float64", "what the incentive took off the price"),
            _KNOWN,
        ),
        "responded_at",
        (),
        "One row per response to an offer",
    ),
    TableSpec(
        "offers",
        (
            _must("offer_id", "string", "which offer: one row each"),
            _may("name", "string", "what people call it"),
            _may("offer_type", "string", "the kind of offer"),
            _may("category", "string", "the category it sells"),
            _may("starts_at", "timestamp", "first instant at which it runs, UTC"),
            _may("ends_at", "timestamp", "first instant at which it no longer runs, UTC"),
            _may("product_ids", "array<string>", "the products it covers"),
            _may("categories", "array<string>", "the categories it covers"),
            _may("n_coupons", "int64", "how many coupons it holds"),
            _may("n_products", "int64", "how many products it covers"),
            _KNOWN,
        ),
        None,
        ("offer_id",),
        "Past and present offers",
    ),
)

TABLES: Mapping[str, TableSpec] = MappingProxyType({spec.name: spec for spec in _SPECS})
"""The tables of the contract by name."""

_ACCEPTED = {
    "string": "text (or an integer)",
    "float64": "a number",
    "int64": "an integer",
    "boolean": "a boolean",
    "timestamp": "a timestamp, a date or ISO text",
    "array<string>": "an array of text",
}


def where(table: str) -> str:
    """Return how messages name a source table."""
    return f'training/sources.py: table "{table}"'


def check_shape(sources: Mapping[str, ibis.Table]) -> Any:
    """Raise every fault of shape at once; return the backend that all tables share."""
    faults = [
        Fault(where(name), "missing", f'a table returned by tables() as "{name}"',
              ", ".join(sources) or "no tables",
              did_you_mean(name, [s for s in sources if s not in TABLES]))
        for name, spec in TABLES.items() if spec.required and name not in sources
    ]  # fmt: skip
    backends: dict[int, Any] = {}  # by identity: Ibis calls two in-memory connections equal
    for name, table in sources.items():
        at = where(name)
        if name not in TABLES:
            faults.append(Fault(at, "not a table of the contract", ", ".join(TABLES), name,
                                did_you_mean(name, TABLES)))  # fmt: skip
        elif not isinstance(table, ibis.Table):
            faults.append(Fault(at, "not an Ibis table", "an Ibis table expression",
                                type(table).__name__,
                                "Wrap data frames with ibis.memtable(...)."))  # fmt: skip
        elif table.op().find(ops.UnboundTable):
            faults.append(Fault(at, "not bound to a connection",
                                action="Take the table from a connection."))  # fmt: skip
        else:
            faults += _column_faults(table, TABLES[name])
            nodes = table.op().find((ops.DatabaseTable, ops.SQLQueryResult))
            backends |= {id(node.source): node.source for node in nodes}
    if len(backends) > 1:
        faults.append(Fault("training/sources.py", "tables come from different connections",
                            "one connection", f"{len(backends)}",
                            "Read everything through one."))  # fmt: skip
    if faults:
        raise DataError(faults=faults)
    return next(iter(backends.values()), None) or ibis.get_backend()


def _column_faults(table: ibis.Table, spec: TableSpec) -> list[Fault]:
    at = where(spec.name)
    faults = []
    unclaimed = [c for c in table.columns if spec.column(c) is None]
    faults += [
        Fault(at, f'column "{c}" has a name that checking needs', action="Rename it.")
        for c in unclaimed
        if c == REASON or c.startswith(_OURS)
    ]
    for column in spec.columns:
        if column.name not in table.columns:
            if column.required:
                faults.append(Fault(at, f'column "{column.name}" is missing',
                                    f"{_ACCEPTED[column.dtype]}: {column.meaning}",
                                    f"columns {', '.join(table.columns)}",
                                    did_you_mean(column.name, unclaimed)))  # fmt: skip
        elif not _castable(table[column.name].type(), column.dtype):
            faults.append(_type_fault(at, column.name, column.dtype, table))
    if spec.name == "customers":
        faults += [
            _type_fault(at, c, "boolean", table)
            for c in unclaimed
            if c.startswith("consent_") and not _castable(table[c].type(), "boolean")
        ]
    return faults


def _type_fault(at: str, column: str, dtype: str, table: ibis.Table) -> Fault:
    actual = table[column].type()
    action = "Cast it in training/sources.py."
    if dtype == "string" and actual.is_floating():
        # 13085.0 as text would be a new person beside "13085".
        action = f'Write t.{column}.cast("int64").cast("string") in training/sources.py.'
    return Fault(at, f'column "{column}" has the wrong type', _ACCEPTED[dtype], str(actual),
                 action)  # fmt: skip


def _castable(actual: Any, dtype: str) -> bool:
    if actual.is_null():
        return True
    if dtype == "array<string>":
        return bool(actual.is_array()) and _castable(actual.value_type, "string")
    kinds = {
        "string": (actual.is_string, actual.is_integer, actual.is_uuid),
        "float64": (actual.is_floating, actual.is_integer, actual.is_decimal),
        "int64": (actual.is_integer,),
        "boolean": (actual.is_boolean,),
        "timestamp": (actual.is_timestamp, actual.is_date, actual.is_string),
    }
    return any(is_kind() for is_kind in kinds[dtype])


def conform(table: ibis.Table, spec: TableSpec) -> ibis.Table:
    """Cast a source table to the contract's types and give it `known_at`.

    Ids that only look filled ("", "nan", ...) become null. A time that cannot be read becomes
    null, and its text is kept beside it (`text_of`). Columns that the contract does not
    name pass through.
    """
    columns = {}
    for column in (c for c in spec.columns if c.name in table.columns):
        value = table[column.name]
        is_text = value.type().is_string()
        if column.dtype == "timestamp" and is_text:
            columns[text_of(column.name)] = value
            columns[column.name] = value.try_cast("timestamp")
            continue
        if str(value.type()) != column.dtype:
            value = value.cast(column.dtype)
        if is_text and (column.required or column.name.endswith("_id")):
            value = value.strip().lower().isin(_BLANK).ifelse(ibis.null("string"), value)
        columns[column.name] = value
    table = table.mutate(**columns)
    happened = ibis.null("timestamp") if spec.event_time is None else table[spec.event_time]
    known = ibis.coalesce(table.known_at, happened) if "known_at" in table.columns else happened
    if (text := text_of("known_at")) in table.columns:
        # What could not be read must not pass for the event time.
        known = table[text].notnull().ifelse(table.known_at, known)
    return table.mutate(known_at=known)


def text_of(column: str) -> str:
    """Return the column that keeps the text of a time given as text, for the quarantine."""
    return f"{_OURS}{column}_text"
