"""Readings: a real experiment with published lifts, a simulator with known truth, refusals."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path

import ibis
import numpy as np
import pandas as pd
import pytest
from arm_rows import sums_of
from scipy import stats

from nextbest.errors import DataError, UsageError
from nextbest.measure.collect import Cell, Outcome, collect, outcome_of
from nextbest.measure.experiment import ABLATIONS, Design, Reading, read

HILLSTROM = Path(__file__).parents[3] / "shared/data/hillstrom/hillstrom_dev.parquet"


def cells_of(
    arms: dict[str, np.ndarray], before: dict[str, np.ndarray] | None = None
) -> list[Cell]:
    return [
        Cell(arm, (), y.size, (("revenue", sums_of(y, before[arm] if before else None)),))
        for arm, y in arms.items()
    ]


def one(arms: dict[str, np.ndarray], **design: object) -> Reading:
    return read(cells_of(arms), [Outcome("revenue")], Design(**design))  # type: ignore[arg-type]


# ------------------------------------------------------------------ Hillstrom


@pytest.fixture(scope="module")
def hillstrom() -> Reading:
    if not HILLSTROM.exists():
        pytest.skip("the e-mail test of Hillstrom is not in ../shared/data")
    table = ibis.duckdb.connect().read_parquet(HILLSTROM)
    table = table.rename(customer_id="row_id", arm="segment")
    outcomes = [Outcome("visit"), Outcome("spend", before="history")]
    shares = {"No E-Mail": 1.0, "Mens E-Mail": 1.0, "Womens E-Mail": 1.0}
    design = Design(control="No E-Mail", shares=shares, planned=32_000)
    return read(collect(table, outcomes, ["newbie"]), outcomes, design, ["newbie"])


def test_the_published_lifts_of_hillstrom(hillstrom: Reading) -> None:
    """All 64,000 customers: lift and standard error; ours are half of them."""
    published = {
        ("visit", "Mens E-Mail"): (0.0766, 0.0034), ("visit", "Womens E-Mail"): (0.0452, 0.0034),
        ("spend", "Mens E-Mail"): (0.770, 0.145), ("spend", "Womens E-Mail"): (0.424, 0.145),
    }  # fmt: skip
    assert not hillstrom.blocked
    assert {(c.question.outcome, c.question.arm) for c in hillstrom.overall} == set(published)
    for c in hillstrom.overall:
        lift, se = published[c.question.outcome, c.question.arm]
        assert c.measured is not None
        found = c.measured.difference
        assert found.low < lift < found.high
        # Half the customers: the standard error is √2 of the published one.
        half = stats.norm.isf(0.025) * se * 2**0.5
        assert (found.high - found.low) / 2 == pytest.approx(half, rel=0.15)
        assert c.measured.at_any_look.low < found.low < found.high < c.measured.at_any_look.high


def test_hillstrom_is_what_scipy_says(hillstrom: Reading) -> None:
    frame = pd.read_parquet(HILLSTROM)
    spend = {name: group["spend"] for name, group in frame.groupby("segment")}
    for c in hillstrom.overall:
        if c.question.outcome == "spend":
            theirs = stats.ttest_ind(spend[c.question.arm], spend["No E-Mail"], equal_var=False)
            ci = theirs.confidence_interval()
            assert c.measured is not None and c.measured.unadjusted is not None
            plain = c.measured.unadjusted
            assert (plain.low, plain.high) == pytest.approx((ci.low, ci.high))


def test_hillstroms_verdicts(hillstrom: Reading) -> None:
    said = {(c.question.outcome, c.question.arm): c for c in hillstrom.overall}
    for arm in ("Mens E-Mail", "Womens E-Mail"):
        assert said["visit", arm].finding == "higher"
    assert said["spend", "Mens E-Mail"].finding == "higher"
    assert "raised visit by 7.65 points" in said["visit", "Mens E-Mail"].verdict
    segments = [c for c in hillstrom.segments if c.question.outcome == "visit"]
    assert [c.question.segment for c in segments] == ["0", "0", "1", "1"]
    assert sum(c.n for c in segments if c.question.arm == "Mens E-Mail") == 10_652


# ------------------------------------------------------------------ verdicts


def arms(effect: float, n: int = 4_000, seed: int = 1) -> dict[str, np.ndarray]:
    rng = np.random.default_rng(seed)
    return {"policy": rng.gamma(1, 5, n) + effect, "no_contact": rng.gamma(1, 5, n // 4)}


def test_the_sentences() -> None:
    (up,) = one(arms(1.0), planned=5_000).overall
    assert up.verdict.startswith("personalisation earned ")
    assert " more revenue per customer [" in up.verdict
    assert up.verdict.endswith("] than no contact (95% interval).")
    (down,) = one(arms(-1.0), planned=5_000).overall
    assert down.finding == "lower" and " less revenue per customer [0." in down.verdict
    (nothing,) = one(arms(0.0), planned=5_000).overall
    assert nothing.finding == "unclear"
    assert nothing.verdict.startswith("no verdict: revenue differs by ")


def test_one_look_is_bolder_than_daily_looks() -> None:
    found = {looks: one(arms(0.65), planned=5_000, looks=looks) for looks in ("daily", "once")}
    assert found["daily"].overall[0].finding == "unclear"
    assert found["once"].overall[0].finding == "higher"


def test_every_ablation_is_held_against_the_policy() -> None:
    rng = np.random.default_rng(2)
    worth = dict(zip(ABLATIONS, (0.0, 0.5, 1.5, 2.0), strict=True)) | {"policy": 2.0}
    made = {arm: rng.normal(10 + v, 3, 3_000) for arm, v in worth.items()}
    found = one(made, planned=15_000)
    assert [c.question.against for c in found.overall] == list(ABLATIONS)
    for c in found.overall:
        assert c.measured is not None
        truth = 2.0 - worth[c.question.against]
        assert c.measured.at_any_look.low < truth < c.measured.at_any_look.high
    assert [c.finding for c in found.overall] == ["higher", "higher", "higher", "unclear"]
    assert "than propensity alone" in found.overall[2].verdict


def test_swapping_arm_and_control_flips_the_sign() -> None:
    made = arms(1.0)
    (a,), (b,) = (one(made, **d).overall for d in ({"arm": "policy"}, {"arm": "no_contact"}))
    (c,) = one(made, control="no_contact").overall
    assert a.measured and b.measured and c.measured
    assert a.measured.difference.value == pytest.approx(-b.measured.difference.value)
    assert a.measured.p_at_any_look == pytest.approx(b.measured.p_at_any_look)
    assert (b.finding, a.finding) == ("lower", "higher") and c == a


def test_a_broken_assignment_blocks_every_verdict() -> None:
    found = one(arms(5.0), shares={"policy": 0.9, "no_contact": 0.1})
    assert found.blocked
    (c,) = found.overall
    assert (c.finding, c.p_adjusted, c.together) == ("cannot say", None, None)
    assert c.verdict.startswith("no verdict: the arms are not as planned: ")
    assert "policy 4,000 of 4,500 expected" in c.verdict
    assert not one(arms(5.0), shares={"policy": 0.8, "no_contact": 0.2}).blocked


def test_the_value_before_narrows_and_says_by_how_much() -> None:
    rng = np.random.default_rng(3)
    before = {arm: rng.gamma(2, 10, n) for arm, n in (("policy", 4_000), ("no_contact", 1_000))}
    after = {arm: x + rng.normal(0, 5, x.size) + (arm == "policy") for arm, x in before.items()}
    found = read(cells_of(after, before), [Outcome("revenue", before="b")], Design(planned=5_000))
    m = found.overall[0].measured
    assert m is not None and m.unadjusted is not None and m.variance_reduction is not None
    shrunk = (m.difference.high - m.difference.low) / (m.unadjusted.high - m.unadjusted.low)
    assert 1 - shrunk**2 == pytest.approx(m.variance_reduction, abs=0.01)
    assert m.variance_reduction == pytest.approx(200 / 225, abs=0.03)
    assert m.difference.low < 1 < m.difference.high


def test_segments_are_judged_together() -> None:
    """Twelve segments without an effect: the chance that any of them is found stays below 5%."""
    rng = np.random.default_rng(4)
    wrong = {"holm": 0, "alone": 0}
    for _ in range(150):
        cells = [
            Cell(arm, (str(s),), 100, (("revenue", sums_of(rng.normal(5, 2, 100))),))
            for arm in ("policy", "no_contact") for s in range(12)
        ]  # fmt: skip
        found = read(cells, [Outcome("revenue")], Design(looks="once", planned=2_400), ["tier"])
        wrong["holm"] += any(c.finding != "unclear" for c in found.segments)
        wrong["alone"] += any(c.measured and c.measured.p_value < 0.05 for c in found.segments)
    assert wrong["holm"] <= 12 < wrong["alone"]
    assert "tier" in found.segments[0].verdict
    for c in found.segments:
        assert c.together and c.measured
        assert c.together.low < c.measured.difference.low


def test_many_findings_of_bh_are_at_least_those_of_holm() -> None:
    rng = np.random.default_rng(5)
    cells = [
        Cell(arm, (str(s),), 300, (("revenue", sums_of(rng.normal(5 + lift, 2, 300))),))
        for arm, lift in (("policy", 0.5), ("no_contact", 0.0)) for s in range(10)
    ]  # fmt: skip
    by_method = {
        how: read(cells, [Outcome("revenue")], Design(looks="once", correction=how), ["tier"])
        for how in ("holm", "bh")
    }  # type: ignore[arg-type]
    found = {
        how: {c.question.segment for c in r.segments if c.finding == "higher"}
        for how, r in by_method.items()
    }
    assert found["holm"] < found["bh"]


# ------------------------------------------------------------------ what cannot be said


def said(first: Sequence[float], second: Sequence[float], per: str | None = None) -> str:
    made = {"policy": np.array(first, float), "no_contact": np.array(second, float)}
    outcome = Outcome("revenue", per=per)
    cells = [
        Cell(arm, (), y.size, ((outcome.label, sums_of(y, np.zeros_like(y))),))
        for arm, y in made.items()
    ]
    reading = read(cells, [outcome], Design())
    json.dumps(reading.to_dict(), allow_nan=False)
    (c,) = reading.overall
    assert c.finding == "cannot say" and c.measured is None
    assert c.verdict == f"no verdict: {c.cannot_say}."
    return c.cannot_say


def test_what_cannot_be_said_is_said_with_numbers() -> None:
    noise = list(np.random.default_rng(1).normal(5, 1, 50))
    assert said(noise, noise[:7]) == "only 7 customers in no_contact; 30 are needed"
    assert said([3.0] * 40, [3.0] * 50) == (
        "the outcome does not vary: it is 3 for all 40 customers of policy and 3 for all 50 of "
        "no_contact"
    )
    assert "does not vary: it is 0 for all 40" in said([0.0] * 40, [0.0] * 50)
    assert said(noise, noise, per="orders") == (
        "the denominator adds up to 0 in policy; it must be above 0"
    )


def test_a_segment_with_one_arm_only_is_said_not_dropped() -> None:
    rng = np.random.default_rng(1)
    y = sums_of(rng.normal(5, 1, 100))
    cells = [Cell("policy", ("gold",), 100, (("revenue", y),)),
             Cell("policy", ("tin",), 100, (("revenue", y),)),
             Cell("no_contact", ("tin",), 100, (("revenue", y),))]  # fmt: skip
    found = read(cells, [Outcome("revenue")], Design(), ["tier"])
    gold, tin = found.segments
    assert gold.cannot_say == "only 0 customers in no_contact; 30 are needed"
    assert tin.finding == "unclear"
    json.dumps(found.to_dict(), allow_nan=False)


def test_who_got_the_fallback_list_is_counted_and_left_out() -> None:
    made = arms(1.0)
    with_unknown = one({**made, "fallback": np.full(70, 99.0)}, planned=5_000)
    assert with_unknown.left_out == 70
    assert with_unknown.overall == one(made, planned=5_000).overall


def test_one_arm_that_never_converts_is_no_obstacle() -> None:
    made = {"policy": np.repeat([1.0, 0.0], [200, 1_800]), "no_contact": np.zeros(500)}
    (c,) = one(made, planned=2_500).overall
    assert c.finding == "higher" and c.measured is not None
    assert c.measured.ratio is None and "not above zero" in c.measured.no_ratio
    assert c.measured.ratio_at_any_look is not None and c.measured.ratio_at_any_look.low > 1
    json.dumps(c.to_dict(), allow_nan=False)


@pytest.mark.parametrize(
    ("made", "design", "says"),
    [
        ({"policy": np.ones(50)}, {}, 'arm "policy" has nothing to be compared with'),
        ({"a": np.ones(50), "b": np.ones(50)}, {}, 'no customer is in arm "policy"'),
        ({"polcy": np.ones(50), "b": np.ones(50)}, {}, 'Did you mean "polcy"?'),
        (arms(0), {"control": "holdout"}, 'no customer is in arm "holdout"'),
    ],
)
def test_arms_that_cannot_be_compared(
    made: dict[str, np.ndarray], design: dict[str, object], says: str
) -> None:
    with pytest.raises(DataError) as refused:
        one(made, **design)
    assert says in str(refused.value)


def test_impossible_designs_are_named_all_at_once() -> None:
    with pytest.raises(UsageError) as refused:
        Design(alpha=0, looks="weekly", planned=0, correction="none")  # type: ignore[arg-type]
    assert len(refused.value.faults) == 4


def test_a_ratio_outcome() -> None:
    rng = np.random.default_rng(6)
    outcome, cells = outcome_of("revenue/orders"), []
    for arm, price in (("policy", 22.0), ("no_contact", 20.0)):
        orders = rng.poisson(3, 3_000) + 1.0
        revenue = orders * rng.normal(price, 4, 3_000)
        cells.append(Cell(arm, (), 3_000, (("revenue/orders", sums_of(revenue, orders)),)))
    (c,) = read(cells, [outcome], Design(planned=6_000)).overall
    assert c.measured is not None and c.finding == "higher"
    assert c.measured.at_any_look.low < 2 < c.measured.at_any_look.high
    assert c.verdict.startswith("personalisation raised revenue/orders by ")
