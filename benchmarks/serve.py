"""The server and the batch, side by side with a bare FastAPI hello and `mlflow models serve`.

    python benchmarks/serve.py [--only throughput mlflow latency offers memory workers batch]
                               [--seconds 5] [--customers 20000] [--batch 1000000]

Ours is the full decision: one customer, 50 offers, rules, caps, holdout, exploration, reasons, and
an answer that is given when its record is on disk. Every question has a context of its own. Each
ratio is between servers that ran one after the other in this run, the yardstick before and after;
load comes from one process on the same machine, so that it shares the cores with the server.
Absolute figures say little on a busy machine, and nothing about yours.
"""

from __future__ import annotations

import argparse
import json
import os
import resource
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import numpy as np
from speed import processes, shop

OFFERS = 50
MANY_OFFERS = 1_000
#: Customers whose scores are computed by LightGBM, to foretell how long all would take.
SAMPLE = 4_000


class Bench:
    """The parts, and the shops that they share."""

    def __init__(self, given: argparse.Namespace, folder: Path) -> None:
        self.given = given
        self.folder = folder
        self.project = shop.make(folder / "shop", given.customers, OFFERS)
        self.questions = processes.questions(given.customers)

    def side_by_side(self, connections: int) -> tuple[dict[str, Any], float]:
        """Load ours between two loads of the yardstick; return ours and its share of hello."""
        seconds = self.given.seconds
        with processes.hello(self.folder) as hello, processes.ours(self.project) as (url, _):
            before = processes.load(hello, connections, seconds)
            found = processes.load(url, connections, seconds, self.questions)
            after = processes.load(hello, connections, seconds)
        yardstick = (before["per_second"] + after["per_second"]) / 2
        return found, found["per_second"] / yardstick

    def throughput(self) -> None:
        """Full durable decisions as a share of a bare FastAPI hello."""
        for connections, target in ((16, 0.50), (64, 0.90)):
            found, share = self.side_by_side(connections)
            say(
                f"{connections} connections, one worker: {found['per_second']:,.0f} decisions/s,"
                f" {share:.2f} of a bare FastAPI hello (target {target:.2f}, "
                f"{'reached' if share >= target else 'missed'});"
                f" p50 {found['p50_ms']:.1f} ms, p99 {found['p99_ms']:.1f} ms"
            )

    def mlflow(self) -> None:
        """Full decisions against a model server that is given the matrix."""
        import mlflow

        model, matrix = self._matrix()
        path = self.folder / "mlflow-model"
        mlflow.lightgbm.save_model(model, str(path))
        body = json.dumps({"inputs": matrix.tolist()})
        with processes.mlflow(path) as peer:
            theirs = processes.load(peer, 16, self.given.seconds, [body])
        with processes.ours(self.project) as (url, _):
            found = processes.load(url, 16, self.given.seconds, self.questions)
        ratio = found["per_second"] / theirs["per_second"]
        say(
            f"16 connections: {ratio:.1f} times `mlflow models serve`"
            f" ({theirs['per_second']:,.0f}/s) for one customer x {OFFERS} offers (target 10, "
            f"{'reached' if ratio >= 10 else 'missed'}). The peer receives the {OFFERS} rows ready"
            " made and returns scores: it looks up no customer, decides nothing and logs nothing"
        )
        self._scoring_alone(mlflow.pyfunc.load_model(str(path)), model, matrix)

    def _scoring_alone(self, pyfunc: Any, model: Any, matrix: Any) -> None:
        """Like for like: the same scores, in one process, without a server."""
        from nextbest.serve.runtime import load_state

        shaper = load_state(self.project).shaper
        profiles, scorer = shaper.bundle.profiles, shaper.bundle.offer_scorer
        folded = scorer.fold(profiles.offer_matrix)
        row, pairs = profiles.matrix[:1], profiles.pairs[:1]
        own = median(lambda: scorer.propensity(row, folded, pairs))
        booster = median(lambda: model.predict(matrix, num_threads=1))
        served = median(lambda: pyfunc.predict(matrix))
        say(
            f"scoring alone, like for like: {own * 1e6:,.0f} us; Booster.predict"
            f" {booster * 1e6:,.0f} us ({booster / own:.1f} times), MLflow's pyfunc"
            f" {served * 1e6:,.0f} us ({served / own:.1f} times)"
        )

    def _matrix(self) -> tuple[Any, Any]:
        """The trained booster, and one customer's rows for it as its encoder makes them."""
        import lightgbm

        text = next((self.project / "propensity").glob("*.txt")).read_text()
        booster = lightgbm.Booster(model_str=text)
        rng = np.random.default_rng(5)
        return booster, rng.normal(size=(OFFERS, booster.num_feature()))

    def latency(self) -> None:
        """Latency at half of what the server can take, requests due at random moments."""
        seconds = self.given.seconds
        with processes.hello(self.folder) as hello, processes.ours(self.project) as (url, _):
            most = processes.load(url, 64, seconds, self.questions)["per_second"]
            found = processes.load(url, 128, 2 * seconds, self.questions, rate=most / 2)
            floor = processes.load(hello, 128, seconds, rate=most / 2)
        say(
            f"open loop at {most / 2:,.0f}/s, half of saturation: p50 {found['p50_ms']:.1f} ms, p99"
            f" {found['p99_ms']:.1f} ms (target 20, "
            f"{'reached' if found['p99_ms'] < 20 else 'missed'}); a bare FastAPI hello, just as"
            f" often: p50 {floor['p50_ms']:.1f} ms, p99 {floor['p99_ms']:.1f} ms, of which the load"
            f" generator itself was up to {floor['late_p99_ms']:.1f} ms late"
        )

    def offers(self) -> None:
        """A thousand offers, one request at a time."""
        customers = 1_000
        project = shop.make(self.folder / "large", customers, MANY_OFFERS)
        with processes.ours(project) as (url, _):
            found = processes.load(
                url, 1, self.given.seconds, processes.questions(customers, 5_000)
            )
        say(
            f"{MANY_OFFERS:,} offers, unloaded: p50 {found['p50_ms']:.1f} ms, p99"
            f" {found['p99_ms']:.1f} ms (target 10, "
            f"{'reached' if found['p99_ms'] < 10 else 'missed'})"
        )

    def memory(self) -> None:
        """Resident memory of a worker under load, beyond the profiles that workers share."""
        with processes.ours(self.project) as (url, pid):
            processes.load(url, 64, self.given.seconds, self.questions)
            own, profiles = resident(pid)
        say(
            f"one worker: {own:,.0f} MB resident beyond {profiles:,.0f} MB of shared profiles"
            f" (target 300, {'reached' if own < 300 else 'missed'})"
        )

    def workers(self) -> None:
        """Two workers against one; the load generator wants a core, too."""
        found = []
        for workers in (1, 2):
            with processes.ours(self.project, workers) as (url, _):
                found.append(
                    processes.load(url, 64, self.given.seconds, self.questions)["per_second"]
                )
        ratio = found[1] / found[0]
        say(
            f"two workers: {ratio:.2f} times one (target 1.60, "
            f"{'reached' if ratio >= 1.6 else 'missed'}; server and load share the cores)"
        )

    def batch(self) -> None:
        """A million customers x 50 offers from Parquet to Parquet, in a process of its own."""
        command = [sys.executable, __file__, "--batch-here", str(self.folder / "batch")]
        command += ["--batch", str(self.given.batch)]
        subprocess.run(command, check=True)


def batch_here(folder: Path, customers: int) -> None:
    """Read customers from Parquet, decide for all, and write the decisions to Parquet."""
    import pyarrow.parquet as pq

    from nextbest.serve.batch import decide_batch, situation_for
    from nextbest.serve.bundle import ModelSource, write_bundle
    from nextbest.serve.runtime import load_state, serving_dir

    project = shop.make(folder, 1_000, OFFERS, pairs=False)
    shop.write_customers(folder / "customers.parquet", customers)
    before = peak_mb()
    started = time.perf_counter()
    profiles = shop.read_customers(folder / "customers.parquet", OFFERS)
    model = ModelSource(project / "propensity", 1, "run", ("champion",))
    write_bundle(serving_dir(project), {"propensity": model}, profiles)
    read = time.perf_counter() - started
    del profiles
    state = load_state(project)
    started = time.perf_counter()
    out = project / "decisions.parquet"
    done = decide_batch(state, situation_for(state), out)
    took = time.perf_counter() - started
    rows = pq.read_metadata(out).num_rows
    total = read + took
    per_million = total * 1e6 / customers
    say(
        f"batch: {customers:,} customers x {OFFERS} offers in {total:.0f} s (target 60 for a"
        f" million, {'reached' if per_million < 60 else 'missed'}): {read:.0f} s from Parquet to"
        f" verified profiles, {took:.0f} s to {rows:,} decided rows in Parquet"
        f" ({done.with_offer:,} with an offer)"
    )
    peak = peak_mb()
    say(
        f"batch: peak {peak:,.0f} MB resident, mapped profiles included (before: {before:,.0f} MB;"
        f" target 2,000, {'reached' if peak < 2_000 else 'missed'})"
    )
    scores = all_scores(project, state, customers)
    say(
        f"batch: the scores alone through Booster.predict with all cores would take {scores:,.0f} s"
        f" (from {SAMPLE:,} customers): {scores / took:.1f} times as long as deciding and writing,"
        f" {scores / total:.1f} times as long as everything (target 20, "
        f"{'reached' if scores / total >= 20 else 'missed'})"
    )


def all_scores(project: Path, state: Any, customers: int) -> float:
    """Seconds that LightGBM would need to score everybody, from a sample."""
    import lightgbm

    text = next((project / "propensity").glob("*.txt")).read_text()
    booster = lightgbm.Booster(model_str=text)
    rng = np.random.default_rng(5)
    rows = rng.normal(size=(SAMPLE * OFFERS, booster.num_feature()))
    started = time.perf_counter()
    booster.predict(rows, num_threads=os.cpu_count())
    return (time.perf_counter() - started) * customers / SAMPLE


def peak_mb() -> float:
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024


def resident(pid: int) -> tuple[float, float]:
    """Resident megabytes of a process: its own, and those of mapped profiles."""
    own = profiles = 0.0
    mapped = False
    for line in Path(f"/proc/{pid}/smaps").read_text().splitlines():
        if "-" in line.split(" ", 1)[0]:
            mapped = line.endswith(".npy")
        elif line.startswith("Rss:"):
            size = int(line.split()[1]) / 1024
            own, profiles = (own, profiles + size) if mapped else (own + size, profiles)
    return own, profiles


def median(work: Any, times: int = 200) -> float:
    took = []
    for _ in range(times):
        started = time.perf_counter()
        work()
        took.append(time.perf_counter() - started)
    return float(np.median(took))


def say(line: str) -> None:
    print(line, flush=True)


PARTS = ("throughput", "mlflow", "latency", "offers", "memory", "workers", "batch")


def main() -> None:
    options = argparse.ArgumentParser(description=__doc__)
    options.add_argument("--only", nargs="+", choices=PARTS, default=PARTS)
    options.add_argument("--seconds", type=float, default=5.0, help="of each load")
    options.add_argument("--customers", type=int, default=20_000, help="with a profile")
    options.add_argument("--batch", type=int, default=1_000_000, help="customers of the batch")
    options.add_argument("--batch-here", type=Path, help=argparse.SUPPRESS)
    given = options.parse_args()
    if given.batch_here is not None:
        batch_here(given.batch_here, given.batch)
        return
    with tempfile.TemporaryDirectory() as folder:
        bench = Bench(given, Path(folder))
        for part in given.only:
            getattr(bench, part)()


if __name__ == "__main__":
    main()
