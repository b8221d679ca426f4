"""The gate before a policy goes live: what it may at most lose, by the cautious end."""

from __future__ import annotations

import math

from nextbest.errors import ConfigError
from nextbest.learn.compare_words import number
from nextbest.learn.gates import GateResult
from nextbest.measure.ope.evaluation import Evaluation
from nextbest.measure.ope.verdict import span

__all__ = ["hold"]


def hold(evaluation: Evaluation, margin: float) -> GateResult:
    """Hold a policy against the log: the interval of its gain may nowhere be under -margin.

    Parameters
    ----------
    margin : what may be lost per decision, in the shop's currency, 0 or more; in ``policy.toml``
        ``max_loss_per_1000_decisions`` under ``[gates]`` says it per 1,000 decisions.

    Raises
    ------
    ConfigError: the margin is negative or no number.
    """
    if not (math.isfinite(margin) and margin >= 0):
        raise ConfigError("margin", "it is no margin", expected="a number, 0 or more",
                          got=str(margin))  # fmt: skip
    gain, call = evaluation.primary.difference, evaluation.verdict.call
    message = (
        f"gain per decision over the logged policy {span(gain)}; the interval must be nowhere "
        f"under {number(-margin) if margin else '0'}"
    )
    if call == "cannot say":
        return GateResult("policy", False, f"{message}; but {evaluation.verdict.because}")
    return GateResult("policy", gain.low >= -margin, message)
