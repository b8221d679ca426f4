"""Numbers and changes as a reader says them."""

from __future__ import annotations

from datetime import date
from typing import Final

from nextbest.measure.kpi.definitions import Unit
from nextbest.measure.kpi.read import Reading

__all__ = [
    "FLAGS",
    "amount",
    "change",
    "count",
    "day",
    "money",
    "moved",
    "percent",
    "points",
    "span",
]

#: How a flag reads.
FLAGS: Final = {
    "up": "▲ up", "down": "▼ down", "steady": "within noise",
    "not enough": "not enough to say", "absent": "not measured",
}  # fmt: skip


#: Below this share one decimal says too little.
_SMALL: Final = 0.02


def percent(value: float, *, sign: bool = False, digits: int = 1) -> str:
    """Return a share as a percentage."""
    return f"{100 * value:{'+' if sign else ''},.{digits}f}%"


def points(value: float) -> str:
    """Return a difference of shares in percentage points."""
    return f"{100 * value:+.{2 if 0 < abs(value) < _SMALL / 10 else 1}f}"


def money(value: float, *, sign: bool = False) -> str:
    """Return an amount of the shop's currency: whole from 1,000 up, to the cent below."""
    digits = 0 if abs(value) >= 1_000 else 2
    return f"{value:{'+' if sign else ''},.{digits}f}"


def count(value: float) -> str:
    """Return a count, shortened from 10 million up."""
    for size, letter in ((1e9, "bn"), (1e6, "m")):
        if abs(value) >= 10 * size:
            return f"{value / size:,.1f} {letter}"
    return f"{value:,.0f}"


def amount(value: float, unit: Unit, *, sign: bool = False) -> str:
    """Return a figure in its unit."""
    if unit == "share":
        return percent(value, sign=sign, digits=2 if 0 < abs(value) < _SMALL else 1)
    if unit == "currency":
        return money(value, sign=sign)
    plus = "+" if sign else ""
    return f"{value:{plus},.2f}"


def moved(reading: Reading) -> str:
    """Return how far a figure moved: in points for shares, in percent for others."""
    found = reading.change
    if found is None:
        return ""
    if reading.kpi.unit == "share":
        return f"{points(found.difference.value)} points"
    if found.relative is not None:
        return percent(found.relative, sign=True)
    return amount(found.difference.value, reading.kpi.unit, sign=True)


def change(reading: Reading) -> str:
    """Return the change as a sentence without its subject: "rose 5.9% to 30.65 (from 28.95)"."""
    if reading.change is None or reading.value is None or reading.before is None:
        return reading.why
    verb = "rose" if reading.change.difference.value > 0 else "fell"
    now, before = (amount(v, reading.kpi.unit) for v in (reading.value.value, reading.before))
    return f"{verb} by {moved(reading).lstrip('+-')} to {now} (from {before})"


def day(value: date) -> str:
    """Return a day as 2 Oct 2017."""
    return f"{value.day} {value:%b %Y}"


def span(first: date, last: date) -> str:
    """Return two days as 2 Oct to 31 Dec 2017."""
    short = f"{first.day} {first:%b}" if first.year == last.year else day(first)
    return f"{short} to {day(last)}"
