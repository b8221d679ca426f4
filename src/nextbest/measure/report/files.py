"""The data behind every chart: one Parquet file each, and all of it as JSON."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Final

from nextbest.errors import UsageError
from nextbest.measure.report.facts import Report
from nextbest.measure.report.page import render

__all__ = ["JSON", "PAGE", "tables", "write_all"]

PAGE: Final = "report.html"
JSON: Final = "report.json"
_NAMES: Final = (
    "totals", "drivers", "kpis", "series", "segment_sizes", "segments", "migrations", "offers",
    "channels", "models",
)  # fmt: skip


def tables(facts: Mapping[str, Any]) -> dict[str, list[dict[str, Any]]]:
    """Return the report's facts as flat rows by file name; a table without a row is left out."""
    found = {name: [_flat(row) for row in facts[name]] for name in _NAMES}
    found["findings"] = list(facts["findings"])
    found["cohorts"] = [
        {"month": c["month"], "customers": c["customers"], "complete": c["complete"], **share}
        for c in facts["cohorts"]
        for share in c["shares"]
    ]
    credited = (facts["attribution"] or {}).get("credits", [])
    found["attribution"] = [
        {"name": c["name"], "rule": rule, "responses": c["responses"][rule],
         "value": c["value"][rule], "removal_effect": c["removal_effect"]}
        for c in credited
        for rule in c["responses"]
    ]  # fmt: skip
    experiment = facts["experiment"] or {}
    found["experiment"] = [
        _flat(row) for part in ("overall", "segments") for row in experiment.get(part, [])
    ]
    return {name: rows for name, rows in found.items() if rows}


def _flat(row: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    made: dict[str, Any] = {}
    for key, value in row.items():
        if isinstance(value, Mapping):
            made |= _flat(value, f"{prefix}{key}_")
        elif isinstance(value, list | tuple):
            made[prefix + key] = json.dumps(value, default=str)
        else:
            made[prefix + key] = value
    return made


def write_all(report: Report, folder: Path, page: Path | None = None) -> dict[str, Path]:
    """Write page, JSON and Parquet files to a folder, and return them by name.

    Parameters: ``page`` where the page goes instead of the folder.

    Raises
    ------
    UsageError : the folder cannot be written to.
    """
    facts = report.to_dict()
    made = {"page": page or folder / PAGE, "json": folder / JSON}
    try:
        folder.mkdir(parents=True, exist_ok=True)
        for name, rows in tables(facts).items():
            made[name] = folder / f"{name}.parquet"
            _write(rows, made[name])
        made["json"].write_text(json.dumps(facts, indent=1, allow_nan=False), encoding="utf-8")
        made["page"].write_text(render(report), encoding="utf-8")
    except OSError as error:
        raise UsageError(
            str(folder), "the report cannot be written there",
            expected="a folder that may be written to", got=error.strerror or str(error),
        ) from error  # fmt: skip
    return made


def _write(rows: Sequence[Mapping[str, Any]], path: Path) -> None:
    import pyarrow as pa
    import pyarrow.parquet as pq

    columns = dict.fromkeys(name for row in rows for name in row)
    full = [{name: row.get(name) for name in columns} for row in rows]
    pq.write_table(pa.Table.from_pylist(full, schema=_schema(columns, full)), path)


def _schema(columns: Mapping[str, Any], rows: Sequence[Mapping[str, Any]]) -> Any:
    """Whole and broken numbers of one column become broken ones; an unknown column is text."""
    import pyarrow as pa

    fields = []
    for name in columns:
        kinds = {type(row[name]) for row in rows if row[name] is not None}
        if kinds == {bool}:
            fields.append((name, pa.bool_()))
        elif kinds and kinds <= {int}:
            fields.append((name, pa.int64()))
        elif kinds and kinds <= {int, float}:
            fields.append((name, pa.float64()))
        else:
            fields.append((name, pa.string()))
    return pa.schema(fields)
