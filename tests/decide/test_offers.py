"""The catalogue file: what it means, and that every fault in it is named, all at once."""

from __future__ import annotations

from datetime import UTC, date, datetime
from pathlib import Path
from typing import Any

import pytest
from decide_world import catalogue, offer

from nextbest.decide.offers import Catalogue
from nextbest.decide.rules import Column
from nextbest.errors import ConfigError

COLUMNS = {
    "tenure_days": Column("number"),
    "age_band": Column("string"),
    "consent_mail": Column("boolean"),
    "value_per_response": Column("number", "offer"),
}


def faults(**raw: Any) -> str:
    with pytest.raises(ConfigError) as caught:
        Catalogue.from_dict(raw, "serving/offers.toml")
    return str(caught.value)


def write(folder: Path, text: str) -> Path:
    path = folder / "serving" / "offers.toml"
    path.parent.mkdir(parents=True)
    path.write_text(text, encoding="utf-8")
    return path


def test_a_file_is_read_with_defaults_dates_and_assumptions(tmp_path: Path) -> None:
    path = write(
        tmp_path,
        """
        timezone = "-05:00"
        [assumptions]
        margin_rate = 0.25
        [defaults]
        goal = "sell"
        channels = ["mail"]
        contact_cost = 0.5
        [[offers]]
        id = "18"
        name = "Eighteen"
        margin = "margin_rate * tenure_days"
        starts_at = 2017-10-30
        ends_at = 2017-12-24
        eligibility = "tenure_days > 30"
        [[offers]]
        id = "19"
        name = "Nineteen"
        margin = 3
        contact_cost = 0
        starts_at = 2017-11-15T08:00:00Z
        ends_at = 2017-12-17T12:00:00
        [offers.suitability]
        "not new" = "tenure_days > 90"
        """,
    )
    read = Catalogue.load(path)
    assert read.where == "serving/offers.toml"
    assert read.assumptions == {"margin_rate": 0.25}
    assert read.offer_ids == ("18", "19")
    first, second = read.offers
    # A date is a whole local day, the last one included; local midnight is 05:00 UTC.
    assert first.starts_at == datetime(2017, 10, 30, 5, tzinfo=UTC)
    assert first.ends_at == datetime(2017, 12, 25, 5, tzinfo=UTC)
    assert second.starts_at == datetime(2017, 11, 15, 8, tzinfo=UTC)
    assert second.ends_at == datetime(2017, 12, 17, 17, tzinfo=UTC)
    assert (first.contact_cost, second.contact_cost) == (0.5, 0.0)
    assert first.eligibility == {"eligibility": "tenure_days > 30"}
    assert second.suitability == {"not new": "tenure_days > 90"}
    assert first.channels == ("mail",)
    assert read.to_dict()[0]["ends_at"] == "2017-12-25T05:00:00Z"


def test_the_clock_may_be_a_place_and_its_summer_time_counts() -> None:
    read = catalogue(
        offer(starts_at=date(2017, 7, 1), ends_at=date(2017, 12, 1)), timezone="America/New_York"
    )
    assert read.offers[0].starts_at == datetime(2017, 7, 1, 4, tzinfo=UTC)
    assert read.offers[0].ends_at == datetime(2017, 12, 2, 5, tzinfo=UTC)


def test_a_date_at_the_end_of_time_means_for_ever() -> None:
    read = catalogue(
        offer(starts_at=date(1, 1, 1), ends_at=date(9999, 12, 31)), timezone="+05:00"
    ).offers[0]
    assert read.starts_at == datetime.min.replace(tzinfo=UTC)
    assert read.ends_at == datetime.max.replace(tzinfo=UTC)


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("[[offers]\nid = 1", "serving/offers.toml, line 1, column 9: this is not TOML"),
        ('a = "x', "serving/offers.toml, line 1, column 7: this is not TOML"),
        ("a = " + "[" * 5000, "serving/offers.toml, line 1, column 5005: this is not TOML"),
        ("a = " + "9" * 5000, "a number too long or tables too deep"),
        ("a = 1\na = 2", "serving/offers.toml, line 2, column 6: this is not TOML"),
    ],
)
def test_broken_toml_is_placed(tmp_path: Path, text: str, says: str) -> None:
    with pytest.raises(ConfigError) as caught:
        Catalogue.load(write(tmp_path, text))
    assert says in str(caught.value)


def test_a_missing_or_binary_file_is_named(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"serving/offers\.toml: the file cannot be read"):
        Catalogue.load(tmp_path / "serving" / "offers.toml")
    path = write(tmp_path, "")
    path.write_bytes(b"\xff\xfe\x00")
    with pytest.raises(ConfigError, match="the file is not text"):
        Catalogue.load(path)


@pytest.mark.parametrize(
    ("fields", "says"),
    [
        ({"margn": 1}, 'unknown field "margn"'),
        ({"margn": 1}, 'Did you mean "margin"?'),
        ({"name": 7}, 'field "name" is wrong. Must be a text in quotes'),
        ({"goal": "sel"}, "field \"goal\" is wrong. Must be 'sell', 'retain', 'win_back'"),
        ({"channels": []}, 'field "channels" is wrong'),
        ({"channels": "mail"}, 'field "channels" is wrong. Must be a list, such as ["mail"]'),
        ({"channels": ["mail", 3]}, 'field "channels number 2" is wrong'),
        ({"margin": True}, 'field "margin" is wrong. Must be a number, or an expression in quotes'),
        ({"margin": 10**400}, 'field "margin" is wrong'),
        ({"save_rate": 10**400, "goal": "retain"}, 'field "save_rate" is wrong'),
        ({"response_window_days": 10**400}, 'field "response_window_days" is wrong'),
        ({"margin": float("nan")}, 'field "margin" is wrong'),
        ({"margin": "spend >"}, "margin cannot be read"),
        ({"margin": "(select 1)"}, "which the rule language does not have"),
        ({"contact_cost": -0.5}, "contact_cost is negative. Must be zero or more; got -0.5."),
        ({"incentive_cost": -1}, "incentive_cost is negative"),
        ({"starts_at": "2017-12-24"}, "Must be a date such as 2017-12-24"),
        (
            {"starts_at": date(2017, 12, 24), "ends_at": date(2017, 12, 23)},
            "the offer ends before it starts. Must be after 2017-12-24 00:00 UTC; "
            "got 2017-12-24 00:00 UTC.",
        ),
        ({"response_window_days": 0}, "Must be greater than 0; got 0."),
        ({"response_window_days": 2.5}, "Must be a whole number; got 2.5."),
        ({"goal": "retain"}, 'goal "retain" needs field "save_rate"'),
        ({"save_rate": 0.1}, 'field "save_rate" is only for goal "retain"'),
        ({"goal": "retain", "save_rate": 1.5}, "Must be less than or equal to 1; got 1.5."),
        ({"eligibility": "tenure_days >"}, "eligibility cannot be read"),
        ({"eligibility": {"old": "drop table x"}}, 'eligibility rule "old" cannot be read'),
        ({"eligibility": {"old": 3}}, 'field "old" is wrong. Must be a text'),
        ({"suitability": ["a > 1"]}, 'field "suitability" is wrong. Must be a table'),
        ({"active": "yes"}, "field \"active\" is wrong. Must be true or false; got 'yes'."),
    ],
)
def test_a_fault_of_an_offer_is_named_with_the_offer(fields: dict[str, Any], says: str) -> None:
    text = faults(offers=[offer("gold", **fields)])
    assert text.startswith('serving/offers.toml: offer "gold"')
    assert says in text


@pytest.mark.parametrize(
    ("raw", "says"),
    [
        ({}, "there is no offer. Must be at least one [[offers]] table"),
        ({"offers": []}, "there is no offer"),
        ({"offers": 3}, "there is no offer"),
        ({"offers": [3]}, "offer number 1 is wrong. Must be a table; got 3."),
        ({"offers": [{"name": "x"}]}, 'offer number 1: field "id" is missing'),
        ({"offers": [offer()], "ofers": []}, 'unknown section "ofers"'),
        ({"offers": [offer(), offer()]}, 'offer "a": the id is used more than once'),
        ({"offers": [offer()], "timezone": "Mars"}, "timezone is not known"),
        ({"offers": [offer()], "timezone": 5}, "timezone is not known"),
        ({"offers": [offer()], "defaults": 1}, "[defaults] is wrong"),
        ({"offers": [offer()], "defaults": {"id": "x"}}, '[defaults]: unknown field "id"'),
        ({"offers": [offer()], "defaults": {"gaol": "x"}}, 'Did you mean "goal"?'),
        ({"offers": [offer()], "assumptions": 1}, "[assumptions] is wrong"),
        ({"offers": [offer()], "assumptions": {"x": []}}, '[assumptions]: "x" is wrong'),
        ({"offers": [offer()], "assumptions": {"x": 10**400}}, '[assumptions]: "x" is wrong'),
    ],
)
def test_a_fault_of_the_file_is_named(raw: dict[str, Any], says: str) -> None:
    assert says in faults(**raw)


def test_all_faults_are_reported_at_once_each_in_its_place() -> None:
    text = faults(
        timezone="Mars",
        defaults={"contact_cost": -1, "channel": ["mail"]},
        offers=[
            offer("a", margin="1 +", goal="sel", starts_at=date(2018, 1, 1),
                  ends_at=date(2017, 1, 1)),
            offer("b", eligibility="(", id_=3),
            offer("b"),
        ],
    )  # fmt: skip
    lines = text.splitlines()
    starts = [
        "serving/offers.toml: timezone is not known.",
        'serving/offers.toml: [defaults]: unknown field "channel".',
        'serving/offers.toml: offer "a": field "goal" is wrong.',
        'serving/offers.toml: offer "a": margin cannot be read',
        'serving/offers.toml: offer "a": the offer ends before it starts.',
        'serving/offers.toml: offer "b": unknown field "id_".',
        'serving/offers.toml: offer "b": eligibility cannot be read',
        'serving/offers.toml: offer "b": the id is used more than once.',
        # Inherited by all three, and still one fault, in the place where it can be mended.
        "serving/offers.toml: [defaults]: contact_cost is negative.",
    ]
    for start in starts:
        assert sum(line.startswith(start) for line in lines) == 1, start
    assert len(lines) == len(starts)


def test_the_hash_follows_the_meaning_not_the_writing(tmp_path: Path) -> None:
    first = write(tmp_path / "1", '[[offers]]\nid="a"\nname="A"\ngoal="sell"\nmargin=1\n'
                  'channels=["mail"]\n')  # fmt: skip
    second = write(tmp_path / "2", '# why\n[defaults]\ngoal = "sell"\nchannels = ["mail"]\n'
                   '[[offers]]\nmargin = 1.0\nname = "A"\nid = "a"\n')  # fmt: skip
    one, two = Catalogue.load(first), Catalogue.load(second)
    assert one.content_hash == two.content_hash
    assert catalogue(offer("a", name="A", margin=1.5)).content_hash != one.content_hash


def test_an_unknown_column_is_named_with_the_nearest_known_one() -> None:
    read = catalogue(offer("gold-upgrade", eligibility="tenure > 3"))
    with pytest.raises(ConfigError) as caught:
        read.bind(COLUMNS)
    assert str(caught.value) == (
        'serving/offers.toml: offer "gold-upgrade": eligibility names column "tenure". '
        'Must be a known column; got none of that name. Did you mean "tenure_days"?'
    )


def test_binding_reports_the_faults_of_all_offers_at_once() -> None:
    read = catalogue(
        offer("a", margin="spend * 2", applicability={"x": "age_band > 3"}),
        offer("b", eligibility="tenure_days"),
        defaults={"contact_cost": "postage", "suitability": {"y": "tenur_days > 1"}},
        assumptions={"age_band": 1},
    )
    with pytest.raises(ConfigError) as caught:
        read.bind(COLUMNS)
    problems = [(f.where.removeprefix("serving/offers.toml: "), f.problem)
                for f in caught.value.faults]  # fmt: skip
    assert sorted(problems) == [
        ("[assumptions]", '"age_band" is also a column'),
        ("[defaults]", 'contact_cost names column "postage"'),
        ("[defaults]", 'suitability rule "y" names column "tenur_days"'),
        ('offer "a"', 'margin names column "spend"'),
        ('offer "b"', 'eligibility has "tenure_days"'),
    ]


def test_rules_may_use_the_offers_own_fields_and_assumptions() -> None:
    read = catalogue(
        offer(
            "a",
            margin="rate * value_per_response",
            eligibility="offer_goal = 'sell' and offer_id <> 'b' and offer_category is null"
            " and offer_response_window_days is null and propensity > floor and test",
        ),
        assumptions={"rate": 0.3, "floor": 0.1, "test": True},
    )
    bound = read.bind(COLUMNS)
    assert bound.rules[0].rule.columns >= {"offer_goal", "propensity", "floor"}
    assert len(bound.amounts["margin"].formulas) == 1
