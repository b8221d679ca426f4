"""Answers campaign tools: the HTTP API, batch decisions, and the store behind both."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from nextbest.serve.api import create_app

__all__ = ["create_app"]


def __getattr__(name: str) -> Any:
    # FastAPI takes a while to import; the batch path does not need it.
    if name == "create_app":
        from nextbest.serve.api import create_app

        return create_app
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
