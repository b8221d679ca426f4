"""Scarcity prices between a batch that finds them and the decisions that heed them."""

from __future__ import annotations

import json
from contextlib import suppress
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any
from uuid import uuid4

from nextbest.decide.frame import utc
from nextbest.errors import DataError, StoreError

if TYPE_CHECKING:
    from nextbest.decide.assign import Prices

__all__ = ["FILE", "StoredPrices", "read_prices", "write_prices"]

FILE = "prices.json"


@dataclass(frozen=True)
class StoredPrices:
    """What a batch found that one more of everything scarce is worth on one channel.

    ``catalogue`` and ``policy`` are the hashes that the prices belong to, ``decided_at`` the
    batch's moment.
    """

    catalogue: str
    policy: str
    decided_at: datetime
    prices: Prices

    def to_dict(self) -> dict[str, Any]:
        """Return the prices with what they belong to, as plain JSON types."""
        return {
            "catalogue": self.catalogue,
            "policy": self.policy,
            "decided_at": utc(self.decided_at).isoformat(),
            **self.prices.to_dict(),
        }

    def fault(self, catalogue: str, policy: str, moment: datetime, valid_days: float) -> str | None:
        """Say why these prices do not hold for a decision, or None where they do."""
        if (catalogue, policy) != (self.catalogue, self.policy):
            return "they were found with another catalogue or policy"
        days = (utc(moment) - utc(self.decided_at)).total_seconds() / 86_400
        if days > valid_days:
            return f"they are {days:.1f} days old; they hold for {valid_days:g}"
        return None


def read_prices(folder: Path) -> dict[str, StoredPrices]:
    """Return the stored prices by channel; none where no batch has found any.

    Raises
    ------
    DataError: the file is damaged.
    """
    path = folder / FILE
    try:
        raw = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        return {}
    except (OSError, ValueError) as error:
        raise _damaged(path, str(error)) from error
    # Only now: the solver's package takes long to load, and most servers have no prices.
    from nextbest.decide.assign import Prices

    try:
        return {
            str(channel): StoredPrices(
                str(one.pop("catalogue")),
                str(one.pop("policy")),
                datetime.fromisoformat(one.pop("decided_at")),
                Prices.from_dict(one),
            )
            for channel, one in raw.items()
        }
    except (AttributeError, KeyError, TypeError, ValueError) as error:
        raise _damaged(path, f"{type(error).__name__}: {error}") from error


def _damaged(path: Path, got: str) -> DataError:
    action = "Run `nextbest decide` to find prices again"
    return DataError(str(path), "the stored prices cannot be read", got=got[:80], action=action)


def write_prices(folder: Path, channel: str, found: StoredPrices) -> None:
    """Keep a channel's prices in place of those before; other channels' stay.

    Raises
    ------
    StoreError: the file cannot be written.
    """
    try:
        kept = {name: one.to_dict() for name, one in read_prices(folder).items()}
    except DataError:
        kept = {}  # damaged: what is written now mends it
    text = json.dumps({**kept, channel: found.to_dict()}, indent=1, allow_nan=False)
    draft = folder / f".{FILE}-{uuid4().hex}"
    try:
        folder.mkdir(parents=True, exist_ok=True)
        draft.write_text(text, encoding="utf-8")
        draft.replace(folder / FILE)
    except OSError as error:
        with suppress(OSError):
            draft.unlink(missing_ok=True)
        got = error.strerror or str(error)
        raise StoreError(str(folder / FILE), "the prices cannot be written", got=got) from error
