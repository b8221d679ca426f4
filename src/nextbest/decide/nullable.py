"""Three-valued arithmetic on numpy arrays, equal to DuckDB's SQL value for value.

Numbers are float64 (NaN = null), booleans a pair of masks *(is true, is false)* (neither = null),
strings object arrays (None = null), timestamps datetime64[us] in UTC (NaT = null). Every function
works element by element, so a row never depends on the rows beside it.
"""

from __future__ import annotations

from typing import Any

import numpy as np

__all__ = [
    "Pair",
    "as_column",
    "change_case",
    "choose",
    "divide",
    "equal",
    "exponential",
    "is_null",
    "logarithm",
    "null_of",
    "round_half_away",
]

Pair = tuple[Any, Any]
_NONE = np.array(None, dtype=object)


def is_null(kind: str, value: Any) -> Any:
    """Say where a value of this type is null."""
    if kind == "number":
        return np.isnan(value)
    if kind == "boolean":
        return ~(value[0] | value[1])
    if kind == "timestamp":
        return np.isnat(value)
    # A float NaN in a column of strings (pandas' missing value) is the one value unequal to itself.
    return np.equal(value, _NONE) | np.not_equal(value, value)


def null_of(kind: str) -> Any:
    """Return the null of this type."""
    if kind == "number":
        return np.float64(np.nan)
    if kind == "boolean":
        return np.False_, np.False_
    if kind == "timestamp":
        return np.datetime64("NaT", "us")
    return _NONE


def _as_pair(value: Any) -> Pair:
    array = np.asarray(value)
    if array.dtype == np.bool_:
        return array, ~array
    if array.dtype.kind in "fiu":
        known = ~np.isnan(array)
        return known & (array != 0), known & (array == 0)
    return np.equal(array, True), np.equal(array, False)


def as_column(kind: str, value: Any) -> Any:
    """Bring a column as the audience holds it to this module's form.

    A boolean column may be boolean, 0/1 with NaN for null, or an object array of True/False/None.
    """
    if kind == "number":
        return np.asarray(value, dtype=np.float64)
    if kind == "boolean":
        return _as_pair(value)
    if kind == "timestamp":
        return np.asarray(value, dtype="datetime64[us]")
    return np.asarray(value, dtype=object)


def choose(kind: str, condition: Any, yes: Any, no: Any) -> Any:
    """Take ``yes`` where the condition mask is set, else ``no``."""
    if kind == "boolean":
        return tuple(np.where(condition, y, n) for y, n in zip(yes, no, strict=True))
    return np.where(condition, yes, no)


def equal(kind: str, a: Any, b: Any) -> Pair:
    """Compare two values of one type; null compared with anything is null."""
    if kind == "boolean":
        return (a[0] & b[0]) | (a[1] & b[1]), (a[0] & b[1]) | (a[1] & b[0])
    known = ~(is_null(kind, a) | is_null(kind, b))
    same = np.equal(a, b)
    return known & same, known & ~same


def divide(a: Any, b: Any) -> Any:
    """Divide; by zero gives null."""
    return np.divide(a, np.where(np.equal(b, 0), np.nan, b))


def exponential(value: Any) -> Any:
    """e to the power of a number."""
    # numpy may take another path, with other last bits, through values that do not lie side by
    # side in memory; a customer's result must not depend on the array it came in.
    return np.exp(np.asarray(value, order="C"))


def logarithm(value: Any) -> Any:
    """Natural logarithm; null for anything that is not positive."""
    return np.log(np.where(np.greater(value, 0), value, np.nan))


def round_half_away(value: Any, decimals: int) -> Any:
    """Round half away from zero, as SQL does (numpy rounds half to even)."""
    scale = np.float64(10.0 ** abs(decimals))
    scaled = np.multiply(value, scale) if decimals >= 0 else np.divide(value, scale)
    whole = np.trunc(scaled)
    whole = whole + np.copysign(np.where(np.abs(scaled - whole) >= 0.5, 1.0, 0.0), scaled)
    rounded = whole / scale if decimals >= 0 else whole * scale
    return np.where(np.isfinite(rounded), rounded, value)


def change_case(value: Any, upper: bool) -> Any:
    """Upper or lower case, letter by letter as DuckDB does it (a letter never becomes two)."""

    def change(text: Any) -> Any:
        if not isinstance(text, str):
            return None
        changed = [c.upper() if upper else c.lower() for c in text]
        return "".join(new if len(new) == 1 else c for new, c in zip(changed, text, strict=True))

    array = np.asarray(value, dtype=object)
    out = np.empty(array.size, dtype=object)
    for i, text in enumerate(array.ravel()):
        out[i] = change(text)
    return out.reshape(array.shape)
