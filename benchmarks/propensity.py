"""Response propensity beside simple rules on Complete Journey: one split, and campaign by campaign.

    python benchmarks/propensity.py [--project DIR]

**S1**: train on campaigns that ended before 2017-10-01, test on those that start on or after it.
**Rolling**: every campaign from 2017-05-08 on is scored by a model trained on the campaigns that
had ended when it started; the exposures of all of them are then judged together. The last five
campaigns end after the data: with them there are 5,498 exposures, whose responses are those seen
by the end of the data; the second table leaves these campaigns out. What a campaign's model learns
from has always ended.

The project's own model, features and calibration are used. Intervals are bootstrapped over rows.
"""

from __future__ import annotations

import argparse
from collections.abc import Iterator
from dataclasses import replace
from datetime import datetime, timedelta
from pathlib import Path

import numpy as np
import pandas as pd

from nextbest.data import snapshots
from nextbest.learn import calibration
from nextbest.learn.baselines import TypeRateTimesHistory
from nextbest.learn.estimators import FeatureEncoder, seeded
from nextbest.learn.metrics import Metric, evaluate, paired_difference
from nextbest.learn.model import Model
from nextbest.project import Project

METRICS = ("auc", "average_precision", "brier", "lift_at_10")
S1_CUT = datetime(2017, 10, 1, 5)
FIRST_CAMPAIGN = datetime(2017, 5, 8)
OVERHANG = timedelta(days=90)  # the last campaign ends two months after the data


def main() -> None:
    options = argparse.ArgumentParser(description="Response propensity beside its baseline.")
    options.add_argument("--project", type=Path, default=Path(__file__).parents[1])
    project = Project.open(options.parse_args().project)
    history, model = project.history(), project.model("propensity")
    end = history.observed_until.replace(tzinfo=None)
    # The label leaves campaigns out that have not ended. To score them too, look as from later on.
    later = replace(history, observed_until=history.observed_until + OVERHANG)
    snapshot = snapshots.build(later, model.label, model.groups(project.groups))
    columns = [f.name for f in snapshot.features if f.name not in model.exclude]
    frame, seed = snapshot.frame, project.settings.seed
    ended = frame[frame["label_end"] <= end].reset_index(drop=True)
    split = snapshots.time_split(ended, S1_CUT)
    show("S1", scored(model, ended[split.train], ended[split.test], columns, seed))
    rolled = pd.concat(rolling(model, frame, columns, seed))
    show("Rolling, all campaigns", rolled)
    show("Rolling, campaigns that ended", rolled[rolled["label_end"] <= end])
    print(f"\n{'campaign':>10}{'exposures':>11}{'responses':>11}{'rate':>7}{'score':>7}{'AUC':>7}")
    for offer, rows in rolled.groupby("offer_id", sort=False):
        y, score = rows["label"], rows["score"]
        auc = evaluate(["auc"], y, score, resamples=2)["auc"].value
        counts = f"{offer:>10}{len(rows):11,}{y.sum():11,.0f}"
        print(f"{counts}{y.mean():7.3f}{score.mean():7.3f}{auc:7.3f}")


def rolling(
    model: Model, frame: pd.DataFrame, columns: list[str], seed: int
) -> Iterator[pd.DataFrame]:
    """Score each day's campaigns by a model of the campaigns that had ended by then."""
    for start in np.sort(frame.loc[frame["as_of"] >= FIRST_CAMPAIGN, "as_of"].unique()):
        train = frame[frame["label_end"] <= start].reset_index(drop=True)
        yield scored(model, train, frame[frame["as_of"] == start], columns, seed)


def scored(
    model: Model, train: pd.DataFrame, test: pd.DataFrame, columns: list[str], seed: int
) -> pd.DataFrame:
    """Fit and calibrate on the training rows as `nextbest train` does, and score the test rows."""
    y = train["label"].to_numpy()
    encoder = FeatureEncoder().fit(train[columns])
    X = encoder.transform(train[columns])
    blocks = []
    for fit, validate in snapshots.rolling_folds(train, n_folds=4):
        fold = seeded(model.estimator, seed).fit(X[fit], y[fit])
        blocks.append((y[validate], fold.predict_proba(X[validate])[:, 1]))
    estimator = seeded(model.estimator, seed).fit(X, y)
    level = bool(abs(estimator.predict_proba(X)[:, 1].mean() / y.mean() - 1) <= 0.1)
    calibrator = calibration.choose(blocks, model.calibration, level_learned=level).calibrator
    raw = estimator.predict_proba(encoder.transform(test[columns]))[:, 1]
    keys = test[["customer_id", "offer_id", "as_of", "label_end", "label"]]
    # The campaign type's rate alone is the rule with a prior too heavy for history to break a tie.
    type_rate = TypeRateTimesHistory(prior_contacts=1e30)
    rules = {"baseline": model.baseline, "type_rate": type_rate}
    rated = {name: rule.fit(train, y).score(test) for name, rule in rules.items()}
    return keys.assign(score=calibrator.apply(raw), **rated)


def show(name: str, rows: pd.DataFrame) -> None:
    """Print the model beside the two rules, each with its 95% interval, and the paired gain."""
    y = rows["label"].to_numpy()
    found = {who: evaluate(METRICS, y, rows[who]) for who in ("score", "baseline", "type_rate")}
    print(f"\n{name}: {len(rows):,} exposures, {int(y.sum()):,} with a response")
    print(f"{'':18}{'model':24}{'type rate × history':24}{'type rate':24}model over type × history")
    for metric in METRICS:
        cells = [cell(figures[metric]) for figures in found.values()]
        gain = paired_difference(metric, y, rows["score"], rows["baseline"])
        print(f"{metric:18}{''.join(cells)}{cell(gain)}")


def cell(m: Metric) -> str:
    return f"{m.value:.4f} ({m.low:.3f} to {m.high:.3f})".ljust(24)


if __name__ == "__main__":
    main()
