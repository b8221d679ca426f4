"""Limits over a batch: never exceeded, first draws, then the best assignment; honest chances."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from decide_world import audience, catalogue, offer, policy, situation
from scipy.optimize import linprog

from nextbest.decide import bound as b
from nextbest.decide.assign import Constraint, Price, Prices
from nextbest.decide.binding import bind
from nextbest.decide.engine import Decisions, Ration, decide
from nextbest.decide.ration import PIECE, Rationing, constraints
from nextbest.errors import ConfigError, UsageError

SALT = "a salt of our own"
IDS = ("a", "b", "c")
N = 120


@pytest.fixture(autouse=True)
def quick(monkeypatch: pytest.MonkeyPatch) -> None:
    """The bound is as true after 10 branches as after 500."""
    monkeypatch.setattr("nextbest.decide.assign.exact.MOST_BRANCHES", 10)


class World:
    """One batch of customers with random propensities, decided as `serve.batch` does."""

    def __init__(self, limits: dict[str, Any] | None = None, n: int = N, slots: int = 1,
                 known: Any = None, offers: dict[str, Any] | None = None,
                 **sections: Any) -> None:  # fmt: skip
        propensity = np.random.default_rng(5).uniform(0.05, 0.9, (n, 3))
        self.people = audience(propensity)
        if known is not None:
            self.people = audience(propensity, known=known)
            self.people.propensity[~known] = np.nan
        own = offers or {}
        made = [offer(i, incentive_cost=2, contact_cost=0.1, **own.get(i, {})) for i in IDS]
        self.files = (catalogue(*made), policy(**sections, budgets=limits or {}))
        self.bound = bind(*self.files, self.people.known_columns())
        self.at = situation(limit=slots)
        self.ids = [f"d{i}" for i in range(n)]
        self.n = n

    def decide(
        self, rows: Any, prices: Prices | None = None, ration: Ration | None = None
    ) -> Decisions:
        people = self.people.take(rows)
        ids = [self.ids[i] for i in rows]
        return decide(people, *self.bound, self.at, ids, prices=prices, ration=ration)

    def batch(self) -> tuple[Decisions, Rationing]:
        limits = constraints(self.files[0], self.files[1].tables, "mail", {})
        group = self.bound[1].groups["exclusivity_group"]
        rationing = Rationing(limits, self.n, IDS, self.at.limit, group)
        for start in range(0, self.n, 50):
            rows = np.arange(start, min(start + 50, self.n))
            rationing.add(slice(start, start + len(rows)), self.decide(rows))
        made = self.decide(np.arange(self.n), *rationing.share(self.decide))
        rationing.made(slice(0, self.n), made)
        return made, rationing


def counts(decisions: Decisions) -> list[int]:
    return [int((decisions.chosen == j).sum()) for j in range(3)]


def fate(decisions: Decisions, what: tuple[str, str]) -> np.ndarray[Any, Any]:
    return decisions.fates == decisions.policy.fates.codes[what]


def test_offers_are_shared_out_as_well_as_a_linear_program_can() -> None:
    """Capacities make a transport problem, whose linear program has whole solutions."""
    world = World(offers={"a": {"max_contacts_per_batch": 20}, "b": {"max_contacts_per_batch": 30}})
    made, rationing = world.batch()
    worth = world.decide(np.arange(N)).worth
    gain = np.maximum(worth, 0).ravel()
    customer = np.repeat(np.eye(N), 3, axis=1)
    per_offer = np.tile(np.eye(3), N)[:2]
    best = linprog(-gain, np.vstack([customer, per_offer]), [*np.ones(N), 20, 30], bounds=(0, 1))
    facts = rationing.facts()
    assert facts["value"] == pytest.approx(-best.fun, rel=1e-6)
    assert facts["upper_bound"] == pytest.approx(-best.fun, rel=1e-6)
    assert counts(made)[:2] == [20, 30]
    assert facts["binding"] == ['capacity of offer "a"', 'capacity of offer "b"']
    assert [one["used"] for one in facts["prices"]] == [20, 30]
    assert "one more contact is worth" in facts["prices"][0]["in_words"]
    # One more contact of offer a really is worth its price.
    more = linprog(-gain, np.vstack([customer, per_offer]), [*np.ones(N), 21, 30], bounds=(0, 1))
    assert facts["prices"][0]["price"] >= best.fun - more.fun - 1e-5
    less = linprog(-gain, np.vstack([customer, per_offer]), [*np.ones(N), 19, 30], bounds=(0, 1))
    assert facts["prices"][0]["price"] <= less.fun - best.fun + 1e-5


def test_what_an_offer_is_lost_to_is_said() -> None:
    made, _ = World(offers={"a": {"max_contacts_per_batch": 20}}).batch()
    lost = fate(made, b.SCARCE)
    assert lost[:, 0].sum() > 10 and not lost[:, 1:].any()
    worth, last = (
        made.worth,
        np.arange(N),
    )
    chosen = made.chosen[:, 0]
    better = worth > np.where(chosen < 0, 0, worth[last, chosen])[:, None]
    assert (lost == better).all()
    row = int(np.flatnonzero(lost[:, 0])[0])
    trace = made.trace(row)["offers"][0]
    assert trace["fate"] == {"step": "limits", "reason": "scarcity: worth more to others"}
    assert trace["steps"][-1] == {
        "step": "limits", "passed": False,
        "reason": "it is worth more to other customers, and there is not enough for all",
    }  # fmt: skip
    assert trace["numbers"]["scarcity_price"] > 0


def test_nobody_gets_what_there_is_none_of() -> None:
    made, _ = World(offers={i: {"max_contacts_per_batch": 0} for i in IDS}).batch()
    assert counts(made) == [0, 0, 0]
    assert set(made.table()["no_offer_because"]) == {"limits: scarcity: worth more to others"}
    assert made.answer(0)["no_offer_reasons"][0].startswith("offer a: limits: it is worth more")


def test_where_no_limit_binds_nothing_changes() -> None:
    for sections in ({}, {"exploration": {"policy": "epsilon", "salt": SALT}}):
        world = World({"total": 1e9, "channels": {"mail": 10_000}}, **sections)
        made, rationing = world.batch()
        plain = world.decide(np.arange(N))
        for name, column in plain.table().items():
            np.testing.assert_array_equal(column, made.table()[name], err_msg=name)
        assert (made.fates == plain.fates).all()
        assert [made.trace(i) for i in range(5)] == [plain.trace(i) for i in range(5)]
        assert rationing.facts()["binding"] == []
        assert rationing.facts()["gap"] < (0.3 if sections else 1e-6)


@pytest.mark.parametrize("slots", [1, 2])
@pytest.mark.parametrize(
    "sections",
    [
        {},
        {"exploration": {"policy": "epsilon", "epsilon": 0.5, "salt": SALT}},
        {"exploration": {"policy": "softmax", "salt": SALT, "max_loss_share": 0.3}},
        {"exploration": {"policy": "thompson", "salt": SALT}},
        {"arms": {"salt": SALT, "random_eligible": 0.25, "propensity_only": 0.25,
                  "no_levers": 0.25, "no_contact": 0.1},
         "holdout": {"salt": SALT, "share": 0.1}},
    ],
)  # fmt: skip
def test_no_limit_is_ever_exceeded(sections: dict[str, Any], slots: int) -> None:
    limits = {"total": 60.0, "channels": {"mail": 70}, "categories": {"x": 25}, "groups": {"g": 40}}
    offers = {
        "a": {"max_contacts_per_batch": 15, "category": "x"},
        "b": {"budget": 20.0, "category": "x", "exclusivity_group": "g"},
        "c": {"exclusivity_group": "g"},
    }
    known = np.arange(N) % 10 > 0
    world = World(limits, slots=slots, offers=offers, known=known,
                  fallback={"offers": ["a", "c"]}, **sections)  # fmt: skip
    made, rationing = world.batch()
    a, b_, c = counts(made)
    cost = np.broadcast_to(made.values.expected_cost, made.fates.shape)
    row, slot = np.nonzero(made.chosen >= 0)
    picked = made.chosen[row, slot]
    spent = cost[row, picked]
    assert a <= 15 and a + b_ <= 25 and b_ + c <= 40 and a + b_ + c <= 70
    assert spent.sum() <= 60 and spent[picked == 1].sum() <= 20  # nan, an unknown cost, would fail
    facts = rationing.facts()
    assert 0 <= facts["gap"] < 1
    used = {one["constraint"]: one["used"] for one in facts["prices"]}
    assert used['capacity of offer "a"'] == a and used['volume of channel "mail"'] == a + b_ + c
    assert used["total budget"] == pytest.approx(spent.sum())


def test_who_is_held_out_uses_up_nothing_and_would_choose_at_the_prices() -> None:
    world = World(offers={"a": {"max_contacts_per_batch": 20}},
                  holdout={"salt": SALT, "share": 0.5})  # fmt: skip
    made, rationing = world.batch()
    held = made.arm == "holdout"
    assert 30 < held.sum() < 90
    assert (made.chosen[held] < 0).all() and counts(made)[0] == 20
    price = rationing.prices.per_contact
    assert price[0] > 0
    after = made.worth - price
    best = np.where(after.max(axis=1) > 0, after.argmax(axis=1), -1)
    assert (made.would_choose[held, 0] == best[held]).all()


@pytest.mark.parametrize(
    ("sections", "n"),
    [
        ({"exploration": {"policy": "epsilon", "epsilon": 0.6, "salt": SALT}}, 40),
        ({"exploration": {"policy": "softmax", "temperature": 2.0, "salt": SALT}}, 40),
        ({"arms": {"salt": SALT, "random_eligible": 0.25}}, 120),
    ],
)
def test_logged_probabilities_are_those_in_force(sections: dict[str, Any], n: int) -> None:
    """Many batches of the same customers: an offer is drawn as often as its log says.

    What is open to a customer may depend on the draws of those before, never on the own one. So
    for each offer the sum of (drawn − logged probability) over customers is a martingale; its
    variance is the sum of p × (1 − p), and over many batches the sum is within 4 of its spread.
    """
    drift, variance, closed = np.zeros(3), np.zeros(3), 0
    for batch in range(12):
        world = World(n=n, offers={"a": {"max_contacts_per_batch": 3}, "b": {"budget": 4.0}},
                      **sections)  # fmt: skip
        world.ids = [f"batch {batch}, {i}" for i in range(n)]
        made, _ = world.batch()
        drawn = made.arm == ("policy" if "exploration" in sections else "random_eligible")
        p = made.probabilities[drawn, :3]
        hit = made.chosen[drawn, :1] == np.arange(3)
        drift += (hit - p).sum(axis=0)
        variance += (p * (1 - p)).sum(axis=0)
        closed += int(fate(made, b.USED_UP)[drawn].sum())
        assert (p[fate(made, b.USED_UP)[drawn]] == 0).all()
        assert np.allclose(made.probabilities.sum(axis=1), 1)
    assert closed > 50 and (variance > 5).all(), (closed, variance)
    assert (np.abs(drift) < 4 * np.sqrt(variance)).all(), drift / np.sqrt(variance)


def test_what_is_open_does_not_depend_on_how_customers_are_taken(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    def batch() -> Decisions:
        return World({"total": 40.0}, offers={"a": {"max_contacts_per_batch": 10}},
                     exploration={"policy": "softmax", "salt": SALT}).batch()[0]  # fmt: skip

    whole = batch()
    monkeypatch.setattr("nextbest.decide.ration.PIECE", 40)
    cut = batch()
    assert PIECE > N
    assert (whole.fates == cut.fates).all() and (whole.chosen == cut.chosen).all()
    np.testing.assert_array_equal(whole.probabilities, cut.probabilities)


def test_strangers_get_what_is_left() -> None:
    known = np.arange(N) % 2 > 0
    scarce = {"a": {"max_contacts_per_batch": 30}}
    made, _ = World(offers=scarce, known=known, fallback={"offers": ["a", "c"]}).batch()
    stranger = ~known
    left = 30 - int((made.chosen[known] == 0).sum())
    got = made.chosen[stranger, 0]
    assert (got[:left] == 0).all() and (got[left:] == 2).all()
    # Nobody knows what a stranger would cost, so a budget has no room for one.
    made, _ = World(offers={"a": {"budget": 1e6}}, known=known, fallback={"offers": ["a"]}).batch()
    assert (made.chosen[stranger] < 0).all() and (made.chosen[known] == 0).any()
    assert (fate(made, b.USED_UP)[stranger, 0]).all()


def test_prices_alone_choose_almost_as_the_assignment() -> None:
    """A customer who comes alone takes the best after prices: what the limits would leave them."""
    world = World(offers={"a": {"max_contacts_per_batch": 20}, "b": {"max_contacts_per_batch": 30}})
    made, rationing = world.batch()
    alone = world.decide(np.arange(N), rationing.prices)
    assert (alone.chosen != made.chosen).sum() <= 2
    row = int(np.flatnonzero(fate(alone, b.SCARCE)[:, 0])[0])
    trace = alone.trace(row)
    reason = trace["offers"][0]["steps"][-1]["reason"]
    price = trace["offers"][0]["numbers"]["scarcity_price"]
    assert reason.startswith(f"scarcity price {price:.2f} of priority ")
    assert trace["prices"] == rationing.prices.to_dict()
    taker = int(np.flatnonzero(alone.chosen[:, 0] == 0)[0])
    assert any("scarcity price" in one for one in alone.answer(taker)["offers"][0]["reasons"])


def test_a_price_takes_exactly_its_amount_off() -> None:
    """By hand: 0.5 × (10 − 2) − 0.1 = 3.9 for each; a contact of offer a costs others 1."""
    world = World(n=1)
    world.people.propensity[:] = [[0.5, 0.45, 0.1]]
    price = Price("a", "contacts", ("a",), 1, 1, 1.0)
    plain = world.decide([0])
    assert plain.worth[0] == pytest.approx([3.9, 3.5, 0.7])
    made = world.decide([0], Prices(IDS, (price,)))
    assert (plain.chosen[0, 0], made.chosen[0, 0]) == (0, 1)
    # In currency: offer a costs 0.5 × 2 + 0.1 = 1.1, offer b 0.45 × 2 + 0.1 = 1.0.
    dear = Price("b", "currency", ("a", "b"), 1, 1, 3.0)
    made = world.decide([0], Prices(IDS, (price, dear)))
    case = [one["numbers"]["scarcity_price"] for one in made.trace(0)["offers"]]
    assert case == pytest.approx([1 + 3.3, 3.0, 0.0])
    assert made.chosen[0, 0] == 2  # 3.9 − 4.3 < 0; 3.5 − 3.0 < 0.7


def test_prices_for_other_offers_are_refused() -> None:
    with pytest.raises(UsageError, match=r"prices: they are for other offers.*for_offers"):
        World(n=1).decide([0], Prices(("z",), ()))


def test_limits_come_from_catalogue_policy_and_the_log() -> None:
    files = (
        catalogue(
            offer("a", max_contacts=10, max_contacts_per_batch=8, category="x"),
            offer("b", budget=5.5, category="x", exclusivity_group="g"),
        ),
        policy(budgets={"total": 100, "channels": {"mail": 7}, "categories": {"x": 6},
                        "groups": {"g": 2}}).tables,
    )  # fmt: skip
    found = constraints(*files, "mail", {"a": 4})
    assert found == (
        Constraint('capacity of offer "a"', "contacts", ("a",), 6),
        Constraint('budget of offer "b"', "currency", ("b",), 5.5),
        Constraint("total budget", "currency", ("a", "b"), 100),
        Constraint('volume of channel "mail"', "contacts", ("a", "b"), 7),
        Constraint('volume of category "x"', "contacts", ("a", "b"), 6),
        Constraint('volume of group "g"', "contacts", ("b",), 2),
    )
    assert constraints(*files, "mail", {"a": 1})[0].limit == 8
    assert constraints(*files, "mail", {"a": 99})[0].limit == 0
    assert "channel" not in str(constraints(*files, "email", {}))


@pytest.mark.parametrize(
    ("section", "says"),
    [
        ({"totl": 5}, r'\[budgets\]: unknown field "totl".*Did you mean "total"\?'),
        ({"total": -1}, "Must be"),
        ({"channels": {"mail": 1.5}}, "a whole number"),
        ({"channels": {"mial": 5}}, r'\[budgets\.channels\]: names channel "mial".*"mail"'),
        ({"categories": {"typ": 5}}, r'\[budgets\.categories\]: names category "typ".*"type"'),
        ({"groups": {"bok": 5}}, r'\[budgets\.groups\]: names exclusivity_group "bok".*"book"'),
        ({"prices_valid_days": 0}, "prices_valid_days"),
    ],
)
def test_a_wrong_budget_is_refused_in_words(section: dict[str, Any], says: str) -> None:
    with pytest.raises(ConfigError, match=says):
        offers = catalogue(offer("a", category="type", exclusivity_group="book"))
        bind(offers, policy(budgets=section), {})
