"""A question about one customer, read from JSON in one pass.

What this reader takes is exactly what `nextbest.serve.schemas.DecisionRequest` takes, and means the
same; the schema stays the one that documents the fields and explains every fault. Tests compare
the two on many odd bodies.
"""

from __future__ import annotations

from typing import Annotated, Any

import msgspec
from msgspec import Meta

from nextbest.serve.schemas import ID, MAX_CONTEXT, MAX_LIMIT, MAX_NUMBER, MAX_TEXT

__all__ = ["DecisionQuestion", "read"]

# No control character either; `read` looks for these.
_Id = Annotated[str, Meta(min_length=1, max_length=128)]
_Scalar = (
    Annotated[str, Meta(max_length=MAX_TEXT)]
    | Annotated[float, Meta(ge=-MAX_NUMBER, le=MAX_NUMBER)]
    | bool
    | None
)


class DecisionQuestion(msgspec.Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """Which offers should this customer get now? The fields of `DecisionRequest`."""

    customer_id: _Id
    channel: _Id
    placement: _Id | None = None
    context: Annotated[dict[_Id, _Scalar], Meta(max_length=MAX_CONTEXT)] = {}
    limit: Annotated[int, Meta(ge=1, le=MAX_LIMIT)] = 1
    explain: bool = False
    idempotency_key: _Id | None = None

    @property
    def request(self) -> dict[str, Any]:
        """What is kept of the question; the key only names it."""
        return {
            "channel": self.channel,
            "placement": self.placement,
            "context": self.context,
            "limit": self.limit,
            "explain": self.explain,
            "customer_id": self.customer_id,
        }


_DECODER = msgspec.json.Decoder(DecisionQuestion)
# A text of JSON has a control character by an escape only, or it is U+007F, or one that begins with
# C2 in UTF-8.
_SUSPECT = b"\\\x7f\xc2"


def read(body: bytes) -> DecisionQuestion | None:
    """Return the question that a body asks; None where something is wrong with it."""
    try:
        found = _DECODER.decode(body)
    # Broken UTF-8 is a ValueError, as every fault that the reader itself finds; and brackets
    # within brackets without end are a RecursionError.
    except (ValueError, RecursionError):
        return None
    # Most bodies need no look at each id.
    if len(body.translate(None, _SUSPECT)) < len(body) and not _has_sound_ids(found):
        return None
    return found


def _has_sound_ids(question: DecisionQuestion) -> bool:
    given = (question.customer_id, question.channel, question.placement, question.idempotency_key)
    ids = (*(one for one in given if one is not None), *question.context)
    return all(ID.fullmatch(one) for one in ids)
