"""``nextbest bias``: what groups of people get from a policy, before it goes live."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from nextbest.cli.options import HERE, Json, ProjectDir, show_json
from nextbest.errors import ConfigError

if TYPE_CHECKING:
    from nextbest.decide.whatif import Segments
    from nextbest.serve.approvals import Approval
    from nextbest.serve.runtime import State
    from nextbest.serve.store import Store

__all__ = ["approval_of", "bias", "examine"]


def bias(
    project: ProjectDir = HERE,
    policy: Annotated[Path | None, typer.Option(help="Another policy.toml to examine.")] = None,
    channel: Annotated[
        str | None, typer.Option(help="Only this channel; then nothing is approved.")
    ] = None,
    json_: Json = False,
) -> None:
    """Whether groups of people get the same from a policy."""
    from nextbest import show
    from nextbest.project import Project
    from nextbest.serve import approvals, runtime
    from nextbest.serve.audit import local_actor

    opened = Project.open(project)
    state = runtime.load_state(opened.root, policy_file=policy)
    store = runtime.open_store(opened.root)
    try:
        with show.steps(quiet=json_) as step:
            step("decide for every customer")
            facts = examine(state, store, channel)
        approval = approval_of(state, facts)
        kept = channel is None
        if kept:
            approvals.note(store, approval, local_actor())
            approvals.keep(opened.root, approval)
    finally:
        store.close()
    if json_:
        show_json({**facts, "passed": approval.passed, "said": approval.said, "kept": kept})
    else:
        show.out(*show.biased(facts), approval.said)
        if not kept:
            print("One channel alone approves nothing.")
        elif "bias" in approvals.required_of(state.rules):
            may = "may" if approval.passed else "may not"
            print(f"This policy {may} go live with this catalogue.")
    if not approval.passed:
        raise typer.Exit(1)


def examine(state: State, store: Store | None, channel: str | None = None) -> dict[str, Any]:
    """Decide for every customer on every channel, and say what each group gets.

    Parameters
    ----------
    store : past contacts, for the contact policy.
    channel : only this one.

    Raises
    ------
    ConfigError: the policy declares no sensitive attribute that customers have.
    UsageError: there is no such channel.
    """
    from nextbest.measure.bias import Tally, judge
    from nextbest.measure.proxies import proxies
    from nextbest.serve.batch import decide_batch, situation_for

    rules = state.rules.tables.sensitive
    divisions = _divisions(state)
    channels = [channel] if channel is not None else list(state.rules.tables.channels)
    found = {}
    for name in channels:
        situation, tally = situation_for(state, name), Tally(state.offers.offer_ids, divisions)
        summary = decide_batch(state, situation, store=store, each=tally.add)
        found[name] = {
            "decided_at": summary.to_dict()["decided_at"],
            "customers": summary.customers,
            "attributes": judge(tally, rules),
        }
    read = {name for model in state.bundle.models.values() for name in model.columns}
    features = {n: state.shaper.column(n) for n in state.bundle.profiles.columns if n in read}
    return {
        "policy": state.rules.content_hash,
        "catalogue": state.offers.content_hash,
        "bundle": state.bundle.id,
        "against": rules.against,
        "smallest_group": rules.smallest_group,
        "channels": found,
        "proxies": {
            name: proxies(
                division.label(state.shaper.column(name)),
                {other: values for other, values in features.items() if other != name},
            )
            for name, division in divisions.items()
        },
    }


def approval_of(state: State, facts: dict[str, Any]) -> Approval:
    """Return the verdict on a policy: passed where every attribute on every channel is within."""
    from nextbest.serve.approvals import Approval

    said = []
    for channel, found in facts["channels"].items():
        for one in found["attributes"]:
            said += [_below(channel, one["attribute"], below) for below in one["below"]]
            if one["verdict"] == "cannot say":
                few = f"fewer than two groups of {facts['smallest_group']:,} customers"
                said.append(f"{one['attribute']} on {channel} cannot be judged: {few}.")
    return Approval(
        "bias",
        state.rules.content_hash,
        state.offers.content_hash,
        passed=not said,
        said=" ".join(said) or "No group's figures are below their limits.",
        numbers=facts,
    )


def _below(channel: str, attribute: str, below: dict[str, Any]) -> str:
    ratio = below["ratio"]
    return (
        f"{below['figure'].capitalize()} of {attribute} = {below['group']} on {channel} is"
        f" {ratio['value']:.0%} [{ratio['low']:.0%}, {ratio['high']:.0%}] of what it is held"
        f" against; the limit is {below['limit']:.0%}."
    )


def _divisions(state: State) -> dict[str, Segments]:
    """Return how the sensitive columns divide customers."""
    import numpy as np

    from nextbest.decide.whatif import Segments

    rules, divisions = state.rules.tables.sensitive, {}
    for name in rules.attributes:
        if name not in state.bundle.profiles.columns:
            continue  # a caller tells it with each question; no batch knows it
        ends = rules.bins.get(name)
        if ends is None:
            divisions[name] = Segments.of(name, state.shaper.column(name))
        else:
            divisions[name] = Segments(name, np.array(ends, dtype=np.float64))
    if not divisions:
        raise ConfigError(
            f"{state.rules.where}: [sensitive]",
            "there is nothing to examine",
            expected="attributes that are columns of customers",
            got=", ".join(rules.attributes) or "none",
            action="Declare them: [sensitive] attributes = [...].",
        )
    return divisions
