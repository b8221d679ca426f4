"""The jobs behind the commands: check, train, promote, refresh, decide. No printing here."""

from __future__ import annotations

import io
import json
import os
import tempfile
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from datetime import datetime, timedelta
from pathlib import Path
from typing import TYPE_CHECKING, Any

from nextbest.errors import (
    ArtifactError,
    ConfigError,
    DataError,
    Fault,
    FitError,
    NextbestError,
    RegistryError,
    did_you_mean,
)
from nextbest.project import Project, form_faults
from nextbest.settings import SETTINGS

if TYPE_CHECKING:
    from nextbest.data.contract import History
    from nextbest.data.features import Feature
    from nextbest.data.live import RecentRows
    from nextbest.data.profiles import Profiles
    from nextbest.data.snapshots import ProfileFrames
    from nextbest.decide.offers import Catalogue
    from nextbest.decide.offertable import OfferTable
    from nextbest.decide.policy import Policy
    from nextbest.learn.gates import GateResult
    from nextbest.learn.model import Model
    from nextbest.learn.records import Version
    from nextbest.learn.registry import Registry
    from nextbest.learn.scorer import LoadedModel
    from nextbest.learn.train import TrainResult
    from nextbest.learn.watch import Watch
    from nextbest.serve.bundle import ModelSource
    from nextbest.serve.warehouse import PastContacts

Progress = Callable[[str], None]

_RESPONSE_TABLES = ("contacts", "responses", "offers")
_SCORE_MEANINGS: Mapping[str, tuple[str, str]] = {
    "clv": ("expected discounted value over the model's horizon", "currency"),
    "clv_low": ("lower bound of clv", "currency"),
    "clv_high": ("upper bound of clv", "currency"),
    "p_alive": ("probability that the customer will still buy at all", "probability"),
}


# ------------------------------------------------------------------ check


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
    table = _offer_table(project, history) if history is not None else None
    notes: tuple[str, ...] = ()
    try:
        serving = load_serving(project.root / "serving", table=table)
        if table is not None and serving[0].table is not None:
            notes = table.notes
        if history is not None:
            faults += _uncountable(serving[1], history)
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
        faults += [f for m in project.models.values() for f in _unfed(project, m, found)]
        faults += _unknown_accepted(project, found)
    except NextbestError as error:
        faults += error.faults
    try:
        history = project.history()
    except NextbestError as error:
        faults += error.faults
    return found, history


def _offer_table(project: Project, history: History) -> OfferTable | None:
    """Return the offers of the data's own table; None where the data hold none."""
    from nextbest.data.sources import TABLES
    from nextbest.decide.offers import AMOUNTS, Offer
    from nextbest.decide.offertable import TABLE, OfferTable

    if TABLE not in history.tables:
        return None
    rows = history.tables[TABLE].to_pyarrow().to_pylist()
    in_contract = [column.name for column in TABLES[TABLE].columns]
    return OfferTable.of(rows, Offer.model_fields, AMOUNTS, project.settings.as_of, in_contract)


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


def _unfed(project: Project, model: Model, found: Iterable[Feature]) -> Iterator[Fault]:
    """Yield what a model asks for that no feature of the data gives."""
    where = f"models/{model.name}.py"
    lacking = [t for t in _RESPONSE_TABLES if t not in project.shapes]
    if model.label.entity == "pair" and lacking:
        for table in lacking:
            problem, expected = f'its label needs the table "{table}"', "returned by tables()"
            yield Fault(where, problem, expected, action="Return it from training/sources.py.")
        return
    names = _readable(project, model, found)
    for need in model.baseline.needs:
        if need not in names:
            problem = f'the baseline needs the feature "{need}"'
            expected = "a feature that the data can feed"
            yield Fault(where, problem, expected, action=did_you_mean(need, names))
    known = [*names, *(g.name for g in project.groups)]
    for name in model.exclude:
        if name not in known:
            problem, expected = f'exclude names "{name}"', "a feature group or a feature"
            yield Fault(where, problem, expected, action=did_you_mean(name, known))


def _readable(project: Project, model: Model, found: Iterable[Feature]) -> list[str]:
    """Return the features of a model's groups that its rows have."""
    groups = project.groups if model.kind == "clv" else model.groups(project.groups)
    entities = ("customer",) if model.label.entity == "customer" else ("customer", "offer", "pair")
    used = {g.name for g in groups}
    return [f.name for f in found if f.group in used and f.entity in entities]


def _sensitive(project: Project, found: Iterable[Feature], policy: Policy) -> Iterator[Fault]:
    """Yield the sensitive attributes that models would read against the policy."""
    for model in project.models.values():
        if model.kind == "clv":
            continue  # it reads its RFM table alone
        names = (name for name in _readable(project, model, found) if name not in model.exclude)
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


def features(project: Project) -> tuple[tuple[Feature, ...], tuple[str, ...]]:
    """Return every feature that the data can feed, and the groups that they cannot; reads no row.

    Raises
    ------
    ConfigError, DataError : sources or feature groups are wrong.
    """
    from nextbest.data.features import available, describe

    usable, missing = available(project.groups, project.shapes)
    found = project.guard("", lambda: describe(usable, project.shapes))
    consents = _consents(project.shapes["customers"].columns)
    return (*found, *consents), tuple(str(m) for m in missing)


def _consents(columns: Iterable[str]) -> tuple[Feature, ...]:
    """Return the columns that say who may be contacted: policy and rules read them, no model does.

    They are taken as they stand, not as of a moment: what counts is what people say now.
    """
    from nextbest.data.features import Feature

    return tuple(
        Feature(name, f"may be contacted by {name.removeprefix('consent_')}", "yes or no",
                "customers", "consent", "customer", "boolean")
        for name in columns if name.startswith("consent_")
    )  # fmt: skip


# ------------------------------------------------------------------ train and promote


def train(
    project: Project,
    names: Sequence[str],
    history: History,
    registry: Registry,
    progress: Progress = lambda _step: None,
    *,
    tune: int = 0,
) -> list[TrainResult]:
    """Train models by name (all, in the order of the jobs, if none is named).

    Parameters
    ----------
    tune : candidates to try in each model's search space before its fit; 0 for none.
    """
    from nextbest.learn.train import train as train_one

    models = trainable(project, names)
    found = features(project)[0]
    faults = [f for m in models for f in _unfed(project, m, found)]
    if faults:
        raise ConfigError(faults=faults)
    if tune:
        _tunable(project, models)
    results = []
    for model in models:
        with _naming_the_cause(model):
            results.append(
                train_one(
                    model, project.plan(model), history, project.groups, registry,
                    dataset=project.settings.name, seed=project.settings.seed, trials=tune,
                    progress=_named(model.name, progress),
                )
            )  # fmt: skip
    return results


def _tunable(project: Project, models: Iterable[Model]) -> None:
    """Say what keeps models from being tuned before any of them is trained."""
    from nextbest.learn.tune import require_tunable

    for model in models:
        require_tunable(model, project.plan(model).search)


def trainable(project: Project, names: Sequence[str]) -> list[Model]:
    """Return models by name (all, if none is named); every fault in them shows before any work.

    Raises
    ------
    NotFoundError : there is no such model.
    ConfigError : models/ or training.toml are wrong; all faults at once.
    """
    models = [project.model(n) for n in dict.fromkeys(names)] or list(project.models.values())
    faults: list[Fault] = []
    for model in models:
        ill_formed = list(form_faults(model))
        faults += ill_formed or model.faults(project.groups)
        try:
            if not ill_formed:
                project.plan(model)
        except ConfigError as error:
            faults += error.faults
    if faults:
        raise ConfigError(faults=list(dict.fromkeys(faults)))
    return models


@contextmanager
def _naming_the_cause(model: Model) -> Iterator[None]:
    """Turn what the estimator's library or the database raises into a fault of model or data."""
    try:
        yield
    except NextbestError:
        raise
    except Exception as error:
        said = f"{type(error).__name__}: {str(error).strip().partition(chr(10))[0]}"
        passed = _packages(error)
        where = f"models/{model.name}.py"
        if passed & {"duckdb", "ibis", "sqlglot"}:
            raise DataError(
                where,
                "its features cannot be computed from the data",
                got=said,
                action="Look at models/features.py and training/sources.py.",
            ) from error
        if passed & {"sklearn", "lightgbm"}:
            raise FitError(
                where, "the estimator cannot be fitted", got=said, action="Look at its settings."
            ) from error
        raise


def _packages(error: BaseException) -> set[str]:
    """Packages that an error came from or passed through."""
    found = {type(error).__module__.partition(".")[0]}
    trace = error.__traceback__
    while trace is not None:
        found.add(str(trace.tb_frame.f_globals.get("__name__", "")).partition(".")[0])
        trace = trace.tb_next
    return found


def _named(name: str, progress: Progress) -> Progress:
    return lambda step: progress(f"{name}: {step}")


def promote(
    project: Project,
    name: str,
    registry: Registry,
    version: int | str | None = None,
    *,
    force: bool = False,
    reason: str | None = None,
) -> tuple[Version, tuple[GateResult, ...]]:
    """Make a version (the newest by default) champion, if its gates allow.

    Raises
    ------
    GateRefusal : a gate says no; it names the gate and the numbers.
    RegistryError : there is no such version.
    """
    from nextbest.learn import gates
    from nextbest.learn.metrics import paired_difference

    model = project.model(name)
    chosen = registry.version(name, version) if version is not None else _newest(registry, name)
    results = list(_stored_gates(chosen))
    champion = registry.champion(name)
    if champion is not None and champion.version != chosen.version:
        ours, theirs = (_test_scores(registry, v) for v in (chosen, champion))
        keys = [c for c in ("customer_id", "offer_id", "as_of") if c in ours]
        both = ours.merge(theirs, on=keys, suffixes=("", "_champion"))
        if len(both) == len(ours) == len(theirs):
            metric = gates.PRIMARY[model.kind][0]
            difference = paired_difference(
                metric,
                both["label"].to_numpy(),
                both["score"].to_numpy(),
                both["score_champion"].to_numpy(),
                customers=both["customer_id"].to_numpy(),
            )
            limits = project.plan(model).gates
            scale = champion.metrics["test"]["mae"].value if model.kind == "clv" else 1.0
            results.append(gates.against_champion(model.kind, limits, difference, scale))
        else:
            results.append(
                gates.GateResult(
                    "champion",
                    False,
                    f"tested on other rows than the champion ({len(ours):,} and {len(theirs):,}, "
                    f"{len(both):,} shared), so they cannot be compared",
                )
            )
    if not force:
        gates.require(name, chosen.version, results)
    overruled = any(not r.passed for r in results)
    detail = {
        "version": chosen.version,
        "before": None if champion is None else champion.version,
        "forced": overruled,
        "refusing": [r.gate for r in results if not r.passed],
        "reason": reason,
    }
    with _audited(project, "promote", name, detail):
        promoted = registry.promote(name, chosen.version, reason=reason, forced=overruled)
    return promoted, tuple(results)


def rollback(
    project: Project, name: str, registry: Registry, *, reason: str | None = None
) -> Version:
    """Give the champion's place back to the one before it.

    Raises
    ------
    NotFoundError : there is no such model.
    RegistryError : there was no champion before.
    """
    project.model(name)
    champion = registry.champion(name)
    detail = {"before": None if champion is None else champion.version, "reason": reason}
    with _audited(project, "rollback", name, detail) as said:
        back = registry.rollback(name, reason=reason)
        said["version"] = back.version
    return back


@contextmanager
def _audited(
    project: Project, action: str, name: str, detail: Mapping[str, Any]
) -> Iterator[dict[str, Any]]:
    """Note a change of champion in the audit trail, once it is made.

    The store is opened and written first: nothing is changed that could not be noted.
    """
    from nextbest.serve.audit import Change, local_actor
    from nextbest.serve.runtime import open_store

    store = open_store(project.root)
    try:
        store.ping()
        said = dict(detail)
        yield said
        store.audit(Change(local_actor(), action, f"model {name}", said))
    finally:
        store.close()


def _newest(registry: Registry, name: str) -> Version:
    found = registry.versions(name)
    if not found:
        raise RegistryError(
            f'model "{name}"', "it has no version yet", action=f"Run `nextbest train {name}` first."
        )
    return found[-1]


def _stored_gates(version: Version) -> list[GateResult]:
    from nextbest.learn.gates import GateResult

    stored = version.tags.get("nextbest.gates")
    if stored is None:
        return [GateResult("record", False, "the run holds no gate results; train it again")]
    return [GateResult(**g) for g in json.loads(stored)]


def _test_scores(registry: Registry, version: Version) -> Any:
    import pandas as pd

    return pd.read_parquet(io.BytesIO(registry.read_file(version.run_id, "test_scores.parquet")))


# ------------------------------------------------------------------ refresh


@dataclass(frozen=True)
class RefreshResult:
    """What `refresh` made."""

    bundle: str
    customers: int
    offers: int
    columns: int
    as_of: str
    models: Mapping[str, int]
    without_champion: tuple[str, ...]
    drift: Mapping[str, Watch | str] = field(default_factory=dict)
    drift_file: str = ""
    notes: tuple[str, ...] = ()

    def to_dict(self) -> dict[str, Any]:
        """Return the facts as plain JSON types."""
        return {
            **vars(self),
            "models": dict(self.models),
            "without_champion": list(self.without_champion),
            "notes": list(self.notes),
            "drift": {name: _drift_facts(found) for name, found in self.drift.items()},
        }


def _drift_facts(found: Watch | str) -> dict[str, Any]:
    if isinstance(found, str):
        return {"status": "unknown", "because": found}
    return {"status": found.status, "lines": found.lines()}


def refresh(
    project: Project, history: History, registry: Registry, progress: Progress = lambda _step: None
) -> RefreshResult:
    """Compute every customer's profile, score it with the champions, and make it what is served.

    Raises
    ------
    RegistryError : propensity has no champion, so that no offer could be decided.
    ConfigError : catalogue or policy are wrong, or the tables that they count on.
    """
    import numpy as np

    from nextbest.data import profiles, snapshots
    from nextbest.decide.policy import load_serving
    from nextbest.learn import artifact
    from nextbest.serve.bundle import PROPENSITY, ModelSource, write_bundle

    if registry.champion(PROPENSITY) is None:
        raise RegistryError(
            f'model "{PROPENSITY}"',
            "it has no champion, and without one no offer can be decided",
            action=f"Run `nextbest train {PROPENSITY}`, then `nextbest promote {PROPENSITY}`.",
        )
    table = _offer_table(project, history)
    catalogue, policy = load_serving(project.root / "serving", table=table)
    if faults := list(_uncountable(policy, history)):
        raise ConfigError(faults=faults)
    offer_ids = catalogue.offer_ids
    as_of = project.settings.as_of
    progress("profiles of all customers")
    frames = snapshots.profile(history, project.groups, as_of, offer_ids)
    sources: dict[str, ModelSource] = {}
    without: list[str] = []
    scores: dict[str, Any] = {}
    described: list[Feature] = []
    moved: dict[str, Watch | str] = {}
    with tempfile.TemporaryDirectory(prefix="nextbest-") as scratch:
        for model in project.models.values():
            champion = registry.champion(model.name)
            if champion is None:
                without.append(model.name)
                # The column is there all the same: a rule on it is unknown, not a broken policy.
                unknown = np.full(len(frames.customers), np.nan)
                scores |= dict.fromkeys(model.score_columns, unknown)
                described += [_score_feature(model, c) for c in model.score_columns]
                continue
            progress(f"score with {model.name} version {champion.version}")
            path = registry.fetch(model.name, champion.version, Path(scratch) / model.name)
            sources[model.name] = ModelSource(
                path, champion.version, champion.run_id, champion.aliases
            )
            loaded = artifact.load(path)
            if model.score_columns:
                found = _score(model, loaded, history, frames)
                scores |= found
                described += [_score_feature(model, c) for c in found]
            progress(f"look for drift since {model.name} version {champion.version} was trained")
            moved[model.name] = _watch(project, model, loaded, champion, registry, history, frames)
        consents = _consents(history.tables["customers"].columns)
        scores |= _consent_values(history, frames, consents)
        described += consents
        progress("write the bundle")
        version = f"{as_of:%Y%m%dT%H%M%S}"
        laid_out = profiles.from_frames(frames, scores, version, described)
        bundle = write_bundle(
            project.serving_state,
            sources,
            laid_out,
            offers=catalogue.table,
            contacts=_past_contacts(policy, history, laid_out),
            recent=_recent_rows(history, laid_out),
        )
    _forget_who_is_gone(project)
    columns = len(frames.features) + len(scores)
    drift_file = _keep_drift(project, version, sources, moved)
    return RefreshResult(
        bundle, len(frames.customers), len(offer_ids), columns, as_of.isoformat() + "Z",
        {n: s.version or 0 for n, s in sources.items()}, tuple(without),
        moved, str(drift_file), table.notes if table and catalogue.table else (),
    )  # fmt: skip


def _forget_who_is_gone(project: Project) -> None:
    """Drop the hashes of erased people whom no bundle on disk holds any more."""
    from nextbest.data.profiles import Profiles
    from nextbest.serve.runtime import open_store, who_is_erased

    if os.environ.get("NEXTBEST_STORE"):
        return  # other machines that share it may have bundles that we do not see
    erased = who_is_erased(project.root)
    if not erased.hashes:
        return
    held: set[str] = set()
    try:
        for folder in project.serving_state.glob("*/profiles"):
            held |= {erased.hash_of(one) for one in Profiles.open(folder).ids()}
    except ArtifactError:
        return  # nobody knows whom a damaged bundle holds
    store = open_store(project.root)
    try:
        store.lift_erasures(erased.hashes - held)
    finally:
        store.close()


def _uncountable(policy: Policy, history: History) -> Iterator[Fault]:
    """Yield what a policy counts that the data do not hold."""
    if policy.tables.contact.count_history and "contacts" not in history.tables:
        problem = 'count_history needs the table "contacts"'
        expected, got = "returned by tables() of training/sources.py", ", ".join(history.tables)
        yield Fault(f"{policy.where}: [contact]", problem, expected, got)


def _past_contacts(policy: Policy, history: History, laid_out: Profiles) -> PastContacts | None:
    """Return what the policy counts beside the decision log; None where it counts no more."""
    from nextbest.data.recent import recent
    from nextbest.serve.warehouse import PastContacts

    if not policy.tables.contact.count_history:
        return None
    # The limits look back from each decision, and the first of them is made for this moment.
    early = max(history.observed_until - laid_out.as_of, timedelta())
    days = policy.tables.history_days()
    return PastContacts.of(laid_out, recent(history, days + early / timedelta(days=1)), days)


def _recent_rows(history: History, laid_out: Profiles) -> dict[str, RecentRows]:
    """Return by table the rows that live features count, as far as there are such features."""
    from nextbest.data.live import KIND_COLUMNS, RecentRows, window
    from nextbest.data.recent import before

    as_of = laid_out.as_of.replace(tzinfo=None)
    row_of = {one: row for row, one in enumerate(laid_out.ids())}
    found = {}
    for table in KIND_COLUMNS:
        lives = [f.live for f in laid_out.features if f.source == table and f.live]
        if lives:
            kept = window(lives)
            found[table] = RecentRows.of(before(history, table, kept, as_of), kept, row_of)
    return found


#: Contacts of so many days stand for what an offer model is asked about today.
_RECENT_DAYS = 91


def _watch(
    project: Project,
    model: Model,
    loaded: LoadedModel,
    champion: Version,
    registry: Registry,
    history: History,
    frames: ProfileFrames,
) -> Watch | str:
    """Return what moved since the champion was trained and tested, or why nobody can say.

    A model of customers is asked about those of its label today. A model of offers was trained on
    contacts, and all customers today are other people than those who were mailed: so it is watched
    on the contacts of the last 91 days, each with what was known of the customer at that moment, as
    in training.
    """
    from nextbest.data import snapshots
    from nextbest.learn import watch

    plan = project.plan(model)
    try:
        memory = json.loads(registry.read_file(champion.run_id, watch.FILE))
    except RegistryError:
        return "its run keeps no reference; train it again to have it watched"
    scores = None
    if model.label.entity == "pair":
        rows = snapshots.contacted(
            history, model.groups(project.groups), frames.as_of, _RECENT_DAYS
        )
        if rows.empty:
            return f"nobody was contacted in the last {_RECENT_DAYS} days"
    else:
        rows = frames.customers[_asked(model, history, frames)]
        if rows.empty:
            return "its label asks about nobody today"
        if model.kind != "clv":
            scores = loaded.score(rows)
    positives = champion.counts.get("n_train_positive")
    return watch.watch(
        memory, rows, scores, plan.drift,
        positives=None if positives is None else (positives, champion.counts["n_train"]),
        later=_later_labels(model, champion, history, frames.as_of),
    )  # fmt: skip


def _later_labels(
    model: Model, champion: Version, history: History, as_of: datetime
) -> dict[str, tuple[int, int]]:
    """Return positives and rows of the latest moments whose label is known by now.

    Only what became known after the champion's cut is news; for a model of customers that is the
    moment one label window ago, for a model of offers the contacts of the last 91 days that closed.
    """
    if model.kind == "clv":
        return {}
    cut = datetime.fromisoformat(champion.params["cut"])
    if model.label.entity == "pair":
        table = model.label.examples(history, ()).table
        first = max(cut, as_of - timedelta(days=_RECENT_DAYS))
        table = table.filter((table.as_of >= first) & (table.label_end <= as_of))
        name = f"contacts since {first:%Y-%m-%d}"
    else:
        moment = as_of - timedelta(days=model.label.horizon_days or 0)
        if moment + timedelta(days=model.label.horizon_days or 0) <= cut:
            return {}
        table = model.label.examples(history, [moment]).table
        name = f"as of {moment:%Y-%m-%d}"
    labels = table.select("label").to_pandas()["label"]
    return {name: (int(labels.sum()), len(labels))} if len(labels) else {}


def _keep_drift(
    project: Project,
    version: str,
    sources: Mapping[str, ModelSource],
    moved: Mapping[str, Watch | str],
) -> Path:
    """Write everything that was measured, moved or not, beside the project's other state."""
    facts = {
        name: {
            "version": sources[name].version,
            **({"because": found} if isinstance(found, str) else found.to_dict()),
        }
        for name, found in moved.items()
    }
    target = project.state / "drift" / f"{version}.json"
    target.parent.mkdir(parents=True, exist_ok=True)
    target.write_text(json.dumps(facts, indent=1, allow_nan=False), encoding="utf-8")
    return target


def _consent_values(
    history: History, frames: ProfileFrames, consents: Iterable[Feature]
) -> dict[str, Any]:
    """Return each consent as 1, 0 or unknown, in the order of the profiles."""
    people = history.tables["customers"].to_pandas().set_index("customer_id")
    people = people.reindex(frames.customers["customer_id"])
    return {
        c.name: people[c.name].map({True: 1.0, False: 0.0}).to_numpy(dtype="float64")
        for c in consents
    }


def _score(
    model: Model, loaded: LoadedModel, history: History, frames: ProfileFrames
) -> dict[str, Any]:
    """Score the customers that the model's label asks about; of the others the score is unknown."""
    import numpy as np

    from nextbest.data.labels import TopShareOfValue
    from nextbest.learn.metrics import in_top_share

    customers = frames.customers
    needed = [*loaded.columns, *([model.past_value] if model.past_value else [])]
    missing = [c for c in dict.fromkeys(needed) if c not in customers]
    if missing:
        raise DataError(
            f'model "{model.name}"',
            f"the data no longer feed {len(missing)} of its features",
            expected="every feature it was trained on",
            got="no " + ", ".join(missing[:5]),
            action=f"Bring the data back, or train and promote {model.name} again.",
        )
    asked = _asked(model, history, frames)
    found = loaded.scores(customers[asked])
    if loaded.kind != "clv":
        found = {model.score_columns[0]: found["score"]}
    if isinstance(model.label, TopShareOfValue) and model.past_value:
        past = customers.loc[asked, model.past_value].fillna(0.0)
        found[f"{model.name}_now"] = in_top_share(past, model.label.share).astype(float)
    out = {}
    for name in model.score_columns:
        out[name] = np.full(len(customers), np.nan)
        out[name][asked] = found[name]
    return out


def _asked(model: Model, history: History, frames: ProfileFrames) -> Any:
    """Whom the model's label asks about today, as a mask over the profiles' customers."""
    people = model.label.population(history, frames.as_of).select("customer_id").to_pandas()
    return frames.customers["customer_id"].isin(set(people["customer_id"])).to_numpy()


def _score_feature(model: Model, column: str) -> Feature:
    from nextbest.data.feature import SCORE_GROUP, Feature

    meaning, unit = _SCORE_MEANINGS.get(
        column, (f"probability: {model.label.meaning}", "probability")
    )
    if model.past_value and column == f"{model.name}_now":
        meaning, unit = f"1: in today's top share by {model.past_value}", "flag"
    return Feature(column, meaning, unit, f"model {model.name}", SCORE_GROUP, "customer", "number")
