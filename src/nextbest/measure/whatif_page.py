"""What another policy would shift, as one page: everything inside it, nothing loaded, no script."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from nextbest.learn.compare_charts import Markup, bar, el, join
from nextbest.learn.page import save, whole

__all__ = ["render", "write"]

Facts = Mapping[str, Any]
_NAMES = {
    "contacts": "offers made",
    "reached": "customers with an offer",
    "share_reached": "share of customers with an offer",
    "contacts_per_customer": "offers per customer",
    "expected_profit": "expected profit",
    "expected_profit_per_customer": "expected profit per customer",
}


def render(facts: Facts) -> str:
    """Return the whole page as text, from what `decide.whatif.compare` gave."""
    title = "Another policy: what would shift"
    said = f"{facts['customers']:,} customers decided for under both policies; nothing was recorded"
    return whole(
        title,
        el("header", el("p", "nextbest · what if", class_="eyebrow"), el("h1", title)),
        el("main", el("p", f"{said}."), *_sections(facts)),
    )


def write(facts: Facts, file: Path | str) -> None:
    """Write the page to a file; ``UsageError`` where that cannot be done."""
    save(render(facts), file)


def _sections(facts: Facts) -> list[Markup]:
    rows = [_row(_NAMES[name], figures, None) for name, figures in facts["total"].items()]
    found = [_section("In all", _table(rows)), _section("By offer", _charted(facts["offers"]))]
    if facts["segments"]:
        title = f"By {facts['segments_by']}"
        profit = _charted(facts["segments"], "expected_profit")
        found.append(_section(title, el("h3", "Offers made"), _charted(facts["segments"]),
                              el("h3", "Expected profit"), profit))  # fmt: skip
    lost = [
        _row(f"{offer}: {one['step']}: {one['reason']}", one, None)
        for offer, fates in facts["funnel"].items()
        for one in fates
    ]
    return [*found, _section("Who loses which offer, and why (customers)", _table(lost))]


def _charted(groups: Facts, name: str = "contacts") -> Markup:
    bound = max([abs(g[name]["difference"]) for g in groups.values()], default=0)
    return _table([_row(label, group[name], bound) for label, group in groups.items()])


def _section(title: str, *parts: Markup) -> Markup:
    return el("section", el("h2", title), *parts)


def _row(label: str, figures: Facts, bound: float | None) -> Markup:
    shown = [el("td", _number(figures[side]), class_="num") for side in ("project", "other")]
    shown.append(el("td", _number(figures["difference"], signed=True), class_="num"))
    if bound is not None:
        style = "to" if figures["difference"] >= 0 else "of"
        shown.append(el("td", bar(abs(figures["difference"]), bound, style)))
    return el("tr", el("th", label, scope="row", class_="name"), *shown)


def _table(rows: Sequence[Markup]) -> Markup:
    heads = [el("th", name, scope="col") for name in ("", "project", "other", "difference")]
    return el("table", el("thead", el("tr", *heads)), el("tbody", join(rows)))


def _number(value: float, *, signed: bool = False) -> str:
    digits = 0 if value == int(value) and abs(value) >= 1 else 2 if abs(value) >= 10 else 4
    return f"{value:+,.{digits}f}" if signed and value else f"{value:,.{digits}f}"
