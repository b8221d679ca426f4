"""Every way in which the API says no, in one table, as RFC 9457 problem documents."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

__all__ = ["CODES", "MEDIA_TYPE", "Code", "Problem", "pointer"]

MEDIA_TYPE = "application/problem+json"


@dataclass(frozen=True)
class Code:
    """A stable error code: the statuses that carry it (usual one first), title, and remedy."""

    statuses: tuple[int, ...]
    title: str
    remedy: str


CODES: Mapping[str, Code] = {
    "malformed-json": Code(
        (400,), "The body is not JSON", "Send one JSON document in UTF-8; NaN is not JSON."
    ),
    "unauthenticated": Code(
        (401,),
        "A valid API key is needed",
        "Send `Authorization: Bearer nb_…` or `X-API-Key: nb_…`; `nextbest keys create` makes one.",
    ),
    "forbidden": Code(
        (403,), "The API key lacks the scope", "Use a key with the scope that `detail` names."
    ),
    "not-found": Code((404,), "There is nothing at this path", "See `/docs` for the paths."),
    "unknown-customer": Code(
        (404,),
        "No profile for this customer",
        "Check the id; profiles are made by `nextbest refresh`. "
        "`POST /v1/decisions` answers unknown customers too.",
    ),
    "unknown-decision": Code(
        (404, 422),
        "No decision of this id",
        "Use a `decision_id` from an answer of `POST /v1/decisions`.",
    ),
    "method-not-allowed": Code(
        (405,), "This path does not take this method", "See the `Allow` header."
    ),
    "idempotency-conflict": Code(
        (409,),
        "The idempotency key was used for another request",
        "Use a new key for a new question; the same key only repeats the same one.",
    ),
    "outcome-conflict": Code(
        (409, 422),
        "This outcome id was reported with other content",
        "The first report stands. Report a correction under a new `outcome_id`.",
    ),
    "event-conflict": Code(
        (409, 422),
        "This event id was reported with other content",
        "The first report stands. Report another event under a new `event_id`.",
    ),
    "body-too-large": Code((413,), "The body is too large", "Send fewer items in one call."),
    "unsupported-media-type": Code(
        (415,), "The body must be sent as JSON", "Send `Content-Type: application/json`."
    ),
    "invalid-request": Code(
        (422,),
        "The request breaks the schema",
        "Mend every entry of `errors`; each names its place as a JSON pointer.",
    ),
    "rate-limited": Code(
        (429,),
        "The key has sent too many requests",
        "Try again after `Retry-After` seconds; `nextbest keys list` shows the key's limit.",
    ),
    "unknown-channel": Code(
        (422,), "The policy has no such channel", "Use a channel under `[channels]` of the policy."
    ),
    "unknown-offer": Code(
        (422,), "The catalogue has no such offer", "See `GET /v1/offers` for the ids."
    ),
    "offer-not-in-decision": Code(
        (422,),
        "The decision did not choose this offer",
        "Report one of the decision's own offers, or leave out `offer_id` if it had only one.",
    ),
    "customer-mismatch": Code(
        (422,), "The decision is about another customer", "Leave out `customer_id`, or mend it."
    ),
    "outcome-in-future": Code(
        (422,),
        "The outcome lies in the future",
        "Check the clock and the time zone of `occurred_at`.",
    ),
    "event-in-future": Code(
        (422,),
        "The event lies in the future",
        "Check the clock and the time zone of `event_at`.",
    ),
    "outcome-before-decision": Code(
        (422,),
        "The outcome lies more than a day before its decision",
        "Check the clock and the time zone of `occurred_at`.",
    ),
    "internal-error": Code(
        (500,), "Something broke on our side", "Try again; quote `error_id` to the operator."
    ),
    "not-ready": Code(
        (503,),
        "The server cannot decide yet",
        "`GET /readyz` says which part is missing; try again later.",
    ),
    "store-unavailable": Code(
        (503,),
        "The store cannot be used now",
        "Nothing was acknowledged. Try the same call again after `Retry-After` seconds.",
    ),
}


def pointer(path: Sequence[str | int]) -> str:
    """Return the JSON pointer (RFC 6901) of a path, e.g. ``/context/tier``."""
    return "".join("/" + str(step).replace("~", "~0").replace("/", "~1") for step in path)


class Problem(Exception):
    """A refusal on its way to the caller.

    Parameters
    ----------
    code: one of ``CODES``.
    detail: what is wrong with this very request, in a sentence.
    status: one of the code's statuses; its usual one by default.
    errors: entries ``{"pointer", "detail", ...}``, one for each fault.
    headers: more response headers.
    extra: more members of the problem document.
    """

    def __init__(
        self,
        code: str,
        detail: str,
        *,
        status: int | None = None,
        errors: Sequence[Mapping[str, Any]] = (),
        headers: Mapping[str, str] | None = None,
        extra: Mapping[str, Any] | None = None,
    ) -> None:
        super().__init__(detail)
        self.code = code
        self.detail = detail
        self.status = CODES[code].statuses[0] if status is None else status
        self.errors = tuple(errors)
        self.headers = dict(headers or {})
        if self.status == 503:
            self.headers.setdefault("Retry-After", "2")
        self.extra = dict(extra or {})

    def document(self, instance: str) -> dict[str, Any]:
        """Return the problem document for the request path ``instance``."""
        return {
            "type": f"urn:nextbest:problem:{self.code}",
            "code": self.code,
            "title": CODES[self.code].title,
            "status": self.status,
            "detail": self.detail,
            "instance": instance,
            "errors": [dict(error) for error in self.errors],
            **self.extra,
        }

    def body(self, instance: str) -> bytes:
        """Return the document as JSON bytes."""
        return json.dumps(self.document(instance), ensure_ascii=False).encode(
            "utf-8", errors="backslashreplace"
        )
