"""What a bound policy keeps between decisions is what a policy bound just now would work out."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta
from typing import Any

from decide_world import NOW, audience, catalogue, fates, offer, policy, situation
from hypothesis import given, settings
from hypothesis import strategies as st

from nextbest.decide.engine import Decisions, bind, decide

HOUR = timedelta(hours=1)
BOTH = ["mail", "web"]
OFFERS = catalogue(
    offer("a", channels=BOTH, starts_at=NOW, ends_at=NOW + 2 * HOUR),
    offer("b", channels=BOTH, placements=["top"]),
    offer("c", channels=BOTH, placements=["top", "side"], ends_at=NOW + HOUR),
    offer("d", active=False),
    offer("e", channels=["web"]),
    offer("f", channels=BOTH),
)
NO_CONSENT = {"consent_required": False}
RULES = policy(
    channels={"mail": NO_CONSENT, "web": NO_CONSENT},
    levers=[
        {"offer": "f", "multiplier": 3, "until": NOW + HOUR, "reason": "x"},
        {"offer": "b", "multiplier": 0.5, "until": datetime(2017, 12, 11, tzinfo=UTC),
         "reason": "y"},
    ],
)  # fmt: skip
ONE = audience([[0.5] * 6])
WHEN = st.builds(
    lambda hours, around: NOW + hours * HOUR + around * timedelta(microseconds=1),
    st.integers(-1, 30),
    st.integers(-1, 1),
)
WHERE = st.sampled_from([None, "", "top", "side", "elsewhere", "nowhere"])


def decided(bound: Any, **at: Any) -> Decisions:
    return decide(ONE, *bound, situation(**at), ["d"])


@settings(max_examples=40, deadline=None)
@given(st.lists(st.tuples(st.sampled_from(BOTH), WHERE, WHEN), min_size=1, max_size=6))
def test_the_same_policy_decides_at_any_moment_and_place_in_turn(
    asked: list[tuple[str, str | None, datetime]],
) -> None:
    kept = bind(OFFERS, RULES, ONE.known_columns())
    for channel, placement, moment in asked:
        at: dict[str, Any] = {"channel": channel, "placement": placement, "decided_at": moment}
        again, fresh = decided(kept, **at), decided(bind(OFFERS, RULES, ONE.known_columns()), **at)
        assert fates(again) == fates(fresh)
        assert again.values.lever.tolist() == fresh.values.lever.tolist()


def test_offers_and_levers_begin_and_end_to_the_microsecond() -> None:
    kept = bind(OFFERS, RULES, ONE.known_columns())
    instant = timedelta(microseconds=1)

    def told(moment: datetime) -> tuple[bool, bool, float]:
        found = decided(kept, decided_at=moment, placement="side")
        became = fates(found)
        return (
            became["a"][0] != "candidate",
            became["c"][0] != "candidate",
            found.values.lever[0, 5],
        )

    assert told(NOW - instant) == (False, True, 3.0)
    assert told(NOW) == (True, True, 3.0)
    assert told(NOW + HOUR - instant) == (True, True, 3.0)
    assert told(NOW + HOUR) == (True, False, 1.0)
    assert told(NOW + 2 * HOUR - instant) == (True, False, 1.0)
    assert told(NOW + 2 * HOUR) == (False, False, 1.0)
    assert told(NOW) == (True, True, 3.0)  # and back again, as a replay does


def test_callers_cannot_make_a_policy_remember_placements_without_end() -> None:
    kept = bind(OFFERS, RULES, ONE.known_columns())
    for number in range(50):
        decided(kept, placement=f"made up {number}")
    assert len(kept[1]._rows) == 2  # one row of offers, one of levers
