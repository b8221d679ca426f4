"""Who is kept without offers, and who gets them in another way, to measure what the policy earns.

No ledger is stored: a customer's place is a salted hash of the id, and a share is an interval on
that line. Raising a share adds customers at its end and moves nobody else; lowering it gives back
those who came last.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import numpy.typing as npt

from nextbest.decide.hashing import uniforms
from nextbest.decide.policy import Arms, Holdout

__all__ = [
    "FALLBACK",
    "HELD_OUT",
    "NO_CONTACT",
    "NO_LEVERS",
    "POLICY",
    "PROPENSITY_ONLY",
    "RANDOM_ELIGIBLE",
    "arms",
    "held_out_of",
]

POLICY = "policy"
FALLBACK = "fallback"
HELD_OUT = "holdout"
NO_CONTACT = "no_contact"
RANDOM_ELIGIBLE = "random_eligible"
PROPENSITY_ONLY = "propensity_only"
NO_LEVERS = "no_levers"


def arms(
    holdout: Holdout,
    experiment: Arms,
    customer_ids: Sequence[str],
    known: npt.NDArray[np.bool_],
) -> npt.NDArray[np.object_]:
    """Say for each customer how decisions about them are made, now and for as long as the salts.

    The universal holdout comes first. The rest are divided by a second, independent hash: each arm
    owns a fixed quarter of that line and takes its share from the quarter's beginning, so that
    changing one arm's share never moves a customer between two others.

    Parameters
    ----------
    customer_ids: n ids.
    known: (n,) False for strangers. Nothing can be compared for them, so that outside the holdout
        and the no_contact arm they get the fallback list.

    Returns
    -------
    (n,) names of arms: "policy", "fallback", "holdout", "no_contact", "random_eligible",
    "propensity_only" or "no_levers".
    """
    arm = np.full(len(customer_ids), POLICY, dtype=object)
    if experiment.shares():
        place = uniforms(str(experiment.salt), "arms", customer_ids)
        for name, share in experiment.shares().items():
            start = Arms.QUARTERS.index(name) / len(Arms.QUARTERS)
            arm[(place >= start) & (place < start + share)] = name
    arm[~known & (arm != NO_CONTACT)] = FALLBACK
    if holdout.share > 0:
        arm[uniforms(str(holdout.salt), "holdout", customer_ids) < holdout.share] = HELD_OUT
    return arm


def held_out_of(
    offer_id: str, share: float, salt: str, customer_ids: Sequence[str]
) -> npt.NDArray[np.bool_]:
    """Say which customers never get one offer, so that its own effect can be measured.

    Independent of the universal holdout and of every other offer's.

    Parameters
    ----------
    share: of all customers, from 0 to 1.

    Returns
    -------
    (n,) booleans.
    """
    held: npt.NDArray[np.bool_] = (
        uniforms(salt, "offer holdout", customer_ids, about=offer_id) < share
    )
    return held
