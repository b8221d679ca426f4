"""Refusals of the store that mean more to whoever waits than that it cannot be used."""

from __future__ import annotations

from nextbest.errors import StoreError

__all__ = ["HistoryChangedError", "TooLateError", "TooManyError"]


class HistoryChangedError(Exception):
    """Somebody recorded something about a customer after we had read what was known."""


class TooLateError(StoreError):
    """The caller's time was up before the write began; nothing was written."""


class TooManyError(StoreError):
    """More writes wait than the disk can take; refusing now is better than collapsing later."""
