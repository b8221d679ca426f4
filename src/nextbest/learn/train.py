"""Training one model: snapshot, split, fit, calibrate, test beside the baseline, log, register."""

from __future__ import annotations

import json
import math
import random
import tempfile
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import timedelta
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from numpy.typing import NDArray
from sklearn.base import clone

from nextbest.data import snapshots
from nextbest.data.contract import History
from nextbest.data.features import Feature, FeatureGroup, Unavailable, possible
from nextbest.data.labels import FutureValue
from nextbest.data.snapshots import Snapshot
from nextbest.errors import DataError, FitError, did_you_mean
from nextbest.learn import (
    artifact,
    calibration,
    evidence,
    gates,
    leakage,
    report,
    segments,
    tune,
    watch,
)
from nextbest.learn.clv import PurchaseModelChoice, choose_purchase_model
from nextbest.learn.drift import FeatureDrift
from nextbest.learn.estimators import FeatureEncoder, seeded
from nextbest.learn.metrics import (
    Metric,
    paired_difference,
    probability_metrics,
    top_share_metrics,
    value_metrics,
)
from nextbest.learn.model import RFM_COLUMNS, Model, Plan
from nextbest.learn.records import Baseline as BaselineRecord
from nextbest.learn.records import Dataset, Trial
from nextbest.learn.registry import Registry

Array = NDArray[np.float64]
Progress = Callable[[str], None]
_GOLDEN_ROWS = 30
KEYS = ("customer_id", "offer_id", "as_of")
# How far a model's mean score on its training rows may lie from their rate, as a share of it.
_LEVEL_TOLERANCE = 0.1


@dataclass(frozen=True)
class TrainResult:
    """What one training run found; figures are on the test slice."""

    model: Model
    plan: Plan
    metrics: Mapping[str, Metric]
    baseline_name: str
    baseline_metrics: Mapping[str, Metric]
    difference: Metric
    verdict: str
    counts: Mapping[str, int]
    gates: tuple[gates.GateResult, ...]
    left_out: Mapping[str, int]
    unavailable: tuple[Unavailable, ...]
    notes: tuple[str, ...]
    importance: tuple[tuple[str, float], ...]
    features: tuple[Feature, ...]
    tuning: tune.TuneResult | None = None
    choice: PurchaseModelChoice | None = None
    moved: tuple[FeatureDrift, ...] = ()
    run_id: str = ""
    version: int = 0

    @property
    def primary(self) -> str:
        """Name of the metric that decides."""
        return gates.PRIMARY[self.model.kind][0]

    def to_dict(self) -> dict[str, Any]:
        """Return the facts as plain JSON types."""
        return {
            "model": self.model.name,
            "version": self.version,
            "run_id": self.run_id,
            "metrics": {"test": {k: m.to_dict() for k, m in self.metrics.items()}},
            "baseline": {
                "name": self.baseline_name,
                "metrics": {"test": {k: m.to_dict() for k, m in self.baseline_metrics.items()}},
            },
            "difference": {self.primary: self.difference.to_dict()},
            "verdict": self.verdict,
            **self.counts,
            "left_out": dict(self.left_out),
            "gates": [g.to_dict() for g in self.gates],
            "notes": list(self.notes),
            "moved_by_the_test": [d.to_dict() for d in self.moved],
            "tuning": self.tuning and self.tuning.to_dict(),
            "purchase_models": self.choice and self.choice.to_dict(),
        }


@dataclass(frozen=True)
class _Fitted:
    """A fitted model and what its test slice gave."""

    estimator: Any
    encoder: FeatureEncoder
    calibrator: calibration.Calibrator | None
    metrics: Mapping[str, Metric]
    baseline_metrics: Mapping[str, Metric]
    difference: Metric
    scale: float
    counts: Mapping[str, int]
    test: pd.DataFrame
    train: pd.DataFrame
    scores: pd.DataFrame
    notes: tuple[str, ...] = ()
    entities: Mapping[str, str] = field(default_factory=dict)
    params: Mapping[str, Any] = field(default_factory=dict)
    tuning: tune.TuneResult | None = None
    choice: PurchaseModelChoice | None = None


def train(
    model: Model,
    plan: Plan,
    history: History,
    groups: Sequence[FeatureGroup],
    registry: Registry,
    *,
    dataset: str,
    seed: int = 0,
    trials: int = 0,
    progress: Progress = lambda _step: None,
) -> TrainResult:
    """Train one model, log everything to the registry, and register a new version.

    Parameters
    ----------
    model : the definition, named.
    plan : when it is trained and tested.
    history : the clean tables.
    groups : all feature groups of the project.
    registry : where runs and versions go.
    dataset : name of the data, for the run's records.
    seed : makes the same data give the same model.
    trials : candidates to try in the plan's search space before the fit; 0 for none. The search
        sees the training side alone.
    progress : told the name of each step as it begins.

    Raises
    ------
    DataError : the data cannot answer (no labelled rows, one class, no test rows).
    FitError : the estimator cannot be fitted.
    UsageError, ConfigError : ``trials`` is asked for, and the model cannot be tuned so.
    """
    random.seed(seed)
    progress("features and labels")
    snapshot, fitted = (
        _fit_value(model, plan, history, groups, seed, progress)
        if model.kind == "clv"
        else _fit_probability(model, plan, history, groups, seed, trials, progress)
    )
    reached = fitted.baseline_metrics[gates.PRIMARY[model.kind][0]].value
    verdict = gates.in_words(model.kind, fitted.difference, model.baseline.name, reached)
    judged = gates.judge(
        model.kind, plan.gates, fitted.metrics, fitted.counts, fitted.difference, fitted.scale
    )
    with tempfile.TemporaryDirectory(prefix="nextbest-") as scratch:
        folder = Path(scratch) / "artifact"
        progress("store and verify")
        stored = artifact.save(
            folder,
            name=model.name,
            kind=model.kind,
            estimator=fitted.estimator,
            encoder=fitted.encoder,
            calibrator=fitted.calibrator,
            golden_rows=_golden(fitted.train[fitted.encoder.columns_], seed),
            metadata={"label": model.label.meaning, "cut": plan.cut.isoformat()},
        )
        kept = evidence.gather(stored, fitted.test, fitted.scores, snapshot.features, seed=seed)
        memory = _remember(model, fitted)
        moved = watch.against_test(memory, fitted.test, plan.drift)
        if model.kind != "clv":
            judged = (
                *judged,
                _leaks(plan, fitted, {e.feature: e.mean for e in kept.effects}, seed),
                *gates.against_drift(plan.drift_gate, moved),
            )
        result = TrainResult(
            model=model,
            plan=plan,
            metrics=fitted.metrics,
            baseline_name=model.baseline.name,
            baseline_metrics=fitted.baseline_metrics,
            difference=fitted.difference,
            verdict=verdict,
            counts=fitted.counts,
            gates=judged,
            left_out=snapshot.left_out,
            unavailable=snapshot.unavailable,
            notes=fitted.notes,
            importance=tuple((e.feature, e.mean) for e in kept.effects),
            features=snapshot.features,
            tuning=fitted.tuning,
            choice=fitted.choice,
            moved=moved,
        )
        progress("log and register")
        run_id = registry.log_run(
            model.name,
            artifact_dir=folder,
            params={
                "cut": plan.cut.isoformat(),
                "seed": seed,
                "label": model.label.meaning,
                "estimator": type(model.estimator).__name__,
                **_searched(fitted.tuning),
                **fitted.params,
                **{f"fitted.{name}": value for name, value in kept.learned.items()},
            },
            metrics={"test": fitted.metrics, **kept.metrics},
            baseline=BaselineRecord(model.baseline.name, {"test": fitted.baseline_metrics}),
            counts=fitted.counts,
            files={**_files(result, kept), watch.FILE: json.dumps(memory, allow_nan=False)},
            dataset=Dataset(dataset, history.snapshot_hash(), len(snapshot.frame)),
            input_example=fitted.test[fitted.encoder.columns_].head(5),
            tags={"nextbest.gates": json.dumps([g.to_dict() for g in judged])},
            trials=_trials(fitted.tuning),
        )
        version = registry.register(model.name, run_id)
    return TrainResult(**{**vars(result), "run_id": run_id, "version": version})


# ------------------------------------------------------------------ probabilities


def _fit_probability(
    model: Model,
    plan: Plan,
    history: History,
    groups: Sequence[FeatureGroup],
    seed: int,
    trials: int,
    progress: Progress,
) -> tuple[Snapshot, _Fitted]:
    used = model.groups(groups)
    snapshot = snapshots.build(history, model.label, used, (*plan.train_as_of, *plan.test_as_of))
    frame, columns = snapshot.frame, _columns(model, snapshot, groups)
    split = snapshots.time_split(frame, plan.cut)
    y = frame["label"].to_numpy()
    for side, mask in (("training", split.train), ("test", split.test)):
        if not 0 < y[mask].sum() < mask.sum():
            raise DataError(
                f"models/{model.name}.py",
                f"the {side} side has only one outcome",
                expected="both outcomes on both sides of the cut",
                got=f"{int(y[mask].sum())} positives in {int(mask.sum())} rows",
                action="Move the cut or the as-of dates in training/training.toml.",
            )
    train_rows = frame[split.train]
    tuning = None
    if trials:
        tuning = _tune(model, plan, train_rows, columns, trials, seed, progress)
        model = tune.tuned(model, tuning.best_params)
    encoder = FeatureEncoder().fit(frame.loc[split.train, columns])
    X = encoder.transform(frame[columns])
    progress("validate on rolling folds")
    where = np.flatnonzero(split.train)
    blocks: list[tuple[Array, Array]] = []
    for fit, validate in snapshots.rolling_folds(train_rows, plan.folds):
        fold = seeded(model.estimator, seed).fit(X[where[fit]], y[where[fit]])
        blocks.append((y[where[validate]], fold.predict_proba(X[where[validate]])[:, 1]))
    progress("fit")
    estimator = seeded(model.estimator, seed).fit(X[split.train], y[split.train])
    rate, mean = y[split.train].mean(), estimator.predict_proba(X[split.train])[:, 1].mean()
    choice = calibration.choose(
        blocks, model.calibration, level_learned=bool(abs(mean - rate) <= _LEVEL_TOLERANCE * rate)
    )
    calibrator = choice.calibrator
    test = _with_segments(frame[split.test], model, plan, history, groups)
    score = calibrator.apply(estimator.predict_proba(X[split.test])[:, 1])
    base = _baseline(model, frame[split.train], y[split.train], test)
    progress("test beside the baseline")
    y_test = y[split.test]
    who = test["customer_id"].to_numpy()
    metrics = probability_metrics(y_test, score, seed=seed, customers=who)
    baseline_metrics = probability_metrics(y_test, base, seed=seed, customers=who)
    value = _value_sought(test, y_test)
    if value is not None:
        share = float(y_test.mean())
        same: dict[str, Any] = {"share": share, "seed": seed, "customers": who}
        metrics |= top_share_metrics(y_test, score, value, **same)
        baseline_metrics |= top_share_metrics(y_test, base, value, **same)
    keys = [k for k in KEYS if k in test]
    return snapshot, _Fitted(
        estimator=estimator,
        encoder=encoder,
        calibrator=calibrator,
        metrics=metrics,
        baseline_metrics=baseline_metrics,
        difference=paired_difference("auc", y_test, score, base, seed=seed, customers=who),
        scale=1.0,
        counts={
            "n_train": int(split.train.sum()),
            "n_train_positive": int(y[split.train].sum()),
            "n_test": int(split.test.sum()),
            "n_positive": int(y_test.sum()),
            "n_in_gap": split.in_gap,
            "n_features": len(columns),
        },
        test=test,
        train=train_rows,
        scores=test[keys].assign(label=y_test, score=score, baseline=base).reset_index(drop=True),
        entities={f.name: f.entity for f in snapshot.features},
        params={
            "calibration": calibrator.kind,
            "calibration_log_loss": json.dumps(choice.log_loss),
            "folds": plan.folds,
            **_params(model.estimator),
        },
        tuning=tuning,
    )


def _tune(
    model: Model,
    plan: Plan,
    rows: pd.DataFrame,
    columns: Sequence[str],
    trials: int,
    seed: int,
    progress: Progress,
) -> tune.TuneResult:
    """Search on the training side alone; each trial is told with its value and the best so far."""
    best: list[float] = []

    def tell(number: int, _params: Mapping[str, Any], value: float | None) -> None:
        if value is not None:
            best.append(value)
        said = "failed" if value is None else f"log loss {value:.5f}"
        least = f"{min(best):.5f}" if best else "none"
        which = "as defined" if number == 0 else f"trial {number} of {trials}"
        progress(f"tune, {which}: {said}, best {least}")

    progress("tune on rolling folds")
    return tune.tune(
        model, rows, columns, plan.folds, plan.search, trials, seed, tell, cut=plan.cut
    )


def _columns(model: Model, snapshot: Snapshot, groups: Sequence[FeatureGroup]) -> list[str]:
    names = [f.name for f in snapshot.features]
    known = {*names, *(g.name for g in groups)}
    if unknown := set(model.exclude) - known:
        # What this data cannot feed may be named: a model file serves shops with less data too.
        known |= possible(groups)
        unknown -= known
    if unknown:
        raise DataError(
            f"models/{model.name}.py",
            f'exclude names "{min(unknown)}"',
            expected="a feature group or a feature",
            action=did_you_mean(min(unknown), known),
        )
    return [n for n in names if n not in model.exclude]


def _baseline(model: Model, train: pd.DataFrame, y: Array, test: pd.DataFrame) -> Array:
    for need in model.baseline.needs:
        if need not in train:
            raise DataError(
                f"models/{model.name}.py",
                f'the baseline needs the feature "{need}"',
                expected="a feature that the data can feed",
            )
    return model.baseline.fit(train, y).score(test)


def _params(estimator: Any) -> dict[str, str]:
    params = estimator.get_params(deep=True)
    return {
        f"estimator.{k}": str(v)[:250]
        for k, v in params.items()
        if isinstance(v, (int, float, str, bool)) and not k.endswith("memory")
    }


# ------------------------------------------------------------------ lifetime value


def _fit_value(
    model: Model,
    plan: Plan,
    history: History,
    groups: Sequence[FeatureGroup],
    seed: int,
    progress: Progress,
) -> tuple[Snapshot, _Fitted]:
    """Fit on everybody's history up to the cut; test the forecast on the span after it."""
    span = FutureValue(plan.evaluation_days)
    snapshot = snapshots.build(history, span, groups, [plan.cut])
    frame = snapshot.frame
    rfm = frame[list(RFM_COLUMNS)]
    choice = None
    unfitted = clone(model.estimator)
    if len(unfitted.candidates) > 1:
        progress("choose the purchase model")
        choice = _choose(model, plan, history, groups, frame)
        unfitted.set_params(purchase_model=clone(choice.model))
    progress("fit")
    estimator = clone(unfitted).fit(rfm)
    progress("test beside the baseline")
    trial = clone(unfitted).set_params(
        horizon_days=float(plan.evaluation_days), discount_rate_per_year=0.0
    )
    trial.purchase_model_, trial.spend_model_ = estimator.purchase_model_, estimator.spend_model_
    actual = frame["label"].to_numpy()
    predicted = trial.predict(rfm)["clv"].to_numpy()
    bounds = trial.predict_interval(rfm, 0.9)
    base = _baseline(model, frame, actual, frame)
    inside = (actual >= bounds["clv_low"]) & (actual <= bounds["clv_high"])
    metrics = dict(value_metrics(actual, predicted, seed=seed))
    metrics["interval_coverage"] = _share(inside.to_numpy(), seed)
    baseline_metrics = value_metrics(actual, base, seed=seed)
    notes = (
        f"value is {'margin' if 'margin' in history.tables['transactions'].columns else 'spend'}; "
        f"tested undiscounted over {plan.evaluation_days} days after the cut, served discounted "
        f"over {model.estimator.horizon_days:g} days",
        *estimator.notes_,
        *([_choice_in_words(choice)] if choice else []),
    )
    return snapshot, _Fitted(
        estimator=estimator,
        encoder=FeatureEncoder().fit(rfm),
        calibrator=None,
        metrics=metrics,
        baseline_metrics=baseline_metrics,
        difference=paired_difference("mae", actual, predicted, base, seed=seed),
        scale=baseline_metrics["mae"].value,
        counts={"n_train": len(frame), "n_test": len(frame), "n_in_gap": 0, "n_features": 4},
        test=frame,
        train=frame,
        scores=frame[["customer_id", "as_of"]].assign(
            label=actual,
            score=predicted,
            baseline=base,
            low=bounds["clv_low"],
            high=bounds["clv_high"],
        ),
        notes=notes,
        params={
            "purchase_model": type(estimator.purchase_model_).__name__,
            **(
                {
                    f"holdout_log_likelihood.{row['model']}": row["log_likelihood"]
                    for row in choice.to_dict()["scores"]
                }
                if choice
                else {}
            ),
            "horizon_days": model.estimator.horizon_days,
            "discount_rate_per_year": model.estimator.discount_rate_per_year,
            "evaluation_days": plan.evaluation_days,
        },
        choice=choice,
    )


def _choose(
    model: Model,
    plan: Plan,
    history: History,
    groups: Sequence[FeatureGroup],
    at_cut: pd.DataFrame,
) -> PurchaseModelChoice:
    """Choose among the purchase models by what each foretold of the last days before the cut.

    Half of the time between the first purchase and the cut is held out, at most as many days as
    the forecast is tested on. What came after the cut is not looked at.
    """
    days = min(plan.evaluation_days, math.floor(at_cut["T"].max() / 2))
    if days < 1:
        raise FitError(
            f"models/{model.name}.py",
            "the history is too short to choose a purchase model",
            expected="at least two days of purchases before the cut",
            action="Name one purchase model instead of a list.",
        )
    earlier = plan.cut - timedelta(days=days)
    lifetimes = [g for g in groups if g.name == "lifetime"]
    before = snapshots.build(history, FutureValue(days), lifetimes, [earlier]).frame
    indexed = [
        rows.set_index("customer_id")[list(RFM_COLUMNS)].sort_index() for rows in (before, at_cut)
    ]
    return choose_purchase_model(indexed[0], indexed[1], model.estimator.candidates)


def _choice_in_words(choice: PurchaseModelChoice) -> str:
    others = choice.scores.iloc[1:].dropna(subset=["behind"])
    behind = ", ".join(
        f"{name} by {row.behind:,.1f} (standard error {row.behind_se:,.1f})"
        for name, row in others.iterrows()
    )
    said = "clearly foretold best" if choice.clear else "foretold best, though not clearly,"
    return (
        f"{choice.scores.index[0]} {said} what came before the cut; behind it in log-likelihood: "
        + (behind or "no other could be fitted")
    )


def _share(inside: NDArray[np.bool_], seed: int) -> Metric:
    """A share of rows with a bootstrap interval."""
    rng = np.random.default_rng(seed)
    value = float(inside.mean())
    draws = rng.binomial(len(inside), value, 1_000) / len(inside)
    low, high = np.quantile(draws, [0.025, 0.975])
    return Metric(value, float(low), float(high))


# ------------------------------------------------------------------ what a run keeps


def _leaks(
    plan: Plan, fitted: _Fitted, importance: Mapping[str, float], seed: int
) -> gates.GateResult:
    """Look for features that know too much; rows that cannot answer fail the gate and say why."""
    rows = fitted.train
    try:
        found = leakage.alarms(
            rows,
            rows["label"],
            fitted.encoder.columns_,
            clusters=rows["customer_id"].to_numpy(),
            model_importance=importance,
            limits=plan.leakage,
            seed=seed,
        )
    except DataError as error:
        return gates.GateResult("leakage", False, str(error))
    said = leakage.in_words(found, len(fitted.encoder.columns_))
    used = [n for n in plan.accepted if n in fitted.encoder.columns_]
    if used:
        said += "; accepted as they are: " + ", ".join(f"{n} ({plan.accepted[n]})" for n in used)
    return gates.GateResult("leakage", not found, said)


def _remember(model: Model, fitted: _Fitted) -> dict[str, Any]:
    """Return what later refreshes hold today's rows against.

    An offer model is watched by the customers it was asked about, not by the offers, their fit or
    its scores: those change with what the marketers choose to send. A value model is watched by
    what a purchase is worth: the rest of what it reads counts days and purchases up to a moment,
    which the model itself expects to grow.
    """
    if model.kind == "clv":
        return watch.remember(fitted.train, fitted.test, ["monetary_value"])
    if model.label.entity == "customer":
        scores = fitted.scores["score"].to_numpy()
        return watch.remember(fitted.train, fitted.test, fitted.encoder.columns_, scores)
    columns = [c for c in fitted.encoder.columns_ if fitted.entities.get(c) == "customer"]
    return watch.remember(fitted.train, fitted.test, columns)


def _searched(found: tune.TuneResult | None) -> dict[str, Any]:
    """What a search chose, for the run's params."""
    if found is None:
        return {}
    return {
        "tune.trials": len(found.trials) - 1,
        "tune.metric": found.metric,
        "tune.as_defined": found.defined_value,
        "tune.best": found.best_value,
        **{f"tune.{name}": value for name, value in found.best_params.items()},
    }


def _trials(found: tune.TuneResult | None) -> list[Trial]:
    if found is None:
        return []
    return [Trial(t.number, dict(t.params), found.metric, t.value, t.error) for t in found.trials]


def _golden(rows: pd.DataFrame, seed: int) -> pd.DataFrame:
    return rows.sample(min(_GOLDEN_ROWS, len(rows)), random_state=seed).reset_index(drop=True)


def _value_sought(test: pd.DataFrame, y: Array) -> Array | None:
    """Future value, where the model looks for customers who bring it; those who leave do not."""
    if "future_value" not in test:
        return None
    value = test["future_value"].to_numpy(dtype=np.float64)
    return value if value[y > 0].mean() > value.mean() else None


def _with_segments(
    test: pd.DataFrame,
    model: Model,
    plan: Plan,
    history: History,
    groups: Sequence[FeatureGroup],
) -> pd.DataFrame:
    """Add the columns that segments are made of, where the model itself does not read them."""
    missing = [d for d in segments.DIMENSIONS if d.group and d.column not in test]
    wanted = {d.group for d in missing}
    extra = [g for g in groups if g.name in wanted and not g.missing(history.tables)]
    if not extra:
        return test
    keys = [k for k in KEYS if k in test]
    found = snapshots.build(history, model.label, extra, plan.test_as_of).frame
    columns = [d.column for d in missing if d.column in found]
    return test.merge(found[[*keys, *columns]], on=keys, how="left", validate="one_to_one")


def _files(result: TrainResult, kept: evidence.Evidence) -> dict[str, bytes | str]:
    return {
        **kept.files(),
        **report.pictures(kept),
        "model_card.md": report.model_card(result, kept),
        **({"tuning.json": json.dumps(result.tuning.to_dict(), indent=1)} if result.tuning else {}),
        **(
            {"purchase_models.json": json.dumps(result.choice.to_dict(), indent=1)}
            if result.choice
            else {}
        ),
        "result.json": json.dumps(result.to_dict(), indent=1, allow_nan=False),
    }
