"""Two policies side by side: equal ones differ in nothing; a small shop worked out by hand."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from decide_world import audience, catalogue, offer, policy, run, situation

from nextbest.decide.whatif import Segments, Side, compare
from nextbest.errors import DataError

# Four customers, offers a (margin 10) and b (margin 20): expected profit by customer
#   a: 5, 5, 1, 2   b: 4, 8, 2, 0
OFFERS = catalogue(offer("a"), offer("b", margin=20))
PROPENSITY = [[0.5, 0.2], [0.5, 0.4], [0.1, 0.1], [0.2, 0.0]]
CLV = np.array([100.0, 300.0, np.nan, 100.0])


def side(rules: Any, segments: Segments | None, parts: int = 1, limit: int = 1) -> Side:
    made = Side(("a", "b"), segments)
    for rows in np.array_split(np.arange(4), parts):
        people = audience(np.array(PROPENSITY)[rows], {"clv": CLV[rows]})
        made.add(run(people, OFFERS, rules, situation(limit=limit)))
    return made


def flat(facts: Any) -> list[float]:
    if isinstance(facts, dict):
        found = [facts["difference"]] if "difference" in facts else []
        return found + [x for value in facts.values() for x in flat(value)]
    return [x for one in facts for x in flat(one)] if isinstance(facts, list) else []


def test_equal_policies_differ_in_nothing() -> None:
    segments = Segments.of("clv", CLV)
    facts = compare(side(policy(), segments, limit=2), side(policy(), segments, 3, limit=2))
    assert len(flat(facts)) > 30 and set(flat(facts)) == {0}


def test_a_small_shop_worked_out_by_hand() -> None:
    segments = Segments.of("clv", CLV)
    rules = policy(suitability={"no poor prospects": "propensity > 0.1"},
                   eligibility={"valued": "clv > 50"})  # fmt: skip
    facts = compare(side(policy(), segments), side(rules, segments, parts=2))
    # Now: a 5, b 8, b 2, a 2. Then: the third customer has no known clv and gets nothing.
    total = facts["total"]
    assert total["contacts"] == {"project": 4, "other": 3, "difference": -1}
    assert total["reached"]["other"] == 3 and total["share_reached"]["difference"] == -0.25
    assert total["contacts_per_customer"] == {"project": 1.0, "other": 0.75, "difference": -0.25}
    assert total["expected_profit"]["project"] == pytest.approx(17)
    assert total["expected_profit"]["difference"] == pytest.approx(-2)
    assert total["expected_profit_per_customer"]["other"] == pytest.approx(15 / 4)
    assert facts["offers"]["a"]["contacts"] == {"project": 2, "other": 2, "difference": 0}
    assert facts["offers"]["b"]["contacts"] == {"project": 2, "other": 1, "difference": -1}
    shifted = {
        label: (figures["customers"], figures["contacts"]["difference"])
        for label, figures in facts["segments"].items()
    }
    assert shifted == {"100": (2, 0), "300": (1, 0), "unknown": (1, -1)}
    funnel = {(o, f["step"], f["reason"]): (f["project"], f["other"])
              for o, fates in facts["funnel"].items() for f in fates}  # fmt: skip
    assert funnel == {
        ("a", "arbitration", "lower priority"): (2, 1),
        ("a", "eligibility", "valued"): (0, 1),
        ("b", "arbitration", "lower priority"): (1, 1),
        ("b", "arbitration", "no offer is better"): (1, 0),
        ("b", "eligibility", "valued"): (0, 1),
        ("b", "suitability", "no poor prospects"): (0, 1),
    }


def test_tenths_hold_as_many_customers_each() -> None:
    values = np.append(np.random.default_rng(1).lognormal(5, 2, 1_000), [np.nan] * 7)
    segments = Segments.of("clv", values)
    names, counts = np.unique(segments.label(values).astype(str), return_counts=True)
    assert dict(zip(names, counts, strict=True)) == {
        **dict.fromkeys(segments.labels, 100), "unknown": 7,
    }  # fmt: skip
    assert len(set(segments.labels)) == 10
    top = values > np.nanquantile(values, 0.9)
    assert set(segments.label(values)[top]) == {segments.labels[-1]}


def test_texts_and_few_numbers_are_segments_themselves() -> None:
    texts = np.array(["x", None, "y"], dtype=object)
    assert Segments.of("band", texts).label(texts).tolist() == ["x", "unknown", "y"]
    few = np.array([1.0, 0.0, np.nan])
    assert Segments.of("flag", few).label(few).tolist() == ["1", "0", "unknown"]


def test_sides_that_cannot_be_compared_are_refused() -> None:
    one, other = side(policy(), None), Side(("a", "b"))
    with pytest.raises(DataError, match="decisions for the same customers; got 4 and 0"):
        compare(one, other)
    with pytest.raises(DataError, match="one division into segments"):
        compare(one, side(policy(), Segments.of("clv", CLV)))
