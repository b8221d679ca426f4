"""Who is kept without offers, and who gets them in another way, to measure what the policy earns.

No ledger is stored: a customer's place is a salted hash of the id, and a share is an interval on
that line. Raising a share adds customers at its end and moves nobody else; lowering it gives back
those who came last.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from nextbest.decide.hashing import uniforms
from nextbest.decide.policy import Arms, Holdout

__all__ = [
    "ARMS",
    "FALLBACK",
    "HELD_OUT",
    "NO_CONTACT",
    "NO_LEVERS",
    "POLICY",
    "PROPENSITY_ONLY",
    "RANDOM_ELIGIBLE",
    "WAYS_OF_THEIR_OWN",
    "Assigned",
    "arms",
    "assigned",
    "held_out_of",
]

POLICY = "policy"
FALLBACK = "fallback"
HELD_OUT = "holdout"
NO_CONTACT = "no_contact"
RANDOM_ELIGIBLE = "random_eligible"
PROPENSITY_ONLY = "propensity_only"
NO_LEVERS = "no_levers"

# Arms whose choice does not go by what an offer is worth.
WAYS_OF_THEIR_OWN = (RANDOM_ELIGIBLE, PROPENSITY_ONLY)
ARMS = (POLICY, FALLBACK, HELD_OUT, NO_CONTACT, RANDOM_ELIGIBLE, PROPENSITY_ONLY, NO_LEVERS)
_NAMES = np.array(ARMS, dtype=object)
_CODES = {name: code for code, name in enumerate(ARMS)}


@dataclass(frozen=True)
class Assigned:
    """The arm of each of n customers, as positions in `ARMS`.

    Parameters
    ----------
    codes: (n,) positions.
    present: the arms that anybody is in.
    """

    codes: npt.NDArray[np.int8]
    present: frozenset[str]

    @property
    def names(self) -> npt.NDArray[np.object_]:
        """(n,) names of the arms."""
        names: npt.NDArray[np.object_] = _NAMES[self.codes]
        return names

    def among(self, *arms: str) -> npt.NDArray[np.bool_] | None:
        """(n,) who is in one of these arms; None where nobody is."""
        found = None
        for name in arms:
            if name in self.present:
                inside = self.codes == _CODES[name]
                found = inside if found is None else found | inside
        return found


def assigned(
    holdout: Holdout,
    experiment: Arms,
    customer_ids: Sequence[str],
    known: npt.NDArray[np.bool_],
) -> Assigned:
    """Say for each customer how decisions about them are made, now and for as long as the salts.

    The universal holdout comes first. The rest are divided by a second, independent hash: each arm
    owns a fixed quarter of that line and takes its share from the quarter's beginning, so that
    changing one arm's share never moves a customer between two others.

    Parameters
    ----------
    customer_ids: n ids.
    known: (n,) False for strangers. Nothing can be compared for them, so that outside the holdout
        and the no_contact arm they get the fallback list.
    """
    code = np.full(len(customer_ids), _CODES[POLICY], dtype=np.int8)
    shares = experiment.shares()
    if shares:
        place = uniforms(str(experiment.salt), "arms", customer_ids)
        for name, share in shares.items():
            start = Arms.QUARTERS.index(name) / len(Arms.QUARTERS)
            code[(place >= start) & (place < start + share)] = _CODES[name]
    if not known.all():
        code[~known & (code != _CODES[NO_CONTACT])] = _CODES[FALLBACK]
    if holdout.share > 0:
        place = uniforms(str(holdout.salt), "holdout", customer_ids)
        code[place < holdout.share] = _CODES[HELD_OUT]
    present = np.bincount(code, minlength=len(ARMS)).tolist()
    return Assigned(code, frozenset(name for name, n in zip(ARMS, present, strict=True) if n))


def arms(
    holdout: Holdout,
    experiment: Arms,
    customer_ids: Sequence[str],
    known: npt.NDArray[np.bool_],
) -> npt.NDArray[np.object_]:
    """Return (n,) names of the customers' arms; parameters as in `assigned`."""
    return assigned(holdout, experiment, customer_ids, known).names


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
