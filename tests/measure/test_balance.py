"""Sample-ratio mismatch."""

from __future__ import annotations

import numpy as np
import pytest

from nextbest.errors import DataError
from nextbest.measure.balance import check_balance


def test_the_textbook_mismatch() -> None:
    # Kohavi, Tang & Xu (2020), Trustworthy Online Controlled Experiments, chapter 21: 821,588
    # against 815,482 users where 50/50 was planned has a p-value of 1.8e-6.
    found = check_balance({"treated": 821_588, "holdout": 815_482}, {"treated": 1, "holdout": 1})
    assert found.p_value == pytest.approx(1.8e-6, rel=0.03) and found.broken
    assert "821,588 of 818,535 expected" in found.message


def test_mendels_peas() -> None:
    # Mendel's dihybrid cross, 315:108:101:32 for 9:3:3:1: chi-square 0.470 with 3 degrees of
    # freedom, p 0.925 (Snedecor & Cochran).
    seen = {"ry": 315, "rg": 108, "wy": 101, "wg": 32}
    found = check_balance(seen, {"ry": 9, "rg": 3, "wy": 3, "wg": 1})
    assert found.p_value == pytest.approx(0.925, abs=1e-3) and not found.broken


def test_a_sound_assignment_is_rarely_blocked() -> None:
    rng = np.random.default_rng(1)
    n = rng.binomial(5_000, 0.9, 1_500)
    blocked = [
        check_balance({"a": int(k), "b": 5_000 - int(k)}, {"a": 0.9, "b": 0.1}).broken for k in n
    ]
    assert np.mean(blocked) < 0.003


def test_what_cannot_be_tested_is_said() -> None:
    assert "not given" in check_balance({"a": 10, "b": 90}, None).message
    few = check_balance({"a": 3, "b": 90}, {"a": 0.03, "b": 0.97})
    assert few.p_value is None and "5 are needed" in few.message


@pytest.mark.parametrize(
    ("planned", "says"),
    [
        ({"a": 0.5, "c": 0.5}, 'share of arm "c": no customer is in that arm'),
        ({"a": 0.5}, "a share for every arm; got none for b"),
        ({"a": 0.5, "b": 0.0}, 'share of arm "b": not a share'),
        ({"a": 0.5, "b": float("nan")}, 'share of arm "b": not a share'),
    ],
)
def test_a_plan_that_does_not_fit(planned: dict[str, float], says: str) -> None:
    with pytest.raises(DataError) as refused:
        check_balance({"a": 50, "b": 50}, planned)
    assert says in str(refused.value)
