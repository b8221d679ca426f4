"""The simulator against its own stated truth, and the engine against what nobody can beat.

Profit is always the true one: expected over everything that chance could still do. So nothing here
depends on how often customers happened to respond to a policy.
"""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from commands import Run
from simulated import learnt

from nextbest import jobs
from nextbest.errors import ConfigError, DataError, UsageError
from nextbest.project import Project
from nextbest.simulate import OFFERS, WORLDS, Shop, Truth, engine, rivals, world_of, write_project

EVERY = sorted(WORLDS)


def shop_of(world: str, customers: int = 3_000, days: int = 280, seed: int = 3) -> Shop:
    return Shop(world_of(world), customers, days, seed)


# ------------------------------------------------------------------ what was drawn


@dataclass(frozen=True)
class Drawn:
    """A shop's history, counted again from its tables alone: (mailings, n, m) booleans."""

    shop: Shop
    tables: dict[str, pd.DataFrame]
    bought: np.ndarray
    contacted: np.ndarray


def counted(shop: Shop) -> Drawn:
    tables = shop.tables()
    row = pd.Series(range(shop.customers), index=shop.customer_ids)
    column = pd.Series(range(len(shop.offers)), index=[o.id for o in shop.offers])
    sold, sent = tables["transactions"], tables["contacts"]
    day = (sold["ordered_at"] - pd.Timestamp("2023-01-02")) / pd.Timedelta(days=1)
    shape = (len(shop.mailings), shop.customers, len(shop.offers))
    bought, contacted = np.zeros(shape, dtype=bool), np.zeros(shape, dtype=bool)
    inside = (day >= 28) & (day % 28 < 14)  # a fortnight from each mailing, the first on day 28
    bought[
        (day[inside] // 28 - 1).astype(int),
        row[sold["customer_id"][inside]],
        column[sold["category"][inside]],
    ] = True
    offer = sent["offer_id"].str.split("-", expand=True)
    contacted[offer[1].astype(int), row[sent["customer_id"]], column[offer[0]]] = True
    return Drawn(shop, tables, bought, contacted)


@pytest.fixture(scope="module")
def drawn() -> dict[str, Drawn]:
    return {name: counted(shop_of(name)) for name in EVERY}


def surprise(seen: np.ndarray, expected: np.ndarray) -> float:
    """How many standard errors a count of independent events lies from its expectation."""
    return float((seen.sum() - expected.sum()) / np.sqrt((expected * (1 - expected)).sum()))


@pytest.mark.parametrize("world", EVERY)
def test_purchases_come_as_often_as_the_truth_says(drawn, world):
    shop = drawn[world].shop
    for mailing in (0, len(shop.mailings) - 1):
        truth, seen = shop.truth(mailing), drawn[world].bought[mailing]
        got = drawn[world].contacted[mailing]
        for j in range(len(shop.offers)):
            for who, stated in ((got, truth.contacted), (~got, truth.left_alone)):
                rows = who[:, j]
                assert abs(surprise(seen[rows, j], stated[rows, j])) < 4
        # Calibrated for the likely and the unlikely alike, not on the whole only.
        for stated, who in ((truth.contacted, got), (truth.left_alone, ~got)):
            for part in np.array_split(np.argsort(stated[who], kind="stable"), 5):
                assert abs(surprise(seen[who][part], stated[who][part])) < 4


@pytest.mark.parametrize("world", EVERY)
def test_responses_are_the_first_purchases_of_the_contacted(drawn, world):
    tables = drawn[world].tables
    responses = tables["responses"]
    by_hand = int((drawn[world].bought & drawn[world].contacted).sum())
    assert len(responses) == by_hand > 500
    assert not responses.duplicated(["customer_id", "offer_id"]).any()
    discounted = tables["transactions"][tables["transactions"]["discount"] > 0]
    assert len(discounted) == len(responses)
    assert responses["incentive_cost"].sum() == pytest.approx(discounted["discount"].sum())


def test_the_history_earns_what_the_truth_expects(drawn):
    """Margin of the window with contacts against the same people's expectation without."""
    shop = drawn["subsidy_leak"].shop
    earned = expected = spread = 0.0
    for mailing in range(len(shop.mailings)):
        truth, seen = shop.truth(mailing), drawn["subsidy_leak"].bought[mailing]
        got = drawn["subsidy_leak"].contacted[mailing]
        per_response = np.broadcast_to(truth.margin - truth.incentive_cost, got.shape)[got]
        earned += float((seen[got] * per_response).sum())
        p = truth.contacted[got]
        alone = (truth.left_alone * truth.margin)[got]
        expected += float((truth.profit + truth.contact_cost)[got].sum() + alone.sum())
        spread += float((p * (1 - p) * per_response**2).sum())
    assert abs(earned - expected) < 4 * np.sqrt(spread)


def test_the_base_rate_drifts_in_the_world_of_drift_alone(drawn):
    for world in EVERY:
        shop = drawn[world].shop
        first, last = (shop.truth(k).left_alone.mean() for k in (0, len(shop.mailings) - 1))
        assert last < 0.6 * first if world == "drift" else last == pytest.approx(first)
    shop, tables = drawn["drift"].shop, drawn["drift"].tables
    # In fortnights before and after all mailings' windows nobody is persuaded.
    day = (tables["transactions"]["ordered_at"] - pd.Timestamp("2023-01-02")).dt.days
    early, late = (day < 28).sum(), (day >= shop.days - 14).sum()
    expected = shop.levels[:28].sum() / shop.levels[-14:].sum()
    assert early / late == pytest.approx(expected, rel=4 * np.sqrt(1 / early + 1 / late))
    assert early / late > 3


def test_the_same_seed_gives_the_same_bytes_and_another_seed_others(tmp_path):
    def digest(folder: Path, seed: int) -> dict[str, str]:
        made = write_project(Shop(world_of("drift"), 50, 140, seed), folder)
        return {
            p.relative_to(folder).as_posix(): hashlib.sha256(p.read_bytes()).hexdigest()
            for p in made
        }

    one, same, other = (digest(tmp_path / n, s) for n, s in (("a", 1), ("b", 1), ("c", 2)))
    assert one == same
    assert {"data/contacts.parquet", "truth.parquet", "serving/offers.toml"} <= set(one)
    changed = {name for name in one if one[name] != other[name]}
    assert {f"data/{t}.parquet" for t in ("customers", "transactions", "contacts")} <= changed
    assert "truth.parquet" in changed


def test_worlds_of_one_seed_have_the_same_people():
    one, other = shop_of("no_effect", 200), shop_of("heterogeneous", 200)
    assert np.array_equal(one.consent, other.consent)
    assert np.array_equal(one.contacted, other.contacted)
    assert np.allclose(one.rates / one.rates.mean(), other.rates / other.rates.mean())


# ------------------------------------------------------------------ true probabilities


@pytest.mark.parametrize("world", EVERY)
def test_with_true_probabilities_nobody_earns_more_than_the_engine(world):
    """True means: propensity and baseline_rate of every customer and offer are the real ones."""
    shop = shop_of(world)
    truth, may = shop.truth(), shop.consent
    decisions = engine(shop, truth.contacted, truth.left_alone)
    best = truth.value(truth.oracle(may[:, None]))
    earned = truth.value(decisions.probabilities)
    assert np.array_equal(decisions.eligible, np.broadcast_to(may[:, None], truth.profit.shape))
    assert 0.95 * best <= earned <= best + 1e-6
    if world == "no_effect":
        assert best == earned == 0 and (decisions.chosen == -1).all()
    else:
        assert best > 1.15 * max(
            truth.value(r) for r in rivals(truth, truth.contacted, may).values()
        )


@pytest.mark.parametrize(("world", "most"), [("no_effect", -0.3), ("subsidy_leak", 0.3)])
def test_a_true_propensity_without_a_baseline_rate_is_not_enough(world, most):
    """Per customer: what is earned by counting every response as the offer's own."""
    shop = shop_of(world)
    truth = shop.truth()
    blind = truth.value(engine(shop, truth.contacted, None).probabilities) / shop.customers
    best = truth.value(truth.oracle(shop.consent[:, None])) / shop.customers
    assert blind < most
    assert best >= blind + 0.3


def test_the_oracle_is_the_best_of_all_choices():
    """Brute force over every choice of three customers and two offers."""
    truth = Truth(
        ("a", "b", "c"), ("x", "y"),
        np.array([[0.5, 0.3], [0.2, 0.9], [0.1, 0.1]]),
        np.array([[0.1, 0.1], [0.2, 0.8], [0.1, 0.1]]),
        margin=np.array([4.0, 10.0]), incentive_cost=np.array([1.0, 2.0]),
        contact_cost=np.array([0.1, 0.1]),
    )  # fmt: skip
    choices = [(i, j, k) for i in (-1, 0, 1) for j in (-1, 0, 1) for k in (-1, 0, 1)]
    values = {c: truth.value(truth.choose(np.array(c))) for c in choices}
    # a, x: .5 × 3 − .1 − .1 × 4; a, y: .3 × 8 − .1 − .1 × 10. To b everything is a gift.
    assert truth.profit[0] == pytest.approx([1.0, 1.3])
    assert max(values, key=values.get) == (1, -1, -1)
    assert truth.value(truth.oracle()) == pytest.approx(1.3) == max(values.values())
    only_x = np.array([[True, False]] * 3)
    assert truth.value(truth.oracle(only_x)) == pytest.approx(1.0)
    mixed = 0.25 * truth.choose(0) + 0.75 * truth.choose(-1)
    assert truth.value(mixed) == pytest.approx(0.25 * truth.profit[:, 0].sum())


def test_a_policy_that_is_none_is_refused():
    truth = shop_of("drift", 3).truth()
    with pytest.raises(DataError, match="wrong shape"):
        truth.value(np.ones((3, 2)))
    with pytest.raises(DataError, match="no distribution"):
        truth.value(np.full((3, len(OFFERS) + 1), 0.5))


# ------------------------------------------------------------------ trained models


def gain(ours: np.ndarray, theirs: np.ndarray) -> tuple[float, float]:
    """Mean true gain per customer, and the lower end of its paired 95% interval over customers."""
    each = ours - theirs
    return float(each.mean()), float(each.mean() - 1.96 * each.std(ddof=1) / np.sqrt(len(each)))


def test_trained_models_beat_simple_policies_where_effects_differ(tmp_path):
    shop = Shop(world_of("heterogeneous"), 1_200, 280, 5)
    truth, may = shop.truth(), shop.consent
    propensity, _ = learnt(shop, tmp_path, anyway=False)
    assert np.corrcoef(propensity.ravel(), truth.contacted.ravel())[0, 1] > 0.5
    ours = truth.each(engine(shop, propensity, None).probabilities)
    for name, policy in rivals(truth, propensity, may).items():
        value, low = gain(ours, truth.each(policy))
        assert value > low > 0, name


def test_trained_baseline_rates_stop_the_leak(tmp_path):
    shop = Shop(world_of("subsidy_leak"), 1_000, 280, 5, OFFERS[1:3])
    truth, may = shop.truth(), shop.consent
    propensity, anyway = learnt(shop, tmp_path, anyway=True)
    assert np.abs(anyway - truth.left_alone).mean() < 0.12
    ours = truth.each(engine(shop, propensity, anyway).probabilities)
    others = rivals(truth, propensity, may)
    blind = engine(shop, propensity, None).probabilities
    for name, policy in {**others, "without baseline rates": blind}.items():
        value, low = gain(ours, truth.each(policy))
        assert value > low > 0, name


# ------------------------------------------------------------------ the command


def test_the_command_says_what_policies_earn_and_writes_a_sound_project(cli: Run, tmp_path):
    words = ("simulate", "--world", "subsidy_leak", "--customers", "300", "--days", "140")
    made = cli(*words, "--out", tmp_path / "shop", "--json")
    assert made.code == 0 and made.json["rows"]["customers"] == 300
    earned = {p["policy"]: p["profit"] for p in made.json["policies"]}
    shop = Shop(world_of("subsidy_leak"), 300, 140, 1)
    truth = shop.truth()
    assert earned["best possible"] == pytest.approx(
        truth.value(truth.oracle(shop.consent[:, None]))
    )
    assert earned["engine, and true baseline rates"] == pytest.approx(earned["best possible"])
    assert earned["nobody"] == 0 and min(earned.values()) < 0
    stored = pd.read_parquet(tmp_path / "shop" / "truth.parquet")
    assert np.array_equal(stored["expected_profit"], truth.profit.ravel())
    report = jobs.check_project(Project.open(tmp_path / "shop"))
    assert report.faults == () and report.history is not None
    assert all(not r.quarantined for r in report.history.reports)
    again = cli(*words, "--out", tmp_path / "shop")
    assert again.code == 1 and "there is something already" in again.err
    said = cli(*words)
    assert said.code == 0 and "Nothing was written" in said.out
    assert max(len(line) for line in said.out.splitlines() if "│" in line) <= 80


def test_misuse_is_named():
    for world, customers, days, seed, said in (
        ("leak", 10, 140, 1, 'no world "leak"'),
        ("drift", 0, 140, 1, "nobody to simulate"),
        ("drift", 10, 100, 1, "multiple of 28"),
        ("drift", 10, 112, 1, "from 140 up"),
        ("drift", 10, 140, -1, "negative"),
    ):
        with pytest.raises(UsageError, match=said):
            Shop(world_of(world), customers, days, seed)


def test_a_file_in_the_way_is_refused(tmp_path):
    (tmp_path / "shop").write_text("")
    with pytest.raises(ConfigError, match="there is something already"):
        write_project(shop_of("drift", 5, 140), tmp_path / "shop")
