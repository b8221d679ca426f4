"""One page with everything inside it: nothing loaded, no script."""

from __future__ import annotations

from importlib import resources
from pathlib import Path
from typing import Any

from nextbest.errors import UsageError
from nextbest.learn.compare_charts import Markup, el

__all__ = ["save", "whole"]

_ALLOWED = "default-src 'none'; style-src 'unsafe-inline'; img-src data:"


def whole(title: str, *body: Any, style: str = "") -> str:
    """Return a whole page as text: the shared style, further rules after it, these elements."""
    shared = resources.files(__package__).joinpath("compare.css").read_text(encoding="utf-8")
    head = el(
        "head",
        el("meta", charset="utf-8"),
        el("meta", name="viewport", content="width=device-width, initial-scale=1"),
        el("meta", http_equiv="Content-Security-Policy", content=_ALLOWED),
        el("title", f"{title} – nextbest"),
        el("link", rel="icon", href="data:,"),
        el("style", Markup("\n" + shared + style)),
    )
    return "<!DOCTYPE html>\n" + el("html", head, el("body", *body), lang="en") + "\n"


def save(page: str, file: Path | str) -> None:
    """Write a page to a file; ``UsageError`` where that cannot be done."""
    path = Path(file)
    try:
        path.write_text(page, encoding="utf-8")
    except OSError as error:
        raise UsageError(
            str(path),
            "the page cannot be written there",
            expected="a file in a folder that exists and may be written to",
            got=error.strerror or str(error),
        ) from error
