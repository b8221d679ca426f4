"""Small fitted models on data whose truth is known, shared by the tests of this folder."""

from __future__ import annotations

from functools import lru_cache
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from lightgbm import LGBMClassifier

from nextbest.learn import artifact
from nextbest.learn.calibration import fit as fit_calibrator
from nextbest.learn.estimators import FeatureEncoder, blend, linear
from nextbest.learn.scorer import LoadedModel


@lru_cache(maxsize=1)
def customers() -> pd.DataFrame:
    """400 rows: spend drives the outcome, age does not, some values are unknown."""
    rng = np.random.default_rng(7)
    n = 400
    spend = rng.lognormal(3, 1, n)
    frame = pd.DataFrame(
        {
            "spend": np.where(rng.random(n) < 0.1, np.nan, spend),
            "age": rng.integers(18, 90, n),
            "tier": rng.choice(np.array(["gold", "silvér", "basic", None], dtype=object), n),
            "member": rng.random(n) < 0.5,
        }
    )
    frame["y"] = (rng.random(n) < 1 / (1 + np.exp(-(np.log(spend) - 3) * 2))).astype(int)
    return frame


@lru_cache(maxsize=1)
def raw() -> pd.DataFrame:
    return customers().drop(columns="y")


@lru_cache(maxsize=1)
def encoder() -> FeatureEncoder:
    return FeatureEncoder().fit(raw())


def encoded() -> np.ndarray:
    return encoder().transform(raw())


def outcome() -> np.ndarray:
    return customers()["y"].to_numpy()


def trees(**settings: Any) -> LGBMClassifier:
    return LGBMClassifier(
        n_estimators=20, num_leaves=7, n_jobs=1, verbose=-1, random_state=0, **settings
    )


@lru_cache(maxsize=1)
def fitted_blend() -> Any:
    return blend({"trees": trees(), "linear": linear()}, [2.0, 1.0]).fit(encoded(), outcome())


def save_blend(directory: Path, name: str = "churn") -> LoadedModel:
    """Write the blend, beta-calibrated, with golden rows that hold unknown values."""
    model = fitted_blend()
    calibrator = fit_calibrator("beta", outcome(), model.predict_proba(encoded())[:, 1])
    return artifact.save(
        directory,
        name=name,
        kind="probability",
        estimator=model,
        encoder=encoder(),
        calibrator=calibrator,
        golden_rows=raw().head(30),
        metadata={"note": "test"},
    )
