"""A shop whose truth is known: customers of a few kinds, offers, and a policy that explores."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from nextbest.measure.ope.log import Array, LoggedPolicy


@dataclass(frozen=True)
class World:
    """``kinds`` of customers with a mean reward, logging and target probability per action.

    Rewards are 0 or an amount; ``per_customer`` decisions share a customer's own generosity.
    """

    response: Array
    amount: Array
    logging: Array
    target: Array
    share: Array
    per_customer: int = 1

    @property
    def mean(self) -> Array:
        return self.response * self.amount

    @property
    def truth(self) -> float:
        return float(self.share @ (self.target * self.mean).sum(axis=1))

    @property
    def logged_truth(self) -> float:
        return float(self.share @ (self.logging * self.mean).sum(axis=1))

    def draw(self, seed: int, n: int) -> tuple[LoggedPolicy, Array, npt.NDArray[Any]]:
        """A log of n decisions, the target's vectors on it, and each decision's kind."""
        rng = np.random.default_rng(seed)
        customers = np.arange(n) // self.per_customer
        kind = rng.choice(len(self.share), customers.max() + 1, p=self.share)[customers]
        generous = rng.uniform(0.5, 1.5, customers.max() + 1)[customers]
        logging = self.logging[kind]
        action = (rng.random(n)[:, None] > logging.cumsum(axis=1)).sum(axis=1)
        action = np.minimum(action, logging.shape[1] - 1)
        response = rng.random(n) < self.response[kind, action] * (
            generous if self.per_customer > 1 else 1.0
        )
        reward = response * self.amount[kind, action]
        log = LoggedPolicy(
            customers,
            tuple(f"offer-{j}" for j in range(logging.shape[1] - 1)),
            action,
            reward,
            logging[np.arange(n), action],
            probabilities=logging,
            context=np.eye(len(self.share))[kind],
        )
        return log, self.target[kind], kind


def explorer(per_customer: int = 1) -> World:
    """Mostly the best-known offer, one in five at random; the target prefers another."""
    response = np.array([[0.30, 0.20, 0.40, 0.10, 0.10], [0.25, 0.45, 0.20, 0.15, 0.05],
                         [0.10, 0.30, 0.35, 0.20, 0.15]])  # fmt: skip
    amount = np.array([[10.0, 14.0, 9.0, 20.0, 6.0]] * 3)
    logging = np.full((3, 5), 0.04)
    logging[[0, 1, 2], [0, 1, 2]] = 0.84
    target = np.full((3, 5), 0.1)
    target[[0, 1, 2], [2, 1, 3]] = 0.6
    return World(response, amount, logging, target, np.array([0.5, 0.3, 0.2]), per_customer)


def uniform(per_customer: int = 1) -> World:
    """All actions equally often; the target is fixed for each kind of customer."""
    world = explorer(per_customer)
    target = np.zeros((3, 5))
    target[[0, 1, 2], [2, 1, 3]] = 1
    return World(world.response, world.amount, np.full((3, 5), 0.2), target, world.share,
                 per_customer)  # fmt: skip


def tabular(log: LoggedPolicy, kind: npt.NDArray[Any], fold: npt.NDArray[Any]) -> Array:
    """Cross-fitted mean rewards of each kind and action: the reward model in closed form."""
    k, kinds, count = log.n_actions, int(kind.max()) + 1, int(fold.max()) + 1
    cell = (fold * kinds + kind) * k + log.action
    size = count * kinds * k
    n = np.bincount(cell, minlength=size).reshape(count, kinds, k)
    total = np.bincount(cell, weights=log.reward, minlength=size).reshape(count, kinds, k)
    mean = (total.sum(axis=0) - total) / np.maximum(n.sum(axis=0) - n, 1)
    return np.asarray(mean[fold, kind])
