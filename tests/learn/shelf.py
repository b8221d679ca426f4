"""Versions with their runs in memory, for whatever compares them without a registry."""

from __future__ import annotations

import io
import json
from datetime import UTC, datetime

import numpy as np
import pandas as pd

from nextbest.errors import RegistryError
from nextbest.learn import evidence
from nextbest.learn.metrics import probability_metrics, top_share_metrics, value_metrics
from nextbest.learn.records import Baseline, Version, no_such_version

LABEL = "the customer leaves"


def rows(n=600, *, seed=0, per_customer=1, offers=("letter", "mail")):
    """Test rows with a known log-odds ``z``, columns for segments, and no score yet."""
    rng = np.random.default_rng(seed)
    z = rng.normal(-1, 1.5, n)
    return pd.DataFrame(
        {
            "customer_id": [f"c{i // per_customer}" for i in range(n)],
            "offer_id": [f"o{i % per_customer}" for i in range(n)],
            "as_of": pd.Timestamp("2026-01-01"),
            "label": (rng.random(n) < 1 / (1 + np.exp(-z))).astype(float),
            "z": z,
            "tenure_days": rng.permutation(n).astype(float),
            "spend_91d": rng.permutation(n) / 10,
            "offer_type": rng.choice(np.array(offers, dtype=object), n),
        }
    )


def scored(frame, noise, *, seed=1):
    """Probabilities from the true log-odds, blurred by ``noise`` (a number or one per row)."""
    blur = np.random.default_rng(seed).normal(size=len(frame)) * noise
    return 1 / (1 + np.exp(-(frame["z"].to_numpy() + blur)))


class Shelf:
    """Stands in for a registry: ``versions``, ``version`` and ``read_file``."""

    def __init__(self):
        self.kept = []
        self.files = {}

    def add(
        self, frame, score, baseline, *, aliases=(), params=(), features=("a", "b"), snapshot="s1",
        commit="abcdef0123", libraries=(("numpy", "2.0"),), low=None, high=None, tested=True,
        kind="probability", n_train=5_000, effects=None, segmented=True,
    ):  # fmt: skip
        number = len(self.kept) + 1
        keys = [k for k in ("customer_id", "offer_id", "as_of") if k in frame]
        test = frame.assign(score=score, baseline=baseline).reset_index(drop=True)
        stored = test[[*keys, "label", "score", "baseline"]]
        if low is not None:
            stored = stored.assign(low=np.asarray(low), high=np.asarray(high))
        stored = evidence.test_rows(stored, test if segmented else test[["label"]])
        if tested:
            content = io.BytesIO()
            stored.to_parquet(content, index=False)
            self.keep(number, "test_scores.parquet", content.getvalue())
        if features is not None:
            self.keep(number, "features.json", [{"name": f} for f in features])
            strength = effects or {f: 1 / (i + 1) for i, f in enumerate(features)}
            self.keep(
                number,
                "effects.json",
                [
                    {"feature": f, "meaning": f"what {f} is", "mean_effect": v, "direction": "up",
                     "low": -v, "high": v}
                    for f, v in strength.items()
                ],
            )  # fmt: skip
        self.keep(number, "environment.json", {"python": "3.11.7", "libraries": dict(libraries)})
        y = stored["label"].to_numpy()
        figures, base = (self._metrics(kind, y, stored, c) for c in ("score", "baseline"))
        counts = {"n_train": n_train, "n_test": len(stored)}
        if kind == "probability":
            counts["n_positive"] = int(y.sum())
        tags = {"nextbest.data_snapshot": snapshot, "mlflow.source.git.commit": commit}
        self.kept.append(
            Version(
                model="churn", version=number, run_id=f"r{number}", aliases=tuple(aliases),
                created_at=datetime(2026, 1, number, tzinfo=UTC),
                tags={k: v for k, v in tags.items() if v},
                params={"label": LABEL, "seed": "1", **dict(params)},
                metrics={"test": figures}, baseline=Baseline("recency", {"test": base}),
                counts=counts,
            )
        )  # fmt: skip
        return number

    @staticmethod
    def _metrics(kind, y, stored, column):
        score = stored[column].to_numpy()
        if kind == "clv":
            found = value_metrics(y, score, resamples=20)
            if "low" in stored and column == "score":
                found["interval_coverage"] = found["mae"]
            return found
        if not 0 < y.sum() < len(y):
            return {}
        found = probability_metrics(y, score, resamples=20)
        if "future_value" in stored:
            value = stored["future_value"].to_numpy()
            found |= top_share_metrics(y, score, value, share=float(y.mean()), resamples=20)
        return found

    def keep(self, number, path, content):
        data = content if isinstance(content, bytes) else json.dumps(content).encode()
        self.files[f"r{number}", path] = data

    def versions(self, name):
        return tuple(self.kept)

    def version(self, name, wanted):
        for kept in self.kept:
            if str(wanted) in (str(kept.version), *kept.aliases):
                return kept
        raise no_such_version(name, str(wanted), [str(v.version) for v in self.kept], ("other",))

    def read_file(self, run_id, path):
        if (run_id, path) not in self.files:
            raise RegistryError(f"run {run_id}", f"no file {path}")
        return self.files[run_id, path]
