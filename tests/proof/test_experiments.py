"""An experiment read from the project's own log, against the simulator's truth."""

from __future__ import annotations

from datetime import timedelta
from pathlib import Path

import numpy as np
import pytest
from commands import Run
from logged_shop import EPSILON, SALT, LoggedShop
from test_policy_value import surprise

from nextbest.decide.policy import Policy
from nextbest.errors import DataError
from nextbest.learn.metrics import Metric
from nextbest.measure.experiment import Design
from nextbest.project import Project
from nextbest.proof.experiments import Asked, FromLog, planned_shares, read_log
from nextbest.proof.logbook import has_decisions
from nextbest.simulate import OFFERS
from nextbest.simulate.shop import CHANNEL

ARMS = f"""
[holdout]
salt = "{SALT}"
share = 0.4
[arms]
salt = "{SALT}"
random_eligible = 0.25
"""
PEOPLE = 1_200
ONCE = Design(looks="once", planned=PEOPLE)


def said(shop: LoggedShop, *outcomes: str, design: Design = ONCE, **asked: object) -> FromLog:
    question = Asked(outcomes, days=14, **asked)  # type: ignore[arg-type]
    return read_log(Project.open(shop.root), question, design, lambda _: None)


@pytest.fixture(scope="module")
def shop(tmp_path_factory: pytest.TempPathFactory) -> LoggedShop:
    """Two in five held out, a fifth of the others with random offers; everybody's purchases."""
    made = LoggedShop.make("heterogeneous", PEOPLE, tmp_path_factory.mktemp("experiment"), 4)
    decisions = made.decide(made.policy(EPSILON, ARMS))
    made.log(decisions)
    made.answer(decisions, purchases=True)
    made.close()
    return made


def true_effect(shop: LoggedShop, policy: Path, values: np.ndarray) -> float:
    """What the policy adds to a customer's expected purchases, each of so much value."""
    chances = shop.decide(policy).probabilities[:, :-1]
    more = (shop.truth.contacted - shop.truth.left_alone) * values
    return float((chances * more).sum() / shop.shop.customers)


def test_the_lift_is_that_of_the_truth(shop: LoggedShop) -> None:
    everybody = shop.policy(EPSILON, name="everybody.toml")
    prices = np.array([o.price for o in OFFERS])
    found = said(shop, "revenue", "conversion", "response", "margin", margin_share=0.4)
    overall = {(c.question.outcome, c.question.against): c for c in found.reading.overall}
    revenue = overall["revenue", "holdout"]
    true = true_effect(shop, everybody, prices)
    assert true > 1 and revenue.finding == "higher"
    assert surprise(Metric(*vars(revenue.measured.difference).values()), true) < 1.5
    # Margin: 0.4 of that, less what contacts and taken incentives really cost.
    chances = shop.decide(everybody).probabilities[:, :-1]
    spent = chances * (shop.truth.contacted * shop.truth.incentive_cost + shop.truth.contact_cost)
    margin = overall["margin", "holdout"].measured.difference
    assert surprise(Metric(*vars(margin).values()), 0.4 * true - spent.sum() / PEOPLE) < 1.5
    assert overall["response", "holdout"].mean_against == 0  # nobody could answer
    assert ("revenue", "random_eligible") in overall
    rules = Policy.load(shop.root / "serving" / "policy.toml").tables
    assert found.reading.balance.shares == pytest.approx(planned_shares(rules.holdout, rules.arms))
    assert not found.reading.blocked and found.strangers == found.unfinished == 0


def test_shares_are_those_that_customers_fall_into(shop: LoggedShop) -> None:
    rules = Policy.load(shop.root / "serving" / "policy.toml").tables
    shares = planned_shares(rules.holdout, rules.arms)
    assert shares == pytest.approx({"policy": 0.45, "holdout": 0.4, "random_eligible": 0.15})
    arms, counts = np.unique(shop.decide(shop.root / "serving/policy.toml").arm, return_counts=True)
    for arm, count in zip(arms, counts / PEOPLE, strict=True):
        assert count == pytest.approx(shares[arm], abs=4 * np.sqrt(0.25 / PEOPLE))


def test_segments_by_offer_compare_arms_that_choose_alike(shop: LoggedShop) -> None:
    found = said(shop, "conversion", by=["offer", "channel", "openness"], before="openness")
    by_offer = [c for c in found.reading.segments if c.question.dimension == "offer"]
    assert {c.question.against for c in by_offer} == {"holdout"}
    assert {c.question.segment for c in by_offer} == {*(o.id for o in OFFERS), "no offer"}
    decisions = shop.decide(shop.root / "serving" / "policy.toml")
    would = decisions.would_choose[:, 0]
    for c in by_offer:
        at = -1 if c.question.segment == "no offer" else shop.truth.offer_ids.index(
            c.question.segment)  # fmt: skip
        sizes = [int(((would == at) & (decisions.arm == arm)).sum()) for arm in
                 ("policy", "holdout")]  # fmt: skip
        assert [c.n, c.n_against] == sizes
    channel = [c for c in found.reading.segments if c.question.dimension == "channel"]
    assert {(c.question.segment, c.question.against) for c in channel} == {
        (CHANNEL, "holdout"), (CHANNEL, "random_eligible")
    }  # fmt: skip
    tiers = {c.question.segment[0] for c in found.reading.segments
             if c.question.dimension == "openness"}  # fmt: skip
    assert tiers == set("12345")
    assert found.reading.overall[0].measured.variance_reduction is not None


def test_purchases_and_segments_of_the_projects_own_tables(
    shop: LoggedShop, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The history before the decisions: no purchase since, and the value before from it."""
    from nextbest.data.contract import check_and_clean

    tables = {name: _table(frame) for name, frame in shop.shop.tables().items()}
    until = shop.shop.until + timedelta(days=60)
    history = check_and_clean(tables, observed_until=until)
    monkeypatch.setattr(Project, "history", lambda _: history)
    found = said(shop, "revenue", by=["region"], purchases="data")
    c = found.reading.overall[0]
    assert c.mean == c.mean_against == 0 and "does not vary" in c.cannot_say
    assert {s.question.segment for s in found.reading.segments} == {
        "east", "north", "south", "west"
    }  # fmt: skip
    early = check_and_clean(tables, observed_until=shop.shop.until)
    monkeypatch.setattr(Project, "history", lambda _: early)
    with pytest.raises(DataError, match="the window runs past the transactions"):
        said(shop, "revenue", purchases="data")


def _table(frame: object) -> object:
    import ibis

    return ibis.memtable(frame)


def test_shares_that_changed_on_the_way_are_not_tested(tmp_path: Path) -> None:
    shop = LoggedShop.make("heterogeneous", 80, tmp_path)
    shop.log(shop.decide(shop.policy(EPSILON, ARMS.replace("0.25", "0.2"))))
    own = shop.policy(EPSILON, ARMS)
    shop.log(shop.decide(own, shop.shop.until + timedelta(days=1), mark="later"))
    shop.close()
    with pytest.raises(DataError, match="customers are in two arms"):
        said(shop, "response")
    later = said(shop, "response", since=shop.shop.until + timedelta(hours=12))
    assert later.reading.balance.p_value is not None
    told = Design(shares={"policy": 9, "holdout": 8, "random_eligible": 3}, planned=PEOPLE)
    asked = {"since": shop.shop.until + timedelta(hours=12), "design": told}
    assert said(shop, "response", **asked).reading.balance.p_value is not None


def test_what_offers_cost_must_be_known_for_margin(tmp_path: Path) -> None:
    shop = LoggedShop.make("heterogeneous", 60, tmp_path)
    shop.log(shop.decide(shop.policy(EPSILON, ARMS)))
    shop.close()
    for file in (tmp_path / ".nextbest" / "archive").glob("offers-*"):
        file.unlink()
    with pytest.raises(DataError, match="what offers earned and cost is not known"):
        said(shop, "margin", margin_share=0.4)
    assert said(shop, "response").reading.overall


# ------------------------------------------------------------------ the command


def test_the_command_reads_the_log_where_there_is_one(shop: LoggedShop, cli: Run) -> None:
    words = ("experiment", "read", "--project", shop.root, "--days", "14", "--once")
    ran = cli(*words, "--json")
    assert ran.code == 0, ran.err
    assert ran.json["source"] == "decision log" and ran.json["customers"] == PEOPLE
    assert [c["outcome"] for c in ran.json["overall"]] == ["conversion"] * 2 + ["revenue"] * 2
    words_said = cli(*words, "--outcome", "revenue").out
    assert "personalisation earned" in words_said and "as planned" in words_said
    assert "each customer is watched for 14 days from their first decision" in words_said
    assert "Purchases are those reported to the API" in " ".join(words_said.split())
    late = cli(*words, "--until", "2023-05-01")
    assert late.code == 1 and "there are no decisions in the log" in late.err


@pytest.mark.parametrize(
    ("words", "says"),
    [
        (("--contact-cost", "1"), "the log knows what every contact cost"),
        (("--source", "api"), "log or tables"),
        (("--source", "log", "--file", "x.csv", "--outcome", "y"), "the file is the source"),
        (("--source", "tables"), "the start of the experiment is not given"),
        (("--source", "tables", "--from", "2023-01-01", "--days", "3"), "for the decision log"),
        (("--purchases", "shop"), "log or data"),
    ],
)
def test_misuse(shop: LoggedShop, cli: Run, words: tuple[str, ...], says: str) -> None:
    ran = cli("experiment", "read", "--project", shop.root, *words)
    assert ran.code == 2 and says in ran.err and "Traceback" not in ran.err


def test_a_project_without_decisions_keeps_its_tables(
    shop: LoggedShop, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("NEXTBEST_STORE", raising=False)
    empty = LoggedShop.make("heterogeneous", 10, tmp_path)
    assert not has_decisions(Project.open(empty.root))
    assert not (tmp_path / ".nextbest" / "store.db").exists()
    assert has_decisions(Project.open(shop.root))
