"""What the engine decides in a simulated shop, and what it must beat."""

from __future__ import annotations

import tomllib
from collections.abc import Mapping
from datetime import UTC

import numpy as np
import numpy.typing as npt

from nextbest.decide.contact import ContactHistory
from nextbest.decide.engine import Audience, Decisions, Situation, bind, decide
from nextbest.decide.offers import Catalogue
from nextbest.decide.policy import Policy
from nextbest.simulate.rooms import files
from nextbest.simulate.shop import CHANNEL, Shop
from nextbest.simulate.truth import Truth

__all__ = ["engine", "rivals"]

Array = npt.NDArray[np.float64]


def engine(shop: Shop, propensity: Array, left_alone: Array | None) -> Decisions:
    """Return what the engine decides if it takes some probabilities for the truth.

    Catalogue and policy are those that `write_project` writes, and the function is the one that
    serves.

    Parameters
    ----------
    propensity : (n, m) P(response | contacted).
    left_alone : (n, m) P(the same purchase | not contacted), which the catalogue calls
        ``baseline_rate``; None where nobody knows, so that it counts as 0.
    """
    unknown = np.full(propensity.shape, np.nan)
    baseline = unknown if left_alone is None else left_alone
    audience = Audience(
        customer_ids=shop.customer_ids,
        known=np.ones(shop.customers, dtype=bool),
        columns={
            f"consent_{CHANNEL}": shop.consent,
            **{f"anyway_{o.id}_probability": baseline[:, j] for j, o in enumerate(shop.offers)},
        },
        pair_columns={},
        propensity=propensity,
        offer_columns={},
        contacts=ContactHistory.empty(),
    )
    texts = files(shop)
    catalogue = Catalogue.from_dict(tomllib.loads(texts["serving/offers.toml"]))
    policy = Policy.from_dict(tomllib.loads(texts["serving/policy.toml"]))
    bound, bound_policy = bind(catalogue, policy, audience.known_columns())
    situation = Situation(channel=CHANNEL, decided_at=shop.until.replace(tzinfo=UTC))
    return decide(audience, bound, bound_policy, situation, shop.customer_ids)


def rivals(truth: Truth, propensity: Array, eligible: npt.NDArray[np.bool_]) -> Mapping[str, Array]:
    """Return simpler policies for those who may be contacted at all, each (n, m + 1).

    "best fixed offer" is chosen with hindsight, by the truth itself: no real shop could do better
    with one offer for everybody.

    Parameters
    ----------
    propensity : (n, m) what "propensity only" ranks by, whatever an offer earns or costs.
    eligible : (n,) who may be contacted.
    """
    n, m = propensity.shape
    everybody = {
        "random offer": np.hstack([np.full((n, m), 1 / m), np.zeros((n, 1))]),
        "best fixed offer": truth.choose(int(truth.profit[eligible].sum(axis=0).argmax())),
        "propensity only": truth.choose(propensity.argmax(axis=1)),
    }
    nobody = truth.choose(-1)
    return {name: np.where(eligible[:, None], p, nobody) for name, p in everybody.items()}
