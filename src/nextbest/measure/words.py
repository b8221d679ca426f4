"""Verdicts in words that can be read out in a meeting."""

from __future__ import annotations

from typing import Final

from nextbest.measure.comparison import Comparison
from nextbest.measure.intervals import Interval

__all__ = ["MONEY", "amount", "arm_words", "verdict"]

#: Outcomes in the shop's currency.
MONEY: Final = ("revenue", "margin", "clv")
_ARMS: Final = {
    "policy": "the full policy",
    "treated": "the treated",
    "no_contact": "no contact",
    "holdout": "the holdout",
    "random_eligible": "a random eligible offer",
    "propensity_only": "propensity alone",
    "no_levers": "the policy without levers",
}
#: Against these arms the full policy's difference is what personalised offers earn as a whole.
_NOTHING: Final = ("no_contact", "holdout")


def arm_words(arm: str) -> str:
    """Return how sentences call an arm."""
    return _ARMS.get(arm, arm)


def amount(value: float, *, is_rate: bool, sign: bool = False) -> str:
    """Return a number as sentences write it: rates in percentage points, amounts to the cent."""
    plus = "+" if sign else ""
    if is_rate:
        return f"{100 * value:{plus}.2f}"
    return f"{value:{plus},.2f}" if abs(value) >= 0.1 else f"{value:{plus}.4f}"


def verdict(found: Comparison, interval: Interval | None, sure: str) -> str:
    """Return the sentence that says what may be concluded from a comparison.

    Parameters
    ----------
    interval : the interval that decides; None where there is none.
    sure : how sure it is, such as "95% interval".
    """
    q = found.question
    for_whom = f" among {q.dimension} {q.segment}" if q.dimension else ""
    if interval is None:
        return f"no verdict{for_whom}: {found.cannot_say}."
    unit = " points" if found.is_rate else ""
    against = f"{arm_words(q.against)}{for_whom}"
    if found.finding == "unclear":
        apart = amount(interval.value, is_rate=found.is_rate, sign=True)
        why = "chance alone can do that"
        if interval.low > 0 or interval.high < 0:
            # The test that decides is stricter here than the interval beside it.
            why = f"p {found.p_adjusted:.2g}, too few cases yet to rule out chance"
        return (
            f"no verdict{for_whom}: {q.outcome} differs by {apart}{unit} "
            f"{_bounds(found, interval)} between {arm_words(q.arm)} and {arm_words(q.against)}; "
            f"{why}."
        )
    is_more = found.finding == "higher"
    if interval.low <= 0 <= interval.high:
        # Holm finds a little more than intervals that all hold at once can show.
        sure += f"; p {found.p_adjusted:.2g} after correction"
    shown = interval if is_more else Interval(-interval.value, -interval.high, -interval.low)
    size = amount(shown.value, is_rate=found.is_rate) + unit
    bounds, ends = _bounds(found, shown), f"{against} ({sure})."
    who = arm_words(q.arm)
    if q.arm == "policy" and q.against in _NOTHING:
        who = "personalisation"
    if found.is_rate or q.kind == "ratio":
        verb = "raised" if is_more else "lowered"
        return f"{who} {verb} {q.outcome} by {size} {bounds} against {ends}"
    verb = "earned" if q.outcome in MONEY else "gave"
    more = "more" if is_more else "less"
    return f"{who} {verb} {size} {more} {q.outcome} per customer {bounds} than {ends}"


def _bounds(found: Comparison, interval: Interval) -> str:
    low, high = (amount(v, is_rate=found.is_rate) for v in (interval.low, interval.high))
    return f"[{low}, {high}]"
