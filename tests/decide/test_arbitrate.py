"""Value and choice, against hand-worked numbers and a plain-Python greedy choice."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from nextbest.decide.arbitrate import Pool, choose, expected_profit, weigh


@pytest.mark.parametrize(
    ("p", "margin", "incentive", "contact", "retention", "expect"),
    [
        (0.25, 40.0, 8.0, 0.5, 0.0, 7.5),
        (0.0, 40.0, 8.0, 0.5, 0.0, -0.5),
        (0.5, 4.0, 8.0, 0.0, 0.0, -2.0),
        # retain: churn .4 × save rate .05 × CLV 500 = 10
        (0.1, 5.0, 15.0, 0.6, 0.4 * 0.05 * 500, 8.4),
        (np.nan, 40.0, 8.0, 0.5, 0.0, np.nan),
        (0.25, np.nan, 8.0, 0.5, 0.0, np.nan),
    ],
)
def test_expected_profit_follows_the_formula(
    p: float, margin: float, incentive: float, contact: float, retention: float, expect: float
) -> None:
    numbers = (np.array([[x]]) for x in (p, margin, incentive, contact, retention))
    np.testing.assert_allclose(expected_profit(*numbers), [[expect]], rtol=1e-15)


@pytest.mark.parametrize(
    ("value", "multiplier", "expect"),
    [(6.0, 1.5, 9.0), (6.0, 0.5, 3.0), (-6.0, 1.5, -4.0), (-6.0, 0.5, -12.0), (0.0, 9.0, 0.0)],
)
def test_a_multiplier_above_one_moves_up_also_a_loss(
    value: float, multiplier: float, expect: float
) -> None:
    assert weigh(np.array([value]), np.array([multiplier])).tolist() == [expect]


money = st.floats(-1e6, 1e6)
multipliers = st.floats(1e-3, 1e3)


@given(money, money, multipliers, multipliers)
def test_priority_rises_with_the_objective_and_with_the_multiplier_and_never_changes_sign(
    one: float, two: float, small: float, large: float
) -> None:
    low, high = sorted((one, two))
    assert weigh(np.array(low), np.array(small)) <= weigh(np.array(high), np.array(small))
    weak, strong = sorted((small, large))
    assert weigh(np.array(one), np.array(weak)) <= weigh(np.array(one), np.array(strong))
    # Below the smallest float a gain may round to nothing, but never to a loss, nor the reverse.
    assert weigh(np.array(one), np.array(small)) * np.sign(one) >= 0


def pick(
    priority: list[list[float]],
    ids: str,
    limit: int = 1,
    pools: tuple[Pool, ...] = (),
) -> list[str]:
    by_id = np.argsort(np.array(list(ids)), kind="stable")
    chosen = choose(np.array(priority, dtype=float), by_id, limit, pools).chosen
    return ["".join(ids[j] for j in row if j >= 0) for row in chosen]


def test_the_best_wins_ties_go_by_id_and_no_offer_competes_at_zero() -> None:
    rows = [[1, 2, 3], [3, 2, 3], [0, 0, 0], [-1, -2, -np.inf], [0, 1e-300, 0], [-1, 5, 5]]
    assert pick(rows, "bca") == ["a", "a", "", "", "c", "a"]


def test_slots_are_filled_best_first_and_stop_at_zero() -> None:
    assert pick([[1, 4, 3], [-1, 2, 0]], "abc", limit=2) == ["bc", "b"]
    assert pick([[1, 4, 3]], "abc", limit=9) == ["bca"]


def test_offers_of_one_group_share_a_slot_and_a_caps_rest_is_used_up() -> None:
    group = Pool(np.array([0, 0, -1, -1]), np.ones((2, 1), dtype=np.int64))
    rows = [[5.0, 4, 3, 2], [1, 2, 3, 4]]
    assert pick(rows, "abcd", 3, (group,)) == ["acd", "dcb"]
    rest = Pool(np.zeros(4, dtype=np.int64), np.array([[2], [1]]))
    assert pick(rows, "abcd", 3, (group, rest)) == ["ac", "d"]


@given(
    st.integers(1, 6).flatmap(
        lambda m: st.tuples(
            st.lists(
                st.lists(st.sampled_from([-1.0, 0.0, 1.0, 2.0, 2.5, -np.inf]),
                         min_size=m, max_size=m),
                min_size=1, max_size=4,
            ),
            st.permutations("abcdef"[:m]),
            st.integers(1, 4),
            st.lists(st.integers(-1, 2), min_size=m, max_size=m),
            st.integers(1, 3),
        )
    )
)  # fmt: skip
def test_the_choice_is_the_greedy_choice(case: tuple[list[list[float]], ...]) -> None:
    rows, ids, limit, member, room = case
    pool = Pool(np.array(member), np.full((len(rows), 3), room))
    by_id = np.argsort(np.array(ids), kind="stable")
    chosen = choose(np.array(rows), by_id, limit, (pool,)).chosen  # type: ignore[arg-type]
    for row, got in zip(rows, chosen.tolist(), strict=True):
        left = dict.fromkeys(range(3), room)
        expect: list[int] = []
        for j in sorted(range(len(row)), key=lambda j, row=row: (-row[j], ids[j])):
            if row[j] <= 0 or len(expect) == limit or left.get(member[j], 1) <= 0:
                continue
            expect.append(j)
            if member[j] >= 0:
                left[member[j]] -= 1
        assert [j for j in got if j >= 0] == expect
