"""Who is held out, and who is in which arm: shares, permanence, and independence."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.stats import binomtest, chi2_contingency

from nextbest.decide.holdout import arms, held_out_of
from nextbest.decide.policy import Arms, Holdout

SALT = "a salt of the shop's own"
OTHER = "another salt, for experiments"
IDS = [f"c{i}" for i in range(3_000)]
KNOWN = np.ones(len(IDS), dtype=bool)
shares = st.floats(0, 1)
quarters = st.floats(0, 0.25)


def of(holdout: float = 0.0, **experiment: float) -> np.ndarray:
    return arms(
        Holdout(salt=SALT, share=holdout), Arms(salt=OTHER, **experiment), IDS, KNOWN
    )  # fmt: skip


def test_shares_are_met() -> None:
    found = of(0.1, no_contact=0.05, random_eligible=0.1, propensity_only=0.02, no_levers=0.25)
    expect = {"holdout": 0.1, "no_contact": 0.045, "random_eligible": 0.09,
              "propensity_only": 0.018, "no_levers": 0.225, "policy": 0.522}  # fmt: skip
    assert set(found) == set(expect)
    for arm, share in expect.items():
        assert binomtest(int((found == arm).sum()), len(IDS), share).pvalue > 0.01, arm


@settings(max_examples=40)
@given(shares, shares)
def test_a_larger_holdout_keeps_everybody_who_was_in_it(one: float, other: float) -> None:
    small, large = sorted((one, other))
    assert (of(large)[of(small) == "holdout"] == "holdout").all()
    held = [held_out_of("18", share, SALT, IDS) for share in (small, large)]
    assert held[1][held[0]].all()


@settings(max_examples=40)
@given(quarters, quarters, quarters, quarters, st.integers(0, 3), quarters)
def test_changing_one_arm_moves_customers_only_between_it_and_the_policy(
    a: float, b: float, c: float, d: float, which: int, changed: float
) -> None:
    names = Arms.QUARTERS
    before = dict(zip(names, (a, b, c, d), strict=True))
    after = {**before, names[which]: changed}
    old, new = of(0.2, **before), of(0.2, **after)
    moved = old != new
    assert set(old[moved]) | set(new[moved]) <= {names[which], "policy"}
    # And within the one arm everybody stays, up to its smaller share.
    least = of(0.2, **{**before, names[which]: min(changed, before[names[which]])})
    kept = least == names[which]
    assert (old[kept] == names[which]).all() and (new[kept] == names[which]).all()


def test_nobody_and_everybody() -> None:
    assert set(of(0.0)) == {"policy"}
    assert set(of(1.0, no_levers=0.25)) == {"holdout"}
    assert set(arms(Holdout(), Arms(), IDS, KNOWN)) == {"policy"}
    assert not held_out_of("18", 0.0, SALT, IDS).any()
    assert held_out_of("18", 1.0, SALT, IDS).all()
    assert set(of(no_contact=0.25, random_eligible=0.25, propensity_only=0.25, no_levers=0.25)) == {
        *Arms.QUARTERS
    }


def test_holdouts_and_arms_are_independent() -> None:
    arm, held = of(no_levers=0.25), of(0.3) == "holdout"
    campaigns = [held_out_of(offer, 0.3, SALT, IDS) for offer in ("18", "19")]
    pairs = [(arm == "no_levers", held), (held, campaigns[0]), (campaigns[0], campaigns[1])]
    for one, other in pairs:
        cells = np.histogram2d(one.astype(int), other.astype(int), bins=2)[0]
        assert chi2_contingency(cells).pvalue > 0.01


def test_a_customer_alone_is_where_the_crowd_has_them() -> None:
    found = of(0.1, no_contact=0.2, no_levers=0.2)
    settings = Holdout(salt=SALT, share=0.1), Arms(salt=OTHER, no_contact=0.2, no_levers=0.2)
    for i in range(0, 3_000, 97):
        assert arms(*settings, [IDS[i]], KNOWN[:1]).tolist() == [found[i]]


@pytest.mark.parametrize("arm", Arms.QUARTERS)
def test_strangers_get_the_fallback_unless_nobody_of_their_arm_gets_anything(arm: str) -> None:
    known = np.zeros(len(IDS), dtype=bool)
    found = arms(Holdout(salt=SALT, share=0.1), Arms(salt=OTHER, **{arm: 0.25}), IDS, known)
    whole = of(0.1, **{arm: 0.25})
    assert ((found == "holdout") == (whole == "holdout")).all()
    stays = arm if arm == "no_contact" else "fallback"
    assert set(found[whole == arm]) == {stays}
    assert set(found[whole == "policy"]) == {"fallback"}
