"""From the bytes of a request to a checked question, or to a refusal that names every fault."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Annotated, Any, TypeVar

from pydantic import BaseModel, Field, TypeAdapter, ValidationError

from nextbest.errors import did_you_mean
from nextbest.serve.problems import Problem, pointer
from nextbest.serve.question import DecisionQuestion, read
from nextbest.serve.schemas import ID, MAX_BATCH, DecisionRequest, EventReport, OutcomeReport

__all__ = ["is_id", "parse", "parse_decision", "parse_events", "parse_outcomes"]

MAX_ERRORS = 50
# Beyond it a body is no mistake, and to describe every fault of it would be the work it asks for.
MAX_FAULTS = 10_000
# A name may be as long as a body; what we say of it may not.
MAX_NAME = 128

M = TypeVar("M", bound=BaseModel)

_OUTCOMES = TypeAdapter(
    Annotated[list[OutcomeReport], Field(min_length=1, max_length=MAX_BATCH, strict=True)]
)
_EVENTS = TypeAdapter(
    Annotated[list[EventReport], Field(min_length=1, max_length=MAX_BATCH, strict=True)]
)
_KINDS = {str: "text", bool: "true or false", dict: "an object", list: "a list", type(None): "null"}


def is_id(text: str) -> bool:
    """Tell whether anybody could have this id: a path may hold what no id does, NUL for one."""
    return ID.fullmatch(text) is not None


def parse(model: type[M], body: bytes) -> M:
    """Read a request body.

    Raises
    ------
    Problem: ``malformed-json``, or ``invalid-request`` with every fault.
    """
    try:
        return model.model_validate_json(body)
    except ValidationError as error:
        raise _refusal(error, model) from None


def parse_decision(body: bytes) -> DecisionQuestion:
    """Read a question about one customer.

    Raises
    ------
    Problem: as `parse`.
    """
    found = read(body)
    if found is not None:
        return found
    # The schema finds every fault, and says what is wrong in words.
    return DecisionQuestion(**parse(DecisionRequest, body).model_dump())


def parse_outcomes(body: bytes) -> tuple[list[OutcomeReport], bool]:
    """Read one outcome report or a list of them; the flag says whether it was a list."""
    return _one_or_many(OutcomeReport, _OUTCOMES, body)


def parse_events(body: bytes) -> tuple[list[EventReport], bool]:
    """Read one event or a list of them; the flag says whether it was a list."""
    return _one_or_many(EventReport, _EVENTS, body)


def _one_or_many(model: type[M], listed: TypeAdapter[list[M]], body: bytes) -> tuple[list[M], bool]:
    if not body.lstrip(b" \t\r\n").startswith(b"["):
        return [parse(model, body)], False
    try:
        return listed.validate_json(body), True
    except ValidationError as error:
        raise _refusal(error, model) from None


def _refusal(error: ValidationError, model: type[BaseModel]) -> Problem:
    if error.error_count() > MAX_FAULTS:
        return Problem("invalid-request", f"{error.error_count()} faults: too many to name them.")
    faults = error.errors(include_url=False)
    if faults[0]["type"] == "json_invalid":
        return Problem("malformed-json", faults[0]["msg"].removeprefix("Invalid JSON: "))
    entries = [_entry(fault, model) for fault in faults[:MAX_ERRORS]]
    count = f"{len(faults)} faults" if len(faults) > 1 else "1 fault"
    first = entries[0]
    where = f"{first['pointer']}: " if first["pointer"] else ""
    return Problem("invalid-request", f"{count}. {where}{first['detail']}", errors=entries)


def _entry(fault: Mapping[str, Any], model: type[BaseModel]) -> dict[str, str]:
    path = [_short(step) for step in fault["loc"] if step != "[key]"]
    about_key = "[key]" in fault["loc"]
    if fault["type"] == "extra_forbidden":
        known = list(model.model_fields)
        hint = did_you_mean(str(path[-1]), known)
        detail = f"Unknown field. Must be one of {', '.join(known)}. {hint}".rstrip()
    elif fault["type"] == "missing":
        detail = "This field is missing."
    else:
        detail = ("The name: " if about_key else "") + _said(fault)
    return {"pointer": pointer(path), "detail": detail}


def _short(step: str | int) -> str | int:
    if isinstance(step, str) and len(step) > MAX_NAME:
        return step[:MAX_NAME] + "…"
    return step


def _said(fault: Mapping[str, Any]) -> str:
    message = str(fault["msg"]).replace("Input should be", "Must be").rstrip(".")
    given = fault["input"]
    if fault["type"].endswith(("_type", "_parsing")):
        return f"{message}; got {_KINDS.get(type(given), 'a number')}."
    return message + "."
