"""Did customers reach the arms in the shares that were planned? If not, nothing else counts."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Final

from scipy.stats import chisquare

from nextbest.errors import DataError, did_you_mean

__all__ = ["SUSPICIOUS", "Balance", "check_balance"]

#: Below this p-value the assignment is taken to be broken (Fabijan et al. 2019 use the same kind
#: of limit: a true mismatch of many customers shows up far below it, daily looks do not).
SUSPICIOUS: Final = 0.001
_FEWEST_EXPECTED: Final = 5.0


@dataclass(frozen=True)
class Balance:
    """Customers per arm beside what was planned.

    Attributes
    ----------
    counts : customers by arm.
    shares : planned share by arm, of the arms present; empty where no plan is known.
    p_value : chance of counts this far off under the plan; None where it was not tested.
    message : the finding in words.
    """

    counts: Mapping[str, int]
    shares: Mapping[str, float]
    p_value: float | None
    message: str

    @property
    def broken(self) -> bool:
        """Whether the mismatch forbids a verdict."""
        return self.p_value is not None and self.p_value < SUSPICIOUS

    def to_dict(self) -> dict[str, Any]:
        """Return the finding as plain JSON types."""
        return {
            "counts": dict(self.counts), "planned_shares": dict(self.shares),
            "p_value": self.p_value, "broken": self.broken, "message": self.message,
        }  # fmt: skip


def check_balance(counts: Mapping[str, int], planned: Mapping[str, float] | None) -> Balance:
    """Compare customers per arm with the plan (sample-ratio mismatch, Pearson's chi-square).

    Parameters
    ----------
    counts : customers by arm.
    planned : share by arm, on any scale (90 and 10 is 0.9 and 0.1); None where it is not known.

    Raises
    ------
    DataError : the plan names an arm without customers, leaves one out, or is not positive.
    """
    if planned is None:
        return Balance(counts, {}, None, "not tested: the planned shares of the arms are not given")
    shares = _shares(counts, planned)
    n = sum(counts.values())
    arms = list(shares)
    expected = [n * shares[a] for a in arms]
    if min(expected) < _FEWEST_EXPECTED:
        least = min(arms, key=lambda a: shares[a])
        return Balance(
            counts, shares, None,
            f"not tested: {min(expected):.1f} customers are expected in {least}; "
            f"{_FEWEST_EXPECTED:g} are needed",
        )  # fmt: skip
    p = float(chisquare([counts[a] for a in arms], expected).pvalue)
    said = ", ".join(
        f"{a} {counts[a]:,} of {e:,.0f} expected" for a, e in zip(arms, expected, strict=True)
    )
    fit = "not as planned" if p < SUSPICIOUS else "as planned"
    return Balance(counts, shares, p, f"{fit}: {said} (p {p:.2g})")


def _shares(counts: Mapping[str, int], planned: Mapping[str, float]) -> dict[str, float]:
    for arm, share in planned.items():
        if not share > 0 or share == float("inf"):
            raise DataError(
                f'share of arm "{arm}"', "not a share", expected="a number above 0", got=f"{share}"
            )
        if arm not in counts:
            raise DataError(
                f'share of arm "{arm}"', "no customer is in that arm",
                expected="one of " + ", ".join(counts), action=did_you_mean(arm, counts),
            )  # fmt: skip
    if missing := [arm for arm in counts if arm not in planned]:
        raise DataError(
            "planned shares", "an arm is left out", expected="a share for every arm",
            got="none for " + ", ".join(missing),
        )  # fmt: skip
    total = sum(planned.values())
    return {arm: planned[arm] / total for arm in counts}
