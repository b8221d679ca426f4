"""Hold champions against today's data, and keep what was found."""

from __future__ import annotations

import json
from collections.abc import Mapping
from datetime import datetime, timedelta
from pathlib import Path
from typing import TYPE_CHECKING, Any

from nextbest.errors import RegistryError
from nextbest.project import Project

if TYPE_CHECKING:
    from nextbest.data.contract import History
    from nextbest.data.snapshots import ProfileFrames
    from nextbest.learn.model import Model
    from nextbest.learn.records import Version
    from nextbest.learn.registry import Registry
    from nextbest.learn.scorer import LoadedModel
    from nextbest.learn.watch import Watch
    from nextbest.serve.bundle import ModelSource

__all__ = ["asked_today", "keep_drift", "watch_over"]

# Contacts of so many days stand for what an offer model is asked about today.
_RECENT_DAYS = 91


def watch_over(
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
        rows = frames.customers[asked_today(model, history, frames)]
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


def asked_today(model: Model, history: History, frames: ProfileFrames) -> Any:
    """Whom the model's label asks about today, as a mask over the profiles' customers."""
    people = model.label.population(history, frames.as_of).select("customer_id").to_pandas()
    return frames.customers["customer_id"].isin(set(people["customer_id"])).to_numpy()


def keep_drift(
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
