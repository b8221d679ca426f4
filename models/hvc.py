"""Will the customer be among the top fifth by value over the next 90 days?"""

from lightgbm import LGBMClassifier

from nextbest import Model, SingleFeature, TopShareOfValue, blend, linear

model = Model(
    label=TopShareOfValue(horizon_days=90, share=0.2, active_days=90),
    estimator=blend(
        {
            "trees": LGBMClassifier(
                n_estimators=300, learning_rate=0.02, num_leaves=7, min_child_samples=50,
                colsample_bytree=0.25, subsample=0.8, subsample_freq=1, reg_lambda=5.0,
                deterministic=True, force_row_wise=True, n_jobs=1, verbose=-1,
            ),
            "linear": linear(C=0.01),
        }
    ),
    baseline=SingleFeature("spend_91d", name="past spend"),
    # The clv model's words for recency and tenure; and see models/churn.py on demographics.
    exclude=("lifetime", "demographics"),
)  # fmt: skip
