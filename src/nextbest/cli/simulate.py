"""``nextbest simulate``: a shop of which the truth is known, to practise and to test on."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from nextbest.cli.options import Json, show_json

if TYPE_CHECKING:
    from nextbest.simulate import Shop

__all__ = ["simulate"]


def simulate(
    world: Annotated[
        str, typer.Option(help="no_effect, heterogeneous, drift or subsidy_leak.")
    ] = "heterogeneous",
    customers: Annotated[int, typer.Option(min=1, help="How many.")] = 2_000,
    days: Annotated[int, typer.Option(help="Length of the history, a multiple of 28.")] = 364,
    seed: Annotated[int, typer.Option(min=0, help="The same seed gives the same shop.")] = 1,
    out: Annotated[
        Path | None, typer.Option(help="New folder for a project on the shop's history.")
    ] = None,
    json_: Json = False,
) -> None:
    """Simulate a shop in which what policies earn is known."""
    from nextbest import show
    from nextbest.simulate import Shop, world_of, write_project

    with show.steps(quiet=json_) as step:
        step("draw customers and their history")
        shop = Shop(world_of(world), customers, days, seed)
        facts = _facts(shop)
        if out is not None:
            step("write the project")
            write_project(shop, out)
    if json_:
        show_json({**facts, "out": None if out is None else str(out)})
        return
    show.out(*show.simulated(facts))
    if out is None:
        print("Nothing was written; name a folder with --out.")
    else:
        print(f"Written to {out}. Next: nextbest train --project {out}")


def _facts(shop: Shop) -> dict[str, Any]:
    """What was drawn, and what policies are worth that know the truth, or a part of it."""
    from nextbest.simulate import engine, rivals

    truth, may = shop.truth(), shop.consent
    policies = {
        "nobody": truth.choose(-1),
        **rivals(truth, truth.contacted, may),
        "engine, true propensities only": engine(shop, truth.contacted, None).probabilities,
        "engine, and true baseline rates": engine(
            shop, truth.contacted, truth.left_alone
        ).probabilities,
        "best possible": truth.oracle(may[:, None]),
    }
    return {
        "world": shop.world.name,
        "meaning": shop.world.meaning,
        "customers": shop.customers,
        "days": shop.days,
        "seed": shop.seed,
        "rows": {name: len(frame) for name, frame in shop.tables().items()},
        "offers": [
            {
                "offer_id": name,
                "response_rate_contacted": float(truth.contacted[:, j].mean()),
                "response_rate_left_alone": float(truth.left_alone[:, j].mean()),
                "profit_per_contact": float(truth.profit[:, j].mean()),
            }
            for j, name in enumerate(truth.offer_ids)
        ],
        "policies": [
            {
                "policy": name,
                "contacted_share": float(1 - chances[:, -1].mean()),
                "profit": truth.value(chances),
            }
            for name, chances in policies.items()
        ],
    }
