"""Promotion gates: what must hold before a version may become champion, each with its numbers."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from nextbest.errors import Fault, GateRefusal
from nextbest.learn.metrics import Metric
from nextbest.learn.model import Gates

# The figure that decides, and whether more of it is better.
PRIMARY: Mapping[str, tuple[str, bool]] = {"probability": ("auc", True), "clv": ("mae", False)}


@dataclass(frozen=True)
class GateResult:
    """One gate's verdict in words and numbers."""

    gate: str
    passed: bool
    message: str

    def to_dict(self) -> dict[str, Any]:
        """Return the verdict as plain JSON types."""
        return {"gate": self.gate, "passed": self.passed, "message": self.message}


def judge(
    kind: str,
    gates: Gates,
    metrics: Mapping[str, Metric],
    counts: Mapping[str, int],
    against_baseline: Metric,
    scale: float,
) -> tuple[GateResult, ...]:
    """Hold a version's test figures against the limits.

    Parameters
    ----------
    kind : ``probability`` or ``clv``.
    metrics, counts : the version's test figures, and ``n_positive``.
    against_baseline : difference of the primary metric to the baseline on the same rows.
    scale : size of one unit of margin: 1 for a rate, the baseline's own value for an amount.
    """
    name, more_is_better = PRIMARY[kind]
    results = [
        _difference(
            "baseline", name, more_is_better, against_baseline, gates.baseline_margin * scale
        )
    ]
    if kind == "probability":
        enough = counts["n_positive"] >= gates.min_positives
        results.append(
            GateResult(
                "min_positives",
                enough,
                f"{counts['n_positive']:,} positives in the test slice (needs {gates.min_positives:,})",
            )
        )
        ece = metrics["ece"]
        results.append(
            GateResult(
                "calibration",
                ece.value <= gates.max_calibration_error,
                f"calibration error {ece.value:.4f} (may be {gates.max_calibration_error:g})",
            )
        )
    return tuple(results)


def _difference(
    against: str, metric: str, more_is_better: bool, difference: Metric, margin: float
) -> GateResult:
    gain = (
        difference
        if more_is_better
        else Metric(-difference.value, -difference.high, -difference.low)
    )
    passed = gain.value > 0 and gain.low >= -margin
    message = (
        f"{metric} {'above' if gain.value > 0 else 'below'} the {against}'s by {abs(gain.value):.4g} "
        f"(interval of the gain {gain.low:+.4g} to {gain.high:+.4g}; "
        f"must be above 0 and nowhere under {-margin:.4g})"
        if more_is_better
        else f"{metric} {'better' if gain.value > 0 else 'worse'} than the {against}'s by "
        f"{abs(gain.value):.4g} (interval of the gain {gain.low:+.4g} to {gain.high:+.4g}; "
        f"must be above 0 and nowhere under {-margin:.4g})"
    )
    return GateResult(against, passed, message)


def against_champion(kind: str, gates: Gates, difference: Metric, scale: float) -> GateResult:
    """Hold a challenger against the champion on the same test rows: it may not lose beyond a margin."""
    name, more_is_better = PRIMARY[kind]
    gain = (
        difference
        if more_is_better
        else Metric(-difference.value, -difference.high, -difference.low)
    )
    margin = gates.champion_margin * scale
    return GateResult(
        "champion",
        gain.low >= -margin,
        f"{name} gain over the champion {gain.value:+.4g} (interval {gain.low:+.4g} to "
        f"{gain.high:+.4g}; may not reach under {-margin:.4g})",
    )


def require(model: str, version: int, results: Sequence[GateResult]) -> None:
    """Raise `GateRefusal` naming every gate that failed, with its numbers."""
    failed = [r for r in results if not r.passed]
    if failed:
        raise GateRefusal(
            faults=[
                Fault(
                    f"{model} version {version}",
                    f'gate "{r.gate}" refuses promotion: {r.message}',
                    action="Improve the model, change the gate in training/training.toml, or use "
                    "--force with --reason.",
                )
                for r in failed
            ]
        )


def in_words(metric: str, more_is_better: bool, difference: Metric) -> str:
    """Say in words whether a model beats its baseline: clearly, perhaps, or not."""
    gain = (
        difference
        if more_is_better
        else Metric(-difference.value, -difference.high, -difference.low)
    )
    if gain.low > 0:
        return f"beats its baseline on {metric}"
    if gain.high < 0:
        return f"is worse than its baseline on {metric}"
    return f"does not clearly beat its baseline on {metric}: the difference is within chance"
