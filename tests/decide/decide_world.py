"""A small world for the tests of decisions: three offers, a few columns, a lenient policy."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from datetime import UTC, datetime
from typing import Any

import numpy as np

from nextbest.decide.contact import ContactHistory
from nextbest.decide.engine import Audience, Decisions, Situation, bind, decide
from nextbest.decide.offers import Catalogue
from nextbest.decide.policy import Policy

NOW = datetime(2017, 12, 10, 5, tzinfo=UTC)


def offer(offer_id: str = "a", **fields: Any) -> dict[str, Any]:
    """One offer as TOML would hold it: sells at a margin of 10, costs nothing, always live."""
    return {
        "id": offer_id,
        "name": offer_id.upper(),
        "goal": "sell",
        "channels": ["mail"],
        "margin": 10.0,
        **fields,
    }


def catalogue(*offers: dict[str, Any], **sections: Any) -> Catalogue:
    """A catalogue of these offers."""
    return Catalogue.from_dict({"offers": list(offers), **sections}, "serving/offers.toml")


def policy(**sections: Any) -> Policy:
    """A policy that restricts nothing but what is given here."""
    raw = {"channels": {"mail": {"consent_required": False}}, **sections}
    return Policy.from_dict(raw, "serving/policy.toml")


def audience(
    propensity: Sequence[Sequence[float]] | np.ndarray[Any, Any],
    columns: Mapping[str, Any] | None = None,
    **fields: Any,
) -> Audience:
    """Customers "0", "1", ... with these propensities (customers × offers) and columns."""
    p = np.asarray(propensity, dtype=float)
    made = {
        "customer_ids": [str(i) for i in range(len(p))],
        "known": np.ones(len(p), dtype=bool),
        "columns": {name: np.asarray(values) for name, values in (columns or {}).items()},
        "pair_columns": {},
        "propensity": p,
        "offer_columns": {},
        "contacts": ContactHistory.empty(),
    }
    return Audience(**{**made, **fields})  # type: ignore[arg-type]


def situation(**fields: Any) -> Situation:
    """A decision by mail on the morning of 10 December 2017."""
    return Situation(**{"channel": "mail", "decided_at": NOW, **fields})


def run(
    people: Audience, offers: Catalogue, rules: Policy | None = None, at: Situation | None = None
) -> Decisions:
    """Bind and decide."""
    bound, bound_policy = bind(offers, rules or policy(), people.known_columns())
    ids = [f"d{i}" for i in range(len(people.customer_ids))]
    return decide(people, bound, bound_policy, at or situation(), ids)


def chosen(decisions: Decisions) -> list[list[str]]:
    """Ids of the offers made to each customer, best first."""
    ids = decisions.catalogue.offer_ids
    return [[ids[j] for j in row if j >= 0] for row in decisions.chosen]


def fates(decisions: Decisions, row: int = 0) -> dict[str, tuple[str, str]]:
    """What became of each offer for one customer, as (step, reason)."""
    names = decisions.policy.fates.names
    return {
        offer_id: names[code]
        for offer_id, code in zip(
            decisions.catalogue.offer_ids, decisions.fates[row].tolist(), strict=True
        )
    }


def history(*events: tuple[str, str | None, str | None, str, str], n: int, ids: Any) -> Any:
    """Past events as (customer, offer, channel, time, kind) for n customers."""
    columns = list(zip(*events, strict=True)) or [[], [], [], [], []]
    return ContactHistory.build(
        [str(i) for i in range(n)],
        ids,
        customer_id=columns[0],
        offer_id=columns[1],
        channel=columns[2],
        time=np.array(columns[3], dtype="datetime64[us]"),
        kind=columns[4],
    )
