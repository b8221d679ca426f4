"""The command that reports: one page for whoever decides, and the data behind it."""

from __future__ import annotations

from datetime import date, datetime
from pathlib import Path
from typing import Annotated, Any

import typer

from nextbest.cli.options import HERE, Json, ProjectDir, show_json
from nextbest.errors import UsageError

__all__ = ["report"]

_DATES = ["%Y-%m-%d", "%Y-%m-%dT%H:%M:%S"]


def report(
    project: ProjectDir = HERE,
    out: Annotated[
        Path | None, typer.Option(help="Folder for page and data; .nextbest/report if not given.")
    ] = None,
    html: Annotated[
        Path | None, typer.Option("--html", help="Write the page to this file instead.")
    ] = None,
    until: Annotated[
        datetime | None, typer.Option(formats=_DATES, help="End, UTC; of the data if not given.")
    ] = None,
    days: Annotated[int | None, typer.Option(min=7, help="Days of the period.")] = None,
    baseline: Annotated[
        str | None, typer.Option(help='"before", "year before", or its first day.')
    ] = None,
    json_: Json = False,
) -> None:
    """Say what happened, for whom, and what to look at."""
    from nextbest import show
    from nextbest.measure.report.files import write_all
    from nextbest.project import Project
    from nextbest.proof.reporting import report as measured
    from nextbest.proof.reporting import settings_of

    opened = Project.open(project)
    settings = settings_of(opened)
    asked: dict[str, Any] = {} if days is None else {"days": days}
    if baseline is not None:
        asked["baseline"] = _baseline(baseline)
    period = settings.period.model_copy(update=asked)
    settings = settings.model_copy(update={"period": period})
    with show.steps(quiet=json_) as step:
        found = measured(opened, settings=settings, until=until, progress=step)
        step("draw and write the page")
        made = write_all(found, out or opened.state / "report", html)
    if json_:
        show_json(found.to_dict())
        return
    facts = found.to_dict()
    for finding in facts["findings"]:
        sign = {"good": "▲", "bad": "▼", "look": "!"}.get(finding["kind"], "•")
        print(f"{sign} {finding['text']}")
    print(f"\nWritten to {made['page']}: the same with charts, in one file.")
    print(f"The data behind it: {made['json'].parent}")


def _baseline(given: str) -> str | date:
    if given in ("before", "year before"):
        return given
    try:
        return date.fromisoformat(given)
    except ValueError:
        raise UsageError(
            "--baseline", "not a baseline", expected='before, "year before" or a day',
            got=given,
        ) from None  # fmt: skip
