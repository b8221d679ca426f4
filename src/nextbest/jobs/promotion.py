"""Make a version the champion, or give its place back; the audit trail holds who did."""

from __future__ import annotations

import io
import json
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

from nextbest.errors import RegistryError
from nextbest.project import Project

if TYPE_CHECKING:
    from nextbest.learn.gates import GateResult
    from nextbest.learn.records import Version
    from nextbest.learn.registry import Registry

__all__ = ["promote", "rollback", "test_scores_of"]


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
        ours, theirs = (test_scores_of(registry, v) for v in (chosen, champion))
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


def test_scores_of(registry: Registry, version: Version) -> Any:
    import pandas as pd

    return pd.read_parquet(io.BytesIO(registry.read_file(version.run_id, "test_scores.parquet")))
