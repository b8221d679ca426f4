"""What will the customer be worth over the next year, and between which bounds?"""

from nextbest import (
    CustomerLifetimeValue,
    FutureValue,
    GammaGamma,
    Model,
    ModifiedBetaGeoNBD,
    RunRate,
)

model = Model(
    label=FutureValue(horizon_days=365),
    estimator=CustomerLifetimeValue(
        purchase_model=ModifiedBetaGeoNBD(),
        spend_model=GammaGamma(),
        horizon_days=365,
        discount_rate_per_year=0.10,
    ),
    baseline=RunRate("spend_91d", window_days=91, name="last 91 days' rate"),
)
