"""What was logged about past choices, as arrays: who, what was chosen, how likely, what it earned.

"No offer" is an action like every other and has the last column, after the m offers.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from functools import cached_property
from typing import Any, Final

import numpy as np
import numpy.typing as npt

from nextbest.errors import DataError, Fault

__all__ = ["NO_OFFER", "TOLERANCE", "Array", "LoggedPolicy", "check_target"]

Array = npt.NDArray[np.float64]
NO_OFFER: Final = "no offer"
#: Probabilities that went through text may be off by this much.
TOLERANCE: Final = 1e-6
_LOG: Final = "decision log"
_TARGET: Final = "target policy"


@dataclass(frozen=True)
class LoggedPolicy:
    """Past choices of a policy that chose at random with known probabilities.

    Parameters
    ----------
    customer_ids : (n,) whose decision it was; rows of one customer stay together in intervals.
    offer_ids : the m offers, in the order of the columns.
    action : (n,) column of what was chosen, 0 to m - 1; m where no offer was made.
    reward : (n,) what the decision earned, in the shop's currency (or 0/1 for a response).
    selection_probability : (n,) probability with which that choice was made; above 0, up to 1.
    probabilities : (n, m + 1) the whole vector that was sampled from, or None if it was not kept.
    eligible : (n, m + 1) which offers could be chosen at all; None if unknown.
    position : (n,) slot of the answer that the row is about, from 1; None with one slot.
    context : (n, d) numbers known about the customer when deciding, for the reward model; NaN
        where unknown. None for none.

    Raises
    ------
    DataError: every fault in shapes, ranges and sums at once.
    """

    customer_ids: npt.NDArray[Any]
    offer_ids: tuple[str, ...]
    action: npt.NDArray[np.int64]
    reward: Array
    selection_probability: Array
    probabilities: Array | None = None
    eligible: npt.NDArray[np.bool_] | None = None
    position: npt.NDArray[np.int64] | None = None
    context: Array | None = None

    def __post_init__(self) -> None:
        faults = list(_shapes(self)) or list(_contents(self))
        if faults:
            raise DataError(faults=faults)

    def __len__(self) -> int:
        return len(self.action)

    @property
    def n_actions(self) -> int:
        """Offers and "no offer"."""
        return len(self.offer_ids) + 1

    @property
    def action_names(self) -> tuple[str, ...]:
        """Names of the columns."""
        return (*self.offer_ids, NO_OFFER)

    @property
    def supported(self) -> npt.NDArray[np.bool_] | None:
        """(n, m + 1) what could have been chosen; None where the log does not say."""
        if self.probabilities is not None:
            return np.asarray(self.probabilities > 0)
        return self.eligible

    @cached_property
    def clusters(self) -> npt.NDArray[np.intp]:
        """(n,) number of each row's customer, from 0."""
        return np.unique(self.customer_ids.astype(str), return_inverse=True)[1].reshape(-1)

    def weights(self, target: Array) -> Array:
        """Return (n,) how much likelier the target makes each logged choice than the log did."""
        return np.asarray(target[np.arange(len(self)), self.action] / self.selection_probability)


def _shapes(log: LoggedPolicy) -> Iterator[Fault]:
    n, k = len(log.action), len(log.offer_ids) + 1
    if n == 0:
        yield Fault(_LOG, "there are no decisions", "at least 1 row", "0")
    expected: dict[str, tuple[int, ...]] = {
        "customer_ids": (n,), "action": (n,), "reward": (n,), "selection_probability": (n,),
        "position": (n,), "probabilities": (n, k), "eligible": (n, k),
    }  # fmt: skip
    for name, shape in expected.items():
        column = getattr(log, name)
        if column is not None and column.shape != shape:
            yield Fault(_LOG, f"{name} has the wrong shape", str(shape), str(column.shape))
    if log.context is not None and (log.context.ndim != 2 or len(log.context) != n):
        yield Fault(_LOG, "context has the wrong shape", f"({n}, d)", str(log.context.shape))


def _contents(log: LoggedPolicy) -> Iterator[Fault]:
    p = log.selection_probability
    yield from _rows(
        "reward is missing or infinite", ~np.isfinite(log.reward), log.reward, "a finite number",
        "Give the reward of every decision, 0 where nothing came of it",
    )  # fmt: skip
    yield from _rows(
        "the choice is not one of the columns", (log.action < 0) | (log.action >= log.n_actions),
        log.action, f"0 to {log.n_actions - 1}",
    )  # fmt: skip
    yield from _rows(
        "selection_probability is missing or no probability",
        ~(np.isfinite(p) & (p > 0) & (p <= 1 + TOLERANCE)), p,
        "above 0 and up to 1 in every row",
        "Without the probability of each choice nothing can be said about another policy; "
        "leave out decisions made before it was logged",
    )  # fmt: skip
    if log.probabilities is not None:
        yield from _vectors(_LOG, log.probabilities)
        chosen = np.clip(log.action, 0, log.n_actions - 1)
        said = log.probabilities[np.arange(len(log)), chosen]
        yield from _rows(
            "selection_probability is not what the logged vector gives the choice",
            np.abs(said - p) > TOLERANCE, p, "equal",
        )  # fmt: skip


def _rows(
    problem: str, bad: npt.NDArray[np.bool_], values: npt.NDArray[Any], expected: str,
    action: str = "", where: str = _LOG,
) -> Iterator[Fault]:  # fmt: skip
    found = np.flatnonzero(bad)
    if found.size:
        got = f"{found.size:,} of {bad.size:,} rows that are not, the first in row {found[0]} "
        yield Fault(where, problem, expected, got + f"({values[found[0]]})", action)


def _vectors(where: str, matrix: Array) -> Iterator[Fault]:
    negative = np.asarray(~(matrix >= 0).all(axis=1))
    sums = matrix.sum(axis=1)
    yield from _rows(
        "a probability is missing or below 0", negative, matrix.min(axis=1), "0 or more",
        where=where,
    )  # fmt: skip
    yield from _rows(
        "the probabilities of a decision do not sum to 1",
        ~negative & (np.abs(sums - 1) > TOLERANCE), sums, "1 with \"no offer\"", where=where,
    )  # fmt: skip


def check_target(log: LoggedPolicy, target: npt.ArrayLike) -> Array:
    """Return the target policy's (n, m + 1) probabilities as an array, or raise ``DataError``."""
    matrix = np.asarray(target, dtype=np.float64)
    expected = (len(log), log.n_actions)
    if matrix.shape != expected:
        raise DataError(
            _TARGET, "wrong shape", got=str(matrix.shape),
            expected=f"{expected}: a row for each logged decision, a column for each offer and "
            "one for no offer",
        )  # fmt: skip
    faults = list(_vectors(_TARGET, matrix))
    if faults:
        raise DataError(faults=faults)
    return matrix
