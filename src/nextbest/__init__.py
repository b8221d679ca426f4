"""nextbest: the next best offer for each customer, and proof of what it was worth.

The names here are what a project's own rooms may import. They load when first used, so that
`import nextbest` is quick.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from nextbest.data.contract import History
    from nextbest.data.features import (
        Block,
        Feature,
        FeatureGroup,
        Past,
        average,
        days_between,
        deviation,
        feature_group,
        follow,
        select,
        summarise,
        total,
    )
    from nextbest.data.labels import (
        BuysCategory,
        Examples,
        FutureValue,
        Label,
        NoPurchase,
        Response,
        TopShareOfValue,
    )
    from nextbest.data.live import Live
    from nextbest.errors import NextbestError
    from nextbest.learn.baselines import RunRate, SingleFeature, TypeRateTimesHistory
    from nextbest.learn.clv import (
        BetaGeoNBD,
        CustomerLifetimeValue,
        GammaGamma,
        ModifiedBetaGeoNBD,
        ParetoNBD,
    )
    from nextbest.learn.estimators import SignedLog1p, blend, linear
    from nextbest.learn.model import Model
    from nextbest.serve import create_app

__version__ = "0.1.0"

_HOMES = {
    "BetaGeoNBD": "nextbest.learn.clv",
    "Block": "nextbest.data.features",
    "BuysCategory": "nextbest.data.labels",
    "CustomerLifetimeValue": "nextbest.learn.clv",
    "Examples": "nextbest.data.labels",
    "Feature": "nextbest.data.features",
    "FeatureGroup": "nextbest.data.features",
    "FutureValue": "nextbest.data.labels",
    "GammaGamma": "nextbest.learn.clv",
    "History": "nextbest.data.contract",
    "Label": "nextbest.data.labels",
    "Live": "nextbest.data.live",
    "Model": "nextbest.learn.model",
    "ModifiedBetaGeoNBD": "nextbest.learn.clv",
    "NextbestError": "nextbest.errors",
    "NoPurchase": "nextbest.data.labels",
    "ParetoNBD": "nextbest.learn.clv",
    "Past": "nextbest.data.features",
    "Response": "nextbest.data.labels",
    "RunRate": "nextbest.learn.baselines",
    "SignedLog1p": "nextbest.learn.estimators",
    "SingleFeature": "nextbest.learn.baselines",
    "TopShareOfValue": "nextbest.data.labels",
    "TypeRateTimesHistory": "nextbest.learn.baselines",
    "average": "nextbest.data.features",
    "blend": "nextbest.learn.estimators",
    "create_app": "nextbest.serve",
    "days_between": "nextbest.data.features",
    "deviation": "nextbest.data.features",
    "feature_group": "nextbest.data.features",
    "follow": "nextbest.data.features",
    "linear": "nextbest.learn.estimators",
    "select": "nextbest.data.features",
    "summarise": "nextbest.data.features",
    "total": "nextbest.data.features",
}

__all__ = [
    "BetaGeoNBD",
    "Block",
    "BuysCategory",
    "CustomerLifetimeValue",
    "Examples",
    "Feature",
    "FeatureGroup",
    "FutureValue",
    "GammaGamma",
    "History",
    "Label",
    "Live",
    "Model",
    "ModifiedBetaGeoNBD",
    "NextbestError",
    "NoPurchase",
    "ParetoNBD",
    "Past",
    "Response",
    "RunRate",
    "SignedLog1p",
    "SingleFeature",
    "TopShareOfValue",
    "TypeRateTimesHistory",
    "__version__",
    "average",
    "blend",
    "create_app",
    "days_between",
    "deviation",
    "feature_group",
    "follow",
    "linear",
    "select",
    "summarise",
    "total",
]


def __getattr__(name: str) -> Any:
    if name in _HOMES:
        return getattr(importlib.import_module(_HOMES[name]), name)
    raise AttributeError(f"module 'nextbest' has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted(__all__)
