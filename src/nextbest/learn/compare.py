"""Set the versions of a model side by side, with the baseline, in figures and in words."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, Final

from nextbest.errors import RegistryError
from nextbest.learn.metrics import Metric
from nextbest.learn.records import Version, nested
from nextbest.learn.registry import CHAMPION, Registry

if TYPE_CHECKING:
    from rich.table import Table

__all__ = ["compare", "table", "verdict"]

#: The figure that decides for a model, in order of preference: ranking first, then error.
_DECIDING: Final = ("auc", "value_capture", "mae", "rmse")
_LESS_IS_BETTER: Final = frozenset({"brier", "log_loss", "ece", "mae", "rmse"})
_IDEAL_ONE: Final = frozenset({"calibration_slope", "aggregate_ratio"})
_TEST: Final = "test"


def compare(
    registry: Registry, name: str, versions: Sequence[int | str] | None = None
) -> dict[str, Any]:
    """Return the versions of a model beside its baseline, and a verdict in plain words.

    Parameters: ``versions`` numbers or aliases, default all. Every figure is
    ``{"value", "low", "high"}``; ``baseline``, ``n_test`` and ``n_positive`` are those of the
    newest version shown. Raises ``RegistryError`` where there is no such model or version.
    """
    if versions is None:
        chosen = list(registry.versions(name)) or [registry.version(name, "any")]
    else:
        chosen = [registry.version(name, v) for v in versions]
    if not chosen:
        raise RegistryError(f'model "{name}"', "no version was named", expected="at least 1")
    newest = max(chosen, key=lambda v: v.version)
    return {
        "model": name,
        "versions": [
            {
                "version": v.version,
                "aliases": list(v.aliases),
                "run_id": v.run_id,
                "created_at": v.created_at.isoformat(),
                "metrics": nested(v.metrics),
                "params": dict(v.params),
            }
            for v in chosen
        ],
        "baseline": newest.baseline
        and {"name": newest.baseline.name, "metrics": nested(newest.baseline.metrics)},
        **newest.counts,
        "verdict": verdict(chosen),
    }


def _better(metric: str, a: float, b: float) -> bool:
    if metric in _IDEAL_ONE:
        return abs(a - 1) < abs(b - 1)
    return a < b if metric in _LESS_IS_BETTER else a > b


def _apart(metric: str, a: Metric, b: Metric) -> bool:
    return a.low > b.high or b.low > a.high


def verdict(versions: Sequence[Version]) -> str:
    """Say in a sentence or two which version is best, and whether it beats its baseline.

    "Clearly" means that the two 95% intervals do not touch; on the same rows that is stricter
    than a test of the difference.
    """
    measured = [v for v in versions if v.metrics.get(_TEST)]
    deciding = next((m for m in _DECIDING if all(m in v.metrics[_TEST] for v in measured)), None)
    if not measured or deciding is None:
        return "These versions share no figure on the test rows, so they cannot be compared."
    best = measured[0]
    for version in measured[1:]:
        if _better(deciding, version.metrics[_TEST][deciding].value,
                   best.metrics[_TEST][deciding].value):  # fmt: skip
            best = version
    figure = best.metrics[_TEST][deciding]
    words = f"Version {best.version}"
    words += " (the champion)" if CHAMPION in best.aliases else ""
    words += " is the best of these" if len(measured) > 1 else ""
    words += f" by {deciding} on the test rows: " if len(measured) > 1 else f" has {deciding} "
    words += f"{_shown(figure)}."
    if best.baseline is None or deciding not in best.baseline.metrics.get(_TEST, {}):
        return words
    rule = best.baseline.metrics[_TEST][deciding]
    if not _better(deciding, figure.value, rule.value):
        how = "It does not beat"
    elif _apart(deciding, figure, rule):
        how = "It clearly beats"
    else:
        how = "It is ahead of, but its interval overlaps,"
    return f'{words} {how} the baseline "{best.baseline.name}" with {_shown(rule)}.'


def _shown(metric: Metric) -> str:
    return f"{metric.value:.4g} ({metric.low:.4g} to {metric.high:.4g})"


def table(result: dict[str, Any]) -> Table:
    """Return what ``compare`` gave as a table for the terminal: a row per metric."""
    from rich.table import Table

    out = Table(title=f"{result['model']}: {_TEST} rows", caption=result["verdict"])
    out.add_column("metric")
    columns = [v["metrics"].get(_TEST, {}) for v in result["versions"]]
    for v in result["versions"]:
        aliases = f" {', '.join(v['aliases'])}" if v["aliases"] else ""
        out.add_column(f"v{v['version']}{aliases}", justify="right")
    if result["baseline"]:
        columns.append(result["baseline"]["metrics"].get(_TEST, {}))
        out.add_column(f"baseline: {result['baseline']['name']}", justify="right")
    for metric in dict.fromkeys(name for column in columns for name in column):
        cells = (
            _shown(Metric.from_dict(column[metric])) if metric in column else "-"
            for column in columns
        )
        out.add_row(metric, *cells)
    return out
