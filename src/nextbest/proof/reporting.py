"""The report of a project: brings together its data, decision log, models and experiment."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Any

from nextbest.errors import NextbestError
from nextbest.project import Project

if TYPE_CHECKING:
    from nextbest.data.contract import History
    from nextbest.measure.entrants import Purchases
    from nextbest.measure.experiment import Reading
    from nextbest.measure.kpi.calendar import Calendar
    from nextbest.measure.kpi.settings import ReportSettings
    from nextbest.measure.log import DecisionLog
    from nextbest.measure.report.facts import ModelHealth, Report
    from nextbest.serve.bundle import Bundle

__all__ = ["report", "settings_of"]

Step = Callable[[str], None]
_FIGURES = ("conversion", "revenue")


def report(
    project: Project,
    *,
    history: History | None = None,
    settings: ReportSettings | None = None,
    until: datetime | None = None,
    simulated: bool = False,
    made_at: datetime | None = None,
    progress: Step = lambda _: None,
) -> Report:
    """Measure everything that the report of a project says.

    Parameters
    ----------
    history : its checked data; read where none is given.
    settings : instead of those of ``serving/report.toml``.
    until : first instant after the period (naive UTC); that of the data if None.
    simulated : responses and purchases come from a simulator, and the page says so.
    made_at : the moment of making it (naive UTC); now if None.

    Raises
    ------
    DataError : the data do not cover the period and its baseline.
    ConfigError : the report's settings are wrong, or do not fit the data.
    """
    from nextbest.measure.kpi.calendar import calendar
    from nextbest.measure.kpi.settings import resolve
    from nextbest.measure.report.facts import Given, gather

    settings = settings or settings_of(project)
    rates = resolve(settings.costs, _assumptions(project))
    if history is None:
        progress("read and check the data")
        history = project.history()
    zone = project.settings.zone
    days = calendar(settings.period, history, zone, until)
    bundle = _bundle(project)
    progress("look at models and experiment")
    experiment, why = _experiment(project, history, days, progress)
    now = made_at or datetime.now(UTC).replace(tzinfo=None, microsecond=0)
    with _log(project, settings, days, progress) as log:
        given = Given(
            scores=_scores(bundle), log=log, models=tuple(_models(project, bundle)),
            experiment=experiment, no_experiment=why or Given.no_experiment, simulated=simulated,
        )  # fmt: skip
        return gather(project.settings.name, history, settings, rates, zone, given,
                      made_at=now, until=until, progress=progress)  # fmt: skip


def settings_of(project: Project) -> ReportSettings:
    """Return what ``serving/report.toml`` says; ``ConfigError`` with every fault in it."""
    from nextbest.measure.kpi.settings import read_report_settings

    return read_report_settings(project.root / "serving")


def _assumptions(project: Project) -> dict[str, Any]:
    from nextbest.decide.tomlfile import read_toml

    path = project.root / "serving" / "offers.toml"
    found = read_toml(path).get("assumptions", {}) if path.exists() else {}
    return found if isinstance(found, dict) else {}


# ------------------------------------------------------------------ models and scores


def _bundle(project: Project) -> Bundle | None:
    """Return what is served now; None where nothing is, or it cannot be read."""
    from nextbest.serve.bundle import load_bundle

    try:
        return load_bundle(project.serving_state)
    except NextbestError:
        return None


def _scores(bundle: Bundle | None) -> Any:
    """Return what models expect of every customer; None without a value model."""
    if bundle is None or "clv" not in bundle.profiles.columns:
        return None
    import pyarrow as pa

    profiles = bundle.profiles
    values = profiles.matrix[:, profiles.columns.index("clv")]
    return pa.table({"customer_id": profiles.ids(), "clv": pa.array(values, from_pandas=True)})


def _models(project: Project, bundle: Bundle | None) -> Iterator[ModelHealth]:
    from nextbest.learn.gates import PRIMARY
    from nextbest.measure.report.facts import ModelHealth

    if bundle is None:
        return
    drift = _drift(project, bundle)
    registry = project.registry()
    for name, source in bundle.sources.items():
        try:
            version = registry.version(name, source["version"])
        except (NextbestError, KeyError):
            continue
        kind = "probability" if "auc" in version.metrics.get("test", {}) else "clv"
        metric, more_is_better = PRIMARY[kind]
        figures = version.metrics.get("test", {})
        if metric not in figures:
            continue
        own = figures[metric]
        base = version.baseline.metrics.get("test", {}).get(metric) if version.baseline else None
        checks = []
        if base is not None:
            gain = own.value - base.value if more_is_better else base.value - own.value
            checks.append(("gain over the simple rule", gain, 0.0, gain > 0))
        if "ece" in figures:
            limit = _calibration_limit(project, name)
            ece = figures["ece"].value
            checks.append(("calibration error", ece, limit, ece <= limit))
        status, moved = drift.get(name, ("not measured", ()))
        yield ModelHealth(
            name, version.version, version.created_at, metric, own.value, own.low, own.high,
            version.baseline.name if version.baseline else "", base.value if base else None,
            tuple(checks), status, moved,
        )  # fmt: skip


def _calibration_limit(project: Project, name: str) -> float:
    from nextbest.learn.model import Gates

    try:
        return project.plan(project.model(name)).gates.max_calibration_error
    except NextbestError:
        return Gates().max_calibration_error


def _drift(project: Project, bundle: Bundle) -> dict[str, tuple[str, tuple[str, ...]]]:
    """Return each model's drift as the last refresh measured it, and what moved."""
    file = project.state / "drift" / f"{bundle.profiles.version}.json"
    try:
        facts = json.loads(file.read_text(encoding="utf-8"))
        return {name: _drift_of(found) for name, found in facts.items()}
    except (OSError, ValueError, AttributeError):
        return {}


def _drift_of(found: dict[str, Any]) -> tuple[str, tuple[str, ...]]:
    if "because" in found:
        return f"not known: {found['because']}", ()
    moved = [d["name"] for d in found.get("features", []) if d.get("status") != "ok"]
    return str(found.get("status", "not known")), tuple(moved)


# ------------------------------------------------------------------ the log and the experiment


@contextmanager
def _log(
    project: Project, settings: ReportSettings, days: Calendar, progress: Step
) -> Iterator[DecisionLog | None]:
    """Open the decision log where contacts are to be taken from it, else give None."""
    from nextbest.errors import DataError
    from nextbest.proof.logbook import has_decisions, opened

    wanted = settings.period.contacts
    if wanted == "data" or not has_decisions(project):
        if wanted == "log":
            raise DataError("report", "contacts are to come from the decision log, which is empty",
                            expected="decisions, or period.contacts = \"data\"")  # fmt: skip
        yield None
        return
    progress("read the decision log")
    with opened(project, since=days.baseline.starts_at, until=days.current.ends_at) as book:
        made = book.log.decisions
        inside = (made.decided_at >= days.current.starts_at) & (made["rank"] > 0)
        holds = bool(inside.any().to_pyarrow().as_py())
        yield book.log if holds or wanted == "log" else None


def _experiment(
    project: Project, history: History, days: Calendar, progress: Step
) -> tuple[Reading | None, str]:
    """Compare the arms of the log, or of the tables; say why not where nobody was held out."""
    from nextbest.measure.collect import collect, outcome_of
    from nextbest.measure.experiment import Design, read
    from nextbest.measure.tables import BEFORE, Watch, customers
    from nextbest.proof.experiments import Asked, read_log
    from nextbest.proof.logbook import has_decisions

    now = days.current
    if has_decisions(project):
        why = ""
        # The report stands on transactions; reported purchases are the second best.
        sources: tuple[Purchases, ...] = ("data", "log")
        for source in sources:
            asked = Asked(_FIGURES, since=now.starts_at, until=now.ends_at, purchases=source)
            try:
                return read_log(project, asked, Design(), progress).reading, ""
            except NextbestError as error:
                why = why or error.faults[0].problem
        return None, f"the decision log has no answer ({why})"
    tables = history.tables
    if not any("arm" in tables[t].columns for t in ("customers", "contacts") if t in tables):
        return None, ""
    try:
        table = customers(history, Watch(now.starts_at, now.ends_at), _FIGURES)
        outcomes = [outcome_of(name, BEFORE) for name in _FIGURES]
        cells = collect(table, outcomes, where="experiment")
        design = Design(planned=max(1, sum(c.n for c in cells)))
        return read(cells, outcomes, design), ""
    except NextbestError as error:
        return None, f"the arms of the data give no answer ({error.faults[0].problem})"
