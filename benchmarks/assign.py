"""Budgets and capacities over all customers against "first come, first served".

    python benchmarks/assign.py [--customers 1000000] [--offers 50]

Customers and limits are simulated. The baseline goes through the customers in order and gives each
the best offer of which something is left; where one does not fit into a limit, the limit's offers
are closed for all who follow. Both keep every limit.
"""

from __future__ import annotations

import argparse
import resource
import time

import numpy as np

from nextbest.decide.assign import Constraint, Problem, assign, offer_limits


def main() -> None:
    options = argparse.ArgumentParser(description="Assignment against first come, first served.")
    options.add_argument("--customers", type=int, default=1_000_000)
    options.add_argument("--offers", type=int, default=50)
    options.add_argument("--seed", type=int, default=1)
    given = options.parse_args()
    problem = simulate(given.customers, given.offers, given.seed)
    print(
        f"{given.customers:,} customers x {given.offers} offers, "
        f"{len(problem.constraints)} limits, values in float32"
    )
    start = time.perf_counter()
    found = assign(problem)
    seconds = time.perf_counter() - start
    memory = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1e6
    print(
        f"{found.method:24}{seconds:8.1f}s  value {found.value:14,.0f}  "
        f"gap {found.gap:.5%}  peak {memory:.2f} GB"
    )
    start = time.perf_counter()
    value = first_come(problem)
    seconds = time.perf_counter() - start
    share = found.value / value - 1
    print(
        f"{'first come, first served':24}{seconds:8.1f}s  value {value:14,.0f}  ours {share:+.1%}"
    )
    for price in [one for one in found.prices.each if one.binds][:5]:
        print(f"  {price}")


def simulate(n: int, m: int, seed: int) -> Problem:
    """Responses, margins and incentives of a shop whose demand is about twice what it has."""
    rng = np.random.default_rng(seed)
    chance = rng.beta(1, 8, (n, m)).astype(np.float32)
    chance *= rng.lognormal(0, 0.5, (n, 1)).astype(np.float32)
    margin = rng.lognormal(3, 0.6, m).astype(np.float32)
    incentive = margin * rng.uniform(0.1, 0.5, m).astype(np.float32)
    cost = chance * incentive + np.float32(0.3)
    value = chance * (margin - incentive) - np.float32(0.3)
    value[rng.random((n, m), dtype=np.float32) < 0.4] = np.nan
    ids = tuple(f"offer-{j:02d}" for j in range(m))
    fair = n / m * rng.uniform(0.5, 1.5, m) / 2
    capacity = {offer_id: int(fair[j]) for j, offer_id in enumerate(ids)}
    budget = {offer_id: float(0.8 * fair[j]) for j, offer_id in enumerate(ids) if j % 3 == 0}
    shared = (
        Constraint("total budget", "currency", ids, 0.2 * n),
        Constraint("letters", "contacts", ids[: m // 2], int(0.15 * n)),
    )
    return Problem(ids, value, (*offer_limits(capacity, budget), *shared), cost)


def first_come(problem: Problem, block: int = 50_000) -> float:
    """Give each customer in turn the best offer of which something is left."""
    assert problem.cost is not None
    inside = np.array([np.isin(problem.offer_ids, c.offer_ids) for c in problem.constraints])
    money = np.array([c.unit == "currency" for c in problem.constraints])[:, None]
    left = np.array([c.limit for c in problem.constraints], dtype=np.float64)
    open_ = np.ones(len(problem.offer_ids), dtype=bool)
    total, row = 0.0, 0
    while row < len(problem) and open_.any():
        part = slice(row, row + block)
        worth = np.where(open_ & (problem.value[part] > 0), problem.value[part], 0)
        best = worth.argmax(axis=1)
        rows = np.arange(len(best))
        gain, cost = worth[rows, best], problem.cost[part][rows, best]
        use = inside[:, best] * np.where(money, cost, 1.0) * (gain > 0)
        used = np.cumsum(use, axis=1)
        over = used > left[:, None]
        # Up to the first who does not fit all stands; then that limit's offers are closed.
        fits = int(over.any(axis=0).argmax()) if over.any() else len(best)
        total += float(gain[:fits].sum(dtype=np.float64))
        if fits:
            left -= used[:, fits - 1]
        if fits < len(best):
            open_ &= ~inside[over[:, fits]].any(axis=0)
        row += fits
    return total


if __name__ == "__main__":
    main()
