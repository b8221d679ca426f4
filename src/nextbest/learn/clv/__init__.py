"""Customer lifetime value: how often customers will buy, what they spend, what they are worth.

`BetaGeoNBD`, `ModifiedBetaGeoNBD` and `ParetoNBD` forecast purchases, `GammaGamma` spend per
purchase, and `CustomerLifetimeValue` joins one of the former with the latter. All are fitted on one
RFM table. `choose_purchase_model` picks among the first three by what they foretell.
"""

from nextbest.learn.clv.beta_geo import BetaGeoNBD, ModifiedBetaGeoNBD
from nextbest.learn.clv.choice import PurchaseModelChoice, choose_purchase_model
from nextbest.learn.clv.gamma_gamma import GammaGamma, Independence
from nextbest.learn.clv.lifetime_value import (
    PURCHASE_MODELS,
    CustomerLifetimeValue,
    clv_from_dict,
)
from nextbest.learn.clv.newton import FitDiagnostics
from nextbest.learn.clv.pareto import ParetoNBD
from nextbest.learn.clv.purchase import PurchaseModel

__all__ = [
    "PURCHASE_MODELS",
    "BetaGeoNBD",
    "CustomerLifetimeValue",
    "FitDiagnostics",
    "GammaGamma",
    "Independence",
    "ModifiedBetaGeoNBD",
    "ParetoNBD",
    "PurchaseModel",
    "PurchaseModelChoice",
    "choose_purchase_model",
    "clv_from_dict",
]
