"""The policy file: what it means, and that every fault in it is named, all at once."""

from __future__ import annotations

from datetime import UTC, date, datetime
from pathlib import Path
from typing import Any

import pytest
from decide_world import catalogue, offer, policy

from nextbest.decide.binding import bind
from nextbest.decide.policy import Policy, load_serving
from nextbest.decide.rules import Column
from nextbest.errors import ConfigError

COLUMNS = {
    "tenure_days": Column("number"),
    "consent_mail": Column("boolean"),
    "age_band": Column("string"),
    "share": Column("number", "pair"),
}


def test_a_policy_is_read_with_its_clock_limits_and_defaults() -> None:
    read = policy(
        timezone="-05:00",
        clock={"decide_as_of": date(2017, 12, 10)},
        context={"device": "string"},
        levers=[{"offer": "a", "multiplier": 2, "until": date(2017, 12, 17), "reason": "x"}],
        contact={
            "caps": [{"name": "c", "at_most": 2, "days": 30, "per": "channel"}],
            "cool_offs": [{"name": "f", "after": "refusal", "days": 7, "per": "offer"}],
            "exclusions": [{"name": "e", "days": 5, "channels": ["mail"]}],
        },
    )
    assert read.decide_as_of == datetime(2017, 12, 10, 5, tzinfo=UTC)
    # The last day of a lever counts in full.
    assert read.tables.levers[0].until == datetime(2017, 12, 18, 5, tzinfo=UTC)
    assert set(read.context_columns) == {"device", "channel", "placement", "decided_at"}
    cap, cool_off, exclusion = read.tables.limits()
    assert (cap.form, cap.kind, cap.at_most, cap.scope) == ("cap", "contact", 2, "channel")
    assert (cool_off.form, cool_off.kind, cool_off.scope) == ("cool_off", "refusal", "offer")
    assert (exclusion.form, exclusion.channels) == ("exclusion", {"mail"})
    assert read.tables.arbitration.objective == "expected_profit"
    assert policy().decide_as_of is None


@pytest.mark.parametrize(
    ("sections", "says"),
    [
        ({"chanels": {}}, 'unknown field "chanels". Must be one of timezone, clock'),
        ({"chanels": {}}, 'Did you mean "channels"?'),
        ({"channels": {}}, 'field "channels" is wrong'),
        ({"channels": {"mail": {"consent": True}}}, '[channels.mail]: unknown field "consent"'),
        ({"channels": {"mail": {"unknown_consent": "ask"}}}, "Must be 'refuse' or 'allow'"),
        ({"timezone": "Mars"}, "timezone is not known"),
        ({"clock": {"decide_as_of": "today"}}, "Must be a date such as 2017-12-24"),
        ({"profiles": {"freshness_limit_days": 0}}, "[profiles]: field"),
        ({"context": {"device": "text"}}, "[context]: field \"device\" is wrong. Must be 'number'"),
        ({"context": {"channel": "string"}}, '[context]: "channel" is always there'),
        ({"eligibility": {"x": "1 +"}}, '[eligibility]: eligibility rule "x" cannot be read'),
        ({"eligibility": {"x": 1}}, '[eligibility]: field "x" is wrong'),
        ({"arbitration": {"objective": "max(share)"}}, "which the rule language does not have"),
        ({"arbitration": {"target": "x"}}, '[arbitration]: unknown field "target"'),
        (
            {"contact": {"caps": [{"name": "c", "days": 3}]}},
            '[contact.caps] number 1: field "at_most" is missing',
        ),
        (
            {"contact": {"caps": [{"name": "c", "days": 3, "at_most": 0}]}},
            "Must be greater than or equal to 1; got 0.",
        ),
        (
            {"contact": {"cool_offs": [{"name": "c", "days": 3, "after": "sale"}]}},
            "Must be 'contact', 'acceptance', 'refusal' or 'purchase'; got 'sale'.",
        ),
        (
            {"contact": {"caps": [{"name": "c", "days": 3, "at_most": 1}] * 2}},
            '[contact] "c": the name is taken',
        ),
        (
            {"contact": {"caps": [{"name": "consent", "days": 3, "at_most": 1}]}},
            '[contact] "consent": the name is taken. Must be a name of its own; got the engine',
        ),
        (
            {"contact": {"caps": [{"name": "c", "days": 3, "at_most": 1, "channels": ["mial"]}]}},
            'names channel "mial". Must be one under [channels]. Did you mean "mail"?',
        ),
        (
            {"contact": {"cool_offs": [
                {"name": "c", "days": 3, "after": "purchase", "per": "offer"}]}},
            "a purchase belongs to no offer",
        ),
        (
            {"levers": [{"offer": "a", "multiplier": 0, "until": date(2018, 1, 1),
                         "reason": "x"}]},
            '[levers] number 1: field "multiplier" is wrong. Must be greater than 0; got 0.',
        ),
        ({"levers": [{"offer": "a", "multiplier": 2, "reason": "x"}]}, '"until" is missing'),
        (
            {"levers": [{"multiplier": 2, "until": date(2018, 1, 1), "reason": "x"}]},
            "the target is not clear. Must be exactly one of offer, category, goal; got none.",
        ),
        (
            {"levers": [{"offer": "a", "goal": "sell", "multiplier": 2,
                         "until": date(2018, 1, 1), "reason": "x"}]},
            "got offer and goal.",
        ),
        (
            {"context_weights": [{"name": "w", "when": "device =", "multiplier": 2}]},
            "[context_weights] number 1: when cannot be read",
        ),
        ({"levers": 3}, 'field "levers" is wrong. Must be a list'),
        ({"levers": [3]}, "is wrong. Must be a table; got 3."),
        ({"contact": 3}, 'field "contact" is wrong. Must be a table; got 3.'),
        ({"fallback": {"offers": "a"}}, '[fallback]: field "offers" is wrong. Must be a list'),
    ],
)  # fmt: skip
def test_a_fault_is_named_with_its_section(sections: dict[str, Any], says: str) -> None:
    with pytest.raises(ConfigError) as caught:
        policy(**sections)
    assert str(caught.value).startswith("serving/policy.toml: ")
    assert says in str(caught.value)


def test_all_faults_are_reported_at_once() -> None:
    with pytest.raises(ConfigError) as caught:
        policy(
            timezone="Mars",
            eligibility={"x": "1 +", "y": "("},
            fallbak={},
            levers=[{"multiplier": 2, "until": date(2018, 1, 1), "reason": "x"}],
            contact={"caps": [{"name": "c", "days": 3}]},
        )
    assert len(caught.value.faults) == 6


@pytest.mark.parametrize(
    ("sections", "says"),
    [
        ({"eligibility": {"x": "tenure > 3"}}, 'names column "tenure"'),
        ({"eligibility": {"x": "device = 'phone'"}}, 'names column "device"'),
        ({"arbitration": {"objective": "profit"}}, 'objective names column "profit"'),
        ({"arbitration": {"objective": "age_band"}}, "objective has"),
        (
            {"levers": [{"offer": "b", "multiplier": 2, "until": date(2018, 1, 1),
                         "reason": "x"}]},
            '[levers] number 1: names offer "b". Must be the id of an offer in serving/offers',
        ),
        (
            {"levers": [{"category": "game", "multiplier": 2, "until": date(2018, 1, 1),
                         "reason": "x"}]},
            'names category "game". Must be the category of an offer in serving/offers.toml. '
            'Did you mean "games"?',
        ),
        (
            {"context_weights": [{"name": "w", "when": "tenure_days", "multiplier": 2}]},
            'when has "tenure_days"',
        ),
        ({"fallback": {"offers": ["A"]}}, '[fallback]: names offer "A"'),
        (
            {"channels": {"mail": {"consent_column": "consent_mial"}}},
            '[channels.mail]: names consent column "consent_mial". Must be a known boolean column '
            'of customers. Did you mean "consent_mail"?',
        ),
        ({"channels": {"mail": {"consent_column": "age_band"}}}, "a known boolean column"),
        ({"channels": {"mail": {"consent_column": "share"}}}, "a known boolean column"),
        (
            {"channels": {"email": {}}},
            'offer "a": names channel "mail". Must be one under [channels] in serving/policy.toml.',
        ),
        ({"context": {"tenure_days": "number"}}, '[context]: "tenure_days" is also a column'),
    ],
)  # fmt: skip
def test_names_are_checked_against_the_data_and_the_catalogue(
    sections: dict[str, Any], says: str
) -> None:
    with pytest.raises(ConfigError) as caught:
        bind(catalogue(offer("a", category="games")), policy(**sections), COLUMNS)
    assert says in str(caught.value)


def test_binding_reports_the_faults_of_both_files_at_once() -> None:
    offers = catalogue(offer("a", margin="spend", channels=["mial"]))
    rules = policy(eligibility={"x": "tenure > 3"}, fallback={"offers": ["z"]})
    with pytest.raises(ConfigError) as caught:
        bind(offers, rules, COLUMNS)
    assert [f.problem for f in caught.value.faults] == [
        'margin names column "spend"',
        'names channel "mial"',
        'eligibility rule "x" names column "tenure"',
        'names offer "z"',
    ]


def test_the_retention_scores_must_be_known_only_where_an_offer_retains() -> None:
    bind(catalogue(offer("a")), policy(), COLUMNS)
    with pytest.raises(ConfigError) as caught:
        bind(catalogue(offer("a", goal="retain", save_rate=0.1)), policy(), COLUMNS)
    assert [f.problem for f in caught.value.faults] == [
        'churn_probability names column "churn_probability"',
        'clv names column "clv"',
    ]


def test_the_hash_follows_the_meaning() -> None:
    assert policy().content_hash == policy(levers=[]).content_hash
    assert policy().content_hash != policy(fallback={"offers": ["a"]}).content_hash


def test_both_files_are_loaded_and_their_faults_reported_together(tmp_path: Path) -> None:
    (tmp_path / "offers.toml").write_text('[[offers]]\nid = "a"\n')
    (tmp_path / "policy.toml").write_text("[clock\n")
    with pytest.raises(ConfigError) as caught:
        load_serving(tmp_path)
    places = [fault.where.split("/")[-1] for fault in caught.value.faults]
    assert places[0] == 'offers.toml: offer "a"'
    assert places[-1] == "policy.toml, line 1, column 7"


def test_a_policy_file_is_read(tmp_path: Path) -> None:
    path = tmp_path / "policy.toml"
    path.write_text("[channels.mail]\nconsent_required = false\n")
    assert Policy.load(path).tables.channels["mail"].consent_required is False
