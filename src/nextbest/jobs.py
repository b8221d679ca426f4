"""The jobs behind the commands: check, train, promote, refresh, decide. No printing here."""

from __future__ import annotations

import io
import tempfile
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from nextbest.errors import ConfigError, DataError, Fault, NextbestError, RegistryError
from nextbest.project import Project, check

if TYPE_CHECKING:
    from nextbest.data.contract import History
    from nextbest.data.features import Feature
    from nextbest.data.snapshots import ProfileFrames
    from nextbest.learn.gates import GateResult
    from nextbest.learn.model import Model
    from nextbest.learn.records import Version
    from nextbest.learn.registry import Registry
    from nextbest.learn.scorer import LoadedModel
    from nextbest.learn.train import TrainResult

Progress = Callable[[str], None]

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

    def to_dict(self) -> dict[str, Any]:
        """Return the report as plain JSON types."""
        tables = [r.to_dict() for r in self.history.reports] if self.history else []
        return {
            "ok": not self.faults,
            "faults": [{**vars(f), "message": str(f)} for f in self.faults],
            "tables": tables,
        }


def check_project(project: Project, *, data: bool = True) -> CheckReport:
    """Collect every fault of definitions, data, catalogue and policy, each room on its own.

    Parameters
    ----------
    data : also read and check the data; otherwise only definitions are looked at.
    """
    faults = list(check(project))
    history = None
    if data:
        try:
            history = project.history()
        except NextbestError as error:
            faults.extend(error.faults)
    faults.extend(_serving_faults(project, history))
    return CheckReport(tuple(dict.fromkeys(faults)), history)


def _serving_faults(project: Project, history: History | None) -> list[Fault]:
    from nextbest.decide.binding import bind
    from nextbest.decide.policy import load_serving
    from nextbest.decide.rules import Column

    try:
        catalogue, policy = load_serving(project.root / "serving")
        if history is None:
            return []
        columns = {
            f.name: Column(_column_type(f.dtype), f.entity) for f in features(project, history)[0]
        }
        columns |= {name: Column("number", "customer") for name in project.score_columns()}
        bind(catalogue, policy, columns)
    except NextbestError as error:
        return list(error.faults)
    return []


def _column_type(dtype: str) -> Any:
    return dtype if dtype in ("string", "boolean") else "number"


def features(project: Project, history: History) -> tuple[tuple[Feature, ...], tuple[str, ...]]:
    """Return every feature that the data can feed, and the groups that they cannot."""
    from nextbest.data.features import available, describe

    usable, missing = available(project.groups, history.tables)
    return describe(usable, history.tables), tuple(str(m) for m in missing)


# ------------------------------------------------------------------ train and promote


def train(
    project: Project,
    names: Sequence[str],
    history: History,
    registry: Registry,
    progress: Progress = lambda _step: None,
) -> list[TrainResult]:
    """Train models by name (all, in the order of the jobs, if none is named)."""
    from nextbest.learn.train import train as train_one

    models = [project.model(n) for n in names] or list(project.models.values())
    plans = [project.plan(m) for m in models]  # every fault in them shows before any work
    faults = [f for m in models for f in m.faults(project.groups)]
    if faults:
        raise ConfigError(faults=faults)
    results = []
    for model, plan in zip(models, plans, strict=True):
        results.append(
            train_one(
                model, plan, history, project.groups, registry,
                dataset=project.settings.name, seed=project.settings.seed,
                progress=_named(model.name, progress),
            )
        )  # fmt: skip
    return results


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
    return registry.promote(name, chosen.version, reason=reason, forced=force), tuple(results)


def _newest(registry: Registry, name: str) -> Version:
    found = registry.versions(name)
    if not found:
        raise RegistryError(
            f'model "{name}"', "it has no version yet", action=f"Run `nextbest train {name}` first."
        )
    return found[-1]


def _stored_gates(version: Version) -> list[GateResult]:
    import json

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

    def to_dict(self) -> dict[str, Any]:
        """Return the facts as plain JSON types."""
        return {
            **vars(self),
            "models": dict(self.models),
            "without_champion": list(self.without_champion),
        }


def refresh(
    project: Project, history: History, registry: Registry, progress: Progress = lambda _step: None
) -> RefreshResult:
    """Compute every customer's profile, score it with the champions, and make it what is served.

    Raises
    ------
    RegistryError : no model has a champion.
    """
    from nextbest.data import profiles, snapshots
    from nextbest.decide.offers import Catalogue
    from nextbest.learn import artifact
    from nextbest.serve.bundle import ModelSource, write_bundle

    offer_ids = Catalogue.load(project.root / "serving" / "offers.toml").offer_ids
    as_of = project.settings.as_of
    progress("profiles of all customers")
    frames = snapshots.profile(history, project.groups, as_of, offer_ids)
    sources: dict[str, ModelSource] = {}
    without: list[str] = []
    scores: dict[str, Any] = {}
    described: list[Feature] = []
    with tempfile.TemporaryDirectory(prefix="nextbest-") as scratch:
        for model in project.models.values():
            champion = registry.champion(model.name)
            if champion is None:
                without.append(model.name)
                continue
            progress(f"score with {model.name} version {champion.version}")
            path = registry.fetch(model.name, champion.version, Path(scratch) / model.name)
            sources[model.name] = ModelSource(
                path, champion.version, champion.run_id, champion.aliases
            )
            if model.score_columns:
                found = _score(model, artifact.load(path), history, frames)
                scores |= found
                described += [_score_feature(model, c) for c in found]
        if not sources:
            raise RegistryError(
                "refresh",
                "no model has a champion",
                action="Run `nextbest train`, then `nextbest promote`.",
            )
        progress("write the bundle")
        version = f"{as_of:%Y%m%dT%H%M%S}"
        bundle = write_bundle(
            project.serving_state, sources, profiles.from_frames(frames, scores, version, described)
        )
    columns = len(frames.features) + len(scores)
    return RefreshResult(
        bundle, len(frames.customers), len(offer_ids), columns, as_of.isoformat() + "Z",
        {n: s.version or 0 for n, s in sources.items()}, tuple(without),
    )  # fmt: skip


def _score(
    model: Model, loaded: LoadedModel, history: History, frames: ProfileFrames
) -> dict[str, Any]:
    """Score the customers that the model's label asks about; of the others the score is unknown."""
    import numpy as np

    customers = frames.customers
    missing = [c for c in loaded.columns if c not in customers]
    if missing:
        raise DataError(
            f'model "{model.name}"',
            f"the data no longer feed {len(missing)} of its features",
            expected="every feature it was trained on",
            got="no " + ", ".join(missing[:5]),
            action=f"Bring the data back, or train and promote {model.name} again.",
        )
    people = model.label.population(history, frames.as_of).select("customer_id").to_pandas()
    asked = customers["customer_id"].isin(set(people["customer_id"])).to_numpy()
    found = loaded.scores(customers[asked])
    if loaded.kind != "clv":
        found = {model.score_columns[0]: found["score"]}
    out = {}
    for name in model.score_columns:
        out[name] = np.full(len(customers), np.nan)
        out[name][asked] = found[name]
    return out


def _score_feature(model: Model, column: str) -> Feature:
    from nextbest.data.features import Feature

    meaning, unit = _SCORE_MEANINGS.get(
        column, (f"probability: {model.label.meaning}", "probability")
    )
    return Feature(column, meaning, unit, f"model {model.name}", "scores", "customer", "number")
