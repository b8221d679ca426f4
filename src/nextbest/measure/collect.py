"""One query that reduces a table of customers to one line of sums per arm and segment cell.

The customer is who was randomised, so the customer is the unit: rows of one customer (one per
decision, say) are added up first, and what an arm is worth is per customer in it, whether or not
an offer reached them (intention to treat).
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import ibis

from nextbest.errors import DataError, Fault, did_you_mean
from nextbest.measure.sums import Sums

__all__ = ["ARM", "UNIT", "Cell", "Outcome", "collect", "open_file", "outcome_of"]

UNIT: Final = "customer_id"
ARM: Final = "arm"
_UNKNOWN: Final = "unknown"


@dataclass(frozen=True)
class Outcome:
    """What is measured for each customer.

    Attributes
    ----------
    name : column of the outcome: a number, or true and false.
    per : column of the denominator where the outcome is a ratio, such as revenue per order.
    before : column of the customer's value before the experiment, for CUPED. Where it is empty
        the customer was not there before, and it counts 0.
    """

    name: str
    per: str | None = None
    before: str | None = None

    @property
    def label(self) -> str:
        """How the outcome is called: ``revenue`` or ``revenue/orders``."""
        return f"{self.name}/{self.per}" if self.per else self.name


@dataclass(frozen=True)
class Cell:
    """The customers of one arm who share every segment, and their sums by outcome label."""

    arm: str
    segments: tuple[str, ...]
    n: int
    sums: tuple[tuple[str, Sums], ...]


def outcome_of(text: str, before: str | None = None) -> Outcome:
    """Return the outcome that ``revenue`` or ``revenue/orders`` names; a ratio has no ``before``.

    Raises
    ------
    DataError : a name is empty.
    """
    name, slash, per = (part.strip() for part in text.partition("/"))
    if not name or (slash and not per):
        expected = "a column, or two as in revenue/orders"
        raise DataError("outcome", "a name is missing", expected=expected, got=repr(text))
    return Outcome(name, per or None, None if per else before)


def open_file(path: Path) -> ibis.Table:
    """Return a Parquet or CSV file of customers, or of decisions and outcomes, as a table.

    Raises
    ------
    DataError : there is no such file, or it cannot be read.
    """
    readers = {".parquet": "read_parquet", ".csv": "read_csv"}
    if path.suffix not in readers:
        raise DataError(str(path), "unknown kind of file", expected=" or ".join(readers),
                        got=path.suffix or "no suffix")  # fmt: skip
    if not path.is_file():
        raise DataError(str(path), "there is no such file")
    try:
        table: ibis.Table = getattr(ibis.duckdb.connect(), readers[path.suffix])(path)
    except Exception as error:  # DuckDB has many kinds; the user must learn which file it was
        reason = str(error).strip().partition("\n")[0]
        raise DataError(str(path), "cannot be read", got=reason) from error
    return table


def collect(
    table: ibis.Table, outcomes: Sequence[Outcome], by: Sequence[str] = (), *, where: str = "table"
) -> tuple[Cell, ...]:
    """Reduce a table to cells: one per arm and combination of segments, sorted.

    Parameters
    ----------
    table : ``customer_id``, ``arm``, the columns that ``outcomes`` and ``by`` name. Several rows
        of one customer are added up (true or false: any); what describes the customer (arm,
        segments, value before) must be the same on all of them. An outcome may not be empty:
        nothing bought is 0.
    outcomes : what to measure.
    by : columns of segments, known before the experiment began; empty cells count as "unknown".
    where : how messages call the table.

    Raises
    ------
    DataError : columns are missing or of the wrong type, the table is empty, customers or arms
        are unknown or contradict each other, outcomes are missing or not finite.
    """
    _check_columns(table, outcomes, by, where)
    units = _customers(table, outcomes, by)
    found = _aggregate(units, outcomes, by).to_pyarrow().to_pylist()
    if not found:
        raise DataError(where, "it has no rows", expected="at least one customer in two arms")
    _check_rows(found, outcomes, by, where)
    cells = [
        Cell(
            str(row[ARM]),
            tuple(str(row[f"by{i}"]) for i in range(len(by))),
            int(row["n"]),
            tuple((o.label, _sums(row, i)) for i, o in enumerate(outcomes)),
        )
        for row in found
    ]
    return tuple(sorted(cells, key=lambda c: (c.arm, c.segments)))


def _sums(row: dict[str, Any], i: int) -> Sums:
    return Sums(
        n=int(row["n"]), binary=bool(row[f"binary{i}"]),
        **{of: float(row[f"{of}{i}"]) for of in ("y", "yy", "x", "xx", "xy")},
    )  # fmt: skip


def _check_columns(
    table: ibis.Table, outcomes: Sequence[Outcome], by: Sequence[str], where: str
) -> None:
    faults = []
    if not outcomes:
        faults.append(Fault(where, "no outcome is named", "at least one column"))
    for name in dict.fromkeys((UNIT, ARM, *by, *_numbers(outcomes))):
        if name not in table.columns:
            has = "columns " + ", ".join(table.columns)
            faults.append(Fault(where, f'column "{name}" is missing', got=has,
                                action=did_you_mean(name, table.columns)))  # fmt: skip
        elif name in set(_numbers(outcomes)):
            kind = table[name].type()
            if not (kind.is_numeric() or kind.is_boolean()):
                faults.append(Fault(where, f'column "{name}" has the wrong type',
                                    "a number, or true and false", str(kind)))  # fmt: skip
    for name in by:
        if name in (UNIT, ARM, *_numbers(outcomes)):
            faults.append(Fault(where, f'"{name}" cannot be a segment', "another column"))
    if faults:
        raise DataError(faults=faults)


def _numbers(outcomes: Sequence[Outcome]) -> Iterator[str]:
    for outcome in outcomes:
        yield from (c for c in (outcome.name, outcome.per, outcome.before) if c is not None)


def _customers(table: ibis.Table, outcomes: Sequence[Outcome], by: Sequence[str]) -> ibis.Table:
    """One row per customer: ``y<i>`` and ``x<i>`` by outcome, and what must not contradict."""
    columns: dict[str, Any] = {
        ARM: table[ARM].cast("string").min(),
        "arms": table[ARM].nunique() + table[ARM].isnull().any().cast("int64"),
        "clashes": ibis.literal(0),
    }
    for i, name in enumerate(by):
        text = table[name].cast("string").fill_null(_UNKNOWN)
        columns[f"by{i}"] = text.min()
        columns["clashes"] = columns["clashes"] + (text.min() != text.max()).cast("int64")
    for i, outcome in enumerate(outcomes):
        columns[f"y{i}"], columns[f"unknown{i}"] = _added(table[outcome.name])
        columns[f"x{i}"] = ibis.literal(0.0)
        if outcome.per:
            columns[f"x{i}"], unknown = _added(table[outcome.per])
            columns[f"unknown{i}"] = columns[f"unknown{i}"] | unknown
        elif outcome.before:
            before = table[outcome.before].cast("float64").fill_null(0.0)
            columns[f"x{i}"] = before.min()
            columns["clashes"] = columns["clashes"] + (before.min() != before.max()).cast("int64")
    return table.group_by(UNIT).aggregate(**columns)


def _added(column: Any) -> tuple[Any, Any]:
    """A customer's value over the rows, and whether any of them is empty."""
    whole = column.any() if column.type().is_boolean() else column.sum()
    return whole.cast("float64"), column.isnull().any()


def _aggregate(units: ibis.Table, outcomes: Sequence[Outcome], by: Sequence[str]) -> ibis.Table:
    columns: dict[str, Any] = {
        "n": units.count(),
        "nobody": units[UNIT].isnull().sum(),
        "moved": (units.arms > 1).sum(),
        "clashes": (units.clashes > 0).sum(),
    }
    for i in range(len(outcomes)):
        y, x = units[f"y{i}"], units[f"x{i}"]
        odd = (y.isnan() | (y.abs() > 1e150) | x.isnan() | (x.abs() > 1e150)).fill_null(False)
        columns |= {
            f"y{i}": y.sum(), f"yy{i}": (y * y).sum(), f"x{i}": x.sum(), f"xx{i}": (x * x).sum(),
            f"xy{i}": (x * y).sum(), f"binary{i}": y.isin([0.0, 1.0]).all(),
            f"unknown{i}": units[f"unknown{i}"].sum(), f"odd{i}": odd.sum(),
        }  # fmt: skip
    return units.group_by([ARM, *(f"by{i}" for i in range(len(by)))]).aggregate(**columns)


def _check_rows(
    found: Sequence[dict[str, Any]], outcomes: Sequence[Outcome], by: Sequence[str], where: str
) -> None:
    customers = sum(row["n"] for row in found)

    def count(name: str) -> int:
        return sum(int(row[name] or 0) for row in found)

    problems = {
        "customer_id is empty": (count("nobody"), "Leave such rows out, or name the customer."),
        "arm is empty": (
            sum(int(row["n"]) for row in found if row[ARM] is None),
            "Leave out customers who were in no arm; keep all who were in one.",
        ),
        "customers are in two arms": (
            count("moved"), "An arm is drawn once per customer; use the ledger's arm.",
        ),
        "segments or values before differ between rows of one customer": (
            count("clashes"), f"Take {', '.join(by) or 'them'} as known before the first decision.",
        ),
    }  # fmt: skip
    for i, o in enumerate(outcomes):
        problems[f'outcome "{o.label}" is empty'] = (
            count(f"unknown{i}"), "Write 0 for a customer with whom nothing happened.",
        )  # fmt: skip
        problems[f'outcome "{o.label}" or its value before is not a finite number'] = (
            count(f"odd{i}"), "Mend the rows; one such value would hide all others.",
        )  # fmt: skip
    faults = [
        Fault(where, problem, got=f"{n:,} of {customers:,} customers", action=action)
        for problem, (n, action) in problems.items()
        if n
    ]
    if faults:
        raise DataError(faults=faults)
