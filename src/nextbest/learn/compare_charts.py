"""Small charts as SVG, drawn by hand: no library, no script, readable on paper and on a phone."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from html import escape
from typing import Any, Final

import numpy as np

__all__ = ["Markup", "Series", "bar", "el", "interval", "lines", "sample", "ticks"]

_WIDTH, _HEIGHT = 340, 250
_LEFT, _RIGHT, _TOP, _BOTTOM = 46, 10, 10, 40
_MOST_POINTS: Final = 120
_VOID: Final = frozenset({"br", "circle", "line", "link", "meta", "path", "polyline", "rect"})


class Markup(str):
    """Text that is markup already; everything else is escaped when it becomes part of a page."""

    __slots__ = ()


def el(tag: str, /, *children: object, **attributes: object) -> Markup:
    """Return one element; text is escaped, ``None`` is left out, ``class_`` becomes ``class``.

    The result is well-formed XML as well as HTML.
    """
    shown = "".join(
        f' {key.rstrip("_").replace("_", "-")}="{escape(str(value), quote=True)}"'
        for key, value in attributes.items()
        if value is not None
    )
    inside = "".join(
        c if isinstance(c, Markup) else escape(str(c), quote=False)
        for c in children
        if c is not None
    )
    if tag in _VOID and not inside:
        return Markup(f"<{tag}{shown} />")
    return Markup(f"<{tag}{shown}>{inside}</{tag}>")


def join(parts: Sequence[object]) -> Markup:
    """Return markup one after the other; text among it is escaped."""
    return Markup("".join(p if isinstance(p, Markup) else escape(str(p)) for p in parts))


@dataclass(frozen=True)
class Series:
    """One line or row of dots: its name, points, and the class that gives colour and dashes.

    ``low`` and ``high`` (n,) draw an error bar at each point.
    """

    name: str
    x: Sequence[float]
    y: Sequence[float]
    style: str
    dots: bool = False
    low: Sequence[float] = ()
    high: Sequence[float] = ()


def lines(
    title: str,
    series: Sequence[Series],
    x_label: str,
    y_label: str,
    *,
    identifier: str,
    diagonal: bool = False,
    level: float | None = None,
    percent: tuple[bool, bool] = (True, True),
    top: float | None = None,
) -> Markup:
    """Return a chart of lines with axes.

    Parameters: ``identifier`` unique in the page; ``diagonal`` draws y = x, ``level`` a horizontal
    line, both as a reference; ``percent`` whether each axis is a share; ``top`` end of the y axis.
    """
    x_end = _end([v for s in series for v in s.x], share=percent[0])
    y_end = top or _end([v for s in series for v in (*s.y, *s.high)], share=percent[1])
    if diagonal and not all(percent):
        x_end = y_end = max(x_end, y_end)

    def place(x: float, y: float) -> tuple[float, float]:
        across = _LEFT + (_WIDTH - _LEFT - _RIGHT) * min(max(x, 0), x_end) / x_end
        up = _HEIGHT - _BOTTOM - (_HEIGHT - _TOP - _BOTTOM) * min(max(y, 0), y_end) / y_end
        return round(across, 1), round(up, 1)

    inside: list[Markup] = [el("title", title, id=identifier)]
    inside += _axes(place, x_end, y_end, x_label, y_label, percent)
    if diagonal:
        end = min(x_end, y_end)
        (x1, y1), (x2, y2) = place(0, 0), place(end, end)
        inside.append(el("line", x1=x1, y1=y1, x2=x2, y2=y2, class_="guide"))
    if level is not None:
        (x1, y1), (x2, y2) = place(0, level), place(x_end, level)
        inside.append(el("line", x1=x1, y1=y1, x2=x2, y2=y2, class_="guide"))
    for s in reversed(series):  # The first one lies on top.
        inside += _drawn(s, place)
    return el(
        "svg",
        *inside,
        viewBox=f"0 0 {_WIDTH} {_HEIGHT}",
        role="img",
        aria_labelledby=identifier,
        class_="chart",
    )


def _drawn(s: Series, place: Any) -> list[Markup]:
    keep = _thinned(len(s.x))
    points = [place(s.x[i], s.y[i]) for i in keep]
    text = " ".join(f"{x:g},{y:g}" for x, y in points)
    made = [el("polyline", points=text, class_=f"line {s.style}")]
    if s.dots:
        for i, (x, y) in zip(keep, points, strict=True):
            if s.low:
                ends = place(s.x[i], s.low[i])[1], place(s.x[i], s.high[i])[1]
                made.append(el("line", x1=x, x2=x, y1=ends[0], y2=ends[1], class_=f"err {s.style}"))
            made.append(el("circle", cx=x, cy=y, r=3, class_=f"dot {s.style}"))
    return made


def _thinned(n: int) -> list[int]:
    if n <= _MOST_POINTS:
        return list(range(n))
    return sorted({round(i * (n - 1) / (_MOST_POINTS - 1)) for i in range(_MOST_POINTS)})


def _axes(
    place: Any, x_end: float, y_end: float, x_label: str, y_label: str, percent: tuple[bool, bool]
) -> list[Markup]:
    made = []
    for value in ticks(y_end):
        (x1, y), (x2, _) = place(0, value), place(x_end, value)
        made.append(el("line", x1=x1, x2=x2, y1=y, y2=y, class_="grid"))
        made.append(
            el("text", _tick(value, y_end, share=percent[1]), x=x1 - 5, y=y + 4, text_anchor="end")
        )
    for value in ticks(x_end):
        x, y = place(value, 0)
        anchor = "end" if value == x_end else "middle"
        made.append(
            el("text", _tick(value, x_end, share=percent[0]), x=x, y=y + 15, text_anchor=anchor)
        )
    (x1, y1), (x2, _) = place(0, 0), place(x_end, 0)
    made.append(el("line", x1=x1, x2=x2, y1=y1, y2=y1, class_="axis"))
    middle = _TOP + (_HEIGHT - _TOP - _BOTTOM) / 2
    made.append(el("text", x_label, x=(x1 + x2) / 2, y=_HEIGHT - 6, text_anchor="middle"))
    turned = f"translate(11 {middle:g}) rotate(-90)"
    made.append(el("text", y_label, transform=turned, text_anchor="middle"))
    return made


def ticks(end: float, most: int = 5) -> list[float]:
    """Return round numbers from 0 to at most ``end``."""
    power = 10.0 ** math.floor(math.log10(end / most))
    step = next(m * power for m in (1, 2, 2.5, 5, 10) if m * power * most >= end * (1 - 1e-9))
    return [round(i * step, 12) for i in range(math.floor(end / step * (1 + 1e-9)) + 1)]


def _tick(value: float, end: float, *, share: bool) -> str:
    if share:
        return f"{value:.0%}" if end > 0.1 else f"{value:.1%}"
    return f"{value:,.0f}" if end >= 10 else f"{value:g}"


def _end(values: Sequence[float], *, share: bool) -> float:
    largest = max((v for v in values if np.isfinite(v)), default=1.0)
    if share and largest > 0.6:
        return 1.0
    if largest <= 0:
        return 1.0
    power = 10.0 ** math.floor(math.log10(largest))
    return next(m * power for m in (1, 1.5, 2, 3, 4, 5, 6, 8, 10) if m * power >= largest)


# ------------------------------------------------------------------ pieces of a table


def interval(
    value: float, low: float, high: float, bound: float, better: str, words: str
) -> Markup:
    """Return a bar from ``low`` to ``high`` on an axis from -bound to bound, 0 in the middle.

    It is as wide as its cell. ``words`` say the same to whoever cannot see it.
    """

    def place(v: float) -> str:
        share = 50 + 46 * v / bound if bound > 0 else 50
        return f"{min(max(share, 2), 98):.1f}%"

    return el(
        "svg",
        el("line", x1="50%", x2="50%", y1="0", y2="100%", class_="zero"),
        el("line", x1=place(low), x2=place(high), y1="50%", y2="50%", class_=f"span {better}"),
        el("circle", cx=place(value), cy="50%", r="5", class_=f"point {better}"),
        role="img",
        aria_label=words,
        class_="interval",
    )


def bar(value: float, bound: float, style: str) -> Markup:
    """Return a bar as wide as its value among ``bound``; the number beside it says the same."""
    width = 100 * value / bound if bound > 0 else 0.0
    rect = el("rect", x="0", y="1", width=f"{width:.1f}%", height="8", class_=f"fill {style}")
    return el("svg", rect, class_="bar", aria_hidden="true")


def sample(style: str) -> Markup:
    """Return a short piece of a line, for a legend."""
    line = el("line", x1="1", y1="6", x2="33", y2="6", class_=f"line {style}")
    return el("svg", line, width="34", height="12", class_="sample", aria_hidden="true")


def numbers(values: Mapping[str, Sequence[float]], columns: tuple[str, str], at: float) -> float:
    """Return a curve's height at one place, between its points in a straight line."""
    return float(np.interp(at, values[columns[0]], values[columns[1]]))
