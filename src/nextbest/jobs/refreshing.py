"""Refresh: every customer's features and scores of today, as a bundle that can be served."""

from __future__ import annotations

import os
import tempfile
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from datetime import timedelta
from pathlib import Path
from typing import TYPE_CHECKING, Any

from nextbest.errors import ArtifactError, ConfigError, DataError, RegistryError
from nextbest.jobs.given import consents_of, offer_table, uncountable
from nextbest.jobs.training import Progress
from nextbest.jobs.watching import asked_today, keep_drift, watch_over
from nextbest.project import Project

if TYPE_CHECKING:
    from nextbest.data.contract import History
    from nextbest.data.features import Feature
    from nextbest.data.live import RecentRows
    from nextbest.data.profiles import Profiles
    from nextbest.data.snapshots import ProfileFrames
    from nextbest.decide.policy import Policy
    from nextbest.learn.model import Model
    from nextbest.learn.registry import Registry
    from nextbest.learn.scorer import LoadedModel
    from nextbest.learn.watch import Watch
    from nextbest.serve.bundle import ModelSource
    from nextbest.serve.warehouse import PastContacts

__all__ = ["RefreshResult", "forget_who_is_gone", "recent_rows", "refresh"]

_SCORE_MEANINGS: Mapping[str, tuple[str, str]] = {
    "clv": ("expected discounted value over the model's horizon", "currency"),
    "clv_low": ("lower bound of clv", "currency"),
    "clv_high": ("upper bound of clv", "currency"),
    "p_alive": ("probability that the customer will still buy at all", "probability"),
}


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
    table = offer_table(project, history)
    catalogue, policy = load_serving(project.root / "serving", table=table)
    if faults := list(uncountable(policy, history)):
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
            moved[model.name] = watch_over(
                project, model, loaded, champion, registry, history, frames
            )
        consents = consents_of(history.tables["customers"].columns)
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
            recent=recent_rows(history, laid_out),
        )
    forget_who_is_gone(project)
    columns = len(frames.features) + len(scores)
    drift_file = keep_drift(project, version, sources, moved)
    return RefreshResult(
        bundle, len(frames.customers), len(offer_ids), columns, as_of.isoformat() + "Z",
        {n: s.version or 0 for n, s in sources.items()}, tuple(without),
        moved, str(drift_file), table.notes if table and catalogue.table else (),
    )  # fmt: skip


def forget_who_is_gone(project: Project) -> None:
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


def recent_rows(history: History, laid_out: Profiles) -> dict[str, RecentRows]:
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
    asked = asked_today(model, history, frames)
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


def _score_feature(model: Model, column: str) -> Feature:
    from nextbest.data.feature import SCORE_GROUP, Feature

    meaning, unit = _SCORE_MEANINGS.get(
        column, (f"probability: {model.label.meaning}", "probability")
    )
    if model.past_value and column == f"{model.name}_now":
        meaning, unit = f"1: in today's top share by {model.past_value}", "flag"
    return Feature(column, meaning, unit, f"model {model.name}", SCORE_GROUP, "customer", "number")
