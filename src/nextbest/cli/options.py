"""What the commands have in common: where the project is, and JSON instead of tables."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Annotated, Any

import typer

ProjectDir = Annotated[
    Path, typer.Option("--project", help="Folder of the project.", show_default="this folder")
]
Json = Annotated[bool, typer.Option("--json", help="Print one JSON object on standard output.")]
HERE = Path()


def show_json(value: Any) -> None:
    """Print one JSON object to standard output."""
    print(json.dumps(value, indent=1, default=str, allow_nan=False))
