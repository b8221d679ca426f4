"""How and when models are trained: training.toml, read and checked whole."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from datetime import UTC, date, datetime, timedelta, tzinfo
from pathlib import Path
from typing import TYPE_CHECKING, Any

from nextbest.errors import ConfigError, Fault, did_you_mean

if TYPE_CHECKING:
    from nextbest.learn.drift import DriftLimits
    from nextbest.learn.leakage import LeakageLimits
    from nextbest.learn.model import Gates, Model, Plan

SETTINGS = "training/training.toml"


@dataclass(frozen=True)
class Settings:
    """What training.toml says about the whole project; moments are naive UTC."""

    name: str
    zone: tzinfo
    observed_until: datetime
    as_of: datetime
    seed: int
    error_limit: float | dict[str, float]
    order: tuple[str, ...]
    raw: Mapping[str, Any]


_TABLES = ("project", "data", "jobs", "gates", "leakage", "drift", "models")


def read_settings(path: Path) -> tuple[Settings, list[Fault]]:
    """Read training.toml; return its settings, usable defaults for wrong ones, and every fault.

    Raises
    ------
    ConfigError : the file is missing, or is not TOML.
    """
    from nextbest.decide.tomlfile import place, read_toml, time_zone

    where = place(path)
    raw = read_toml(path)
    faults: list[Fault] = []
    _unknown(where, "", raw, _TABLES, faults)
    project, data, jobs = (_table(where, raw, key, faults) for key in ("project", "data", "jobs"))
    known = ("name", "timezone", "observed_until", "as_of", "seed")
    _unknown(where, "[project] ", project, known, faults)
    _unknown(where, "[data] ", data, ("error_limit",), faults)
    _unknown(where, "[jobs] ", jobs, ("order",), faults)
    name = project.get("name", "project")
    if not isinstance(name, str) or not name.strip():
        faults.append(Fault(where, "project.name is wrong", "a text", repr(name)))
        name = "project"
    zone: tzinfo = UTC
    try:
        zone = time_zone(project.get("timezone", "UTC"), where)
    except ConfigError as error:
        faults.extend(error.faults)
    today = datetime.now(UTC).replace(tzinfo=None, microsecond=0)
    moments = {
        key: (_moment(where, f"project.{key}", project[key], zone, faults) or today)
        if key in project
        else today
        for key in ("observed_until", "as_of")
    }
    seed = project.get("seed", 0)
    if not _is_whole(seed, 0, 2**31 - 1):
        expected = "a whole number from 0 to 2147483647"
        faults.append(Fault(where, "project.seed is wrong", expected, repr(seed)))
        seed = 0
    limit = data.get("error_limit", 0.05)
    shares = limit if isinstance(limit, dict) else {"": limit}
    for table, share in shares.items():
        if not _is_number(share) or not 0 <= share <= 1:
            key = f"data.error_limit.{table}".rstrip(".")
            faults.append(Fault(where, f"{key} is wrong", "a share from 0 to 1", repr(share)))
    order = jobs.get("order", [])
    if not isinstance(order, list) or not all(isinstance(n, str) for n in order):
        faults.append(Fault(where, "jobs.order is wrong", "a list of model names", repr(order)))
        order = []
    if not isinstance(raw.get("models", {}), dict):
        faults.append(Fault(where, "models is wrong", "tables [models.NAME]", repr(raw["models"])))
    settings = Settings(
        name=name, zone=zone, observed_until=moments["observed_until"], as_of=moments["as_of"],
        seed=seed, error_limit=limit, order=tuple(order), raw=raw,
    )  # fmt: skip
    return settings, faults


_PLAN_KEYS = (
    "cut", "train_from", "every_days", "test", "evaluation_days", "folds", "gates", "search",
)  # fmt: skip


def make_plan(settings: Settings, model: Model) -> tuple[Plan | None, list[Fault]]:
    """Return when a model is trained and tested, and every fault in its table of training.toml.

    It trains at moments on this side of the cut whose labels are closed by then.
    """
    from nextbest.learn.model import Plan

    where, at = SETTINGS, f"models.{model.name}"
    tables = settings.raw.get("models", {})
    table = tables.get(model.name, {}) if isinstance(tables, dict) else {}
    if not isinstance(table, dict) or "cut" not in table:
        expected = f"a table [{at}] with a cut, the day that parts training from test"
        return None, [Fault(where, f'model "{model.name}" has no cut', expected)]
    faults: list[Fault] = []
    _unknown(where, f"[{at}] ", table, _PLAN_KEYS, faults)
    cut = _moment(where, f"{at}.cut", table["cut"], settings.zone, faults)
    gates = _gates(settings, table, at, faults)
    leakage, accepted = _leakage(settings, faults)
    drift, drift_gate = _drift(settings, faults)
    search = _search(model, table, at, faults)
    numbers = {"every_days": 28, "evaluation_days": 180, "folds": 4}
    for key, default in numbers.items():
        value = table.get(key, default)
        if _is_whole(value, 1, 36_500):
            numbers[key] = value
        else:
            expected = "a whole number from 1 to 36500"
            faults.append(Fault(where, f"{at}.{key} is wrong", expected, repr(value)))
    _same_span(model, numbers["evaluation_days"], at, faults)
    train: list[datetime] = []
    test: list[datetime] = []
    if cut and model.kind == "probability" and model.label.entity == "customer":
        train = _train_moments(settings, model, table, cut, numbers["every_days"], faults)
        test = _test_moments(settings, at, table, cut, faults)
    if cut is None or faults:
        return None, faults
    plan = Plan(
        cut=cut, train_as_of=tuple(train), test_as_of=tuple(test),
        evaluation_days=numbers["evaluation_days"], folds=numbers["folds"], gates=gates,
        leakage=leakage, accepted=accepted, drift=drift, drift_gate=drift_gate, search=search,
    )  # fmt: skip
    return plan, faults


def _gates(settings: Settings, table: dict[str, Any], at: str, faults: list[Fault]) -> Gates:
    from nextbest.learn.model import Gates

    known = tuple(Gates.__dataclass_fields__)
    values = {}
    for name, given in (("gates", settings.raw.get("gates")), (f"{at}.gates", table.get("gates"))):
        found = _table(SETTINGS, {name: given if given is not None else {}}, name, faults)
        _unknown(SETTINGS, f"[{name}] ", found, known, faults)
        for key, value in found.items():
            if key in known and not (_is_number(value) and value >= 0):
                expected = "a number from 0 up"
                faults.append(Fault(SETTINGS, f"{name}.{key} is wrong", expected, repr(value)))
            elif key in known:
                values[key] = value
    return Gates(**values)


def _leakage(settings: Settings, faults: list[Fault]) -> tuple[LeakageLimits, Mapping[str, str]]:
    """Return what a feature may know of the outcome, and the features that somebody answers for."""
    from nextbest.learn.leakage import LeakageLimits

    table = dict(_table(SETTINGS, settings.raw, "leakage", faults))
    accepted = _table(SETTINGS, {"leakage.accepted": table.pop("accepted", {})},
                      "leakage.accepted", faults)  # fmt: skip
    for name, reason in accepted.items():
        if not isinstance(reason, str) or not reason.strip():
            faults.append(
                Fault(SETTINGS, f"leakage.accepted.{name} is wrong",
                      "the reason why it is no leak, as a text", repr(reason))
            )  # fmt: skip
    values = _limits("leakage", table, LeakageLimits(), ("accepted",), faults)
    return LeakageLimits(**values, accepted=tuple(accepted)), accepted


def _drift(settings: Settings, faults: list[Fault]) -> tuple[DriftLimits, str]:
    """Return from where on a change is to watch or an alarm, and from where on a gate refuses."""
    from nextbest.learn.drift import DriftLimits

    table = dict(_table(SETTINGS, settings.raw, "drift", faults))
    gate = table.pop("gate", "off")
    if gate not in ("off", "watch", "alarm"):
        faults.append(
            Fault(SETTINGS, "drift.gate is wrong", '"off", "watch" or "alarm"', repr(gate))
        )
    values = _limits("drift", table, DriftLimits(), ("gate",), faults)
    limits = DriftLimits(**values)
    for low, high in (("psi_watch", "psi_alarm"), ("odds_watch", "odds_alarm")):
        if getattr(limits, low) > getattr(limits, high):
            got = f"{getattr(limits, low):g} and {getattr(limits, high):g}"
            expected = f"at most drift.{high}"
            faults.append(Fault(SETTINGS, f"drift.{low} is too large", expected, got))
    return limits, gate


def _limits(
    name: str, table: dict[str, Any], defaults: Any, more: tuple[str, ...], faults: list[Fault]
) -> dict[str, Any]:
    """Return the limits that a table gives; each must be a number of the kind of its default."""
    known = {f: v for f, v in vars(defaults).items() if not isinstance(v, tuple)}
    _unknown(SETTINGS, f"[{name}] ", table, (*known, *more), faults)
    values = {}
    for key in (k for k in table if k in known):
        value, whole = table[key], isinstance(known[key], int)
        # A level, a share and a rate lie within 0-1, and so do their defaults; AUC does too.
        top = 1.0 if not whole and known[key] < 1 and not key.startswith("psi") else float("inf")
        low = 1.0 if key.startswith("odds") else 0.0
        good = _is_whole(value, 1, 1_000) if whole else _is_number(value) and low <= value <= top
        if good:
            values[key] = value
            continue
        expected = (
            "a whole number from 1 to 1000"
            if whole
            else f"a number from {low:g} " + ("up" if top > 1 else f"to {top:g}")
        )
        faults.append(Fault(SETTINGS, f"{name}.{key} is wrong", expected, repr(value)))
    return values


def _search(model: Model, table: dict[str, Any], at: str, faults: list[Fault]) -> Mapping[str, Any]:
    from nextbest.learn.tune import space_faults

    space = _table(SETTINGS, {f"{at}.search": table.get("search", {})}, f"{at}.search", faults)
    if space and model.kind != "probability":
        expected = "no such table, as this model has nothing to search"
        faults.append(Fault(SETTINGS, f"[{at}.search] is not possible", expected))
    elif space:
        faults += space_faults(space, model.estimator, f"{SETTINGS}: {at}.search")
    return space


def _same_span(model: Model, evaluation_days: int, at: str, faults: list[Fault]) -> None:
    """A value model and its baseline are tested over one span."""
    days = getattr(model.baseline, "horizon_days", None)
    if model.kind == "clv" and _is_number(days) and days != evaluation_days:
        faults.append(
            Fault(
                f"models/{model.name}.py",
                "the baseline looks over another span than the model is tested on",
                f"{evaluation_days}, as {at}.evaluation_days in training/training.toml",
                f"horizon_days={days:g}",
                "Leave horizon_days of the baseline out: it then follows.",
            )
        )


def _train_moments(
    settings: Settings,
    model: Model,
    table: dict[str, Any],
    cut: datetime,
    every_days: int,
    faults: list[Fault],
) -> list[datetime]:
    """Return every so many days back from the last moment whose label is closed at the cut."""
    key, horizon = f"models.{model.name}.train_from", model.label.horizon_days or 0
    if "train_from" not in table:
        faults.append(Fault(SETTINGS, f"{key} is missing", "the first day to learn from"))
        return []
    first = _moment(SETTINGS, key, table["train_from"], settings.zone, faults)
    last = cut - timedelta(days=horizon)
    if first is None:
        return []
    if first > last:
        expected = f"a day at least {horizon:g} days before the cut, so that labels are closed"
        got = str(table["train_from"])
        faults.append(Fault(SETTINGS, f"{key} leaves nothing to train on", expected, got))
        return []
    steps = (last - first) // timedelta(days=every_days)
    if steps > 1_000:
        got = f"{steps + 1:,}"
        expected = "at most 1,000 moments"
        action = "Begin later, or take larger steps with every_days."
        faults.append(Fault(SETTINGS, f"{key} is too far back", expected, got, action))
        return []
    return [last - timedelta(days=every_days) * step for step in range(steps, -1, -1)]


def _test_moments(
    settings: Settings, at: str, table: dict[str, Any], cut: datetime, faults: list[Fault]
) -> list[datetime]:
    days = table.get("test", [table["cut"]])
    if not isinstance(days, list) or not days:
        expected = "a list of days such as [2017-11-01]"
        faults.append(Fault(SETTINGS, f"{at}.test is wrong", expected, _toml(days)))
        return []
    found = [_moment(SETTINGS, f"{at}.test", day, settings.zone, faults) for day in days]
    early = [day for day, t in zip(days, found, strict=True) if t is not None and t < cut]
    if early:
        expected = f"on or after the cut, {_toml(table['cut'])}"
        faults.append(Fault(SETTINGS, f"{at}.test is before the cut", expected, _toml(early[0])))
    return [t for t in found if t is not None]


def _moment(where: str, key: str, value: Any, zone: tzinfo, faults: list[Fault]) -> datetime | None:
    """Return a local day's midnight, or a local or aware time, as naive UTC."""
    from nextbest.decide.tomlfile import instant

    if isinstance(value, date):
        found: datetime = instant(value, zone)
        return found.replace(tzinfo=None)
    faults.append(Fault(where, f"{key} is not a day", "a day such as 2017-12-10", _toml(value)))
    return None


def _toml(value: Any) -> str:
    return str(value) if isinstance(value, date) else repr(value)


def _is_number(value: Any) -> bool:
    return isinstance(value, (int, float)) and not isinstance(value, bool)


def _is_whole(value: Any, low: int, high: int) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and low <= value <= high


def _table(where: str, raw: Mapping[str, Any], key: str, faults: list[Fault]) -> dict[str, Any]:
    value = raw.get(key, {})
    if isinstance(value, dict):
        return value
    faults.append(Fault(where, f"{key} is wrong", f"a table [{key}]", repr(value)))
    return {}


def _unknown(
    where: str, at: str, table: dict[str, Any], known: tuple[str, ...], faults: list[Fault]
) -> None:
    for key in table:
        if key not in known:
            faults.append(
                Fault(where, f'{at}has no setting "{key}"', "one of " + ", ".join(known),
                      action=did_you_mean(key, known))
            )  # fmt: skip
