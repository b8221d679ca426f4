"""Customer histories as arrays: checked once, equal ones counted together.

The purchase models see a customer only through (frequency, recency, T), so that equal customers are
one *cell* with a weight. Within a cell, frequency and the two times point into small tables of
distinct values: logarithms are taken once per distinct value, not once per customer.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Final, Self

import numpy as np
import numpy.typing as npt
import pandas as pd

from nextbest.errors import DataError, Fault

Array = npt.NDArray[np.float64]
Index = npt.NDArray[np.intp]

#: Up to this many slots a lookup table is faster than sorting, and small enough (128 MiB).
_DENSE: Final = 1 << 24


@dataclass(frozen=True)
class Histories:
    """The checked columns of an RFM table, each of shape (customers,)."""

    index: pd.Index
    x: Array
    t_x: Array
    T: Array
    monetary_value: Array
    weight: Array


def read_histories(
    rfm: pd.DataFrame, where: str, *, times: bool = True, spend: bool = False
) -> Histories:
    """Read and check an RFM table; every fault is reported at once.

    Parameters: `rfm` with `frequency`, with `recency` and `T` if `times`, with `monetary_value` if
    `spend`, and optionally `weight`. Raises `DataError` naming the count of bad rows and the first.
    """
    if not isinstance(rfm, pd.DataFrame):
        raise DataError(where, "rfm is not a table", expected="a pandas DataFrame", got=_kind(rfm))
    needed = ["frequency", *(["recency", "T"] if times else []), *(["monetary_value"] * spend)]
    if missing := [name for name in needed if name not in rfm.columns]:
        raise DataError(
            where,
            "rfm lacks columns",
            expected=f"a table with {', '.join(needed)}",
            got=f"no {', '.join(missing)} among {', '.join(map(str, rfm.columns[:12]))}",
            action="Rename or add them",
        )
    if len(rfm) == 0:
        raise DataError(
            where, "rfm has no rows", expected="at least one customer", action="Check the filter"
        )
    check = _Check(where, rfm.index)
    columns = {name: check.numbers(rfm[name], name) for name in needed}
    if "weight" in rfm.columns:
        columns["weight"] = check.numbers(rfm["weight"], "weight")
    check.raise_faults()

    zeros, ones = np.zeros(len(rfm)), np.ones(len(rfm))
    x, t_x = columns["frequency"], columns.get("recency", zeros)
    age = columns.get("T", zeros)
    weight = columns.get("weight", ones)
    check.rows(
        x != np.floor(x),
        x,
        '"frequency" is not a whole number',
        "the count of repeat purchases",
        "Count purchase periods after the first",
    )
    if times:
        check.rows(
            t_x > age,
            t_x,
            '"recency" is larger than "T"',
            "recency <= T",
            "Measure both from the first purchase, up to the same as-of date",
        )
        check.rows(
            (x == 0) & (t_x != 0),
            t_x,
            '"recency" is not 0 where "frequency" is 0',
            "0 for customers with a single purchase",
            "Recency here is the age at the last purchase, not days since it",
        )
    if not np.any(weight > 0):
        check.faults.append(Fault(where, "all weights are 0", "at least one weight above 0"))
    check.raise_faults()
    return Histories(rfm.index, x, t_x, age, columns.get("monetary_value", zeros), weight)


class _Check:
    """Collects the faults of one table."""

    def __init__(self, where: str, index: pd.Index) -> None:
        self.where, self.index = where, index
        self.faults: list[Fault] = []

    def numbers(self, column: pd.Series, name: str) -> Array:
        """The column as finite numbers from 0 up, or a fault."""
        try:
            values = column.to_numpy(dtype=np.float64, na_value=np.nan)
        except (TypeError, ValueError) as error:
            self.faults.append(
                Fault(self.where, f'"{name}" is not numeric', "numbers", f"{column.dtype}: {error}")
            )
            return np.zeros(len(column))
        hint = ""
        if name == "monetary_value":
            hint = "Use 0 where frequency is 0; leave out or floor customers with a negative mean"
        finite = np.isfinite(values)
        self.rows(~finite, values, f'"{name}" is not finite', "a finite number", hint)
        self.rows(finite & (values < 0), values, f'"{name}" is negative', "0 or more", hint)
        return values

    def rows(
        self, bad: npt.NDArray[np.bool_], values: Array, problem: str, expected: str, action: str
    ) -> None:
        """A fault that counts the bad rows and names the first by its index."""
        if not bad.any():
            return
        first = int(np.argmax(bad))
        count = int(np.count_nonzero(bad))
        self.faults.append(
            Fault(
                self.where,
                f"{problem} in {count} of {len(bad)} rows",
                expected,
                f"{values[first]:g} first at index {label(self.index, first)}",
                action,
            )
        )

    def raise_faults(self) -> None:
        if self.faults:
            raise DataError(faults=self.faults)


@dataclass(frozen=True)
class Cells:
    """Distinct histories with their weights, as pointers into tables of distinct values.

    `x` (frequencies, ascending) and `t` (times) are the tables; `ix`, `it` and `iT` (cells,) point
    to frequency, recency and T; `weight` (cells,) is the number of customers.
    """

    x: Array
    t: Array
    ix: Index
    it: Index
    iT: Index
    weight: Array

    @property
    def size(self) -> int:
        return len(self.weight)

    @classmethod
    def rows(cls, histories: Histories) -> Cells:
        """One cell for each customer, in the order of the table."""
        x, ix = distinct(histories.x)
        t, both = distinct(np.concatenate([histories.t_x, histories.T]))
        n = len(ix)
        return cls(x, t, ix, both[:n], both[n:], histories.weight)

    @classmethod
    def collapse(cls, histories: Histories) -> Cells:
        """Equal customers become one cell; customers of weight 0 are left out."""
        cells = cls.rows(histories)
        if not np.all(cells.weight > 0):
            counted = np.flatnonzero(cells.weight > 0)
            cells = cells.take(counted, cells.weight[counted])
        n_t = len(cells.t)
        keys, weight = _totals(
            (cells.ix * n_t + cells.it) * n_t + cells.iT, cells.weight, len(cells.x) * n_t * n_t
        )
        return cls(cells.x, cells.t, keys // (n_t * n_t), keys // n_t % n_t, keys % n_t, weight)

    def take(self, rows: Index, weight: Array) -> Self:
        """Some of the cells with other weights, over tables of what they use."""
        ix, it, iT = self.ix[rows], self.it[rows], self.iT[rows]
        xs, ix = np.unique(ix, return_inverse=True)
        ts, both = np.unique(np.concatenate([it, iT]), return_inverse=True)
        n = len(rows)
        return replace(
            self, x=self.x[xs], t=self.t[ts], ix=ix, it=both[:n], iT=both[n:], weight=weight
        )

    def in_unit(self, unit: float) -> Self:
        """The same cells with times counted in `unit`."""
        return replace(self, t=self.t / unit)


@dataclass(frozen=True)
class Pairs:
    """Distinct combinations of frequency and a time: `ix`, `it` (pairs,) point into the tables."""

    ix: Index
    it: Index


def pairs(ix: Index, it: Index, shape: tuple[int, int]) -> tuple[Pairs, Index]:
    """The distinct (ix, it) and, for each input, which pair it is; `shape` is the tables' sizes."""
    keys, inverse = _distinct_keys(ix * shape[1] + it, shape[0] * shape[1])
    return Pairs(keys // shape[1], keys % shape[1]), inverse


def distinct(values: Array) -> tuple[Array, Index]:
    """The distinct values, ascending, and where each input points."""
    top = float(values.max())
    if top < 1 << 20 and np.array_equal(values, whole := values.astype(np.intp)):
        keys, inverse = _distinct_keys(whole, int(top) + 1)
        return keys.astype(np.float64), inverse
    unique, inverse = np.unique(values, return_inverse=True)
    return unique, inverse


def _distinct_keys(keys: Index, slots: int) -> tuple[Index, Index]:
    """`np.unique` with inverse for whole numbers in [0, slots), without sorting if that is cheap.

    A slot costs about a tenth of what sorting one key costs.
    """
    if slots > min(_DENSE, max(1 << 16, 16 * len(keys))):
        unique, inverse = np.unique(keys, return_inverse=True)
        return unique, inverse
    seen = np.zeros(slots, dtype=bool)
    seen[keys] = True
    unique = np.flatnonzero(seen)
    position = np.empty(slots, dtype=np.int32)
    position[unique] = np.arange(len(unique), dtype=np.int32)
    return unique, position[keys].astype(np.intp)


def _totals(keys: Index, weight: Array, slots: int) -> tuple[Index, Array]:
    """The distinct keys in [0, slots) with the sum of their weights."""
    if slots > min(_DENSE, max(1 << 16, 16 * len(keys))):
        unique, inverse = np.unique(keys, return_inverse=True)
        return unique, np.bincount(inverse, weights=weight).astype(np.float64, copy=False)
    totals = np.bincount(keys, weights=weight, minlength=slots).astype(np.float64, copy=False)
    unique = np.flatnonzero(totals)
    return unique, totals[unique]


def require_positive(where: str, **values: float) -> None:
    """Raise `DataError` unless every value is a finite number above 0."""
    bad = [(name, v) for name, v in values.items() if not (_is_number(v) and 0 < v < np.inf)]
    if bad:
        raise DataError(
            faults=[
                Fault(where, f'"{name}" is out of range', "a finite number above 0", repr(value))
                for name, value in bad
            ]
        )


def require_between(where: str, low: float, high: float, **values: float) -> None:
    """Raise `DataError` unless every value lies strictly between `low` and `high`."""
    bad = [(name, v) for name, v in values.items() if not (_is_number(v) and low < v < high)]
    if bad:
        raise DataError(
            faults=[
                Fault(where, f'"{name}" is out of range', f"between {low:g} and {high:g}", repr(v))
                for name, v in bad
            ]
        )


def label(index: pd.Index, position: int) -> str:
    """How a message names a row."""
    value = index[position]
    return repr(value.item() if isinstance(value, np.generic) else value)


def chunks(count: int, width: int, elements: int = 1 << 18) -> Sequence[slice]:
    """Slices over `count` rows so that a block of `width` columns stays inside the cache."""
    step = max(1, elements // max(1, width))
    return [slice(start, min(start + step, count)) for start in range(0, count, step)]


def _is_number(value: object) -> bool:
    return isinstance(value, int | float | np.floating | np.integer) and not isinstance(value, bool)


def _kind(value: object) -> str:
    return type(value).__name__
