"""Promotion gates: what must hold before a version may become champion, each with its numbers."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from nextbest.errors import Fault, GateRefusal
from nextbest.learn.drift import FeatureDrift
from nextbest.learn.metrics import Metric
from nextbest.learn.model import Gates

# The figure that decides, and whether more of it is better.
PRIMARY: Mapping[str, tuple[str, bool]] = {"probability": ("auc", True), "clv": ("mae", False)}

# A gain below this share of what the baseline leaves to gain is called little.
_LITTLE = 0.1


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
    gain = gain_of(kind, against_baseline)
    margin = gates.baseline_margin * scale
    results = [
        GateResult(
            "baseline",
            gain.value > 0 and gain.low >= -margin,
            f"{_gained(kind, gain, 'the baseline')}; must be above 0, its interval nowhere under "
            f"{-margin:.4g}",
        )
    ]
    if kind == "probability":
        positives, ece = counts["n_positive"], metrics["ece"].value
        results += [
            GateResult(
                "min_positives",
                positives >= gates.min_positives,
                f"{positives:,} positives in the test slice; "
                f"must be {gates.min_positives:,} or more",
            ),
            GateResult(
                "calibration",
                ece <= gates.max_calibration_error,
                f"calibration error {ece:.4f}; must be {gates.max_calibration_error:g} or less",
            ),
        ]
    return tuple(results)


def against_champion(kind: str, gates: Gates, difference: Metric, scale: float) -> GateResult:
    """Hold a challenger against the champion on the same test rows: it may not lose by much."""
    gain, margin = gain_of(kind, difference), gates.champion_margin * scale
    return GateResult(
        "champion",
        gain.low >= -margin,
        f"{_gained(kind, gain, 'the champion')}; the interval must be nowhere under {-margin:.4g}",
    )


def against_drift(limit: str, moved: Sequence[FeatureDrift]) -> tuple[GateResult, ...]:
    """Hold what moved between the training rows and the test slice against the limit.

    Parameters
    ----------
    limit : ``off`` for no such gate, or the status from which on a feature counts.
    moved : features in ``watch`` or ``alarm``.
    """
    if limit == "off":
        return ()
    counted = [d for d in moved if limit == "watch" or d.status == "alarm"]
    said = "; ".join(map(str, counted)) or f"no feature in {limit} between training and test"
    return (GateResult("drift", not counted, said),)


def gain_of(kind: str, difference: Metric) -> Metric:
    """Turn a difference of the primary metric into a gain, where above 0 is better."""
    if PRIMARY[kind][1]:
        return difference
    return Metric(-difference.value, -difference.high, -difference.low)


def _gained(kind: str, gain: Metric, over: str) -> str:
    return (
        f"gain in {PRIMARY[kind][0]} over {over} {gain.value:+.4g} "
        f"(95% interval {gain.low:+.4g} to {gain.high:+.4g})"
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


def in_words(kind: str, difference: Metric, baseline: str, reached: float) -> str:
    """Say in words whether a model beats its baseline: clearly, by little, perhaps, or not.

    Parameters
    ----------
    difference : the model's primary metric less the baseline's, on the same rows.
    baseline, reached : the baseline's name, and the primary metric that it reaches alone.
    """
    metric, gain = PRIMARY[kind][0], gain_of(kind, difference)
    alone = f"{baseline}, which alone reaches {metric} {reached:.4g}"
    if gain.high < 0:
        return f"is worse than its baseline ({alone})"
    if gain.low <= 0:
        return f"does not clearly beat its baseline ({alone}): the difference is within chance"
    # What is left to gain: up to a perfect ranking, or down to no error.
    share = gain.value / (1 - reached if PRIMARY[kind][1] else reached)
    if share < _LITTLE:
        return f"beats its baseline, but by little ({alone})"
    return f"beats its baseline ({alone})"
