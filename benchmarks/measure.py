"""An experiment read out over ten million logged decisions, with memory bounded.

    python benchmarks/measure.py [--decisions 10000000] [--memory 1GB]

Decisions and outcomes are made up, in the files that `nextbest.serve.logged.write_log` writes: one
customer in ten is held out, and an offer makes one more customer in a hundred buy, for 30 on
average. The read-out is the one of ``nextbest experiment read``; it must find that.
"""

from __future__ import annotations

import argparse
import resource
import tempfile
import time
from datetime import datetime, timedelta
from pathlib import Path

import duckdb

from nextbest.measure.collect import collect, outcome_of
from nextbest.measure.entrants import BEFORE, Entry, enter
from nextbest.measure.experiment import Design, read
from nextbest.measure.log import DecisionLog

START, DAYS, PER_CUSTOMER, OFFERS = datetime(2025, 1, 1), 90, 5, 25
OUTCOMES, BY = ("response", "conversion", "revenue", "margin"), ("offer", "channel")
DECISIONS = """
COPY (
    SELECT 'd' || i AS decision_id, 'c' || c AS customer_id,
        moment AS decided_at,
        CASE WHEN h2 % 3 = 0 THEN 'mail' ELSE 'app' END AS channel, NULL::VARCHAR AS placement,
        CASE WHEN held THEN 'holdout' ELSE 'policy' END AS arm, true AS known, 1 AS slots,
        CASE WHEN held THEN 0 ELSE 1 END AS rank,
        CASE WHEN held THEN NULL ELSE 'offer-' || (h2 % {offers}) END AS offer_id,
        'offer-' || (h2 % {offers}) AS would_offer_id,
        CASE WHEN held THEN 1.0 ELSE 0.8 END AS selection_probability,
        CASE WHEN held THEN NULL ELSE 2.0 END AS incentive_cost,
        CASE WHEN held THEN NULL ELSE 0.05 END AS contact_cost,
        moment + INTERVAL 14 DAYS AS window_ends_at,
        (50 + hash(c, 'clv') % 1000 / 10.0)::VARCHAR AS profile_clv
    FROM (SELECT i, i % {customers} AS c, hash(i, 'draw') AS h2,
        TIMESTAMP '2025-01-01' + to_seconds(hash(i, 'time') % 7_776_000) AS moment,
        hash(i % {customers}, 'arm') % 10 = 0 AS held FROM range({n}) t(i))
) TO '{folder}/decisions.parquet'
"""
#: One customer in fifty buys anyway, and one in a hundred more where an offer was made.
SOLD = """
COPY (
    SELECT 'o' || row_number() OVER () AS outcome_id, decision_id, customer_id, offer_id,
        CASE WHEN offer_id IS NULL OR hash(decision_id, 'kind') % 2 = 0 THEN 'purchase'
            ELSE 'conversion' END AS outcome_type,
        decided_at + INTERVAL 2 DAYS AS occurred_at,
        20.0 + hash(decision_id, 'value') % 2000 / 100.0 AS value
    FROM '{folder}/decisions.parquet'
    WHERE hash(decision_id, 'sold') % 1000 < CASE WHEN offer_id IS NULL THEN 20 ELSE 30 END
) TO '{folder}/outcomes.parquet'
"""


def main() -> None:
    """Make the files, read the experiment, and print how long that took."""
    options = argparse.ArgumentParser(description="Read-out of an experiment.")
    options.add_argument("--decisions", type=int, default=10_000_000)
    options.add_argument("--memory", default="1GB", help="what DuckDB may hold; the rest is spilt")
    given = options.parse_args()
    with tempfile.TemporaryDirectory() as name:
        folder, customers = Path(name), max(given.decisions // PER_CUSTOMER, 1)
        made = {"folder": folder, "n": given.decisions, "customers": customers, "offers": OFFERS}
        with duckdb.connect() as connection:
            connection.execute(f"SET memory_limit = '{given.memory}'")
            connection.execute(f"SET temp_directory = '{folder}/made'")
            connection.execute("SET preserve_insertion_order = false")
            for statement in (DECISIONS, SOLD):
                connection.execute(statement.format(**made))
        size = sum(file.stat().st_size for file in folder.glob("*.parquet")) / 1e6
        before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1e6
        print(f"{given.decisions:,} decisions of {customers:,} customers, {size:,.0f} MB")
        shares = {"policy": 0.9, "holdout": 0.1}
        until = START + timedelta(days=DAYS + 30)
        entry = Entry(days=28, until=until, retained_days=14, margin_share=0.3)
        for asked, by, value in ((("conversion",), (), None), (OUTCOMES, BY, "clv")):
            begun = time.perf_counter()
            log = DecisionLog.open(folder, given.memory)
            found = enter(log, entry, asked, by, before=value)
            outcomes = [outcome_of(name, BEFORE if value else None) for name in asked]
            cells = collect(found.table, outcomes, by)
            reading = read(cells, outcomes, Design(shares=shares, planned=customers), by)
            seconds = time.perf_counter() - begun
            log.decisions.get_backend().disconnect()
            print(f"{seconds:6.1f} s  {', '.join(asked)} by {', '.join(by) or 'nothing'}: "
                  f"{len(cells)} cells")  # fmt: skip
        peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1e6
        print(f"peak memory {peak:.2f} GB, {before:.2f} GB of it before the read-out")
        print(f"Assignment {reading.balance.message}.")
        for comparison in reading.overall:
            print(f"- {comparison.verdict}")


if __name__ == "__main__":
    main()
