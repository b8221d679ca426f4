"""The data contract: the tables that nextbest reads, and how bad rows are kept out of them.

`check_and_clean` is the only door. It reports every fault of shape at once, gives each bad row one
reason, sets it aside where it can be looked at, and returns a `History` of clean tables.
"""

from __future__ import annotations

import difflib
import hashlib
import json
import os
import shutil
import uuid
from collections.abc import Mapping
from dataclasses import dataclass, field
from datetime import UTC, datetime
from functools import cached_property
from pathlib import Path
from types import MappingProxyType
from typing import Any

import ibis

from nextbest.data.sources import (
    REASON,
    TABLES,
    Column,
    TableSpec,
    check_shape,
    conform,
    text_of,
    where,
)
from nextbest.errors import ConfigError, DataError, Fault, did_you_mean

__all__ = [
    "DEFAULT_ERROR_LIMIT",
    "TABLES",
    "Column",
    "History",
    "TableReport",
    "TableSpec",
    "check_and_clean",
]

DEFAULT_ERROR_LIMIT = 0.05
"""Share of a table's rows that may be quarantined before the job stops."""

EARLIEST = datetime(1971, 1, 1)
"""Times before this are zero timestamps in disguise; one of them would set `data_start` to 1970."""

# Referential checks read the clean tables before them.
_ORDER = ("customers", "offers", "transactions", "events", "contacts", "responses")


@dataclass(frozen=True)
class TableReport:
    """What became of one table: rows in, rows kept, rows set aside by reason, and notes."""

    table: str
    rows_in: int
    rows_clean: int
    quarantined: Mapping[str, int]
    notes: tuple[str, ...] = ()

    @property
    def share_quarantined(self) -> float:
        """Share of the rows that were set aside, 0-1."""
        return 1 - self.rows_clean / self.rows_in if self.rows_in else 0.0

    def to_dict(self) -> dict[str, Any]:
        """Return the report as plain values for JSON."""
        return {
            "table": self.table,
            "rows_in": self.rows_in,
            "rows_clean": self.rows_clean,
            "quarantined": dict(self.quarantined),
            "notes": list(self.notes),
        }


@dataclass(frozen=True)
class History:
    """The clean customer history that everything after it reads.

    `tables` holds only the tables that were given; each has `known_at` (null on customers and
    offers: always known). `quarantine` holds the rows set aside, with their `_reason`.
    `data_start` is the earliest purchase or event, `observed_until` the instant up to which the
    data are complete; both are naive UTC.
    """

    tables: Mapping[str, ibis.Table]
    quarantine: Mapping[str, ibis.Table]
    reports: tuple[TableReport, ...]
    data_start: datetime
    observed_until: datetime
    backend: Any = field(repr=False)

    def snapshot_hash(self) -> str:
        """Return a hash of all clean rows that does not depend on their order.

        Each row is hashed in the backend and the hashes are summed, so it costs one scan. It can
        be compared between runs on one backend and version (64 bits a row on DuckDB, 32 on Spark),
        not between backends.
        """
        return self._hash

    @cached_property
    def _hash(self) -> str:
        # Kept: every model that is trained on the history asks for it.
        content: dict[str, Any] = {"observed_until": self.observed_until.isoformat()}
        for name in sorted(self.tables):
            table = self.tables[name]
            columns = sorted(table.columns)
            row = ibis.struct({c: table[c] for c in columns}).hash()
            # Two half-width sums stay exact in 64 bits up to 2**32 rows.
            sums = table.select(low=row % 2**31, high=row // 2**31).aggregate(
                n=lambda t: t.count(), low=lambda t: t.low.sum(), high=lambda t: t.high.sum()
            )
            schema = [f"{c}: {table[c].type()}" for c in columns]
            content[name] = [schema, *sums.to_pyarrow().to_pylist()[0].values()]
        return hashlib.sha256(json.dumps(content, default=str).encode()).hexdigest()


def check_and_clean(
    sources: Mapping[str, ibis.Table],
    *,
    observed_until: datetime,
    error_limit: Mapping[str, float] | float = DEFAULT_ERROR_LIMIT,
    quarantine_dir: Path | None = None,
) -> History:
    """Check the source tables against the contract and set bad rows aside, each with its reason.

    Parameters
    ----------
    sources : the tables by contract name, as Ibis expressions of one connection.
    observed_until : instant up to which the data are complete (aware, or naive UTC).
    error_limit : share of rows (0-1) that may be set aside, for all tables or by table name.
    quarantine_dir : where ``<table>.parquet`` with the rows set aside is written, if anywhere.

    Raises
    ------
    DataError : a table or column is missing or has the wrong type (all faults at once); a
        required table is empty; a table is over its limit.
    """
    limits = _limits(error_limit)
    until = _naive_utc(observed_until)
    backend = check_shape(sources)
    clean: dict[str, ibis.Table] = {}
    quarantine: dict[str, ibis.Table] = {}
    reports: list[TableReport] = []
    faults: list[Fault] = []
    for name in (n for n in _ORDER if n in sources):
        spec = TABLES[name]
        staged = _materialise(backend, name, mark(conform(sources[name], spec), spec, clean, until))
        clean[name] = _keep(staged, spec)
        report = _report(staged, spec, clean)
        reports.append(report)
        if report.quarantined:
            quarantine[name] = staged.filter(staged[REASON].notnull())
        file = _write_quarantine(quarantine.get(name), name, quarantine_dir)
        if fault := _judge(report, spec, limits[name], file):
            faults.append(fault)
    if faults:
        raise DataError(faults=faults)
    start = _data_start(clean)
    return History(
        MappingProxyType(clean), MappingProxyType(quarantine), tuple(reports), start, until, backend
    )


# --- the shape: tables, columns, types -----------------------------------------------------------


def _limits(error_limit: Mapping[str, float] | float) -> dict[str, float]:
    given = error_limit if isinstance(error_limit, Mapping) else dict.fromkeys(TABLES, error_limit)
    faults = [
        Fault("error_limit", f'"{name}" is not a table of the contract', " or ".join(TABLES), name,
              did_you_mean(name, TABLES))
        for name in given if name not in TABLES
    ] + [
        Fault(f'error_limit of "{name}"', "not a share", "a number from 0 to 1", repr(limit))
        for name, limit in given.items()
        if isinstance(limit, bool) or not isinstance(limit, int | float) or not 0 <= limit <= 1
    ]  # fmt: skip
    if faults:
        raise ConfigError(faults=faults)
    return {name: given.get(name, DEFAULT_ERROR_LIMIT) for name in TABLES}


def _naive_utc(moment: datetime) -> datetime:
    return moment if moment.tzinfo is None else moment.astimezone(UTC).replace(tzinfo=None)


# --- the rows: one reason each -------------------------------------------------------------------


def mark(
    table: ibis.Table, spec: TableSpec, clean: Mapping[str, ibis.Table], until: datetime
) -> ibis.Table:
    """Add `_reason` to a conformed table: the first rule that the row breaks, or null.

    `clean` holds the clean tables that references are checked against; what is absent there is
    not checked.
    """
    columns = table.columns
    table = _with_references(table, spec, clean)
    rules = [*_key_rules(table, spec), *_time_rules(table, spec, until)]
    rules += [*_value_rules(table, spec), *_reference_rules(table, spec)]
    reason = ibis.cases(*rules, else_=ibis.null("string"))
    table = table.mutate(_reason=reason).select(*columns, REASON)
    return table.mutate(_reason=ibis.coalesce(table[REASON], _duplicate(table, spec)))


def _duplicate(table: ibis.Table, spec: TableSpec) -> Any:
    """Name the repeated rows: of the good ones, the one that was known first is kept.

    A table without a key repeats where all columns but `known_at` agree, so that a row which was
    delivered twice counts once.
    """
    rest = [c for c in table.columns if c not in (*spec.key, "known_at", REASON)]
    identity = spec.key or tuple(rest)
    first = [table.known_at.asc(nulls_first=True), *((table[c] for c in rest) if spec.key else ())]
    # Bad rows are counted apart: a row that is set aside must not push out its good twin.
    groups = [*(table[c] for c in identity), table[REASON].isnull()]
    nth = ibis.row_number().over(ibis.window(group_by=groups, order_by=first))
    label = f"duplicate {', '.join(spec.key)}" if spec.key else "duplicate row"
    return (nth > 0).ifelse(label, ibis.null("string"))


def _with_references(
    table: ibis.Table, spec: TableSpec, clean: Mapping[str, ibis.Table]
) -> ibis.Table:
    """Join what the reference rules look at: one row at most for each row of the table."""
    if spec.name in ("customers", "offers"):
        return table
    customers = clean["customers"]
    known = customers.select(_nb_customer=customers.customer_id)
    table = table.left_join(known, table.customer_id == known["_nb_customer"])
    if spec.column("offer_id") is None:
        return table
    if "offers" in clean:
        offers = clean["offers"].select(_nb_offer=clean["offers"].offer_id)
        table = table.left_join(offers, table.offer_id == offers["_nb_offer"])
    if spec.name == "responses" and "contacts" in clean:
        contacts = clean["contacts"]
        first = contacts.group_by(
            _nb_contact_customer=contacts.customer_id, _nb_contact_offer=contacts.offer_id
        ).aggregate(_nb_first_contact=contacts.contacted_at.min())
        table = table.left_join(
            first,
            [
                table.customer_id == first["_nb_contact_customer"],
                table.offer_id == first["_nb_contact_offer"],
            ],
        )
    return table


def _key_rules(table: ibis.Table, spec: TableSpec) -> list[tuple[Any, str]]:
    rules = []
    for column in spec.columns:
        if (text := text_of(column.name)) in table.columns:
            unreadable = table[column.name].isnull() & table[text].notnull()
            rules.append((unreadable, f"unreadable {column.name}"))
        if column.required:
            rules.append((table[column.name].isnull(), f"null {column.name}"))
    return rules


def _time_rules(table: ibis.Table, spec: TableSpec, until: datetime) -> list[tuple[Any, str]]:
    now = ibis.literal(until, type="timestamp")
    rules = []
    if spec.event_time:
        happened = table[spec.event_time]
        rules = [
            (happened < ibis.literal(EARLIEST, type="timestamp"),
             f"{spec.event_time} before {EARLIEST.year}"),
            (happened > now, f"future {spec.event_time}"),
            (table.known_at < happened, "known before it happened"),
        ]  # fmt: skip
    return [*rules, (table.known_at > now, "future known_at")]


def _not_finite(value: Any) -> Any:
    """True for NaN and infinities; Ibis 12 compiles `isinf` to FALSE on Spark, so not with that."""
    return value.isnan() | (value.abs() > 1e300)


def _value_rules(table: ibis.Table, spec: TableSpec) -> list[tuple[Any, str]]:
    if spec.name == "transactions":
        amount, returned = table.amount, ibis.literal(False)
        if "is_return" in table.columns:
            returned = returned | table.is_return.fill_null(False)
        if "quantity" in table.columns:
            returned = returned | (table.quantity < 0).fill_null(False)
        return [
            (_not_finite(amount), "amount is not finite"),
            ((amount < 0) & ~returned, "negative amount, not a return"),
            ((amount > 0) & returned, "positive amount on a return"),
        ]
    if spec.name == "contacts" and "selection_probability" in table.columns:
        chance = table.selection_probability
        return [
            (chance.isnan() | (chance <= 0) | (chance > 1), "selection_probability outside (0, 1]")
        ]
    if spec.name == "offers" and {"starts_at", "ends_at"} <= set(table.columns):
        return [(table.ends_at <= table.starts_at, "ends before it starts")]
    return []


def _reference_rules(table: ibis.Table, spec: TableSpec) -> list[tuple[Any, str]]:
    rules = []
    if "_nb_customer" in table.columns:
        rules.append((table["_nb_customer"].isnull(), "unknown customer"))
    if "_nb_offer" in table.columns:
        rules.append((table["_nb_offer"].isnull(), "unknown offer"))
    if "_nb_first_contact" in table.columns:
        first = table["_nb_first_contact"]
        rules.append((first.isnull(), "response without contact"))
        rules.append((first > table.responded_at, "response before contact"))
    return rules


# --- what comes out ------------------------------------------------------------------------------


def _materialise(backend: Any, name: str, expression: ibis.Table) -> ibis.Table:
    """Store the marked rows once, so that the checks run once whatever reads them later."""
    unique = f"nextbest_{name}_{uuid.uuid4().hex[:12]}"
    try:
        # Spark has no temporary tables.
        return backend.create_table(unique, expression, temp=backend.name != "pyspark")
    except Exception as error:  # whatever the backend raises, the user must learn which table
        reason = str(error).strip().splitlines() or [type(error).__name__]
        raise DataError(
            where(name), "cannot be read", got=reason[0], action="Mend the expression or its data."
        ) from error


def _unknowable(staged: ibis.Table, spec: TableSpec) -> dict[str, tuple[Any, str]]:
    """Optional numbers that say nothing: where they stand, and how the note calls them."""
    wrong = {}
    for column in spec.columns:
        if column.dtype == "float64" and not column.required and column.name in staged.columns:
            value = staged[column.name]
            if column.name == "quantity":
                bad = (value == 0) | _not_finite(value)
                wrong[column.name] = (bad, "zero or not finite")
            elif column.name != "selection_probability":
                wrong[column.name] = (_not_finite(value), "not finite")
    return wrong


def _keep(staged: ibis.Table, spec: TableSpec) -> ibis.Table:
    wrong = _unknowable(staged, spec)
    cleared = {
        name: ibis.cases((bad, ibis.null("float64")), else_=staged[name])
        for name, (bad, _) in wrong.items()
    }
    gone = [REASON, *(text_of(c.name) for c in spec.columns if text_of(c.name) in staged.columns)]
    return staged.mutate(**cleared).filter(staged[REASON].isnull()).drop(*gone)


def _report(staged: ibis.Table, spec: TableSpec, clean: Mapping[str, ibis.Table]) -> TableReport:
    counts = staged.group_by(REASON).aggregate(n=staged.count()).to_pyarrow().to_pylist()
    by_reason = {row[REASON]: int(row["n"]) for row in counts}
    rows_clean = by_reason.pop(None, 0)
    quarantined = dict(sorted(by_reason.items(), key=lambda item: (-item[1], item[0])))
    rows_in = rows_clean + sum(quarantined.values())
    notes = _notes(staged.filter(staged[REASON].isnull()), spec, rows_clean)
    if spec.column("offer_id") and spec.key != ("offer_id",) and "offers" not in clean:
        notes.append("no offers table: offer_id not checked")
    if spec.name == "responses" and "contacts" not in clean:
        notes.append("no contacts table: not checked that a contact came first")
    return TableReport(spec.name, rows_in, rows_clean, quarantined, tuple(notes))


def _notes(good: ibis.Table, spec: TableSpec, rows: int) -> list[str]:
    """Say what was changed or is missing without being a reason to set a row aside."""
    counts: dict[str, Any] = {}
    wrong = _unknowable(good, spec)
    for name, (bad, what) in wrong.items():
        counts[f"{name} {what}, taken as unknown, on {{:,}} rows"] = bad.sum()
    if {"amount", "quantity"} <= set(good.columns):
        empty = (good.amount == 0) & (good.quantity == 0)
        counts["neither amount nor quantity on {:,} rows: kept, they show a visit"] = empty.sum()
    optional = [c.name for c in spec.columns if not c.required and c.name != "known_at"]
    for name in (c for c in optional if c in good.columns):
        unknown = good[name].isnull()
        if name in wrong:
            unknown = unknown | wrong[name][0]
        counts[f"{name} unknown on {{:,}} of {rows:,} rows"] = unknown.sum()
    notes = _nonzero(good, counts)
    absent = [c for c in optional if c not in good.columns]
    for extra in (c for c in good.columns if spec.column(c) is None):
        if close := difflib.get_close_matches(extra, absent, n=1, cutoff=0.8):
            notes.append(f'column "{extra}" is not in the contract. Did you mean "{close[0]}"?')
    return notes


def _nonzero(table: ibis.Table, counts: Mapping[str, Any]) -> list[str]:
    """Count everything in one scan; keep the notes whose count is not zero."""
    if not counts:
        return []
    named = {f"n{i}": value for i, value in enumerate(counts.values())}
    found = table.aggregate(**named).to_pyarrow().to_pylist()[0].values()
    return [note.format(int(n)) for note, n in zip(counts, found, strict=True) if n]


def _write_quarantine(rows: ibis.Table | None, name: str, directory: Path | None) -> Path | None:
    """Replace the table's quarantine file; none is left from an earlier run without bad rows."""
    if directory is None:
        return None
    target = directory / f"{name}.parquet"
    try:
        if target.is_dir():  # Spark writes a folder
            shutil.rmtree(target)
        target.unlink(missing_ok=True)
        if rows is None:
            return None
        directory.mkdir(parents=True, exist_ok=True)
        partial = directory / f".{name}.parquet.partial"
        rows.to_parquet(partial)
        os.replace(partial, target)
    except OSError as error:
        raise DataError(
            str(target), "quarantine cannot be written", got=str(error),
            action="Free the disk or choose another folder.",
        ) from error  # fmt: skip
    return target


def _judge(report: TableReport, spec: TableSpec, limit: float, file: Path | None) -> Fault | None:
    at = where(spec.name)
    if spec.required and not report.rows_in:
        return Fault(at, "has no rows", "at least one row", "0 rows")
    share = report.share_quarantined
    top = ", ".join(f"{reason} ({n:,})" for reason, n in list(report.quarantined.items())[:3])
    look = f"The rows are in {file}. " if file else ""
    if share > limit:
        return Fault(at, f"{share:.1%} of {report.rows_in:,} rows were quarantined",
                     f"at most {limit:.1%} (error_limit)", top,
                     f"{look}Mend the source, or raise its error_limit.")  # fmt: skip
    if spec.required and not report.rows_clean:
        return Fault(at, "has no clean row", "at least one", top, f"{look}Mend the source.")
    return None


def _data_start(clean: Mapping[str, ibis.Table]) -> datetime:
    starts: list[datetime | None] = []
    for name in ("transactions", "events"):
        if name in clean:
            table = clean[name]
            starts.append(table[str(TABLES[name].event_time)].min().to_pyarrow().as_py())
    return min(s for s in starts if s is not None)
