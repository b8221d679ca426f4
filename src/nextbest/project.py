"""A project on disk: the rooms `models/`, `training/` and `serving/`, loaded and checked.

Nothing outside this file knows where a definition lies. State goes to `.nextbest/` in the project.
"""

from __future__ import annotations

import importlib
import shutil
import sys
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from types import ModuleType
from typing import TYPE_CHECKING, Any

from nextbest.errors import ConfigError, Fault, NextbestError, NotFoundError, did_you_mean
from nextbest.settings import SETTINGS, Settings, make_plan, read_settings

if TYPE_CHECKING:
    from nextbest.data.contract import History
    from nextbest.data.features import FeatureGroup
    from nextbest.learn.model import Model, Plan
    from nextbest.learn.registry import Registry

ROOMS = ("models", "training", "serving")
_FEATURES = "features"
_SOURCES = "training/sources.py"


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
                got="no such folder"
                if not root.is_dir()
                else "no " + ", no ".join(f"{r}/" for r in missing),
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
        found, faults = self._settings
        if faults:
            raise ConfigError(faults=faults)
        return found

    @cached_property
    def _settings(self) -> tuple[Settings, list[Fault]]:
        return read_settings(self.root / SETTINGS)

    @cached_property
    def models(self) -> dict[str, Model]:
        """All models by name, in the order of the jobs; every fault in the files at once."""
        found, faults = self._models
        if faults:
            raise ConfigError(faults=faults)
        order = [n for n in self.settings.order if n in found]
        return {n: found[n] for n in [*order, *(n for n in found if n not in order)]}

    @cached_property
    def _models(self) -> tuple[dict[str, Model], list[Fault]]:
        """The models that could be read, and what is wrong with the other files."""
        from nextbest.learn.model import Model

        found: dict[str, Model] = {}
        faults: list[Fault] = []
        for path in sorted((self.root / "models").glob("[!_]*.py")):
            if path.stem == _FEATURES:
                continue
            where = f"models/{path.name}"
            try:
                model = getattr(self._load(where), "model", None)
            except NextbestError as error:
                faults.extend(error.faults)
                continue
            if isinstance(model, Model):
                found[path.stem] = model.named(path.stem)
            else:
                expected = "a line `model = Model(...)`; a file of helpers is named _helpers.py"
                got = f"model is a {type(model).__name__}" if model is not None else ""
                faults.append(Fault(where, "it defines no model", expected, got))
        if not found and not faults:
            faults.append(Fault("models/", "there is no model", "a file such as models/churn.py"))
        return found, faults

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

        where = f"models/{_FEATURES}.py"
        if not (self.root / where).exists():
            return BUILT_IN
        values = vars(self._load(where)).values()
        own = list({id(v): v for v in values if isinstance(v, FeatureGroup)}.values())
        taken = [g.name for g in BUILT_IN]
        for group in own:
            if group.name in taken:
                raise ConfigError(
                    where,
                    f'there is a second feature group "{group.name}"',
                    expected="a name that no other group has, built-in ones included",
                )
            taken.append(group.name)
        return (*BUILT_IN, *own)

    @cached_property
    def _tables(self) -> Callable[[], Any]:
        """The function `tables()` of training/sources.py."""
        if not (self.root / _SOURCES).exists():
            raise ConfigError(_SOURCES, "the file is missing", expected="a function tables()")
        tables = getattr(self._load(_SOURCES), "tables", None)
        if not callable(tables):
            raise ConfigError(
                _SOURCES,
                "it has no function tables()",
                expected="def tables() -> dict[str, ibis.Table]",
            )
        function: Callable[[], Any] = tables
        return function

    @cached_property
    def sources(self) -> dict[str, Any]:
        """The project's tables as Ibis expressions by name: what its `tables()` returns."""
        found = self.guard(_SOURCES, self._tables)
        if not isinstance(found, dict):
            raise ConfigError(
                _SOURCES,
                "tables() returned the wrong thing",
                expected="a dict of Ibis tables",
                got=type(found).__name__,
            )
        return found

    @cached_property
    def shapes(self) -> dict[str, Any]:
        """The project's tables in the contract's types; no row is read.

        Raises
        ------
        ConfigError, DataError : tables or columns are missing or wrong; all faults at once.
        """
        from nextbest.data.sources import TABLES, check_shape, conform

        check_shape(self.sources)
        return {name: conform(table, TABLES[name]) for name, table in self.sources.items()}

    def history(self) -> History:
        """Read, check and clean the project's data; bad rows go to `.nextbest/quarantine`."""
        from nextbest.data.contract import check_and_clean

        return check_and_clean(
            self.sources,
            observed_until=self.settings.observed_until,
            error_limit=self.settings.error_limit,
            quarantine_dir=self.state / "quarantine",
        )

    def registry(self) -> Registry:
        """Return the model registry of the project."""
        from nextbest.learn.registry import Registry

        return Registry(None, self.state)

    def plan(self, model: Model) -> Plan:
        """Return when a model is trained and tested, from its table in training.toml.

        Raises
        ------
        ConfigError : the model has no table there, or a setting in it is wrong; all at once.
        """
        plan, faults = make_plan(self.settings, model)
        if plan is None or faults:
            raise ConfigError(faults=faults)
        return plan

    def score_columns(self) -> tuple[str, ...]:
        """Score columns that profiles will hold, in the order of the models."""
        return tuple(c for m in self.models.values() for c in m.score_columns)

    def faults(self) -> Iterator[Fault]:
        """Yield every fault of models/ and training/, file by file, without reading a row."""
        groups: Sequence[FeatureGroup] = ()
        try:
            groups = self.groups
        except NextbestError as error:
            yield from error.faults
        models, unreadable = self._models
        yield from unreadable
        sound = []
        for model in models.values():
            found = list(form_faults(model))
            if not found:
                sound.append(model)
                # Where models/features.py cannot be read, nobody knows which groups exist.
                found = (model if groups else replace(model, features=())).faults(groups)
            yield from found
        try:
            _ = self._tables
        except NextbestError as error:
            yield from error.faults
        try:
            settings, wrong = self._settings
        except NextbestError as error:
            yield from error.faults
            return
        yield from wrong
        yield from self._misnamed(settings)
        for model in sound:
            yield from make_plan(settings, model)[1]

    def _misnamed(self, settings: Settings) -> Iterator[Fault]:
        """Yield the models that training.toml names and that have no file."""
        files = [p.stem for p in (self.root / "models").glob("[!_]*.py") if p.stem != _FEATURES]
        tables = settings.raw.get("models")
        named = [(n, f'jobs.order names "{n}"') for n in settings.order]
        if isinstance(tables, dict):
            named += [(n, f"[models.{n}] is the table of no model") for n in tables]
        for name, problem in named:
            if name not in files:
                hint = did_you_mean(name, files)
                yield Fault(SETTINGS, problem, "the name of a file in models/", action=hint)

    def guard(self, where: str, call: Callable[[], Any]) -> Any:
        """Run code of the project; whatever it raises becomes a fault with its file and line.

        Parameters
        ----------
        where : the file to name if the error passed through none; empty lets such an error through.

        Raises
        ------
        ConfigError : the code failed.
        """
        try:
            return call()
        except NextbestError:
            raise
        except (Exception, SystemExit) as error:
            at, trace = where, error.__traceback__
            while trace is not None:
                if inside := self._inside(trace.tb_frame.f_code.co_filename):
                    at = f"{inside}, line {trace.tb_lineno}"
                trace = trace.tb_next
            said = str(error).strip().partition("\n")[0]
            if isinstance(error, SyntaxError) and error.filename:
                at = f"{self._inside(error.filename) or where}, line {error.lineno}"
                said = error.msg
            if not at:
                raise
            problem = f"{type(error).__name__}: {said}" if said else type(error).__name__
            raise ConfigError(at, problem, action="Mend the file and run again.") from error

    def _inside(self, file: str) -> str | None:
        """The file's name as messages show it, if it lies in a room."""
        path = Path(file)
        if not path.is_absolute() or not path.is_relative_to(self.root):
            return None
        name = path.relative_to(self.root)
        return name.as_posix() if name.parts[0] in ROOMS else None

    def _load(self, where: str) -> ModuleType:
        """Import a file of a room; files of one room may import each other: `from . import x`."""
        room, _, file = where.partition("/")
        package = f"nextbest_project_{abs(hash(self.root)):x}_{room}"
        if package not in sys.modules:
            sys.modules[package] = ModuleType(package)
            sys.modules[package].__path__ = [str(self.root / room)]
        importlib.invalidate_caches()
        name = f"{package}.{file.removesuffix('.py')}"
        module: ModuleType = self.guard(where, lambda: importlib.import_module(name))
        return module


def form_faults(model: Model) -> Iterator[Fault]:
    """Yield what is not even of the right form in a `Model(...)`, before anything asks it."""
    from nextbest.learn.clv import CustomerLifetimeValue

    where = f"models/{model.name}.py"
    forms = {
        "label": ("a label such as NoPurchase(...)", ("examples", "population", "entity")),
        "baseline": ("a baseline such as SingleFeature(...)", ("fit", "needs", "name")),
        "estimator": ("an estimator that has not been fitted", ("fit", "get_params")),
    }
    wrong = False
    for part, (expected, has) in forms.items():
        value = getattr(model, part)
        if isinstance(value, type) or not all(hasattr(value, name) for name in has):
            wrong = True
            yield Fault(where, f"{part} is wrong", expected, _shown(value))
    for part in ("features", "exclude"):
        value = getattr(model, part)
        if not isinstance(value, (tuple, list)) or not all(isinstance(n, str) for n in value):
            yield Fault(
                where, f"{part} is wrong", 'a tuple of names, such as ("rfm",)', repr(value)
            )
    if not wrong and model.kind == "clv":
        if not isinstance(model.estimator, CustomerLifetimeValue):
            expected = "a CustomerLifetimeValue(...), as its label is a FutureValue"
            yield Fault(where, "estimator is wrong", expected, _shown(model.estimator))
    elif not wrong and not hasattr(model.estimator, "predict_proba"):
        expected = "a classifier, as its label is a yes or no"
        yield Fault(where, "estimator is wrong", expected, _shown(model.estimator))


def _shown(value: Any) -> str:
    return f"the class {value.__name__}" if isinstance(value, type) else repr(value)[:80]


def scaffold() -> Path:
    """Return the folder that holds the three rooms to copy: the wheel's copy, or the checkout's."""
    here = Path(__file__).resolve().parent
    packed = here / "_scaffold"
    return packed if packed.is_dir() else here.parent.parent


def require_empty(target: Path) -> None:
    """Refuse a folder that holds something already.

    Raises
    ------
    ConfigError : it is a file, or a folder with something in it that is not hidden.
    """
    # A fresh repository holds a hidden folder, and is as good as empty.
    held = sorted(p.name for p in target.iterdir()) if target.is_dir() else []
    if (target.exists() and not target.is_dir()) or any(not n.startswith(".") for n in held):
        raise ConfigError(
            str(target),
            "there is something already",
            expected="a new or empty folder",
            got=", ".join(held[:5]) or "a file",
        )


def init(target: Path) -> list[Path]:
    """Copy the three rooms of the reference project into a new or empty folder.

    Raises
    ------
    ConfigError : the folder holds something already, or cannot be written.
    """
    require_empty(target)
    source = scaffold()
    made = []
    try:
        target.mkdir(parents=True, exist_ok=True)
        for room in ROOMS:
            ignore = shutil.ignore_patterns("__pycache__", "*.pyc", ".nextbest")
            shutil.copytree(source / room, target / room, ignore=ignore)
            made.append(target / room)
    except OSError as error:
        reason = error.strerror or str(error)
        raise ConfigError(str(target), "it cannot be written", got=reason) from None
    return made
