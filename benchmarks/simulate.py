"""The engine in simulated shops, where the true profit of every choice is known.

    python benchmarks/simulate.py [--customers 1500] [--days 364] [--seeds 3] [--world NAME]

For each world and seed a project is written, its models are trained, promoted whatever their gates
say, and refreshed, and everybody is decided for as `nextbest decide` does. Profit is the true
expected one, per 1,000 customers, beyond contacting nobody; "best possible" knows everything. The
best fixed offer is chosen with hindsight. Intervals are of the engine's gain over each rival,
paired by customer, over the customers of all seeds.
"""

from __future__ import annotations

import argparse
import tempfile
from collections import defaultdict
from pathlib import Path

import numpy as np

from nextbest import jobs
from nextbest.project import Project
from nextbest.serve import batch, decisions, runtime
from nextbest.simulate import WORLDS, Shop, engine, rivals, world_of, write_project

OURS, BLIND, BEST = "engine", "engine, baseline_rate unknown", "best possible"


def main() -> None:
    options = argparse.ArgumentParser(description="The engine where the truth is known.")
    options.add_argument("--customers", type=int, default=1_500)
    options.add_argument("--days", type=int, default=364)
    options.add_argument("--seeds", type=int, default=3)
    options.add_argument("--world", choices=sorted(WORLDS), action="append")
    given = options.parse_args()
    for name in given.world or WORLDS:
        each = defaultdict(list)
        for seed in range(1, given.seeds + 1):
            shop = Shop(world_of(name), given.customers, given.days, seed)
            for policy, profit in played(shop).items():
                each[policy].append(profit)
        show(name, {policy: np.concatenate(parts) for policy, parts in each.items()})


def played(shop: Shop) -> dict[str, np.ndarray]:
    """True expected profit of every policy, customer by customer."""
    truth, may = shop.truth(), shop.consent
    with tempfile.TemporaryDirectory(prefix="nextbest-") as scratch:
        made = trained(shop, Path(scratch) / "shop")
    believed = made.audience.propensity
    policies = {
        OURS: made.probabilities,
        BLIND: engine(shop, believed, None).probabilities,
        **rivals(truth, believed, may),
        "engine, true probabilities": engine(shop, truth.contacted, truth.left_alone).probabilities,
        BEST: truth.oracle(may[:, None]),
    }
    return {name: truth.each(chances) for name, chances in policies.items()}


def trained(shop: Shop, root: Path) -> decisions.Decisions:
    """Run the shop's project from history to decisions."""
    write_project(shop, root)
    project = Project.open(root)
    history, registry = project.history(), project.registry()
    jobs.train(project, (), history, registry)
    for name in project.models:
        jobs.promote(project, name, registry, force=True, reason="benchmark")
    jobs.refresh(project, history, registry)
    state = runtime.load_state(root)
    ids = list(shop.customer_ids)
    return decisions.decide_for(state, None, ids, batch.situation_for(state), ids)


def show(world: str, each: dict[str, np.ndarray]) -> None:
    best, ours = each[BEST].mean(), each[OURS]
    print(f"\n{world}: {WORLDS[world].meaning} ({len(ours):,} customers)")
    print(f"{'policy':32}{'profit / 1,000':>15}{'of best':>9}   engine's gain [95% interval]")
    for name, profit in each.items():
        share = f"{profit.mean() / best:.1%}" if best > 0 else "–"
        gain = 1_000 * (ours - profit)
        reach = 1.96 * gain.std(ddof=1) / np.sqrt(len(gain))
        said = f"{gain.mean():8.1f} [{gain.mean() - reach:.1f}, {gain.mean() + reach:.1f}]"
        print(f"{name:32}{1_000 * profit.mean():15.1f}{share:>9}   {said if name != OURS else ''}")


if __name__ == "__main__":
    main()
