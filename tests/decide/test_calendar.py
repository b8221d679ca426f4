"""Calendar caps and quiet hours, against the local calendar and clock themselves."""

from __future__ import annotations

from datetime import UTC, datetime, time, timedelta, timezone
from typing import Any
from zoneinfo import ZoneInfo

import numpy as np
import pytest
from decide_world import audience, catalogue, chosen, fates, history, offer, policy, run, situation
from hypothesis import example, given, settings
from hypothesis import strategies as st

from nextbest.decide.contact import Limit, QuietHours
from nextbest.errors import ConfigError

OFFERS = catalogue(offer("a"), offer("b"))
NEW_YORK = "America/New_York"
# Clocks that change at night, at midnight (twice 23:00, no 00:00; twice 00:00), by half an hour.
ZONES = (
    NEW_YORK, "Europe/Berlin", "America/Sao_Paulo", "America/Havana", "Asia/Beirut",
    "Australia/Lord_Howe", "Asia/Kolkata", "UTC", "-05:00",
)  # fmt: skip


def zone_of(name: str) -> Any:
    return timezone(timedelta(hours=-5)) if name == "-05:00" else ZoneInfo(name)


def stamp(moment: datetime) -> np.datetime64:
    return np.datetime64(moment.astimezone(UTC).replace(tzinfo=None), "us")


def same_period(period: str, one: datetime, other: datetime) -> bool:
    """Whether two local moments share a day, an ISO week or a month."""
    if period == "day":
        return one.date() == other.date()
    if period == "week":
        return one.isocalendar()[:2] == other.isocalendar()[:2]
    return (one.year, one.month) == (other.year, other.month)


moments = st.datetimes(datetime(2017, 1, 1), datetime(2018, 12, 31), timezones=st.just(UTC))


@settings(max_examples=300)
@given(
    st.sampled_from(ZONES),
    st.sampled_from(["day", "week", "month"]),
    moments,
    st.lists(st.timedeltas(timedelta(days=-40), timedelta(days=2)), min_size=1, max_size=20),
)
# The hour before and after the clocks change, where they do so at midnight.
@example(
    "America/Sao_Paulo",
    "day",
    datetime(2018, 2, 18, 2, 30, tzinfo=UTC),
    [timedelta(minutes=m) for m in (-90, -61, -31, -30, -29, 0, 1)],
)
@example(
    "America/Havana",
    "day",
    datetime(2017, 11, 5, 5, 30, tzinfo=UTC),
    [timedelta(minutes=m) for m in (-120, -91, -90, -89, -30, -1, 0)],
)
@example(
    "Asia/Beirut",
    "month",
    datetime(2018, 3, 31, 21, 0, tzinfo=UTC),
    [timedelta(minutes=m) for m in (-1, 0, 1)],
)
def test_a_calendar_cap_counts_what_lies_in_the_same_local_period(
    zone: str, period: Any, decided_at: datetime, offsets: list[timedelta]
) -> None:
    local = decided_at.astimezone(zone_of(zone))
    limit = Limit(
        "c", "cap", "contact", None, 1, "customer", frozenset(), period, zone_of(zone)
    )  # fmt: skip
    events = [decided_at + offset for offset in offsets]
    expected = [
        event <= decided_at and same_period(period, event.astimezone(zone_of(zone)), local)
        for event in events
    ]
    times, now = np.array([stamp(event) for event in events]), stamp(decided_at)
    found = (times >= limit.since(now)) & (times <= now)
    assert found.tolist() == expected


# Decisions are made on Sunday 10 December 2017, 00:00 in New York.
@pytest.mark.parametrize(
    ("period", "at_most", "sent", "expect"),
    [
        ("day", 1, ["2017-12-10T04:59"], ["a"]),
        ("day", 1, ["2017-12-10T05:00"], []),
        ("week", 1, ["2017-12-04T04:59"], ["a"]),
        ("week", 1, ["2017-12-04T05:00"], []),
        ("week", 2, ["2017-12-04T05:00"], ["a"]),
        ("month", 1, ["2017-12-01T04:59"], ["a"]),
        ("month", 1, ["2017-12-01T05:00"], []),
    ],
)
def test_a_period_begins_at_local_midnight_and_the_week_on_monday(
    period: str, at_most: int, sent: list[str], expect: list[str]
) -> None:
    past = history(*(("0", "b", "mail", t, "contact") for t in sent), n=1, ids=OFFERS.offer_ids)
    rules = policy(
        timezone=NEW_YORK,
        contact={"caps": [{"name": "cap", "at_most": at_most, "period": period}]},
    )
    assert chosen(run(audience([[0.5, 0.2]], contacts=past), OFFERS, rules)) == [expect]


def test_a_calendar_caps_rest_is_shared_by_the_slots_of_one_answer() -> None:
    rules = policy(contact={"caps": [{"name": "cap", "at_most": 1, "period": "day"}]})
    decisions = run(audience([[0.5, 0.2]]), OFFERS, rules, situation(limit=2))
    assert chosen(decisions) == [["a"]]
    assert fates(decisions)["b"] == ("arbitration", "no contact left in this answer")


@pytest.mark.parametrize(
    ("period", "says"),
    [("day", "on this day"), ("week", "this week"), ("month", "this month")],
)
def test_the_reason_names_the_period(period: str, says: str) -> None:
    past = history(("0", "b", "mail", "2017-12-10T05:00", "contact"), n=1, ids=OFFERS.offer_ids)
    rules = policy(contact={"caps": [{"name": "cap", "at_most": 1, "period": period}]})
    answer = run(audience([[0.5, 0.2]], contacts=past), OFFERS, rules).answer(0)
    assert answer["no_offer_reasons"][0] == f"offer a: contact policy: 1 of 1 contacts {says}"


# ------------------------------------------------------------------ quiet hours


def quiet(
    starts: str, ends: str, zone: str = NEW_YORK, weekdays: tuple[int, ...] = (0, 1, 2, 3, 4, 5, 6)
) -> QuietHours:
    return QuietHours(
        "q", time.fromisoformat(starts), time.fromisoformat(ends), frozenset(weekdays),
        frozenset(), zone_of(zone),
    )  # fmt: skip


@pytest.mark.parametrize(
    ("hours", "moment", "expect"),
    [
        # within one day: closed at the start, open at the end
        (quiet("12:00", "14:00"), "2017-12-10T16:59:59.999999", False),
        (quiet("12:00", "14:00"), "2017-12-10T17:00", True),
        (quiet("12:00", "14:00"), "2017-12-10T18:59:59.999999", True),
        (quiet("12:00", "14:00"), "2017-12-10T19:00", False),
        # over midnight
        (quiet("21:00", "08:00"), "2017-12-11T01:59", False),
        (quiet("21:00", "08:00"), "2017-12-11T02:00", True),
        (quiet("21:00", "08:00"), "2017-12-11T05:00", True),
        (quiet("21:00", "08:00"), "2017-12-11T12:59", True),
        (quiet("21:00", "08:00"), "2017-12-11T13:00", False),
        # the same hours in summer begin an hour earlier in UTC
        (quiet("21:00", "08:00"), "2017-07-11T00:59", False),
        (quiet("21:00", "08:00"), "2017-07-11T01:00", True),
        (quiet("21:00", "08:00"), "2017-07-11T12:00", False),
        # weekdays are those on which the hours start: Saturday night is quiet until Sunday morning
        (quiet("21:00", "08:00", weekdays=(5,)), "2017-12-10T03:00", True),
        (quiet("21:00", "08:00", weekdays=(5,)), "2017-12-10T12:00", True),
        (quiet("21:00", "08:00", weekdays=(5,)), "2017-12-09T12:00", False),
        (quiet("21:00", "08:00", weekdays=(5,)), "2017-12-11T03:00", False),
        # an end at the start is a whole day
        (quiet("00:00", "00:00", weekdays=(6,)), "2017-12-10T04:59", False),
        (quiet("00:00", "00:00", weekdays=(6,)), "2017-12-10T05:00", True),
        (quiet("00:00", "00:00", weekdays=(6,)), "2017-12-11T04:59", True),
        (quiet("00:00", "00:00", weekdays=(6,)), "2017-12-11T05:00", False),
        # 12 March 2017: 02:00 to 03:00 does not exist; quiet ends as the clock jumps to 03:00
        (quiet("21:00", "02:30"), "2017-03-12T06:59", True),
        (quiet("21:00", "02:30"), "2017-03-12T07:00", False),
        # 5 November 2017: 01:00 to 02:00 comes twice, and is quiet twice
        (quiet("01:00", "01:30"), "2017-11-05T05:15", True),
        (quiet("01:00", "01:30"), "2017-11-05T05:45", False),
        (quiet("01:00", "01:30"), "2017-11-05T06:15", True),
        (quiet("01:00", "01:30"), "2017-11-05T06:45", False),
    ],
)
def test_quiet_hours_follow_the_local_clock(hours: QuietHours, moment: str, expect: bool) -> None:
    assert hours.quiet(datetime.fromisoformat(moment).replace(tzinfo=UTC)) is expect


@pytest.mark.parametrize(
    ("zone", "day", "minutes"),
    [
        (NEW_YORK, datetime(2017, 3, 11, 17), 10 * 60),  # the night has an hour less
        (NEW_YORK, datetime(2017, 11, 4, 17), 12 * 60),  # and an hour more
        (NEW_YORK, datetime(2017, 12, 9, 17), 11 * 60),
        ("Europe/Berlin", datetime(2018, 3, 24, 12), 10 * 60),
        ("Australia/Lord_Howe", datetime(2018, 3, 31, 1), 11 * 60 + 30),
    ],
)
def test_a_night_is_as_long_as_it_is(zone: str, day: datetime, minutes: int) -> None:
    """From 21:00 to 08:00, counted minute by minute from the noon before to the noon after."""
    hours, noon = quiet("21:00", "08:00", zone), day.replace(tzinfo=UTC)
    counted = sum(hours.quiet(noon + timedelta(minutes=m)) for m in range(24 * 60))
    assert counted == minutes


CHANNELS = {"mail": {"consent_required": False}, "email": {"consent_required": False}}
NIGHT = {"name": "the night", "starts_at": time(21), "ends_at": time(8), "channels": ["mail"]}


def test_quiet_hours_are_a_fate_of_their_own_and_the_trace_says_the_local_time() -> None:
    offers = catalogue(offer("a", channels=["mail", "email"]))
    rules = policy(timezone=NEW_YORK, channels=CHANNELS, contact={"quiet_hours": [NIGHT]})
    decisions = run(audience([[0.5]]), offers, rules)
    assert fates(decisions)["a"] == ("contact_policy", "the night")
    assert decisions.answer(0)["no_offer_reasons"] == [
        "offer a: contact policy: quiet from 21:00 to 08:00; it is Sunday 00:00 (America/New_York)"
    ]
    by_email = run(audience([[0.5]]), offers, rules, situation(channel="email"))
    by_day = run(audience([[0.5]]), offers, rules, situation(decided_at=datetime(2017, 12, 10, 13)))
    assert chosen(by_email) == chosen(by_day) == [["a"]]


def test_strangers_sleep_too() -> None:
    rules = policy(timezone=NEW_YORK, contact={"quiet_hours": [NIGHT]}, fallback={"offers": ["a"]})
    stranger = audience([[np.nan, np.nan]], known=np.array([False]))
    assert chosen(run(stranger, OFFERS, rules)) == [[]]


@pytest.mark.parametrize(
    ("contact", "says"),
    [
        (
            {"caps": [{"name": "c", "at_most": 1}]},
            '[contact] "c": what the cap counts is not clear. Must be one of days, period; '
            "got none.",
        ),
        (
            {"caps": [{"name": "c", "at_most": 1, "days": 7, "period": "week"}]},
            "got days and period.",
        ),
        (
            {"caps": [{"name": "c", "at_most": 1, "period": "year"}]},
            "Must be 'day', 'week' or 'month'; got 'year'.",
        ),
        ({"quiet_hours": [{**NIGHT, "starts_at": "21:00"}]}, "a time of day such as 21:00:00"),
        ({"quiet_hours": [{**NIGHT, "weekdays": ["Sunday"]}]}, "'saturday' or 'sunday'"),
        ({"quiet_hours": [{**NIGHT, "weekdays": []}]}, 'field "weekdays" is wrong'),
        ({"quiet_hours": [{**NIGHT, "channels": ["mial"]}]}, 'Did you mean "mail"?'),
        ({"quiet_hours": [NIGHT, NIGHT]}, '[contact] "the night": the name is taken'),
        (
            {"quiet_hours": [{"name": "q", "starts_at": time(1)}]},
            '[contact.quiet_hours] number 1: field "ends_at" is missing',
        ),
    ],
)
def test_a_fault_is_named(contact: dict[str, Any], says: str) -> None:
    with pytest.raises(ConfigError) as caught:
        policy(channels=CHANNELS, contact=contact)
    assert says in str(caught.value)
