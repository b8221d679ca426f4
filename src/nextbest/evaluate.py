"""``nextbest evaluate``: what another policy would have earned on logged decisions."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Annotated

import typer

__all__ = ["evaluate"]


def evaluate(
    log: Annotated[Path, typer.Option("--log", help="Parquet file of logged decisions.")],
    target: Annotated[
        Path, typer.Option("--target", help="Parquet file of the other policy's probabilities.")
    ],
    html: Annotated[
        Path | None, typer.Option("--html", help="Write one page with charts to this file.")
    ] = None,
    margin: Annotated[
        float | None,
        typer.Option(min=0, help="Refuse if the policy may lose more than this per decision."),
    ] = None,
    json_: Annotated[
        bool, typer.Option("--json", help="Print one JSON object on standard output.")
    ] = False,
) -> None:
    """What another policy would have earned, or why nobody can say."""
    from nextbest import show
    from nextbest.measure import ope
    from nextbest.measure.ope import page, text

    with show.steps(quiet=json_) as step:
        step("read the log and the target")
        logged, policy = ope.read_pair(log, target)
        step("fit the reward model and weigh the decisions")
        found = ope.evaluate(logged, policy)
        if html is not None:
            step("draw the page")
            page.write(found, html)
    gate = None if margin is None else ope.hold(found, margin)
    if json_:
        facts = {**found.to_dict(), "gate": gate.to_dict() if gate else None}
        print(json.dumps(facts, indent=1, allow_nan=False))
    else:
        show.out(*text.tables(found), str(found.verdict))
        if gate is not None:
            print(f"{'✓' if gate.passed else '✗'} gate: {gate.message}.")
        if html is not None:
            print(f"Written to {html}: the same with charts, in one file.")
    if gate is not None and not gate.passed:
        raise typer.Exit(1)
