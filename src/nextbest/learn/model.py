"""A model as its author writes it: label + features + estimator + baseline, frozen.

How and when it is trained stands in training.toml, not here.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from datetime import datetime
from typing import Any, Literal

from nextbest.data.features import FeatureGroup, by_name
from nextbest.data.labels import FutureValue, Label, TopShareOfValue
from nextbest.errors import ConfigError, Fault
from nextbest.learn import export
from nextbest.learn.baselines import Baseline, SingleFeature
from nextbest.learn.drift import DriftLimits
from nextbest.learn.leakage import LeakageLimits

Kind = Literal["probability", "clv"]
CALIBRATIONS = ("auto", "none", "platt", "isotonic", "beta")
RFM_COLUMNS = ("frequency", "recency", "T", "monetary_value")


@dataclass(frozen=True)
class Model:
    """What to predict, from what, with what, and which simple rule to beat.

    Parameters
    ----------
    label : what comes after the moment; see `nextbest.data.labels`.
    estimator : an unfitted scikit-learn classifier that can be stored without executable code, or a
        `CustomerLifetimeValue`.
    baseline : the simple rule shown beside the model.
    features : names of feature groups; empty means every group that the data can feed.
    exclude : names of feature groups or of single features to leave out.
    calibration : ``auto`` chooses by validation among none, Platt, isotonic and beta.
    score : column under which rules and profiles see the score; default ``<name>_probability``.
    name : set from the file's name when the project loads it.
    """

    label: Label
    estimator: Any
    baseline: Baseline
    features: tuple[str, ...] = ()
    exclude: tuple[str, ...] = ()
    calibration: str = "auto"
    score: str = ""
    name: str = ""

    @property
    def kind(self) -> Kind:
        """``clv`` for a model of future value, otherwise ``probability``."""
        return "clv" if isinstance(self.label, FutureValue) else "probability"

    @property
    def score_columns(self) -> tuple[str, ...]:
        """Columns that this model adds to every customer's profile (none for an offer model)."""
        if self.label.entity == "pair":
            return ()
        if self.kind == "clv":
            return ("clv", "clv_low", "clv_high", "p_alive")
        score = self.score or f"{self.name}_probability"
        return (score,) if self.past_value is None else (score, f"{self.name}_now")

    @property
    def past_value(self) -> str | None:
        """Feature by which customers are of high value today; None where the label is another.

        It is the one that the baseline ranks by: what was bought so far, against what will be.
        """
        if isinstance(self.label, TopShareOfValue) and isinstance(self.baseline, SingleFeature):
            return self.baseline.column
        return None

    def named(self, name: str) -> Model:
        """Return the model under the name of its file."""
        return replace(self, name=name)

    def groups(self, known: Sequence[FeatureGroup]) -> list[FeatureGroup]:
        """Return the feature groups this model reads.

        Raises
        ------
        ConfigError : a group of that name does not exist.
        """
        wanted = by_name(known, self.features, f"models/{self.name}.py") if self.features else known
        return [g for g in wanted if g.name not in self.exclude]

    def faults(self, known: Sequence[FeatureGroup]) -> list[Fault]:
        """Return everything that is wrong with the definition, without training it."""
        where = f"models/{self.name}.py"
        found: list[Fault] = []
        try:
            self.groups(known)
        except ConfigError as error:
            found.extend(error.faults)
        if self.calibration not in CALIBRATIONS:
            found.append(
                Fault(where, "unknown calibration", ", ".join(CALIBRATIONS), self.calibration)
            )
        if self.kind == "clv" and hasattr(self.estimator, "candidates"):
            found += [Fault(where, *fault) for fault in self.estimator.faults()]
        if self.kind == "probability":
            reason = export.exportable(self.estimator)
            if reason:
                found.append(
                    Fault(
                        where,
                        "the estimator cannot be stored without executable code",
                        got=reason,
                        action="Use LightGBM or a pipeline that ends in LogisticRegression.",
                    )
                )
        return found


@dataclass(frozen=True)
class Gates:
    """Limits that a version must keep before it may become champion.

    Attributes
    ----------
    min_positives : positives in the test slice that a verdict needs.
    baseline_margin : how much worse than the baseline the interval of the difference may reach, in
        units of the primary metric; the estimate itself must be better.
    champion_margin : the same against the champion, on the same test rows.
    max_calibration_error : largest expected calibration error.
    """

    min_positives: int = 50
    baseline_margin: float = 0.02
    champion_margin: float = 0.02
    max_calibration_error: float = 0.05


@dataclass(frozen=True)
class Plan:
    """When a model is trained and tested; from training.toml.

    Attributes
    ----------
    cut : the test slice begins here; nothing whose label was open at the cut is trained on.
    train_as_of : moments to learn from (a response label brings its own: the contacts).
    test_as_of : moments to test on; empty with a response label.
    evaluation_days : for a clv model, length of the span its forecast is tested on.
    folds : rolling validation folds inside the training side.
    gates : what must hold before a version may be promoted.
    leakage : what a single feature may know of the outcome before it is taken for a leak.
    accepted : features that somebody has looked into -> why they are no leak.
    drift : from where on a change between training and now is to watch, or an alarm.
    drift_gate : from which change between training rows and test slice on promotion is refused:
        ``off``, ``watch`` or ``alarm``.
    search : the estimator's settings that ``--tune`` may change; see `nextbest.learn.tune`.
    """

    cut: datetime
    train_as_of: tuple[datetime, ...] = ()
    test_as_of: tuple[datetime, ...] = ()
    evaluation_days: int = 180
    folds: int = 4
    gates: Gates = field(default_factory=Gates)
    leakage: LeakageLimits = field(default_factory=LeakageLimits)
    accepted: Mapping[str, str] = field(default_factory=dict)
    drift: DriftLimits = field(default_factory=DriftLimits)
    drift_gate: str = "off"
    search: Mapping[str, Any] = field(default_factory=dict)
