"""Propensity of customers for 50 offers, side by side with LightGBM on the same joined rows.

    python benchmarks/scorer.py [--trees 400] [--leaves 31] [--customers 10000]

Both sides give the same bits, which is checked. LightGBM gets its rows joined beforehand, for
free; ours gets customers, a folded catalogue and pairs. One customer is the median of `--repeat`
customers one after the other, first ours, then LightGBM's. Times are the processor's, so that a
busy machine counts for little.
"""

from __future__ import annotations

import argparse
import statistics
import time
from collections.abc import Callable
from typing import Any

import lightgbm
import numpy as np

from nextbest.learn import bitmask
from nextbest.learn.forest import read_forest

OFFERS = 50
CUSTOMER_COLUMNS, OFFER_COLUMNS, PAIR_COLUMNS = 60, 10, 8
#: LightGBM takes customers x offers in parts of this many customers, so that they fit into memory.
PART = 500


def main() -> None:
    options = argparse.ArgumentParser(description="Compiled trees against LightGBM.")
    options.add_argument("--trees", type=int, default=400)
    options.add_argument("--leaves", type=int, default=31)
    options.add_argument("--customers", type=int, default=10_000)
    options.add_argument("--repeat", type=int, default=200)
    options.add_argument("--seed", type=int, default=1)
    given = options.parse_args()
    print(f"{given.trees} trees of up to {given.leaves} leaves, {OFFERS} offers, one thread each")
    print(f"{'':44}{'ours':>11}{'LightGBM':>12}{'ratio':>8}")
    for n_pair in (0, PAIR_COLUMNS):
        compare(n_pair, given)


def compare(n_pair: int, given: argparse.Namespace) -> None:
    rng = np.random.default_rng(given.seed)
    booster, columns = trained(n_pair, given.trees, given.leaves, rng)
    forest = read_forest(booster.model_to_string())
    scorer = bitmask.TreeScorer(forest, *columns)
    offers = sample(rng, (OFFERS, OFFER_COLUMNS))
    started = time.perf_counter()
    folded = scorer.fold(offers)
    fold_ms = (time.perf_counter() - started) * 1e3
    customers = sample(rng, (given.customers, CUSTOMER_COLUMNS))
    what = "with pair columns" if n_pair else "without pair columns"

    asked = []
    for i in range(given.repeat):
        row = customers[i % len(customers)][None]
        pairs = sample(rng, (1, OFFERS, n_pair))
        asked.append((row, pairs, join(row, offers, pairs)))
    mine_each = [timed(lambda c=c, p=p: scorer.predict(c, folded, p)) for c, p, _rows in asked]
    theirs_each = [
        timed(lambda rows=rows: booster.predict(rows, num_threads=1)) for *_, rows in asked
    ]
    for (_, found), (_, expected) in zip(mine_each, theirs_each, strict=True):
        same(found, expected)
    ours, theirs = ([took for took, _ in each] for each in (mine_each, theirs_each))
    line(f"1 customer, {what}", statistics.median(ours), statistics.median(theirs), 1e6, "us")

    mine = others = 0.0
    for start in range(0, given.customers, PART):
        part = customers[start : start + PART]
        pairs = sample(rng, (len(part), OFFERS, n_pair))
        rows = join(part, offers, pairs)
        took, found = timed(lambda part=part, pairs=pairs: scorer.predict(part, folded, pairs))
        mine += took
        took, expected = timed(lambda rows=rows: booster.predict(rows, num_threads=1))
        others += took
        same(found, expected)
    line(f"{given.customers:,} customers, {what}", mine, others, 1.0, "s ")
    print(f"  folding the catalogue, once: {fold_ms:.1f} ms")


def trained(
    n_pair: int, trees: int, leaves: int, rng: np.random.Generator
) -> tuple[Any, tuple[Any, Any, Any]]:
    """A booster on customer, offer and pair columns, and where each of them stands."""
    widths = (CUSTOMER_COLUMNS, OFFER_COLUMNS, n_pair)
    k = sum(widths)
    x = sample(rng, (20_000, k))
    known = np.nan_to_num(x)
    score = known @ rng.normal(size=k) / 4 + known[:, 0] * known[:, CUSTOMER_COLUMNS]
    y = score + rng.normal(size=len(x)) > 1
    settings = {"objective": "binary", "num_leaves": leaves, "verbosity": -1, "num_threads": 1}
    booster = lightgbm.train(settings, lightgbm.Dataset(x, y), trees)
    source = np.repeat([0, 1, 2], widths)
    places = [np.where(source == s, np.cumsum(source == s) - 1, -1) for s in range(3)]
    customer, offer, pair = (place.astype(np.int32) for place in places)
    return booster, (customer, offer, pair)


def sample(rng: np.random.Generator, shape: tuple[int, ...]) -> Any:
    values = rng.normal(size=shape)
    values[rng.random(shape) < 0.05] = np.nan
    return values


def join(customers: Any, offers: Any, pairs: Any) -> Any:
    n, m, _ = pairs.shape
    parts = (
        np.broadcast_to(customers[:, None, :], (n, m, customers.shape[1])),
        np.broadcast_to(offers[None], (n, m, offers.shape[1])),
        pairs,
    )
    return np.concatenate(parts, axis=2).reshape(n * m, -1)


def same(ours: Any, theirs: Any) -> None:
    if ours.tobytes() != theirs.tobytes():
        raise SystemExit("the scores differ")


def timed(work: Callable[[], Any]) -> tuple[float, Any]:
    started = time.process_time_ns()
    result = work()
    return (time.process_time_ns() - started) / 1e9, result


def line(what: str, ours: float, theirs: float, scale: float, unit: str) -> None:
    print(
        f"{what:44}{ours * scale:9.2f}{unit}{theirs * scale:10.2f}{unit}{theirs / ours:7.1f}x",
        flush=True,
    )


if __name__ == "__main__":
    main()
