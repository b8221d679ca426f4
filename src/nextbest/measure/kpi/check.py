"""What is wrong with ``report.toml``, held against offers.toml's assumptions and the tables."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, Final

import ibis

from nextbest.decide.rules import Column, compile_rule
from nextbest.errors import ConfigError, Fault, NextbestError, did_you_mean
from nextbest.measure.kpi.definitions import own_terms, typed
from nextbest.measure.kpi.settings import FILE, ReportSettings, read_report_settings, resolve

__all__ = ["RULE_COLUMNS", "report_faults", "rule_faults"]

#: What rules for segments may name beside the columns of customers.
RULE_COLUMNS: Final[Mapping[str, Column]] = {
    **dict.fromkeys(
        ("orders", "spend", "value", "days_since_last_purchase", "tenure_days", "r_score",
         "f_score", "m_score"), Column("number"),
    ),
    **dict.fromkeys(("rfm_segment", "value_tier", "lifecycle"), Column("string")),
    **dict.fromkeys(("first_order", "last_order"), Column("timestamp")),
}  # fmt: skip


def report_faults(
    directory: Path, assumptions: Mapping[str, Any], tables: Mapping[str, ibis.Table] | None
) -> Iterator[Fault]:
    """Yield every fault of a serving room's ``report.toml``; none where there is no such file.

    Parameters
    ----------
    assumptions : of ``offers.toml``.
    tables : the project's, in the contract's types; None checks the file alone.
    """
    try:
        settings = read_report_settings(directory)
    except NextbestError as error:
        yield from error.faults
        return
    try:
        resolve(settings.costs, assumptions)
    except ConfigError as error:
        yield from error.faults
    if tables is None:
        return
    people = tables["customers"]
    for name in settings.customers.by:
        if name not in people.columns:
            expected, hint = "a column of customers", did_you_mean(name, people.columns)
            problem = f'by names column "{name}"'
            yield Fault(f"{FILE}: [customers]", problem, expected, action=hint)
    yield from rule_faults(settings, {**typed(people), **RULE_COLUMNS})
    try:
        own_terms(tables, settings)
    except ConfigError as error:
        yield from error.faults


def rule_faults(settings: ReportSettings, columns: Mapping[str, Column]) -> Iterator[Fault]:
    """Yield what is wrong with the rules for segments."""
    for name, rules in settings.segments.items():
        for part, text in rules.items():
            try:
                where = f"{FILE}: [segments.{name}]"
                compile_rule(text, columns, where=where, name=f'rule "{part}"')
            except NextbestError as error:
                yield from error.faults
