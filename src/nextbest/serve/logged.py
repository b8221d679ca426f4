"""The decision log as tables: the store's decisions and outcomes, written out as Parquet.

The store answers about one customer at a time; measuring asks about all. So the log is copied, part
by part, into two files that any database reads in seconds, with what each offer earned and cost
worked out from the record. The copy holds personal data: whoever asks for it deletes it.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from nextbest.decide.binding import BoundPolicy, bind
from nextbest.decide.inputs import alike, columns_of, economics_of_all
from nextbest.decide.offers import BoundCatalogue
from nextbest.errors import ConfigError, NotFoundError
from nextbest.serve.archive import archived_catalogue, archived_policy
from nextbest.serve.records import LoggedContact, LoggedDecision, naive_utc
from nextbest.serve.store import Store

__all__ = ["AMOUNTS", "DECISIONS_FILE", "OUTCOMES_FILE", "PROFILE", "Written", "write_log"]

DECISIONS_FILE = "decisions.parquet"
OUTCOMES_FILE = "outcomes.parquet"
#: What comes before the name of a column that was known of the customer when deciding.
PROFILE = "profile_"
#: What an offer made earns and costs, in the shop's currency (the rate is a probability).
AMOUNTS = ("margin", "incentive_cost", "contact_cost", "baseline_rate")
PART = 5_000

_STAMP = pa.timestamp("us")
_DECISIONS = {
    "decision_id": pa.string(), "customer_id": pa.string(), "decided_at": _STAMP,
    "channel": pa.string(), "placement": pa.string(), "arm": pa.string(), "known": pa.bool_(),
    "slots": pa.int64(), "rank": pa.int64(), "offer_id": pa.string(),
    "would_offer_id": pa.string(), "selection_probability": pa.float64(),
    "propensity": pa.float64(), "expected_profit": pa.float64(),
    **dict.fromkeys(AMOUNTS, pa.float64()),
    "window_ends_at": _STAMP, "shared_out": pa.bool_(), "policy": pa.string(),
    "catalogue": pa.string(), "bundle": pa.string(),
}  # fmt: skip
_OUTCOMES = {
    "outcome_id": pa.string(), "decision_id": pa.string(), "customer_id": pa.string(),
    "offer_id": pa.string(), "outcome_type": pa.string(), "occurred_at": _STAMP,
    "value": pa.float64(),
}  # fmt: skip


@dataclass
class Written:
    """What was written.

    Attributes
    ----------
    decisions, outcomes : how many.
    without_record : decisions of which no record is left to read (an erased customer's, say).
    without_amounts : decisions with an offer whose earnings and costs cannot be worked out.
    because : why not, of the first of them.
    """

    decisions: int = 0
    outcomes: int = 0
    without_record: int = 0
    without_amounts: int = 0
    because: str = ""


def write_log(
    project_dir: Path,
    store: Store,
    folder: Path,
    *,
    since: datetime | None = None,
    until: datetime | None = None,
    profile: Sequence[str] = (),
    amounts: bool = True,
    progress: Callable[[int], None] | None = None,
) -> Written:
    """Copy the log into two Parquet files, holding a few thousand decisions at a time.

    ``decisions.parquet`` has a row for each offer that a decision made, and one row with rank 0 for
    a decision that made none; ``outcomes.parquet`` has a row for each outcome.

    Parameters
    ----------
    project_dir : whose archive holds the catalogues that were decided with.
    folder : where to; it must be there.
    since, until : decisions from one moment to before another (naive UTC); all outcomes.
    profile : what was known of a customer when deciding, to have as columns ``profile_NAME``:
        columns that catalogue or policy read, and scores.
    amounts : whether to work out what each offer earned and cost.
    progress : called with the number of decisions written so far.
    """
    made = Written()
    fields = {**_DECISIONS, **{PROFILE + name: pa.string() for name in profile}}
    worth = _Worth(project_dir) if amounts else None
    with ExitStack() as files:
        write = _writer(files, folder / DECISIONS_FILE, fields)
        for part in store.decision_parts(PART, since, until):
            write(list(_rows(part, profile, worth, made)))
            made.decisions += len(part)
            if progress is not None:
                progress(made.decisions)
        write = _writer(files, folder / OUTCOMES_FILE, _OUTCOMES)
        for outcomes in store.outcome_parts(PART):
            write([{**vars(o), "occurred_at": naive_utc(o.occurred_at)} for o in outcomes])
            made.outcomes += len(outcomes)
    return made


Write = Callable[[list[dict[str, Any]]], None]


def _writer(files: ExitStack, path: Path, fields: Mapping[str, Any]) -> Write:
    schema = pa.schema(list(fields.items()))
    file = files.enter_context(pq.ParquetWriter(path, schema))

    def write(rows: list[dict[str, Any]]) -> None:
        file.write_table(pa.Table.from_pylist(rows, schema=schema))

    return write


def _rows(
    part: Sequence[LoggedDecision], profile: Sequence[str], worth: _Worth | None, made: Written
) -> Iterator[dict[str, Any]]:
    records = [one.record for one in part]
    earned = {} if worth is None else worth.of(part, records)
    for row, (one, record) in enumerate(zip(part, records, strict=True)):
        if not record.get("answer"):
            made.without_record += 1
        head = _head(one, record, profile)
        for contact in one.contacts:
            found = earned.get((row, contact.offer_id))
            yield {**head, **_offer(contact, record), **(found or {})}
        if not one.contacts:
            chance = (record.get("selection") or {}).get("no_offer")
            yield {**head, "rank": 0, "selection_probability": chance}
        elif worth is not None and (row, one.contacts[0].offer_id) not in earned:
            made.without_amounts += 1
            made.because = made.because or worth.because or "the record does not hold them"


def _head(one: LoggedDecision, record: Mapping[str, Any], profile: Sequence[str]) -> dict[str, Any]:
    answer, inputs = record.get("answer") or {}, record.get("inputs") or {}
    versions, situation = answer.get("versions") or {}, inputs.get("situation") or {}
    would = (record.get("selection") or {}).get("would_choose") or [None]
    fallback, ration = answer.get("fallback"), inputs.get("ration")
    known = {**(inputs.get("profile") or {}).get("columns", {}), **(answer.get("scores") or {})}
    return {
        "decision_id": one.decision_id, "customer_id": one.customer_id,
        "decided_at": one.decided_at, "channel": one.channel,
        "placement": situation.get("placement"), "arm": one.arm,
        "known": None if fallback is None else not fallback, "slots": situation.get("limit"),
        "would_offer_id": would[0], "shared_out": ration is not None,
        "policy": versions.get("policy"), "catalogue": versions.get("catalogue"),
        "bundle": versions.get("bundle"),
        **{PROFILE + name: _text(known.get(name)) for name in profile},
    }  # fmt: skip


def _text(value: Any) -> str | None:
    # Texts, numbers and yes or no share a column type; `measure.log` turns numbers back.
    return None if value is None else str(value)


def _offer(contact: LoggedContact, record: Mapping[str, Any]) -> dict[str, Any]:
    said = {o["rank"]: o for o in (record.get("answer") or {}).get("offers", ())}
    offer = said.get(contact.rank, {})
    return {
        "rank": contact.rank, "offer_id": contact.offer_id, "propensity": contact.propensity,
        "window_ends_at": contact.window_ends_at,
        "expected_profit": offer.get("expected_profit"),
        "selection_probability": offer.get("selection_probability"),
    }  # fmt: skip


class _Worth:
    """What offers earned and cost when they were made, from the inputs and the archive."""

    def __init__(self, project_dir: Path) -> None:
        self._project_dir = project_dir
        self._bound: dict[str, tuple[BoundCatalogue, BoundPolicy] | None] = {}
        self.because = ""

    def of(
        self, part: Sequence[LoggedDecision], records: Sequence[Mapping[str, Any]]
    ) -> dict[tuple[int, str], dict[str, float | None]]:
        """Return the amounts of each offer made, by row of the part and offer."""
        groups: dict[str, list[int]] = {}
        for row, record in enumerate(records):
            if record.get("inputs") and part[row].contacts:
                groups.setdefault(self._key(record["inputs"]), []).append(row)
        found: dict[tuple[int, str], dict[str, float | None]] = {}
        for key, rows in groups.items():
            bound = self._bound[key.partition("\x1f")[0]]
            if bound is None:
                continue
            many = [records[row]["inputs"] for row in rows]
            amounts = economics_of_all(many, *bound)
            at = {offer: i for i, offer in enumerate(bound[0].offer_ids)}
            for i, row in enumerate(rows):
                for contact in part[row].contacts:
                    if contact.offer_id in at:
                        cell = i, at[contact.offer_id]
                        found[row, contact.offer_id] = {
                            name: _number(amounts[name][cell]) for name in AMOUNTS
                        }
        return found

    def _key(self, inputs: Mapping[str, Any]) -> str:
        """What decisions share whose amounts are worked out together, files and columns first."""
        files = json.dumps([inputs["catalogue_hash"], inputs["policy_hash"],
                            sorted(columns_of(inputs).items(), key=str)], default=str)  # fmt: skip
        if files not in self._bound:
            self._bound[files] = self._bind(inputs)
        bound = self._bound[files]
        # Few amounts depend on the hour; those of all others are worked out in one go.
        moment = bound is not None and _reads(bound[0], "decided_at")
        return f"{files}\x1f{alike(inputs, moment=moment)}"

    def _bind(self, inputs: Mapping[str, Any]) -> tuple[BoundCatalogue, BoundPolicy] | None:
        try:
            catalogue = archived_catalogue(self._project_dir, inputs["catalogue_hash"])
            policy = archived_policy(self._project_dir, inputs["policy_hash"])
            return bind(catalogue, policy, columns_of(inputs))
        except (ConfigError, NotFoundError) as error:
            self.because = self.because or str(error)
            return None


def _reads(catalogue: BoundCatalogue, column: str) -> bool:
    formulas = [f for amount in catalogue.amounts.values() for f, _ in amount.formulas]
    return any(column in formula.columns for formula in formulas)


def _number(value: np.float64) -> float | None:
    return float(value) if np.isfinite(value) else None
