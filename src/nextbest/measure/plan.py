"""How many customers, and how many days, an experiment needs before it starts."""

from __future__ import annotations

import math
from dataclasses import asdict, dataclass, replace
from typing import Any, Literal

from scipy.optimize import brentq
from scipy.special import ndtr, ndtri

from nextbest.errors import Fault, UsageError
from nextbest.measure.sequences import critical

__all__ = ["Looks", "Plan", "Sizing"]

Looks = Literal["daily", "once"]


@dataclass(frozen=True)
class Sizing:
    """What an experiment of one arm against a holdout needs.

    Attributes
    ----------
    customers, holdout, treated : customers in all and in either arm.
    days : days until the last outcome is in; None where no traffic was given.
    one_look_customers : customers in all if somebody looks once only, at the end.
    """

    customers: int
    holdout: int
    treated: int
    days: int | None
    one_look_customers: int

    def to_dict(self) -> dict[str, Any]:
        """Return the numbers as plain JSON types."""
        return asdict(self)


@dataclass(frozen=True)
class Plan:
    """What is to be found out, and how surely.

    Parameters
    ----------
    baseline : the holdout's mean: a rate (0-1) where ``spread`` is None, else in its own unit.
    effect : smallest difference worth finding, in the same unit; its sign does not matter for a
        mean, for a rate baseline + effect must lie in 0-1.
    spread : standard deviation of the outcome between customers; None for a rate.
    holdout_share : share of the customers that is held out, 0-1.
    alpha : chance of finding what is not there, 0-1.
    power : chance of finding the effect if it is there, 0-1.
    before_r2 : R² of the outcome on the value before (CUPED removes that share of the variance).
    looks : ``daily`` pays for a verdict that holds at any look, ``once`` for one at the end.
    customers_per_day : customers who enter; None where it is not asked how long it takes.
    window_days : days after entry until a customer's outcome is complete.

    Raises
    ------
    UsageError : a number is impossible; every one is named at once.
    """

    baseline: float
    effect: float
    spread: float | None = None
    holdout_share: float = 0.1
    alpha: float = 0.05
    power: float = 0.8
    before_r2: float = 0.0
    looks: Looks = "daily"
    customers_per_day: float | None = None
    window_days: int = 0

    def __post_init__(self) -> None:
        if faults := list(self._faults()):
            raise UsageError(faults=faults)

    def _faults(self) -> list[Fault]:
        def shown(name: str) -> str:
            return f"plan: {name}"

        numbers = {k: v for k, v in vars(self).items() if isinstance(v, int | float)}
        endless = [k for k, v in numbers.items() if not math.isfinite(v)]
        if endless:
            return [Fault(shown(k), "not a number", "finite", f"{numbers[k]}") for k in endless]
        shares = ("holdout_share", "alpha", "power")
        faults = [
            Fault(shown(name), "not a share", "above 0 and below 1", f"{numbers[name]:g}")
            for name in shares
            if not 0 < numbers[name] < 1
        ]
        if not 0 <= self.before_r2 < 1:
            faults.append(Fault(shown("before_r2"), "not an R²", "from 0 to below 1",
                                f"{self.before_r2:g}"))  # fmt: skip
        if self.effect == 0:
            faults.append(Fault(shown("effect"), "nothing is to be found", "not 0", "0"))
        if self.spread is None:
            faults += [
                Fault(shown(name), "not a rate", "above 0 and below 1", f"{rate:g}",
                      "For an amount, give its standard deviation.")
                for name, rate in (("baseline", self.baseline),
                                   ("baseline + effect", self.baseline + self.effect))
                if not 0 < rate < 1
            ]  # fmt: skip
        elif self.spread <= 0:
            faults.append(Fault(shown("spread"), "not a standard deviation", "above 0",
                                f"{self.spread:g}"))  # fmt: skip
        if self.customers_per_day is not None and self.customers_per_day <= 0:
            faults.append(Fault(shown("customers_per_day"), "nobody enters", "above 0",
                                f"{self.customers_per_day:g}"))  # fmt: skip
        if self.window_days < 0:
            faults.append(Fault(shown("window_days"), "wrong", "0 or more", f"{self.window_days}"))
        if self.looks not in ("daily", "once"):
            faults.append(Fault(shown("looks"), "unknown", "daily or once", str(self.looks)))
        return faults

    def size(self) -> Sizing:
        """Return the customers and days that give the power asked for.

        N = (c s₀ + z s₁)² / effect², with s₀² and s₁² the variance of √N times the difference
        without and with the effect, z the normal quantile of the power, and c that of 1 − α/2 or
        the sequence's critical value. For rates s₀ pools both (Fleiss, Levin & Paik 2003, section
        4.2). The smaller arm is never rounded to nobody.
        """
        n = self._customers(self._critical())
        # Rounded first, or a float's last digit would add a customer to a whole number.
        holdout = math.ceil(round(n * self.holdout_share, 6))
        treated = math.ceil(round(n * (1 - self.holdout_share), 6))
        days = None
        if self.customers_per_day is not None:
            days = math.ceil((holdout + treated) / self.customers_per_day) + self.window_days
        once = math.ceil(round(self._customers(self._one_look()), 6))
        return Sizing(holdout + treated, holdout, treated, days, once)

    def power_with(self, customers: float) -> float:
        """Return the chance of finding the effect with so many customers in all (planned so)."""
        null, real = self._spreads(self.effect)
        reach = abs(self.effect) * math.sqrt(customers) - self._critical() * null
        return float(ndtr(reach / real))

    def detectable(self, customers: float) -> float:
        """Return the smallest effect above zero that so many customers find with the power.

        Raises
        ------
        UsageError : too few customers for any effect that a rate can have.
        """

        def short(effect: float) -> float:
            return self._with(effect)._customers(self._critical()) - customers

        if self.spread is not None:
            return self._with(1.0)._gap() / math.sqrt(customers)
        largest = (1 - self.baseline) * (1 - 1e-9)
        if short(largest) > 0:
            raise UsageError(
                "plan: customers", "too few for any effect", got=f"{customers:g}",
                expected=f"at least {math.ceil(short(largest) + customers)}",
            )  # fmt: skip
        return float(brentq(short, largest * 1e-9, largest, xtol=1e-12))

    def _with(self, effect: float) -> Plan:
        return replace(self, effect=effect)

    def _one_look(self) -> float:
        return float(-ndtri(self.alpha / 2))

    def _critical(self) -> float:
        return critical(1.0, self.alpha) if self.looks == "daily" else self._one_look()

    def _gap(self, reach: float | None = None) -> float:
        null, real = self._spreads(self.effect)
        reach = self._critical() if reach is None else reach
        return reach * null + float(ndtri(self.power)) * real

    def _customers(self, reach: float) -> float:
        return (self._gap(reach) / self.effect) ** 2

    def _spreads(self, effect: float) -> tuple[float, float]:
        """Standard deviation of √N times the difference, without and with the effect."""
        h, kept = self.holdout_share, 1 - self.before_r2
        if self.spread is not None:
            same = self.spread * math.sqrt(kept / (h * (1 - h)))
            return same, same
        p0, p1 = self.baseline, self.baseline + effect
        pooled = h * p0 + (1 - h) * p1
        return (
            math.sqrt(kept * pooled * (1 - pooled) / (h * (1 - h))),
            math.sqrt(kept * (p0 * (1 - p0) / h + p1 * (1 - p1) / (1 - h))),
        )
