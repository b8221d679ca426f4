"""Another policy on the project's own log, against the simulator's truth and by hand."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from commands import Run
from logged_shop import EPSILON, SALT, LoggedShop
from sklearn.linear_model import LinearRegression

from nextbest.decide.engine import Ration
from nextbest.decide.policy import Policy
from nextbest.errors import ConfigError, DataError, GateRefusal, UsageError
from nextbest.learn.metrics import Metric
from nextbest.measure import ope
from nextbest.measure.ope import reward
from nextbest.measure.ope.log import LoggedPolicy
from nextbest.project import Project
from nextbest.proof import logbook
from nextbest.proof.policy_value import ASSUMPTIONS, PolicyValue, Question, value_of
from nextbest.serve import approvals
from nextbest.serve.otherwise import Otherwise, Reconsidered, reconsider
from nextbest.serve.runtime import open_store
from nextbest.simulate import WORLDS
from nextbest.simulate.worlds import OFFERS

EVERY, PEOPLE = sorted(WORLDS), 900
#: Money off bread for everybody, whatever it brings.
WORSE = '[arbitration]\nobjective = "propensity / propensity"\n'


_FOUND: dict[tuple[Any, ...], PolicyValue] = {}


def value(shop: LoggedShop, policy: Path, **asked: Any) -> PolicyValue:
    """What is asked more than once of the same log is worked out once."""
    key = (shop.root, policy, policy.read_text(), str(asked))
    if key not in _FOUND:
        question = Question(policy, **asked)
        _FOUND[key] = value_of(Project.open(shop.root), question, lambda _: None)
    return _FOUND[key]


@pytest.fixture(autouse=True, scope="module")
def quick_model() -> Iterator[None]:
    """The verdict does not depend on the reward model, and a line is fitted in no time."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(reward, "default_model", lambda _: LinearRegression())
        yield


def again(shop: LoggedShop, policy: Path, **asked: Any) -> Reconsidered:
    """The decisions alone, however few they are."""
    until = shop.shop.until + timedelta(days=30)
    store = open_store(shop.root)
    found = reconsider(shop.root, store, Otherwise(Policy.load(policy), until, **asked))
    store.close()
    return found


@pytest.fixture(scope="module")
def shops(tmp_path_factory: pytest.TempPathFactory) -> dict[str, LoggedShop]:
    """Every world with its decisions, four in five of them left to chance, and the answers."""
    made = {}
    for seed, world in enumerate(EVERY, 1):
        shop = LoggedShop.make(world, PEOPLE, tmp_path_factory.mktemp(world), seed)
        decisions = shop.decide(shop.policy(EPSILON))
        shop.log(decisions)
        shop.answer(decisions)
        shop.close()
        made[world] = shop
    return made


# ------------------------------------------------------------------ the truth


def surprise(found: Metric, true: float) -> float:
    """How far the truth lies from an estimate, where 1 is the end of its interval."""
    if true == found.value:
        return 0.0
    reach = found.high - found.value if true > found.value else found.value - found.low
    return abs(true - found.value) / reach


@pytest.mark.parametrize("world", EVERY)
def test_the_interval_holds_what_another_policy_truly_earns(
    shops: dict[str, LoggedShop], world: str
) -> None:
    shop = shops[world]
    greedy, worse = shop.policy(name="greedy.toml"), shop.policy(WORSE, name="worse.toml")
    own = shop.root / "serving" / "policy.toml"
    assert shop.value(greedy) > max(shop.value(own), shop.value(worse))
    for policy in (greedy, worse):
        found = value(shop, policy).found
        true, gain = shop.value(policy), shop.value(policy) - shop.value(own)
        # Of sixteen intervals one may well miss; none may miss by half its reach. How often they
        # hold is counted below.
        assert surprise(found.primary.value, true) < 1.5
        assert surprise(found.primary.difference, gain) < 1.5
        assert found.verdict.call == "ship" if policy == greedy else "do not ship"


def test_the_interval_is_right_as_often_as_it_says(shops: dict[str, LoggedShop]) -> None:
    """Choices and answers drawn again and again; the chances are those of the records."""
    shop = shops["subsidy_leak"]
    found = value(shop, shop.policy(WORSE, name="worse.toml"))
    decided, truth, random = found.decided, shop.truth, np.random.default_rng(11)
    order = [truth.customer_ids.index(c) for c in decided.customer_ids]
    columns = [truth.offer_ids.index(o) for o in decided.offer_ids]
    likely, n = truth.contacted[order][:, columns], len(decided)
    alone = truth.left_alone[order][:, columns]
    margin, incentive = truth.margin[columns], truth.incentive_cost[columns]
    true = (decided.other[:, :-1] * truth.profit[order][:, columns]).sum() / n
    hits, draws = 0, 60
    for _ in range(draws):
        lots = random.random((n, 1))
        action = (lots > np.cumsum(decided.logged, axis=1)).sum(axis=1)
        offer, made = np.minimum(action, len(columns) - 1), action < len(columns)
        rows = np.arange(n)
        answer = random.random(n) < likely[rows, offer]
        earned = answer * (margin - incentive)[offer] - truth.contact_cost[0]
        profit = np.where(made, earned - alone[rows, offer] * margin[offer], 0.0)
        log = LoggedPolicy(
            np.arange(n), decided.offer_ids, action, profit, decided.logged[rows, action],
            probabilities=decided.logged, context=likely,
        )  # fmt: skip
        estimate = ope.evaluate(log, decided.other, model=LinearRegression()).primary.value
        hits += estimate.low < true < estimate.high
    assert 53 <= hits <= 60  # 57 expected


def test_every_decision_is_made_again_as_for_everybody_at_once(
    shops: dict[str, LoggedShop],
) -> None:
    shop = shops["heterogeneous"]
    greedy = shop.policy(name="greedy.toml")
    found = value(shop, greedy)
    at_once, logged = shop.decide(greedy), shop.decide(shop.root / "serving" / "policy.toml")
    rows = [at_once.audience.customer_ids.index(c) for c in found.decided.customer_ids]
    columns = [at_once.catalogue.offer_ids.index(o) for o in found.decided.offer_ids] + [-1]
    assert np.array_equal(found.decided.other, at_once.probabilities[rows][:, columns])
    assert np.allclose(found.decided.logged, logged.probabilities[rows][:, columns], atol=1e-12)
    assert len(found.decided) == shop.shop.customers and not found.decided.left_out
    # What came of each: margin less incentive where it was answered, less cost and subsidy leak.
    truth, lots = shop.truth, np.random.default_rng([shop.seed, 99]).random((PEOPLE, len(OFFERS)))
    earned = np.zeros(PEOPLE)
    for i, j in enumerate(logged.chosen[:, 0]):
        if j >= 0:
            hit = lots[i, j] < truth.contacted[i, j]
            earned[i] = hit * (truth.margin[j] - truth.incentive_cost[j]) - truth.contact_cost[j]
            earned[i] -= truth.left_alone[i, j] * truth.margin[j]
    assert found.found.logged.value == pytest.approx(earned.mean())
    answered = value(shop, greedy, reward="response").found.logged.value
    chosen = logged.chosen[:, 0]
    hits = [chosen[i] >= 0 and lots[i, chosen[i]] < truth.contacted[i, chosen[i]]
            for i in range(PEOPLE)]  # fmt: skip
    assert answered == pytest.approx(np.mean(hits))
    prices = np.array([o.price for o in OFFERS])
    sold = np.where(hits, prices[np.maximum(chosen, 0)], 0.0).mean()
    assert value(shop, greedy, reward="revenue").found.logged.value == pytest.approx(sold)


def test_a_policy_that_chooses_alike_passes_any_gate(shops: dict[str, LoggedShop]) -> None:
    shop = shops["heterogeneous"]
    same = value(shop, shop.policy(EPSILON, "[gates]\nmax_loss_per_1000_decisions = 0\n",
                                   name="same.toml"))  # fmt: skip
    assert same.is_same and same.gate(0).passed
    assert "chooses as the logged policy did in all 900" in same.gate(0).message
    other = value(shop, shop.policy(WORSE, name="worse.toml"))
    assert not other.is_same and not other.gate(0).passed
    lost = -other.found.primary.difference.low
    assert other.gate(1000 * lost + 1).passed and not other.gate(1000 * lost - 1).passed


# ------------------------------------------------------------------ what is left out


SHARES = f"""
[holdout]
salt = "{SALT}"
share = 0.2
[arms]
salt = "{SALT}"
no_contact = 0.1
random_eligible = 0.1
propensity_only = 0.1
no_levers = 0.1
"""


def test_what_cannot_tell_is_left_out_and_counted(tmp_path: Path) -> None:
    shop = LoggedShop.make("heterogeneous", 400, tmp_path)
    rules = shop.policy(EPSILON, SHARES)
    people = shop.audience()
    some = np.arange(400) >= 30
    people = replace(people, known=some)
    at = shop.shop.until.replace(tzinfo=UTC)
    early = shop.decide(shop.policy(EPSILON, name="old.toml"), at - timedelta(days=1), mark="e")
    shop.log(early)
    main = shop.decide(rules, at, audience=people)
    shop.log(main)
    shop.log(shop.decide(rules, at, limit=2, mark="two"))
    shop.log(shop.decide(rules, at + timedelta(days=20), mark="late"))
    shop.close(30)
    greedy = shop.policy(name="greedy.toml")
    last = Policy.load(rules).content_hash
    found = again(shop, greedy, logged_by=last)
    arms = {name: int((main.arm == name).sum()) for name in set(main.arm)}
    all_known = shop.decide(rules, at).arm
    kept = {a: int((all_known == a).sum()) for a in set(all_known)}
    others = ("random_eligible", "propensity_only", "no_levers")
    held = ("holdout", "no_contact")
    left = found.left_out
    assert left["held out"] == sum(arms[a] + 2 * kept[a] for a in held)
    assert left["fallback"] == arms["fallback"]
    assert left["other arm"] == sum(arms[a] + 2 * kept[a] for a in others)
    assert left["earlier policy"] == 400
    assert left["several offers"] == left["open window"] == kept["policy"]
    assert len(found) == arms["policy"] and len(left) == 6
    assert found.policies == {last: arms["policy"]}
    every = again(shop, greedy, first_slot=True)
    assert len(every) == arms["policy"] + kept["policy"] + 400
    assert set(every.policies) == {last, Policy.load(shop.root / "serving/old.toml").content_hash}
    # Later decisions count once their time is over, and the first ones can be left out by date.
    project, since = Project.open(shop.root), shop.shop.until + timedelta(days=10)
    later = replace(Question(greedy), since=since, until=since + timedelta(days=24))
    with pytest.raises(DataError, match=r"got \d+\.\d of|too few|rarely chose"):
        value_of(project, later, lambda _: None)
    with pytest.raises(DataError, match="no decision is left"):
        value_of(project, replace(later, until=since + timedelta(days=23)), lambda _: None)
    with logbook.opened(project) as book:
        assert book.log.last_policy() == last


def test_what_several_policies_and_first_slots_mean_is_said(shops: dict[str, LoggedShop]) -> None:
    shop = shops["drift"]
    asked = {"every_policy": True, "first_slot": True}
    found = value(shop, shop.policy(name="greedy.toml"), **asked)
    assert len(found.assumptions) == len(ASSUMPTIONS) + 1
    policies = {"a": 1, "b": 2}
    two = replace(found, decided=replace(found.decided, policies=policies, retaining=("stay",)))
    assert "of offers that keep customers (stay)" in two.assumptions[-1]
    assert "made by 2 policies" in "\n".join(two.lines())
    with pytest.raises(UsageError, match="about profit over that of the live policy"):
        found.gate(0)


def test_a_sample_of_customers(shops: dict[str, LoggedShop]) -> None:
    shop = shops["heterogeneous"]
    found, repeated = (again(shop, shop.policy(name="g.toml"), at_most=300) for _ in range(2))
    assert 250 < len(found) < 350
    assert found.left_out == {"not sampled": PEOPLE - len(found)}
    assert repeated.customer_ids == found.customer_ids


def test_what_a_batch_shares_out_is_no_matter_of_one_customer(tmp_path: Path) -> None:
    shop = LoggedShop.make("heterogeneous", 60, tmp_path)
    made = shop.decide(shop.policy(EPSILON))
    n, m = made.fates.shape
    shop.log(replace(made, ration=Ration(np.ones((n, m), dtype=bool), np.zeros(n, dtype=bool))))
    shop.close()
    with pytest.raises(DataError) as refused:
        value(shop, shop.policy(name="greedy.toml"))
    assert "no decision is left" in str(refused.value) and "60 shared out" in str(refused.value)


# ------------------------------------------------------------------ what is refused


CAP = '[[contact.caps]]\nname = "rarely"\nat_most = 1\ndays = {days}\n'


@pytest.mark.parametrize(
    ("logged", "other", "says"),
    [
        ("", EPSILON, r'every logged choice was certain.*policy = "epsilon"'),
        (EPSILON, '[eligibility]\n"young" = "age_years < 30"\n', r"age_years.*Records hold"),
        (EPSILON, CAP.format(days=30), r'"rarely".*it counts what the records do not hold'),
        (EPSILON + CAP.format(days=7), CAP.format(days=30), "contacts within 30 days"),
        (EPSILON, f'[exploration]\nsalt = "{SALT}"\npolicy = "thompson"\n', "it learns from"),
        (EPSILON, "[gates]\nmax_loss = 3\n", 'unknown field "max_loss"'),
        (EPSILON, "[gates]\nmax_loss_per_1000_decisions = -1\n", "max_loss_per_1000_decisions"),
    ],
)  # fmt: skip
def test_what_the_log_cannot_answer(tmp_path: Path, logged: str, other: str, says: str) -> None:
    shop = LoggedShop.make("heterogeneous", 60, tmp_path)
    made = shop.decide(shop.policy(logged))
    shop.log(made)
    shop.close()
    with pytest.raises((DataError, ConfigError)) as refused:
        value(shop, shop.policy(other, name="other.toml"))
    assert re.search(says, str(refused.value).replace("\n", " ")), refused.value


def test_limits_that_the_records_cover_are_no_obstacle(tmp_path: Path) -> None:
    shop = LoggedShop.make("heterogeneous", 60, tmp_path)
    shop.log(shop.decide(shop.policy(EPSILON + CAP.format(days=30))))
    assert len(again(shop, shop.policy(CAP.format(days=7), name="other.toml"))) == 60


def test_a_log_that_is_not_there(tmp_path: Path) -> None:
    shop = LoggedShop.make("heterogeneous", 60, tmp_path)
    with pytest.raises(DataError, match="decision log: there are no decisions"):
        value(shop, shop.policy())
    with pytest.raises(UsageError) as refused:
        Question(Path("x"), reward="fame", at_most=0, window_days=-1)  # type: ignore[arg-type]
    assert len(refused.value.faults) == 3


def test_offers_without_a_time_to_answer(tmp_path: Path) -> None:
    shop = LoggedShop.make("heterogeneous", 60, tmp_path)
    offers = tmp_path / "serving" / "offers.toml"
    text = offers.read_text()
    offers.write_text(text.replace("response_window_days = 14\n", ""))
    shop.log(shop.decide(shop.policy(EPSILON)))
    shop.close()
    with pytest.raises(DataError, match="none for bread, coffee, wine, tools"):
        value(shop, shop.policy(name="greedy.toml"))
    with pytest.raises(DataError, match=r"effective sample|too few"):
        value(shop, shop.policy(name="greedy.toml"), window_days=14)


# ------------------------------------------------------------------ the command and the gate


def required(shop: LoggedShop, policy: Path) -> None:
    approvals.require_approved(shop.root, shop.catalogue, Policy.load(policy))


def test_the_command_and_the_gate(shops: dict[str, LoggedShop], cli: Run, tmp_path: Path) -> None:
    shop, gate = shops["heterogeneous"], "[gates]\nmax_loss_per_1000_decisions = 10\n"
    better, worse = shop.policy(gate, name="better.toml"), shop.policy(gate, WORSE, name="bad.toml")
    for policy in (better, worse):
        with pytest.raises(GateRefusal, match="no approval of kind evaluation"):
            required(shop, policy)
    words = ("evaluate", "--project", shop.root, "--policy")
    page = tmp_path / "page.html"
    ran = cli(*words, better, "--json", "--html", page)
    assert ran.code == 0, ran.err
    assert ran.json["verdict"]["call"] == "ship" and ran.json["gate"]["passed"] is True
    assert ran.json["assumptions"] == list(ASSUMPTIONS)
    assert "One decision at a time" in page.read_text()
    required(shop, better)

    said = cli(*words, worse)
    assert said.code == 1 and "✗ gate: gain per decision" in said.out
    assert "Do not ship" in said.out and "900 logged decisions, as" in said.out
    with pytest.raises(GateRefusal, match="did not pass its examination of kind evaluation"):
        required(shop, worse)
    forced = cli(*words, worse, "--force", "--reason", "the board wants it")
    assert forced.code == 0 and "Approved all the same: the board wants it" in forced.out
    required(shop, worse)
    kept = approvals.find(shop.root, "evaluation", shop.catalogue, Policy.load(worse))
    assert kept is not None and "the board wants it" in kept.said
    assert kept.numbers["gate"]["passed"] is False
    trail = cli("audit", "list", "--project", shop.root, "--json").json["entries"]
    judged = [one["detail"] for one in trail if one["action"] == "judge"]
    assert [one["passed"] for one in judged] == [True, False, True]
    assert judged[-1]["forced"] is not None


def test_a_log_that_cannot_answer_approves_nothing(cli: Run, tmp_path: Path) -> None:
    shop = LoggedShop.make("heterogeneous", 60, tmp_path)
    shop.log(shop.decide(shop.policy()))
    shop.close()
    gate = shop.policy("[gates]\nmax_loss_per_1000_decisions = 10\n", name="gate.toml")
    words = ("evaluate", "--project", shop.root, "--policy", gate)
    ran = cli(*words)
    assert ran.code == 1 and "nothing was left to chance" in ran.err
    with pytest.raises(GateRefusal, match="the log cannot answer"):
        required(shop, gate)
    ran = cli(*words, "--force", "--reason", "nothing is logged yet", "--json")
    assert ran.code == 0 and ran.json["forced"] == "nothing is logged yet"
    required(shop, gate)


@pytest.mark.parametrize(
    ("words", "says"),
    [
        ((), "expected"),
        (("--log", "a.parquet"), "the question is not clear"),
        (("--policy", "a.toml", "--log", "a.parquet", "--target", "b"), "the question is not"),
        (("--policy", "a.toml", "--force"), "it needs a reason"),
        (("--policy", "a.toml", "--reward", "fame"), "profit or response or revenue"),
    ],
)
def test_misuse(cli: Run, words: tuple[str, ...], says: str) -> None:
    ran = cli("evaluate", *words)
    assert ran.code == 2 and (says in ran.err or says == "expected") and "Traceback" not in ran.err


def test_everything_said_is_plain_json(shops: dict[str, LoggedShop]) -> None:
    shop = shops["drift"]
    found = value(shop, shop.policy(name="greedy.toml"))
    assert json.loads(json.dumps(found.to_dict(), allow_nan=False))["decisions"] == PEOPLE
    assert datetime.fromisoformat(found.to_dict()["until"]) == found.until
