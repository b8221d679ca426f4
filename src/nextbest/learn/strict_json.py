"""Strict JSON: no NaN, no infinities, UTF-8; what cannot be read is said so by file."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from typing import Any

import numpy as np

from nextbest.errors import ArtifactError

__all__ = ["dump", "number", "parse"]


def dump(value: Any) -> bytes:
    """Write as strict JSON: NaN is null, infinities are "Infinity" and "-Infinity"."""
    text = json.dumps(_jsonable(value), allow_nan=False, ensure_ascii=False, indent=1)
    return (text + "\n").encode()


def _jsonable(value: Any) -> Any:
    if isinstance(value, Mapping):
        return {str(k): _jsonable(v) for k, v in value.items()}
    if isinstance(value, list | tuple | np.ndarray):
        return [_jsonable(v) for v in value]
    if isinstance(value, np.generic):
        value = value.item()
    if isinstance(value, float) and not math.isfinite(value):
        return None if math.isnan(value) else f"{'-' if value < 0 else ''}Infinity"
    return value


def parse(where: str, content: bytes) -> Any:
    """Read strict JSON; ``ArtifactError`` that names ``where`` if it is anything else."""

    def refuse(constant: str) -> Any:
        raise ValueError(f"{constant} is not JSON")

    try:
        return json.loads(content.decode("utf-8"), parse_constant=refuse)
    except (UnicodeDecodeError, ValueError, RecursionError) as error:
        raise ArtifactError(
            where, "it is not JSON", expected="strict JSON in UTF-8", got=str(error)
        ) from None


def number(value: Any) -> float:
    """Read back a number that ``dump`` wrote."""
    return math.nan if value is None else float(value)
