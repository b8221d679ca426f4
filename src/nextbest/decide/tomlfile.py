"""Read a marketer's TOML file and say everything that is wrong with it at once, in plain words."""

from __future__ import annotations

import hashlib
import json
import math
import re
import tomllib
import typing
from collections.abc import Callable, Mapping, Sequence
from datetime import UTC, date, datetime, time, timedelta, timezone, tzinfo
from pathlib import Path
from typing import Any, TypeVar
from zoneinfo import ZoneInfo, ZoneInfoNotFoundError

from pydantic import BaseModel, ConfigDict, ValidationError

from nextbest.errors import ConfigError, Fault, did_you_mean

__all__ = [
    "Table",
    "check_table",
    "content_hash",
    "finite",
    "instant",
    "place",
    "read_toml",
    "time_zone",
    "toml_of",
]


MAX_DEPTH = 100


class Table(BaseModel):
    """One table of a TOML file: fixed fields, exact types, never changed once read."""

    model_config = ConfigDict(extra="forbid", frozen=True, strict=True, allow_inf_nan=False)


T = TypeVar("T", bound=Table)


def place(path: Path) -> str:
    """Return the file's name as messages show it: the room and the file."""
    return "/".join(path.parts[-2:])


def read_toml(path: Path) -> dict[str, Any]:
    """Read a TOML file.

    Raises
    ------
    ConfigError: the file is missing, unreadable, or broken (with line and column).
    """
    where = place(path)
    try:
        text = path.read_bytes().decode("utf-8")
    except UnicodeDecodeError as fault:
        raise ConfigError(
            where, "the file is not text", expected="UTF-8", got=f"byte {fault.start} that is not"
        ) from None
    except OSError as fault:
        raise ConfigError(
            where,
            "the file cannot be read",
            got=(fault.strerror or type(fault).__name__).lower(),
            action=f"Looked for it at {path}.",
        ) from None
    try:
        content = tomllib.loads(text)
    except (ValueError, RecursionError) as fault:
        what, _, spot = str(fault).rpartition(" (at ")
        what = what or "a number too long or tables too deep"
        found = re.match(r"line (\d+), column (\d+)", spot)
        # Python names the end of the document by that name alone.
        end = (text.count("\n") + 1, len(text) - text.rfind("\n"))
        line, column = found.groups() if found else end
        raise ConfigError(
            f"{where}, line {line}, column {column}",
            "this is not TOML",
            expected="valid TOML",
            got=what.lower(),
        ) from None
    if _too_deep(content):
        expected = f"at most {MAX_DEPTH} tables in each other"
        raise ConfigError(where, "the tables are too deep", expected=expected)
    return content


def _too_deep(content: Any) -> bool:
    """Tell whether tables and lists go deeper than anything that walks through them could."""
    level = [content]
    for _ in range(MAX_DEPTH):
        inner = (v.values() if isinstance(v, dict) else v for v in level)
        level = [one for values in inner for one in values if isinstance(one, dict | list)]
    return bool(level)


def toml_of(table: Mapping[str, Any]) -> str:
    """Write a table as TOML that `read_toml` reads back: one field a line, lists item by item."""
    lines = []
    for name, value in table.items():
        if isinstance(value, list | tuple) and value:
            items = "".join(f"  {_toml(item)},\n" for item in value)
            lines.append(f"{_quoted(name)} = [\n{items}]\n")
        else:
            lines.append(f"{_quoted(name)} = {_toml(value)}\n")
    return "".join(lines)


def _toml(value: Any) -> str:
    if isinstance(value, Mapping):
        return "{" + ", ".join(f"{_quoted(n)} = {_toml(v)}" for n, v in value.items()) + "}"
    if isinstance(value, list | tuple):
        return "[" + ", ".join(_toml(item) for item in value) + "]"
    if isinstance(value, bool):
        return str(value).lower()
    if isinstance(value, datetime | date | time):
        return value.isoformat()
    return _quoted(value) if isinstance(value, str) else repr(value)


def _quoted(text: str) -> str:
    # JSON and TOML escape alike, but for the one control character that JSON leaves alone.
    return json.dumps(text, ensure_ascii=False).replace("\x7f", "\\u007f")


def finite(value: Any) -> float | None:
    """Return a TOML number as a float; None for anything else, or beyond what a float holds."""
    if isinstance(value, bool) or not isinstance(value, int | float):
        return None
    try:
        number = float(value)
    except OverflowError:
        return None
    return number if math.isfinite(number) else None


def content_hash(content: Any) -> str:
    """SHA-256 of JSON-able content; comments, order of keys and layout do not change it."""
    text = json.dumps(content, sort_keys=True, separators=(",", ":"), ensure_ascii=True)
    return hashlib.sha256(text.encode()).hexdigest()


def time_zone(name: Any, where: str) -> tzinfo:
    """Turn ``UTC``, a fixed offset such as ``-05:00``, or ``America/New_York`` into a time zone.

    Raises
    ------
    ConfigError: it is none of these.
    """
    text = name if isinstance(name, str) else ""
    offset = re.fullmatch(r"([+-])(\d{2}):([0-5]\d)", text)
    if offset and int(offset[2]) < 24:
        size = timedelta(hours=int(offset[2]), minutes=int(offset[3]))
        return timezone(size if offset[1] == "+" else -size)
    if text == "UTC":
        return UTC
    try:
        return ZoneInfo(text)
    except (ZoneInfoNotFoundError, ValueError, OSError):
        raise ConfigError(
            where,
            "timezone is not known",
            expected='"UTC", an offset such as "-05:00" or a name such as "America/New_York"',
            got=repr(name),
        ) from None


def instant(value: Any, zone: tzinfo, *, end: bool = False) -> Any:
    """Turn a TOML date or time into an instant in UTC; leave anything else for the type check.

    A date is a whole local day: it starts at local midnight and, with ``end``, lasts until the
    next. A time without offset is local; a time with offset is what it says.
    """
    try:
        if isinstance(value, datetime):
            return (value if value.tzinfo else value.replace(tzinfo=zone)).astimezone(UTC)
        if isinstance(value, date):
            day = value + timedelta(days=1) if end else value
            return datetime.combine(day, time(), tzinfo=zone).astimezone(UTC)
    except OverflowError:
        # "Until 9999-12-31" means for ever, and for ever has no day after.
        return (datetime.max if value.year > 5000 else datetime.min).replace(tzinfo=UTC)
    return value


def _model_at(model: type[BaseModel], loc: Sequence[int | str]) -> type[BaseModel]:
    """Follow a fault's location down to the table whose field is wrong."""
    for step in loc:
        field = model.model_fields.get(step) if isinstance(step, str) else None
        pending = [field.annotation] if field is not None else []
        while pending:
            kind = pending.pop()
            if isinstance(kind, type) and issubclass(kind, BaseModel):
                model = kind
            pending += typing.get_args(kind)
    return model


_EXPECTED = {
    "datetime_type": "a date such as 2017-12-24, or a time such as 2017-12-24T05:00:00Z",
    "time_type": "a time of day such as 21:00:00",
    "string_type": 'a text in quotes, such as "mail"',
    "bool_type": "true or false",
    "int_type": "a whole number",
    "float_type": "a number",
    "tuple_type": 'a list, such as ["mail"]',
    "dict_type": "a table",
    "model_type": "a table",
}


def _fault(model: type[Table], error: Mapping[str, Any], where: str) -> Fault:
    *outer, last = error["loc"] or ("",)
    # An item of a list has no name of its own: it is shown under the list's.
    name = f"{outer[-1]} number {last + 1}" if outer and isinstance(last, int) else str(last)
    if outer and isinstance(last, int):
        outer.pop()
    tables = ".".join(step for step in outer if isinstance(step, str))
    number = "".join(f" number {step + 1}" for step in outer if isinstance(step, int))
    spot = f"{where}: [{tables}]{number}" if tables else where
    kind = error["type"]
    if kind == "extra_forbidden":
        known = list(_model_at(model, outer).model_fields)
        expected = "one of " + ", ".join(known)
        return Fault(spot, f'unknown field "{name}"', expected, "", did_you_mean(name, known))
    if kind == "missing":
        return Fault(spot, f'field "{name}" is missing', _described(model, outer, name))
    expected = _EXPECTED.get(kind) or error["msg"].removeprefix("Input should be ")
    return Fault(spot, f'field "{name}" is wrong', expected, repr(error["input"])[:80])


def _described(model: type[Table], outer: Sequence[int | str], name: str) -> str:
    field = _model_at(model, outer).model_fields.get(name)
    return "given" if field is None or not field.description else field.description


def check_table(
    model: type[T], raw: Any, where: Callable[[str], str]
) -> tuple[T | None, list[Fault]]:
    """Validate one table; return the result, or None with every fault of type, range or name.

    Parameters
    ----------
    where: says for a field of the table where it stands, for messages.
    """
    try:
        return model.model_validate(raw), []
    except ValidationError as invalid:
        faults = []
        for error in invalid.errors():
            field = str(error["loc"][0]) if error["loc"] else ""
            faults.append(_fault(model, error, where(field)))
        return None, faults
