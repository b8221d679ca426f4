"""``nextbest evaluate``: what another policy would have earned on logged decisions."""

from __future__ import annotations

from datetime import datetime
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from nextbest.cli.options import HERE, Json, ProjectDir, show_json
from nextbest.errors import ConfigError, DataError, FitError, NextbestError, UsageError

if TYPE_CHECKING:
    from nextbest.learn.gates import GateResult
    from nextbest.project import Project
    from nextbest.proof.policy_value import PolicyValue, Question

__all__ = ["evaluate"]

_DATES = ["%Y-%m-%d", "%Y-%m-%dT%H:%M:%S"]


def evaluate(
    policy: Annotated[
        Path | None, typer.Option("--policy", help="Another policy.toml, on the project's own log.")
    ] = None,
    project: ProjectDir = HERE,
    reward: Annotated[
        str, typer.Option(help="With --policy: profit, response or revenue.")
    ] = "profit",
    start: Annotated[
        datetime | None, typer.Option("--from", formats=_DATES, help="Decisions since, UTC.")
    ] = None,
    until: Annotated[
        datetime | None, typer.Option(formats=_DATES, help="Known until, UTC; else the log's end.")
    ] = None,
    window_days: Annotated[
        float | None, typer.Option(help="Time to answer offers that do not say it themselves.")
    ] = None,
    first_slot: Annotated[
        bool, typer.Option("--first-slot", help="Count answers with several offers by the first.")
    ] = False,
    every_policy: Annotated[
        bool, typer.Option("--every-policy", help="Also decisions of policies before the last.")
    ] = False,
    at_most: Annotated[
        int, typer.Option(help="About so many decisions, by a sample of customers.")
    ] = 100_000,
    force: Annotated[
        bool, typer.Option("--force", help="Approve the policy although its gate refuses.")
    ] = False,
    reason: Annotated[str | None, typer.Option(help="Kept with the approval.")] = None,
    log: Annotated[
        Path | None, typer.Option("--log", help="Instead: a Parquet file of logged decisions.")
    ] = None,
    target: Annotated[
        Path | None,
        typer.Option("--target", help="With --log: Parquet file of the other probabilities."),
    ] = None,
    html: Annotated[
        Path | None, typer.Option("--html", help="Write one page with charts to this file.")
    ] = None,
    margin: Annotated[
        float | None,
        typer.Option(min=0, help="Refuse if the policy may lose more than this per decision."),
    ] = None,
    json_: Json = False,
) -> None:
    """What another policy would have earned on logged choices."""
    from nextbest.project import Project
    from nextbest.proof.policy_value import Question

    if (policy is None) == (log is None) or (log is None) != (target is None):
        raise UsageError("evaluate", "the question is not clear",
                         expected="--policy FILE, or --log FILE with --target FILE")  # fmt: skip
    if force and not (reason or "").strip():
        raise UsageError("--force", "it needs a reason", expected="--reason TEXT, which is kept")
    if log is not None and target is not None:
        _from_files(log, target, html, margin, json_)
        return
    question = Question(
        Path(str(policy)), reward,  # type: ignore[arg-type]  # checked by Question
        _naive(start), _naive(until), window_days, first_slot, every_policy, at_most,
    )  # fmt: skip
    _from_log(Project.open(project), question, html, margin, reason if force else None, json_)


def _naive(moment: datetime | None) -> datetime | None:
    return None if moment is None else moment.replace(tzinfo=None)


def _from_files(
    log: Path, target: Path, html: Path | None, margin: float | None, json_: bool
) -> None:
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
        show_json({**found.to_dict(), "gate": gate.to_dict() if gate else None})
    else:
        show.out(*text.tables(found), str(found.verdict))
    _end(gate, html, json_)


def _from_log(
    project: Project, question: Question, html: Path | None, margin: float | None,
    forced: str | None, json_: bool,
) -> None:  # fmt: skip
    from nextbest import show
    from nextbest.decide.policy import Policy
    from nextbest.measure.ope import page, text
    from nextbest.proof.policy_value import value_of

    limit = Policy.load(question.policy).tables.gates.max_loss_per_1000_decisions
    if forced is not None and limit is None:
        raise UsageError("--force", "the policy has no gate to pass",
                         expected="[gates] max_loss_per_1000_decisions in the policy")  # fmt: skip
    if margin is not None:
        limit = 1000 * margin
    with show.steps(quiet=json_) as step:
        try:
            value = value_of(project, question, step)
        except (ConfigError, DataError, FitError) as refusal:
            _keep_refusal(project, question, refusal, forced)
            if forced is None:
                raise
            _say_forced(refusal, forced, json_)
            return
        if html is not None:
            step("draw the page")
            page.write(value.found, html, list(value.lines()))
    gate = None if limit is None else value.gate(limit)
    if gate is not None:
        _keep(project, value, gate, forced)
    if json_:
        facts: dict[str, Any] = value.to_dict()
        show_json({**facts, "gate": gate.to_dict() if gate else None, "forced": forced})
    else:
        show.out(*text.tables(value.found), *value.lines(), "", str(value.found.verdict))
    if forced is not None and not json_:
        print(f"Approved all the same: {forced}")
    _end(None if forced else gate, html, json_)


def _keep(project: Project, value: PolicyValue, gate: GateResult, forced: str | None) -> None:
    """Write down whether the policy may go live, as far as the log can tell."""
    from nextbest.proof.policy_value import approve

    said = gate.message if forced is None else f"{gate.message}; approved all the same: {forced}"
    approve(project, value.policy, gate.passed or forced is not None, said,
            {**value.to_dict(), "gate": gate.to_dict(), "forced": forced})  # fmt: skip


def _keep_refusal(
    project: Project, question: Question, refusal: NextbestError, forced: str | None
) -> None:
    """Where a gate is to be passed, write down that the log could not answer, and why."""
    from nextbest.decide.policy import Policy
    from nextbest.proof.policy_value import approve

    policy = Policy.load(question.policy)
    if policy.tables.gates.must_pass():
        said = "the log cannot answer: " + "; ".join(str(fault) for fault in refusal.faults)
        said = said if forced is None else f"{said} Approved all the same: {forced}"
        approve(project, policy, forced is not None, said, {"forced": forced})


def _say_forced(refusal: NextbestError, forced: str, json_: bool) -> None:
    faults = [str(fault) for fault in refusal.faults]
    if json_:
        show_json({"refused": faults, "forced": forced})
        return
    for fault in faults:
        print(f"✗ {fault}")
    print(f"Approved all the same: {forced}")


def _end(gate: GateResult | None, html: Path | None, json_: bool) -> None:
    if gate is not None and not json_:
        print(f"{'✓' if gate.passed else '✗'} gate: {gate.message}.")
    if html is not None and not json_:
        print(f"Written to {html}: the same with charts, in one file.")
    if gate is not None and not gate.passed:
        raise typer.Exit(1)
