"""Tables for a person at a terminal; every command that prints one can print JSON instead."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

from rich.table import Table

if TYPE_CHECKING:
    from nextbest.data.contract import TableReport
    from nextbest.data.features import Feature
    from nextbest.learn.train import TrainResult

# The figures that a summary shows, in this order, where a model has them.
_SHOWN = ("auc", "average_precision", "brier", "lift_at_10", "mae", "pearson_r", "aggregate_ratio")


def _table(title: str, *columns: str, right: Sequence[str] = ()) -> Table:
    table = Table(title=title, title_justify="left", show_edge=False)
    for name in columns:
        table.add_column(name, justify="right" if name in right else "left", overflow="fold")
    return table


def tables(reports: Iterable[TableReport]) -> Table:
    """Show what the data check counted: rows in, clean rows, quarantined rows with their reason."""
    out = _table(
        "Data", "table", "rows in", "clean", "quarantined", "why / notes",
        right=("rows in", "clean", "quarantined"),
    )  # fmt: skip
    for r in reports:
        why = [f"{n:,} {reason}" for reason, n in r.quarantined.items()]
        out.add_row(
            r.table, f"{r.rows_in:,}", f"{r.rows_clean:,}", f"{sum(r.quarantined.values()):,}",
            "\n".join([*why, *r.notes]) or "–",
        )  # fmt: skip
    return out


def features(found: Iterable[Feature]) -> Table:
    """Show every feature with its meaning, unit and source."""
    out = _table("Features", "name", "of", "meaning", "unit", "source", "group")
    for f in found:
        live = " (live)" if f.live else ""
        out.add_row(f.name, f.entity, f.meaning + live, f.unit, f.source, f.group)
    return out


def trained(results: Sequence[TrainResult]) -> Table:
    """Show each model's figures on its test slice, with intervals, beside its baseline."""
    out = _table(
        "Models, on their test slices (95% intervals)", "model", "metric", "value", "interval",
        "baseline", "rows", right=("value", "baseline", "rows"),
    )  # fmt: skip
    for r in results:
        first = True
        for name in _SHOWN:
            if name not in r.metrics:
                continue
            m, base = r.metrics[name], r.baseline_metrics.get(name)
            positive = f" ({r.counts['n_positive']:,})" if "n_positive" in r.counts else ""
            out.add_row(
                f"{r.model.name} {r.version}" if first else "",
                name,
                figure(m.value),
                f"{figure(m.low)} to {figure(m.high)}",
                figure(base.value) if base else "–",
                f"{r.counts['n_test']:,}{positive}" if first else "",
            )
            first = False
        out.add_row("", f"[dim]baseline: {r.baseline_name}[/dim]", "", "", "", "")
    return out


def figure(value: float) -> str:
    """A number as a person reads it: two decimals from 10 up, four below."""
    return f"{value:,.2f}" if abs(value) >= 10 else f"{value:.4f}"


def batch(summary: Mapping[str, Any]) -> Table:
    """Show how many customers get each offer, and at which step the others lost it."""
    out = _table(
        f"Decisions for {summary['customers']:,} customers, {summary['decided_at']}, "
        f"channel {summary['channel']}",
        "offer", "chosen", "lost at (customers)", right=("chosen",),
    )  # fmt: skip
    for offer, count in summary["offers"].items():
        lost = summary["funnel"].get(offer, {}).get("lost", {})
        words = [f"{reason} {n:,}" for reasons in lost.values() for reason, n in reasons.items()]
        out.add_row(offer, f"{count:,}", "; ".join(words) or "–")
    out.add_row("no offer", f"{summary['no_offer']:,}", "")
    return out


def decision(record: Mapping[str, Any], *, explain: bool) -> Iterator[Any]:
    """Show one decision: the offers made with their reasons, and with ``explain`` every offer's fate."""
    answer = record["answer"]
    yield f"Customer {answer['customer_id']}, {answer['decided_at']}, channel {answer['channel']}"
    scores = {k: v for k, v in answer["scores"].items() if v is not None}
    if scores:
        yield "Scores: " + ", ".join(f"{k} {figure(v)}" for k, v in scores.items())
    if answer["fallback"]:
        yield "Nothing is known of this customer: the fallback list of the policy decides."
    for offer in answer["offers"]:
        worth = offer.get("expected_profit")
        yield f"{offer['rank']}. offer {offer['offer_id']}" + (
            f", expected profit {figure(worth)}" if worth is not None else ""
        )
        for reason in offer["reasons"]:
            yield f"   - {reason}"
    if not answer["offers"]:
        yield "No offer."
        for reason in answer["no_offer_reasons"]:
            yield f"   - {reason}"
    if explain:
        out = _table(
            "What became of each offer", "offer", "step", "because", "propensity", "priority"
        )
        for offer in record["trace"]["offers"]:
            numbers = offer["numbers"] or {}
            out.add_row(
                offer["offer_id"],
                offer["fate"]["step"],
                offer["fate"]["reason"],
                *(
                    "–" if numbers.get(k) is None else figure(numbers[k])
                    for k in ("propensity", "priority")
                ),
            )
        yield out


@contextmanager
def steps(quiet: bool = False) -> Iterator[Callable[[str], None]]:
    """Show the steps of a long job on standard error, with the time each has taken."""
    from rich.console import Console
    from rich.progress import Progress, SpinnerColumn, TextColumn, TimeElapsedColumn

    console = Console(stderr=True, quiet=quiet)
    columns = (
        SpinnerColumn(finished_text="✓"),
        TextColumn("{task.description}"),
        TimeElapsedColumn(),
    )
    with Progress(*columns, console=console) as bar:
        running: list[Any] = []

        def step(name: str) -> None:
            if running:
                bar.update(running[-1], total=1, completed=1)
            running.append(bar.add_task(name, total=None))

        yield step
        if running:
            bar.update(running[-1], total=1, completed=1)
