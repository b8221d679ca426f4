"""The contact policy: what each limit counts, for how long, and how it says so."""

from __future__ import annotations

from datetime import UTC
from typing import Any

import numpy as np
import pytest
from decide_world import audience, catalogue, chosen, fates, history, offer, policy, run, situation
from hypothesis import given, settings
from hypothesis import strategies as st

from nextbest.decide.contact import KINDS, ContactHistory, Limit, consent
from nextbest.decide.limits import ChannelLimits
from nextbest.errors import DataError

# Three offers: a and b share a category and a group, c stands alone.
OFFERS = catalogue(
    offer("a", category="games", exclusivity_group="g", channels=["mail", "email"]),
    offer("b", category="games", exclusivity_group="g", channels=["mail", "email"]),
    offer("c", channels=["mail", "email"]),
)
CHANNELS = {"mail": {"consent_required": False}, "email": {"consent_required": False}}
# (offer, channel, time, kind); decisions are made at 2017-12-10 05:00.
SENT_A = ("a", "mail", "2017-12-01T05:00", "contact")
SENT_B = ("b", "email", "2017-12-05T05:00", "contact")
SENT_GONE = (None, "mail", "2017-12-02T05:00", "contact")
USED_A = ("a", "mail", "2017-12-03T05:00", "acceptance")
REFUSED_C = ("c", "email", "2017-12-04T05:00", "refusal")
BOUGHT = (None, None, "2017-12-09T05:00", "purchase")


def kept_back(contact: dict[str, Any], *events: Any, channel: str = "mail") -> dict[str, str]:
    """Offers that the limits keep back from one customer with this past: offer to limit."""
    past = history(*(("0", *event) for event in events), n=1, ids=OFFERS.offer_ids)
    rules = policy(channels=CHANNELS, contact=contact)
    decisions = run(
        audience([[0.5, 0.5, 0.5]], contacts=past), OFFERS, rules, situation(channel=channel)
    )
    return {
        offer_id: reason
        for offer_id, (step, reason) in fates(decisions).items()
        if step == "contact_policy"
    }


def cap(at_most: int, days: float, **fields: Any) -> dict[str, Any]:
    return {"caps": [{"name": "cap", "at_most": at_most, "days": days, **fields}]}


def cool_off(after: str, days: float, **fields: Any) -> dict[str, Any]:
    return {"cool_offs": [{"name": "pause", "after": after, "days": days, **fields}]}


def exclusion(days: float, **fields: Any) -> dict[str, Any]:
    return {"exclusions": [{"name": "one of them", "days": days, **fields}]}


@pytest.mark.parametrize(
    ("limits", "events", "channel", "expect"),
    [
        # a cap per customer counts every offer, also those no longer in the catalogue
        (cap(2, 30), [SENT_A, SENT_B], "mail", "abc"),
        (cap(2, 30), [SENT_A, SENT_GONE], "mail", "abc"),
        (cap(3, 30), [SENT_A, SENT_B], "mail", ""),
        (cap(1, 30), [], "mail", ""),
        # the window rolls, and is open at its start
        (cap(1, 9), [SENT_A], "mail", ""),
        (cap(1, 9.001), [SENT_A], "mail", "abc"),
        # what is not counted: other kinds, the future
        (cap(1, 30), [USED_A, REFUSED_C, BOUGHT], "mail", ""),
        (cap(1, 30), [("a", "mail", "2017-12-10T05:00:00.000001", "contact")], "mail", ""),
        (cap(1, 30), [("a", "mail", "2017-12-10T05:00:00", "contact")], "mail", "abc"),
        (cap(1, 30, counts="acceptance"), [USED_A], "mail", "abc"),
        # per channel, and for some channels only
        (cap(1, 30, per="channel"), [SENT_A], "mail", "abc"),
        (cap(1, 30, per="channel"), [SENT_A], "email", ""),
        (cap(1, 30, channels=["email"]), [SENT_B], "mail", ""),
        (cap(1, 30, channels=["email"]), [SENT_B], "email", "abc"),
        (cap(1, 30, channels=["email"]), [SENT_A], "email", ""),
        (cap(2, 30, channels=["email", "mail"]), [SENT_A, SENT_B], "email", "abc"),
        # per offer, category and group; c is in no group
        (cap(1, 30, per="offer"), [SENT_A], "email", "a"),
        (cap(2, 30, per="category"), [SENT_A, SENT_B], "mail", "ab"),
        (cap(2, 30, per="exclusivity_group"), [SENT_A, SENT_GONE], "mail", ""),
        (cap(1, 30, per="exclusivity_group"), [SENT_A], "mail", "ab"),
        # a pause after an event of its kind, within its scope
        (cool_off("contact", 10), [SENT_A], "mail", "abc"),
        (cool_off("contact", 9), [SENT_A], "mail", ""),
        (cool_off("acceptance", 30, per="offer"), [USED_A, SENT_B], "mail", "a"),
        (cool_off("acceptance", 30, per="category"), [USED_A], "mail", "ab"),
        (cool_off("refusal", 30, per="offer"), [REFUSED_C], "mail", "c"),
        (cool_off("refusal", 30, per="channel"), [REFUSED_C], "mail", ""),
        (cool_off("refusal", 30, per="channel"), [REFUSED_C], "email", "abc"),
        (cool_off("purchase", 2), [BOUGHT], "mail", "abc"),
        (cool_off("purchase", 2), [SENT_A], "mail", ""),
        # while a is fresh its rival waits; a itself and c do not
        (exclusion(30), [SENT_A], "mail", "b"),
        (exclusion(30), [SENT_A, SENT_B], "mail", "ab"),
        (exclusion(9), [SENT_A], "mail", ""),
        (exclusion(30, after="acceptance"), [USED_A], "mail", "b"),
        (exclusion(30, after="acceptance"), [SENT_A], "mail", ""),
    ],
)
def test_a_limit_keeps_back_what_it_should(
    limits: dict[str, Any], events: list[Any], channel: str, expect: str
) -> None:
    assert set(kept_back(limits, *events, channel=channel)) == set(expect)


def test_limits_apply_in_file_order_and_the_first_is_named() -> None:
    both = {**cap(1, 30, per="offer"), **cool_off("contact", 30)}
    assert kept_back(both, SENT_A) == {"a": "cap", "b": "pause", "c": "pause"}


def test_one_customers_past_does_not_touch_another() -> None:
    past = history(("1", *SENT_A), ("9", *SENT_A), n=3, ids=OFFERS.offer_ids)
    decisions = run(
        audience([[0.5, 0.1, 0.1]] * 3, contacts=past),
        OFFERS,
        policy(channels=CHANNELS, contact=cap(1, 30, per="offer")),
    )
    assert chosen(decisions) == [["a"], ["b"], ["a"]]


@pytest.mark.parametrize(
    ("limits", "says"),
    [
        (cap(2, 30), "2 of 2 contacts in 30 days"),
        (cap(2, 30, per="channel"), "2 of 2 contacts by mail in 30 days"),
        (cap(1, 30, per="offer"), "1 of 1 contacts with this offer in 30 days"),
        (cap(1, 7.5, per="category"), "1 of 1 contacts with offers of this category in 7.5 days"),
        (cap(2, 30, channels=["email", "mail"]), "2 of 2 contacts by email or mail in 30 days"),
        (
            cool_off("acceptance", 30, per="offer"),
            "1 acceptance with this offer in 30 days, and 30 days to wait after one",
        ),
        (
            exclusion(30),
            "1 contact with other offers of this group in 30 days, and 30 days to wait after one",
        ),
    ],
)
def test_the_reason_names_the_rule_with_its_numbers(limits: dict[str, Any], says: str) -> None:
    events = [SENT_A, USED_A, ("b", "mail", "2017-12-08T05:00", "contact")]
    past = history(*(("0", *event) for event in events), n=1, ids=OFFERS.offer_ids)
    decisions = run(
        audience([[0.5, 0.5, 0.0]], contacts=past),
        OFFERS,
        policy(channels=CHANNELS, contact=limits),
    )
    (step,) = [s for s in decisions.trace(0)["offers"][0]["steps"] if s["step"] == "contact_policy"]
    assert [rule["reason"] for rule in step["rules"]] == [says]
    assert step["passed"] is False


@pytest.mark.parametrize(
    ("column", "unknown_allowed", "expect"),
    [
        (np.array([True, False]), False, [True, False]),
        (np.array([True, False, None], dtype=object), False, [True, False, False]),
        (np.array([True, False, None], dtype=object), True, [True, False, True]),
        (np.array([1.0, 0.0, np.nan]), False, [True, False, False]),
        (np.array([1.0, 0.0, np.nan]), True, [True, False, True]),
        (None, False, [False, False]),
        (None, True, [True, True]),
    ],
)
def test_consent_is_given_refused_or_unknown(
    column: Any, unknown_allowed: bool, expect: list[bool]
) -> None:
    assert consent(column, unknown_allowed, len(expect)).tolist() == expect


@pytest.mark.parametrize(
    ("channel", "columns", "expect"),
    [
        ({}, {"consent_mail": [1.0, 0.0, np.nan]}, [["a"], [], []]),
        ({"unknown_consent": "allow"}, {"consent_mail": [1.0, 0.0, np.nan]}, [["a"], [], ["a"]]),
        ({"consent_column": "post"}, {"post": [False, True, True]}, [[], ["a"], ["a"]]),
        ({}, {}, [[], [], []]),
        ({"unknown_consent": "allow"}, {}, [["a"], ["a"], ["a"]]),
        ({"consent_required": False}, {"consent_mail": [0.0, 0.0, 0.0]}, [["a"], ["a"], ["a"]]),
    ],
)
def test_consent_decides_by_channel(
    channel: dict[str, Any], columns: dict[str, Any], expect: list[list[str]]
) -> None:
    people = audience([[0.5]] * 3, columns)
    decisions = run(people, catalogue(offer("a")), policy(channels={"mail": channel}))
    assert chosen(decisions) == expect


def test_taking_customers_keeps_their_events() -> None:
    past = history(
        ("2", *SENT_A), ("0", *SENT_B), ("2", *USED_A), ("5", *SENT_A), n=3, ids=OFFERS.offer_ids
    )
    assert past.customer.tolist() == [0, 2, 2]
    taken = past.take([2, 1, 2])
    assert taken.customer.tolist() == [0, 0, 2, 2]
    assert taken.offer.tolist() == [0, 0, 0, 0]
    assert taken.kind.tolist() == [0, 1, 0, 1]
    assert past.take([1]).customer.tolist() == []
    assert past.take([]).customer.tolist() == []


def test_a_history_that_makes_no_sense_is_refused() -> None:
    with pytest.raises(DataError, match=r'kind "contcat" is unknown.*Did you mean "contact"'):
        history(("0", "a", "mail", "2017-12-01", "contcat"), n=1, ids=["a"])
    one, none = np.zeros(1, dtype=np.int64), np.zeros(0, dtype=np.int64)
    at = np.zeros(1, dtype="datetime64[us]")
    with pytest.raises(DataError, match="differ in length"):
        ContactHistory(one, none, one, at, one, ())
    two = np.array([1, 0])
    with pytest.raises(DataError, match="out of order"):
        ContactHistory(two, two, two, at.repeat(2), two, ())


# ---- counted in one pass, and one by one --------------------------------------------------------

KINDS_OF_LIMITS = [
    Limit("cap", "cap", kind, days, at_most, scope, frozenset(channels))
    for kind, days, at_most, scope, channels in [
        ("contact", 7.0, 1, "customer", ()),
        ("contact", 20.0, 2, "offer", ()),
        ("contact", 30.0, 1, "category", ("mail",)),
        ("acceptance", 3.5, 1, "channel", ()),
        ("contact", 9.0, 1, "exclusivity_group", ("email", "mail")),
    ]
] + [
    Limit("pause", "cool_off", "refusal", 12.0, 0, "category", frozenset()),
    Limit("other", "cool_off", "contact", 12.0, 0, "customer", frozenset({"email"})),
    Limit("one of", "exclusion", "contact", 15.0, 0, "exclusivity_group", frozenset()),
    Limit("month", "cap", "contact", None, 1, "offer", frozenset(), "month", UTC),
]
NUMBERED = {"category": np.array([0, 0, 1, -1]), "exclusivity_group": np.array([1, 0, 1, -1])}
MOMENT = np.datetime64("2017-12-10T05", "us")


def counts_of(limit: Limit, past: ContactHistory, customer: int, at: int, channel: str) -> int:
    """Events that count against one customer and offer, read one after the other."""
    group = NUMBERED.get(limit.scope)
    if group is not None and group[at] < 0:
        return 0
    number = 0
    for who, offer_at, on, when, kind in zip(
        past.customer, past.offer, past.channel, past.time, past.kind, strict=True
    ):
        name = past.channels[on] if on >= 0 else None
        same = {
            "customer": True,
            "channel": name == channel,
            "offer": offer_at == at,
        }.get(limit.scope, group is not None and offer_at >= 0 and group[offer_at] == group[at])
        if limit.scope != "channel" and limit.channels:
            same = same and name in limit.channels
        if limit.form == "exclusion":
            same = same and offer_at != at
        age = MOMENT - when
        young = (
            age < np.timedelta64(round(limit.days * 86_400_000_000), "us")
            if limit.days is not None
            else when >= np.datetime64("2017-12-01")
        )
        number += bool(
            who == customer and same and KINDS[kind] == limit.kind and young and when <= MOMENT
        )
    return number


@settings(max_examples=60, deadline=None)
@given(
    st.integers(0, 2**32),
    st.integers(0, 25),
    st.lists(st.sampled_from(KINDS_OF_LIMITS), max_size=5),
    st.sampled_from(["mail", "email"]),
)
def test_limits_counted_in_one_pass_are_what_each_counts_event_by_event(
    seed: int, events: int, limits: list[Limit], channel: str
) -> None:
    rng = np.random.default_rng(seed)
    past = ContactHistory(
        np.sort(rng.integers(0, 3, events)),
        rng.integers(-1, 4, events),
        rng.integers(-1, 2, events),
        MOMENT - rng.integers(-1, 20, events).astype("timedelta64[D]"),
        rng.integers(0, 4, events),
        ("email", "mail"),
    )
    subject = [limit for limit in limits if limit.applies_to(channel)]
    found = ChannelLimits(limits, NUMBERED, 4, channel).count(past, 3, MOMENT)
    assert [one.limit for one in found] == subject
    for one in found:
        expect = [[counts_of(one.limit, past, i, j, channel) for j in range(4)] for i in range(3)]
        assert one.per_offer.tolist() == expect
        assert not (one.idle and one.reached.any())
