"""The comparison for the terminal: differences and segments, in eighty columns."""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING

from rich.console import Group
from rich.table import Table
from rich.text import Text

from nextbest.learn import compare_words as words

if TYPE_CHECKING:
    from nextbest.learn.compare import Comparison, Pair, SegmentPair
    from nextbest.learn.paired import Difference

__all__ = ["tables"]


def tables(comparison: Comparison) -> Iterator[Group]:
    """Yield the differences of the newest version, every other version, and the segments.

    Of more than two versions only the newest is shown figure by figure and by segment; the page
    and the JSON hold all.
    """
    main = comparison.main
    if main is not None and main.differences:
        yield _differences(main)
    if len(comparison.pairs) > 1:
        yield _versions(comparison)
    if main is not None and main.segments:
        yield _segments(main)


def _table(*columns: str, left: tuple[str, ...]) -> Table:
    table = Table(show_edge=False)
    for i, name in enumerate(columns):
        justify = "left" if name in left else "right"
        table.add_column(name, justify=justify, overflow="fold", no_wrap=i > 0)  # type: ignore[arg-type]
    return table


def _titled(title: str, table: Table) -> Group:
    return Group(Text(title, style="bold"), table)


def _against(pair: Pair) -> str:
    other = "the baseline" if pair.against_baseline else f"version {pair.to}"
    return f"version {pair.of} less {other}"


def _span(d: Difference) -> tuple[str, str]:
    m = d.difference
    if d.better == "same":
        return "0", "the same in every redraw"
    return words.signed(m.value), f"{words.signed(m.low)} to {words.signed(m.high)}"


def _differences(pair: Pair) -> Group:
    table = _table("metric", "difference", "95% interval", "reading", left=("metric", "reading"))
    for name, d in pair.differences.items():
        table.add_row(name, *_span(d), d.better)
    return _titled(f"{_against(pair)}, on {pair.n_shared:,} shared rows", table)


def _versions(comparison: Comparison) -> Group:
    table = _table("version", "rows", "difference", "95% interval", "reading",
                   left=("version", "reading"))  # fmt: skip
    for pair in comparison.pairs:
        rows, d = f"{pair.n_shared:,}", pair.differences.get(pair.primary)
        if d is None:
            table.add_row(f"{pair.of}: {pair.refused}", rows, "–", "–", "not compared")
        else:
            table.add_row(str(pair.of), rows, *_span(d), d.better)
    title = f"{comparison.primary} of every version less version {comparison.reference}"
    return _titled(title, table)


def _segments(pair: Pair) -> Group:
    rows = "rows" if pair.n_positive is None else "rows (positive)"
    table = _table("segment", rows, "difference", "95% interval", "reading",
                   left=("segment", "reading"))  # fmt: skip
    for s in pair.segments:
        d = s.differences.get(pair.primary)
        untold = "too few" if s.too_few else "–"
        cells = ("–", "–", untold) if d is None else (*_span(d), d.better)
        table.add_row(s.label, _rows(s), *cells)
    return _titled(f"For whom: {pair.primary}, {_against(pair)}", table)


def _rows(s: SegmentPair) -> str:
    return f"{s.n:,}" if s.n_positive is None else f"{s.n:,} ({s.n_positive:,})"
