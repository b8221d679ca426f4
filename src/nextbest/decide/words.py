"""Words and values as answers and traces write them."""

from __future__ import annotations

import math
from datetime import datetime
from typing import Any

import numpy as np
import numpy.typing as npt

from nextbest.decide import bound as b
from nextbest.decide.frame import utc

__all__ = ["WORDS", "plain", "plain_list", "shown", "written_time"]

# Why an offer is not made, where that is the same whatever the customer.
WORDS = {
    b.INACTIVE: "it is switched off",
    b.OTHER_CHANNEL: "it is not offered on this channel",
    b.OTHER_PLACEMENT: "it is not offered at this placement",
    b.NOT_STARTED: "it has not started yet",
    b.ENDED: "it has ended",
    b.NOT_FALLBACK: "nothing is known about the customer, and it is not in the fallback list",
    b.SAME_GROUP: "another offer of its exclusivity group is in the answer",
    b.CATEGORY_FULL: "the offers of its category before it fill the slots that a category has",
    b.HELD_OUT_OF_OFFER: "the customer is held out of this offer, to measure its effect",
    b.NOT_REACHED: "it is new, and its reach does not include the customer yet",
    b.HELD_OUT: "the customer is held out: no offer is made, to measure the effect of offers",
    b.NO_CONTACT_ARM: "the customer is in the arm no_contact: no offer is made",
    b.SCARCE: "it is worth more to other customers, and there is not enough for all",
    b.USED_UP: "its limit over all customers is used up",
    b.NO_CONTACT_LEFT: "the offers before it use up the contacts that a cap leaves",
}


def written_time(moment: datetime) -> str:
    """A moment as answers and traces write it: ISO 8601 in UTC."""
    return utc(moment).isoformat().replace("+00:00", "Z")


def plain(value: Any) -> Any:
    """One value as JSON can hold it: unknown becomes None, times ISO 8601 in UTC."""
    if value is None or isinstance(value, str):
        return value
    item = float(value) if isinstance(value, float) else np.asarray(value).item()
    if isinstance(item, datetime):
        return written_time(item)
    if isinstance(item, float) and not math.isfinite(item):
        return None
    return item


def plain_list(values: npt.NDArray[Any]) -> list[Any]:
    """Many values as JSON can hold them, each as `plain` writes it."""
    if values.dtype.kind != "f":
        return [plain(value) for value in values]
    items: list[Any] = values.tolist()
    if np.isfinite(values).all():
        return items
    return [item if math.isfinite(item) else None for item in items]


def shown(value: Any) -> str:
    """One value in a sentence."""
    if value is None:
        return "unknown"
    return f"{value:.4g}" if isinstance(value, float) else str(value)
