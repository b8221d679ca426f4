"""How long counting takes that a server does once a minute, with a million contacts.

Makes a store with 1,000,000 contacts of 25 offers and 30,000 outcomes, and counts with the store's
own statement and, for comparison, contact by contact.
"""

from __future__ import annotations

import sqlite3
import tempfile
import time
from datetime import datetime, timedelta
from pathlib import Path

import numpy as np

from nextbest.serve.audience import ANSWERS
from nextbest.serve.store import Store

CONTACTS, OUTCOMES, OFFERS, CUSTOMERS = 1_000_000, 30_000, 25, 200_000
START = datetime(2025, 1, 1)
STAMP = "%Y-%m-%d %H:%M:%S.%f"
CONTACT_BY_CONTACT = """
SELECT c.offer_id, count(*), sum(EXISTS (
    SELECT 1 FROM outcomes o WHERE o.customer_id = c.customer_id AND o.offer_id = c.offer_id
    AND (o.decision_id = c.decision_id
         OR (o.decision_id IS NULL AND o.occurred_at >= c.contacted_at))
    AND o.outcome_type IN ('response', 'conversion')
)) FROM contacts c GROUP BY c.offer_id ORDER BY c.offer_id
"""


def fill(path: Path) -> None:
    """Write contacts and outcomes straight into the tables: only the counting is timed."""
    random = np.random.default_rng(1)
    customer = random.integers(0, CUSTOMERS, CONTACTS)
    offer = random.integers(0, OFFERS, CONTACTS)
    minute = np.sort(random.integers(0, 90 * 1_440, CONTACTS))
    with sqlite3.connect(path) as connection:
        connection.executemany(
            "INSERT INTO contacts VALUES (?, 1, ?, ?, 'mail', ?, NULL, 0.2, ?, ?, ?)",
            (
                (
                    f"00000000-0000-7000-8000-{i:012d}",
                    f"c{customer[i]}",
                    f"offer-{offer[i]}",
                    (at := START + timedelta(minutes=int(minute[i]))).strftime(STAMP),
                    (at + timedelta(days=14)).strftime(STAMP),
                    3.0 if i % 10 == 0 else None,
                    -6.0 if i % 10 == 0 else None,
                )
                for i in range(CONTACTS)
            ),
        )
        connection.executemany(
            "INSERT INTO outcomes VALUES (?, ?, ?, ?, 'response', ?, NULL, ?, '')",
            (
                (
                    f"o{i}",
                    f"00000000-0000-7000-8000-{i:012d}" if i % 3 else None,
                    f"c{customer[i]}",
                    f"offer-{offer[i]}",
                    (at := START + timedelta(minutes=int(minute[i]), days=3)).strftime(STAMP),
                    at.strftime(STAMP),
                )
                for i in random.choice(CONTACTS, OUTCOMES, replace=False).tolist()
            ),
        )


def main() -> None:
    """Fill a store, and print how long each way of counting takes."""
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "store.db"
        store = Store.at(path)
        fill(path)
        seconds = []
        for _ in range(3):
            begun = time.perf_counter()
            found = store.tallies(ANSWERS, START + timedelta(days=100))
            seconds.append(time.perf_counter() - begun)
        store.close()
        with sqlite3.connect(path) as connection:
            begun = time.perf_counter()
            rows = connection.execute(CONTACT_BY_CONTACT).fetchall()
            slow = time.perf_counter() - begun
        assert {name: (n, k) for name, n, k in rows} == {
            name: (tally.contacts, tally.responses) for name, tally in found.items()
        }
        explored = sum(tally.explored for tally in found.values())
        print(f"{CONTACTS:,} contacts, {OUTCOMES:,} outcomes, {explored:,} tries settled")
        print(f"Store.tallies       {min(seconds):6.2f} s")
        print(f"contact by contact  {slow:6.2f} s (counts alone, without losses)")


if __name__ == "__main__":
    main()
