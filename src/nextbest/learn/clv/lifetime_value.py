"""What each customer will be worth: purchases times spend, discounted, with an interval."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, Final, Self, TypeVar

import numpy as np
import pandas as pd

from nextbest.errors import DataError, FitError
from nextbest.learn.clv.beta_geo import BetaGeoNBD, ModifiedBetaGeoNBD
from nextbest.learn.clv.estimator import Estimator, ParametricModel
from nextbest.learn.clv.gamma_gamma import GammaGamma, Independence, SpendWorth
from nextbest.learn.clv.histories import (
    Array,
    Histories,
    read_histories,
    require_between,
    require_positive,
)
from nextbest.learn.clv.intervals import FutureTables, zero_inflated_interval
from nextbest.learn.clv.newton import FitDiagnostics
from nextbest.learn.clv.pareto import ParetoNBD
from nextbest.learn.clv.purchase import PurchaseModel

PURCHASE_MODELS: Final[Mapping[str, type[PurchaseModel]]] = {
    model.__name__: model for model in (BetaGeoNBD, ModifiedBetaGeoNBD, ParetoNBD)
}
_FORMAT: Final = "nextbest.clv/1"
_DAYS_PER_YEAR: Final = 365.25
_Model = TypeVar("_Model", bound=ParametricModel)


class CustomerLifetimeValue(Estimator):
    """What each customer will be worth over the horizon in today's money, and how sure that is.

    clv = expected spend per purchase x integral over the horizon of (1 + rate)^-(t / year) dE(t),
    where E(t) is the customer's expected number of purchases within t: spend times discounted
    expected transactions, as in Fader, Hardie & Lee (2005), "RFM and CLV", JMR 42(4), who let the
    horizon go to infinity.

    Parameters:
    `purchase_model`, `spend_model`: settings, which `fit` copies into `purchase_model_` and
    `spend_model_`; models that are fitted already may be used without calling `fit`. A list of
    purchase models leaves the choice to the training, by `choose_purchase_model`; before `fit` one
    must have been chosen.
    `horizon_days`: how far to look, in days.
    `discount_rate_per_year`: effective yearly rate, 0.1 for 10%; 0 for none.
    `days_per_unit`: days in one unit of `recency` and `T`; 7 for weeks.
    """

    purchase_model_: PurchaseModel
    spend_model_: GammaGamma

    def __init__(
        self,
        purchase_model: PurchaseModel | Sequence[PurchaseModel],
        spend_model: GammaGamma,
        horizon_days: float = 365.0,
        discount_rate_per_year: float = 0.1,
        days_per_unit: float = 1.0,
    ) -> None:
        self.purchase_model = purchase_model
        self.spend_model = spend_model
        self.horizon_days = horizon_days
        self.discount_rate_per_year = discount_rate_per_year
        self.days_per_unit = days_per_unit

    @property
    def candidates(self) -> tuple[PurchaseModel, ...]:
        """The purchase models to choose among; one where the choice is made."""
        given: Any = self.purchase_model
        if isinstance(given, PurchaseModel):
            return (given,)
        return tuple(given) if isinstance(given, (list, tuple)) else ()

    def faults(self) -> list[tuple[str, str, str]]:
        """What is wrong with the settings: problem, what must be, what was found."""
        found = []
        kinds = ", ".join(PURCHASE_MODELS)
        given: tuple[Any, ...] = self.candidates
        if not given or not all(isinstance(c, PurchaseModel) for c in given):
            shown = f"a {kinds}, or a list of them"
            found.append(('"purchase_model" is not one', shown, _shown(self.purchase_model)))
        spend: Any = self.spend_model
        if not isinstance(spend, GammaGamma):
            found.append(('"spend_model" is not one', "a GammaGamma", _shown(spend)))
        return found

    def fit(self, rfm: pd.DataFrame) -> Self:
        """Learn purchases from all customers and spend from those who came back.

        `rfm`: `frequency`, `recency`, `T`, `monetary_value`, optionally `weight`; one row per
        customer. Raises `DataError` or `FitError` as the two models do.
        """
        self._require_settings("fit")
        purchase, spend = _copy(self.candidates[0]), _copy(self.spend_model)
        purchase.fit(rfm)
        spend.fit(rfm)
        self.purchase_model_, self.spend_model_ = purchase, spend
        return self

    @property
    def independence_(self) -> Independence:
        """Whether spend per purchase is unrelated to frequency, as clv assumes."""
        return self._fitted("independence_")[1].independence_

    @property
    def diagnostics_(self) -> dict[str, FitDiagnostics]:
        """Both models' diagnostics, under `purchase_model` and `spend_model`."""
        purchase, spend = self._fitted("diagnostics_")
        return {"purchase_model": purchase.diagnostics_, "spend_model": spend.diagnostics_}

    @property
    def notes_(self) -> tuple[str, ...]:
        """Everything a reader of the figures should be warned of; empty if nothing."""
        purchase, spend = self._fitted("notes_")
        notes = [
            f"{type(model).__name__}: {note}"
            for model in (purchase, spend)
            for note in model.diagnostics_.notes
        ]
        tie = spend.independence_
        if tie.verdict != "holds":
            notes.append(
                f"GammaGamma: independence of frequency and spend is {tie.verdict} (correlation "
                f"{tie.correlation:.2f}, 95% interval {tie.low:.2f} to {tie.high:.2f}); clv of the "
                "most and least frequent buyers may be off."
            )
        return tuple(notes)

    def expected_purchases(self, rfm: pd.DataFrame, horizon_days: float | None = None) -> pd.Series:
        """How many purchases to expect of each customer within the horizon, not discounted."""
        days = self.horizon_days if horizon_days is None else horizon_days
        require_positive("CustomerLifetimeValue.expected_purchases", horizon_days=days)
        model, _ = self._fitted("expected_purchases")
        return model.expected_purchases(rfm, days / self.days_per_unit)

    def probability_alive(self, rfm: pd.DataFrame) -> pd.Series:
        """Probability that each customer will still buy at all."""
        return self._fitted("probability_alive")[0].probability_alive(rfm)

    def expected_value(self, rfm: pd.DataFrame) -> pd.Series:
        """Expected spend per future purchase of each customer, in currency."""
        return self._fitted("expected_value")[1].expected_value(rfm)

    def predict(self, rfm: pd.DataFrame) -> pd.DataFrame:
        """What each customer will be worth over the horizon, and what that is made of.

        Columns `clv` (discounted, currency), `expected_purchases` (not discounted), `p_alive`,
        `expected_value` (currency per purchase); one row per row of `rfm`.
        """
        histories, purchase, spend = self._read(rfm, "predict")
        plain, discounted = self._purchases(purchase, histories)
        p_alive = purchase._p_alive(histories)
        value = spend._expected(histories)
        return pd.DataFrame(
            {
                "clv": p_alive * discounted * value,
                "expected_purchases": p_alive * plain,
                "p_alive": p_alive,
                "expected_value": value,
            },
            index=histories.index,
        )

    def predict_interval(self, rfm: pd.DataFrame, level: float = 0.9) -> pd.DataFrame:
        """Between which bounds the money that a customer will bring falls, with probability
        `level`: columns `clv_low` and `clv_high` (currency, discounted).

        The bounds hold what the customer will do, not the mean of many such customers: they carry
        the chance of leaving, of buying less or more, of spending less or more, and the
        uncertainty of all parameters. The same customer gets the same bounds in any batch. They
        always include `clv`; customers who may well buy nothing get a lower bound of 0.

        Every customer's spend is (v + x m) times a draw that depends on frequency alone, so that
        4,096 futures for each frequency and about 10 values of T serve everybody; discounting uses
        each customer's mean delay.
        """
        require_between("CustomerLifetimeValue.predict_interval", 0.0, 1.0, level=level)
        histories, purchase, spend = self._read(rfm, "predict_interval")
        plain, discounted = self._purchases(purchase, histories)
        tables = FutureTables(purchase, self.horizon_days / self.days_per_unit, SpendWorth(spend))
        low, high = zero_inflated_interval(
            tables, histories, purchase._mean_p_alive(histories), level
        )
        # A forecast too small for a float has no delay to speak of.
        fade = np.divide(discounted, plain, out=np.ones_like(plain), where=plain > 0)
        scale = spend._scale(histories) * fade
        clv = purchase._p_alive(histories) * discounted * spend._expected(histories)
        return pd.DataFrame(
            {"clv_low": np.minimum(low * scale, clv), "clv_high": np.maximum(high * scale, clv)},
            index=histories.index,
        )

    def to_dict(self) -> dict[str, Any]:
        """Settings and both fitted models as plain strings, numbers and lists."""
        purchase, spend = self._fitted("to_dict")
        return {
            "format": _FORMAT,
            "horizon_days": float(self.horizon_days),
            "discount_rate_per_year": float(self.discount_rate_per_year),
            "days_per_unit": float(self.days_per_unit),
            "purchase_model": purchase.to_dict(),
            "spend_model": spend.to_dict(),
        }

    @classmethod
    def from_dict(cls, d: Mapping[str, Any]) -> Self:
        """Rebuild from `to_dict`; predictions are equal to the last bit. Raises `DataError`."""
        where = f"{cls.__name__}.from_dict"
        if not isinstance(d, Mapping) or d.get("format") != _FORMAT:
            got = d.get("format") if isinstance(d, Mapping) else type(d).__name__
            raise DataError(where, "unknown format", expected=repr(_FORMAT), got=repr(got))
        try:
            kind = PURCHASE_MODELS[d["purchase_model"]["model"]]
            settings = {
                name: float(d[name])
                for name in ("horizon_days", "discount_rate_per_year", "days_per_unit")
            }
            parts = d["purchase_model"], d["spend_model"]
        except (KeyError, TypeError, ValueError) as error:
            raise DataError(
                where,
                "damaged model",
                expected=f"what to_dict wrote, with one of {', '.join(PURCHASE_MODELS)}",
                got=f"{type(error).__name__}: {error}",
                action="Restore or retrain the model",
            ) from error
        purchase, spend = kind.from_dict(parts[0]), GammaGamma.from_dict(parts[1])
        model = cls(purchase, spend, **settings)
        model._require_settings("from_dict")
        model.purchase_model_, model.spend_model_ = purchase, spend
        return model

    def _purchases(self, model: PurchaseModel, histories: Histories) -> tuple[Array, Array]:
        rate = float(np.log1p(self.discount_rate_per_year)) * self.days_per_unit / _DAYS_PER_YEAR
        return model._expected(histories, self.horizon_days / self.days_per_unit, rate)

    def _fitted(self, what: str) -> tuple[PurchaseModel, GammaGamma]:
        purchase: Any = getattr(self, "purchase_model_", self.purchase_model)
        spend = getattr(self, "spend_model_", self.spend_model)
        if not (hasattr(purchase, "parameters_") and hasattr(spend, "parameters_")):
            raise FitError(
                f"CustomerLifetimeValue.{what}",
                "the model is not fitted",
                action="Call fit(rfm) first, or give two fitted models",
            )
        return purchase, spend

    def _read(self, rfm: pd.DataFrame, what: str) -> tuple[Histories, PurchaseModel, GammaGamma]:
        self._require_settings(what)
        purchase, spend = self._fitted(what)
        return read_histories(rfm, f"CustomerLifetimeValue.{what}", spend=True), purchase, spend

    def _require_settings(self, what: str) -> None:
        where = f"CustomerLifetimeValue.{what}"
        for problem, expected, got in self.faults():
            raise DataError(where, problem, expected=expected, got=got)
        if len(self.candidates) > 1:
            raise DataError(
                where,
                '"purchase_model" is a list',
                expected="one model by now",
                got=_shown(self.purchase_model),
                action="Choose with choose_purchase_model, as `nextbest train` does",
            )
        require_positive(where, horizon_days=self.horizon_days, days_per_unit=self.days_per_unit)
        if self.discount_rate_per_year != 0:
            require_positive(where, discount_rate_per_year=self.discount_rate_per_year)


def clv_from_dict(d: Mapping[str, Any]) -> CustomerLifetimeValue:
    """Rebuild a fitted `CustomerLifetimeValue` from what `to_dict` wrote, for example from JSON.

    Raises `DataError` if `d` is not that. Nothing in `d` is ever executed.
    """
    return CustomerLifetimeValue.from_dict(d)


def _shown(value: Any) -> str:
    if isinstance(value, (list, tuple)):
        return "[" + ", ".join(map(_shown, value)) + "]"
    return type(value).__name__


def _copy(model: _Model) -> _Model:
    return type(model)(**model.get_params())
