"""Will a customer who is active today buy nothing in the next 60 days?"""

from lightgbm import LGBMClassifier

from nextbest import Model, NoPurchase, SingleFeature, blend, linear

model = Model(
    label=NoPurchase(horizon_days=60, active_days=90),
    estimator=blend(
        {
            "trees": LGBMClassifier(
                n_estimators=150, learning_rate=0.03, num_leaves=7, min_child_samples=50,
                colsample_bytree=0.3, subsample=0.8, subsample_freq=1, reg_lambda=5.0,
                deterministic=True, force_row_wise=True, n_jobs=1, verbose=-1,
            ),
            "linear": linear(C=0.01),
        }
    ),
    baseline=SingleFeature("days_since_last_purchase", name="recency"),
    exclude=("lifetime", "demographics"),
)  # fmt: skip
