"""Check a project: its files, its data, and whether the two fit; every fault at once."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from nextbest.errors import ConfigError, Fault, NextbestError, did_you_mean
from nextbest.jobs.given import features, offer_table, readable, uncountable, unfed
from nextbest.project import Project
from nextbest.settings import SETTINGS

if TYPE_CHECKING:
    from nextbest.data.contract import History
    from nextbest.data.features import Feature
    from nextbest.decide.offers import Catalogue
    from nextbest.decide.policy import Policy

__all__ = ["CheckReport", "check_project"]


@dataclass(frozen=True)
class CheckReport:
    """Every fault found, and what the data check counted (None where no data was read)."""

    faults: tuple[Fault, ...]
    history: History | None = field(default=None, repr=False)
    notes: tuple[str, ...] = ()

    def to_dict(self) -> dict[str, Any]:
        """Return the report as plain JSON types."""
        tables = [r.to_dict() for r in self.history.reports] if self.history else []
        return {
            "ok": not self.faults,
            "faults": [{**vars(f), "message": str(f)} for f in self.faults],
            "tables": tables,
            "notes": list(self.notes),
        }


def check_project(project: Project, *, data: bool = True) -> CheckReport:
    """Collect every fault of definitions, data, catalogue and policy, each room on its own.

    Parameters
    ----------
    data : also read and check the data; otherwise only definitions are looked at.
    """
    from nextbest.decide.offers import NOT_AT_HAND
    from nextbest.decide.policy import load_serving

    faults = list(project.faults())
    history: History | None = None
    found: tuple[Feature, ...] = ()
    if data:
        try:
            found, history = _look_at_data(project, faults)
        except NextbestError as error:
            faults += error.faults
    table = offer_table(project, history) if history is not None else None
    notes: tuple[str, ...] = ()
    try:
        serving = load_serving(project.root / "serving", table=table)
        if table is not None and serving[0].table is not None:
            notes = table.notes
        if history is not None:
            faults += uncountable(serving[1], history)
        if found:
            faults += _sensitive(project, found, serving[1])
            _bind(project, found, *serving)
    except NextbestError as error:
        # Where no row was read, offers that stand in a table are nobody's fault.
        faults += [f for f in error.faults if history is not None or f.problem != NOT_AT_HAND]
    faults += _report_faults(project, history)
    return CheckReport(tuple(dict.fromkeys(faults)), history, notes)


def _report_faults(project: Project, history: History | None) -> Iterator[Fault]:
    """Yield what is wrong with serving/report.toml."""
    from nextbest.decide.tomlfile import read_toml
    from nextbest.measure.kpi.check import report_faults

    try:
        assumptions = read_toml(project.root / "serving" / "offers.toml").get("assumptions", {})
    except ConfigError:  # reported with the catalogue
        assumptions = {}
    known = assumptions if isinstance(assumptions, dict) else {}
    tables = history.tables if history is not None else None
    yield from report_faults(project.root / "serving", known, tables)


def _look_at_data(
    project: Project, faults: list[Fault]
) -> tuple[tuple[Feature, ...], History | None]:
    """Return the features that the data can feed and the clean history, as far as there are any."""
    _ = project.shapes  # without tables there is nothing to look at
    found: tuple[Feature, ...] = ()
    history: History | None = None
    try:
        found = features(project)[0]
        faults += [f for m in project.models.values() for f in unfed(project, m, found)]
        faults += _unknown_accepted(project, found)
    except NextbestError as error:
        faults += error.faults
    try:
        history = project.history()
    except NextbestError as error:
        faults += error.faults
    return found, history


def _bind(project: Project, found: Iterable[Feature], catalogue: Catalogue, policy: Policy) -> None:
    """Hold rules and expressions against the columns that profiles will have."""
    from nextbest.decide.binding import bind
    from nextbest.decide.rules import Column

    columns = {f.name: Column(_column_type(f.dtype), f.entity) for f in found}
    columns |= {name: Column("number", "customer") for name in project.score_columns()}
    faults = policy.tables.sensitive.unknown(columns, policy.where)
    try:
        bind(catalogue, policy, columns)
    except ConfigError as wrong:
        faults += wrong.faults
    if faults:
        raise ConfigError(faults=faults)


def _column_type(dtype: str) -> Any:
    return dtype if dtype in ("string", "boolean") else "number"


def _sensitive(project: Project, found: Iterable[Feature], policy: Policy) -> Iterator[Fault]:
    """Yield the sensitive attributes that models would read against the policy."""
    for model in project.models.values():
        if model.kind == "clv":
            continue  # it reads its RFM table alone
        names = (name for name in readable(project, model, found) if name not in model.exclude)
        yield from policy.tables.sensitive.read_by_model(
            f"models/{model.name}.py", model.name, names
        )


def _unknown_accepted(project: Project, found: Iterable[Feature]) -> Iterator[Fault]:
    """Yield the names in [leakage.accepted] that no feature of the data has."""
    names = [f.name for f in found]
    table = project.settings.raw.get("leakage", {})
    accepted = table.get("accepted", {}) if isinstance(table, dict) else {}
    for name in accepted if isinstance(accepted, dict) else ():
        if name not in names:
            problem = f'leakage.accepted names "{name}"'
            expected = "a feature that the data can feed"
            yield Fault(SETTINGS, problem, expected, action=did_you_mean(name, names))
