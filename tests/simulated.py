"""Training on a simulated shop's history by the engine's own path, and scoring everybody today."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from kept import Kept, run

from nextbest.data import snapshots
from nextbest.learn import artifact, report
from nextbest.project import Project
from nextbest.simulate import Shop, write_project


def learnt(shop: Shop, folder: Path, *, anyway: bool) -> tuple[np.ndarray, np.ndarray | None]:
    """What models trained on the history think: (n, m) propensities, and baseline rates if asked.

    The project is the one that `nextbest simulate --out` writes; runs are kept in a folder.
    """
    write_project(shop, folder / "shop")
    project = Project.open(folder / "shop")
    history, kept, ids = project.history(), Kept(folder / "kept"), [o.id for o in shop.offers]
    names = ["propensity", *(f"anyway_{name}" for name in ids if anyway)]
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(report, "pictures", lambda _kept: {})  # nobody looks at them here
        run(project, history, kept, *names)
    models = {name: artifact.load(kept.folder / name / "artifact") for name in names}
    frames = snapshots.profile(history, project.groups, project.settings.as_of, ids)
    people = frames.customers
    assert list(people["customer_id"]) == list(shop.customer_ids)
    rows = frames.pairs.merge(people, on="customer_id", sort=False).merge(
        frames.offers, on="offer_id", sort=False
    )
    rows = rows.set_index(["customer_id", "offer_id"]).loc[
        list(zip(frames.pairs["customer_id"], frames.pairs["offer_id"], strict=True))
    ]
    propensity = models["propensity"].score(rows.reset_index()).reshape(len(people), len(ids))
    if not anyway:
        return propensity, None
    scores = [models[f"anyway_{name}"].score(people) for name in ids]
    return propensity, np.stack(scores, axis=1)
