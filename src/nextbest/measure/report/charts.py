"""The report's charts as SVG, drawn by hand like those of the other pages: no library, no script.

Each is drawn at the width of a phone, so that its words stay readable there; wider screens put
several beside each other.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from nextbest.learn.compare_charts import Markup, el

__all__ = ["Dot", "bars", "heat", "nice", "range_bar", "spark", "trend"]

_WIDTH, _HEIGHT = 360, 220
_LEFT, _RIGHT, _TOP, _BOTTOM = 52, 8, 22, 28
Format = Callable[[float], str]
Place = Callable[[float], float]


@dataclass(frozen=True)
class Dot:
    """One step of a trend: its label, figure, the usual range, and how it is marked."""

    label: str
    value: float | None
    low: float | None
    high: float | None
    in_baseline: bool
    style: str = ""


def nice(low: float, high: float, most: int = 4) -> list[float]:
    """Return a few round numbers that cover a range."""
    if not math.isfinite(low) or not math.isfinite(high):
        return [0.0, 1.0]
    if high - low <= 1e-9 * max(abs(low), abs(high), 1e-9):
        low, high = low - (abs(low) * 0.1 or 1.0), high + (abs(high) * 0.1 or 1.0)
    raw = (high - low) / most
    power = 10.0 ** math.floor(math.log10(raw))
    step = next(m * power for m in (1, 2, 2.5, 5, 10) if m * power >= raw * (1 - 1e-9))
    first = math.floor(low / step + 1e-9)
    last = math.ceil(high / step - 1e-9)
    return [round(i * step, 12) for i in range(first, last + 1)]


def trend(title: str, dots: Sequence[Dot], show: Format, identifier: str) -> Markup:
    """Return a line over time: baseline grey, period coloured, the usual range as a band."""
    values = [d.value for d in dots if d.value is not None]
    floor = 0.0 if min(values, default=0.0) >= 0 else -math.inf
    known = [v for d in dots for v in (d.value, d.low, d.high) if v is not None]
    marks = nice(max(floor, min(known, default=0.0)), max(known, default=1.0))
    bottom, top = marks[0], marks[-1]

    def x(i: float) -> float:
        return round(_LEFT + (_WIDTH - _LEFT - _RIGHT) * (i + 0.5) / max(len(dots), 1), 1)

    def y(value: float) -> float:
        inside = (value - bottom) / (top - bottom)
        return round(_HEIGHT - _BOTTOM - (_HEIGHT - _TOP - _BOTTOM) * inside, 1)

    made = [el("title", title, id=identifier)]
    split = sum(d.in_baseline for d in dots)
    edge = x(split - 0.5)
    made.append(el("rect", x=_LEFT, y=_TOP, width=round(max(edge - _LEFT, 0), 1),
                   height=_HEIGHT - _TOP - _BOTTOM, class_="then"))  # fmt: skip
    for mark in marks:
        made.append(el("line", x1=_LEFT, x2=_WIDTH - _RIGHT, y1=y(mark), y2=y(mark), class_="grid"))
        made.append(el("text", show(mark), x=_LEFT - 5, y=y(mark) + 4, text_anchor="end"))
    if split:
        made.append(el("text", "baseline", x=_LEFT + 4, y=_TOP - 7))
        made.append(el("text", "period", x=edge + 4, y=_TOP - 7))
    band = [(i, d.low, d.high) for i, d in enumerate(dots) if d.low is not None]
    if len(band) > 1:
        up = [f"{x(i)},{y(min(h, top))}" for i, _l, h in band if h is not None]
        down = [f"{x(i)},{y(max(low, bottom))}" for i, low, _h in reversed(band) if low is not None]
        made.append(el("polygon", points=" ".join(up + down), class_="usual"))
    made += _line(dots, 0, split + 1, x, y, "base")
    made += _line(dots, split, len(dots), x, y, "of")
    for i, d in enumerate(dots):
        if d.style and d.value is not None:
            made.append(el("circle", cx=x(i), cy=y(d.value), r=4.5, class_=f"mark {d.style}"))
    for i in _labelled(len(dots)):
        anchor = "end" if i == len(dots) - 1 else "middle"
        made.append(el("text", dots[i].label, x=x(i), y=_HEIGHT - 9, text_anchor=anchor))
    return el("svg", *made, viewBox=f"0 0 {_WIDTH} {_HEIGHT}", role="img",
              aria_labelledby=identifier, class_="chart")  # fmt: skip


def _line(
    dots: Sequence[Dot], start: int, end: int, x: Place, y: Place, style: str
) -> list[Markup]:
    made, run = [], []
    for i in range(start, min(end, len(dots))):
        value = dots[i].value
        if value is not None:
            run.append(f"{x(i)},{y(value)}")
        if (value is None or i == min(end, len(dots)) - 1) and run:
            made.append(el("polyline", points=" ".join(run), class_=f"line {style}"))
            run = []
    return made


def _labelled(n: int, most: int = 4) -> list[int]:
    if n <= most:
        return list(range(n))
    return sorted({round(i * (n - 1) / (most - 1)) for i in range(most)})


def spark(values: Sequence[float | None], split: int) -> Markup:
    """Return a small line without axes; the baseline's part is grey. The number says the same."""
    known = [v for v in values if v is not None]
    low, high = min(known, default=0.0), max(known, default=1.0)
    room = (high - low) or 1.0
    n = max(len(values) - 1, 1)

    def points(start: int, end: int) -> str:
        return " ".join(
            f"{100 * i / n:.1f},{26 - 24 * (v - low) / room:.1f}"
            for i, v in enumerate(values[:end])
            if i >= start and v is not None
        )

    return el(
        "svg",
        el("polyline", points=points(0, split + 1), class_="line base"),
        el("polyline", points=points(split, len(values)), class_="line of"),
        viewBox="0 0 100 28", preserveAspectRatio="none", class_="spark", aria_hidden="true",
    )  # fmt: skip


def bars(
    title: str, rows: Sequence[tuple[str, float, str]], show: Format, identifier: str
) -> Markup:
    """Return horizontal bars from zero, left or right of it: (label, value, style)."""
    height = 30 * len(rows) + 8
    low, high = (f([0.0, *(v for _l, v, _s in rows)]) for f in (min, max))
    left, right = 138, 62
    if low < 0:
        left += 50
    room = _WIDTH - left - right
    size = (high - low) or 1.0

    def x(value: float) -> float:
        return round(left + room * (value - low) / size, 1)

    made = [el("title", title, id=identifier)]
    for i, (label, value, style) in enumerate(rows):
        y = 30 * i + 4
        made.append(el("text", label, x=2, y=y + 17))
        start, end = sorted((x(0), x(value)))
        made.append(el("rect", x=start, y=y + 4, width=max(round(end - start, 1), 1), height=18,
                       class_=f"fill {style}"))  # fmt: skip
        at, anchor = (x(value) + 4, "start") if value >= 0 else (x(value) - 4, "end")
        made.append(el("text", show(value), x=at, y=y + 17, text_anchor=anchor, class_="said"))
    made.append(el("line", x1=x(0), x2=x(0), y1=2, y2=height - 4, class_="axis"))
    return el("svg", *made, viewBox=f"0 0 {_WIDTH} {height}", role="img",
              aria_labelledby=identifier, class_="chart")  # fmt: skip


def range_bar(value: float, low: float, high: float, end: float, words: str) -> Markup:
    """Return a dot on its interval, on an axis from 0 to ``end``."""

    def place(v: float) -> str:
        return f"{2 + 96 * min(max(v / end if end > 0 else 0.0, 0.0), 1.0):.1f}%"

    return el(
        "svg",
        el("line", x1=place(low), x2=place(high), y1="50%", y2="50%", class_="span plain"),
        el("circle", cx=place(value), cy="50%", r="5", class_="point plain"),
        role="img", aria_label=words, class_="interval",
    )  # fmt: skip


def heat(share: float) -> str:
    """Return the class that tints a cell, from 0 to 1 in ten steps."""
    return f"heat h{min(10, max(0, round(10 * share)))}"
