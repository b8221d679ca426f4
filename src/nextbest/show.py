"""Tables and steps for a person at a terminal; every command that shows one can print JSON instead.

Every table fits into 80 columns: names are never broken, and only the last column wraps.
"""

from __future__ import annotations

import json
import os
import sys
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from itertools import groupby
from typing import TYPE_CHECKING, Any

from rich.console import Console, Group
from rich.table import Table
from rich.text import Text

if TYPE_CHECKING:
    from nextbest.data.contract import TableReport
    from nextbest.data.features import Feature
    from nextbest.learn.train import TrainResult
    from nextbest.learn.watch import Watch
    from nextbest.measure.comparison import Comparison
    from nextbest.measure.experiment import Reading

# The figures that a summary shows, in this order, where a model has them.
_SHOWN = ("auc", "average_precision", "brier", "lift_at_10", "mae", "pearson_r", "aggregate_ratio")


def out(*parts: Any) -> None:
    """Print texts and tables to standard output; brackets in them are brackets, not markup."""
    console = Console(highlight=False, markup=False, emoji=False)
    for part in parts:
        if isinstance(part, str):
            print(part)  # as it is: a terminal wraps it, a file keeps the line
        else:
            console.print(part)


def _table(*columns: str, right: Sequence[str] = ()) -> Table:
    table = Table(show_edge=False)
    for name in columns:
        justify: Any = "right" if name in right else "left"
        table.add_column(name, justify=justify, overflow="fold", no_wrap=name != columns[-1])
    return table


def _titled(title: str, table: Table) -> Group:
    # A title of rich's own wraps at the width of its table.
    return Group(Text(title, style="bold"), table)


def tables(reports: Iterable[TableReport]) -> Group:
    """Show what the data check counted: rows in, clean rows, quarantined rows with their reason."""
    table = _table(
        "table", "rows in", "clean", "quarantined", "why / notes",
        right=("rows in", "clean", "quarantined"),
    )  # fmt: skip
    for r in reports:
        why = [f"{n:,} {reason}" for reason, n in r.quarantined.items()]
        table.add_row(
            r.table, f"{r.rows_in:,}", f"{r.rows_clean:,}", f"{sum(r.quarantined.values()):,}",
            "\n".join([*why, *r.notes]) or "–",
        )  # fmt: skip
    return _titled("Data", table)


def features(found: Iterable[Feature]) -> Iterator[Any]:
    """Show every feature with its unit and meaning, group by group."""
    for (group, source, of), members in groupby(found, key=lambda f: (f.group, f.source, f.entity)):
        each = {"pair": "customer and offer"}.get(of, of)
        table = _table("name", "unit", "meaning")
        for f in members:
            table.add_row(f.name, f.unit, f.meaning + (" (live)" if f.live else ""))
        yield _titled(f"{group}: of each {each}, from {source}", table)
        yield ""


def trained(results: Iterable[TrainResult]) -> Iterator[Any]:
    """Show each model's figures on its test slice, with intervals, beside its baseline."""
    for r in results:
        rows = f"{r.counts['n_test']:,} test rows"
        if "n_positive" in r.counts:
            rows += f", {r.counts['n_positive']:,} of them positive"
        beside = f"baseline: {r.baseline_name}"
        table = _table("metric", "value", "95% interval", beside, right=("value",))
        for name in (n for n in _SHOWN if n in r.metrics):
            m, base = r.metrics[name], r.baseline_metrics.get(name)
            table.add_row(
                name, figure(m.value), f"{figure(m.low)} to {figure(m.high)}",
                figure(base.value) if base else "–",
            )  # fmt: skip
        yield _titled(f"{r.model.name} version {r.version} on {rows}", table)
        yield f"{r.model.name} {r.verdict}."
        if r.tuning is not None:
            yield f"{r.model.name} was tuned on its training side. {r.tuning}."
        yield ""


def compared(found: Mapping[str, Any]) -> Group:
    """Show the versions of a model beside its baseline, figure by figure."""
    columns = [
        (f"version {v['version']}" + "".join(f", {a}" for a in v["aliases"]), v["metrics"])
        for v in found["versions"]
    ]
    if found["baseline"]:
        columns.append((f"baseline: {found['baseline']['name']}", found["baseline"]["metrics"]))
    measured = [(name, metrics.get("test", {})) for name, metrics in columns]
    table = _table("metric", "value", "95% interval", "of", right=("value",))
    for metric in dict.fromkeys(name for _, figures in measured for name in figures):
        shown = metric
        for name, figures in measured:
            if metric in figures:
                m = figures[metric]
                interval = f"{figure(m['low'])} to {figure(m['high'])}"
                table.add_row(shown, figure(m["value"]), interval, name)
                shown = ""
    return _titled(f"{found['model']}: figures on the test rows", table)


def drift(found: Mapping[str, Watch | str]) -> Iterator[str]:
    """Say what moved since each model was trained, one line where nothing did."""
    for name, watched in found.items():
        if isinstance(watched, str):
            yield f"{name}: drift is unknown, as {watched}."
            continue
        first, *moved = watched.lines()
        yield f"{name}: {first}."
        yield from (f"   - {line}" for line in moved)


def figure(value: float) -> str:
    """A number as a person reads it: two decimals from 10 up, four below."""
    return f"{value:,.2f}" if abs(value) >= 10 else f"{value:.4f}"


def batch(summary: Mapping[str, Any]) -> Iterator[Any]:
    """Show how many customers get each offer, and at which step the others lost it."""
    table = _table("offer", "chosen", "customers who did not get it, by reason", right=("chosen",))
    for offer, count in summary["offers"].items():
        lost = summary["funnel"].get(offer, {}).get("lost", {})
        why = [(n, reason) for reasons in lost.values() for reason, n in reasons.items()]
        words = [f"{n:,} {reason}" for n, reason in sorted(why, key=lambda pair: -pair[0])]
        table.add_row(offer, f"{count:,}", "; ".join(words) or "–")
    table.add_row("no offer", f"{summary['no_offer']:,}", "")
    title = f"Decisions for {summary['customers']:,} customers as of {summary['decided_at']}, "
    yield _titled(title + f"channel {summary['channel']}", table)
    yield f"Expected profit of the offers made: {summary['expected_profit']:,.2f}."
    yield from _limits(summary["limits"])
    if summary["file"]:
        yield f"Written to {summary['file']}: {summary['rows']:,} rows."
    if summary["recorded"] or summary["recorded_before"]:
        before = summary["recorded_before"]
        yield f"Recorded: {summary['recorded']:,} decisions" + (
            f"; {before:,} more were recorded before." if before else "."
        )


def shifted(facts: Mapping[str, Any]) -> Iterator[Any]:
    """Show what another policy would shift, in all, by offer and segment, and at which step."""
    yield f"{facts['customers']:,} customers under both policies, channel {facts['channel']}."
    total = {name.replace("_", " "): figures for name, figures in facts["total"].items()}
    yield _side_by_side("In all", "figure", total)
    yield _side_by_side("Offers made", "offer", _column(facts["offers"], "contacts"))
    if facts["segments"]:
        by = facts["segments_by"]
        yield _side_by_side("Offers made, by segment", by, _column(facts["segments"], "contacts"))
        profits = _column(facts["segments"], "expected_profit")
        yield _side_by_side("Expected profit, by segment", by, profits)
    lost = {
        f"{offer}: {one['step'].replace('_', ' ')}: {one['reason']}": one
        for offer, fates in facts["funnel"].items()
        for one in fates
        if one["difference"]
    }
    if lost:
        yield _side_by_side("Customers who lose an offer, where that differs", "why", lost)
    else:
        yield "Every offer is lost to the same steps and rules, as often."
    yield "Nothing was recorded."


def biased(facts: Mapping[str, Any]) -> Iterator[Any]:
    """Show what each group of each sensitive attribute gets, channel by channel."""
    numbers = ("customers", "reach", "ratio", "propensity", "value")
    for channel, found in facts["channels"].items():
        for one in found["attributes"]:
            table = _table(*numbers, "group", right=numbers)
            for label, group in one["groups"].items():
                ratio = group["reach"]["ratio"]
                table.add_row(
                    f"{group['customers']:,}",
                    _known(group["reach"]["value"]),
                    "–" if ratio is None else f"{ratio['value']:.0%}",
                    *(_known(group[name]["value"]) for name in ("propensity", "value")),
                    f"{label}: {group['why_not'] or _verdict(group)}",
                )
            yield _titled(f"{one['attribute']}, channel {channel}", table)
    for attribute, features in facts["proxies"].items():
        if features:
            said = ", ".join(f"{f['feature']} {f['association']:.2f}" for f in features)
            yield f"What models read that tells most of {attribute} (Cramér's V): {said}."


def _known(value: float | None) -> str:
    return "–" if value is None else figure(value)


def _verdict(group: Mapping[str, Any]) -> str:
    """The verdict on a group's reach; the group that others are held against has none."""
    return group["reach"]["verdict"] or "best treated"


def _column(groups: Mapping[str, Any], name: str) -> dict[str, Any]:
    return {label: group[name] for label, group in groups.items()}


def _side_by_side(title: str, of: str, rows: Mapping[str, Any]) -> Group:
    """Two policies' figures and their difference; what a figure is about comes last, to wrap."""
    sides = ("project", "other", "difference")
    table = _table(*sides, of, right=sides)
    for label, figures in rows.items():
        table.add_row(*(_whole(figures[side]) for side in sides), label)
    return _titled(title, table)


def _whole(value: float) -> str:
    return f"{value:,}" if isinstance(value, int) else figure(value)


def _limits(found: Mapping[str, Any]) -> Iterator[str]:
    """Say what is used of everything scarce, and what one more of it would be worth."""
    if not found:
        return
    worth = f"Shared out under limits: offers worth {found['value']:,.2f} (priority)"
    yield f"{worth}, of at most {found['upper_bound']:,.2f} (gap {found['gap']:.3%})."
    if not found["binding"]:
        yield "No limit keeps anybody from anything."
    for price in found["prices"]:
        yield f"- {price['in_words']}"


def decision(answer: Mapping[str, Any], trace: Mapping[str, Any] | None) -> Iterator[Any]:
    """Show one decision: the offers made and why, and with its trace every offer's fate."""
    yield f"Customer {answer['customer_id']}, {answer['decided_at']}, channel {answer['channel']}"
    scores = {k: v for k, v in answer["scores"].items() if v is not None}
    if scores:
        yield "Scores: " + ", ".join(f"{k} {figure(v)}" for k, v in scores.items())
    if answer["fallback"]:
        yield "Nothing is known of this customer: the fallback list of the policy decides."
    if answer["profile_stale"]:
        yield "The profile is older than the policy's freshness limit. Run `nextbest refresh`."
    if trace and "live" in trace:
        live = trace["live"]
        changed = {**live["features"], **live["scores"]}.items()
        said = (f"{name} {_known(was)} → {_known(now)}" for name, (was, now) in changed)
        yield "Since the refresh: " + (", ".join(said) or "nothing that changes a feature")
        if "kept" in live:
            yield f"As of the refresh all the same: {', '.join(live['kept'])}"
    if "prices_ignored" in answer:
        yield f"Stored scarcity prices are not used: {answer['prices_ignored']}."
    for offer in answer["offers"]:
        worth = offer.get("expected_profit")
        yield f"{offer['rank']}. offer {offer['offer_id']} ({offer['name']})" + (
            f", expected profit {figure(worth)}" if worth is not None else ""
        )
        for reason in offer["reasons"]:
            yield f"   - {reason}"
        if trace and offer["offer_id"] in trace["because"]:
            yield f"   - propensity {trace['because'][offer['offer_id']]}"
    if not answer["offers"]:
        yield "No offer."
        for reason in answer["no_offer_reasons"]:
            yield f"   - {reason}"
    if trace:
        yield _fates(trace["offers"])


def replayed(found: Mapping[str, Any]) -> Iterator[Any]:
    """Show whether a decision came out as it was recorded, and else every value that did not."""
    yield f"Decision {found['decision_id']}: {found['verdict']}."
    for fault in found["missing"]:
        yield f"   - {fault}"
    if found["scores"]:
        yield f"Scores: {found['scores']}."
    if found["differences"]:
        table = _table("value", "recorded", "made again")
        for one in found["differences"]:
            table.add_row(one["where"], _json(one["stored"]), _json(one["rebuilt"]))
        yield _titled("What differs", table)


def _json(value: Any) -> str:
    return json.dumps(value, ensure_ascii=False)


def _fates(offers: Iterable[Mapping[str, Any]]) -> Group:
    numeric = ("propensity", "priority")
    table = _table("offer", *numeric, "step", "because", right=numeric)
    for offer in offers:
        numbers = offer["numbers"] or {}
        shown = (numbers.get(k) for k in numeric)
        table.add_row(
            offer["offer_id"],
            *("–" if n is None else figure(n) for n in shown),
            offer["fate"]["step"],
            _because(offer),
        )
    return _titled("What became of each offer", table)


def _because(offer: Mapping[str, Any]) -> str:
    """Why an offer ended where it did, in a line."""
    step, reason, why = offer["fate"]["step"], offer["fate"]["reason"], offer["why"]
    if step in ("candidate", "fallback", "chosen"):
        return str(reason)
    # Of the contact policy's reasons only the name of the limit tells which it was.
    return f"{reason}: {why}" if step == "contact_policy" else str(why)


def quarter(found: Mapping[str, Any]) -> Iterator[Any]:
    """Show a simulated quarter: what happened, and what was measured beside what is true."""
    arms = ", ".join(f"{n:,} in {arm}" for arm, n in found["arms"].items())
    offers = ", ".join(f"{o} {n:,} times" for o, n in found["offers"].items() if n)
    told = ", ".join(f"{n:,} {kind}s" for kind, n in found["outcomes"].items())
    yield (
        f"\nA SIMULATED QUARTER from {found['from'][:10]}: customers, scores and offers are the "
        "project's, every answer and purchase is simulated."
    )
    yield f"  decided   {found['decisions']:,} decisions in {found['weeks']} weekly batches: {arms}"
    yield f"  offered   {offers or 'nothing'}"
    yield f"  simulated {told or 'nothing'}, reported as the API's callers report them"
    table = _table(
        "measured", "truth", "estimate", "95% interval", "holds it",
        right=("truth", "estimate", "95% interval"),
    )  # fmt: skip
    for row in found["figures"]:
        figures = [f"{row[k]:+,.4f}" for k in ("truth", "value")]
        span = f"{row['low']:+,.4f} to {row['high']:+,.4f}"
        table.add_row(row["name"], *figures, span, "yes" if row["inside"] else "no")
    yield _titled("What was measured, and the truth that only a simulation knows", table)
    for row in found["figures"]:
        yield f"{row['name']}: {row['title']}."
    yield (
        f"Changed policy: {found['changed_policy']}. From the log alone: {found['verdict']}\n"
        "Of a hundred such intervals about five miss the truth."
    )
    yield f"\nDone in {found['seconds']:.0f} s. Nothing of it is in the project's own store."
    for name in ("policy", "store", "report"):
        yield f"  {name:<10}{found['files'][name]}"


def experiment(found: Reading) -> Iterator[Any]:
    """Show what an experiment says: customers per arm, then a sentence for each comparison."""
    from nextbest.measure.words import amount

    counts = _table("arm", "customers", "planned share", right=("customers",))
    for arm, n in found.balance.counts.items():
        planned = found.balance.shares.get(arm)
        counts.add_row(arm, f"{n:,}", "–" if planned is None else f"{planned:.1%}")
    yield _titled("Customers per arm", counts)
    yield f"Assignment {found.balance.message}."
    if found.left_out:
        yield f"{found.left_out:,} customers got the fallback list: drawn into no arm, left out."
    for title, comparisons in (("Everybody", found.overall), ("Segments", found.segments)):
        if not comparisons:
            continue
        yield f"\n{title}"
        for c in comparisons:
            yield f"- {c.verdict}"
            if c.mean is not None and c.mean_against is not None:
                means = [amount(m, is_rate=c.is_rate) for m in (c.mean, c.mean_against)]
                unit = "%" if c.is_rate else ""
                yield (f"  {c.question.arm} {means[0]}{unit} of {c.n:,}, "
                       f"{c.question.against} {means[1]}{unit} of {c.n_against:,}"
                       + _beside(c))  # fmt: skip


def _beside(c: Comparison) -> str:
    if c.measured is None:
        return ""
    reduced = c.measured.variance_reduction
    words = f"; the value before took away {reduced:.1%} of the variance" if reduced else ""
    if c.measured.ratio is None:
        return f"; {c.measured.no_ratio}{words}"
    r = c.measured.ratio
    return f"; ratio {r.value:.2f} [{r.low:.2f}, {r.high:.2f}] at one look{words}"


Step = Callable[[str], None]


@contextmanager
def steps(quiet: bool = False) -> Iterator[Step]:
    """Show the steps of a long job on standard error, with the time each has taken.

    "model: part" shows as one line for the model, with the part that it is at. Where standard
    error is no terminal, ``quiet`` shows nothing, and otherwise each step is a line as it begins.
    """
    if sys.stderr.isatty() and os.environ.get("TERM") != "dumb":
        with _bar() as step:
            yield step
    elif quiet:
        yield lambda _: None
    else:
        yield lambda name: print(f"… {name}", file=sys.stderr, flush=True)


@contextmanager
def _bar() -> Iterator[Step]:
    from rich.progress import Progress, SpinnerColumn, TextColumn, TimeElapsedColumn

    columns = (
        SpinnerColumn(finished_text="✓"),
        TextColumn("{task.description}", markup=False),
        TimeElapsedColumn(),
    )
    console = Console(stderr=True, highlight=False)
    with Progress(*columns, console=console, redirect_stdout=False, redirect_stderr=False) as bar:
        running: list[tuple[str, Any]] = []

        def finish() -> None:
            if running:
                name, task = running[-1]
                bar.update(task, description=name, total=1, completed=1)

        def step(said: str) -> None:
            name = said.partition(": ")[0]
            if not running or running[-1][0] != name:
                finish()
                running.append((name, bar.add_task(said, total=None)))
            bar.update(running[-1][1], description=said)

        yield step
        finish()


def simulated(facts: Mapping[str, Any]) -> Iterator[Any]:
    """Show a simulated shop: what its customers really do, and what policies really earn."""
    rows = ", ".join(f"{n:,} {name}" for name, n in facts["rows"].items())
    yield f"World {facts['world']}: {facts['meaning']}."
    yield f"{facts['days']} days: {rows}."
    right = ("contacted", "left alone", "profit per contact")
    table = _table("offer", *right, right=right)
    for o in facts["offers"]:
        table.add_row(
            o["offer_id"], f"{o['response_rate_contacted']:.1%}",
            f"{o['response_rate_left_alone']:.1%}", f"{o['profit_per_contact']:.2f}",
        )  # fmt: skip
    yield _titled("True mean response rates, and what a contact earns beyond none", table)
    amounts = ("contacted", "true profit")
    table = _table("policy", *amounts, right=amounts)
    for p in facts["policies"]:
        table.add_row(p["policy"], f"{p['contacted_share']:.1%}", f"{p['profit']:,.2f}")
    yield _titled("What policies earn that know these probabilities", table)
