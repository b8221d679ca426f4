"""The commands that measure: plan an experiment, and read it."""

from __future__ import annotations

from datetime import datetime
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from nextbest.cli.options import HERE, Json, ProjectDir, show_json
from nextbest.errors import UsageError

if TYPE_CHECKING:
    from nextbest.measure.experiment import Reading

experiment_app = typer.Typer(
    help="Experiments: how many customers they need, and what they say.", no_args_is_help=True
)

_DATES = ["%Y-%m-%d", "%Y-%m-%dT%H:%M:%S"]


@experiment_app.command("plan")
def plan(
    baseline: Annotated[float, typer.Option(help="The holdout's mean; a rate is 0 to 1.")],
    effect: Annotated[
        float | None, typer.Option(help="Smallest difference worth finding, in the same unit.")
    ] = None,
    customers: Annotated[
        int | None, typer.Option(min=1, help="Instead: what so many customers can find.")
    ] = None,
    spread: Annotated[
        float | None, typer.Option(help="Standard deviation of an amount; none for a rate.")
    ] = None,
    holdout: Annotated[float, typer.Option(help="Share of customers held out.")] = 0.1,
    alpha: Annotated[float, typer.Option(help="Chance of finding what is not there.")] = 0.05,
    power: Annotated[float, typer.Option(help="Chance of finding the effect.")] = 0.8,
    before_r2: Annotated[
        float, typer.Option(help="R² of the outcome on the value before (CUPED).")
    ] = 0.0,
    once: Annotated[
        bool, typer.Option("--once", help="One look at the end, instead of daily looks.")
    ] = False,
    per_day: Annotated[float | None, typer.Option(help="Customers who enter per day.")] = None,
    window_days: Annotated[
        int, typer.Option(help="Days until a customer's outcome is complete.")
    ] = 0,
    json_: Json = False,
) -> None:
    """Say how many customers and days an experiment needs, or what it can find."""
    from nextbest.measure.plan import Plan

    if (effect is None) == (customers is None):
        raise UsageError("experiment plan", "the question is not clear",
                         expected="either --effect or --customers")  # fmt: skip
    # To find the effect from the customers any effect will do to begin with.
    start = effect if effect is not None else (1.0 if spread else (1 - baseline) / 2)
    asked = Plan(
        baseline=baseline, effect=start, spread=spread, holdout_share=holdout, alpha=alpha,
        power=power, before_r2=before_r2, looks="once" if once else "daily",
        customers_per_day=per_day, window_days=window_days,
    )  # fmt: skip
    if customers is not None:
        found = asked.detectable(customers)
        if json_:
            show_json({"customers": customers, "detectable_effect": found})
        else:
            print(f"{customers:,} customers, {holdout:.0%} held out, find a difference of "
                  f"{found:.4g} with {power:.0%} power.")  # fmt: skip
        return
    sizing = asked.size()
    if json_:
        show_json(sizing.to_dict())
        return
    print(f"{sizing.customers:,} customers: {sizing.treated:,} treated, "
          f"{sizing.holdout:,} held out.")  # fmt: skip
    if sizing.days is not None:
        print(f"{sizing.days:,} days, the last outcomes included.")
    if not once:
        print(f"Read daily. With one look at the end {sizing.one_look_customers:,} would do.")


@experiment_app.command("read")
def read(
    project: ProjectDir = HERE,
    file: Annotated[
        Path | None, typer.Option(help="A .parquet or .csv file instead of the project's tables.")
    ] = None,
    outcome: Annotated[
        list[str] | None,
        typer.Option(help="Outcome, or a ratio such as revenue/orders; repeatable."),
    ] = None,
    by: Annotated[list[str] | None, typer.Option(help="Column of segments; repeatable.")] = None,
    before: Annotated[
        str | None, typer.Option(help="Column with the value before (CUPED), in a file.")
    ] = None,
    arm: Annotated[str, typer.Option(help="Arm that all others are compared with.")] = "policy",
    control: Annotated[
        str | None, typer.Option(help="Instead: compare all others with this one.")
    ] = None,
    share: Annotated[
        list[str] | None, typer.Option(help="Planned share, as no_contact=0.1; repeatable.")
    ] = None,
    start: Annotated[
        datetime | None, typer.Option("--from", formats=_DATES, help="Start, UTC (tables).")
    ] = None,
    until: Annotated[
        datetime | None, typer.Option(formats=_DATES, help="End, UTC; of the data if not given.")
    ] = None,
    contact_cost: Annotated[
        float | None, typer.Option(help="Cost of a contact, for margin and clv.")
    ] = None,
    retained_days: Annotated[
        int | None,
        typer.Option(help="Retained: bought in the last so many days (14 in the log, else 60)."),
    ] = None,
    source: Annotated[
        str | None, typer.Option(help="log or tables; the log if it holds decisions.")
    ] = None,
    days: Annotated[
        float | None, typer.Option(help="Watch each customer so many days (log); 28 if not given.")
    ] = None,
    purchases: Annotated[
        str | None,
        typer.Option(help="With the log: reported ones (log), or transactions (data)."),
    ] = None,
    margin_share: Annotated[
        float | None, typer.Option(help="Margin as a share of reported purchases (log).")
    ] = None,
    planned: Annotated[
        int | None, typer.Option(help="Customers planned; all of them for the tables.")
    ] = None,
    alpha: Annotated[float, typer.Option(help="Chance of a false finding.")] = 0.05,
    once: Annotated[
        bool, typer.Option("--once", help="This is the one look that was planned.")
    ] = False,
    correction: Annotated[str, typer.Option(help="For many segments: holm or bh.")] = "holm",
    json_: Json = False,
) -> None:
    """Say what the policy earned against the holdout and every other arm."""
    from nextbest import show
    from nextbest.measure.collect import collect, open_file, outcome_of
    from nextbest.measure.experiment import DEFAULT_PLANNED, Design, read
    from nextbest.measure.tables import BEFORE, Watch, customers
    from nextbest.project import Project
    from nextbest.proof.experiments import DEFAULT_DAYS, Asked, read_log

    names, segments = outcome or [], by or []
    where = str(file or "experiment")
    of_log = {"--days": days, "--purchases": purchases, "--margin-share": margin_share}
    chosen = _source(project, source, file, start)
    if chosen == "log":
        if contact_cost is not None:
            raise UsageError("--contact-cost", "the log knows what every contact cost",
                             expected="left out, or --source tables with it")  # fmt: skip
        asked = Asked(
            names or ["conversion", "revenue"], segments, before, _naive(start), _naive(until),
            DEFAULT_DAYS if days is None else days, 14 if retained_days is None else retained_days,
            purchases or "log",  # type: ignore[arg-type]  # checked by Entry
            margin_share,
        )  # fmt: skip
        design = Design(
            arm=arm, control=control, shares=_shares(share) if share else None, alpha=alpha,
            looks="once" if once else "daily", planned=planned or DEFAULT_PLANNED,
            correction=correction,  # type: ignore[arg-type]  # checked by Design
        )  # fmt: skip
        with show.steps(quiet=json_) as step:
            told = read_log(Project.open(project), asked, design, step)
        if json_:
            show_json(told.to_dict())
        else:
            show.out(*show.experiment(told.reading), *told.lines())
        _refuse(told.reading)
        return
    for name, value in of_log.items():
        if value is not None:
            raise UsageError(name, "it is for the decision log", expected="left out",
                             action="Read the log with --source log")  # fmt: skip
    with show.steps(quiet=json_) as step:
        if file is not None:
            if not names:
                raise UsageError("--outcome", "no column is named", expected="--outcome COLUMN")
            step("read the file")
            table = open_file(file)
        else:
            assert start is not None  # as `_source` saw to
            names, before = names or ["conversion", "revenue"], BEFORE
            step("read and check the data")
            history = Project.open(project).history()
            end, retained = until or history.observed_until, retained_days or 60
            watch = Watch(start, end, contact_cost, retained)
            table = customers(history, watch, names, segments)
        outcomes = [outcome_of(name, before) for name in names]
        step("compare the arms")
        cells = collect(table, outcomes, segments, where=where)
        # Where everybody entered on the first day, all are planned; else the plan must be told.
        expected = planned or (DEFAULT_PLANNED if file else sum(c.n for c in cells))
        design = Design(
            arm=arm, control=control, shares=_shares(share) if share else None, alpha=alpha,
            looks="once" if once else "daily", planned=expected,
            correction=correction,  # type: ignore[arg-type]  # checked by Design
        )  # fmt: skip
        found = read(cells, outcomes, design, segments)
    if json_:
        show_json(found.to_dict())
    else:
        show.out(*show.experiment(found))
    _refuse(found)


def _source(project: Path, source: str | None, file: Path | None, start: datetime | None) -> str:
    """Say where an experiment is read from: a file, the decision log, or the tables."""
    from nextbest.project import Project
    from nextbest.proof.logbook import has_decisions

    if source not in (None, "log", "tables"):
        raise UsageError("--source", "unknown", expected="log or tables", got=source)
    if file is not None:
        if source is not None:
            raise UsageError("--source", "the file is the source", expected="--source or --file")
        return "file"
    if source is None:
        source = "log" if has_decisions(Project.open(project)) else "tables"
    if source == "tables" and start is None:
        raise UsageError("--from", "the start of the experiment is not given",
                         expected="--from DATE, or --file FILE")  # fmt: skip
    return source


def _naive(moment: datetime | None) -> datetime | None:
    return None if moment is None else moment.replace(tzinfo=None)


def _shares(given: list[str]) -> dict[str, float]:
    """Read ``arm=share`` pairs."""
    found = {}
    for text in given:
        name, _, number = text.rpartition("=")
        try:
            found[name.strip()] = float(number)
        except ValueError:
            name = ""
        if not name.strip():
            raise UsageError("--share", "not a share of an arm", expected="ARM=NUMBER", got=text)
    return found


def _refuse(found: Reading) -> None:
    if found.blocked:
        raise typer.Exit(1)
