"""Try another policy on every customer beside the project's own; nothing is recorded."""

from __future__ import annotations

from typing import Any

import numpy as np

from nextbest.decide.frame import Situation, utc
from nextbest.decide.whatif import Segments, Side, compare
from nextbest.errors import UsageError, did_you_mean
from nextbest.serve.batch import decide_batch
from nextbest.serve.runtime import State
from nextbest.serve.store import Store

__all__ = ["what_if"]

# Customers' value tells most about a shift; it is the division where none is named.
DEFAULT_BY = "clv"


def what_if(
    project: State, other: State, situation: Situation, store: Store | None, by: str | None = None
) -> dict[str, Any]:
    """Decide for every customer under both policies and return what would shift.

    Parameters
    ----------
    situation : of both, also where the policies state other moments.
    by : the customers' column that segments are made of; None takes ``clv`` where there is one.

    Raises
    ------
    UsageError: there is no column of that name, or the other policy lacks the channel.
    """
    segments = _segments(project, by)
    sides = []
    for state in (project, other):
        side = Side(state.offers.offer_ids, segments)
        decide_batch(state, situation, store=store, each=side.add)
        sides.append(side)
    return {
        "decided_at": utc(situation.decided_at).isoformat().replace("+00:00", "Z"),
        "channel": situation.channel,
        "policies": {"project": project.rules.content_hash, "other": other.rules.content_hash},
        **compare(*sides),
    }


def _segments(state: State, by: str | None) -> Segments | None:
    profiles = state.bundle.profiles
    if by is None and DEFAULT_BY not in profiles.columns:
        return None
    name = by or DEFAULT_BY
    if name not in profiles.columns:
        raise UsageError(
            "--by",
            f'there is no column "{name}"',
            expected="a column of customers (`nextbest features` lists them)",
            action=did_you_mean(name, profiles.columns),
        )
    column = state.catalogue.columns[name]
    values = profiles.matrix[:, profiles.columns.index(name)]
    if column.type != "number":
        return Segments(name)
    return Segments.of(name, np.asarray(values, dtype=np.float64))
