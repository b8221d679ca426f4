"""`nextbest decide` and `nextbest replay`: decisions from the command line, and made again."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

import typer

from nextbest.cli.options import HERE, Json, ProjectDir, show_json
from nextbest.errors import UsageError

__all__ = ["decide", "replay"]


def decide(
    project: ProjectDir = HERE,
    customer: Annotated[str | None, typer.Option(help="One customer; all if not given.")] = None,
    out: Annotated[Path | None, typer.Option(help="A .parquet or .csv file to write.")] = None,
    channel: Annotated[
        str | None, typer.Option(help="Channel; the policy's only one if not given.")
    ] = None,
    limit: Annotated[int, typer.Option(min=1, max=50, help="Offers per customer.")] = 1,
    policy: Annotated[Path | None, typer.Option(help="Another policy.toml to decide with.")] = None,
    explain: Annotated[
        bool, typer.Option("--explain", help="Say what became of every offer.")
    ] = False,
    record: Annotated[
        bool, typer.Option("--record", help="Keep the decisions, so that they count as contacts.")
    ] = False,
    compare: Annotated[
        bool, typer.Option("--compare", help="Say what --policy would shift for all customers.")
    ] = False,
    by: Annotated[
        str | None, typer.Option(help="With --compare: column to divide customers by; clv if none.")
    ] = None,
    html: Annotated[
        Path | None, typer.Option("--html", help="With --compare: write one page to this file.")
    ] = None,
    json_: Json = False,
) -> None:
    """Decide for one customer or for all; --record keeps it."""
    from nextbest import show
    from nextbest.project import Project
    from nextbest.serve import batch, decisions, recording, runtime
    from nextbest.serve.audit import local_actor

    if explain and customer is None:
        raise UsageError("--explain", "it explains one decision", expected="--customer ID with it")
    if record and (customer is not None or policy is not None):
        raise UsageError(
            "--record",
            "it is for a whole batch by the project's own policy",
            action="Leave out --customer and --policy, or --record",
        )
    if out is not None and customer is not None:
        raise UsageError(
            "--out", "the file is for all customers", action="Leave out --customer, or --out."
        )
    _check_compare(
        compare, policy, {"--customer": customer, "--out": out, "--explain": explain or None,
                          "--record": record or None}, {"--by": by, "--html": html},
    )  # fmt: skip
    opened = Project.open(project)
    if compare and policy is not None:
        _compare_policies(opened.root, policy, channel, limit, by, html, json_=json_)
        return
    # What leaves the house by the project's own policy goes live, as in the API.
    goes_live = policy is None and (out is not None or record)
    state = (runtime.load_approved(opened.root) if goes_live
             else runtime.load_state(opened.root, policy_file=policy))  # fmt: skip
    situation = batch.situation_for(state, channel, limit=limit)
    store = runtime.open_store(opened.root)
    try:
        if customer is not None:
            made = decisions.decide_for(
                state, store, [customer], situation, [f"explain-{customer}"],
                prices=state.prices_for(situation),
            )  # fmt: skip
            names, fault = state.bundle.score_names, state.ignored_prices(made)
            answer, trace = recording.answer_of(made, 0, names, fault), None
            if explain:
                news = made.audience.live.get(customer)
                moved = recording.contributions_of(state.shaper, answer, news)
                trace = recording.explained(made, 0, moved)
            if json_:
                show_json({**answer, "trace": trace} if explain else answer)
            else:
                show.out(*show.decision(answer, trace))
            return
        if policy is None:
            runtime.note_configuration(store, state, local_actor())
        with show.steps(quiet=json_) as step:
            step("decide for every customer")
            summary = batch.decide_batch(
                state, situation, out, store=store, record=record,
                prices_dir=runtime.serving_dir(opened.root) if policy is None else None,
            )  # fmt: skip
    finally:
        store.close()
    if json_:
        show_json(summary.to_dict())
        return
    show.out(*show.batch(summary.to_dict()))
    if out is None and not record:
        print("Nothing was written; name a file with --out.")


def _check_compare(
    compare: bool, policy: Path | None, against: dict[str, Any], only: dict[str, Any]
) -> None:
    """Refuse what --compare cannot do, and what only it can."""
    if compare and policy is None:
        raise UsageError("--compare", "with which policy?", expected="--policy FILE with it")
    for options, wrong in ((against, compare), (only, not compare)):
        for name, value in options.items():
            if wrong and value is not None:
                expected = "left out" if compare else "--compare with it"
                where = "with --compare" if compare else "without --compare"
                raise UsageError(name, f"it says nothing {where}", expected=expected)


def _compare_policies(
    root: Path, policy: Path, channel: str | None, limit: int, by: str | None, html: Path | None,
    *, json_: bool,
) -> None:  # fmt: skip
    """Show what another policy would shift; nothing is recorded."""
    from nextbest import show
    from nextbest.serve import batch, runtime
    from nextbest.serve.whatif import what_if

    own, other = runtime.load_state(root), runtime.load_state(root, policy_file=policy)
    situation = batch.situation_for(own, channel, limit=limit)
    store = runtime.open_store(root)
    try:
        with show.steps(quiet=json_) as step:
            step("decide for every customer under both policies")
            facts = what_if(own, other, situation, store, by)
    finally:
        store.close()
    if html is not None:
        from nextbest.measure.whatif_page import write

        write(facts, html)
    if json_:
        show_json(facts)
        return
    show.out(*show.shifted(facts))
    if html is not None:
        print(f"Written to {html}: the same with charts, in one file.")


def replay(
    decision_id: Annotated[str, typer.Argument(help="Id of a recorded decision.")],
    project: ProjectDir = HERE,
    json_: Json = False,
) -> None:
    """Make a recorded decision again, and say what differs."""
    from nextbest import show
    from nextbest.project import Project
    from nextbest.serve import runtime
    from nextbest.serve.replay import replay as made_again

    opened = Project.open(project)
    store = runtime.open_store(opened.root)
    try:
        found = made_again(opened.root, store, decision_id).to_dict()
    finally:
        store.close()
    if json_:
        show_json(found)
    else:
        show.out(*show.replayed(found))
    if found["verdict"] != "identical":
        raise typer.Exit(1)
