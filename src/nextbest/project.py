"""A project on disk: the rooms `models/`, `training/` and `serving/`, loaded and checked.

Nothing outside this file knows where a definition lies. State goes to `.nextbest/` in the project.
"""

from __future__ import annotations

import importlib.util
import shutil
import sys
import tomllib
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from datetime import UTC, date, datetime, time, timedelta
from functools import cached_property
from pathlib import Path
from types import ModuleType
from typing import TYPE_CHECKING, Any
from zoneinfo import ZoneInfo

from nextbest.errors import ConfigError, Fault, NextbestError, NotFoundError, did_you_mean

if TYPE_CHECKING:
    from nextbest.data.contract import History
    from nextbest.data.features import FeatureGroup
    from nextbest.learn.model import Model, Plan
    from nextbest.learn.registry import Registry

ROOMS = ("models", "training", "serving")
_NOT_A_MODEL = ("features", "__init__")
_SETTINGS = "training/training.toml"


@dataclass(frozen=True)
class Settings:
    """What training.toml says about the whole project; moments are naive UTC."""

    name: str
    timezone: str
    observed_until: datetime
    as_of: datetime
    seed: int
    error_limit: float | dict[str, float]
    order: tuple[str, ...]
    raw: dict[str, Any]


@dataclass(frozen=True)
class Project:
    """The project in a folder. Definitions load when first used; faults are `ConfigError`."""

    root: Path

    @classmethod
    def open(cls, root: Path | str) -> Project:
        """Open the project in a folder.

        Raises
        ------
        ConfigError : a room is missing.
        """
        root = Path(root).resolve()
        missing = [room for room in ROOMS if not (root / room).is_dir()]
        if missing:
            raise ConfigError(
                str(root),
                "this folder is not a nextbest project",
                expected="a folder with " + ", ".join(f"{r}/" for r in ROOMS),
                got="no " + ", no ".join(f"{r}/" for r in missing),
                action="Name the project with --project DIR, or make one with `nextbest init DIR`.",
            )
        return cls(root)

    @property
    def state(self) -> Path:
        """Folder for everything that the engine writes."""
        return self.root / ".nextbest"

    @property
    def serving_state(self) -> Path:
        """Folder of the bundles that serving reads."""
        return self.state / "serving"

    @cached_property
    def settings(self) -> Settings:
        """What training.toml says; every fault in it is reported at once."""
        return read_settings(self.root / _SETTINGS)

    @cached_property
    def models(self) -> dict[str, Model]:
        """All models by name, in the order of the jobs."""
        from nextbest.learn.model import Model

        found: dict[str, Model] = {}
        for path in sorted((self.root / "models").glob("*.py")):
            if path.stem in _NOT_A_MODEL or path.stem.startswith("_"):
                continue
            model = getattr(_load(self.root, path), "model", None)
            if not isinstance(model, Model):
                raise ConfigError(
                    f"models/{path.name}",
                    "it defines no model",
                    expected="a line `model = Model(...)`",
                )
            found[path.stem] = model.named(path.stem)
        order = [n for n in self.settings.order if n in found]
        return {n: found[n] for n in [*order, *(n for n in found if n not in order)]}

    def model(self, name: str) -> Model:
        """Return one model.

        Raises
        ------
        NotFoundError : there is no such model; the message offers the closest name.
        """
        if name not in self.models:
            raise NotFoundError(
                "models/",
                f'there is no model "{name}"',
                expected="one of " + ", ".join(self.models),
                action=did_you_mean(name, self.models),
            )
        return self.models[name]

    @cached_property
    def groups(self) -> tuple[FeatureGroup, ...]:
        """The built-in feature groups and the project's own in models/features.py."""
        from nextbest.data.features import FeatureGroup
        from nextbest.data.groups import BUILT_IN

        path = self.root / "models" / "features.py"
        if not path.exists():
            return BUILT_IN
        own = [v for v in vars(_load(self.root, path)).values() if isinstance(v, FeatureGroup)]
        for group in own:
            if group.name in {g.name for g in BUILT_IN}:
                raise ConfigError(
                    "models/features.py",
                    f'feature group "{group.name}" has the name of a built-in one',
                    expected="a name of its own",
                )
        return (*BUILT_IN, *own)

    def sources(self) -> dict[str, Any]:
        """Call the project's `tables()` and return its Ibis tables by name."""
        path = self.root / "training" / "sources.py"
        if not path.exists():
            raise ConfigError(
                "training/sources.py", "the file is missing", expected="a function tables()"
            )
        tables = getattr(_load(self.root, path), "tables", None)
        if not callable(tables):
            raise ConfigError(
                "training/sources.py",
                "it has no function tables()",
                expected="def tables() -> dict[str, ibis.Table]",
            )
        found = _guard("training/sources.py", tables)
        if not isinstance(found, dict):
            raise ConfigError(
                "training/sources.py",
                "tables() returned the wrong thing",
                expected="a dict of Ibis tables",
                got=type(found).__name__,
            )
        return found

    def history(self) -> History:
        """Read, check and clean the project's data; bad rows go to `.nextbest/quarantine`."""
        from nextbest.data.contract import check_and_clean

        return check_and_clean(
            self.sources(),
            observed_until=self.settings.observed_until,
            error_limit=self.settings.error_limit,
            quarantine_dir=self.state / "quarantine",
        )

    def registry(self) -> Registry:
        """Return the model registry of the project."""
        from nextbest.learn.registry import Registry

        return Registry(None, self.state)

    def plan(self, model: Model) -> Plan:
        """Return when a model is trained and tested, from its table in training.toml."""
        return make_plan(self.settings, model)

    def score_columns(self) -> tuple[str, ...]:
        """Score columns that profiles will hold, in the order of the models."""
        return tuple(c for m in self.models.values() for c in m.score_columns)


def read_settings(path: Path) -> Settings:
    """Read training.toml.

    Raises
    ------
    ConfigError : the file is missing or broken, or settings are wrong; all faults at once.
    """
    where = f"{path.parent.name}/{path.name}"
    raw = read_toml(path)
    faults: list[Fault] = []
    _unknown(where, "", raw, ("project", "data", "jobs", "gates", "models"), faults)
    project, data = _table(where, raw, "project", faults), _table(where, raw, "data", faults)
    jobs = _table(where, raw, "jobs", faults)
    _unknown(
        where,
        "[project] ",
        project,
        ("name", "timezone", "observed_until", "as_of", "seed"),
        faults,
    )
    _unknown(where, "[data] ", data, ("error_limit",), faults)
    _unknown(where, "[jobs] ", jobs, ("order",), faults)
    name = _typed(where, "project.name", project.get("name"), str, "a text", faults) or "project"
    zone = project.get("timezone", "UTC")
    try:
        tz: ZoneInfo | None = ZoneInfo(zone)
    except (KeyError, ValueError, TypeError, OSError):
        tz = None
        faults.append(
            Fault(
                where,
                "project.timezone is not a time zone",
                'a name such as "Europe/Paris"',
                repr(zone),
            )
        )
    today = datetime.now(UTC).replace(tzinfo=None, microsecond=0)
    moments = {}
    for key in ("observed_until", "as_of"):
        value = project.get(key)
        if value is None:
            moments[key] = today
        elif isinstance(value, date):
            moments[key] = to_utc(value, tz or ZoneInfo("UTC"))
        else:
            faults.append(
                Fault(
                    where, f"project.{key} is not a date", "a date such as 2017-12-10", repr(value)
                )
            )
            moments[key] = today
    seed = project.get("seed", 0)
    if not isinstance(seed, int) or isinstance(seed, bool) or not 0 <= seed < 2**31:
        faults.append(
            Fault(where, "project.seed is wrong", "a whole number from 0 to 2147483647", repr(seed))
        )
        seed = 0
    limit = data.get("error_limit", 0.05)
    if isinstance(limit, dict):
        for table, share in limit.items():
            _share(where, f"data.error_limit.{table}", share, faults)
    else:
        _share(where, "data.error_limit", limit, faults)
    order = jobs.get("order", [])
    if not isinstance(order, list) or not all(isinstance(n, str) for n in order):
        faults.append(Fault(where, "jobs.order is wrong", "a list of model names", repr(order)))
        order = []
    if faults:
        raise ConfigError(faults=faults)
    return Settings(
        name=name, timezone=zone, observed_until=moments["observed_until"], as_of=moments["as_of"],
        seed=seed, error_limit=limit, order=tuple(order), raw=raw,
    )  # fmt: skip


_PLAN_KEYS = ("cut", "train_from", "every_days", "test", "evaluation_days", "folds", "gates")


def make_plan(settings: Settings, model: Model) -> Plan:
    """Return a model's plan: moments on this side of the cut whose labels are closed by then.

    Raises
    ------
    ConfigError : the model has no table in training.toml, or a setting is wrong; all at once.
    """
    from nextbest.learn.model import Gates, Plan

    where = _SETTINGS
    tables = settings.raw.get("models", {})
    table = tables.get(model.name) if isinstance(tables, dict) else None
    if not isinstance(table, dict):
        raise ConfigError(
            where,
            f'model "{model.name}" has no table',
            expected=f"[models.{model.name}] with a cut",
        )
    faults: list[Fault] = []
    prefix = f"models.{model.name}."
    _unknown(where, f"[models.{model.name}] ", table, _PLAN_KEYS, faults)
    tz = ZoneInfo(settings.timezone)

    def moment(key: str, value: Any) -> datetime | None:
        if isinstance(value, date):
            return to_utc(value, tz)
        faults.append(
            Fault(where, f"{prefix}{key} is not a date", "a date such as 2017-10-01", repr(value))
        )
        return None

    cut = moment("cut", table.get("cut"))
    gate_values = {**_table(where, settings.raw, "gates", faults), **table.get("gates", {})}
    known = tuple(Gates.__dataclass_fields__)
    _unknown(where, "gates: ", gate_values, known, faults)
    for key, value in gate_values.items():
        if key in known and not (isinstance(value, (int, float)) and value >= 0):
            faults.append(Fault(where, f"gates.{key} is wrong", "a number from 0 up", repr(value)))
    numbers = {}
    for key, default in (("every_days", 28), ("evaluation_days", 180), ("folds", 4)):
        numbers[key] = table.get(key, default)
        if not isinstance(numbers[key], int) or isinstance(numbers[key], bool) or numbers[key] < 1:
            faults.append(
                Fault(
                    where, f"{prefix}{key} is wrong", "a whole number from 1 up", repr(numbers[key])
                )
            )
    train: list[datetime] = []
    test: list[datetime] = []
    if model.kind == "probability" and model.label.entity == "customer":
        first = moment("train_from", table.get("train_from"))
        horizon = model.label.horizon_days or 0
        if first and cut and not faults:
            at = cut - timedelta(days=horizon)
            while at >= first:
                train.append(at)
                at -= timedelta(days=numbers["every_days"])
            if not train:
                faults.append(
                    Fault(
                        where,
                        f"{prefix}train_from leaves nothing to train on",
                        f"a day at least {horizon:g} days before the cut",
                        str(table.get("train_from")),
                    )
                )
        values = table.get("test", [table.get("cut")])
        test = [t for t in (moment("test", v) for v in values) if t is not None]
    if faults or cut is None:
        raise ConfigError(faults=faults)
    return Plan(
        cut=cut, train_as_of=tuple(sorted(train)), test_as_of=tuple(test),
        evaluation_days=numbers["evaluation_days"], folds=numbers["folds"],
        gates=Gates(**{k: v for k, v in gate_values.items() if k in known}),
    )  # fmt: skip


def to_utc(value: date, tz: ZoneInfo) -> datetime:
    """Return a local date's midnight, or a local or aware time, as naive UTC."""
    local = value if isinstance(value, datetime) else datetime.combine(value, time())
    if local.tzinfo is None:
        local = local.replace(tzinfo=tz)
    return local.astimezone(UTC).replace(tzinfo=None)


def read_toml(path: Path) -> dict[str, Any]:
    """Read a TOML file of the project.

    Raises
    ------
    ConfigError : it is missing, not UTF-8, or not TOML (with line and column).
    """
    where = f"{path.parent.name}/{path.name}"
    try:
        return tomllib.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise ConfigError(
            where, "the file is missing", action="`nextbest init` writes one."
        ) from None
    except (OSError, UnicodeDecodeError) as error:
        raise ConfigError(where, "the file cannot be read", got=str(error)) from None
    except tomllib.TOMLDecodeError as error:
        raise ConfigError(where, "this is not valid TOML", got=str(error)) from None


def _table(where: str, raw: dict[str, Any], key: str, faults: list[Fault]) -> dict[str, Any]:
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
                Fault(where, f'{at}has no setting "{key}"'.strip(), "one of " + ", ".join(known),
                      action=did_you_mean(key, known))
            )  # fmt: skip


def _typed(where: str, key: str, value: Any, kind: type, words: str, faults: list[Fault]) -> Any:
    if value is not None and not isinstance(value, kind):
        faults.append(Fault(where, f"{key} is wrong", words, repr(value)))
        return None
    return value


def _share(where: str, key: str, value: Any, faults: list[Fault]) -> None:
    if isinstance(value, bool) or not isinstance(value, (int, float)) or not 0 <= value <= 1:
        faults.append(Fault(where, f"{key} is wrong", "a share from 0 to 1", repr(value)))


def _load(root: Path, path: Path) -> ModuleType:
    """Import a project file by path, under a name of its own; siblings import each other by name."""
    name = f"nextbest_project_{abs(hash(root)):x}_{path.parent.name}_{path.stem}"
    if name in sys.modules:
        return sys.modules[name]
    spec = importlib.util.spec_from_file_location(name, path)
    if spec is None or spec.loader is None:
        raise ConfigError(f"{path.parent.name}/{path.name}", "it cannot be loaded as Python")
    module = importlib.util.module_from_spec(spec)
    sys.modules[name] = module
    loader = spec.loader
    try:
        _guard(f"{path.parent.name}/{path.name}", lambda: loader.exec_module(module), path)
    except BaseException:
        del sys.modules[name]
        raise
    return module


def _guard(where: str, call: Callable[[], Any], path: Path | None = None) -> Any:
    """Run project code; whatever it raises becomes a message that names the file and line."""
    try:
        return call()
    except NextbestError:
        raise
    except Exception as error:
        line = None
        trace = error.__traceback__
        while trace is not None:
            file = Path(trace.tb_frame.f_code.co_filename)
            if file == path or f"{file.parent.name}/{file.name}" == where:
                line = trace.tb_lineno
            trace = trace.tb_next
        if isinstance(error, SyntaxError) and error.lineno:
            line = error.lineno
        at = f"{where}, line {line}" if line else where
        raise ConfigError(
            at, f"{type(error).__name__}: {error}", action="Mend the file and run again."
        ) from error


def check(project: Project) -> Iterator[Fault]:
    """Yield every fault of the project's definitions, room by room, without reading a row."""
    try:
        groups = project.groups
    except NextbestError as error:
        yield from error.faults
        groups = ()
    try:
        _settings = project.settings
    except NextbestError as error:
        yield from error.faults
        return
    try:
        models = project.models
    except NextbestError as error:
        yield from error.faults
        return
    for name in project.settings.order:
        if name not in models:
            yield Fault(
                _SETTINGS,
                f'jobs.order names "{name}"',
                "a file in models/",
                action=did_you_mean(name, models),
            )
    for model in models.values():
        yield from model.faults(groups)
        try:
            project.plan(model)
        except NextbestError as error:
            yield from error.faults


def scaffold() -> Path:
    """Return the folder that holds the three rooms to copy: the wheel's copy, or the checkout's."""
    here = Path(__file__).resolve().parent
    packed = here / "_scaffold"
    return packed if packed.is_dir() else here.parent.parent


def init(target: Path) -> list[Path]:
    """Copy the three rooms of the reference project into a new or empty folder.

    Raises
    ------
    ConfigError : the folder holds something already, or cannot be written.
    """
    if target.exists() and (not target.is_dir() or any(target.iterdir())):
        raise ConfigError(str(target), "it is not empty", expected="a new or empty folder")
    source = scaffold()
    made = []
    try:
        target.mkdir(parents=True, exist_ok=True)
        for room in ROOMS:
            ignore = shutil.ignore_patterns("__pycache__", "*.pyc", ".nextbest")
            shutil.copytree(source / room, target / room, ignore=ignore)
            made.append(target / room)
    except OSError as error:
        raise ConfigError(str(target), "it cannot be written", got=str(error)) from None
    return made
