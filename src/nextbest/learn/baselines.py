"""Simple rules to beat: what a careful analyst would do without a model.

Every model is shown beside one. A baseline reads the same rows and is fitted on the same training
side; it is never served.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from nextbest.errors import DataError
from nextbest.learn import calibration

Array = NDArray[np.float64]


class FittedBaseline(Protocol):
    """A baseline that has seen the training rows."""

    def score(self, frame: pd.DataFrame) -> Array: ...


class Baseline(Protocol):
    """A named rule with a `fit` on training rows."""

    @property
    def name(self) -> str: ...

    @property
    def needs(self) -> tuple[str, ...]: ...

    def fit(self, frame: pd.DataFrame, y: Array) -> FittedBaseline: ...


@dataclass(frozen=True)
class SingleFeature:
    """Rank by one feature, turned into a probability by Platt scaling on the training rows.

    Parameters
    ----------
    column : the feature.
    name : how to call the rule in reports.
    """

    column: str
    name: str

    @property
    def needs(self) -> tuple[str, ...]:
        return (self.column,)

    def fit(self, frame: pd.DataFrame, y: Array) -> FittedBaseline:
        """Learn the sign and scale of the feature on n training rows.

        Raises
        ------
        DataError : the feature is unknown on every row.
        """
        raw = frame[self.column].to_numpy(dtype=np.float64)
        if np.isnan(raw).all():
            raise DataError(
                f'baseline "{self.name}"',
                f'the feature "{self.column}" is unknown on every training row',
                expected="a feature that the data can feed",
            )
        middle = float(np.nanmedian(raw))
        filled = np.where(np.isnan(raw), middle, raw)
        low, high = float(filled.min()), float(filled.max())
        falling = bool(np.mean((filled - filled.mean()) * (y - y.mean())) < 0)
        scaled = _scale(filled, low, high, falling)
        return _FittedSingle(
            self.column, middle, low, high, falling, calibration.fit("platt", y, scaled)
        )


@dataclass(frozen=True)
class _FittedSingle:
    column: str
    middle: float
    low: float
    high: float
    falling: bool
    calibrator: calibration.Calibrator

    def score(self, frame: pd.DataFrame) -> Array:
        raw = frame[self.column].to_numpy(dtype=np.float64)
        filled = np.where(np.isnan(raw), self.middle, raw)
        return self.calibrator.apply(_scale(filled, self.low, self.high, self.falling))


def _scale(values: Array, low: float, high: float, falling: bool) -> Array:
    """Put values in 0-1, rising with the outcome; ranks stay, also outside the training range."""
    span = (high - low) or 1.0
    z = (values - low) / span
    squashed = 0.5 + np.arctan(z - 0.5) / np.pi
    out: Array = 1.0 - squashed if falling else squashed
    return out


@dataclass(frozen=True)
class TypeRateTimesHistory:
    """The offer type's response rate, scaled by how the customer answered so far.

    ``rate(type) × (responses + k·r) / (contacts + k) / r`` with the overall rate r and k contacts
    of prior weight: shrinkage of a customer's own rate towards everybody's.

    Parameters
    ----------
    type_column, contacts, responses : feature names.
    prior_contacts : weight k of the overall rate, in contacts.
    """

    type_column: str = "offer_type"
    contacts: str = "contacts_total"
    responses: str = "responses_total"
    prior_contacts: float = 2.0
    name: str = "type rate × history"

    @property
    def needs(self) -> tuple[str, ...]:
        return (self.type_column, self.contacts, self.responses)

    def fit(self, frame: pd.DataFrame, y: Array) -> FittedBaseline:
        """Learn the rate of each offer type on n training rows."""
        overall = float(y.mean())
        grouped = pd.DataFrame({"t": frame[self.type_column].astype(str), "y": y}).groupby("t")["y"]
        rates = {str(k): float(v) for k, v in grouped.mean().items()}
        return _FittedTypeRate(self, overall, rates)


@dataclass(frozen=True)
class _FittedTypeRate:
    spec: TypeRateTimesHistory
    overall: float
    rates: Mapping[str, float]

    def score(self, frame: pd.DataFrame) -> Array:
        s, r = self.spec, self.overall
        rate = frame[s.type_column].astype(str).map(self.rates).fillna(r).to_numpy(dtype=np.float64)
        got = frame[s.responses].fillna(0.0).to_numpy(dtype=np.float64)
        asked = frame[s.contacts].fillna(0.0).to_numpy(dtype=np.float64)
        own = (got + s.prior_contacts * r) / (asked + s.prior_contacts)
        return np.clip(rate * own / r, 0.0, 1.0)


@dataclass(frozen=True)
class RunRate:
    """Tomorrow like the last ``window_days``: recent spend scaled to the span that is predicted.

    Parameters
    ----------
    column : spend over the window (currency).
    window_days : length of that window.
    horizon_days : length of the span predicted; None takes that of the rows' own labels, which for
        a value model is ``evaluation_days`` of training.toml.
    """

    column: str
    window_days: float
    horizon_days: float | None = None
    name: str = "recent run rate"

    @property
    def needs(self) -> tuple[str, ...]:
        return (self.column,)

    def fit(self, frame: pd.DataFrame, y: Array) -> FittedBaseline:
        """Learn nothing but the length of the span, where it was left open."""
        days = self.horizon_days
        if days is None:
            spans: pd.Series[Any] = frame["label_end"] - frame["as_of"]
            days = float(spans.dt.total_seconds().mean()) / 86_400
        return _FittedRunRate(self.column, days / self.window_days)


@dataclass(frozen=True)
class _FittedRunRate:
    column: str
    factor: float

    def score(self, frame: pd.DataFrame) -> Array:
        out: Any = frame[self.column].fillna(0.0).to_numpy(dtype=np.float64) * self.factor
        return np.asarray(out, dtype=np.float64)
