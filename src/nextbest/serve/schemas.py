"""What the API takes and gives, with limits and examples; the OpenAPI document is made of these."""

from __future__ import annotations

import math
import re
from datetime import UTC, datetime
from typing import Annotated, Any, Literal, Self

from pydantic import (
    AfterValidator,
    AwareDatetime,
    BaseModel,
    BeforeValidator,
    ConfigDict,
    Field,
    StringConstraints,
    model_validator,
)
from pydantic_core import PydanticCustomError

__all__ = [
    "OUTCOME_TYPES",
    "BatchAnswer",
    "BatchRequest",
    "CatalogueAnswer",
    "CustomerAnswer",
    "DecisionAnswer",
    "DecisionRequest",
    "ErasureAnswer",
    "EventReport",
    "EventResult",
    "EventsAnswer",
    "ExportAnswer",
    "Health",
    "ModelsAnswer",
    "OutcomeReport",
    "OutcomesAnswer",
    "ProblemAnswer",
    "Readiness",
    "StoredDecisionAnswer",
]

MAX_BATCH = 1_000
MAX_CONTEXT = 64
MAX_LIMIT = 50
MAX_NUMBER = 1e15
MAX_TEXT = 1_024
EARLIEST = datetime(1970, 1, 1, tzinfo=UTC)

OUTCOME_TYPES = (
    "impression",
    "open",
    "click",
    "response",
    "conversion",
    "purchase",
    "return",
    "refusal",
    "unsubscribe",
    "complaint",
    "bounce",
)


def _outcome_type(value: str) -> str:
    if value not in OUTCOME_TYPES:
        raise PydanticCustomError(
            "outcome_type",
            "Input should be one of {known}",
            {"known": ", ".join(OUTCOME_TYPES)},
        )
    return value


def _scalar(value: object) -> object:
    if isinstance(value, str):
        if len(value) > MAX_TEXT:
            raise PydanticCustomError("scalar", "Text here should have at most 1024 characters")
    elif isinstance(value, int | float) and not isinstance(value, bool):
        # An integer of any length is legal JSON; beyond this no float can tell neighbours apart.
        if not (isinstance(value, int) or math.isfinite(value)) or abs(value) > MAX_NUMBER:
            raise PydanticCustomError("scalar", "Numbers should be finite and within ±1e15")
        return float(value)
    elif value is not None and not isinstance(value, bool):
        raise PydanticCustomError("scalar", "Input should be text, a number, true, false or null")
    return value


def _after_1970(value: datetime) -> datetime:
    if value < EARLIEST:
        raise PydanticCustomError("too_early", "Input should not lie before 1970")
    return value


# Control characters break logs and terminals, and PostgreSQL takes no NUL.
_CHARACTERS = r"[^\x00-\x1f\x7f-\x9f]"
_PRINTABLE = f"^{_CHARACTERS}+$"
ID = re.compile(_CHARACTERS + "{1,128}")
Id = Annotated[str, StringConstraints(min_length=1, max_length=128, pattern=_PRINTABLE)]
EventType = Annotated[str, StringConstraints(min_length=1, max_length=64, pattern=_PRINTABLE)]
Scalar = Annotated[str | float | bool | None, BeforeValidator(_scalar)]
Number = Annotated[float, Field(ge=-MAX_NUMBER, le=MAX_NUMBER, allow_inf_nan=False)]
OutcomeType = Annotated[
    str,
    AfterValidator(_outcome_type),
    Field(json_schema_extra={"enum": list(OUTCOME_TYPES)}),
]
Moment = Annotated[AwareDatetime, AfterValidator(_after_1970)]


class _Request(BaseModel):
    """Strict: a number in quotes is not a number, and an unknown field is a misspelled one."""

    model_config = ConfigDict(strict=True, extra="forbid", frozen=True)


class _Answer(BaseModel):
    model_config = ConfigDict(extra="forbid")


class _Question(_Request):
    channel: Id = Field(description="How the offer would reach the customer.", examples=["email"])
    placement: Id | None = Field(
        default=None, description="Where in the channel, e.g. a slot of a page."
    )
    context: dict[Id, Scalar] = Field(
        default_factory=dict,
        max_length=MAX_CONTEXT,
        description="Facts of this moment, by the names that `[context]` of the policy "
        "declares; rules use them by that name. Text, numbers, true, false or null.",
        examples=[{"weather": "rain", "basket_value": 41.5}],
    )
    limit: int = Field(default=1, ge=1, le=MAX_LIMIT, description="Offers wanted at most.")
    explain: bool = Field(
        default=False, description="Also return the trace: what became of every offer, and why."
    )
    idempotency_key: Id | None = Field(
        default=None,
        description="Repeating a request with the same key returns the first answer.",
    )


class DecisionRequest(_Question):
    """Which offers should this customer get now?"""

    customer_id: Id = Field(examples=["1"])


class BatchRequest(_Question):
    """Which offers should these customers get now? All or none are recorded."""

    customer_ids: list[Id] = Field(
        min_length=1, max_length=MAX_BATCH, description="Each customer once.", examples=[["1", "2"]]
    )

    @model_validator(mode="after")
    def _once_each(self) -> Self:
        if len(set(self.customer_ids)) < len(self.customer_ids):
            raise PydanticCustomError("duplicates", "customer_ids should name each customer once")
        return self


class OutcomeReport(_Request):
    """What happened: to a decision's offer, or to a customer and an offer without a decision."""

    outcome_id: Id = Field(
        description="Yours, and unique: reporting the same outcome twice is harmless."
    )
    decision_id: Id | None = None
    customer_id: Id | None = Field(default=None, description="Needed where `decision_id` is not.")
    offer_id: Id | None = Field(
        default=None, description="Needed without a decision, or where it chose several offers."
    )
    outcome_type: OutcomeType
    occurred_at: Moment = Field(description="With a time zone, e.g. `2017-12-10T09:30:00Z`.")
    value: Number | None = Field(default=None, description="In the shop's currency.")

    @model_validator(mode="after")
    def _about_something(self) -> Self:
        if self.decision_id is None and (self.customer_id is None or self.offer_id is None):
            raise PydanticCustomError(
                "about", "An outcome should name a decision_id, or a customer_id and an offer_id"
            )
        return self


class EventReport(_Request):
    """Something that a customer did: a visit, a click, something put in the cart."""

    event_id: Id = Field(
        description="Yours, and unique: reporting the same event twice is harmless."
    )
    customer_id: Id = Field(description="Also one that no profile knows yet.", examples=["1"])
    event_type: EventType = Field(
        description="As the data's table `events` calls it.",
        examples=["open", "click", "visit", "cart_add", "purchase"],
    )
    event_at: Moment = Field(description="With a time zone, e.g. `2017-12-10T09:30:00Z`.")
    item: Id | None = Field(default=None, description="What it was about.")
    category: Id | None = Field(default=None, description="Which category it was about.")
    channel: Id | None = Field(default=None, description="Where it happened.")
    session_id: Id | None = Field(default=None, description="The visit that it belongs to.")
    value: Number | None = Field(default=None, description="A number that goes with it.")


class OfferAnswer(_Answer):
    """One offer of a decision."""

    offer_id: str
    name: str
    rank: int = Field(description="1 is the best.")
    propensity: float | None = Field(
        description="Calibrated probability of a response within the window; null for a fallback."
    )
    expected_profit: float | None = Field(description="In the shop's currency.")
    priority: float | None = Field(description="What the offers competed on.")
    selection_probability: float = Field(
        description="Probability with which the policy chose this offer; not the propensity."
    )
    reasons: list[str] = Field(description="Why this offer, in words.")


class ScoresAnswer(BaseModel):
    """What the models say of a customer; null where unknown. Your own models add theirs."""

    model_config = ConfigDict(extra="allow")
    __pydantic_extra__: dict[str, float | None]

    churn_probability: float | None = None
    p_alive: float | None = None
    hvc_probability: float | None = None
    clv: float | None = None
    clv_low: float | None = None
    clv_high: float | None = None


class VersionsAnswer(_Answer):
    """What a decision was made with."""

    models: dict[str, str]
    bundle: str
    profiles_as_of: datetime
    catalogue: str
    policy: str
    prices: str | None = Field(
        default=None, description="Where scarcity prices decided: which ones."
    )


class DecisionAnswer(_Answer):
    """Which offers the customer should get, best first. No offer is an answer, with reasons."""

    decision_id: str
    customer_id: str
    decided_at: datetime
    channel: str
    arm: str = Field(
        description="How the choice was made: `policy`, `fallback`, `holdout` or an ablation arm."
    )
    fallback: bool = Field(description="True where the customer is unknown.")
    profile_stale: bool = Field(
        description="True where the profiles are older than the policy's freshness limit."
    )
    offers: list[OfferAnswer]
    no_offer_reasons: list[str] = Field(
        description="Where there is no offer: why not, offer by offer."
    )
    scores: ScoresAnswer
    prices_ignored: str | None = Field(
        default=None, description="Where stored scarcity prices were not used: why not."
    )
    versions: VersionsAnswer
    trace: dict[str, Any] | None = Field(
        default=None, description="With `explain`: what became of every offer, and why."
    )


class BatchAnswer(_Answer):
    """One decision for each customer, in the order asked."""

    decisions: list[DecisionAnswer]


class OutcomeResult(_Answer):
    """What became of one outcome report. `stored` and `duplicate` are durable."""

    outcome_id: str
    status: Literal["stored", "duplicate", "refused"]
    code: str | None = None
    detail: str | None = None
    field: str | None = None


class OutcomesAnswer(_Answer):
    """What became of each outcome report, in the order sent."""

    results: list[OutcomeResult]


class EventResult(_Answer):
    """What became of one event. `stored` and `duplicate` are durable."""

    event_id: str
    status: Literal["stored", "duplicate", "refused"]
    code: str | None = None
    detail: str | None = None
    field: str | None = None


class EventsAnswer(_Answer):
    """What became of each event, in the order sent."""

    results: list[EventResult]


class StoredOutcome(_Answer):
    """An outcome as it is kept."""

    outcome_id: str
    decision_id: str | None
    customer_id: str
    offer_id: str | None
    outcome_type: str
    occurred_at: datetime
    value: float | None


class StoredDecisionAnswer(_Answer):
    """A decision as it was made: question, answer and trace; with the outcomes reported since."""

    request: dict[str, Any]
    decision: DecisionAnswer
    trace: dict[str, Any] | None = Field(
        description="Made again from the record; null where something for that is missing."
    )
    missing: str | None = Field(description="What is missing to make the trace again.")
    outcomes: list[StoredOutcome]


class LiveAnswer(_Answer):
    """What changed since the last refresh, each with its value then and now; null is unknown."""

    at: datetime = Field(description="The moment that live features are as of.")
    heard: dict[str, int] = Field(description="How much came since the refresh, by table.")
    features: dict[str, tuple[float | None, float | None]]
    scores: dict[str, tuple[float | None, float | None]]
    kept: list[str] = Field(
        default_factory=list,
        description="Scores that read a changed feature and can only be computed at a refresh.",
    )


class CustomerAnswer(_Answer):
    """What is known of a customer: features and scores as of the last refresh, live ones as of now.

    `live` is null where nothing has happened since the refresh.
    """

    customer_id: str
    as_of: datetime
    profile_stale: bool = Field(
        description="True where `as_of` is longer ago than the policy's freshness limit."
    )
    features: dict[str, float | str | bool | None]
    scores: ScoresAnswer
    live: LiveAnswer | None = None
    bundle: str


class RemovedRows(_Answer):
    """How many rows there were of a person who was erased."""

    decisions: int
    contacts: int
    outcomes: int
    events: int


class AuditMark(_Answer):
    """An entry of the audit trail."""

    number: int
    hash: str


class ErasureAnswer(_Answer):
    """What was removed of a person. Asking again is harmless, and removes what came since."""

    removed: RemovedRows
    overwritten: bool = Field(
        description="True where the bytes are gone from the store's file, too; false where another "
        "process was reading it, or the database does that in its own time."
    )
    audit: AuditMark


class ProfileExport(_Answer):
    """Features and scores of a person as of the last refresh, live ones as of now."""

    customer_id: str
    as_of: datetime
    features: dict[str, float | str | bool | None]
    scores: ScoresAnswer
    live: LiveAnswer | None = None
    bundle: str


class DecisionExport(_Answer):
    """A decision about a person: all that was kept of it, and its trace made again."""

    decision_id: str
    record: dict[str, Any]
    trace: dict[str, Any] | None
    missing: str | None = Field(description="What is missing to make the trace again.")


class WarehouseExport(_Answer):
    """Contacts and responses that came with the profiles, where the policy counts them."""

    contacts: list[dict[str, Any]]
    responses: list[dict[str, Any]]


class ExportAnswer(_Answer):
    """All that is known of a person, oldest first."""

    customer_id: str
    exported_at: datetime
    profile: ProfileExport | None
    decisions: list[DecisionExport]
    contacts: list[dict[str, Any]] = Field(description="Offers made to the person.")
    outcomes: list[dict[str, Any]]
    events: list[dict[str, Any]]
    warehouse: WarehouseExport


class CatalogueAnswer(_Answer):
    """The offers as `serving/offers.toml`, and the table that it names, state them."""

    catalogue: str = Field(description="Hash of the catalogue's content.")
    offers: list[dict[str, Any]]


class ModelAnswer(_Answer):
    """A model in use."""

    name: str
    kind: str
    version: int | None
    run_id: str | None
    aliases: list[str]
    digest: str


class ModelsAnswer(_Answer):
    """The models in use, and the bundle that holds them."""

    bundle: str
    created_at: datetime
    models: list[ModelAnswer]


class ProblemAnswer(BaseModel):
    """A refusal (RFC 9457). `code` is stable and safe to match on."""

    model_config = ConfigDict(extra="allow")

    type: str
    code: str
    title: str
    status: int
    detail: str
    instance: str
    errors: list[dict[str, Any]] = Field(
        description="One entry for each fault, with a JSON `pointer` to its place."
    )


class Health(_Answer):
    """The process is alive."""

    status: Literal["ok"]


class Part(_Answer):
    """Whether one part of the server is ready, and if not, why."""

    ready: bool
    detail: str


class Readiness(_Answer):
    """Whether the server can decide, part by part."""

    ready: bool
    parts: dict[str, Part]
