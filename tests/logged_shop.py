"""A simulated shop whose decisions are logged in a real store, with answers drawn by its truth.

The engine decides, records are made and stored as a server does; only the scores come from the
truth instead of a model, so that nothing has to be trained.
"""

from __future__ import annotations

import tomllib
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from functools import cached_property
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np

from nextbest.decide.contact import ContactHistory
from nextbest.decide.engine import Audience, Decisions, Situation, bind, decide
from nextbest.decide.offers import Catalogue
from nextbest.decide.policy import Policy
from nextbest.serve import archive
from nextbest.serve.recording import Filed, records_of
from nextbest.serve.records import Outcome
from nextbest.serve.runtime import open_store
from nextbest.simulate import Shop, Truth, world_of
from nextbest.simulate.rooms import files
from nextbest.simulate.shop import CHANNEL
from nextbest.simulate.worlds import WINDOW_DAYS

SALT = "a salt of the shop's own"
EPSILON = f"""
[exploration]
salt = "{SALT}"
policy = "epsilon"
epsilon = 0.8
"""


@dataclass(frozen=True)
class LoggedShop:
    """The shop, and the folder of its project; ``seed`` draws the answers."""

    shop: Shop
    root: Path
    seed: int = 0

    @classmethod
    def make(cls, world: str, customers: int, root: Path, seed: int = 0) -> LoggedShop:
        made = cls(Shop(world_of(world), customers, 140, 3), root, seed)
        for name, text in files(made.shop).items():
            path = root / name
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_text(text.lstrip("\n"), encoding="utf-8")
        return made

    @cached_property
    def truth(self) -> Truth:
        return self.shop.truth()

    @cached_property
    def catalogue(self) -> Catalogue:
        return Catalogue.load(self.root / "serving" / "offers.toml")

    def policy(self, *sections: str, name: str = "policy.toml", **edits: str) -> Path:
        """Write a policy with more sections; the file is in serving/."""
        text = files(self.shop)["serving/policy.toml"].lstrip("\n") + "\n".join(sections)
        path = self.root / "serving" / name
        path.write_text(text, encoding="utf-8")
        return path

    def audience(self, propensity: np.ndarray | None = None) -> Audience:
        shop, truth = self.shop, self.truth
        return Audience(
            customer_ids=shop.customer_ids,
            known=np.ones(shop.customers, dtype=bool),
            columns={
                f"consent_{CHANNEL}": shop.consent.astype(object),
                **{f"anyway_{o.id}_probability": truth.left_alone[:, j]
                   for j, o in enumerate(shop.offers)},
                "openness": shop.openness,
            },
            pair_columns={},
            propensity=truth.contacted if propensity is None else propensity,
            offer_columns={},
            contacts=ContactHistory.empty(),
            as_of=shop.until.replace(tzinfo=UTC),
            versions={"models": {}, "bundle": "none"},
        )  # fmt: skip

    def decide(self, policy: Path, at: datetime | None = None, limit: int = 1,
               audience: Audience | None = None, mark: str = "d") -> Decisions:  # fmt: skip
        people = self.audience() if audience is None else audience
        rules = Policy.load(policy)
        bound = bind(self.catalogue, rules, people.known_columns())
        situation = Situation(CHANNEL, at or self.shop.until.replace(tzinfo=UTC), limit=limit)
        ids = [f"{mark}-{self.seed}-{customer_id}" for customer_id in people.customer_ids]
        return decide(people, *bound, situation, ids)

    def value(self, policy: Path) -> float:
        """What a policy truly earns per customer, beyond contacting nobody."""
        return self.truth.value(self.decide(policy).probabilities) / self.shop.customers

    def log(self, decisions: Decisions) -> None:
        """Record decisions as a server does."""
        archive.keep(self.root, decisions.catalogue.catalogue, decisions.policy.policy)
        state: Any = SimpleNamespace(
            bundle=SimpleNamespace(score_names=("openness",)), ignored_prices=lambda _: None,
            shaper=None,
        )  # fmt: skip
        limit = {"channel": CHANNEL, "limit": decisions.situation.limit}
        records = records_of(state, decisions, [Filed(limit, "hash")] * len(decisions))
        store = open_store(self.root)
        store.record_decisions(records)
        store.close()

    def answer(self, decisions: Decisions, *, purchases: bool = False) -> None:
        """Report what customers did: answers to offers and, if asked, what they bought unasked."""
        truth, random = self.truth, np.random.default_rng([self.seed, 99])
        n, m = truth.profit.shape
        lots, days = random.random((n, m)), random.random((n, m)) * WINDOW_DAYS
        told: list[Outcome] = []
        for i in range(n):
            offers = [int(j) for j in decisions.chosen[i] if j >= 0]
            for j in range(m):
                likely = truth.contacted if j in offers else truth.left_alone
                if lots[i, j] >= likely[i, j] or (j not in offers and not purchases):
                    continue
                price = float(self.shop.offers[j].price)
                offer = truth.offer_ids[j] if j in offers else None
                at = decisions.situation.decided_at + timedelta(days=float(days[i, j]))
                kind = "conversion" if j in offers else "purchase"
                told.append(Outcome(f"{decisions.decision_ids[i]}-{j}", truth.customer_ids[i],
                                    offer, kind, at, price, decisions.decision_ids[i]))  # fmt: skip
        self.report(told)

    def close(self, days: float = 30.0) -> None:
        """Let some time pass: one late click shows that the log goes on."""
        at = self.shop.until.replace(tzinfo=UTC) + timedelta(days=days)
        self.report([Outcome(f"late-{days}", "c0", None, "click", at)])

    def report(self, outcomes: Sequence[Outcome]) -> None:
        store = open_store(self.root)
        assert set(store.record_outcomes(outcomes)) <= {"stored"}
        store.close()


def toml(path: Path) -> dict[str, Any]:
    return tomllib.loads(path.read_text(encoding="utf-8"))
