"""Promotion gates as given / expect rows: the numbers on either side of every limit."""

from __future__ import annotations

import pytest

from nextbest.errors import GateRefusal
from nextbest.learn.gates import (
    PRIMARY,
    GateResult,
    against_champion,
    gain_of,
    in_words,
    judge,
    require,
)
from nextbest.learn.metrics import METRICS, Metric
from nextbest.learn.model import Gates

LIMITS = Gates(min_positives=50, baseline_margin=0.02, champion_margin=0.01,
               max_calibration_error=0.05)  # fmt: skip
BETTER = Metric(0.05, 0.01, 0.09)
CALM = {"ece": Metric(0.01, 0.0, 0.02)}


def verdicts(kind: str, difference: Metric, **given: object) -> dict[str, bool]:
    asked = {"metrics": CALM, "counts": {"n_positive": 266}, "scale": 1.0} | given
    results = judge(kind, LIMITS, against_baseline=difference, **asked)  # type: ignore[arg-type]
    return {r.gate: r.passed for r in results}


# (model - baseline) in the primary metric, on either side of the limits
BASELINE = [
    # kind, difference (value, low, high), scale, passes
    ("probability", (0.05, 0.01, 0.09), 1.0, True),
    ("probability", (0.01, -0.02, 0.04), 1.0, True),  # reaches the margin, not past it
    ("probability", (0.01, -0.0201, 0.04), 1.0, False),
    ("probability", (0.0, -0.01, 0.01), 1.0, False),  # as good is not better
    ("probability", (-0.01, -0.015, -0.005), 1.0, False),
    ("probability", (1e-9, -0.02, 0.02), 1.0, True),
    # An error: less is better, and the margin is a share of the baseline's own error.
    ("clv", (-10.0, -20.0, -1.0), 360.0, True),
    ("clv", (-1.0, -9.0, 7.2), 360.0, True),
    ("clv", (-1.0, -9.0, 7.21), 360.0, False),
    ("clv", (0.0, -5.0, 5.0), 360.0, False),
    ("clv", (3.0, 1.0, 5.0), 360.0, False),
]


@pytest.mark.parametrize(("kind", "difference", "scale", "passes"), BASELINE)
def test_the_baseline_must_be_beaten(
    kind: str, difference: tuple[float, float, float], scale: float, passes: bool
) -> None:
    assert verdicts(kind, Metric(*difference), scale=scale)["baseline"] is passes


@pytest.mark.parametrize(("positives", "passes"), [(50, True), (49, False), (0, False)])
def test_a_verdict_needs_positives(positives: int, passes: bool) -> None:
    found = verdicts("probability", BETTER, counts={"n_positive": positives})
    assert found == {"baseline": True, "min_positives": passes, "calibration": True}


@pytest.mark.parametrize(("error", "passes"), [(0.05, True), (0.0501, False), (0.0, True)])
def test_probabilities_must_come_true(error: float, passes: bool) -> None:
    found = verdicts("probability", BETTER, metrics={"ece": Metric(error, 0.0, 1.0)})
    assert found == {"baseline": True, "min_positives": True, "calibration": passes}


def test_a_value_has_neither_positives_nor_calibration() -> None:
    found = verdicts("clv", Metric(-1.0, -2.0, -0.5), metrics={}, counts={})
    assert found == {"baseline": True}


CHAMPION = [
    # kind, (challenger - champion), scale, passes
    ("probability", (0.0, -0.005, 0.005), 1.0, True),  # as good will do
    ("probability", (-0.001, -0.01, 0.008), 1.0, True),
    ("probability", (0.02, -0.011, 0.05), 1.0, False),  # may lose by too much
    ("clv", (1.0, -2.0, 3.6), 360.0, True),
    ("clv", (1.0, -2.0, 3.61), 360.0, False),
    ("clv", (-9.0, -12.0, -6.0), 360.0, True),
]


@pytest.mark.parametrize(("kind", "difference", "scale", "passes"), CHAMPION)
def test_the_champion_may_not_be_lost_to(
    kind: str, difference: tuple[float, float, float], scale: float, passes: bool
) -> None:
    found = against_champion(kind, LIMITS, Metric(*difference), scale)
    assert (found.gate, found.passed) == ("champion", passes)


def test_a_gain_is_where_more_is_better() -> None:
    assert gain_of("probability", Metric(0.1, -0.2, 0.3)) == Metric(0.1, -0.2, 0.3)
    assert gain_of("clv", Metric(0.1, -0.2, 0.3)) == Metric(-0.1, -0.3, 0.2)


def test_what_decides_is_a_metric() -> None:
    assert {name for name, _more in PRIMARY.values()} <= set(METRICS)


def test_the_numbers_are_in_the_words() -> None:
    results = judge("clv", LIMITS, {}, {}, against_baseline=Metric(-6.5, -16.25, 3.5), scale=360.0)
    (message,) = [r.message for r in results]
    assert "mae over the baseline +6.5 (95% interval -3.5 to +16.25)" in message
    assert "nowhere under -7.2" in message
    one, positives, calibration = judge(
        "probability", LIMITS, {"ece": Metric(0.0512, 0.0, 0.1)}, {"n_positive": 1_234}, BETTER, 1.0
    )
    assert "auc over the baseline +0.05 (95% interval +0.01 to +0.09)" in one.message
    assert "1,234 positives" in positives.message
    assert "50 or more" in positives.message
    assert "0.0512; must be 0.05 or less" in calibration.message
    assert one.to_dict() == {"gate": "baseline", "passed": True, "message": one.message}


def test_a_refusal_names_every_gate_that_failed() -> None:
    results = (
        GateResult("baseline", False, "gain -0.1"),
        GateResult("min_positives", True, "266 positives"),
        GateResult("calibration", False, "error 0.2"),
    )
    with pytest.raises(GateRefusal) as caught:
        require("churn", 7, results)
    assert len(caught.value.faults) == 2
    text = str(caught.value)
    assert 'churn version 7: gate "baseline" refuses promotion: gain -0.1.' in text
    assert 'churn version 7: gate "calibration" refuses promotion: error 0.2.' in text
    assert "--force with --reason" in text
    assert "266" not in text


@pytest.mark.parametrize("results", [(), (GateResult("baseline", True, "gain"),)])
def test_what_passes_is_not_refused(results: tuple[GateResult, ...]) -> None:
    require("churn", 7, results)
    with pytest.raises(GateRefusal):
        require("churn", 7, (*results, GateResult("calibration", False, "error")))


WORDS = [
    # kind, difference, what the baseline reaches alone, words
    ("probability", (0.06, 0.04, 0.09), 0.78, "beats its baseline (recency"),
    ("probability", (0.02, 0.01, 0.03), 0.79, "beats its baseline, but by little"),
    ("probability", (0.005, 0.0007, 0.01), 0.93, "beats its baseline, but by little"),
    ("probability", (0.005, 0.0, 0.01), 0.93, "does not clearly beat its baseline"),
    ("probability", (-0.001, -0.01, 0.01), 0.93, "does not clearly beat its baseline"),
    ("probability", (-0.02, -0.03, -0.01), 0.93, "is worse than its baseline"),
    ("clv", (-60.0, -80.0, -40.0), 360.0, "beats its baseline (recency"),
    ("clv", (-10.0, -19.0, -1.0), 360.0, "beats its baseline, but by little"),
    ("clv", (-6.6, -16.0, 3.5), 360.0, "does not clearly beat its baseline"),
    ("clv", (9.0, 1.0, 19.0), 360.0, "is worse than its baseline"),
]


@pytest.mark.parametrize(("kind", "difference", "reached", "words"), WORDS)
def test_the_verdict_in_words(
    kind: str, difference: tuple[float, float, float], reached: float, words: str
) -> None:
    found = in_words(kind, Metric(*difference), "recency", reached)
    assert found.startswith(words)
    assert f"recency, which alone reaches {PRIMARY[kind][0]} {reached:.4g}" in found
    assert ("within chance" in found) == words.startswith("does not clearly")
