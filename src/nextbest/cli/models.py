"""The commands of a data scientist: check, train, compare, promote, roll back, refresh."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from nextbest.cli.options import HERE, Json, ProjectDir, show_json
from nextbest.errors import UsageError

__all__ = ["check", "compare", "features", "promote", "refresh", "rollback", "train"]


def check(
    project: ProjectDir = HERE,
    json_: Json = False,
    data: Annotated[bool, typer.Option(help="Also read and check the data.")] = True,
) -> None:
    """Report every fault in the project and its data at once."""
    from nextbest import jobs, show
    from nextbest.project import Project

    with show.steps(quiet=json_) as step:
        step("check definitions and data" if data else "check definitions")
        report = jobs.check_project(Project.open(project), data=data)
    if json_:
        show_json(report.to_dict())
    else:
        if report.history is not None:
            show.out(show.tables(report.history.reports), "")
        for note in report.notes:
            print(note)
        for fault in report.faults:
            print(f"✗ {fault}")
        count = len(report.faults)
        print(f"{count} fault{'s' if count > 1 else ''}." if count else "No faults.")
    if report.faults:
        raise typer.Exit(1)


def features(project: ProjectDir = HERE, json_: Json = False) -> None:
    """List every feature: name, meaning, unit, source."""
    from nextbest import jobs, show
    from nextbest.project import Project

    opened = Project.open(project)
    with show.steps(quiet=json_) as step:
        step("look at the data's columns")
        found, missing = jobs.features(opened)
    if json_:
        show_json({"features": [f.to_dict() for f in found], "unavailable": list(missing)})
        return
    show.out(*show.features(found))
    print(f"{len(found)} features.")
    for group in missing:
        print(f"Not available: {group}.")


def train(
    models: Annotated[
        list[str] | None, typer.Argument(help="Models; all if none is named.")
    ] = None,
    project: ProjectDir = HERE,
    json_: Json = False,
    tune: Annotated[
        int, typer.Option("--tune", min=0, help="Try so many settings of the search space first.")
    ] = 0,
) -> None:
    """Train models beside their baselines; register new versions."""
    from nextbest import jobs, show
    from nextbest.project import Project

    if tune and not models:
        raise UsageError(
            "--tune", "it needs a model's name", expected="nextbest train MODEL --tune N"
        )
    opened = Project.open(project)
    jobs.trainable(opened, models or [])
    with show.steps(quiet=json_) as step:
        step("read and check the data")
        history = opened.history()
        results = jobs.train(opened, models or [], history, opened.registry(), step, tune=tune)
    if json_:
        show_json({"trained": [r.to_dict() for r in results]})
        return
    show.out(*show.trained(results))
    for result in results:
        name, refusing = result.model.name, [g for g in result.gates if not g.passed]
        for gate in refusing:
            print(f'{name}: gate "{gate.gate}" will refuse it: {gate.message}.')
        if not refusing:
            print(f"{name} passes its gates. Next: nextbest promote {name}")


def compare(
    model: Annotated[str, typer.Argument(help="Model to compare versions of.")],
    versions: Annotated[
        list[str] | None, typer.Argument(help="Numbers or aliases; all if none.")
    ] = None,
    project: ProjectDir = HERE,
    json_: Json = False,
    html: Annotated[
        Path | None, typer.Option("--html", help="Write one page with charts to this file.")
    ] = None,
) -> None:
    """Is a version better: by how much, for whom, or is it chance."""
    from nextbest import show
    from nextbest.learn import compare as comparing
    from nextbest.learn import compare_table
    from nextbest.project import Project

    opened = Project.open(project)
    opened.model(model)
    with show.steps(quiet=json_) as step:
        found = comparing.gather(opened.registry(), model, versions or None, progress=step)
        if html is not None:
            from nextbest.learn.compare_html import write

            step("draw the page")
            write(found, html)
    facts = found.to_dict()
    if json_:
        show_json(facts)
        return
    show.out(show.compared(facts), *compare_table.tables(found), facts["verdict"])
    if html is not None:
        print(f"Written to {html}: the same with charts, in one file.")


def promote(
    model: Annotated[str, typer.Argument(help="Model.")],
    version: Annotated[
        str | None, typer.Argument(help="Number or alias; the newest if none.")
    ] = None,
    project: ProjectDir = HERE,
    force: Annotated[
        bool, typer.Option("--force", help="Promote although a gate refuses.")
    ] = False,
    reason: Annotated[
        str | None, typer.Option(help="Kept with the version; required by --force.")
    ] = None,
    json_: Json = False,
) -> None:
    """Make a version champion, if its gates allow."""
    from nextbest import jobs
    from nextbest.project import Project

    if force and not (reason or "").strip():
        raise UsageError("--force", "it needs a reason", expected="--reason TEXT, which is kept")
    opened = Project.open(project)
    promoted, gates = jobs.promote(
        opened, model, opened.registry(), version, force=force, reason=reason
    )
    if json_:
        show_json(
            {"model": model, "version": promoted.version, "gates": [g.to_dict() for g in gates]}
        )
        return
    for gate in gates:
        print(f"{'✓' if gate.passed else '✗'} {gate.gate}: {gate.message}")
    print(f"{model} version {promoted.version} is champion. Run `nextbest refresh` to serve it.")


def rollback(
    model: Annotated[str, typer.Argument(help="Model.")],
    project: ProjectDir = HERE,
    reason: Annotated[str | None, typer.Option(help="Kept with the version.")] = None,
    json_: Json = False,
) -> None:
    """Give the champion's place back to the one before it."""
    from nextbest import jobs
    from nextbest.project import Project

    opened = Project.open(project)
    back = jobs.rollback(opened, model, opened.registry(), reason=reason)
    if json_:
        show_json({"model": model, "version": back.version})
        return
    print(f"{model} version {back.version} is champion again. Run `nextbest refresh` to serve it.")


def refresh(project: ProjectDir = HERE, json_: Json = False) -> None:
    """Recompute and score every profile, and serve that from now on."""
    from nextbest import jobs, show
    from nextbest.project import Project

    opened = Project.open(project)
    with show.steps(quiet=json_) as step:
        step("read and check the data")
        result = jobs.refresh(opened, opened.history(), opened.registry(), step)
    if json_:
        show_json(result.to_dict())
        return
    models = ", ".join(f"{n} {v}" for n, v in result.models.items())
    print(f"{result.customers:,} profiles as of {result.as_of}, scored with {models}.")
    print(f"Bundle {result.bundle} is served from now on.")
    for note in result.notes:
        print(note)
    show.out(*show.drift(result.drift))
    if result.drift:
        print(f"All figures: {result.drift_file}")
    for name in result.without_champion:
        print(f"{name} has no champion, so its score is unknown: nextbest promote {name}.")
