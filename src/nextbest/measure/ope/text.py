"""The evaluation for the terminal: estimates, overlap and verdict, in eighty columns."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from rich.console import Group
from rich.table import Table
from rich.text import Text

from nextbest.learn.compare_words import number, signed
from nextbest.learn.metrics import Metric
from nextbest.measure.ope.estimators import MEANINGS, PRIMARY
from nextbest.measure.ope.evaluation import Evaluation
from nextbest.measure.ope.overlap import OfferSupport, Overlap

__all__ = ["estimates", "figures", "offers", "overlap", "shown_offers", "tables"]

_SHOWN = 12


def tables(evaluation: Evaluation) -> Iterator[Group]:
    """Yield the tables in the order in which they are read."""
    yield estimates(evaluation)
    yield from overlap(evaluation.overlap)


def estimates(evaluation: Evaluation) -> Group:
    """Show what each estimator says, per decision."""
    table = _table("estimator", "value", "less logged", "95% interval", "meaning",
                   left=("estimator", "meaning"))  # fmt: skip
    for name, e in evaluation.estimates.items():
        d = e.difference
        shown = f"{name} (decides)" if name == PRIMARY else name
        table.add_row(shown, number(e.value.value), signed(d.value), _span(d), MEANINGS[name])
    m = evaluation.logged
    title = f"Per decision; the log earned {number(m.value)} ({number(m.low)} to {number(m.high)})"
    return Group(Text(title, style="bold"), table)


def overlap(found: Overlap) -> Iterator[Group]:
    """Show how well the log covers the target, in all and offer by offer."""
    table = _table("overlap", "value", left=("overlap",))
    for name, value in figures(found):
        table.add_row(name, value)
    yield Group(Text("How well the log covers the target", style="bold"), table)
    yield offers(found)


def figures(found: Overlap) -> Iterator[tuple[str, str]]:
    """Yield each figure of the overlap with its name, in words."""
    m = found.mean_weight
    yield "decisions logged", f"{found.decisions:,} of {found.customers:,} customers"
    yield "choices that were not certain", f"{found.explored_share:.1%}"
    yield "effective sample size", f"{found.effective_sample_size:,.0f}"
    yield "mean weight", f"{number(m.value)} ({number(m.low)} to {number(m.high)})"
    yield "largest weight", number(found.max_weight)
    yield f"clipped (weight over {number(found.clip_at)})", f"{found.share_clipped:.2%}"
    yield "target's choices never tried", f"{found.unsupported_share:.1%}"
    yield "target's choices on thin offers", f"{found.thin_share:.1%}"


def shown_offers(found: Overlap) -> tuple[list[OfferSupport], int]:
    """Return the offers that matter most to the target, and how many are left out."""
    wanted = sorted(
        (o for o in found.offers if o.target_share > 0 or o.logged),
        key=lambda o: (o.support == "good", -o.target_share),
    )
    return wanted[:_SHOWN], max(len(wanted) - _SHOWN, 0)


def offers(found: Overlap) -> Group:
    """Show each offer's share in the target beside what the log knows of it."""
    table = _table("offer", "target", "logged", "worth", "log", left=("offer", "log"))
    shown, more = shown_offers(found)
    for o in shown:
        table.add_row(o.offer, f"{o.target_share:.1%}", f"{o.logged:,}", f"{o.effective:,.0f}",
                      o.support)  # fmt: skip
    parts: list[Any] = [Text("Offers, the least known first", style="bold"), table]
    if more:
        parts.append(Text(f"and {more} more"))
    return Group(*parts)


def _span(m: Metric) -> str:
    return f"{signed(m.low)} to {signed(m.high)}"


def _table(*columns: str, left: tuple[str, ...]) -> Table:
    table = Table(show_edge=False)
    for name in columns:
        table.add_column(name, justify="left" if name in left else "right", overflow="fold",
                         no_wrap=name not in left)  # fmt: skip
    return table
